"""Which layers each of LyCORIS' presets adapts, by what a target says and by its kohya name.

The lists are those of lycoris-lora 3.2.0.post2. Later versions meet a layer twice on SD 1.5. Its preset "ia3" meets no
layer at all; here it has those that it was written for.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

from trainer.ground.errors import ConfigError, Problem
from trainer.ground.paths import open_regular
from trainer.targets import Target

_ATTENTION = re.compile(r"_(attn1|attn2|self_attn|cross_attn|img_attn|txt_attn|SelfAttention)_")
_IA3 = re.compile(r"_(to_k|to_v|k_proj|v_proj|ff_net_2|mlp_fc2|mlp_layer2)$")
_SQUARE = (3, 3)


def _is_text(target: Target) -> bool:
    return target.name.startswith("lora_te")


PRESETS: Mapping[str, Callable[[Target], bool]] = {
    "full": lambda target: True,
    "full-lin": lambda target: target.kernel != _SQUARE,
    "attn-mlp": lambda target: not target.extra,
    "attn-only": lambda target: bool(_ATTENTION.search(target.name)),
    "unet-only": lambda target: not _is_text(target),
    "unet-transformer-only": lambda target: not _is_text(target) and not target.extra,
    "unet-convblock-only": lambda target: target.extra and not (target.rim and target.kernel is None),
    "ia3": lambda target: bool(_IA3.search(target.name)),
}
"""Preset -> whether a layer is adapted. Kernels larger than 1 need a `conv_dim` too."""


def adapts(preset: str, target: Target) -> bool:
    """Say whether a preset adapts a layer."""
    return PRESETS[preset](target)


@dataclass(frozen=True, slots=True)
class Coverage:
    """A preset of one's own, as LyCORIS reads it: classes whose layers are adapted, and names of single layers.

    Classes and names are those of the models that sd-scripts makes. Names are regular expressions that fit from a
    name's beginning, or patterns of a shell.
    """

    classes: frozenset[str]
    names: tuple[str, ...]
    text_classes: frozenset[str]
    text_names: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    shell: bool = False
    convolutions: bool = True

    def adapts(self, target: Target) -> bool:
        """Say whether a layer is adapted; kernels larger than 1 need `convolutions` and a `conv_dim` too."""
        name = dotted(target.name)
        classes, names = (self.text_classes, self.text_names) if _is_text(target) else (self.classes, self.names)
        if any(self._fits(each, name) for each in self.excluded) or not (self.convolutions or target.kernel != _SQUARE):
            return False
        return not classes.isdisjoint(classes_of(target)) or any(self._fits(each, name) for each in names)

    def _fits(self, pattern: str, name: str) -> bool:
        return fnmatchcase(name, pattern) if self.shell else bool(re.match(pattern, name))


def read_coverage(path: Path) -> Coverage:
    """Read a preset of LyCORIS. Raises ConfigError, naming the setting, where it is none or asks for other things."""
    try:
        with open_regular(path) as file:
            said = tomllib.loads(file.read().decode("utf-8"))
        return _coverage(said)
    except OSError as error:
        reason = f"{path} can't be read: {error.strerror or error}."
    except (ValueError, re.error) as error:
        reason = f"{path} is no preset of LyCORIS: {error}."
    raise ConfigError([Problem("lycoris_preset_file", reason, str(path))])


def _coverage(said: Mapping[str, object]) -> Coverage:
    """Return what a preset says; what it leaves out is as in the preset "full". Raises ValueError."""
    if unknown := sorted(said.keys() - {*_LISTS, *_SWITCHES, *_MAPS}):
        raise ValueError(f"it says {unknown[0]}, which is none of {', '.join((*_LISTS, *_SWITCHES))}")
    for key in _MAPS:
        if said.get(key):
            raise ValueError(f"{key} gives layers other kinds or ranks, which is not done here; see network_reg_dims")
    lists = {key: said.get(key, default) for key, default in _LISTS.items()}
    switches = {key: said.get(key, default) for key, default in _SWITCHES.items()}
    for key, value in lists.items():
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            raise ValueError(f"{key} must be a list of names")
    for key, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{key} must be true or false")
    found = {key: tuple(map(str, cast("Iterable[object]", value))) for key, value in lists.items()}
    if not switches["use_fnmatch"]:
        for pattern in (*found["unet_target_name"], *found["text_encoder_target_name"], *found["exclude_name"]):
            re.compile(pattern)
    return Coverage(
        frozenset(found["unet_target_module"]),
        found["unet_target_name"],
        frozenset(found["text_encoder_target_module"]),
        found["text_encoder_target_name"],
        found["exclude_name"],
        bool(switches["use_fnmatch"]),
        bool(switches["enable_conv"]),
    )


_LISTS: Mapping[str, tuple[str, ...]] = {
    "unet_target_module": ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"),
    "unet_target_name": ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"),
    "text_encoder_target_module": ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP"),
    "text_encoder_target_name": (),
    "exclude_name": (),
}
_SWITCHES: Mapping[str, bool] = {"enable_conv": True, "use_fnmatch": False}
_MAPS = ("module_algo_map", "name_algo_map")
"""What a preset may say, with what LyCORIS takes where it doesn't."""

_CLASSES = (
    (re.compile(r"_(attentions_\d+|(?:input|output)_blocks_\d+_1|middle_block_1)_(proj_in|proj_out|transformer)"),
     ("Transformer2DModel",)),
    (re.compile(r"_transformer_blocks_\d+_"), ("BasicTransformerBlock",)),
    (re.compile(r"_attn[12]_"), ("CrossAttention", "Attention")),
    (re.compile(r"_ff_net_"), ("FeedForward",)),
    (re.compile(r"_(resnets_\d+|(?:input|output)_blocks_\d+_0|middle_block_[02])_"
                r"(conv|time_emb|in_layers|out_layers|emb_layers|skip)"), ("ResnetBlock2D",)),
    (re.compile(r"_(downsamplers_\d+_|input_blocks_\d+_0_op)"), ("Downsample2D",)),
    (re.compile(r"_(upsamplers_\d+_|output_blocks_\d+_[12]_conv)"), ("Upsample2D",)),
    (re.compile(r"_self_attn_"), ("CLIPAttention", "CLIPSdpaAttention", "CLIPEncoderLayer")),
    (re.compile(r"_mlp_"), ("CLIPMLP", "CLIPEncoderLayer")),
)  # fmt: skip
"""Part of a kohya name -> classes of sd-scripts' models that such a layer is in."""


def classes_of(target: Target) -> frozenset[str]:
    """Return the classes that a layer is in."""
    return frozenset(each for pattern, classes in _CLASSES if pattern.search(target.name) for each in classes)


_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "input_blocks", "middle_block", "output_blocks",
    "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out", "conv_in", "conv_out", "conv_shortcut", "time_embedding",
    "time_emb_proj", "time_embed", "label_emb", "linear_1", "linear_2", "in_layers", "out_layers", "emb_layers",
    "skip_connection", "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj",
)  # fmt: skip
"""Names of modules with a low line in them; every other one in a kohya name stands for a dot."""
_PREFIX = re.compile(r"lora_(unet|te\d?)_")
_LOW_LINE = re.compile(rf"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])|_")


def dotted(name: str) -> str:
    """Return the path of a layer in sd-scripts' models, from its kohya name."""
    return _LOW_LINE.sub(lambda found: found[1] or ".", _PREFIX.sub("", name, count=1))
