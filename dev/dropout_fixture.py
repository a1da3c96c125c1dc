"""The masks of dropout as `src/ops/dropout.rs` draws them, and GPT-2 in PyTorch with these masks.

dev/make_fixtures.py writes what this computes to tests/fixtures/.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F

from gpt2 import GPT2


def philox(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """Philox-4x32 with 7 rounds (Salmon et al. 2011) of arrays of counters; words are uint64 below 2^32."""
    low = np.uint64(0xFFFFFFFF)
    c = [np.asarray(word, np.uint64) for word in counter]
    for turn in range(7):
        k = [np.uint64((word + turn * weyl) % 2**32) for word, weyl in zip(key, (0x9E3779B9, 0xBB67AE85))]
        products = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        (h0, l0), (h1, l1) = [(p >> np.uint64(32), p & low) for p in products]
        c = [h1 ^ c[1] ^ k[0], l1, h0 ^ c[3] ^ k[1], l0]
    return np.broadcast_arrays(*c)


def step_key(seed: int, step: int) -> tuple[int, int]:
    """Returns the key of all masks of a step."""
    words = philox([step % 2**32, step >> 32, seed, 0], (0, 0))
    return int(words[0]), int(words[1])


class Masks:
    """The factors of dropout: 0, or 1 / (1 - rate). Rows are numbered from `first_row` on."""

    def __init__(self, seed: int, step: int, first_row: int):
        self.key, self.first_row = step_key(seed, step), first_row

    def factors(self, random: np.ndarray, rate: float) -> torch.Tensor:
        rate = float(np.float32(rate))
        kept = torch.from_numpy((random >= np.uint64(int(rate * 2**32))).astype(np.float64))
        return kept * float(np.float32(1.0 / (1.0 - rate)))

    def columns(self, stream: int, rate: float, B: int, T: int, C: int) -> torch.Tensor:
        """Returns the factors (B, T, C) of activations: four columns share a counter."""
        row, four = np.meshgrid(np.arange(B * T) + self.first_row, np.arange(C // 4), indexing="ij")
        words = philox([four, row, np.full_like(row, stream), np.zeros_like(row)], self.key)
        return self.factors(np.stack(words, -1), rate).view(B, T, C)

    def weights(self, stream: int, rate: float, B: int, T: int, NH: int) -> torch.Tensor:
        """Returns the factors (B, NH, T, T) of attention weights: q and q + 8, k and k + 8 share a counter."""
        b, h, q, k = np.meshgrid(*map(np.arange, (B, NH, T, T)), indexing="ij")
        row = self.first_row + b * T + (q & ~8)
        words = philox([k & ~8, row, np.full_like(row, stream), h], self.key)
        word = 2 * (q >> 3 & 1) + (k >> 3 & 1)
        return self.factors(np.choose(word, words), rate)


def forward(model: GPT2, tokens: torch.Tensor, masks: Masks, embd: float, attn: float, resid: float) -> torch.Tensor:
    """Returns the logits (B, T, V) with dropout where Hugging Face's GPT-2 has it."""
    (B, T), C, NH = tokens.shape, model.config.C, model.config.NH
    causal = torch.full((T, T), -math.inf).triu(1)
    x = (model.wte(tokens) + model.wpe(torch.arange(T))) * masks.columns(0, embd, B, T, C)
    for l, block in enumerate(model.h):
        qkv = block.attn.c_attn(block.ln_1(x)).view(B, T, 3, NH, C // NH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = F.softmax(q @ k.transpose(-1, -2) / math.sqrt(C // NH) + causal, dim=-1)
        out = (weights * masks.weights(3 * l + 1, attn, B, T, NH)) @ v
        out = block.attn.c_proj(out.transpose(1, 2).reshape(B, T, C))
        x = x + out * masks.columns(3 * l + 2, resid, B, T, C)
        out = block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh"))
        x = x + out * masks.columns(3 * l + 3, resid, B, T, C)
    return F.linear(model.ln_f(x), model.wte.weight)[..., : model.config.V]
