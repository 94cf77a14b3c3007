"""Streamed weights: a run with them is bit for bit the run without, and no more of them is on the device than said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.helpers import flux
from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.families import TINY
from tests.helpers.runs import tiny_settings, write_dataset
from trainer import families
from trainer.config import load_config
from trainer.families.reading import streamed
from trainer.families.reading.streamed import StreamedWeights, chosen
from trainer.families.text.tokens import as_batch
from trainer.ground.events import Event
from trainer.run import Start, train

UNET_ALONE = {"network_train_unet_only": True, "text_encoder_lr": 0.0, "max_train_steps": 3}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a tiny model of each kind of denoiser."""
    folder = write_dataset(tmp_path_factory.mktemp("streaming"))
    tiny_sd15(folder)
    TINY["sdxl"].write_file(folder / "tiny_sdxl.safetensors")
    flux.write_checkpoint(folder / "tiny_flux.safetensors")
    return folder


def trained(ground: Path, output: Path, model: str, **changed: object) -> bytes:
    """Train a few steps and return the bytes of the LoRA's tensors."""
    path = ground / f"tiny_{model}.safetensors"
    changed = {"no_metadata": True, **changed}
    train(
        load_config(overrides=tiny_settings(path, ground, output, **changed)), emit=unheard, start=Start(resume="auto")
    )
    written = (output / "tiny.safetensors").read_bytes()
    return written[8 + int.from_bytes(written[:8], "little") :]


def unheard(event: Event) -> None:
    """Nobody listens."""


@pytest.mark.parametrize(
    ("model", "share", "changed"),
    [
        ("sd15", 1.0, {"max_train_steps": 3, "sample_prompts": "a tok --s 2", "sample_every_n_steps": 2}),
        ("sd15", 0.5, {**UNET_ALONE, "mixed_precision": "bf16", "gradient_checkpointing": True}),
        ("sdxl", 0.6, {**UNET_ALONE, "mixed_precision": "bf16", "quantize_base": "int8"}),
        ("flux", 1.0, {**UNET_ALONE, "gradient_checkpointing": True, "cache_text_encoder_outputs": True}),
        ("flux", 0.5, {**UNET_ALONE, "mixed_precision": "bf16"}),
    ],
)
def test_streamed_is_unstreamed_bit_for_bit(
    ground: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    share: float,
    changed: Mapping[str, object],
) -> None:
    made: list[StreamedWeights] = []
    most: list[int] = []
    begin, fetch = StreamedWeights.__init__, StreamedWeights._fetch

    def note(self: StreamedWeights, blocks: list[nn.Module], share: float) -> None:
        begin(self, blocks, share)
        made.append(self)
        everything = sum(tensor.nbytes for block in blocks for _, _, tensor in streamed._frozen(block))
        largest = max(sum(tensor.nbytes for _, _, tensor in streamed._frozen(block)) for block in blocks)
        assert abs(self.bytes - share * everything) <= largest

    def count(self: StreamedWeights, block: streamed._Block) -> None:
        fetch(self, block)
        most.append(self.resident)

    whole = trained(ground, tmp_path / "whole", model, **changed)
    monkeypatch.setattr(StreamedWeights, "__init__", note)
    monkeypatch.setattr(StreamedWeights, "_fetch", count)
    again = trained(ground, tmp_path / "streamed", model, **changed, streamed_weights=share)
    assert (again == whole) is True
    blocks = sorted((block.size for block in made[0]._blocks), reverse=True)
    assert len(blocks) > 1
    assert 0 < max(most) <= sum(blocks[: 1 + streamed.AHEAD]), "one in use, and what is fetched ahead"


def test_an_encoder_is_streamed_until_it_is_released_and_when_it_comes_back(ground: Path) -> None:
    settings = {"pretrained_model_name_or_path": str(ground / "tiny_flux.safetensors"), "t5xxl_max_token_length": 24}
    cpu = torch.device("cpu")
    bundle = families.load(load_config(overrides=settings), device=cpu, dtype=torch.float32)
    tokens = as_batch(bundle.tokenize("a cat"))
    with torch.no_grad():
        before = bundle.encode_text(tokens)
        bundle.stream_weights(1.0)
        bundle.to(cpu)
        weights = bundle.streamed
        assert weights is not None
        both = weights.bytes
        for _ in range(2):
            t5 = bundle.components["text_encoder_2"].encoder.block[1]  # type: ignore[union-attr,index]
            assert all(bool(each.flatten(1)[:, 0].isnan().all()) for each in t5.parameters() if each.dim() > 1)
            after = bundle.encode_text(tokens)
            assert all(torch.equal(after[name], value) for name, value in before.items())
            bundle.release_text_encoders()
            assert 0 < weights.bytes < both
            bundle.encode_text(tokens)
            assert weights.bytes == both
            weights.to(cpu)


def test_what_is_not_there_is_no_number() -> None:
    blocks = [nn.Linear(8, 8).requires_grad_(False) for _ in range(4)]
    before = [block.weight.clone() for block in blocks]
    weights = StreamedWeights(blocks, 1.0)
    weights.to(torch.device("cpu"))
    alone = [nn.functional.linear(torch.ones(1, 8), block.weight) for block in blocks]
    assert all(bool(each.isnan().all()) for each in alone)
    assert all(bool(block.weight[:, 0].isnan().all() and block.bias.isnan().all()) for block in blocks)
    assert weights.resident == 0
    blocks[2](torch.ones(1, 8))
    assert [bool(block.weight.isnan().any()) for block in blocks] == [True, True, False, True]
    assert torch.equal(blocks[2].weight, before[2])


def test_a_share_is_of_bytes_and_spread_evenly() -> None:
    blocks = [nn.Linear(8, 8).requires_grad_(False) for _ in range(8)]
    assert chosen(blocks, 0.0) == []
    assert chosen(blocks, 1.0) == blocks
    half = chosen(blocks, 0.5)
    assert len(half) == 4
    assert all(block in half for block in blocks[::2]) or all(block in half for block in blocks[1::2])


def test_streamed_run_goes_on_bit_for_bit(ground: Path, tmp_path: Path) -> None:
    changed = UNET_ALONE | {"max_train_steps": 2, "lr_scheduler": "constant"}
    trained(ground, tmp_path / "two", "sd15", **changed, streamed_weights=0.5)
    resumed = trained(ground, tmp_path / "two", "sd15", **changed | {"max_train_steps": 4}, streamed_weights=0.5)
    once = trained(ground, tmp_path / "once", "sd15", **changed | {"max_train_steps": 4})
    assert (resumed == once) is True
