"""Settings of captions: what is done to them each time, and how text encoders are given them."""

from __future__ import annotations

from typing import Any

from trainer.config.values import FLOW_ONLY, parse_extension, parse_steps_or_share
from trainer.process import FLOW
from trainer.settings.section import NO_ENTRY, NOT_THERE, OWN_NAME, Section, Show, There, setting

_OF_SUBSET: dict[str, Any] = {"resume": "learning", "within": "subset"}
"""Of settings that change what is learned, and that each folder may have for itself."""

_WORDS: dict[str, Any] = {**_OF_SUBSET, "metadata": NO_ENTRY, "sd_scripts": There("")}
"""Of marks and words, none of them unless they are given, of which no file tells."""


class CaptionsSection(Section):
    """The captions, and what is done to them each time they are read."""

    caption_extension: str = setting(
        ".txt",
        Show("Caption extension", group="Captions"),
        metadata=NO_ENTRY,
        sd_scripts=There(".caption", once=("caption_extention",)),
        parse=parse_extension,
        min_length=2,
        **_OF_SUBSET,
    )
    """How caption files end: picture.png has its caption in picture.txt.

    Where there is no such file, .caption (or .txt) is tried, then the words in the folder's name are used.
    """

    shuffle_caption: bool = setting(
        False,
        Show("Shuffle tags", group="Captions"),
        metadata=OWN_NAME,
        sd_scripts=There(False),
        **_OF_SUBSET,
    )
    """Put the comma-separated tags of a caption in a new random order each time.

    Tags in front weigh more, so shuffling teaches all alike. For lists of tags, not for sentences. Keep the trigger
    word in front with the setting below.
    """

    keep_tokens: int = setting(
        0,
        Show("Tags kept in front", group="Captions", widget="slider"),
        metadata=OWN_NAME,
        sd_scripts=There(0),
        ge=0,
        le=255,
        **_OF_SUBSET,
    )
    """The first so many tags stay in front: they are neither shuffled nor dropped.

    Set it to at least 1 when you shuffle, with the trigger word first in every caption. A caption prefix that ends with
    the tag separator counts as tags.
    """

    keep_tokens_separator: str = setting(
        "",
        Show("Mark of kept tags", group="Captions"),
        **_WORDS,
    )
    """A mark such as ||| in the captions: tags before it are kept in front, however many they are.

    A second mark in the same caption begins a part that is kept at the end. Takes the place of the number above in
    captions that hold it.
    """

    caption_separator: str = setting(
        ",",
        Show("Tag separator", group="Captions"),
        metadata=NO_ENTRY,
        sd_scripts=There(","),
        min_length=1,
        **_OF_SUBSET,
    )
    """What stands between the tags of a caption."""

    secondary_separator: str = setting(
        "",
        Show("Second separator", group="Captions"),
        **_WORDS,
    )
    """A mark such as ;;; that joins tags into one for shuffling and dropping; it becomes a tag separator afterwards."""

    caption_prefix: str = setting(
        "",
        Show("Caption prefix", group="Captions"),
        **_WORDS,
    )
    """Words put before every caption, with a space. Part of its first tag, unless they end with the tag separator."""

    caption_suffix: str = setting(
        "",
        Show("Caption suffix", group="Captions"),
        **_WORDS,
    )
    """Words put after every caption, with a space. Part of its last tag, unless they begin with the tag separator.

    They are shuffled and dropped as tags are.
    """

    caption_dropout_rate: float = setting(
        0.0,
        Show("Caption dropout", group="Caption dropout", widget="slider"),
        metadata=OWN_NAME,
        sd_scripts=There(0.0),
        ge=0,
        le=1,
        **_OF_SUBSET,
    )
    """Chance that a picture is trained without any caption.

    Teaches the look itself, for styles; 0.05 to 0.1 is in use. Too much and the trigger word loses its power.
    """

    caption_dropout_every_n_epochs: int = setting(
        0,
        Show("Caption dropout every", group="Caption dropout", unit="epochs"),
        metadata=OWN_NAME,
        sd_scripts=There(0),
        ge=0,
        le=1_000_000,
        **_OF_SUBSET,
    )
    """Train every so-manieth epoch without captions; 0 = never."""

    caption_tag_dropout_rate: float = setting(
        0.0,
        Show("Tag dropout", group="Caption dropout", widget="slider"),
        metadata=OWN_NAME,
        sd_scripts=There(0.0),
        ge=0,
        le=1,
        **_OF_SUBSET,
    )
    """Chance that each single tag is left out; tags kept in front stay."""

    enable_wildcard: bool = setting(
        False,
        Show("Wildcards in captions", group="Captions"),
        metadata=NO_ENTRY,
        sd_scripts=There(False),
        **_OF_SUBSET,
    )
    """Let a caption hold choices, {red|blue}, and several lines, one of which is taken at random each time.

    Write {{ and }} for braces that are meant as such.
    """

    token_warmup_min: int = setting(
        1,
        Show("Tags at the start", group="Captions", when={"token_warmup_step": "*"}),
        metadata=NO_ENTRY,
        sd_scripts=There(1),
        ge=1,
        le=1000,
        **_OF_SUBSET,
    )
    """With a tag warm-up: how many tags are used in the first step, beside those kept in front."""

    token_warmup_step: int | float = setting(
        0,
        Show("Tag warm-up", group="Captions", unit="steps"),
        metadata=NO_ENTRY,
        sd_scripts=There(0),
        parse=parse_steps_or_share,
        rule="0 for none, a whole number of steps, or a share of all steps below 1",
        **_OF_SUBSET,
    )
    """Begin with few tags of each caption and add the others over so many steps; 0 = use all from the start.

    Below 1 it is a share of all steps.
    """


