"""Prompts with weights: (word) and (word:1.2) are stronger, [word] is weaker. As web UIs and sd-scripts read them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from trainer.families.text.clip import BEGIN, END, LENGTH, PromptTokenizer

STRONGER = 1.1
"""What a pair of round brackets multiplies by, and a pair of square ones divides by."""

_UNIT = 1_000_000
_MARK = re.compile(r"\\[\\()\[\]]|\\|\(|\[|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|\]|[^\\()\[\]:]+|:")


@dataclass(frozen=True, slots=True)
class WeightedTokenizer:
    """Turns a prompt with weights into the token ids of its chunks and their weights, as `plain` does without them.

    Every run of one weight is tokenized by itself. Begin, end and padding tokens have weight 1.
    """

    plain: PromptTokenizer

    def __call__(self, text: str) -> dict[str, Tensor]:
        """Return {"ids": long [chunks, 77], "weights": float32 [chunks, 77]}; weights are rounded to millionths."""
        ids: list[int] = []
        weights: list[int] = []
        for part, weight in parse_weights(text):
            piece = self.plain.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            ids += piece
            weights += [round(weight * _UNIT)] * len(piece)
        starts = range(0, self.plain.chunks * LENGTH, LENGTH)
        framed_ids = [_framed(ids[at : at + LENGTH], BEGIN, END, self.plain.pad) for at in starts]
        framed_weights = [_framed(weights[at : at + LENGTH], _UNIT, _UNIT, _UNIT) for at in starts]
        return {"ids": torch.tensor(framed_ids), "weights": torch.tensor(framed_weights).to(torch.float32) / _UNIT}


def _framed(part: list[int], begin: int, end: int, pad: int) -> list[int]:
    return [begin, *part, end, *[pad] * (LENGTH - len(part))]


def weigh(states: Tensor, weights: Tensor | None) -> Tensor:
    """Multiply the states [b, c, 77, width] by their tokens' weights, without restoring their mean, as sd-scripts."""
    return states if weights is None else states * weights.unsqueeze(-1).to(states)


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Return the runs of a prompt with their weights.

    A backslash before a bracket makes it a plain one. A bracket that nothing closes holds to the end.
    """
    pieces: list[str] = []
    factors: list[list[float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        for place in range(opened[bracket].pop(), len(pieces)):
            factors[place].append(factor)

    for found in _MARK.finditer(text):
        mark = found[0]
        if mark in opened:
            opened[mark].append(len(pieces))
        elif found["weight"] and opened["("]:
            close("(", float(found["weight"]))
        elif mark == ")" and opened["("]:
            close("(", STRONGER)
        elif mark == "]" and opened["["]:
            close("[", 1 / STRONGER)
        else:
            pieces.append(mark[1:] if len(mark) == 2 and mark[0] == "\\" else mark)
            factors.append([])
    for bracket, factor in (("(", STRONGER), ("[", 1 / STRONGER)):
        while opened[bracket]:
            close(bracket, factor)
    weighted = ((math.prod(each), piece) for piece, each in zip(pieces, factors, strict=True))
    return [("".join(piece for _, piece in run), weight) for weight, run in groupby(weighted, key=lambda each: each[0])]
