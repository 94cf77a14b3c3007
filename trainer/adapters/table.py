"""What each block of a model gets of an adapter: how many layers, at which ranks, alphas and rates. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.adapters.adapter import AdapterSpec
from trainer.adapters.blocks import Layout, block_index, layout_of
from trainer.adapters.rates import PLUS
from trainer.targets import Part, Target

_FIRST = "lora_down.weight"


@dataclass(frozen=True, slots=True)
class Row:
    """One block, or a part that has none: `index` is its place in lists such as `block_dims`, None where it has none.

    `layers` of its layers are adapted, of `of`; `ranks`, `alphas` and `rates` are the different ones among them, in
    order.
    """

    title: str
    index: int | None
    layers: int
    of: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    rates: tuple[float, ...]


def table(
    spec: AdapterSpec, targets: Sequence[Target], parts: Sequence[Part], rates: Mapping[str, float]
) -> tuple[Row, ...]:
    """Return a row for each block, in order, and for what is in none, such as a text encoder.

    `rates` are those of the parts. Raises ModelError as `AdapterSpec.select` does.
    """
    titles = {part.name: part.title for part in parts}
    selected = {target.name for target in spec.select(targets)}
    layout = next((found for target in targets if (found := layout_of(target.name))), None)
    blocks: dict[tuple[str, int | None], list[Target]] = {}
    for target in targets:
        blocks.setdefault((target.component, block_index(target.name)), []).append(target)
    order = sorted(blocks, key=lambda each: (each[1] is not None, each[1] or 0))
    return tuple(
        _row(spec, _title(titles.get(part, part), index, layout), index, blocks[part, index], selected, rates)
        for part, index in order
    )


def _row(
    spec: AdapterSpec,
    title: str,
    index: int | None,
    targets: Sequence[Target],
    selected: set[str],
    rates: Mapping[str, float],
) -> Row:
    adapted = [target for target in targets if target.name in selected]
    learned = {spec.rate(target, entry).of(rates) for target in adapted for entry in (_FIRST, PLUS)}
    return Row(
        title,
        index,
        len(adapted),
        len(targets),
        tuple(sorted({spec.rank(target) for target in adapted})),
        tuple(sorted({spec.alpha(target) for target in adapted})),
        tuple(sorted(learned)),
    )


def _title(part: str, index: int | None, layout: Layout | None) -> str:
    """Return what a block is called: "UNet, down 3"."""
    if index is None or layout is None:
        return part
    place = index - layout.ends
    if place < layout.side:
        return f"{part}, down {place}"
    if place < layout.side + layout.middle:
        return f"{part}, middle {place - layout.side}" if layout.middle > 1 else f"{part}, middle"
    return f"{part}, up {place - layout.side - layout.middle}"
