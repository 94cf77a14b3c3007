"""What the program knows about a family of models before any weight is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.families.reading.folders import Shapes
from trainer.families.reading.headers import Header
from trainer.families.reading.unsupported import holds_vae
from trainer.ground.control import Progress
from trainer.process import DDPM, ProcessKind
from trainer.targets import Part, Target

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle

ComponentConfigs = Mapping[str, Mapping[str, Any]]
"""The configuration of each component ("unet", "vae", "text_encoder", "scheduler"), as its class takes it."""

_IN_COMFYUI = "model.diffusion_model."

FILE = "file"
FOLDER = "folder"
HUB = "hub"


@dataclass(frozen=True, slots=True)
class Latents:
    """What a family's VAE makes of pictures, and how the model takes it.

    A latent pixel stands for `factor` x `factor` pixels, and the model takes latents in patches of `patch` x `patch`.
    It sees (latent - shift) * scale, where both are one number for all channels, or one for each.
    """

    channels: int
    factor: int
    patch: int = 1
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0

    @property
    def step(self) -> int:
        """Pixels that sides of pictures must be multiples of."""
        return self.factor * self.patch

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of a picture of (width, height) pixels."""
        width, height = size
        return self.channels, height // self.factor, width // self.factor

    def to_model(self, latents: Tensor) -> Tensor:
        """Return the VAE's latents as the model takes them."""
        return (latents - _spread(self.shift, latents) if self.shift else latents) * _spread(self.scale, latents)

    def from_model(self, latents: Tensor) -> Tensor:
        """Return the model's latents as the VAE decodes them. The reverse of `to_model`."""
        latents = latents / _spread(self.scale, latents)
        return latents + _spread(self.shift, latents) if self.shift else latents


def _spread(numbers: float | tuple[float, ...], latents: Tensor) -> float | Tensor:
    """Return the numbers so that each meets its channel of [..., c, h, w]; one for all as it is."""
    return latents.new_tensor(numbers)[:, None, None] if isinstance(numbers, tuple) else numbers


