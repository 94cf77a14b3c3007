"""The latent cache: the same numbers every time, whatever happens to its files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.pictures import data_config, write_picture
from trainer.ground.errors import DataError, Stopped
from trainer.pictures.batches import Example, examples
from trainer.pictures.latent_cache import ENCODING, LatentCache
from trainer.pictures.pixels import load_pixels
from trainer.pictures.scan import scan
from trainer.pictures.treatment import Treatment

SIZES = [(64, 64), (128, 64), (64, 64), (64, 128), (64, 64), (128, 64)]


class Encoder:
    """A stand-in for a VAE's encoder that remembers what it was given: means are 8x8 averages."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.shapes.append(tuple(pixels.shape))
        mean = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([mean, mean.sum(1, keepdim=True)], 1)
        return mean, mean.abs() + 1


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Example, ...]:
    for index, size in enumerate(SIZES):
        write_picture(tmp_path / "data" / f"{index}.png", size, index)
    return found_in(tmp_path)


def found_in(tmp_path: Path) -> tuple[Example, ...]:
    config = data_config(tmp_path / "data", resolution="128,128")
    return examples(scan(config), config)


def filled(folder: Path | None, pictures: Sequence[Example], **options: object) -> tuple[LatentCache, Encoder]:
    cache, encoder = LatentCache(folder), Encoder()
    if options.pop("flip", False):
        pictures = [replace(each, treatment=Treatment(flip=True)) for each in pictures]
    cache.fill(pictures, encoder, str(options.pop("vae_key", "vae")), **options)  # type: ignore[arg-type]
    return cache, encoder


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "cache" if request.param == "disk" else None


def test_every_example_gets_its_own_latent(folder: Path | None, pictures: tuple[Example, ...]) -> None:
    cache, _ = filled(folder, pictures, batch=2, flip=True)
    for index, example in enumerate(pictures):
        for flipped in (False, True):
            mean, std = cache.get(index, flipped)
            expected, _ = Encoder()(load_pixels(example, flipped)[None])
            assert mean.dtype == std.dtype == torch.float32
            assert torch.allclose(mean, expected[0], atol=1e-6)
            assert torch.allclose(std, expected[0].abs() + 1, atol=1e-6)


def test_batches_are_of_one_bucket_and_no_larger_than_asked(pictures: tuple[Example, ...]) -> None:
    _, encoder = filled(None, pictures, batch=2)
    assert sorted(encoder.shapes) == [(1, 3, 64, 64), (1, 3, 128, 64), (2, 3, 64, 64), (2, 3, 64, 128)]


def test_without_flips_the_plain_latent_is_given(pictures: tuple[Example, ...]) -> None:
    cache, _ = filled(None, pictures)
    assert torch.equal(cache.get(0, True)[0], cache.get(0, False)[0])


def test_progress_counts_and_stopping_keeps_what_is_on_disk(tmp_path: Path, pictures: tuple[Example, ...]) -> None:
    seen: list[tuple[str, int, int]] = []

    def progress(phase: str, done: int, total: int) -> None:
        seen.append((phase, done, total))
        if phase == ENCODING and done == 3:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        filled(tmp_path / "cache", pictures, progress=progress)
    assert [done for phase, done, _ in seen if phase == ENCODING] == [0, 1, 2, 3]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
    _, encoder = filled(tmp_path / "cache", pictures)
    assert len(encoder.shapes) == 3


def test_second_run_encodes_nothing(tmp_path: Path, pictures: tuple[Example, ...]) -> None:
    first, _ = filled(tmp_path / "cache", pictures)
    second, encoder = filled(tmp_path / "cache", pictures)
    assert encoder.shapes == []
    assert all(
        torch.equal(a, b) for i in range(len(pictures)) for a, b in zip(first.get(i), second.get(i), strict=True)
    )


@pytest.mark.parametrize("change", ["vae", "picture", "placement", "flip"])
def test_what_decides_about_a_latent_decides_about_its_entry(
    tmp_path: Path, pictures: tuple[Example, ...], change: str
) -> None:
    filled(tmp_path / "cache", pictures)
    options: dict[str, object] = {}
    expected = 1
    if change == "vae":
        options, expected = {"vae_key": "other"}, len(pictures)
    elif change == "picture":
        write_picture(pictures[0].picture.path, SIZES[0], seed=99)
    elif change == "flip":
        options, expected = {"flip": True}, len(pictures)
    else:
        config = data_config(tmp_path / "data", resolution="64,64")
        pictures, expected = examples(scan(config), config), 3
    _, encoder = filled(tmp_path / "cache", pictures, **options)
    assert len(encoder.shapes) == expected


