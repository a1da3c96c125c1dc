"""Our programs, as the tests of `make interop` run them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Runs one of our programs, which must succeed; returns its standard output."""
    program, *flags = map(str, command)
    done = subprocess.run([ROOT / program, *flags], capture_output=True, text=True, cwd=cwd)
    if done.returncode != 0:
        raise AssertionError(f"{program} {' '.join(flags)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
