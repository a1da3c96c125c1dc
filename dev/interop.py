#!/usr/bin/env python3
"""Exchanges files with the real packages of others and compares ids, losses and texts: make interop

Data go from pyarrow, numpy and plain Python into `warpsmith data`, and shards back into numpy. A model goes from
train_gpt2 to transformers and lm_eval, and back, and as GGUF to llama.cpp's package. Tokenizers go both ways. A run
goes to TensorBoard, MLflow and W&B. A server is used by OpenAI's client. Each test names what must be equal.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import sys
import tempfile
import unittest
import warnings
from pathlib import Path

# Everything is on this disk: a package that asks the network is an error.
os.environ |= dict.fromkeys(["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE"], "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch

from gguf_interop import Gguf  # noqa: F401, found by unittest
from gpt2_tokenizer import EOT, gpt2_encoding
from llmc_files import read_shard, write_shard
from openai_client import OpenAIClient  # noqa: F401, found by unittest
from programs import ROOT, run
from trackers import Trackers  # noqa: F401, found by unittest

FIXTURES = ROOT / "tests" / "fixtures"
TEXTS = [
    "Hello, I'm a language model, and they've 1234567 tokens.",
    "  two  spaces,\n\n\ttabs\r\nand lines ",
    "naïve café — 你好, мир! 🦀 \u0301",
    "def f(x):\n    return x**2  # don't\n",
]


def documents(seed: int, count: int) -> list[str]:
    """Returns texts of many lengths, each with a number so that none is equal to another."""
    draw = np.random.RandomState(seed)
    return [f"{i}: " + " ".join(TEXTS[k] for k in draw.randint(0, len(TEXTS), draw.randint(1, 9))) for i in range(count)]


def json_lines(texts: list[str]) -> str:
    """Returns documents in the fields that datatrove writes."""
    return "".join(json.dumps({"text": text, "id": str(i), "metadata": {}}) + "\n" for i, text in enumerate(texts))


class Case(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = Path(folder.name)

    def tokens(self, *inputs: str | Path, flags: tuple[str, ...] = ()) -> np.ndarray:
        """Returns the training tokens of `warpsmith data`, all but those of a validation file."""
        validation = self.dir / "val.jsonl"
        validation.write_text(json.dumps({"text": "validation", "content": "validation"}))
        out = self.dir / "shards"
        run("warpsmith", "data", *inputs, "-o", out, "--val", validation, "--force", *flags)
        return np.concatenate([read_shard(str(path)) for path in sorted(out.glob("*_train_*.bin"))])

    def assert_close(self, found: float, expected: float, relative: float) -> None:
        self.assertTrue(math.isclose(found, expected, rel_tol=relative), f"{found}, not {expected}")


class Data(Case):
    """Corpora of others become the tokens that Python's tokenizers make of them."""

    texts = documents(1, 500)

    def expected(self) -> list[int]:
        path = self.dir / "gpt2.json"
        run("warpsmith", "tokenizer", "convert", "gpt2", path)
        gpt2 = gpt2_encoding(path)
        return [token for text in self.texts for token in [EOT, *gpt2.encode_ordinary(text)]]

    def test_parquet_of_pyarrow(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        expected = self.expected()
        table = pa.table({"id": list(range(len(self.texts))), "text": self.texts, "url": ["x"] * len(self.texts)})
        plain = {"use_dictionary": False, "data_page_version": "2.0"}
        delta = {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}}
        for codec in ["snappy", "zstd", "gzip", "lz4", "none"]:
            for options in [{}, plain, delta]:
                path = self.dir / f"{codec}.parquet"
                pq.write_table(table, path, compression=codec, row_group_size=77, **options)
                with self.subTest(codec=codec, **options):
                    self.assertEqual(self.tokens(path).tolist(), expected)
        large = table.set_column(1, "content", pa.array(self.texts, pa.large_string()))
        pq.write_table(large, self.dir / "large.parquet")
        self.assertEqual(self.tokens(self.dir / "large.parquet", flags=("--text-column", "content")).tolist(), expected)

    def test_json_lines(self) -> None:
        expected = self.expected()
        lines = json_lines(self.texts)
        (self.dir / "plain.jsonl").write_text(lines)
        with gzip.open(self.dir / "00000.jsonl.gz", "wt") as file:
            file.write(lines)
        import pyarrow as pa

        with pa.CompressedOutputStream(str(self.dir / "x.jsonl.zst"), "zstd") as file:
            file.write(lines.encode())
        for name in ["plain.jsonl", "00000.jsonl.gz", "x.jsonl.zst"]:
            with self.subTest(name):
                self.assertEqual(self.tokens(self.dir / name).tolist(), expected)

    def test_token_files(self) -> None:
        """build-nanogpt's .npy, nanoGPT's memory map of uint16, llm.c's shards."""
        tokens = np.array(self.expected(), dtype=np.uint16)
        shard, back = self.dir / "x.bin", self.dir / "back.bin"
        write_shard(str(shard), tokens)
        np.save(self.dir / "theirs.npy", tokens)
        tokens.tofile(self.dir / "raw.bin")
        run("warpsmith", "convert", self.dir / "theirs.npy", back)
        self.assertEqual(back.read_bytes(), shard.read_bytes())
        run("warpsmith", "convert", self.dir / "raw.bin", back, "--raw-tokens", "--force")
        self.assertEqual(back.read_bytes(), shard.read_bytes())
        run("warpsmith", "convert", shard, self.dir / "ours.npy")
        ours = np.load(self.dir / "ours.npy")
        self.assertEqual((ours.dtype, ours.tolist()), (np.uint16, tokens.tolist()))
        run("warpsmith", "convert", shard, self.dir / "train.bin", "--raw-tokens")
        mapped = np.memmap(self.dir / "train.bin", dtype=np.uint16, mode="r")
        self.assertEqual(mapped.tolist(), tokens.tolist())


