"""Memory that is kept for the next tensor, and given back at the end."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

TURNS = """
import resource
import psutil, torch
from trainer import memory

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def turns():
    began = pages()
    for _ in range(10):
        torch.ones(16 * 2**20)
    return pages() - began

def resident():
    return psutil.Process().memory_info().rss

torch.ones(16 * 2**20)
before, held = turns(), resident()
with memory.kept():
    torch.ones(16 * 2**20)
    within = turns()
    assert resident() > held + 60 * 2**20
assert within < before / 2, (within, before)
assert resident() < held + 16 * 2**20
assert turns() > before / 2
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_is_kept_within_and_given_back_behind(project: Path) -> None:
    answer = subprocess.run([sys.executable, "-c", TURNS], cwd=project, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
