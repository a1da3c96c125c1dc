#!/usr/bin/env python3
"""Times training steps of train_gpt2 and of PyTorch in alternation and writes a record.

    dev/bench.py --ours './train_gpt2' -e d12 -b 1 -t 1024 --data 'data/*_train_*.bin'
    dev/bench.py --ours 'f32=./train_gpt2 --dtype f32' --ours 'bf16=./train_gpt2' --torch f32:compile --torch bf16:compile

In each round every program runs a few steps in turn, so that drift of the machine hits all alike. Each PyTorch worker
starts once, compiles, and sleeps between its turns; ours starts afresh each time and its first step is not counted. Do
not run anything else meanwhile. Prints a Markdown table and writes benches/record/<machine>/<date>-step.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from flags import add_model_flags, model_flags

HERE = Path(__file__).resolve().parent
STEP_MS = re.compile(r"^step\s.*\|\s*([0-9.]+) ms\s*\|", re.MULTILINE)


@dataclass
class Samples:
    """What was measured of one program; peak_mib is its largest resident size."""

    command: str
    ms: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    notes: dict = field(default_factory=dict)

    def add(self, ms: list[float], peak_mib: float) -> None:
        self.ms += ms
        self.peak_mib = max(self.peak_mib, peak_mib)


def shape_flags(args: argparse.Namespace) -> list[str]:
    return ["-b", str(args.b), "-t", str(args.t), *model_flags(args)]


class Ours:
    """A program with llm.c's flags and step lines: train_gpt2, or llm.c's own.

    Its peak memory is what the system counted for the child, which starts with the size of this driver: 20 MiB, as long as
    nothing here imports PyTorch.
    """

    def __init__(self, command: str, args: argparse.Namespace):
        quiet = ["-v", "0", "-s", "0", "-x", str(args.steps + 1), "-d", str(args.b * args.t)]
        data = ["-i", args.data, "-j", args.data]
        self.command = [*shlex.split(command), *data, *shape_flags(args), *quiet]
        self.samples = Samples(shlex.join(self.command))

    def round(self) -> None:
        """A fresh process; its first step faults in memory and is dropped."""
        with tempfile.TemporaryFile("w+") as output:
            try:
                process = subprocess.Popen(self.command, stdout=output, stderr=subprocess.STDOUT)
            except OSError as error:
                raise SystemExit(f"bench: cannot run {self.command[0]}: {error.strerror}; build it first (make)")
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            text = output.read()
        times = [float(ms) for ms in STEP_MS.findall(text)]
        if process.returncode != 0 or len(times) < 2:
            last = (text.strip() or "no output").splitlines()[-1]
            raise SystemExit(f"bench: {self.command[0]} ended with {process.returncode} and {len(times)} steps: {last}")
        unit = 1 if sys.platform == "darwin" else 1024
        self.samples.add(times[1:], usage.ru_maxrss * unit / 2**20)

    def close(self) -> None:
        pass


class Torch:
    """A PyTorch worker, kept alive."""

    def __init__(self, variant: str, args: argparse.Namespace):
        dtype, _, mode = variant.partition(":")
        command = [sys.executable, str(HERE / "bench_torch.py"), "--serve", "--dtype", dtype, "-i", args.data]
        if mode not in ("eager", "compile", "max-autotune"):
            raise SystemExit(f"bench: --torch {variant}: expected f32 or bf16, a colon, eager, compile or max-autotune")
        command += [] if mode == "eager" else ["--compile"]
        command += ["--compile-mode", "max-autotune"] if mode == "max-autotune" else []
        self.command = [*command, *shape_flags(args)]
        self.steps = args.steps
        # The record is read on other machines, where the paths of this one say nothing.
        self.samples = Samples(shlex.join(["python", "dev/bench_torch.py", *self.command[2:]]))
        self.worker = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.samples.notes["start"] = self.answer()

    def answer(self) -> dict:
        line = self.worker.stdout.readline()
        if not line:
            raise SystemExit(f"bench: the PyTorch worker ended with {self.worker.wait()}: {self.samples.command}")
        return json.loads(line)

    def round(self) -> None:
        self.worker.stdin.write(f"{self.steps}\n")
        self.worker.stdin.flush()
        found = self.answer()
        self.samples.add(found["ms"], found["peak_mib"])

    def close(self) -> None:
        self.worker.stdin.close()
        self.worker.wait()


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=HERE).stdout.strip()
    except OSError:
        return ""


def machine() -> dict:
    """The processor, as far as the system tells."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.*)$", info, re.MULTILINE)
    vector = re.compile(r"avx2|fma$|avx512f|avx512_bf16|avx512_vnni|avx_vnni|amx")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model.group(1) if model else output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine(),
        "cores": os.cpu_count(),
        "vector": [flag for flag in (flags.group(1).split() if flags else []) if vector.match(flag)],
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(),
        "load_before": os.getloadavg(),
    }