class Tokenizers(Case):
    def test_one_of_ours_in_theirs(self) -> None:
        from tokenizers import Tokenizer

        (self.dir / "corpus.jsonl").write_text(json_lines(documents(2, 300)))
        path = self.dir / "tokenizer.json"
        run("warpsmith", "tokenizer", "train", self.dir / "corpus.jsonl", "--vocab-size", "350", "-o", path)
        self.check(path, Tokenizer.from_file(str(path)), 350)

    def test_one_of_theirs_in_ours(self) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        llama3 = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        split = pre_tokenizers.Split(Regex(llama3), behavior="isolated")
        byte_level = lambda regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
        both = pre_tokenizers.Sequence([split, byte_level(False)])
        for name, before in {"gpt2": byte_level(True), "llama3": both}.items():
            theirs = Tokenizer(models.BPE())
            theirs.pre_tokenizer, theirs.decoder = before, decoders.ByteLevel()
            options = {"initial_alphabet": byte_level(True).alphabet(), "show_progress": False}
            trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<|endoftext|>"], **options)
            theirs.train_from_iterator(documents(3, 300), trainer)
            path = self.dir / f"{name}.json"
            theirs.save(str(path))
            with self.subTest(name):
                self.check(path, theirs, theirs.get_vocab_size())

    def check(self, path: Path, theirs, vocab_size: int) -> None:
        """Compares the tokens of a corpus; two validation tokens stand apart."""
        self.assertEqual(theirs.get_vocab_size(), vocab_size)
        eot = theirs.token_to_id("<|endoftext|>")
        texts = documents(4, 200)
        (self.dir / "x.jsonl").write_text(json_lines(texts))
        expected = [token for text in texts for token in [eot, *theirs.encode(text).ids]]
        self.assertEqual(self.tokens(self.dir / "x.jsonl", flags=("--tokenizer", str(path))).tolist(), expected)


