"""The names that programs give the layers of a LoRA, and what they call its matrices. Torch-free.

kohya: `lora_unet_..._to_q.lora_down.weight`, with an alpha. diffusers, as it writes PEFT's adapters:
`unet....to_q.lora_A.weight`, whose alpha is in the second matrix. LyCORIS outside of kohya's scripts:
`lycoris_..._to_q.lora_down.weight`. Read are also diffusers' earlier names, PEFT's own and those of the model's layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.families import FAMILIES, Family
from trainer.targets import DENOISER, Target, names_of
from trainer.tools.lora_files import DOWN, UP

KOHYA, DIFFUSERS, LYCORIS = "kohya", "diffusers", "lycoris"
LENGTHS = "dora_scale"

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
_LEVEL = "text_model."


@dataclass(frozen=True, slots=True)
class Named:
    """A key of a file: whose layer it is of, and kohya's word for the entry."""

    key: str
    target: Target
    entry: str


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
    names = {name: target for target in family.targets(family.configs, conv=True) for name in _names(family, target)}
    named = {key: found for key in keys if (found := _named(key, names))}
    strange = tuple(key for key in keys if key not in named)
    fitting = sum(_fits(found, keys[key]) for key, found in named.items())
    return Read(family, tuple(named.values()), strange, fitting)


def _named(key: str, names: Mapping[str, Target]) -> Named | None:
    """Return what a key means: the longest beginning of it that names a layer counts."""
    text = key.replace(".processor.", ".")
    for suffix, other in _OF_PROCESSORS.items():
        if text.endswith(suffix):
            text = text.removesuffix(suffix) + other
    for place in reversed([index for index, sign in enumerate(text) if sign == "."]):
        target = names.get(text[:place].replace(".", "_"))
        if target is not None:
            entry = text[place + 1 :]
            return Named(key, target, _ENTRIES.get(entry, entry))
    return None


def _fits(found: Named, shape: tuple[int, ...]) -> bool:
    """Say whether a matrix has a side of its layer."""
    if len(shape) < 2 or found.entry not in (UP, DOWN):
        return True
    return shape[0] == found.target.out_features if found.entry == UP else shape[1] == found.target.in_features


def _names(family: Family, target: Target) -> Iterator[str]:
    """Yield every name that a layer may have, with "_" for each dot."""
    bare = target.path.removeprefix(_LEVEL)
    denoiser = target.component in names_of(family.parts, DENOISER)
    paths = [bare] if denoiser else [_LEVEL + bare, bare]
    if bare.endswith(".to_out.0"):
        paths.append(bare.removesuffix(".0"))
    yield from (name for name in (target.name, target.alias) if name)
    for path in paths:
        flat = path.replace(".", "_")
        yield f"{target.component}_{flat}"
        yield f"base_model_model_{target.component}_{flat}"
        if denoiser or target.component == "text_encoder":
            yield f"base_model_model_{flat}"
            yield f"lycoris_{flat}"
    if denoiser:
        for place in family.places(target, family.configs):
            original = place.name.removesuffix(".weight").replace(".", "_")
            yield from (original, original.removeprefix("model_"))


def written(dialect: str, family: Family, target: Target, entry: str) -> str:
    """Return the key that a dialect has for an entry of a layer."""
    if dialect == KOHYA:
        return f"{target.name}.{entry}"
    denoiser = target.component in names_of(family.parts, DENOISER)
    path = target.path if denoiser else _LEVEL + target.path.removeprefix(_LEVEL)
    if dialect == DIFFUSERS:
        return f"{target.component}.{path}.{_WRITTEN[entry]}"
    return f"lycoris_{path.replace('.', '_')}.{entry}"


def spoken(keys: Mapping[str, object]) -> str:
    """Return the dialect of a file's keys."""
    first = next(iter(keys), "")
    if first.startswith("lycoris_"):
        return LYCORIS
    return KOHYA if first.startswith("lora_") else DIFFUSERS
