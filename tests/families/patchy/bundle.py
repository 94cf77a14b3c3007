"""The family, loaded."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.families.patchy import LATENTS, Patchy
from tests.families.patchy.models import VOCABULARY, WIDTH, Reader, Transformer, Vae, length_of, modules
from trainer.config import TrainingConfig
from trainer.families.conditions import Conditions, Placed, Size
from trainer.families.family import ComponentConfigs, Latents, Recognition
from trainer.families.reading.streamed import StreamedWeights
from trainer.families.reading.weights import build_empty, fill, fingerprint, open_weights
from trainer.families.text.tokens import Tokenizers, Tokens
from trainer.process import FLOW
from trainer.targets import TEXT, Target, names_of

MASKED = "reader_2"


@dataclass(frozen=True)
class Words:
    """A word is a number; 1 ends a text, 0 fills it up."""

    length: int
    masked: bool

    def __call__(self, text: str) -> dict[str, Tensor]:
        words = [2 + zlib.crc32(word.encode()) % (VOCABULARY - 2) for word in text.split()][: self.length - 1]
        ids = torch.tensor([*words, 1, *[0] * (self.length - 1 - len(words))])
        return {"ids": ids, "mask": ids != 0} if self.masked else {"ids": ids}


class TrainedSize(Conditions):
    """The model is told the size that it draws at, in units of 64 pixels."""

    def of_picture(self, placement: Placed, flipped: bool) -> Mapping[str, Tensor]:
        return self.of_sample(placement.bucket, 0.0)

    def of_sample(self, size: Size, guidance: float) -> Mapping[str, Tensor]:
        return {"size": torch.tensor(size, dtype=torch.float32) / 64}


class Bundle:
    """See `trainer.families.bundle.Bundle`."""

    latents: Latents = LATENTS
    conditions = TrainedSize()
    notices: tuple[str, ...] = ()
    streamed: StreamedWeights | None = None

    def __init__(
        self, family: Patchy, recognition: Recognition, config: TrainingConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.kind, self._recognition, self.device, self.dtype = family, recognition, device, dtype
        self.encoders = names_of(family.parts, TEXT)
        self.loaded: dict[str, nn.Module] = {}
        for name in ("transformer", "vae", *self.encoders):
            self.module(name)
        self.vae_key = fingerprint(self.loaded["vae"])
        self.tokenize = self.tokenizers()
        self.process = FLOW.build({"shift": 3.0}, config, patch=LATENTS.patch)

    def tokenizers(self) -> Tokenizers:
        """Return what turns a text into what each encoder takes."""
        return Tokenizers({name: Words(length_of(name), name == MASKED) for name in self.encoders})

    @property
    def family(self) -> str:
        return self.kind.name

    @property
    def name(self) -> str:
        return Path(self._recognition.source).name

    @property
    def text_key(self) -> str:
        return " ".join(fingerprint(self.module(name)) for name in self.encoders)

    @property
    def component_configs(self) -> ComponentConfigs:
        return self._recognition.configs

    @property
    def components(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.loaded.items() if name != "vae"}

    def module(self, name: str) -> Any:
        """Return a component, loaded where it is not."""
        if name not in self.loaded:
            made = build_empty({"transformer": Transformer, "vae": Vae}.get(name, Reader))
            source = self._recognition.source
            with open_weights(Path(source), dtype=self.dtype) as weights:
                names = {own: f"{name}.{own}" for own in made.state_dict()}
                self.loaded[name] = fill(made, weights, names, device=self.device, dtype=self.dtype, source=source)
        return self.loaded[name]

    def targets(self, conv: bool) -> tuple[Target, ...]:
        return self.kind.targets(self._recognition.configs, conv=conv)

    def encode_text(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return the words of all encoders, one behind the other, and which of them are there."""
        ids = {name: tokens[name]["ids"].to(self.device) for name in self.encoders}
        masks = [tokens[name].get("mask", torch.ones_like(tokens[name]["ids"], dtype=torch.bool)) for name in ids]
        states = [self.module(name)(each) for name, each in ids.items()]
        return {"words": torch.cat(states, dim=1), "mask": torch.cat(masks, dim=1).to(self.device)}

    def predict(
        self, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor], conditions: Mapping[str, Tensor]
    ) -> Tensor:
        words, mask = text["words"].to(self.device, self.dtype), text["mask"].to(self.device)
        size, sigmas = conditions["size"].to(self.device, self.dtype), timesteps.to(self.device, self.dtype)
        drawn: Tensor = self.module("transformer")(noisy.to(self.device, self.dtype), sigmas, words, mask, size)
        return drawn

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.module("vae").encoder(pixels.to(self.device, self.dtype)).float().chunk(2, dim=1)
        return mean, (0.5 * spread.clamp(-9, 0)).exp()

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.module("vae").decoder(LATENTS.from_model(latents).to(self.dtype)).float()
        return pixels.clamp(-1, 1)

    def enable_gradient_checkpointing(self) -> None:
        self.module("transformer").checkpointing = True

    def largest_attention(self, width: int, height: int) -> tuple[int, int, int]:
        return 2, (width // LATENTS.step) * (height // LATENTS.step), WIDTH // 2

    def compile_blocks(self, backend: str | Callable[..., Any] | None) -> None:
        raise NotImplementedError

    def release_vae(self) -> None:
        self.loaded.pop("vae", None)

    def release_text_encoders(self) -> None:
        for name in self.encoders:
            self.loaded.pop(name, None)

    def to(self, device: torch.device) -> None:
        self.device = device
        for module in self.loaded.values():
            module.to(device)


def load(
    family: Patchy, recognition: Recognition, config: TrainingConfig, device: torch.device, dtype: torch.dtype
) -> Bundle:
    """Load the models of one file."""
    return Bundle(family, recognition, config, device, dtype)


def write_file(path: Path, encoders: int) -> Path:
    """Write a model with random weights."""
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name, module in modules(encoders).items()
        for key, value in module.state_dict().items()
    }
    save_file(tensors, path)
    return path
