"""Model flags shared by train_gpt2 and dev/. Does not import PyTorch, so that drivers start fast."""

from __future__ import annotations

import argparse

# Depth: (channels, heads).
GPT2_SHAPES = {6: (384, 6), 12: (768, 12), 24: (1024, 16), 36: (1280, 20), 48: (1600, 25)}


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-e", "--model", default=None, help="d6, d12, d24, d36 or d48; otherwise the four flags below")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--context", type=int, default=64, help="maximum sequence length")
    parser.add_argument("--no-qkv-bias", action="store_true")


def model_flags(args: argparse.Namespace) -> list[str]:
    """Returns the chosen model as flags for another program."""
    flags = ["--no-qkv-bias"] if args.no_qkv_bias else []
    if args.model:
        return [*flags, "-e", args.model]
    sizes = {"--layers": args.layers, "--heads": args.heads, "--channels": args.channels, "--context": args.context}
    return flags + [str(item) for pair in sizes.items() for item in pair]


def shape(args: argparse.Namespace) -> tuple[int, int, int]:
    """Returns layers, channels and maximum sequence length of the chosen model."""
    if not args.model:
        return args.layers, args.channels, args.context
    depth = int(args.model[1:]) if args.model[:1] == "d" and args.model[1:].isdigit() else 0
    if depth not in GPT2_SHAPES:
        raise SystemExit(f"model {args.model}: expected one of " + ", ".join(f"d{d}" for d in GPT2_SHAPES))
    return depth, GPT2_SHAPES[depth][0], 1024
