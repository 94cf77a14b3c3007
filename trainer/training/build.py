"""From settings to a wired training: the only place that knows every part."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from trainer import families, memory
from trainer.adapters import Adapter, merging
from trainer.config import TrainingConfig, datasets_of, resolution_size, schedule_of
from trainer.families import FAMILIES, Recognition
from trainer.families.bundle import Bundle
from trainer.gate import Gate
from trainer.ground.commands import Inbox
from trainer.ground.control import Control, Progress
from trainer.ground.events import Emit, Warned
from trainer.optimizers import kind_of
from trainer.pictures.captions import prepared
from trainer.pictures.latent_cache import LatentCache
from trainer.pictures.loader import Batch, make_loader
from trainer.planning.plan import Plan
from trainer.preview.prompts import settle
from trainer.results import contents, export
from trainer.results.run_folder import RunFolder
from trainer.targets import TEXT, names_of
from trainer.training import attention, precision, ranks, text_cache
from trainer.training.metrics import Metrics
from trainer.training.precision import Precision
from trainer.training.states import Position, State
from trainer.training.text_cache import TextCache
from trainer.training.text_states import TextStates
from trainer.training.training import Training
from trainer.training.validating import judged_pictures
from trainer.training.weights import Average
from trainer.validation.measuring import plain_caption


@dataclass(frozen=True, slots=True)
class Models:
    """The loaded model and how it computes. Loading comes before `build`, since it must not leave a run folder."""

    bundle: Bundle
    precision: Precision


def try_out(plan: Plan) -> None:
    """See that optimizer and schedule can be built, on a matrix for each rate, before anything is read or written.

    Raises:
        ConfigError: arguments that only the packages can judge are none that they take.
        RunError: the package is not there.
    """
    config = plan.config
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(4, 4))], "lr": rate, "name": name}
        for name, rate in plan.rates.items()
    ]
    optimizer = kind_of(config.optimizer.optimizer_type).build(groups, config.optimizer.optimizer_args)
    make_schedule(config, optimizer, plan.timetable.total_steps)


def load_models(config: TrainingConfig, progress: Progress, recognition: Recognition | None = None) -> Models:
    """Load the base model onto the device; `recognition` is what is known of it already.

    Raises:
        ModelError: it cannot be used; see `families.load`.
        Stopped: `progress` says so.
    """
    chosen = precision.resolve(config)
    # What is to be streamed never has to fit the device whole.
    where = chosen.device if chosen.device.type == "meta" or not config.memory.streamed_weights else torch.device("cpu")
    bundle = families.load(config, recognition, device=where, dtype=chosen.compute_dtype, progress=progress)
    # Weights in few bits are buffers.
    sizes = [part.numel() for each in bundle.components.values() for part in (*each.parameters(), *each.buffers())]
    precision.use_threads_for(sum(sizes))
    return Models(bundle, chosen)


def build(
    plan: Plan,
    models: Models,
    folder: RunFolder,
    watch: tuple[Emit, Inbox, Control],
    state: State | None,
    gate: Gate | None = None,
) -> Training:
    """Wire a training that begins anew, or that goes on after the step of `state`.

    Raises:
        TrainerError: the LoRA to go on from or the state cannot be used.
    """
    config, bundle = plan.config, models.bundle
    tell, inbox, progress = watch
    for notice in (*plan.notices, *models.precision.notices, *bundle.notices):
        tell(Warned(message=notice))
    accelerator = precision.make_accelerator(models.precision, config)
    adapter = make_adapter(plan, bundle, models.precision.adapter_dtype, tell)
    if config.memory.streamed_weights:
        bundle.stream_weights(config.memory.streamed_weights)
        bundle.to(models.precision.device)
        adapter.to(models.precision.device)
    optimizer = make_optimizer(config, adapter, plan.rates)
    training = Training(
        plan=plan,
        folder=folder,
        accelerator=accelerator,
        bundle=bundle,
        adapter=adapter,
        optimizer=accelerator.prepare_optimizer(optimizer),
        schedule=make_schedule(config, optimizer, plan.timetable.total_steps),
        texts=TextStates(bundle),
        tell=tell,
        inbox=inbox,
        progress=progress,
        gate=gate,
        metrics=Metrics(
            tell,
            window=plan.timetable.steps_per_epoch,
            device=accelerator.device,
            scaled=accelerator.scaler is not None,
            precision=accelerator.mixed_precision,
        ),
        environment=environment(accelerator.device) | attention_kernel(config, bundle, state),
        contents=contents.of_models(config),
    )
    if config.saving.use_ema:
        training.average = Average(training.optimized, config.saving.ema_decay)
    if state is not None:
        for change in changes(state.position, training.environment):
            tell(Warned(message=change))
        training.restore(state)
        if training.micro_batch_size:
            tell(Warned(message=f"Memory ran out before: going on with {training.micro_batch_size}."))
    ranks.agree_on_step(training.step)
    training.prepare = functools.partial(prepare, training)
    return training


def prepare(training: Training) -> None:
    """Fill the caches and make the batches: long, but nothing of it is needed to save the run.

    Raises:
        DataError: a cache cannot be filled.
        Stopped: the progress callback says so.
    """
    known = len(training.bundle.notices)
    texts = fill_text_cache(training)
    cache = fill_cache(training)
    training.judged = judged_pictures(training, cache)
    if cache is not None and not training.plan.prompts:
        training.bundle.release_vae()
    training.batches = make_batches(training, cache, texts)
    for notice in training.bundle.notices[known:]:
        training.tell(Warned(message=notice))


def make_adapter(plan: Plan, bundle: Bundle, dtype: torch.dtype, tell: Emit) -> Adapter:
    """Inject the adapter in the given dtype, with the weights of `network_weights` where they are given.

    `base_weights` are merged into the model before.
    """
    network, seed = plan.config.network, plan.config.training.seed
    merge_base_weights(plan.config, bundle)
    adapter = plan.spec.build(bundle.components, bundle.targets(conv=True), seed=seed, dtype=dtype)
    if network.network_weights:
        weights = export.read_adapter(Path(network.network_weights))
        for notice in adapter.load(weights.tensors, strict=False, source=weights.header.path.name):
            tell(Warned(message=notice))
    if plan.config.training.gradient_checkpointing:
        bundle.enable_gradient_checkpointing()
    return adapter


def merge_base_weights(config: TrainingConfig, bundle: Bundle) -> None:
    """Merge the LoRAs of `base_weights` into the model, one after the other.

    Raises:
        ModelError: a file can't be read, or does not fit.
    """
    network = config.network
    multipliers = (*network.base_weights_multiplier, *(1.0,) * len(network.base_weights))
    for path, multiplier in zip(network.base_weights, multipliers, strict=False):
        file = export.read_adapter(Path(path))
        merging.merge(bundle.components, bundle.targets(conv=True), file.header, file.tensors, multiplier)


def make_optimizer(
    config: TrainingConfig, adapter: Adapter, learning_rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    """Return the optimizer with one group for each trained component."""
    kind = kind_of(config.optimizer.optimizer_type)
    # A compiler joins operations by itself, and better with the matrices where their layers are.
    if kind.elementwise and not config.training.torch_compile:
        adapter.stack()
    groups = [
        {"params": parameters, "lr": rate.of(learning_rates), "name": rate.name}
        for rate, parameters in adapter.groups()
    ]
    return kind.build(groups, config.optimizer.optimizer_args)


def make_schedule(
    config: TrainingConfig, optimizer: torch.optim.Optimizer, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the learning-rate schedule over the whole run."""
    # A step whose gradient is not finite leaves the optimizer alone, and the schedule goes on: no mistake of ours.
    warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step\(\)` before", UserWarning)
    return schedule_of(config, total_steps).build(optimizer)


def fill_cache(training: Training) -> LatentCache | None:
    """Return the latents of every picture, or None where each step encodes its own."""
    config, bundle = training.config, training.bundle
    cache = LatentCache.from_config(config)
    if cache is None:
        return None
    batch = config.dataset.vae_batch_size
    key = bundle.vae_key if cache.folder else ""
    with memory.kept(), text_encoders_aside(training):
        cache.fill(training.plan.examples, bundle.encode_images, key, batch, training.progress)
    return cache


@contextmanager
def text_encoders_aside(training: Training) -> Iterator[None]:
    """With streamed weights, keep the text encoders in the computer's memory within the context: nothing asks them.

    One that is streamed itself stays: what is left of it on the device are the places that its blocks come to.
    """
    bundle = training.bundle
    named = [] if bundle.streamed is None else names_of(training.plan.parts, TEXT)
    there = [bundle.components[name] for name in named if name in bundle.components]
    found = [each for each in there if not any(hasattr(layer, "streamed") for layer in each.modules())]
    for module in found:
        module.to("cpu")
    if found:
        memory.free_memory()
    try:
        yield
    finally:
        for module in found:
            module.to(bundle.device)


def fill_text_cache(training: Training) -> Sequence[Sequence[str]] | None:
    """Encode every caption and sample prompt, free the text encoders, and return the texts of each example.

    None where captions are encoded while training.
    """
    config, bundle, plan = training.config, training.bundle, training.plan
    on_disk = config.text.cache_text_encoder_outputs_to_disk
    if not (on_disk or config.text.cache_text_encoder_outputs):
        return None
    count, seed = config.text.caption_variants, config.training.seed
    texts = [
        prepared(example.picture.caption, example.treatment.captions, count=count, seed=seed, index=index)
        for index, example in enumerate(plan.examples)
    ]
    drawn = bundle.latents.step, bundle.process.name, FAMILIES[bundle.family].guidance
    requests = [settle(prompt, config, index, *drawn) for index, prompt in enumerate(plan.prompts)]
    prompts = [text for request in requests for text in (request.prompt, request.negative_prompt)]
    folder = Path(config.saving.output_dir) / text_cache.FOLDER if on_disk else None
    training.text_cache = TextCache(folder)
    key = bundle.text_key if on_disk else ""
    schedule = plan.validation
    judged = [plain_caption(each, config) for each in (*schedule.series.examples, *schedule.table.examples)]
    wanted = (*itertools.chain(*texts), *prompts, *judged, "")
    training.text_cache.fill(wanted, bundle.tokenize, bundle.encode_text, key, training.progress)
    if not config.network.base_weights:  # loaded again they would lack what was merged into them
        bundle.release_text_encoders()
    return texts


def make_batches(
    training: Training, cache: LatentCache | None, texts: Sequence[Sequence[str]] | None = None
) -> Iterable[Batch]:
    """Return this rank's batches from the training's position on, with all their random numbers."""
    config, accelerator = training.config, training.accelerator
    draw = functools.partial(training.process.drawing, seed=config.training.seed)
    return make_loader(
        training.plan.examples,
        cache,
        config,
        start_step=training.step,
        total_steps=training.timetable.total_steps,
        steps_per_epoch=training.timetable.steps_per_epoch,
        ranks=accelerator.num_processes,
        rank=accelerator.process_index,
        draw=draw,
        latent_shape=training.bundle.latents.shape,
        conditions=training.bundle.conditions.of_picture,
        tokenize=training.bundle.tokenize if training.text_learns else None,
        text_cache=training.text_cache,
        prepared=texts,
        pin_memory=accelerator.device.type == "cuda",
    )


def environment(device: torch.device) -> dict[str, object]:
    """Return what equal bits depend on besides the settings."""
    return {
        "device": precision.name_of(device),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "bitsandbytes")},
    }


def attention_kernel(config: TrainingConfig, bundle: Bundle, state: State | None) -> dict[str, object]:
    """Return the kernel that attention is computed by, as part of the environment; nothing where PyTorch decides.

    Deterministic runs leave it to PyTorch, which then knows what it may take.
    """
    if config.training.deterministic:
        return {}
    known = str(state.position.environment.get("attention", "")) if state else ""
    sizes = [each.config for each in datasets_of(config)] or [config]
    largest = max(sizes, key=lambda each: math.prod(resolution_size(each)) * each.training.train_batch_size)
    shape = (largest.training.train_batch_size, *bundle.largest_attention(*resolution_size(largest)))
    chosen = ranks.from_first(attention.choose(shape, bundle.device, bundle.dtype, known))
    return {"attention": chosen} if chosen else {}


def changes(position: Position, surroundings: Mapping[str, object]) -> list[str]:
    """Return what differs of the surroundings from when the state was saved; then the bits may differ from here on."""
    return [
        f"Resuming with another {key}: {value!r}, was {position.environment.get(key)!r}; bits may differ from here on."
        for key, value in surroundings.items()
        if position.environment.get(key, value) != value
    ]
