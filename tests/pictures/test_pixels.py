"""Decoding and fitting of real files of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests.helpers.damage import damaged_picture
from tests.helpers.pictures import GOLDEN, gradient, write_picture
from trainer.ground.errors import DataError
from trainer.pictures.batches import Example
from trainer.pictures.buckets import Buckets, Placement
from trainer.pictures.decoding import open_picture
from trainer.pictures.image_headers import read_size
from trainer.pictures.pixels import fit, load_pixels
from trainer.pictures.report import Picture

SIZE = (40, 24)


def whole(size: tuple[int, int], to: tuple[int, int]) -> Placement:
    return Placement(size, to, to, 0, 0, 0.0)


def array(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image).astype(int)


def bytes_of(pixels: torch.Tensor) -> numpy.ndarray:
    """[3, H, W] in [-1, 1] -> [H, W, 3] in 0..255."""
    return ((pixels + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "jfif", "webp", "bmp", "gif", "tif", "tiff", "avif"])
def test_every_format_decodes_to_its_colours(tmp_path: Path, extension: str) -> None:
    format_name = "JPEG" if extension == "jfif" else None
    gradient(SIZE).save(tmp_path / f"a.{extension}", format_name, quality=95)
    image = open_picture(tmp_path / f"a.{extension}")
    assert (image.mode, image.size) == ("RGB", SIZE)
    assert abs(array(image) - array(gradient(SIZE))).mean() < (8 if extension == "gif" else 3)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, extension: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{extension}"
    gradient(SIZE).save(path, exif=exif, quality=95)
    seen = open_picture(path)
    turned = ImageOps.exif_transpose(Image.open(path))
    assert seen.size == read_size(path) == turned.size
    assert (array(seen) == array(turned.convert("RGB"))).all()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 0x8080, (128, 128, 128)),
        ("I;16", 0xFFFF, (255, 255, 255)),
    ],
)
def test_transparency_goes_on_white_and_grey_becomes_rgb(tmp_path: Path, mode, colour, expected) -> None:
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png")
    assert open_picture(tmp_path / "a.png").getpixel((1, 1)) == expected


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    palette = Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4)
    palette.save(tmp_path / "plain.png")
    palette.save(tmp_path / "clear.png", transparency=palette.getpixel((0, 0)))
    palette.save(tmp_path / "clear.gif", transparency=palette.getpixel((0, 0)))
    assert open_picture(tmp_path / "plain.png").getpixel((1, 1)) == (10, 200, 30)
    assert open_picture(tmp_path / "clear.png").getpixel((1, 1)) == (255, 255, 255)
    assert open_picture(tmp_path / "clear.gif").getpixel((1, 1)) == (255, 255, 255)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    red, green, blue = open_picture(tmp_path / "a.jpg").getpixel((8, 8))
    assert red > 250 and green < 5 and blue < 5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (numpy.full((4, 4), 0x8080, numpy.uint16), 128),
        (numpy.full((4, 4), 0x8080, numpy.int32), 128),
        (numpy.full((4, 4), 0.5, numpy.float32), 128),
        (numpy.full((4, 4), 200.0, numpy.float32), 200),
        (numpy.full((4, 4), numpy.nan, numpy.float32), 0),
    ],
)
def test_deep_tiff(tmp_path: Path, values: numpy.ndarray, expected: int) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert open_picture(tmp_path / "a.tiff").getpixel((0, 0)) == (expected, expected, expected)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for extension in ("gif", "webp", "png"):
        path = tmp_path / f"a.{extension}"
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
        assert open_picture(path).getpixel((4, 4))[2] < 10


@pytest.mark.parametrize("case", GOLDEN["resize"]["cases"], ids=lambda case: str(case["to"]))
def test_scaling_is_within_a_hair_of_sd_scripts(case: dict) -> None:
    """It shrinks with OpenCV's INTER_AREA; 2/255 on average is what we allow ourselves."""
    y, x = numpy.mgrid[0:30, 0:40]
    source = Image.fromarray((((y + x)[..., None] * numpy.array([2, 3, 1])) % 256).astype(numpy.uint8))
    width, height = case["to"]
    got = bytes_of(fit(source, whole((40, 30), (width, height)), flip=False))
    assert got.shape == (height, width, 3)
    assert abs(got.sum() - case["sum"]) / got.size < 2
    assert abs(got[0, 0] - case["first"]).max() <= 2 and abs(got[-1, -1] - case["last"]).max() <= 2


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (777, 333), (64, 64), (100, 90)])
def test_scaling_and_cutting_at_once_is_scaling_then_cutting(size: tuple[int, int]) -> None:
    placement = Buckets((256, 256), 128, 512, no_upscale=False).choose(size)
    image = gradient(size, 3)
    left, top = placement.left, placement.top
    scaled = image.resize(placement.resized, Image.Resampling.LANCZOS, reducing_gap=3.0)
    expected = scaled.crop((left, top, left + placement.bucket[0], top + placement.bucket[1]))
    got = fit(image, placement, flip=False)
    assert got.shape == (3, placement.bucket[1], placement.bucket[0])
    assert abs(bytes_of(got) - array(expected)).max() <= 1


