"""Memory that is kept for the next tensor, and given back at the end."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

KEPT = """
import psutil, torch
from trainer import memory

SIZE, MB = 16 * 2**20, 2**20

def kept():
    # The system gives memory that is full of zeros; what was kept still holds what the last tensor left in it.
    torch.full((SIZE,), 7.0)
    return (torch.empty(SIZE) == 7.0).float().mean().item()

def held():
    memory = psutil.Process().memory_full_info()
    return memory.uss + memory.swap

torch.full((SIZE,), 7.0)
before, began = kept(), held()
with memory.kept():
    torch.full((SIZE,), 7.0)
    within = kept()
    assert held() > began + 60 * MB
assert (before, within > 0.999) == (0.0, True), (before, within)
assert held() < began + 16 * MB
assert kept() == 0.0
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_is_kept_within_and_given_back_behind(project: Path) -> None:
    answer = subprocess.run([sys.executable, "-c", KEPT], cwd=project, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
