"""Puts the examples of docs/adding.md into a copy of the project, as the page says."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

_EXAMPLE = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_PLACE = re.compile(r"# (?P<path>[\w/]+\.py)(?:, in (?P<name>\w+))?")
_COPIED = ("trainer", "kohya_gui", "presets", "docs")


@dataclass(frozen=True, slots=True)
class Example:
    """One example: where it goes, and its lines above and inside of `name`; a new file has no `name`."""

    path: str
    name: str
    above: str
    inside: str


def examples(page: str) -> list[Example]:
    """Return the examples of the page that say where they go."""
    found = []
    for match in _EXAMPLE.finditer(page):
        first, _, code = textwrap.dedent(match[2]).partition("\n")
        place = _PLACE.fullmatch(first)
        if place and place["name"]:
            above, inside = re.split(r"^\.\.\.\n", code, maxsplit=1, flags=re.MULTILINE)
            found.append(Example(place["path"], place["name"], above, inside))
        elif place:
            found.append(Example(place["path"], "", "", code))
    return found


def copy_project(project: Path, folder: Path) -> Path:
    """Copy what makes the program into `folder`, as git knows it or would, and return the folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *_COPIED]
    listed = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name and (project / name).is_file()]
    if not names:
        for name in _COPIED:
            shutil.copytree(project / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project / name, folder / name)
    shutil.copyfile(project / "pyproject.toml", folder / "pyproject.toml")  # a LoRA file says the program's version
    return folder


def follow(example: Example, project: Path) -> None:
    """Do what the example says."""
    path = project / example.path
    if not example.name:
        assert not path.exists(), f"{example.path} is there already: it is no new file"
        path.write_text(example.inside, encoding="utf-8")
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    tree = ast.parse("\n".join(lines))
    (node,) = [each for each in tree.body if example.name in _names(each)]
    last = _last_line(node)
    lines[last:last] = example.inside.rstrip().splitlines()
    imports = [line for line in example.above.splitlines() if line.startswith(("import ", "from "))]
    others = [line for line in example.above.splitlines() if line not in imports]
    lines[node.lineno - 1 : node.lineno - 1] = [*others, "", ""] if others else []
    after = max(each.end_lineno or 0 for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom))
    lines[after:after] = imports
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _names(node: ast.stmt) -> set[str]:
    """Return the names that a statement at the top of a module gives."""
    if isinstance(node, ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _last_line(node: ast.stmt) -> int:
    """Return the number of the last line of a class, or of the last entry of a list or table."""
    if isinstance(node, ast.ClassDef):
        return node.end_lineno or 0
    assert isinstance(node, ast.Assign | ast.AnnAssign)
    value = node.value.generators[0].iter if isinstance(node.value, ast.DictComp) else node.value
    assert isinstance(value, ast.Dict | ast.Tuple | ast.List)
    entries = value.values if isinstance(value, ast.Dict) else value.elts
    return entries[-1].end_lineno or 0
