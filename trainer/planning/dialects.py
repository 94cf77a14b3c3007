"""The names that programs give the layers of a LoRA, and what they call its matrices. Torch-free.

kohya: `lora_unet_..._to_q.lora_down.weight`, with an alpha. diffusers, as it writes PEFT's adapters:
`unet....to_q.lora_A.weight`, whose alpha is in the second matrix. LyCORIS outside of kohya's scripts:
`lycoris_..._to_q.lora_down.weight`. ComfyUI, beside kohya's: `diffusion_model....qkv.lora_A.weight`, the layers as the
model's own layout has them. Read are also diffusers' earlier names, PEFT's own and those of the model's layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.families import FAMILIES, Family
from trainer.families.unet.places import LEVEL
from trainer.targets import DENOISER, Target, names_of

KOHYA, DIFFUSERS, LYCORIS, COMFYUI = "kohya", "diffusers", "lycoris", "comfyui"
OTHERS = (DIFFUSERS, COMFYUI)
"""Those whose keys a run's copies may have."""
DOWN, UP, LENGTHS = "lora_down.weight", "lora_up.weight", "dora_scale"

_PEFT = "base_model_model_"
_FIRST_ENCODER = "text_encoder"
_BEHIND = ("text_encoders_", "cond_stage_model_", "conditioner_")
"""What names of text encoders in a model's own layout begin with; behind it no two encoders have one name."""

_ENTRIES = {
    "lora_A.weight": DOWN, "lora_B.weight": UP, "lora_A.default.weight": DOWN, "lora_B.default.weight": UP,
    "lora.down.weight": DOWN, "lora.up.weight": UP,
    "lora_linear_layer.down.weight": DOWN, "lora_linear_layer.up.weight": UP,
    "lora_magnitude_vector": LENGTHS, "lora_magnitude_vector.weight": LENGTHS,
    "lora_magnitude_vector.default.weight": LENGTHS,
}  # fmt: skip
"""What others call a matrix -> kohya's entry."""

_OF_PROCESSORS = {"_lora.down.weight": ".lora.down.weight", "_lora.up.weight": ".lora.up.weight"}
_WRITTEN = {DOWN: "lora_A.weight", UP: "lora_B.weight", LENGTHS: "lora_magnitude_vector"}


@dataclass(frozen=True, slots=True)
class Layer:
    """What a name in a file stands for: a layer, or, where other programs have several for it, one of these."""

    target: Target
    piece: int = 0
    pieces: int = 1

    @property
    def widths(self) -> tuple[int, int]:
        """Inputs and outputs."""
        outer = self.target.parts[self.piece] if self.pieces > 1 else self.target.out_features
        return self.target.in_features, outer


@dataclass(frozen=True, slots=True)
class Named:
    """A key of a file: whose layer it is of, and kohya's word for the entry."""

    key: str
    layer: Layer
    entry: str

    @property
    def target(self) -> Target:
        """The layer as kohya's files have it."""
        return self.layer.target


@dataclass(frozen=True, slots=True)
class Read:
    """A file's keys as read: its family, those that mean nothing to it, and how many matrices have its widths."""

    family: Family
    named: tuple[Named, ...]
    strange: tuple[str, ...]
    fitting: int


def read(keys: Mapping[str, tuple[int, ...]], families: Mapping[str, Family] = FAMILIES) -> Read:
    """Return what a file's keys mean, for the family that knows most of them; among several, whose widths they have."""
    found = [_read(keys, family) for family in families.values()]
    return max(found, key=lambda each: (len(each.named), each.fitting))


def _read(keys: Mapping[str, tuple[int, ...]], family: Family) -> Read:
    names: dict[str, Layer] = {}
    for target in family.targets(family.configs, conv=True):
        for name, layer in _names(family, target):
            names.setdefault(name, layer)  # one that two layers could have is that of the first
    named = {key: found for key in keys if (found := _named(key, names))}
    strange = tuple(key for key in keys if key not in named)
    fitting = sum(_fits(found, keys[key]) for key, found in named.items())
    return Read(family, tuple(named.values()), strange, fitting)


def _named(key: str, names: Mapping[str, Layer]) -> Named | None:
    """Return what a key means: the longest beginning of it that names a layer counts."""
    text = key.replace(".processor.", ".")
    for suffix, other in _OF_PROCESSORS.items():
        if text.endswith(suffix):
            text = text.removesuffix(suffix) + other
    for place in reversed([index for index, sign in enumerate(text) if sign == "."]):
        layer = names.get(text[:place].replace(".", "_"))
        if layer is not None:
            entry = text[place + 1 :]
            return Named(key, layer, _ENTRIES.get(entry, entry))
    return None


def _fits(found: Named, shape: tuple[int, ...]) -> bool:
    """Say whether a matrix has a side of its layer."""
    if len(shape) < 2 or found.entry not in (UP, DOWN):
        return True
    inner, outer = found.layer.widths
    return shape[0] == outer if found.entry == UP else shape[1] == inner


def _names(family: Family, target: Target) -> Iterator[tuple[str, Layer]]:
    """Yield every name that a layer may have, with "_" for each dot."""
    whole, paths = Layer(target), family.paths(target)
    yield from ((name, whole) for name in (target.name, target.alias) if name)
    denoiser = target.component == names_of(family.parts, DENOISER)[0]
    for number, path in enumerate(paths):
        layer = Layer(target, number, len(paths))
        for spelled in dict.fromkeys((path, path.removeprefix(LEVEL), path.removesuffix(".0"))):
            flat = spelled.replace(".", "_")
            yield from ((f"{start}{target.component}_{flat}", layer) for start in ("", "lora_", _PEFT))
            if denoiser or target.component == _FIRST_ENCODER:
                yield from ((f"{start}{flat}", layer) for start in (_PEFT, "lycoris_"))
    if there := family.comfyui_name(target, family.configs):
        yield there.replace(".", "_"), whole
    for place in family.places(target, family.configs):
        original = place.names[0].removesuffix(".weight").replace(".", "_")
        if len(place.names) == place.parts == 1 and (denoiser or original.startswith(_BEHIND)):
            yield from ((name, whole) for name in (original, original.removeprefix("model_")))


def written(dialect: str, path: str, entry: str) -> str:
    """Return the key that diffusers', ComfyUI's or LyCORIS' files have for an entry of a layer of theirs."""
    if dialect == LYCORIS:
        return f"lycoris_{path.replace('.', '_')}.{entry}"
    return f"{path}.{_WRITTEN[entry]}"


def spoken(keys: Mapping[str, object]) -> str:
    """Return the dialect of a file's keys."""
    first = next(iter(keys), "")
    if first.startswith("lycoris_"):
        return LYCORIS
    if first.startswith(("diffusion_model.", "text_encoders.")):
        return COMFYUI
    return KOHYA if first.startswith("lora_") else DIFFUSERS
