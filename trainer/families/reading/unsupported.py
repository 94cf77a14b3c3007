"""Files that are no checkpoint this version trains, told apart so that the refusal can name them.

Each entry is a row of a table: what it is, the tensor names that give it away, and what to do with it. The first row
that fits is the one named, so narrower rows stand before wider ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.families.reading.headers import Header

_ADAPTER_PREFIXES = ("lora_", "lycoris_", "oft_unet_")
_ADAPTER_SUFFIXES = (
    ".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".lora.down.weight",
)  # fmt: skip

_UNET = "model.diffusion_model."
_FIRST_CONV = f"{_UNET}input_blocks.0.0.weight"
_OPEN_CLIP = "cond_stage_model.model."
_INPAINTING_CHANNELS = 9
_EDIT_CHANNELS = 8

_BITSANDBYTES = (".absmax", ".quant_map")

_SMALL = (
    "Training reads 16 or 32 bits, or 8 with scales as ComfyUI has them; choose such a file, and quantize_base to keep "
    "the model small."
)
_INPAINTING_FLUX = "It also takes a mask and a picture, which training has not. Train on FLUX.1 dev."
_CONTROL = "It also takes a picture, which training has not. Train on FLUX.1 dev."
_KONTEXT = (
    "It is taught by pairs of pictures, before and after, which training has not. Train on FLUX.1 dev: Kontext loads "
    "such LoRAs too."
)
_REFINER = (
    "Train on the base model: the refiner sees only the last steps of a picture, and no program uses LoRAs on it."
)
_INPAINTING = (
    "Its UNet also takes a mask and a picture, which training has not. Train on the model that it was made from."
)


@dataclass(frozen=True, slots=True)
class Unsupported:
    """One kind of file: its name as it follows "is", how it is told from its header, and what to do instead."""

    title: str
    fits: Callable[[Header], bool]
    remedy: str = ""


def _named(*prefixes: str) -> Callable[[Header], bool]:
    """Fits files with a tensor under one of the prefixes, alone or inside a checkpoint."""
    inside = tuple(_UNET + prefix for prefix in prefixes)
    return lambda header: header.has(*prefixes, *inside)


def _input_channels(count: int) -> Callable[[Header], bool]:
    return lambda header: header.shapes.get(_FIRST_CONV, (0, 0))[1:2] == (count,)


def _token_of(width: int) -> Callable[[Header], bool]:
    """Fits transformers as FLUX.1's whose tokens have so many numbers."""
    names = ("img_in.weight", f"{_UNET}img_in.weight", "x_embedder.weight")
    return lambda header: (
        any(header.shapes.get(name, (0, 0))[1:2] == (width,) for name in names)
        and header.has("double_blocks.", f"{_UNET}double_blocks.", "single_transformer_blocks.")
    )


def says(header: Header, word: str) -> bool:
    """Say whether a file's name, or its title, has a word."""
    said = " ".join(header.metadata.get(f"modelspec.{key}", "") for key in ("architecture", "title"))
    return word in f"{header.name} {said}".lower()


def _is_textual_inversion(header: Header) -> bool:
    return bool(header.shapes) and set(header.shapes) <= {"emb_params", "clip_l", "clip_g"}


def is_adapter(header: Header) -> bool:
    """Say whether a file is an adapter's, of whatever kind: its layers have kohya's names, or its keys are others'."""
    return header.has(*_ADAPTER_PREFIXES) or header.ends(*_ADAPTER_SUFFIXES)


