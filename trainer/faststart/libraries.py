"""Loads PyTorch and the libraries on top of it, in half the time that a plain import takes.

Importing this module loads nothing. The window loads the stack in the background once its page is open, a run before
it does anything heavy.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.faststart import compiler, deferred

_SELDOM_USED = ("diffusers.models.autoencoders", "diffusers.models.transformers", "requests")
"""Packages that diffusers imports for the networks of a hundred models, of which a run needs three, and downloads."""

_LOADING = threading.Lock()
_LOADED = threading.Event()


def load() -> None:
    """Import everything that a run needs. The first call takes seconds; calls meanwhile wait for it."""
    with _LOADING:
        if _LOADED.is_set():
            return
        with garbage_left_alone():
            import_module("torch")
            compiler.defer()
            if find_spec("bitsandbytes"):
                with _nothing_compiled():
                    import_module("bitsandbytes")
            import_module("accelerate")
            with _one_process():
                _import_transformers()
                import_module("peft")
            for name in _SELDOM_USED:
                deferred.defer(name)
            from trainer.families.unet import bundle  # noqa: F401
            from trainer.training import build, loop  # noqa: F401
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


@contextmanager
def _one_process() -> Iterator[None]:
    """Let a library hold meanwhile that this torch was built without torch.distributed, as some are.

    transformers would import all that models sharded over many GPUs need, and a computer algebra system with it: half
    a second and 40 MB. It asks once and keeps the answer. Where several processes train together, nothing is changed.
    """
    distributed: Any = import_module("torch.distributed")
    is_available = distributed.is_available
    if "WORLD_SIZE" not in os.environ:
        distributed.is_available = lambda: False
    try:
        yield
    finally:
        distributed.is_available = is_available


def _import_transformers() -> None:
    """Import transformers, which reads the source of all its models to know their names, once and not twice.

    Its part `models` would read them again, a fifth of a second; what it would find is what the whole has just found.
    """
    transformers = import_module("transformers")
    listing: Any = import_module("transformers.utils.import_utils")
    folder = Path(transformers.__path__[0]) / "models"
    define = listing.define_import_structure

    def known(path: str, prefix: str | None = None) -> Any:
        if prefix is not None or Path(path) != folder / "__init__.py":
            return define(path, prefix)
        found = define(folder, prefix="models")  # What the whole asked, with its other parts, which it put in.
        return {
            needs: {module[len("models.") :]: names for module, names in part.items() if module.startswith("models.")}
            for needs, part in found.items()
        }

    listing.define_import_structure = known
    try:
        import_module("transformers.models")
    finally:
        listing.define_import_structure = define
    import_module("transformers.models.clip.modeling_clip")
