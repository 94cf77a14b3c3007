"""A forecast against the same step with numbers in it: every storage that a real step makes and frees is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers import flux
from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.families import TINY
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.config import load_config
from trainer.families.reading.stored import shapes_alone
from trainer.forecast import tracing
from trainer.forecast.forecast import Forecast
from trainer.forecast.ledger import Ledger, bytes_of
from trainer.forecast.shapes import Shapes
from trainer.ground.commands import Inbox
from trainer.ground.control import Control
from trainer.planning.plan import Plan, plan
from trainer.results.run_folder import RunFolder
from trainer.targets import DENOISER, TEXT, Part
from trainer.training import build, loop, precision

WITHIN = 0.02
"""How far a forecast may be from what a real step takes."""

HALF = {"mixed_precision": "bf16"}
AGAIN = {"gradient_checkpointing": True}
UNET_ALONE = {"network_train_unet_only": True, "text_encoder_lr": 0.0}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a folder for what is made."""
    return write_dataset(tmp_path_factory.mktemp("forecast"))


@pytest.fixture(scope="module")
def models(ground: Path) -> Mapping[str, Path]:
    """A tiny model of each kind of denoiser."""

    return {
        "sd15": tiny_sd15(ground),
        "sdxl": TINY["sdxl"].write_file(ground / "sdxl.safetensors"),
        "flux": flux.write_checkpoint(ground / "flux" / "flux.safetensors"),
    }


def peak_of_a_real_step(seen: Plan) -> tuple[int, int]:
    """Return the most bytes of storages in a second step of the largest batch, and those of the optimizer's state."""
    config, inbox = seen.config, Inbox()
    control = Control(lambda event: None, inbox)
    folder = RunFolder(Path(config.saving.output_dir), config.saving.output_name)
    try:
        models = build.load_models(config, control, seen.recognition)
        training = build.build(seen, models, folder, (lambda event: None, inbox, control), None)
        training.prepare()
        loader = training.batches
        batch = loader.source.batch(tracing.chosen_batches(loader)[0])  # type: ignore[attr-defined]
        if not training.text_learns:
            for each in seen.examples:
                training.texts._recall(each.picture.caption)
        loop.accumulate(training, [batch])
        loop.update(training, torch.ones(()))
        state = [value for each in training.optimizer.state.values() for value in each.values()]
        kept = bytes_of(value for value in state if isinstance(value, torch.Tensor))
        ledger = tracing.holding(training)
        ledger.add(tracing.OPTIMIZER, kept)
        ledger.add(tracing.LATENTS, tracing._latent_bytes(training))
        ledger.hold(tracing.CAPTIONS, [v for row in training.texts._remembered.values() for v in row.values()])
        with ledger:
            ledger.begin()
            tracing.step(training, batch)
        return ledger.peak, kept
    finally:
        precision.reset()


def step_of(found: Forecast) -> tuple[int, int]:
    """Return the largest step's peak, and the optimizer's share of it."""
    phase = max((each for each in found.phases if "step" in each.name), key=lambda each: each.peak)
    return phase.peak, phase.held[tracing.OPTIMIZER]


@pytest.mark.parametrize(
    ("model", "changed"),
    [
        ("sd15", {"train_batch_size": 4}),
        ("sd15", {**AGAIN, **UNET_ALONE, "train_batch_size": 1, "optimizer_type": "Prodigy", "learning_rate": 1.0}),
        ("sdxl", {**UNET_ALONE, "train_batch_size": 4}),
        ("sdxl", {**HALF, **AGAIN, "train_batch_size": 1}),
        ("sdxl", {**HALF, **UNET_ALONE, "quantize_base": "int8", "optimizer_type": "AdamW8bit"}),
        ("flux", {**HALF, **UNET_ALONE, "train_batch_size": 1}),
        ("flux", {**AGAIN, **UNET_ALONE, "train_batch_size": 4, "quantize_base": "nf4"}),
    ],
)
def test_forecast_is_what_a_real_step_takes(
    models: Mapping[str, Path], ground: Path, tmp_path: Path, model: str, changed: Mapping[str, object]
) -> None:
    seen = plan(load_config(overrides=tiny_settings(models[model], ground, tmp_path, **changed)))
    forecast, optimizer = step_of(tracing.trace(seen))
    real, kept = peak_of_a_real_step(seen)
    assert abs(forecast / real - 1) < WITHIN, (forecast, real)
    assert abs(optimizer / kept - 1) < WITHIN


