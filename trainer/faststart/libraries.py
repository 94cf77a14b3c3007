"""Loads PyTorch and the libraries on top of it, all at once and with the garbage collector off.

Importing this module loads nothing. The window loads the stack in the background once its page is open, a run before
it does anything heavy. Nothing of another library is changed: whatever is not there, or is called otherwise in another
version, is left to who needs it.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

NEEDED = (
    "torch",
    "bitsandbytes",
    "accelerate",
    "transformers.models.clip.modeling_clip",
    "peft",
    "trainer.families.unet.bundle",
    "trainer.training.build",
    "trainer.training.loop",
)
"""What a run imports, in the order in which it is quickest: bitsandbytes before others import it their way."""

NOTHING_COMPILED = "TORCHDYNAMO_DISABLE"
"""The environment variable by which PyTorch is told to leave functions as they are that `torch.compile` is given."""

_CPU_KERNELS = "bitsandbytes.backends.cpu.ops"
_KERNEL_MISSING = "Failed to load CPU gemm_4bit_forward from kernels-community"
"""What bitsandbytes warns of at each start on a CPU that has bfloat16, and the logger that it does so with."""

_LOADING = threading.Lock()
_LOADED = threading.Event()
_LEAVING = threading.Event()


def load() -> None:
    """Import everything that a run needs. The first call takes seconds; calls meanwhile wait for it.

    What cannot be imported is left out: who needs it says so, in its own words.

    Raises:
        SystemExit: the program ends, and so does the thread that asks.
    """
    with _LOADING:
        if _LOADED.is_set():
            return
        quieten()
        with garbage_left_alone():
            for name in NEEDED:
                if _LEAVING.is_set():
                    raise SystemExit
                with suppress(ImportError), _nothing_compiled(name):
                    import_module(name)
        _LOADED.set()


def leave() -> None:
    """Load nothing more, and wait for what is being loaded: Python that ends amid PyTorch's import aborts.

    Whoever asks from now on ends, lest it should import on its own.
    """
    _LEAVING.set()
    with _LOADING:
        pass


def quieten() -> None:
    """Let bitsandbytes keep to itself that a kernel for CPUs, which nobody here uses, is missing; nothing else."""
    logging.getLogger(_CPU_KERNELS).addFilter(_is_worth_saying)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_KERNEL_MISSING)


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
def _nothing_compiled(name: str) -> Iterator[None]:
    """Let bitsandbytes' operators be what they are written as, while it is imported.

    It has some operators of its CPU backend compiled, which loads the compiler's code generator, a tenth of the time.
    Run as they are written, they also give the same numbers whether or not the computer has a C++ compiler.
    """
    if name != "bitsandbytes" or NOTHING_COMPILED in os.environ:
        yield
        return
    os.environ[NOTHING_COMPILED] = "1"
    try:
        yield
    finally:
        os.environ.pop(NOTHING_COMPILED, None)
