"""What a driver needs to know of GPUs without importing PyTorch: which is there, its peak, its memory in use."""

from __future__ import annotations

import subprocess
import threading

# Part of the name nvidia-smi gives, folder of records (as `warpsmith roofline --gpu` calls it), dense bf16 TFLOP/s with f32
# accumulation from NVIDIA's data sheets; the first that fits. MFU is a share of the last.
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
    """Folder of records and peak of a GPU."""
    return next((found[1:] for found in GPUS if found[0] in name), None)


def query(what: str) -> list[str]:
    """nvidia-smi's answer for the first GPU; empty without one."""
    command = ["nvidia-smi", "-i", "0", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return []
    return [part.strip() for part in found.stdout.strip().split(",")] if found.returncode == 0 else []


def memory_used_mib() -> float:
    return float((query("memory.used") or ["nan"])[0])


class PeakMemory:
    """The most memory in use on the GPU while the block runs, above what was in use before it, in MiB."""

    def __enter__(self) -> "PeakMemory":
        self.before, self.peak_mib, self.stop = memory_used_mib(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        # Asking takes a moment of the driver's, which steps are timed beside; memory stays the same for many steps.
        while not self.stop.wait(1.0):
            self.peak_mib = max(self.peak_mib, memory_used_mib() - self.before)

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def flops_per_token(L: int, C: int, T: int, maxT: int, Vp: int = 50304) -> float:
    """llm.c's count: six for each parameter, and causal attention."""
    parameters = (Vp + maxT) * C + L * (12 * C * C + 13 * C) + 2 * C
    return 6.0 * parameters + 6.0 * L * C * T
