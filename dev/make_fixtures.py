#!/usr/bin/env python3
"""Writes tests/fixtures/: PyTorch results that `cargo test` compares with, so that it needs no Python.

    build/venv/bin/python dev/make_fixtures.py

Running it again with the same PyTorch gives the same bytes. tests/fixtures/README.md describes each file.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
from pathlib import Path

# Set before torch loads: selects the code path of any x86-64 CPU with AVX2, the usual one; the
# scalar path draws other normal numbers, which differ by up to 1e-6.
os.environ["ATEN_CPU_CAPABILITY"] = "avx2"
os.environ["MKL_CBWR"] = "COMPATIBLE"

import muon
import numpy as np
import torch
from torch.nn import functional as F

from dropout_fixture import Masks, forward
from gpt2 import GPT2, TENSORS, Config, init_weights, same_document, stack_layers, to_huggingface
from llmc_files import Mt19937, write_debug_state, write_model
from reference import run_step, save_step, train

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
B, T, STEPS = 3, 16, 20
RECIPE = {"lr": 1e-3, "warmup": 4, "final_fraction": 0.1, "weight_decay": 0.1}
DROPOUT = {"embd": 0.1, "attn": 0.2, "resid": 0.3}
MUON_LR = 0.02
# Ten steps on the batch of the debug state, as in llm.c's test_gpt2.cu.
OVERFIT = {"steps": 10, "accum": 1, "lr": 1e-4, "warmup": 0, "final_fraction": 1.0, "weight_decay": 0.0}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def flat(tensor: torch.Tensor) -> list[float]:
    return tensor.double().flatten().tolist()


# Two tiny models: one full step each, and scalars of twenty steps


@torch.no_grad()
def lively_weights(model: GPT2) -> None:
    """Sets weights larger than at a real start, with no constant tensor, so that a swapped or forgotten bias shows."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        parameter.normal_(0.0, 0.2, generator=generator)
        if ".ln_" in f".{name}" and name.endswith("weight"):
            parameter.add_(1.0)
    model.wte.weight[model.config.V :] = 0.0


def markov_tokens(count: int, V: int) -> torch.Tensor:
    """Returns learnable tokens: usually a fixed successor, otherwise random."""
    generator = torch.Generator().manual_seed(11)
    successor = torch.randperm(V, generator=generator)
    surprise = torch.rand(count, generator=generator) < 0.3
    anything = torch.randint(V, (count,), generator=generator)
    tokens = anything.clone()
    for i in range(1, count):
        tokens[i] = anything[i] if surprise[i] else successor[tokens[i - 1]]
    return tokens


