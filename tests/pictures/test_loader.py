"""The loader: the same batches from any step, with any number of workers, on any number of ranks."""

from __future__ import annotations

import dataclasses
import pickle
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.helpers.pictures import data_config, write_picture
from trainer.config import TrainingConfig
from trainer.families import FAMILIES
from trainer.ground.errors import DataError, RunError
from trainer.ground.randomness import stream
from trainer.pictures.batches import examples
from trainer.pictures.buckets import Placement
from trainer.pictures.latent_cache import LatentCache
from trainer.pictures.loader import Batch, BatchLoader, make_loader, map_tensors
from trainer.pictures.scan import scan

SETTINGS: dict[str, object] = {
    "resolution": "128,128",
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "shuffle_caption": True,
    "caption_dropout_rate": 0.2,
    "flip_aug": True,
    "prior_loss_weight": 0.5,
}
TOTAL_STEPS = 7


@dataclass(frozen=True)
class Drawn:
    noise: torch.Tensor
    slots: tuple[int, ...]


def draw(shape: tuple[int, int, int, int], step: int, slots: tuple[int, ...], timesteps: object = None) -> Drawn:
    """As the objective draws: one generator for each (step, slot)."""
    parts = [
        torch.randn(shape[1:], generator=torch.Generator().manual_seed(stream(1, step, s, "noise"))) for s in slots
    ]
    return Drawn(torch.stack(parts), slots)


def tokenize(text: str) -> dict[str, dict[str, torch.Tensor]]:
    """For two encoders of different lengths, one of which has a mask."""
    return {
        "clip": {"ids": torch.tensor([[len(text)] * 77])},
        "t5": {"ids": torch.tensor([len(text)] * 9), "mask": torch.ones(9, dtype=torch.bool)},
    }


def conditions(placement: Placement, flipped: bool) -> dict[str, torch.Tensor]:
    return {"size": torch.tensor(placement.bucket[::-1]), "flipped": torch.tensor(flipped)}


def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.nn.functional.avg_pool2d(pixels, 8)
    mean = torch.cat([mean, mean[:, :1]], 1)
    return mean, mean.abs()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loader")
    for index, size in enumerate([(128, 128), (128, 64), (128, 128), (64, 128), (128, 128)]):
        write_picture(root / "train" / "2_tok" / f"{index}.png", size, index, "tok, a, b, c, d, e")
    for index in range(3):
        write_picture(root / "reg" / "1_class" / f"{index}.png", (128, 128), 50 + index)
    return root


def settings(root: Path, **changes: object) -> TrainingConfig:
    return data_config(root / "train", root / "reg", **{**SETTINGS, **changes})


def loader(root: Path, *, cached: bool = True, start_step: int = 0, rank: int = 0, ranks: int = 1, **changes: object):
    config = settings(root, **changes)
    found = examples(scan(config), config)
    cache = LatentCache() if cached else None
    if cache:
        cache.fill(found, encode, "vae", 2)
    return make_loader(
        found, cache, config, total_steps=TOTAL_STEPS, start_step=start_step, rank=rank, ranks=ranks, draw=draw,
        latent_shape=FAMILIES["sd15"].latents.shape, conditions=conditions, tokenize=tokenize,
    )  # fmt: skip


