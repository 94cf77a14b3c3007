"""Processes that train together: one run's numbers, one voice, one end. Real processes, and gloo between them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import RunServer, logged, tiny_config, write_dataset
from trainer import train
from trainer.__main__ import COMPLETED, FAILED, REFUSED, STOPPED
from trainer.config import save_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="gloo between processes is tested on POSIX"),
]

SETTINGS: dict[str, object] = {
    "max_train_steps": 7,
    "train_batch_size": 2,
    "save_every_n_steps": 4,
    "flip_aug": True,
    "optimizer_args": ["eps=1e-4"],
}
"""The larger eps keeps AdamW from making a whole step of a rounding error where a gradient is nearly nothing."""

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


@pytest.fixture(scope="module")
def alone(ground: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process with twice the accumulation."""
    output = tmp_path_factory.mktemp("alone")
    train(tiny_config(*ground, output, gradient_accumulation_steps=2, **SETTINGS), emit=lambda event: None)
    return output


def steps_of(output: Path) -> list[tuple[int, float]]:
    if not (output / "tiny.run" / "events.jsonl").exists():
        return []
    return [(each["step"], each["loss"]) for each in logged(output / "tiny.run") if each["event"] == "StepDone"]


def assert_same_training(alone: Path, together: Path) -> None:
    expected, found = steps_of(alone), steps_of(together)
    assert [step for step, _ in found] == [step for step, _ in expected] == list(range(1, 8))
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-5)
    one, other = (load_file(output / "tiny.safetensors") for output in (alone, together))
    assert all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-5) for key in one)


def written_run(ground: tuple[Path, Path], folder: Path, **more: object) -> Path:
    run = folder / "RUN.toml"
    save_config(tiny_config(*ground, folder / "out", **{**SETTINGS, **more}), run)
    return run