def micro_batches(tokens: torch.Tensor, T: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    rows = tokens[: (len(tokens) - 1) // (B * T) * B * T + 1]
    return [
        (rows[at : at + B * T].view(B, T), rows[at + 1 : at + B * T + 1].view(B, T))
        for at in range(0, len(rows) - 1, B * T)
    ]


def trajectory(model: GPT2, data: list, accum: int, dtype: torch.dtype, **more: float) -> dict[str, list[float]]:
    trained = copy.deepcopy(model).to(dtype)
    records = list(train(trained, trained, iter(data), steps=STEPS, accum=accum, **RECIPE, **more))
    return {key: [record[key] for record in records] for key in ("loss", "norm", "lr")}


def write_model_fixture(name: str, qkv_bias: bool) -> None:
    directory = OUT / name
    directory.mkdir(parents=True, exist_ok=True)
    config = Config(maxT=16, V=96, Vp=128, L=2, NH=2, C=32, qkv_bias=qkv_bias)
    model = GPT2(config)
    lively_weights(model)
    write_model(str(directory / "model.bin"), model)

    tokens = markov_tokens(2 * STEPS * B * T + 1, config.V)
    data = micro_batches(tokens, T)
    exact = copy.deepcopy(model).double()
    steps = {f"T{length}": run_step(exact, *micro_batches(tokens, length)[0]) for length in (T, 11)}
    for label, found in steps.items():
        save_step(directory / f"step_{label}.safetensors", found)
    scalars = {
        "config": vars(config),
        "B": B,
        "T": T,
        "loss": {label: found["loss"].item() for label, found in steps.items()},
        "recipe": RECIPE | {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "grad_clip": 1.0, "steps": STEPS},
        "tokens": tokens.tolist(),
    }
    for accum in (1, 2):
        runs = {"f64": trajectory(model, data, accum, torch.float64), "f32": trajectory(model, data, accum, torch.float32)}
        scalars[f"train_accum{accum}"] = runs
    if qkv_bias:
        muon.check()
        runs = {"f64": trajectory(model, data, 1, torch.float64, muon_lr=MUON_LR)}
        runs["f32"] = trajectory(model, data, 1, torch.float32, muon_lr=MUON_LR)
        write_json(directory / "muon.json", {"muon_lr": MUON_LR, "muon_momentum": 0.95} | runs)
        write_debug_state(str(directory / "debug_state.bin"), *micro_batches(tokens, T)[0], steps[f"T{T}"])
        batch = itertools.repeat(micro_batches(tokens, T)[0])
        scalars["overfit"] = [record["loss"] for record in train(exact, exact, batch, **OVERFIT)]
    write_json(directory / "reference.json", scalars)


# Supervised fine-tuning: documents in which only some targets count


def documents_to_tune_on(V: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns documents of 2 to 24 tokens, and for each token whether it counts as a target."""
    generator = torch.Generator().manual_seed(23)
    found = []
    for length in (5, 9, 17, 3, 12, 2, 7, 24, 6, 4, 15, 8):
        given = 1 + length // 3
        # Every fourth has a second question after its first answer.
        counts = torch.arange(length) >= given
        if length % 4 == 0:
            counts[length // 2 : length // 2 + 2] = False
        found.append((torch.randint(V, (length,), generator=generator), counts))
    return found


def pack(documents: list, T: int, pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packs documents in order, first fit, into inputs, targets (-100: does not count) and positions, (B, T) each."""
    sequences: list[list[torch.Tensor]] = []
    for tokens, counts in documents:
        tokens, counts = tokens[: T + 1], counts[: T + 1]
        targets = torch.where(counts[1:], tokens[1:], -100)
        rows = torch.stack([tokens[:-1], targets, torch.arange(len(tokens) - 1)])
        fits = (s for s in sequences if sum(r.shape[1] for r in s) + rows.shape[1] <= T)
        place = next(fits, None)
        if place is None:
            sequences.append(place := [])
        place.append(rows)
    for sequence in sequences:
        left = T - sum(rows.shape[1] for rows in sequence)
        sequence.append(torch.stack([torch.full((left,), pad), torch.full((left,), -100), torch.arange(left)]))
    return tuple(torch.stack([torch.cat(s, dim=1) for s in sequences]).transpose(0, 1))


def write_sft_fixture() -> None:
    """The loss and its gradient over all documents, with a block-diagonal causal mask and position ids."""
    config = Config(maxT=16, V=96, Vp=128, L=2, NH=2, C=32)
    model = GPT2(config)
    lively_weights(model)
    model.double()
    documents = documents_to_tune_on(config.V)
    inputs, targets, positions = pack(documents, T, config.V - 1)
    logits = model(inputs, positions)
    loss = F.cross_entropy(logits.reshape(-1, config.V), targets.reshape(-1), ignore_index=-100)
    loss.backward()
    # One document after the other, the same sums.
    with torch.no_grad():
        total = 0.0
        for tokens, counts in documents:
            tokens, counts = tokens[: T + 1], counts[: T + 1]
            losses = F.cross_entropy(model(tokens[None, :-1])[0], tokens[1:], reduction="none")
            total += losses[counts[1:]].sum().item()
        hf = to_huggingface(model)
        alone = hf(input_ids=inputs, position_ids=positions, attention_mask=same_document(positions)).logits
        torch.testing.assert_close(alone, logits)
    counted = int((targets >= 0).sum())
    assert abs(total / counted - loss.item()) < 1e-12 * counted
    found = {
        "tokens": torch.cat([tokens for tokens, _ in documents]).int(),
        "counts": torch.cat([counts for _, counts in documents]).int(),
        "lengths": torch.tensor([len(tokens) for tokens, _ in documents]).int(),
        "counted": torch.tensor([counted]).int(),
        "loss": loss.detach()[None],
    }
    found |= {f"d{name}": grad for name, grad in stack_layers(model, "grads").items()}
    save_step(OUT / "gpt2_tiny" / "sft.safetensors", found)


# Dropout


def write_dropout_fixture() -> None:
    """Runs a pass of the first tiny model with masks that are ours."""
    model = GPT2(Config(maxT=16, V=96, Vp=128, L=2, NH=2, C=32))
    lively_weights(model)
    model.double()
    batch = micro_batches(markov_tokens(2 * STEPS * B * T + 1, model.config.V), T)[0]
    masks = Masks(seed=42, step=3, first_row=1000)
    found = run_step(model, *batch, lambda tokens: forward(model, tokens, masks, **DROPOUT))
    del found["logits"]
    save_step(OUT / "gpt2_tiny" / "dropout.safetensors", found)


# Initial weights


def checksums(tensor: torch.Tensor) -> dict:
    values = tensor.contiguous().numpy().astype("<f4")
    bits = values.view("<u4").ravel()
    return {
        "shape": list(tensor.shape),
        "first": flat(tensor.flatten()[:8]),
        "last": flat(tensor.flatten()[-8:]),
        "sum": values.astype(np.float64).sum(),
        "sum_of_squares": np.square(values.astype(np.float64)).sum(),
        "xor_of_bits": int(np.bitwise_xor.reduce(bits)),
        "sha256": hashlib.sha256(bits.tobytes()).hexdigest(),
    }


def write_init_fixture() -> None:
    config = Config(maxT=64, L=2, NH=3, C=48)
    model = GPT2(config)
    init_weights(model, seed=42)
    tensors = stack_layers(model, "weights")
    found = {name: checksums(tensors[name]) for name, _ in TENSORS}
    # The end of wte is padding; its last unpadded rows are more interesting.
    found["wte"]["last_unpadded"] = flat(tensors["wte"][: config.V].flatten()[-8:])
    write_json(OUT / "init.json", {"seed": 42, "config": vars(config), "tensors": found})


# The generator


def draws(kind: str, size: int) -> dict:
    """Returns `size` numbers from a fresh generator with seed 42, and the low bits of the integer after them."""
    generator = torch.Generator().manual_seed(42)
    values = torch.empty(size)
    if kind == "normal":
        values.normal_(0.0, 1.0, generator=generator)
    else:
        values.uniform_(0.0, 1.0, generator=generator)
    found = {"size": size, "next_low24": low24(generator)}
    if size <= 100:
        return found | {"values": flat(values)}
    bits = values.numpy().view("<u4")
    xor = int(np.bitwise_xor.reduce(bits))
    return found | {"first": flat(values[:16]), "last": flat(values[-16:]), "xor_of_bits": xor, "sum": sum(flat(values))}


def low24(generator: torch.Generator) -> int:
    """Returns the low 24 bits of the next 32-bit integer. (torch.randint draws 64 bits since 2.5 and cannot show it.)"""
    return int(torch.rand(1, generator=generator).item() * 2**24)


def stream(seed: int) -> dict:
    """Returns the first integers of a stream, and some after state refreshes; llm.c's own stream agrees."""
    rng = Mt19937(seed)
    values = [rng.next_u32() for _ in range(1300)]
    return {"seed": seed, "first": values[:8], "from_620": values[620:632], "from_1244": values[1244:1256]}


def mixed_stream() -> dict:
    """Returns llm.c's own example: 5 integers, 8 normals, an integer, 16 normals, an integer, one generator, seed 137."""
    generator = torch.Generator().manual_seed(137)
    return {
        "seed": 137,
        "low24": [low24(generator) for _ in range(5)],
        "normal_8": flat(torch.zeros(8).normal_(generator=generator)),
        "low24_after_8": low24(generator),
        "normal_16": flat(torch.zeros(16).normal_(generator=generator)),
        "low24_after_16": low24(generator),
    }


def permutation(seed: int, size: int) -> dict:
    values = list(range(size))
    Mt19937(seed).permute(values)
    return {"seed": seed, "size": size, "values": values}


def write_rng_fixture() -> None:
    sizes = (4, 15, 16, 17, 100, 1000)
    found = {
        "streams": [stream(seed) for seed in (42, 43, 137, 1337, 5489)],
        "mixed": mixed_stream(),
        "normal": [draws("normal", size) for size in sizes],
        "uniform": [draws("uniform", size) for size in sizes],
        "permutations": [permutation(42, 10), permutation(43, 37)],
    }
    write_json(OUT / "mt19937.json", found)


# AdamW on its own


def write_adamw_fixture() -> None:
    """Takes five steps on a matrix that decays and a vector that does not, each with its own gradient and lr."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float32)
    start = {"matrix": draw(5, 9), "vector": draw(13)}
    grads = [{"matrix": draw(5, 9) * 10.0**-k, "vector": draw(13) * 10.0**-k} for k in range(5)]
    params = {name: torch.nn.Parameter(value.double()) for name, value in start.items()}
    groups = [{"params": [params["matrix"]], "weight_decay": 0.1}, {"params": [params["vector"]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    steps = []
    for k, grad in enumerate(grads):
        lr = 1e-2 / (k + 1)
        for name, parameter in params.items():
            parameter.grad = grad[name].double()
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        after = {name: flat(parameter.detach()) for name, parameter in params.items()}
        steps.append({"lr": lr, "grads": {n: flat(g) for n, g in grad.items()}, "params": after})
    moments = {
        key: {name: flat(optimizer.state[p][key]) for name, p in params.items()} for key in ("exp_avg", "exp_avg_sq")
    }
    start_values = {name: flat(value) for name, value in start.items()}
    recipe = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    write_json(OUT / "adamw.json", {"recipe": recipe, "start": start_values, "steps": steps, "end": moments})


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    write_model_fixture("gpt2_tiny", qkv_bias=True)
    write_model_fixture("gpt2_tiny_no_qkv_bias", qkv_bias=False)
    write_sft_fixture()
    write_dropout_fixture()
    write_init_fixture()
    write_rng_fixture()
    write_adamw_fixture()
    total = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    print(f"{OUT}: {total:,} bytes")


if __name__ == "__main__":
    main()
