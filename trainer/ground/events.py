"""What a run tells those who watch it. Frozen, plain values, picklable.

On disk (`events.jsonl`) and in the snapshot an event is its class name and its fields; see `to_record`.
Steps are optimizer steps counted from 1, epochs likewise; times are seconds since the Unix epoch.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Root of the events. `time` is when it was made."""

    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The plan of a run that begins (`step` 0) or goes on after the restored `step`, on the device of this name."""

    folder: str
    step: int
    total_steps: int
    total_epochs: int
    steps_per_epoch: int
    resumed: bool
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Event):
    """Progress of one phase: `done` of `total` (0 = length unknown)."""

    name: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """One optimizer step. `loss` is the mean over its samples, before accumulation divides it.

    `lr` maps a trained component to its learning rate; `acting_lr` to what the optimizer makes of that, empty where it
    is the same; `step_size` is the D-Adaptation or Prodigy estimate d;
    `seconds` is the step's duration; `memory` is bytes in use on the device, or of the process on a CPU;
    `skipped` says that a gradient was not finite and the weights stayed as they were.
    """

    step: int
    epoch: int
    loss: float
    average_loss: float
    lr: Mapping[str, float]
    seconds: float
    grad_norm: float | None = None
    step_size: float | None = None
    acting_lr: Mapping[str, float] = field(default_factory=dict)
    memory: int = 0
    skipped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochDone(Event):
    """The end of an epoch with the mean loss of its steps."""

    epoch: int
    step: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Event):
    """A file or state folder was written and verified. `kind` is "lora" or "state"."""

    kind: str
    path: str
    step: int
    epoch: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReady(Event):
    """One sample picture, made after `step` steps (0 = before training)."""

    path: str
    step: int
    epoch: int
    index: int
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated(Event):
    """Loss at fixed noise, the mean over pictures and timesteps.

    `on`: "folder" and "held_out" are pictures that are not trained, "training" ones that are; "table" is the loss of
    each training picture, to be looked at one by one. `base` says that it is the model without the adapter; `step` is
    0 then. `pictures` has each one's loss by its name, `timesteps` are the steps of noise that each was measured at.
    `weights` are those of all timesteps by their places, shares of all that the process draws (empty: even places
    that count alike), `by_timestep` is the mean loss at each.
    """

    step: int
    epoch: int
    loss: float
    on: str = "held_out"
    base: bool = False
    timesteps: int = 0
    pictures: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    by_timestep: Mapping[str, float] = field(default_factory=dict)

    @property
    def of_series(self) -> bool:
        """True where it is a point of the validation's curve: of the adapter, and no table of single pictures."""
        return self.on != "table" and not self.base


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsChanged(Event):
    """From the sample pictures after `step` on, other prompts are drawn: `prompts`, as the setting has them."""

    step: int
    prompts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something to know that does not stop the run."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paused(Event):
    """The run waits after `step`.

    `phase` is what it was busy with, empty between two steps; `saved` says that the state of this moment is on the
    disk (False: nothing was trained yet), `device_free` that no model is on the device.
    """

    step: int
    phase: str = ""
    saved: bool = False
    device_free: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """A paused run goes on."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Event):
    """The run ended with a file. `stopped` says that it was asked to end early; `path` is empty after an abort."""

    step: int
    epoch: int
    path: str
    stopped: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """The run ended with an error. `kind` is the error's class, `remedy` what to do."""

    kind: str
    message: str
    remedy: str
    step: int


Emit = Callable[[Event], None]
"""Takes an event to whoever watches; never raises, never blocks for long."""

KINDS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        Started,
        Stage,
        StepDone,
        EpochDone,
        Saved,
        SampleReady,
        Validated,
        PromptsChanged,
        Warned,
        Paused,
        Resumed,
        Finished,
        Failed,
    )
}


def to_record(event: Event) -> dict[str, object]:
    """Return the event as one JSON-able mapping, its class name under "event"; a number that is not finite is None."""
    return {"event": type(event).__name__, **_finite(dataclasses.asdict(event))}


def _finite(values: Mapping[str, object]) -> dict[str, object]:
    """Return values with None in the place of numbers that are not finite, of mappings inside them too."""
    found = {name: _finite(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in found.items()
    }


def from_record(record: Mapping[str, object]) -> Event:
    """Return the event of a mapping made by `to_record`; fields that are not known are left out.

    Raises:
        KeyError: the class name is missing or unknown.
        TypeError: a field is missing.
    """
    kind = KINDS[str(record["event"])]
    known = {each.name: each for each in dataclasses.fields(kind)}
    values = {name: value for name, value in record.items() if name in known}
    lost: dict[str, object] = {
        name: math.nan for name, value in values.items() if value is None and known[name].type == "float"
    }
    for name, value in values.items():
        if known[name].type == "Mapping[str, float]" and isinstance(value, Mapping):
            lost[name] = {key: math.nan if each is None else each for key, each in value.items()}
    return kind(**{**values, **lost})  # type: ignore[arg-type]
