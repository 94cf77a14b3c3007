"""Try out saved files: a grid of pictures, files by weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from trainer.config import TrainingConfig, load_config
from trainer.ground.errors import ConfigError, Problem, StateError
from trainer.preview.prompts import SamplePrompt, first_prompt, parse_prompt, settle
from trainer.results.run_folder import RunFolder
from trainer.results.run_record import RunReader, run_folder_at
from trainer.settings.section import Show, argument
from trainer.tools.asking import refusal
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool
from trainer.trial import grid
from trainer.trial.grid import MOST_WEIGHT, WEIGHTS, Request

_AS_USUAL = ("width", "height", "seed", "scale", "sample_steps", "sample_sampler", "others")
"""What a prompt may leave open; that there is nothing to avoid is said by leaving it out."""


class TryArguments(Arguments):
    """Which files at which weights, and the picture."""

    run: str = argument(..., Show("Run or LoRA", widget="file"))
    """The run whose files are tried: its folder NAME.run or OUTPUT_DIR/NAME; or a LoRA of any origin."""

    files: tuple[str, ...] = argument((), Show("Files", widget="files", unit="FILE"))
    """The files to try, each a row; where none is named, all that the run saved, or the LoRA itself."""

    model: str = argument("", Show("Model", widget="file"))
    """The checkpoint to draw with, where it is not the run's."""

    weights: tuple[float, ...] = argument(
        WEIGHTS, Show("Weights", widget="list", unit="WEIGHT"), rule="a list of numbers"
    )
    """How much each file counts, each a column."""

    prompt: str = argument("", Show("Prompt"))
    """What to draw, with options as in sample prompts; what it leaves open is as in the run's first one."""

    negative: str = argument("", Show("Negative prompt"))
    """What to avoid."""

    seed: int | None = argument(None, Show("Seed"), ge=0)
    """The seed of every picture; where nothing is said, that of the first sample prompt."""

    sampler: str = argument("", Show("Sampler"))
    """How to draw; where nothing is said, as the run's samples."""

    steps: int | None = argument(None, Show("Steps"), ge=1, le=1000)
    """In how many steps."""

    scale: float | None = argument(None, Show("Guidance"), ge=0)
    """How far from the negative prompt."""

    width: int | None = argument(None, Show("Width", unit="px"), ge=64, le=4096)
    """Width of a picture; where nothing is said, that of the first sample prompt, or of the training."""

    height: int | None = argument(None, Show("Height", unit="px"), ge=64, le=4096)
    """Height of a picture."""


class TryIt(Tool[TryArguments]):
    """The pictures lie in the run's folder, under `tried`; for a LoRA that is no run's in NAME.tried beside it.

    They are drawn as the samples of a run are, when the device is free.
    """

    name = "try"
    title = "Try it"
    on_page = True
    help = "draw a grid of pictures, saved files by weights"
    arguments = TryArguments
    positional = {"run": "RUN"}

    def run(self, arguments: TryArguments, desk: Desk) -> int:
        folder = run_folder_at(arguments.run)
        config, files = self._config(arguments, folder), self._files(arguments, folder)
        request = request_of(arguments, config, files)
        where = grid.folder_of(folder, Path(files[0]))
        trial = self.load().draw(
            config, request, where, desk.progress(), desk.by, (lambda begun: desk.wrote(begun.folder), desk.note)
        )
        desk.say(f"{len(trial.drawn)} pictures in {trial.folder}")
        return COMPLETED

    def load(self) -> ModuleType:
        """Import what needs torch."""
        from trainer.trial import drawing

        return drawing

    def _config(self, arguments: TryArguments, folder: RunFolder | None) -> TrainingConfig:
        """Return the run's settings with the model that is named, or the defaults with it."""
        model = {"pretrained_model_name_or_path": arguments.model} if arguments.model else {}
        if folder is not None:
            config = folder.read_config()
            named = config.model.model_copy(update=model)
            return dataclasses.replace(config, model=named)
        if not model:
            message = f"{Path(arguments.run).name!r} is of no run that is known here; name the checkpoint to draw with."
            raise ConfigError([Problem("model", message)])
        return load_config(overrides=model)

    def _files(self, arguments: TryArguments, folder: RunFolder | None) -> tuple[str, ...]:
        """Return the files, the run's oldest first."""
        if arguments.files:
            return arguments.files
        if Path(arguments.run).is_file():
            return (arguments.run,)
        if folder is None:
            raise refusal("run", arguments.run, "there is no run and no LoRA of this name")
        found = tuple(map(str, RunReader(folder).read().files.values()))
        if not found:
            raise StateError(f"The run {folder.output_name!r} has no saved file.", "Train it to its first save.")
        return found


def request_of(arguments: TryArguments, config: TrainingConfig, files: Sequence[str]) -> Request:
    """Return what is to be drawn.

    Raises:
        ConfigError: there is no prompt, no weight, or one out of all proportion.
    """
    first = _prompt(arguments.prompt.strip(), config)
    weights = tuple(dict.fromkeys(arguments.weights))
    bad = [weight for weight in weights if not -MOST_WEIGHT <= weight <= MOST_WEIGHT]
    if bad or not weights:
        given = f"{bad[0]:g} cannot be used" if bad else "none is given"
        raise ConfigError([Problem("weights", f"{given}; weights go from {-MOST_WEIGHT:g} to {MOST_WEIGHT:g}.", bad)])
    said = {
        "negative_prompt": arguments.negative or first.negative_prompt,
        "seed": settle(first, config, 0).seed if arguments.seed is None else arguments.seed,
        "sampler": arguments.sampler or first.sample_sampler or "",
        "steps": arguments.steps or first.sample_steps,
        "scale": first.scale if arguments.scale is None else arguments.scale,
        "width": arguments.width or first.width,
        "height": arguments.height or first.height,
        "guidance": first.guidance,
    }
    return Request(tuple(files), weights, " ".join(first.prompt.split()), **said)  # type: ignore[arg-type]


def _prompt(text: str, config: TrainingConfig) -> SamplePrompt:
    """Return what is to be drawn, with what it leaves open as in the run's first sample prompt."""
    if not text:
        usual = first_prompt(config)
        if usual is None:
            raise ConfigError([Problem("prompt", "is empty, and the run has no sample prompt; say what to draw.")])
        return usual
    own, usual = parse_prompt(text), None
    if own.ignored:
        rule = f"{', '.join(own.ignored)} is no option of a prompt, or no value of that option."
        raise ConfigError([Problem("prompt", rule, text)])
    with suppress(ConfigError):  # a file of prompts that is gone says nothing
        usual = first_prompt(config)
    left_open = [name for name in _AS_USUAL if not getattr(own, name)]
    return dataclasses.replace(own, **{name: getattr(usual, name) for name in left_open if usual})
