"""The layers of Chroma and T5 that adapters attach to, in the order in which kohya's files have them.

Names and order are those of sd-scripts' networks/lora_flux.py: FLUX.1's, without the modulations that Chroma has not.
No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.families.chroma.facts import DENOISER, T5
from trainer.families.family import ComponentConfigs
from trainer.families.flux.targets import block_targets, denoiser_target, t5_targets
from trainer.targets import Target

_MODULATION = "_mod"


def adapter_targets(configs: ComponentConfigs) -> tuple[Target, ...]:
    """List the layers that an adapter attaches to: T5, double blocks, single blocks, and the two before the blocks."""
    config = configs[DENOISER]
    blocks = (each for each in block_targets(config) if not each.group.endswith(_MODULATION))
    return (*t5_targets(configs[T5], T5), *blocks, *_before(config))


def _before(config: Mapping[str, Any]) -> Iterator[Target]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    yield denoiser_target("x_embedder", config["in_channels"], width, "img_in")
    yield denoiser_target("context_embedder", config["joint_attention_dim"], width, "txt_in")
