"""Text states for a batch: encoded afresh while the text encoder learns, else once per distinct caption.

The loader tokenizes captions only where the encoder learns. Where all captions were encoded before training
(`cache_text_encoder_outputs`), it brings their states, and the encoders are no longer in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.families.text.tokens import as_batch
from trainer.pictures.loader import Batch

if TYPE_CHECKING:
    from trainer.families.bundle import Bundle

MEMORY_BYTES = 1 << 30
"""Most memory that remembered captions take; shuffled captions would otherwise fill any memory."""


class TextStates:
    """Callable: batch -> {"context": [b, length, features], ...} on the bundle's device.

    A frozen encoder sees each caption alone, in a batch of one, so that a caption's states do not depend on which
    captions shared its batch or on what a resumed run still remembers.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._remembered: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._bytes = 0

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Return the states of the batch's captions, with gradient where the encoder learns."""
        if batch.text is not None:
            return batch.text
        if batch.tokens is not None:
            return self._bundle.encode_text(batch.tokens)
        rows = [self._recall(caption) for caption in batch.captions]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def forget(self) -> None:
        """Drop what is remembered, as when the device is to be freed."""
        self._remembered.clear()
        self._bytes = 0

    def _recall(self, caption: str) -> dict[str, Tensor]:
        if caption in self._remembered:
            self._remembered.move_to_end(caption)
            return self._remembered[caption]
        with torch.no_grad():
            states = self._bundle.encode_text(as_batch(self._bundle.tokenize(caption)))
        self._remembered[caption] = states
        self._bytes += _size(states)
        while self._bytes > MEMORY_BYTES:
            self._bytes -= _size(self._remembered.popitem(last=False)[1])
        return states


def _size(states: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in states.values())
