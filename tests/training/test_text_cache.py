"""Captions encoded ahead: the same numbers as encoding them in each step, and the encoders are out of memory."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers.families import TINY
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.config import load_config
from trainer.families.text.tokens import Tokens
from trainer.ground.commands import Inbox
from trainer.ground.control import progress_of
from trainer.ground.errors import ConfigError, DataError
from trainer.ground.events import Event, SampleReady, Stage, StepDone
from trainer.pictures.captions import CaptionRules, choose, prepared, variants
from trainer.planning.plan import plan
from trainer.results.run_folder import RunFolder
from trainer.training import build, loop
from trainer.training.text_cache import TextCache
from trainer.training.training import Training

AHEAD = {"cache_text_encoder_outputs": True}
DISK = {"cache_text_encoder_outputs_to_disk": True}


@dataclass(frozen=True)
class Ground:
    model: Path
    dataset: Path
    output: Path

    def run(self, output: str, **settings: object) -> tuple[Training, list[Event]]:
        """Train SDXL's UNet alone, with a sample at the end, in a folder of this name."""
        told: list[Event] = []
        inbox = Inbox()
        progress = progress_of(told.append, inbox)
        given = {"network_train_unet_only": True, "max_train_steps": 4, "save_every_n_epochs": None, **settings}
        config = load_config(overrides=tiny_settings(self.model, self.dataset, self.output / output, **given))
        folder = RunFolder(Path(config.saving.output_dir), config.saving.output_name)
        folder.make()
        models = build.load_models(config, progress)
        training = build.build(plan(config), models, folder, (told.append, inbox, progress), None)
        loop.train(training)
        return training, told


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("ground")
    return Ground(TINY["sdxl"].write_file(folder / "x.safetensors"), write_dataset(folder), folder / "out")


def losses(told: list[Event]) -> list[float]:
    return [event.loss for event in told if isinstance(event, StepDone)]


def test_the_same_losses_without_the_encoders(ground: Ground) -> None:
    plain, told = ground.run("plain", caption_dropout_rate=0.3)
    assert plain.bundle.components.keys() == {"unet", "text_encoder", "text_encoder_2"}
    for name, settings in (("ahead", AHEAD), ("disk", DISK), ("disk", DISK)):
        training, again = ground.run(name, caption_dropout_rate=0.3, **settings)
        assert losses(again) == losses(told)
        assert training.bundle.components.keys() == {"unet"}
    assert list((ground.output / "disk" / "text_cache").glob("*.safetensors"))


def test_samples_need_no_encoders_and_are_the_same(ground: Ground) -> None:
    prompt = {"sample_prompts": "tok class, big --s 2 --d 1 --w 64 --h 64", "sample_every_n_steps": 4}
    pictures = []
    for name, settings in (("plain sample", {}), ("sample ahead", AHEAD)):
        training, told = ground.run(name, **prompt, **settings)
        pictures += [Path(event.path).read_bytes() for event in told if isinstance(event, SampleReady)]
        assert ("text_encoder" in training.bundle.components) == (not settings)
    assert len(pictures) == 2
    assert pictures[0] == pictures[1]


def test_shuffled_captions_have_variants_encoded_ahead(ground: Ground) -> None:
    training, told = ground.run("variants", shuffle_caption=True, keep_tokens=1, caption_variants=3, **AHEAD)
    totals = {event.total for event in told if isinstance(event, Stage) and event.name == "caching captions"}
    assert len(totals) == 1
    assert 12 * 2 < totals.pop() <= 12 * 3 + 1, "three draws of each caption, some of them alike, and the empty one"
    assert training.bundle.components.keys() == {"unet"}
    again = ground.run("variants again", shuffle_caption=True, keep_tokens=1, caption_variants=3, **AHEAD)[1]
    assert losses(again) == losses(told)


def test_variants_are_draws_and_a_step_sees_one() -> None:
    raw, rules = "tok, a, b, c, d, e, f, g", CaptionRules(shuffle_caption=True, keep_tokens=1, caption_dropout_rate=0.5)
    texts = prepared(raw, rules, count=6, seed=3, index=0)
    assert len(texts) == 6
    assert all(sorted(text.split(", ")) == [*"abcdefg", "tok"] and text[:3] == "tok" for text in texts)
    assert texts == prepared(raw, rules, count=6, seed=3, index=0)
    assert texts != prepared(raw, rules, count=6, seed=3, index=1)
    seen = [choose(texts, rules, rng=random.Random(number), epoch=1) for number in range(400)]
    assert set(seen) == {*texts, ""}
    assert 150 < seen.count("") < 250


def test_captions_that_chance_leaves_alone_are_one_text() -> None:
    rules = CaptionRules(caption_dropout_rate=0.5, caption_prefix="by me")
    assert prepared("a, b", rules, count=8, seed=0, index=0) == ("by me a, b",)
    assert variants("a, b", rules) == ("by me a, b", "")


def test_a_torn_file_is_made_anew_before_and_an_error_after(tmp_path: Path) -> None:
    calls = []

    def tokenize(text: str) -> dict[str, dict[str, torch.Tensor]]:
        return {"clip": {"ids": torch.tensor([len(text), ord(text[0])])}}

    def encode(tokens: Tokens) -> dict[str, torch.Tensor]:
        calls.append(tokens)
        return {"context": tokens["clip"]["ids"].float() * 2}

    def filled() -> TextCache:
        cache = TextCache(tmp_path)
        cache.fill(["one", "two"], tokenize, encode, "key", lambda *_: None)
        return cache

    assert torch.equal(filled()["two"]["context"], torch.tensor([6.0, 232.0]))
    assert len(calls) == 2
    path = sorted(tmp_path.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:20])
    cache = filled()
    assert len(calls) == 3
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"gone or damaged\. Resume"):
        [cache[name] for name in cache]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, "cache_text_encoder_outputs"),
        ({"network_train_unet_only": True, "token_warmup_step": 10}, "token_warmup_step"),
    ],
)
def test_what_cannot_be_encoded_ahead_is_refused(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides={**AHEAD, **settings})
    assert key in {problem.key for problem in caught.value.problems}
    assert load_config(overrides={**AHEAD, "text_encoder_lr": 0.0})
