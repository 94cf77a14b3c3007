"""The habits of the house. A list here that must grow is a decision: change it on purpose, in the same commit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.helpers.source import FIRST_PARTY, PROJECT, Import, all_modules, sources

PACKAGES = ("trainer", "kohya_gui")
SOURCES = (*PACKAGES, "demo", "benchmarks", "launch.py")

# Imports go down only, from folder to folder. A module at the root of a package has a row like a folder.
ROWS = {
    "trainer.ground": 0,
    "trainer.faststart": 0,
    "trainer.targets": 1,
    "trainer.memory": 1,
    "trainer.gate": 1,
    "trainer.settings": 1,
    "trainer.optimizers": 2,
    "trainer.schedules": 2,
    "trainer.process": 2,
    "trainer.adapters": 2,
    "trainer.families": 2,
    "trainer.config": 3,
    "trainer.pictures": 4,
    "trainer.preview": 4,
    "trainer.advice": 4,
    "trainer.validation": 5,
    "trainer.planning": 5,
    "trainer.results": 6,
    "trainer.training": 7,
    "trainer.forecast": 8,
    "trainer.workbench": 8,
    "trainer.run": 8,
    "trainer.queue": 9,
    "trainer.trial": 9,
    "trainer.tools": 10,
    "trainer.__main__": 11,
    "trainer": 11,
    "kohya_gui": 12,
    "launch": 13,
}
# Folders of the engine in which nothing imports torch but inside `build` and `load`.
WITHOUT_TORCH = (
    "trainer.ground",
    "trainer.targets",
    "trainer.gate",
    "trainer.settings",
    "trainer.optimizers",
    "trainer.schedules",
    "trainer.config",
    "trainer.advice",
    "trainer.planning",
    "trainer.workbench",
    "trainer.faststart",
)
TORCH_STACK = frozenset(
    {"torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "pytorch_optimizer"}
)

# The three that know nothing of one another; they meet in training.build.
STRANGERS = ("trainer.pictures", "trainer.families", "trainer.adapters")

# Modules at the root of the engine: each explains itself by its name alone.
ROOT_MODULES = 8

# Where first-party imports may stand inside functions: functions of these names, and these modules.
LAZY_NAMES = frozenset({"build", "load", "layer_kind"})
LAZY_MODULES = frozenset({"trainer.run"})
LAZY_FUNCTIONS = frozenset({"launch.main", "trainer.forecast.__main__._traced"})

# A run's edge, where every error becomes text.
BLIND_HANDLERS = frozenset(
    {
        "trainer.run.Run._work",
        # What only watches costs a notice, and never the run.
        "trainer.results.sinks.fan_out.emit",
        "trainer.training.watching.only_watching",
    }
)
# Longer than FUNCTION_LINES and MODULE_LINES say, and how long: empty is best.
LONG_FUNCTIONS: Mapping[str, int] = {}
LONG_MODULES: Mapping[str, int] = {}
FUNCTION_LINES, FUNCTION_LINES_AT_MOST, MODULE_LINES = 60, 80, 500

# Imported under a name that its distribution does not have, or on the way of another dependency on purpose.
ON_THE_WAY: Mapping[str, str] = {"huggingface_hub": "diffusers", "tokenizers": "transformers", "starlette": "gradio"}


def row(module: str) -> int | None:
    """The row of a module: that of the longest name in ROWS that it begins with."""
    fitting = [name for name in ROWS if module == name or module.startswith(f"{name}.")]
    return ROWS[max(fitting, key=len)] if fitting else None


def within(module: str, names: Iterable[str]) -> bool:
    """Whether a module is one of those named or inside one."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def is_door(each: Import) -> bool:
    """Whether an import stands in one of the functions that may import first-party modules."""
    if not each.inside:
        return False
    names = each.inside.split(".")
    return (
        not LAZY_NAMES.isdisjoint(names)
        or each.module in LAZY_MODULES
        or f"{each.module}.{each.inside}" in LAZY_FUNCTIONS
    )


def first_party_imports() -> list[Import]:
    """What modules of the packages import of one another while running, not for type checking alone."""
    imports = [each for source in sources(*PACKAGES, "launch.py") for each in source.imports]
    return [each for each in imports if within(each.imported, FIRST_PARTY) and not each.types_only]


# --- who imports whom ------------------------------------------------------------------------------------------------


def test_every_folder_of_the_engine_has_its_row() -> None:
    folders = {".".join(source.module.split(".")[:2]) for source in sources("trainer")}
    assert folders - ROWS.keys() == set(), "give it a row in ROWS"
    assert {name for name in ROWS if name.startswith("trainer")} - folders == set(), "it is gone"


