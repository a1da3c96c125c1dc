#!/usr/bin/env python3
"""Times training steps of GPT-2 in PyTorch, on a CPU or a GPU: the peer in dev/bench.py, or standalone.

    dev/bench_torch.py -e d12 -b 4 -t 64 --dtype bf16 --compile -x 10
    dev/bench_torch.py --device cuda -e d12 -b 64 -t 1024 -d 524288 -i 'data/*_train_*.bin' --dtype bf16-master --attention cudnn --compile

A step is the same work that train_gpt2 times: batches, forward, backward, clip to 1.0, AdamW, loss
read back. PyTorch is set up as strong as we know: fused attention, fused AdamW, padded vocabulary
without a mask, gradients set to None; on a CPU all cores, and an allocator that keeps its memory; on a
GPU tokens that are resident before the step, and times from events on the stream. --dtype bf16 is
autocast over f32 weights, as commonly published; bf16-master is what we do: weights, activations and
gradients in bf16, and f32 master weights for the update. With --serve it reads step counts from
standard input and answers with JSON lines, so that a driver can alternate it with another program
without paying for start-up and compilation each time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
import time
from typing import Callable, Iterable

from flags import add_model_flags

# glibc returns large blocks to the system on free and faults them in again at every step, which
# costs PyTorch a fifth of a step at T = 1024. These settings keep them, and must be set when the
# process starts.
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
    parser.add_argument("-d", type=int, default=0, help="tokens per step (default B*T)")
    parser.add_argument("-x", type=int, default=5, help="steps, without --serve")
    parser.add_argument("-i", "--input", help="pattern of token shards; default: random tokens, Zipf distributed")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if available")
    parser.add_argument("--dtype", choices=["f32", "bf16", "bf16-master"], default="f32", help="bf16 is autocast")
    parser.add_argument("--attention", choices=["any", "flash", "cudnn"], default="any", help="backend of SDPA")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model and the loss")
    parser.add_argument("--compile-mode", default="default", help="torch.compile's mode")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--warmup", type=int, default=3, help="untimed steps; the first one compiles")
    parser.add_argument("--plain-malloc", action="store_true", help="do not change the allocator")
    parser.add_argument("--serve", action="store_true", help="read step counts from standard input")
    args = parser.parse_args()
    args.d = args.d or args.b * args.t
    if args.d % (args.b * args.t):
        parser.error(f"-d {args.d} is not a multiple of B*T = {args.b * args.t}")
    return args


def choose_device(args: argparse.Namespace) -> str:
    """Returns `cpu` or `cuda`; a requested but missing device is an error."""
    import torch

    there = torch.cuda.is_available()
    if args.device == "cuda" and not there:
        raise SystemExit("--device cuda: PyTorch finds no GPU; drop the flag to run on the CPU")
    device = "cuda" if there and args.device != "cpu" else "cpu"
    if device == "cpu" and args.attention == "cudnn":
        raise SystemExit("--attention cudnn: expected flash or any on a CPU; cuDNN needs a GPU")
    return device


def zipf_batches(B: int, T: int, V: int, device: str):
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    while True:
        run = torch.from_numpy(np.minimum(rng.zipf(1.2, B * T + 1) - 1, V - 1).astype(np.int64)).to(device)
        yield run[:-1].view(B, T), run[1:].view(B, T)


class PlainAdamW:
    """Clips the gradients of the weights to 1.0 and takes a fused AdamW step."""

    def __init__(self, parameters: Iterable, **kwargs):
        from reference import adamw

        self.weights = list(parameters)
        self.optimizer = adamw(self.weights, fused=True, **kwargs)

    def step(self) -> None:
        import torch

        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class MasterAdamW:
    """AdamW on f32 master copies of narrower weights; the weights become rounded copies of the masters.

    Gradients are clipped in f32, too: a norm of bf16 numbers would itself be rounded to three digits.
    """

    def __init__(self, parameters: Iterable, dtype, **kwargs):
        self.weights = list(parameters)
        self.masters = [p.detach().float().clone().requires_grad_() for p in self.weights]
        for weight in self.weights:
            weight.data = weight.data.to(dtype)
        self.inner = PlainAdamW(self.masters, **kwargs)

    def step(self) -> None:
        import torch

        for master in self.masters:
            master.grad = torch.empty_like(master)
        torch._foreach_copy_([m.grad for m in self.masters], [w.grad for w in self.weights])
        self.inner.step()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)
        for weight in self.weights:
            weight.grad = None


def contexts(args: argparse.Namespace, device: str) -> Callable[[], contextlib.AbstractContextManager]:
    """Returns the context of a forward pass: autocast for bf16, and the requested attention backend."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}

    @contextlib.contextmanager
    def entered():
        with contextlib.ExitStack() as stack:
            if args.dtype == "bf16":
                stack.enter_context(torch.autocast(device, dtype=torch.bfloat16))
            if args.attention != "any":
                stack.enter_context(sdpa_kernel([backends[args.attention]]))
            yield

    return entered


