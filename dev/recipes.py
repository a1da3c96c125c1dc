#!/usr/bin/env python3
"""Compares training recipes on small nets: trains them on a CPU, records and tabulates the losses.

    dev/recipes.py prepare stories
    dev/recipes.py prepare shakespeare --text input.txt
    dev/recipes.py run stories standard --lr 2e-3,4e-3 --seeds 1,2,3
    dev/recipes.py run stories muon --lr 4e-3 --muon-lr 0.02 --steps 200
    dev/recipes.py record stories
    dev/recipes.py plot

`run` trains every combination of its lists, one thread each, skips what is there already, and
leaves each run in build/recipes/CORPUS/. `record` writes benches/record/recipes/CORPUS.tsv from all
of them and prints the tables; `table` prints them from the record. `plot` draws the records into
docs/images/recipes.svg. The programs are those of target/release, or of BIN.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/recipes"
RECORD = ROOT / "benches/record/recipes"
BIN = Path(os.environ.get("BIN", ROOT / "target/release"))

# A net of 0.9 million parameters, and steps of 1,024 tokens.
NET = "--layers 4 --heads 4 --channels 128 --dtype bf16 --threads 1 -c 0.1 -s 0".split()
STEP_TOKENS = 1024
# Micro-batch and sequence; 16,384 validation tokens either way.
SHAPES = {"stories": "-b 8 -t 128 -m 16", "shakespeare": "-b 4 -t 256 -m 16"}
EVALUATIONS = 8

# Warm-up is the fraction of the run that it is at 124M: 700 of 18,865 steps, and 250 of 9,536.
COOLDOWN = "-k wsd --cooldown-frac 0.4 --cooldown-shape linear -q 0"
RECIPES = {
    "standard": (700 / 18865, "-k cosine -q 0"),
    "tuned": (250 / 9536, COOLDOWN),
    "muon": (250 / 9536, COOLDOWN + " --optimizer muon"),
}
COLUMNS = "recipe lr muon_lr seed steps step tokens val_loss cpu_ms".split()


def prepare(args: argparse.Namespace) -> None:
    """Makes the vocabulary and the shards of a corpus."""
    out = BUILD / "data" / args.corpus
    out.mkdir(parents=True, exist_ok=True)
    if args.corpus == "stories":
        text, vocabulary, more = out / "stories.txt", 512, ["--val-tokens", "64K"]
        warpsmith("stories", "-o", text, "--tokens", "6000000", "--force")
    else:
        if args.text is None:
            sys.exit("--text: missing; expected tinyshakespeare's input.txt")
        # The first nine tenths and the rest, as llm.c and nanoGPT split it.
        whole = args.text.read_bytes()
        cut = len(whole) * 9 // 10
        text, val, vocabulary = out / "train.txt", out / "val.txt", 257
        text.write_bytes(whole[:cut])
        val.write_bytes(whole[cut:])
        more = ["--val", val]
    tokenizer = out / "vocabulary/tokenizer.json"
    warpsmith("tokenizer", "train", text, "--vocab-size", vocabulary, "-o", tokenizer, "--force")
    warpsmith("data", text, "-o", out, "--name", args.corpus, "--tokenizer", tokenizer, "--force", *more)


def warpsmith(*words: object) -> None:
    subprocess.run([BIN / "warpsmith", *map(str, words)], check=True)


def command(corpus: str, recipe: str, lr: str, muon_lr: str, seed: str, steps: int, out: Path) -> list[str]:
    """The command line of one run."""
    data = BUILD / "data" / corpus
    warmup, flags = RECIPES[recipe]
    line = [str(BIN / "train_gpt2"), "-i", f"{data}/{corpus}_train_*.bin", "-j", f"{data}/{corpus}_val_*.bin"]
    line += ["-o", str(out), *NET, *SHAPES[corpus].split(), *flags.split(), "-l", lr, "--seed", seed]
    line += ["-x", str(steps), "-u", str(max(1, round(warmup * steps))), "-v", str(steps // EVALUATIONS)]
    return line + (["--muon-lr", muon_lr] if recipe == "muon" else [])


def run(args: argparse.Namespace) -> None:
    """Trains what has not been trained yet, `--jobs` runs at a time."""
    muon_lrs = args.muon_lr if args.recipe == "muon" else ["-"]
    if not muon_lrs:
        sys.exit("--muon-lr: missing")

    def one(point: tuple[str, str, str, str]) -> None:
        lr, muon_lr, seed, steps = point
        out = BUILD / args.corpus / f"{args.recipe}_{lr}_{muon_lr}_{seed}_{steps}"
        if not list(out.glob("DONE_*")):
            line = command(args.corpus, args.recipe, lr, muon_lr, seed, int(steps), out)
            trainer = subprocess.Popen(["nice", "-n", "15", *line], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(trainer.pid, 0)
            if status:
                sys.exit(f"{shlex.join(line)}: status {os.waitstatus_to_exitcode(status)}")
            (out / "cpu_ms").write_text(f"{(usage.ru_utime + usage.ru_stime) * 1e3 / int(steps):.1f}")
        last = points_of(out)[-1]
        print(f"{args.corpus} {args.recipe} lr {lr} muon_lr {muon_lr} seed {seed}: {last}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(one, itertools.product(args.lr, muon_lrs, args.seeds, args.steps)))


def points_of(out: Path) -> list[dict[str, str]]:
    """The validation losses of a run, with its CPU time per step, which includes the evaluations: the
    machine may be busy with other things."""
    recipe, lr, muon_lr, seed, steps = out.name.split("_")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    cpu_ms = (out / "cpu_ms").read_text()
    head = {"recipe": recipe, "lr": lr, "muon_lr": muon_lr, "seed": seed, "steps": steps}
    losses = [(line["step"], line["val_loss"] or math.nan) for line in lines if "val_loss" in line]
    return [
        head | {"step": step, "tokens": STEP_TOKENS * step, "val_loss": f"{loss:.4f}", "cpu_ms": cpu_ms}
        for step, loss in losses
    ]


def record(args: argparse.Namespace) -> None:
    """Writes the record of a corpus from its finished runs, and prints the tables."""
    outs = sorted(path.parent for path in (BUILD / args.corpus).glob("*/DONE_*"))
    RECORD.mkdir(parents=True, exist_ok=True)
    with (RECORD / f"{args.corpus}.tsv").open("w", newline="") as file:
        rows = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        rows.writeheader()
        rows.writerows(point for out in outs for point in points_of(out))
    table(args)


@dataclass
class Result:
    """Runs that differ by seed alone: final losses in the order of seeds, and the mean loss by step."""

    recipe: str
    lr: str
    muon_lr: str
    steps: int
    finals: list[float]
    curve: list[tuple[int, float]]
    cpu_ms: float

    @property
    def final(self) -> float:
        return statistics.mean(self.finals)

    @property
    def name(self) -> str:
        return f"{self.recipe}, LR {self.lr}" + (f", Muon's {self.muon_lr}" if self.muon_lr != "-" else "")


def results(corpus: str) -> list[Result]:
    """The runs of a record, by recipe, rates and length."""
    with (RECORD / f"{corpus}.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["recipe"], row["lr"], row["muon_lr"], row["steps"]].append(row)
    found = []
    rows.sort(key=lambda row: int(row["seed"]))
    for (recipe, lr, muon_lr, steps), points in groups.items():
        at = defaultdict(list)
        for point in points:
            at[int(point["step"])].append(float(point["val_loss"]))
        curve = [(step, statistics.mean(losses)) for step, losses in sorted(at.items())]
        cpu_ms = min(float(point["cpu_ms"]) for point in points)
        found.append(Result(recipe, lr, muon_lr, int(steps), at[int(steps)], curve, cpu_ms))
    return sorted(found, key=lambda r: (list(RECIPES).index(r.recipe), float(r.lr), r.muon_lr, r.steps))


def targets(found: list[Result]) -> dict[int, float]:
    """The loss of the best standard runs of several seeds, by length."""
    standard = [r for r in found if r.recipe == "standard" and len(r.finals) > 1]
    return {steps: min(r.final for r in standard if r.steps == steps) for steps in {r.steps for r in standard}}


def same_loss(found: list[Result], of: Result, target: float) -> str:
    """Tokens with which a recipe ends at a loss: between the two lengths that enclose it, linear in
    the logarithm of the length, as every length has a schedule of its own."""
    lengths = [r for r in found if (r.recipe, r.lr, r.muon_lr) == (of.recipe, of.lr, of.muon_lr) and len(r.finals) > 1]
    if of.final == target:
        return f"{STEP_TOKENS * of.steps / 1e3:.0f}k"
    for short, long in itertools.pairwise(lengths):
        if short.final >= target >= long.final:
            part = (short.final - target) / (short.final - long.final)
            return f"{STEP_TOKENS * short.steps * (long.steps / short.steps) ** part / 1e3:.0f}k"
    bound = lengths[0] if lengths[0].final < target else lengths[-1]
    return f"{'under' if bound.final < target else 'over'} {STEP_TOKENS * bound.steps / 1e3:.0f}k"


def table(args: argparse.Namespace) -> None:
    """Prints the runs of one seed, those of several, and tokens to the loss of the best standard run."""
    found = results(args.corpus)
    wanted = targets(found)
    print("\n| recipe | steps | final loss, seed 1 |\n|---|--:|--:|")
    for r in [r for r in found if r.steps in wanted]:
        print(f"| {r.name} | {r.steps} | {r.finals[0]:.4f} |")
    print("\n| recipe | steps | final loss, mean of seeds | least, greatest | tokens to standard's loss | CPU ms a step |")
    print("|---|--:|--:|--:|--:|--:|")
    for r in [r for r in found if len(r.finals) > 1]:
        tokens = same_loss(found, r, wanted[r.steps]) if r.steps in wanted else ""
        ends = f"{min(r.finals):.4f}, {max(r.finals):.4f}"
        print(f"| {r.name} | {r.steps} | {r.final:.4f} | {ends} | {tokens} | {r.cpu_ms:.0f} |")


# Okabe and Ito's colors, as in `warpsmith plot`.
COLORS = {"standard": "#0072b2", "tuned": "#d55e00", "muon": "#009e73"}
TITLE = 'font-size="17" font-weight="bold"'
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 560, 380, 60, 64, 30, 56


def text_at(x: float, y: float, words: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{words}</text>'


def panel(corpus: str, offset: int) -> list[str]:
    """The mean curves of the longest runs at their best rates, and where runs of each seed end, as SVG."""
    found = results(corpus)
    full = max(targets(found))
    best: dict[str, Result] = {}
    for r in sorted(found, key=lambda r: r.final, reverse=True):
        if r.steps == full and len(r.finals) > 1:
            best[r.recipe] = r
    curves = {recipe: r.curve[1:] for recipe, r in best.items()}
    losses = [loss for curve in curves.values() for _, loss in curve]
    low, high = math.floor(min(losses) * 4) / 4, math.ceil(max(losses) * 4) / 4

    def place(step: float, loss: float) -> tuple[float, float]:
        inner = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return offset + LEFT + step / full * inner[0], TOP + (high - loss) / (high - low) * inner[1]

    out = [text_at(offset + LEFT, 26, f"Validation loss of {corpus}, nats per token", "start", TITLE)]
    stride = 0.25 if high - low <= 1.5 else 0.5
    for i in range(int((high - low) / stride) + 1):
        (x, y), right = place(0, low + i * stride), place(full, low)[0]
        out.append(f'<path d="M{x:.1f} {y:.1f}H{right:.1f}" stroke="#e5e8ec"/>')
        out.append(text_at(x - 8, y + 4.5, f"{low + i * stride:g}", "end"))
    for step in range(0, full + 1, full // 4):
        x, y = place(step, low)
        out.append(text_at(x, y + 20, f"{STEP_TOKENS * step / 1e3:.0f}k" if step else "0"))
    out.append(text_at(place(full / 2, low)[0], HEIGHT - 12, "tokens", more='fill="#68707a"'))
    x = offset + LEFT
    for recipe, curve in curves.items():
        color = COLORS[recipe]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        ends = [r for r in found if (r.recipe, r.lr, r.muon_lr) == (recipe, best[recipe].lr, best[recipe].muon_lr)]
        for cx, cy in (place(r.steps, loss) for r in ends if len(r.finals) > 1 for loss in r.finals):
            out.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3" fill="{color}"/>')
        out.append(text_at(x, 50, best[recipe].name, "start", f'fill="{color}"'))
        x += 8 * len(best[recipe].name)
    return out


def plot(args: argparse.Namespace) -> None:
    """Draws both corpora from their records into docs/images/recipes.svg."""
    shapes = [shape for i, corpus in enumerate(SHAPES) for shape in panel(corpus, i * WIDTH)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" font-family="sans-serif" '
    head += 'font-size="13" fill="#262c34"><rect width="100%" height="100%" fill="#fff"/>'
    (ROOT / "docs/images/recipes.svg").write_text("\n".join([head, *shapes, "</svg>\n"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tools = parser.add_subparsers(required=True)
    for tool in (prepare, run, record, table, plot):
        command_of = tools.add_parser(tool.__name__, help=tool.__doc__)
        command_of.set_defaults(tool=tool)
        if tool is not plot:
            command_of.add_argument("corpus", choices=SHAPES)
        if tool is prepare:
            command_of.add_argument("--text", type=Path, help="tinyshakespeare's input.txt")
        if tool is run:
            items = lambda text: text.split(",")
            command_of.add_argument("recipe", choices=RECIPES)
            command_of.add_argument("--lr", type=items, required=True)
            command_of.add_argument("--muon-lr", type=items, default=[])
            command_of.add_argument("--seeds", type=items, default=["1"])
            command_of.add_argument("--steps", type=items, default=["400"])
            command_of.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    args.tool(args)


if __name__ == "__main__":
    main()
