#!/usr/bin/env python3
"""Times training steps of train_gpt2 or train_gpt2cu and of PyTorch in alternation and writes a record.

    dev/bench.py --ours './train_gpt2 --shuffle llmc' -e d12 -b 1 -t 1024 --data 'data/*_train_*.bin'
    dev/bench.py --ours 'f32=./train_gpt2 --dtype f32' --ours-optional 'bf16=./train_gpt2 --dtype bf16' --torch f32:compile --torch bf16:compile
    dev/bench.py --ours './train_gpt2cu --shuffle llmc' -e d12 -b 64 -t 1024 -d 524288 --data 'data/*_train_*.bin'     (where there is a GPU)

In each round every program runs a few steps in turn, so that drift of the machine affects all alike.
Each PyTorch worker starts once, compiles, and sleeps between its turns; ours restarts each time, and
its first step is not counted. PyTorch reads in llm.c's order, as ours does with --shuffle llmc. Run
nothing else meanwhile. On a GPU each PyTorch variant first runs
alone, and only the fastest takes part in the rounds, because together they would not fit in memory.
Prints Markdown tables of times and of the losses of the first ten steps, and writes
benches/record/<machine>/<date>-step.json.
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
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import gpus
from flags import add_model_flags, model_flags, shape

HERE = Path(__file__).resolve().parent
# Matches the loss and milliseconds of a step.
STEP_LINE = re.compile(r"^step\s[^|]*\|\s*loss\s+(\S+).*\|\s*([0-9.]+) ms\s*\|", re.MULTILINE)
# Flags that make ours match the learning rate and weight decay of bench_torch.py.
RECIPE = ["-l", "3e-4", "-c", "0.1"]
LOSSES = 10
MODES = ("eager", "compile", "max-autotune", "max-autotune-no-cudagraphs")
# Strong variants first: the arithmetic of ours, then plain autocast as commonly published. CUDA
# graphs do not support gradient accumulation.
TORCH_ON_GPU = [
    "bf16-master:compile:cudnn",
    "bf16-master:compile:flash",
    "bf16-master:max-autotune-no-cudagraphs:cudnn",
    "bf16-master:max-autotune-no-cudagraphs:flash",
    "bf16:compile:flash",
]
TORCH_ON_CPU = ["f32:compile", "bf16:compile"]


@dataclass
class Samples:
    """Measurements of one program; peak_mib is its peak resident size, or on a GPU its peak GPU memory."""

    command: str
    ms: list[float] = field(default_factory=list)
    peak_mib: float = 0.0
    losses: list[float] = field(default_factory=list)
    notes: dict = field(default_factory=dict)


def shape_flags(args: argparse.Namespace) -> list[str]:
    return ["-b", str(args.b), "-t", str(args.t), "-d", str(args.d), *model_flags(args)]


def worker_flags(variant: str) -> list[str]:
    """Converts `bf16-master:compile:cudnn` to flags of bench_torch.py."""
    dtype, _, rest = variant.partition(":")
    mode, _, attention = rest.partition(":")
    if dtype not in ("f32", "bf16", "bf16-master") or mode not in MODES or attention not in ("", "any", "flash", "cudnn"):
        raise SystemExit(
            f"bench: --torch {variant}: expected f32, bf16 or bf16-master, a colon, {', '.join(MODES)}; "
            "optionally followed by a colon and flash or cudnn"
        )
    flags = ["--dtype", dtype]
    flags += [] if mode == "eager" else ["--compile"]
    flags += ["--compile-mode", mode] if mode.startswith("max") else []
    return flags + (["--attention", attention] if attention else [])


class Refused(SystemExit):
    """Raised if a program cannot do what its flags request on this machine: it exits with code 2."""


class Ours:
    """A program with llm.c's flags and step lines: train_gpt2, train_gpt2cu, or llm.c's own.

    Peak memory is the system's count for the child, which starts with the size of this driver: 20 MiB,
    as long as nothing here imports PyTorch. On a GPU it is the growth of memory use while the child runs.
    """

    def __init__(self, command: str, args: argparse.Namespace):
        self.steps, self.on_gpu = args.steps, args.gpu is not None
        self.command = [*shlex.split(command), "-i", args.data, "-j", args.data, *shape_flags(args), *RECIPE]
        self.command += ["-v", "0", "-s", "0", "-x"]
        self.samples = Samples(shlex.join([*self.command, str(self.steps + 1)]))

    def prove(self) -> None:
        """Checks that it runs, before PyTorch spends a minute compiling, and keeps its first losses."""
        self.samples.losses = [loss for loss, _ in self.run(max(LOSSES, self.steps + 1))]

    def round(self) -> None:
        """Runs a fresh process; its first step faults in memory and is dropped."""
        self.samples.ms += [ms for _, ms in self.run(self.steps + 1)[1:]]

    def run(self, steps: int) -> list[tuple[float, float]]:
        """Returns loss and milliseconds of each step."""
        command = [*self.command, str(steps)]
        with tempfile.TemporaryFile("w+") as output, gpus.PeakMemory() if self.on_gpu else nullcontext() as gpu:
            try:
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            except OSError as error:
                raise SystemExit(f"bench: cannot run {command[0]}: {error.strerror}; build it first (make)")
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            output.seek(0)
            text = output.read()
        found = [(float(loss), float(ms)) for loss, ms in STEP_LINE.findall(text)]
        if process.returncode != 0 or len(found) < 2:
            last = (text.strip() or "no output").splitlines()[-1]
            ending = Refused if process.returncode == 2 else SystemExit
            raise ending(f"bench: {command[0]} ended with {process.returncode} and {len(found)} steps: {last}")
        unit = 1 if sys.platform == "darwin" else 1024
        peak = gpu.peak_mib if self.on_gpu else usage.ru_maxrss * unit / 2**20
        self.samples.peak_mib = max(self.samples.peak_mib, peak)
        return found

    def close(self) -> None:
        pass


class Torch:
    """A PyTorch worker, kept alive."""

    def __init__(self, variant: str, args: argparse.Namespace):
        device = "cpu" if args.gpu is None else "cuda"
        command = [sys.executable, str(HERE / "bench_torch.py"), "--serve", "--device", device]
        self.command = [*command, *worker_flags(variant), "-i", args.data, *shape_flags(args)]
        self.steps, self.on_gpu = args.steps, args.gpu is not None
        # Records are read on other machines, where local paths are meaningless.
        self.samples = Samples(shlex.join(["python", "dev/bench_torch.py", *self.command[2:]]))
        self.used_before = gpus.memory_used_mib() if self.on_gpu else 0.0
        self.worker = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.samples.notes["start"] = self.answer()
        self.samples.losses += self.samples.notes["start"]["warmup"]["losses"]

    def answer(self) -> dict:
        line = self.worker.stdout.readline()
        if not line:
            raise SystemExit(f"bench: the PyTorch worker ended with {self.worker.wait()}: {self.samples.command}")
        return json.loads(line)

    def round(self) -> None:
        self.worker.stdin.write(f"{self.steps}\n")
        self.worker.stdin.flush()
        found = self.answer()
        self.samples.ms += found["ms"]
        self.samples.losses += found["losses"]
        peak = found["peak_mib"]
        if self.on_gpu:
            # Its allocator returns no memory, and nothing else runs now.
            peak = gpus.memory_used_mib() - self.used_before
            self.samples.notes["allocator_mib"] = found["gpu_mib"]
        self.samples.peak_mib = max(self.samples.peak_mib, peak)

    def close(self) -> None:
        self.worker.stdin.close()
        self.worker.wait()


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=HERE).stdout.strip()
    except OSError:
        return ""


def machine() -> dict:
    """Describes the processor, as far as the system tells."""
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


def gpu_state() -> dict | None:
    """Describes the first GPU, if any, with the settings that determine its current speed."""
    fields = ["name", "driver_version", "memory.total", "power.limit", "clocks.sm", "power.draw", "temperature.gpu"]
    found = gpus.query(",".join(fields))
    return dict(zip(fields, found)) if found else None


def mfu(flops_per_token: float, tokens_per_s: float, peak_tflops: float | None) -> float | None:
    return flops_per_token * tokens_per_s / (peak_tflops * 1e12) if peak_tflops else None


def summary(samples: Samples, args: argparse.Namespace) -> dict:
    median = statistics.median(samples.ms)
    L, C, maxT = shape(args)
    rate = args.d / median * 1e3
    share = mfu(gpus.flops_per_token(L, C, args.t, maxT), rate, args.peak_tflops)
    return {
        "command": samples.command,
        "median_ms": median,
        "min_ms": min(samples.ms),
        "max_ms": max(samples.ms),
        "tokens_per_s": rate,
        **({"mfu": share} if share else {}),
        "peak_mib": samples.peak_mib,
        "losses": samples.losses[:LOSSES],
        "ms": samples.ms,
        **samples.notes,
    }


def table(found: dict[str, dict], base: float) -> str:
    """Formats times; `base` is the milliseconds of the first of ours; a ratio above 1 means ours is faster."""
    with_mfu = any("mfu" in row for row in found.values())
    heads = ["program", "median ms", "min", "max", "tok/s", *(["MFU %"] if with_mfu else []), "time / ours", "peak MiB"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for name, row in found.items():
        numbers = [row["median_ms"], row["min_ms"], row["max_ms"], row["tokens_per_s"]]
        numbers += [100 * row["mfu"]] if with_mfu else []
        cells = [f"{value:.1f}" for value in numbers] + [f"{row['median_ms'] / base:.2f}", f"{row['peak_mib']:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def loss_table(found: dict[str, dict]) -> str:
    """Formats the first losses: with the same batches and weights they must agree."""
    lines = ["| step | " + " | ".join(found) + " |", "|--:" * (len(found) + 1) + "|"]
    for step in range(max(len(row["losses"]) for row in found.values())):
        losses = [row["losses"][step : step + 1] for row in found.values()]
        lines.append(f"| {step + 1} | " + " | ".join(f"{loss[0]:.4f}" if loss else "" for loss in losses) + " |")
    return "\n".join(lines)


def write_record(args: argparse.Namespace, described: dict, found: dict[str, dict], alone: dict[str, dict]) -> Path:
    plain = args.gpu or f"{described['cpu']} {described['cores']} cores"
    slug = args.gpu_folder or re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    now = datetime.datetime.now(datetime.timezone.utc)
    record = {
        "date": now.isoformat(timespec="seconds"),
        "machine": described,
        "commit": output_of("git", "describe", "--always", "--dirty"),
        "model": args.model or {key: getattr(args, key) for key in ("layers", "heads", "channels", "context")},
        "B": args.b,
        "T": args.t,
        "tokens_per_step": args.d,
        "rounds": args.rounds,
        "steps_per_round": args.steps,
        "programs": found,
        **({"alone": alone} if alone else {}),
    }
    path = args.record / (args.machine or slug) / f"{now:%Y-%m-%d}-step.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # One file per day holds a list, with one entry per run.
    earlier = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*earlier, record], indent=1) + "\n")
    return path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_flags(parser)
    parser.add_argument("--ours", action="append", default=[], help="our program and its own flags; LABEL=COMMAND")
    parser.add_argument("--ours-optional", action="append", default=[], help="the same, skipped where it refuses to run")
    parser.add_argument("--torch", action="append", default=[], help="TYPE:MODE[:ATTENTION], or none; see worker_flags")
    parser.add_argument("--data", required=True, help="pattern of token shards, read by all programs")
    parser.add_argument("-b", type=int, default=4, help="batch size B")
    parser.add_argument("-t", type=int, default=64, help="sequence length T")
    parser.add_argument("-d", type=int, default=0, help="tokens per step (default B*T)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="counted steps per program and round")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if available")
    parser.add_argument("--select", choices=["auto", "0", "1"], default="auto", help="keep only the fastest PyTorch variant")
    parser.add_argument("--record", type=Path, default=HERE.parent / "benches" / "record")
    parser.add_argument("--machine", help="name of the machine in the record (default: from its GPU or processor)")
    args = parser.parse_args()
    args.d = args.d or args.b * args.t
    if args.d % (args.b * args.t):
        parser.error(f"-d {args.d} is not a multiple of B*T = {args.b * args.t}")
    find_gpu(args)
    args.torch = args.torch or (TORCH_ON_CPU if args.gpu is None else TORCH_ON_GPU)
    args.torch = [variant for variant in args.torch if variant != "none"]
    for variant in args.torch:
        worker_flags(variant)  # a typo must not surface after minutes
    args.select = args.gpu is not None if args.select == "auto" else args.select == "1"
    return args


def find_gpu(args: argparse.Namespace) -> None:
    """Sets the GPU's name, its folder of records and its peak; all None for a CPU comparison."""
    state = None if args.device == "cpu" else gpu_state()
    if args.device == "cuda" and state is None:
        raise SystemExit("bench: --device cuda: nvidia-smi finds no GPU; drop the flag to compare on the CPU")
    args.gpu = state and state["name"]
    args.gpu_folder, args.peak_tflops = (args.gpu and gpus.known(args.gpu)) or (None, None)


