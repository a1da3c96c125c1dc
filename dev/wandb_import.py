#!/usr/bin/env python3
"""Passes a run on to Weights & Biases with its own client: pip install wandb; dev/wandb_import.py DIR --project NAME

Without WANDB_MODE=online the client writes its offline files, and `wandb sync` sends them later. Import a run when it
has ended: its id at W&B is the run's name in settings.json, so that it has one run there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path


def lines(path: Path) -> Iterator[dict]:
    """Yields the objects of a metrics.jsonl. An unfinished last line, of a run that trains, is left out."""
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            line = json.loads(line)
            yield line | {name: float(value) for name, value in line.pop("nonfinite", {}).items()}


def steps(path: Path) -> Iterator[tuple[int, dict]]:
    """Yields the numbers and the samples of each step, which W&B takes in one call."""
    step, merged = None, {}
    for line in lines(path):
        if line["step"] != step and merged:
            yield step, merged
            merged = {}
        step = line["step"]
        if "text" in line:
            merged.setdefault("samples", []).append([step, line["sample"], line["text"]])
        merged |= {k: v for k, v in line.items() if isinstance(v, (int, float)) and k not in ("step", "time", "sample")}
        # The name that W&B reads as the time of a step.
        merged |= {"_timestamp": line["time"]} if "time" in line else {}
    if merged.keys() - {"_timestamp"}:
        yield step, merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path, help="directory of a run, with its metrics.jsonl")
    parser.add_argument("--project", default="warpsmith")
    args = parser.parse_args()
    if not (args.dir / "metrics.jsonl").is_file():
        raise SystemExit(f"wandb_import: {args.dir}: expected a metrics.jsonl in it, found none")
    os.environ.setdefault("WANDB_MODE", "offline")
    import wandb

    settings = json.loads((args.dir / "settings.json").read_text()) if (args.dir / "settings.json").exists() else {}
    config = dict(settings.get("settings", []))
    name = args.dir.resolve().name
    run = wandb.init(project=args.project, name=name, id=settings.get("run"), config=config, resume="allow")
    table = wandb.Table(columns=["step", "sample", "text"])
    step, time = -1, {}
    for step, values in steps(args.dir / "metrics.jsonl"):
        for sample in values.pop("samples", []):
            table.add_data(*sample)
        run.log(values, step=step)
        time = {name: value for name, value in values.items() if name == "_timestamp"}
    if table.data:
        run.log({"samples": table, **time}, step=step)
    run.finish()


if __name__ == "__main__":
    main()
