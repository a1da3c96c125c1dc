#!/usr/bin/env python3
"""Times training steps of GPT-2 in PyTorch on the CPU: the peer in dev/bench.py, or on its own.

    dev/bench_torch.py -e d12 -b 4 -t 64 --dtype bf16 --compile -x 10

A step is what train_gpt2 times: next batch, forward, backward, clip to 1.0, AdamW, loss read back. PyTorch runs as strong
as we know how: fused attention, fused AdamW, padded vocabulary without a mask, gradients set to None, all cores, and an
allocator that keeps what it has. With --serve it reads step counts from standard input and answers with JSON lines, so
that a driver can alternate it with another program without paying for its start and compilation each time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from typing import Callable

from flags import add_model_flags

# glibc hands large blocks back to the system on free and faults them in again at every step, which costs PyTorch a fifth of
# a step at T = 1024. These settings keep them, and must be there when the process starts.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


def restart_with_allocator() -> None:
    if sys.platform == "linux" and any(name not in os.environ for name in ALLOCATOR):
        os.environ.update({name: os.environ.get(name, value) for name, value in ALLOCATOR.items()})
        os.execv(sys.executable, [sys.executable, *sys.argv])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_flags(parser)
    parser.add_argument("-b", type=int, default=4, help="batch size B")
    parser.add_argument("-t", type=int, default=64, help="sequence length T")
    parser.add_argument("-x", type=int, default=5, help="steps, without --serve")
    parser.add_argument("-i", "--input", help="pattern of token shards; default: random tokens, Zipf distributed")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="bf16 is autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model and the loss")
    parser.add_argument("--compile-mode", default="default", help="torch.compile's mode")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--warmup", type=int, default=3, help="untimed steps, the first of which compiles")
    parser.add_argument("--plain-malloc", action="store_true", help="leave the allocator as it is")
    parser.add_argument("--serve", action="store_true", help="read step counts from standard input")
    return parser.parse_args()


def zipf_batches(B: int, T: int, V: int):
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    while True:
        run = torch.from_numpy(np.minimum(rng.zipf(1.2, B * T + 1) - 1, V - 1).astype(np.int64))
        yield run[:-1].view(B, T), run[1:].view(B, T)


def make_step(args: argparse.Namespace) -> Callable[[], float]:
    """Builds model, optimiser and loader; returns a function that trains one step and gives its loss."""
    import torch

    from gpt2 import GPT2, init_weights
    from llmc_files import batches
    from reference import adamw, config_from, mean_loss

    torch.set_num_threads(args.threads)
    config = config_from(args)
    config.V = config.Vp
    model = GPT2(config)
    init_weights(model)
    optimizer = adamw(model, weight_decay=0.1, lr=3e-4, fused=True)
    data = batches(args.input, args.b, args.t, shuffle=True) if args.input else zipf_batches(args.b, args.t, config.V)

    def forward(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return mean_loss(model(tokens), targets)

    run = torch.compile(forward, mode=args.compile_mode) if args.compile else forward

    def step() -> float:
        tokens, targets = next(data)
        bf16 = args.dtype == "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = run(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def timed(step: Callable[[], float], count: int) -> dict:
    """Wall-clock and processor time of each step; the second, on one thread, means something on a busy machine too."""
    times, cpu_times, loss = [], [], float("nan")
    for _ in range(count):
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = step()
        times.append(round((time.perf_counter() - start) * 1e3, 3))
        cpu_times.append(round((time.process_time() - cpu_start) * 1e3, 3))
    return {"ms": times, "cpu_ms": cpu_times, "loss": loss, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """Peak resident memory of this process; Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def main() -> None:
    args = parse()
    if not args.plain_malloc:
        restart_with_allocator()
    start = time.perf_counter()
    step = make_step(args)
    warmup = timed(step, args.warmup)
    start_s = round(time.perf_counter() - start, 1)
    print(json.dumps({"torch": sys.modules["torch"].__version__, "start_s": start_s, "warmup": warmup}), flush=True)
    if not args.serve:
        print(json.dumps(timed(step, args.x)))
        return
    for line in sys.stdin:
        print(json.dumps(timed(step, int(line))), flush=True)


if __name__ == "__main__":
    main()
