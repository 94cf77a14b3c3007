"""Buckets: sd-scripts' numbers, and promises that hold for every picture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.pictures import GOLDEN
from trainer.families.sdxl.sizes import crop, size_numbers
from trainer.ground.errors import ConfigError
from trainer.pictures.buckets import Buckets, bucket_resolutions, covering

SIDES = st.integers(1, 20_000)
CASES = [pytest.param(case, id=f"{case['resolution']}-{case['min']}-{case['steps']}") for case in GOLDEN["buckets"]]


def golden_buckets(case: dict) -> Buckets:
    return Buckets(tuple(case["resolution"]), case["min"], case["max"], case["steps"], no_upscale=False)


@pytest.mark.parametrize("case", CASES)
def test_list_is_that_of_sd_scripts(case: dict) -> None:
    assert golden_buckets(case).resolutions == tuple(map(tuple, case["resolutions"]))


@pytest.mark.parametrize("case", CASES)
def test_choice_is_that_of_sd_scripts(case: dict) -> None:
    buckets = golden_buckets(case)
    for expected in case["select"]:
        placement = buckets.choose(tuple(expected["image"]))
        assert placement.bucket == tuple(expected["bucket"])
        assert placement.resized == tuple(expected["resized"])
        assert placement.ar_error == pytest.approx(expected["ar_error"], abs=1e-6)
        assert crop(placement.original, placement.bucket) == pytest.approx(expected["crop_ltrb"], rel=1e-9)


@pytest.mark.parametrize("case", GOLDEN["no_upscale_at_512"], ids=lambda case: str(case["image"]))
def test_no_upscale_choice_is_that_of_sd_scripts(case: dict) -> None:
    placement = Buckets((512, 512)).choose(tuple(case["image"]))
    assert (placement.resized, placement.bucket) == (tuple(case["resized"]), tuple(case["bucket"]))
    assert placement.ar_error == pytest.approx(case["ar_error"], abs=1e-6)


BUCKETS = st.fixed_dictionaries(
    {
        "resolution": st.tuples(st.integers(64, 2048), st.integers(64, 2048)),
        "minimum": st.integers(64, 512),
        "maximum": st.integers(512, 4096),
        "steps": st.sampled_from([8, 32, 64, 96, 128]),
        "no_upscale": st.booleans(),
        "enable": st.booleans(),
    }
)


@given(SIDES, SIDES, BUCKETS)
def test_every_placement_covers_its_bucket(width, height, options) -> None:
    try:
        buckets = Buckets(**options)
    except ConfigError:
        return
    placement = buckets.choose((width, height))
    (bucket_width, bucket_height), (resized_width, resized_height) = placement.bucket, placement.resized
    assert bucket_width % 8 == 0 and bucket_height % 8 == 0
    assert bucket_width > 0 and bucket_height > 0
    # As with sd-scripts, sides are rounded to whole pixels before they are cut to steps.
    assert (bucket_width - 1) * (bucket_height - 1) <= options["resolution"][0] * options["resolution"][1]
    assert 0 <= placement.left <= resized_width - bucket_width
    assert 0 <= placement.top <= resized_height - bucket_height
    if options["enable"]:
        assert bucket_width % options["steps"] == 0 and bucket_height % options["steps"] == 0
    if not (options["enable"] and options["no_upscale"]):
        assert placement.bucket in buckets.resolutions


@given(st.integers(64, 20_000), st.integers(64, 20_000))
def test_no_upscale_never_enlarges_what_has_room_for_a_bucket(width, height) -> None:
    placement = Buckets((512, 512), no_upscale=True).choose((width, height))
    if width / height < 60 and height / width < 60:
        assert not placement.upscaled


@pytest.mark.parametrize("size", [(1, 1), (63, 63), (10, 3000), (20_000, 2)])
def test_tiny_pictures_get_one_step_instead_of_none(size) -> None:
    placement = Buckets((512, 512)).choose(size)
    assert min(placement.bucket) == 64
    assert placement.upscaled


def test_without_buckets_every_picture_goes_to_the_resolution() -> None:
    placement = Buckets((512, 768), enable=False).choose((1000, 1000))
    assert (placement.bucket, placement.resized, placement.left, placement.top) == ((512, 768), (768, 768), 128, 0)


def test_conditioning_of_a_mirrored_picture_mirrors_the_cut() -> None:
    placement = Buckets((768, 768), no_upscale=False).choose((640, 480))
    assert size_numbers(placement, flipped=False) == (480, 640, 0, 21, 640, 896)
    assert size_numbers(placement, flipped=True) == (480, 640, 0, 21, 640, 896)
    uneven = Buckets((512, 512), no_upscale=False).choose((600, 601))
    assert size_numbers(uneven, flipped=False)[3] == 0
    assert size_numbers(uneven, flipped=True)[3] == int(512 - 511.14808652246256)


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"resolution": (128, 512)}, ["resolution"]),
        ({"resolution": (2048, 512)}, ["resolution"]),
        ({"resolution": (128, 2048)}, ["resolution", "resolution"]),
        ({"resolution": (32, 512), "no_upscale": True}, ["resolution"]),
        ({"resolution": (500, 500), "enable": False}, ["resolution"]),
        ({"resolution": (512, 512), "steps": 60}, ["bucket_reso_steps"]),
        ({"resolution": (512, 512), "steps": 0}, ["bucket_reso_steps"]),
        ({"resolution": (512, 512), "steps": 40, "latent_step": 32}, ["bucket_reso_steps"]),
        ({"resolution": (520, 512), "enable": False, "latent_step": 16}, ["resolution"]),
    ],
)
def test_contradictory_sizes_are_refused_by_key(options, keys) -> None:
    with pytest.raises(ConfigError) as error:
        Buckets(**{"no_upscale": False, **options})
    assert [problem.key for problem in error.value.problems] == keys


def test_sides_are_rounded_outward_to_the_step() -> None:
    assert Buckets((256, 256), 200, 300, 64, no_upscale=False).resolutions == bucket_resolutions(
        (256, 256), 192, 320, 64
    )


@given(SIDES, SIDES)
def test_covering_covers(width, height) -> None:
    resized = covering((width, height), (512, 320))
    assert resized[0] >= 512 and resized[1] >= 320