def flat(value: object) -> object:
    """The batch as plain values that can be compared."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: flat(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: flat(part) for name, part in value.items()}
    return value


def all_of(batches: Iterable[Batch]) -> list[object]:
    return [flat(batch) for batch in batches]


@pytest.fixture(scope="module")
def reference(root: Path) -> list[Batch]:
    return list(loader(root))


def test_batches_carry_what_a_step_needs(root: Path, reference: list[Batch]) -> None:
    assert [batch.step for batch in reference][:3] == [0, 0, 1]
    assert reference[-1].step == TOTAL_STEPS - 1
    for batch in reference:
        size = len(batch.slots)
        assert batch.mean is not None and batch.std is not None and batch.pixels is None
        height, width = batch.conditions["size"][0].tolist()
        assert batch.mean.shape == batch.std.shape == (size, 4, height // 8, width // 8)
        assert batch.draws.noise.shape == batch.mean.shape and batch.draws.slots == batch.slots
        assert batch.tokens is not None and batch.tokens["clip"]["ids"].shape == (size, 1, 77)
        assert {name: value.shape for name, value in batch.tokens["t5"].items()} == {
            "ids": (size, 9),
            "mask": (size, 9),
        }
        assert batch.tokens["t5"]["ids"][:, 8].tolist() == [len(caption) for caption in batch.captions]
        assert batch.loss_weights.tolist() == [0.5 if "class" in name else 1.0 for name in batch.names]
        assert batch.slots == tuple(batch.micro_index * 2 + place for place in range(size))
        assert 1 <= batch.micro_count <= 2 and batch.group_size == batch.micro_count and not batch.padding


def test_captions_are_rendered_and_flips_happen(reference: list[Batch]) -> None:
    captions = [c for batch in reference for c, n in zip(batch.captions, batch.names, strict=True) if "tok" in n]
    assert "" in captions and len(set(captions)) > 5
    assert {tuple(sorted(caption.split(", "))) for caption in captions if caption} == {("a", "b", "c", "d", "e", "tok")}
    latents = {}
    for batch in reference:
        assert batch.mean is not None
        for name, mean in zip(batch.names, batch.mean, strict=True):
            latents.setdefault(name, set()).add(tuple(mean.flatten().tolist()))
    assert max(map(len, latents.values())) == 2


def test_choices_about_one_sample_are_independent(root: Path) -> None:
    batches = loader(root, caption_dropout_rate=0.5)
    cache = batches.source.cache
    assert cache is not None
    plain = {str(cache.get(index, False)[0].tolist()) for index in range(len(batches.source.plan.examples))}
    seen = set()
    for batch in batches:
        assert batch.mean is not None
        for caption, mean in zip(batch.captions, batch.mean, strict=True):
            seen.add((caption == "", str(mean.tolist()) in plain))
    assert len(seen) == 4


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("cached", [True, False])
def test_workers_change_nothing(root: Path, workers: int, cached: bool) -> None:
    plain = all_of(loader(root, cached=cached))
    assert all_of(loader(root, cached=cached, max_data_loader_n_workers=workers)) == plain


@pytest.mark.parametrize("start", range(TOTAL_STEPS + 1))
def test_a_batch_does_not_depend_on_where_the_run_began(root: Path, reference: list[Batch], start: int) -> None:
    late = loader(root, start_step=start)
    expected = all_of(batch for batch in reference if batch.step >= start)
    assert len(late) == len(expected)
    assert all_of(late) == expected


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_see_the_same_samples_and_draws_as_one(root: Path, ranks: int) -> None:
    alone = list(loader(root, gradient_accumulation_steps=2 * ranks))
    together = [list(loader(root, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert len({len(batches) for batches in together}) == 1
    dealt = [batch for at_once in zip(*together, strict=True) for batch in at_once]
    assert all(batch.loss_weights.sum() == 0 for batch in dealt if batch.padding)
    real = [batch for batch in dealt if not batch.padding]
    assert [(b.step, b.slots, b.names, b.captions) for b in real] == [
        (b.step, b.slots, b.names, b.captions) for b in alone
    ]
    assert all(torch.equal(a.draws.noise, b.draws.noise) for a, b in zip(real, alone, strict=True))
    noises = {tuple(noise.flatten().tolist()) for batch in real for noise in batch.draws.noise}
    assert len(noises) == sum(len(batch.draws.noise) for batch in real), "each sample of each micro-batch has its own"


def test_pixels_without_a_cache_are_what_the_cache_encoded(root: Path, reference: list[Batch]) -> None:
    for decoded, cached in zip(loader(root, cached=False), reference, strict=True):
        assert decoded.pixels is not None and decoded.mean is None
        assert (decoded.names, decoded.captions) == (cached.names, cached.captions)
        assert torch.allclose(encode(decoded.pixels)[0], cached.mean, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_numbers_are_left_alone(root: Path, workers: int) -> None:
    batches = loader(root, cached=False, max_data_loader_n_workers=workers)
    torch.manual_seed(5)
    random.seed(5)
    before = (torch.get_rng_state(), random.getstate())
    list(batches)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_tag_warmup_follows_the_steps(root: Path) -> None:
    changes = {"token_warmup_step": 1.0 * TOTAL_STEPS, "caption_dropout_rate": 0.0, "token_warmup_min": 1}
    longest: dict[int, int] = {}
    for batch in loader(root, **changes):
        for caption in batch.captions:
            longest[batch.step] = max(longest.get(batch.step, 0), len(caption.split(", ")))
    assert longest[0] == 1 and longest[TOTAL_STEPS - 1] > 3


def test_text_encoded_beforehand_is_stacked(root: Path) -> None:
    config = settings(root, shuffle_caption=False, caption_dropout_rate=0.0)
    found = examples(scan(config), config)
    texts = {
        caption: {"context": torch.full((77, 3), float(len(caption)))} for caption in ("tok, a, b, c, d, e", "class")
    }
    for batch in make_loader(found, None, config, total_steps=2, text_cache=texts):
        assert batch.text is not None
        assert batch.text["context"].shape == (len(batch.slots), 77, 3)
        assert batch.text["context"][:, 0, 0].tolist() == [len(caption) for caption in batch.captions]
    with pytest.raises(RunError, match="not encoded beforehand"):
        list(make_loader(found, None, config, total_steps=2, text_cache={}))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_breaks_is_one_clear_error(tmp_path: Path, workers: int) -> None:
    write_picture(tmp_path / "1_a" / "x.png")
    config = data_config(tmp_path, max_data_loader_n_workers=workers)
    found = examples(scan(config), config)
    found[0].picture.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.png") as error:
        list(make_loader(found, None, config, total_steps=1))
    assert "Traceback" not in str(error.value)


def test_a_plan_for_other_pictures_is_refused(root: Path) -> None:
    config = settings(root)
    found = examples(scan(config), config)
    with pytest.raises(RunError, match="999 steps per epoch"):
        make_loader(found, None, config, total_steps=1, steps_per_epoch=999)


def test_a_batch_moves_with_everything_in_it(root: Path, reference: list[Batch]) -> None:
    moved = reference[0].to("meta")
    assert moved.mean is not None and moved.mean.device.type == "meta"
    assert moved.draws.noise.device.type == "meta"
    assert moved.captions == reference[0].captions
    assert isinstance(loader(root), BatchLoader)
    assert map_tensors({"a": [torch.ones(1)], "b": None}, lambda t: t + 1) == {"a": [torch.tensor([2.0])], "b": None}


def test_a_source_can_be_sent_to_a_worker_that_was_not_forked(root: Path, reference: list[Batch]) -> None:
    source = pickle.loads(pickle.dumps(loader(root).source))
    assert flat(source.batch(3)) == flat(reference[3])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_can_be_pinned(reference: list[Batch]) -> None:
    pinned = reference[0].pin_memory()
    assert pinned.mean is not None and pinned.mean.is_pinned() and pinned.draws.noise.is_pinned()
