"""One step of a run without a number: built and computed by what trains, of tensors that have shapes and no memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from trainer import families
from trainer.config import TrainingConfig
from trainer.families import FAMILIES
from trainer.families.bundle import Bundle
from trainer.families.family import Latents
from trainer.families.reading.stored import shapes_alone
from trainer.families.reading.weights import NothingDrawn
from trainer.families.text.tokens import as_batch
from trainer.forecast import kernels
from trainer.forecast.forecast import Forecast, Phase
from trainer.forecast.ledger import Ledger, bytes_of, tensors_of
from trainer.forecast.optimizer_states import state_bytes
from trainer.ground.commands import Inbox
from trainer.ground.control import Control
from trainer.ground.events import Event
from trainer.pictures.batches import Example
from trainer.pictures.loader import Batch, BatchLoader
from trainer.planning.plan import Plan
from trainer.preview.prompts import settle
from trainer.results.run_folder import RunFolder
from trainer.targets import TEXT, names_of
from trainer.training import build, loop, precision
from trainer.training.text_states import MEMORY_BYTES
from trainer.training.training import Training

META = torch.device("meta")

ADAPTER, OPTIMIZER, CAPTIONS, LATENTS = "adapter", "optimizer", "encoded captions", "cached latents"
STREAMED = "streamed weights"
_WEIGHTS = "weights of {}"


def trace(plan: Plan) -> Forecast:
    """Return what a run takes, phase by phase.

    Raises:
        TrainerError: it could not begin.
    """
    own = precision.own_device()
    device = own.type
    with shapes_alone(), precision_left_alone():
        training = wired(plan)
        ledger = holding(training)
        with kernels.of_device(device), ledger:
            preparing = _preparing(training, ledger, stay=bool(plan.config.network.base_weights))
            phases = [*preparing, *_steps(training, ledger, device), *_pictures(training, ledger)]
    known = {phase.name: phase for phase in phases}
    notices = ("torch_compile is left out: what a compiler makes takes other memory.",)
    told = notices if plan.config.training.torch_compile else ()
    return Forecast(device, tuple(known.values()), _on_host(training, ledger, device), told, precision.name_of(own))


@contextmanager
def precision_left_alone() -> Iterator[None]:
    """Take back what wiring a run sets for the whole process."""
    try:
        yield
    finally:
        precision.reset()


def wired(plan: Plan) -> Training:
    """Return the training of a plan, built as for a run, of tensors without numbers, after a scale-down of nothing."""
    plan = replace(plan, config=_without_numbers(plan.config))
    chosen = replace(precision.resolve(plan.config), device=META)
    bundle = families.load(plan.config, plan.recognition, device=META, dtype=chosen.compute_dtype)
    models = build.Models(bundle, chosen)
    folder = RunFolder(Path(plan.config.saving.output_dir), plan.config.saving.output_name)
    inbox = Inbox()
    with NothingDrawn():
        return build.build(plan, models, folder, (_unheard, inbox, Control(_unheard, inbox)), None)


def _unheard(event: Event) -> None:
    """What a run without a listener tells."""


def _without_numbers(config: TrainingConfig) -> TrainingConfig:
    """Return the settings without what asks for the values of weights, and changes no shape."""
    network = config.network.model_copy(update={"base_weights": (), "network_weights": "", "init_lora_weights": ""})
    return replace(config, network=network)


def holding(training: Training) -> Ledger:
    """Return a ledger that knows what a run holds before its first phase."""
    ledger, bundle = Ledger(), training.bundle
    if bundle.streamed is not None:
        ledger.ignore(bundle.streamed.places)
        ledger.add(STREAMED, bundle.streamed.resident)
        bundle.streamed.moved = partial(ledger.add, STREAMED)
    ledger.hold(ADAPTER, (*training.parameters, *training.adapter.tensors().values()))
    if training.average is not None:
        ledger.hold(ADAPTER, training.average.values)
    for name, module in bundle.components.items():
        ledger.hold(_weights_of(training, name), tensors_of(module))
    vae = getattr(bundle, "vae", None)
    if vae is not None:
        ledger.hold(_WEIGHTS.format("VAE"), tensors_of(vae))
    return ledger


def _weights_of(training: Training, component: str) -> str:
    """Return what the weights of a component go by."""
    parts, config = training.plan.parts, training.config
    title = next((part.title for part in parts if part.name == component), component)
    small = f" ({config.model.quantize_base})" if component in config.in_few_bits(parts) else ""
    return _WEIGHTS.format(title) + small


# --- the phases -----------------------------------------------------------------------------------------------------


def _preparing(training: Training, ledger: Ledger, *, stay: bool) -> Iterator[Phase]:
    """Go through what a run does before its first step, in the order of `build.prepare`.

    `stay` says that LoRAs are merged into the model: text encoders whose captions are encoded then stay too.
    """
    config, bundle = training.config, training.bundle
    if config.text.cache_text_encoder_outputs or config.text.cache_text_encoder_outputs_to_disk:
        ledger.begin()
        training.text_cache = _Texts(bundle)  # type: ignore[assignment]
        yield _phase("while captions are encoded", ledger)
        if not stay:
            bundle.release_text_encoders()
    if not _caches_latents(config):
        return
    width, height = max((each.bucket for each in training.plan.examples), key=lambda side: side[0] * side[1])
    count = min(config.dataset.vae_batch_size, len(training.plan.examples))
    aside = _aside(training, ledger)
    for name, size in aside.items():
        ledger.add(name, -size)
    ledger.begin()
    bundle.encode_images(torch.empty(count, 3, height, width, device=META))
    yield _phase("while pictures are encoded", ledger)
    for name, size in aside.items():
        ledger.add(name, size)
    if not training.plan.prompts:
        bundle.release_vae()


def _aside(training: Training, ledger: Ledger) -> Mapping[str, int]:
    """Return {holder: bytes} of the text encoders that make room for the VAE, as `build.text_encoders_aside` has it."""
    if training.bundle.streamed is None:
        return {}
    names = [_weights_of(training, name) for name in names_of(training.plan.parts, TEXT)]
    return {name: ledger.held(name) for name in names}


def _steps(training: Training, ledger: Ledger, device: str) -> Iterator[Phase]:
    """Take a step of the largest batch, and of the one that is most frequent where that is another."""
    ledger.add(OPTIMIZER, state_bytes(training))
    captions = len({each.picture.caption for each in training.plan.examples})
    encoded = training.text_cache is None and not training.text_learns
    if encoded:
        size = bytes_of(_Texts(training.bundle)[""].values())
        ledger.add(CAPTIONS, min(captions * size, MEMORY_BYTES))
    if device == "cpu":
        ledger.add(LATENTS, _latent_bytes(training))
        if training.text_cache is not None and not training.config.text.cache_text_encoder_outputs_to_disk:
            ledger.add(CAPTIONS, captions * bytes_of(training.text_cache[""].values()))
    loader = batches_of(training)
    for number in chosen_batches(loader):
        batch = loader.source.batch(number)
        if encoded:
            # Each is encoded the first time that it is seen, and counted already as remembered.
            ledger.begin()
            training.texts(batch)
            yield _phase("while captions are encoded", ledger)
            ledger.add(CAPTIONS, -min(size * len(set(batch.captions)), captions * size))
        ledger.begin()
        step(training, batch)
        width, height = _side(training, batch)
        pictures = f" of {len(batch.slots)} pictures" if len(batch.slots) > 1 else ""
        yield _phase(f"in a step{pictures} at {width}x{height}", ledger)
        training.optimizer.zero_grad(set_to_none=True)
    if training.plan.validation.series.examples:
        ledger.begin()
        with torch.no_grad():
            loop.losses_of(training, batch.to(META))
        yield _phase("while validating", ledger)


def step(training: Training, batch: Batch) -> None:
    """Compute the gradients of a step, of two batches where several make one."""
    count = min(2, training.config.training.gradient_accumulation_steps)
    loop.accumulate(training, [batch] * count)


def _pictures(training: Training, ledger: Ledger) -> Iterator[Phase]:
    """Draw the largest sample: the model sees the prompt and the negative one together, then the VAE decodes."""
    bundle, prompts = training.bundle, training.plan.prompts
    if not prompts:
        return
    drawn = bundle.latents.step, bundle.process.name, FAMILIES[bundle.family].guidance
    settled = [settle(each, training.config, number, *drawn) for number, each in enumerate(prompts)]
    request = max(settled, key=lambda each: each.width * each.height)
    count = 2 if request.scale > 1 else 1
    told = bundle.conditions.of_sample((request.width, request.height), request.guidance)
    conditions = {name: value.expand(count, *value.shape) for name, value in told.items()}
    ledger.begin()
    with torch.no_grad():
        text = training.text_cache[""] if training.text_cache is not None else _Texts(bundle)[""]
        texts = {name: value.expand(count, *value.shape) for name, value in text.items()}
        latents = torch.empty(count, *bundle.latents.shape((request.width, request.height)), device=META)
        timesteps = training.process.told(torch.zeros((), device=META)).expand(count)
        bundle.predict(latents, timesteps, texts, conditions)
        bundle.decode_latents(latents[:1])
    yield _phase(f"while a sample is drawn at {request.width}x{request.height}", ledger)


def _phase(name: str, ledger: Ledger) -> Phase:
    return Phase(name, ledger.peak, {each: count for each, count in ledger.at_peak.items() if count})


# --- what stands for pictures and captions --------------------------------------------------------------------------


def batches_of(training: Training) -> BatchLoader:
    """Return the run's batches, whose latents come from a cache that was never filled."""
    plan = training.plan
    cache = _Latents(training.bundle.latents, plan.examples) if _caches_latents(training.config) else None
    texts = None if training.text_cache is None else [(each.picture.caption,) for each in plan.examples]
    loader = build.make_batches(training, cache, texts)  # type: ignore[arg-type]
    assert isinstance(loader, BatchLoader)
    return loader


