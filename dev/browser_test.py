#!/usr/bin/env python3
"""Drives the page of `warpsmith watch` in a real headless Chromium: make browser-test

--pictures DIR also writes the pictures of docs/watching.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import webdriver
from webdriver import Browser

ROOT = Path(__file__).resolve().parent.parent
STEPS = 400
START = time.time() - 0.4 * STEPS
# What differs between the two runs.
RATES = {"slow": 3e-4, "fast": 6e-4}


def write_run(folder: Path, name: str, steps: int) -> None:
    """Writes the log of a run that fell as runs do, in the words of train_gpt2."""
    out = folder / name
    out.mkdir(parents=True)
    rate = RATES[name]
    rows = [["num_layers L", "12"], ["learning rate", f"{rate:.0e}"], ["dtype", "bf16"], ["channels C", "768"]]
    (out / "settings.json").write_text(json.dumps({"run": name, "started": START, "settings": rows}))
    lines = [line for step in range(steps) for line in lines_of(step, rate)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def lines_of(step: int, rate: float) -> list[dict]:
    now = START + 0.4 * step
    smooth = 3.1 + 7.8 * math.exp(-step * rate * 40) - 150 * rate
    noise = 0.12 * math.sin(step * 12.9898 + rate * 1e5) * math.cos(step * 4.1414)
    lines = []
    if step % 40 == 0:
        lines.append({"step": step, "val_loss": smooth + 0.05, "val_perplexity": math.exp(smooth + 0.05), "time": now})
        score = 0.25 + 0.05 * (1 - math.exp(-step / 150)) + 20 * rate
        lines.append({"step": step, "hellaswag_acc_norm": score, "hellaswag_acc": score - 0.01, "hellaswag_chance": 0.25, "time": now})
    if step and step % 80 == 0:
        text = f"Once upon a time, after {step} steps,\n<b>there</b> was </script> a model & its text."
        lines.append({"step": step, "sample": 0, "text": text, "time": now})
    norm, lr = 0.4 + 3 * math.exp(-step / 40) + abs(noise), rate * min(1, (step + 1) / 60)
    train = {"loss": smooth + noise, "norm": norm, "lr": lr}
    ms = 400 + 2e4 * rate + 40 * noise
    speed = {"ms": ms, "tok_per_s": 524_288e3 / ms, "tokens": 524_288 * (step + 1)}
    lines.append({"step": step, **train, **speed, "rss_bytes": 2**20 * (2311 + step // 50), "time": now})
    return lines


# Gives a control a value, as a user does.
SET = "const e = document.getElementById('{}'); e.value = '{}'; e.dispatchEvent(new Event('{}'))"


class Page(unittest.TestCase):
    browser: Browser
    pictures: Path | None = None

    @classmethod
    def setUpClass(cls) -> None:
        profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        cls.addClassCleanup(profile.cleanup)
        cls.browser = Browser(Path(profile.name))
        cls.addClassCleanup(cls.browser.close)

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name)
        for name in RATES:
            write_run(self.dir, name, STEPS)

    def tearDown(self) -> None:
        self.assertEqual(self.browser.errors(), [], "the page reported errors")
        # Otherwise it would ask a server that has ended.
        self.browser.open("about:blank")

    def serve(self) -> str:
        """Serves the runs, and returns the address."""
        command = [ROOT / "warpsmith", "watch", self.dir, "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(lambda: (server.kill(), server.wait(), server.stdout.close()))
        return server.stdout.readline().strip()

    def open(self, url: str) -> None:
        self.browser.open(url)
        self.browser.wait("document.querySelectorAll('#charts canvas').length >= 7")

    def text(self, selector: str) -> str:
        return self.browser.run("return document.querySelector(arguments[0]).innerText", selector)

    def rows(self, table: str) -> list[list[str]]:
        rows = f"[...document.querySelectorAll('{table} tr')]"
        return self.browser.run(f"return {rows}.map((row) => [...row.cells].map((cell) => cell.innerText))")

    def range(self) -> list[float] | None:
        return self.browser.run("return view.range")

    def painted(self, chart: str, color: str) -> int:
        """Pixels of a chart in a color."""
        return self.browser.run(
            """const canvas = document.getElementById(arguments[0]);
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            const wanted = [1, 3, 5].map((at) => parseInt(arguments[1].slice(at, at + 2), 16));
            let count = 0;
            for (let i = 0; i < data.length; i += 4)
                if (wanted.every((value, k) => Math.abs(value - data[i + k]) < 12) && data[i + 3] > 200) count++;
            return count;""",
            chart,
            color,
        )

    def test_runs_settings_and_evaluations_are_compared(self) -> None:
        self.open(self.serve())
        runs = self.rows("#runs")
        self.assertEqual([row[1] for row in runs[1:]], ["fast", "slow"])
        self.assertEqual([row[3] for row in runs[1:]], [str(STEPS)] * 2)
        settings = self.rows("#settings")
        self.assertIn(["learning rate (differs)", "6e-04", "3e-04"], settings)
        self.assertIn(["dtype", "bf16", "bf16"], settings)
        self.browser.run("document.getElementById('differences').click()")
        self.assertEqual(len(self.rows("#settings")), 2)
        self.browser.run("document.getElementById('differences').click()")
        evaluation = {row[0]: row[1:] for row in self.rows("#evaluation")}
        against = [name for name in evaluation if name.startswith("best against GPT-2 124M: ")]
        self.assertEqual(len(against), 1, evaluation)
        self.assertTrue(all("(better)" in cell or "(worse)" in cell for cell in evaluation[against[0]]), evaluation)
        colors = self.browser.run("return runs.map(colorOf)")
        for color in colors:
            self.assertGreater(self.painted("chart-loss", color), 300)
        self.browser.run("document.querySelector('#runs input').click()")
        self.browser.wait("document.querySelectorAll('#settings thead th').length === 2")
        time.sleep(0.2)
        self.assertEqual(self.painted("chart-loss", colors[0]), 0, "a run that is not shown is not drawn")

    def test_a_run_that_goes_on_is_followed(self) -> None:
        self.open(self.serve())
        log = self.dir / "slow" / "metrics.jsonl"
        with log.open("a") as file:
            for step in range(STEPS, STEPS + 10):
                file.writelines(json.dumps(line) + "\n" for line in lines_of(step, 3e-4))
            file.write('{"step":')  # a line that is still being written
        self.browser.wait(f"runs.some((run) => stepsOf(run) === {STEPS + 10})")
        # A resumed run cuts its log back, as another file of that name.
        lines = log.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < 100]
        (self.dir / "new").write_text("".join(kept))
        os.replace(self.dir / "new", log)
        self.browser.wait("runs.some((run) => stepsOf(run) === 100)")
        with log.open("a") as file:
            file.write('{"step":100,"end":"completed","time":1700000100}\n')
        self.browser.wait("document.getElementById('runs').innerText.includes('completed')")

    def test_a_real_run_from_its_first_line_to_its_end(self) -> None:
        run = self.dir / "real"
        stories = [ROOT / "warpsmith", "stories", "-o", self.dir / "data", "--tokens", "60000"]
        subprocess.run(stories, check=True, capture_output=True)
        data = ["-i", self.dir / "data/stories_train_*.bin", "-j", self.dir / "data/stories_val_*.bin", "-o", run]
        flags = "--layers 1 --heads 1 --channels 16 -b 1 -t 16 -x 20 -v 10 -m 1 -s 10 -g 8"
        train = subprocess.Popen([ROOT / "train_gpt2", *data, *flags.split()], stdout=subprocess.DEVNULL)
        self.addCleanup(lambda: (train.kill(), train.wait()))
        self.open(self.serve())
        self.browser.wait("runs.some((run) => run.name === 'real' && run.end === 'completed')", 240)
        self.assertEqual(train.wait(60), 0)
        row = next(row for row in self.rows("#runs") if row[1] == "real")
        self.assertEqual(row[2:4], ["completed", "20"])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        shown = "runs.find((run) => run.name === 'real')"
        self.assertEqual(self.browser.run(f"return {shown}.series.loss.value"), losses)
        texts = [line["text"] for line in lines if "text" in line]
        self.assertEqual(self.browser.run(f"return [...{shown}.samples.values()].flat().map((s) => s.text)"), texts)
        # The run stands last if the page was there first.
        layers = next(row for row in self.rows("#settings") if row[0].startswith("num_layers L"))
        self.assertEqual((layers[0], sorted(layers[1:])), ("num_layers L (differs)", ["1", "12", "12"]))

    def test_zoom_smoothing_and_logarithms(self) -> None:
        self.open(self.serve())
        rect = "const b = document.getElementById('chart-loss').getBoundingClientRect();"
        box = self.browser.run(f"{rect} return [b.x, b.y, b.width, b.height]")
        middle = box[1] + box[3] / 2
        self.browser.drag((box[0] + box[2] * 0.3, middle), (box[0] + box[2] * 0.6, middle))
        low, high = self.browser.wait("view.range")
        self.assertTrue(0.2 * STEPS < low < 0.4 * STEPS and 0.5 * STEPS < high < 0.7 * STEPS, (low, high))
        self.browser.run("document.getElementById('zoom-reset').click()")
        self.assertIsNone(self.range())
        drawn = "document.getElementById('chart-loss').toDataURL()"
        before = self.browser.run(f"return {drawn}")
        changes = [
            *[SET.format(*change) for change in [("smooth", "0", "input"), ("axis", "tokens", "change")]],
            SET.format("axis", "time", "change"),
            "document.getElementById('log-x').click()",
            "document.querySelector('figure input').click()",
        ]
        for change in changes:
            self.browser.run(change)
            self.browser.wait(f"{drawn} !== {json.dumps(before)}")
            before = self.browser.run(f"return {drawn}")

    def test_keyboard_and_screen_reader(self) -> None:
        url = self.serve()
        self.open(url)
        self.browser.run("document.getElementById('chart-loss').focus()")
        self.browser.press("Right", "Right")
        said = self.browser.wait("document.getElementById('cursor').textContent")
        self.assertRegex(said, r"^step \d+(\.\d+)?: fast loss \d")
        self.assertIn("slow val_loss", said)
        self.browser.press("+")
        low, high = self.browser.wait("view.range")
        self.assertLess(high - low, 0.6 * STEPS)
        self.browser.press("Shift", "Right")
        self.assertGreater(self.range()[0], low)
        self.browser.press("0")
        self.assertIsNone(self.range())
        # What a screen reader gets: each control has a name, and each chart says its values.
        tree = self.browser.devtools("Accessibility.getFullAXTree")["nodes"]
        of_node = lambda node, name: node.get(name, {}).get("value", "")
        nodes = [(of_node(node, "role"), of_node(node, "name")) for node in tree if not node.get("ignored")]
        controls = {"checkbox", "button", "combobox", "slider"}
        self.assertEqual([node for node in nodes if node[0] in controls and not node[1].strip()], [])
        charts = [name for role, name in nodes if role in ("image", "img")]
        self.assertTrue(any(name.startswith("Loss, nats per token") and "lowest" in name for name in charts), charts)
        headings = [name for role, name in nodes if role == "heading"]
        for title in ["Runs", "Curves", "Evaluation against baselines", "Samples", "Settings"]:
            self.assertIn(title, headings)
        # All controls are reached with Tab, in their order.
        self.open(url)
        seen = []
        for _ in range(30):
            self.browser.press("Tab")
            seen.append(self.browser.run("return document.activeElement.id || document.activeElement.className"))
        wanted = ["theme", "axis", "log-x", "smooth", "zoom-in", "zoom-reset", "chart-loss", "chart-lr"]
        places = [seen.index(name) for name in wanted]
        self.assertEqual(places, sorted(places), seen)

    def test_samples_over_time(self) -> None:
        self.open(self.serve())
        self.assertIn("after 320 steps,\n<b>there</b> was </script> a model & its text.", self.text("#samples"))
        self.browser.run(SET.format("sample-step", 0, "input"))
        self.assertIn("after 80 steps", self.text("#samples"))
        self.assertNotIn("after 320 steps", self.text("#samples"))
        self.assertEqual(self.text("#sample-value"), "80")

    def test_an_export_is_the_same_page_without_a_server(self) -> None:
        report = self.dir / "report.html"
        subprocess.run([ROOT / "warpsmith", "watch", self.dir, "--export", report], check=True, capture_output=True)
        self.open(report.as_uri())
        self.assertEqual([row[3] for row in self.rows("#runs")[1:]], [str(STEPS)] * 2)
        self.assertIn("as exported", self.text("#state"))
        self.assertIn("</script> a model", self.text("#samples"))
        self.assertGreater(self.painted("chart-loss", self.browser.run("return colorOf(runs[0])")), 300)

    def test_light_and_dark(self) -> None:
        url = self.serve()
        for theme in ["light", "dark"]:
            media = [{"name": "prefers-color-scheme", "value": theme}]
            self.browser.devtools("Emulation.setEmulatedMedia", features=media)
            self.open(url)
            paper = self.browser.run("return getComputedStyle(document.body).backgroundColor")
            self.assertEqual(sum(map(int, paper[4:-1].split(","))) > 384, theme == "light", paper)
            contrast = self.browser.run(CONTRAST)
            self.assertGreaterEqual(min(contrast.values()), 4.5, contrast)
            self.browser.wait("document.getElementById('state').textContent === '2 runs'")
            time.sleep(0.3)
            if self.pictures:
                size = {"width": 1100, "height": 1480, "deviceScaleFactor": 1, "mobile": False}
                self.browser.devtools("Emulation.setScrollbarsHidden", hidden=True)
                self.browser.devtools("Emulation.setDeviceMetricsOverride", **size)
                time.sleep(0.5)
                self.browser.picture(self.pictures / f"watch-{theme}.png")
                self.browser.devtools("Emulation.clearDeviceMetricsOverride")
        self.browser.devtools("Emulation.setEmulatedMedia", features=[])
        self.browser.run(SET.format("theme", "dark", "change"))
        self.open(url)
        theme = self.browser.run("return document.documentElement.dataset.theme")
        self.assertEqual(theme, "dark", "it is remembered")
        self.browser.run("localStorage.clear()")


# The contrast of texts with what is behind them, as WCAG defines it.
CONTRAST = """
const style = getComputedStyle(document.documentElement);
const luminance = (name) => {
  const hex = style.getPropertyValue(name).trim();
  const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
  const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = {};
for (const paper of ["--paper", "--panel"])
  for (const ink of ["--ink", "--faint", "--accent", "--good"]) {
    const [high, low] = [luminance(paper), luminance(ink)].sort((a, b) => b - a);
    found[`${ink} on ${paper}`] = (high + 0.05) / (low + 0.05);
  }
return found;
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", help="names, such as Page.test_light_and_dark (default: all)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="write the pictures of docs/watching.md there")
    args = parser.parse_args()
    missing = webdriver.missing() or (None if (ROOT / "warpsmith").exists() else "no ./warpsmith; run make first")
    if missing and "browser" in os.environ.get("REQUIRE_TESTS", "").split():
        raise SystemExit(f"browser_test: {missing}, and REQUIRE_TESTS has browser")
    if missing:
        print(f"SKIPPED: browser_test: {missing}", file=sys.stderr)
        return
    Page.pictures = args.pictures
    unittest.main(argv=[sys.argv[0], "-v", *args.tests])


if __name__ == "__main__":
    main()
