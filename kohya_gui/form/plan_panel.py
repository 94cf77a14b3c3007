"""Beside the form: what the settings come to. Steps, rates, file size, schedule, advice, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kohya_gui.form import fields
from kohya_gui.form.blocks_card import blocks_card
from kohya_gui.form.draft import Checked
from kohya_gui.form.survey import Survey
from kohya_gui.form.terminal_card import terminal_card
from kohya_gui.parts.charts import Line, chart
from kohya_gui.parts.markup import button, esc, number, size
from trainer.advice import AIM_STEPS, FEWEST_STEPS, MOST_STEPS, TRIAL_SIDE, Advice
from trainer.config import in_labels, known_settings
from trainer.ground.errors import Problem
from trainer.planning.arithmetic import sum_of_steps
from trainer.planning.plan import model_in_words


@dataclass(frozen=True, slots=True)
class Remedy:
    """A way out that one click takes: of the `place`-th problem or piece of advice, which is called `name`."""

    of: str
    place: int
    name: str
    values: Mapping[str, object]

    @property
    def words(self) -> str:
        """What the click does, in words: "Set Rank to 32, clear UNet learning rate"."""
        found = [fields.assignment(known_settings()[key], value) for key, value in self.values.items()]
        return ", ".join([*found[:1], *(word[0].lower() + word[1:] for word in found[1:])])


def remedies(checked: Checked, survey: Survey | None) -> tuple[Remedy, ...]:
    """Return every way out that the panel offers."""
    problems = [("problem", each.key, each.remedy) for each in all_problems(checked, survey)]
    advice = [("advice", each.rule, each.remedy) for each in (survey.advice if survey else ())]
    return tuple(
        Remedy(of, place, name, values)
        for group in (problems, advice)
        for place, (of, name, values) in enumerate(group)
        if values
    )


def all_problems(checked: Checked, survey: Survey | None) -> tuple[Problem, ...]:
    """Return what stands in the way: wrong values, then what looking at pictures and model found."""
    return (*checked.problems, *(survey.problems if survey else ()))


def plan_panel(checked: Checked, survey: Survey | None, refusal: str = "") -> str:
    """Return the whole panel. `refusal` is why the settings for the terminal were not written."""
    ways_out = {(remedy.of, remedy.place): _button(remedy) for remedy in remedies(checked, survey)}
    parts = [problem_list(all_problems(checked, survey), ways_out)]
    if survey and checked.config:
        parts += [steps_card(survey), advice_list(survey.advice, ways_out), rates_card(survey)]
        parts.append(blocks_card(survey))
        parts.append(terminal_card(checked.config, refusal))
    return "".join(parts)


def _button(remedy: Remedy) -> str:
    return button("remedy", remedy.words, of=remedy.of, place=remedy.place, name=remedy.name)


def problem_list(problems: Sequence[Problem], ways_out: Mapping[tuple[str, int], str]) -> str:
    """Return the one list of everything that stands in the way, each line leading to its field."""
    if not problems:
        return ""
    count = "1 setting needs" if len(problems) == 1 else f"{len(problems)} settings need"
    rows = "".join(
        f'<li>{_to_field(problem.key)}<span class="why">{esc(in_labels(problem.message, problem.key))}</span>'
        f"{ways_out.get(('problem', place), '')}</li>"
        for place, problem in enumerate(problems)
    )
    return f'<section class="card bad" id="problems" role="status"><h3>{count} attention</h3><ul>{rows}</ul></section>'


def _to_field(key: str) -> str:
    setting = known_settings().get(key)
    if setting is None:
        return f"<b>{esc(key)}</b>"
    data = f'data-goto="{esc(key)}" data-tab="{setting.show.tab}"'
    return f'<button type="button" class="link" {data}>{esc(setting.show.label)}</button>'


def steps_card(survey: Survey) -> str:
    """Return the number of steps, whether it is near the aim, and the sum that leads to it."""
    if survey.counting:
        return '<section class="card"><h3>Steps</h3><p class="quiet">Counting the pictures …</p></section>'
    if survey.timetable is None or survey.counts is None or survey.report is None:
        return (
            '<section class="card"><h3>Steps</h3><p class="quiet">Choose a folder of pictures, and the number of '
            "steps appears here.</p></section>"
        )
    timetable = survey.timetable
    return (
        '<section class="card steps"><h3>Steps</h3>'
        f'<p class="big"><b id="total-steps">{number(timetable.total_steps)}</b> steps'
        f"{_verdict(survey, timetable.total_steps)}</p>"
        f'<p class="sum">{esc(sum_of_steps(survey.report, survey.counts, timetable))}</p></section>'
    )


def _verdict(survey: Survey, steps: int) -> str:
    if 0 < survey.side < TRIAL_SIDE:
        return '<span class="badge">a trial</span>'
    if steps < FEWEST_STEPS:
        return f'<span class="badge warn">below {number(FEWEST_STEPS)}</span>'
    if steps > MOST_STEPS:
        return f'<span class="badge warn">above {number(MOST_STEPS)}</span>'
    return f'<span class="badge good">near {number(AIM_STEPS)}, as it should be</span>'


def rates_card(survey: Survey) -> str:
    """Return the strength, each part's rate with and without it, the file's size, and the schedule drawn."""
    config, found = survey.config, survey.rates
    strength = config.network.network_alpha / config.network.network_dim
    rows = "".join(
        f"<tr><th>{esc(part.title)}</th><td>{number(found[part.name])}</td>"
        f"<td>{number(found[part.name] * strength)}</td></tr>"
        for part in survey.parts
        if part.name in found
    )
    missing = "".join(
        f'<tr class="quiet"><th>{esc(part.title)}</th><td colspan="2">not trained</td></tr>'
        for part in survey.parts
        if part.name not in found
    )
    seen = survey.recognition
    model = f'<p id="model">Base model: <b>{esc(model_in_words(seen))}</b></p>' if seen else ""
    file = f"<p>The LoRA file: about <b>{size(survey.plan.file_bytes)}</b></p>" if survey.plan else ""
    return (
        f'<section class="card"><h3>Learning</h3>{model}'
        f"<p>Strength: alpha ÷ rank = {number(config.network.network_alpha)} ÷ {config.network.network_dim} "
        f"= <b>{number(strength)}</b></p>"
        f'<table class="rates"><thead><tr><th></th><th>rate</th><th>× strength</th></tr></thead>'
        f"<tbody>{rows}{missing}</tbody></table>{file}{_schedule(survey)}</section>"
    )


def _schedule(survey: Survey) -> str:
    curve = survey.curve
    if curve is None:
        return ""
    if curve.instead:
        return f'<p class="quiet">{esc(in_labels(curve.instead))}</p>'
    drawn = [Line(curve.steps, curve.values, "rate")]
    return chart(curve.title, drawn, last=curve.last, floor=0.0, note=curve.note)


def advice_list(advice: Sequence[Advice], ways_out: Mapping[tuple[str, int], str]) -> str:
    """Return what experience says, each with its reason and, where it is certain, a button that follows it."""
    if not advice:
        return (
            '<section class="card good-card" id="advice"><h3>Advice</h3>'
            '<p class="quiet">Nothing unusual in these settings.</p></section>'
        )
    rows = "".join(
        f'<li class="{"serious" if each.serious else "remark"}">'
        f"<p>{_to_field(each.key)} <span>{esc(in_labels(each.message, each.key))}</span></p>"
        f'<p class="quiet">{esc(in_labels(each.reason, each.key))}</p>{ways_out.get(("advice", place), "")}</li>'
        for place, each in enumerate(advice)
    )
    return f'<section class="card" id="advice"><h3>Advice</h3><ul class="advice">{rows}</ul></section>'
