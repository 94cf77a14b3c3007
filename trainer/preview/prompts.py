"""Prompts for sample pictures, in sd-scripts' notation: `a cat --n ugly --w 512 --h 768 --d 1 --l 7.5 --s 28`.

Unlike there, what stands before the first option is always the prompt: "n girl" is not taken for a negative prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from trainer.config import LATENT_STEP, TrainingConfig, resolution_size
from trainer.ground.errors import ConfigError, Problem
from trainer.ground.randomness import stream
from trainer.preview.prompt_files import read_file, refused
from trainer.preview.samplers import MOST_STEPS, SAMPLERS, Sampler
from trainer.process import DDPM, FLOW, ProcessKind
from trainer.settings.kohya import names_a_file
from trainer.settings.problems import shown

STEPS = 30
SCALE = 7.5
"""sd-scripts' defaults for steps and guidance scale."""
FLOW_STEPS, FLOW_SCALE, GUIDANCE = 20, 1.0, 3.5
"""Those for rectified flow: distilled models are told a guidance, and need no second pass for the negative prompt."""

_SMALLEST_SIDE, _LARGEST_SIDE = 64, 4096
_HIGHEST_SCALE = 1000.0
_SEEDS = 2**32
"""Seeds that other programs accept too."""

_INTEGER, _NUMBER, _TEXT = r"[0-9]{1,18}", r"[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}", r".+"
_PARSERS = {_INTEGER: int, _NUMBER: float, _TEXT: str}

_GUIDED, GUIDANCE_KEY = "g", "guidance_scale"
"""What a distilled model is told, as an option and in a table; only models of rectified flow are."""

_OPTIONS = {
    "w": ("width", _INTEGER),
    "h": ("height", _INTEGER),
    "d": ("seed", _INTEGER),
    "s": ("sample_steps", _INTEGER),
    "l": ("scale", _NUMBER),
    "n": ("negative_prompt", _TEXT),
    "ss": ("sample_sampler", _TEXT),
}
_OPTIONS_OF_OTHER_FAMILIES = {
    _GUIDED: (GUIDANCE_KEY, _NUMBER),
    "fs": ("flow_shift", _TEXT),
    "ctr": ("cfg_trunc_ratio", _NUMBER),
    "rcfg": ("renorm_cfg", _NUMBER),
    "cn": ("controlnet_image", _TEXT),
}


_TABLE_KEYS = {"prompt": _TEXT, **dict(_OPTIONS.values())}


