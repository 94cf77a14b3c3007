"""The components of one model, loaded one by one from wherever they lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.families.family import FILE, Recognition
from trainer.families.reading.hub import download, weight_files
from trainer.families.reading.weights import keep_whole
from trainer.families.vae import Vae


@dataclass(frozen=True, slots=True)
class Components(ABC):
    """One model's files. Every method reads anew, so a component that was released can be had again.

    `apart` are files, folders or hub ids of components that have one of their own, by component; `tokenizer_path` is
    where T5's vocabulary is, "" for where it usually is.
    """

    recognition: Recognition
    apart: Mapping[str, str]
    tokenizer_path: str
    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype

    @abstractmethod
    def encoder(self, component: str, smaller: Callable[[nn.Module], nn.Module] = keep_whole) -> Any:
        """Load a text encoder.

        Args:
            smaller: see `fill`.

        Raises:
            ModelError: weights are missing, superfluous or of other shapes.
        """

    @abstractmethod
    def vae(self) -> Vae:
        """Load the VAE: the one of the setting `vae` where it is set, else the model's own.

        Raises:
            ModelError: as `encoder`, or the other VAE is missing or damaged.
        """

    @property
    def text_dtype(self) -> torch.dtype:
        """Of the weights of large text encoders: bf16 in place of fp16, in which their states overflow."""
        return torch.bfloat16 if self.dtype == torch.float16 else self.dtype

    def paths(self, component: str) -> list[Path]:
        """Return the files that a component lies in."""
        if own := self.apart.get(component, ""):
            if Path(own).is_file():
                return [Path(own)]
            return weight_files(Path(own) if Path(own).is_dir() else download(own, [""]))
        source = Path(self.recognition.source)
        return [source] if self.recognition.form == FILE else weight_files(source / component)

    def beside(self, component: str) -> list[Path]:
        """Return the folder of a component's own file, where it has one: other files of it lie there too."""
        own = self.apart.get(component, "")
        if not own:
            return []
        return [Path(own) if Path(own).is_dir() else Path(own).parent]