@contextmanager
def two_ranks(run: Path, other: Path | None = None) -> Iterator[list[Rank]]:
    """Start two ranks by hand, so that nothing but themselves ends one when the other is gone.

    `other` is the second one's file, where that is not the first one's.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [Rank(path, str(number), port) for number, path in enumerate((run, other or run))]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.process.kill()
            rank.process.join()


class Rank:
    """One process of two, and what it wrote to its error stream."""

    def __init__(self, run: Path, number: str, port: str) -> None:
        self.log = run.with_suffix(f".{number}.log")
        environment = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.process = RunServer().command(["train", str(run), "--resume", "auto"], self.log, environment)

    def end(self) -> int | None:
        """Wait, and return the exit code; None where it does not end."""
        self.process.join(timeout=240)
        return self.process.exitcode


def wait_for(reached: Callable[[], bool], ranks: list[Rank]) -> None:
    ends = time.monotonic() + 240
    while not reached():
        assert time.monotonic() < ends, "not reached in time"
        assert all(rank.process.is_alive() for rank in ranks), [rank.log.read_text() for rank in ranks]
        time.sleep(0.02)


def test_under_torchrun_two_ranks_equal_one_with_twice_the_accumulation(
    ground: tuple[Path, Path], tmp_path: Path, alone: Path
) -> None:
    # Each rank has its own weights come and go, which changes no bit of what it computes.
    run = written_run(ground, tmp_path, streamed_weights=0.5)
    command = [*TORCHRUN, "-m", "trainer", "train", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_training(alone, tmp_path / "out")
    assert done.stderr.count("Finished after step 7") == 1, "only the first rank tells"


def test_a_dead_rank_ends_the_others_and_all_go_on_together(
    ground: tuple[Path, Path], tmp_path: Path, alone: Path
) -> None:
    """First the one that only computes is killed in the middle of a step, then the one that writes."""
    run, output = written_run(ground, tmp_path), tmp_path / "out"
    for dead, living, seen in ((1, 0, 1), (0, 1, 3)):
        with two_ranks(run) as ranks:
            wait_for(lambda: len(steps_of(output)) > seen, ranks)  # noqa: B023  waited for here and now
            ranks[dead].process.kill()
            code = ranks[living].end()
            told = ranks[living].log.read_text()
            assert code == FAILED, told
            assert "Another process of this run has ended or cannot be reached (" in told
            assert ".cc:" not in told
            assert "--resume auto" in told
            assert "Traceback" not in told
        if living == 0:
            assert logged(output / "tiny.run")[-1]["event"] == "Failed"
            states = [path.name for path in (output / "tiny.run" / "state").iterdir()]
            assert f"step-{steps_of(output)[-1][0]:08d}" in states, "the last finished step is kept"
    with two_ranks(run) as ranks:
        assert [rank.end() for rank in ranks] == [COMPLETED, COMPLETED]
    assert_same_training(alone, output)


def test_ranks_that_would_begin_at_different_steps_are_refused(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """As where the second machine has no copy of the run's folder."""
    run = written_run(ground, tmp_path, max_train_steps=2)
    with two_ranks(run) as ranks:
        assert [rank.end() for rank in ranks] == [COMPLETED, COMPLETED]
    before = logged(tmp_path / "out" / "tiny.run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = written_run(ground, elsewhere, max_train_steps=2)
    with two_ranks(run, other) as ranks:
        assert [rank.end() for rank in ranks] == [FAILED, REFUSED]
        assert "would go on after step 0, the first one after step 2" in ranks[1].log.read_text()
    steps = [record for record in logged(tmp_path / "out" / "tiny.run") if record["event"] == "StepDone"]
    assert steps == [record for record in before if record["event"] == "StepDone"]


def test_the_first_rank_hears_a_stop_and_all_stop_together(
    ground: tuple[Path, Path], tmp_path: Path, alone: Path
) -> None:
    run, output = written_run(ground, tmp_path), tmp_path / "out"
    with two_ranks(run) as ranks:
        wait_for(lambda: len(steps_of(output)) > 1, ranks)
        (output / "tiny.run" / "control").write_text("stop\n")
        assert [rank.end() for rank in ranks] == [STOPPED, STOPPED]
    assert len(steps_of(output)) < 7
    with two_ranks(run) as ranks:
        assert [rank.end() for rank in ranks] == [COMPLETED, COMPLETED]
    assert_same_training(alone, output)


def test_a_pause_holds_all_ranks_and_changes_nothing(ground: tuple[Path, Path], tmp_path: Path, alone: Path) -> None:
    run, output = written_run(ground, tmp_path), tmp_path / "out"
    control = output / "tiny.run" / "control"

    def told(event: str) -> bool:
        return any(each["event"] == event for each in logged(output / "tiny.run"))

    with two_ranks(run) as ranks:
        wait_for(lambda: len(steps_of(output)) > 1, ranks)
        control.write_text("pause\n")
        wait_for(lambda: told("Paused"), ranks)
        (paused,) = [each for each in logged(output / "tiny.run") if each["event"] == "Paused"]
        assert paused["saved"] and paused["device_free"]
        assert paused["step"] == steps_of(output)[-1][0] < 7
        assert (output / "tiny.run" / "state" / f"step-{paused['step']:08d}").is_dir()
        control.write_text("save_now\n")  # which is obeyed in the pause, and no step is made
        wait_for(lambda: (output / f"tiny-step{paused['step']:08d}.safetensors").exists(), ranks)
        assert steps_of(output)[-1][0] == paused["step"]
        control.write_text("resume\n")
        assert [rank.end() for rank in ranks] == [COMPLETED, COMPLETED]
    assert_same_training(alone, output)


def test_a_kind_of_adapter_with_factors_of_its_own_and_layers_left_out_trains_on_two_ranks(
    ground: tuple[Path, Path], tmp_path: Path
) -> None:
    """A layer that both leave out gets no gradient, so that its weights stay; one that one of them leaves out does."""
    kind = {"network_type": "loha", "max_train_steps": 3, "save_every_n_steps": 0, "module_dropout": 0.5}
    accumulated = {**SETTINGS, **kind, "gradient_accumulation_steps": 2}
    train(tiny_config(*ground, tmp_path / "alone", **accumulated), emit=lambda event: None)
    with two_ranks(written_run(ground, tmp_path, **kind)) as ranks:
        assert [rank.end() for rank in ranks] == [COMPLETED, COMPLETED]
    one, other = (load_file(tmp_path / name / "tiny.safetensors") for name in ("alone", "out"))
    assert one.keys() == other.keys() and any("hada_w1_a" in key for key in one)
    assert all(torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-5) for key in one)
    expected, found = (dict(steps_of(tmp_path / name)) for name in ("alone", "out"))
    assert found == pytest.approx(expected, rel=1e-5)
