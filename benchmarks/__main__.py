"""Measures everything.

    python -m benchmarks [--quick] [--json FILE] [--only NAME ...] [--profile] [--sd-scripts PATH]

Every cell runs in a process of its own, so that none inherits memory or settings of another, and one that fails leaves
the others standing. With `--json` the file is written after each cell, and rows of other cells that it has are kept:
an interrupted round goes on with `--only`.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from benchmarks import (
    adapters,
    answers,
    forecasting,
    judged,
    loading,
    merging,
    page,
    pictures,
    scanning,
    steps,
    streaming,
    watching,
    whole,
    workbench,
)
from benchmarks.ground import PROJECT
from benchmarks.options import FOLDER, Options
from benchmarks.rows import Results, Row, surroundings, table

Measure: TypeAlias = Callable[[Options], Iterable[Row]]

_LIMIT = 3600
"""Seconds after which a cell is given up."""


def cells(options: Options) -> dict[str, Measure]:
    """Return what can be measured with these options, by name, in the order in which it is."""
    found: dict[str, Measure] = {
        "page": page.measure,
        "answers": answers.measure,
        "page/open": watching.measure,
        "page/workbench": workbench.measure,
        "scan": scanning.measure,
        "pictures": pictures.measure,
        "run": whole.run,
    }
    found["forecast"] = forecasting.measure
    found |= {"memory": whole.memory, "loading": loading.measure, "validation": judged.measure}
    found["validation/cost"] = judged.cost
    if not options.quick:
        found["streaming"] = streaming.measure
        found["merge"] = merging.measure
    for cell in steps.CELLS:
        if cell.quick_steps or not options.quick:
            found[f"steps/{cell.name}"] = functools.partial(steps.measure, cell)
    found |= {f"adapters/{each.name}": functools.partial(adapters.measure, each) for each in adapters.CELLS}
    if options.sd_scripts:
        for rival in whole.CELLS:
            if rival.name != "real" or not options.quick:
                found[f"sd-scripts/{rival.name}"] = functools.partial(whole.against_sd_scripts, rival)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for; return 1 where a cell failed."""
    given = parser().parse_args(arguments)
    options = _options(given)
    options.folder.mkdir(parents=True, exist_ok=True)
    known = cells(options)
    if given.cell:
        return _one(known[given.cell], options, Path(given.rows))
    chosen = [name for name in known if _is_chosen(name, given.only)]
    if not chosen:
        parser().error(f"--only: there are {', '.join(known)}")
    results, facts, failed = Results(given.json), surroundings(), []
    print("\n".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
    for name in chosen:
        began = time.monotonic()
        rows = _in_a_process(name, arguments)
        if rows is None:
            failed.append(name)
            continue
        results.add(rows, facts)
        print(f"\n{name}, {time.monotonic() - began:.0f} s\n\n{table(rows)}", flush=True)
    missed = [str(row["name"]) for row in results.rows.values() if row["ok"] is False]
    print(f"\n{len(missed)} targets missed{': ' if missed else ''}{'; '.join(missed)}")
    if failed:
        print(f"Failed: {', '.join(failed)}")
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure speed and memory.")
    top.add_argument("--quick", action="store_true", help="fewer repetitions, and nothing of real size")
    top.add_argument("--json", type=Path, metavar="FILE", help="write the rows there; rows of other cells stay")
    top.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cells, or what their names begin with")
    top.add_argument("--profile", action="store_true", help="show where the time of a step goes")
    top.add_argument("--cpu-clock", action="store_true", help="count CPU time, for a machine that is busy otherwise")
    top.add_argument("--folder", type=Path, default=FOLDER, help="where the models that are made for it are kept")
    top.add_argument("--sd-scripts", type=Path, metavar="PATH", help="a checkout of sd-scripts to compare with")
    top.add_argument("--sd-scripts-python", type=Path, metavar="PATH", help="the interpreter that has its packages")
    top.add_argument("--cell", help=argparse.SUPPRESS)
    top.add_argument("--rows", help=argparse.SUPPRESS)
    return top


def _options(given: argparse.Namespace) -> Options:
    return Options(
        quick=given.quick,
        profile=given.profile,
        cpu_clock=given.cpu_clock,
        folder=given.folder,
        sd_scripts=given.sd_scripts,
        sd_python=given.sd_scripts_python,
    )


def _is_chosen(name: str, only: Sequence[str]) -> bool:
    return not only or any(name == each or name.startswith(f"{each}/") for each in only)


def _in_a_process(name: str, arguments: Sequence[str] | None) -> list[Mapping[str, object]] | None:
    """Measure one cell in a process of its own; None where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        own = list(sys.argv[1:] if arguments is None else arguments)
        command = [sys.executable, "-m", "benchmarks", *own, "--cell", name, "--rows", str(rows)]
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        try:
            subprocess.run(command, cwd=PROJECT, env=environment, check=True, timeout=_LIMIT)
        except subprocess.SubprocessError as error:
            print(f"\n{name} failed: {error}", flush=True)
            return None
        found: list[Mapping[str, object]] = json.loads(rows.read_text())
        return found


def _one(measure: Measure, options: Options, rows: Path) -> int:
    """Measure one cell here, and write its rows for the process that asked."""
    for name in ("bitsandbytes", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows.write_text(json.dumps([row.to_json() for row in measure(options)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
