"""Validation: on what, when, at what price; what it says; and that it leaves no trace in what is trained."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers import flux
from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.pictures import gradient, write_picture
from tests.helpers.runs import logged, write_dataset
from tests.helpers.runs import validated_config as tiny_config
from trainer import Start, train
from trainer.config import TrainingConfig, load_config
from trainer.ground import events
from trainer.ground.commands import Command, Inbox
from trainer.ground.errors import ConfigError, DataError
from trainer.pictures.batches import Example
from trainer.pictures.buckets import Placement
from trainer.pictures.loader import Batch
from trainer.pictures.report import Picture
from trainer.pictures.scan import scan
from trainer.planning.plan import plan
from trainer.planning.timetable import make_timetable
from trainer.process.draws import Drawing, NoiseOptions, UniformTimesteps
from trainer.process.flow import FlowOptions, Sigmas
from trainer.results.metadata import VALIDATION_ENTRY
from trainer.training.loop import losses_of
from trainer.training.training import Training
from trainer.validation import places
from trainer.validation.judgement import Point, in_words, judge, without_a_better_one
from trainer.validation.measuring import placed
from trainer.validation.schedule import FEWEST_PASSES, PASSES_OF_A_STEP, schedule


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def validated(folder: Path) -> list[dict[str, object]]:
    return [{**each, "time": 0} for each in logged(folder) if each["event"] == "Validated"]


# --- no trace -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"flip_aug": True, "shuffle_caption": True, "caption_dropout_rate": 0.3, "noise_offset": 0.1},
        {"cache_latents": False, "network_type": "lokr", "gradient_checkpointing": True},
        {"cache_text_encoder_outputs": True, "text_encoder_lr": 0.0, "network_type": "oft", "ip_noise_gamma": 0.1},
        {"optimizer_type": "Prodigy", "learning_rate": 1.0, "text_encoder_lr": 1.0, "network_type": "loha"},
    ],
    ids=lambda settings: ", ".join(settings),
)
def test_not_a_bit_of_the_training_changes(
    ground: tuple[Path, Path], tmp_path: Path, settings: dict[str, object]
) -> None:
    (tmp_path / "judged").mkdir()
    write_picture(tmp_path / "judged" / "1_tok class" / "one.png", (96, 64), 50, "tok class, a {red|blue} one")
    for name, more in {
        "with": {"val_data_dir": str(tmp_path / "judged")},
        "without": {"max_validation_share": 0.0},
    }.items():
        train(
            tiny_config(*ground, tmp_path / name, max_train_steps=4, validate_every_n_steps=1, **settings, **more),
            emit=lambda event: None,
        )
    one, other = (load_file(tmp_path / name / "tiny.safetensors") for name in ("with", "without"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    measured = validated(tmp_path / "with" / "tiny.run")
    assert [each["step"] for each in measured if each["on"] == "folder"] == [0, 1, 2, 3, 4]
    assert {each["step"] for each in measured if each["on"] == "table"} >= {0, 4}
    assert not validated(tmp_path / "without" / "tiny.run")


def test_what_is_measured_depends_on_the_model_alone(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """A run that was stopped and resumed has the numbers of one that was not; the base model is measured once."""
    settings = {"max_train_steps": 6, "validate_every_n_steps": 2, "validation_split": 0.2, "save_every_n_steps": 2}
    train(tiny_config(*ground, tmp_path / "straight", **settings), emit=lambda event: None)
    inbox = Inbox()

    def stop(event: events.Event) -> None:
        if isinstance(event, events.Saved) and event.kind == "lora" and event.step == 2:
            inbox.send(Command.STOP)

    train(tiny_config(*ground, tmp_path / "parts", **settings), emit=stop, inbox=inbox)
    train(tiny_config(*ground, tmp_path / "parts", **settings), emit=lambda event: None, start=Start(resume="auto"))
    straight, parts = (validated(tmp_path / name / "tiny.run") for name in ("straight", "parts"))
    assert [each for each in straight if each["on"] == "held_out"] == [
        each for each in parts if each["on"] == "held_out"
    ]
    assert sum(bool(each["base"]) for each in parts) == 2
    base, *later = [each for each in straight if each["on"] == "held_out"]
    assert base["base"] and all(each["loss"] != base["loss"] for each in later)
    with safe_open(tmp_path / "parts" / "tiny.safetensors", "pt") as file:
        entries = file.metadata()
    told = json.loads(entries[VALIDATION_ENTRY])
    assert (told["on"], told["loss"], told["loss_of_the_base_model"]) == ("held_out", later[-1]["loss"], base["loss"])
    assert (entries["ss_validation_split"], entries["ss_num_validation_images"]) == ("0.2", "2")
    with safe_open(tmp_path / "parts" / "tiny-step00000002.safetensors", "pt") as file:
        assert json.loads(file.metadata()[VALIDATION_ENTRY])["loss"] == later[0]["loss"]


def test_a_mask_weights_a_picture_that_is_judged_by(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """One picture is opaque, one is half of it clear, one is clear; without its mask none of that matters."""
    for name, covered in {"opaque": 64, "half": 32, "clear": 0}.items():
        alpha = Image.new("L", (64, 64), 0)
        alpha.paste(255, (0, 0, covered, 64))
        picture = gradient((64, 64), 3)
        picture.putalpha(alpha)
        (tmp_path / "judged" / "1_tok class").mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "judged" / "1_tok class" / f"{name}.png")
    found = []
    for masked in (True, False):
        settings = {"val_data_dir": str(tmp_path / "judged"), "alpha_mask": masked, "max_train_steps": 1}
        train(tiny_config(*ground, tmp_path / str(masked), **settings), emit=lambda event: None)
        base = next(each for each in validated(tmp_path / str(masked) / "tiny.run") if each["on"] == "folder")
        found.append({Path(str(name)).stem: loss for name, loss in dict(base["pictures"]).items()})  # type: ignore[call-overload]
    masked_losses, plain = found
    assert masked_losses["opaque"] == plain["opaque"] > 0
    assert masked_losses["clear"] == 0 < plain["clear"]
    assert 0.2 * plain["half"] < masked_losses["half"] < 0.8 * plain["half"]


def test_a_flow_model_and_datasets_of_several_sizes_and_masks(
    ground: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture goes through the model as many at once as its own dataset has; a resume measures the same."""
    model, pictures = flux.write_files(tmp_path / "model"), str(ground[1] / "train" / "2_tok class")
    datasets = [
        {"batch_size": 3, "subsets": [{"image_dir": pictures}]},
        {"resolution": [96, 96], "batch_size": 1, "subsets": [{"image_dir": pictures, "alpha_mask": True}]},
    ]
    seen: set[tuple[int, int]] = set()

    def watched(training: Training, batch: Batch) -> torch.Tensor:
        if batch.step == 0 and not torch.is_grad_enabled():
            assert batch.mean is not None
            seen.add((len(batch.slots), batch.mean[0, 0].numel()))
        return losses_of(training, batch)

    monkeypatch.setattr("trainer.training.loop.losses_of", watched)
    more = {"datasets": datasets, "train_data_dir": "", "validation_split": 0.2, "save_every_n_steps": 2, **model}
    whole, parts = (tiny_config(*ground, tmp_path / name, max_train_steps=4, **more) for name in ("whole", "parts"))
    train(whole, emit=lambda event: None)
    inbox = Inbox()

    def stop(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 2:
            inbox.send(Command.STOP)

    train(parts, emit=stop, inbox=inbox)
    train(parts, emit=lambda event: None, start=Start(resume="auto"))
    one, other = ([e for e in validated(tmp_path / n / "tiny.run") if e["on"] != "table"] for n in ("whole", "parts"))
    assert one == other
    assert [each["step"] for each in one] == [0, 2, 4]
    assert len({each["loss"] for each in one}) == 3
    large, small = ({count for count, area in seen if (area > 64) is big} for big in (True, False))
    assert large == {1} and small and 1 < max(small) <= 3


def test_patience_ends_the_run_and_saves_it(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """A rate that breaks the model: no validation is better than the first."""
    told: list[events.Event] = []
    settings = {"learning_rate": 5.0, "max_grad_norm": 0.0, "validation_patience": 2, "validate_every_n_steps": 1}
    config = tiny_config(*ground, tmp_path, max_train_steps=40, validation_split=0.2, **settings)
    finished = train(config, emit=told.append)
    assert finished.stopped
    assert finished.step < 40
    assert Path(finished.path).exists()
    assert any("2 validations in a row" in event.message for event in told if isinstance(event, events.Warned))


def test_a_measurement_that_fails_costs_a_notice(
    ground: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise IndexError("index 9 is out of bounds")

    told: list[events.Event] = []
    monkeypatch.setattr("trainer.training.validating.measure", broken)
    finished = train(tiny_config(*ground, tmp_path, max_train_steps=2), emit=told.append)
    assert Path(finished.path).exists()
    assert any("Validation after step 2 failed" in event.message for event in told if isinstance(event, events.Warned))


# --- on which pictures ----------------------------------------------------------------------------------------------


def pictures_in(folder: Path, count: int, name: str = "3_tok class") -> Path:
    for number in range(count):
        write_picture(folder / name / f"{number:02d}.png", (64, 64), number, "tok class")
    return folder


def of(folder: Path, **settings: object) -> TrainingConfig:
    return load_config(overrides={"train_data_dir": str(folder), "resolution": "64,64", "seed": 7, **settings})


@pytest.mark.parametrize(
    ("count", "share", "kept"), [(30, 0.1, 3), (20, 0.1, 2), (5, 0.3, 1), (8, 0.2, 1), (9, 0.1, 0)]
)
def test_a_share_keeps_what_sd_scripts_does_not_train(tmp_path: Path, count: int, share: float, kept: int) -> None:
    folder = pictures_in(tmp_path, count)
    report = scan(of(folder, validation_split=share, validation_seed=3))
    shuffled = sorted(f"{number:02d}.png" for number in range(count))
    random.Random(3).shuffle(shuffled)
    held_out = [picture.path.name for each in report.held_out for picture in each.pictures]
    trained = [picture.path.name for picture in report.train_folders[0].pictures]
    assert sorted(held_out) == sorted(shuffled[count - kept :])
    assert sorted((*held_out, *trained)) == sorted(shuffled)
    words = f"{kept} of {count} pictures are kept for validation" if kept else "keeps no picture for validation"
    assert any(words in notice for notice in report.notices)


def test_a_share_acts_from_so_many_pictures_on(tmp_path: Path) -> None:
    folder = pictures_in(tmp_path, 19)
    few = scan(of(folder, validation_split=0.1, validation_split_min_images=20))
    assert (few.train_images, few.held_out) == (19, ())
    assert any("All 19 pictures are trained" in notice for notice in few.notices)
    write_picture(folder / "3_tok class" / "more.png", (64, 64), 99, "tok class")
    enough = scan(of(folder, validation_split=0.1, validation_split_min_images=20))
    assert enough.train_images == 18


def test_regularisation_pictures_are_never_kept(tmp_path: Path) -> None:
    folder, reg = pictures_in(tmp_path / "a", 10), pictures_in(tmp_path / "b", 10, "1_class")
    report = scan(of(folder, reg_data_dir=str(reg), validation_split=0.5))
    assert (report.train_images, report.reg_images) == (5, 10)


def test_a_folder_of_their_own_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = pictures_in(tmp_path / "a", 3)
    with pytest.raises(ConfigError, match="val_data_dir: .*does not exist"):
        scan(of(folder, val_data_dir=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="val_data_dir: no pictures"):
        scan(of(folder, val_data_dir=str(tmp_path / "empty")))
    whole = scan(of(folder, val_data_dir=str(pictures_in(tmp_path / "c", 4)), validation_split=0.5))
    assert (whole.train_images, sum(len(each.pictures) for each in whole.held_out)) == (3, 4)


def test_the_plan_tells_on_what_and_at_what_price(ground: tuple[Path, Path], tmp_path: Path) -> None:
    long = {"max_train_steps": 4000, "save_every_n_epochs": 0}
    lines = plan(tiny_config(*ground, tmp_path, validation_split=0.2, **long)).lines()
    assert any("2 of 12 pictures are kept for validation" in line for line in lines)
    assert any(line.startswith("Validation: 2 kept pictures at 8 timesteps") for line in lines)
    none = plan(tiny_config(*ground, tmp_path, **long)).lines()
    assert any("training pictures" in line and "no more" in line for line in none if line.startswith("Validation"))
    assert "Validation: off." in plan(tiny_config(*ground, tmp_path, max_validation_share=0.0)).lines()


# --- when, and at what price ----------------------------------------------------------------------------------------


def examples(count: int) -> list[Example]:
    placement = Placement((64, 64), (64, 64), 0, 0, 0.0, False)
    return [Example(Picture(Path(f"a/{n}.png"), (64, 64), "", 1), False, 1, placement, 1.0) for n in range(count)]


@pytest.mark.parametrize("trained", [1, 12, 400])
@pytest.mark.parametrize("judged", [0, 1, 24, 500])
@pytest.mark.parametrize("epochs", [1, 14, 1000])
@pytest.mark.parametrize(
    "more", [{}, {"save_every_n_steps": 1}, {"validate_every_n_steps": 1}, {"train_batch_size": 4}]
)
def test_it_takes_a_twentieth_or_the_least(trained: int, judged: int, epochs: int, more: dict[str, object]) -> None:
    config = load_config(overrides={"max_train_epochs": epochs, "save_every_n_epochs": 5, **more})
    timetable = make_timetable(config, micro_batches=trained * 10)
    made = schedule(config, timetable, examples(judged), examples(trained))
    samples = timetable.total_steps * config.training.train_batch_size
    budget = 0.05 * PASSES_OF_A_STEP * samples
    least = [FEWEST_PASSES * (len(each.moments) + 1) for each in (made.series, made.table)]
    assert made.table.passes <= max(0.3 * budget, least[1])
    assert made.series.passes <= max(budget - min(made.table.passes, 0.3 * budget), least[0])
    assert timetable.total_steps in made.series.moments
    assert made.series.examples and made.table.examples
    if not more and epochs == 14:
        saves = {step for step in range(1, timetable.total_steps + 1) if timetable.lora_names(step)}
        assert saves <= made.series.moments


def test_the_timesteps_stand_for_what_is_trained() -> None:
    low, high = 100, 900
    drawing = Drawing(NoiseOptions(ip_noise_gamma=0.1), UniformTimesteps(low, high))
    drawn = placed(drawing, places.even(8))((8, 4, 8, 8), 0, range(8), seed=1)
    assert drawn.timesteps.tolist() == [150, 250, 350, 450, 550, 650, 750, 850]
    assert drawn.perturbation is None
    for sampling in ("sigma", "uniform", "sigmoid", "shift", "flux_shift"):
        rule = Sigmas(FlowOptions(timestep_sampling=sampling))
        chance = torch.stack([rule(_numbers(seed), (4, 8, 8)) for seed in range(4000)])
        sigmas = torch.stack([rule.at((place + 0.5) / 8, (4, 8, 8)) for place in range(8)])
        expected = torch.quantile(chance, (torch.arange(8) + 0.5) / 8)
        expected = expected.flip(0) if sampling == "sigma" else expected
        torch.testing.assert_close(sigmas, expected, atol=0.03, rtol=0)


def test_the_places_lie_where_the_loss_is_and_weigh_it_whole() -> None:
    losses = [0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]
    found = places.by_loss(losses, 8)
    assert sorted(found) == list(found) and min(found) > 0 and max(found) < 1
    assert sum(place < 0.125 for place in found) == 3  # of eight: 0.8 x 0.4 + 0.2 / 8 of the chance
    mean = sum(weight * losses[int(place * 8)] for place, weight in found.items()) / 8
    assert abs(mean - sum(losses) / 8) < 0.15 * mean
    assert max(places.by_loss([1.0, *[0.0] * 7], 64).values()) <= 1 / places.EVEN_SHARE
    dense = places.by_loss(losses, 4000)
    whole = sum(weight * losses[int(place * 8)] for place, weight in dense.items()) / 4000
    assert abs(whole - sum(losses) / 8) < 1e-3 * whole
    for unusable in ([], [0.0] * 8, [math.nan, 1.0], [math.inf, 1.0]):
        assert places.by_loss(unusable, 8) == places.even(8)


def _numbers(seed: int) -> object:
    from trainer.process.draws import Numbers

    return Numbers(seed, 0, 0)


# --- what it says ---------------------------------------------------------------------------------------------------


def series(*losses: float, pictures: int = 6, noise: float = 0.0) -> list[Point]:
    """Validations of pictures whose own losses differ much more than the series moves."""
    draws = random.Random(1)
    found = []
    for number, loss in enumerate(losses, start=1):
        each = {str(n): loss * (0.5 + n / (pictures - 1)) * (1 + draws.gauss(0, noise)) for n in range(pictures)}
        found.append(Point(number * 10, sum(each.values()) / pictures, each))
    return found


@pytest.mark.parametrize(
    ("losses", "trend", "overfitting", "best"),
    [
        ((1.0, 0.9, 0.8, 0.7, 0.6, 0.55), "falling", False, 60),
        ((1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7), "flat", False, 30),
        ((1.0, 0.8, 0.7, 0.75, 0.8, 0.85), "rising", True, 30),
        ((0.7,), "", False, 10),
        ((1.0, 0.9, 0.8, 0.7, 0.6, 0.9), "", False, 50),
        ((1.21, 1.138, 1.049, 1.004, 1.0, 1.02, 1.012, 1.085, 1.035), "", True, 50),  # restless, and yet it rises
        ((1.21, 1.138, 1.049, 1.004, 1.0, 1.02, 0.994, 1.022, 1.01), "", False, 70),  # restless, and it does not
    ],
)
def test_falling_flat_or_rising(losses: tuple[float, ...], trend: str, overfitting: bool, best: int) -> None:
    said = judge(series(*losses), {point.step for point in series(*losses)})
    assert said.best == best
    assert said.overfitting is overfitting
    if trend:
        assert said.trend == trend


def test_what_lies_within_the_spread_is_as_good_and_no_rise() -> None:
    """Of forty series that go nowhere hardly one is said to go somewhere, and none to overfit."""
    said = []
    for seed in range(40):
        draws = random.Random(seed)
        said.append(judge(series(*(0.7 + draws.gauss(0, 0.01) for _ in range(12)), noise=0.02), range(1000)))
    assert sum(each.trend != "flat" for each in said) <= 4
    assert sum(each.overfitting for each in said) <= 2
    assert sorted(len(each.as_good) for each in said)[20] >= 4


def test_the_words_name_files_only_for_pictures_that_are_not_trained() -> None:
    points = series(1.0, 0.8, 0.7, 0.75, 0.8, 0.85)
    files = {20: "cat-000002.safetensors", 30: "cat-000003.safetensors", 60: "cat.safetensors"}
    said = " ".join(in_words(judge(points, files), files, held_out=True))
    assert "rising" in said and "Overfitting: since step 30" in said and "The best saved file is cat-000003" in said
    plain = " ".join(in_words(judge(points, files), files, held_out=False))
    assert "cat-" not in plain and "not which file" in plain
    assert in_words(judge([], files), files, held_out=True) == ()


def test_patience_counts_from_the_best() -> None:
    assert without_a_better_one(series(1.0, 0.8, 0.9, 0.95)) == 2
    assert without_a_better_one(series(1.0, 0.8)) == 0
    assert without_a_better_one([]) == 0