@dataclass(frozen=True, slots=True)
class Recognition:
    """A model that can be trained: which family, in which form, where, and how its components are built.

    `form` is "file" (one file in the original layout), "folder" (diffusers layout) or "hub" (an id such as
    "user/name"; nothing is looked up, so `configs` are the family's own). `precision` is the dtype of most weights
    ("fp16", "bf16", "fp32", ...), where the file's header says it. `missing` are the components that a file lacks; each
    then comes from a file of its own.
    """

    family: str
    form: str
    source: str
    configs: ComponentConfigs
    precision: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where the weight of a layer lies in a file: in tensors whose rows, one below the other, are those of the layer.

    Or, where it is one tensor, as part `part` of `parts` equal ones of it.
    """

    names: tuple[str, ...]
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, slots=True)
class FileNames:
    """What a LoRA file's metadata call its base model.

    `base_model_version` and `v2` are kohya's entries ss_base_model_version and ss_v2; `architecture` and
    `implementation` are modelspec's, the first without the "/lora" behind it. `network_module` is sd-scripts' module
    for LoRAs of this family, `model_type` its entry ss_model_type, "" where it writes none; `always` are entries of
    settings, by key, that such a model leaves no choice of, and `never` the keys of those of which it writes no entry.
    """

    base_model_version: str
    architecture: str
    implementation: str = "diffusers"
    v2: bool = False
    network_module: str = "networks.lora"
    model_type: str = ""
    always: Mapping[str, object] = field(default_factory=dict)
    never: frozenset[str] = frozenset()


class Family(ABC):
    """One kind of base model. A new one is a folder with a subclass, and a line in `trainer/families/__init__.py`."""

    name: ClassVar[str]
    """The value of the setting `model_family`."""
    title: ClassVar[str]
    """The name people know it by."""
    configs: ClassVar[ComponentConfigs]
    """How the published model's components are built; a checkpoint may describe itself otherwise."""
    process: ClassVar[ProcessKind] = DDPM
    """What noise is and what is asked of the model; its bundle builds it."""
    parts: ClassVar[tuple[Part, ...]]
    """What adapters attach to: the denoiser, then the text encoders in the order of the rates in `text_encoder_lr`."""
    latents: ClassVar[Latents]
    """What the model draws."""
    files: ClassVar[Mapping[str, str]] = {"vae": "vae"}
    """{setting: the component whose file it names}, for components that people have apart from the model."""
    comfyui_encoders: ClassVar[Mapping[str, str]] = {}
    """{text encoder's component: what ComfyUI's names of its layers begin with}."""
    guidance: ClassVar[float] = 0.0
    """How far samples are pushed away from the negative prompt where a prompt says nothing; 0: as is usual."""
    remarks: ClassVar[Mapping[str, str]] = {}
    """{key of a setting: what it means for this family}, where its own help does not say it."""
    unused: ClassVar[frozenset[str]] = frozenset()
    """The keys of settings that mean nothing for this family."""

    @property
    def a_model(self) -> str:
        """What one is called, with its article: "an Anima model"."""
        return f"{'an' if self.title[0] in 'AEIOU' else 'a'} {self.title} model"

    @property
    def weighty(self) -> tuple[str, ...]:
        """The components that have weights."""
        return tuple(name for name in self.configs if name != "scheduler")

    @abstractmethod
    def matches_file(self, header: Header) -> bool:
        """True when a single file is a checkpoint of this family."""

    @abstractmethod
    def matches_folder(self, pipeline: str, configs: ComponentConfigs) -> bool:
        """True when a diffusers folder with this pipeline class and these configurations is of this family."""

    def missing(self, header: Header) -> tuple[str, ...]:
        """Return the components that a single file of this family lacks."""
        return () if holds_vae(header) else ("vae",)

    def fits(self, component: str, header: Header) -> bool:
        """True when a file holds this component, be it alone or in a checkpoint."""
        return holds_vae(header)

    def marks(self, header: Header) -> ComponentConfigs:
        """Return what a file's metadata and marker entries say of components' configurations."""
        return {}

    def sizes(self, component: str, header: Header) -> Mapping[str, Any]:
        """Return what a file that is chosen for a component says of its configuration by the shapes of its weights."""
        return {}

    def disagreement(self, configs: ComponentConfigs) -> tuple[str, str] | None:
        """Return the setting of a component that does not go with the others, and why; None where all do.

        The setting is one of `files`, or that of the model itself. What does not fit inside a folder is a ValueError of
        `shapes`.
        """
        return None

    @abstractmethod
    def file_names(self, prediction_type: str, configs: ComponentConfigs | None = None) -> FileNames:
        """Return what LoRA files call a model of this family that predicts "epsilon" or "v_prediction".

        Without `configs`, which are a model's, it is the published one.
        """

    @abstractmethod
    def targets(self, configs: ComponentConfigs, *, conv: bool) -> tuple[Target, ...]:
        """List the layers that an adapter attaches to in a single file, in the order in which kohya creates them."""

    def targets_of(self, recognition: Recognition, *, conv: bool) -> tuple[Target, ...]:
        """List the layers of a checkpoint, in the shapes that files have which were trained on it."""
        return self.targets(recognition.configs, conv=conv)

    def shapes(self, configs: ComponentConfigs) -> Mapping[str, Shapes]:
        """Return {component: {weight in a diffusers folder: shape}}, enough to tell whether a folder is whole."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for target in self.targets_of(Recognition(self.name, FOLDER, "", configs), conv=True):
            shape = (target.out_features, target.in_features, *(target.kernel or ()))
            found.setdefault(target.component, {})[f"{target.path}.weight"] = shape
        return found

    def layouts(self, component: str, configs: ComponentConfigs, form: str) -> Iterable[Shapes]:
        """Return a component's weights with their shapes, under the names of each layout that is read.

        `form` is "folder" or "file". Nothing is looked for in a file of which no layout is returned.
        """
        return [self.shapes(configs).get(component, {})] if form == FOLDER else []

    def places(self, target: Target, configs: ComponentConfigs) -> Iterable[Place]:
        """Return where a layer's weight may lie in a model's file or in its component's folder, the likely first."""
        return (Place((f"{target.path}.weight",)),)

    def paths(self, target: Target) -> tuple[str, ...]:
        """Return the paths in diffusers' files of the layers that, one below the other, are this one."""
        return (target.path,)

    def comfyui_name(self, target: Target, configs: ComponentConfigs) -> str:
        """Return what ComfyUI calls a layer, beside kohya's name for it; "" where that is not known."""
        if target.component in self.comfyui_encoders:
            return self.comfyui_encoders[target.component] + self.paths(target)[0]
        inside = (place.names[0] for place in self.places(target, configs) if len(place.names) == 1)
        found = next((name for name in inside if name.startswith(_IN_COMFYUI)), "")
        return found.removesuffix(".weight").removeprefix("model.")

    def side(self, configs: ComponentConfigs) -> int:
        """Return the side, in pixels, of the square pictures that such a model was made for; 0 where it isn't known."""
        return 0

    def text_length(self, configs: ComponentConfigs) -> int:
        """Return how many tokens such a model takes of a caption for T5, its end among them; 0 where it has none."""
        return 0

    def variant(self, configs: ComponentConfigs) -> str:
        """Return what sets such a model apart in its family, in words; empty for the usual kind."""
        return ""

    def questions(self, configs: ComponentConfigs) -> tuple[str, ...]:
        """Return what the user must decide about a model with these configurations, since it doesn't say it."""
        return ()

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