def make_step(args: argparse.Namespace, device: str) -> Callable[[], float]:
    """Builds model, optimizer and loader; returns a function that trains one step and returns its loss."""
    import torch

    from gpt2 import GPT2, init_weights
    from llmc_files import batches
    from reference import config_from, mean_loss

    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("high")  # TF32 where available, like our -f 1
    config = config_from(args)
    model = GPT2(config)
    init_weights(model)
    config.V = config.Vp  # from here on: drawn like ours, but without a mask over the padding, which adds 0.0009 to the loss
    model.to(device)
    settings = {"weight_decay": 0.1, "lr": 3e-4}
    if args.dtype == "bf16-master":
        optimizer = MasterAdamW(model.parameters(), torch.bfloat16, **settings)
    else:
        optimizer = PlainAdamW(model.parameters(), **settings)
    resident = device if device == "cuda" else None
    if args.input:
        data = batches(args.input, args.b, args.t, shuffle=True, device=resident)
    else:
        data = zipf_batches(args.b, args.t, config.V, device)
    micro_steps = args.d // (args.b * args.t)

    def forward(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        # The loss of bf16 logits would itself be bf16. When compiled, the conversion is fused into
        # the loss.
        logits = model(tokens)
        return mean_loss(logits.float() if args.dtype == "bf16-master" else logits, targets)

    run = torch.compile(forward, mode=args.compile_mode, dynamic=False) if args.compile else forward
    under = contexts(args, device)

    def step() -> float:
        total = torch.zeros((), device=device)
        for _ in range(micro_steps):
            tokens, targets = next(data)
            with under():
                loss = run(tokens, targets) / micro_steps
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total.item()

    return step


@contextlib.contextmanager
def stopwatch(device: str):
    """Yields a function that returns the block's milliseconds: on the stream of a GPU, by the clock otherwise."""
    import torch

    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        yield lambda: start.elapsed_time(end)
        end.record()
        torch.cuda.synchronize()
        return
    began, taken = time.perf_counter(), []
    yield lambda: taken[0]
    taken.append((time.perf_counter() - began) * 1e3)


def timed(step: Callable[[], float], count: int, device: str) -> dict:
    """Returns the time of each step, and processor time over all threads, which is meaningful on a busy machine too."""
    times, cpu_times, losses = [], [], []
    for _ in range(count):
        cpu_start = time.process_time()
        with stopwatch(device) as milliseconds:
            losses.append(step())
        times.append(round(milliseconds(), 3))
        cpu_times.append(round((time.process_time() - cpu_start) * 1e3, 3))
    found = {"ms": times, "cpu_ms": cpu_times, "losses": losses, "peak_mib": peak_mib()}
    return found | ({"gpu_mib": gpu_mib()} if device == "cuda" else {})


def peak_mib() -> float:
    """Returns the peak resident memory of this process; Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def gpu_mib() -> dict:
    """Returns the peaks of PyTorch's allocator: memory of tensors, and memory reserved from the GPU."""
    import torch

    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return {"allocated": round(allocated / 2**20, 1), "reserved": round(reserved / 2**20, 1)}


def main() -> None:
    args = parse()
    if not args.plain_malloc:
        restart_with_allocator()
    import torch

    device = choose_device(args)
    start = time.perf_counter()
    step = make_step(args, device)
    warmup = timed(step, args.warmup, device)
    start_s = round(time.perf_counter() - start, 1)
    print(json.dumps({"torch": torch.__version__, "device": device, "start_s": start_s, "warmup": warmup}), flush=True)
    if not args.serve:
        print(json.dumps(timed(step, args.x, device)))
        return
    for line in sys.stdin:
        print(json.dumps(timed(step, int(line), device)), flush=True)


if __name__ == "__main__":
    main()
