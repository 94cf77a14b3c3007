"""The headless door: `python -m trainer train RUN.toml`, `keys`, ... Also under `accelerate launch` and `torchrun`.

Exit codes: 0 completed; 1 failed while training; 2 refused before it; 3 stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TextIO

import toml

from trainer.adapters import keys, make_spec
from trainer.config import TrainingConfig, load_layers, parse_set, rates, to_kohya
from trainer.families import FAMILIES
from trainer.ground.commands import Command, Inbox
from trainer.ground.errors import ConfigError, RunError, TrainerError
from trainer.planning.inspection import inspect
from trainer.planning.plan import Plan, plan
from trainer.results import sinks
from trainer.results.snapshot import Board
from trainer.run import Start, is_first_rank, train

COMPLETED, FAILED, REFUSED, STOPPED = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # It warns at every import that a kernel nobody here uses is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    given = parser().parse_args(arguments)
    try:
        code: int = given.command(given)
    except TrainerError as error:
        complain(error)
        return REFUSED
    return code


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(prog="trainer", description="Train LoRAs for Stable Diffusion without the page.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace a setting; a TOML value, else a text"
    )
    settings.add_argument(
        "--ignore-unsupported", action="store_true", help="go on without settings of sd-scripts that are not known here"
    )

    training = commands.add_parser("train", parents=[settings], help="train a LoRA from a TOML file of settings")
    training.add_argument("file", type=Path, metavar="RUN.toml")
    training.add_argument("--check", action="store_true", help="check settings and pictures, print the plan, and end")
    training.add_argument(
        "--resume", default="", metavar="auto|PATH", help="go on from the newest state, or from the one at PATH"
    )
    training.add_argument(
        "--wait", action="store_true", help="where another training has the device, wait until it is free"
    )
    training.add_argument("--overwrite", action="store_true", help="begin anew over an earlier run of the same name")
    training.set_defaults(command=train_command)

    listing = commands.add_parser("keys", parents=[settings], help="print the keys and shapes of a LoRA file")
    listing.add_argument("--family", choices=tuple(FAMILIES), default=next(iter(FAMILIES)))
    listing.set_defaults(command=keys_command)

    inspection = commands.add_parser("inspect", help="print what a checkpoint or LoRA file is")
    inspection.add_argument("file", type=Path, metavar="FILE")
    inspection.set_defaults(command=inspect_command)

    export = commands.add_parser("export", parents=[settings], help="print settings as a TOML file of sd-scripts")
    export.add_argument("file", type=Path, metavar="RUN.toml")
    export.set_defaults(command=export_command)
    return top


def read_settings(given: argparse.Namespace, path: Path | None) -> TrainingConfig:
    """Return the settings of the file with those of `--set` over them; notices go to the error stream.

    Raises:
        ConfigError: with every problem.
    """
    overrides = dict(parse_set(text) for text in given.set)
    assembled = load_layers(path, overrides, ignore_unsupported=given.ignore_unsupported)
    for notice in assembled.notices:
        say(f"Note: {notice}", sys.stderr)
    if assembled.config is None:
        raise ConfigError(assembled.problems)
    return assembled.config


def train_command(given: argparse.Namespace) -> int:
    """Train, or with --check print what would be trained."""
    config = read_settings(given, given.file)
    if given.check:
        say(describe(plan(config)))
        return COMPLETED
    board, console, inbox = Board(), sinks.Console(sys.stderr), Inbox()
    listen(inbox)
    try:
        finished = train(
            config,
            emit=sinks.fan_out((board.post, console)),
            inbox=inbox,
            start=Start(overwrite=given.overwrite, resume=given.resume, wait=given.wait),
        )
    except TrainerError as error:
        console.close()
        complain(error)
        # Ranks after the first tell nothing, so their board does not know that training had begun.
        began = board.snapshot.folder or (isinstance(error, RunError) and not is_first_rank())
        return FAILED if began else REFUSED
    finally:
        console.close()
    return STOPPED if finished.stopped else COMPLETED


def keys_command(given: argparse.Namespace) -> int:
    """Print `{"keys": {name: shape}, "bytes": n}`."""
    config = read_settings(given, None)
    family = FAMILIES[given.family]
    targets = family.targets(family.configs, conv=config.network.conv_dim is not None)
    spec = make_spec(config.network, rates(config, family.trainable))
    say(json.dumps(keys(targets, spec, config.saving.save_precision)))
    return COMPLETED


def inspect_command(given: argparse.Namespace) -> int:
    """Print what a file is and what it says of itself, as JSON."""
    say(json.dumps(inspect(given.file), indent=1, ensure_ascii=False))
    return COMPLETED


def export_command(given: argparse.Namespace) -> int:
    """Print the settings as sd-scripts reads them."""
    say(toml.dumps(to_kohya(read_settings(given, given.file))))
    return COMPLETED


def listen(inbox: Inbox) -> None:
    """Make Ctrl-C and SIGTERM stop the run: it saves and finishes. A second Ctrl-C ends it without the final file."""
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        inbox.send(Command.ABORT if asked else Command.STOP)
        asked.append(number)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)


def describe(seen: Plan) -> str:
    """Return what a person reads of a plan."""
    return "\n".join(seen.lines())


def complain(error: TrainerError) -> None:
    """Write an error, one line a problem, to the error stream."""
    for line in str(error).splitlines():
        say(line, sys.stderr)


def say(text: str, stream: TextIO | None = None) -> None:
    """Write one line, to the output where no stream is named."""
    stream = stream or sys.stdout
    stream.write(f"{sinks.writable(text, stream)}\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
