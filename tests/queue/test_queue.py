"""The queue: a folder that says what is to do, and who works through it, whatever fails or is killed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import VALIDATED, tiny_config, tiny_settings, write_dataset
from trainer.__main__ import COMPLETED, FAILED, REFUSED, main
from trainer.config import TrainingConfig, load_config, to_flat
from trainer.ground.commands import Command
from trainer.ground.errors import StateError
from trainer.queue import Queue, Worker, series
from trainer.queue.comparison import best_of, results
from trainer.queue.shelf import FAILED as HAS_FAILED
from trainer.queue.shelf import FINISHED, INTERRUPTED, STOPPED, UNDER_WAY, WAITING
from trainer.results.event_log import read_events
from trainer.results.run_folder import RunFolder
from trainer.run import Run, Start
from trainer.settings.toml import encoded

MANY_STEPS = 100_000


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def named(ground: tuple[Path, Path], folder: Path, name: str, **changes: object) -> TrainingConfig:
    settings = {"max_train_steps": 2, "output_name": name, "text_encoder_lr": 0.0, **changes}
    return tiny_config(*ground, folder / "out", **settings)


def begin(config: TrainingConfig, start: Start, beginning: Callable[[], None]) -> Run:
    run = Run(config, start)
    beginning()
    run.start()
    return run


def reached(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "not reached"
        time.sleep(0.02)


def states(queue: Queue) -> dict[str, str]:
    return {entry.name: entry.state for entry in queue.entries()}


def test_entries_are_kept_ordered_moved_and_removed(ground: tuple[Path, Path], tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue")
    assert queue.entries() == [] and queue.next() is None
    a, b, c = queue.add_all([named(ground, tmp_path, name) for name in "abc"])
    queue.move(c.key, -2)
    queue.move(a.key, 99)
    again = Queue(tmp_path / "queue")
    assert [entry.name for entry in again.entries()] == ["c", "b", "a"]
    assert again.entry(b.key).config == named(ground, tmp_path, "b")
    with pytest.raises(StateError, match="'b' is in the queue already"):
        again.add_all([named(ground, tmp_path, "d"), named(ground, tmp_path, "b")])
    assert len(again.keys()) == 3, "all or none"
    assert again.free_name(tmp_path / "out", "b") == "b-2"
    again.remove(b.key)
    assert [entry.name for entry in queue.entries()] == ["c", "a"]
    (tmp_path / "queue" / "of mine.toml").write_text("network_dim = 0\n")
    (tmp_path / "queue" / "order.json").write_text('{"no": "list"}')
    found = queue.entries()
    assert [entry.key for entry in found] == [a.key, c.key, "of mine"]
    assert found[-1].config is None and "network_dim" in found[-1].why
    with pytest.raises(StateError, match="no entry"):
        queue.named("0099")


def test_an_entry_means_the_same_from_any_working_folder(
    ground: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ground[1])
    settings = tiny_settings(ground[0], Path(), Path("out"), output_name="here", sample_prompts="a/b.txt --d 1, red")
    subset = {"image_dir": "train/2_tok class", "num_repeats": 1}
    listed = {**settings, "train_data_dir": "", "output_name": "listed", "datasets": [{"subsets": [subset]}]}
    queue = Queue(tmp_path / "queue")
    queue.add_all([load_config(overrides=settings), load_config(overrides=listed)])
    monkeypatch.chdir(tmp_path)
    first, second = (to_flat(entry.config) for entry in queue.entries() if entry.config)
    assert first["train_data_dir"] == str(ground[1] / "train")
    assert first["output_dir"] == second["output_dir"] == str(ground[1] / "out")
    assert first["sample_prompts"] == "a/b.txt --d 1, red", "prompts are no path"
    assert str(ground[1] / "train" / "2_tok class") in str(second["datasets"])


def test_one_after_another_whatever_fails(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """At the terminal: the second has no model, the third is taken by an earlier run; the last is trained."""
    files = []
    for name, changes in {
        "first": {},
        "no model": {"pretrained_model_name_or_path": str(tmp_path / "gone.safetensors")},
        "taken": {},
        "last": {"max_train_steps": 3},
    }.items():
        settings = tiny_settings(*ground, tmp_path / "out", output_name=name, max_train_steps=2, text_encoder_lr=0.0)
        text = "".join(f"{key} = {encoded(value)}\n" for key, value in {**settings, **changes}.items())
        files.append(tmp_path / f"{name}.toml")
        files[-1].write_text(text)
    RunFolder(tmp_path / "out", "taken").make()
    (tmp_path / "out" / "taken.safetensors").write_bytes(b"of mine")
    folder = ["--folder", str(tmp_path / "queue")]
    assert main(["queue", *map(str, files), *folder]) == FAILED
    queue = Queue(tmp_path / "queue")
    assert states(queue) == {"first": FINISHED, "no model": HAS_FAILED, "taken": HAS_FAILED, "last": FINISHED}
    whys = {entry.name: entry.why for entry in queue.entries()}
    assert "gone.safetensors" in whys["no model"] and "was trained already" in whys["taken"]
    assert (tmp_path / "out" / "taken.safetensors").read_bytes() == b"of mine"
    assert (tmp_path / "out" / "last.safetensors").exists()
    assert main(["queue", *folder]) == REFUSED, "nothing is left to do"
    assert main(["queue", str(files[0]), str(tmp_path / "none.toml"), *folder]) == REFUSED

    failed = next(entry for entry in queue.entries() if entry.name == "no model")
    mended = (tmp_path / "queue" / f"{failed.key}.toml").read_text().replace("gone.safetensors", "there.safetensors")
    (tmp_path / "queue" / f"{failed.key}.toml").write_text(mended)
    (tmp_path / "there.safetensors").symlink_to(ground[0])
    queue.again(failed.key)
    assert queue.entry(failed.key).state in (WAITING, INTERRUPTED)
    assert main(["queue", *folder]) == COMPLETED
    assert queue.entry(failed.key).state == FINISHED


def test_what_was_left_in_the_middle_is_gone_on_with(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """The program ends while one runs and is paused; another program finds all of it, and whoever holds it is alone."""
    queue = Queue(tmp_path / "queue")
    long = named(ground, tmp_path, "long", max_train_steps=MANY_STEPS)
    first, second = queue.add_all([long, named(ground, tmp_path, "short")])
    worker = Worker(queue, begin, "by a test")
    worker.go()
    log = RunFolder(tmp_path / "out", "long").events
    reached(lambda: log.exists() and any(getattr(event, "step", 0) >= 2 for event in read_events(log)))
    assert (queue.entry(first.key).state, worker.current) == (UNDER_WAY, first.key)
    with pytest.raises(StateError, match="under way"):
        queue.remove(first.key)
    with pytest.raises(StateError, match="Another program works through"):
        Worker(queue, begin, "by another").go()
    (log.parent / "control").write_text("pause")
    reached(lambda: queue.entry(first.key).why == "paused")
    assert queue.entry(second.key).state == WAITING, "the next one waits for the pause to end"
    worker.leave(Command.STOP)
    worker.join(60)
    assert not worker.busy
    assert states(queue) == {"long": INTERRUPTED, "short": WAITING}

    settings = tmp_path / "queue" / f"{first.key}.toml"
    done = max(getattr(event, "step", 0) for event in read_events(log))
    settings.write_text(settings.read_text().replace(str(MANY_STEPS), str(done + 2)))
    again = Worker(Queue(tmp_path / "queue"), begin, "by a test")
    again.go()
    again.join(120)
    assert states(queue) == {"long": FINISHED, "short": FINISHED}
    assert [event.resumed for event in read_events(log) if hasattr(event, "resumed")] == [False, True]


def test_a_stopped_run_is_done_with_and_holding_begins_nothing_more(ground: tuple[Path, Path], tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue")
    for name in ("a", "b"):
        queue.add(named(ground, tmp_path, name, max_train_steps=MANY_STEPS))
    runs: list[Run] = []

    def begin_and_note(config: TrainingConfig, start: Start, beginning: Callable[[], None]) -> Run:
        runs.append(begin(config, start, beginning))
        return runs[-1]

    worker = Worker(queue, begin_and_note, "by a test")
    worker.go()
    reached(lambda: bool(runs) and runs[0].snapshot.step >= 1)
    worker.hold()
    runs[0].send(Command.STOP)
    worker.join(60)
    assert states(queue) == {"a": STOPPED, "b": WAITING}
    assert json.loads((tmp_path / "queue" / "0001.json").read_text())["ended"] == STOPPED


def test_a_series_needs_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--folder", str(tmp_path / "queue")]
    assert main(["queue", "--vary", "network_dim=4,8", *folder]) == REFUSED
    assert capsys.readouterr().err.startswith("vary: makes a series of each file, and none is named")
    assert main(["queue", *folder]) == REFUSED
    assert "Write python launch.py queue RUN.toml." in capsys.readouterr().err


def test_a_series_makes_a_run_of_each_value(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """At the terminal: each pair of values of two settings is a run, and a row of the comparison."""
    options = {"max_train_steps": 2, "text_encoder_lr": 0.0, "validate_every_n_steps": 1, "validation_split": 0.2}
    options |= {"sample_prompts": "tok --w 64 --h 64 --s 2 --d 1", "sample_every_n_steps": 2}
    settings = tiny_settings(*ground, tmp_path / "out", output_name="cat", **{**options, **VALIDATED})
    run, folder = tmp_path / "run.toml", ["--folder", str(tmp_path / "queue")]
    run.write_text("".join(f"{key} = {encoded(value)}\n" for key, value in settings.items()))
    for wrong in ("learning_rat=1,2", "learning_rate", "output_name=a,b", "network_dim=0,4"):
        assert main(["queue", str(run), "--vary", wrong, *folder]) == REFUSED
    queue = Queue(tmp_path / "queue")
    assert queue.keys() == [] and series.all_of(queue) == []
    varied = ["--vary", "learning_rate=1e-3,2e-3", "--vary", "network_type=loha"]
    assert main(["queue", str(run), *varied, *folder]) == COMPLETED
    assert states(queue) == {"cat-0.001-loha": FINISHED, "cat-0.002-loha": FINISHED}
    [made] = series.all_of(queue)
    assert (made.name, made.settings) == ("cat", ("learning_rate", "network_type"))
    rows = results(made, {})
    assert [row.values for row in rows] == [(0.001, "loha"), (0.002, "loha")]
    for row in rows:
        config = load_config(tmp_path / "out" / f"{row.name}.run" / "config.toml")
        assert (config.optimizer.learning_rate, config.network.network_type) == row.values
        assert row.status == "finished" and row.seconds and row.best is not None
        assert row.samples is not None and row.samples[0][1].is_file()
    lowest = best_of(rows)
    assert lowest is not None and lowest.best == min(row.best for row in rows if row.best is not None)
    pairs = series.varied(["network_dim=4, 8", "resolution=64; 64,96"])
    names = [each.saving.output_name for each in series.make(load_config(run), pairs, queue)]
    assert names == ["cat-4-64", "cat-4-64_96", "cat-8-64", "cat-8-64_96"]
    series.remove(queue, made.key)
    assert series.all_of(queue) == [] and len(queue.keys()) == 2
