"""Small versions of pictures: as they are seen, never an old one, and bounded."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.helpers.pictures import gradient, write_picture
from trainer.ground.errors import DataError
from trainer.pictures.image_headers import read_size
from trainer.workbench import thumbnails
from trainer.workbench.thumbnails import Shown, Thumbnails, view


def opened(shown: Shown) -> Image.Image:
    image = Image.open(io.BytesIO(shown.body))
    assert shown.media_type == f"image/{str(image.format).lower()}"
    image.load()
    return image


def test_a_thumbnail_is_made_once_and_anew_when_the_picture_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_picture(tmp_path / "a.png", (600, 300))
    kept = Thumbnails(tmp_path / "kept")
    first = kept.of(path)
    assert opened(first).size == (256, 128)
    monkeypatch.setattr(thumbnails, "view", lambda *_: pytest.fail("made again"))
    assert kept.of(path) == Thumbnails(tmp_path / "kept").of(path) == first
    monkeypatch.undo()
    write_picture(path, (300, 600), 3)
    assert opened(kept.of(path)).size == (128, 256)
    assert opened(kept.of(path, 64)).size == (32, 64)
    for torn in (b"", None, first.body[:-1]):
        for place in (tmp_path / "kept").rglob("*"):
            if place.is_file():
                place.write_bytes(place.read_bytes()[:50] if torn is None else torn)
        assert opened(kept.of(path)).size == (128, 256)


@pytest.mark.parametrize("name", ["a.jpg", "a.heic", "a.webp", "a.tif"])
def test_it_is_turned_as_it_is_seen(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    image = wanted = gradient((80, 40))
    if name == "a.heic":
        # In HEIF the turn stands in a box of its own, which counts; EXIF's is a copy for information.
        pytest.importorskip("pillow_heif").register_heif_opener()
    else:
        wanted = image.transpose(Image.Transpose.ROTATE_270)
    image.save(tmp_path / name, exif=exif)
    seen = opened(Thumbnails(tmp_path / "kept").of(tmp_path / name)).convert("RGB")
    assert seen.size == wanted.size == read_size(tmp_path / name)
    difference = ImageChops.difference(seen, wanted)
    assert sum(ImageStat.Stat(difference).mean) / 3 < 8


def test_transparent_and_deep_pictures_are_shown(tmp_path: Path) -> None:
    clear = gradient((32, 32)).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((32, 32)))
    clear.save(tmp_path / "clear.png")
    Image.new("I;16", (32, 32), 40000).save(tmp_path / "deep.png")
    assert opened(view(tmp_path / "clear.png")).mode == "RGBA"
    assert abs(opened(view(tmp_path / "deep.png")).convert("L").getpixel((5, 5)) - 156) < 4


def test_the_cache_stays_bounded_and_drops_what_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "_LOOK_EVERY", 2)
    paths = [write_picture(tmp_path / f"{number}.png", (64, 64), number) for number in range(12)]
    size = len(view(paths[0]).body)
    kept = Thumbnails(tmp_path / "kept", most_bytes=6 * size)
    for number, path in enumerate(paths):
        kept.of(path)
        for place in (tmp_path / "kept").rglob("*"):
            if place.is_file():
                os.utime(place, ns=(place.stat().st_mtime_ns - 10**9,) * 2)
        kept.of(paths[0])
        total = sum(place.stat().st_size for place in (tmp_path / "kept").rglob("*") if place.is_file())
        assert total <= 8 * size, number
    monkeypatch.setattr(thumbnails, "view", lambda *_: pytest.fail("the one in use was dropped"))
    kept.of(paths[0])


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="cannot be decoded"):
        Thumbnails(tmp_path / "kept").of(tmp_path / "torn.png")
    with pytest.raises(DataError, match="cannot be read"):
        Thumbnails(tmp_path / "kept").of(tmp_path / "gone.png")
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert Thumbnails(blocked).of(write_picture(tmp_path / "a.png")).body
