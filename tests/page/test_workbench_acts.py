"""What is done in the workbench is taken back and done again in its order, whatever it was; folders change sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kohya_gui.parts.folders import Folders
from kohya_gui.workbench.bench import Bench, Wanted
from kohya_gui.workbench.tasks import Tasks
from kohya_gui.workbench.workbench import Answer, Conflict, Form, Workbench
from tests.helpers.pictures import write_picture
from trainer.config import load_config
from trainer.ground.errors import DataError, StateError
from trainer.workbench import journal


@dataclass
class Place:
    """A workbench without a page, and what its form names."""

    root: Path
    chosen: dict[str, str]
    busy: list[bool] = field(default_factory=list)
    workbench: Workbench = field(init=False)
    bench: Bench = field(init=False)

    def __post_init__(self) -> None:
        form = Form(lambda: load_config(overrides=dict(self.chosen)), self.chosen.__setitem__, lambda: bool(self.busy))
        self.workbench = Workbench(Folders([self.root]), form)
        self.open(self.chosen["train_data_dir"])

    def open(self, path: str) -> None:
        self.took(self.workbench.open(path))

    def took(self, answer: Answer) -> Answer:
        self.bench = self.workbench.bench(str(answer["token"]))
        return answer

    def rename(self, name: str, **said: object) -> Answer:
        (number,) = [at for at, each in enumerate(self.bench.album.folders) if each.name == name]
        folder = self.bench.album.folders[number]
        whole = {"number": number, "repeats": folder.repeats, "class_tokens": folder.class_tokens, **said}
        answer = Tasks(self.workbench).rename_folder(self.bench, whole)
        return self.took(answer) if "token" in answer else answer

    def turn(self, way: str) -> str:
        answer = (self.workbench.undo if way == "undo" else self.workbench.redo)(self.bench, {})
        return str(self.took(answer)["told"])

    def about(self, key: str) -> object:
        return self.workbench.about(self.bench)[key]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for folder, names in (("10_zwx dog", "ab"), ("1_dog", "c")):
        for name in names:
            write_picture(tmp_path / "img" / folder / f"{name}.png", (8, 8), ord(name), f"zwx dog, {name}")
    return Place(tmp_path, {"train_data_dir": str(tmp_path / "img")})


def contents(root: Path) -> dict[str, bytes]:
    """Return every file below a folder but for journals."""
    found = [path for path in root.rglob("*") if path.is_file() and journal.FOLDER not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def entry(place: Place, name: str) -> int:
    (number,) = [each.number for each in place.bench.album.entries if each.picture.name == name]
    return number


def write(place: Place) -> None:
    said = {"id": entry(place, "a.png"), "text": "written", "was": "zwx dog, a"}
    place.workbench.write_caption(place.bench, said)


def leave_out(place: Place) -> None:
    said = {"ids": [entry(place, "b.png")], "skip": True, "title": "Left out: b.png"}
    place.workbench.remark(place.bench, said)


def change_all(place: Place) -> None:
    said = {"ids": [each.number for each in place.bench.album.entries], "kind": "suffix", "text": ", grass"}
    plan = place.workbench.preview(place.bench, said)
    place.workbench.apply(place.bench, {"plan": plan["plan"]})
    place.workbench.errands.join(10)


def name_otherwise(place: Place) -> None:
    place.rename("10_zwx dog", repeats=3, sure=True)


def to_the_others(place: Place) -> None:
    place.rename("1_dog", regularisation=True, sure=True)


def test_all_that_is_done_is_taken_back_and_done_again_in_its_order(place: Place) -> None:
    acts: list[tuple[Callable[[Place], None], str]] = [
        (write, "Caption of a.png"),
        (leave_out, "Left out: b.png"),
        (change_all, "', grass' put at the end"),
        (to_the_others, "1_dog is 1_dog now, for regularisation"),
        (name_otherwise, "10_zwx dog is 3_zwx dog now"),
    ]
    states = [contents(place.root)]
    for act, title in acts:
        act(place)
        states.append(contents(place.root))
        assert (place.about("undo"), place.about("redo")) == (title, "")
    assert len({tuple(state.items()) for state in states}) == len(acts) + 1
    for _ in range(2):
        for at in reversed(range(len(acts))):
            assert place.turn("undo").startswith(f"Taken back: {acts[at][1]}")
            assert contents(place.root) == states[at]
            assert place.about("redo") == acts[at][1]
        assert place.turn("undo") == "There is nothing to take back."
        for at, (_, title) in enumerate(acts):
            assert place.turn("redo").startswith(f"Done again: {title}")
            assert contents(place.root) == states[at + 1]
        assert place.turn("redo") == "There is nothing to do again."
    place.turn("undo")
    leave_out(place)
    assert place.about("redo") == "", "another act was done in its place"


def test_a_folder_changes_sides_and_the_form_follows(place: Place) -> None:
    root, before = place.root, contents(place.root)
    asked = place.rename("1_dog", regularisation=True, repeats=2)
    assert asked == {"old": "1_dog", "new": "2_dog", "into": str(root / "reg")}
    assert contents(root) == before and not (root / "reg").exists()
    place.rename("1_dog", regularisation=True, repeats=2, sure=True)
    assert place.chosen["reg_data_dir"] == str(root / "reg") and (root / "reg" / "2_dog" / "c.txt").exists()
    sides = {each.name: each.regularisation for each in place.bench.album.folders}
    assert sides == {"10_zwx dog": False, "2_dog": True}
    with pytest.raises(DataError, match="10_zwx dog is the only folder with pictures to learn"):
        place.rename("10_zwx dog", regularisation=True)
    place.turn("undo")
    assert contents(root) == before and not (root / "reg").exists() and place.chosen["reg_data_dir"] == ""
    place.turn("redo")
    place.rename("2_dog", regularisation=False, repeats=1, sure=True)
    assert contents(root) == before and place.chosen["reg_data_dir"] == ""
    assert not any(each.regularisation for each in place.bench.album.folders)


def test_where_a_folder_cannot_change_sides_it_is_said(place: Place) -> None:
    plain = write_picture(place.root / "plain" / "p.png", (8, 8)).parent
    place.chosen["reg_data_dir"] = str(plain)
    place.open(place.chosen["train_data_dir"])
    with pytest.raises(DataError, match="is a plain folder of pictures"):
        place.rename("1_dog", regularisation=True)
    place.chosen["reg_data_dir"] = ""
    place.busy.append(True)
    place.open(place.chosen["train_data_dir"])
    with pytest.raises(StateError, match="A run is under way"):
        place.rename("1_dog", regularisation=True, sure=True)
    assert place.about("own") is True
    place.chosen["train_data_dir"] = str(plain)
    for own in (True, False):  # also where the form has another folder since this one was opened
        assert place.about("own") is own
        with pytest.raises(DataError, match="is not the form's folder"):
            place.rename("1_dog", regularisation=True)
        place.open(str(place.root / "img"))


def test_after_a_restart_captions_are_still_turned_back_and_forth(place: Place) -> None:
    before = contents(place.root)
    change_all(place)
    after = contents(place.root)
    again = Place(place.root, place.chosen)
    assert again.about("undo") == "', grass' put at the end"
    again.turn("undo")
    assert contents(place.root) == before
    once_more = Place(place.root, place.chosen)
    assert (once_more.about("undo"), once_more.about("redo")) == ("", "', grass' put at the end")
    assert once_more.workbench.history(once_more.bench, {})["listed"] == []
    assert once_more.turn("redo") == "Done again: ', grass' put at the end: 3 captions."
    assert contents(place.root) == after
    (listed,) = once_more.workbench.history(once_more.bench, {})["listed"]  # type: ignore[misc, attr-defined]
    assert (listed["title"], listed["count"]) == ("', grass' put at the end", 3)
    leave_out(once_more)
    once_more.turn("undo")
    once_more.turn("undo")
    assert contents(place.root) == before


def test_nothing_is_written_for_pictures_that_are_gone_and_all_that_came_or_went_are_told(place: Place) -> None:
    folder = place.root / "img" / "10_zwx dog"
    ids = [each.number for each in place.bench.album.entries]
    suffix = {"ids": ids, "kind": "suffix", "text": ", x"}
    early = place.workbench.preview(place.bench, suffix)
    (folder / "a.png").rename(place.root / "a.png")
    (folder / "a.txt").unlink()
    write_picture(folder / "new.png", (8, 8))
    assert place.about("otherwise") == {"gone": 1, "new": 1}
    (row,) = place.bench.rows([entry(place, "a.png")])
    assert {"name": "broken", "title": "It cannot be read: it is not there any more."} in row["wrong"]  # type: ignore[operator]
    plan = place.workbench.preview(place.bench, suffix)
    assert (plan["changes"], plan["refused"]) == (
        2,
        [["a.txt", "a.png is not there any more. Open the folder again."]],
    )
    with pytest.raises(DataError, match=r"Not there any more: a\.png\. Nothing was written"):
        place.workbench.remark(place.bench, {"ids": ids, "skip": True})
    place.workbench.apply(place.bench, {"plan": early["plan"]})
    place.workbench.errands.join(10)
    told = place.workbench.errands.standing.result
    assert (told["written"], told["conflicts"]) == (2, [["a.txt", "its picture is not there any more"]])
    assert not (folder / "a.txt").exists() and not (folder / "pictures.json").exists()
    place.open(place.chosen["train_data_dir"])
    assert place.about("otherwise") == {"gone": 0, "new": 0}


def test_a_caption_is_edited_without_the_end_of_its_last_line_which_stays(place: Place) -> None:
    path, number = place.root / "img" / "10_zwx dog" / "a.txt", entry(place, "a.png")
    path.write_bytes(b"zwx dog\r\nsecond\r\n")
    (row,) = place.bench.rows([number])
    assert (row["caption"], row["fixed"]) == ("zwx dog\nsecond", "")
    place.workbench.write_caption(place.bench, {"id": number, "text": "zwx dog\nsecond, x", "was": row["caption"]})
    assert path.read_bytes() == b"zwx dog\r\nsecond, x\r\n"
    path.write_bytes(b"x" * 1_000_001)
    (row,) = place.bench.rows([number])
    assert "captions never have" in str(row["fixed"]) and row["size"] == (8, 8)
    assert [each["name"] for each in row["wrong"]] == ["too small"]  # type: ignore[attr-defined]


def test_what_another_did_is_not_taken_back_unseen(place: Place) -> None:
    write(place)
    shown = dict(place.about("marks"))  # type: ignore[call-overload]
    said = {"id": entry(place, "a.png"), "text": "of another tab", "was": "written"}
    place.workbench.write_caption(place.bench, said)
    before = contents(place.root)
    with pytest.raises(StateError, match="would take back 'Caption of a.png' now: something was done elsewhere"):
        place.workbench.undo(place.bench, {"mark": shown["undo"]})
    assert contents(place.root) == before
    place.workbench.undo(place.bench, {"mark": dict(place.about("marks"))["undo"]})  # type: ignore[call-overload]
    place.workbench.undo(place.bench, {"mark": shown["undo"]})
    leave_out(place)
    with pytest.raises(StateError, match="take back 'Left out: b.png' now"):
        place.workbench.undo(place.bench, {"mark": shown["undo"]})


def test_all_tabs_see_what_one_writes_and_what_another_program_does(place: Place) -> None:
    other = place.workbench.bench(str(place.workbench.open(place.chosen["train_data_dir"])["token"]))
    for each in (place.bench, other):
        assert each.ready.wait(10) and "written" not in each.tags()
    write(place)
    assert other.tags()["written"] == 1
    with pytest.raises(Conflict, match="changed elsewhere in the meantime. It is now: 'written'"):
        place.workbench.write_caption(other, {"id": entry(place, "a.png"), "text": "x", "was": "zwx dog, a"})
    (place.root / "img" / "10_zwx dog" / "a.txt").write_text("of another program")
    (place.root / "img" / "10_zwx dog" / "b.txt").unlink()
    place.workbench.look_again(other)
    assert other.ready.wait(10) and other.view(Wanted(problem="caption missing")) == [entry(place, "b.png")]
    assert "of another program" in other.tags() and "written" not in other.tags()


def test_tags_that_differ_in_capitals_are_one_in_counts_and_filters(place: Place) -> None:
    (place.root / "img" / "10_zwx dog" / "a.txt").write_text("Red  Hair, x")
    (place.root / "img" / "10_zwx dog" / "b.txt").write_text("red hair")
    place.open(place.chosen["train_data_dir"])
    place.bench.ready.wait(10)
    tag, count = next(iter(place.bench.tags().items()))
    assert count == len(place.bench.view(Wanted(tags=(tag,)))) == 2


def test_each_tab_comes_back_to_its_own_folder(place: Place) -> None:
    mine, other = str(place.root / "img"), str(place.root / "img" / "1_dog")
    token = place.about("token")
    place.open(other)
    assert place.workbench.state()["path"] == other
    assert (place.workbench.state(mine)["path"], place.workbench.state(mine)["token"]) == (mine, token)
    assert place.workbench.state(str(place.root / "gone"))["token"] == ""


def test_a_preview_that_is_not_wanted_is_forgotten(place: Place) -> None:
    said = {"ids": [entry(place, "a.png")], "kind": "suffix", "text": ", grass"}
    plan = place.workbench.preview(place.bench, said)
    place.workbench.errands.start("Captions by a model", lambda progress: plan)
    place.workbench.errands.join(10)
    assert place.workbench.errands.standing.result["plan"] == plan["plan"]
    place.workbench.drop(place.bench, {"plan": plan["plan"]})
    assert place.workbench.errands.standing.result == {}
    with pytest.raises(DataError, match="not kept any more"):
        place.workbench.apply(place.bench, {"plan": plan["plan"]})
