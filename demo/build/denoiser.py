"""Pretraining of the UNet and the text encoder together, on latents of the finished VAE."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from demo.build import dataset
from demo.build.autoencoder import chunks, read_vae
from demo.build.models import (
    END_TOKEN,
    LATENT_SCALE,
    START_TOKEN,
    TEXT_LENGTH,
    new_text_encoder,
    new_unet,
    tokenize,
)
from demo.build.pair import PROCESSES, Budget, descend, rate, run_together, running_mean

LOGGER = logging.getLogger(__name__)
PEAK_RATE = 1.5e-3
WARMUP = 100
BATCH = 12
MEMORY = 0.998
TIMESTEPS = 1000
SNR_LIMIT = 5.0
EMPTY_SHARE = 0.10
STRANGE_SHARE = 0.10
LATENTS = "latents.pt"
FILE = "denoiser.pt"
SAVE_EVERY = 500


def signal_share() -> Tensor:
    """The cumulative product of alphas [1000] of Stable Diffusion's "scaled linear" schedule (float32)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


class TaughtWords(nn.Module):
    """A token table of which only the grammar's words are trained; all other rows keep their start values.

    So words that never occur stay what they were drawn as: the table can take any caption, and a LoRA any trigger.
    """

    table: Tensor
    place: Tensor

    def __init__(self, table: Tensor, words: Tensor) -> None:
        super().__init__()
        place = torch.full((len(table),), -1).index_copy_(0, words, torch.arange(len(words)))
        self.register_buffer("table", table.detach().clone(), persistent=False)
        self.register_buffer("place", place, persistent=False)
        self.words = nn.Parameter(table[words].detach().clone())

    def forward(self, token_ids: Tensor) -> Tensor:
        """Embeddings [b, tokens, width] of the ids [b, tokens]."""
        place = self.place[token_ids]
        return torch.where((place >= 0)[..., None], self.words[place.clamp(min=0)], self.table[token_ids])

    def merged(self) -> Tensor:
        """The whole table with the trained rows in it."""
        known = (self.place >= 0)[:, None]
        return torch.where(known, self.words[self.place.clamp(min=0)], self.table).detach()


class Denoiser(nn.Module):
    """UNet and text encoder as one module: (noisy latents, timesteps, token ids) -> predicted noise."""

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        self.unet = new_unet()
        self.text = new_text_encoder()
        self.text.set_input_embeddings(TaughtWords(self.text.get_input_embeddings().weight, words))

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        """Predicted noise [b, 4, h, w] for noisy latents of that shape, timesteps [b] and ids [b, 77]."""
        context = self.text(input_ids=token_ids).last_hidden_state
        predicted: Tensor = self.unet(noisy, timesteps, context).sample
        return predicted


def grammar_words(token_ids: Tensor) -> Tensor:
    """The distinct token ids of all captions, the two special ones included."""
    return token_ids.unique()


def with_strange_words(token_ids: Tensor, draws: torch.Generator) -> Tensor:
    """Puts one or two random tokens into a caption [77], as a user's unknown words would stand there."""
    words = token_ids[1 : int((token_ids == END_TOKEN).int().argmax())].tolist()
    for _ in range(int(torch.randint(1, 3, (), generator=draws))):
        place = int(torch.randint(len(words) + 1, (), generator=draws))
        words.insert(place, int(torch.randint(START_TOKEN, (), generator=draws)))
    padded = torch.full((TEXT_LENGTH,), END_TOKEN)
    padded[: len(words) + 1] = torch.tensor([START_TOKEN, *words])
    return padded


def training_captions(token_ids: Tensor, draws: torch.Generator) -> Tensor:
    """The captions [b, 77] of a batch, some emptied and some with strange words."""
    chances = torch.rand(len(token_ids), generator=draws).tolist()
    rows = []
    for row, chance in zip(token_ids, chances, strict=True):
        if chance < EMPTY_SHARE:
            empty = torch.full((TEXT_LENGTH,), END_TOKEN)
            empty[0] = START_TOKEN
            rows.append(empty)
        else:
            rows.append(with_strange_words(row, draws) if chance < EMPTY_SHARE + STRANGE_SHARE else row)
    return torch.stack(rows)


