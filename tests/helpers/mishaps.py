"""Runs in a process of their own to which something really happens: no memory, no disk, no pictures, no permission."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from tests.helpers.runs import RunServer, exit_code
from trainer.config import load_config
from trainer.ground import events
from trainer.ground.errors import TrainerError
from trainer.ground.events import Event

FILE_LIMIT = 100_000
"""Bytes that a file may have where the disk is to be full: fewer than a state's, more than the log's."""

ROOM_FOR_STATE = 16 << 20
"""Bytes that are left where memory is to run out: a step fills them before it fails."""

_CAPABILITIES_VERSION = 0x20080522
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


@dataclass(frozen=True)
class Mishap:
    """What happens to a run after `step` (0: before it begins); the keys of `MISHAPS`."""

    kind: str
    step: int


def _no_memory(settings: Mapping[str, object]) -> None:
    """Leave what a state takes, and far less than a step does."""
    import resource

    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_FOR_STATE, resource.RLIM_INFINITY))


def _little_memory(settings: Mapping[str, object]) -> None:
    """Leave somewhat less than half of what the fullest moment took beyond what is in use between steps.

    A third of a batch of three has room then, and two thirds have not, both with much to spare.
    """
    import resource

    used = psutil.Process().memory_info()
    status = Path("/proc/self/status").read_text()
    most = int(status.split("VmHWM:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used.vms + (most - used.rss) * 9 // 20, resource.RLIM_INFINITY))


def _no_disk(settings: Mapping[str, object]) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, resource.RLIM_INFINITY))


def _full_mount(settings: Mapping[str, object]) -> None:
    filler = Path(str(settings["output_dir"])) / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            while True:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    break


def _no_pictures(settings: Mapping[str, object]) -> None:
    for picture in Path(str(settings["train_data_dir"])).rglob("*.*"):
        picture.rename(picture.with_name(f"{picture.name}.away"))


def _no_permission(settings: Mapping[str, object]) -> None:
    drop_powers()
    (Path(str(settings["output_dir"])) / "tiny.run" / "state").chmod(0o555)


def _no_cache(settings: Mapping[str, object]) -> None:
    shutil.rmtree(Path(str(settings["output_dir"])) / "latent_cache")


def _no_drive(settings: Mapping[str, object]) -> None:
    output = Path(str(settings["output_dir"]))
    output.rename(output.with_name(f"{output.name}.away"))


def _held(settings: Mapping[str, object]) -> None:
    """Be stopped by the system, as by Ctrl+Z, and let go by a child a moment later."""
    stopped = os.getpid()
    if os.fork() == 0:
        time.sleep(0.5)
        os.kill(stopped, signal.SIGCONT)
        os._exit(0)
    os.kill(stopped, signal.SIGSTOP)


MISHAPS: Mapping[str, Callable[[Mapping[str, object]], None]] = {
    "no memory": _no_memory,
    "little memory": _little_memory,
    "no disk": _no_disk,
    "full mount": _full_mount,
    "no pictures": _no_pictures,
    "no permission": _no_permission,
    "no cache": _no_cache,
    "no drive": _no_drive,
    "held for a moment": _held,
    "ordinary rights": lambda settings: drop_powers(),
    "nothing": lambda settings: None,
}


def give_memory_back() -> None:
    """Make the allocator return every large piece to the system at once, so that what a step takes can be measured.

    And keep it from reserving 64 MiB of addresses for each new thread, which a limit on addresses counts as memory.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 17)
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.malloc_trim(0)


def drop_powers() -> None:
    """Make root an ordinary owner of its files for the rest of this process: permissions hold for it too."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
        nothing = (ctypes.c_uint32 * 6)()
        ctypes.CDLL(None, use_errno=True).capset(header, nothing)


def run_and_suffer(settings: Mapping[str, object], mishap: Mishap, answer: Connection, resume: str) -> None:
    """Train in this process, which is meant to be a child of its own; an error goes to `answer`."""
    from trainer.run import Start, train

    give_memory_back()

    def watch(event: Event) -> None:
        if isinstance(event, events.Validated) and event.base:
            # While it encodes pictures a run has its own way with memory, and what that took is no step's.
            give_memory_back()
            if sys.platform == "linux":
                Path("/proc/self/clear_refs").write_text("5")  # the fullest moment is counted anew
        if isinstance(event, events.StepDone) and event.step == mishap.step:
            MISHAPS[mishap.kind](settings)

    if mishap.step == 0:
        MISHAPS[mishap.kind](settings)
    try:
        train(load_config(overrides=settings), emit=watch, start=Start(resume=resume))
    except TrainerError as error:
        answer.send({"kind": type(error).__name__, "message": error.message, "remedy": error.remedy})
        raise SystemExit(1) from None


class MishapServer(RunServer):
    """Starts such runs in children of a process that has imported torch already."""

    def suffer(self, settings: Mapping[str, object], mishap: Mishap, resume: str = "") -> dict[str, str]:
        """Run into a mishap; return the error's kind, message and remedy."""
        code, told = self._meet(settings, mishap, resume)
        assert code == 1, f"exit code {code}: no error, or one that is not the program's own"
        assert told
        return told

    def endure(self, settings: Mapping[str, object], mishap: Mishap, resume: str = "") -> None:
        """Run to the end in spite of a mishap."""
        code, told = self._meet(settings, mishap, resume)
        assert code == 0, told or f"exit code {code}"

    def _meet(self, settings: Mapping[str, object], mishap: Mishap, resume: str) -> tuple[int, dict[str, str] | None]:
        mine, its = self.context.Pipe(duplex=False)
        process = self.context.Process(target=run_and_suffer, args=(dict(settings), mishap, its, resume))
        process.start()
        return exit_code(process), mine.recv() if mine.poll() else None
