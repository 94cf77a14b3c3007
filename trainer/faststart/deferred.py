"""Packages that are there when they are imported, and executed when something of them is first used.

What Python 3.15 calls lazy imports, for a few packages that libraries mention more often than a run needs them. A part
of a deferred package may be imported without the package's own code. Standard library only.
"""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_LOADING = threading.RLock()


class Deferred(ModuleType):
    """A package before its own code is executed; then it is a plain module, the same object."""

    begun = False

    def __getattr__(self, name: str) -> Any:
        """Execute the package, since something is asked of it that is not there."""
        if not name.startswith("__"):
            load(self)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    def settle(self) -> None:
        """Do what is left to do once the package is executed."""


def defer(name: str, kind: type[Deferred] = Deferred) -> None:
    """Defer a package, where it exists and is not loaded yet. The package that it is a part of is loaded."""
    spec = None if name in sys.modules else find_spec(name)
    if spec is None:
        return
    module = module_from_spec(spec)
    module.__class__ = kind
    sys.modules[name] = module
    parent, _, own = name.rpartition(".")
    if parent:
        setattr(import_module(parent), own, module)


def load(module: ModuleType) -> None:
    """Execute a deferred package."""
    with _LOADING:
        if not isinstance(module, Deferred) or module.begun:
            return
        spec = module.__spec__
        assert spec is not None and spec.loader is not None
        module.begun = True
        spec.loader.exec_module(module)
        module.settle()
        del module.begun
        module.__class__ = ModuleType  # type: ignore[assignment]
