"""The demo model's three parts at their size, and CLIP's tokenizer for them.

The topology is that of Stable Diffusion 1.5 with narrow layers: 8x8x4 latents of 64x64 pictures.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.metadata import files

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PICTURE_SIZE = 64
LATENT_SIZE = 8
LATENT_CHANNELS = 4
LATENT_SCALE = 0.18215
TEXT_WIDTH = 64
TEXT_LENGTH = 77
VOCABULARY = 49408
START_TOKEN = 49406
END_TOKEN = 49407
TOKEN_SCALE = 0.1
TOKEN_SEED = 1234
MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"


def new_vae() -> AutoencoderKL:
    """A VAE with two resnets a level. Two groups in its norms: with few channels a group, flat colours are lost."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        sample_size=PICTURE_SIZE,
        scaling_factor=LATENT_SCALE,
    )


def new_unet() -> UNet2DConditionModel:
    """A UNet with the blocks of Stable Diffusion 1.5."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 64, 48, 32),
        layers_per_block=2,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=4,
    )


def new_text_encoder() -> CLIPTextModel:
    """A small CLIP text model whose token table is filled from a fixed seed."""
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=START_TOKEN,
        eos_token_id=END_TOKEN,
        pad_token_id=END_TOKEN,
    )
    model = CLIPTextModel(config)
    draws = torch.Generator().manual_seed(TOKEN_SEED)
    table = torch.randn((VOCABULARY, TEXT_WIDTH), generator=draws) * TOKEN_SCALE
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(table)
    return model


def _byte_letters() -> list[str]:
    """The printable letters that stand for the 256 bytes in CLIP's vocabulary, in its order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in plain]
    return letters + [chr(256 + place) for place in range(256 - len(plain))]


@cache
def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, built from the merges that the package openai-clip carries."""
    found = next(file for file in files("openai-clip") or () if file.name == MERGES_FILE)
    lines = gzip.decompress(found.read_binary()).decode().split("\n")
    merges = [(pair.split()[0], pair.split()[1]) for pair in lines[1 : VOCABULARY - 512 - 2 + 1]]
    letters = _byte_letters()
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: place for place, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH)


def tokenize(captions: list[str]) -> Tensor:
    """Token ids [captions, 77] (int64), padded with the end token as Stable Diffusion 1.x does."""
    encoded = tokenizer()(captions, padding="max_length", truncation=True, max_length=TEXT_LENGTH)
    return torch.tensor(encoded["input_ids"])
