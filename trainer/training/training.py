"""One wired training: the parts that the loop works with, and where it is."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import groupby
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from trainer.adapters import Adapter
from trainer.config import TrainingConfig, batch_sizes, to_flat
from trainer.families import FAMILIES
from trainer.families.bundle import Bundle
from trainer.gate import Gate
from trainer.ground import events
from trainer.ground.commands import Command, Inbox
from trainer.ground.control import Control
from trainer.ground.events import Emit
from trainer.ground.randomness import stream
from trainer.optimizers import OptimizerKind, kind_of
from trainer.pictures.loader import Batch, map_tensors
from trainer.planning.plan import Plan
from trainer.planning.timetable import Timetable
from trainer.process.inputs import posterior_sample
from trainer.process.process import Noised, Process
from trainer.results.metadata import ModelFacts, RunFacts, model_hashes, model_name, optimizer_name
from trainer.results.run_folder import RunFolder
from trainer.targets import TEXT, names_of
from trainer.training import ranks, rounding, states
from trainer.training.metrics import Metrics
from trainer.training.micro_batches import MicroBatchSize
from trainer.training.states import Position, State
from trainer.training.text_cache import TextCache
from trainer.training.text_states import TextStates
from trainer.training.weights import Average, Weights
from trainer.validation.measuring import Subject

_SESSION_IDS = 2**32
"""sd-scripts draws ss_session_id from this range."""

_AVERAGE = "ema"
"""The name of the moving average among a parameter's states."""

_MOMENTS = frozenset({"exp_avg", "exp_avg_sq", "state1", "state2"})
"""Names under which torch, pytorch-optimizer and bitsandbytes keep averages of a parameter's shape."""


