"""What is done to pictures each time: colours, cuts, masks, timesteps; a function of (seed, step, slot)."""

from __future__ import annotations

import colorsys
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.pictures import write_folder, write_picture
from trainer.config import TrainingConfig, config_from_layers
from trainer.families import FAMILIES
from trainer.ground.errors import DataError
from trainer.pictures.batches import examples
from trainer.pictures.buckets import Buckets
from trainer.pictures.latent_cache import LatentCache, entry_key
from trainer.pictures.loader import Batch, make_loader
from trainer.pictures.pixels import FILTERS, change_colours, cut_at_random, load_pixels
from trainer.pictures.scan import scan
from trainer.pictures.treatment import Treatment
from trainer.process.draws import Drawing, NoiseOptions, UniformTimesteps

SHAPE = FAMILIES["sd15"].latents.shape


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "a", 4, (96, 64), "tok, one, two")
    write_folder(tmp_path / "b", 3, (64, 64), "{red|blue} hat")
    return tmp_path


def config_of(root: Path, *datasets: dict[str, object], **settings: object) -> TrainingConfig:
    base = {"enable_bucket": False, "resolution": 64, "cache_latents": False, "seed": 3}
    return config_from_layers([{**base, **settings, "datasets": list(datasets)}])


def batches(config: TrainingConfig, steps: int = 12) -> list[Batch]:
    found = examples(scan(config), config)
    rules = UniformTimesteps(config.noise.min_timestep, config.noise.max_timestep)
    drawing = Drawing(NoiseOptions(), rules)

    def draw(shape, step, slots, timesteps):
        return drawing(shape, step, slots, timesteps, seed=3)

    return list(make_loader(found, None, config, total_steps=steps, draw=draw, latent_shape=SHAPE))


def test_batches_are_of_one_dataset_and_of_its_size(root: Path) -> None:
    config = config_of(
        root,
        {"batch_size": 3, "resolutions": [64, 96], "subsets": [{"image_dir": str(root / "a")}]},
        {"batch_size": 2, "subsets": [{"image_dir": str(root / "b"), "num_repeats": 2, "enable_wildcard": True}]},
    )
    seen = batches(config, 7)
    assert len(seen) == 7, "2 + 2 + 3 batches are an epoch"
    sizes = {(tuple(batch.pixels.shape[2:]), len(batch.slots)) for batch in seen if batch.pixels is not None}
    assert sizes == {((64, 64), 3), ((64, 64), 1), ((96, 96), 3), ((96, 96), 1), ((64, 64), 2)}
    for batch in seen:
        assert len({name.partition("/")[0] for name in batch.names}) == 1
    captions = {caption for batch in seen for caption in batch.captions}
    assert "tok, one, two" in captions and captions <= {"tok, one, two", "red hat", "blue hat"}


def test_what_is_random_is_of_seed_step_and_slot(root: Path) -> None:
    subset = {"image_dir": str(root / "a"), "color_aug": True, "random_crop": True, "flip_aug": True}
    config = config_of(root, {"batch_size": 2, "subsets": [subset]})
    once, again = batches(config), batches(replace_workers(config))
    for one, other in zip(once, again, strict=True):
        assert one.pixels is not None and other.pixels is not None
        assert torch.equal(one.pixels, other.pixels)
    assert len({batch.pixels.sum().item() for batch in once if batch.pixels is not None}) > 6
    plain = config_of(root, {"batch_size": 2, "subsets": [{"image_dir": str(root / "a"), "flip_aug": True}]})
    for one, other in zip(once, batches(plain), strict=True):
        assert torch.equal(one.draws.noise, other.draws.noise), "other random numbers are left alone"
        assert one.names == other.names


def replace_workers(config: TrainingConfig) -> TrainingConfig:
    dataset = config.dataset.model_copy(update={"max_data_loader_n_workers": 1})
    return replace(config, dataset=dataset)


def test_a_cut_is_anywhere_in_what_is_too_much() -> None:
    placement = Buckets((64, 64), 64, 64, enable=False).choose((128, 70))
    cuts = {cut_at_random(placement, random.Random(seed)).left for seed in range(300)}
    surplus = placement.resized[0] - placement.bucket[0]
    assert min(cuts) == 0 and max(cuts) == surplus and len(cuts) > surplus // 2
    assert cut_at_random(placement, random.Random(1)).top == 0
    rng = random.Random(5)
    expected = (rng.randint(0, surplus), rng.randint(0, placement.resized[1] - placement.bucket[1]))
    cut = cut_at_random(placement, random.Random(5))
    assert (cut.left, cut.top) == expected, "width first, then height"


def test_colours_change_as_often_and_as_much_as_with_sd_scripts() -> None:
    pixels = torch.rand((3, 8, 8), generator=torch.Generator().manual_seed(1)).mul(2).sub(1)
    changed = [seed for seed in range(600) if not torch.equal(change_colours(pixels, random.Random(seed)), pixels)]
    assert 0.26 < len(changed) / 600 < 0.36
    for seed in changed[:60]:
        rng = random.Random(seed)
        rng.random()
        made = change_colours(pixels, random.Random(seed)).add(1).div(2)
        before = pixels.add(1).div(2)
        if rng.random() > 0.5:
            turn = 2.0 * int(rng.uniform(-8, 8)) / 360.0
            for spot in range(8):
                hue, saturation, value = colorsys.rgb_to_hsv(*before[:, spot, 3].tolist())
                expected = colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)
                assert made[:, spot, 3].tolist() == pytest.approx(expected, abs=1e-5)
        else:
            power = rng.uniform(0.95, 1.05)
            expected_values = (before * 255).pow(power).clamp(max=255) / 255
            assert torch.allclose(made, expected_values, atol=1e-5)
    grey = torch.zeros((3, 2, 2))
    assert all(torch.isfinite(change_colours(grey, random.Random(seed))).all() for seed in range(40))


