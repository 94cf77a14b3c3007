"""How long the form takes to answer where a field names what is large or no file: a second is the most.

The pictures of the crowded folder are empty files, so what is measured is the listing; "pictures" has real ones.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks import scanning
from benchmarks.options import Options
from benchmarks.rows import Row, Target
from kohya_gui.form import folder_dialog
from kohya_gui.form.presets import PROJECT, Presets
from kohya_gui.parts.folders import Folders
from kohya_gui.session import Session
from kohya_gui.shell.page import Page
from trainer.config import known_settings

ENTRIES, QUICK_ENTRIES = 100_000, 1_000
SECOND = Target(1.0)
_HUGE = 3 << 30
_PATHS = ("file", "folder")
_MODEL = "pretrained_model_name_or_path"


def measure(options: Options) -> Iterator[Row]:
    """Yield the seconds that each kind of answer takes."""
    number = QUICK_ENTRIES if options.quick else ENTRIES
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        session = Session(Folders([root, PROJECT]), Presets(PROJECT / "presets", root / "own"))
        page = Page(session)
        for name, kind in acts(page, root, number):
            seconds = []
            for act in kind:
                began = options.clock()
                act()
                seconds.append(options.clock() - began)
            yield Row(f"answers/{name}", max(seconds), "s", target=SECOND)


def acts(page: Page, root: Path, number: int) -> Iterator[tuple[str, Iterable[Callable[[], object]]]]:
    """Yield what is asked of the page, by name: of what any field may name, the slowest answer counts."""
    session, crowd = page.session, crowded(root / "crowd", number)
    keys = [key for key, setting in known_settings().items() if setting.show.widget in _PATHS]

    def named(key: str, value: Path) -> Callable[[], object]:
        def act() -> None:
            session.edit(key, str(value))
            page.form_update()

        return act

    def in_turn(keys: Iterable[str], value: Path) -> Iterator[Callable[[], object]]:
        for key in keys:
            before = session.draft.values[key]
            yield named(key, value)
            session.edit(key, before)

    yield "the form as it is", [page.form_update]
    for what, path in irregular(root).items():
        yield f"any field: {what}", in_turn((*keys, "sample_prompts"), path)
    yield f"any field: a folder of {number} entries", in_turn(keys, crowd)
    yield (
        f"the dialog in a folder of {number} entries",
        [lambda: folder_dialog.dialog(session.folders, _MODEL, str(crowd))],
    )
    session.edit("output_dir", str(crowd))
    yield f"the runs of a folder of {number} entries", [lambda: page.news.since(0)]
    pictures = scanning.write(root / "pictures", number)
    yield f"a folder of {number} pictures", [named("train_data_dir", pictures)]


def crowded(folder: Path, number: int) -> Path:
    """Make a folder with so many empty files, a third of them called pictures, and return it."""
    folder.mkdir()
    for index in range(number):
        (folder / f"{index}.{('png', 'txt', 'toml')[index % 3]}").touch()
    return folder


def irregular(root: Path) -> dict[str, Path]:
    """Return what is no file, or one that nobody can mean, by what it is called."""
    found: dict[str, Path] = {}
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "pipe.txt")
        found = {"a pipe": root / "pipe.txt", "a device": Path("/dev/zero")}
    for ending in (".txt", ".safetensors", ".ckpt"):
        huge = root / f"huge{ending}"
        with huge.open("wb") as file:
            file.truncate(_HUGE)
        found[f"a {ending} of 3 GB"] = huge
    return found
