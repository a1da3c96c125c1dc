#!/usr/bin/env python3
"""Tests dev/bench.py, bench_torch.py and bench_attention.py, on a CPU, in seconds: dev/test_bench.py"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import unittest
import unittest.mock
from pathlib import Path

import numpy as np
import torch

import bench
import bench_attention
import gpus
from bench_torch import MasterAdamW, PlainAdamW
from flags import shape
from llmc_files import batches, write_shard

SETTINGS = {"weight_decay": 0.1, "lr": 3e-3}


def weights(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).requires_grad_() for size in [(6, 5), (5,), (3, 4)]]


def train(optimizer, parameters: list[torch.Tensor], steps: int, dtype: torch.dtype) -> None:
    """Trains with gradients that do not depend on the weights, so that two optimizers see the same ones."""
    for step in range(steps):
        for parameter, gradient in zip(parameters, weights(step + 100)):
            parameter.grad = gradient.detach().to(dtype).to(parameter.dtype)
        optimizer.step()


class Master(unittest.TestCase):
    def test_of_f32_weights_it_is_plain_adamw(self) -> None:
        plain, mastered = weights(1), weights(1)
        train(PlainAdamW(plain, **SETTINGS), plain, 20, torch.float32)
        train(MasterAdamW(mastered, torch.float32, **SETTINGS), mastered, 20, torch.float32)
        for a, b in zip(plain, mastered):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_of_bf16_weights_the_masters_are_those_of_f32(self) -> None:
        """Steps far below the spacing of bf16 accumulate in the masters, and the weights follow."""
        plain, narrow = weights(2), weights(2)
        start = [w.detach().bfloat16() for w in narrow]
        tiny = SETTINGS | {"lr": 1e-5}
        optimizer = MasterAdamW(narrow, torch.bfloat16, **tiny)
        train(PlainAdamW(plain, **tiny), plain, 400, torch.bfloat16)
        train(optimizer, narrow, 400, torch.bfloat16)
        for a, master, b in zip(plain, optimizer.masters, narrow):
            torch.testing.assert_close(a, master, rtol=0, atol=0)
            self.assertEqual(b.dtype, torch.bfloat16)
            torch.testing.assert_close(b, master.bfloat16(), rtol=0, atol=0)
        self.assertTrue(any(not torch.equal(a, b) for a, b in zip(start, narrow)))


class Driver(unittest.TestCase):
    def test_resident_batches_are_the_same_batches(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for i, count in enumerate([401, 307]):
                tokens = np.random.default_rng(i).integers(0, 50257, count)
                write_shard(os.path.join(folder, f"t_{i}.bin"), tokens)
            pattern = os.path.join(folder, "t_*.bin")
            plain, resident = (batches(pattern, 2, 16, True, device) for device in (None, "cpu"))
            for _ in range(60):
                for a, b in zip(next(plain), next(resident)):
                    self.assertTrue(torch.equal(a, b) and a.dtype == b.dtype)

    def test_flops_and_peaks_are_the_known_ones(self) -> None:
        for model, megaflops in [("d12", 803.5), ("d24", 2280), ("d36", 4928), ("d48", 9818)]:
            L, C, maxT = shape(argparse.Namespace(model=model))
            self.assertAlmostEqual(gpus.flops_per_token(L, C, 1024, maxT) / 1e6 / megaflops, 1.0, places=3)
        self.assertEqual(gpus.known("NVIDIA H100 PCIe"), ("h100-pcie", 756.0))
        self.assertEqual(gpus.known("NVIDIA H100 80GB HBM3"), ("h100", 989.4))
        self.assertIsNone(gpus.known("Tesla V100"))

    def test_step_lines_give_times_and_losses(self) -> None:
        text = "step    1/10 | loss 10.837057 (+nanz)| norm 3.5237 (+nanz)| lr 5.00e-05 | 134.13 ms | n/a MFU | 7634 tok/s\n"
        self.assertEqual(bench.STEP_LINE.findall(text + "val loss 3.1\n"), [("10.837057", "134.13")])

    def test_variants_are_read_and_bad_ones_refused(self) -> None:
        read = bench.worker_flags
        self.assertEqual(read("f32:eager"), ["--dtype", "f32"])
        full = ["--dtype", "bf16-master", "--compile", "--compile-mode", "max-autotune", "--attention", "cudnn"]
        self.assertEqual(read("bf16-master:max-autotune:cudnn"), full)
        for bad in ["f32", "f16:eager", "f32:fast", "f32:eager:triton", "f32:eager:flash:x"]:
            with self.assertRaises(SystemExit):
                read(bad)

    def test_what_this_machine_cannot_do_is_left_out_if_it_is_optional(self) -> None:
        """Exit code 2 is a refusal; any other failure is an error, even of an optional program."""
        with tempfile.TemporaryDirectory() as folder:
            # A stand-in for a trainer: it prints step lines, or an error, and exits with the given
            # code.
            fake = Path(folder) / "fake"
            line = "step 1/10 | loss 10.8 (+nanz)| norm 3.5 (+nanz)| lr 5.00e-05 | 134.13 ms | n/a MFU | 7634 tok/s"
            fake.write_text(f'#!/bin/sh\n[ "$1" = 0 ] || {{ echo "fake: no such type" >&2; exit $1; }}\nyes "{line}" | head -12\n')
            fake.chmod(0o755)

            def labels(*flags: str) -> list[str]:
                argv = ["bench", "--data", "x", "--device", "cpu", "-e", "d12", *flags]
                with unittest.mock.patch("sys.argv", argv), contextlib.redirect_stderr(io.StringIO()):
                    return list(bench.ours(bench.parse()))

            works = ["--ours", f"f32={fake} 0"]
            self.assertEqual(labels(*works, "--ours-optional", f"bf16={fake} 0"), ["f32", "bf16"])
            self.assertEqual(labels(*works, "--ours-optional", f"bf16={fake} 2"), ["f32"])
            for flags in [["--ours-optional", f"bf16={fake} 1"], ["--ours", f"bf16={fake} 2"]]:
                with self.assertRaises(SystemExit) as refusal:
                    labels(*works, *flags)
                self.assertIn("fake: no such type", str(refusal.exception))

    def test_mfu_is_of_the_card_at_hand(self) -> None:
        self.assertEqual(f"{bench.mfu(803.5e6, 700e3, 989.4):.3f}", "0.568")
        self.assertIsNone(bench.mfu(803.5e6, 700e3, None))


class Attention(unittest.TestCase):
    def run_tiny(self, *flags: str) -> dict:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            path = Path(folder) / "new" / "peers.json"
            flags = ["-e", "tiny", "-b", "2", "-t", "64", "--reps", "2", "--device", "cpu", "--out", str(path), *flags]
            with contextlib.redirect_stderr(io.StringIO()):
                bench_attention.main(flags)
            return json.loads(path.read_text())

    def test_peers_have_the_names_and_shapes_of_our_kernels(self) -> None:
        """They are those of the record that `cargo test` compares our kernels with: `--peers` looks them up."""
        records = Path(__file__).resolve().parent.parent / "benches" / "record" / "emulated"
        ours = json.loads((records / "tiny-b2-t64-bf16-kernels.json").read_text())
        known = {(entry["kernel"], entry["shape"]) for entry in ours["kernels"]}
        for dtype in ["bf16", "f32"]:
            entries = self.run_tiny("--dtype", dtype)["kernels"]
            found = {(entry["kernel"], entry["shape"]) for entry in entries}
            self.assertEqual(len(found), 5)
            self.assertLessEqual(found, known)
            for entry in entries:
                self.assertTrue(0 < entry["min_us"] <= entry["p10_us"] <= entry["us"] <= entry["p90_us"], entry)

    def test_bad_flags_are_refused(self) -> None:
        for bad in [["-e", "d13"], ["-b", "0"], ["--device", "tpu"]]:
            with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()):
                bench_attention.parse(bad)


if __name__ == "__main__":
    unittest.main()
