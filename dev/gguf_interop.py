#!/usr/bin/env python3
"""Models in GGUF, by llama.cpp's own package and by transformers, and one that this package wrote.

A part of dev/interop.py. A small model is trained here and converted in every type. The reader of the gguf package must
find each key and tensor with its value, and transformers the same weights, loss and tokens.
"""

from __future__ import annotations

import json
import math
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch

from llmc_files import read_shard
from programs import run

TEXTS = [
    "Hello, I'm 1234567.",
    "  two  spaces,\n\n\ttabs\r\nand lines ",
    "naïve café — 你好, мир! 🦀 \u0301",
    "x**2  # don't\n",
]
# transformers takes 1024 positions for GPT-2 in GGUF, whatever the file says.
SHAPE = {"L": 2, "NH": 2, "C": 64, "T": 1024, "V": 50257}
# Our name of a type, llama.cpp's names of it in tensors and files.
TYPES = {
    "f32": ("F32", "ALL_F32"),
    "fp16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
# llama.cpp's parts of names, and those of Hugging Face.
NAMES = {
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def hf_name(name: str) -> str:
    """Hugging Face's name of a tensor of llama.cpp: blk.0.attn_qkv.bias is transformer.h.0.attn.c_attn.bias."""
    *block, module, kind = name.split(".")
    layer = f"h.{block[1]}." if block else ""
    return f"transformer.{layer}{NAMES[module]}.{kind}"


def is_wide(name: str, values: np.ndarray) -> bool:
    """Whether a tensor is f32 in any file."""
    return values.ndim == 1 or name.startswith("position_embd")


class Gguf(unittest.TestCase):
    folder: tempfile.TemporaryDirectory

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.dir = Path(cls.folder.name)
        run("warpsmith", "stories", "-o", cls.dir / "data", "--tokens", "60000")
        data = ["-i", cls.dir / "data" / "*_train_*.bin", "-j", cls.dir / "data" / "*_val_*.bin"]
        small = "--layers 2 --heads 2 --channels 64 --context 1024 -b 4 -t 64 -x 60 -l 3e-3 -v 0 -s 0".split()
        run("train_gpt2", *data, *small, "-o", cls.dir / "log")
        run("warpsmith", "convert", cls.dir / "log", cls.dir / "hf" / "model.safetensors")
        for dtype in TYPES:
            run("warpsmith", "convert", cls.dir / "log", cls.dir / "gguf" / f"{dtype}.gguf", "--dtype", dtype)

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors by llama.cpp's names and in its layout, from the safetensors file."""
        from safetensors.numpy import load_file

        stored = load_file(self.dir / "hf" / "model.safetensors")
        blocks = [f"blk.{layer}.{module}" for layer in range(SHAPE["L"]) for module in NAMES if "_embd" not in module]
        blocks = [name for name in blocks if not name.endswith("output_norm")]
        names = ["token_embd.weight", "position_embd.weight"]
        names += [f"{module}.{kind}" for module in [*blocks, "output_norm"] for kind in ("weight", "bias")]
        self.assertEqual({hf_name(name) for name in names}, set(stored))
        transposed = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
        return {name: stored[hf_name(name)].T if name.endswith(transposed) else stored[hf_name(name)] for name in names}

    def test_every_tensor(self) -> None:
        """Shapes, types and values, those of Q8_0 to the bit as the package quantizes."""
        import gguf

        expected = self.tensors()
        for dtype, (kind, _) in TYPES.items():
            reader = gguf.GGUFReader(self.dir / "gguf" / f"{dtype}.gguf")
            found = {tensor.name: tensor for tensor in reader.tensors}
            self.assertEqual(set(found), set(expected))
            for name, values in expected.items():
                with self.subTest(dtype=dtype, name=name):
                    tensor = found[name]
                    stored = gguf.GGMLQuantizationType["F32" if is_wide(name, values) else kind]
                    self.assertEqual((tensor.tensor_type, list(tensor.shape)), (stored, list(values.shape[::-1])))
                    self.assertEqual(tensor.data_offset % gguf.GGUF_DEFAULT_ALIGNMENT, 0)
                    bytes_ = gguf.quants.quantize(np.ascontiguousarray(values), stored)
                    self.assertEqual(np.asarray(tensor.data).tobytes(), bytes_.tobytes())

    def test_every_key(self) -> None:
        import gguf
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.dir / "hf")
        merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
        for dtype, (_, file_type) in TYPES.items():
            reader = gguf.GGUFReader(self.dir / "gguf" / f"{dtype}.gguf")
            found = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
            expected = {
                "general.architecture": "gpt2",
                "general.type": "model",
                "general.name": dtype,
                "general.file_type": gguf.LlamaFileType[file_type],
                "general.quantization_version": gguf.GGML_QUANT_VERSION,
                "gpt2.block_count": SHAPE["L"],
                "gpt2.context_length": SHAPE["T"],
                "gpt2.embedding_length": SHAPE["C"],
                "gpt2.feed_forward_length": 4 * SHAPE["C"],
                "gpt2.attention.head_count": SHAPE["NH"],
                "gpt2.attention.layer_norm_epsilon": float(np.float32(1e-5)),
                "warpsmith.qkv_bias": True,
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.tokens": tokenizer.convert_ids_to_tokens(range(SHAPE["V"])),
                "tokenizer.ggml.token_type": [gguf.TokenType.NORMAL] * (SHAPE["V"] - 1) + [gguf.TokenType.CONTROL],
                "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
                "tokenizer.ggml.bos_token_id": 50256,
                "tokenizer.ggml.eos_token_id": 50256,
                "tokenizer.ggml.add_bos_token": False,
            }
            self.assertEqual(set(found), set(expected))
            for key, value in expected.items():
                with self.subTest(dtype=dtype, key=key):
                    self.assertEqual(found[key], value)

    def loss_of(self, model: torch.nn.Module) -> float:
        [shard] = (self.dir / "data").glob("*_val_*.bin")
        tokens = torch.from_numpy(read_shard(str(shard)).astype(np.int64))
        rows = torch.stack([tokens[i * 128 : i * 128 + 129] for i in range(20)])
        with torch.no_grad():
            logits = model.eval()(rows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()

    def our_loss(self, model: Path) -> float:
        results = self.dir / "results.jsonl"
        val = self.dir / "data" / "*_val_*.bin"
        run("warpsmith", "eval", "-e", model, "-o", results, "-j", val, "-t", "128", "-b", "4", "-m", "5")
        return json.loads(results.read_text())["val_loss"]

    def test_transformers(self) -> None:
        """The weights and logits of the safetensors file from f32, and the loss in every type."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        plain = AutoModelForCausalLM.from_pretrained(self.dir / "hf", dtype=torch.float32)
        for dtype in TYPES:
            path = self.dir / "gguf" / f"{dtype}.gguf"
            model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
            with self.subTest(dtype):
                ours, theirs = self.our_loss(path), self.loss_of(model)
                self.assertTrue(math.isclose(ours, theirs, rel_tol=1e-5), f"{ours}, not {theirs}")
                if dtype == "f32":
                    expected = plain.state_dict()
                    self.assertEqual(set(model.state_dict()), set(expected))
                    for name, values in model.state_dict().items():
                        self.assertTrue(torch.equal(values, expected[name]), name)
        tokenizer = AutoTokenizer.from_pretrained(self.dir / "gguf", gguf_file="f32.gguf")
        same = AutoTokenizer.from_pretrained(self.dir / "hf")
        for text in TEXTS:
            self.assertEqual(tokenizer(text)["input_ids"], same(text)["input_ids"])

    def test_a_file_of_theirs(self) -> None:
        """A file of the package's writer, in Q8_0 and with the head of its own that older converters wrote."""
        import gguf

        tensors, kind = self.tensors(), gguf.GGMLQuantizationType.Q8_0
        ours = gguf.GGUFReader(self.dir / "gguf" / "f32.gguf")
        for version in ["with_head", "plain"]:
            path = self.dir / f"{version}.gguf"
            writer = gguf.GGUFWriter(path, "gpt2")
            writer.add_block_count(SHAPE["L"])
            writer.add_context_length(SHAPE["T"])
            writer.add_embedding_length(SHAPE["C"])
            writer.add_feed_forward_length(4 * SHAPE["C"])
            writer.add_head_count(SHAPE["NH"])
            writer.add_layer_norm_eps(1e-5)
            writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
            writer.add_tokenizer_model("gpt2")
            writer.add_token_list(ours.fields["tokenizer.ggml.tokens"].contents())
            writer.add_token_types(ours.fields["tokenizer.ggml.token_type"].contents())
            writer.add_token_merges(ours.fields["tokenizer.ggml.merges"].contents())
            writer.add_eos_token_id(50256)
            head = {"output.weight": tensors["token_embd.weight"]} if version == "with_head" else {}
            for name, values in (tensors | head).items():
                wide = is_wide(name, values)
                data = np.ascontiguousarray(values)
                data = data if wide else gguf.quants.quantize(data, kind)
                writer.add_tensor(name, data, raw_dtype=None if wide else kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            same = self.dir / "gguf" / "q8_0.gguf"
            with self.subTest(version):
                self.assertEqual(self.our_loss(path), self.our_loss(same))
                sample = ["sample", "-p", "Once upon", "-g", "20", "-e"]
                self.assertEqual(run("warpsmith", *sample, path), run("warpsmith", *sample, same))


if __name__ == "__main__":
    unittest.main(verbosity=2)