def test_ledger_counts_a_storage_once_and_until_it_is_freed() -> None:
    ledger, count = Ledger(), 1000
    with ledger:
        first = torch.zeros(count)
        view = first.view(10, 100)
        ledger.hold("elsewhere", [view])
        second = first + 1
        assert ledger.now == 2 * 4 * count
        del second
        assert (ledger.now, ledger.peak) == (4 * count, 2 * 4 * count)
        ledger.begin()
        del first
        assert ledger.now == 4 * count, "a view keeps it"
        del view
    assert (ledger.now, ledger.peak) == (0, 4 * count)


def test_what_writes_into_a_tensor_is_worked_out_once_and_gives_it_back() -> None:
    calls: list[str] = []

    class Watched:
        def __init__(self, func: Any) -> None:
            self._func, self._schema, self.tags = func, func._schema, func.tags

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(self._schema.name)
            return self._func(*args, **kwargs)

    shapes, aten = Shapes(), torch.ops.aten
    add, turn = Watched(aten.addmm_.default), Watched(aten.t_.default)
    for _ in range(3):
        made, first, second = (torch.empty(shape, device="meta") for shape in ((4, 6), (4, 2), (2, 6)))
        assert shapes.call(add, (made, first, second), {}) is made
        assert shapes.call(turn, (first,), {}).shape == (2, 4), "its shape is another then: it is called each time"
    assert calls == ["aten::addmm_", "aten::t_", "aten::t_", "aten::t_"]
    numbers = torch.zeros(2, 2), torch.ones(2, 2), torch.ones(2, 2)
    for expected in (2.0, 4.0):
        assert shapes.call(add, numbers, {})[0, 0] == expected, "numbers are computed"


def test_no_initial_values_are_drawn(
    models: Mapping[str, Path], ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_given: object, **_named: object) -> None:
        raise AssertionError("a forecast has no use for it")

    monkeypatch.setattr(torch.Tensor, "uniform_", refuse)
    with tracing.precision_left_alone(), shapes_alone():
        tracing.wired(plan(load_config(overrides=tiny_settings(models["sd15"], ground, tmp_path))))


def test_text_encoders_make_room_for_the_vae_beside_streamed_weights(
    models: Mapping[str, Path], ground: Path, tmp_path: Path
) -> None:
    found = {}
    for share in (0.0, 1.0):
        changed = {"streamed_weights": share, "cache_latents": True}
        seen = plan(load_config(overrides=tiny_settings(models["sdxl"], ground, tmp_path, **changed)))
        found[share] = {phase.name: phase for phase in tracing.trace(seen).phases}
    names = ("weights of Text encoder", "weights of Text encoder 2")
    for share, there in ((0.0, True), (1.0, False)):
        held = found[share]["while pictures are encoded"].held
        assert all((name in held) is there for name in names), (share, held)
        step = next(phase for name, phase in found[share].items() if "step" in name)
        assert all(name in step.held for name in names), "they come back"


def test_text_encoders_stay_where_loras_were_merged_into_the_model(
    models: Mapping[str, Path], ground: Path, tmp_path: Path
) -> None:
    """Loaded again they would lack what was merged, so a run keeps them."""
    changed = {**UNET_ALONE, "cache_text_encoder_outputs": True}
    seen = plan(load_config(overrides=tiny_settings(models["sdxl"], ground, tmp_path, **changed)))
    merged = seen.config.network.model_copy(update={"base_weights": ("style.safetensors",)})
    for each, there in ((seen, False), (replace(seen, config=replace(seen.config, network=merged)), True)):
        step = next(phase for phase in tracing.trace(each).phases if "step" in phase.name)
        assert ("weights of Text encoder" in step.held) is there


def test_text_encoders_leave_the_device_and_come_back() -> None:
    moves: list[object] = []

    class Watched(torch.nn.Linear):
        def to(self, device: object) -> Watched:  # type: ignore[override]
            moves.append(device)
            return self

    encoder, unet = Watched(2, 2), torch.nn.Linear(2, 2)
    parts = (Part("unet", DENOISER, "UNet", ""), Part("text_encoder", TEXT, "Text encoder", ""))
    for streamed in (None, object()):
        bundle = SimpleNamespace(
            streamed=streamed, components={"unet": unet, "text_encoder": encoder}, device=torch.device("meta")
        )
        training = SimpleNamespace(bundle=bundle, plan=SimpleNamespace(parts=parts))
        with pytest.raises(ZeroDivisionError), build.text_encoders_aside(training):  # type: ignore[arg-type]
            assert moves == ([] if streamed is None else ["cpu"])
            raise ZeroDivisionError
    assert moves == ["cpu", torch.device("meta")]
    encoder.streamed = True  # type: ignore[assignment]
    with build.text_encoders_aside(training):  # type: ignore[arg-type]
        assert len(moves) == 2, "its blocks come and go by themselves"
