"""Resuming with changes: what they do is said before it starts, what cannot be is refused, what was said happens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.families import TINY
from tests.helpers.pictures import write_picture
from tests.helpers.runs import logged, tiny_config, write_dataset
from trainer import train
from trainer.config import TrainingConfig, known_settings, load_config, to_flat
from trainer.ground import events
from trainer.ground.errors import StateError
from trainer.planning.plan import plan
from trainer.results.contents import fingerprint
from trainer.results.resumption import Earlier, Resumption, compare, look_ahead
from trainer.results.run_folder import RunFolder
from trainer.run import Start


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def config_of(ground: tuple[Path, Path], output: Path, **settings: object) -> TrainingConfig:
    return tiny_config(*ground, output, **{"max_train_steps": None, "max_train_epochs": 10, **settings})


def compared(
    ground: tuple[Path, Path], tmp_path: Path, before: dict[str, object], after: dict[str, object]
) -> Resumption:
    """Compare a run stopped after step 60 of 120 with one of other settings."""
    old, new = (plan(config_of(ground, tmp_path, **settings)) for settings in (before, after))
    pictures = frozenset(str(picture.path) for folder in old.report.folders for picture in folder.pictures)
    earlier = Earlier(60, to_flat(old.config), old.timetable.total_steps, old.timetable.steps_per_epoch, pictures)
    return compare(earlier, new.config, new.timetable, new.report, new.parts)


def test_every_setting_that_another_value_means_something_to_is_said(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """Whatever is declared: one change of the one setting and nothing else of the run, or none where it is free."""
    seen = plan(config_of(ground, tmp_path))
    for setting in known_settings().values():
        earlier = Earlier(6, {**to_flat(seen.config), setting.key: "another"}, seen.timetable.total_steps)
        changes = compare(earlier, seen.config, seen.timetable, seen.report, seen.parts).changes
        said = [change.text for change in changes if change.text.startswith(f"{setting.key} another -> ")]
        assert len(said) == (setting.resume != "free"), setting.key
        assert any(change.about == "obstacle" for change in changes) == (setting.resume == "fixed"), setting.key


def test_nothing_changed_is_exact(ground: tuple[Path, Path], tmp_path: Path) -> None:
    found = compared(ground, tmp_path, {}, {"save_every_n_epochs": 2, "sample_prompts": "a cat"})
    assert found.exact
    assert found.lines() == ["Going on after step 60 exactly as the run would have."]


@pytest.mark.parametrize(
    ("before", "after", "about", "said"),
    [
        ({}, {"max_train_epochs": 14}, "schedule", "Steps in all 120 -> 168: 108 are left instead of 60."),
        ({}, {"max_train_epochs": 14}, "schedule", "The rate of unet at step 61 is 0.0007169 instead of 0.0005"),
        ({}, {"learning_rate": 2e-3}, "schedule", "The rate of unet at step 61 is 0.001 instead of 0.0005"),
        ({}, {"lr_scheduler": "constant"}, "schedule", "lr_scheduler cosine -> constant."),
        ({}, {"train_batch_size": 4}, "data", "Steps in an epoch 12 -> 6: step 60 was at epoch 5.0 and counts as"),
        ({}, {"seed": 8}, "data", "seed 7 -> 8: pictures and noise are another series"),
        ({}, {"gradient_checkpointing": True}, "settings", "False -> True: the same from step 61 on but for rounding."),
        ({}, {"min_snr_gamma": 5.0}, "settings", "min_snr_gamma not set -> 5.0: holds from step 61 on."),
        ({}, {"network_dim": 8}, "obstacle", "network_dim 4 -> 8: the saved state does not fit that."),
        ({}, {"optimizer_type": "Lion"}, "obstacle", "optimizer_type AdamW -> Lion"),
        ({}, {"text_encoder_lr": 0}, "obstacle", "Trained parts unet, text_encoder -> unet"),
        ({}, {"max_train_epochs": 4}, "obstacle", "48 steps are planned, but the state is from after step 60."),
    ],
)
def test_what_a_change_does_is_said(
    ground: tuple[Path, Path],
    tmp_path: Path,
    before: dict[str, object],
    after: dict[str, object],
    about: str,
    said: str,
) -> None:
    found = compared(ground, tmp_path, {"lr_scheduler": "cosine", **before}, {"lr_scheduler": "cosine", **after})
    texts = [change.text for change in found.changes if change.about == about]
    assert any(said in text for text in texts), found.lines()
    assert not found.exact
    if about == "obstacle":
        with pytest.raises(StateError, match="resume") as caught:
            found.check()
        ways = {
            "plan for more steps" in caught.value.remedy.lower(),
            "set these back" not in caught.value.remedy.lower(),
        }
        assert ways == {"max_train_epochs" in after}
    else:
        found.check()
        assert "another run than was begun" in found.lines()[-1]


@pytest.mark.parametrize(
    ("after", "about", "said"),
    [
        ([5e-5, 5e-5], "obstacle", "Trained parts unet, text_encoder -> unet, text_encoder, text_encoder_2"),
        ([0, 0], "obstacle", "Trained parts unet, text_encoder -> unet:"),
    ],
)
def test_a_second_text_encoder_that_joins_is_an_obstacle(
    tmp_path: Path, after: list[float], about: str, said: str
) -> None:
    two = TINY["sdxl"].write_file(tmp_path / "sdxl.safetensors"), write_dataset(tmp_path)
    found = compared(two, tmp_path, {"text_encoder_lr": [5e-5, 0]}, {"text_encoder_lr": after})
    assert any(said in change.text for change in found.changes if change.about == about), found.lines()
    changed = compared(two, tmp_path, {"text_encoder_lr": [5e-5, 2e-5]}, {"text_encoder_lr": [5e-5, 1e-5]})
    assert any(change.text.startswith("The rate of text_encoder_2 at step 61") for change in changed.changes)
    assert not any(change.text.startswith("The rate of text_encoder at") for change in changed.changes)


def test_more_pictures_are_said(ground: tuple[Path, Path], tmp_path: Path) -> None:
    seen = plan(config_of(ground, tmp_path))
    pictures = frozenset([str(ground[1] / "train" / "2_tok class" / "00.png"), "gone.png"])
    earlier = Earlier(6, to_flat(seen.config), seen.timetable.total_steps, seen.timetable.steps_per_epoch, pictures)
    found = compare(earlier, seen.config, seen.timetable, seen.report, seen.parts)
    assert [change.text for change in found.changes] == [
        "Pictures 2 -> 12 (11 new, 1 gone): from here on every epoch has another order."
    ]


def test_another_lora_to_begin_from_says_nothing_to_a_run_that_goes_on(
    ground: tuple[Path, Path], tmp_path: Path
) -> None:
    seen = plan(config_of(ground, tmp_path))
    earlier = Earlier(6, {**to_flat(seen.config), "network_weights": "a"}, seen.timetable.total_steps)
    changes = compare(earlier, seen.config, seen.timetable, seen.report, seen.parts).changes
    assert [change.text for change in changes] == [
        "network_weights a -> not set: without effect, the state's matrices count."
    ]


def test_a_run_goes_on_with_changes_as_was_said(tmp_path: Path) -> None:
    """Two steps at a small rate, then two at ten times that and a picture more; the window could have asked first."""
    ground = tiny_sd15(tmp_path), write_dataset(tmp_path / "data")
    constant = {"max_train_epochs": None, "lr_scheduler": "constant", "text_encoder_lr": 0.0}
    first = config_of(ground, tmp_path / "out", max_train_steps=2, learning_rate=1e-4, **constant)
    train(first, emit=lambda event: None)
    folder = RunFolder(tmp_path / "out", "tiny")
    write_picture(ground[1] / "train" / "2_tok class" / "new.png", (64, 64), 77)
    second = config_of(
        ground, tmp_path / "out", max_train_steps=4, learning_rate=1e-3, optimizer_args=["weight_decay=0.5"], **constant
    )
    seen = plan(second)
    asked = look_ahead(folder, second, seen.timetable, seen.report, seen.parts)
    assert asked is not None
    told: list[events.Event] = []
    train(second, emit=told.append, start=Start(resume="auto"))
    warnings = [event.message.removeprefix("Resuming: ") for event in told if isinstance(event, events.Warned)]
    assert [line for line in asked.lines() if line not in warnings] == []
    assert any("1 new, 0 gone" in line for line in warnings)
    begun = next(index for index, event in enumerate(told) if isinstance(event, events.Started))
    assert any(isinstance(event, events.Warned) for event in told[:begun]), "said before it starts"
    rates = [record["lr"]["unet"] for record in logged(folder.path) if record["event"] == "StepDone"]
    assert rates == [1e-4, 1e-4, 1e-3, 1e-3]
    state = torch.load(max(folder.state.glob("step-*")) / "optimizer.pt", weights_only=True)
    assert [group["weight_decay"] for group in state["optimizer"]["param_groups"]] == [0.5]


def test_what_does_not_fit_is_refused_and_leaves_the_run_alone(ground: tuple[Path, Path], tmp_path: Path) -> None:
    config = config_of(ground, tmp_path, max_train_epochs=None, max_train_steps=1)
    train(config, emit=lambda event: None)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = config_of(ground, tmp_path, max_train_epochs=None, max_train_steps=3, network_dim=8, network_alpha=8.0)
    with pytest.raises(StateError, match="network_dim 4 -> 8"):
        train(other, emit=lambda event: None, start=Start(resume="auto"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_model_of_another_family_is_refused_and_leaves_the_run_alone(
    ground: tuple[Path, Path], tmp_path: Path
) -> None:
    """Both are recognised by their files, so that no setting says it."""
    config = config_of(ground, tmp_path / "out", max_train_epochs=None, max_train_steps=1, network_train_unet_only=True)
    train(config, emit=lambda event: None)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    model = TINY["sdxl"].write_file(tmp_path / "sdxl.safetensors")
    other = load_config(overrides={**to_flat(config), "pretrained_model_name_or_path": str(model)})
    with pytest.raises(StateError, match="does not fit this model and network: lora_unet_"):
        train(other, emit=lambda event: None, start=Start(resume="auto"))
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_a_run_with_ranks_from_a_file_goes_on(ground: tuple[Path, Path], tmp_path: Path) -> None:
    train(config_of(ground, tmp_path, max_train_epochs=None, max_train_steps=1), emit=lambda event: None)
    weights = {"network_weights": str(tmp_path / "tiny.safetensors"), "dim_from_weights": True, "network_dim": 16}
    settings = {"max_train_epochs": None, "output_name": "second", **weights}
    train(config_of(ground, tmp_path, **settings, max_train_steps=2), emit=lambda event: None)
    told: list[events.Event] = []
    train(config_of(ground, tmp_path, **settings, max_train_steps=3), emit=told.append, start=Start(resume="auto"))
    assert [event.step for event in told if isinstance(event, events.StepDone)] == [3]


def resumed_notes(ground: tuple[Path, Path], output: Path, steps: int, **settings: object) -> list[str]:
    told: list[events.Event] = []
    more = {"max_train_epochs": None, "lr_scheduler": "constant", "max_train_steps": steps, **settings}
    start = Start(resume="auto" if steps > 1 else "")
    train(config_of(ground, output, **more), emit=told.append, start=start)
    notes = [event.message for event in told if isinstance(event, events.Warned)]
    return [text for text in notes if "is not the file that it was" in text or "not what they were" in text]


def test_the_order_of_a_files_metadata_makes_it_no_other_file(tmp_path: Path) -> None:
    tensors, texts = {"a": torch.arange(4.0)}, {f"ss_{number}": "x" for number in range(12)}
    prints, contents = set(), set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path, metadata=texts)
        prints.add(fingerprint(path))
        contents.add(path.read_bytes())
    assert len(contents) > 1, "written in one order now"
    assert len(prints) == 1
    save_file({"a": torch.arange(4.0) + 1}, path, metadata=texts)
    os.utime(path, ns=(1, 1))
    assert fingerprint(path) not in prints
    save_file(tensors, path, metadata={**texts, "ss_0": "y"})
    os.utime(path, ns=(2, 2))
    assert fingerprint(path) not in prints


def test_another_model_under_the_same_path_is_told(tmp_path: Path) -> None:
    ground = tiny_sd15(tmp_path), write_dataset(tmp_path)
    assert resumed_notes(ground, tmp_path, 1) == []
    tiny_sd15(tmp_path)
    assert resumed_notes(ground, tmp_path, 2) == []
    tiny_sd15(tmp_path, seed=1)
    (note,) = resumed_notes(ground, tmp_path, 3)
    assert "pretrained_model_name_or_path tiny_sd15.safetensors is not the file that it was: up to step 2" in note
    assert resumed_notes(ground, tmp_path, 4) == []


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_another_file_in_a_models_folder_is_told(tmp_path: Path, part: str) -> None:
    folder = TINY["sd15"].write_folder(tmp_path / "model")
    ground = folder, write_dataset(tmp_path)
    assert resumed_notes(ground, tmp_path, 1) == []
    weights = next((folder / part).glob("*.safetensors"))
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1e-3}, weights)
    assert len(resumed_notes(ground, tmp_path, 2)) == 1
    assert resumed_notes(ground, tmp_path, 3) == []


def test_another_vae_or_lora_to_begin_from_is_told(tmp_path: Path) -> None:
    ground = tiny_sd15(tmp_path), write_dataset(tmp_path)
    (tmp_path / "other").mkdir()
    vae = tiny_sd15(tmp_path / "other")
    assert resumed_notes(ground, tmp_path, 1, output_name="first") == []
    lora = tmp_path / "first.safetensors"
    settings = {"vae": str(vae), "network_weights": str(lora)}
    assert resumed_notes(ground, tmp_path, 1, **settings) == []
    tiny_sd15(tmp_path / "other", seed=1)
    tensors = load_file(lora)
    save_file({name: tensor * 2 if "lora_down" in name else tensor for name, tensor in tensors.items()}, lora)
    notes = resumed_notes(ground, tmp_path, 2, **settings)
    assert len(notes) == 2
    assert any("vae" in text and "up to step 1" in text for text in notes)
    assert any("network_weights" in text and "without effect" in text for text in notes)


def test_pictures_and_captions_that_were_changed_are_told(tmp_path: Path) -> None:
    ground = tiny_sd15(tmp_path), write_dataset(tmp_path)
    pictures = ground[1] / "train" / "2_tok class"
    assert resumed_notes(ground, tmp_path, 1) == []
    for path in pictures.iterdir():
        path.touch()
    assert resumed_notes(ground, tmp_path, 2) == [], "what was only touched is the same"
    bitmap = bytearray((pictures / "03.bmp").read_bytes())
    bitmap[-1] ^= 1
    (pictures / "03.bmp").write_bytes(bitmap)
    (pictures / "04.txt").write_text("another caption")
    notes = resumed_notes(ground, tmp_path, 3)
    assert any("Pictures that are not what they were: 1 (03.bmp)" in text for text in notes)
    assert any("Captions of pictures that are not what they were: 1 (04.png)" in text for text in notes)
    assert len(notes) == 2
    assert resumed_notes(ground, tmp_path, 4) == []


def test_the_window_is_told_too_and_an_older_state_is_none_the_worse(tmp_path: Path) -> None:
    ground = tiny_sd15(tmp_path), write_dataset(tmp_path)
    assert resumed_notes(ground, tmp_path, 1) == []
    tiny_sd15(tmp_path, seed=1)
    config = config_of(ground, tmp_path, max_train_epochs=None, lr_scheduler="constant", max_train_steps=2)
    seen, folder = plan(config), RunFolder(tmp_path, "tiny")
    ahead = look_ahead(folder, config, seen.timetable, seen.report, seen.parts)
    assert ahead is not None
    assert [change.about for change in ahead.changes if "not the file" in change.text] == ["models"]
    path = next(folder.state.glob("step-*/state.json"))
    record = json.loads(path.read_text())
    for key in ("contents", "learned", "sampled"):
        del record[key]
    path.write_text(json.dumps(record))
    folder.contents.unlink()
    assert resumed_notes(ground, tmp_path, 2) == []


def test_a_large_file_is_told_by_samples_from_all_over_it(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    size = 40 << 20
    with open(path, "wb") as file:
        file.truncate(size)
    prints = {fingerprint(path)}
    for at in (0, 1 << 19, size // 3, size - 1):
        with open(path, "r+b") as file:
            file.seek(at - at % (1 << 18))
            file.write(os.urandom(1 << 20) if at < size - 1 else b"")
            if at == size - 1:
                file.seek(at)
                file.write(b"x")
        prints.add(fingerprint(path))
    assert len(prints) == 5
