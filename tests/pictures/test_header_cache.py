"""What is remembered of pictures: only new and changed ones are opened again, and nothing stale is believed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.pictures import data_config, write_picture
from trainer.ground.files import CACHE_VARIABLE, cache_folder
from trainer.pictures import header_cache
from trainer.pictures import latent_cache as caching
from trainer.pictures import sizes as sizing
from trainer.pictures.batches import examples
from trainer.pictures.latent_cache import LatentCache
from trainer.pictures.report import DatasetReport
from trainer.pictures.scan import scan

Opened = list[str]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opened:
    """The names of the pictures that scans open, in a cache folder of this test's own; three are worth an index."""
    names: Opened = []
    read = sizing.read_size

    def read_size(path: Path) -> tuple[int, int]:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(sizing, "read_size", read_size)
    monkeypatch.setattr(sizing, "WORTH", 3)
    monkeypatch.setattr(header_cache, "_SETTLED", -(10**9))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return names


def folder(tmp_path: Path, count: int = 4) -> Path:
    for index in range(count):
        write_picture(tmp_path / "data" / f"{index}.png", (40 + index, 24), index, f"caption {index}")
    return tmp_path / "data"


def look(data: Path, opened: Opened) -> tuple[DatasetReport, Opened]:
    opened.clear()
    report = scan(data_config(data))
    return report, list(opened)


def test_a_second_scan_opens_no_picture_and_says_the_same(tmp_path: Path, opened: Opened) -> None:
    data = folder(tmp_path)
    first, all_of_them = look(data, opened)
    again, none = look(data, opened)
    assert len(all_of_them) == 4 and none == []
    assert again == first


def test_only_new_and_changed_pictures_are_opened(tmp_path: Path, opened: Opened) -> None:
    data = folder(tmp_path)
    look(data, opened)
    write_picture(data / "1.png", (90, 33), 7)
    write_picture(data / "new.png", (50, 50), 8)
    (data / "0.png").unlink()
    (data / "2.txt").write_text("another caption")
    report, seen = look(data, opened)
    assert seen == ["1.png", "new.png"]
    assert [picture.size for picture in report.folders[0].pictures] == [(90, 33), (42, 24), (43, 24), (50, 50)]
    assert report.folders[0].pictures[1].caption == "another caption"
    assert look(data, opened)[1] == []


def test_a_change_that_keeps_length_and_time_is_seen(tmp_path: Path, opened: Opened) -> None:
    data = folder(tmp_path)
    path = write_picture(data / "1.bmp", (40, 24), 1)
    look(data, opened)
    before = path.stat()
    write_picture(path, (24, 40), 1)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    report, seen = look(data, opened)
    assert seen == ["1.bmp"]
    assert (24, 40) in [picture.size for picture in report.folders[0].pictures]


def test_what_was_written_a_moment_ago_is_opened_again(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(header_cache, "_SETTLED", 10**12)
    data = folder(tmp_path)
    look(data, opened)
    assert len(look(data, opened)[1]) == 4


def test_unreadable_pictures_are_looked_at_each_time(tmp_path: Path, opened: Opened) -> None:
    data = folder(tmp_path)
    (data / "broken.png").write_bytes(b"no picture")
    first, _ = look(data, opened)
    again, seen = look(data, opened)
    assert seen == ["broken.png"]
    assert again.unreadable == first.unreadable and len(again.unreadable) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"format": 3}',
        lambda text: text.replace('"4', '["4'),
        lambda text: json.dumps({**json.loads(text), "folder": "/another"}),
        lambda text: json.dumps({**json.loads(text), "pictures": {"0.png": [1, 2], "1.png": "9 9 9 9 9"}}),
        lambda text: json.dumps({**json.loads(text), "pictures": [1]}),
    ],
    ids=["torn", "list", "foreign", "no JSON", "another folder", "other entries", "no table"],
)
def test_a_damaged_index_is_not_believed(tmp_path: Path, opened: Opened, damage: Callable[[str], str]) -> None:
    data = folder(tmp_path)
    first, _ = look(data, opened)
    (index,) = (tmp_path / "cache" / "pictures").iterdir()
    index.write_text(damage(index.read_text()))
    again, seen = look(data, opened)
    assert len(seen) == 4
    assert again == first


def test_a_cache_that_cannot_be_written_does_not_stop_a_scan(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(look(folder(tmp_path), opened)[0].folders[0].pictures) == 4


def test_only_new_and_changed_pictures_are_read_to_find_their_latents(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "WORTH", 3)
    read, sha256_of = [], caching.sha256_of
    monkeypatch.setattr(caching, "sha256_of", lambda path: (read.append(path.name), sha256_of(path))[1])
    data = folder(tmp_path)

    def filled() -> tuple[LatentCache, list[str]]:
        read.clear()
        config = data_config(data, resolution="64,64", min_bucket_reso=64, bucket_no_upscale=False)
        cache = LatentCache(tmp_path / "latents")
        cache.fill(examples(scan(config), config), lambda pixels: (pixels[:, :, ::8, ::8],) * 2, "vae")
        return cache, list(read)

    first, all_of_them = filled()
    again, none = filled()
    assert len(all_of_them) == 4 and none == []
    assert all(again.get(index)[0].equal(first.get(index)[0]) for index in range(4))
    write_picture(data / "1.png", (41, 24), 9)
    changed, one = filled()
    assert one == ["1.png"]
    assert [changed.get(index)[0].equal(first.get(index)[0]) for index in range(4)] == [True, False, True, True]


def test_small_folders_leave_nothing_behind(tmp_path: Path, opened: Opened) -> None:
    look(folder(tmp_path, count=2), opened)
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_in_the_home_where_nothing_else_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(CACHE_VARIABLE)
    for name in ("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path)
