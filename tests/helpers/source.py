"""What the source says of itself, read from its syntax trees: modules, imports, functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FIRST_PARTY = ("trainer", "kohya_gui", "demo", "benchmarks", "launch", "tests")


@dataclass(frozen=True, slots=True)
class Function:
    """One function, with the names of the functions and classes around it: `Run.start`."""

    module: str
    name: str
    lines: int


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, `inside` the function (dotted, empty at module level) that imports it."""

    module: str
    imported: str
    inside: str
    types_only: bool


@dataclass(frozen=True, slots=True)
class Source:
    """One file of Python."""

    path: Path
    module: str
    tree: ast.Module
    lines: int

    def functions(self) -> Iterator[Function]:
        """Every function and method."""
        for node, inside, _ in everything(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield Function(self.module, ".".join([*inside, node.name]), node.end_lineno - node.lineno + 1)

    def imports(self) -> Iterator[Import]:
        """Every import, `from package import module` as an import of the module."""
        modules = set(all_modules())
        for node, inside, types_only in everything(self.tree):
            for imported in imported_by(node, modules):
                yield Import(self.module, imported, ".".join(inside), types_only)

    def calls(self, name: str) -> Iterator[int]:
        """The lines that call a plain name, such as `print`."""
        for node, _, _ in everything(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
                yield node.lineno

    def blind_handlers(self) -> Iterator[str]:
        """The functions that catch everything and don't raise it again: `except:`, `except Exception`."""
        for node, inside, _ in everything(self.tree):
            if isinstance(node, ast.ExceptHandler):
                caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                names = {each.id for each in caught if isinstance(each, ast.Name)}
                again = any(isinstance(each, ast.Raise) and each.exc is None for each in node.body)
                if not again and (node.type is None or names & {"Exception", "BaseException"}):
                    yield ".".join(inside)


@cache
def everything(tree: ast.Module) -> tuple[tuple[ast.AST, tuple[str, ...], bool], ...]:
    """All of `walk`, remembered."""
    return tuple(walk(tree))


def walk(
    node: ast.AST, inside: tuple[str, ...] = (), types_only: bool = False
) -> Iterator[tuple[ast.AST, tuple[str, ...], bool]]:
    """Every node below, the functions and classes around it, and whether it is under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        yield child, inside, types_only
        within, typed = inside, types_only
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            within = (*inside, child.name)
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            typed = True
        yield from walk(child, within, typed)


def imported_by(node: ast.AST, modules: set[str]) -> Iterator[str]:
    """The full names of the modules that a node imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module is not None, "imports name the whole path"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if whole in modules else node.module


def module_name(path: Path) -> str:
    """`trainer/data/__init__.py` is `trainer.pictures`."""
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


@cache
def paths(*folders: str) -> tuple[Path, ...]:
    """Every Python file of the folders, and the files named outright."""
    found = [path for folder in folders for path in sorted((PROJECT / folder).rglob("*.py"))]
    return tuple(found + [PROJECT / name for name in folders if name.endswith(".py")])


@cache
def all_modules() -> tuple[str, ...]:
    """The names of all first-party modules."""
    return tuple(
        module_name(path) for path in paths("trainer", "kohya_gui", "demo", "benchmarks", "tests", "launch.py")
    )


@cache
def sources(*folders: str) -> tuple[Source, ...]:
    """The parsed files of the folders."""
    found = []
    for path in paths(*folders):
        text = path.read_text(encoding="utf-8")
        found.append(Source(path, module_name(path), ast.parse(text, str(path)), len(text.splitlines())))
    return tuple(found)
