"""Captions as a transaction: what the preview says is what is written, and any moment of a kill leaves them whole."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.helpers.pictures import write_picture
from trainer.ground.errors import DataError, StateError, Stopped
from trainer.workbench import changes, journal, writing
from trainer.workbench.album import Album, Index, caption_of, detail, open_folder
from trainer.workbench.operations import AddTags, FindReplace, Prefix, Recode, RemoveTags

CAPTIONS = {"a": "red, cat", "b": "cat,blue\r\nsecond, cat\r\n", "c": "dog"}


@pytest.fixture
def album(tmp_path: Path) -> Album:
    """Two numbered folders with three pictures each; in the second, c has no caption."""
    for folder in ("1_x", "2_y"):
        for seed, (stem, text) in enumerate(CAPTIONS.items()):
            path = write_picture(tmp_path / folder / f"{stem}.png", (8, 8), seed)
            if (folder, stem) != ("2_y", "c"):
                path.with_suffix(".txt").write_bytes(text.encode())
    return open_folder(tmp_path)


def contents(root: Path) -> dict[str, bytes]:
    """Return every file below a folder but for journals, hidden ones included."""
    found = [path for path in root.rglob("*") if path.is_file() and journal.FOLDER not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def test_what_is_previewed_is_written_and_nothing_else_and_undone(album: Album, tmp_path: Path) -> None:
    before = contents(tmp_path)
    planned = changes.preview(album.entries, [RemoveTags(("CAT",)), AddTags(("new",))])
    assert contents(tmp_path) == before
    assert (len(planned.changes), planned.unchanged, planned.refused) == (6, 0, ())
    done = changes.apply(planned)
    assert not done.conflicts
    wanted = {each.caption.relative_to(tmp_path).as_posix(): each.new.encode() for each in planned.changes}
    assert contents(tmp_path) == before | wanted
    assert wanted["1_x/b.txt"] == b"blue, new\r\nsecond, new\r\n"
    assert wanted["2_y/c.txt"] == b"new"
    assert [each.title for each in changes.history(album.paths)] == ["'CAT' removed; 'new' added"]
    undone = changes.undo(album.paths)
    assert undone is not None and len(undone.done) == 6 and not undone.conflicts
    assert contents(tmp_path) == before
    assert changes.undo(album.paths) is None


def test_changes_are_undone_one_after_another(album: Album, tmp_path: Path) -> None:
    states = [contents(tmp_path)]
    for word in ("one, ", "two, ", "three, "):
        changes.apply(changes.preview(open_folder(tmp_path).entries, [Prefix(word)]))
        states.append(contents(tmp_path))
    while states:
        assert contents(tmp_path) == states.pop()
        record = changes.last_change(album.paths)
        undone = changes.undo(album.paths)
        assert (undone.title if undone else None) == (record.title if record else None)


def test_what_was_undone_is_done_again_until_another_change_is_made(album: Album, tmp_path: Path) -> None:
    states = [contents(tmp_path)]
    for word in ("one, ", "two, ", "three, "):
        changes.apply(changes.preview(open_folder(tmp_path).entries, [Prefix(word)]))
        states.append(contents(tmp_path))
    assert changes.redo(album.paths) is None
    while changes.undo(album.paths):
        pass
    for place, word in enumerate(("one, ", "two, ", "three, "), 1):
        record, done = changes.last_undone(album.paths), changes.redo(album.paths)
        assert record is not None and done is not None and record.title == done.title == f"{word!r} put in front"
        assert (len(done.done), done.conflicts, contents(tmp_path)) == (6, (), states[place])
    assert changes.redo(album.paths) is None
    changes.undo(album.paths)
    changes.undo(album.paths)
    (tmp_path / "1_x" / "a.txt").write_text("somebody's")
    done = changes.redo(album.paths)
    assert done is not None and [path for path, _ in done.conflicts] == [tmp_path / "1_x" / "a.txt"]
    changes.undo(album.paths)
    assert contents(tmp_path) == states[1] | {"1_x/a.txt": b"somebody's"}
    first = [entry for entry in album.entries if entry.folder == 0]
    changes.apply(changes.preview(first, [Prefix("new, ")]))
    assert changes.redo(album.paths) is None
    assert [each.title for each in changes.history(album.paths)] == ["'new, ' put in front", "'one, ' put in front"]


def test_a_file_that_changed_since_is_told_and_left_alone(album: Album, tmp_path: Path) -> None:
    planned = changes.preview(album.entries, [Prefix("x ")])
    other = tmp_path / "1_x" / "a.txt"
    other.write_text("somebody's")
    appeared = tmp_path / "2_y" / "c.txt"
    appeared.write_text("somebody's")
    done = changes.apply(planned)
    assert sorted(path for path, _ in done.conflicts) == [other, appeared]
    assert other.read_text() == appeared.read_text() == "somebody's"
    assert len(done.done) == 4
    (tmp_path / "1_x" / "c.txt").write_text("later")
    undone = changes.undo(album.paths)
    assert undone is not None and [path.name for path, _ in undone.conflicts] == ["c.txt"]
    assert (tmp_path / "1_x" / "c.txt").read_text() == "later"
    assert (tmp_path / "2_y" / "a.txt").read_bytes() == CAPTIONS["a"].encode()
    assert not changes.unfinished(album.paths)


def test_a_caption_replaced_while_it_is_written_is_left_alone(
    album: Album, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = changes.preview(album.entries[:1], [Prefix("x ")])
    commit = writing._commit

    def late(staged: writing._Staged) -> None:
        staged.path.write_text("in between")
        commit(staged)

    monkeypatch.setattr(writing, "_commit", late)
    done = changes.apply(planned)
    assert (done.done, len(done.conflicts)) == ((), 1)
    assert (tmp_path / "1_x" / "a.txt").read_text() == "in between"
    assert not list(tmp_path.rglob("*.tmp"))


def killed_at(moment: int, work: object) -> bool:
    """Do something in a process that is killed before its `moment`-th flush, rename or removal; whether it was."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status)
    count = 0

    def counting(name: str) -> None:
        real = getattr(os, name)

        def call(*given: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        setattr(os, name, call)

    for name in ("fsync", "replace", "unlink"):
        counting(name)
    try:
        work()  # type: ignore[operator]
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
@pytest.mark.parametrize("way", ["apply", "undo", "redo"])
def test_killed_at_any_moment_every_caption_is_whole_and_the_rest_is_said(
    album: Album, tmp_path: Path, way: str
) -> None:
    before, undoing = contents(tmp_path), way == "undo"
    planned = changes.preview([album.entries[0], *album.entries[4:]], [Prefix("x ")])
    after = before | {path.caption.relative_to(tmp_path).as_posix(): path.new.encode() for path in planned.changes}
    moment, told = 0, set()
    while True:
        moment += 1
        back = moment % 2 == 0
        if way != "apply":
            changes.apply(planned)
        if way == "redo":
            changes.undo(album.paths)
        works = {"apply": lambda: changes.apply(planned), "undo": lambda: changes.undo(album.paths)}
        if not killed_at(moment, works.get(way, lambda: changes.redo(album.paths))):
            break
        now = {name: content for name, content in contents(tmp_path).items() if not name.endswith(".tmp")}
        assert all(now.get(name) in (before.get(name), content) for name, content in after.items())
        cut_off = changes.unfinished(album.paths)
        for each in cut_off:
            new = before if undoing else after
            assert all(
                now.get(path.relative_to(tmp_path).as_posix()) == new.get(path.relative_to(tmp_path).as_posix())
                for path in each.done
            )
            assert not each.foreign
            told.add(len(each.done))
            with pytest.raises(StateError, match="was cut off"):
                changes.apply(planned)
            settled = changes.take_back(each) if back else changes.finish(each)
            assert not settled.conflicts
            wanted = before if undoing is not back else after
            assert contents(tmp_path) == wanted
        assert not changes.unfinished(album.paths)
        while changes.undo(album.paths):
            pass
        assert contents(tmp_path) == before
    assert moment > 15
    assert told >= {1, 2}


def test_a_stop_is_like_a_kill_and_can_be_finished(album: Album, tmp_path: Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == changes.WRITING and done == 2:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        changes.apply(changes.preview(album.entries, [Prefix("x ")]), stop)
    (cut_off,) = changes.unfinished(album.paths)
    assert (len(cut_off.done), len(cut_off.pending), cut_off.title) == (2, 4, "'x ' put in front")
    (tmp_path / "2_y" / "a.txt").write_text("somebody's")
    (cut_off,) = changes.unfinished(album.paths)
    assert cut_off.foreign == (tmp_path / "2_y" / "a.txt",)
    done = changes.finish(cut_off)
    assert (len(done.done), len(done.conflicts)) == (5, 1)
    assert (tmp_path / "2_y" / "a.txt").read_text() == "somebody's"


def test_two_at_once_are_refused(album: Album, tmp_path: Path) -> None:
    planned = changes.preview(album.entries, [Prefix("x ")])
    with journal.locked([tmp_path / "1_x"]):
        with pytest.raises(StateError, match="another window"):
            changes.apply(planned)
        assert not changes.unfinished(album.paths)
    assert len(changes.apply(planned).done) == 6


def test_other_encodings_are_read_and_converted_when_asked_for(album: Album, tmp_path: Path) -> None:
    path = tmp_path / "1_x" / "a.txt"
    path.write_bytes("café, Straße, garçon".encode("cp1252"))
    path.chmod(0o640)
    before = contents(tmp_path)
    assert detail(album.entries[0]).encoding == "cp1252"
    assert caption_of(album.entries[0]) == "café, Straße, garçon"
    assert not changes.preview(album.entries, [FindReplace("nowhere", "x")]).changes
    (change,) = changes.preview(album.entries, [Recode()]).changes
    assert (change.encoding, change.old, change.new) == ("cp1252", "café, Straße, garçon", "café, Straße, garçon")
    changes.apply(changes.preview(album.entries, [FindReplace("café", "bar")]))
    assert path.read_text(encoding="utf-8") == "bar, Straße, garçon"
    assert path.stat().st_mode & 0o777 == 0o640
    changes.undo(album.paths)
    assert contents(tmp_path) == before


def test_captions_written_one_by_one(album: Album, tmp_path: Path) -> None:
    first, second, third = album.entries[:3]
    planned = changes.preview_texts("by hand", {first: "written", second: "one\ntwo", third: "dog"})
    assert (len(planned.changes), planned.unchanged) == (2, 1)
    changes.apply(planned)
    assert (tmp_path / "1_x" / "a.txt").read_bytes() == b"written"
    assert (tmp_path / "1_x" / "b.txt").read_bytes() == b"one\r\ntwo\r\n"


def test_what_cannot_be_written_is_refused_by_name(album: Album, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("secret")
    link = tmp_path / "1_x" / "a.txt"
    link.unlink()
    link.symlink_to(elsewhere)
    (tmp_path / "1_x" / "b.txt").write_bytes(b"x" * 1_000_001)
    write_picture(tmp_path / "1_x" / "c.jpg", (8, 8))
    entries = open_folder(tmp_path).entries
    planned = changes.preview(entries, [Prefix("x ")])
    assert [(path.name, why.split(";")[0]) for path, why in planned.refused] == [
        ("a.txt", f"{link} is a link to another file"),
        ("b.txt", f"{tmp_path / '1_x' / 'b.txt'} has more than 1,000,000 bytes, which captions never have."),
    ]
    assert len(planned.changes) == 4, "two pictures share c.txt"
    changes.apply(planned)
    assert elsewhere.read_text() == "secret" and (tmp_path / "1_x" / "c.txt").read_text() == "x dog"
    shared = [entry for entry in entries if entry.caption.name == "c.txt" and entry.folder == 0]
    refused = changes.preview_texts("two texts", dict(zip(shared, ("one", "two"), strict=True))).refused
    assert [why for _, why in refused] == ["c.png shares it with c.jpg"]


def test_a_damaged_journal_is_named(album: Album, tmp_path: Path) -> None:
    changes.apply(changes.preview(album.entries, [Prefix("x ")]))
    (path,) = (tmp_path / "1_x" / journal.FOLDER).glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1].replace("a.txt", "../a.txt"), *lines[2:]]))
    with pytest.raises(DataError, match=r"is damaged .*'\.\./a\.txt' is no caption of this folder"):
        changes.undo(album.paths)


def test_as_many_changes_are_kept_as_said(album: Album, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT", 3)
    for number in range(6):
        entry = open_folder(tmp_path).entries[0]
        changes.apply(changes.preview_texts(str(number), {entry: str(number)}))
    assert [each.title for each in changes.history(album.paths)] == ["5", "4", "3", "2"]


def test_the_index_opens_what_changed(album: Album, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "2_y" / "b.png").write_bytes(b"no picture")
    index = Index(album)
    index.read()
    assert index.texts[0] == "red, cat" and 5 not in index.texts
    assert index.sizes[0] == (8, 8) and set(index.unreadable) == {4}
    opened = []
    real = changes.read_caption_text
    monkeypatch.setattr("trainer.workbench.album.read_caption_text", lambda path: opened.append(path) or real(path))
    (tmp_path / "2_y" / "c.txt").write_text("new")
    index.read()
    assert opened == [tmp_path / "2_y" / "c.txt"] and index.texts[5] == "new"
