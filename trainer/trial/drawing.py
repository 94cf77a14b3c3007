"""Draws a trial: the files of one form after one another in one loaded model, each at every weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

from trainer.adapters import KINDS, Adapter, AdapterHeader, read_header
from trainer.config import TrainingConfig
from trainer.families import FAMILIES, Recognition, look_up, recognise_chosen
from trainer.gate import WAITING
from trainer.ground.control import Progress
from trainer.ground.errors import ConfigError, Problem
from trainer.memory import free_memory
from trainer.planning.inspection import check_family_of_lora
from trainer.preview.prompts import GUIDANCE_KEY, SamplePrompt, SampleRequest, settle
from trainer.preview.samplers import SAMPLERS
from trainer.preview.sampling import sample, save_picture
from trainer.results.export import read_adapter
from trainer.training import build, device, failures, precision
from trainer.trial import grid
from trainer.trial.grid import Request, Trial

_PHASE = "drawing pictures"


def draw(
    config: TrainingConfig,
    request: Request,
    where: Path,
    progress: Progress,
    by: str,
    told: tuple[Callable[[Trial], None], Callable[[str], None]],
) -> Trial:
    """Draw the grid into a folder of its own under `where`, and return it; a stop leaves what is drawn by then.

    The picture of a file at weight 1 is the preview's of the same prompt and seed, by the same sampler, in the same
    precision; what `base_weights` says is merged first, as in the run.

    Args:
        config: the settings of the run, or of any with the same model.
        told: the first is told of the trial once its folder is there, the second what there is to know of a file.

    Raises:
        TrainerError: prompt, files or model cannot be used, or nothing can be written there.
        Stopped: `progress` asked for it.
    """
    with failures.in_words(config, drawing=True):
        look_up(config)
        recognition = recognise_chosen(config)
        wanted = _settled(config, request, recognition)
        headers = [read_header(Path(file)) for file in request.files]
        for header in headers:
            check_family_of_lora(header, recognition)
        gate = device.gate_of(precision.own_device(), "trying files", by)
        gate.take(partial(progress, WAITING, 0, 0))
        try:
            trial = grid.begin(where, request)
            told[0](trial)
            for rows in _of_one_form(headers):
                _draw_rows(config, recognition, trial, (wanted, headers, rows), (progress, told[1]))
                free_memory()
            return trial
        finally:
            free_memory()
            gate.leave()


def _settled(config: TrainingConfig, request: Request, recognition: Recognition) -> SampleRequest:
    """Return the picture that is drawn.

    Raises:
        ConfigError: there is no such sampler for the model, or it does not draw with so many steps.
    """
    family = FAMILIES[recognition.family]
    samplers, chosen = SAMPLERS[family.process.name], request.sampler or config.sampling.sample_sampler
    if not request.sampler and chosen not in samplers:
        chosen = next(iter(samplers))
    if chosen not in samplers:
        raise ConfigError([Problem("sampler", f"{chosen!r} is no sampler; choose from {', '.join(samplers)}.", chosen)])
    prompt = SamplePrompt(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        seed=request.seed,
        scale=request.scale,
        sample_steps=request.steps,
        sample_sampler=chosen,
        others=() if request.guidance is None else ((GUIDANCE_KEY, request.guidance),),
    )
    settled = settle(prompt, config, 0, family.latents.step, family.process.name, family.guidance)
    if not samplers[chosen].takes(settled.steps):
        rule = f"the sampler {chosen} draws with {samplers[chosen].steps_in_words} steps, not with {settled.steps}."
        raise ConfigError([Problem("steps", rule, settled.steps)])
    return settled


def _of_one_form(headers: list[AdapterHeader]) -> Iterator[list[int]]:
    """Yield the numbers of the files that fit into one injected adapter, together."""
    forms = [_form(header) for header in headers]
    order = sorted(range(len(headers)), key=lambda row: (forms.index(forms[row]), row))
    for _, rows in groupby(order, key=lambda row: forms.index(forms[row])):
        yield list(rows)


def _form(header: AdapterHeader) -> object:
    """Return what files have alike that fit into the same matrices."""
    modules = {name: (module.rank, module.alpha, dict(module.entries)) for name, module in header.modules.items()}
    return header.kind, modules


def _draw_rows(
    config: TrainingConfig,
    recognition: Recognition,
    trial: Trial,
    work: tuple[SampleRequest, list[AdapterHeader], list[int]],
    watch: tuple[Progress, Callable[[str], None]],
) -> None:
    """Load the model, and draw the rows of the files of one form."""
    (wanted, headers, rows), (progress, say) = work, watch
    models = build.load_models(config, progress, recognition)
    build.merge_base_weights(config, models.bundle)
    adapter = _injected(headers[rows[0]], models)
    total = len(trial.request.files) * len(trial.request.weights)

    def report(_phase: str, _done: int, _steps: int) -> None:
        progress(_PHASE, len(trial.drawn), total)

    for row in rows:
        file = read_adapter(headers[row].path)
        for notice in adapter.load(file.tensors, strict=False, source=headers[row].path.name):
            say(notice)
        for column, weight in enumerate(trial.request.weights):
            path = grid.picture_of(trial, row, column)
            with adapter.multiplied(weight):
                save_picture(sample(models.bundle, wanted, progress=report), wanted, path)
            trial.drawn[row, column] = path
            grid.note(trial)
    progress(_PHASE, len(trial.drawn), total)


def _injected(header: AdapterHeader, models: build.Models) -> Adapter:
    """Inject an adapter of a file's form."""
    parts = models.bundle.components
    spec = KINDS[header.kind](network_dim=1, network_alpha=1.0, parts=tuple(parts), given=header.modules)
    return spec.build(parts, models.bundle.targets(conv=True), seed=0, dtype=models.precision.adapter_dtype)
