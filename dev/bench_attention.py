#!/usr/bin/env python3
"""Times PyTorch's attention, layernorm and cross-entropy at GPT-2 shapes, as peers of our kernels.

    dev/bench_attention.py -e d12,d24,d36,d48 -b 64 -t 1024 --out build/peers.json        (where there is a GPU)
    dev/bench_attention.py -e tiny -b 2 -t 64                                              (on any machine)

They are peers for `cargo bench --bench kernels`. Attention is scaled_dot_product_attention with each
backend that supports the shape, over queries, keys and values in one packed tensor, as in a training
step; its backward pass writes three separate tensors. Layernorm and cross-entropy run eagerly and
compiled; cross-entropy is forward and backward, on 16-bit logits. Each call is timed with a cold
cache. Prints a Markdown table and writes entries for the kernel benchmark's `--peers`, in the schema
of benches/record/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Iterator

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import gpus
from flags import GPT2_SHAPES

RECORDS = Path(__file__).resolve().parent.parent / "benches" / "record"
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
# Bytes written between calls: more than the L2 cache of any GPU.
COLD_BYTES = 512 << 20
VOCABULARY = (50257, 50304)
# Channels, heads and vocabulary of the size for machines without a GPU.
TINY = (128, 2, (500, 512))

Call = Callable[[], object]


def sizes(model: str) -> tuple[int, int, tuple[int, int]]:
    """Returns channels, heads, and vocabulary without and with padding."""
    if model == "tiny":
        return TINY
    depth = int(model[1:]) if model[:1] == "d" and model[1:].isdigit() else 0
    if depth not in GPT2_SHAPES:
        raise SystemExit(f"-e {model}: expected tiny, " + ", ".join(f"d{d}" for d in GPT2_SHAPES))
    return *GPT2_SHAPES[depth], VOCABULARY


def random(*shape: int, args: argparse.Namespace) -> torch.Tensor:
    return torch.randn(shape, device=args.device, dtype=args.dtype)


def attention(args: argparse.Namespace, C: int, NH: int) -> Iterator[tuple[str, str, str, Call]]:
    """Yields kernel, shape, peer and call of both passes for each backend."""
    B, T, HS = args.b, args.t, C // NH
    shape = f"{B}x{NH}x{T}x{HS}"
    packed = random(B, T, 3, NH, HS, args=args)
    leaves = [part.transpose(1, 2).detach().requires_grad_() for part in packed.unbind(2)]
    dout = random(B, T, NH, HS, args=args).transpose(1, 2)
    for name, backend in BACKENDS.items():

        def forward(backend=backend) -> torch.Tensor:
            with sdpa_kernel([backend]):
                return F.scaled_dot_product_attention(*leaves, is_causal=True)

        peer = f"torch sdpa {name}"
        try:
            out = forward()
            torch.autograd.grad(out, leaves, dout, retain_graph=True)
        except RuntimeError as error:
            # For example cuDNN on a CPU, or a version that does not support the shape.
            print(f"bench_attention: {peer} skipped at {shape}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        yield "attention forward", shape, peer, forward
        yield "attention backward", shape, peer, lambda out=out: torch.autograd.grad(out, leaves, dout, retain_graph=True)


def layernorm(args: argparse.Namespace, C: int) -> Iterator[tuple[str, str, str, Call]]:
    N = args.b * args.t
    x, dout = random(N, C, args=args).requires_grad_(), random(N, C, args=args)
    weight, bias = (random(C, args=args).requires_grad_() for _ in range(2))
    for how, run in variants(lambda x, weight, bias: F.layer_norm(x, (C,), weight, bias, 1e-5), args):

        def forward(run=run) -> torch.Tensor:
            return run(x, weight, bias)

        out = forward()
        yield "layernorm forward", f"{N}x{C}", f"torch {how}", forward
        yield (
            "layernorm backward", f"{N}x{C}", f"torch {how}",
            lambda out=out: torch.autograd.grad(out, (x, weight, bias), dout, retain_graph=True),
        )  # fmt: skip


def classifier(args: argparse.Namespace, V: int, Vp: int) -> Iterator[tuple[str, str, str, Call]]:
    N = min(args.logits_rows, args.b * args.t)
    logits = random(N, Vp, args=args).requires_grad_()
    targets = torch.randint(V, (N,), device=args.device)
    for how, run in variants(lambda logits, targets: F.cross_entropy(logits.float(), targets, reduction="sum"), args):
        both = lambda run=run: torch.autograd.grad(run(logits, targets), logits)  # noqa: E731
        yield "classifier", f"{N}x{Vp}", f"torch {how}", both


def variants(function: Callable, args: argparse.Namespace) -> list[tuple[str, Callable]]:
    """Returns the function, and its compiled form unless that is disabled."""
    return [("eager", function)] + ([("compile", torch.compile(function, dynamic=False))] if args.compile else [])


def timed(call: Call, args: argparse.Namespace, cold: torch.Tensor | None) -> dict[str, float]:
    """Returns microseconds of a call: median, fastest, 10th and 90th percentile."""
    us = []
    for repetition in range(args.reps + 3):
        if cold is None:
            began = time.perf_counter()
            call()
            taken = (time.perf_counter() - began) * 1e6
        else:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            # While this is written, the host queues the timed call.
            cold.zero_()
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            taken = start.elapsed_time(end) * 1e3
        # The first ones compile, choose algorithms and warm up.
        if repetition >= 3:
            us.append(taken)
    us.sort()
    at = lambda share: us[round(share * (len(us) - 1))]  # noqa: E731
    return {"us": statistics.median(us), "min_us": us[0], "p10_us": at(0.1), "p90_us": at(0.9)}


def measure(args: argparse.Namespace) -> list[dict]:
    """Returns an entry per kernel, shape and peer; shapes that two models share appear once."""
    cold = torch.empty(COLD_BYTES, dtype=torch.uint8, device="cuda") if args.device == "cuda" else None
    entries: dict[tuple[str, str, str], dict] = {}
    for model in args.models:
        C, NH, (V, Vp) = sizes(model)
        # Sequential, so that the memory of the previous cases is free.
        for cases in (attention(args, C, NH), layernorm(args, C), classifier(args, V, Vp)):
            for kernel, shape, peer, call in cases:
                if (kernel, shape, peer) not in entries:
                    found = timed(call, args, cold)
                    entries[kernel, shape, peer] = {"kernel": kernel, "shape": shape, "peer": peer, **found}
                    print(f"{kernel} {shape} {peer}: {found['us']:.1f} us", file=sys.stderr)
    return list(entries.values())


def table(entries: list[dict]) -> str:
    lines = ["| kernel | shape | peer | us | p10 | p90 | min |", "|---|---|---|--:|--:|--:|--:|"]
    for entry in entries:
        cells = [entry["kernel"], entry["shape"], entry["peer"]]
        cells += [f"{entry[key]:.1f}" for key in ("us", "p10_us", "p90_us", "min_us")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-e", "--models", default="d12,d24,d36,d48", help="shapes, comma-separated; or tiny")
    parser.add_argument("-b", type=int, default=64, help="batch size B")
    parser.add_argument("-t", type=int, default=1024, help="sequence length T")
    parser.add_argument("--logits-rows", type=int, default=16384, help="rows of logits at a time")
    parser.add_argument("--dtype", choices=["bf16", "fp16", "f32"], default="bf16")
    parser.add_argument("--reps", type=int, default=30, help="timed calls")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if available")
    parser.add_argument("--compile", choices=["auto", "0", "1"], default="auto", help="auto: on a GPU")
    parser.add_argument("--out", type=Path, help="default: benches/record/<gpu>/<date>-peers.json; none on a CPU")
    args = parser.parse_args(argv)
    args.models = args.models.split(",")
    for model in args.models:
        sizes(model)  # a typo must not surface after minutes
    for flag in ("b", "t", "logits_rows", "reps"):
        if getattr(args, flag) < 1:
            parser.error(f"--{flag}: expected at least 1, found {getattr(args, flag)}")
    there = torch.cuda.is_available()
    if args.device == "cuda" and not there:
        raise SystemExit("bench_attention: --device cuda: PyTorch finds no GPU; drop the flag to run on the CPU")
    args.device = "cuda" if there and args.device != "cpu" else "cpu"
    args.compile = args.device == "cuda" if args.compile == "auto" else args.compile == "1"
    args.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "f32": torch.float32}[args.dtype]
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    entries = measure(args)
    if not all(math.isfinite(entry["us"]) and entry["us"] > 0 for entry in entries) or not entries:
        raise SystemExit("bench_attention: nothing was timed")
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    now = datetime.datetime.now(datetime.timezone.utc)
    print(f"{name}, PyTorch {torch.__version__}; B {args.b}, T {args.t}, {args.dtype}\n\n{table(entries)}")
    folder, _ = gpus.known(name) or (name.lower().replace(" ", "-"), None)
    path = args.out or (RECORDS / folder / f"{now:%Y-%m-%d}-peers.json" if args.device == "cuda" else None)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"gpu": name, "date": f"{now:%Y-%m-%d}", "torch": torch.__version__, "dtype": str(args.dtype)[6:]}
        path.write_text(json.dumps({**head, "kernels": entries}, indent=1) + "\n")
        print(f"\nrecord: {path}")


if __name__ == "__main__":
    main()