class TextSection(Section):
    """How captions become what the UNet is given."""

    cache_text_encoder_outputs: bool = setting(
        False,
        Show("Encode captions ahead", group="Encoding captions"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Encode all captions before training and free the text encoders, which saves much memory with SDXL.

    Only where the text encoders are not trained. Captions that are shuffled or lose tags at random are encoded in
    several variants, one of which each step sees. With LoRAs in the model (base_weights) the text encoders stay in
    memory.
    """

    cache_text_encoder_outputs_to_disk: bool = setting(
        False,
        Show("Keep encoded captions on disk", group="Encoding captions"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Encode captions ahead into files, to be used again by the next run. Takes no memory while training."""

    caption_variants: int = setting(
        8,
        Show("Variants of a caption", group="Encoding captions", when={"cache_text_encoder_outputs": (True,)}),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
        ge=1,
        le=1000,
    )
    """In how many random variants each caption is encoded ahead, where it is shuffled or loses tags at random.

    More come nearer to a new variant in every step, and take more memory.
    """

    weighted_captions: bool = setting(
        False,
        Show("Weights in captions", group="Encoding captions"),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Read (word:1.2) and (word) in captions as stronger, [word] as weaker, as prompts in web UIs are.

    A backslash before a bracket makes it a plain one. Off: brackets are read as they stand.
    """

    qwen3_max_token_length: int = setting(
        512,
        Show("Longest caption for Qwen3", group="Encoding captions", unit="tokens", when=FLOW_ONLY),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(512, process=FLOW.name),
        ge=8,
        le=512,
    )
    """How many tokens Qwen3 takes of a caption; what is longer is cut off. Fewer make encoding faster."""

    t5_max_token_length: int = setting(
        512,
        Show("Longest caption in T5's words", group="Encoding captions", unit="tokens", when=FLOW_ONLY),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(512, process=FLOW.name),
        ge=8,
        le=512,
    )
    """How many of T5's tokens Anima's adapter takes of a caption; what is longer is cut off."""

    qwen3_tokenizer_path: str = setting(
        "",
        Show("Vocabulary of Qwen3", group="Encoding captions", widget="file", when=FLOW_ONLY),
        resume="fixed",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
    )
    """Qwen3's tokenizer.json, or its vocab.json with merges.txt beside it: a file, a folder or a Hugging Face name.

    Empty: the model's folder has it, or it lies beside Qwen3's file, or it is fetched once from Qwen/Qwen3-0.6B-Base,
    where Qwen3's publisher has it (some megabytes).
    """
