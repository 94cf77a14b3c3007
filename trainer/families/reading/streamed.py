"""Frozen weights that lie in the computer's memory, and come to the device block by block, shortly before their use.

Training changes none of them, so they go one way, to the device, and what is there is dropped. On a CUDA device the
copies run beside the computing, from pinned memory, a block ahead. Elsewhere the same is done by plain copies, and what
was dropped holds NaN in every row: whatever is used without being there shows.

A block is fetched when it is called, and again when the gradient of what it gave arrives, on the way back. Its order
among the others is learned from the first pass. Ren et al. 2021, "ZeRO-Offload", has the idea for all of a model's
state; here only what is frozen goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

AHEAD = 1
"""Blocks that are fetched before they are called."""
_ALIGNED = 64
"""Bytes that tensors of a block begin at multiples of, so that any dtype and any kernel can read them there."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One frozen tensor of a block: in which module, under which name, and where in the block's bytes."""

    module: nn.Module
    name: str
    first: int
    tensor: Tensor

    def put(self, flat: Tensor) -> None:
        """Let the module's tensor be a part of these bytes."""
        part = flat[self.first : self.first + self.tensor.nbytes].view(self.tensor.dtype).view(self.tensor.shape)
        own = getattr(self.module, self.name)
        if isinstance(own, nn.Parameter):
            own.data = part
        else:
            # Its own count of changes: what arrives is what was there, and no change.
            self.module.register_buffer(self.name, part.data)


@dataclass(eq=False)
class _Block:
    """The frozen weights of one block: `host` has them, `flat` is their place on the device."""

    module: nn.Module
    entries: Sequence[_Entry]
    host: Tensor
    flat: Tensor = field(init=False)
    there: bool = False
    arrived: Any = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.host.numel()


