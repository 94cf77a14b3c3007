"""A run on its thread: watched through the snapshot, told through the inbox, never taking the program down."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import VALIDATED, RunServer, logged, run_and_die, tiny_config, tiny_settings, write_dataset
from trainer import Run, Start, train
from trainer.config import TrainingConfig, load_config
from trainer.families import vae
from trainer.ground import events
from trainer.ground.commands import Command
from trainer.ground.errors import StateError
from trainer.pictures.latent_cache import ENCODING, LatentCache
from trainer.results import metadata
from trainer.results.run_folder import RunFolder
from trainer.results.snapshot import RunSnapshot
from trainer.training.device import gate_of

MANY_STEPS = 100_000


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def wait_until(run: Run, reached: Callable[[RunSnapshot], bool], seconds: float = 120.0) -> RunSnapshot:
    """Return the first snapshot that fits; fail where the run ends or time is up before."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        snapshot = run.snapshot
        if reached(snapshot):
            return snapshot
        if not run.alive:
            pytest.fail(f"the run ended as {snapshot.status}: {snapshot.error}")
        time.sleep(0.01)
    pytest.fail(f"not reached within {seconds:.0f} s; last: {run.snapshot.status} {run.snapshot.phase}")


def test_a_run_is_watched_stopped_and_resumed(ground: tuple[Path, Path], tmp_path: Path) -> None:
    config = tiny_config(*ground, tmp_path, max_train_steps=MANY_STEPS)
    run = Run(config)
    run.start()
    before = wait_until(run, lambda seen: seen.step >= 2)
    assert before.active
    assert before.total_steps == MANY_STEPS
    run.send(Command.STOP)
    run.join(60)
    ended = run.snapshot
    assert (ended.status, run.alive) == ("stopped", False)
    assert ended.finished is not None
    assert Path(ended.finished.path).exists()
    again = Run(config, Start(resume="auto"))
    again.start()
    wait_until(again, lambda seen: seen.step > ended.step)
    again.send(Command.ABORT)
    again.join(60)
    steps = [record["step"] for record in logged(tmp_path / "tiny.run") if record["event"] == "StepDone"]
    assert steps == list(range(1, len(steps) + 1))


