#!/usr/bin/env python3
"""Measures the throughput of `warpsmith serve` with several clients at the same time.

    ./warpsmith serve -e log &
    dev/bench_serve.py --clients 1 2 4 8 --prompt-tokens 32 --tokens 128

Each client sends one request after another and reads its stream. The table has tokens per second of all clients
together, the median time between two tokens of a stream, and the median time to its first token.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
import urllib.request


def ask(url: str, path: str, body: dict | None = None) -> urllib.request.Request:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('WARPSMITH_API_KEY', '-')}"}
    return urllib.request.Request(url + path, body and json.dumps(body).encode(), headers)


def stream(url: str, body: dict) -> list[float]:
    """Returns the times at which the request was sent and the events with text arrived."""
    times = [time.perf_counter()]
    with urllib.request.urlopen(ask(url, "/v1/completions", body)) as answer:
        for line in answer:
            if line.startswith(b"data: {") and b'"finish_reason":null' in line:
                times.append(time.perf_counter())
    return times


def measure(url: str, clients: int, requests: int, body: dict) -> tuple[float, float, float]:
    """Returns tokens per second, and in milliseconds the time per token and to the first one."""
    streams: list[list[float]] = []

    def client(index: int) -> None:
        for request in range(requests):
            streams.append(stream(url, {**body, "seed": index * requests + request}))

    threads = [threading.Thread(target=client, args=(index,)) for index in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    gaps = [1e3 * (b - a) for times in streams for a, b in zip(times[1:], times[2:])]
    first = [1e3 * (times[1] - times[0]) for times in streams]
    tokens = body["max_tokens"] * clients * requests
    return tokens / seconds, statistics.median(gaps), statistics.median(first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--eot", type=int, default=50256, help="the end-of-text token, which is never picked here")
    args = parser.parse_args()
    with urllib.request.urlopen(ask(args.url, "/v1/models")) as answer:
        [model] = json.load(answer)["data"]
    # Tokens that are whole characters, so that each event has one.
    prompt = [token % 90 for token in range(args.prompt_tokens)]
    bias = {str(args.eot): -100}
    body = {"model": model["id"], "prompt": prompt, "max_tokens": args.tokens, "stream": True, "logit_bias": bias}
    stream(args.url, {**body, "max_tokens": 8})
    print("| clients | tok/s | ms per token | ms to the first |\n|---|---|---|---|")
    for clients in args.clients:
        rate, gap, first = measure(args.url, clients, args.requests, body)
        print(f"| {clients} | {rate:.1f} | {gap:.1f} | {first:.0f} |", flush=True)


if __name__ == "__main__":
    main()