def ours(args: argparse.Namespace) -> dict[str, Ours]:
    programs = {}
    default = "./train_gpt2" if args.gpu is None else "./train_gpt2cu"
    for i, text in enumerate([*(args.ours or [default]), *args.ours_optional]):
        label, equals, command = text.partition("=")
        if not equals or not re.fullmatch(r"[\w.-]+", label):
            label, command = ("ours" if i == 0 else f"ours-{i + 1}"), text
        program = Ours(command, args)
        try:
            program.prove()
        except Refused as refusal:
            if text not in args.ours_optional:
                raise
            print(f"{refusal}; {label} is skipped", file=sys.stderr)
            continue
        programs[label] = program
    return programs


def peers(args: argparse.Namespace) -> tuple[dict[str, Torch], dict[str, dict]]:
    """Returns workers for the rounds and, if only the fastest is kept, what each reached alone."""
    if not args.select or len(args.torch) < 2:
        return {f"torch-{variant}": Torch(variant, args) for variant in args.torch}, {}
    alone = {}
    for variant in args.torch:
        try:
            worker = Torch(variant, args)
            worker.round()
            worker.close()
        except SystemExit as error:
            # A variant that does not run here, such as cuDNN without a suitable version, does not
            # stop the others.
            print(f"{error}; skipped", file=sys.stderr)
            continue
        alone[variant] = summary(worker.samples, args)
        print(f"alone: {variant} {alone[variant]['median_ms']:.1f} ms", file=sys.stderr)
    if not alone:
        raise SystemExit("bench: no PyTorch variant runs here; --torch none times ours alone")
    best = min(alone, key=lambda variant: alone[variant]["median_ms"])
    return {f"torch-{best}": Torch(best, args)}, {f"torch-{variant}": row for variant, row in alone.items()}


def main() -> None:
    args = parse()
    described = machine() | ({"gpu": gpu_state()} if args.gpu else {})
    # Ours comes first, so that ratios are relative to it.
    programs: dict[str, Ours | Torch] = {**ours(args)}
    workers, alone = peers(args)
    programs |= workers
    for number in range(args.rounds):
        for name, program in programs.items():
            program.round()
            print(f"round {number + 1}/{args.rounds}: {name} {program.samples.ms[-1]:.1f} ms", file=sys.stderr)
    for program in programs.values():
        program.close()
    described["load_after"] = os.getloadavg()
    described |= {"gpu_after": gpu_state()} if args.gpu else {}
    found = {name: summary(program.samples, args) for name, program in programs.items()}
    where = args.gpu or f"{described['cpu']}, {described['cores']} cores"
    base = next(iter(found.values()))["median_ms"]
    print(f"{where}; B {args.b}, T {args.t}, {args.d} tokens per step\n\n{table(found, base)}\n\n{loss_table(found)}")
    if alone:
        print(f"\nPyTorch variants, each alone:\n\n{table(alone, base)}")
    print(f"\nrecord: {write_record(args, described, found, alone)}")


if __name__ == "__main__":
    main()
