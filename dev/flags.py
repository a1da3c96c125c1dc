"""The flags that choose a model, alike in train_gpt2 and in dev/. Imports no PyTorch, so that drivers start fast and small."""

from __future__ import annotations

import argparse


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-e", "--model", default=None, help="d6, d12, d24, d36 or d48; else the four flags below")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--context", type=int, default=64, help="longest sequence")
    parser.add_argument("--no-qkv-bias", action="store_true")


def model_flags(args: argparse.Namespace) -> list[str]:
    """The same choice as flags for another program."""
    flags = ["--no-qkv-bias"] if args.no_qkv_bias else []
    if args.model:
        return [*flags, "-e", args.model]
    sizes = {"--layers": args.layers, "--heads": args.heads, "--channels": args.channels, "--context": args.context}
    return flags + [str(item) for pair in sizes.items() for item in pair]
