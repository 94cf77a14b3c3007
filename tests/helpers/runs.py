"""Whole runs on a tiny checkpoint and a dozen pictures, in this process or in one that is killed at a chosen moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from trainer.config import TrainingConfig, load_config
from trainer.ground import events
from trainer.ground.commands import Command, Inbox
from trainer.ground.events import Event

FORMATS = (".png", ".jpg", ".webp", ".bmp")


def write_dataset(folder: Path) -> Path:
    """Write twelve pictures of several formats and two shapes under `2_tok class`, and four under a `reg` folder."""
    from tests.helpers.pictures import write_picture

    for index in range(12):
        size = (96, 64) if index % 3 == 0 else (64, 64)
        name = f"{index:02d}{FORMATS[index % len(FORMATS)]}"
        write_picture(folder / "train" / "2_tok class" / name, size, index, f"tok class, tag {index}, red, big")
    for index in range(4):
        write_picture(folder / "reg" / "1_class" / f"{index}.png", (64, 64), 20 + index, "class")
    return folder


VALIDATED: Mapping[str, object] = {"max_validation_share": 0.05}
"""Validation as it is by default. Most runs here are without: it would take more passes than their few steps."""


def tiny_settings(model: Path, dataset: Path, output: Path, **settings: object) -> dict[str, object]:
    """Return the settings of a run of a few seconds; `settings` replaces any of them."""
    return {
        "pretrained_model_name_or_path": str(model),
        "train_data_dir": str(dataset / "train"),
        "resolution": "64,64",
        "min_bucket_reso": 64,
        "max_bucket_reso": 128,
        "bucket_no_upscale": False,
        "bucket_reso_steps": 32,
        "network_dim": 4,
        "network_alpha": 2.0,
        "learning_rate": 1e-3,
        "text_encoder_lr": 5e-4,
        "max_train_steps": 6,
        "lr_warmup_steps": 0,
        "train_batch_size": 2,
        "mixed_precision": "no",
        "output_dir": str(output),
        "output_name": "tiny",
        "save_precision": "float",
        "seed": 7,
        "max_validation_share": 0.0,
        **settings,
    }


def tiny_config(model: Path, dataset: Path, output: Path, **settings: object) -> TrainingConfig:
    """Return `tiny_settings` as a configuration."""
    return load_config(overrides=tiny_settings(model, dataset, output, **settings))


def validated_config(model: Path, dataset: Path, output: Path, **settings: object) -> TrainingConfig:
    """Return `tiny_settings` as a configuration, with validation on."""
    return tiny_config(model, dataset, output, **{**VALIDATED, **settings})


def logged(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run folder's log, without a last line that is still being written."""
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def exit_code(process: BaseProcess) -> int:
    """Wait for a process to end, and return its exit code."""
    process.join(timeout=300)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError("the run did not end within 300 seconds")
    return int(process.exitcode or 0)


@dataclass(frozen=True)
class Kill:
    """When a run kills itself: at the `count`-th moment of a kind, counted from the process's start.

    "caching": a latent was cached; "step": `seconds` after a step ended, in the middle of the next; "state": the
    resume state's files are being written; "renaming": just before it is renamed into place; "lora": a LoRA file is
    being renamed; "sampling": a denoising step was made; "paused": it waits in a pause asked for after so many steps;
    "paused in PHASE": it waits in a pause asked for in the middle of that phase.
    `how` SIGTERM asks it to stop instead, as the command line understands it.
    """

    moment: str
    count: int = 1
    seconds: float = 0.0
    how: signal.Signals = signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM


def run_and_die(
    settings: Mapping[str, object], resume: str, kill: Kill | None, prepare: Callable[[], None] | None = None
) -> None:
    """Train in this process, which is meant to be a child of its own, and obey `kill`. `prepare` is called before."""
    if prepare:
        prepare()
    from trainer.__main__ import listen
    from trainer.run import Start, train

    # As in a process that a person starts; a child of a fork server would start one more for its loader's workers.
    multiprocessing.set_start_method("fork", force=True)
    inbox = Inbox()
    listen(inbox)
    executioner = _Executioner(kill, inbox)
    if kill and kill.moment in ("state", "renaming", "lora"):
        sys.addaudithook(executioner.audit)
    train(load_config(overrides=settings), emit=executioner.watch, inbox=inbox, start=Start(resume=resume))


def run_command(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
    """Do what `python -m trainer` does with the words, in this process, which is meant to be a child of its own."""
    from trainer.__main__ import main

    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)
    with open(log, "w", encoding="utf-8") as sys.stderr:
        code = main(words)
    sys.exit(code)


class _Executioner:
    """Counts moments and kills the process at the right one."""

    def __init__(self, kill: Kill | None, inbox: Inbox) -> None:
        self._kill = kill or Kill("never")
        self._inbox = inbox
        self._seen = 0

    def _moment(self, name: str) -> None:
        if name != self._kill.moment:
            return
        self._seen += 1
        if self._seen == self._kill.count:
            if self._kill.seconds:
                threading.Timer(self._kill.seconds, os.kill, (os.getpid(), self._kill.how)).start()
            else:
                os.kill(os.getpid(), self._kill.how)

    def watch(self, event: Event) -> None:
        if isinstance(event, events.Stage) and self._kill.moment == f"paused in {event.name}":
            self._seen += 1
            if self._seen == self._kill.count:
                self._inbox.send(Command.PAUSE)
        match event:
            case events.Stage(name="caching latents"):
                self._moment("caching")
            case events.Stage(name="drawing samples"):
                self._moment("sampling")
            case events.StepDone():
                self._moment("step")
                if self._kill.moment == "paused" and event.step >= self._kill.count:
                    self._inbox.send(Command.PAUSE)
            case events.Paused():
                os.kill(os.getpid(), self._kill.how)

    def audit(self, name: str, arguments: tuple[object, ...]) -> None:
        if name == "open" and str(arguments[0]).endswith("state.json") and "w" in str(arguments[1]):
            self._moment("state")
        if name == "os.rename":
            source, target = str(arguments[0]), str(arguments[1])
            if target.endswith(".safetensors"):
                self._moment("lora")
            if "step-" in Path(target).name and source.endswith(".new"):
                self._moment("renaming")


PRELOADED = (
    "trainer.training.build",
    "trainer.training.loop",
    "trainer.__main__",
    *(f"trainer.families.{name}.bundle" for name in ("sd15", "sd2", "sdxl", "flux")),
    "bitsandbytes.optim",
    "pytorch_optimizer",
    "torch.profiler",
    "kohya_gui.__main__",
    "kohya_gui.shell.app",
    "tests.helpers.runs",
)
"""What a run imports, also on its way, and the page."""


class RunServer:
    """Starts runs in children of a process that has imported all there is, so that thirty kills take minutes."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))

    def command(self, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> BaseProcess:
        """Start the command line with these words, seconds sooner than Python starts, and return the process."""
        process = self.context.Process(target=run_command, args=(list(words), log, dict(environment or {})))
        process.start()
        return process

    def run(
        self,
        settings: Mapping[str, object],
        resume: str = "",
        kill: Kill | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> int:
        """Run to the end or to the kill; return the exit code (-9 where it was killed)."""
        process = self.context.Process(target=run_and_die, args=(dict(settings), resume, kill, prepare))
        process.start()
        return exit_code(process)
