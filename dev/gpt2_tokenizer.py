"""GPT-2's tokenizer for tiktoken, from a `tokenizer.json`. Does not import PyTorch, so that processes stay small."""

from __future__ import annotations

import json
from pathlib import Path

EOT = 50256


def byte_alphabet() -> dict[int, str]:
    """Returns the printable character that stands for each byte in tokenizer files."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def gpt2_encoding(path: Path):
    """Returns tiktoken's encoder of a GPT-2 `tokenizer.json`, which needs no network."""
    import tiktoken

    to_byte = {char: byte for byte, char in byte_alphabet().items()}
    vocab = json.loads(path.read_text())["model"]["vocab"]
    ranks = {bytes(to_byte[char] for char in token): rank for token, rank in vocab.items() if rank < EOT}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    special = {"<|endoftext|>": EOT}
    return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
