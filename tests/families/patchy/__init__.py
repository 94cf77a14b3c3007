"""A family that is like none of the program's: 5 latent channels, factor 16, patch 2, a shift, rectified flow, a
transformer, and as many text encoders as one wants, each with its own length. All that it takes lies in this folder.

No torch until `load`, as in every family.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.families.family import ComponentConfigs, Family, FileNames, Latents, Recognition
from trainer.families.reading.headers import Header
from trainer.ground.control import Progress
from trainer.process import FLOW
from trainer.targets import DENOISER, TEXT, Part, Target

if TYPE_CHECKING:
    import torch

    from trainer.config import TrainingConfig
    from trainer.families.bundle import Bundle

WIDTH, BLOCKS = 32, 2
LENGTHS = (9, 14, 21)
"""How many tokens each text encoder takes; the second has a mask."""
LATENTS = Latents(channels=5, factor=16, patch=2, scale=0.7, shift=0.25)


@dataclass(frozen=True)
class Patchy(Family):
    """The family with so many text encoders."""

    encoders: int
    process = FLOW
    latents = LATENTS
    unused = frozenset({"clip_skip", "max_token_length"})

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"patchy{self.encoders}"

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"Patchy with {self.encoders}"

    @property
    def parts(self) -> tuple[Part, ...]:  # type: ignore[override]
        readers = (Part(f"reader_{number}", TEXT, f"Reader {number}", f"lora_te{number}_") for number in self.numbers)
        return (Part("transformer", DENOISER, "Transformer", "lora_unet_"), *readers)

    @property
    def numbers(self) -> range:
        """The numbers of the text encoders."""
        return range(1, self.encoders + 1)

    @property
    def configs(self) -> ComponentConfigs:  # type: ignore[override]
        readers: dict[str, dict[str, Any]] = {
            f"reader_{number}": {"length": LENGTHS[number - 1]} for number in self.numbers
        }
        return {"transformer": {"width": WIDTH, "blocks": BLOCKS}, "vae": {}, **readers}

    def matches_file(self, header: Header) -> bool:
        return header.has(f"reader_{self.encoders}.") and not header.has(f"reader_{self.encoders + 1}.")

    def matches_folder(self, pipeline: str, configs: ComponentConfigs) -> bool:
        return False

    def missing(self, header: Header) -> tuple[str, ...]:
        return () if header.has("vae.") else ("vae",)

    def side(self, configs: ComponentConfigs) -> int:
        return 64

    def file_names(self, prediction_type: str, configs: ComponentConfigs | None = None) -> FileNames:
        return FileNames(self.name, "patchy")

    def targets(self, configs: ComponentConfigs, *, conv: bool) -> tuple[Target, ...]:
        readers = [self._target(f"reader_{number}", f"lora_te{number}_", "mix", 1, 1) for number in self.numbers]
        layers = [
            self._target("transformer", "lora_unet_", f"blocks.{block}.{layer}", outputs, inputs)
            for block in range(configs["transformer"]["blocks"])
            for layer, outputs, inputs in (("qkv", 3, 1), ("out", 1, 1), ("mlp.0", 2, 1), ("mlp.2", 1, 2))
        ]
        return (*readers, *layers)

    def _target(self, component: str, prefix: str, path: str, outputs: int, inputs: int) -> Target:
        return Target(component, path, prefix + path.replace(".", "_"), inputs * WIDTH, outputs * WIDTH)

    def load(
        self,
        recognition: Recognition,
        config: TrainingConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> Bundle:
        made: Bundle = import_module("tests.families.patchy.bundle").load(self, recognition, config, device, dtype)
        return made
