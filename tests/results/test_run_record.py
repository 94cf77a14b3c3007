"""A run as its folder tells it: whole across sittings, read on as it grows, looked after when it has ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.config import load_config, save_config
from trainer.ground import events
from trainer.ground.errors import StateError
from trainer.ground.events import Event
from trainer.results import housekeeping
from trainer.results.curves import GROUPS, curves, summary
from trainer.results.event_log import JsonLines, cut_events, remove_log
from trainer.results.run_folder import RunFolder, run_names
from trainer.results.run_record import RunReader, is_held, outstanding, run_folder_at

STEPS = 12


def started(step: int = 0, *, resumed: bool = False) -> Event:
    return events.Started(
        folder="elsewhere", step=step, total_steps=STEPS, total_epochs=3, steps_per_epoch=4, resumed=resumed
    )


def step(number: int, **more: object) -> Event:
    values: dict[str, object] = {"epoch": 1, "average_loss": 0.1, "lr": {"unet": 1e-4, "text_encoder": 5e-5}, **more}
    return events.StepDone(step=number, loss=1 / number, seconds=0.1, **values)  # type: ignore[arg-type]


def judged(number: int, loss: float, *, on: str = "held_out", base: bool = False) -> Event:
    pictures = {f"a/{place}.png": loss * (1 + place / 10) for place in range(6)}
    return events.Validated(step=number, epoch=1, loss=loss, on=on, base=base, timesteps=8, pictures=pictures)


def write(folder: RunFolder, *told: Event, limit: int = 1 << 20) -> None:
    folder.make()
    log = JsonLines(folder.events, limit)
    for event in told:
        log(event)
    log.close()


def saved(folder: RunFolder, name: str, number: int) -> Event:
    (folder.output_dir / name).write_bytes(name.encode())
    return events.Saved(kind="lora", path=f"/gone/{name}", step=number, epoch=1, bytes=4)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, "cat")


def test_the_curve_is_whole_across_sittings(folder: RunFolder) -> None:
    """Killed after step 7, resumed after 5: every step is there once, and the resume is marked."""
    write(folder, started(), *(step(number) for number in range(1, 8)))
    reader = RunReader(folder)
    assert reader.read().snapshot.status == "interrupted"
    cut_events(folder.events, 5)
    write(folder, started(5, resumed=True), *(step(number) for number in range(6, STEPS + 1)))
    record = reader.read()
    assert list(record.steps.step) == list(range(1, STEPS + 1))
    assert curves(record, "loss")["marks"]["resumes"] == [5]
    assert curves(record, "loss")["curves"]["each step"]["x"] == list(range(1, STEPS + 1))
    write(folder, events.Finished(step=STEPS, epoch=3, path="/gone/cat.safetensors", stopped=False, seconds=1))
    record = reader.read()
    assert record.snapshot.status == "finished"
    assert record.snapshot.finished is not None
    assert record.snapshot.finished.path == str(folder.lora)


def test_a_reader_reads_on_and_knows_another_run_of_the_name(folder: RunFolder) -> None:
    reader = RunReader(folder)
    assert reader.read().revision == 0
    for number in range(1, 40):  # through files that are put aside
        write(folder, *([started()] if number == 1 else []), step(number), limit=1000)
        assert len(reader.read().steps) == number
    assert list(reader.read().steps.step) == list(range(1, 40))
    assert list(RunReader(folder).read().steps.step) == list(range(1, 40))
    remove_log(folder.events)
    write(folder, started(), *(step(number) for number in range(1, 60)))
    assert list(reader.read().steps.step) == list(range(1, 60))


def test_a_line_that_is_being_written_waits(folder: RunFolder) -> None:
    write(folder, started(), step(1))
    reader = RunReader(folder)
    whole = json.dumps(events.to_record(step(2))).encode() + b"\n"
    with folder.events.open("ab") as log:
        log.write(whole[:40])
    assert len(reader.read().steps) == 1
    with folder.events.open("ab") as log:
        log.write(whole[40:] + b"not json\n" + b'{"event": "StepDone", "step": "x"}\n')
    assert len(reader.read().steps) == 2


def test_a_run_that_someone_has_under_way_is_not_interrupted(folder: RunFolder) -> None:
    write(folder, started(), step(1))
    lock = folder.lock()
    assert is_held(folder)
    assert RunReader(folder).read().snapshot.status == "training"
    lock.release()
    assert RunReader(folder).read().snapshot.status == "interrupted"


@pytest.mark.parametrize("group", GROUPS)
def test_a_curve_is_thin_and_keeps_what_is_wild(folder: RunFolder, group: str) -> None:
    folder.make()
    lines = [json.dumps(events.to_record(started()))]
    for number in range(1, 20_001):
        wild = {"loss": 50.0} if number == 12_345 else {"loss": 0.1}
        record = events.to_record(step(number, grad_norm=0.5, step_size=2.0 if group == "rate" else None))
        lines.append(json.dumps({**record, **wild}))
    folder.events.write_text("\n".join(lines) + "\n")
    found = curves(RunReader(folder).read(), group)
    assert len(json.dumps(found)) < 100_000
    for curve in found["curves"].values():
        assert len(curve["x"]) <= 500
        assert curve["x"][-1] == 20_000
    if group == "loss":
        assert max(found["curves"]["each step"]["high"]) == 50
        near = curves(RunReader(folder).read(), "loss", 12_340, 12_350)["curves"]["each step"]
        assert (len(near["x"]), max(near["y"])) == (11, 50)
    if group == "rate":
        assert found["curves"]["d × unet"]["y"][0] == pytest.approx(2e-4)
    with pytest.raises(ValueError, match="group"):
        curves(RunReader(folder).read(), "banana")


def test_the_verdict_names_files_that_are_there(folder: RunFolder) -> None:
    losses = (1.0, 0.8, 0.7, 0.75, 0.8, 0.85)
    told: list[Event] = [started(), judged(0, 1.1, base=True)]
    for number, loss in enumerate(losses, start=1):
        told += [step(number), judged(number, loss), judged(number, loss, on="table")]
    names = ["cat-000002.safetensors", "cat-000003.safetensors", "cat.safetensors"]
    write(folder, *told, *(saved(folder, name, number) for name, number in zip(names, (2, 3, 6), strict=True)))
    record = RunReader(folder).read()
    assert record.base_loss == 1.1
    assert "The best saved file is cat-000003.safetensors." in record.verdict
    (folder.output_dir / names[1]).unlink()
    assert "The best saved file is cat-000002.safetensors." in RunReader(folder).read().verdict
    told_in_full = json.loads(json.dumps(summary(record)))
    assert told_in_full["validation"]["y"] == list(losses)
    assert told_in_full["files"][0]["path"] == str(folder.output_dir / names[0])


def test_what_stands_out_comes_first() -> None:
    before = {f"{place}": 1.0 for place in range(12)}
    now = {name: 0.8 + int(name) / 1000 for name in before} | {"3": 0.2, "7": 1.0}
    rows = outstanding(before, now)
    assert [(row.name, row.remark) for row in rows[:2]] == [("3", "learned by heart"), ("7", "never learned")]
    assert not any(row.remark for row in rows[2:])
    assert outstanding({}, {"a": 0.1})[0].before is None


def test_a_run_is_renamed_with_its_files(folder: RunFolder) -> None:
    write(folder, started(), step(1))
    save_config(load_config(overrides={"output_dir": str(folder.output_dir), "output_name": "cat"}), folder.config)
    for name in ("cat.safetensors", "cat-000002.safetensors", "cats.safetensors"):
        (folder.output_dir / name).write_bytes(b"x")
    for name, words in (("cat", "already"), ("", "name"), ("a/b", "called"), ("cats", "already")):
        with pytest.raises(StateError, match=words):
            housekeeping.rename(folder, name)
    new = housekeeping.rename(folder, "tom")
    assert new.read_config().saving.output_name == "tom"
    there = {path.name for path in folder.output_dir.iterdir()}
    assert there == {"tom.run", "tom.safetensors", "tom-000002.safetensors", "cats.safetensors"}
    assert run_names(folder.output_dir) == ("tom",)


def test_a_run_is_deleted_with_its_files_or_without(folder: RunFolder) -> None:
    write(folder, started(), step(1))
    (folder.output_dir / "cat.safetensors").write_bytes(b"x")
    lock = folder.lock()
    with pytest.raises(StateError, match="under way"):
        housekeeping.delete(folder, files=True)
    lock.release()
    housekeeping.delete(folder, files=False)
    assert [path.name for path in folder.output_dir.iterdir()] == ["cat.safetensors"]
    write(folder, started(), step(1))
    housekeeping.delete(folder, files=True)
    assert not list(folder.output_dir.iterdir())


def test_a_file_is_copied_once_and_nothing_is_overwritten(folder: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "cat.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(StateError, match="does not exist"):
        housekeeping.copy_file(path, tmp_path / "loras")
    (tmp_path / "loras").mkdir()
    for _ in range(2):
        assert housekeeping.copy_file(path, tmp_path / "loras").read_bytes() == b"mine"
    (tmp_path / "loras" / "cat.safetensors").write_bytes(b"theirs")
    with pytest.raises(StateError, match="another file"):
        housekeeping.copy_file(path, tmp_path / "loras")


def test_notes_are_kept_in_the_folder(folder: RunFolder) -> None:
    write(folder, started())
    housekeeping.write_notes(folder, "a good one\nat 0.8")
    assert RunReader(folder).read().notes == "a good one\nat 0.8"
    with pytest.raises(StateError, match="at most"):
        housekeeping.write_notes(folder, "x" * 200_000)


def test_a_path_names_its_run(folder: RunFolder) -> None:
    write(folder, started())
    for name in ("cat.run", "cat.safetensors", "cat-000004.safetensors", "cat-step00000500.safetensors", "cat"):
        assert run_folder_at(folder.output_dir / name) == folder
    assert run_folder_at(folder.output_dir / "dog.run") is None
