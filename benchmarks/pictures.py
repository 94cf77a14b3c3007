"""Time and memory of the engine of the workbench at 10,000 pictures: opened, read, judged, shown, all captions changed.

The pictures were just written, so their bytes lie in memory. Each caption is flushed to the disk when it is written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.options import Options
from benchmarks.rows import Row, Target
from benchmarks.scanning import write
from trainer.config import TrainingConfig, load_config
from trainer.ground.files import CACHE_VARIABLE
from trainer.workbench.album import Album, Index, open_album
from trainer.workbench.changes import apply, preview, undo
from trainer.workbench.operations import AddTags
from trainer.workbench.problems import find_problems
from trainer.workbench.statistics import tag_counts
from trainer.workbench.thumbnails import Thumbnails

COUNT, QUICK_COUNT = 10_000, 300
_IN_VIEW = 60
_GROWTH = Target(300.0)


def measure(options: Options) -> Iterator[Row]:
    """Yield the rows of the workbench."""
    number = QUICK_COUNT if options.quick else COUNT
    with tempfile.TemporaryDirectory() as work:
        before = os.environ.get(CACHE_VARIABLE)
        os.environ[CACHE_VARIABLE] = str(Path(work) / "cache")
        try:
            data = write(Path(work) / "pictures", number)
            config = load_config(overrides={"train_data_dir": str(data), "resolution": "64,64", "min_bucket_reso": 64})
            yield from _rows(config, number, options)
        finally:
            if before is None:
                del os.environ[CACHE_VARIABLE]
            else:
                os.environ[CACHE_VARIABLE] = before


def _rows(config: TrainingConfig, number: int, options: Options) -> Iterator[Row]:
    name = f"pictures/{number} of them"
    start = psutil.Process().memory_info().rss
    began = options.clock()
    album = open_album(config)
    yield Row(f"{name}, opened", options.clock() - began, "s", target=Target(1.0))
    yield from _read(name, album, options)
    for what in ("judged", "judged again"):
        began = options.clock()
        find_problems(album, config)
        yield Row(f"{name}, {what}", options.clock() - began, "s")
    shown = Thumbnails()
    for what in ("a view's thumbnails", "a view's thumbnails again"):
        began = options.clock()
        for entry in album.entries[:_IN_VIEW]:
            shown.of(entry.picture)
        yield Row(f"{name}, {what}", options.clock() - began, "s")
    yield from _changed(name, album, options)
    grown = (psutil.Process().memory_info().rss - start) / 1e6
    yield Row(f"{name}, memory that is left", grown, "MB", target=_GROWTH)


def _read(name: str, album: Album, options: Options) -> Iterator[Row]:
    index = Index(album)
    for what in ("sizes and captions read", "read again"):
        began = options.clock()
        index.read()
        yield Row(f"{name}, {what}", options.clock() - began, "s")
    began = options.clock()
    tag_counts(index.texts.values())
    yield Row(f"{name}, tags counted", options.clock() - began, "s")


def _changed(name: str, album: Album, options: Options) -> Iterator[Row]:
    began = options.clock()
    planned = preview(album.entries, [AddTags(("new",))])
    yield Row(f"{name}, a change of all captions previewed", options.clock() - began, "s")
    began = options.clock()
    done = apply(planned)
    yield Row(f"{name}, written", options.clock() - began, "s")
    began = options.clock()
    undone = undo(album.paths)
    yield Row(f"{name}, taken back", options.clock() - began, "s")
    assert undone is not None and len(undone.done) == len(done.done) == len(album.entries)
