"""Planned memory against measured memory, as tables for docs/memory.md.

    python3 dev/memory.py [--build DIR] [--work DIR] plan      # the table of at least ten configurations
    python3 dev/memory.py [--build DIR] [--work DIR] finetune  # GPT-2 124M
    python3 dev/memory.py [--build DIR] [--work DIR] gpus      # 1.6 billion parameters on 8 GPUs, predicted

Each run is one step of the trainer on generated stories. Planned and measured are those of the line
with which a run ends: "memory: planned 337.9 MiB, peak measured 339.2 MiB (+0.4 %)". The planned figure is
also compared with `warpsmith plan`.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"memory: planned ([\d.]+) MiB, peak measured ([\d.]+) MiB")

SMALL = "--layers 4 --heads 4 --channels 256 -b 2 -t 64"
CONFIGURATIONS = [
    (1, f"{SMALL}"),
    (1, f"{SMALL} -r 0"),
    (1, f"{SMALL} -r 2"),
    (1, f"{SMALL} --optimizer-state bf16"),
    (1, f"{SMALL} --dtype bf16"),
    (1, f"{SMALL} --freeze wte,wpe"),
    (1, f"{SMALL} --optimizer muon"),
    (1, f"{SMALL} -n 1 -o out"),
    (1, f"{SMALL} -s 1 -g 16"),
    (1, "-e d6 -b 2 -t 128"),
    (1, "-e d6 -b 2 -t 128 -r 0 --dtype bf16"),
    (1, "-e d12 -b 1 -t 64"),
    (2, f"{SMALL} -z 0"),
    (2, f"{SMALL} -z 1"),
    (2, f"{SMALL} -z 2"),
    (2, f"{SMALL} -z 3"),
    (2, f"{SMALL} -z 1 -n 1 -o out"),
]

# GPT-2 124M: measured on the CPU, where every tensor is f32, and planned for a GPU.
ON_CPU = [f"-e d12 -b 2 -t 128 --dtype {dtype} -r {r}" for dtype, r in [("f32", 0), ("f32", 1), ("f32", 2), ("bf16", 1)]]
ON_GPU = [f"--gpu h100 -e d12 -b 32 -t 1024 {more}" for more in [
    "--dtype f32 -r 0", "--dtype f32 -r 2", "--dtype bf16 -r 0", "--dtype bf16 -r 1", "--dtype bf16 -r 2",
    "--dtype fp16 -r 1", "--dtype bf16 -w 0 -r 1", "--dtype bf16 --optimizer-state bf16 -r 1",
    "--dtype bf16 --optimizer-state bf16 -w 0 -r 1", "--dtype bf16 -r 1 --freeze wte,wpe,h.0-5"]]


class Programs:
    def __init__(self, build: Path, work: Path):
        self.build, self.work = build, work
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "data").exists():
            self.call([build / "warpsmith", "stories", "-o", "data", "--tokens", "200000"])

    def call(self, command: list, **options) -> str:
        done = subprocess.run([str(word) for word in command], cwd=self.work, capture_output=True, text=True, **options)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stderr}")
        return done.stdout + done.stderr

    def data(self) -> list[str]:
        return ["-i", "data/stories_train_*.bin", "-j", "data/stories_val_*.bin", "-x", "1", "-v", "0"]

    def flags(self, flags: str) -> list[str]:
        samples = [] if "-s " in flags else ["-s", "0"]
        return self.data() + samples + flags.split()

    def plan(self, processes: int, flags: str) -> dict:
        command = [self.build / "warpsmith", "plan", "--json", *self.flags(flags)]
        return json.loads(self.call([*command, "-pn", processes] if processes > 1 else command))

    def train(self, processes: int, flags: str) -> list[tuple[float, float]]:
        """Planned and measured MiB of each rank, rank 0 first."""
        self.call(["rm", "-rf", "out"])
        trainer = [self.build / "train_gpt2", *self.flags(flags)]
        if processes > 1:
            trainer = [self.build / "warpsmith", "launch", "-n", processes, "--", *trainer]
        said = self.call(trainer, env={**os.environ, "RUST_LOG": "info"})
        lines = [(("rank" in line.split("memory:")[0]), *LINE.search(line).groups()) for line in said.splitlines()
                 if LINE.search(line)]
        if len(lines) != processes:
            sys.exit(f"{flags}: expected the line of {processes} processes, found\n{said}")
        return [(float(planned), float(measured)) for _, planned, measured in sorted(lines)]


def difference(planned: float, measured: float) -> str:
    return f"{100 * (measured / planned - 1):+.1f} %"


def plan_table(programs: Programs) -> None:
    print(f"S is `{SMALL}`.\n\n| processes | flags | planned, MiB | peak measured | difference |\n|--:|---|--:|--:|--:|")
    for processes, flags in CONFIGURATIONS:
        plan = programs.plan(processes, flags)
        others = plan["memory_total_bytes_of_other_ranks"]
        of_plan = [plan["memory_total_bytes"]] + ([others] if others else [])
        for rank, ((planned, measured), bytes_) in enumerate(zip(programs.train(processes, flags), of_plan)):
            # A launcher divides the threads of a machine among its ranks, and each thread packs operands.
            if abs(bytes_ / 2**20 - planned) > 1:
                sys.exit(f"{flags}: plan says {bytes_ / 2**20:.1f} MiB, and the trainer {planned}")
            name = f"{processes}, rank {rank}" if processes > 1 else "1"
            shown = flags.replace(SMALL, "S")
            print(f"| {name} | `{shown}` | {planned:.1f} | {measured:.1f} | {difference(planned, measured)} |", flush=True)


def fine_tuning_table(programs: Programs) -> None:
    parts = ["parameters", "gradients", "optimizer state", "activations"]
    heads = [*parts, "in all, planned", "peak measured", "bytes a parameter"]
    print("| flags | " + " | ".join(heads) + " |\n|---|" + "--:|" * len(heads))
    for flags in ON_CPU + ON_GPU:
        plan = programs.plan(1, flags)
        measured = "" if flags in ON_GPU else f"{programs.train(1, flags)[0][1]:.0f}"
        mib = [f"{plan['memory_bytes'][part] / 2**20:.0f}" for part in parts]
        each = sum(plan["memory_bytes"][part] for part in parts[:3]) / plan["parameters"]
        total = f"{plan['memory_total_bytes'] / 2**20:.0f}"
        print(f"| `{flags}` | " + " | ".join([*mib, total, measured, f"{each:.2f}"]) + " |", flush=True)


def gpus_table(programs: Programs) -> None:
    print("| flags | MiB a GPU | fits | largest `-b` | step, s | tokens/s | days for 30B tokens | GPU-hours | at $2.50 |")
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|")
    base = "-e d48 -t 1024 -d 524288 --train-tokens 30B --gpu h100 --gpus 8 --price 2.5"
    for more in ["-b 8 -z 0", "-b 8 -z 1", "-b 8 -z 2", "-b 8 -z 3", "-b auto -z 1", "-b auto -z 1 -r 2", "-b auto -z 3 -r 2"]:
        command = [programs.build / "warpsmith", "plan", "--json", "--records", ROOT / "benches/record"]
        plan = json.loads(programs.call([*command, *base.split(), *more.split()]))
        numbers = [f"{plan['memory_total_bytes'] / 2**20:,.0f}", "yes" if plan["fits"] else "no",
                   str(plan["largest_batch_size"] or "none"), f"{plan['step_seconds']:.2f}",
                   f"{plan['tokens_per_second']:,.0f}", f"{plan['seconds'] / 86400:.1f}", f"{plan['gpu_hours']:,.0f}",
                   f"${plan['dollars']:,.0f}"]
        print(f"| `{more}` | " + " | ".join(numbers) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "target/release", help="folder of the programs")
    parser.add_argument("--work", type=Path, default=ROOT / "build/memory", help="folder for data and runs")
    parser.add_argument("table", choices=["plan", "finetune", "gpus"])
    args = parser.parse_args()
    programs = Programs(args.build.resolve(), args.work.resolve())
    {"plan": plan_table, "finetune": fine_tuning_table, "gpus": gpus_table}[args.table](programs)


if __name__ == "__main__":
    main()
