"""torch.compile as a setting: the same losses, said how long it took, and without it where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import VALIDATED, tiny_config, write_dataset
from trainer import train
from trainer.ground import events
from trainer.training import compilation

SEEN: list[torch.fx.GraphModule] = []
LEARNING: list[torch.fx.GraphModule] = []  # those of them whose gradients are wanted: a step's, not a validation's


def looking(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
    """A backend that compiles nothing: it notes what it was given."""
    SEEN.append(graph)
    if torch.is_grad_enabled():
        LEARNING.append(graph)
    return graph.forward


def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> NoReturn:
    """A backend of a machine without a compiler."""
    raise RuntimeError("Failed to find a compiler.")


def told(tmp_path: Path, name: str, *, asked: bool) -> tuple[list[float], list[str]]:
    """Return the losses of a run and its warnings."""
    model, seen = tiny_sd15(tmp_path), list[events.Event]()
    config = tiny_config(model, write_dataset(tmp_path), tmp_path / name, torch_compile=asked, max_train_steps=3)
    train(config, emit=seen.append)
    losses = [event.loss for event in seen if isinstance(event, events.StepDone)]
    return losses, [event.message for event in seen if isinstance(event, events.Warned)]


@pytest.mark.slow
def test_a_compiled_run_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    monkeypatch.setattr(compilation, "BACKEND", looking)
    plain, silence = told(tmp_path, "plain", asked=False)
    assert not SEEN
    assert not any("torch_compile" in message for message in silence)
    losses, warnings = told(tmp_path, "compiled", asked=True)
    assert losses == pytest.approx(plain, rel=1e-5)
    assert any("torch_compile: compiled in" in message for message in warnings)
    products = [node for graph in SEEN for node in graph.graph.nodes if "linear" in str(node.target)]
    assert len(products) > 20, "the blocks went through the compiler as a whole"


def graphs_by_step(tmp_path: Path, *, asked: bool) -> tuple[list[float], set[int]]:
    """Return the losses of a run whose last batch is short, and how many graphs steps had compiled after each."""
    losses, graphs = list[float](), set[int]()

    def note(event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            losses.append(event.loss)
            graphs.add(len(LEARNING))

    short = {"train_batch_size": 5, "enable_bucket": False, "gradient_accumulation_steps": 1, "reg_data_dir": ""}
    config = tiny_config(
        tiny_sd15(tmp_path), write_dataset(tmp_path), tmp_path / str(asked), torch_compile=asked, **short, **VALIDATED
    )
    train(config, emit=note)
    return losses, graphs


@pytest.mark.slow
def test_a_short_batch_is_filled_up_so_that_nothing_is_compiled_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", looking)
    LEARNING.clear()
    plain, _ = graphs_by_step(tmp_path, asked=False)
    losses, graphs = graphs_by_step(tmp_path, asked=True)
    assert losses == pytest.approx(plain, rel=1e-5)
    assert len(graphs) == 1
    assert graphs.pop() > 0


def test_without_a_compiler_it_goes_on_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", broken)
    losses, warnings = told(tmp_path, "out", asked=True)
    assert len(losses) == 3
    (message,) = [message for message in warnings if "torch_compile" in message]
    assert "Failed to find a compiler" in message
    assert message.endswith("training goes on without.")
