"""Settings of the base model."""

from __future__ import annotations

from typing import Any, Literal

from trainer.config.values import DDPM_ONLY, FLOW_ONLY
from trainer.families import FAMILIES
from trainer.process import FLOW
from trainer.settings.section import NO_ENTRY, NOT_THERE, OWN_NAME, Absence, Entry, Section, Show, There, setting

_TEXT_ENCODER: dict[str, Any] = {
    "resume": "learning",
    "metadata": NO_ENTRY,
    "sd_scripts": There("", process=FLOW.name),
}
"""Of settings that name the file of a text encoder; sd-scripts has them for models of rectified flow."""


class ModelSection(Section):
    """The base model that the LoRA is trained on."""

    pretrained_model_name_or_path: str = setting(
        "",
        Show(
            "Base model",
            tab="basic",
            group="Model",
            widget="file",
            place=1,
            also=("model", "base_model", "checkpoint", "model_path"),
        ),
        resume="learning",
        metadata=Entry("ss_sd_model_name", of_run=True),
        sd_scripts=There(Absence.REQUIRED),
    )
    """The model to train on: a .safetensors or .ckpt file, a diffusers folder, or a Hugging Face name.

    Take the model you will use the LoRA with, or the one its family descends from: a LoRA for Stable Diffusion 1.5
    works on models made from 1.5 and on no others. A LoRA file is not a base model.
    """

    model_family: str = setting(
        "auto",
        Show("Model family", group="Model"),
        resume="fixed",
        metadata=Entry("ss_base_model_version", of_run=True),
        sd_scripts=There("auto", name=None, switches={"v2": "sd2"}),
        choices=("auto", *FAMILIES),
    )
    """Which kind of model it is; "auto" recognises it from the file.

    Say it only where the file cannot be recognised.
    """

    v_parameterization: bool = setting(
        False,
        Show("V-prediction", group="Model", when=DDPM_ONLY),
        resume="learning",
        metadata=Entry("modelspec.prediction_type", of_run=True),
        sd_scripts=There(False),
    )
    """Train a model that predicts v (velocity) instead of noise.

    This must agree with how the base model was made; nearly every Stable Diffusion 1.5 model predicts noise. Wrongly
    set, samples turn to noise within a few steps.
    """

    clip_skip: int = setting(
        1,
        Show("Clip skip", group="Model", widget="slider"),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(1),
        ge=1,
        le=12,
    )
    """Use the text encoder's output this many layers from its end: 1 is the last layer, 2 the one before.

    2 for anime models that descend from NovelAI's, 1 for all others. Use the value with which you will make pictures:
    the words mean something slightly different at each layer.
    """

    max_token_length: Literal[75, 150, 225] = setting(
        75,
        Show("Longest caption", group="Model", unit="tokens"),
        resume="learning",
        metadata=Entry(write=lambda tokens: tokens if tokens > 75 else None),
        sd_scripts=There(75),
    )
    """How many tokens of a caption are read; what is longer is cut off.

    A token is a short word or a part of a long one; commas count. Longer captions are read in pieces of 75 and cost
    memory and time.
    """

    vae: str = setting(
        "",
        Show("VAE", group="Model", widget="file"),
        resume="learning",
        metadata=Entry("ss_vae_name", of_run=True),
        sd_scripts=There(""),
    )
    """Another VAE in place of the one inside the base model: a file or a folder. Empty: the model's own.

    The VAE turns pictures into latents before training; it is not trained. That of FLUX.1 is often called
    ae.safetensors, that of Anima qwen_image_vae.safetensors.
    """

    clip_l: str = setting(
        "",
        Show("CLIP-L text encoder", group="Model", widget="file"),
        **_TEXT_ENCODER,
    )
    """A text encoder from a file of its own, for a model whose file has none inside: CLIP ViT-L.

    Stable Diffusion 1.x, XL and FLUX.1 have one. Empty: the model's own.
    """

    clip_g: str = setting(
        "",
        Show("CLIP-G text encoder", group="Model", widget="file"),
        **_TEXT_ENCODER,
    )
    """The second text encoder of Stable Diffusion XL, OpenCLIP ViT-bigG, from a file of its own.

    Empty: the model's own.
    """

    t5xxl: str = setting(
        "",
        Show("T5-XXL text encoder", group="Model", widget="file", when=FLOW_ONLY),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There("", process=FLOW.name),
    )
    """The text encoder T5 XXL of FLUX.1 and Chroma, from a file of its own. Empty: the model's own.

    Files in 8 bits are read too, those that ComfyUI calls "scaled" with their scales.
    """

    qwen3: str = setting(
        "",
        Show("Qwen3 text encoder", group="Model", widget="file", when=FLOW_ONLY),
        **_TEXT_ENCODER,
    )
    """The text encoder Qwen3 0.6B of Anima, from a file of its own. Empty: the model's own."""

    t5xxl_max_token_length: int | None = setting(
        None,
        Show("Longest caption for T5", group="Model", unit="tokens", when=FLOW_ONLY),
        resume="learning",
        metadata=NO_ENTRY,
        sd_scripts=There(None, process=FLOW.name),
        zero_is_off=True,
        ge=8,
        le=512,
    )
    """How many tokens T5 takes; what is longer is cut off. Left out it is the model's: 512 for dev, 256 for schnell.

    A shorter text is filled up to this length, so fewer tokens make steps faster; captions of a sentence fit into 128.
    """

    apply_t5_attn_mask: bool = setting(
        False,
        Show("Mask the padding of T5", group="Model", when=FLOW_ONLY),
        resume="learning",
        metadata=OWN_NAME,
        sd_scripts=There(False, process=FLOW.name),
    )
    """Hide what fills up a caption from T5 and from the transformer.

    FLUX.1 was not trained so and is not used so anywhere, so leave it off for it. Chroma is always trained so.
    """

    t5_tokenizer_path: str = setting(
        "",
        Show("Vocabulary of T5", group="Model", widget="file", when=FLOW_ONLY),
        resume="fixed",
        metadata=NO_ENTRY,
        sd_scripts=There("", matters=False, process=FLOW.name),
    )
    """T5's tokenizer.json or spiece.model: a file, a folder or a Hugging Face name.

    Empty: the model's folder has it, or it lies beside T5's file, or it is fetched once from google/t5-v1_1-xxl, where
    T5's publisher has it (a megabyte).
    """

    no_half_vae: bool = setting(
        False,
        Show("VAE in full precision", group="Model"),
        resume="rounding",
        metadata=NO_ENTRY,
        sd_scripts=There(False),
    )
    """Run the VAE in float32 whatever the precision of training.

    Cures black pictures and NaN losses of VAEs that overflow in fp16. Costs memory and some time while latents are
    cached and samples drawn.
    """

    quantize_base: Literal["none", "int8", "fp8", "nf4"] = setting(
        "none",
        Show("Smaller base model", group="Model"),
        resume="learning",
        metadata=Entry("ss_fp8_base_unet", write=lambda value: value == "fp8"),
        sd_scripts=There("none", name=None, switches={"fp8_base_unet": "fp8", "fp8_base": "fp8"}),
    )
    """Keep the linear layers of the base model in 8 or 4 bits a weight while training, to save memory.

    Of UNet or transformer, and of text encoders that don't learn; int8 is for convolutions too. The LoRA itself trains
    in full precision and fits the whole model. int8 changes next to nothing, fp8 a little, nf4 more; all make steps
    slower. Weights are made whole again where they are used, so no special GPU is needed. Captions that are encoded
    ahead are encoded by whole text encoders.
    """


class MemorySection(Section):
    """What is done to need less of the graphics card's memory."""

    streamed_weights: float = setting(
        0.0,
        Show("Streamed weights", group="Model", also=("blocks_to_swap",)),
        resume="rounding",
        metadata=NO_ENTRY,
        sd_scripts=NOT_THERE,
        ge=0.0,
        le=1.0,
    )
    """Keep this share of the UNet's or transformer's weights in the computer's memory, to save the graphics card's.

    Each block comes to the card shortly before it is used, while another computes. 0.5 halves what the weights take
    there, for somewhat more time a step; the result is the same. The computer needs as much free memory.
    """
