"""llm.c's binary files and its loader's reading order. All files are little-endian with headers of 256 int32."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Iterator

import numpy as np
import torch

from gpt2 import GPT2, TENSORS, Config, layer_names, stack_layers

SHARD_MAGIC, SHARD_VERSION = 20240520, 1
EVAL_MAGIC, EVAL_VERSION = 20240522, 1
MODEL_MAGIC, MODEL_VERSION_F32 = 20240326, 3
DEBUG_MAGIC, DEBUG_VERSION = 20240327, 2
HEADER_BYTES = 1024
START_OF_EXAMPLE = 65535


def header(*values: int) -> bytes:
    full = np.zeros(256, dtype="<i4")
    full[: len(values)] = values
    return full.tobytes()


def read_file(path: str, magic: int, version: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the header and the uint16 values after it."""
    data = Path(path).read_bytes()
    head = np.frombuffer(data[:HEADER_BYTES], dtype="<i4")
    if len(head) != 256 or head[0] != magic or head[1] != version:
        raise SystemExit(f"{path}: expected {kind} (magic {magic}, version {version}), found {head[:2].tolist()}")
    return head, np.frombuffer(data, dtype="<u2", offset=HEADER_BYTES)


# Token shards


def write_shard(path: str, tokens: np.ndarray) -> None:
    Path(path).write_bytes(header(SHARD_MAGIC, SHARD_VERSION, len(tokens)) + tokens.astype("<u2").tobytes())


def read_shard(path: str) -> np.ndarray:
    head, tokens = read_file(path, SHARD_MAGIC, SHARD_VERSION, "a token shard")
    if len(tokens) != head[2]:
        raise SystemExit(f"{path}: the header promises {head[2]} tokens, the file has {len(tokens)}")
    return tokens


class Mt19937:
    """The 32-bit stream of torch's and llm.c's generator, which numpy's legacy generator shares."""

    def __init__(self, seed: int):
        self.state = np.random.RandomState(seed)

    def next_u32(self) -> int:
        return int(self.state.randint(0, 2**32, dtype=np.uint32))

    def permute(self, values: list) -> None:
        """Shuffles by Fisher-Yates from the end, like llm.c."""
        for i in range(len(values) - 1, 0, -1):
            j = self.next_u32() % (i + 1)
            values[i], values[j] = values[j], values[i]


def batches(
    pattern: str, B: int, T: int, shuffle: bool, device: str | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields endless tokens and targets, both (B, T), in llm.c's order for one process.

    With a device, each shard is copied there once, and its batches never pass through the host.
    Shuffling permutes the shards at the start of each epoch, and the samples of each shard when it is opened.
    """
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise SystemExit(f"{pattern}: no such file; expected token shards (.bin)")
    rng = Mt19937(42)
    while True:
        if shuffle:
            rng.permute(paths)
        for path in paths:
            tokens = read_shard(path)
            samples = list(range((len(tokens) - 1) // (B * T)))
            if not samples:
                raise SystemExit(f"{path}: {len(tokens)} tokens; one batch needs {B * T + 1}; lower -b or -t")
            if shuffle:
                rng.permute(samples)
            resident = device and torch.from_numpy(tokens.astype(np.int32)).to(device)
            for sample in samples:
                span = slice(sample * B * T, (sample + 1) * B * T + 1)
                run = resident[span].long() if device else torch.from_numpy(tokens[span].astype(np.int64))
                yield run[:-1].view(B, T), run[1:].view(B, T)


# Models


def write_model(path: str, model: GPT2) -> None:
    """Writes a float32 checkpoint: header, then the sixteen tensors, wte with its padding."""
    c = model.config
    tensors = stack_layers(model, "weights")
    with open(path, "wb") as file:
        file.write(header(MODEL_MAGIC, MODEL_VERSION_F32, c.maxT, c.V, c.L, c.NH, c.C, c.Vp))
        for tensor in tensors.values():
            file.write(tensor.float().contiguous().numpy().astype("<f4").tobytes())


@torch.no_grad()
def read_model(path: str) -> GPT2:
    """Reads a float32 checkpoint as written by write_model and train_gpt2."""
    head, _ = read_file(path, MODEL_MAGIC, MODEL_VERSION_F32, "a float32 model")
    maxT, V, L, NH, C, Vp = head[2:8].tolist()
    model = GPT2(Config(maxT=maxT, V=V, Vp=Vp, L=L, NH=NH, C=C))
    values = torch.from_numpy(np.fromfile(path, dtype="<f4", offset=HEADER_BYTES))
    parameters = dict(model.named_parameters())
    if len(values) != sum(p.numel() for p in parameters.values()):
        raise SystemExit(f"{path}: {len(values)} parameters do not match the model in its header")
    at = 0
    for _, hf_name in TENSORS:
        for key in layer_names(hf_name, L):
            parameter = parameters[key]
            parameter.copy_(values[at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()
    return model


def write_debug_state(path: str, tokens: torch.Tensor, targets: torch.Tensor, found: dict[str, torch.Tensor]) -> None:
    """Writes a debug state: a batch (B, T), and the results of `reference.run_step` on it as float32."""
    with open(path, "wb") as file:
        file.write(header(DEBUG_MAGIC, DEBUG_VERSION, *tokens.shape))
        for batch in (tokens, targets):
            file.write(batch.numpy().astype("<i4").tobytes())
        for name in ("logits", "loss", *(f"d{name}" for name, _ in TENSORS)):
            file.write(found[name].float().contiguous().numpy().astype("<f4").tobytes())


# Multiple-choice evaluation


def write_eval(path: str, examples: list[dict]) -> None:
    """Writes examples; each has `label`, `ctx_tokens` and `ending_tokens` (four lists)."""
    stream: list[int] = []
    longest = 0
    for index, example in enumerate(examples):
        endings = example["ending_tokens"]
        row = [index, example["label"], len(endings), len(example["ctx_tokens"]), *example["ctx_tokens"]]
        for ending in endings:
            row += [len(ending), *ending]
        size = 2 * (len(row) + 2)
        longest = max(longest, size)
        stream += [START_OF_EXAMPLE, size, *row]
    body = np.array(stream, dtype="<u2").tobytes()
    Path(path).write_bytes(header(EVAL_MAGIC, EVAL_VERSION, len(examples), longest) + body)


def read_eval(path: str) -> list[dict]:
    """Reads examples: the inverse of write_eval."""
    head, stream = read_file(path, EVAL_MAGIC, EVAL_VERSION, "an evaluation file")
    examples, at = [], 0

    def take(count: int) -> list[int]:
        nonlocal at
        at += count
        if at > len(stream):
            raise SystemExit(f"{path}: ends in the middle of example {len(examples)}")
        return stream[at - count : at].tolist()

    for index in range(head[2]):
        start, _, found, label, endings, context_length = take(6)
        if start != START_OF_EXAMPLE or found != index:
            raise SystemExit(f"{path}: expected the start of example {index}, found {start}, {found}")
        context = take(context_length)
        examples.append(
            {"label": label, "ctx_tokens": context, "ending_tokens": [take(take(1)[0]) for _ in range(endings)]}
        )
    return examples
