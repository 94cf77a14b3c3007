"""What operations make of captions, and of what surrounds the tags that they change."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.ground.errors import DataError
from trainer.workbench.operations import (
    AddTags,
    Dedupe,
    FindReplace,
    Operation,
    Prefix,
    RemoveTags,
    RenameTag,
    SetText,
    SortTags,
    Suffix,
    TriggerWord,
)
from trainer.workbench.statistics import complete, tag_counts
from trainer.workbench.texts import body_of, tags_of


@pytest.mark.parametrize(
    ("operation", "text", "wanted"),
    [
        (FindReplace("cat", "dog"), "cat, Cat, catfish\n", "dog, Cat, dogfish\n"),
        (FindReplace("cat", "dog", match_case=False, whole_words=True), "cat, Cat, catfish", "dog, dog, catfish"),
        (FindReplace("a.b", r"\1"), "a.b axb", r"\1 axb"),
        (Prefix("x, "), "one\r\n\r\ntwo\r\n", "x, one\r\n\r\nx, two\r\n"),
        (Prefix("x"), "", "x"),
        (Suffix(", x"), "one\n", "one, x\n"),
        (TriggerWord("ohwx"), "red, cat", "ohwx, red, cat"),
        (TriggerWord("ohwx"), "red,cat", "ohwx,red,cat"),
        (TriggerWord("ohwx"), "red, OHWX, cat", "ohwx, red, cat"),
        (TriggerWord("ohwx"), "Ohwx, red", "Ohwx, red"),
        (TriggerWord("ohwx"), "", "ohwx"),
        (TriggerWord("ohwx"), "a photo of ohwx man", "ohwx, a photo of ohwx man"),
        (RemoveTags(("cat",)), "cat, red,  blue", "red,  blue"),
        (RemoveTags(("cat",)), "red, Cat ,blue, cat", "red,blue"),
        (RemoveTags(("cat", "red")), "cat, red\n", "\n"),
        (RemoveTags(("cat",)), "catfish, black cat", "catfish, black cat"),
        (AddTags(("new", "cat")), "red, cat", "red, cat, new"),
        (AddTags(("new",), first=True), "red,cat", "new,red,cat"),
        (AddTags(("new",)), "red, cat, ", "red, cat, new"),
        (AddTags(("a", "b")), "", "a, b"),
        (RenameTag("cat", "dog"), "a,  cat , cat, catfish", "a,  dog , catfish"),
        (RenameTag("cat", "Cat"), "a, cat", "a, Cat"),
        (RenameTag("cat", "dog"), "dog, a, cat", "dog, a"),
        (SortTags(), "b, C, a", "a, b, C"),
        (SortTags(keep=1), "z,b,a", "z,a,b"),
        (SortTags(by="count", counts={"a": 1, "B": 5}), "a, b, c", "b, a, c"),
        (SortTags(), "a,  b", "a,  b"),
        (Dedupe(), "a, b, A,, b,c ,", "a, b,c "),
        (Dedupe(), "a, a\nb, b\n", "a\nb\n"),
        (SetText("x\ny"), "one\r\n", "x\r\ny\r\n"),
        (SetText("x\n"), "one", "x"),
        (RemoveTags(("b",), separator=";"), "a, b; b; c", "a, b; c"),
    ],
)  # fmt: skip
def test_operation(operation: Operation, text: str, wanted: str) -> None:
    assert operation.apply(text) == wanted
    assert operation.words and operation.title


@pytest.mark.parametrize(
    "make",
    [
        lambda: FindReplace("", "x"),
        lambda: FindReplace("a\nb", "x"),
        lambda: FindReplace("a", "x" * 10_001),
        lambda: RemoveTags(()),
        lambda: AddTags(("a, b",)),
        lambda: RenameTag("a", " "),
        lambda: TriggerWord(""),
        lambda: SortTags(by="size"),
        lambda: SortTags(keep=-1),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make: object) -> None:
    with pytest.raises(DataError):
        make()  # type: ignore[operator]


TEXTS = st.text(alphabet="ab ,\n\r;é", max_size=20)


@given(TEXTS, st.sampled_from([TriggerWord("zz"), AddTags(("zz",)), RemoveTags(("a",)), Dedupe(), SortTags()]))
def test_doing_it_twice_does_no_more(text: str, operation: Operation) -> None:
    once = operation.apply(text)
    assert operation.apply(once) == once
    kept = [tag for tag in tags_of(text) if tag not in ("a", "zz")]
    assert set(kept) <= set(tags_of(once)) or isinstance(operation, Dedupe)


@given(TEXTS)
def test_what_is_shown_is_saved_as_it_was(text: str) -> None:
    if "\r" not in text.replace("\r\n", ""):
        body = body_of(text)
        assert body_of(SetText(body).apply(text)) == body


def test_tags_are_counted_and_completed() -> None:
    counts = tag_counts(["red, Cat, cat", "cat\nblue eyes, red", "catfish, my_cat"])
    assert list(counts.items()) == [("cat", 2), ("red", 2), ("blue eyes", 1), ("catfish", 1), ("my_cat", 1)]
    assert complete({"cat": 1, "catfish": 5, "black cat": 9, "my_cat": 2, "bobcat": 7, "dog": 9}, "CAT") == [
        ("catfish", 5),
        ("cat", 1),
        ("black cat", 9),
        ("my_cat", 2),
        ("bobcat", 7),
    ]
    assert complete(counts, "", most=1) == list(counts.items())[:1]