def summary(samples: Samples, tokens: int) -> dict:
    median = statistics.median(samples.ms)
    return {
        "command": samples.command,
        "median_ms": median,
        "min_ms": min(samples.ms),
        "max_ms": max(samples.ms),
        "tokens_per_s": tokens / median * 1e3,
        "peak_mib": samples.peak_mib,
        "ms": samples.ms,
        **samples.notes,
    }


def table(found: dict[str, dict]) -> str:
    """Ratios are against the first of ours; above 1 means that ours is faster."""
    base = next(iter(found.values()))["median_ms"]
    lines = ["| program | median ms | min | max | tok/s | time / ours | peak MiB |", "|---|--:|--:|--:|--:|--:|--:|"]
    for name, row in found.items():
        numbers = [row["median_ms"], row["min_ms"], row["max_ms"], row["tokens_per_s"]]
        cells = [f"{value:.1f}" for value in numbers] + [f"{row['median_ms'] / base:.2f}", f"{row['peak_mib']:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_record(args: argparse.Namespace, described: dict, found: dict[str, dict]) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", f"{described['cpu']} {described['cores']} cores".lower()).strip("-")
    now = datetime.datetime.now(datetime.timezone.utc)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "machine": described,
        "commit": output_of("git", "describe", "--always", "--dirty"),
        "model": args.model or {key: getattr(args, key) for key in ("layers", "heads", "channels", "context")},
        "B": args.b,
        "T": args.t,
        "rounds": args.rounds,
        "steps_per_round": args.steps,
        "programs": found,
    }
    path = args.record / (args.machine or slug) / f"{now:%Y-%m-%d}-step.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # One file a day holds a list: one entry for each run.
    earlier = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*earlier, record], indent=1) + "\n")
    return path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_flags(parser)
    parser.add_argument("--ours", action="append", default=[], help="our program and its own flags; LABEL=COMMAND")
    parser.add_argument("--torch", action="append", default=[], help="{f32,bf16}:{eager,compile,max-autotune}")
    parser.add_argument("--data", required=True, help="pattern of token shards, read by all")
    parser.add_argument("-b", type=int, default=4, help="batch size B")
    parser.add_argument("-t", type=int, default=64, help="sequence length T")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="counted steps of each program in a round")
    parser.add_argument("--record", type=Path, default=HERE.parent / "benches" / "record")
    parser.add_argument("--machine", help="name of the machine in the record (default: from its processor)")
    return parser.parse_args()


def contenders(args: argparse.Namespace) -> dict[str, Ours | Torch]:
    """Ours first, so that ratios are against it."""
    programs: dict[str, Ours | Torch] = {}
    for i, text in enumerate(args.ours or ["./train_gpt2"]):
        label, equals, command = text.partition("=")
        if not equals or not re.fullmatch(r"[\w.-]+", label):
            label, command = ("ours" if i == 0 else f"ours-{i + 1}"), text
        programs[label] = Ours(command, args)
        programs[label].round()  # proves that it runs before PyTorch compiles for a minute
        programs[label].samples.ms.clear()
    for variant in args.torch or ["f32:compile", "bf16:compile"]:
        programs[f"torch-{variant}"] = Torch(variant, args)
    return programs


def main() -> None:
    args = parse()
    described = machine()
    programs = contenders(args)
    for number in range(args.rounds):
        for name, program in programs.items():
            program.round()
            print(f"round {number + 1}/{args.rounds}: {name} {program.samples.ms[-1]:.1f} ms", file=sys.stderr)
    for program in programs.values():
        program.close()
    described["load_after"] = os.getloadavg()
    found = {name: summary(program.samples, args.b * args.t) for name, program in programs.items()}
    print(f"{described['cpu']}, {described['cores']} cores; B {args.b}, T {args.t}\n\n{table(found)}")
    print(f"\nrecord: {write_record(args, described, found)}")


if __name__ == "__main__":
    main()
