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


def told(tmp_path: Path, **settings: object) -> tuple[list[float], list[str], set[int]]:
    """Return a run's losses and warnings, and how many graphs steps had compiled after each.

    Its last batch is short, and it is validated: neither may have anything compiled for it in a step's way.
    """
    seen, graphs = list[events.Event](), set[int]()

    def note(event: events.Event) -> None:
        seen.append(event)
        if isinstance(event, events.StepDone):
            graphs.add(len(LEARNING))

    short = {"train_batch_size": 5, "enable_bucket": False, "gradient_accumulation_steps": 1, "reg_data_dir": ""}
    output = tmp_path / str(settings["torch_compile"])
    config = tiny_config(tiny_sd15(tmp_path), write_dataset(tmp_path), output, **{**short, **settings})
    train(config, emit=note)
    losses = [event.loss for event in seen if isinstance(event, events.StepDone)]
    return losses, [event.message for event in seen if isinstance(event, events.Warned)], graphs


@pytest.mark.slow
def test_a_compiled_run_learns_the_same_and_nothing_is_compiled_for_a_short_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SEEN.clear()
    LEARNING.clear()
    monkeypatch.setattr(compilation, "BACKEND", looking)
    plain, silence, _ = told(tmp_path, torch_compile=False, **VALIDATED)
    assert not SEEN
    assert not any("torch_compile" in message for message in silence)
    losses, warnings, graphs = told(tmp_path, torch_compile=True, **VALIDATED)
    assert losses == pytest.approx(plain, rel=1e-5)
    assert any("torch_compile: compiled in" in message for message in warnings)
    products = [node for graph in SEEN for node in graph.graph.nodes if "linear" in str(node.target)]
    assert len(products) > 20, "the blocks went through the compiler as a whole"
    assert len(graphs) == 1
    assert graphs.pop() > 0


def test_without_a_compiler_it_goes_on_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", broken)
    losses, warnings, _ = told(tmp_path, torch_compile=True, max_train_steps=3)
    assert len(losses) == 3
    (message,) = [message for message in warnings if "torch_compile" in message]
    assert "Failed to find a compiler" in message
    assert message.endswith("training goes on without.")
