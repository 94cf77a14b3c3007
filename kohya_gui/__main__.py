"""The page's door: `python -m kohya_gui`, with the arguments of `kohya_gui.shell.app`."""

from __future__ import annotations

import sys
from types import ModuleType

from trainer.faststart.libraries import garbage_left_alone


def load() -> ModuleType:
    """Import the page, and Gradio with it."""
    with garbage_left_alone():
        from kohya_gui.shell import app
    return app


if __name__ == "__main__":
    sys.exit(load().main())
