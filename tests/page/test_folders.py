"""Which paths the page may touch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kohya_gui.parts.folders import Folders, Refused


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("allowed/inner/.hidden", "outside", "allowed-too"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "allowed" / "model.safetensors").touch()
    (tmp_path / "allowed" / "notes.txt").touch()
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    monkeypatch.chdir(tmp_path / "allowed")
    return tmp_path


@pytest.fixture
def folders(ground: Path) -> Folders:
    return Folders([ground / "allowed"])


@pytest.mark.parametrize("way", ["{0}/allowed", "{0}/allowed/inner/new/file", "inner", ".", "{0}/outside/../allowed"])
def test_what_lies_below_is_allowed(folders: Folders, ground: Path, way: str) -> None:
    path = folders.check(way.format(ground))
    assert path.is_relative_to(ground / "allowed")


@pytest.mark.parametrize(
    "way",
    [
        "/",
        "/etc/passwd",
        "{0}",
        "{0}/outside",
        "{0}/allowed/../outside",
        "..",
        "../outside/x",
        "{0}/allowed-too",
        "{0}/allowed/link",
        "{0}/allowed/link/file",
        "{0}/allowed/inner/.hidden",
        ".ssh/id_rsa",
        "//server/share",
        "~root/x",
        "a\0b",
    ],
)
def test_everything_else_is_refused(folders: Folders, ground: Path, way: str) -> None:
    with pytest.raises(Refused):
        folders.check(way.format(ground))
    assert folders.problem(way.format(ground))


def test_a_refusal_says_how_to_allow_it(folders: Folders, ground: Path) -> None:
    assert f"--allow '{ground / 'outside'}'" in folders.problem(str(ground / "outside"))


def test_a_share_is_refused_before_it_is_looked_at(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "resolve", lambda *_: pytest.fail("looked at"))
    assert folders.problem("//server/share/x")


def test_a_root_that_is_a_link_counts(ground: Path) -> None:
    assert Folders([ground / "allowed" / "link"]).check(ground / "allowed" / "link" / "x")


def test_a_listing_shows_folders_and_wanted_files(folders: Folders, ground: Path) -> None:
    seen = folders.listing(str(ground / "allowed"), (".safetensors",))
    assert (seen.folders, seen.files, seen.parent) == (("inner", "link"), ("model.safetensors",), None)
    assert folders.listing(str(ground / "allowed" / "inner")).parent == ground / "allowed"
    assert folders.listing(str(ground / "allowed" / "inner")).folders == ()


def test_a_long_listing_is_cut(folders: Folders, ground: Path) -> None:
    for count in range(600):
        (ground / "allowed" / "inner" / f"{count}").mkdir()
    seen = folders.listing(str(ground / "allowed" / "inner"))
    assert (len(seen.folders), seen.more) == (500, True)


def test_the_nearest_folder_that_is_there(folders: Folders, ground: Path) -> None:
    assert folders.nearest(str(ground / "allowed" / "inner" / "gone" / "x.txt")) == ground / "allowed" / "inner"
    assert folders.nearest("/etc") == ground / "allowed"
    assert folders.nearest("") == ground / "allowed"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may list everything")
def test_a_closed_folder_is_told(folders: Folders, ground: Path) -> None:
    (ground / "allowed" / "inner").chmod(0)
    with pytest.raises(Refused, match="cannot be listed"):
        folders.listing(str(ground / "allowed" / "inner"))