def test_the_root_of_the_engine_is_no_heap() -> None:
    there = [path.name for path in (PROJECT / "trainer").glob("*.py")]
    assert len(there) <= ROOT_MODULES, sorted(there)


def test_imports_go_down_only() -> None:
    up = [
        f"{each.module} (row {row(each.module)}) imports {each.imported} (row {row(each.imported)})"
        for each in first_party_imports()
        if not is_door(each) and (row(each.imported) is None or (row(each.module) or 0) < (row(each.imported) or 0))
    ]
    assert up == []


def test_there_are_no_circles() -> None:
    below: dict[str, set[str]] = {module: set() for module in all_modules()}
    for each in first_party_imports():
        if not is_door(each) and each.imported != each.module:
            below[each.module].add(each.imported)
    while leaves := {module for module, imported in below.items() if not imported & below.keys()}:
        below = {module: imported for module, imported in below.items() if module not in leaves}
    assert below == {}


def test_pictures_families_and_adapters_do_not_know_one_another() -> None:
    known = [
        f"{each.module} imports {each.imported}"
        for source in sources("trainer")
        for each in source.imports
        for stranger in STRANGERS
        if within(each.imported, [stranger]) and within(each.module, STRANGERS) and not within(each.module, [stranger])
    ]
    assert known == []


def test_nobody_knows_a_kind_of_adapter_but_the_adapters() -> None:
    """Plan, training, export, metadata and inspection see the contract alone."""
    kinds = {source.module.rpartition(".")[0] for source in sources("trainer") if is_of_a_kind(source.module)}
    assert len(kinds) > 1, "the folders of the kinds are elsewhere now"
    known = [
        f"{each.module} imports {each.imported}"
        for source in sources(*PACKAGES)
        for each in source.imports
        if within(each.imported, kinds) and not within(each.module, ["trainer.adapters"])
    ]
    assert known == []


def is_of_a_kind(module: str) -> bool:
    """Whether a module lies in the folder of one kind of adapter."""
    return module.startswith("trainer.adapters.") and module.count(".") > 2


def test_process_imports_nothing_of_ours_but_randomness() -> None:
    allowed = ["trainer.process", "trainer.ground.randomness"]
    imports = [each for source in sources("trainer") for each in source.imports]
    assert [
        each
        for each in imports
        if within(each.module, allowed[:1])
        and within(each.imported, FIRST_PARTY)
        and not within(each.imported, allowed)
    ] == []


def test_engine_knows_no_window() -> None:
    imports = [each for source in sources("trainer") for each in source.imports]
    assert [each for each in imports if within(each.imported, ["gradio", "kohya_gui"])] == []


def test_first_party_imports_stand_at_the_top_but_for_the_doors() -> None:
    assert [each for each in first_party_imports() if each.inside and not is_door(each)] == []


def test_folders_without_torch_import_it_only_in_build_and_load() -> None:
    imports = [each for source in sources("trainer") for each in source.imports if not each.types_only]
    assert [
        each
        for each in imports
        if within(each.imported, TORCH_STACK)
        and within(each.module, WITHOUT_TORCH)
        and LAZY_NAMES.isdisjoint(each.inside.split("."))
    ] == []


def light_modules() -> list[str]:
    """The modules that, with all that they import at their top, name nothing of the torch stack."""
    above: dict[str, set[str]] = {}
    heavy: set[str] = set()
    for source in sources("trainer"):
        for each in source.imports:
            if not each.inside and not each.types_only:
                heavy |= {each.module} if within(each.imported, TORCH_STACK) else set()
                above.setdefault(each.imported, set()).add(each.module)
    pending = [*heavy]
    while pending:
        found = above.get(pending.pop(), set()) - heavy
        heavy |= found
        pending += found
    return [module for module in all_modules() if within(module, ["trainer"]) and module not in heavy]


LIGHT = light_modules()
DOORS = ["trainer.run", "trainer.__main__", "kohya_gui.shell.app"]


def test_what_opens_at_once_has_no_torch_above_it() -> None:
    opening = [module for module in all_modules() if within(module, WITHOUT_TORCH) or module in DOORS[:2]]
    assert set(opening) - set(LIGHT) == set()


@pytest.mark.parametrize("module", [*LIGHT, *DOORS])
def test_torch_stays_out_until_training(module: str, torch_by_module: Mapping[str, str]) -> None:
    assert torch_by_module[module] == ""