def spread_timesteps(count: int, draws: torch.Generator) -> Tensor:
    """One timestep from each of ``count`` equal ranges: less noise in the gradient than independent draws."""
    places = torch.arange(count) + torch.rand(count, generator=draws)
    return (places * TIMESTEPS / count).long().clamp(max=TIMESTEPS - 1)


def add_noise(latents: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """DDPM's forward process: sqrt(share) * latents + sqrt(1 - share) * noise, share [b]."""
    share = share[:, None, None, None]
    return share.sqrt() * latents + (1 - share).sqrt() * noise


@torch.no_grad()
def encode_all(vae: AutoencoderKL, work: Path) -> None:
    """Caches mean and deviation of the scaled latents, and the token ids, of both captioned sets."""
    sets = {}
    for name in ("train", "held_out"):
        drawings = dataset.read(name, work)
        means, deviations = [], []
        for part in chunks(torch.from_numpy(drawings.pictures), 100):
            posterior = vae.encode(dataset.as_pixels(part.numpy())).latent_dist
            means.append(posterior.mean * LATENT_SCALE)
            deviations.append(posterior.std * LATENT_SCALE)
        ids = tokenize(list(drawings.captions))
        sets[name] = {"mean": torch.cat(means), "deviation": torch.cat(deviations), "ids": ids}
    torch.save(sets, work / LATENTS)
    LOGGER.info("latents cached: mean %.4f deviation %.4f", sets["train"]["mean"].mean(), sets["train"]["mean"].std())


@torch.no_grad()
def held_out_loss(model: nn.Module, held_out: dict[str, Tensor]) -> float:
    """Mean squared error of the predicted noise at fixed noise and spread timesteps."""
    draws = torch.Generator().manual_seed(5)
    latents, ids = held_out["mean"], held_out["ids"]
    noise = torch.randn(latents.shape, generator=draws)
    timesteps = spread_timesteps(len(latents), draws)[torch.randperm(len(latents), generator=draws)]
    noisy = add_noise(latents, noise, signal_share()[timesteps])
    errors = [
        (model(noisy[part], timesteps[part], ids[part]) - noise[part]).square().mean(dim=(1, 2, 3))
        for part in chunks(torch.arange(len(latents)))
    ]
    return float(torch.cat(errors).mean())


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with decay on the matrices alone; a frozen or word row is never decayed."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    matrices = [value for name, value in named if value.ndim > 1 and "token_embedding" not in name]
    others = [value for name, value in named if value.ndim <= 1 or "token_embedding" in name]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.99), fused=True)


