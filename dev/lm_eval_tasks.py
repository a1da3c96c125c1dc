#!/usr/bin/env python3
"""Scores tasks with lm_eval on a Hugging Face folder and files on this disk: the reference for `warpsmith eval --task`.

    dev/lm_eval_tasks.py MODEL piqa=valid.jsonl lambada=test.jsonl … > scores.json

The tasks are lm_eval's own, apart from where they read their questions; multiple_choice is a task of context, choices
and gold, and text measures whole documents. For each task it prints `items`, a list of [log-likelihood, is greedy] for every choice of every question,
and the measures, such as `acc`.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path

# Everything is on this disk: a package that asks the network is an error.
os.environ |= dict.fromkeys(["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE"], "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Where lm_eval defines a task, below its own folder `tasks`.
CONFIGS = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "copa": "super_glue/copa/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "lambada": "lambada/lambada_openai.yaml",
}
GENERIC = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ["acc", "acc_norm"]],
}
# Documents of any length; of a text, all tokens count.
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": name} for name in ["word_perplexity", "byte_perplexity", "bits_per_byte"]],
}


def task_config(task: str, path: str) -> dict:
    """Returns lm_eval's task, which reads `path`."""
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = Path(lm_eval.tasks.__file__).parent
    own = {"multiple_choice": GENERIC, "text": ROLLING}
    config = own.get(task) or load_yaml(folder / CONFIGS[task])
    splits = {"training_split": None, "validation_split": "validation", "test_split": None}
    source = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"validation": str(path)}}}
    return {key: value for key, value in config.items() if key != "tag"} | splits | source | {"task": task}


def scores(model: str, files: dict[str, str]) -> dict[str, dict]:
    """Scores the file of each task."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lm_eval.simple_evaluate(
            "hf",
            model_args={"pretrained": str(model), "device": "cpu", "dtype": "float32"},
            tasks=[task_config(task, path) for task, path in files.items()],
            # Without its index of all tasks, which takes longer than these.
            task_manager=TaskManager(include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
    return {task: scores_of(theirs, task) for task in files}


def scores_of(theirs: dict, name: str) -> dict:
    samples = sorted(theirs["samples"][name], key=lambda sample: sample["doc_id"])
    # Per filter, of which there is one, the responses are (log-likelihood, is greedy).
    rolling = "bits_per_byte,none" in theirs["results"][name]
    pairs = [] if rolling else [[(float(r[0][0]), str(r[0][1]) == "True") for r in s["resps"]] for s in samples]
    measures = theirs["results"][name].items()
    found = {key.removesuffix(",none"): value for key, value in measures if key.endswith(",none") and "stderr" not in key}
    return {"items": pairs} | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder with config.json, model.safetensors and a tokenizer")
    parser.add_argument("tasks", nargs="+", metavar="NAME=FILE")
    args = parser.parse_args()
    files = dict(task.split("=", 1) for task in args.tasks)
    print(json.dumps(scores(args.model, files)))


if __name__ == "__main__":
    main()
