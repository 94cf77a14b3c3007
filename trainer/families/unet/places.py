"""Under which names a layer's weight lies in files of every layout that a model of these families is found in."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.families.family import ComponentConfigs, Place
from trainer.families.unet.facts import UNET_PREFIX, StableFacts
from trainer.families.unet.weight_names import open_clip_name, unet_name
from trainer.targets import Target

LEVEL = "text_model."
"""What files have before the layers of a CLIP, in most layouts."""
_THIRDS = 3


def places(facts: StableFacts, target: Target, configs: ComponentConfigs) -> Iterator[Place]:
    """Yield where a layer's weight may lie: a checkpoint, a component's own file, or a diffusers folder."""
    encoder = next((each for each in facts.text_encoders if each.component == target.component), None)
    own = f"{target.path}.weight"
    if encoder is None:
        original = unet_name(own, configs["unet"])
        yield from (Place((name,)) for name in (UNET_PREFIX + original, original, own))
        return
    bare = own.removeprefix(LEVEL)
    joined, third = open_clip_name(LEVEL + bare)
    for prefix in (encoder.original, ""):
        yield Place((f"{prefix}{LEVEL}{bare}",))
        yield Place((f"{prefix}{bare}",))
        yield Place((f"{prefix}{joined}",)) if third is None else Place((f"{prefix}{joined}",), third, _THIRDS)