def test_pause_changes_nothing(ground: tuple[Path, Path], tmp_path: Path) -> None:
    straight, paused = (tiny_config(*ground, tmp_path / name, max_train_steps=12) for name in ("straight", "paused"))
    train(straight, emit=lambda event: None)
    run = Run(paused)
    run.start()
    wait_until(run, lambda seen: seen.step >= 1)
    run.send(Command.PAUSE)
    held = wait_until(run, lambda seen: seen.status == "paused")
    time.sleep(0.5)
    assert run.snapshot.step == held.step < 12
    run.send(Command.RESUME)
    run.join(60)
    assert run.snapshot.status == "finished"
    one, other = (load_file(tmp_path / name / "tiny.safetensors") for name in ("straight", "paused"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_save_and_sample_on_demand(ground: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = "tok class --w 64 --h 64 --s 2 --d 1"
    run = Run(tiny_config(*ground, tmp_path, max_train_steps=MANY_STEPS, sample_prompts=prompts))
    run.start()
    wait_until(run, lambda seen: seen.step >= 1)
    run.send(Command.SAVE_NOW)
    run.send(Command.SAMPLE_NOW)
    seen = wait_until(run, lambda seen: bool(seen.samples) and bool(seen.saved))
    assert Path(seen.samples[0].path).stat().st_size > 0
    assert Path(seen.saved[0].path).name == f"tiny-step{seen.saved[0].step:08d}.safetensors"
    run.send(Command.ABORT)
    run.join(60)
    assert run.snapshot.status == "stopped"
    assert not (tmp_path / "tiny.safetensors").exists()


def test_the_model_file_is_hashed_when_steps_begin(
    ground: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    monkeypatch.setattr(metadata, "hash_ahead", lambda path: happened.append(f"hash {path}"))
    config = tiny_config(*ground, tmp_path, max_train_steps=2)
    train(config, emit=lambda event: happened.append(getattr(event, "name", type(event).__name__)))
    steps = [number for number, each in enumerate(happened) if each == "StepDone"]
    stages = [number for number, each in enumerate(happened) if each == ENCODING]
    begun = [number for number, each in enumerate(happened) if each == f"hash {ground[0]}"]
    assert len(begun) == 1 and max(stages) < begun[0] < min(steps)


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_vae_is_told_from_others_only_for_files_of_latents(
    on_disk: bool, ground: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, keys, fill = list[object](), list[str](), LatentCache.fill

    def noted(cache: LatentCache, examples: object, encode: object, key: str, *rest: object) -> None:
        keys.append(key)
        fill(cache, examples, encode, key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(LatentCache, "fill", noted)
    monkeypatch.setattr(vae, "fingerprint", lambda module: read.append(module) or "key")
    settings = {"cache_latents_to_disk": on_disk, **VALIDATED, "validation_split": 0.5}
    train(tiny_config(*ground, tmp_path, max_train_steps=1, **settings), emit=lambda event: None)
    assert keys == 2 * (["key"] if on_disk else [""])
    assert len(read) == on_disk


def test_stop_is_obeyed_while_caching(ground: tuple[Path, Path], tmp_path: Path) -> None:
    run = Run(tiny_config(*ground, tmp_path))
    run.send(Command.STOP)
    run.start()
    run.send(Command.STOP)
    run.join(60)
    assert run.snapshot.status == "stopped"
    assert not (tmp_path / "tiny.safetensors").exists()


def test_an_error_is_text_and_the_next_run_works(ground: tuple[Path, Path], tmp_path: Path) -> None:
    run = Run(tiny_config(tmp_path / "gone.safetensors", ground[1], tmp_path))
    run.start()
    run.join(60)
    assert run.snapshot.status == "failed"
    assert run.snapshot.error is not None
    assert "gone.safetensors" in run.snapshot.error.message
    assert run.snapshot.error.remedy
    told: list[events.Event] = []
    assert not train(tiny_config(*ground, tmp_path, max_train_steps=1), emit=told.append).stopped


def test_two_runs_to_one_output_are_refused(ground: tuple[Path, Path], tmp_path: Path) -> None:
    config = tiny_config(*ground, tmp_path, max_train_steps=MANY_STEPS)
    run = Run(config)
    run.start()
    wait_until(run, lambda seen: seen.step >= 1)
    run.send(Command.PAUSE)
    wait_until(run, lambda seen: seen.status == "paused")
    with pytest.raises(StateError, match="another run"):
        train(config, emit=lambda event: None, start=Start(resume="auto"))
    run.send(Command.ABORT)
    run.join(60)


def test_the_device_has_one_run_and_a_paused_one_gives_it_up(ground: tuple[Path, Path], tmp_path: Path) -> None:
    config = tiny_config(*ground, tmp_path, max_train_steps=MANY_STEPS, output_name="first")
    run = Run(config, Start(by="started in the page"))
    run.start()
    wait_until(run, lambda seen: seen.step >= 1)
    other = tiny_settings(*ground, tmp_path / "other", max_train_steps=MANY_STEPS)
    with pytest.raises(StateError, match=r"in use: training 'first', started in the page \(process \d+") as refusal:
        train(load_config(overrides=other), emit=lambda event: None)
    assert "--wait" in refusal.value.remedy
    assert not (tmp_path / "other").exists()

    run.send(Command.PAUSE)
    held = wait_until(run, lambda seen: seen.status == "paused")
    process = RunServer().context.Process(target=run_and_die, args=(other, "", None))
    process.start()
    log = tmp_path / "other" / "tiny.run" / "events.jsonl"
    wait_until(run, lambda seen: log.is_file() and '"StepDone"' in log.read_text())
    run.send(Command.RESUME)
    wait_until(run, lambda seen: seen.phase == "waiting for the device")
    assert "in use by training 'tiny', started at the terminal" in run.snapshot.warnings[-1]
    process.kill()  # its lock dies with it
    process.join()
    wait_until(run, lambda seen: seen.step > held.step)
    run.send(Command.ABORT)
    run.join(60)


def test_a_run_that_may_wait_begins_when_the_device_is_free(ground: tuple[Path, Path], tmp_path: Path) -> None:
    gate = gate_of(torch.device("cpu"), "drawing pictures", "a test")
    gate.take()
    run = Run(tiny_config(*ground, tmp_path, max_train_steps=2), Start(wait=True))
    run.start()
    wait_until(run, lambda seen: seen.phase == "waiting for the device")
    gate.leave()
    run.join(60)
    assert run.snapshot.status == "finished"


@pytest.mark.parametrize(
    "settings",
    [
        {"network_train_unet_only": True},
        {"network_train_text_encoder_only": True},
        {"text_encoder_lr": 0},
        {"conv_dim": 2, "conv_alpha": 1.0},
        {"mixed_precision": "bf16", "gradient_checkpointing": True},
        {"cache_latents": False, "max_data_loader_n_workers": 1},
        {"cache_latents_to_disk": True, "flip_aug": True},
        {"max_token_length": 150, "clip_skip": 2, "optimizer_type": "Lion", "lr_scheduler": "polynomial"},
        {"optimizer_type": "Adafactor", "reg_data_dir": "REG", "prior_loss_weight": 0.5, "loss_type": "huber"},
    ],
)
def test_settings_that_change_the_wiring(
    ground: tuple[Path, Path], tmp_path: Path, settings: dict[str, object]
) -> None:
    if "reg_data_dir" in settings:
        settings = {**settings, "reg_data_dir": str(ground[1] / "reg")}
    config = tiny_config(*ground, tmp_path, max_train_steps=3, **settings)
    told: list[events.Event] = []
    train(config, emit=told.append)
    written = load_file(tmp_path / "tiny.safetensors")
    parts = {"unet": any("lora_unet" in key for key in written), "text": any("lora_te" in key for key in written)}
    assert parts["unet"] != bool(settings.get("network_train_text_encoder_only"))
    frozen_text = bool(settings.get("network_train_unet_only")) or settings.get("text_encoder_lr") == 0
    assert parts["text"] != frozen_text
    assert any("conv1" in key for key in written) == ("conv_dim" in settings)
    changed = [key for key, value in written.items() if key.endswith("lora_up.weight") and float(value.abs().max()) > 0]
    assert len(changed) > 10
    assert sum(isinstance(event, events.StepDone) for event in told) == 3


def test_going_on_from_a_lora_file(ground: tuple[Path, Path], tmp_path: Path) -> None:
    first = tiny_config(*ground, tmp_path, output_name="first", max_train_steps=3)
    train(first, emit=lambda event: None)
    start = str(tmp_path / "first.safetensors")
    second = tiny_config(
        *ground,
        tmp_path,
        max_train_steps=1,
        learning_rate=0.0,
        text_encoder_lr=0.0,
        unet_lr=1e-12,
        network_weights=start,
        network_dim=16,
        dim_from_weights=True,
    )
    train(second, emit=lambda event: None)
    one, other = load_file(tmp_path / "first.safetensors"), load_file(tmp_path / "tiny.safetensors")
    assert all(torch.allclose(one[key], value, atol=1e-6) for key, value in other.items())
    assert any(float(value.abs().max()) > 0 for key, value in other.items() if key.endswith("lora_up.weight"))


def test_the_folder_tells_of_the_run(ground: tuple[Path, Path], tmp_path: Path) -> None:
    config: TrainingConfig = tiny_config(*ground, tmp_path, max_train_steps=2)
    train(config, emit=lambda event: None)
    folder = RunFolder(tmp_path, "tiny")
    assert {path.name for path in folder.path.iterdir()} >= {"config.toml", "events.jsonl", "dataset.json", "state"}
    kinds = [record["event"] for record in logged(folder.path)]
    assert kinds[0] == "Started"
    assert kinds[-1] == "Finished"
    assert kinds.count("StepDone") == 2


def test_text_encoders_stop_and_the_rest_goes_on(ground: tuple[Path, Path], tmp_path: Path) -> None:
    told: list[events.Event] = []
    settings = {"stop_text_encoder_training": 2, "save_every_n_steps": 2, "save_every_n_epochs": None}
    finished = train(tiny_config(*ground, tmp_path, **settings), emit=told.append)
    then, now = load_file(tmp_path / "tiny-step00000002.safetensors"), load_file(finished.path)
    text = [key for key in now if key.startswith("lora_te") and "lora_" in key.partition(".")[2]]
    assert len(text) > 4
    assert all(torch.equal(then[key], now[key]) for key in text)
    assert any(then[key].any() for key in text if "lora_up" in key)
    assert not any(torch.equal(then[key], now[key]) for key in now if "unet" in key and "lora_up" in key)
    rates = [event.lr["text_encoder"] for event in told if isinstance(event, events.StepDone)]
    assert [bool(rate) for rate in rates] == [True, True, False, False, False, False]


def test_loras_merged_into_the_model_count_from_the_first_step(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """The first loss is that of going on from the LoRA; half of it twice is all of it; the file is a LoRA beside it."""
    config = tiny_config(*ground, tmp_path / "base", max_train_steps=4, learning_rate=1e-2)
    base = Path(train(config, emit=lambda event: None).path)

    def first(name: str, **settings: object) -> float:
        told: list[events.Event] = []
        train(tiny_config(*ground, tmp_path / name, max_train_steps=1, **settings), emit=told.append)
        return next(event.loss for event in told if isinstance(event, events.StepDone))

    gone_on = first("on", network_weights=str(base))
    merged = first("merged", base_weights=[str(base)])
    halves = first("halves", base_weights=[str(base), str(base)], base_weights_multiplier=[0.5, 0.5])
    assert abs(first("without") - gone_on) > 1e-4
    assert merged == pytest.approx(gone_on, rel=1e-5)
    assert halves == pytest.approx(gone_on, rel=1e-5)
    said = safe_open(tmp_path / "merged" / "tiny.safetensors", "pt").metadata()["trainer_config"]
    assert 'base_weights"' not in said
    assert str(base.parent) not in said
