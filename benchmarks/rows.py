"""Measured values: what they are called, how they spread, what they should be; on the screen and in a JSON file."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "gradio", "Pillow")


@dataclass(frozen=True, slots=True)
class Target:
    """What a value should be at most, or at least."""

    limit: float
    at_most: bool = True

    def met(self, value: float) -> bool:
        """Say whether a value is good enough."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured value. `spread` is half the range in which the middle half of the single values lies."""

    name: str
    value: float
    unit: str
    spread: float | None = None
    target: Target | None = None

    @property
    def ok(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        return self.target.met(self.value) if self.target else None

    def to_json(self) -> dict[str, object]:
        """Return the row in plain values."""
        return {
            "name": self.name,
            "value": self.value,
            "spread": self.spread,
            "unit": self.unit,
            "target": str(self.target) if self.target else None,
            "ok": self.ok,
        }


def median_row(name: str, values: Sequence[float], unit: str, target: Target | None = None) -> Row:
    """Return the median of repeated measurements, with their spread."""
    return Row(name, statistics.median(values), unit, spread_of(values), target)


def ratio_row(name: str, ours: Sequence[float], theirs: Sequence[float], target: Target | None = None) -> Row:
    """Return the median of ours / theirs, taken pair by pair: what disturbs both does not count."""
    return median_row(name, [own / other for own, other in zip(ours, theirs, strict=True)], "x", target)


def spread_of(values: Sequence[float]) -> float | None:
    """Return half the distance between the quartiles, or None of too few values."""
    if len(values) < 4:
        return None
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def surroundings() -> dict[str, object]:
    """Return machine, device and versions."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    """Return the processor's name where the system tells it in a file, as Linux does."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows, in plain values, as a Markdown table."""
    lines = ["| What | Value | Spread | Target | |", "|---|---|---|---|---|"]
    marks = {True: "ok", False: "MISSED", None: ""}
    for row in rows:
        spread = "" if row["spread"] is None else f"{_number(row['spread'])}"
        lines.append(
            f"| {row['name']} | {_number(row['value'])} {row['unit']} | {spread} | {row['target'] or ''} | "
            f"{marks[row['ok']]} |"  # type: ignore[index]
        )
    return "\n".join(lines)


def _number(value: object) -> str:
    assert isinstance(value, int | float)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Results:
    """Rows in a JSON file, written after every cell; rows of other cells that are there already stay."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows: dict[str, dict[str, object]] = {}
        if path and path.is_file():
            self.rows = {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}

    def add(self, rows: Sequence[Mapping[str, object]], facts: Mapping[str, object]) -> None:
        """Take rows up, in place of earlier ones of their names, and write the file."""
        self.rows |= {str(row["name"]): dict(row) for row in rows}
        if self._path:
            text = json.dumps({**facts, "rows": list(self.rows.values())}, indent=1)
            self._path.write_text(text + "\n", encoding="utf-8")
