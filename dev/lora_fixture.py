#!/usr/bin/env python3
"""Writes tests/fixtures/gpt2_tiny/lora: adapters that PEFT trains beside the tiny model, and their losses.

    build/venv/bin/python dev/lora_fixture.py

It needs the packages of `make interop`. Everything is computed in f64 from an f32 start, so that `cargo test` can tell
rounding from a mistake.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

from gpt2 import GPT2, Config, to_huggingface
from make_fixtures import B, OUT, STEPS, T, lively_weights, markov_tokens, micro_batches, write_json

FOLDER = OUT / "gpt2_tiny" / "lora"
# A rank that is no multiple of 8, and a scale that is not 1.
LORA = {"r": 4, "lora_alpha": 6, "target_modules": ["c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]}
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
GRAD_CLIP = 1.0


def save(model: torch.nn.Module, folder: Path) -> None:
    """Saves the adapters in f32, as PEFT saves them, without the model card."""
    copy.deepcopy(model).float().save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    # PEFT writes a set, in any order.
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    base = GPT2(Config(maxT=16, V=96, Vp=128, L=2, NH=2, C=32))
    lively_weights(base)
    torch.manual_seed(5)
    config = LoraConfig(task_type="CAUSAL_LM", bias="none", fan_in_fan_out=True, **LORA)
    model = get_peft_model(to_huggingface(base), config).eval()
    model.peft_config["default"].base_model_name_or_path = "gpt2_tiny"
    adapters = [p for _, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        # B is zero at a real start, and so is the gradient of A.
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    save(model, FOLDER / "start")
    model.double()

    data = micro_batches(markov_tokens(2 * STEPS * B * T + 1, base.config.V), T)
    optimizer = torch.optim.AdamW(adapters, **ADAMW)
    losses, norms = [], []
    for inputs, targets in data[:STEPS]:
        logits = model(input_ids=inputs).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(adapters, GRAD_CLIP).item())
        losses.append(loss.item())
        optimizer.step()
    save(model, FOLDER / "end")
    with torch.no_grad():
        inputs, targets = data[0]
        logits = model(input_ids=inputs).logits
        after = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    recipe = ADAMW | {"grad_clip": GRAD_CLIP, "steps": STEPS, "B": B, "T": T}
    write_json(FOLDER / "run.json", {"recipe": recipe, "losses": losses, "norms": norms, "after": after.tolist()})


if __name__ == "__main__":
    main()
