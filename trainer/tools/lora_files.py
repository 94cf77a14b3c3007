"""What the tools around LoRA files share: which files they take, where they write, and what they say of both."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.adapters import AdapterHeader, read_header
from trainer.ground.errors import ConfigError, ModelError, Problem
from trainer.planning.inspection import family_of_lora
from trainer.settings.problems import shown

UP, DOWN = "lora_up.weight", "lora_down.weight"
SUFFIX = ".safetensors"
PRECISIONS = ("fp16", "bf16", "float")


def plain_lora(path: str) -> AdapterHeader:
    """Return the header of a LoRA of two matrices for each layer.

    Raises:
        ModelError: it is something else.
    """
    header = read_header(Path(path))
    for name, module in header.modules.items():
        if set(module.entries) != {UP, DOWN}:
            raise ModelError(
                f"{header.path.name} is {header.title} with {', '.join(module.entries)} in {name}.", _PLAIN
            )
    return header


_PLAIN = "This tool takes LoRAs of lora_up and lora_down alone."


def check_target(save_to: str, sources: Sequence[str], overwrite: bool) -> Path:
    """Return where to write, having seen that it can be done and that no source is lost by it.

    Raises:
        ConfigError: it names a source, something that is there already, no .safetensors file, or no writable folder.
    """
    path = Path(save_to)
    if path.suffix != SUFFIX:
        raise _refused(save_to, f"the name must end in {SUFFIX}")
    if any(os.path.realpath(path) == os.path.realpath(source) for source in sources):
        raise _refused(save_to, "this is a file to read from; choose another name")
    if os.path.lexists(path) and not (overwrite and os.path.isfile(path)):
        raise _refused(save_to, "something is there already; choose another name, or add --overwrite for a file")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _refused(save_to, f"nothing can be written there ({error.strerror or error})") from error
    return path


def _refused(save_to: str, reason: str) -> ConfigError:
    return ConfigError([Problem("save_to", f"{shown(save_to)} cannot be used: {reason}.", save_to)])


def check_one_family(headers: Sequence[AdapterHeader]) -> None:
    """See that LoRAs belong to one kind of model.

    Raises:
        ModelError: two are for different ones, or one file is named twice.
    """
    families = {header.path.name: family_of_lora(header) for header in headers}
    known = {family for family in families.values() if family}
    if len(known) > 1:
        said = ", ".join(f"{name} for {family}" for name, family in families.items() if family)
        raise ModelError(f"These LoRAs are for different kinds of models: {said}.", "Merge LoRAs of one kind.")
    real = [os.path.realpath(header.path) for header in headers]
    twice = next((header.path.name for header, path in zip(headers, real, strict=True) if real.count(path) > 1), "")
    if twice:
        raise ModelError(f"{twice} is named twice.", "Name it once, with the ratio that it should have.")


def check_shapes(headers: Sequence[AdapterHeader]) -> None:
    """See that modules of one name are on layers of one shape.

    Raises:
        ModelError: they are not.
    """
    seen: dict[str, tuple[str, object]] = {}
    for header in headers:
        for name, module in header.modules.items():
            up, down = module.entries[UP], module.entries[DOWN]
            shape = (up[0], up[2:], down[1:])
            other, expected = seen.setdefault(name, (header.path.name, shape))
            if expected != shape:
                raise ModelError(
                    f"{name} has another shape in {header.path.name} than in {other}: they are for different models.",
                    "Merge LoRAs of one kind.",
                )


def described(
    metadata: Mapping[str, str], ranks: Sequence[int], alphas: Sequence[float], comment: str
) -> dict[str, str]:
    """Return a file's metadata with its ranks, alphas and the comment on how it came about ahead of the earlier ones.

    As sd-scripts, "Dynamic" stands where they differ from module to module.
    """
    earlier = metadata.get("ss_training_comment", "")
    said = f"{comment}; {earlier}" if earlier not in ("", "None") else comment
    one = len(set(ranks)) == 1 and len({round(alpha, 4) for alpha in alphas}) == 1
    return {
        **{key: value for key, value in metadata.items() if not key.startswith("sshs_")},
        "ss_network_dim": str(ranks[0]) if one else "Dynamic",
        "ss_network_alpha": str(alphas[0]) if one else "Dynamic",
        "ss_training_comment": said,
    }
