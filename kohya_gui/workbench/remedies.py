"""What is wrong with the pictures that are open, found as an errand, and what one click does about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kohya_gui.workbench import told
from kohya_gui.workbench.bench import Bench
from kohya_gui.workbench.told import Said
from kohya_gui.workbench.workbench import Answer, Workbench
from trainer.families import FAMILIES, Recognition, recognise_chosen
from trainer.ground.control import Progress
from trainer.ground.errors import ConfigError, DataError, Problem
from trainer.pictures.remarks import amend_remarks
from trainer.workbench import changes, tokens
from trainer.workbench.problems import Finding, Kind, Options, Remedy, find_problems

FINDINGS_PAGE = 30
SHOWN_OF_FINDING = 12
"""Pictures of one finding that are shown; the rest can be shown in the grid."""


class Remedies:
    """Looks for problems of a workbench's folders. What is asked of a folder raises as the workbench does."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench

    def search(self, bench: Bench, said: Said) -> Answer:
        """Look for what is wrong with the pictures, as an errand; with `tokens` captions are counted as the model does.

        Raises:
            ConfigError: the form names no model to count with.
            StateError: another errand is under way.
        """
        trigger, counts = told.text(said, "trigger").strip(), told.yes(said, "tokens")
        model = _model(bench) if counts else None

        def work(progress: Progress) -> Answer:
            limit = tokens.load(bench.config, model) if model else None
            options = Options(trigger=trigger, limit=limit)
            bench.ready.wait()
            bench.take_findings(find_problems(bench.album, bench.config, options, progress, bench.index))
            unknown = f"How many tokens {FAMILIES[model.family].title} reads is not known here." if model else ""
            return {"found": len(bench.findings), "uncounted": "" if limit else unknown}

        return self._workbench.sent(self._workbench.errands.start("Looking for problems", work, heavy=counts))

    def findings(self, bench: Bench, said: Said) -> Answer:
        """Return some of what was found, from a place on, and how much there is of each kind."""
        begin, found = max(0, told.whole(said, "from") or 0), bench.findings
        page = found[begin : begin + FINDINGS_PAGE]
        alike = Counter((each.kind, remedy.for_all) for each in found for remedy in each.remedies)
        return {
            "from": begin,
            "total": len(found),
            "listed": [_shown(bench, begin + place, each, alike) for place, each in enumerate(page)],
            "kinds": Counter(each.kind.value for each in found),
        }

    def remedy(self, bench: Bench, said: Said) -> Answer:
        """Follow one remedy of a finding, or with `all` what all findings of its kind have alike."""
        number, place = told.whole(said, "number"), told.whole(said, "remedy")
        if number is None or place is None or not 0 <= number < len(bench.findings):
            raise DataError("There is no such problem in the list any more.", "Look for problems again.")
        chosen = bench.findings[number]
        if not 0 <= place < len(chosen.remedies):
            raise DataError("There is no such remedy.", "Look for problems again.")
        everywhere = told.yes(said, "all")
        wanted = chosen.remedies[place].for_all
        words = wanted if everywhere else chosen.remedies[place].words
        followed = [
            (each, remedy)
            for each in (bench.findings if everywhere else (chosen,))
            if each.kind == chosen.kind
            for remedy in (each.remedies if everywhere else (chosen.remedies[place],))
            if remedy.for_all == wanted
        ]
        if chosen.remedies[place].operations:
            return self._changed(bench, followed)
        amend: dict[Path, Mapping[str, Any]] = {}
        for _, remedy in followed:
            amend |= remedy.amend
        return self._workbench.noted(bench, f"{words}: {_pictures(len(amend))}", amend_remarks(amend), amend)

    def _changed(self, bench: Bench, followed: Sequence[tuple[Finding, Remedy]]) -> Answer:
        """Change captions as an errand."""
        paths = dict.fromkeys(path for finding, _ in followed for path in finding.pictures)
        numbers = [number for path in paths if (number := bench.number_of(path)) is not None]
        planned = changes.preview(bench.entries(numbers), followed[0][1].operations)
        kept = self._workbench.kept(bench, planned)
        return {**self._workbench.apply(bench, kept), "left": kept["refused"]}


def _model(bench: Bench) -> Recognition:
    """Return the model that the form names.

    Raises:
        ConfigError: it names none.
    """
    if not bench.config.model.pretrained_model_name_or_path:
        raise ConfigError([Problem("pretrained_model_name_or_path", "is not set; choose the model in the form.", "")])
    return recognise_chosen(bench.config)


def _shown(bench: Bench, number: int, found: Finding, alike: Mapping[tuple[Kind, str], int]) -> Answer:
    ids = [each for path in found.pictures if (each := bench.number_of(path)) is not None]
    return {
        "number": number,
        "kind": found.kind.value,
        "message": found.message,
        "count": len(ids),
        "ids": ids[:SHOWN_OF_FINDING],
        "remedies": [
            {
                "words": each.words,
                "for_all": each.for_all,
                "alike": alike[found.kind, each.for_all],
                "done": _is_done(bench, each),
            }
            for each in found.remedies
        ],
    }


def _is_done(bench: Bench, remedy: Remedy) -> bool:
    """Say whether what a remedy remarks of pictures is remarked already."""
    for path, wanted in remedy.amend.items():
        number = bench.number_of(path)
        if number is None:
            return False
        said = bench.remark(bench.entry(number))
        if any(getattr(said, key) != value for key, value in wanted.items()):
            return False
    return bool(remedy.amend)


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count:,} pictures"
