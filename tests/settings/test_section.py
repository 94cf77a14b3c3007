"""The mechanism: a declaration gives validation, words, and everything else that is known of a setting."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from typing import Literal

import pytest
from pydantic import ValidationError

from tests.helpers.source import PROJECT
from trainer.ground.errors import Problem
from trainer.ground.paths import normalised
from trainer.settings.problems import problems_of_section, rule, unknown
from trainer.settings.section import (
    ANY,
    NO_ENTRY,
    NOT_THERE,
    OWN_NAME,
    Entry,
    Section,
    Show,
    There,
)
from trainer.settings.section import setting as declared
from trainer.settings.walk import Setting, sections_of, settings_of, visible

setting = partial(declared, resume="learning", metadata=NO_ENTRY, sd_scripts=NOT_THERE)


def _even(value: object) -> object:
    if isinstance(value, int) and value % 2:
        raise ValueError("it must be even")
    return value


class Kitchen(Section):
    """Pots and pans."""

    pots: int = setting(3, Show("Pots", tab="basic", group="Iron", unit="pieces"), ge=1, le=9)
    """How many pots.

    A second
    paragraph.

    And a third.
    """

    heat: float = setting(0.5, Show("Heat", when={"stove": ("gas", "wood")}), gt=0, lt=1)
    """How hot."""

    stove: str = setting("gas", Show("Stove"), choices=("gas", "wood"))
    """Which stove."""

    size: Literal[75, 150] = setting(75, Show("Size"))
    """Which size."""

    clean: bool = setting(True, Show("Clean"))
    """Whether it is clean."""

    every: int | None = setting(2, Show("Every"), zero_is_off=True, ge=1)
    """How often."""

    spices: tuple[str, ...] = setting((), Show("Spices", when={"note": ANY}))
    """Which spices."""

    note: str = setting("", Show("Note"), metadata=OWN_NAME, sd_scripts=There("", name="remark"))
    """Anything."""

    book: str = setting("", Show("Book", widget="file"), resume="free", metadata=Entry("modelspec.book"))
    """Where the recipes are."""

    even: int = setting(2, Show("Even"), parse=_even)
    """An even number."""


class Garden(Section):
    """Beds."""

    weight: float | tuple[float, ...] = setting(1.0, Show("Weight"))
    """One number, or one for each bed."""


@dataclasses.dataclass(frozen=True)
class House:
    kitchen: Kitchen = Kitchen()
    garden: Garden = Garden()


SETTINGS = settings_of(House)


def problem(key: str, value: object) -> Problem:
    """Return the problem that a value of a kitchen setting makes."""
    with pytest.raises(ValidationError) as refused:
        Kitchen(**{key: value})
    (found,) = problems_of_section(refused.value, SETTINGS)
    assert found.key == key
    return found


def test_walk_reads_the_declaration() -> None:
    assert list(SETTINGS) == [*Kitchen.model_fields, *Garden.model_fields]
    pots = SETTINGS["pots"]
    assert (pots.section, pots.kind, pots.optional, pots.default) == ("kitchen", "integer", False, 3)
    assert (pots.bounds.ge, pots.bounds.le, pots.bounds.gt) == (1, 9, None)
    assert (pots.show.label, pots.show.tab, pots.show.unit) == ("Pots", "basic", "pieces")
    assert pots.help == "How many pots."
    assert pots.tooltip == "A second paragraph.\n\nAnd a third."
    assert pots.link == "docs/settings.md#pots"


@pytest.mark.parametrize(
    ("key", "kind", "optional", "choices"),
    [
        ("heat", "number", False, ()),
        ("stove", "choice", False, ("gas", "wood")),
        ("size", "choice", False, (75, 150)),
        ("clean", "switch", False, ()),
        ("every", "integer", True, ()),
        ("spices", "list", False, ()),
        ("note", "text", False, ()),
        ("weight", "number", False, ()),
    ],
)
def test_kind_follows_from_the_type(key: str, kind: str, optional: bool, choices: tuple[object, ...]) -> None:
    found: Setting = SETTINGS[key]
    assert (found.kind, found.optional, found.choices) == (kind, optional, choices)
    assert found.accepts_list is (key == "weight")


def test_bounds_of_optional_numbers_are_found_and_hold() -> None:
    assert SETTINGS["every"].bounds.ge == 1
    assert problem("every", -1).message.startswith("-1 cannot be used: it must be a whole number of at least 1")


def test_the_same_key_in_two_sections_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Twice:
        kitchen: Kitchen = Kitchen()
        again: Kitchen = Kitchen()

    # `from __future__ import annotations` makes the field types texts, which local classes cannot be looked up from.
    Twice.__annotations__.update(kitchen=Kitchen, again=Kitchen)
    with pytest.raises(TypeError, match="pots is declared in .kitchen. and in .again."):
        settings_of(Twice)


def test_sections_come_in_order_with_their_names() -> None:
    assert dict(sections_of(House)) == {"kitchen": Kitchen, "garden": Garden}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("pots", 0, '0 cannot be used: it must be a whole number from 1 to 9 (default 3).'),
        ("pots", 2.0, '2.0 cannot be used: it must be a whole number from 1 to 9 (default 3).'),
        ("pots", "2", '"2" cannot be used: it must be a whole number from 1 to 9 (default 3).'),
        ("pots", True, 'true cannot be used: it must be a whole number from 1 to 9 (default 3).'),
        ("pots", None, 'nothing cannot be used: it must be a whole number from 1 to 9 (default 3).'),
        ("heat", float("nan"), 'nan cannot be used: it must be a number above 0 and below 1 (default 0.5).'),
        ("heat", float("inf"), 'inf cannot be used: it must be a number above 0 and below 1 (default 0.5).'),
        ("heat", True, 'true cannot be used: it must be a number above 0 and below 1 (default 0.5).'),
        ("stove", "Gas", '"Gas" cannot be used: it must be one of "gas", "wood"; did you mean "gas"? (default "gas").'),
        ("stove", ["gas"], '[\'gas\'] cannot be used: it must be one of "gas", "wood" (default "gas").'),
        ("size", "75", '"75" cannot be used: it must be one of 75, 150; did you mean 75? (default 75).'),
        ("clean", 1, '1 cannot be used: it must be true or false (default true).'),
        ("every", 1.5, '1.5 cannot be used: it must be a whole number of at least 1, or 0 for off (default 2).'),
        ("note", 5, '5 cannot be used: it must be text (default: not set).'),
        ("even", 3, '3 cannot be used: it must be even (default 2).'),
    ],
)  # fmt: skip
def test_a_refusal_says_value_rule_and_way_out(key: str, value: object, words: str) -> None:
    assert problem(key, value).message == words


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(problem("stove", "x" * 10_000).message) < 200


def test_an_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(ValidationError) as refused:
        Kitchen.model_validate({"potts": 3})
    (found,) = problems_of_section(refused.value, SETTINGS)
    assert (found.key, found.message) == ("potts", "there is no such setting; did you mean pots?")
    assert "docs/settings.md" in unknown("quite_another", SETTINGS).message


def test_every_wrong_value_of_a_section_is_reported() -> None:
    with pytest.raises(ValidationError) as refused:
        Kitchen.model_validate({"pots": 0, "heat": "x", "stove": "coal", "nothing_like": 1})
    found = [problem.key for problem in problems_of_section(refused.value, SETTINGS)]
    assert found == ["pots", "heat", "stove", "nothing_like"]


def test_zero_is_off_only_where_declared() -> None:
    assert Kitchen(every=0).every is None
    assert Kitchen(every=None).every is None
    assert problem("every", False)
    assert rule(SETTINGS["every"]).endswith("or 0 for off")


def test_lists_become_tuples_so_that_sections_stay_frozen() -> None:
    kitchen = Kitchen.model_validate({"spices": ["salt", "dill"]})
    assert kitchen.spices == ("salt", "dill")
    assert hash(kitchen) == hash(Kitchen(spices=("salt", "dill")))
    assert Garden.model_validate({"weight": [1.0, 2.0]}).weight == (1.0, 2.0)
    with pytest.raises(ValidationError):
        kitchen.note = "changed"


def test_a_path_is_taken_as_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("USERPROFILE", "/home/someone")
    assert normalised(' "C:\\my pictures" ') == "C:\\my pictures"
    assert normalised("~/models/a.safetensors") == "/home/someone/models/a.safetensors"
    assert "single quotes" in problem("book", "C:\new").message


def test_visibility_follows_other_values() -> None:
    assert visible(SETTINGS["heat"], {"stove": "gas"})
    assert not visible(SETTINGS["heat"], {"stove": "electric"})
    assert visible(SETTINGS["heat"], {})
    assert visible(SETTINGS["spices"], {"note": "some"})
    assert not visible(SETTINGS["spices"], {"note": ""})


def test_a_setting_declared_without_the_helper_is_refused() -> None:
    class Bare(Section):
        plain: int = 3

    with pytest.raises(TypeError, match=re.escape("Bare.plain is not declared with setting()")):
        Bare(plain=4)


@pytest.mark.parametrize("unsaid", ["resume", "metadata", "sd_scripts"])
def test_a_setting_that_leaves_one_unsaid_is_refused(unsaid: str) -> None:
    said = {"resume": "free", "metadata": NO_ENTRY, "sd_scripts": NOT_THERE}
    declared(3, Show("Pots"), **said)
    del said[unsaid]
    with pytest.raises(TypeError, match=unsaid):
        declared(3, Show("Pots"), **said)


def test_only_tools_declare_what_says_nothing_of_runs() -> None:
    """`argument` leaves unsaid what a setting of a run must say."""
    files = [path.read_text(encoding="utf-8") for path in (PROJECT / "trainer" / "config").glob("*.py")]
    assert len(files) > 5
    assert not any("argument(" in text for text in files)


def test_what_a_change_means_is_one_of_the_words() -> None:
    with pytest.raises(TypeError, match="resume='perhaps' is none of free, rounding"):
        declared(3, Show("Pots"), resume="perhaps", metadata=NO_ENTRY, sd_scripts=NOT_THERE)


def test_a_setting_tells_its_entry_and_its_argument() -> None:
    told = {
        key: (SETTINGS[key].entry, SETTINGS[key].argument, SETTINGS[key].resume) for key in ("note", "book", "pots")
    }
    assert told == {
        "note": ("ss_note", "remark", "learning"),
        "book": ("modelspec.book", "", "free"),
        "pots": ("", "", "learning"),
    }
