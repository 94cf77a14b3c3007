"""Loads PyTorch and the libraries on top of it, in little more than half the time that a plain import takes.

Importing this module loads nothing. The window loads the stack in the background once its page is open, a run before
it does anything heavy.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_LOADING = threading.Lock()
_LOADED = threading.Event()


def load() -> None:
    """Import everything that a run needs. The first call takes seconds; calls meanwhile wait for it."""
    with _LOADING:
        if _LOADED.is_set():
            return
        with garbage_left_alone():
            if find_spec("bitsandbytes"):
                with _nothing_compiled():
                    import_module("bitsandbytes")
            from trainer import build, loop  # noqa: F401
            from trainer.families.stable import bundle  # noqa: F401
        _LOADED.set()


@contextmanager
def garbage_left_alone() -> Iterator[None]:
    """Keep the garbage collector from looking through what is being imported, then and later.

    Thousands of modules make millions of objects, which stay to the end. The collector would go through all of them
    a dozen times on the way, a fifth of the time, and once more whenever a run frees a model.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Let torch.compile return functions as they are, while bitsandbytes is imported.

    It wraps some operators of its CPU backend, and that alone loads the whole compiler, a fifth of the time. Run as
    they are written, they also give the same numbers whether or not the computer has a C++ compiler.
    """
    torch: Any = import_module("torch")
    compile_ = torch.compile

    def as_it_is(function: Callable[..., Any] | None = None, **_options: Any) -> Any:
        return function if function else lambda given: given

    torch.compile = as_it_is
    try:
        yield
    finally:
        torch.compile = compile_