def test_a_picture_that_fits_is_not_touched_and_a_flip_mirrors_it() -> None:
    image = gradient(SIZE)
    assert (bytes_of(fit(image, whole(SIZE, SIZE), flip=False)) == array(image)).all()
    assert (bytes_of(fit(image, whole(SIZE, SIZE), flip=True)) == array(ImageOps.mirror(image))).all()
    pixels = fit(Image.new("RGB", (8, 8), "white"), whole((8, 8), (8, 8)), flip=False)
    assert pixels.dtype == torch.float32 and pixels.is_contiguous()
    assert pixels.unique().tolist() == [1.0]


def test_a_ribbon_stays_small_in_memory() -> None:
    """Scaled whole it would be 6,000,000 pixels wide."""
    placement = Buckets((512, 512)).choose((100_000, 1))
    pixels = fit(Image.new("RGB", (100_000, 1), "red"), placement, flip=False)
    assert pixels.shape[1] == 64 and pixels.shape[2] <= 4096


def example(path: Path, size: tuple[int, int], resolution: int = 64) -> Example:
    placement = Buckets((resolution, resolution)).choose(size)
    return Example(Picture(path, size, "", 1), False, 1, placement, 1.0)


def test_a_large_jpeg_decoded_small_looks_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient((1200, 800), 5).save(path, quality=95, exif=exif)
    shown = example(path, (800, 1200))
    quick = bytes_of(load_pixels(shown, flip=False))
    careful = bytes_of(fit(open_picture(path), shown.placement, flip=False))
    assert abs(quick - careful).mean() < 2


def test_what_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", (64, 64))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        load_pixels(example(path, (64, 64)), flip=False)


def test_a_picture_that_is_gone_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png is not there any more") as caught:
        load_pixels(example(tmp_path / "a.png", (64, 64)), flip=False)
    assert "Put it" in caught.value.remedy


def test_a_picture_exchanged_after_the_scan_is_refused(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", (96, 64))
    with pytest.raises(DataError, match="96x64 pixels but was 64x64"):
        load_pixels(example(path, (64, 64)), flip=False)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["png", "jpg", "webp", "bmp", "gif", "tiff", "avif"]), st.data())
def test_damaged_files_are_pictures_or_one_kind_of_error(tmp_path: Path, extension: str, data: st.DataObject) -> None:
    damaged = damaged_picture(tmp_path, extension, data)
    try:
        image = open_picture(damaged)
    except DataError:
        return
    assert image.mode == "RGB"


def test_the_transparent_grey_of_a_16_bit_png_goes_on_white(tmp_path: Path) -> None:
    """Its neighbour, which is the same grey in eight bits, stays."""
    values = numpy.array([[0x0101, 0x0102], [0x8080, 0xFFFF]], numpy.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=0x0101)
    seen = numpy.asarray(open_picture(tmp_path / "a.png"))[..., 0]
    assert seen.tolist() == [[255, 1], [128, 255]]
