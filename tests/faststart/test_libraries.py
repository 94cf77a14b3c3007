"""PyTorch and what stands on it, loaded at once and unchanged; a run starts without what makes its start quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.faststart import libraries

LOAD = """
import gc, os, sys, threading
from trainer.faststart import libraries
assert not {"torch", "bitsandbytes"} & set(sys.modules)
threads = [threading.Thread(target=libraries.load) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert gc.isenabled() and gc.get_freeze_count() > 100_000
assert set(libraries.NEEDED) <= set(sys.modules)
assert libraries.NOTHING_COMPILED not in os.environ
assert "torch._inductor.compile_fx" not in sys.modules, "bitsandbytes compiled what it is made of"
import torch
assert torch.compile.__module__ == "torch" and torch.compile(lambda given: given, backend="eager")(3) == 3
assert torch.distributed.is_available.__module__ == 'torch.distributed'
assert type(torch._dynamo) is type(sys)
counted = gc.get_freeze_count()
libraries.load()
assert gc.get_freeze_count() <= counted
"""

CHOSEN = """
import os
os.environ["TORCHDYNAMO_DISABLE"] = "0"
from trainer.faststart import libraries
libraries.NEEDED = ("bitsandbytes",)
libraries.load()
assert os.environ["TORCHDYNAMO_DISABLE"] == "0"
"""

RUN = """
import gc, json, sys
from trainer.faststart import libraries
{taken}
from trainer.config import load_config
from trainer.run import train
train(load_config(overrides=json.loads(sys.argv[1])), emit=lambda event: None)
"""

QUIET = """
import inspect, logging
from trainer.__main__ import start_logging
from trainer.faststart import libraries
start_logging()
libraries.quieten()
from bitsandbytes.backends.cpu import ops
begin = "Failed to load CPU gemm_4bit_forward from kernels-community"
assert begin in inspect.getsource(ops), "bitsandbytes words it otherwise now"
# Where the CPU has no bfloat16, importing says nothing; so it is said here as well.
ops.logger.warning(begin + ": %s.", "No module named 'kernels'")
ops.logger.warning("another word of the CPU's kernels")
logging.getLogger("bitsandbytes.cextension").warning("another word of the library")
"""

LEFT = """
import sys, threading, time
from trainer.faststart import libraries
threading.Thread(target=libraries.load, daemon=True).start()
while "torch" not in sys.modules:
    time.sleep(0.001)
libraries.leave()
assert "trainer.training.loop" not in sys.modules, "it was all loaded before the program could end"
asks = threading.Thread(target=lambda: libraries.load() or asked.append(True))
asked = []
asks.start()
asks.join()
assert not asked and "trainer.training.loop" not in sys.modules
"""

TAKEN = {
    "every module": "libraries.NEEDED = tuple(f'{name}_elsewhere' for name in libraries.NEEDED)",
    "bitsandbytes": "sys.modules['bitsandbytes'] = None",
    "the variable": "libraries.NOTHING_COMPILED = 'OF_NO_MEANING'",
}


def _run(program: str, project: Path, *arguments: str) -> str:
    """Run a program of its own and return what it wrote to its error stream."""
    command = [sys.executable, "-c", program, *arguments]
    answer = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stderr


def test_the_stack_is_loaded_once_and_nothing_of_it_is_changed(project: Path) -> None:
    _run(LOAD, project)


def test_what_a_person_told_pytorch_stays(project: Path) -> None:
    _run(CHOSEN, project)


def test_only_the_missing_kernel_of_bitsandbytes_is_kept_quiet(project: Path) -> None:
    said = _run(QUIET, project)
    assert "gemm_4bit" not in said
    assert "another word of the CPU's kernels" in said and "another word of the library" in said


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and a folder of pictures."""
    folder = tmp_path_factory.mktemp("start")
    return tiny_sd15(folder), write_dataset(folder / "data")


@pytest.mark.parametrize(
    # Without the variable alone, less is missing than with every module elsewhere, where nobody sets it.
    "taken",
    [pytest.param(each, marks=pytest.mark.thorough if each == "the variable" else ()) for each in TAKEN],
)
def test_a_run_starts_without_what_makes_its_start_quick(
    taken: str, project: Path, ground: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = tiny_settings(*ground, tmp_path, max_train_steps=1)
    _run(RUN.format(taken=TAKEN[taken]), project, json.dumps(settings))
    assert (tmp_path / "tiny.safetensors").is_file()


def test_what_cannot_be_imported_is_left_to_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "_LOADED", type(libraries._LOADED)())
    monkeypatch.setattr(libraries, "NEEDED", ("no_such_library", "torch"))
    libraries.load()
    assert libraries._LOADED.is_set()


def test_a_program_may_end_while_they_are_loaded(project: Path) -> None:
    """The thread is where PyTorch is being imported."""
    _run(LEFT, project)


def test_nothing_of_a_missing_kernel_greets_a_start(project: Path, ground: tuple[Path, Path], tmp_path: Path) -> None:
    settings = tiny_settings(*ground, tmp_path, max_train_steps=1, optimizer_type="AdamW8bit")
    run = tmp_path / "run.toml"
    run.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()), encoding="utf-8")
    command = [sys.executable, "-m", "trainer", "train", str(run)]
    answer = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "kernels" not in answer.stderr + answer.stdout
    assert (tmp_path / "tiny.safetensors").is_file()
