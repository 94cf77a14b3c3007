"""Captions: sd-scripts' texts for sd-scripts' draws, and promises that hold for every text."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.pictures import GOLDEN
from trainer.config import load_config
from trainer.pictures.captions import CaptionRules, render, variants

TEXTS = st.text("ab ,.{|}\n;é", max_size=30)
RULES = st.builds(
    CaptionRules,
    shuffle_caption=st.booleans(),
    keep_tokens=st.integers(0, 5),
    keep_tokens_separator=st.sampled_from(["", "|||", ","]),
    caption_separator=st.sampled_from([",", ".", "||"]),
    secondary_separator=st.sampled_from(["", ";;;"]),
    caption_prefix=TEXTS,
    caption_suffix=TEXTS,
    caption_dropout_rate=st.sampled_from([0.0, 0.5]),
    caption_dropout_every_n_epochs=st.integers(0, 3),
    caption_tag_dropout_rate=st.sampled_from([0.0, 0.5]),
    enable_wildcard=st.booleans(),
    token_warmup_min=st.integers(1, 4),
    token_warmup_step=st.sampled_from([0, 0.25, 10]),
)


def rendered(raw: str, seed: int = 0, epoch: int = 1, step: int = 0, total_steps: int = 100, **rules: object) -> str:
    rng = random.Random(seed)
    return render(raw, CaptionRules(**rules), rng=rng, epoch=epoch, step=step, total_steps=total_steps)


@pytest.mark.parametrize("case", GOLDEN["captions"], ids=lambda case: "-".join(case["options"]))
def test_texts_are_those_of_sd_scripts(case: dict) -> None:
    got = [
        rendered(case["caption"], seed, seed + 1, case["step"], case["max_train_steps"], **case["options"])
        for seed in range(4)
    ]
    separator = case["options"].get("caption_separator", ",")  # the version compared joins with ", " whatever it is
    assert got == [text.replace(", ", f"{separator} ") for text in case["out_for_random_seed_0_to_3_epoch_1_to_4"]]


@pytest.mark.parametrize(
    ("separator", "caption", "texts"),
    [
        (".", "a. b, c.d", {"a. b, c. d", "a. d. b, c", "b, c. a. d", "b, c. d. a", "d. a. b, c", "d. b, c. a"}),
        (";", "a;b", {"a; b", "b; a"}),
        (" ", "a b", {"a b", "b a"}),
        (", ", "a, b", {"a, b", "b, a"}),
    ],
)
def test_tags_are_joined_by_their_own_separator(separator: str, caption: str, texts: set[str]) -> None:
    assert {rendered(caption, seed, shuffle_caption=True, caption_separator=separator) for seed in range(60)} == texts


def test_untouched_captions_stay_as_written() -> None:
    assert rendered("a ,b ,, c.  d") == "a ,b ,, c.  d"
    assert rendered("a ||| b", keep_tokens_separator="|||", keep_tokens=1) == "a ||| b"


def test_only_the_first_line_counts_without_wildcards() -> None:
    assert rendered("one\ntwo", caption_suffix="end") == "one end"


def test_prefix_takes_a_kept_place_and_suffix_is_shuffled() -> None:
    got = rendered("a, b, c", 3, caption_prefix="p,", caption_suffix=", s", shuffle_caption=True, keep_tokens=1)
    assert got.startswith("p, ")
    assert sorted(got.split(", ")) == ["a", "b", "c", "p", "s"]


def test_second_keep_separator_fixes_the_tail() -> None:
    options = {"shuffle_caption": True, "keep_tokens_separator": "|||"}
    got = [rendered("x, y ||| a, b, c, d ||| z", seed, **options) for seed in range(20)]
    assert all(text.startswith("x, y, ") and text.endswith(", z") for text in got)
    assert len(set(got)) > 5


def test_dropout_takes_prefix_and_kept_tags_too() -> None:
    assert rendered("a, b", caption_prefix="p", keep_tokens=2, caption_dropout_rate=1.0) == ""


def test_dropout_by_epoch_counts_from_one() -> None:
    texts = [rendered("a", epoch=epoch, caption_dropout_every_n_epochs=3) for epoch in range(1, 7)]
    assert texts == ["a", "a", "", "a", "a", ""]


def test_wildcards_choose_and_double_braces_are_braces() -> None:
    got = {rendered("{red|blue} {{x}} cat", seed, enable_wildcard=True) for seed in range(20)}
    assert got == {"red {x} cat", "blue {x} cat"}
    assert rendered("{red|blue}") == "{red|blue}"


def test_tag_warmup_adds_tags_over_the_first_steps() -> None:
    options = {"token_warmup_min": 1, "token_warmup_step": 10}
    counts = [len(rendered("a, b, c, d, e", step=step, **options).split(", ")) for step in range(12)]
    assert counts == [1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5]


@given(TEXTS, RULES, st.integers(), st.integers(1, 9), st.integers(0, 30))
def test_rendering_never_fails_and_depends_on_the_draws_alone(raw, rules, seed, epoch, step) -> None:
    first, second = (
        render(raw, rules, rng=random.Random(seed), epoch=epoch, step=step, total_steps=30) for _ in range(2)
    )
    assert first == second


@given(st.lists(st.text("abc", min_size=1, max_size=4), max_size=12), st.integers(0, 14), st.integers())
def test_shuffling_loses_nothing_and_keeps_the_front(tags, keep, seed) -> None:
    got = rendered(", ".join(tags), seed, shuffle_caption=True, keep_tokens=keep).split(", ")
    assert got[:keep] == (tags or [""])[:keep]
    assert sorted(got) == sorted(tags or [""])


@given(TEXTS, RULES, st.integers(), st.integers(1, 9))
def test_variants_hold_every_text_that_can_come(raw, rules, seed, epoch) -> None:
    possible = variants(raw, rules)
    if possible is not None:
        assert render(raw, rules, rng=random.Random(seed), epoch=epoch, step=0, total_steps=1) in possible


def test_variants() -> None:
    assert variants("a", CaptionRules(caption_prefix="p")) == ("p a",)
    assert variants("a", CaptionRules(caption_dropout_rate=0.1)) == ("a", "")
    assert variants("a", CaptionRules(shuffle_caption=True)) is None
    assert variants("{a|b}", CaptionRules(enable_wildcard=True)) is None
    assert variants("a", CaptionRules(enable_wildcard=True)) == ("a",)


def test_rules_come_from_the_settings() -> None:
    config = load_config(overrides={"shuffle_caption": True, "keep_tokens": 2, "token_warmup_step": 0.5})
    rules = CaptionRules.from_config(config)
    assert rules == CaptionRules(shuffle_caption=True, keep_tokens=2, token_warmup_step=0.5)