@dataclass(eq=False)
class Training:
    """What `build` wires and the loop uses.

    `prepare` fills the caches and gives `batches`, the micro-batches of this rank from the position on. `step`
    optimizer steps are done; the `metrics` tells of them. `sampled` is how many sample pictures of the newest step are
    drawn while the others are under way. `text_cache` holds what frozen text encoders made of all captions, where it
    was made ahead.
    `step_seconds` is how long the newest step took. `judged` are the pictures that validation measures, those of the
    series and those of the table, and `validated` what was found so far, earlier sittings included.
    `current` are the micro-batches of the step under way, `updating` says that the step may have changed the weights
    already. `micro_batch_size` is how much is computed at once, once that had to be less than the settings say; with
    `one_size` no less either, since a compiler makes a program for each size. `ending` is the command that ends it,
    `held` are the parts that are no longer trained, `gate` is held while the device is used.
    """

    plan: Plan
    folder: RunFolder
    accelerator: Accelerator
    bundle: Bundle
    adapter: Adapter
    optimizer: Any
    schedule: torch.optim.lr_scheduler.LambdaLR
    texts: TextStates
    tell: Emit
    inbox: Inbox
    progress: Control
    metrics: Metrics
    environment: dict[str, object]
    contents: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    step: int = 0
    resumed: bool = False
    sampled: int | None = None
    text_cache: TextCache | None = None
    judged: Mapping[str, Sequence[Subject]] = field(default_factory=dict)
    validated: list[events.Validated] = field(default_factory=list)
    batches: Iterable[Batch] = ()
    rates_used: dict[str, float] = field(default_factory=dict)
    rates_acting: dict[str, float] = field(default_factory=dict)
    current: Sequence[Batch] = ()
    micro_batch_size: MicroBatchSize | None = None
    one_size: bool = False
    updating: bool = False
    held: tuple[str, ...] = ()
    step_seconds: float = 0.0
    seconds_before: float = 0.0
    began: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)
    ending: Command | None = None
    gate: Gate | None = None
    average: Average | None = None

    @property
    def config(self) -> TrainingConfig:
        """The settings."""
        return self.plan.config

    @property
    def timetable(self) -> Timetable:
        """How long it goes and what is due when."""
        return self.plan.timetable

    @cached_property
    def process(self) -> Process:
        """What noise is and what is asked of the model, on the device."""
        return self.bundle.process.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the arithmetic happens."""
        return self.accelerator.device

    @property
    def optimizer_kind(self) -> type[OptimizerKind]:
        """What kind the optimizer is of."""
        return kind_of(self.config.optimizer.optimizer_type)

    @property
    def text_learns(self) -> bool:
        """True where a text encoder is trained."""
        return not set(names_of(self.plan.parts, TEXT)).isdisjoint(self.adapter.parts)

    @property
    def epoch(self) -> int:
        """The epoch of the newest step, from 1; 0 before the first."""
        return self.timetable.epoch(self.step)

    @property
    def seconds(self) -> float:
        """Seconds trained, earlier sittings of a resumed run included."""
        return self.seconds_before + time.monotonic() - self.clock

    @cached_property
    def largest_batch(self) -> int:
        """Samples of the largest micro-batch that there can be."""
        return max(batch_sizes(self.config))

    @cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that learns, in a stable order."""
        return [parameter for part in self.adapter.parts for parameter in self.adapter.parameters(part)]

    @cached_property
    def _part_of(self) -> dict[str, str]:
        """The part of the model that each group of the optimizer belongs to."""
        return {rate.name: rate.part for rate, _ in self.adapter.groups()}

    @cached_property
    def facts(self) -> RunFacts:
        """What every file saved by this run says of it. Reads the whole model file once, for its hash."""
        config, seen = self.config, self.plan
        names = FAMILIES[seen.recognition.family].file_names(self.process.prediction_type, seen.recognition.configs)
        model = ModelFacts(
            name=model_name(seen.recognition.source),
            base_model_version=names.base_model_version,
            architecture=names.architecture,
            implementation=names.implementation,
            v2=names.v2,
            network_module=names.network_module,
            model_type=names.model_type,
            always=names.always,
            never=names.never,
            zero_terminal_snr=self.process.zero_terminal_snr,
            prediction_type=self.process.prediction_type,
            hashes=model_hashes(seen.recognition.source),
            vae_name=model_name(config.model.vae) if config.model.vae else "",
            vae_hashes=model_hashes(config.model.vae) if config.model.vae else None,
        )
        return RunFacts(
            config=config,
            adapter=seen.spec,
            timetable=self.timetable,
            report=seen.report,
            counts=seen.counts,
            model=model,
            optimizer=optimizer_name(self.optimizer.optimizer, config.optimizer.optimizer_args),
            mixed_precision=self.accelerator.mixed_precision,
            started=self.began - self.seconds_before,
            session_id=stream(config.training.seed, 0, 0, f"session {self.began}") % _SESSION_IDS,
        )

    def steps(self) -> Iterator[Sequence[Batch]]:
        """Yield this rank's micro-batches of one optimizer step after another."""
        for _, group in groupby(self.batches, key=lambda batch: batch.step):
            self.current = tuple(group)
            yield self.current

    def parts(self, batch: Batch) -> Iterator[tuple[Batch, float]]:
        """Yield what of a micro-batch is computed at once, on the device, and its share of the micro-batch's mean."""
        size = self.micro_batch_size.samples if self.micro_batch_size else self.largest_batch
        for part in batch.split(size):
            computed = part.filled(size) if self.one_size else part
            yield computed.to(self.device, non_blocking=True), len(computed.slots) / len(batch.slots)

    def dropping(self, batch: Batch, part: Batch) -> AbstractContextManager[None]:
        """Within the context, passes are of a piece of a micro-batch, and leave out what is drawn for it."""
        return self.adapter.dropping(self.config.training.seed, batch.step, part.slots, batch.slots[0])

    def limit_norms(self) -> None:
        """Scale down what layers add to their weights, where `scale_weight_norms` says so."""
        most = self.config.limits.scale_weight_norms
        if most:
            self.adapter.limit_norms(most)

    def hold_text_encoders(self) -> None:
        """Leave text encoders as they are from the step on that `stop_text_encoder_training` says."""
        if self.held or not self.timetable.text_encoders_end or self.step < self.timetable.text_encoders_end:
            return
        self.held = names_of(self.plan.parts, TEXT)
        for parameter in (each for part in self.held for each in self.adapter.parameters(part)):
            parameter.requires_grad_(False)

    def compute_by(self, micro_batch_size: MicroBatchSize) -> None:
        """Compute no more than that at once from now on."""
        if micro_batch_size.checkpointing:
            self.bundle.enable_gradient_checkpointing()
        self.micro_batch_size = micro_batch_size

    def latents(self, batch: Batch) -> Tensor:
        """Return latents as the model takes them, [b, c, h, w] float32, one draw of the VAE's posterior each."""
        mean, std = batch.mean, batch.std
        if mean is None or std is None:
            assert batch.pixels is not None, "a batch has latents or pixels"
            mean, std = self.bundle.encode_images(batch.pixels)
        return self.bundle.latents.to_model(posterior_sample(mean, std, batch.draws.posterior))

    def preserving(self, batch: Batch, noised: Noised, texts: Mapping[str, Any]) -> Noised:
        """Give samples that are to stay as they are another target: what the base model says of them.

        As sd-scripts' diff_output_preservation: only the model that takes the noise away is the base, texts are those
        of the text encoders as trained.
        """
        rows = [row for row, preserved in enumerate(batch.preserved) if preserved]
        if not rows:
            return noised
        inputs = (noised.latents, noised.timesteps, texts, batch.conditions)
        if not self.one_size:
            inputs = map_tensors(inputs, lambda tensor: tensor[rows])
        with torch.no_grad(), self.adapter.multiplied(0.0):
            known = self.process.as_target(self.bundle.predict(*inputs), *inputs[:2])
        target = noised.target.clone()
        target[rows] = known[rows] if self.one_size else known
        return replace(noised, target=target)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks."""
        if self.accelerator.num_processes > 1:
            ranks.add_up(value)
        return value

    def share_gradients(self) -> None:
        """Add up the ranks' gradients in one message; a rank without pictures in a short last step adds zeros."""
        if self.accelerator.num_processes == 1:
            return
        learning = [parameter for parameter in self.parameters if parameter.requires_grad]
        if self.config.limits.module_dropout:  # what no rank has computed gets no gradient at all, as with one rank
            there = torch.tensor([float(each.grad is not None) for each in learning], device=self.device)
            learning = [each for each, count in zip(learning, ranks.add_up(there).tolist(), strict=True) if count]
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if not gradients:
            return
        flat = ranks.add_up(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    @cached_property
    def weights(self) -> Weights:
        """Which weights the parameters hold, in the optimizer's order."""
        return Weights(self.optimized)

    @property
    def optimized(self) -> list[torch.nn.Parameter]:
        """Everything that learns, in the order of the optimizer's groups."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Hold the weights that a file gets: the average of a schedule-free optimizer, else those being trained."""
        with self.weights.trained(), self.weights.instead(self.optimizer_kind.evaluated(self.optimizer.optimizer)):
            yield

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Hold the moving average, where there is one (`use_ema`)."""
        with self.weights.trained(), self.weights.instead(self.average.values if self.average else None):
            yield

    def shown(self) -> AbstractContextManager[None]:
        """Hold what sample pictures and validation are made with."""
        return self.averaged() if self.average and self.config.saving.sample_ema else self.used()

    def advance_schedule(self) -> None:
        """Remember the rates that the step under way used, and set those of the next."""
        held = {group["name"] for group in self.optimizer.param_groups if self._part_of[group["name"]] in self.held}
        scheduled = {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}
        self.rates_used = scheduled | dict.fromkeys(held, 0.0)
        acting = self.optimizer_kind.rates(self.optimizer.optimizer)
        self.rates_acting = {} if acting == scheduled else acting | dict.fromkeys(held, 0.0)
        self.schedule.step()

    def step_optimizer(self, finite: Tensor) -> None:
        """Change the weights, where `finite`, a scalar on the device, says so.

        A loss scaler sees by itself whether gradients are finite, and must see the step to lower its scale.
        """
        if self.accelerator.scaler is not None:
            self.optimizer.step()
            return
        with rounding.in_float32(self.parameters, seed=self.config.training.seed, step=self.step):
            self.optimizer_kind.step(self.optimizer.optimizer, finite)

    def take_average(self) -> None:
        """Take the new weights into the moving average, where there is one."""
        if self.average is not None:
            self.average.update(self.step)

    def count(self, loss: Tensor, grad_norm: Tensor, seconds: float) -> None:
        """Take note of one more step, to be told of when its numbers, scalars on the device, are known.

        Raises:
            RunError: too many steps in a row had no finite gradient.
        """
        self.step += 1
        self.updating = False
        self.step_seconds = seconds
        done = events.StepDone(
            step=self.step,
            epoch=self.epoch,
            loss=math.nan,
            average_loss=math.nan,
            lr=dict(self.rates_used),
            acting_lr=self.rates_acting,
            seconds=seconds,
            step_size=self.optimizer_kind.step_size(self.optimizer.optimizer),
            memory=memory_in_use(self.device),
        )
        self.metrics.note(done, [name for batch in self.current for name in batch.names], loss, grad_norm)

    def move(self, device: torch.device) -> None:
        """Move the models and the optimizer's state, in place: parameters keep their identity."""
        self.bundle.to(device)
        self.adapter.to(device)
        self.weights.to(device)
        if self.average is not None:
            self.average.to(device)
        for state in self.optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    state[name] = value.to(device)

    def state(self) -> State:
        """Return what a resume needs, as of the newest step."""
        self.metrics.settle()
        position = Position(
            step=self.step,
            losses=tuple(self.metrics.losses),
            epoch_losses=tuple(self.metrics.epoch_losses),
            settings=to_flat(self.config),
            environment=self.environment,
            seconds=self.seconds,
            micro_batch_size=self.micro_batch_size,
            contents=self.contents,
            learned=self.metrics.learned,
            sampled=self.sampled,
        )
        scaler, copy = self.accelerator.scaler, self.weights.replaced
        with self.weights.trained():
            trained = {
                "optimizer": self.adapter.state_by_matrix(self._with_average(self.optimizer.state_dict())),
                "schedule": self.schedule.state_dict(),
                "scaler": scaler.state_dict() if scaler else None,
            }
            adapter = {name: tensor.to("cpu", copy=copy) for name, tensor in self.adapter.state().items()}
        return State(position, adapter, trained)

    def _with_average(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state_dict with the average in it, as one more state of each parameter."""
        if self.average is None:
            return saved
        state = {
            index: {**saved["state"].get(index, {}), _AVERAGE: each} for index, each in enumerate(self.average.values)
        }
        return {**saved, "state": {**saved["state"], **state}}

    def _take_average(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state_dict without the average, which is taken over where it is wanted."""
        found = {index: each[_AVERAGE] for index, each in saved["state"].items() if _AVERAGE in each}
        if self.average is not None and found:
            self.average.restore([found[index] for index in range(len(self.average.values))])
        elif self.average is not None:
            self.average.restore([parameter.detach().float() for parameter in self.optimized])
        bare = {
            index: {name: value for name, value in each.items() if name != _AVERAGE}
            for index, each in saved["state"].items()
        }
        return {**saved, "state": {index: each for index, each in bare.items() if each}}

    def restore(self, state: State) -> None:
        """Continue from a state. The reverse of `state`.

        Raises:
            StateError: it is none of this optimizer, whose settings it claims to be of.
        """
        self.adapter.restore(state.adapter)
        fresh = [dict(group) for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(
                self._take_average(self.adapter.state_by_parameter(state.trained["optimizer"]))
            )
            self.schedule.load_state_dict(state.trained["schedule"])
            rounding.widen(self.optimizer.state.values(), self.optimizer_kind.kept_in_bfloat16)
            _check_moments(self.optimizer.state)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise states.unfit(error) from error
        self._apply_settings(fresh, state.position.settings)
        if self.accelerator.scaler and state.trained["scaler"]:
            self.accelerator.scaler.load_state_dict(state.trained["scaler"])
        self.step, self.sampled, self.resumed = state.position.step, state.position.sampled, True
        learned = state.position.learned
        self.metrics.learned = state.position.step if learned is None else learned
        self.metrics.losses.extend(state.position.losses)
        self.metrics.epoch_losses.extend(state.position.epoch_losses)
        self.seconds_before = state.position.seconds
        if state.position.micro_batch_size and self.config.training.step_down_on_out_of_memory:
            self.compute_by(state.position.micro_batch_size)

    def _apply_settings(self, fresh: Sequence[Mapping[str, Any]], before: Mapping[str, object]) -> None:
        """Let the settings hold where the state brought others along; where they are the same, so is every bit."""
        settings, schedule = self.config.optimizer, self.schedule
        same = list(settings.optimizer_args) == before.get("optimizer_args")
        names = () if same else tuple(self.optimizer_kind.options(settings.optimizer_args))
        schedule.base_lrs = [group["initial_lr"] for group in fresh]
        for group, new, factor in zip(self.optimizer.param_groups, fresh, schedule.lr_lambdas, strict=True):
            group.update({name: new[name] for name in (*names, "initial_lr") if name in new})
            group["lr"] = new["initial_lr"] * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def _check_moments(states: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """See that averages over gradients, of which optimizers have one or two, are as large as the parameter."""
    for parameter, state in states.items():
        for name in _MOMENTS & state.keys():
            if state[name].shape != parameter.shape:
                raise ValueError(f"{name} is {tuple(state[name].shape)} for a matrix of {tuple(parameter.shape)}")


def memory_in_use(device: torch.device) -> int:
    """Return bytes in use: of the GPU by tensors, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(_process(os.getpid()).memory_info().rss)


@cache
def _process(number: int) -> psutil.Process:
    """Return a process to ask; to find it costs more than the question, which is asked at each step."""
    return psutil.Process(number)
