#!/usr/bin/env python3
"""Trains GPT-2 in PyTorch like `train_gpt2`: same weights, same batches, same AdamW. Prints one JSON line per step.

    dev/reference.py --impl torch -i 'data/*_train_*.bin' --layers 4 --heads 4 --channels 128 --context 64 -b 4 -t 64 -x 20
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from pathlib import Path
from typing import Callable, Iterable, Iterator

import torch
from torch.nn import functional as F

from flags import add_model_flags
from gpt2 import GPT2, Config, init_weights, stack_layers, to_huggingface
from llmc_files import batches, write_model
from muon import Muon, block_matrices

Logits = Callable[[torch.Tensor], torch.Tensor]


def config_from(args: argparse.Namespace) -> Config:
    if args.model:
        config = Config.from_descriptor(args.model)
    else:
        config = Config(maxT=args.context, L=args.layers, NH=args.heads, C=args.channels)
    config.qkv_bias = not args.no_qkv_bias
    return config


def adamw(parameters: Iterable[torch.Tensor], weight_decay: float, **kwargs) -> torch.optim.AdamW:
    """Returns AdamW in which matrices and embeddings decay and vectors do not."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, **kwargs)


def cosine(step: int, steps: int, lr: float, warmup: int, final_fraction: float) -> float:
    """Computes llm.c's default schedule: linear warm-up, then half a cosine down to `final_fraction` of `lr`."""
    if step < warmup:
        return lr * (step + 1) / warmup
    ratio = (step - warmup) / (steps - warmup)
    lowest = lr * final_fraction
    return lowest + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (lr - lowest)


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def accumulate(forward: Logits, micro_batches: list[tuple[torch.Tensor, torch.Tensor]], bf16: bool) -> float:
    """Accumulates the gradient of the mean loss over all micro-batches; returns that loss."""
    total = 0.0
    for tokens, targets in micro_batches:
        context = torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()
        with context:
            loss = mean_loss(forward(tokens), targets) / len(micro_batches)
        loss.backward()
        total += loss.item()
    return total


def clip_gradients(model: torch.nn.Module, max_norm: float) -> float:
    """Scales all gradients so that their joint norm is at most `max_norm`; returns the norm before scaling.

    torch.nn.utils.clip_grad_norm_ adds up squares in float32 and is 1e-4 too small for an embedding of six
    million elements, so this sums in float64.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads]).norm().item()
    torch._foreach_mul_(grads, min(1.0, max_norm / (norm + 1e-6)))
    return norm


def train(
    model: torch.nn.Module, forward: Logits, data: Iterator, steps: int, accum: int, lr: float, warmup: int,
    final_fraction: float, weight_decay: float, bf16: bool = False, muon_lr: float | None = None,
) -> Iterator[dict]:  # fmt: skip
    """Yields the step, loss, norm (before clipping to 1.0) and lr of each step. With `muon_lr`, Muon updates the
    matrices of the blocks."""
    groups = block_matrices(model) if muon_lr else []
    taken = {id(p) for group in groups for p in group["params"]}
    optimizers: list = [adamw((p for p in model.parameters() if id(p) not in taken), weight_decay, lr=lr)]
    if muon_lr:
        optimizers.append(Muon(groups, lr=muon_lr, weight_decay=weight_decay))
    for step in range(steps):
        model.zero_grad(set_to_none=True)
        loss = accumulate(forward, [next(data) for _ in range(accum)], bf16)
        norm = clip_gradients(model, 1.0)
        step_lr = cosine(step, steps, lr, warmup, final_fraction)
        for optimizer, max_lr in zip(optimizers, (lr, muon_lr)):
            for group in optimizer.param_groups:
                group["lr"] = step_lr * (max_lr / lr)
            optimizer.step()
        yield {"step": step, "loss": loss, "norm": norm, "lr": step_lr}


def run_step(
    model: GPT2, tokens: torch.Tensor, targets: torch.Tensor, forward: Logits | None = None
) -> dict[str, torch.Tensor]:
    """Returns all results of one forward (the model's own unless given) and backward pass; gradients have llm.c's names."""
    model.zero_grad(set_to_none=True)
    logits = (forward or model)(tokens)
    losses = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none")
    losses.mean().backward()
    found = {"tokens": tokens.int(), "targets": targets.int(), "logits": logits.detach()}
    found |= {"losses": losses.detach().view(tokens.shape), "loss": losses.detach().mean()}
    return found | {f"d{name}": grad for name, grad in stack_layers(model, "grads").items()}


def save_step(path: Path, found: dict[str, torch.Tensor]) -> None:
    """Saves a step; floats are stored as float32, whatever they were computed in."""
    from safetensors.torch import save_file

    save_file({k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in found.items()}, path)


def overfit(data: Iterator, accum: int) -> Iterator:
    """Yields the first step's batches repeatedly."""
    first = [next(data) for _ in range(accum)]
    while True:
        yield from first


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model_flags(parser)
    parser.add_argument("--impl", choices=["torch", "hf"], default="torch", help="our own model or Hugging Face's")
    parser.add_argument("--dtype", choices=["f32", "bf16", "f64"], default="f32", help="bf16 is autocast")
    parser.add_argument("--dump", type=Path, help="write model.bin and the first batch's step.safetensors here")
    parser.add_argument("-i", "--input", required=True, help="pattern of token shards")
    parser.add_argument("-b", type=int, default=4, help="micro-batch size B")
    parser.add_argument("-t", type=int, default=64, help="sequence length T")
    parser.add_argument("-d", type=int, default=0, help="tokens per step (default B*T)")
    parser.add_argument("-x", type=int, default=20, help="steps")
    parser.add_argument("-l", type=float, default=3e-4, help="learning rate")
    parser.add_argument("-u", type=int, default=0, help="warm-up steps")
    parser.add_argument("-q", type=float, default=1.0, help="final fraction of the learning rate")
    parser.add_argument("-c", type=float, default=0.0, help="weight decay")
    parser.add_argument("-a", type=int, choices=[0, 1], default=0, help="1: overfit the first batch, unshuffled")
    args = parser.parse_args()
    args.d = args.d or args.b * args.t
    if args.d % (args.b * args.t):
        parser.error(f"-d {args.d} is not a multiple of B*T = {args.b * args.t}")
    return args


def main() -> None:
    args = parse()
    model = GPT2(config_from(args))
    init_weights(model)
    if args.dtype == "f64":
        model.double()
    if args.dump:
        args.dump.mkdir(parents=True, exist_ok=True)
        write_model(str(args.dump / "model.bin"), model)
        save_step(args.dump / "step.safetensors", run_step(model, *next(batches(args.input, args.b, args.t, not args.a))))
    accum = args.d // (args.b * args.t)
    data = batches(args.input, args.b, args.t, shuffle=not args.a)
    if args.a:
        data = overfit(data, accum)
    trained = to_huggingface(model) if args.impl == "hf" else model
    forward = (lambda tokens: trained(tokens).logits) if args.impl == "hf" else trained
    bf16 = args.dtype == "bf16"
    for record in train(trained, forward, data, args.x, accum, args.l, args.u, args.q, args.c, bf16):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
