"""Uploads: what is taken, and that nothing that is refused leaves a trace."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from tests.helpers.pictures import gradient, write_picture
from trainer.ground.errors import DataError, Stopped
from trainer.workbench import uploads
from trainer.workbench.uploads import receive


def picture(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    gradient((24, 16), seed).save(buffer, "PNG")
    return buffer.getvalue()


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pictures_captions_and_archives_are_taken(tmp_path: Path) -> None:
    (tmp_path / "upload1").write_bytes(picture(1))
    (tmp_path / "b.txt").write_text("a caption")
    members = {
        "10_cat/": b"",
        "10_cat/a.png": picture(2),
        "10_cat/a.txt": "größe".encode(),
        "__MACOSX/10_cat/._a.png": b"x",
        "10_cat/Thumbs.db": b"x",
        "notes.pdf": b"x",
    }
    archive(tmp_path / "set.zip", members)
    files = [(tmp_path / "upload1", r"C:\Users\me\b.png"), tmp_path / "b.txt", tmp_path / "set.zip"]
    done = receive(files, tmp_path / "data" / "new", [tmp_path / "data"])
    assert below(tmp_path / "data" / "new") == {
        "b.png": picture(1),
        "b.txt": b"a caption",
        "10_cat/a.png": picture(2),
        "10_cat/a.txt": "größe".encode(),
    }
    assert len(done.written) == 4
    assert done.refused == (("set.zip: notes.pdf", "it is neither a picture nor a caption (.txt, .caption)"),)
    again = receive(files, tmp_path / "data" / "new", [tmp_path / "data"])
    assert again.written == () and sum("there already" in why for _, why in again.refused) == 4


HARMFUL = {
    "../up.png": "leads out",
    "a/../../up.png": "leads out",
    "/abs.png": "leads out",
    "C:/x.png": "leads out",
    "a\\..\\..\\up.png": "leads out",
    ".hidden.png": "no name for a file",
    "a/.git/x.png": "no name for a file",
    "con.png": "Windows keeps",
    "a?.png": "no name for a file",
    "a\n.png": "no name for a file",
    "end .png /x.png": "no name for a file",
    "1/2/3/4/5.png": "folders deep",
    f"{'n' * 210}.png": "longer than",
    "page.html": "neither a picture",
    "inner.zip": "neither a picture",
    "raw.dng": "is not read",
    "fake.png": "not a picture",
    "empty.png": "the file is empty",
}


def test_names_that_lead_elsewhere_and_what_is_no_picture_are_refused(tmp_path: Path) -> None:
    contents = {name: picture() for name in HARMFUL} | {"fake.png": b"MZ program", "empty.png": b""}
    path = archive(tmp_path / "bad.zip", {**contents, "good.png": picture()})
    folder = tmp_path / "data"
    done = receive([path], folder, [folder])
    assert below(folder) == {"good.png": picture()}
    assert [path.name for path in folder.rglob("*")] == ["good.png"], "no folder is left of what was refused"
    said = {name.removeprefix("bad.zip: "): why for name, why in done.refused}
    assert len(said) == len(HARMFUL)
    for name, why in HARMFUL.items():
        assert why in next(text for told, text in said.items() if told == name[:200]), name
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bad.zip", "data"]


def test_links_passwords_and_other_packings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as file:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("locked.png", picture())
        file.writestr("odd.png", picture(), zipfile.ZIP_BZIP2)
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"locked.png") - 46
    assert raw[at : at + 4] == b"PK\x01\x02"
    raw[at + 8] |= 1
    path.write_bytes(raw)
    done = receive([path], tmp_path / "data", [tmp_path])
    assert [why.split(";")[0] for _, why in done.refused] == [
        "it is a link or no file",
        "it needs a password",
        "it is packed in a way that is not unpacked here",
    ]
    assert below(tmp_path / "data") == {}


def test_what_is_written_counts_whatever_headers_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MOST_PICTURE", 3_000_000)
    monkeypatch.setattr(uploads, "MOST_TOTAL", 8_000_000)
    archive(tmp_path / "bomb.zip", {"a.png": bytes(4_000_000), "b.txt": bytes(1_000_001), "c.png": picture()})
    assert (tmp_path / "bomb.zip").stat().st_size < 10_000
    done = receive([tmp_path / "bomb.zip"], tmp_path / "one", [tmp_path])
    too_much = ["it has more than 3,000,000 bytes", "it has more than 1,000,000 bytes"]
    assert [why for _, why in done.refused] == too_much
    assert below(tmp_path / "one") == {"c.png": picture()}
    many = archive(tmp_path / "many.zip", {f"{number}.png": bytes(2_000_000) for number in range(9)})
    done = receive([many, tmp_path / "bomb.zip"], tmp_path / "two", [tmp_path])
    assert done.refused[-1][1].startswith("there is no room for more")
    assert below(tmp_path / "two") == {}


def test_too_many_files_are_refused_before_their_list_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "many.zip", {f"{number}.png": picture() for number in range(5)})
    monkeypatch.setattr(uploads, "MOST_FILES", 4)
    assert receive([path], tmp_path / "data", [tmp_path]).refused == (("many.zip", "it has more than 4 files"),)
    monkeypatch.setattr(uploads, "MOST_FILES", 5)
    done = receive([path, write_picture(tmp_path / "x.png")], tmp_path / "data", [tmp_path])
    assert len(done.written) == 5 and "at most 5 files" in done.refused[0][1]


@pytest.mark.parametrize("damage", ["cut", "rubbish", "crc"])
def test_damaged_archives_are_said_and_leave_nothing(tmp_path: Path, damage: str) -> None:
    path = archive(tmp_path / "a.zip", {"a.txt": b"caption " * 50}, zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    if damage == "cut":
        raw = raw[:-30]
    elif damage == "rubbish":
        raw = bytearray(b"rubbish" + struct.pack("<L", 7)) * 20
    else:
        raw[60] ^= 0xFF
    path.write_bytes(raw)
    done = receive([path], tmp_path / "data", [tmp_path])
    assert len(done.refused) == 1 and done.written == ()
    assert below(tmp_path / "data") == {}


def test_only_allowed_folders_are_written(tmp_path: Path) -> None:
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    outside.mkdir()
    (allowed / "link").symlink_to(outside)
    source = write_picture(tmp_path / "a.png")
    for folder in (outside, allowed / ".." / "outside", allowed / "link", allowed / "link" / "deeper"):
        with pytest.raises(DataError, match="outside the folders that may be written"):
            receive([source], folder, [allowed])
    packed = archive(tmp_path / "a.zip", {"link/x.png": picture()})
    assert "a link that leads elsewhere" in receive([packed], allowed, [allowed]).refused[0][1]
    assert list(outside.iterdir()) == []


def test_a_stop_keeps_what_was_taken_whole(tmp_path: Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if done == 2:
            raise Stopped("enough")

    files = [write_picture(tmp_path / f"{number}.png") for number in range(4)]
    with pytest.raises(Stopped):
        receive(files, tmp_path / "data", [tmp_path], stop)
    assert sorted(below(tmp_path / "data")) == ["0.png", "1.png"]
