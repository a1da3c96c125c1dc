#!/usr/bin/env python3
"""Makes tests/fixtures/tasks: a small model with a small tokenizer, and what others measure of it.

    dev/make_eval_fixture.py

The questions are written by hand. The model learns their texts, so that greedy decoding gets some of LAMBADA right.
`lm_eval.json` has lm_eval's scores (dev/lm_eval_tasks.py).
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import torch

import lm_eval_tasks

FIXTURE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "tasks"
TASKS = ["hellaswag", "piqa", "copa", "arc_easy", "winogrande", "lambada", "multiple_choice", "text"]
FILES = {task: str(FIXTURE / f"{task}.jsonl") for task in TASKS}


def texts(value) -> list[str]:
    """Returns every string in a question."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in parts for text in texts(part)]


def train_tokenizer(corpus: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"initial_alphabet": alphabet, "show_progress": False, "special_tokens": ["<|endoftext|>"]}
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, **options))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def train_model(tokenizer, corpus: list[str]):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(42)
    torch.set_num_threads(1)
    eot = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=eot, eos_token_id=eot,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    rows = [tokenizer(text)["input_ids"][-64:] for text in corpus]
    inputs = torch.tensor([row + [eot] * (64 - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (64 - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = model(inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.4f}")
    # A half of the bytes, and the same numbers on both sides.
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model.eval()


@torch.no_grad()
def sliding(model, tokenizer, text: str, window: int, stride: int) -> list[float]:
    """Returns the loss of each token, each predicted from the inputs of its window alone."""
    tokens = torch.tensor([tokenizer.eos_token_id, *tokenizer(text)["input_ids"]])
    losses = []
    while len(losses) + 1 < len(tokens):
        end = min(len(losses) + (stride if losses else window), len(tokens) - 1)
        start = max(end - window, 0)
        logits = model(tokens[None, start:end]).logits[0]
        all_losses = torch.nn.functional.cross_entropy(logits, tokens[start + 1 : end + 1], reduction="none")
        losses += all_losses[len(losses) - start :].tolist()
    return losses


def main() -> None:
    questions = [json.loads(line) for path in FILES.values() for line in Path(path).read_text("utf-8").splitlines()]
    corpus = [text for question in questions for text in texts(question)]
    tokenizer = train_tokenizer(corpus)
    model = train_model(tokenizer, corpus)
    with tempfile.TemporaryDirectory() as folder:
        model.bfloat16().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for name in ["config.json", "model.safetensors", "tokenizer.json"]:
            FIXTURE.joinpath(name).write_bytes(Path(folder, name).read_bytes())
        scores = lm_eval_tasks.scores(folder, FILES)
    model = model.float()
    documents = [json.loads(line)["text"] for line in Path(FILES["text"]).read_text("utf-8").splitlines()]
    losses = [loss for text in documents for loss in sliding(model, tokenizer, text, 32, 10)]
    scores["text"]["perplexity_32_10"] = math.exp(sum(losses) / len(losses))
    (FIXTURE / "lm_eval.json").write_text("{\n" + ",\n".join(f'"{k}": {json.dumps(v)}' for k, v in scores.items()) + "\n}\n")


if __name__ == "__main__":
    main()
