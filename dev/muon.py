"""Muon in PyTorch, the reference for ours: the steps of `torch.optim.Muon`, in the type of the parameters.

`torch.optim.Muon` orthogonalizes in bf16, too coarse to compare a training run with. `check` compares one step of
both, within bf16's precision.
"""

from __future__ import annotations

import math
from typing import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
EPS = 1e-7


def newton_schulz(x: torch.Tensor) -> torch.Tensor:
    """Returns U S' Vᵀ for x = U S Vᵀ, with S' near 1."""
    a, b, c = COEFFICIENTS
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / x.norm().clamp(min=EPS)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with its default `adjust_lr_fn`, but for the type of the iteration, and for queries, keys
    and values: of a parameter whose `parts` are 3, each third of the rows is a matrix of its own."""

    def __init__(self, groups: list[dict], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "parts": 1})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
                buffer.lerp_(parameter.grad, 1 - momentum)
                direction = parameter.grad.lerp(buffer, momentum)
                parameter.mul_(1 - lr * group["weight_decay"])
                for part, target in zip(direction.chunk(group["parts"]), parameter.chunk(group["parts"])):
                    scale = math.sqrt(max(1.0, part.shape[0] / part.shape[1]))
                    target.add_(newton_schulz(part), alpha=-lr * scale)


def block_matrices(model: torch.nn.Module) -> list[dict]:
    """Returns the groups of parameters that Muon updates."""
    named = [(name, p) for name, p in model.named_parameters() if name.startswith("h.") and p.dim() == 2]
    qkv = [p for name, p in named if "c_attn" in name]
    return [{"params": qkv, "parts": 3}, {"params": [p for name, p in named if "c_attn" not in name]}]


def check(shapes: Iterable[tuple[int, int]] = ((32, 32), (128, 32), (32, 128))) -> None:
    """Compares three steps with those of `torch.optim.Muon`."""
    generator = torch.Generator().manual_seed(5)
    for shape in shapes:
        start = torch.randn(shape, generator=generator)
        ours, theirs = [torch.nn.Parameter(start.clone()) for _ in range(2)]
        settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
        pairs = [(ours, Muon([{"params": [ours]}], **settings)), (theirs, torch.optim.Muon([theirs], **settings))]
        for _ in range(3):
            grad = torch.randn(shape, generator=generator)
            for parameter, optimizer in pairs:
                parameter.grad = grad.clone()
                optimizer.step()
        moved, off = (theirs - start).norm().item(), (ours - theirs).norm().item()
        assert off <= 0.02 * moved, f"{shape}: {off / moved:.3f} of the way apart"
