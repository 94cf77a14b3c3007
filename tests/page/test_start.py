"""The first page comes with nothing of torch loaded. How soon: `python -m benchmarks --only page`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.page import first_page


@pytest.mark.slow
def test_the_first_page_needs_nothing_of_torch(tmp_path: Path) -> None:
    first_page(tmp_path)


def test_the_end_is_in_order_whatever_threads_are_at(project: Path) -> None:
    """What is registered for it is done, what was said is there, and nothing is taken down under a thread."""
    program = (
        "import atexit, threading, time; from kohya_gui.__main__ import leave; atexit.register(print, 'registered');"
        "threading.Thread(target=time.sleep, args=(60,)).start(); print('said', end=' '); leave(3)"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, check=False, cwd=project, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (3, "said registered", "")
