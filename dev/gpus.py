"""GPU facts for drivers that do not import PyTorch: the GPU's name, its peak, its memory in use."""

from __future__ import annotations

import subprocess
import threading

# Part of the name that nvidia-smi reports, folder of records (the name for `warpsmith roofline
# --gpu`), and dense bf16 TFLOP/s with f32 accumulation from NVIDIA's data sheets, to which MFU is
# relative. The first match counts.
GPUS = [
    ("H200", "h200", 989.4),
    ("H100 PCIe", "h100-pcie", 756.0),
    ("H100", "h100", 989.4),
    ("A100", "a100", 312.0),
    ("B200", "b200", 2250.0),
    ("RTX 4090", "4090", 165.2),
    ("RTX 5090", "5090", 209.5),
]


def known(name: str) -> tuple[str, float] | None:
    """Returns folder of records and peak of a GPU."""
    return next((found[1:] for found in GPUS if found[0] in name), None)


def query(what: str) -> list[str]:
    """Returns nvidia-smi's answer for the first GPU; empty without one."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return []
    return [part.strip() for part in found.stdout.strip().split(",")] if found.returncode == 0 else []


def memory_used_mib() -> float:
    return float((query("memory.used") or ["nan"])[0])


class PeakMemory:
    """Peak GPU memory in use while the block runs, above the use before it, in MiB."""

    def __enter__(self) -> "PeakMemory":
        self.before, self.peak_mib, self.stop = memory_used_mib(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        # A query takes some driver time while steps are being timed; memory stays constant for many
        # steps.
        while not self.stop.wait(1.0):
            self.peak_mib = max(self.peak_mib, memory_used_mib() - self.before)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def flops_per_token(L: int, C: int, T: int, maxT: int, Vp: int = 50304) -> float:
    """Returns llm.c's count: six per parameter, and causal attention."""
    parameters = (Vp + maxT) * C + L * (12 * C * C + 13 * C) + 2 * C
    return 6.0 * parameters + 6.0 * L * C * T
