"""The numbers of a LoRA file, read layer by layer: what is not finite, how much each layer does."""

from __future__ import annotations

from dataclasses import dataclass, field

import safetensors
import torch

from trainer.adapters import KINDS, AdapterHeader
from trainer.ground.control import Progress
from trainer.ground.errors import ModelError


@dataclass(slots=True)
class Soundness:
    """Keys of tensors that are not finite, layers that do nothing, and the norm of what each layer does."""

    not_finite: list[str] = field(default_factory=list)
    nothing: list[str] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)


def look(header: AdapterHeader, progress: Progress) -> Soundness:
    """Read the file's layers, one at a time.

    Raises:
        ModelError: the file can't be read.
        Stopped: `progress` says so.
    """
    found = Soundness()
    try:
        with safetensors.safe_open(header.path, "pt") as file:
            for done, (name, module) in enumerate(header.modules.items()):
                progress("reading layers", done, len(header.modules))
                tensors = {entry: file.get_tensor(f"{name}.{entry}") for entry in module.entries}
                wrong = [entry for entry, tensor in tensors.items() if not torch.isfinite(tensor.float()).all()]
                found.not_finite += [f"{name}.{entry}" for entry in wrong]
                if not wrong:
                    found.norms[name] = KINDS[header.kind].norm_of(tensors, module.alpha)
                    found.nothing += [name] if found.norms[name] == 0 else []
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"The LoRA {header.path} can't be read: {error}.", "Download or copy it again.") from error
    return found
