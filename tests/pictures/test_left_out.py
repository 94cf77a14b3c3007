"""What a scan saw and left out is counted and named, at every depth; the folder that was meant is offered."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.checking import check_run
from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.pictures import write_folder, write_picture
from tests.helpers.runs import tiny_settings
from trainer.__main__ import COMPLETED, REFUSED, main
from trainer.pictures import listing
from trainer.pictures.encodings import fitting_encoding

Capture = pytest.CaptureFixture[str]
posix = pytest.mark.skipif(sys.platform == "win32", reason="links and sockets need a POSIX system")

ENCODED = {
    "cp1252": ("café, cat", "élan vital", "ein Mädchen, größer, süß", "“quoted” girl – standing", "it’s naïve"),
    "cp1251": ("девушка, красное платье", "Кот на столе", "портрет, улыбка, 1girl"),
    "cp932": ("女の子、赤い服", "少女, 青い目, 制服", "カタカナ"),
    "cp949": ("소녀, 빨간 옷", "고양이가 앉아 있다"),
    "gb18030": ("女孩,红色连衣裙", "一只猫坐在桌子上", "站立，微笑"),
    "utf-16": ("a cat",),
    "utf-16-le": ("a cat, red",),
    "utf-32": ("a cat",),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd15(tmp_path_factory.mktemp("ground"))


@pytest.fixture
def check(model: Path, tmp_path: Path, capsys: Capture) -> Callable[..., tuple[int, str]]:
    """Return a function that runs `train --check` on a folder and returns the exit code and all that was printed."""

    def run(train: Path, **settings: object) -> tuple[int, str]:
        values = tiny_settings(model, tmp_path, tmp_path / "out", **{"train_data_dir": str(train), **settings})
        return check_run(tmp_path, values, capsys)

    return run


Check = Callable[..., tuple[int, str]]


def test_pictures_deeper_than_the_layout_are_counted_and_named(tmp_path: Path, check: Check) -> None:
    root = tmp_path / "train"
    write_folder(root / "10_cat", 2)
    write_folder(root / "10_cat" / "closeups", 3)
    write_folder(root / "10_cat" / "raw" / "old" / "older", 4)
    write_folder(root / "notes" / "x", 1)
    code, printed = check(root)
    assert code == COMPLETED
    assert "8 pictures in folders inside other folders not used" in printed
    for part in ("10_cat/closeups (3)", "10_cat/raw/old/older (4)", "notes/x (1)"):
        assert part in printed


@posix
def test_what_is_no_file_or_leads_nowhere_is_named(
    tmp_path: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "train" / "1_cat", 2)
    for name in ("gone.png", "gone2.png", "0000.txt"):
        (folder / name).symlink_to(tmp_path / "unmounted" / name)
    os.mkfifo(folder / "pipe.png")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind("socket.png")
        code, printed = check(tmp_path / "train")
    assert code == COMPLETED
    assert "Left out 3 entries, 1_cat/0000.txt, 1_cat/gone.png, 1_cat/gone2.png: a link that leads nowhere" in printed
    assert "1_cat/pipe.png: no regular file, but a pipe" in printed
    assert "1_cat/socket.png: no regular file, but a socket" in printed


@posix
def test_a_drive_that_is_not_there_is_no_empty_folder(tmp_path: Path, check: Check) -> None:
    root = tmp_path / "train"
    (root / "10_cat").mkdir(parents=True)
    for index in range(30):
        (root / "10_cat" / f"{index:02d}.png").symlink_to(tmp_path / "drive" / f"{index}.png")
    code, printed = check(root)
    assert code == REFUSED
    assert "Left out 30 entries, 10_cat/00.png" in printed and "and 10 more: a link that leads nowhere" in printed
    (root / "10_dog").symlink_to(tmp_path / "drive")
    assert "10_dog" in check(root)[1]
    (tmp_path / "away").symlink_to(tmp_path / "drive")
    assert re.search(r"is a link to '.*drive', which is not there", check(tmp_path / "away")[1])
    (tmp_path / "nothing").mkdir()
    assert "It is empty: if it belongs to another drive" in check(tmp_path / "nothing")[1]


def test_numbered_folders_without_pictures_hidden_ones_and_other_files_are_named(tmp_path: Path, check: Check) -> None:
    folder = write_folder(tmp_path / "train" / "1_cat", 2)
    (tmp_path / "train" / "5_dog").mkdir()
    (folder / "._0000.png").write_bytes(b"x")
    for name in ("a.mp4", "b.mp4", "c.zip", "notes.md", "0000.npz"):
        (folder / name).write_bytes(b"x")
    code, printed = check(tmp_path / "train")
    assert code == COMPLETED
    assert "no pictures in 5_dog" in printed
    assert "Left out, as their names begin with a dot: 1 picture: 1_cat/._0000.png" in printed
    assert "Left out 3 files of kinds that are no pictures: .mp4 (2), .zip (1)" in printed


def test_the_project_folder_of_kohya_is_understood(tmp_path: Path, check: Check) -> None:
    for name in ("img", "log", "model", "reg"):
        (tmp_path / "project" / name).mkdir(parents=True)
    write_folder(tmp_path / "project" / "img" / "10_cat", 2)
    write_folder(tmp_path / "project" / "reg" / "1_cat", 5)
    project = tmp_path / "project"
    for chosen in (project, project / "log"):
        code, printed = check(chosen)
        assert code == REFUSED
        assert f"{project / 'img'} has 2 pictures in numbered folders: choose that" in printed
    code, printed = check(project / "img", reg_data_dir=str(project))
    assert code == REFUSED
    assert printed.startswith("reg_data_dir: ")
    assert f"{project / 'reg'} has 5 pictures" in printed


def test_another_folder_of_numbered_folders_is_offered_too(tmp_path: Path, check: Check) -> None:
    write_folder(tmp_path / "all" / "set a" / "3_cat", 2)
    write_folder(tmp_path / "all" / "set b" / "3_cat", 4)
    assert f"{tmp_path / 'all' / 'set b'} has 4 pictures in numbered folders" in check(tmp_path / "all")[1]
    write_folder(tmp_path / "plain" / "a" / "b", 2)
    assert "2 pictures in folders inside other folders not used: a/b (2)" in check(tmp_path / "plain")[1]


@posix
def test_links_in_circles_and_a_whole_disk_do_no_harm(
    tmp_path: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "train" / "1_cat", 2)
    (folder / "again").symlink_to(tmp_path / "train")
    (tmp_path / "train" / "1_loop").symlink_to(tmp_path / "train")
    code, printed = check(tmp_path / "train")
    assert code == COMPLETED
    assert "not used: 1_cat" not in printed
    monkeypatch.setattr(listing, "MOST_ENTRIES", 50)
    for index in range(300):
        write_picture(tmp_path / "train" / "1_cat" / f"deep{index}" / "a.png")
    counted = re.search(r"(\d+) pictures in folders inside", check(tmp_path / "train")[1])
    assert counted is not None and int(counted[1]) <= 51


@pytest.mark.parametrize("name", ["99999999999_cat", "1000001_cat", "9" * 200 + "_cat", "0" + "9" * 30])
def test_repeats_beyond_all_measure_are_refused_by_name(tmp_path: Path, check: Check, name: str) -> None:
    write_folder(tmp_path / "train" / name, 1)
    for chosen in (tmp_path / "train", tmp_path / "train" / name):
        code, printed = check(chosen)
        assert code == REFUSED
        assert "train_data_dir: the name of the folder" in printed and name in printed
    code, printed = check(write_folder(tmp_path / "good" / "1_cat", 1).parent, reg_data_dir=str(tmp_path / "train"))
    assert code == REFUSED
    assert printed.startswith("reg_data_dir: ")


def test_more_samples_than_an_epoch_can_have_are_refused(tmp_path: Path, check: Check) -> None:
    write_folder(tmp_path / "train" / "1000000_cat", 6)
    code, printed = check(tmp_path / "train")
    assert code == REFUSED
    assert "6,000,000 samples an epoch" in printed and "train/1000000_cat" in printed


@pytest.mark.parametrize("encoding", ENCODED)
def test_the_encoding_of_a_caption_is_told_from_its_bytes(encoding: str) -> None:
    assert [fitting_encoding(text.encode(encoding)) for text in ENCODED[encoding]] == [encoding] * len(
        ENCODED[encoding]
    )


def test_every_caption_that_is_not_utf8_is_told_at_once_and_made_so(
    tmp_path: Path, check: Check, capsys: Capture
) -> None:
    texts = {f"{key} {index}": (key, text) for key, group in ENCODED.items() for index, text in enumerate(group)}
    for name, (encoding, text) in texts.items():
        folder = tmp_path / "train" / ("1_cat" if len(name) % 2 else "2_dog")
        write_picture(folder / f"{name}.png").with_suffix(".txt").write_bytes(text.encode(encoding))
    write_picture(tmp_path / "train" / "1_cat" / "good.png", caption="grüße")
    code, printed = check(tmp_path / "train")
    assert code == REFUSED
    assert f"{len(texts)} captions are not UTF-8 text" in printed
    for encoding, group in ENCODED.items():
        assert re.search(rf"{len(group)} read as {encoding}: \w+/{encoding}", printed)
    assert "python launch.py recode FOLDER" in printed
    assert main(["recode", str(tmp_path / "train"), "--dry-run"]) == COMPLETED
    assert f"{len(texts)} of {len(texts) + 1} captions would be made UTF-8" in capsys.readouterr().out
    assert check(tmp_path / "train")[0] == REFUSED
    assert main(["recode", str(tmp_path / "train")]) == COMPLETED
    for name, (_, text) in texts.items():
        (caption,) = (tmp_path / "train").rglob(f"{name}.txt")
        assert caption.read_text(encoding="utf-8") == text
    assert check(tmp_path / "train")[0] == COMPLETED


def test_recode_refuses_what_it_cannot_do_and_changes_nothing(tmp_path: Path, capsys: Capture) -> None:
    caption = write_picture(tmp_path / "a.png").with_suffix(".txt")
    caption.write_bytes(b"caf\xe9 \x81")
    for words, said in (
        ([str(tmp_path), "--encoding", "utf8"], "a.txt is not text in utf-8: byte 3"),
        ([str(tmp_path), "--encoding", "klingon"], "encoding: "),
        ([str(tmp_path / "gone")], "folder: "),
    ):
        capsys.readouterr()
        assert main(["recode", *words]) == REFUSED
        assert said in capsys.readouterr().err
        assert caption.read_bytes() == b"caf\xe9 \x81"
    other = tmp_path / "notes.txt"
    other.write_bytes(b"\xe9")
    assert main(["recode", str(tmp_path), "--encoding", "latin-1"]) == COMPLETED
    assert caption.read_text(encoding="utf-8") == "café \x81"
    assert other.read_bytes() == b"\xe9", "it belongs to no picture"
