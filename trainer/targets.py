"""What an adapter may attach to: parts of a model, and the layers in them. Families list them, adapters take them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DENOISER, TEXT = "denoiser", "text"
"""What a part of a model does: it finds the noise in latents, or it reads the caption."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a model that an adapter may attach to.

    `name` is its component's and that of its group in an optimizer, `role` is `DENOISER` or `TEXT`, `title` what
    people call it. The names of its layers in a LoRA file begin with `prefix`. `only_with` is the key of the setting
    that must be true for the part to be trained, where its rate alone does not decide that.
    """

    name: str
    role: str
    title: str
    prefix: str = ""
    only_with: str = ""


def names_of(parts: Iterable[Part], role: str) -> tuple[str, ...]:
    """Return the names of the parts with a role, in their order."""
    return tuple(part.name for part in parts if part.role == role)


@dataclass(frozen=True, slots=True)
class Target:
    """One layer of one component, with the name that kohya's files give it.

    `in_features` and `out_features` are channels for convolutions. `kernel` is how the FILE stores the layer: None for
    a linear layer, (1, 1) or (3, 3) for a convolution. `extra` marks layers adapted only when `conv_dim` is set.
    Linear layers of one component with the same `shares`, unless it is empty, are called one right after the other with
    one and the same tensor.
    `idle` marks layers that nothing is taken from (the last ones of a text encoder with clip skip): they have matrices
    in the file, as in sd-scripts' files, which never get a gradient and are not trained.
    `rim` marks layers before the first and after the last block, adapted only by the presets of LyCORIS that say so.
    `alias` is another name that some files give it; "" where there is none.
    `group` is the kind of layer that a rank of its own can be set for, such as "img_attn"; `block` says in which of
    the model's blocks it is, by their kind and number. `parts` are the widths of the several layers that it is one of
    (query, key and value) in the order of its rows.
    """

    component: str
    path: str
    name: str
    in_features: int
    out_features: int
    kernel: tuple[int, int] | None = None
    extra: bool = False
    shares: str = ""
    alias: str = ""
    idle: bool = False
    rim: bool = False
    group: str = ""
    block: tuple[str, int] | None = None
    parts: tuple[int, ...] = ()
