"""What the source says of itself, read from its syntax trees: modules, imports, functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
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
    """What one file of Python says: its functions and methods, its imports, `from package import module` as one of the
    module, the lines that call a plain name such as `print`, and the functions that catch everything and don't raise it
    again: `except:`, `except Exception`.
    """

    path: Path
    module: str
    lines: int
    functions: tuple[Function, ...]
    imports: tuple[Import, ...]
    calls: Mapping[str, tuple[int, ...]]
    blind_handlers: tuple[str, ...]


@cache
def source(path: Path) -> Source:
    """Read one file, once. Its syntax tree is let go: those of all files are millions of objects."""
    text, module = path.read_text(encoding="utf-8"), module_name(path)
    functions, imports, blind = list[Function](), list[Import](), list[str]()
    calls: dict[str, tuple[int, ...]] = {}
    for node, inside, types_only in walk(ast.parse(text, str(path))):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                assert node.end_lineno is not None
                name = ".".join([*inside, node.name])
                functions.append(Function(module, name, node.end_lineno - node.lineno + 1))
            case ast.Import() | ast.ImportFrom():
                place = ".".join(inside)
                imports += (Import(module, imported, place, types_only) for imported in imported_by(node))
            case ast.Call(func=ast.Name(id=name)):
                calls[name] = (*calls.get(name, ()), node.lineno)
            case ast.ExceptHandler() if is_blind(node):
                blind.append(".".join(inside))
    return Source(path, module, len(text.splitlines()), tuple(functions), tuple(imports), calls, tuple(blind))


def is_blind(node: ast.ExceptHandler) -> bool:
    """Whether a handler catches everything and does not raise it again."""
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    names = {each.id for each in caught if isinstance(each, ast.Name)}
    again = any(isinstance(each, ast.Raise) and each.exc is None for each in node.body)
    return not again and (node.type is None or bool(names & {"Exception", "BaseException"}))


def walk(tree: ast.Module) -> Iterator[tuple[ast.AST, tuple[str, ...], bool]]:
    """Every node below, the functions and classes around it, and whether it is under `if TYPE_CHECKING`."""
    pending: list[tuple[ast.AST, tuple[str, ...], bool]] = [(tree, (), False)]
    while pending:
        node, inside, types_only = pending.pop()
        if node is not tree:
            yield node, inside, types_only
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = (*inside, node.name)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            types_only = True
        pending += ((child, inside, types_only) for child in ast.iter_child_nodes(node))


def imported_by(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The full names of the modules that a node imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    else:
        assert node.level == 0 and node.module is not None, "imports name the whole path"
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if whole in all_modules() else node.module


def module_name(path: Path) -> str:
    """`trainer/data/__init__.py` is `trainer.pictures`."""
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


@cache
def paths(*folders: str) -> tuple[Path, ...]:
    """Every Python file of the folders, and the files named outright."""
    found = [path for folder in folders for path in sorted((PROJECT / folder).rglob("*.py"))]
    return tuple(found + [PROJECT / name for name in folders if name.endswith(".py")])


@cache
def all_modules() -> Mapping[str, None]:
    """The names of all first-party modules."""
    return dict.fromkeys(
        module_name(path) for path in paths("trainer", "kohya_gui", "demo", "benchmarks", "tests", "launch.py")
    )


def sources(*folders: str) -> tuple[Source, ...]:
    """The files of the folders, read."""
    return tuple(source(path) for path in paths(*folders))
