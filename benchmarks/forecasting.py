"""The forecast of memory: how long it takes for SDXL at 1024 px, what it says of what saves memory, and what is true.

The model is a sparse file with the header of the published one and zeros for weights. Against what is true: runs of
real and of quarter width, each in a process of its own, by how much its resident memory grows from loaded libraries
to the last step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ground
from benchmarks.ground import PROJECT
from benchmarks.loading import write_sdxl
from benchmarks.options import Options
from benchmarks.rows import Row, Target
from trainer.config import load_config
from trainer.forecast import asking
from trainer.forecast.forecast import Forecast
from trainer.planning.plan import Plan, plan

_FIRST, _AGAIN = Target(8.0), Target(0.2)
_AGAINST_NOW: Mapping[str, tuple[Mapping[str, object], Target]] = {
    "streamed": ({"streamed_weights": 1.0}, Target(0.45)),
    "int8": ({"quantize_base": "int8"}, Target(0.6)),
    "streamed, int8": ({"streamed_weights": 1.0, "quantize_base": "int8"}, Target(0.35)),
}
"""What saves memory, and how much of the peak with checkpointing alone is left."""

_GROWTH = """
import json, resource, sys
from benchmarks.peak import peak_memory
from trainer.faststart import libraries
libraries.load()
from trainer.config import load_config
from trainer.run import train
def now():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before = now()
train(load_config(overrides=json.loads(sys.argv[1])), emit=lambda event: None)
print(before, peak_memory())
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """A run whose memory is measured."""

    model: str
    side: int
    batch: int
    checkpointing: bool
    precision: str

    @property
    def name(self) -> str:
        """What it is called among the rows."""
        again = "checkpointing" if self.checkpointing else "plain"
        return f"{self.model}, {self.side} px, batch {self.batch}, {again}, {self.precision}"


FITTED = (
    Cell("sd15", 256, 1, False, "no"),
    Cell("sd15", 256, 4, True, "bf16"),
    Cell("sdxl-quarter", 512, 4, False, "no"),
    Cell("sdxl-quarter", 512, 4, False, "bf16"),
)
"""Those by which is told what a process takes beside what is counted."""
PREDICTED = tuple(
    cell
    for model, side in (("sd15", 256), ("sdxl-quarter", 512))
    for batch in (1, 4)
    for checkpointing in (False, True)
    for precision in ("no", "bf16")
    if (cell := Cell(model, side, batch, checkpointing, precision)) not in FITTED
)
"""The twelve others."""


def measure(options: Options) -> Iterator[Row]:
    """Yield the rows of time, of what saves memory, and but for `--quick` of what processes take."""
    with tempfile.TemporaryDirectory() as work:
        os.environ["TRAINER_CACHE"] = f"{work}/cache"
        model = write_sdxl(Path(work) / "sdxl.safetensors")
        data = ground.pictures(Path(work) / "pictures", 4, (1024, 1024))
        given = ground.settings(
            model,
            data,
            Path(work) / "out",
            resolution="1024,1024",
            mixed_precision="bf16",
            network_train_unet_only=True,
        )
        began = time.perf_counter()
        whole = asking.forecast(_planned(given))
        yield Row("forecast/sdxl, 1024 px/first", time.perf_counter() - began, "s", target=_FIRST)
        seen, began = _planned(given), time.perf_counter()
        assert asking.forecast(seen) == whole
        yield Row("forecast/sdxl, 1024 px/again", time.perf_counter() - began, "s", target=_AGAIN)
        yield Row("forecast/sdxl, 1024 px/peak", whole.peak / 1e9, "GB")
        now = asking.forecast(_planned({**given, "gradient_checkpointing": True})).peak
        yield Row("forecast/sdxl, 1024 px, checkpointing/peak", now / 1e9, "GB")
        for name, (changed, target) in _AGAINST_NOW.items():
            less = asking.forecast(_planned({**given, "gradient_checkpointing": True, **changed})).peak
            yield Row(f"forecast/sdxl, 1024 px, checkpointing, {name}/over that", less / now, "x", target=target)
    if not options.quick:
        yield from _against_processes(options)


def _planned(settings: Mapping[str, object]) -> Plan:
    return plan(load_config(overrides=settings))


def _against_processes(options: Options) -> Iterator[Row]:
    """Fit what a process takes beside what is counted on some cells, foretell the others, and then measure them."""
    counted = [_foretold(cell, options).peak for cell in FITTED]
    grown = [_grown(cell, options) for cell in FITTED]
    mean = sum(counted) / len(counted)
    slope = sum((one - mean) * other for one, other in zip(counted, grown, strict=True))
    slope /= sum((one - mean) ** 2 for one in counted)
    beside = sum(grown) / len(grown) - slope * mean
    yield Row("forecast/a counted byte is", slope, "bytes")
    yield Row("forecast/beside it", beside / 1e6, "MB")
    foretold = {cell: slope * _foretold(cell, options).peak + beside for cell in PREDICTED}
    for cell, size in foretold.items():
        yield Row(f"forecast/{cell.name}/foretold", size / 1e9, "GB")
    for cell, size in foretold.items():
        growth = _grown(cell, options)
        yield Row(f"forecast/{cell.name}/measured", growth / 1e9, "GB")
        if growth >= 1e9:
            yield Row(f"forecast/{cell.name}/off by", abs(size / growth - 1), "of 1", target=Target(0.1))


def _foretold(cell: Cell, options: Options) -> Forecast:
    """Return the forecast of a run."""
    with tempfile.TemporaryDirectory() as work:
        return asking.forecast(_planned(_settings(cell, options, Path(work))))


def _grown(cell: Cell, options: Options) -> int:
    """Return by how many bytes the process of a run grows."""
    with tempfile.TemporaryDirectory() as work:
        given = {key: value for key, value in _settings(cell, options, Path(work)).items() if value is not None}
        command = [sys.executable, "-c", _GROWTH, json.dumps(given)]
        answer = subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True)
        before, most = map(int, answer.stdout.split()[-2:])
        return most - before


def _settings(cell: Cell, options: Options, work: Path) -> dict[str, object]:
    return ground.settings(
        ground.model(cell.model, options.folder),
        ground.pictures(work / "pictures", cell.batch * 2, (cell.side, cell.side)),
        work / "out",
        resolution=f"{cell.side},{cell.side}",
        mixed_precision=cell.precision,
        train_batch_size=cell.batch,
        gradient_checkpointing=cell.checkpointing,
        network_train_unet_only=True,
        max_train_steps=2,
    )
