"""PyTorch's compiler, loaded when it is first used and not when a library mentions it.

transformers, diffusers and PyTorch's own optimizers import `torch._dynamo` for its marks ("do not compile this"), and
with it comes the whole compiler: a third of a second and 40 MB in every run, of which few compile anything. Here
`torch._dynamo` is at first a module with those marks alone. Whatever else is asked of it, a name or a part, loads the
real one into the same module, which then gets the marks that were made until then. Standard library only.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_loader
from types import FunctionType, ModuleType
from typing import Any

NAME = "torch._dynamo"
_ALONE = f"{NAME}._trace_wrapped_higher_order_op"
"""The part that transformers' masks import. It needs none of the others."""

_LOADING = threading.RLock()


class Deferred(ModuleType):
    """The module until it is loaded, with its marks."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(NAME)
        self.__spec__ = spec
        self.__path__ = list(spec.submodule_search_locations or ())
        self._noted: list[tuple[str, Any]] = []
        self._begun = False

    def __getattr__(self, name: str) -> Any:
        """Load the real module, since something is asked that is not there."""
        if not name.startswith("__"):
            load(self)
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}") from None

    def allow_in_graph(self, marked: Any) -> Any:
        """Note a mark that leaves what is marked as it is."""
        self._noted.append(("allow_in_graph", marked))
        return marked

    def assume_constant_result(self, marked: Any) -> Any:
        """Note a mark that leaves what is marked as it is."""
        self._noted.append(("assume_constant_result", marked))
        return marked

    def graph_break(self, *_given: object, **_named: object) -> None:
        """Do nothing: while nothing is compiled, no graph is under way."""

    def disable(self, function: Any = None, recursive: bool = True, **options: Any) -> Any:
        """Return a function that is never compiled; the real mark is put on it once there is a compiler."""
        if function is None:
            return functools.partial(self.disable, recursive=recursive, **options)
        if not isinstance(function, FunctionType):
            load(self)
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


class _Parts(MetaPathFinder):
    """Lets a part of the deferred module be imported only once the whole is loaded, as Python does."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Load the whole, and return the part that came with it."""
        module = sys.modules.get(NAME)
        if not name.startswith(f"{NAME}.") or name == _ALONE or not isinstance(module, Deferred):
            return None
        load(module)
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
    torch = sys.modules["torch"]
    spec = None if NAME in sys.modules else find_spec(NAME)
    if spec is not None:
        sys.modules[NAME] = torch._dynamo = Deferred(spec)  # type: ignore[attr-defined]
        sys.meta_path.insert(0, _Parts())


def load(module: Deferred) -> None:
    """Execute the real module in place of the deferred one, and repeat its marks."""
    with _LOADING:
        if not isinstance(module, Deferred) or module._begun:
            return
        spec, noted = module.__spec__, module._noted
        assert spec is not None and spec.loader is not None
        module._begun = True
        spec.loader.exec_module(module)
        del module._begun, module._noted
        module.__class__ = ModuleType  # type: ignore[assignment]
    for mark, marked in noted:
        getattr(module, mark)(marked)


def is_loaded() -> bool:
    """Whether the real compiler is there."""
    return type(sys.modules.get(NAME)) is ModuleType
