"""Examples, repeats and the order of batches."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.pictures import GOLDEN, data_config, write_folder, write_picture
from trainer.pictures.batches import BatchPlan, Example, balance, batches_per_epoch, epoch_batches, examples
from trainer.pictures.buckets import Buckets
from trainer.pictures.counts import bucket_info, count
from trainer.pictures.report import Picture
from trainer.pictures.scan import scan

SIZES = st.sampled_from([(512, 512), (512, 256), (256, 512), (300, 300)])
DATASETS = st.lists(st.tuples(SIZES, st.integers(1, 5)), min_size=1, max_size=12)


def made_up(dataset: list[tuple[tuple[int, int], int]]) -> tuple[Example, ...]:
    buckets = Buckets((512, 512))
    return tuple(
        Example(Picture(Path(f"{index}.png"), size, "", 1), False, repeats, buckets.choose(size), 1.0)
        for index, (size, repeats) in enumerate(dataset)
    )


@pytest.mark.parametrize("case", GOLDEN["reg_counting"], ids=lambda case: str(case["reg_repeats_after"]))
def test_regularisation_is_counted_as_sd_scripts_counts(tmp_path: Path, case: dict) -> None:
    write_folder(tmp_path / "train" / f"{case['train_repeats']}_a", case["train_images"])
    write_folder(tmp_path / "reg" / f"{case['reg_repeats']}_b", case["reg_images"])
    config = data_config(tmp_path / "train", tmp_path / "reg", train_batch_size=case["batch_size"])
    report = scan(config)
    found = examples(report, config)
    assert (report.train_count, report.reg_count) == (case["num_train_images"], case["num_reg_images"])
    assert [example.repeats for example in found if example.regularisation] == case["reg_repeats_after"]
    counts = count(report, found, config)
    assert (counts.samples, counts.batches) == (case["items_per_epoch"], case["batches_per_epoch"])
    assert batches_per_epoch(found, [case["batch_size"]]) == case["batches_per_epoch"]


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 60))
def test_balanced_repeats_reach_the_training_count(repeats, wanted) -> None:
    got = balance(repeats, wanted)
    assert all(after >= before for after, before in zip(got, repeats, strict=False))
    if got:
        assert wanted <= sum(got) < wanted + max(repeats)


def test_regularisation_pictures_carry_the_prior_loss_weight(tmp_path: Path) -> None:
    write_folder(tmp_path / "train" / "1_a", 1)
    write_folder(tmp_path / "reg" / "1_b", 1)
    config = data_config(tmp_path / "train", tmp_path / "reg", prior_loss_weight=0.25)
    assert [example.loss_weight for example in examples(scan(config), config)] == [1.0, 0.25]


@given(DATASETS, st.integers(1, 5), st.integers(0, 99), st.integers(1, 50))
def test_an_epoch_is_a_permutation_in_whole_buckets(dataset, batch_size, seed, epoch) -> None:
    found = made_up(dataset)
    batches = epoch_batches(found, [batch_size], seed, epoch)
    assert batches == epoch_batches(found, [batch_size], seed, epoch)
    assert Counter(index for batch in batches for index in batch) == {i: e.repeats for i, e in enumerate(found)}
    assert all(len({found[index].bucket for index in batch}) == 1 for batch in batches)
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert len(batches) == batches_per_epoch(found, [batch_size])


def test_epochs_and_seeds_differ_in_order() -> None:
    found = made_up([((512, 512), 1)] * 30)
    orders = {tuple(epoch_batches(found, [2], seed, epoch)) for seed in (0, 1) for epoch in (1, 2, 3)}
    assert len(orders) == 6


def test_pictures_meet_others_in_every_epoch() -> None:
    found = made_up([((512, 512), 1)] * 30)
    meetings = [{frozenset(batch) for batch in epoch_batches(found, [2], 0, epoch)} for epoch in (1, 2, 3)]
    assert len(set.union(*meetings)) > 40


@given(DATASETS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_steps_group_the_epoch_and_number_the_slots(dataset, batch_size, accumulation, ranks) -> None:
    found = made_up(dataset)
    plan = BatchPlan(found, sizes=[batch_size], accumulation=accumulation, ranks=ranks, seed=3)
    assert plan.steps_per_epoch == math.ceil(plan.micro_batches / (accumulation * ranks))
    for epoch in (1, 2):
        first = (epoch - 1) * plan.steps_per_epoch
        steps = [plan.step(step) for step in range(first, first + plan.steps_per_epoch)]
        assert {step.epoch for step in steps} == {epoch}
        flat = [tuple(example for _, example in micro) for step in steps for micro in step.micro]
        assert flat == epoch_batches(found, [batch_size], 3, epoch)
        for step in steps:
            slots = [slot for micro in step.micro for slot, _ in micro]
            assert len(set(slots)) == len(slots) and max(slots) < batch_size * accumulation * ranks


@given(DATASETS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 7))
def test_ranks_share_every_step_without_loss(dataset, batch_size, accumulation, ranks, step) -> None:
    """Together the ranks compute exactly the planned step, with equal numbers of batches."""
    plan = BatchPlan(made_up(dataset), sizes=[batch_size], accumulation=accumulation, ranks=ranks, seed=3)
    numbers = range(plan.batches_before(step), plan.batches_before(step + 1))
    parts = [[plan.rank_batch(number, rank) for number in numbers] for rank in range(ranks)]
    together = [batch for at_once in zip(*parts, strict=True) for batch in at_once]
    assert [batch.samples for batch in together if not batch.padding] == list(plan.step(step).micro)
    assert all(batch.step == step and batch.count == len(numbers) for batch in together)
    assert [batch.index for batch in parts[0]] == list(range(len(numbers)))
    assert all(batch.group_size == len(plan.step(step).micro) for batch in together)


def test_bucket_info_is_that_of_the_metadata(tmp_path: Path) -> None:
    for index, size in enumerate([(512, 512), (640, 480), (640, 480)]):
        write_picture(tmp_path / "2_a" / f"{index}.png", size)
    config = data_config(tmp_path, train_batch_size=3)
    report = scan(config)
    counts = count(report, examples(report, config), config)
    assert bucket_info(counts) == {
        "buckets": {"0": {"resolution": [512, 384], "count": 4}, "1": {"resolution": [512, 512], "count": 2}},
        "mean_img_ar_error": 0.0,
    }
    assert counts.batches == 3


def test_enlarged_and_surplus_pictures_are_said(tmp_path: Path) -> None:
    write_picture(tmp_path / "train" / "1_a" / "tiny.png", (40, 40))
    write_folder(tmp_path / "reg" / "1_b", 3)
    config = data_config(tmp_path / "train", tmp_path / "reg")
    report = scan(config)
    counts = count(report, examples(report, config), config)
    assert counts.unused_reg_images == 2
    assert "1_a/tiny.png" in counts.notices[0] and "scaled up" in counts.notices[0]
    assert "1 of 3 regularisation" in counts.notices[1]
    enlarging = data_config(tmp_path / "train", bucket_no_upscale=False)
    report = scan(enlarging)
    assert "smaller than the size" in count(report, examples(report, enlarging), enlarging).notices[0]
