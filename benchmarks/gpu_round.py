"""The GPU round: what only a graphics card can show, in parts that take at most four minutes each on a large one.

    python -m benchmarks.gpu_round --part base|memory|exact|compile [--json FILE] [--rehearse]

It takes the PyTorch that is there and needs no network: models of real size with random weights, and pictures, are made
on the spot. Every check runs in a process of its own, within what is left of the part's time; one that fails leaves
the others standing, and its last words are told. `--rehearse` does all of it at tiny size, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_checks import PARTS, Place
from benchmarks.ground import PROJECT
from benchmarks.options import FOLDER
from benchmarks.rows import Results, surroundings, table

PART_SECONDS = 240.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part; return 1 where a check failed or missed its target."""
    given = _parser().parse_args(arguments)
    place = Place(given.folder, given.rehearse)
    place.folder.mkdir(parents=True, exist_ok=True)
    if given.check:
        rows = [row.to_json() for row in PARTS[given.part][given.check](place)]
        given.rows.write_text(json.dumps(rows))
        return 0
    facts, results = surroundings(), Results(given.json)
    facts["rehearsal"] = place.rehearsal
    print("\n".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
    began = time.monotonic()
    failed: list[str] = []
    for name in PARTS[given.part]:
        left = PART_SECONDS - (time.monotonic() - began)
        found = _in_a_process(given, name, left)
        if found is None:
            failed.append(name)
            continue
        results.add(found, facts)
        print(f"\n{name}, {time.monotonic() - began:.0f} s after the part began\n\n{table(found)}", flush=True)
    missed = [str(row["name"]) for row in results.rows.values() if row["ok"] is False]
    print(f"\n{len(missed)} missed{': ' if missed else ''}{'; '.join(missed)}")
    print(f"Not measured: {', '.join(failed) or 'nothing'}")
    return 1 if failed or missed else 0


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks.gpu_round", description="Measure on a graphics card.")
    top.add_argument("--part", choices=tuple(PARTS), required=True)
    top.add_argument("--rehearse", action="store_true", help="all of it at tiny size, on a CPU too")
    top.add_argument("--json", type=Path, metavar="FILE", help="write the rows there; rows of other parts stay")
    top.add_argument("--folder", type=Path, default=FOLDER, help="where the models that are made for it are kept")
    top.add_argument("--check", help=argparse.SUPPRESS)
    top.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return top


def _in_a_process(given: argparse.Namespace, name: str, seconds: float) -> list[dict[str, object]] | None:
    """Make one check in a process of its own, so that none inherits memory of another; None where it failed."""
    if seconds <= 0:
        print(f"\n{name}: no time is left of the part's {PART_SECONDS:.0f} s.", flush=True)
        return None
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.gpu_round", "--part", given.part, "--check", name]
        command += ["--rows", str(rows), "--folder", str(given.folder), *(["--rehearse"] if given.rehearse else [])]
        try:
            done = subprocess.run(command, check=False, cwd=PROJECT, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            print(f"\n{name}: not done within the {seconds:.0f} s that were left.", flush=True)
            return None
        if done.returncode:
            print(f"\n{name} failed:\n{(done.stdout + done.stderr)[-3000:]}", flush=True)
            return None
        found: list[dict[str, object]] = json.loads(rows.read_text())
        return found


if __name__ == "__main__":
    sys.exit(main())
