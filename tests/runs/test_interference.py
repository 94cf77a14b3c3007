"""What people, power cuts and strangers do to a run's folder: an exact way on, or one clear refusal; nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.families import TINY
from tests.helpers.mishaps import Mishap, MishapServer
from tests.helpers.runs import logged, tiny_settings, write_dataset
from trainer import train
from trainer.__main__ import COMPLETED, FAILED, REFUSED, listen, main
from trainer.config import load_config
from trainer.ground import events
from trainer.ground.commands import Inbox
from trainer.ground.files import sha256_of
from trainer.settings.toml import encoded

STEPS, STATE_EVERY = 6, 2

Capture = pytest.CaptureFixture[str]
posix = pytest.mark.skipif(sys.platform == "win32", reason="links, signals and such names need a POSIX system")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small checkpoint, and pictures that make epochs of two steps."""
    folder = tmp_path_factory.mktemp("ground")
    model = TINY["sd15"].write_file(folder / "model.safetensors")
    pictures = write_dataset(folder) / "train" / "2_tok class"
    pictures.rename(pictures.with_name("1_tok class"))
    return model, folder


def settings_of(ground: tuple[Path, Path], output: Path, **settings: object) -> dict[str, object]:
    return tiny_settings(*ground, output, **{"max_train_steps": STEPS, "train_batch_size": 8, **settings})


def trained(settings: Mapping[str, object], folder: Path, *arguments: str) -> int:
    """Train as the command line does and return the exit code."""
    path = folder / "RUN.toml"
    path.write_text("\n".join(f"{key} = {encoded(value)}" for key, value in settings.items()) + "\n", "utf-8")
    return main(["train", str(path), *arguments])


