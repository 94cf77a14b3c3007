"""PyTorch and what stands on it, loaded the short way: nothing is left changed, and no compiler comes along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOAD = """
import gc, sys, threading
from trainer import stack
assert not {"torch", "bitsandbytes"} & set(sys.modules)
threads = [threading.Thread(target=stack.load) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import torch
assert gc.isenabled() and gc.get_freeze_count() > 100_000
assert torch.compile.__module__ == "torch", torch.compile
assert {"trainer.loop", "trainer.build", "peft", "diffusers"} <= set(sys.modules)
assert "torch._inductor.compile_fx" not in sys.modules
counted = gc.get_freeze_count()
stack.load()
assert gc.get_freeze_count() <= counted
"""


def test_the_stack_is_loaded_once_and_without_the_compiler(project: Path) -> None:
    answer = subprocess.run([sys.executable, "-c", LOAD], cwd=project, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
