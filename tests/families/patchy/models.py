"""The family's modules: a transformer over latents and words, text encoders of a line each, and a VAE of two."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.families.patchy import BLOCKS, LATENTS, LENGTHS, WIDTH

VOCABULARY = 97
TOKEN = LATENTS.channels * LATENTS.patch**2


class Block(nn.Module):
    """Attention over words and patches together, then two layers on each."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        heads = [part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=-1)]
        seen = functional.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None])
        tokens = tokens + self.out(seen.transpose(1, 2).flatten(2))
        mixed: Tensor = tokens + self.mlp(tokens)
        return mixed


class Transformer(nn.Module):
    """[b, 5, h, w] latents, [b] sigmas, [b, n, width] words with their mask -> [b, 5, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(TOKEN, WIDTH), nn.Linear(WIDTH, TOKEN)
        self.time, self.size = nn.Linear(1, WIDTH), nn.Linear(2, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.checkpointing = False

    def forward(self, latents: Tensor, sigmas: Tensor, words: Tensor, mask: Tensor, size: Tensor) -> Tensor:
        patch, (height, width) = LATENTS.patch, latents.shape[-2:]
        tokens = functional.pixel_unshuffle(latents, patch).flatten(2).transpose(1, 2)
        told = (self.time(sigmas[:, None]) + self.size(size))[:, None]
        tokens = torch.cat([words, self.inward(tokens) + told], dim=1)
        seen = torch.cat([mask, mask.new_ones(len(mask), tokens.shape[1] - mask.shape[1])], dim=1)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = torch.utils.checkpoint.checkpoint(block, tokens, seen, use_reentrant=False)
            else:
                tokens = block(tokens, seen)
        drawn = self.outward(tokens[:, words.shape[1] :]).transpose(1, 2)
        made: Tensor = functional.pixel_shuffle(drawn.unflatten(2, (height // patch, width // patch)), patch)
        return made


class Reader(nn.Module):
    """Token ids [b, n] -> states [b, n, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.mix(self.table(ids)).tanh()
        return states


class Vae(nn.Module):
    """Pixels [b, 3, H, W] -> mean and logarithm of the variance, [b, 10, H/16, W/16], and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 2 * LATENTS.channels, LATENTS.factor, LATENTS.factor)
        self.decoder = nn.ConvTranspose2d(LATENTS.channels, 3, LATENTS.factor, LATENTS.factor)


def modules(encoders: int, seed: int = 0) -> dict[str, nn.Module]:
    """Return every component with random weights; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        readers = {f"reader_{number}": Reader() for number in range(1, encoders + 1)}
        return {"transformer": Transformer(), "vae": Vae(), **readers}


def length_of(component: str) -> int:
    """Return how many tokens a text encoder takes."""
    return LENGTHS[int(component.rpartition("_")[2]) - 1]
