"""TOML: what is read back is what was written, and what cannot be read is said with its place."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.ground.errors import ConfigError
from trainer.settings import toml

UNHURRIED = settings(deadline=None)
"""A busy machine is no failure."""

# TOML has no place for lone surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@UNHURRIED
@given(TEXTS)
def test_any_text_comes_back(text: str) -> None:
    assert tomllib.loads(f"value = {toml.encoded(text)}")["value"] == text


@UNHURRIED
@given(st.text(st.sampled_from('\\"\n\r\tnux0{}\x7f\x00'), max_size=12))
def test_texts_made_of_troublesome_characters_come_back(text: str) -> None:
    assert tomllib.loads(f"value = {toml.encoded(text)}")["value"] == text


@UNHURRIED
@given(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(TEXTS),
        st.lists(st.floats(allow_nan=False, allow_infinity=False)),
    )
)
def test_any_value_comes_back_with_its_type(value: object) -> None:
    back = tomllib.loads(f"value = {toml.encoded(value)}")["value"]
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"network_dim = \n", "line 1, column 15"),
        (b"a = 1\nb = [1,\nc = 2\n", "line 3"),
        (b"a = 1\na = 2\n", "line 2"),
        (b'a = "C:\\pictures"\n', "single quotes"),
        (b"a = \xff\xfe\n", "byte 4 is not UTF-8"),
        (b"a = " + b"[" * 5000, "not valid TOML|nested too deeply"),
        (b"a = " + b"9" * 5000, "not valid TOML"),
    ],
)
def test_what_cannot_be_read_is_said_with_file_and_place(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refused:
        toml.read(path)
    assert refused.value.problems[0].key == str(path)


def test_a_file_that_is_not_there_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        toml.read(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="a folder"):
        toml.read(tmp_path)


def test_a_byte_order_mark_is_no_syntax_error(tmp_path: Path) -> None:
    path = tmp_path / "notepad.toml"
    path.write_bytes(b"\xef\xbb\xbfnetwork_dim = 4\r\n")
    assert toml.read(path) == {"network_dim": 4}


def test_sections_carry_no_meaning() -> None:
    flat, problems = toml.flatten({"a": 1, "first": {"b": 2}, "second": {"c": 3, "b": 2}}, "abc")
    assert (flat, problems) == ({"a": 1, "b": 2, "c": 3}, ())


def test_a_key_given_twice_with_two_values_is_named() -> None:
    _, problems = toml.flatten({"first": {"b": 2}, "second": {"b": 3}}, "b")
    assert [(problem.key, problem.message) for problem in problems] == [
        ("b", "given twice, as 2 and 3; keep one of them.")
    ]


def test_writing_replaces_in_one_step_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.toml"
    toml.write(path, "a = 1\n")
    toml.write(path, "a = 2\n")
    assert path.read_text() == "a = 2\n"
    assert list(path.parent.iterdir()) == [path]


def test_writing_where_it_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        toml.write(tmp_path / "file" / "run.toml", "a = 1\n")


def test_a_table_under_a_key_is_its_value_unless_it_holds_keys() -> None:
    flat, problems = toml.flatten({"a": {"value": 1}, "b": {"c": 3}}, "abc")
    assert (flat, problems) == ({"a": {"value": 1}, "c": 3}, ())
