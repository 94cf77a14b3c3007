"""Write a LoRA with the keys of another program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from trainer.adapters import KINDS
from trainer.adapters.files import what_it_is
from trainer.families import FAMILIES
from trainer.planning import dialects
from trainer.planning.dialects import COMFYUI, DIFFUSERS, KOHYA, LENGTHS, LYCORIS, Named, Read
from trainer.settings.section import Show, argument
from trainer.targets import TEXT, names_of
from trainer.tools.asking import PRECISIONS, about, check_target, refusal
from trainer.tools.lora_files import DOWN, UP, some
from trainer.tools.models import table_of
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool

AUTO = "auto"
CONV, LINEAR = "conv", "linear"
_PLAIN = frozenset({UP, DOWN, LENGTHS, "alpha"})
_PRECISION = {"F16": "fp16", "BF16": "bf16"}


class ConvertArguments(Arguments):
    """Which LoRA, into whose keys."""

    model: str = argument(..., Show("LoRA", widget="file"))
    """A LoRA with kohya's, diffusers', PEFT's or LyCORIS' keys."""

    save_to: str = argument(..., Show("Save to", widget="file"))
    """The .safetensors file to write."""

    to: str = argument(KOHYA, Show("Keys of"), choices=(KOHYA, DIFFUSERS, LYCORIS, COMFYUI))
    """Whose keys it gets: kohya (most programs), diffusers (those of PEFT), lycoris (its wrapper) or comfyui (its own).

    ComfyUI reads kohya's too. Files of diffusers and of ComfyUI have no alpha: it becomes part of the second matrix.
    """

    family: str = argument(AUTO, Show("Family"), choices=(AUTO, *FAMILIES))
    """The kind of model that it is for; auto tells it by names and widths."""

    projections: str = argument("", Show("proj_in and proj_out"), choices=("", CONV, LINEAR))
    """How the projections around attentions are stored: as 1x1 convolutions, as linear layers, or as they are.

    A LoRA for Stable Diffusion 2 that was trained on a single file has convolutions there, one that was trained on a
    diffusers folder linear layers.
    """

    save_precision: str = argument(AUTO, Show("Precision of the file"), choices=(AUTO, *PRECISIONS))
    """Number format in the file: fp16, bf16 or float; auto is that of the file."""

    overwrite: bool = argument(False, Show("Overwrite"))
    """Replace the file to write where there is one."""


class Convert(Tool[ConvertArguments]):
    """What the LoRA does stays what it is; its metadata stay too, with true hashes."""

    name = "convert"
    title = "Convert"
    help = "write a LoRA with the keys of another program: kohya, diffusers and PEFT, LyCORIS, ComfyUI"
    arguments = ConvertArguments
    on_page = True

    def run(self, arguments: ConvertArguments, desk: Desk) -> int:
        path = Path(arguments.model)
        with about("model", arguments.model):
            table = table_of(path)
        shapes = {key: entry.shape for key, entry in table.entries.items()}
        families = FAMILIES if arguments.family == AUTO else {arguments.family: FAMILIES[arguments.family]}
        seen = dialects.read(shapes, families)
        _check(arguments, seen, shapes)
        target = check_target(desk, arguments.save_to, [arguments.model], arguments.overwrite)
        formats = [entry.dtype for entry in table.entries.values() if entry.shape]
        own = max(set(formats), key=formats.count, default="F32")
        precision = _PRECISION.get(own, "float") if arguments.save_precision == AUTO else arguments.save_precision
        said = f"{dialects.spoken(shapes)} keys became {arguments.to} keys"
        count, size = self.load().converted(path, table.metadata, seen, arguments, target, precision, desk.progress())
        desk.wrote(target)
        desk.say(f"{target}: {size / 1e6:.1f} MB, {count} layers for {seen.family.title}; {said}")
        return COMPLETED

    @staticmethod
    def load() -> ModuleType:
        """Import what needs torch."""
        from trainer.tools import converting

        return converting


def _check(arguments: ConvertArguments, seen: Read, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse what cannot be said in the other dialect, or is not understood."""
    name = Path(arguments.model).name
    if not seen.named:
        first = seen.strange[0] if seen.strange else "nothing"
        raise refusal("model", name, f"it is no LoRA for a kind of model that is known (it has {first})")
    if seen.strange:
        keys = f"{len(seen.strange)} of its keys mean no layer of {seen.family.title}: {some(seen.strange)}"
        raise refusal("model", name, keys)
    entries = layers(seen)
    plain = {key: own - {"alpha"} for key, own in entries.items()}
    if not all(any(kind.recognises(own) for kind in KINDS.values()) for own in plain.values()):
        raise refusal("model", name, f"it is {what_it_is(plain, KINDS.values())}")
    odd = next((sorted(own - _PLAIN) for own in entries.values() if not own <= _PLAIN), None)
    if arguments.to in (DIFFUSERS, COMFYUI) and odd:
        raise refusal("to", arguments.to, f"it has no layers with {odd[0]}; resize makes a plain LoRA of {name}")
    if arguments.to == COMFYUI and any(LENGTHS in own for own in entries.values()):
        raise refusal("to", COMFYUI, "it reads DoRA under kohya's keys; convert to these")
    halves = [key for key, own in entries.items() if len(own & {UP, DOWN}) == 1]
    if halves:
        raise refusal("model", name, f"it lacks one of the two matrices of {some(halves)}")
    _check_pieces(arguments, seen, name)
    if arguments.to == DIFFUSERS and (along := next((key for key in seen.named if _along_inputs(key, shapes)), None)):
        reason = f"its DoRA has lengths along the inputs ({along.key}), and PEFT's has them along the outputs"
        raise refusal("to", DIFFUSERS, reason)
    encoders = {each.target.component for each in seen.named} & set(names_of(seen.family.parts, TEXT))
    if arguments.to == LYCORIS and len(encoders) > 1:
        raise refusal("to", LYCORIS, "its names cannot tell two text encoders apart; kohya's and diffusers' can")


def _along_inputs(each: Named, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    shape = shapes[each.key]
    return each.entry == LENGTHS and len(shape) > 1 and shape[0] == 1 != each.target.out_features


def _check_pieces(arguments: ConvertArguments, seen: Read, name: str) -> None:
    """Refuse what cannot be made one layer of several, or several of one: all but the two matrices of a LoRA."""
    for each in seen.named:
        several = each.layer.pieces > 1 or (
            arguments.to not in (KOHYA, COMFYUI) and len(seen.family.paths(each.target)) > 1
        )
        if several and each.entry not in (UP, DOWN, "alpha"):
            layer = each.target.name
            reason = f"{layer} is one layer in kohya's keys and several in others, and {each.entry} is for one of them"
            raise refusal("model" if each.layer.pieces > 1 else "to", name, reason)


def layers(seen: Read) -> Mapping[str, set[str]]:
    """Return {kohya's name: its entries}."""
    found: dict[str, set[str]] = {}
    for each in seen.named:
        found.setdefault(each.target.name, set()).add(each.entry)
    return found
