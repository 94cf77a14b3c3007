"""Numbers of model files: what is read in parts and converted on the way is what PyTorch makes of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.families.reading import stored
from trainer.families.reading.weights import open_weights
from trainer.families.unet.checkpoint import OpenClipWeights
from trainer.ground.errors import ModelError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn)
WANTED = (torch.float32, torch.float16, torch.bfloat16)


def every_half(dtype: torch.dtype) -> Tensor:
    """Return all numbers of a dtype of two bytes; in the place of those that are none, zero."""
    return torch.arange(1 << 16).to(torch.int16).view(dtype).nan_to_num(0.0, torch.inf, -torch.inf)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Tensors of all sorts, most of more than one part."""
    drawn = torch.randn(700, 101, generator=torch.Generator().manual_seed(5)) * 100
    made = {str(dtype): drawn.to(dtype) for dtype in FLOATS}
    made |= {f"every {dtype}": every_half(dtype) for dtype in (torch.float16, torch.bfloat16)}
    made |= {"counts": torch.arange(77)[None], "one": torch.tensor(3.5), "none": torch.zeros(0, 4).half()}
    return made


@pytest.mark.parametrize("kind", ["model.safetensors", "model.ckpt"])
def test_what_is_converted_in_parts_is_what_pytorch_makes_of_the_whole(
    tensors: dict[str, Tensor], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "PART", 1 << 12)
    path = tmp_path / kind
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save({"state_dict": tensors}, path)
    for wanted in (None, *WANTED):
        with open_weights(path, dtype=wanted) as weights:
            assert set(weights) == set(tensors)
            for name, whole in tensors.items():
                made, again = weights[name], weights[name]
                right = whole.to(wanted) if wanted and whole.is_floating_point() else whole
                assert (made.dtype, made.shape) == (right.dtype, right.shape)
                assert torch.equal(made.view(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8)), name
                assert made.untyped_storage().nbytes() == made.nbytes, "nothing else is in its memory"
                assert made.numel() == 0 or made.data_ptr() != again.data_ptr()


@pytest.mark.parametrize("wanted", [None, torch.bfloat16])
def test_a_file_that_becomes_shorter_while_it_is_read_is_said_to_be(wanted: torch.dtype | None, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"first": torch.ones(8).half(), "second": torch.ones(1 << 20).half()}, path)
    with open_weights(path, dtype=wanted) as weights:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - (1 << 19))
        assert weights["first"].sum() == 8
        with pytest.raises(ModelError, match="became shorter while it was read"):
            weights["second"]


class Counted(Mapping[str, Tensor]):
    """Weights that remember what was asked for."""

    def __init__(self, held: Mapping[str, Tensor]) -> None:
        self.held, self.asked = held, list[str]()

    def __getitem__(self, name: str) -> Tensor:
        self.asked.append(name)
        return self.held[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def test_a_joined_matrix_is_read_once_for_its_three_parts() -> None:
    places = [f"transformer.resblocks.{layer}.attn.in_proj_" for layer in (0, 1)]
    held = Counted(
        {place + kind: torch.randn(6, *rest) for place in places for kind, rest in (("weight", (2,)), ("bias", ()))}
    )
    read = OpenClipWeights(held, "", 2)
    for layer, place in enumerate(places):
        for third, part in enumerate("qkv"):
            for kind in ("weight", "bias"):
                made = read[f"text_model.encoder.layers.{layer}.self_attn.{part}_proj.{kind}"]
                assert torch.equal(made, held.held[place + kind].chunk(3)[third])
    assert sorted(held.asked) == sorted(held.held)
