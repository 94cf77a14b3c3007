"""The kinds of adapter that can be trained. Torch-free: the matrices live in each kind's `layers`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trainer.adapters.lora.spec import LoraSpec, NetworkSettings
from trainer.targets import Target

KINDS: dict[str, type[LoraSpec]] = {"lora": LoraSpec}
"""`network_type` -> the kind's settings, which also build it."""


def make_spec(network: NetworkSettings, components: Collection[str]) -> LoraSpec:
    """Return the adapter that the `[network]` settings ask for on the components that are trained."""
    return KINDS[network.network_type].from_settings(network, components)


def keys(targets: Sequence[Target], spec: LoraSpec, save_precision: str) -> dict[str, object]:
    """Return `{"keys": {name: shape}, "bytes": n}` of the file that `spec` makes on `targets`.

    The keys are in kohya's creation order. `bytes` is the size of the file without its metadata texts.
    """
    shapes = spec.shapes(targets)
    return {
        "keys": {name: list(shape) for name, shape in shapes.items()},
        "bytes": spec.file_bytes(targets, save_precision),
    }


__all__ = ["KINDS", "LoraSpec", "NetworkSettings", "Target", "keys", "make_spec"]
