"""The layers of a LoRA, each cut to a lower rank."""

from __future__ import annotations

from contextlib import ExitStack

from trainer.adapters import AdapterHeader
from trainer.ground.control import Progress
from trainer.tools.effects import Effects
from trainer.tools.low_rank import Cut
from trainer.tools.merging import Written
from trainer.tools.models import Model
from trainer.tools.resize import ResizeArguments


def resized(
    header: AdapterHeader, base: Model | None, arguments: ResizeArguments, device: str, progress: Progress
) -> Written:
    """Return a LoRA's layers at the ranks that are asked for.

    Raises:
        ModelError: a file cannot be read.
        Stopped: `progress` says so.
    """
    written = Written()
    method, parameter = arguments.dynamic_method, arguments.dynamic_param or 0.0
    with ExitStack() as stack:
        effects = Effects([header], base, stack)
        for done, name in enumerate(header.modules):
            progress("resizing", done, len(header.modules))
            kernel = effects.kernels.get(name, ())
            most = (arguments.new_conv_rank if any(side > 1 for side in kernel) else None) or arguments.new_rank
            written.take(name, Cut(most, method, parameter)(effects.of(effects.loras[0], name), device), kernel)
    return written
