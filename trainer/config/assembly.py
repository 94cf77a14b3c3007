"""From layers of values to a configuration: defaults under a preset, under a file, under what is set by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from trainer.config import datasets
from trainer.config.rules import RULES, Rule
from trainer.config.training_config import TrainingConfig, known_settings
from trainer.ground.errors import ConfigError, Problem
from trainer.optimizers import kind_of
from trainer.settings.problems import problems_of_section, unknown
from trainer.settings.section import Section
from trainer.settings.walk import sections_of

Layer = Mapping[str, object]


_FOLDERS = ("train_data_dir", "reg_data_dir")


@dataclasses.dataclass(frozen=True, slots=True)
class Assembled:
    """The outcome of laying layers over the defaults: a configuration, or the problems that prevent one."""

    config: TrainingConfig | None
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]


def config_from_layers(layers: Iterable[Layer]) -> TrainingConfig:
    """Return the configuration of flat layers, later ones over earlier ones. Raises ConfigError with every problem."""
    assembled = assemble(layers)
    if assembled.config is None:
        raise ConfigError(assembled.problems)
    return assembled.config


def problems_of(flat: Layer) -> tuple[TrainingConfig | None, tuple[Problem, ...]]:
    """Return the configuration of a filled-in form, or None and every problem.

    A value equal to the default counts as not set, as if it had not been written into a file.
    """
    known = known_settings()
    changed = {key: value for key, value in flat.items() if key not in known or not _is_default(key, value)}
    assembled = assemble([changed])
    return assembled.config, assembled.problems


def _is_default(key: str, value: object) -> bool:
    default = known_settings()[key].default
    return type(value) is type(default) and value == default


def assemble(layers: Iterable[Layer]) -> Assembled:
    """Lay the layers over the defaults, and check every value and every rule that crosses settings."""
    values: dict[str, object] = {}
    notices: list[str] = []
    for layer in layers:
        values = _overlaid(values, layer, notices)
    listed = datasets.read(values.get(datasets.KEY, ()))
    sections, problems = _sections({**values, datasets.KEY: listed.tables})
    problems += [*listed.problems, *listed.unsupported]
    problems += [unknown(key, known_settings()) for key in values if key not in known_settings()]
    config = _with_one_rate(TrainingConfig(**sections), values)
    wrong = {problem.key for problem in problems}
    for rule in RULES:
        if not wrong.intersection(rule.keys):
            problems += _broken(rule, config)
    return Assembled(None if problems else config, tuple(problems), tuple(notices))


def _broken(rule: Rule, config: TrainingConfig) -> list[Problem]:
    """Return what a rule finds; where its settings may differ by dataset, it is each of them that it is about."""
    known = known_settings()
    levels = {known[key].within for key in rule.keys if key in known}
    if not config.dataset.datasets or not levels & {"dataset", "subset"}:
        return list(rule.check(config))
    found: dict[Problem, str] = {}
    for dataset in datasets.datasets_of(config):
        for each in dataset.subsets if "subset" in levels else (dataset,):
            for problem in rule.check(each.config):
                found.setdefault(dataclasses.replace(problem, value=None, remedy=None), each.place)
    return [Problem(datasets.KEY, f"{place}: {problem.key} {problem.message}") for problem, place in found.items()]


def _overlaid(values: Mapping[str, object], layer: Layer, notices: list[str]) -> dict[str, object]:
    """Lay one layer over the values below.

    In one layer epochs win over steps, and datasets over folders; a later layer's one replaces either.
    """
    merged = {**values, **layer}
    if layer.get(datasets.KEY):
        for key in _FOLDERS:
            if layer.get(key):
                notices.append(f"{key} {layer[key]} is not used, because datasets are set beside it.")
            merged[key] = ""
    elif any(layer.get(key) for key in _FOLDERS):
        merged[datasets.KEY] = ()
    if layer.get("max_train_epochs"):
        steps = layer.get("max_train_steps")
        if not steps:
            merged["max_train_steps"] = None
        elif _valid("max_train_steps", steps):
            merged["max_train_steps"] = None
            notices.append(f"max_train_steps {steps} is not used, because max_train_epochs is set beside it.")
    elif layer.get("max_train_steps"):
        merged["max_train_epochs"] = None
    return merged


def _valid(key: str, value: object) -> bool:
    section = sections_of(TrainingConfig)[known_settings()[key].section]
    return not _validated(section, {key: value})[1]


def _sections(values: Mapping[str, object]) -> tuple[dict[str, Any], list[Problem]]:
    sections: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, section in sections_of(TrainingConfig).items():
        given = {key: values[key] for key in section.model_fields if key in values}
        sections[name], found = _validated(section, given)
        problems += found
    return sections, problems


def _validated(section: type[Section], given: Mapping[str, object]) -> tuple[Section, tuple[Problem, ...]]:
    """Return the section with defaults in place of the values that cannot be used, and the problems of those."""
    try:
        return section(**given), ()
    except ValidationError as error:
        problems = problems_of_section(error, known_settings())
        wrong = {problem.key for problem in problems}
        return section(**{key: value for key, value in given.items() if key not in wrong}), problems


def _with_one_rate(config: TrainingConfig, values: Mapping[str, object]) -> TrainingConfig:
    """Let the text encoder follow the learning rate where the optimizer finds its rate and nothing else was said."""
    optimizer = config.optimizer
    if "text_encoder_lr" in values or not kind_of(optimizer.optimizer_type).finds_rate:
        return config
    followed = optimizer.model_copy(update={"text_encoder_lr": optimizer.learning_rate})
    return dataclasses.replace(config, optimizer=followed)
