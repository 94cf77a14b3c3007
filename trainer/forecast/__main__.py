"""The process that makes forecasts: what is asked as JSON from the input, the answer as JSON to the output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict

from trainer.advice import saving_memory
from trainer.config import TrainingConfig, load_config
from trainer.faststart import libraries
from trainer.forecast.forecast import Fit, Forecast
from trainer.ground.errors import ConfigError
from trainer.planning.plan import Plan, plan


def main() -> int:
    """Read settings, trace a step, and tell what it takes; with `bytes`, find settings that take less than that."""
    libraries.load()
    asked = json.load(sys.stdin)
    config = load_config(overrides=asked["settings"])
    if asked["bytes"]:
        sys.stdout.write(json.dumps(asdict(fit(config, asked["settings"], asked["bytes"]))))
    else:
        sys.stdout.write(json.dumps(_traced(plan(config)).to_json()))
    return 0


def fit(config: TrainingConfig, settings: Mapping[str, object], most: int) -> Fit:
    """Return the first settings down the list of savings whose forecast is below so many bytes, or the last of all."""

    def changed(values: saving_memory.Values) -> TrainingConfig | None:
        try:
            return load_config(overrides={**settings, **values})
        except ConfigError:
            return None

    found = Fit({}, _traced(plan(config)), most)
    for values, less in saving_memory.ladder(config, changed):
        if found.fits:
            break
        found = Fit(values, _traced(plan(less)), most)
    return found


def _traced(seen: Plan) -> Forecast:
    from trainer.forecast import tracing  # once the libraries are loaded, which take longer one by one

    return tracing.trace(seen)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if hasattr(os, "nice"):
        os.nice(10)  # a training under way goes first
    sys.exit(main())
