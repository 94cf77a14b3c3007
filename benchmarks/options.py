"""How the measuring is done."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ground import PROJECT

FOLDER = PROJECT / "outputs" / "benchmarks"


@dataclass(frozen=True, slots=True)
class Options:
    """`cpu_clock` counts the process's CPU time instead of time passed; `folder` keeps the models that were made.

    `sd_scripts` is a checkout of sd-scripts, `sd_python` the interpreter with its packages.
    """

    quick: bool = False
    profile: bool = False
    cpu_clock: bool = False
    folder: Path = FOLDER
    sd_scripts: Path | None = None
    sd_python: Path | None = None

    def clock(self) -> float:
        """Return the seconds of this process's clock."""
        return time.process_time() if self.cpu_clock else time.perf_counter()

    def clock_of_children(self) -> float:
        """Return the seconds of a clock for processes that are started and waited for."""
        if not self.cpu_clock:
            return time.perf_counter()
        spent = os.times()
        return spent.children_user + spent.children_system