@pytest.fixture(scope="module")
def straight(ground: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the run that nobody touches."""
    folder = tmp_path_factory.mktemp("straight")
    assert trained(settings_of(ground, folder / "out"), folder) == COMPLETED
    return folder / "out"


@pytest.fixture
def halfway(straight: Path, tmp_path: Path) -> Path:
    """The output of that run as a kill after step 5 leaves it."""
    output = tmp_path / "out"
    shutil.copytree(straight, output)
    run = output / "tiny.run"
    lines = [line for line in (run / "events.jsonl").read_text().splitlines() if '"step": 6' not in line]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n")
    shutil.rmtree(run / "state" / "step-00000006")
    (output / "tiny.safetensors").unlink()
    assert states_of(output) == [4]
    return output


def states_of(output: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (output / "tiny.run" / "state").iterdir())


def assert_same(straight: Path, output: Path) -> None:
    """The same bits, and each step once in the log."""
    expected, found = load_file(straight / "tiny.safetensors"), load_file(output / "tiny.safetensors")
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    steps = [[each["step"] for each in logged(path / "tiny.run") if each["event"] == "StepDone"] for path in
             (straight, output)]  # fmt: skip
    assert steps[0] == steps[1] == list(range(1, STEPS + 1))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the log, the states, the clock -----------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [b'{"event": "StepDo', b"\0" * 4096, b"\xff\xfe{}\n[]\n\n5\n"])
def test_a_log_spoilt_in_its_middle_and_at_its_end(
    ground: tuple[Path, Path], straight: Path, halfway: Path, tmp_path: Path, garbage: bytes
) -> None:
    log = halfway / "tiny.run" / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    middle = len(lines) // 2
    log.write_bytes(b"".join([*lines[:middle], garbage + b"\n", *lines[middle:], garbage]))
    assert trained(settings_of(ground, halfway), tmp_path, "--resume", "auto") == COMPLETED
    assert_same(straight, halfway)


def test_from_the_older_state_the_later_ones_are_made_again(
    ground: tuple[Path, Path], straight: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(straight, output)
    assert states_of(output) == [4, 6]
    older = output / "tiny.run" / "state" / "step-00000004"
    assert trained(settings_of(ground, output), tmp_path, "--resume", str(older)) == COMPLETED
    assert_same(straight, output)
    assert states_of(output) == [4, 6]


def test_a_state_of_another_run_goes_under_a_free_name_only(
    ground: tuple[Path, Path], straight: Path, halfway: Path, tmp_path: Path, capsys: Capture
) -> None:
    state = halfway / "tiny.run" / "state" / "step-00000004"
    taken = tmp_path / "taken"
    shutil.copytree(straight, taken)
    before = contents(taken)
    assert trained(settings_of(ground, taken), tmp_path, "--resume", str(state)) == REFUSED
    assert "was trained already" in capsys.readouterr().err
    assert contents(taken) == before
    assert trained(settings_of(ground, tmp_path / "free"), tmp_path, "--resume", str(state)) == COMPLETED
    one, other = (load_file(path / "tiny.safetensors") for path in (straight, tmp_path / "free"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    steps = [each["step"] for each in logged(tmp_path / "free" / "tiny.run") if each["event"] == "StepDone"]
    assert steps == [5, 6]


def test_when_every_state_is_damaged_nothing_is_begun_or_removed(
    ground: tuple[Path, Path], halfway: Path, tmp_path: Path, capsys: Capture
) -> None:
    for path in (halfway / "tiny.run" / "state").glob("*/optimizer.pt"):
        path.write_bytes(path.read_bytes()[:-9])
    before = contents(halfway)
    assert trained(settings_of(ground, halfway), tmp_path, "--resume", "auto") == REFUSED
    assert "none of the 1 states" in capsys.readouterr().err
    assert contents(halfway) == before


def _cut_adapter(state: Path) -> None:
    tensors = load_file(state / "adapter.safetensors")
    save_file({key: value[:1].clone() if value.dim() else value for key, value in tensors.items()},
              state / "adapter.safetensors")  # fmt: skip


def _lose_groups(state: Path) -> None:
    trained_part = torch.load(state / "optimizer.pt", weights_only=True)
    trained_part["optimizer"]["param_groups"].pop()
    torch.save(trained_part, state / "optimizer.pt")


def _cut_moments(state: Path) -> None:
    trained_part = torch.load(state / "optimizer.pt", weights_only=True)
    for moments in trained_part["optimizer"]["state"].values():
        moments["exp_avg"] = moments["exp_avg"][:1].clone()
    torch.save(trained_part, state / "optimizer.pt")


@pytest.mark.parametrize("spoil", [_cut_adapter, _lose_groups, _cut_moments])
def test_a_state_that_was_tampered_with_and_signed_again(
    ground: tuple[Path, Path], halfway: Path, tmp_path: Path, capsys: Capture, spoil: Callable[[Path], None]
) -> None:
    state = halfway / "tiny.run" / "state" / "step-00000004"
    spoil(state)
    record = json.loads((state / "state.json").read_text())
    record["sha256"] = {name: sha256_of(state / name) for name in record["sha256"]}
    (state / "state.json").write_text(json.dumps(record))
    assert trained(settings_of(ground, halfway), tmp_path, "--resume", "auto") in (REFUSED, FAILED)
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert "state" in printed
    assert state.is_dir()


def test_a_clock_that_runs_backwards(
    ground: tuple[Path, Path], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.time()
    monkeypatch.setattr(time, "time", lambda: begun - 1000 * (time.monotonic() - ticking))
    ticking = time.monotonic()
    assert trained(settings_of(ground, tmp_path / "out"), tmp_path) == COMPLETED
    assert_same(straight, tmp_path / "out")
    finished = logged(tmp_path / "out" / "tiny.run")[-1]
    assert 0 < finished["seconds"] < 600


def test_ctrl_c_twice_within_a_step_ends_without_a_file_and_goes_on_exactly(
    ground: tuple[Path, Path], straight: Path, tmp_path: Path
) -> None:
    inbox = Inbox()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    listen(inbox)

    def twice(event: events.Event) -> None:
        if isinstance(event, events.StepDone) and event.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    settings = settings_of(ground, tmp_path / "out")
    try:
        finished = train(load_config(overrides=settings), emit=twice, inbox=inbox)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (finished.stopped, finished.path) == (True, "")
    assert not (tmp_path / "out" / "tiny.safetensors").exists()
    assert trained(settings, tmp_path, "--resume", "auto") == COMPLETED
    assert_same(straight, tmp_path / "out")


@posix
def test_held_and_let_go_by_the_system(ground: tuple[Path, Path], straight: Path, tmp_path: Path) -> None:
    server = MishapServer()
    settings = settings_of(ground, tmp_path / "out")
    server.endure(settings, Mishap("held for a moment", 2))
    assert_same(straight, tmp_path / "out")


# --- what is in the place of the run's files --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["state", "samples"])
def test_a_file_in_the_place_of_a_folder(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, name: str) -> None:
    (tmp_path / "out" / "tiny.run").mkdir(parents=True)
    (tmp_path / "out" / "tiny.run" / name).write_text("mine")
    for more in ((), ("--overwrite",), ("--resume", "auto")):
        assert trained(settings_of(ground, tmp_path / "out"), tmp_path, *more) == REFUSED
        printed = capsys.readouterr().err
        assert name in printed
        assert "Traceback" not in printed
    assert (tmp_path / "out" / "tiny.run" / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["lock", "events.jsonl", "config.toml", "dataset.json"])
def test_a_folder_in_the_place_of_a_file(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, name: str) -> None:
    (tmp_path / "out" / "tiny.run" / name / "mine").mkdir(parents=True)
    assert trained(settings_of(ground, tmp_path / "out"), tmp_path, "--overwrite") in (REFUSED, FAILED)
    printed = capsys.readouterr().err
    assert name in printed
    assert "Traceback" not in printed
    assert (tmp_path / "out" / "tiny.run" / name / "mine").is_dir()


@posix
def test_a_log_that_may_not_be_written(ground: tuple[Path, Path], halfway: Path, straight: Path) -> None:
    log = halfway / "tiny.run" / "events.jsonl"
    log.chmod(0o444)
    (halfway / "tiny.run").chmod(0o555)
    told = MishapServer().suffer(settings_of(ground, halfway), Mishap("ordinary rights", 0), resume="auto")
    assert told["kind"] in ("RunError", "StateError")
    assert "tiny.run" in told["message"]
    (halfway / "tiny.run").chmod(0o755)
    log.chmod(0o644)
    MishapServer().endure(settings_of(ground, halfway), Mishap("nothing", 0), resume="auto")
    assert_same(straight, halfway)


@pytest.mark.parametrize("name", ["tiny-000001.safetensors", "tiny-step00000004.safetensors", "tiny.safetensors"])
def test_files_of_another_program_under_the_same_name(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("precious")
    for more in ((), ("--resume", "auto")):
        assert trained(settings_of(ground, tmp_path / "out"), tmp_path, *more) == REFUSED
        assert "was trained already" in capsys.readouterr().err
        assert contents(tmp_path / "out") == {tmp_path / "out" / name: b"precious"}
    assert trained(settings_of(ground, tmp_path / "out"), tmp_path, "--overwrite") == COMPLETED


def test_half_written_files_of_a_neighbour_are_left_alone(ground: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    own, neighbours = ".tiny-000001.safetensors.77.tmp", ".tiny-2.safetensors.78.tmp"
    for name in (own, neighbours):
        (tmp_path / "out" / name).write_text("half")
    assert trained(settings_of(ground, tmp_path / "out"), tmp_path) == COMPLETED
    assert not (tmp_path / "out" / own).exists()
    assert (tmp_path / "out" / neighbours).read_text() == "half"


@posix
def test_links_in_the_place_of_what_is_half_written_are_not_followed(ground: tuple[Path, Path], tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".tiny.safetensors.{os.getpid()}.tmp").symlink_to(precious)
    (tmp_path / "out" / "tiny.run" / "state" / ".step-00000002.new").parent.mkdir(parents=True)
    (tmp_path / "out" / "tiny.run" / f".config.toml.{os.getpid()}.tmp").symlink_to(precious)
    (tmp_path / "out" / "tiny.run" / "control").symlink_to(precious)
    assert trained(settings_of(ground, tmp_path / "out"), tmp_path) == COMPLETED
    assert precious.read_text() == "keep me"


@posix
def test_odd_names_of_the_output_folder(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """Each a folder in the one before; the last one's name could be an option."""
    output = tmp_path.joinpath("with space", "ünïcode 猫 😀", "quote'", "[a-z]*", "100%", "-dash")
    settings = {**settings_of(ground, output), "lr_scheduler": "constant"}
    assert trained({**settings, "max_train_steps": 4}, tmp_path) == COMPLETED
    assert trained(settings, tmp_path, "--resume", "auto") == COMPLETED
    steps = [each["step"] for each in logged(output / "tiny.run") if each["event"] == "StepDone"]
    assert steps == list(range(1, STEPS + 1))


@posix
def test_a_drive_that_goes_away(ground: tuple[Path, Path], straight: Path, tmp_path: Path) -> None:
    """Its folder vanishes; nothing may be written where it was."""
    settings = settings_of(ground, tmp_path / "drive" / "out")
    server = MishapServer()
    told = server.suffer(settings, Mishap("no drive", 3))
    assert told["kind"] == "RunError"
    assert "resume" in told["remedy"] or "output_dir" in told["remedy"]
    assert not (tmp_path / "drive" / "out").exists()
    (tmp_path / "drive" / "out.away").rename(tmp_path / "drive" / "out")
    server.endure(settings, Mishap("nothing", 0), resume="auto")
    assert_same(straight, tmp_path / "drive" / "out")