class _Trainer:
    """State of one of the two processes."""

    def __init__(self, rank: int, work: Path, seed: int, resume: bool, peak: float) -> None:
        sets = torch.load(work / LATENTS, weights_only=True)
        self.rank, self.work, self.peak, self.step = rank, work, peak, 0
        self.train, self.held_out = sets["train"], sets["held_out"]
        torch.manual_seed(seed)
        self.model = Denoiser(grammar_words(self.train["ids"]))
        self.parameters = list(self.model.parameters())
        self.optimizer = _optimizer(self.model)
        if resume:
            saved = torch.load(work / FILE, weights_only=True)
            self.model.load_state_dict(saved["mean"])
            if "optimizer" in saved:
                self.optimizer.load_state_dict(saved["optimizer"])
            self.step = int(saved["step"])
        self.mean = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.draws = torch.Generator().manual_seed(seed + 1 + rank + self.step)
        self.share = signal_share()

    def loss(self) -> Tensor:
        """Min-SNR weighted noise loss (Hang et al. 2023, gamma 5) of one batch of this process."""
        draws, train = self.draws, self.train
        chosen = torch.randint(len(train["ids"]), (BATCH,), generator=draws)
        mean, deviation = train["mean"][chosen], train["deviation"][chosen]
        latents = mean + deviation * torch.randn(mean.shape, generator=draws)
        noise = torch.randn(mean.shape, generator=draws)
        timesteps = spread_timesteps(BATCH, draws)
        share = self.share[timesteps]
        ids = training_captions(train["ids"][chosen], draws)
        error = self.model(add_noise(latents, noise, share), timesteps, ids) - noise
        ratio = share / (1 - share)
        weights = ratio.clamp(max=SNR_LIMIT) / ratio
        return (weights * error.square().mean(dim=(1, 2, 3))).mean()

    def update(self, progress: float, first: int) -> float:
        """One optimizer step in both processes; returns this one's loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(progress, self.step - first, peak=self.peak, warmup=WARMUP)
        loss = self.loss()
        descend(self.optimizer, loss, self.parameters)
        self.step += 1
        running_mean(self.mean, self.parameters, self.step, MEMORY)
        return float(loss.detach())

    def save(self, progress: float, smooth: float, elapsed: float) -> None:
        """Writes the averaged weights and the optimizer's state, and logs the held-out loss of the former."""
        current = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.mean)
        loss = held_out_loss(self.model, self.held_out)
        self.model.load_state_dict(current)
        state = {"mean": self.mean, "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, self.work / (FILE + ".part"))
        (self.work / (FILE + ".part")).replace(self.work / FILE)
        LOGGER.info(
            "step %d progress %.3f seconds %.0f loss %.4f held-out %.4f", self.step, progress, elapsed, smooth, loss
        )


def _train(rank: int, work: Path, budget: Budget, seed: int, resume: bool, peak: float) -> None:
    trainer = _Trainer(rank, work, seed, resume, peak)
    started, progress, smooth, first = time.process_time(), 0.0, 0.0, trainer.step
    while progress < 1:
        loss = trainer.update(progress, first)
        smooth = loss if trainer.step == first + 1 else 0.98 * smooth + 0.02 * loss
        progress = budget.progress(trainer.step - first, started)
        if rank == 0 and (trainer.step % SAVE_EVERY == 0 or progress >= 1 or trainer.step == first + 20):
            trainer.save(progress, smooth, time.process_time() - started)


def train_denoiser(
    work: Path,
    budget: Budget,
    *,
    seed: int = 21,
    resume: bool = False,
    peak: float = PEAK_RATE,
    processes: int = PROCESSES,
) -> None:
    """Trains UNet and text encoder into the work folder; ``resume`` goes on from its averaged weights."""
    if not (work / LATENTS).exists():
        encode_all(read_vae(work), work)
    run_together(_train, work, budget, seed, resume, peak, processes=processes)


def unpack_denoiser(unet: UNet2DConditionModel, text: CLIPTextModel, work: Path) -> None:
    """Puts finished parts into the work folder, for ``resume`` to go on from them with a fresh optimizer."""
    words = grammar_words(torch.load(work / LATENTS, weights_only=True)["train"]["ids"])
    model = Denoiser(words)
    model.unet.load_state_dict(unet.state_dict())
    table = text.get_input_embeddings().weight
    text.set_input_embeddings(TaughtWords(table, words))
    model.text.load_state_dict(text.state_dict())
    torch.save({"mean": {name: value.data for name, value in model.named_parameters()}, "step": 0}, work / FILE)


def read_denoiser(work: Path = dataset.WORK) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The averaged UNet and text encoder of the work folder, the token table whole again."""
    saved = torch.load(work / FILE, weights_only=True)["mean"]
    model = Denoiser(grammar_words(torch.load(work / LATENTS, weights_only=True)["train"]["ids"]))
    model.load_state_dict(saved)
    table = model.text.get_input_embeddings().merged()
    model.text.set_input_embeddings(nn.Embedding.from_pretrained(table))
    unet, text = model.unet, model.text
    return unet.eval().requires_grad_(False), text.eval().requires_grad_(False)