class Model(Case):
    """A model trained here, in transformers and lm_eval."""

    folder: tempfile.TemporaryDirectory

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.run_dir = Path(cls.folder.name)
        run("warpsmith", "stories", "-o", cls.run_dir / "data", "--tokens", "60000")
        cls.val = str(cls.run_dir / "data" / "*_val_*.bin")
        train = ["-i", cls.run_dir / "data" / "*_train_*.bin", "-j", cls.val, "-o", cls.run_dir / "log"]
        small = "--layers 2 --heads 2 --channels 64 --context 128 -b 4 -t 128 -x 150 -l 3e-3 -u 10 -v 0 -s 0".split()
        run("train_gpt2", *train, *small)
        run("warpsmith", "convert", cls.run_dir / "log", cls.run_dir / "hf" / "model.safetensors")
        cls.hf = str(cls.run_dir / "hf")

    def test_the_tokenizer(self) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.hf)
        self.assertEqual((len(tokenizer), tokenizer.eos_token, tokenizer.eos_token_id), (50257, "<|endoftext|>", EOT))
        (self.dir / "x.jsonl").write_text(json_lines(TEXTS))
        expected = [token for text in TEXTS for token in [EOT, *tokenizer(text)["input_ids"]]]
        self.assertEqual(self.tokens(self.dir / "x.jsonl").tolist(), expected)
        self.assertEqual(tokenizer.decode(tokenizer(TEXTS[2])["input_ids"]), TEXTS[2])

    def test_greedy_text(self) -> None:
        from transformers import pipeline

        prompt = "Once upon a time"
        theirs = pipeline("text-generation", self.hf)(prompt, do_sample=False, max_new_tokens=40)[0]["generated_text"]
        ours = run("warpsmith", "sample", "-e", self.hf, "-p", prompt, "--temperature", "0", "-g", "40")
        self.assertEqual(ours.rstrip("\n"), theirs.removesuffix("<|endoftext|>").rstrip("\n"))
        self.assertTrue(theirs.startswith(prompt) and len(theirs) > len(prompt) + 20, theirs)

    def test_the_loss(self) -> None:
        self.assert_close(self.our_loss(self.hf), self.their_loss(self.hf), 1e-5)

    def our_loss(self, folder: str, *more: str | Path) -> float:
        """Returns the loss of the first 20 sequences of the validation split."""
        flags = ["-j", self.val, "-t", "128", "-b", "4", "-m", "5", *more]
        return json.loads(self.evaluated(folder, *flags))["val_loss"]

    def their_loss(self, folder: str) -> float:
        from transformers import AutoModelForCausalLM

        return self.loss_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))

    def loss_of(self, model: torch.nn.Module) -> float:
        [shard] = (self.run_dir / "data").glob("*_val_*.bin")
        tokens = torch.from_numpy(read_shard(str(shard)).astype(np.int64))
        rows = torch.stack([tokens[i * 128 : i * 128 + 129] for i in range(20)])
        with torch.no_grad():
            logits = model.eval()(rows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()

    def evaluated(self, model: str, *flags: str | Path) -> str:
        results = self.dir / "results.jsonl"
        run("warpsmith", "eval", "-e", model, "-o", results, *flags)
        return results.read_text()

    def test_their_folder(self) -> None:
        """A model that transformers saved, in one file and in several."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.hf)
        for name, size in [("one", "1GB"), ("several", "1MB")]:
            model.save_pretrained(self.dir / name, max_shard_size=size)
            folder = str(self.dir / name)
            with self.subTest(name):
                self.assert_close(self.our_loss(folder), self.their_loss(folder), 1e-5)

    def test_adapters(self) -> None:
        """Adapters trained here, in PEFT, and those that PEFT saved, here: both have the loss of the merged model."""
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import AutoModelForCausalLM

        def base() -> torch.nn.Module:
            return AutoModelForCausalLM.from_pretrained(self.hf, dtype=torch.float32)

        data = ["-i", self.run_dir / "data" / "*_train_*.bin", "-j", self.val, "-o", self.dir / "lora"]
        lora = "-b 4 -t 128 -x 20 -l 1e-2 -v 0 -s 0 --lora-rank 6 --lora-alpha 12 --lora-targets all".split()
        run("train_gpt2", "-e", self.hf, *data, *lora)
        folder = self.dir / "lora" / "adapter_00000020"
        ours = self.our_loss(str(self.dir / "lora"))
        self.assert_close(self.loss_of(PeftModel.from_pretrained(base(), str(folder))), ours, 1e-5)
        self.assertLess(ours, self.our_loss(self.hf) - 0.01)

        torch.manual_seed(1)
        targets = ["c_attn", "mlp.c_proj"]
        theirs = get_peft_model(base(), LoraConfig(r=3, lora_alpha=5, target_modules=targets, fan_in_fan_out=True))
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0.0, 0.1)
        theirs.save_pretrained(self.dir / "peft")
        merged = self.dir / "merged" / "model.safetensors"
        run("warpsmith", "convert", self.hf, merged, "--adapter", self.dir / "peft")
        self.assert_close(self.our_loss(str(merged.parent)), self.loss_of(theirs), 1e-5)
        at_load = self.our_loss(self.hf, "--adapter", self.dir / "peft")
        self.assertEqual(at_load, self.our_loss(str(merged.parent)))

    def test_lm_eval(self) -> None:
        """The log-likelihood of every ending, and the accuracy."""
        import lm_eval

        examples = FIXTURES / "hellaswag_small.jsonl"
        config = {
            "task": "endings",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(examples)}},
            "validation_split": "validation",
            "output_type": "multiple_choice",
            "doc_to_text": "{{ctx}}",
            "doc_to_choice": "{{endings}}",
            "doc_to_target": "{{label}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = {"pretrained": self.hf, "device": "cpu"}
            theirs = lm_eval.simple_evaluate("hf", model_args=model, tasks=[config], log_samples=True)
        lines = [json.loads(line) for line in self.evaluated(self.hf, "--hellaswag", str(examples)).splitlines()]
        ours, summary = lines[:-1], lines[-1]
        samples = theirs["samples"]["endings"]
        self.assertEqual(len(samples), len(ours))
        for sample in samples:
            likelihoods = [response[0][0] for response in sample["resps"]]
            for likelihood, loss in zip(likelihoods, ours[sample["doc_id"]]["sum"], strict=True):
                self.assert_close(loss, -float(likelihood), 1e-4)
        self.assert_close(theirs["results"]["endings"]["acc,none"], summary["hellaswag_acc"], 1e-6)

    def test_tasks_of_lm_eval(self) -> None:
        """Every log-likelihood, greedy match and measure of lm_eval's own tasks."""
        import lm_eval_tasks

        folder = FIXTURES / "tasks"
        files = {path.stem: str(path) for path in sorted(folder.glob("*.jsonl"))}
        theirs = lm_eval_tasks.scores(self.hf, files)
        text = files.pop("text")
        flags = [flag for name, path in files.items() for flag in ("--task", f"{name}={path}")] + ["--text", text]
        lines = [json.loads(line) for line in self.evaluated(self.hf, *flags).splitlines()]
        summary = lines.pop()
        for task, expected in theirs.items():
            ours = [line for line in lines if line["task"] == task]
            with self.subTest(task):
                for line, choices in zip(ours, expected.pop("items"), strict=True):
                    for loss, (likelihood, greedy) in zip(line["sum"], choices, strict=True):
                        self.assert_close(loss, -likelihood, 1e-4)
                        self.assertEqual(line.get("greedy", greedy), greedy)
                key = "hellaswag_lm_eval" if task == "hellaswag" else task
                measures = {name: value for name, value in expected.items() if isinstance(value, float)}
                self.assertTrue(measures)
                for name, value in measures.items():
                    self.assert_close(summary[f"{key}_{name}"], value, 1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", help="names, such as Model.test_lm_eval (default: all)")
    args = parser.parse_args()
    for program in ["warpsmith", "train_gpt2"]:
        if not (ROOT / program).exists():
            raise SystemExit(f"interop: no ./{program}; run make first")
    unittest.main(argv=[sys.argv[0], "-v", *args.tests])


if __name__ == "__main__":
    main()
