"""Large pictures go through the VAE in strips and come out as if they had gone through whole."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tests.helpers.families import TINY
from trainer import families
from trainer.config import load_config
from trainer.config.files import PROJECT
from trainer.families.unet import tiled_vae
from trainer.families.unet.bundle import StableBundle

TOLERANCE = 2e-5
"""Of the latents' standard deviation, in float32; the docs name it."""


@pytest.fixture(scope="module", params=["random", "trained"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StableBundle:
    path = PROJECT / "demo" / "model.safetensors"
    if request.param == "random":
        path = TINY["sdxl"].write_file(tmp_path_factory.mktemp("models") / "tiny.safetensors")
    config = load_config(overrides={"pretrained_model_name_or_path": str(path)})
    made = families.load(config, device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(made, StableBundle)
    return made


def picture(height: int, width: int, count: int = 1) -> Tensor:
    """Slopes with noise on them: neither flat nor the same everywhere."""
    across, down = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    slopes = torch.stack([across, down, across * down]).expand(count, -1, -1, -1)
    noise = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(4))
    return (slopes + 0.2 * noise).clamp(-1, 1)


def vae_of(bundle: StableBundle) -> AutoencoderKL:
    assert bundle.vae is not None
    return bundle.vae


@pytest.mark.parametrize("strip", [1, 130, 64 * 24, 64 * 100, 1 << 30])
def test_strips_of_any_height_give_the_numbers_of_the_whole(
    bundle: StableBundle, monkeypatch: pytest.MonkeyPatch, strip: int
) -> None:
    pixels = picture(200, 64)
    expected = bundle.encode_images(pixels)
    monkeypatch.setattr(tiled_vae, "LARGE", 64 * 64)
    monkeypatch.setattr(tiled_vae, "STRIP", strip)
    for made, whole in zip(bundle.encode_images(pixels), expected, strict=True):
        assert (made - whole).abs().max() < TOLERANCE * expected[0].std()


def test_only_large_pictures_and_each_alone(bundle: StableBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    encode = tiled_vae.encode
    monkeypatch.setattr(
        tiled_vae, "encode", lambda vae, pixels: seen.append(tuple(pixels.shape)) or encode(vae, pixels)
    )
    monkeypatch.setattr(tiled_vae, "LARGE", 64 * 64)
    bundle.encode_images(picture(64, 64, 3))
    assert seen == []
    mean, _ = bundle.encode_images(picture(64, 72, 3))
    assert seen == [(1, 3, 64, 72)] * 3
    assert mean.shape == (3, 4, 8, 9)


def test_half_precision_comes_as_near_as_the_whole_does(bundle: StableBundle) -> None:
    pixels = picture(128, 64)
    expected, vae = vae_of(bundle).encode(pixels).latent_dist.mode(), vae_of(bundle).to(torch.bfloat16)
    try:
        whole = vae.encode(pixels.bfloat16()).latent_dist.mode()
        made = tiled_vae.encode(vae, pixels.bfloat16()).chunk(2, dim=1)[0]
    finally:
        vae.to(torch.float32)
    assert made.dtype == torch.bfloat16
    assert (made - expected).std() < 1.5 * (whole - expected).std()


def test_peak_of_the_working_memory_is_a_fraction(bundle: StableBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """No layer sees more places than a strip and its two rows, before the middle block."""
    monkeypatch.setattr(tiled_vae, "STRIP", 64 * 16)
    seen: list[int] = []
    convolve = torch.nn.functional.conv2d

    def watched(rows: Tensor, *arguments: object, **named: object) -> Tensor:
        seen.append(rows.shape[2] * rows.shape[3])
        return convolve(rows, *arguments, **named)

    monkeypatch.setattr(tiled_vae.functional, "conv2d", watched)
    tiled_vae.encode(vae_of(bundle), picture(512, 64))
    assert len(seen) > 100
    assert max(seen) <= (16 + 2) * 65


def test_a_forecast_goes_through_it(bundle: StableBundle) -> None:
    empty = copy.deepcopy(vae_of(bundle)).to("meta")
    made = tiled_vae.encode(empty, torch.empty(1, 3, 128, 64, device="meta"))
    assert made.is_meta
    assert made.shape == (1, 8, 16, 8)


def test_the_published_encoder_has_no_other_layers() -> None:
    """What `strips` computes by hand is all that there is up to the middle block."""
    having = [
        family.configs["vae"] for family in families.FAMILIES.values() if "block_out_channels" in family.configs["vae"]
    ]
    assert len(having) == len(families.FAMILIES) - 1, "all but Anima, whose VAE goes over frames"
    for config in having:
        with torch.device("meta"):
            vae = AutoencoderKL.from_config(dict(config))
        inside = {type(part).__name__ for part in vae.encoder.down_blocks.modules()}
        assert inside == {
            *("ModuleList", "DownEncoderBlock2D", "ResnetBlock2D", "Downsample2D"),
            *("GroupNorm", "Conv2d", "Dropout", "SiLU"),
        }
