"""Look whether a LoRA file is sound: numbers, strength by block, layers that its model does not have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType

from trainer.adapters import KINDS, AdapterHeader, AdapterSpec, read_header
from trainer.adapters.files import ALPHA
from trainer.families import FAMILIES
from trainer.planning.inspection import family_of_lora
from trainer.settings.section import Show, argument
from trainer.tools.models import table_of
from trainer.tools.tool import COMPLETED, FAILED, Arguments, Desk, Tool

_BLOCK = re.compile(r"lora_([a-z0-9]+?)_(mid_block|.*?_\d+)(?:_|$)")
"""The part of a model and its block in the name of a layer: unet, down_blocks_1."""

_PLACE = re.compile(r"(?:model\.)?(.+?\.\d+)\.")
"""The block in the name of a tensor of a checkpoint: diffusion_model.input_blocks.4."""

BAR = "#"
"""What the bars of a chart are made of."""

LONGEST = 30
"""How long the longest is."""

_NAMED = 5


class VerifyArguments(Arguments):
    """The file."""

    file: str = argument(..., Show("LoRA", widget="file"))
    """The LoRA to look at."""


class Verify(Tool[VerifyArguments]):
    """Prints what it finds; the exit code is 1 where the file has a fault.

    Norms are Frobenius norms of what a layer adds to its weight, such as alpha / rank * up @ down, and for kinds that
    multiply weights of the multiplier without 1; a block's is the root of the sum of its layers' squares.
    """

    name = "verify"
    title = "Verify"
    on_page = True
    help = "look whether a LoRA is sound: NaN, norms by block, layers that its model does not have"
    arguments = VerifyArguments
    positional = {"file": "FILE"}

    def run(self, arguments: VerifyArguments, desk: Desk) -> int:
        if strange := keys_not_known(Path(arguments.file)):
            desk.say(f"Fault: keys that no program knows: {_listed(strange)}")
            return FAILED
        header = read_header(Path(arguments.file))
        family = family_of_lora(header)
        title = FAMILIES[family].title if family else "a model that is not known"
        ranks = sorted(set(header.ranks.values()))
        shown = f", ranks {ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else "".join(f", rank {rank}" for rank in ranks)
        desk.say(f"{header.path.name}: {header.title} for {title}, {len(header.modules)} layers{shown}")
        checked = self.load().look(header, desk.progress())
        faults = [f"numbers that are not finite: {_listed(checked.not_finite)}"] if checked.not_finite else []
        if strangers := layers_not_there(header, family):
            faults.append(f"layers that {title} does not have: {_listed(strangers)}")
        for line in chart(by_block(checked.norms)):
            desk.say(line)
        if checked.nothing:
            desk.say(f"Layers that do nothing, as one of their matrices is 0: {_listed(checked.nothing)}")
        for fault in faults:
            desk.say(f"Fault: {fault}")
        if not faults:
            desk.say("No fault found.")
        return FAILED if faults else COMPLETED

    @staticmethod
    def load() -> ModuleType:
        """Import what needs torch."""
        from trainer.tools import soundness

        return soundness


def keys_not_known(path: Path) -> list[str]:
    """Return the keys of a file that no kind of adapter has, where it has layers of one beside them.

    Raises:
        ModelError: it is no safetensors file, or damaged.
    """
    modules: dict[str, set[str]] = {}
    for key in table_of(path).entries:
        name, _, entry = key.partition(".")
        modules.setdefault(name, set()).add(entry)
    known = {name for name, entries in modules.items() if any(_knows(kind, entries) for kind in KINDS.values())}
    if not known:
        return []
    strange = {name: sorted(entries) for name, entries in modules.items() if name not in known}
    return [f"{name}.{entry}".rstrip(".") for name, entries in strange.items() for entry in entries]


def _knows(kind: type[AdapterSpec], entries: set[str]) -> bool:
    return kind.recognises(entries - {ALPHA})


def layers_not_there(header: AdapterHeader, family: str) -> list[str]:
    """Return the layers of the file that models of its family don't have, so that programs pass them over."""
    if not family:
        return []
    targets = FAMILIES[family].targets(FAMILIES[family].configs, conv=True)
    known = {name for target in targets for name in (target.name, target.alias)}
    return [name for name in header.modules if name not in known]


def by_block(norms: Mapping[str, float]) -> dict[str, float]:
    """Return the norm of each block: the root of the sum of the squares of its layers'."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        match, place = _BLOCK.match(name), _PLACE.match(name)
        block = f"{match[1]} {match[2]}" if match else place[1] if place else "other layers"
        squares[block] = squares.get(block, 0.0) + norm**2
    return {block: square**0.5 for block, square in squares.items()}


def chart(norms: Mapping[str, float]) -> Iterator[str]:
    """Yield a line for each block with a bar as long as its norm."""
    largest = max(norms.values(), default=0.0)
    width = max(map(len, norms), default=0)
    for block, norm in norms.items():
        bar = BAR * round(LONGEST * norm / largest) if largest else ""
        yield f"{block:<{width}}  {norm:10.4f}  {bar}".rstrip()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
