#!/usr/bin/env python3
"""Runs that are tracked by the real TensorBoard, MLflow and Weights & Biases, while all of them are killed.

A part of dev/interop.py. One run is followed by TensorBoard's event files and by an MLflow server. The server is
killed, then the run; both start again. After that everybody has each step of metrics.jsonl once, with its value.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

# A name in metrics.jsonl, and TensorBoard's tag for it.
TAGS = {
    "loss": "loss/train",
    "val_loss": "loss/val",
    "val_perplexity": "loss/val_perplexity",
    "norm": "optimizer/norm",
    "lr": "optimizer/lr",
    "ms": "speed/step_ms",
    "tok_per_s": "speed/tok_per_s",
    "tokens": "speed/tokens",
    "rss_bytes": "memory/rss_bytes",
}
# Their values in a step that runs again are others, and MLflow keeps the first.
MEASURED = {"ms", "tok_per_s", "rss_bytes"}
PATIENCE = 300


def wait_for(what: str, found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not found():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {PATIENCE} s")
        time.sleep(0.1)


class Server:
    """A real MLflow server, which can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        storage = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        storage += ["--artifacts-destination", str(self.folder / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1", *storage]
        quiet = {"MLFLOW_ENABLE_TELEMETRY": "false", "DO_NOT_TRACK": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        # A group of its own, because the server starts others, which have to die with it.
        apart = {"env": {**os.environ, **quiet}, "start_new_session": True, "cwd": self.folder}
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **apart)
        wait_for("MLflow's server", self.answers)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Trackers(unittest.TestCase):
    """Each step of metrics.jsonl arrives once."""

    @classmethod
    def setUpClass(cls) -> None:
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.dir = Path(folder.name)
        cls.out = cls.dir / "out"
        stories = [ROOT / "warpsmith", "stories", "-o", cls.dir / "data", "--tokens", "60000"]
        subprocess.run(stories, check=True, capture_output=True)
        cls.server = Server(cls.dir)
        cls.addClassCleanup(cls.server.kill)
        cls.server.start()
        cls.train_and_kill()

    @classmethod
    def start(cls, steps: int, *flags: str) -> subprocess.Popen:
        shards = str(cls.dir / "data" / "stories")
        model = ["--layers", "2", "--heads", "2", "--channels", "16", "-b", "1", "-t", "16", "-k", "constant"]
        run = ["-x", str(steps), "-v", "20", "-m", "2", "-s", "25", "-g", "8", "-n", "10", "-nk", "1"]
        trackers = ["-o", str(cls.out), "--tensorboard", "1", "--mlflow", cls.server.url]
        data = ["-i", f"{shards}_train_*.bin", "-j", f"{shards}_val_*.bin"]
        command = [ROOT / "train_gpt2", *data, *model, *run, *trackers]
        with open(cls.dir / "train.log", "ab") as output:
            return subprocess.Popen([*command, *flags], stdout=output, stderr=output)

    @classmethod
    def train_and_kill(cls) -> None:
        """Kills the server, then the run, and goes on with both."""
        run = cls.start(10**6)
        try:
            wait_for("metrics at the server", lambda: cls.latest_step() >= 20)
            cls.server.kill()
            before = cls.steps()
            wait_for("further steps", lambda: cls.steps() > before + 30)
        finally:
            run.kill()
            run.wait()
        killed = cls.steps()
        cls.server.start()
        status = cls.start(killed + 30, "-y", "1").wait(PATIENCE)
        if status != 0:
            raise AssertionError(f"exit code {status}\n" + (cls.dir / "train.log").read_text()[-3000:])
        cls.lines = [json.loads(line) for line in (cls.out / "metrics.jsonl").read_text().splitlines()]

    @classmethod
    def steps(cls) -> int:
        log = cls.out / "metrics.jsonl"
        return log.read_text().count('"loss"') if log.exists() else 0

    @classmethod
    def latest_step(cls) -> int:
        body = json.dumps({"experiment_ids": ["0"]}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{cls.server.url}/api/2.0/mlflow/runs/search", body, headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            runs = json.load(answer).get("runs", [])
        metrics = runs[0]["data"].get("metrics", []) if runs else []
        return max((int(metric["step"]) for metric in metrics if metric["key"] == "loss"), default=-1)

    def logged(self, name: str) -> list[tuple[int, float]]:
        return [(line["step"], line[name]) for line in self.lines if name in line]

    def samples(self) -> list[tuple[int, str]]:
        return [(line["step"], line["text"]) for line in self.lines if "text" in line]

    def test_tensorboard(self) -> None:
        """As scripts read event files, and as the program TensorBoard does."""
        from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator
        from tensorboard.util.tensor_util import make_ndarray

        folder = str(self.out / "tensorboard")
        for_scripts = event_accumulator.EventAccumulator(folder, size_guidance={"scalars": 0})
        shown = plugin_event_accumulator.EventAccumulator(folder, tensor_size_guidance={"scalars": 0, "text": 0})
        for_scripts.Reload()
        shown.Reload()
        for name, tag in TAGS.items():
            expected = [(step, np.float32(value)) for step, value in self.logged(name)]
            self.assertEqual([(event.step, event.value) for event in for_scripts.Scalars(tag)], expected, name)
            values = [(event.step, make_ndarray(event.tensor_proto).item()) for event in shown.Tensors(tag)]
            self.assertEqual(values, expected, name)
        texts = [(event.step, make_ndarray(event.tensor_proto)) for event in shown.Tensors("sample/0")]
        block = lambda text: "\n".join("    " + line for line in text.splitlines())
        self.assertEqual([(s, t.item().decode()) for s, t in texts], [(s, block(t)) for s, t in self.samples()])
        self.assertGreater(len(list((self.out / "tensorboard").iterdir())), 1, "the run did not resume")

    def test_mlflow(self) -> None:
        import mlflow

        client = mlflow.MlflowClient(self.server.url)
        runs = client.search_runs(["0"])
        self.assertEqual(len(runs), 1)
        run = runs[0]
        self.assertEqual((run.info.status, run.info.run_name), ("FINISHED", "out"))
        self.assertEqual(run.data.params["num_layers L"], "2")
        self.assertEqual(run.data.tags["resumed.resume"], "1")
        for name in TAGS:
            key = "system/process_memory_usage_megabytes" if name == "rss_bytes" else name
            history = sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
            logged = self.logged(name)
            self.assertEqual([step for step, _ in history], [step for step, _ in logged], name)
            if name not in MEASURED:
                self.assertEqual(history, logged, name)
        stored = {item.path for item in client.list_artifacts(run.info.run_id, "samples")}
        expected = {f"samples/step_{step:08}_0.txt" for step, _ in self.samples()}
        self.assertLessEqual(expected, stored)
        step, text = self.samples()[-1]
        path = client.download_artifacts(run.info.run_id, f"samples/step_{step:08}_0.txt", str(self.dir))
        self.assertEqual(Path(path).read_text(), text)
        self.assertEqual([item.path for item in client.list_artifacts(run.info.run_id, "plots")], ["plots/plot.png"])

    def test_wandb(self) -> None:
        script = [sys.executable, str(ROOT / "dev" / "wandb_import.py"), str(self.out)]
        quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(self.dir)}
        subprocess.run(script, check=True, env={**os.environ, **quiet}, cwd=self.dir)
        [path] = self.dir.glob("wandb/offline-run-*/run-*.wandb")
        history = [record.history for record in wandb_records(path) if record.HasField("history")]
        value_of = lambda item: (item.key or "/".join(item.nested_key), json.loads(item.value_json))
        rows = [dict(map(value_of, row.item)) for row in history]
        for name in TAGS:
            self.assertEqual([(row["_step"], row[name]) for row in rows if name in row], self.logged(name), name)
        self.assertEqual(rows[-1]["samples/nrows"], len(self.samples()))
        settings = json.loads((self.out / "settings.json").read_text())
        self.assertTrue(path.name.endswith(f"{settings['run']}.wandb"), path.name)


def wandb_records(path: Path) -> Iterator:
    """Yields the records of W&B's offline file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B", data[:7]
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # padding at the end of a block
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""
