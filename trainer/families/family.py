"""What the program knows about a family of models before any weight is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.control import Progress
from trainer.families.headers import Header
from trainer.targets import Target

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle

ComponentConfigs = Mapping[str, Mapping[str, Any]]
"""The configuration of each component ("unet", "vae", "text_encoder", "scheduler"), as its class takes it."""

FILE = "file"
FOLDER = "folder"
HUB = "hub"


@dataclass(frozen=True, slots=True)
class Recognition:
    """A model that can be trained: which family, in which form, where, and how its components are built.

    `form` is "file" (one file in the original layout), "folder" (diffusers layout) or "hub" (an id such as
    "user/name"; nothing is looked up, so `configs` are the family's own).
    """

    family: str
    form: str
    source: str
    configs: ComponentConfigs


class Family(ABC):
    """One kind of base model. A new one is a folder with a subclass, and a line in `trainer/families/__init__.py`."""

    name: ClassVar[str]
    """The value of the setting `model_family`."""
    title: ClassVar[str]
    """The name people know it by."""
    base_model_version: ClassVar[str]
    """kohya's metadata entry ss_base_model_version."""
    architecture: ClassVar[str]
    """The model's part of the metadata entry modelspec.architecture."""
    configs: ClassVar[ComponentConfigs]
    """How the published model's components are built; a checkpoint may describe itself otherwise."""

    @abstractmethod
    def matches_file(self, header: Header) -> bool:
        """True when a single file is a checkpoint of this family."""

    @abstractmethod
    def matches_folder(self, pipeline: str, configs: ComponentConfigs) -> bool:
        """True when a diffusers folder with this pipeline class and these configurations is of this family."""

    @abstractmethod
    def targets(self, configs: ComponentConfigs, *, conv: bool) -> tuple[Target, ...]:
        """List the layers that an adapter attaches to, in the order in which kohya creates them."""

    @abstractmethod
    def load(
        self,
        recognition: Recognition,
        config: TrainingConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> Bundle:
        """Load the models, frozen and in `dtype`, onto `device`."""
