"""What fails while training is told in words, the state of the last finished step is kept, and the run can go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demo.build.single_file import write_single_file
from tests.helpers.checkpoints import tiny_modules, tiny_sd15
from tests.helpers.mishaps import Mishap, MishapServer
from tests.helpers.runs import VALIDATED, logged, tiny_config, tiny_settings, write_dataset
from trainer import train
from trainer.ground import events
from trainer.ground.errors import RunError, StateError
from trainer.results.event_log import read_events
from trainer.results.run_folder import RunFolder
from trainer.run import Start
from trainer.training import failures
from trainer.training.metrics import SKIPPED_LIMIT
from trainer.training.states import load_newest, load_state

LAST = 3
"""The step after which the mishaps happen. No state is due by then: what is found was saved by the failure."""

posix = pytest.mark.skipif(sys.platform == "win32", reason="limits and permissions of a POSIX system")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


@pytest.fixture(scope="module")
def server() -> MishapServer:
    return MishapServer()


def settings_of(ground: tuple[Path, Path], output: Path, **settings: object) -> dict[str, object]:
    return tiny_settings(*ground, output, **{"cache_latents": False, **settings})


@pytest.fixture(scope="module")
def straight(ground: tuple[Path, Path], server: MishapServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the run to which nothing happens."""
    output = tmp_path_factory.mktemp("straight") / "out"
    assert server.run(settings_of(ground, output)) == 0
    return output


def state_step(output: Path) -> int:
    state = load_newest(output / "tiny.run" / "state", pytest.fail)
    return state.position.step if state else 0


def assert_same(one: Path, other: Path) -> None:
    """The files hold the same bits, and the log tells of each step once."""
    expected, found = load_file(one / "tiny.safetensors"), load_file(other / "tiny.safetensors")
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    steps = [[r["step"] for r in logged(output / "tiny.run") if r["event"] == "StepDone"] for output in (one, other)]
    assert steps[0] == steps[1]


def last_failure(output: Path) -> events.Failed:
    event = list(read_events(output / "tiny.run" / "events.jsonl"))[-1]
    assert isinstance(event, events.Failed)
    return event


@posix
def test_pictures_that_vanish(server: MishapServer, ground: tuple[Path, Path], tmp_path: Path, straight: Path) -> None:
    shutil.copytree(ground[1], tmp_path / "data")
    settings = settings_of((ground[0], tmp_path / "data"), tmp_path / "out")
    told = server.suffer(settings, Mishap("no pictures", LAST))
    assert told["kind"] == "DataError"
    assert str(tmp_path / "data") in told["message"]
    assert last_failure(tmp_path / "out").message == told["message"]
    assert state_step(tmp_path / "out") == LAST
    for away in (tmp_path / "data").rglob("*.away"):
        away.rename(away.with_suffix(""))
    assert server.run(settings, resume="auto") == 0
    assert_same(straight, tmp_path / "out")