def test_masks_weigh_a_batch_and_those_without_count_whole(root: Path, tmp_path: Path) -> None:
    for index in range(4):
        half = Image.new("L", (96, 64))
        half.paste(255, (48, 0, 96, 64))
        half.save(tmp_path / "a" / f"m{index}.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    for index in range(4):
        (tmp_path / "a" / f"m{index}.png").rename(masks / f"{index:04d}.png")
    subsets = [{"image_dir": str(root / "a"), "conditioning_data_dir": str(masks)}, {"image_dir": str(root / "b")}]
    config = config_of(root, {"batch_size": 7, "subsets": subsets}, masked_loss=True)
    (batch,) = batches(config, 1)
    assert batch.mask is not None and batch.mask.shape == (7, 1, 8, 8)
    for name, mask in zip(batch.names, batch.mask, strict=True):
        expected = torch.ones((1, 8, 8))
        if name.startswith("a/"):
            expected[:, :, :4] = 0
        assert torch.allclose(mask, expected, atol=0.01), name
    without = config_of(root, {"batch_size": 7, "subsets": [{"image_dir": str(root / "b")}]}, masked_loss=True)
    assert batches(without, 1)[0].mask is None
    (masks / "0002.png").unlink()
    with pytest.raises(DataError, match=r"has no mask for 1 of the pictures: 0002\.png"):
        batches(config, 1)


def test_a_mask_that_was_painted_anew_is_read_anew(tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "x.png", (64, 64))
    masks = tmp_path / "masks"
    masks.mkdir()
    subset = {"image_dir": str(tmp_path / "a"), "conditioning_data_dir": str(masks)}
    config = config_of(tmp_path, {"subsets": [subset]}, masked_loss=True)
    found = []
    for shade in (255, 51):
        Image.new("L", (64, 64), shade).save(masks / "x.png")
        mask = batches(config, 1)[0].mask
        assert mask is not None
        found.append(round(mask.mean().item(), 4))
    assert found == [1.0, 0.2]


def test_timesteps_of_a_folder_are_its_own(root: Path) -> None:
    subsets = [{"image_dir": str(root / "a"), "min_timestep": 900}, {"image_dir": str(root / "b"), "max_timestep": 50}]
    seen = batches(config_of(root, {"batch_size": 7, "subsets": subsets}))
    drawn = [(name[0], int(t)) for batch in seen for name, t in zip(batch.names, batch.draws.timesteps, strict=True)]
    assert all(t >= 900 if name == "a" else t < 50 for name, t in drawn)
    whole = config_of(
        root, {"batch_size": 7, "subsets": [{"image_dir": str(root / "a")}, {"image_dir": str(root / "b")}]}
    )
    for one, other in zip(seen, batches(whole), strict=True):
        assert torch.equal(one.draws.noise, other.draws.noise)


def test_pictures_that_all_are_to_stay_teach_nothing(root: Path) -> None:
    stays = {"image_dir": str(root / "b"), "diff_output_preservation": True}
    seen = batches(config_of(root, {"batch_size": 7, "subsets": [{"image_dir": str(root / "a")}, stays]}))
    told = [(name[0], each) for batch in seen for name, each in zip(batch.names, batch.preserved, strict=True)]
    assert told and all(each is (name == "b") for name, each in told)
    whole = {"diff_output_preservation": True, "subsets": [{"image_dir": str(root / "a")}]}
    with pytest.raises(DataError, match="all pictures are to stay"):
        batches(config_of(root, whole))


def test_filters_are_pillows_and_have_latents_of_their_own(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "x.png", (160, 120))
    config = config_of(tmp_path, {"subsets": [{"image_dir": str(tmp_path)}]})
    (example,) = examples(scan(config), config)
    seen = {}
    for name, resample in FILTERS.items():
        filtered = replace(example, treatment=Treatment(interpolation=name))
        pixels = load_pixels(filtered, flip=False)
        image = Image.open(path).convert("RGB").resize(example.placement.resized, resample)
        left, top = example.placement.left, example.placement.top
        width, height = example.bucket
        expected = torch.tensor(list(image.crop((left, top, left + width, top + height)).get_flattened_data()))
        distance = (pixels.add(1).mul(127.5).permute(1, 2, 0).reshape(-1, 3) - expected).abs().mean()
        assert distance < 6, name
        seen[name] = entry_key("content", filtered, False, "vae")
    assert len(set(seen.values())) == len(FILTERS)
    assert seen[""] == entry_key("content", example, False, "vae")


def test_one_folder_at_two_sizes_has_latents_of_both(root: Path, tmp_path: Path) -> None:
    """There, the file of the first size is taken for the second too."""
    config = config_of(
        root, {"resolutions": [64, 128], "subsets": [{"image_dir": str(root / "b")}]}, cache_latents=True
    )
    found = examples(scan(config), config)
    cache = LatentCache(tmp_path / "latents")
    cache.fill(found, lambda pixels: (pixels[:, :, ::8, ::8], pixels[:, :, ::8, ::8]), "vae", 2)
    sizes = [tuple(cache.get(index)[0].shape[1:]) for index in range(len(found))]
    assert sizes == [(example.bucket[1] // 8, example.bucket[0] // 8) for example in found]
    assert len(set(sizes)) == 2
