"""Anything at all, put into what reads files and texts: no error but the program's own, and an answer in time.

The loader of settings has its own such tests in `tests/config/test_config.py`, the pictures' headers in
`tests/pictures/test_scan.py`.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.corpus import models
from trainer.adapters import read_header as read_lora_header
from trainer.config import load_config, parse_set
from trainer.families import recognise
from trainer.ground.errors import ConfigError, ModelError
from trainer.pictures.captions import CaptionRules, render, variants
from trainer.preview.prompts import parse_prompt, prompt_notices, read_prompts, settle

UNHURRIED = settings(
    max_examples=60, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
"""An example that takes longer than a second is a failure."""

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
TAGS = st.text(st.sampled_from("ab,;|{}\n \\:()[]#"), max_size=60)

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70), st.sampled_from([0, 1, 4, 8, 16, 1 << 62]), st.floats(), st.booleans()
)
RECORDS = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "X", 5, None]),
            "shape": st.lists(NUMBERS, max_size=5) | st.none() | TEXTS,
            "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3) | TEXTS,
        }
    ),
    st.dictionaries(TEXTS, NUMBERS, max_size=2),
    NUMBERS,
)
NAMES = st.sampled_from([*models.NAMES, f"{models.KEY}.alpha", f"{models.KEY}.lora_up.weight", "__metadata__"]) | TEXTS


def outcome(read: Callable[[Path], object], path: Path, content: bytes) -> None:
    """Read a file with these bytes; it works, or the error says what is wrong with which file."""
    path.write_bytes(content)
    try:
        read(path)
    except ModelError as error:
        assert path.name in str(error)
        assert error.message


@pytest.mark.parametrize("read", [recognise, read_lora_header])
@UNHURRIED
@given(header=st.dictionaries(NAMES, RECORDS, max_size=4), size=st.integers(0, 64), cut=st.integers(-9, 9))
def test_any_table_is_read_or_refused(
    tmp_path: Path, read: Callable[[Path], object], header: dict[str, object], size: int, cut: int
) -> None:
    text = json.dumps(header).encode()
    length = max(0, len(text) + cut) if cut % 3 == 0 else len(text)
    outcome(read, tmp_path / "any.safetensors", models.safetensors(text, b"\0" * size, length))


@pytest.mark.parametrize("read", [recognise, read_lora_header])
@UNHURRIED
@given(data=st.data())
def test_a_damaged_lora_is_read_or_refused(tmp_path: Path, read: Callable[[Path], object], data: st.DataObject) -> None:
    down, up = models.tensor([4, 4], 0, 64), models.tensor([4, 4], 64, 128)
    alpha = models.tensor([], 128, 132)
    table = {f"{models.KEY}.lora_down.weight": down, f"{models.KEY}.lora_up.weight": up, f"{models.KEY}.alpha": alpha}
    content = bytearray(models.safetensors({**table, "__metadata__": {"ss_x": "y"}}, b"\1" * 132))
    outcome(read, tmp_path / "any.safetensors", damaged(content, data))


PICKLED = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS, inner, max_size=3)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=8,
)


@UNHURRIED
@given(value=PICKLED, protocol=st.integers(2, 5), data=st.data())
def test_any_pickle_is_read_or_refused(tmp_path: Path, value: object, protocol: int, data: st.DataObject) -> None:
    content = bytearray(pickle.dumps({"state_dict": value}, protocol) * 4)
    outcome(recognise, tmp_path / "any.ckpt", damaged(content, data))


def damaged(content: bytearray, data: st.DataObject) -> bytes:
    """Return the bytes with a few of them changed, perhaps cut short."""
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 9]))])


@UNHURRIED
@given(
    raw=TEXTS | TAGS,
    seed=st.integers(0, 99),
    step=st.integers(0, 10**6),
    flags=st.tuples(st.booleans(), st.booleans()),
    separators=st.tuples(TAGS, TAGS.filter(bool), TAGS),
    rates=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    numbers=st.tuples(st.integers(0, 255), st.integers(1, 50), st.floats(0, 2000)),
    around=st.tuples(TAGS, TAGS),
)
def test_any_caption_under_any_rules_becomes_a_text(
    raw: str,
    seed: int,
    step: int,
    flags: tuple[bool, bool],
    separators: tuple[str, str, str],
    rates: tuple[float, float],
    numbers: tuple[int, int, float],
    around: tuple[str, str],
) -> None:
    rules = CaptionRules(
        shuffle_caption=flags[0],
        keep_tokens=numbers[0],
        keep_tokens_separator=separators[0],
        caption_separator=separators[1],
        secondary_separator=separators[2],
        caption_prefix=around[0],
        caption_suffix=around[1],
        caption_dropout_rate=rates[0],
        caption_tag_dropout_rate=rates[1],
        enable_wildcard=flags[1],
        token_warmup_min=numbers[1],
        token_warmup_step=numbers[2],
    )
    told = {"epoch": 1 + step % 7, "step": step, "total_steps": 10**6}
    text = render(raw, rules, rng=random.Random(seed), **told)
    assert text == render(raw, rules, rng=random.Random(seed), **told)
    possible = variants(raw, rules)
    assert possible is None or text in possible


OPTIONS = st.tuples(
    st.sampled_from(["w", "h", "d", "s", "l", "n", "ss", "W", "g", "cn", "x", ""]),
    st.one_of(
        TEXTS,
        st.integers(-(10**30), 10**30).map(str),
        st.floats().map(str),
        st.sampled_from(["9" * 5000, "1e999", "." + "0" * 500, "٣٤", "²", "euler_a", "0", "1_000"]),
    ),
)


@UNHURRIED
@given(prompt=TEXTS, options=st.lists(OPTIONS, max_size=5))
def test_any_sample_prompt_becomes_a_request(prompt: str, options: list[tuple[str, str]]) -> None:
    line = " ".join([prompt, *(f"--{letter} {value}" for letter, value in options)])
    parsed = parse_prompt(line)
    prompt_notices([parsed])
    request = settle(parsed, load_config(), 0)
    assert 64 <= request.width <= 8192 and 64 <= request.height <= 8192
    assert 1 <= request.steps <= 1000
    assert 0 <= request.scale <= 1000
    assert 0 <= request.seed < 2**64


@UNHURRIED
@given(text=TEXTS | TAGS | st.sampled_from(["\0.txt", "a" * 5000 + ".txt", "/dev/zero.txt", "~.txt"]))
def test_any_sample_prompts_are_read_or_refused(text: str) -> None:
    try:
        config = load_config(overrides={"sample_prompts": text})
        prompts = read_prompts(config)
    except ConfigError as error:
        assert [problem.key for problem in error.problems] == ["sample_prompts"] * len(error.problems)
    else:
        assert all(settle(prompt, config, index).width for index, prompt in enumerate(prompts))


@UNHURRIED
@given(text=TEXTS | st.sampled_from(["seed=" + "[" * 10_000, "seed=" + "9" * 5000, "a.b.c=1", "=", "seed=nan"]))
def test_any_set_argument_is_read_or_refused(text: str) -> None:
    try:
        key, value = parse_set(text)
        load_config(overrides={key: value})
    except ConfigError as error:
        assert error.problems
