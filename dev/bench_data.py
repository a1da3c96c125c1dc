#!/usr/bin/env python3
"""Times `warpsmith data` beside Python's tiktoken and tokenizers: the same documents, cores and shards.

    dev/bench_data.py documents.jsonl [--rounds 5]

tiktoken runs in a pool of processes, one per core, as scripts for FineWeb do; tokenizers encodes batches of documents
with its own threads. Both write uint16 arrays. The three take turns; medians are printed, with the largest memory of
each program and its processes together (shared pages counted once).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator

import numpy as np
import psutil

from gpt2_tokenizer import EOT, gpt2_encoding

ROOT = Path(__file__).resolve().parent.parent
SHARD_TOKENS = 100_000_000


def documents(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def write_shards(arrays: Iterator[np.ndarray], folder: Path) -> None:
    """Writes the stream of tokens as .npy files of SHARD_TOKENS each."""
    buffer, used, shards = np.empty(SHARD_TOKENS, dtype=np.uint16), 0, 0
    for array in arrays:
        while len(array) > 0:
            now = min(len(array), SHARD_TOKENS - used)
            buffer[used : used + now] = array[:now]
            array, used = array[now:], used + now
            if used == SHARD_TOKENS:
                np.save(folder / f"train_{shards:06}.npy", buffer)
                used, shards = 0, shards + 1
    if used:
        np.save(folder / f"train_{shards:06}.npy", buffer[:used])


# tiktoken. The encoding is made once per process.

encoding = None


def load_tiktoken(path: str) -> None:
    global encoding
    encoding = gpt2_encoding(Path(path))


def encode_tiktoken(text: str) -> np.ndarray:
    return np.array([EOT, *encoding.encode_ordinary(text)], dtype=np.uint16)


def run_tiktoken(path: str, tokenizer: str, folder: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.Pool(cores, initializer=load_tiktoken, initargs=(tokenizer,)) as pool:
        write_shards(pool.imap(encode_tiktoken, documents(path), chunksize=16), folder)


# tokenizers


def run_tokenizers(path: str, tokenizer: str, folder: Path) -> None:
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(tokenizer)
    # As for the others, a special token in a text is text.
    theirs.encode_special_tokens = True

    def batches() -> Iterator[list[str]]:
        batch = []
        for text in documents(path):
            batch.append(text)
            if len(batch) == 1000:
                yield batch
                batch = []
        yield batch

    def arrays() -> Iterator[np.ndarray]:
        for batch in batches():
            for encoded in theirs.encode_batch_fast(batch, add_special_tokens=False):
                yield np.array([EOT, *encoded.ids], dtype=np.uint16)

    write_shards(arrays(), folder)


# measurement


def memory_mib(process: psutil.Process) -> float:
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total / 2**20


def measure(command: list[str]) -> tuple[float, float]:
    """Returns the seconds that a command takes, and its largest memory in MiB."""
    start, largest = time.monotonic(), 0.0
    with tempfile.TemporaryFile() as log:
        child = psutil.Popen(command, stdout=log, stderr=log)
        while child.poll() is None:
            try:
                largest = max(largest, memory_mib(child))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.1)
        child.wait()
        seconds = time.monotonic() - start
        if child.returncode != 0:
            log.seek(0)
            raise SystemExit(f"bench_data: {' '.join(command)}: exit code {child.returncode}\n{log.read().decode()}")
    return seconds, largest


def tokens_in(folder: Path) -> np.ndarray:
    """Returns the training tokens that a program wrote."""
    # Here, because it imports PyTorch, which the measured processes do without.
    from llmc_files import read_shard

    shards = [np.load(path) for path in sorted(folder.glob("*.npy"))]
    shards += [read_shard(str(path)) for path in sorted(folder.glob("*_train_*.bin"))]
    return np.concatenate(shards)


def compare(args: argparse.Namespace, out: Path) -> None:
    tokenizer = out / "tokenizer.json"
    export = [ROOT / "warpsmith", "tokenizer", "convert", "gpt2", tokenizer]
    subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
    (out / "val.txt").write_text("validation")
    folders = {name: out / name for name in ["warpsmith", "tiktoken", "tokenizers"]}
    for folder in folders.values():
        folder.mkdir()
    ours = ["data", args.documents, "--val", out / "val.txt", "-o", folders["warpsmith"], "--force"]
    commands = {"warpsmith": [ROOT / "warpsmith", *ours]}
    for name in ["tiktoken", "tokenizers"]:
        commands[name] = [sys.executable, __file__, args.documents, "--run", name, str(tokenizer), str(folders[name])]
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            results[name].append(measure(list(map(str, command))))
    expected = tokens_in(folders["warpsmith"])
    for name in ["tiktoken", "tokenizers"]:
        if not np.array_equal(tokens_in(folders[name]), expected):
            raise SystemExit(f"bench_data: the tokens of {name} are not those of warpsmith")
    megabytes = sum(len(text.encode()) for text in documents(args.documents)) / 1e6
    cores = len(os.sched_getaffinity(0))
    print(f"{megabytes:.0f} MB of text, {len(expected):,} equal tokens, {cores} cores, medians of {args.rounds}")
    for name, runs in results.items():
        seconds, memory = (statistics.median(values) for values in zip(*runs))
        spread = f"{min(run[0] for run in runs):.1f} to {max(run[0] for run in runs):.1f}"
        print(f"{name:>10}: {seconds:6.1f} s ({spread}), {megabytes / seconds:6.1f} MB/s, {memory:6.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", help="JSON lines with a text each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        name, tokenizer, folder = args.run
        {"tiktoken": run_tiktoken, "tokenizers": run_tokenizers}[name](args.documents, tokenizer, Path(folder))
        return
    with tempfile.TemporaryDirectory() as out:
        compare(args, Path(out))


if __name__ == "__main__":
    main()
