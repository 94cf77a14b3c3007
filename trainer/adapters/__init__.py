"""The kinds of adapter that can be trained, behind the contract of `adapter`. Torch-free until one is built."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.adapters.adapter import AdapterSpec, NetworkSettings, module_names
from trainer.adapters.coverage import read_coverage
from trainer.adapters.files import AdapterHeader, read_header_as
from trainer.adapters.ia3.spec import Ia3Spec
from trainer.adapters.locon.spec import LoconSpec
from trainer.adapters.loha.spec import LohaSpec
from trainer.adapters.lokr.spec import LokrSpec
from trainer.adapters.lora.spec import LoraSpec
from trainer.adapters.oft.spec import OftSpec
from trainer.adapters.trained import Adapter
from trainer.targets import Target

KINDS: dict[str, type[AdapterSpec]] = {
    kind.name: kind for kind in (LoraSpec, LoconSpec, LohaSpec, LokrSpec, Ia3Spec, OftSpec)
}
"""`network_type` -> the kind's settings, which also build it."""


def make_spec(network: NetworkSettings, parts: Collection[str], *more: object) -> AdapterSpec:
    """Return the adapter that the `[network]` settings ask for on the parts that are trained.

    `more` are other sections that have options of kinds. Raises ModelError if `network_weights` can't be read, and
    ConfigError if `lycoris_preset_file` can't.
    """
    spec = KINDS[network.network_type].from_settings(parts, network, *more)
    if spec.lycoris_preset_file:
        spec = replace(spec, coverage=read_coverage(Path(spec.lycoris_preset_file)))
    if network.network_weights and network.dim_from_weights:
        return spec.with_modules_of(read_header(Path(network.network_weights)))
    return spec


def read_header(path: Path) -> AdapterHeader:
    """Return what an adapter's file is and has. Raises ModelError that says what the file is otherwise."""
    return read_header_as(path, KINDS.values())


def width_of(header: AdapterHeader, name: str) -> tuple[int, int]:
    """Return the inputs (with the kernel's places) and the outputs of a file's module; 0 where it doesn't say."""
    return KINDS[header.kind].width_of(header.modules[name].entries)


def keys(targets: Sequence[Target], spec: AdapterSpec, save_precision: str) -> dict[str, object]:
    """Return `{"keys": {name: shape}, "bytes": n}` of the file that `spec` makes on `targets`.

    The keys are in kohya's creation order. `bytes` is the size of the file without its metadata texts.
    """
    shapes = spec.shapes(targets)
    return {
        "keys": {name: list(shape) for name, shape in shapes.items()},
        "bytes": spec.file_bytes(targets, save_precision),
    }


__all__ = [
    "KINDS",
    "Adapter",
    "AdapterHeader",
    "AdapterSpec",
    "NetworkSettings",
    "Target",
    "keys",
    "make_spec",
    "module_names",
    "read_header",
    "width_of",
]
