"""Fit to my card: down one list, the least loss of speed first, until the forecast is small enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.loading import write_sdxl
from tests.helpers.families import TINY
from tests.helpers.pictures import write_picture
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.advice import saving_memory
from trainer.config import TrainingConfig, load_config
from trainer.forecast import asking, tracing
from trainer.forecast.__main__ import fit
from trainer.forecast.forecast import GB, Forecast
from trainer.ground.errors import ConfigError
from trainer.planning.plan import Plan
from trainer.training import failures

UNET_ALONE = {"network_train_unet_only": True, "text_encoder_lr": 0.0}


def changed_from(settings: dict[str, object], values: saving_memory.Values) -> TrainingConfig | None:
    """Return the settings with other values."""
    try:
        return load_config(overrides={**settings, **values})
    except ConfigError:
        return None


def test_the_list_is_gone_down_one_by_one() -> None:
    settings: dict[str, object] = {"train_batch_size": 4, "cache_latents": False, "vae_batch_size": 2}
    rungs = [
        values
        for values, _ in saving_memory.ladder(
            load_config(overrides=settings), lambda values: changed_from(settings, values)
        )
    ]
    assert rungs[0] == {"cache_latents": True}
    assert rungs[3] == {
        "cache_latents": True,
        "vae_batch_size": 1,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 4,
    }
    news = [set(after.items()) - set(before.items()) for before, after in zip(rungs[3:], rungs[4:], strict=False)]
    assert news == [
        {("gradient_checkpointing", True)},
        {("streamed_weights", 0.5)},
        {("quantize_base", "int8")},
        {("streamed_weights", 1.0)},
        {("quantize_base", "nf4")},
    ]


def test_captions_are_encoded_ahead_where_that_changes_nothing() -> None:
    def first(**changed: object) -> saving_memory.Values:
        settings = {"cache_latents": True, **changed}
        config = load_config(overrides=settings)
        return next(saving_memory.ladder(config, lambda values: changed_from(settings, values)))[0]

    ahead = {"cache_text_encoder_outputs": True}
    assert first(**UNET_ALONE) == ahead
    assert "turn on cache_text_encoder_outputs" in saving_memory.remedies(load_config(overrides=UNET_ALONE))
    assert first() != ahead, "a text encoder learns"
    for changed in ({"shuffle_caption": True}, {"enable_wildcard": True}, {"cache_text_encoder_outputs_to_disk": True}):
        assert first(**UNET_ALONE, **changed) != ahead, changed
    assert first(**UNET_ALONE, token_warmup_step=10) != ahead, "a rule forbids it"
    forbidden = load_config(overrides={**UNET_ALONE, "token_warmup_step": 10})
    assert "turn on cache_text_encoder_outputs" not in saving_memory.remedies(forbidden)


def test_what_contradicts_other_settings_is_left_out() -> None:
    settings: dict[str, object] = {"color_aug": True, "cache_latents": False, "torch_compile": True}
    last = [
        values
        for values, _ in saving_memory.ladder(
            load_config(overrides=settings), lambda values: changed_from(settings, values)
        )
    ][-1]
    assert not {"cache_latents", "streamed_weights"} & last.keys()
    assert last["quantize_base"] == "nf4"


def test_an_error_names_what_is_left_of_the_list() -> None:
    config = load_config(overrides={"train_batch_size": 2, "quantize_base": "nf4", "streamed_weights": 1.0})
    told = failures.out_of_memory("no more", config)
    assert "lower train_batch_size (and raise gradient_accumulation_steps to match)" in told.remedy
    assert "quantize_base" not in told.remedy and "streamed_weights" not in told.remedy
    least = failures.out_of_memory("no more", config, least=True)
    assert "To need less: lower resolution." in least.remedy
    assert "the last state is kept" not in told.remedy, "where memory ran out before the first step there is none"


def test_settings_are_found_that_take_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, trace = dict[str, Forecast](), tracing.trace

    def once(seen: Plan) -> Forecast:
        """All three go down one list: what was traced for one is known to the others."""
        key = asking.key_of(seen)
        if key not in known:
            known[key] = trace(seen)
        return known[key]

    monkeypatch.setattr(tracing, "trace", once)
    ground = write_dataset(tmp_path / "pictures")
    model = TINY["sdxl"].write_file(tmp_path / "sdxl.safetensors")
    settings = tiny_settings(model, ground, tmp_path / "out", train_batch_size=4)
    config = load_config(overrides=settings)
    whole = fit(config, settings, 10**12)
    assert whole.fits and not whole.values
    found = fit(config, settings, round(0.9 * whole.forecast.peak))
    assert found.fits and found.forecast.peak <= 0.9 * whole.forecast.peak
    assert "train_batch_size" in found.values
    none = fit(config, settings, 1)
    assert not none.fits and none.values["quantize_base"] == "nf4"
    assert none.forecast.peak < found.forecast.peak and len(found.values) < len(none.values)


@pytest.mark.thorough
@pytest.mark.parametrize("card", [6, 8, 12])
def test_sdxl_fits_cards_of_a_few_gigabytes(tmp_path: Path, card: int) -> None:
    write_picture(tmp_path / "pictures" / "1_tok" / "a.png", (1024, 1024), 0, "tok")
    settings: dict[str, object] = {
        "pretrained_model_name_or_path": str(write_sdxl(tmp_path / "sdxl.safetensors")),
        "train_data_dir": str(tmp_path / "pictures"),
        "output_dir": str(tmp_path / "out"),
        "resolution": "1024,1024",
        "mixed_precision": "bf16",
        "network_dim": 16,
        "network_alpha": 16.0,
        **UNET_ALONE,
    }
    found = fit(load_config(overrides=settings), settings, round(card * GB))
    assert found.fits and found.forecast.peak <= card * GB
    assert "quantize_base" not in found.values or card < 8, "more is given up than need be"
