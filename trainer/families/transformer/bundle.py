"""A loaded model whose denoiser is a transformer: what its modules are, what is streamed, freed and loaded again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from trainer.families.bundle import LOADING
from trainer.families.family import ComponentConfigs
from trainer.families.reading.streamed import StreamedWeights
from trainer.families.text.tokens import EncoderTokens
from trainer.families.transformer.checkpoint import Components
from trainer.families.vae import HasVae, Vae
from trainer.ground.control import Progress
from trainer.memory import free_memory

_VAE = "vae"


class TransformerBundle(HasVae):
    """The models of one checkpoint: frozen, in eval mode, on one device. See `trainer.families.bundle.Bundle`."""

    encoders: ClassVar[tuple[str, ...]]
    """The components that read text."""
    large_encoder: ClassVar[str]
    """The one of them that is streamed with the transformer."""

    def __init__(self, checkpoint: Components, modules: Mapping[str, nn.Module]) -> None:
        self._modules = dict(modules)
        self.vae: Vae | None = self._modules.pop(_VAE)  # type: ignore[assignment]
        self.notices: tuple[str, ...] = ()
        self._checkpoint, self._checkpointing = checkpoint, False
        self.streamed: StreamedWeights | None = None
        self._share = 0.0

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the transformer, and of what is called with it in each step, in the order of their calls."""

    @property
    @abstractmethod
    def encoder_blocks(self) -> Sequence[nn.Module]:
        """The blocks of the large text encoder."""

    @property
    def name(self) -> str:
        """File or folder name of the checkpoint, without the folders above it."""
        return Path(self._checkpoint.recognition.source).name

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self._checkpoint.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the frozen weights of the transformer."""
        return self._checkpoint.dtype

    @property
    def component_configs(self) -> ComponentConfigs:
        """How the components are built, in the form that diffusers and transformers take."""
        return self._checkpoint.recognition.configs

    @property
    def components(self) -> dict[str, nn.Module]:
        """The modules that adapters attach to, by component name; released text encoders are not among them."""
        return dict(self._modules)

    def load_vae(self, dtype: torch.dtype | None = None) -> Vae:
        """Load the VAE; `dtype` is what it is loaded in from now on, where it is given."""
        if dtype is not None:
            self._checkpoint = replace(self._checkpoint, vae_dtype=dtype)
        return self._checkpoint.vae()

    def enable_gradient_checkpointing(self) -> None:
        """Trade a second forward pass for memory, in the transformer and the text encoders.

        transformers checkpoints only in train mode; encoders are built without dropout.
        """
        self._checkpointing = True
        for name in set(self.encoders) & self._modules.keys():
            encoder: Any = self._modules[name]
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
            encoder.train()

    def compile_blocks(self, backend: str | Callable[..., Any] | None) -> None:
        """Compile each block of the transformer, at its first call; None takes it back."""
        for block in self.blocks:
            block._compiled_call_impl = None
            if backend is not None:
                block.compile(backend=backend)

    def stream_weights(self, share: float) -> None:
        """Let this share of the blocks of transformer and large text encoder, by bytes, lie in the computer's memory
        until they are used."""
        self.streamed = StreamedWeights(self.blocks, share)
        self.streamed.to(self.device)
        self._share = share
        if self.large_encoder in self._modules:
            self._stream_encoder()

    def _stream_encoder(self) -> None:
        assert self.streamed is not None
        self.streamed.add(self.encoder_blocks, self._share)

    def release_text_encoders(self) -> None:
        """Free the text encoders. `encode_text` loads them again, without adapters that they may have had."""
        if self.streamed is not None and self.large_encoder in self._modules:
            self.streamed.remove(self.encoder_blocks)
        for name in self.encoders:
            self._modules.pop(name, None)
        free_memory()

    def to(self, device: torch.device) -> None:
        """Move everything that is loaded, in place: parameters keep their identity."""
        if self.streamed is not None:
            self.streamed.to(device)
        for module in (*self._modules.values(), *([self.vae] if self.vae else [])):
            module.to(device)
        self._checkpoint = replace(self._checkpoint, device=device)
        free_memory()

    def module(self, name: str) -> Any:
        """Return a component; a text encoder is loaded again if it was released."""
        if name in self._modules:
            return self._modules[name]
        if name == self.large_encoder and self.streamed is not None:
            # It never has to fit the device whole.
            self._modules[name] = replace(self._checkpoint, device=torch.device("cpu")).encoder(name)
            self._stream_encoder()
            self._modules[name].to(self.device)
        else:
            self._modules[name] = self._checkpoint.encoder(name)
        return self._modules[name]


Tokenizing = dict[str, Callable[[str], EncoderTokens]]
"""{component: what makes its tokens of a text}."""


def load_modules(
    makers: Mapping[str, Callable[[], nn.Module]], progress: Progress | None = None
) -> dict[str, nn.Module]:
    """Load components, one after the other.

    Args:
        progress: called with ("loading the model", components done, components).

    Raises:
        ModelError: weights are missing, damaged, or of other shapes than the configuration says.
        Stopped: `progress` asked for it.
    """
    report = progress or (lambda _phase, _done, _total: None)
    report(LOADING, 0, len(makers))
    modules = {}
    for done, (name, make) in enumerate(makers.items(), 1):
        modules[name] = make()
        report(LOADING, done, len(makers))
    return modules
