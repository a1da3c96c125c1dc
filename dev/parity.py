#!/usr/bin/env python3
"""Runs train_gpt2, our PyTorch model and Hugging Face's on the same batches and compares them step by step.

    dev/parity.py --data 'data/*_train_*.bin'                    # a small model, 20 steps
        dev/parity.py --data 'data/*_train_*.bin' -e d12 -d 1024     # GPT-2 124M, four micro-batches per step

Exits 1 if the loss, norm or learning rate exceeds the tolerance or is not finite. Flags after "--" go
only to train_gpt2.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from flags import add_model_flags, model_flags

HERE = Path(__file__).resolve().parent
# Largest relative difference allowed. bf16 rounds at 2^-8, and each program chooses where to round.
TOLERANCE = {
    "f32": {"loss": 1e-5, "norm": 1e-4, "lr": 1e-6},
    "bf16": {"loss": 5e-3, "norm": 5e-2, "lr": 1e-6},
}
Records = list[dict]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_flags(parser)
    parser.add_argument("--data", required=True, help="pattern of token shards (.bin)")
    parser.add_argument("--trainer", default="./train_gpt2", help="our program")
    parser.add_argument("--out", type=Path, default=Path("build/parity"), help="folder for logs; its contents are removed")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="f32", help="type of the references, which also sets the tolerance")
    parser.add_argument("--without-hf", action="store_true", help="compare with our model in PyTorch only")
    for flag, kind, default, meaning in [
        ("-b", int, 4, "micro-batch size B"),
        ("-t", int, 64, "sequence length T"),
        ("-d", int, 0, "tokens per step (default B*T)"),
        ("-x", int, 20, "steps"),
        ("-l", float, 1e-3, "learning rate"),
        ("-u", int, 5, "warm-up steps"),
        ("-q", float, 0.1, "final fraction of the learning rate"),
        ("-c", float, 0.1, "weight decay"),
        ("-a", int, 0, "1: overfit the first batch, unshuffled"),
    ]:
        parser.add_argument(flag, type=kind, default=default, help=meaning)
    ours = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:ours])
    args.ours_only = sys.argv[ours + 1 :]
    args.d = args.d or args.b * args.t
    return args


def recipe_flags(args: argparse.Namespace) -> list[str]:
    names = ["b", "t", "d", "x", "l", "u", "q", "c", "a"]
    return [item for name in names for item in (f"-{name}", str(getattr(args, name)))]


def run(name: str, command: list[str], log: Path) -> str:
    """Runs a command that must succeed; returns its standard output."""
    print(f"{name}: {shlex.join(command)}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise SystemExit(f"parity: cannot run {command[0]}: {error.strerror}; build it first (make)")
    log.write_text(done.stdout + done.stderr)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise SystemExit(f"parity: {name} failed with exit code {done.returncode}: {last} (log: {log})")
    return done.stdout


def parse_lines(text: str, name: str, steps: int) -> Records:
    """Returns the training records among JSON lines; validation and other lines have no norm."""
    records = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    records = [record for record in records if "norm" in record and "loss" in record]
    if [record["step"] for record in records] != list(range(steps)):
        raise SystemExit(f"parity: {name} logged steps {[r['step'] for r in records]}; expected 0 to {steps - 1}")
    return records


def run_ours(args: argparse.Namespace) -> Records:
    directory = args.out / "ours"
    flags = ["-i", args.data, "-j", args.data, *model_flags(args), *recipe_flags(args)]
    quiet = ["--shuffle", "llmc", "-v", "0", "-s", "0", "-o", str(directory)]
    run("ours", [args.trainer, *flags, *quiet, *args.ours_only], args.out / "ours.log")
    metrics = directory / "metrics.jsonl"
    if not metrics.exists():
        raise SystemExit(f"parity: {args.trainer} wrote no {metrics}")
    return parse_lines(metrics.read_text(), "ours", args.x)


def run_reference(args: argparse.Namespace, impl: str) -> Records:
    command = [sys.executable, str(HERE / "reference.py"), "--impl", impl, "--dtype", args.dtype, "-i", args.data]
    output = run(impl, [*command, *model_flags(args), *recipe_flags(args)], args.out / f"{impl}.log")
    (args.out / f"{impl}.jsonl").write_text(output)
    return parse_lines(output, impl, args.x)


def relative(found: float | None, expected: float) -> float:
    """Returns the relative difference, or infinity if `found` is None."""
    if found is None:
        return float("inf")
    return abs(found - expected) / max(abs(expected), 1e-30)


def compare(ours: Records, references: dict[str, Records], tolerance: dict[str, float]) -> bool:
    """Prints the table; returns whether every difference is within tolerance. NaN is not."""
    names = list(references)
    columns = [f"{key} {name}" for key in ("loss", "norm") for name in ["ours", *names, "off by"]]
    print(" step | " + " | ".join(f"{column:>11}" for column in columns))
    worst = dict.fromkeys(tolerance, 0.0)
    good = True
    for step, record in enumerate(ours):
        cells = []
        for key in tolerance:
            expected = [references[name][step][key] for name in names]
            off = [relative(record.get(key), value) for value in expected]
            good = good and all(value <= tolerance[key] for value in off)
            # Not max(), which ignores NaN.
            worst[key] = next((v for v in [worst[key], *off] if v != v), max([worst[key], *off]))
            if key != "lr":
                numbers = [float("nan") if v is None else v for v in [record.get(key), *expected]]
                cells += [f"{value:11.7f}" for value in numbers] + [f"{max(off):11.1e}"]
        print(f"{step:5} | " + " | ".join(cells))
    for key, limit in tolerance.items():
        verdict = "ok" if worst[key] <= limit else "FAILED"
        print(f"{key}: largest relative difference {worst[key]:.1e}, allowed {limit:.0e}: {verdict}")
    return good


def main() -> None:
    args = parse()
    if args.out.exists():
        shutil.rmtree(args.out)
    args.out.mkdir(parents=True)
    ours = run_ours(args)
    references = {impl: run_reference(args, impl) for impl in (["torch"] if args.without_hf else ["torch", "hf"])}
    good = compare(ours, references, TOLERANCE[args.dtype])
    print("parity: " + ("the programs agree" if good else f"the programs differ, see {args.out}"))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
