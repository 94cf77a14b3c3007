"""Time of looking at folders of pictures, from 1,000 to 100,000: scan and buckets, without and with what is remembered.

A third figure is `--check` on 1,000 pictures, a process of its own. The pictures were just written, so
their bytes lie in memory; on a disk that must be asked, opening 100,000 files takes what the disk takes.
"""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from benchmarks.ground import DEMO, PROJECT
from benchmarks.options import Options
from benchmarks.rows import Row, Target, median_row
from trainer.config import TrainingConfig, load_config
from trainer.pictures.batches import examples
from trainer.pictures.counts import count
from trainer.pictures.scan import scan

SIZES, QUICK_SIZES = (1_000, 10_000, 100_000), (300, 1_000)
_COLD, _WARM = {100_000: Target(60.0)}, {100_000: Target(5.0)}
_CHECKED = 1_000


def write(folder: Path, number: int) -> Path:
    """Write small pictures of many sizes with captions, 20,000 to a folder at most; return `folder`."""
    rng = random.Random(0)
    kinds = [(form, _encoded(form, (rng.randrange(48, 96), rng.randrange(48, 96)))) for form in ("jpg", "png") * 20]
    for index in range(number):
        inside = folder / f"{1 + index // 20_000}_part"
        if not index % 20_000:
            inside.mkdir(parents=True)
        form, content = kinds[index % len(kinds)]
        (inside / f"{index:06d}.{form}").write_bytes(content)
        (inside / f"{index:06d}.txt").write_text(f"thing, number {index}")
    return folder


def measure(options: Options) -> Iterator[Row]:
    """Yield the rows of the scan."""
    cold: dict[int, float] = {}
    for number in QUICK_SIZES if options.quick else SIZES:
        with tempfile.TemporaryDirectory() as work:
            config = _config(write(Path(work) / "pictures", number), Path(work) / "output")
            cold[number] = look(config, options)
            yield Row(f"scan/{number} pictures, first time", cold[number], "s", target=_COLD.get(number))
            again = [look(config, options) for _ in range(3)]
            yield median_row(f"scan/{number} pictures, again", again, "s", _WARM.get(number))
    first, last = min(cold), max(cold)
    yield Row("scan/growth over linear", cold[last] / cold[first] / (last / first), "x")
    with tempfile.TemporaryDirectory() as work:
        data = write(Path(work) / "pictures", _CHECKED)
        seconds = [check(data, Path(work) / "output", options) for _ in range(3)]
        yield median_row(f"scan/--check on {_CHECKED} pictures", seconds, "s", Target(3.0))


def look(config: TrainingConfig, options: Options) -> float:
    """Scan, sort into buckets and count; return the seconds."""
    began = options.clock()
    report = scan(config)
    count(report, examples(report, config), config)
    return options.clock() - began


def check(data: Path, output: Path, options: Options) -> float:
    """Run `--check` as a command and return the seconds."""
    settings = output.with_suffix(".toml")
    settings.write_text(
        f"pretrained_model_name_or_path = '{DEMO}'\ntrain_data_dir = '{data}'\noutput_dir = '{output}'\n"
        "resolution = '64,64'\n"
    )
    command = [sys.executable, "-m", "trainer", "train", str(settings), "--check"]
    began = options.clock_of_children()
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    return options.clock_of_children() - began


def _config(data: Path, output: Path) -> TrainingConfig:
    return load_config(
        overrides={"train_data_dir": str(data), "output_dir": str(output), "resolution": "64,64", "min_bucket_reso": 64}
    )


def _encoded(form: str, size: tuple[int, int]) -> bytes:
    content = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(content, "JPEG" if form == "jpg" else "PNG")
    return content.getvalue()
