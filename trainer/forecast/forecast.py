"""What a forecast says. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

GB = 1e9
_SHOWN = 0.005
"""The share of a peak below which a holder is not named."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a run: the most memory that it takes, in bytes, and what holds it then, by name."""

    name: str
    peak: int
    held: Mapping[str, int]

    @property
    def holders(self) -> list[tuple[str, int]]:
        """What holds it, the largest first; what is next to nothing is left out."""
        found = [(name, count) for name, count in self.held.items() if count >= _SHOWN * self.peak]
        return sorted(found, key=lambda each: -each[1])


@dataclass(frozen=True, slots=True)
class Forecast:
    """The memory of a run, phase by phase, on the device that it computes on ("cpu", "cuda", ...).

    `host` is what lies in the computer's memory meanwhile because the device has no room for it, in bytes; on a CPU it
    is part of the phases. `notices` say what was left out. `name` is what the device is called.
    """

    device: str
    phases: tuple[Phase, ...]
    host: int = 0
    notices: tuple[str, ...] = ()
    name: str = ""

    @property
    def largest(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def peak(self) -> int:
        """The most memory that the run takes, in bytes."""
        return self.largest.peak

    def lines(self) -> list[str]:
        """Return the forecast as a person reads it, a line each."""
        largest = self.largest
        where = "of this computer's memory" if self.device == "cpu" else "of the graphics card's memory"
        lines = [f"Memory: about {amount(self.peak)} {where} at most, {largest.name}"]
        lines += [f"  {name}: {amount(count)}" for name, count in largest.holders]
        others = [f"{phase.name} {amount(phase.peak)}" for phase in self.phases if phase is not largest]
        if others:
            lines.append(f"  less {', '.join(others)}")
        if self.host:
            lines.append(f"  beside it in the computer's memory: {amount(self.host)}")
        return [*lines, *(f"Note: {notice}" for notice in self.notices)]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Forecast:
        """Read what `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        phases = tuple(
            Phase(str(each["name"]), int(each["peak"]), {str(key): int(value) for key, value in each["held"].items()})
            for each in told["phases"]
        )
        if not phases:
            raise ValueError("a forecast without phases")
        notices = tuple(map(str, told["notices"]))
        return cls(str(told["device"]), phases, int(told["host"]), notices, str(told["name"]))


@dataclass(frozen=True, slots=True)
class Fit:
    """Settings for so many bytes of memory: what to change, and the forecast with that."""

    values: Mapping[str, object]
    forecast: Forecast
    most: int

    @property
    def fits(self) -> bool:
        """Whether that is enough; if not, nothing is that leaves what is learned as it is."""
        return self.forecast.peak <= self.most

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Fit:
        """Read what its fields were written as. Raises as `Forecast.from_json` does."""
        return cls(dict(told["values"]), Forecast.from_json(told["forecast"]), int(told["most"]))


def amount(count: int) -> str:
    """Return bytes in words, such as "5.7 GB" or "310 MB"."""
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / 1e6:.0f} MB"