UNSUPPORTED: tuple[Unsupported, ...] = (
    Unsupported(
        "a LoRA file, not a base model",
        is_adapter,
        "To go on training it, set network_weights to it; pretrained_model_name_or_path takes the model under it.",
    ),
    Unsupported("a ControlNet", lambda header: header.has("control_model.", "controlnet_cond_embedding.")),
    Unsupported("an SDXL refiner", lambda header: header.has("conditioner.embedders.0.model."), _REFINER),
    Unsupported("an inpainting model", _input_channels(_INPAINTING_CHANNELS), _INPAINTING),
    Unsupported("an InstructPix2Pix model", _input_channels(_EDIT_CHANNELS)),
    Unsupported("a model after Karras (EDM), such as Playground 2.5 or CosXL", lambda header: header.has("edm_")),
    Unsupported(
        "an SDXL checkpoint without one of its text encoders", lambda header: header.has("conditioner.embedders.")
    ),
    Unsupported("a depth, upscaling or unCLIP model of Stable Diffusion 2", lambda header: header.has(_OPEN_CLIP)),
    Unsupported("a Stable Diffusion 3 model", _named("joint_blocks.")),
    Unsupported("a Flux 2 model", _named("single_stream_modulation.")),
    Unsupported("a Chroma Radiance model, which draws without a VAE", _named("nerf_blocks.", "nerf_image_embedder.")),
    Unsupported(
        "a model like Chroma",
        _named("distilled_guidance_layer."),
        "Its layers are not those of Chroma1; train on that.",
    ),
    Unsupported("a HunyuanVideo model", _named("txt_in.individual_token_refiner.")),
    Unsupported("a model in bitsandbytes' 4 bits", lambda header: header.ends(*_BITSANDBYTES), _SMALL),
    Unsupported("a FLUX.1 Fill model", _token_of(384), _INPAINTING_FLUX),
    Unsupported("a FLUX.1 Depth or Canny model", _token_of(128), _CONTROL),
    Unsupported("a FLUX.1 Kontext model", lambda header: _token_of(64)(header) and says(header, "kontext"), _KONTEXT),
    Unsupported("a Flux model", _named("double_blocks."), "Its layers are not those of FLUX.1 dev or schnell."),
    Unsupported("an AuraFlow model", _named("double_layers.")),
    Unsupported("an LTX-Video model", _named("patchify_proj.")),
    Unsupported(
        "a model like Anima",
        _named("llm_adapter.", "net.llm_adapter."),
        "Its layers are not those of Anima; train on that.",
    ),
    Unsupported(
        "a Cosmos model",
        _named("x_embedder.proj.1.", "net.x_embedder.proj.1."),
        "Anima, which was made from it, has an adapter for text in the same file.",
    ),
    Unsupported("a Lumina or Z-Image model", _named("cap_embedder.")),
    Unsupported("a Wan model", _named("head.modulation")),
    Unsupported("a Stable Cascade model", lambda header: header.has("clip_txt_mapper.")),
    Unsupported("a motion module", lambda header: any(".motion_modules." in name for name in header.shapes)),
    Unsupported(
        "a UNet without its text encoder",
        lambda header: header.has(f"{_UNET}input_blocks.", "input_blocks.", "down_blocks."),
        "Choose the whole checkpoint.",
    ),
    Unsupported(
        "a text encoder alone",
        lambda header: header.has("text_model.", "cond_stage_model.", "token_embedding.", "encoder.block.0."),
        "Choose the whole checkpoint.",
    ),
    Unsupported(
        "a VAE alone",
        lambda header: header.has("first_stage_model.", "decoder.", "encoder."),
        "Set the setting vae to it, and pretrained_model_name_or_path to a whole checkpoint.",
    ),
    Unsupported("a textual inversion (embedding)", _is_textual_inversion),
)


UNSUPPORTED_PIPELINES = {
    "StableDiffusionXLPipeline": "an SDXL model",
    "StableDiffusionXLImg2ImgPipeline": "an SDXL refiner",
    "StableDiffusionInpaintPipeline": "an inpainting model",
    "StableDiffusion3Pipeline": "a Stable Diffusion 3 model",
    "FluxFillPipeline": "a FLUX.1 Fill model, which also takes a mask and a picture, and training has none",
    "FluxControlPipeline": "a FLUX.1 Depth or Canny model, which also takes a picture, and training has none",
    "FluxKontextPipeline": "a FLUX.1 Kontext model, which is taught by pairs of pictures, and training has none",
}
"""Pipeline classes of diffusers folders, where the class's own name would say less."""


def holds_vae(header: Header) -> bool:
    """Say whether a file has a VAE, alone or in a checkpoint."""
    return header.has("first_stage_model.decoder.", "vae.decoder.", "decoder.conv_in.")


def name_file(header: Header) -> Unsupported:
    """Say what a file is that no family claims."""
    unknown = Unsupported("of a kind that this program does not know", lambda _: True)
    return next((foreign for foreign in UNSUPPORTED if foreign.fits(header)), unknown)