@dataclass(frozen=True, slots=True)
class SamplePrompt:
    """One line as written. None is "not said".

    `others` are options of sd-scripts that have a meaning for some families only; `ignored` is what is no option,
    or no value of its option.
    """

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    scale: float | None = None
    sample_steps: int | None = None
    sample_sampler: str | None = None
    others: tuple[tuple[str, object], ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def guidance(self) -> float | None:
        """What a distilled model is to be told."""
        told = dict(self.others)
        return _number(told[GUIDANCE_KEY]) if GUIDANCE_KEY in told else None


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One picture to draw, with every value decided. Sides in pixels; `index` counts the prompts from 0.

    `scale` pushes away from the negative prompt, `guidance` is what a distilled model is told.
    """

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    scale: float
    sampler: str
    seed: int
    index: int = 0
    guidance: float = GUIDANCE

    @property
    def parameters(self) -> str:
        """The values in the form that web UIs write into their pictures."""
        negative = f"\nNegative prompt: {self.negative_prompt}" if self.negative_prompt else ""
        values = {
            "Steps": self.steps,
            "Sampler": self.sampler,
            "CFG scale": self.scale,
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
        }
        return f"{self.prompt}{negative}\n" + ", ".join(f"{key}: {value}" for key, value in values.items())


def parse_prompt(line: str) -> SamplePrompt:
    """Read one line. Options may be in capitals; of an option given twice the later one counts."""
    text, *options = line.split(" --")
    result = SamplePrompt(text.strip())
    others: dict[str, object] = {}
    for option in options:
        letter, _, value = option.strip().partition(" ")
        field, pattern = {**_OPTIONS, **_OPTIONS_OF_OTHER_FAMILIES}.get(letter.lower(), ("", _TEXT))
        value = value.strip()
        if not field or not re.fullmatch(pattern, value):
            result = replace(result, ignored=(*result.ignored, f"--{option.strip()}"))
        elif letter.lower() in _OPTIONS:
            result = replace(result, **{field: _PARSERS[pattern](value)})
        else:
            others[field] = _PARSERS[pattern](value)
    return replace(result, others=tuple(others.items()))


def table_prompt(table: Mapping[str, object]) -> SamplePrompt:
    """Read one table of a prompt file.

    Raises:
        ValueError: it has no prompt, or a value is not of its key's kind.
    """
    values: dict[str, object] = {}
    others: dict[str, object] = {}
    ignored: list[str] = []
    for key, value in table.items():
        if value is None or key == "enum":
            continue
        if key in _TABLE_KEYS:
            if not re.fullmatch(_TABLE_KEYS[key], str(value)) or isinstance(value, bool | list | dict):
                raise ValueError(f"{key} = {value!r} cannot be used")
            values[key] = _PARSERS[_TABLE_KEYS[key]](str(value))
        elif any(key == name for name, _ in _OPTIONS_OF_OTHER_FAMILIES.values()):
            others[key] = value
        else:
            ignored.append(key)
    if "prompt" not in values:
        raise ValueError("a prompt is missing: each needs the key prompt")
    return SamplePrompt(**values, others=tuple(others.items()), ignored=tuple(ignored))  # type: ignore[arg-type]


def read_prompts(config: TrainingConfig, process: ProcessKind = DDPM) -> tuple[SamplePrompt, ...]:
    """Read the setting `sample_prompts`: prompts line by line, or the path of a file of them; see `prompt_files`.

    Blank lines and lines that begin with # are left out. Where models of this kind of process can't be drawn with the
    setting `sample_sampler`, each prompt names the sampler that they are drawn with.

    Raises:
        ConfigError: the file cannot be read, or a line names a sampler that does not exist, or steps that the sampler
            cannot draw with.
    """
    text = config.sampling.sample_prompts.strip()
    prompts = [*_prompts_of(text)]
    samplers = SAMPLERS[process.name]
    problems = [
        Problem("sample_prompts", f"{prompt.sample_sampler!r} is no sampler; choose from {', '.join(samplers)}.", text)
        for prompt in prompts
        if prompt.sample_sampler and prompt.sample_sampler not in samplers
    ]
    if problems:
        raise ConfigError(problems)
    if config.sampling.sample_sampler not in samplers:
        prompts = [replace(prompt, sample_sampler=prompt.sample_sampler or next(iter(samplers))) for prompt in prompts]
    problems = [problem for prompt in prompts for problem in _steps_problem(prompt, config, samplers, text)]
    if problems:
        raise ConfigError(problems)
    return tuple(prompts)


def _prompts_of(text: str) -> Iterator[SamplePrompt]:
    """Yield the prompts of the setting, or of the file that it names."""
    for entry in read_file(text) if names_a_file(text) else text.splitlines():
        if not isinstance(entry, str):
            try:
                yield table_prompt(entry)
            except ValueError as error:
                raise refused(text, f"{shown(text)}: {error}") from error
        elif (line := entry.strip()) and not line.startswith("#"):
            yield parse_prompt(line)


def first_prompt(config: TrainingConfig) -> SamplePrompt | None:
    """Return the first sample prompt as it is written, None where there is none.

    Raises:
        ConfigError: the file that `sample_prompts` names cannot be read.
    """
    return next(_prompts_of(config.sampling.sample_prompts.strip()), None)


def wanted_prompts(config: TrainingConfig, process: ProcessKind) -> tuple[tuple[SamplePrompt, ...], tuple[str, ...]]:
    """Return the sample prompts and what there is to say of them.

    Prompts that cannot be read are said and left out where no setting asks for pictures.

    Raises:
        ConfigError: as `read_prompts`, where pictures are asked for.
    """
    sampling = config.sampling
    try:
        prompts = read_prompts(config, process)
    except ConfigError as error:
        if sampling.sample_every_n_epochs or sampling.sample_every_n_steps or sampling.sample_at_first:
            raise
        left_out = "No sample pictures are asked for, so the run goes on without these prompts."
        return (), tuple(f"{problem} {left_out}" for problem in error.problems)
    return prompts, prompt_notices(prompts, process)


def _steps_problem(
    prompt: SamplePrompt, config: TrainingConfig, samplers: Mapping[str, Sampler], text: str
) -> Iterator[Problem]:
    name, steps = prompt.sample_sampler or config.sampling.sample_sampler, prompt.sample_steps
    if steps is None or samplers[name].takes(steps):
        return
    message = (
        f"the sampler {name} draws with {samplers[name].steps_in_words} steps, not with {steps}; "
        f"change --s {steps} in {prompt.prompt!r}, or choose another with --ss."
    )
    yield Problem("sample_prompts", message, text)


def prompt_notices(prompts: Iterable[SamplePrompt], process: ProcessKind = DDPM) -> tuple[str, ...]:
    """Say which parts of sample prompts have no effect on models of this kind of process."""
    used = {GUIDANCE_KEY} if process is FLOW else set()
    without_effect = [
        (prompt.prompt, [*prompt.ignored, *(name for name, _ in prompt.others if name not in used)])
        for prompt in prompts
    ]
    return tuple(
        f"sample_prompts: no effect in {text!r}: {', '.join(parts)}." for text, parts in without_effect if parts
    )


def settle(
    prompt: SamplePrompt,
    config: TrainingConfig,
    index: int,
    latent_step: int = LATENT_STEP,
    process: str = DDPM.name,
    guidance: float = 0.0,
) -> SampleRequest:
    """Decide what a prompt leaves open.

    The size is the training's, the sampler the settings', the seed a function of the training's seed and the
    prompt's place, so that the pictures of one prompt can be compared over a run. The scale is `guidance`, or with
    0 what is usual for the process. Sides are lowered to a multiple of `latent_step`, and values out of all
    proportion to the nearest that can be drawn.
    """
    width, height = resolution_size(config)
    steps, scale = (FLOW_STEPS, FLOW_SCALE) if process == FLOW.name else (STEPS, SCALE)
    scale = guidance or scale
    told = GUIDANCE if prompt.guidance is None else prompt.guidance
    seed = prompt.seed if prompt.seed is not None else stream(config.training.seed, 0, index, "sample") % _SEEDS
    return SampleRequest(
        prompt=prompt.prompt,
        negative_prompt=prompt.negative_prompt,
        width=_side(prompt.width or width, latent_step),
        height=_side(prompt.height or height, latent_step),
        steps=min(max(steps if prompt.sample_steps is None else prompt.sample_steps, 1), MOST_STEPS),
        scale=scale if prompt.scale is None else min(prompt.scale, _HIGHEST_SCALE),
        sampler=prompt.sample_sampler or config.sampling.sample_sampler,
        seed=seed,
        index=index,
        guidance=min(max(told, 0.0), _HIGHEST_SCALE),
    )


def _number(value: object) -> float:
    """Return a number that a table of a prompt file may have as text; the usual guidance where it is none."""
    try:
        number = float(str(value))
    except ValueError:
        return GUIDANCE
    return number if math.isfinite(number) else GUIDANCE


def picture_name(output_name: str, request: SampleRequest, *, step: int, epoch: int | None, moment: datetime) -> str:
    """Return the file name of a sample picture, as sd-scripts makes it.

    `epoch` is given for pictures made at an epoch's end, and goes before the step.
    """
    when = f"{step:06d}" if epoch is None else f"e{epoch:06d}"
    return f"{output_name}_{when}_{request.index:02d}_{moment:%Y%m%d%H%M%S}_{request.seed}.png"


def _side(pixels: int, step: int) -> int:
    return min(max(pixels, _SMALLEST_SIDE), _LARGEST_SIDE) // step * step