@pytest.fixture(scope="module")
def torch_by_module() -> dict[str, str]:
    """What of the torch stack is loaded after each import, in one fresh Python: module to names."""
    program = (
        "import importlib, sys\n"
        "for module in sys.argv[2:]:\n"
        "    importlib.import_module(module)\n"
        "    loaded = sorted(set(sys.argv[1].split(',')) & set(sys.modules))\n"
        "    print('loaded', module, *loaded)\n"
        "    if loaded: break\n"
    )
    modules = [*LIGHT, *DOORS]
    command = [sys.executable, "-c", program, ",".join(sorted(TORCH_STACK)), *modules]
    answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    words = [line.split()[1:] for line in answer.stdout.splitlines() if line.startswith("loaded ")]
    unknown = dict.fromkeys(modules[len(words) :], "not imported, since a module before it loaded torch")
    return {module: " ".join(loaded) for module, *loaded in words} | unknown


# --- sizes and habits ------------------------------------------------------------------------------------------------


def test_functions_are_short() -> None:
    longest = {
        f"{each.module}.{each.name}": each.lines
        for source in sources(*SOURCES, "tests")
        for each in source.functions
        if each.lines > FUNCTION_LINES
    }
    assert longest == dict(LONG_FUNCTIONS)
    assert all(lines <= FUNCTION_LINES_AT_MOST for lines in LONG_FUNCTIONS.values())


def test_modules_are_short() -> None:
    longest = {source.module: source.lines for source in sources(*SOURCES) if source.lines > MODULE_LINES}
    assert longest == dict(LONG_MODULES)


def test_packages_do_not_print() -> None:
    assert [f"{source.path}:{line}" for source in sources(*PACKAGES) for line in source.calls.get("print", ())] == []


def test_nobody_swallows_every_error_but_the_edge_of_a_run() -> None:
    blind = {f"{source.module}.{name}" for source in sources(*PACKAGES, "demo") for name in source.blind_handlers}
    assert blind == BLIND_HANDLERS


def test_every_import_is_a_declared_dependency() -> None:
    table = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = [text for extra, texts in table["optional-dependencies"].items() if extra != "test" for text in texts]
    declared = {re.split(r"[^\w.-]", text)[0].lower().replace("_", "-") for text in (*table["dependencies"], *extras)}
    provided = packages_distributions()
    imports = [each for source in sources("trainer", "kohya_gui", "demo") for each in source.imports]
    names = {each.imported.split(".")[0] for each in imports} - set(FIRST_PARTY) - sys.stdlib_module_names
    owners = {
        name: {ON_THE_WAY.get(name, owner).lower().replace("_", "-") for owner in provided.get(name, [])}
        for name in names
    }
    assert {name for name, by in owners.items() if not by & declared} == set()


def test_repository_names_no_place_of_one_machine() -> None:
    # Written so that this file does not name them.
    folders = r"(?<![\w/])/(work|root|opt/wheels)/|\.\./shared\b|\.py" + r"env\b"
    hosts = r"\b(pypi|pythonhosted|npmjs)\.org\b"
    place = re.compile(f"{folders}|{hosts}")
    found = [
        f"{path.relative_to(PROJECT)}:{number}: {line.strip()[:200]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if place.search(line)
    ]
    assert found == []


def text_files() -> list[Path]:
    """The texts in the repository, or in the folder where git does not answer."""
    suffixes = {".py", ".toml", ".txt", ".md", ".css", ".json", ".yml", ""}
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        paths = [PROJECT / name for name in answer.stdout.split("\0") if name]
    else:
        paths = [path for path in PROJECT.rglob("*") if not {".venv", ".launch"} & set(path.parts)]
    return [path for path in paths if path.suffix in suffixes and path.is_file()]


def test_readme_shows_the_folder_as_it_is() -> None:
    tree = re.search(r"```\n(launch\.py.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    shown = {
        word.rstrip("/") for line in tree[1].splitlines() if line[:1].strip() for word in line.split("  ")[0].split()
    }
    hidden = {".gitignore", ".ci", "README.md"}
    there = {path.relative_to(PROJECT).parts[0] for path in text_files()} - hidden
    assert shown == there


# --- the tools' own word ---------------------------------------------------------------------------------------------


def test_ruff_is_content() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format=concise", "."],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout


@pytest.mark.slow
def test_mypy_is_content() -> None:
    there = [name for name in SOURCES if name.endswith(".py") or any((PROJECT / name).rglob("*.py"))]
    # On PYTHONPATH our own folder would count as a place of installed packages, whose types are not trusted.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "mypy", *there]
    answer = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_constraints_hold_every_declared_dependency() -> None:
    table = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [*table["dependencies"], *table["optional-dependencies"]["test"]]
    pins = {
        line.split("==")[0].lower().replace("_", "-") for line in (PROJECT / "constraints.txt").read_text().splitlines()
    }
    names = {re.split(r"[^\w.-]", text)[0].lower().replace("_", "-") for text in wanted}
    assert names - pins == set()