class StreamedWeights:
    """The streamed blocks of one model.

    Args:
        blocks: modules that are called one after the other, none inside another.
        share: how much of their bytes is streamed, from 0 to 1; the blocks in question are spread evenly.
    """

    def __init__(self, blocks: Sequence[nn.Module], share: float) -> None:
        self._blocks: list[_Block] = []
        self._order: list[_Block] = []
        self._place: dict[int, int] = {}
        self._device: torch.device | None = None
        self._side: Any = None
        self.moved: Callable[[int], None] = _unwatched
        self.add(blocks, share)

    def add(self, blocks: Sequence[nn.Module], share: float) -> None:
        """Stream this share of the bytes of further blocks too."""
        made = [_on_host(module) for module in chosen(blocks, share)]
        for block in made:
            block.module.register_forward_pre_hook(partial(self._called, block))
            block.module.register_forward_hook(partial(self._gave, block))
            for entry in block.entries:
                entry.module.streamed = True  # type: ignore[assignment]
            if self._device is not None:
                self._settle(block, self._device)
        self._blocks += made

    def remove(self, blocks: Iterable[nn.Module]) -> None:
        """Let go of blocks that are used no more, with their memory on both sides."""
        gone = {id(module) for module in blocks}
        for block in self._blocks:
            if id(block.module) in gone and block.there:
                self._drop(block)
        self._blocks = [block for block in self._blocks if id(block.module) not in gone]
        self._order = [block for block in self._order if id(block.module) not in gone]
        self._place = {id(block): place for place, block in enumerate(self._order)}

    @property
    def bytes(self) -> int:
        """What is streamed, in bytes."""
        return sum(block.size for block in self._blocks)

    @property
    def places(self) -> list[Tensor]:
        """Where the blocks come to on the device, as bytes; a place takes room while its block is there."""
        return [block.flat for block in self._blocks]

    @property
    def resident(self) -> int:
        """What of it is on the device now, in bytes."""
        return sum(block.size for block in self._blocks if block.there)

    def to(self, device: torch.device) -> None:
        """Compute on a device from now on: nothing of the blocks is there yet. What is there of others is dropped."""
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        for block in self._blocks:
            if block.there:
                self._drop(block)
            self._settle(block, device)

    def _settle(self, block: _Block, device: torch.device) -> None:
        """Give a block its place on a device; nothing is there yet."""
        if device.type == "cuda" and not block.host.is_pinned():
            block.host = block.host.pin_memory()
        block.flat = torch.empty(block.size, dtype=torch.uint8, device=device)
        for entry in block.entries:
            entry.put(block.flat)
        self._empty(block)

    # --- what happens on a block's way --------------------------------------------------------------------------------

    def _called(self, block: _Block, _module: nn.Module, _args: Any) -> None:
        if id(block) not in self._place:
            self._place[id(block)] = len(self._order)
            self._order.append(block)
        self._use(block, 1)

    def _gave(self, block: _Block, _module: nn.Module, _args: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._gradient_came, block))

    def _gradient_came(self, block: _Block, _gradient: Tensor) -> None:
        self._use(block, -1)

    def _use(self, block: _Block, direction: int) -> None:
        """Have a block there, begin to fetch those behind it in the direction of the pass, and drop all others."""
        place = self._place[id(block)]
        ahead = [place + direction * number for number in range(1, AHEAD + 1)]
        wanted = [block, *(self._order[each] for each in ahead if 0 <= each < len(self._order))]
        for other in self._blocks:
            if other.there and other not in wanted:
                self._drop(other)
        for each in wanted:
            if not each.there:
                self._fetch(each)
        if block.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(block.arrived)
            block.arrived = None

    def _fetch(self, block: _Block) -> None:
        block.there = True
        self.moved(block.size)
        if self._side is None:
            block.flat.copy_(block.host)
            return
        # Room is taken on the stream that computes, so what was computed there before must be done with it.
        block.flat.untyped_storage().resize_(block.size)
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            block.flat.copy_(block.host, non_blocking=True)
            block.arrived = self._side.record_event()

    def _drop(self, block: _Block) -> None:
        if block.arrived is not None:
            # It was fetched and never used: its room may not be taken while the copy is under way.
            torch.cuda.current_stream(self._device).wait_event(block.arrived)
            block.arrived = None
        block.there = False
        self.moved(-block.size)
        self._empty(block)

    def _empty(self, block: _Block) -> None:
        """Give the room on the device back; elsewhere let a number of each row be none, which no product overlooks."""
        if self._side is not None:
            block.flat.untyped_storage().resize_(0)
            return
        for entry in block.entries:
            tensor = getattr(entry.module, entry.name).data
            first = tensor.flatten(1)[:, 0] if tensor.dim() > 1 else tensor
            first.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max)


def chosen(blocks: Sequence[nn.Module], share: float) -> list[nn.Module]:
    """Return the blocks that are streamed, so many that they have this share of all bytes, spread evenly."""
    found, before, streamed = [], 0, 0
    for block in blocks:
        size = sum(tensor.nbytes for _, _, tensor in _frozen(block))
        before += size
        if size and streamed + size / 2 < share * before:
            found.append(block)
            streamed += size
    return found


def _on_host(module: nn.Module) -> _Block:
    """Copy the frozen weights of a module into one tensor of bytes in the computer's memory."""
    entries, first = [], 0
    for owner, name, tensor in _frozen(module):
        entries.append(_Entry(owner, name, first, torch.empty_like(tensor, device="meta")))
        first += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    device = "meta" if any(tensor.is_meta for _, _, tensor in _frozen(module)) else "cpu"
    host = torch.empty(first, dtype=torch.uint8, device=device)
    for entry in entries:
        own = getattr(entry.module, entry.name).detach()
        part = host[entry.first : entry.first + own.nbytes].view(own.dtype).view(own.shape)
        part.copy_(own)
    return _Block(module, entries, host)


def _frozen(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield the parameters that do not learn, and the buffers, with the module and the name that they have there."""
    for owner in module.modules():
        for name, tensor in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
            if not tensor.requires_grad and tensor.numel():
                yield owner, name, tensor


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _tensors(each)


def _unwatched(_count: int) -> None:
    """Nobody counts what comes and goes."""
