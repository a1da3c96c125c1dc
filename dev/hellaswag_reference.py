#!/usr/bin/env python3
"""Scores multiple-choice examples in PyTorch by completion, like HellaSwag: the reference for `warpsmith eval`.

    dev/hellaswag_reference.py --model DIR_OR_BIN --examples hellaswag_val.bin [--compare ours.jsonl]

Prints one JSON line per example (index, label, sum, mean, pred, pred_norm) and a last line with acc and acc_norm.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Callable

import torch
from torch.nn import functional as F

from llmc_files import read_eval, read_model

Logits = Callable[[torch.Tensor], torch.Tensor]


def load(path: Path, dtype: torch.dtype) -> Logits:
    """Loads a Hugging Face directory (config.json, model.safetensors) or an llm.c float32 .bin."""
    if path.is_dir():
        from transformers import GPT2LMHeadModel

        hf = GPT2LMHeadModel.from_pretrained(path, local_files_only=True).to(dtype).eval()
        return lambda tokens: hf(tokens).logits
    return read_model(str(path)).to(dtype).eval()


def render(example: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tokens and mask, (4, T): context and ending in each row, then zeros; the mask is 1 on the ending."""
    context = example["ctx_tokens"]
    rows = [context + ending for ending in example["ending_tokens"]]
    T = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), T, dtype=torch.long)
    mask = torch.zeros(len(rows), T)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        mask[i, len(context) : len(row)] = 1.0
    return tokens, mask


@torch.no_grad()
def score(forward: Logits, example: dict) -> dict:
    tokens, mask = render(example)
    logits = forward(tokens)[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    mask = mask[:, 1:]
    total = (losses * mask).sum(dim=1)
    mean = total / mask.sum(dim=1)
    return {
        "label": example["label"],
        "sum": total.tolist(),
        "mean": mean.tolist(),
        "pred": total.argmin().item(),
        "pred_norm": mean.argmin().item(),
    }


def differences(found: dict, expected: dict, tolerance: float) -> list[str]:
    """Describes the differences. Two endings within the tolerance of each other may swap ranks."""
    wrong = [] if found.get("label") == expected["label"] else [f"label {found.get('label')}, not {expected['label']}"]
    for key in ("sum", "mean"):
        for i, value in enumerate(expected[key]):
            other = found[key][i]
            if not math.isclose(other, value, rel_tol=tolerance):
                wrong.append(f"{key}[{i}] {other}, not {value}")
    return wrong


def compare(path: Path, results: list[dict], tolerance: float) -> None:
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    theirs = {record["index"]: record for record in records if "index" in record}
    if sorted(theirs) != list(range(len(results))):
        raise SystemExit(f"{path}: has {len(theirs)} examples; expected 0 to {len(results) - 1}")
    wrong = [f"example {r['index']}: {w}" for r in results for w in differences(theirs[r["index"]], r, tolerance)]
    if wrong:
        raise SystemExit("\n".join([*wrong[:10], f"{path}: {len(wrong)} values differ"]))
    print(f"{path}: all {len(results)} examples agree")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="directory with model.safetensors, or llm.c .bin")
    parser.add_argument("--examples", required=True, help="llm.c evaluation file (.bin)")
    parser.add_argument("--limit", type=int, help="number of examples to score, from the first on")
    parser.add_argument("--f64", action="store_true", help="compute in float64")
    parser.add_argument("--compare", type=Path, help="JSON lines with index, label, sum, mean; exit 1 if they differ")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative tolerance of --compare")
    args = parser.parse_args()

    forward = load(args.model, torch.float64 if args.f64 else torch.float32)
    results = []
    for index, example in enumerate(read_eval(args.examples)[: args.limit]):
        results.append({"index": index} | score(forward, example))
        print(json.dumps(results[-1]), flush=True)
    right = {key: sum(r[key] == r["label"] for r in results) for key in ("pred", "pred_norm")}
    total = max(len(results), 1)
    print(json.dumps({"total": len(results), "acc": right["pred"] / total, "acc_norm": right["pred_norm"] / total}))
    if args.compare:
        compare(args.compare, results, args.tolerance)


if __name__ == "__main__":
    main()
