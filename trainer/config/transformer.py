"""Settings of where an adapter of a transformer such as FLUX.1's is large or small: by blocks and kinds of layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from trainer.config.values import FLOW_ONLY, parse_in_dims, parse_indices
from trainer.process import FLOW
from trainer.settings.section import Entry, Section, Show, There, setting

_GROUP = "Transformer"
_BEFORE = ("img_in", "time_in", "vector_in", "guidance_in", "txt_in")
"""The layers that `in_dims` has a number for, in its order."""
_SUFFIX = "_dim"
_PACKED: dict[str, Any] = {"resume": "fixed", "metadata": Entry("ss_network_args", of_run=True)}


def _rank(label: str, **more: Any) -> Any:
    there = There(None, inside="network_args", process=FLOW.name)
    return setting(None, Show(label, group=_GROUP, when=FLOW_ONLY), sd_scripts=there, ge=0, le=4096, **_PACKED, **more)


def _blocks(label: str) -> Any:
    there = There("all", inside="network_args", process=FLOW.name)
    return setting(
        "all",
        Show(label, group=_GROUP, when=FLOW_ONLY),
        sd_scripts=there,
        parse=parse_indices,
        rule='"all", "none", or numbers and ranges such as 0,1,5-8',
        **_PACKED,
    )


class TransformerSection(Section):
    """Which blocks of a transformer are trained, and ranks by kind of layer in place of one for all."""

    train_t5xxl: bool = setting(
        False,
        Show("Train T5 too", group=_GROUP, when=FLOW_ONLY),
        sd_scripts=There(False, inside="network_args", process=FLOW.name),
        **_PACKED,
    )
    """Train the text encoder T5 XXL too, at the last of the text encoders' rates.

    Costs ten gigabytes of memory, and few programs read what it gives.
    """

    train_llm_adapter: bool = setting(
        False,
        Show("Train the text adapter too", group=_GROUP, when=FLOW_ONLY),
        sd_scripts=There(False, inside="network_args", process=FLOW.name),
        **_PACKED,
    )
    """Train Anima's adapter for text too, at the transformer's rate: it makes of Qwen3's states what that reads."""

    split_qkv: bool = setting(
        False,
        Show("Query, key and value apart", group=_GROUP, when=FLOW_ONLY),
        sd_scripts=There(False, inside="network_args", process=FLOW.name),
        **_PACKED,
    )
    """Train query, key, value (and the first feed-forward layer of single blocks) with two matrices each, not as one.

    Each of them then learns on its own, for a file that is larger by half. It is read everywhere at the strength that
    was trained. For network_type "lora" alone.
    """

    train_blocks: Literal["all", "double", "single"] = setting(
        "all",
        Show("Blocks", group=_GROUP, when=FLOW_ONLY),
        sd_scripts=There("all", inside="network_args", process=FLOW.name),
        **_PACKED,
    )
    """Train all blocks, or only the double ones (text and picture apart) or the single ones behind them.

    "single" makes the file half as large and steps faster.
    """

    train_double_block_indices: str = _blocks("Double blocks")
    """Which of the double blocks are trained: "all", "none", or numbers and ranges such as 0,1,5-8."""

    train_single_block_indices: str = _blocks("Single blocks")
    """Which of the single blocks are trained: "all", "none", or numbers and ranges such as 0,1,5-8."""

    img_attn_dim: int | None = _rank("Rank of attention, picture")
    """The rank of the attention of double blocks on the picture's side; 0 leaves it out. Empty: the rank of all."""

    txt_attn_dim: int | None = _rank("Rank of attention, text")
    """The rank of the attention of double blocks on the text's side; 0 leaves it out. Empty: the rank of all."""

    img_mlp_dim: int | None = _rank("Rank of feed-forward, picture")
    """The rank of the feed-forward of double blocks on the picture's side; 0 leaves it out. Empty: the rank of all."""

    txt_mlp_dim: int | None = _rank("Rank of feed-forward, text")
    """The rank of the feed-forward of double blocks on the text's side; 0 leaves it out. Empty: the rank of all."""

    img_mod_dim: int | None = _rank("Rank of modulation, picture")
    """The rank of the modulation of double blocks on the picture's side; 0 leaves it out. Empty: the rank of all."""

    txt_mod_dim: int | None = _rank("Rank of modulation, text")
    """The rank of the modulation of double blocks on the text's side; 0 leaves it out. Empty: the rank of all."""

    single_dim: int | None = _rank("Rank of single blocks")
    """The rank of attention and feed-forward of the single blocks; 0 leaves them out. Empty: the rank of all."""

    single_mod_dim: int | None = _rank("Rank of modulation, single blocks")
    """The rank of the modulation of the single blocks; 0 leaves it out. Empty: the rank of all."""

    in_dims: tuple[int, ...] = setting(
        (),
        Show("Ranks of the first layers", group=_GROUP, widget="list", when=FLOW_ONLY),
        sd_scripts=There((), inside="network_args", process=FLOW.name),
        parse=parse_in_dims,
        rule="five whole numbers from 0 to 4096, for picture, time, vector, guidance and text",
        **_PACKED,
    )
    """The ranks of the layers before the blocks: five numbers, for picture, time, vector, guidance and text.

    Empty or 0: they are left as they are. diffusers does not load these layers.
    """

    @property
    def group_dims(self) -> Mapping[str, int]:
        """{kind of layer: its rank} of those that have one of their own."""
        ranks = {
            key.removesuffix(_SUFFIX): rank
            for key in type(self).model_fields
            if key.endswith(_SUFFIX) and (rank := getattr(self, key)) is not None
        }
        return {**ranks, **dict(zip(_BEFORE, self.in_dims, strict=False))}

    @property
    def trained_blocks(self) -> Mapping[str, str]:
        """{kind of block: which of them are trained}, where not all are."""
        wanted = {"double": self.train_double_block_indices, "single": self.train_single_block_indices}
        if self.train_blocks != "all":
            wanted = {kind: which if kind == self.train_blocks else "none" for kind, which in wanted.items()}
        return {kind: which for kind, which in wanted.items() if which != "all"}

    @property
    def packed(self) -> Mapping[str, str]:
        """What of these settings stands in sd-scripts' `network_args`, as it writes it."""
        found = {}
        for key, field in type(self).model_fields.items():
            value = getattr(self, key)
            if value != field.default:
                found[key] = str(list(value)) if isinstance(value, tuple) else str(value)
        return found
