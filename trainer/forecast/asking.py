"""What the page and the command line ask of a forecast. Torch-free: what must be found out, a process of its own does.

A forecast is kept under what it rests on: the settings that change shapes, the model's configuration, the buckets, the
versions. So it is looked up in milliseconds when it was made before, and made anew when any of it differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.config import known_settings, to_flat
from trainer.forecast.forecast import Fit, Forecast
from trainer.forecast.pace import earlier
from trainer.ground.errors import RunError
from trainer.ground.files import cache_folder, write_text
from trainer.ground.paths import read_json
from trainer.planning.plan import Plan, is_guess

FOLDER = "forecasts"
SWITCH = "TRAINER_FORECAST"
"""The environment variable that keeps forecasts off: a process of its own takes seconds of computing."""
_FORMAT = "forecast/4"
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "bitsandbytes")
_MOST = 1 << 20
"""Bytes of a forecast that is kept."""
_SECONDS = 300.0
"""After so long a forecast that is not done is given up."""


def key_of(seen: Plan) -> str:
    """Return 32 hex digits of everything that a forecast of this plan rests on."""
    declared, flat = known_settings(), to_flat(seen.config)
    # Which parts have a rate counts apart.
    settings = {key: value for key, value in flat.items() if declared[key].changes_memory}
    buckets = Counter((each.dataset, *each.bucket, each.repeats) for each in seen.examples)
    rests = {
        "format": _FORMAT,
        "versions": {name: version(name) for name in _PACKAGES},
        "cards": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "settings": settings,
        "parts": sorted(seen.rates),
        "family": seen.recognition.family,
        "form": seen.recognition.form,
        "configs": seen.recognition.configs,
        "buckets": sorted((*key, count) for key, count in buckets.items()),
        "captions": len({each.picture.caption for each in seen.examples}),
    }
    text = json.dumps(rests, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def known(key: str) -> Forecast | None:
    """Return the forecast that was made for this key; None where there is none."""
    try:
        return Forecast.from_json(read_json(_path(key), _MOST))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def keep(key: str, forecast: Forecast) -> None:
    """Remember a forecast; where that is not possible it is made again next time."""
    try:
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_text(_path(key), json.dumps(forecast.to_json()))
    except OSError:
        return


def _path(key: str) -> Path:
    return cache_folder() / FOLDER / f"{key}.json"


def why_not(seen: Plan) -> str:
    """Return why there can be no forecast, in a sentence; "" where there can."""
    if os.environ.get(SWITCH) == "off":
        return f"not forecast ({SWITCH}=off)."
    if is_guess(seen.recognition):
        return "The memory of a model on the hub is known once the model was fetched."
    return ""


class Asked:
    """A question that a process of its own answers: what a run takes, or with `most` how it takes no more bytes."""

    def __init__(self, seen: Plan, most: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer.forecast"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_PROJECT), *_paths()])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        given = {name: value for name, value in to_flat(seen.config).items() if value is not None}
        self._told = json.dumps({"settings": given, "bytes": most})

    def answer(self) -> Any:
        """Wait for what the process answers.

        Raises:
            RunError: it has no answer; the message says why.
        """
        try:
            answer, complaint = self._process.communicate(self._told, timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise RunError(f"The forecast of memory took longer than {_SECONDS:.0f} s and was given up.") from None
        try:
            return json.loads(answer)
        except ValueError:
            last = (complaint.strip().splitlines() or ["it ended without a word"])[-1]
            raise RunError(f"The memory could not be forecast: {last}") from None


_PROJECT = Path(__file__).resolve().parents[2]


def _paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def forecast(seen: Plan) -> Forecast:
    """Return the forecast of a plan: the one that was made before, else one made now, which takes seconds.

    Raises:
        RunError: it could not be made.
    """
    key = key_of(seen)
    if found := known(key):
        return found
    made = Forecast.from_json(Asked(seen).answer())
    keep(key, made)
    return made


def fit(seen: Plan, most: int) -> Fit:
    """Return what to change of a plan's settings so that the run takes at most so many bytes; takes some seconds.

    Raises:
        RunError: there is no forecast.
    """
    return Fit.from_json(Asked(seen, most).answer())


def lines(seen: Plan) -> list[str]:
    """Return memory and time of a plan as a person reads it, or why the memory is not known."""
    if reason := why_not(seen):
        return [f"Memory: {reason}"]
    try:
        found = forecast(seen)
    except RunError as error:
        return [f"Memory: {error.message}"]
    pace = earlier(seen, found.name)
    return [*found.lines(), *([f"Time: {pace.words(seen.timetable.total_steps)}"] if pace else [])]
