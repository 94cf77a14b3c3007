"""PyTorch and what stands on it, loaded the short way: nothing is left changed, and no compiler comes along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LOAD = """
import gc, sys, threading
from trainer.faststart import compiler, libraries
assert not {"torch", "bitsandbytes"} & set(sys.modules)
threads = [threading.Thread(target=libraries.load) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import torch, transformers
assert gc.isenabled() and gc.get_freeze_count() > 100_000
assert torch.compile.__module__ == "torch", torch.compile
assert torch.distributed.is_available() and torch.distributed.is_available.__module__ == "torch.distributed"
assert {"trainer.training.loop", "trainer.training.build", "peft", "diffusers"} <= set(sys.modules)
assert not {"torch._inductor.compile_fx", "torch._dynamo.eval_frame", "sympy"} & set(sys.modules)
assert not compiler.is_loaded()
counted = gc.get_freeze_count()
libraries.load()
assert gc.get_freeze_count() <= counted

from transformers.utils import import_utils
assert import_utils.define_import_structure.__module__ == "transformers.utils.import_utils"
fresh = import_utils.define_import_structure(transformers.models.__file__)
modules = {name: module for part in fresh.values() for module, names in part.items() for name in names}
assert "CLIPTextModel" in modules and modules == transformers.models._class_to_module

from types import ModuleType
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.models import autoencoders
assert FluxTransformer2DModel.__module__ == "diffusers.models.transformers.transformer_flux"
assert type(autoencoders) is not ModuleType and autoencoders.AutoencoderKL is AutoencoderKL
assert type(autoencoders) is ModuleType and autoencoders.AutoencoderTiny
"""

RANK = """
import os
os.environ["WORLD_SIZE"] = "2"
from trainer.faststart import libraries
libraries.load()
from transformers.utils import is_torch_distributed_available
assert is_torch_distributed_available()
"""

STEP = """
import torch
from trainer.faststart import compiler
compiler.defer()
weight = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.AdamW([weight], lr=0.1)
weight.sum().backward()
optimizer.step()
optimizer.zero_grad()
assert not compiler.is_loaded()
assert weight.detach().max() < 1

marked = torch.compiler.allow_in_graph(lambda given: given + 1)
constant = torch.compiler.assume_constant_result(lambda: 3)
@torch.compiler.disable(recursive=False)
def outside(given):
    "Its words."
    return given * 2
assert outside.__doc__ == "Its words." and outside(2) == 4 and not compiler.is_loaded()

@torch.compile(backend="eager")
def whole(given):
    return outside(given) + 1
assert compiler.is_loaded() and whole(torch.ones(1)) == 3
from torch._dynamo.utils import counters
assert counters["graph_break"], "what is disabled was compiled"
from torch._dynamo import trace_rules, variables
assert trace_rules.lookup_callable(marked) is variables.TorchInGraphFunctionVariable
assert constant._dynamo_marked_constant
torch.compiler.reset()
"""

PART = """
import torch
from trainer.faststart import compiler
compiler.defer()
import torch._dynamo._trace_wrapped_higher_order_op
import sys
assert not compiler.is_loaded()
import torch._dynamo.{part} as part
assert compiler.is_loaded()
assert part is sys.modules["torch._dynamo.{part}"] is torch._dynamo.{part}
if "{part}" != "config":
    assert part.__spec__.origin == part.__file__
"""


def _run(program: str, project: Path) -> None:
    answer = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_the_stack_is_loaded_once_and_without_the_compiler(project: Path) -> None:
    _run(LOAD, project)


def test_several_processes_load_what_they_need_to_train_together(project: Path) -> None:
    _run(RANK, project)


def test_the_compiler_is_loaded_when_it_is_used_and_knows_its_marks(project: Path) -> None:
    _run(STEP, project)


@pytest.mark.parametrize("part", ["pgo", "config", "utils"])
def test_a_part_of_the_compiler_comes_with_the_whole(project: Path, part: str) -> None:
    _run(PART.format(part=part), project)
