"""What is told of steps whose numbers come late: the same, in the same order, and nothing is left out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from demo.build.single_file import write_single_file
from tests.helpers.checkpoints import tiny_modules, tiny_sd15
from tests.helpers.optimizers import groups, set_gradients
from tests.helpers.runs import tiny_config, write_dataset
from trainer import train
from trainer.ground import events
from trainer.ground.errors import RunError
from trainer.optimizers import OPTIMIZERS
from trainer.optimizers.adamw import AdamW
from trainer.training import metrics
from trainer.training.metrics import SKIPPED_LIMIT, Metrics
from trainer.training.states import State, load_state


def entry(step: int) -> events.StepDone:
    return events.StepDone(step=step, epoch=1, loss=math.nan, average_loss=math.nan, lr={}, seconds=0.1)


def note(book: Metrics, step: int, loss: float, norm: float = 1.0) -> None:
    book.note(entry(step), [f"{step}.png"], torch.tensor(loss), torch.tensor(norm))


def test_a_gpus_steps_are_told_one_late_and_all_at_the_end() -> None:
    told: list[events.Event] = []
    book = Metrics(told.append, window=2, device=torch.device("cuda"), scaled=False, precision="no")
    for step, loss in enumerate([4.0, 2.0, 1.0], 1):
        note(book, step, loss)
        assert [event.step for event in told] == list(range(1, step))
    book.settle()
    assert [(event.step, event.loss, event.average_loss) for event in told] == [(1, 4, 4), (2, 2, 3), (3, 1, 1.5)]
    assert list(book.losses) == [2, 1]
    assert book.epoch_losses == [4, 2, 1]


def test_steps_that_are_skipped_are_counted_named_and_end_it() -> None:
    told: list[events.Event] = []
    book = Metrics(told.append, window=9, device=torch.device("cpu"), scaled=False, precision="no")
    note(book, 1, 0.5)
    note(book, 2, math.nan, math.inf)
    assert isinstance(told[-1], events.Warned)
    assert "Step 2 was skipped" in told[-1].message
    assert "2.png" in told[-1].message
    note(book, 3, 0.5)
    assert [event.skipped for event in told if isinstance(event, events.StepDone)] == [False, True, False]
    assert list(book.losses) == [0.5, 0.5]
    with pytest.raises(RunError, match=f"up to step {SKIPPED_LIMIT + 3}"):
        for step in range(4, 99):
            note(book, step, math.nan, math.nan)


def test_a_loss_scalers_search_is_nothing_to_tell_of() -> None:
    told: list[events.Event] = []
    book = Metrics(told.append, window=9, device=torch.device("cpu"), scaled=True, precision="fp16")
    for step in range(1, 4):
        note(book, step, 0.5, math.inf)
    assert not any(isinstance(event, events.Warned) for event in told)


def last_state(output: Path) -> State:
    return load_state(max((output / "tiny.run" / "state").glob("step-*")))


def story(model: Path, data: Path, output: Path) -> list[tuple[object, ...]]:
    told: list[events.Event] = []
    settings = {"save_every_n_steps": 2, "sample_prompts": "tok --w 64 --h 64 --s 2", "sample_every_n_steps": 3}
    train(tiny_config(model, data, output, **settings), emit=told.append)
    kinds = (events.StepDone, events.EpochDone, events.Saved, events.SampleReady, events.Finished)
    return [
        (type(event).__name__, event.step, getattr(event, "loss", None), getattr(event, "average_loss", None))
        for event in told
        if isinstance(event, kinds)
    ]


def test_a_run_told_late_tells_the_same_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_sd15(tmp_path), write_dataset(tmp_path)
    at_once = story(model, data, tmp_path / "once")
    monkeypatch.setattr(metrics, "steps_behind", lambda device: 1)
    assert story(model, data, tmp_path / "late") == at_once
    states = [last_state(tmp_path / name) for name in ("once", "late")]
    assert states[0].position.losses == states[1].position.losses
    assert all(torch.equal(tensor, states[1].adapter[key]) for key, tensor in states[0].adapter.items())


def test_a_run_told_late_stops_where_no_gradient_is_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, vae, text_encoder = tiny_modules()
    with torch.no_grad():
        unet.conv_in.weight[0, 0, 0, 0] = float("nan")
    broken = tmp_path / "broken.safetensors"
    write_single_file(broken, unet, vae, text_encoder, dtype=torch.float32)
    monkeypatch.setattr(metrics, "steps_behind", lambda device: 1)
    monkeypatch.setattr(metrics, "SKIPPED_LIMIT", 3)
    with pytest.raises(RunError, match="None of the 3 steps had"):
        train(
            tiny_config(broken, write_dataset(tmp_path), tmp_path / "out", save_every_n_steps=50, max_train_steps=9),
            emit=lambda event: None,
        )
    state = last_state(tmp_path / "out")
    assert state.position.step == 4, "the one under way when the third was told of"
    assert not any(tensor.any() for key, tensor in state.adapter.items() if "lora_up" in key)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_an_update_held_up_on_the_device_changes_no_bit(amsgrad: bool) -> None:
    """The fused kernel as a GPU runs it, here on the CPU: held up it does nothing, let through it is a plain step."""
    options = [f"amsgrad={amsgrad}"]
    ours, plain = (AdamW.build(groups(1e-2), options) for _ in range(2))
    for step in range(6):
        finite = step not in (0, 3)
        set_gradients(ours, step)
        AdamW.gated_step(ours, torch.tensor(finite))
        if finite:
            set_gradients(plain, step)
            plain.step()
    for mine, theirs in zip(*(each.param_groups for each in (ours, plain)), strict=True):
        for one, other in zip(mine["params"], theirs["params"], strict=True):
            assert torch.equal(one, other)
            assert all(torch.equal(value, plain.state[other][name]) for name, value in ours.state[one].items())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_leaves_weights_and_state(name: str) -> None:
    kind = OPTIMIZERS[name]
    optimizer = kind.build(groups(1.0 if kind.one_rate else 1e-3))
    set_gradients(optimizer, 0)
    kind.step(optimizer, torch.tensor(True))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    weights = [parameter.detach().clone() for parameter in parameters]
    state = repr(optimizer.state_dict())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, math.nan)
    kind.step(optimizer, torch.tensor(False))
    assert all(torch.equal(parameter, weight) for parameter, weight in zip(parameters, weights, strict=True))
    assert repr(optimizer.state_dict()) == state
