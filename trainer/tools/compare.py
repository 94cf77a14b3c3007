"""Say in what two model files differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from trainer.adapters import read_header
from trainer.ground.safetensors_header import Table
from trainer.settings.section import Show, argument
from trainer.tools.asking import about, refusal
from trainer.tools.lora_files import counted, some
from trainer.tools.metadata import is_lora
from trainer.tools.models import table_of
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool
from trainer.tools.verify import by_block, chart


class CompareArguments(Arguments):
    """Which two files."""

    first: str = argument(..., Show("First file", widget="file"))
    """A LoRA or a checkpoint, a .safetensors file."""

    second: str = argument(..., Show("Second file", widget="file"))
    """Another one of the same kind."""


class Compare(Tool[CompareArguments]):
    """Prints what is in one file alone, what differs in rank, shape, format and metadata, and how far the numbers do.

    Of LoRAs it is compared what they add to each layer, whatever their ranks; of other files each tensor. A block's
    figure is the norm of the difference, over all of its layers.
    """

    name = "compare"
    title = "Compare"
    help = "say in what two LoRAs, or two checkpoints, differ"
    arguments = CompareArguments
    positional = {"first": "FIRST", "second": "SECOND"}
    on_page = True

    def run(self, arguments: CompareArguments, desk: Desk) -> int:
        paths = Path(arguments.first), Path(arguments.second)
        tables = []
        for key, path in zip(("first", "second"), paths, strict=True):
            with about(key, str(path)):
                tables.append(table_of(path))
        loras = [is_lora(path) for path in paths]
        if loras[0] != loras[1]:
            one = paths[1].name
            what = "it is a LoRA and the first file is none" if loras[1] else "it is no LoRA and the first file is one"
            raise refusal("second", one, what)
        comparing = self.load()
        if loras[0]:
            headers = [read_header(path) for path in paths]
            _tell_only(desk, "layer", paths, [set(header.modules) for header in headers])
            found = comparing.of_loras(headers, desk.progress())
        else:
            _tell_only(desk, "tensor", paths, [set(table.entries) for table in tables])
            _tell_forms(desk, tables)
            found = comparing.of_tensors(paths, tables, desk.progress())
        _tell_metadata(desk, tables)
        for line in found.lines():
            desk.say(line)
        for line in chart(by_block(found.norms)) if found.norms else ():
            desk.say(line)
        return COMPLETED

    @staticmethod
    def load() -> ModuleType:
        """Import what needs torch."""
        from trainer.tools import comparing

        return comparing


def _tell_only(desk: Desk, what: str, paths: tuple[Path, Path], names: list[set[str]]) -> None:
    for path, own, other in zip(paths, names, reversed(names), strict=True):
        if only := sorted(own - other):
            desk.say(f"Only in {path.name}: {counted(len(only), what)}: {some(only)}")


def _tell_forms(desk: Desk, tables: list[Table]) -> None:
    first, second = (table.entries for table in tables)
    common = [name for name in first if name in second]
    shapes = [name for name in common if first[name].shape != second[name].shape]
    formats = {(first[name].dtype, second[name].dtype) for name in common} - {(f, f) for f in _formats(first)}
    if shapes:
        desk.say(f"Of another shape: {counted(len(shapes), 'tensor')}: {some(shapes)}")
    for one, other in sorted(formats):
        desk.say(f"Number format: {one} in the first, {other} in the second")


def _formats(entries: Mapping[str, object]) -> set[str]:
    return {str(getattr(entry, "dtype", "")) for entry in entries.values()}


def _tell_metadata(desk: Desk, tables: list[Table]) -> None:
    first, second = (table.metadata for table in tables)
    keys = sorted(key for key in {*first, *second} if first.get(key) != second.get(key))
    for key in keys:
        desk.say(f"{key}: {_short(first.get(key))} | {_short(second.get(key))}")


def _short(value: str | None) -> str:
    if value is None:
        return "(none)"
    return value if len(value) <= 60 else f"{value[:57]}..."