def chosen_batches(loader: BatchLoader) -> list[int]:
    """Return the numbers of the batch with most pixels and of the most frequent kind in an epoch, the largest first."""
    plan = loader.source.plan
    kinds: dict[tuple[int, int, int], int] = {}
    counts: Counter[tuple[int, int, int]] = Counter()
    for number in range(plan.rank_batches_per_epoch):
        samples = plan.rank_batch(number, 0).samples
        width, height = plan.examples[samples[0][1]].bucket
        kind = len(samples), width, height
        kinds.setdefault(kind, number)
        counts[kind] += 1
    largest = max(kinds, key=lambda kind: (kind[0] * kind[1] * kind[2], kind))
    return [kinds[kind] for kind in dict.fromkeys([largest, counts.most_common(1)[0][0]])]


class _Latents:
    """Stands for a filled `LatentCache`."""

    def __init__(self, latents: Latents, examples: Sequence[Example]) -> None:
        self._latents, self._examples = latents, examples

    def get(self, index: int, flipped: bool) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of an example, without numbers."""
        shape = self._latents.shape(self._examples[index].bucket)
        return torch.empty(shape, device=META), torch.empty(shape, device=META)


class _Texts(Mapping[str, Mapping[str, Tensor]]):
    """Stands for a filled `TextCache`: the states of one caption are as large as those of any other."""

    def __init__(self, bundle: Bundle) -> None:
        with torch.no_grad():
            states = bundle.encode_text(as_batch(bundle.tokenize("")))
        self._states = {name: value[0] for name, value in states.items()}

    def __getitem__(self, caption: str) -> Mapping[str, Tensor]:
        return self._states

    def __contains__(self, caption: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _caches_latents(config: TrainingConfig) -> bool:
    return config.dataset.cache_latents or config.dataset.cache_latents_to_disk


def _latent_bytes(training: Training) -> int:
    """Return what cached latents take in the computer's memory: mean and deviation, float32, mirrored ones too."""
    config, latents = training.config, training.bundle.latents
    if not config.dataset.cache_latents or config.dataset.cache_latents_to_disk:
        return 0
    total = 0
    for each in training.plan.examples:
        channels, height, width = latents.shape(each.bucket)
        total += 8 * channels * height * width * (2 if each.treatment.flip else 1)
    return total


def _on_host(training: Training, ledger: Ledger, device: str) -> int:
    streamed = training.bundle.streamed
    kept = 0 if streamed is None else streamed.bytes + sum(_aside(training, ledger).values())
    return kept + (0 if device == "cpu" else _latent_bytes(training))


def _side(training: Training, batch: Batch) -> tuple[int, int]:
    """Return width and height of a batch's pictures, in pixels."""
    if batch.pixels is not None:
        return batch.pixels.shape[-1], batch.pixels.shape[-2]
    assert batch.mean is not None
    factor = training.bundle.latents.factor
    return batch.mean.shape[-1] * factor, batch.mean.shape[-2] * factor
