"""PyTorch's compiler, loaded when it is first used and not when a library mentions it.

transformers, diffusers and PyTorch's own optimizers import `torch._dynamo` for its marks ("do not compile this"), and
with it comes the whole compiler: a third of a second and 40 MB in every run, of which few compile anything. Here
`torch._dynamo` is at first a module with those marks alone. Whatever else is asked of it, a name or a part, loads the
real one into the same module, which then gets the marks that were made until then. Standard library only.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import FunctionType, ModuleType
from typing import Any

from trainer.faststart import deferred

NAME = "torch._dynamo"
_ALONE = f"{NAME}._trace_wrapped_higher_order_op"
"""The part that transformers' masks import. It needs none of the others."""

_NOTED: list[tuple[str, Any]] = []
"""Names of marks, and what they were put on."""


class _Compiler(deferred.Deferred):
    """The compiler until it is loaded, with its marks."""

    def allow_in_graph(self, marked: Any) -> Any:
        """Note a mark that leaves what is marked as it is."""
        _NOTED.append(("allow_in_graph", marked))
        return marked

    def assume_constant_result(self, marked: Any) -> Any:
        """Note a mark that leaves what is marked as it is."""
        _NOTED.append(("assume_constant_result", marked))
        return marked

    def graph_break(self, *_given: object, **_named: object) -> None:
        """Do nothing: while nothing is compiled, no graph is under way."""

    def disable(self, function: Any = None, recursive: bool = True, **options: Any) -> Any:
        """Return a function that is never compiled; the real mark is put on it once there is a compiler."""
        if function is None:
            return functools.partial(self.disable, recursive=recursive, **options)
        if not isinstance(function, FunctionType):
            deferred.load(self)
            return self.__dict__["disable"](function, recursive, **options)
        marked: list[Callable[..., Any]] = []

        @functools.wraps(function)
        def disabled(*given: Any, **named: Any) -> Any:
            if not is_loaded():
                return function(*given, **named)
            if not marked:
                marked.append(self.__dict__["disable"](function, recursive, **options))
            return marked[0](*given, **named)

        return disabled

    def settle(self) -> None:
        """Repeat the marks."""
        for mark, marked in _NOTED:
            self.__dict__[mark](marked)
        _NOTED.clear()


class _Parts(MetaPathFinder):
    """Lets a part of the compiler be imported only with the whole: the parts need one another in its order."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Load the whole, and return the part that came with it."""
        if not name.startswith(f"{NAME}.") or name == _ALONE or is_loaded():
            return None
        deferred.load(sys.modules[NAME])
        part = sys.modules.get(name)
        if part is None:
            return None
        spec = spec_from_loader(name, _There(part))
        # Of a part that has come meanwhile Python would take its own way of loading, and so execute it again.
        with suppress(AttributeError):
            part.__spec__ = spec
        return spec


class _There(Loader):
    """Gives a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, getattr(module, "__spec__", None)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it was."""
        if self._spec is not None:
            module.__spec__ = self._spec


def defer() -> None:
    """Defer PyTorch's compiler, where it is not loaded yet; torch must be."""
    if NAME not in sys.modules:
        deferred.defer(NAME, _Compiler)
        sys.meta_path.insert(0, _Parts())


def is_loaded() -> bool:
    """Whether the real compiler is there."""
    return type(sys.modules.get(NAME)) is ModuleType