def test_equal_pictures_share_an_entry_whatever_they_are_called(tmp_path: Path, pictures: tuple[Example, ...]) -> None:
    shutil.copy(pictures[0].picture.path, tmp_path / "data" / "copy.png")
    cache, encoder = filled(tmp_path / "cache", found_in(tmp_path))
    assert len(encoder.shapes) == len(SIZES)
    assert torch.equal(cache.get(0)[0], cache.get(len(SIZES))[0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"not a cache file at all, whoever put it here",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data + b"more",
        lambda data: b"\xff" * 8 + data[8:],
    ],
    ids=["torn", "empty", "foreign", "one bit", "longer", "header"],
)
def test_damaged_entries_are_made_anew(tmp_path: Path, pictures: tuple[Example, ...], damage) -> None:
    clean, _ = filled(tmp_path / "cache", pictures)
    expected = [clean.get(index) for index in range(len(pictures))]
    path = min((tmp_path / "cache").rglob("*.safetensors"))
    path.write_bytes(damage(path.read_bytes()))
    cache, encoder = filled(tmp_path / "cache", pictures)
    assert len(encoder.shapes) == 1
    for index, (mean, std) in enumerate(expected):
        assert torch.equal(cache.get(index)[0], mean) and torch.equal(cache.get(index)[1], std)


def test_an_entry_under_anothers_name_is_not_believed(tmp_path: Path, pictures: tuple[Example, ...]) -> None:
    filled(tmp_path / "cache", pictures)
    first, second = sorted((tmp_path / "cache").rglob("*.safetensors"))[:2]
    shutil.copy(first, second)
    _, encoder = filled(tmp_path / "cache", pictures)
    assert len(encoder.shapes) == 1


def test_a_batch_is_encoded_whole_even_if_only_one_is_missing(tmp_path: Path, pictures: tuple[Example, ...]) -> None:
    """Batch-mates can change a latent's last bits, so a run that was cut off must batch as it would have."""
    _, first = filled(tmp_path / "cache", pictures, batch=3)
    for path in sorted((tmp_path / "cache").rglob("*.safetensors"))[:1]:
        path.unlink()
    _, again = filled(tmp_path / "cache", pictures, batch=3)
    assert len(again.shapes) == 1 and again.shapes[0] in first.shapes


def test_deleting_the_cache_is_safe_between_runs_and_said_during_one(
    tmp_path: Path, pictures: tuple[Example, ...]
) -> None:
    cache, _ = filled(tmp_path / "cache", pictures)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match=r"gone or damaged\. Resume"):
        cache.get(0)
    _, encoder = filled(tmp_path / "cache", pictures)
    assert len(encoder.shapes) == len(pictures)


def test_numbers_that_are_not_finite_are_refused_by_name(pictures: tuple[Example, ...]) -> None:
    def overflowing(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = Encoder()(pixels)
        return mean / 0, std

    with pytest.raises(DataError, match=r"no_half_vae.*\.png"):
        LatentCache().fill(pictures, overflowing, "vae")


def test_pictures_that_break_are_refused_by_name(tmp_path: Path, pictures: tuple[Example, ...]) -> None:
    pictures[1].picture.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png"):
        filled(None, pictures)
    pictures[1].picture.path.unlink()
    with pytest.raises(DataError, match=r"1\.png"):
        filled(None, pictures)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, pictures: tuple[Example, ...]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cache_latents_to_disk"):
        filled(tmp_path / "cache", pictures)


def test_where_the_settings_put_it(tmp_path: Path) -> None:
    in_memory = LatentCache.from_config(data_config(tmp_path))
    assert in_memory is not None and in_memory.folder is None
    on_disk = LatentCache.from_config(data_config(tmp_path, cache_latents_to_disk=True, output_dir=str(tmp_path)))
    assert on_disk is not None and on_disk.folder == tmp_path / "latent_cache"
    assert LatentCache.from_config(data_config(tmp_path, cache_latents=False)) is None