@posix
def test_a_full_disk(server: MishapServer, ground: tuple[Path, Path], tmp_path: Path, straight: Path) -> None:
    """A limit on the size of files, which the system enforces as it does a quota."""
    settings = settings_of(ground, tmp_path / "out", save_every_n_steps=LAST + 1)
    told = server.suffer(settings, Mishap("no disk", LAST))
    assert told["kind"] == "RunError"
    assert "disk is full" in told["message"]
    assert "MB" in told["message"]
    assert last_failure(tmp_path / "out").message == told["message"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny.run"], "nothing half written is left"
    assert server.run(settings, resume="auto") == 0
    assert_same(straight, tmp_path / "out")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or subprocess.run(mounting, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting needs rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_without_a_byte_left(
    server: MishapServer, ground: tuple[Path, Path], small_disk: Path, straight: Path
) -> None:
    """Not even the log can be written: no last word there, and still the error is told."""
    settings = settings_of(ground, small_disk / "out")
    (small_disk / "out").mkdir()
    told = server.suffer(settings, Mishap("full mount", LAST))
    assert told["kind"] == "RunError"
    assert "full" in told["message"]
    (small_disk / "out" / "filler").unlink()
    assert server.run(settings, resume="auto") == 0
    assert_same(straight, small_disk / "out")


@posix
def test_a_folder_that_becomes_read_only(
    server: MishapServer, ground: tuple[Path, Path], tmp_path: Path, straight: Path
) -> None:
    settings = settings_of(ground, tmp_path / "out")
    told = server.suffer(settings, Mishap("no permission", LAST))
    assert told["kind"] == "RunError"
    assert "state" in told["message"]
    (tmp_path / "out" / "tiny.run" / "state").chmod(0o755)
    assert server.run(settings, resume="auto") == 0
    assert_same(straight, tmp_path / "out")


LARGE: dict[str, Any] = {"resolution": "384,384", "enable_bucket": False, "train_batch_size": 3, **VALIDATED}
"""Steps that take hundreds of megabytes, and all the same."""


@posix
@pytest.mark.slow
def test_memory_runs_out(server: MishapServer, ground: tuple[Path, Path], tmp_path: Path) -> None:
    settings = settings_of(ground, tmp_path / "out", **LARGE, max_train_steps=2, step_down_on_out_of_memory=False)
    told = server.suffer(settings, Mishap("no memory", 1))
    assert told["kind"] == "RunError"
    assert told["message"].startswith("Out of memory")
    assert "GiB" in told["message"]
    assert "gradient_checkpointing" in told["remedy"]
    assert "train_batch_size" in told["remedy"]
    assert state_step(tmp_path / "out") == 1
    easier = {**settings, "train_batch_size": 1, "gradient_accumulation_steps": 3, "gradient_checkpointing": True}
    assert server.run(easier, resume="auto") == 0
    steps = [record["step"] for record in logged(tmp_path / "out" / "tiny.run") if record["event"] == "StepDone"]
    assert steps == [1, 2]


def test_what_a_failed_step_held_is_gone_before_the_state_is_saved(ground: tuple[Path, Path], tmp_path: Path) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def watch(event: events.Event) -> None:
        if isinstance(event, events.StepDone):
            activations = torch.zeros(8)
            held.append(weakref.ref(activations))
            raise MemoryError
        if isinstance(event, events.Saved) and event.kind == "state":
            alive.append(held[0]() is not None)

    with pytest.raises(RunError, match="^Out of memory"):
        train(tiny_config(*ground, tmp_path / "out"), emit=watch)
    assert alive == [False]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set to what Linux says is in use")
@pytest.mark.slow
def test_with_less_memory_the_step_is_done_again_in_portions(
    server: MishapServer, ground: tuple[Path, Path], tmp_path: Path
) -> None:
    """As small as the limit makes them: same losses, same LoRA; told, and kept in the state."""
    more = {**LARGE, "max_validation_share": 0.0, "max_train_steps": 3, "lr_scheduler": "constant"}
    straight = settings_of(ground, tmp_path / "straight", **more)
    assert server.run(straight) == 0
    settings = {**straight, "output_dir": str(tmp_path / "out")}
    server.endure({**settings, **VALIDATED, "max_train_steps": 2}, Mishap("little memory", 1))
    micro_batch_size = load_state(
        max((tmp_path / "out" / "tiny.run" / "state").glob("step-*"))
    ).position.micro_batch_size
    assert micro_batch_size is not None
    assert micro_batch_size.samples < LARGE["train_batch_size"]
    assert server.run(settings, resume="auto") == 0
    expected, found = (losses_of(tmp_path / name) for name in ("straight", "out"))
    assert found.keys() == expected.keys() == {1, 2, 3}
    assert found == pytest.approx(expected, rel=1e-5)
    log = read_events(tmp_path / "out" / "tiny.run" / "events.jsonl")
    told = [event.message for event in log if isinstance(event, events.Warned)]
    assert any(text.startswith("Step 2 ran out of memory") for text in told)
    assert f"Memory ran out before: going on with {micro_batch_size}." in told
    one, other = (load_file(tmp_path / name / "tiny.safetensors") for name in ("straight", "out"))
    assert all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-5) for key in one)


def losses_of(output: Path) -> dict[int, float]:
    """Return the loss of every step that the log has."""
    return {record["step"]: record["loss"] for record in logged(output / "tiny.run") if record["event"] == "StepDone"}


