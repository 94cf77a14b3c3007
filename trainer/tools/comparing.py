"""How far the numbers of two model files are from one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trainer.adapters import AdapterHeader
from trainer.ground.control import Progress
from trainer.ground.safetensors_header import Table
from trainer.tools.effects import Effects
from trainer.tools.lora_files import needs_weights
from trainer.tools.low_rank import Factors, added, decompose
from trainer.tools.tensor_files import TensorFile


@dataclass
class Compared:
    """Norms of differences by layer, the sums of squares of both sides and of their product, and the largest one."""

    norms: dict[str, float] = field(default_factory=dict)
    first: float = 0.0
    second: float = 0.0
    apart: float = 0.0
    largest: float | None = None
    equal: int = 0

    def take(self, name: str, first: float, second: float, apart: float) -> None:
        """Add a layer by the squares of the norms of both and of their difference."""
        self.first += first
        self.second += second
        self.apart += apart
        self.norms[name] = apart**0.5
        self.equal += apart == 0

    def lines(self) -> Iterator[str]:
        """Yield what it comes to."""
        if not self.norms:
            yield "Nothing is in both files that could be compared."
            return
        if not self.apart:
            yield f"The numbers are the same in all {len(self.norms)} that both have."
            return
        yield f"The same numbers: {self.equal} of {len(self.norms)}"
        share = (self.apart / self.first) ** 0.5 if self.first else float("inf")
        both = (self.first * self.second) ** 0.5
        yield f"Norm of the first: {self.first**0.5:.6g}, of the second: {self.second**0.5:.6g}"
        yield f"Norm of the difference: {self.apart**0.5:.6g}, {share:.3%} of the first"
        if both:
            yield f"Cosine between them: {(self.first + self.second - self.apart) / 2 / both:.6f}"
        if self.largest is not None:
            yield f"Largest difference of a number: {self.largest:.6g}"


def of_loras(headers: Sequence[AdapterHeader], progress: Progress) -> Compared:
    """Compare what two LoRAs add to the layers that both have.

    Where that depends on the model's weights the files' own numbers are compared.

    Raises:
        ModelError: a file cannot be read.
        Stopped: `progress` says so.
    """
    found, plain = Compared(), not needs_weights(headers)
    with ExitStack() as stack:
        effects = Effects(headers, None, stack)
        layers = {name: there for name in effects.names if len(there := effects.having(name)) == len(headers)}
        for done, (name, there) in enumerate(layers.items()):
            progress("comparing", done, len(layers))
            if plain:
                found.take(name, *_squares(*(effects.of(lora, own) for _, lora, own in there)))
                continue
            pairs = [lora.tensors(own) for _, lora, own in there]
            same = {entry for entry in pairs[0] if entry in pairs[1] and pairs[0][entry].shape == pairs[1][entry].shape}
            squares = [_of_tensors(pairs[0][entry], pairs[1][entry])[:3] for entry in sorted(same)]
            if squares:
                found.take(name, *(sum(each) for each in zip(*squares, strict=True)))
    return found


def _squares(first: Factors | Tensor, second: Factors | Tensor) -> tuple[float, float, float]:
    """Return the squares of the norms of two effects and of their difference."""
    if isinstance(first, Factors) and isinstance(second, Factors):
        parts = [[(first, 1.0)], [(second, 1.0)], [(first, 1.0), (second, -1.0)]]
        one, other, apart = (float(decompose(added(each)).s.square().sum()) for each in parts)
        # Two ways to one product differ by their rounding.
        return one, other, 0.0 if apart <= 1e-12 * (one + other) else apart
    whole = [each.difference() if isinstance(each, Factors) else each.double() for each in (first, second)]
    return _of_tensors(whole[0], whole[1])[:3]


def _of_tensors(first: Tensor, second: Tensor) -> tuple[float, float, float, float]:
    one, other = first.double(), second.double()
    apart = one - other
    squares = [float(each.square().sum()) for each in (one, other, apart)]
    return squares[0], squares[1], squares[2], float(apart.abs().max()) if apart.numel() else 0.0


def of_tensors(paths: Sequence[Path], tables: Sequence[Table], progress: Progress) -> Compared:
    """Compare the tensors that two files both have, in the same shape. Raises as `of_loras`."""
    found = Compared(largest=0.0)
    first, second = (table.entries for table in tables)
    names = [name for name, entry in first.items() if name in second and second[name].shape == entry.shape]
    with TensorFile(paths[0]) as one, TensorFile(paths[1]) as other:
        for done, name in enumerate(names):
            progress("comparing", done, len(names))
            pair = one.tensor(name), other.tensor(name)
            if torch.equal(pair[0].float(), pair[1].float()):
                square = float(pair[0].double().square().sum())
                found.take(name, square, square, 0.0)
                continue
            *squares, largest = _of_tensors(*pair)
            found.take(name, *squares)
            found.largest = max(found.largest or 0.0, largest)
    return found
