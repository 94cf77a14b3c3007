"""Steps of bfloat16 parameters: rounded by chance, alike each time, and without loss on average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.optimizers import OPTIMIZERS
from trainer.training.rounding import in_float32, rounded, widen

RATES = {"AdamW": 1e-4, "AdamW8bit": 1e-4, "Adafactor": 1e-4, "Lion": 3e-5, "Prodigy": 1.0}
STEPS = 60


def test_values_become_one_of_their_neighbours_and_the_nearer_more_often() -> None:
    for value, share in ((1.0, 0.0), (1.0 + 2**-9, 0.25), (1.0 + 2**-8, 0.5), (-1.0 - 3 * 2**-9, 0.75)):
        made = rounded(torch.full((200_000,), value), salt=7).float()
        near, far = (1.0, 1.0 + 2**-7) if value > 0 else (-1.0, -1.0 - 2**-7)
        assert set(made.unique().tolist()) <= {near, far}
        assert (made == far).float().mean().item() == pytest.approx(share, abs=0.005)


def test_what_is_exact_already_stays_and_nothing_else_appears() -> None:
    exact = torch.randn(4096, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    special = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 2.0**-133])
    for values in (exact, special):
        assert torch.equal(rounded(values, salt=3).float(), values)
    assert rounded(torch.tensor([float("nan")]), salt=3).isnan().all()


def test_chance_is_the_salts_and_the_places_alone() -> None:
    values = torch.rand(64, 96, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rounded(values, 5), rounded(values.clone(), 5))
    others = [rounded(values, salt) for salt in range(6, 10)]
    assert len({each.float().sum().item() for each in others}) == len(others)
    halfway = torch.full((64, 96), 1.0 + 2**-8)
    ups = torch.stack([(rounded(halfway, salt).float() > halfway).float().flatten() for salt in range(6, 10)])
    # Independent from salt to salt, from place to place and from row to row.
    assert torch.corrcoef(ups).fill_diagonal_(0).abs().max() < 0.06
    for shift in (1, 2, 96):
        pair = torch.stack([ups[0][:-shift], ups[0][shift:]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.06


def moved(name: str, dtype: torch.dtype, by_chance: bool = True) -> torch.Tensor:
    """Return how far weights go in some steps down to 0, with noise in the gradient."""
    start = (torch.randn(64, 128, generator=torch.Generator().manual_seed(0)) * 0.1).bfloat16()
    parameter = nn.Parameter(start.clone().to(dtype))
    optimizer = OPTIMIZERS[name].build([{"params": [parameter], "lr": RATES[name], "name": "unet"}], [])
    for step in range(STEPS):
        noise = torch.randn(64, 128, generator=torch.Generator().manual_seed(step + 1))
        parameter.grad = (0.01 * (parameter.detach().float() + 0.05 * noise)).to(dtype)
        if by_chance:
            with in_float32([parameter], seed=1, step=step):
                optimizer.step()
        else:
            optimizer.step()
            parameter.grad = None
        assert parameter.dtype == dtype
    return (parameter.detach().float() - start.float()).flatten()


@pytest.mark.parametrize("name", RATES)
def test_small_steps_add_up_as_in_float32(name: str) -> None:
    """Along the way that float32 goes: what chance adds is across it."""
    exact, halved = moved(name, torch.float32), moved(name, torch.bfloat16)
    assert float(halved @ exact / (exact @ exact)) == pytest.approx(1.0, abs=0.05)
    if name in ("AdamW", "Lion"):
        plain = moved(name, torch.bfloat16, by_chance=False)
        assert float(plain @ exact / (exact @ exact)) < 0.6


def test_means_are_kept_in_float32_and_fall() -> None:
    parameter = nn.Parameter(torch.ones(8, 8, dtype=torch.bfloat16))
    optimizer = OPTIMIZERS["AdamW"].build([{"params": [parameter], "lr": 0.0, "name": "unet"}], [])
    for step in range(101):
        parameter.grad = torch.full((8, 8), 1.0 if step == 0 else 0.0, dtype=torch.bfloat16)
        with in_float32([parameter], seed=0, step=step):
            optimizer.step()
    kept = optimizer.state[parameter]["exp_avg_sq"]
    assert kept.dtype == torch.float32
    assert kept[0, 0].item() == pytest.approx(0.001 * 0.999**100, rel=1e-4)
    saved = optimizer.state_dict()
    again = OPTIMIZERS["AdamW"].build([{"params": [parameter], "lr": 0.0, "name": "unet"}], [])
    again.load_state_dict(saved)
    assert torch.equal(again.state[parameter]["exp_avg_sq"], kept)
    again.state[parameter]["exp_avg_sq"] = kept.bfloat16()
    widen(again.state.values())
    assert again.state[parameter]["exp_avg_sq"].dtype == torch.float32


def test_a_step_that_changes_nothing_or_fails_leaves_every_bit() -> None:
    whole = torch.randn(3, 4, 5).bfloat16()
    parameter, view, before = nn.Parameter(whole), whole[1], whole.clone()
    with in_float32([parameter], seed=0, step=0):
        assert parameter.dtype == torch.float32
    assert torch.equal(parameter, before)
    with pytest.raises(RuntimeError, match="no"), in_float32([parameter], seed=0, step=0):
        parameter.data += 1
        raise RuntimeError("no")
    assert torch.equal(parameter, before) and parameter.dtype == torch.bfloat16
    version = parameter._version
    with in_float32([parameter], seed=0, step=0):
        parameter.data += 1
    # Joined matrices are views of one tensor, and what is made of them is made anew once it has changed.
    assert parameter._version > version
    assert torch.equal(view, parameter[1]) and not torch.equal(parameter, before)


def test_float32_parameters_are_left_alone() -> None:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    values = parameter.data
    with in_float32([parameter], seed=0, step=0):
        assert parameter.data.data_ptr() == values.data_ptr()
    assert parameter.grad is not None
