"""The page's door: `python -m kohya_gui`, with the arguments of `kohya_gui.shell.app`."""

from __future__ import annotations

import atexit
import os
import sys
from types import ModuleType

from trainer.faststart.libraries import garbage_left_alone


def load() -> ModuleType:
    """Import the page, and Gradio with it."""
    with garbage_left_alone():
        from kohya_gui.shell import app
    return app


def leave(code: int) -> None:
    """End the program with what is registered for its end, and not with what Python takes down after that.

    Threads that wait for events or look at pictures are in the middle of libraries then, some of which abort.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(load().main())
