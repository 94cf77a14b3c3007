"""Train a LoRA, or say what would be trained."""

from __future__ import annotations

from pathlib import Path

from trainer.forecast import asking
from trainer.ground.errors import RunError, TrainerError
from trainer.results import sinks
from trainer.results.snapshot import Board
from trainer.run import Start, check, is_first_rank, train
from trainer.settings.section import Show, argument
from trainer.tools.of_settings import FileArguments, OfSettings, read_settings
from trainer.tools.tool import COMPLETED, FAILED, REFUSED, STOPPED, Desk


class TrainArguments(FileArguments):
    """What is trained, and from where on."""

    check: bool = argument(False, Show("Check"))
    """Check settings, pictures, the output folder and what --resume names, print the plan, and end.

    The memory that the run would take is printed after it; the first time that takes some seconds.
    """

    no_forecast: bool = argument(False, Show("No forecast"))
    """Leave the memory out of --check."""

    resume: str = argument("", Show("Resume", unit="auto|PATH"))
    """Go on from the newest state, with auto, or from the one at PATH."""

    wait: bool = argument(False, Show("Wait"))
    """Where another training has the device, wait until it is free."""

    overwrite: bool = argument(False, Show("Overwrite"))
    """Begin anew over an earlier run of the same name."""


class Train(OfSettings[TrainArguments]):
    """`python -m trainer train RUN.toml`; also under `accelerate launch` and `torchrun`."""

    name = "train"
    help = "train a LoRA from a TOML file of settings"
    arguments = TrainArguments
    positional = {"file": "RUN.toml"}

    def run(self, arguments: TrainArguments, desk: Desk) -> int:
        config = read_settings(arguments, desk, Path(arguments.file))
        start = Start(overwrite=arguments.overwrite, resume=arguments.resume, wait=arguments.wait)
        if arguments.check:
            seen = check(config, start, desk.emit)
            desk.say("\n".join(map(sinks.one_line, seen.lines())))
            if not arguments.no_forecast:
                desk.say("\n".join(map(sinks.one_line, asking.lines(seen))))
            return COMPLETED
        board = Board()
        try:
            finished = train(config, emit=sinks.fan_out((board.post,), (desk.emit,)), inbox=desk.listen(), start=start)
        except TrainerError as error:
            desk.complain(error)
            # Ranks after the first tell nothing, so their board does not know that training had begun.
            began = board.snapshot.folder or (isinstance(error, RunError) and not is_first_rank())
            return FAILED if began else REFUSED
        return STOPPED if finished.stopped else COMPLETED
