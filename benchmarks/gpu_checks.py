"""The checks of the GPU round, by part: speed, memory, exactness, compiled steps."""

from __future__ import annotations

import hashlib
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import psutil
import torch
from safetensors.torch import load_file

from benchmarks import ground, steps
from benchmarks.ground import PROJECT
from benchmarks.options import FOLDER, Options
from benchmarks.rows import Row, Target, median_row
from trainer import Start, TrainingConfig, load_config, save_config, train
from trainer.ground.events import Event, StepDone, Warned

_PICTURES = 8
"""An epoch is so many steps of one picture; a state is kept at its end."""
_KILLED_AFTER = _PICTURES + 2
_STEPS = _PICTURES + 6
_WARM = 3
_YES, _NONE = Target(1.0, at_most=False), Target(0.0)
_MOST = Target(0.9, at_most=False)
"""Where a model attends to one place alone, as the demo's in its middle, queries and keys have nothing to learn."""
_GPU_TEST = re.compile(r"^@pytest\.mark\.gpu$", re.MULTILINE)
_COUNTED = re.compile(r"(\d+) (passed|failed|error|skipped)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how large: `folder` keeps the models that are made, a rehearsal is tiny."""

    folder: Path = FOLDER
    rehearsal: bool = False

    def cell(self, name: str, model: str, side: int, small: str = "tiny") -> steps.Cell:
        """Return what is trained: a model of real size in bf16, in a rehearsal a `small` one, which is the demo's."""
        if self.rehearsal:
            return steps.Cell(name, model=small, resolution=64, rank=4, quick_steps=2)
        return steps.Cell(name, model=model, resolution=side, precision="bf16", quick_steps=3)

    def config(self, work: Path, cell: steps.Cell, count: int, **changed: object) -> TrainingConfig:
        """Return the settings of a run of `count` steps on a few pictures, whose LoRA arrives in `work`/output."""
        data, side = work / "pictures", cell.resolution
        if not data.exists():
            ground.pictures(data, _PICTURES, (side, side))
        given = ground.settings(
            ground.model(cell.model, self.folder),
            data,
            work / "output",
            resolution=f"{side},{side}",
            mixed_precision=cell.precision,
            network_dim=cell.rank,
            network_train_unet_only=True,
            max_train_steps=count,
        )
        return load_config(overrides=given | changed)


Check: TypeAlias = Callable[[Place], Iterator[Row]]


class Steps:
    """An `emit` that notes losses, notices, and when the device was done with each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.notices: list[str] = []
        self._ends: list[float] = []

    def __call__(self, event: Event) -> None:
        """Note a step or a notice."""
        if isinstance(event, Warned):
            self.notices.append(event.message)
        if isinstance(event, StepDone):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.losses.append(event.loss)
            self._ends.append(time.perf_counter())

    @property
    def milliseconds(self) -> list[float]:
        """What each step took, the first few left out."""
        ends = self._ends[_WARM:]
        return [1000 * (after - before) for before, after in zip(ends, ends[1:], strict=False)]


def marked_tests(place: Place) -> Iterator[Row]:
    """Run the tests that need a CUDA device; a rehearsal sees them skipped."""
    files = [path for path in (PROJECT / "tests").rglob("test_*.py") if _GPU_TEST.search(path.read_text())]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, check=False, cwd=PROJECT, capture_output=True, text=True)
    counts = {what: int(count) for count, what in _COUNTED.findall(done.stdout)}
    if not counts:
        raise RuntimeError(f"pytest told no result:\n{(done.stdout + done.stderr)[-2000:]}")
    yield Row("gpu/tests passed", counts.get("passed", 0), "")
    yield Row("gpu/tests failed", counts.get("failed", 0) + counts.get("error", 0), "", target=_NONE)


def sd15_steps(place: Place) -> Iterator[Row]:
    """Measure SD 1.5's steps at 512 px over the floor and against plain PEFT."""
    yield from steps.measure(place.cell("gpu-sd15", "sd15", 512), Options(quick=True, folder=place.folder))


def sdxl_steps(place: Place) -> Iterator[Row]:
    """Measure SDXL's steps at 1024 px over the floor and against plain PEFT."""
    cell = replace(
        place.cell("gpu-sdxl", "sdxl", 1024, "sdxl-small"), reference=None if place.rehearsal else Target(1.3, False)
    )
    yield from steps.measure(cell, Options(quick=True, folder=place.folder))


def memory_of(name: str, **changed: object) -> Check:
    """Return a check of the most memory that SDXL takes at 1024 px, from loading to the last step."""

    def measure(place: Place) -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as work:
            noted = Steps()
            config = place.config(Path(work), place.cell("memory", "sdxl", 1024), _WARM + 3, **changed)
            train(config, emit=noted)
        cuda = torch.cuda.is_available()
        peak = torch.cuda.max_memory_allocated() if cuda else psutil.Process().memory_info().rss
        yield Row(f"gpu/memory/{name}/{'peak' if cuda else 'resident'}", peak / 2**20, "MiB")
        yield median_row(f"gpu/memory/{name}/step", noted.milliseconds, "ms")

    return measure


def twice(place: Place) -> Iterator[Row]:
    """Train twice with the same settings in deterministic mode: the files are equal bit for bit."""
    yield from _equal(place, "twice", lambda config: train(config, emit=Steps()))


def killed(place: Place) -> Iterator[Row]:
    """Kill a run after its first epoch, and resume it: its file is that of a run that was left alone."""

    def kill_and_resume(config: TrainingConfig) -> None:
        output = Path(config.saving.output_dir)
        run = output.parent / "run.toml"
        save_config(config, run)
        command = [sys.executable, "-m", "trainer", "train", str(run)]
        with (output.parent / "told.txt").open("w") as told:
            process = subprocess.Popen(command, cwd=PROJECT, stdout=told, stderr=told)
            log = output / f"{config.saving.output_name}.run" / "events.jsonl"
            while not (log.exists() and f'"step": {_KILLED_AFTER},' in log.read_text()):
                if process.poll() is not None:
                    raise RuntimeError((output.parent / "told.txt").read_text()[-2000:])
                time.sleep(0.01)
            process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
            process.wait()
        train(config, emit=Steps(), start=Start(resume="auto"))

    yield from _equal(place, "killed", kill_and_resume)


def _equal(place: Place, name: str, again: Callable[[TrainingConfig], object]) -> Iterator[Row]:
    sums = []
    with tempfile.TemporaryDirectory() as folder:
        cell = place.cell(name, "sd15", 512)
        for turn, trained in (("first", lambda config: train(config, emit=Steps())), ("second", again)):
            work = Path(folder) / turn
            work.mkdir()
            output = work / "output"
            config = place.config(Path(folder), cell, _STEPS, deterministic=True, output_dir=str(output))
            trained(config)
            sums.append(_sum(output / "benchmark.safetensors"))
    yield Row(f"gpu/exact/{name}", float(sums[0] == sums[1]), "", target=_YES)


def _sum(file: Path) -> str:
    """Return a hash of all tensors of a file, and nothing of its metadata."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        found.update(name.encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def precision_of(name: str) -> Check:
    """Return a check that a run in this precision has finite losses and leaves finite weights that moved."""

    def measure(place: Place) -> Iterator[Row]:
        with tempfile.TemporaryDirectory() as work:
            noted = Steps()
            cell = replace(place.cell(name, "sd15", 512), precision=name)
            train(place.config(Path(work), cell, _STEPS), emit=noted)
            weights = load_file(Path(work) / "output" / "benchmark.safetensors")
        finite = [math.isfinite(loss) for loss in noted.losses]
        yield Row(f"gpu/exact/{name}/finite losses", sum(finite) / len(finite), "of 1", target=_YES)
        ups = [tensor for key, tensor in weights.items() if key.endswith("lora_up.weight")]
        good = [bool(tensor.isfinite().all() and tensor.any()) for tensor in ups]
        yield Row(f"gpu/exact/{name}/layers that learned", sum(good) / len(good), "of 1", target=_MOST)

    return measure


def out_of_memory(place: Place) -> Iterator[Row]:
    """Take the card's memory away after the first steps: the run steps down, says so, and ends as it should."""
    cuda = torch.cuda.is_available()
    taken: list[torch.Tensor] = []
    noted = Steps()

    def emit(event: Event) -> None:
        noted(event)
        if isinstance(event, StepDone) and event.step == _WARM:
            if cuda:
                torch.cuda.empty_cache()
                # What one picture takes is left, what four take is not.
                spare = (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) // 2
                free = torch.cuda.mem_get_info()[0]
                taken.append(torch.empty(max(0, free - spare), dtype=torch.uint8, device="cuda"))
            else:
                _run_out_once()

    with tempfile.TemporaryDirectory() as work:
        config = place.config(Path(work), place.cell("memory", "sd15", 512), 2 * _WARM, train_batch_size=4)
        train(config, emit=emit)
        made = (Path(work) / "output" / "benchmark.safetensors").exists()
    yield Row("gpu/exact/out of memory/ends with a file", float(made), "", target=_YES)
    told = any("memory" in notice for notice in noted.notices)
    yield Row("gpu/exact/out of memory/is told", float(told), "", target=_YES)


def _run_out_once() -> None:
    """Let the next forward of a UNet fail as a full card lets it: a CPU's memory cannot be taken away for a test."""
    from diffusers import UNet2DConditionModel

    whole = UNet2DConditionModel.forward

    def fails(*_given: object, **_named: object) -> object:
        UNet2DConditionModel.forward = whole
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    UNet2DConditionModel.forward = fails  # type: ignore[assignment]


def compiled(place: Place) -> Iterator[Row]:
    """Measure SD 1.5's steps with and without compiled blocks; a rehearsal leaves the compiler out."""
    if place.rehearsal:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    medians = {}
    for name, compiles in (("plain", False), ("compiled", True)):
        with tempfile.TemporaryDirectory() as work:
            noted = Steps()
            count = _WARM + (3 if place.rehearsal else 60)
            config = place.config(Path(work), place.cell(name, "sd15", 512), count, torch_compile=compiles)
            began = time.perf_counter()
            train(config, emit=noted)
            whole = time.perf_counter() - began
        row = median_row(f"gpu/compile/{name}/step", noted.milliseconds, "ms")
        medians[name] = row.value
        yield row
        yield Row(f"gpu/compile/{name}/whole run", whole, "s")
    yield Row("gpu/compile/compiled over plain", medians["compiled"] / medians["plain"], "x")


MEMORY: Mapping[str, Mapping[str, object]] = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "int8": {"quantize_base": "int8", "gradient_checkpointing": True},
    "fp8": {"quantize_base": "fp8", "gradient_checkpointing": True},
    "nf4": {"quantize_base": "nf4", "gradient_checkpointing": True},
    "streamed": {"streamed_weights": 0.5, "gradient_checkpointing": True},
}
"""What is set besides where the most memory of a run is measured."""

PARTS: Mapping[str, Mapping[str, Check]] = {
    "base": {"tests": marked_tests, "sd15": sd15_steps, "sdxl": sdxl_steps},
    "memory": {name: memory_of(name, **changed) for name, changed in MEMORY.items()},
    "exact": {
        "twice": twice,
        "killed": killed,
        "fp16": precision_of("fp16"),
        "bf16": precision_of("bf16"),
        "out of memory": out_of_memory,
    },
    "compile": {"steps": compiled},
}
"""What is measured, by part, in the order in which it is."""
