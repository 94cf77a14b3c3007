"""What frozen text encoders make of every caption, encoded ahead, in memory or on disk, so that they need not stay.

An entry is found by what it was made from (the tokens, the encoders' weights, how they are used), so it is never
stale and the folder may be deleted between runs. Files that are torn or not ours are made anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainer.families.text.tokens import Tokens, as_batch
from trainer.ground.control import Progress
from trainer.ground.errors import DataError
from trainer.ground.files import replacing

FOLDER = "text_cache"
ENCODING = "caching captions"

Text = dict[str, Tensor]
"""What the encoders give for one caption, without a batch dimension, on the CPU."""


class TextCache(Mapping[str, Text]):
    """Caption -> what the text encoders give for it. `folder` is where files go; None keeps all in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[str, Text] = {}
        self._paths: dict[str, Path] = {}

    def fill(
        self,
        captions: Iterable[str],
        tokenize: Callable[[str], Tokens],
        encode: Callable[[Tokens], Text],
        key: str,
        progress: Progress,
    ) -> None:
        """Encode the captions that are not there yet, each alone: its states don't depend on its company.

        Args:
            encode: tokens, each [1, ...] -> states, each [1, ...].
            key: fingerprint of the text encoders and of how they are used.
            progress: called with (phase, done, total); what it raises, such as Stopped, passes through.

        Raises:
            DataError: the folder cannot be written.
        """
        wanted = list(dict.fromkeys(captions))
        progress(ENCODING, 0, len(wanted))
        for done, caption in enumerate(wanted, 1):
            tokens = tokenize(caption)
            if self._folder is None:
                self._memory[caption] = _encoded(encode, tokens)
            else:
                path = self._folder / f"{_name(tokens, key)}.safetensors"
                if _read(path) is None:
                    _write(path, _encoded(encode, tokens))
                self._paths[caption] = path
            progress(ENCODING, done, len(wanted))

    def __getitem__(self, caption: str) -> Text:
        if caption in self._memory:
            return self._memory[caption]
        text = _read(self._paths[caption])
        if text is None:
            raise DataError(
                f"cache_text_encoder_outputs_to_disk: {self._paths[caption]} is gone or damaged.",
                "Resume; it will be made anew. Leave the cache alone while training.",
            )
        return text

    def __contains__(self, caption: object) -> bool:
        return caption in self._memory or caption in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter({**self._memory, **self._paths})

    def __len__(self) -> int:
        return len(self._memory) + len(self._paths)


@torch.no_grad()
def _encoded(encode: Callable[[Tokens], Text], tokens: Tokens) -> Text:
    return {name: value[0].cpu().contiguous() for name, value in encode(as_batch(tokens)).items()}


def _name(tokens: Tokens, key: str) -> str:
    digest = hashlib.blake2b(key.encode(), digest_size=16)
    for encoder, taken in tokens.items():
        for name, value in taken.items():
            digest.update(f"{encoder} {name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> Text | None:
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError):
        return None


def _write(path: Path, text: Text) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(save(text))
    except OSError as error:
        raise DataError(
            f"cache_text_encoder_outputs_to_disk: {path} cannot be written ({error.strerror or error}).",
            "Free some space, choose another output_dir, or keep the outputs in memory.",
        ) from error
