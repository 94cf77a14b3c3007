"""The scan: kohya's layout, captions, what is refused and what is said."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.damage import damaged_picture
from tests.helpers.pictures import data_config, gradient, write_folder, write_picture
from trainer.ground.errors import ConfigError, DataError, Stopped
from trainer.pictures.image_headers import UNREADABLE, read_size, why_foreign
from trainer.pictures.report import dataset_dirs, tag_frequency
from trainer.pictures.scan import scan, split_name

FORMATS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "avif")


def test_kohya_layout(tmp_path: Path) -> None:
    write_folder(tmp_path / "train" / "10_tok class_b", 2)
    write_folder(tmp_path / "train" / "3_other", 3, caption="red, Red, blue")
    write_folder(tmp_path / "reg" / "1_class", 4)
    report = scan(data_config(tmp_path / "train", tmp_path / "reg"))
    shown = [(folder.name, folder.repeats, folder.class_tokens, folder.regularisation) for folder in report.folders]
    assert shown == [
        ("10_tok class_b", 10, "tok class_b", False),
        ("3_other", 3, "other", False),
        ("1_class", 1, "class", True),
    ]
    assert (report.train_count, report.reg_count, report.train_images, report.reg_images) == (29, 4, 5, 4)
    assert dataset_dirs(report.train_folders) == {
        "10_tok class_b": {"n_repeats": 10, "img_count": 2},
        "3_other": {"n_repeats": 3, "img_count": 3},
    }
    assert dataset_dirs(report.reg_folders) == {"1_class": {"n_repeats": 1, "img_count": 4}}
    assert tag_frequency(report) == {
        "10_tok class_b": {"tok class_b": 2},
        "3_other": {"red": 6, "blue": 3},
        "1_class": {"class": 4},
    }
    json.dumps(report.to_json())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("10_a b_c", (10, "a b_c")),
        ("1_", (1, "")),
        ("7", (7, "")),
        ("0_a", (0, "a")),
        ("a_10", None),
        ("10a_b", None),
        ("-1_a", None),
        ("_a", None),
    ],
)
def test_folder_names(name: str, expected: object) -> None:
    assert split_name(name) == expected


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_is_read(tmp_path: Path, extension: str) -> None:
    write_picture(tmp_path / f"a.{extension}", (40, 24))
    (picture,) = scan(data_config(tmp_path)).folders[0].pictures
    assert picture.size == (40, 24)
    assert picture.bytes == (tmp_path / f"a.{extension}").stat().st_size


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_as_seen(tmp_path: Path, extension: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    gradient((40, 24)).save(tmp_path / f"a.{extension}", exif=exif)
    assert read_size(tmp_path / f"a.{extension}") == ((24, 40) if orientation > 4 else (40, 24))


def test_orientation_written_after_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", (40, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    body = exif.tobytes().removeprefix(b"Exif\x00\x00")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    data = path.read_bytes()
    path.write_bytes(data[:-12] + chunk + data[-12:])
    assert read_size(path) == (24, 40)


def test_order_is_by_name_and_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "C.png", "._a.png"):
        gradient((8, 8)).save(tmp_path / name, "PNG")
    (folder,) = scan(data_config(tmp_path)).folders
    assert [picture.path.name for picture in folder.pictures] == ["C.png", "a.PNG", "b.png"]


def test_plain_folder_counts_once_and_says_so(tmp_path: Path) -> None:
    write_folder(tmp_path / "cats", 2)
    report = scan(data_config(tmp_path / "cats"))
    assert report.train_count == 2
    assert report.folders[0].pictures[0].caption == "cats"
    assert "plain folder" in report.notices[0] and "1 repeat" in report.notices[0]


def test_numbered_folder_chosen_directly_keeps_its_repeats_and_says_so(tmp_path: Path) -> None:
    write_folder(tmp_path / "5_tok cat", 2)
    report = scan(data_config(tmp_path / "5_tok cat"))
    assert (report.train_count, report.folders[0].class_tokens) == (10, "tok cat")
    assert "itself a numbered folder" in report.notices[0]


def test_folders_passed_over_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "2_a", 1)
    write_folder(tmp_path / "b", 1)
    write_folder(tmp_path / "0_c", 1)
    write_picture(tmp_path / "loose.png")
    report = scan(data_config(tmp_path))
    assert [folder.name for folder in report.folders] == ["2_a"]
    text = "\n".join(report.notices)
    assert "0 repeats: 0_c." in text and "as in '10_b': b." in text and "loose.png" in text


def test_empty_folder_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "5_cat").mkdir()
    with pytest.raises(DataError) as error:
        scan(data_config(tmp_path))
    for part in ("train_data_dir", str(tmp_path), ".png", ".avif", "10_mycat cat"):
        assert part in str(error.value)
    with pytest.raises(DataError, match="choose the folder that holds it"):
        scan(data_config(tmp_path / "5_cat"))


def test_unnumbered_subfolders_are_pointed_at(tmp_path: Path) -> None:
    write_folder(tmp_path / "cats", 1)
    with pytest.raises(DataError, match="rename to '10_cats'"):
        scan(data_config(tmp_path))


def test_empty_regularisation_folder_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train" / "1_a", 1)
    (tmp_path / "reg").mkdir()
    with pytest.raises(DataError, match="reg_data_dir"):
        scan(data_config(tmp_path / "train", tmp_path / "reg"))


def test_missing_folders_are_all_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        scan(data_config(tmp_path / "none", tmp_path / "nothing"))
    assert [problem.key for problem in error.value.problems] == ["train_data_dir", "reg_data_dir"]
    with pytest.raises(ConfigError, match="is a file"):
        scan(data_config(write_picture(tmp_path / "a.png")))


def test_captions(tmp_path: Path) -> None:
    folder = tmp_path / "1_tok"
    write_picture(folder / "bom.png").with_suffix(".txt").write_bytes("\ufeffgrüße, 日本\r\n".encode())
    write_picture(folder / "lines.png", caption="\n  one \n\n two\n")
    write_picture(folder / "empty.png", caption=" \n")
    write_picture(folder / "none.png")
    write_picture(folder / "old.png").with_suffix(".caption").write_text("old style")
    write_picture(folder / "both.png", caption="new style").with_suffix(".caption").write_text("old style")
    report = scan(data_config(tmp_path))
    captions = {picture.path.stem: picture.caption for picture in report.folders[0].pictures}
    assert captions == {
        "bom": "grüße, 日本",
        "lines": "one\ntwo",
        "empty": "",
        "none": "tok",
        "old": "old style",
        "both": "new style",
    }
    assert [p.path.name for p in report.folders[0].pictures if p.caption_missing] == ["none.png"]
    text = "\n".join(report.notices)
    assert all(name in text for name in ("none.png", "empty.txt", "lines.txt", "old.caption"))
    assert tag_frequency(report)["1_tok"] == {"grüße": 1, "日本": 1, "one": 1, "tok": 1, "old style": 1, "new style": 1}
    assert tag_frequency(report, all_lines=True)["1_tok"]["one\ntwo"] == 1


def test_what_stands_for_a_caption_that_is_not_there_is_said(tmp_path: Path) -> None:
    for name in ("10_sks cat", "10_", "a", "b"):
        write_picture(tmp_path / name / f"{name[-1]}.png")
    said = " ".join(scan(data_config(tmp_path)).notices)
    assert "No caption for 1 picture, the folder's name is used: t.png." in said
    assert "No caption for 1 picture, trained without a text: _.png." in said
    subsets = [{"image_dir": str(tmp_path / "a"), "class_tokens": "sks cat"}, {"image_dir": str(tmp_path / "b")}]
    said = " ".join(scan(data_config("", datasets=[{"subsets": subsets}])).notices)
    assert "No caption for 1 picture, class_tokens are used: a.png." in said
    assert "No caption for 1 picture, trained without a text: b.png." in said


def test_caption_extension_falls_back_to_txt_for_caption(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", caption="from txt")
    (folder,) = scan(data_config(tmp_path, caption_extension=".caption")).folders
    assert folder.pictures[0].caption == "from txt"


def test_caption_that_is_not_utf8_is_refused_by_name(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png").with_suffix(".txt").write_bytes(b"caf\xe9, cat")
    with pytest.raises(DataError, match=r"a\.txt is not UTF-8") as refusal:
        scan(data_config(tmp_path))
    assert refusal.value.remedy.endswith("recode FOLDER.")
    write_picture(tmp_path / "b.png").with_suffix(".caption").write_bytes(b"caf\xe9, dog")
    with pytest.raises(DataError) as refusal:
        scan(data_config(tmp_path))
    assert refusal.value.remedy.endswith(
        "recode FOLDER --caption_extension .caption and python launch.py recode FOLDER."
    )


@pytest.mark.parametrize("extension", FORMATS)
def test_cut_off_pictures_are_left_out_by_name(tmp_path: Path, extension: str) -> None:
    write_picture(tmp_path / "good.png")
    image = Image.effect_noise((96, 96), 60).convert("RGB")
    image.save(tmp_path / f"torn.{extension}")
    data = (tmp_path / f"torn.{extension}").read_bytes()
    (tmp_path / f"torn.{extension}").write_bytes(data[: len(data) * 6 // 10])
    report = scan(data_config(tmp_path))
    assert [picture.path.name for picture in report.folders[0].pictures] == ["good.png"]
    assert [path.name for path, _ in report.unreadable] == [f"torn.{extension}"]
    assert any(f"torn.{extension}" in notice for notice in report.notices)


def test_what_follows_the_end_of_a_jpeg_is_nobodys_business(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.jpg", (40, 24))
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert read_size(path) == (40, 24)


def test_nothing_readable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(DataError) as error:
        scan(data_config(tmp_path))
    assert "a.png" in str(error.value) and "the file is empty" in str(error.value)


def test_pictures_of_kinds_not_read_are_named(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(b"...")
    assert any("b.heic" in notice for notice in scan(data_config(tmp_path)).notices)


def giant_png(side: int) -> bytes:
    """A PNG that claims `side` x `side` pixels in a few bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def test_decompression_bombs_are_left_out(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "bomb.png").write_bytes(giant_png(60_000))
    report = scan(data_config(tmp_path))
    assert [path.name for path, _ in report.unreadable] == ["bomb.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_in_circles_and_pipes_do_no_harm(tmp_path: Path) -> None:
    write_picture(tmp_path / "1_a" / "a.png")
    (tmp_path / "1_a" / "2_loop").symlink_to(tmp_path)
    (tmp_path / "3_loop").symlink_to(tmp_path / "3_loop")
    (tmp_path / "1_a" / "self.png").symlink_to(tmp_path / "1_a" / "self.png")
    os.mkfifo(tmp_path / "1_a" / "pipe.png")
    report = scan(data_config(tmp_path))
    assert [(folder.name, len(folder.pictures)) for folder in report.folders] == [("1_a", 1)]


def test_progress_may_stop_the_scan(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    seen: list[tuple[int, int]] = []

    def progress(phase: str, done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        scan(data_config(tmp_path), progress)
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_a_thousand_pictures_take_well_under_two_seconds(tmp_path: Path) -> None:
    folder = tmp_path / "1_a"
    sample = {name: write_picture(tmp_path / name, (256, 192)).read_bytes() for name in ("a.png", "a.jpg", "a.webp")}
    folder.mkdir()
    for index in range(1000):
        name = ("a.png", "a.jpg", "a.webp")[index % 3]
        (folder / f"{index:04d}{Path(name).suffix}").write_bytes(sample[name])
        (folder / f"{index:04d}.txt").write_text("a, b")
    start = time.process_time()
    report = scan(data_config(tmp_path))
    assert report.train_count == 1000
    assert time.process_time() - start < 1.5


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FORMATS), st.data())
def test_damaged_files_raise_only_what_the_scan_expects(tmp_path: Path, extension: str, data: st.DataObject) -> None:
    damaged = damaged_picture(tmp_path, extension, data)
    try:
        width, height = read_size(damaged)
    except UNREADABLE:
        return
    assert width > 0 and height > 0


def test_pictures_of_phones_are_read_where_their_package_is_there(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    (tmp_path / "10_cat").mkdir()
    gradient((96, 64)).save(tmp_path / "10_cat" / "a.heic")
    gradient((96, 64)).save(tmp_path / "10_cat" / "torn.heic")
    torn = tmp_path / "10_cat" / "torn.heic"
    torn.write_bytes(torn.read_bytes()[:-200])
    report = scan(data_config(tmp_path))
    assert [(picture.path.name, picture.size) for picture in report.folders[0].pictures] == [("a.heic", (96, 64))]
    assert [path.name for path, _ in report.unreadable] == ["torn.heic"]


def test_pictures_of_phones_name_the_package_that_is_missing() -> None:
    assert why_foreign(".heic") == "reading .heic needs the package pillow-heif (pip install pillow-heif)"