def test_a_latent_cache_that_vanishes(server: MishapServer, ground: tuple[Path, Path], tmp_path: Path) -> None:
    settings = settings_of(ground, tmp_path / "out", cache_latents=True, cache_latents_to_disk=True)
    told = server.suffer(settings, Mishap("no cache", LAST))
    assert (told["kind"], state_step(tmp_path / "out")) == ("DataError", LAST)
    assert "cache_latents_to_disk" in told["message"]
    assert server.run(settings, resume="auto") == 0


def test_gradients_that_are_no_numbers(
    ground: tuple[Path, Path], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A UNet with one NaN among its weights: no gradient is ever finite, no weight of the LoRA ever moves."""
    unet, vae, text_encoder = tiny_modules()
    with torch.no_grad():
        unet.conv_in.weight[0, 0, 0, 0] = float("nan")
    broken = tmp_path / "broken.safetensors"
    write_single_file(broken, unet, vae, text_encoder, dtype=torch.float32)
    told: list[events.Event] = []
    with pytest.raises(RunError, match=f"None of the {SKIPPED_LIMIT} steps had a gradient") as caught:
        train(
            tiny_config(broken, ground[1], tmp_path / "out", max_train_epochs=4, max_train_steps=None), emit=told.append
        )
    assert "another one" in caught.value.remedy
    assert "mixed_precision" not in caught.value.remedy, "it is no already"
    assert [str(each.message) for each in recwarn if "lr_scheduler" in str(each.message)] == []
    steps = [event for event in told if isinstance(event, events.StepDone)]
    assert all(event.skipped for event in steps)
    warnings = [event.message for event in told if isinstance(event, events.Warned)]
    assert sum("was skipped" in text for text in warnings) == SKIPPED_LIMIT
    for line in (tmp_path / "out" / "tiny.run" / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    state = load_newest(tmp_path / "out" / "tiny.run" / "state", pytest.fail)
    assert state is not None
    assert state.position.step == SKIPPED_LIMIT
    assert not any(tensor.any() for key, tensor in state.adapter.items() if "lora_up" in key)
    assert not (tmp_path / "out" / "tiny.safetensors").exists()


def test_what_is_a_lack_of_memory() -> None:
    cpu = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError(cpu),
        RuntimeError("CUDA error: out of memory"),
    ):
        assert failures.is_out_of_memory(error)
    assert failures.is_out_of_memory(RuntimeError("could not create a primitive"))
    for text in ("shapes differ", "could not create a primitive descriptor for a convolution"):
        assert not failures.is_out_of_memory(RuntimeError(text))


def test_pictures_of_bad_steps_are_listed_by_how_often() -> None:
    error = failures.not_finite(30, 20, Counter({"a.png": 3, "b.png": 20}), "bf16")
    assert "b.png (in 20), a.png (in 3)" in error.message
    assert "Lower learning_rate, set mixed_precision to no or look for" in error.remedy
    assert "Lower learning_rate or look" in failures.not_finite(30, 20, Counter({"a.png": 3}), "no").remedy


@posix
@pytest.mark.parametrize("name", ["state", "samples", "events.jsonl", "config.toml", "dataset.json", "lock", ""])
def test_links_out_of_the_runs_folder_are_refused(ground: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    """Also by --overwrite, which would empty what a link leads to."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "state").mkdir(parents=True)
    (elsewhere / "state" / "precious").write_text("keep me")
    link = tmp_path / "out" / "tiny.run" / name
    link.parent.mkdir(parents=True) if name else (tmp_path / "out").mkdir()
    link.symlink_to(elsewhere / name if name in ("", "state") else elsewhere / "state" / "precious")
    with pytest.raises(StateError, match="is a link"):
        train(tiny_config(*ground, tmp_path / "out"), emit=lambda event: None, start=Start(overwrite=True))
    assert (elsewhere / "state" / "precious").read_text() == "keep me"


@posix
def test_a_state_with_links_inside_is_none(tmp_path: Path) -> None:
    state = RunFolder(tmp_path, "tiny").state / "step-00000004"
    state.mkdir(parents=True)
    for name in ("adapter.safetensors", "optimizer.pt", "state.json"):
        (state / name).symlink_to("/dev/zero")
    with pytest.raises(StateError, match="is a link"):
        load_state(state)
