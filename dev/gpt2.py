"""GPT-2 in PyTorch, the reference for our trainer, and Hugging Face's GPT-2 with the same weights.

The sixteen tensors have llm.c's names (see TENSORS); dimensions are B, T, C, NH, L, V, Vp as in Rust.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from flags import GPT2_SHAPES

# llm.c's name and Hugging Face's name; "{l}" stands for the layer. The order is that of llm.c's
# files.
TENSORS: list[tuple[str, str]] = [
    ("wte", "wte.weight"),
    ("wpe", "wpe.weight"),
    ("ln1w", "h.{l}.ln_1.weight"),
    ("ln1b", "h.{l}.ln_1.bias"),
    ("qkvw", "h.{l}.attn.c_attn.weight"),
    ("qkvb", "h.{l}.attn.c_attn.bias"),
    ("attprojw", "h.{l}.attn.c_proj.weight"),
    ("attprojb", "h.{l}.attn.c_proj.bias"),
    ("ln2w", "h.{l}.ln_2.weight"),
    ("ln2b", "h.{l}.ln_2.bias"),
    ("fcw", "h.{l}.mlp.c_fc.weight"),
    ("fcb", "h.{l}.mlp.c_fc.bias"),
    ("fcprojw", "h.{l}.mlp.c_proj.weight"),
    ("fcprojb", "h.{l}.mlp.c_proj.bias"),
    ("lnfw", "ln_f.weight"),
    ("lnfb", "ln_f.bias"),
]

# Hugging Face stores these four as (in, out); all others use (out, in).
TRANSPOSED_IN_HF = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@dataclass
class Config:
    maxT: int = 1024
    V: int = 50257
    Vp: int = 50304
    L: int = 12
    NH: int = 12
    C: int = 768
    qkv_bias: bool = True

    @staticmethod
    def from_descriptor(name: str) -> "Config":
        """Parses d6, d12, d24, d36 or d48."""
        depth = int(name[1:]) if name[:1] == "d" and name[1:].isdigit() else 0
        if depth not in GPT2_SHAPES:
            raise SystemExit(f"model {name}: expected one of " + ", ".join(f"d{d}" for d in GPT2_SHAPES))
        C, NH = GPT2_SHAPES[depth]
        return Config(L=depth, NH=NH, C=C)


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        C = config.C
        self.NH = config.NH
        self.ln_1 = nn.LayerNorm(C, eps=1e-5)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(C, 3 * C, bias=config.qkv_bias), "c_proj": nn.Linear(C, C)})
        self.ln_2 = nn.LayerNorm(C, eps=1e-5)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(C, 4 * C), "c_proj": nn.Linear(4 * C, C)})

    def attention(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        B, T, C = x.shape
        qkv = self.attn.c_attn(x).view(B, T, 3, self.NH, C // self.NH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.attn.c_proj(out.transpose(1, 2).reshape(B, T, C))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attention(self.ln_1(x), mask)
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """Maps tokens (B, T) to logits (B, T, V). The embedding has Vp rows; those past V never reach the softmax.

    Positions (B, T) are those of packed documents: each starts at 0 and sees itself alone.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.Vp, config.C)
        self.wpe = nn.Embedding(config.maxT, config.C)
        self.h = nn.ModuleList([Block(config) for _ in range(config.L)])
        self.ln_f = nn.LayerNorm(config.C, eps=1e-5)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        mask = None if positions is None else same_document(positions)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.h:
            x = block(x, mask)
        return F.linear(self.ln_f(x), self.wte.weight)[..., : self.config.V]


def same_document(positions: torch.Tensor) -> torch.Tensor:
    """Returns which keys each query sees, (B, 1, T, T): those of its document up to itself."""
    document = (positions == 0).cumsum(dim=1)
    T = positions.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=positions.device).tril()
    return (causal & (document[:, :, None] == document[:, None, :]))[:, None]


@torch.no_grad()
def init_weights(model: GPT2, seed: int = 42) -> None:
    """Draws the weights of llm.c's train_gpt2 and train_gpt2.py: wte (V rows), wpe, then four matrices per layer."""
    generator = torch.Generator().manual_seed(seed)
    residual_std = 0.02 / math.sqrt(2 * model.config.L)
    model.wte.weight.zero_()
    model.wte.weight[: model.config.V].normal_(0.0, 0.02, generator=generator)
    model.wpe.weight.normal_(0.0, 0.02, generator=generator)
    for block in model.h:
        block.attn.c_attn.weight.normal_(0.0, 0.02, generator=generator)
        block.attn.c_proj.weight.normal_(0.0, residual_std, generator=generator)
        block.mlp.c_fc.weight.normal_(0.0, 0.02, generator=generator)
        block.mlp.c_proj.weight.normal_(0.0, residual_std, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()


def layer_names(hf_name: str, L: int) -> list[str]:
    return [hf_name.replace("{l}", str(l)) for l in range(L)] if "{l}" in hf_name else [hf_name]


def stack_layers(model: GPT2, of: str) -> dict[str, torch.Tensor]:
    """Returns the sixteen tensors in llm.c's layout, with all layers of a kind stacked.

    `of` is "weights" or "grads". A missing qkv bias becomes zeros.
    """
    parameters = dict(model.named_parameters())
    stacked = {}
    for name, hf_name in TENSORS:
        keys = layer_names(hf_name, model.config.L)
        if keys[0] not in parameters:
            stacked[name] = torch.zeros(len(keys), 3 * model.config.C, dtype=model.wte.weight.dtype)
            continue
        layers = [parameters[key].grad if of == "grads" else parameters[key].detach() for key in keys]
        stacked[name] = torch.stack(layers) if "{l}" in hf_name else layers[0]
    return stacked


@torch.no_grad()
def to_huggingface(model: GPT2) -> nn.Module:
    """Returns Hugging Face's GPT2LMHeadModel with a copy of the weights: no dropout, no vocabulary padding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    hf_config = GPT2Config(
        vocab_size=config.V, n_positions=config.maxT, n_embd=config.C, n_layer=config.L, n_head=config.NH,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    hf = GPT2LMHeadModel(hf_config).to(model.wte.weight.dtype)
    hf_parameters = dict(hf.transformer.named_parameters())
    for name, weight in model.named_parameters():
        weight = weight[: config.V] if name == "wte.weight" else weight
        hf_parameters[name].copy_(weight.t() if name.endswith(TRANSPOSED_IN_HF) else weight)
    if not config.qkv_bias:
        for block in hf.transformer.h:
            block.attn.c_attn.bias.zero_().requires_grad_(False)
    return hf
