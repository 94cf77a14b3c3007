"""Weights that are others for a moment, and the moving average: exact there and back."""

from __future__ import annotations

import pytest
import torch

from trainer.training.weights import Average, Weights


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter((torch.arange(size) / 7 + 0.1).to(dtype)) for size in (3, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_others_are_held_for_the_block_alone(dtype: torch.dtype) -> None:
    held = parameters(dtype)
    weights, before, places = (
        Weights(held),
        [each.detach().clone() for each in held],
        [each.data_ptr() for each in held],
    )
    versions = [each._version for each in held]
    with weights.instead([torch.full_like(each, 2.0).float() for each in held]):
        assert all(bool((each == 2).all()) for each in held) and weights.replaced
        assert all(each._version > version for each, version in zip(held, versions, strict=True))
        with weights.trained():
            assert all(torch.equal(each, value) for each, value in zip(held, before, strict=True))
            assert not weights.replaced
            with weights.instead([torch.full_like(each, 3.0) for each in held]):
                assert all(bool((each == 3).all()) for each in held)
            assert all(torch.equal(each, value) for each, value in zip(held, before, strict=True))
        assert all(bool((each == 2).all()) for each in held) and weights.replaced
    assert all(torch.equal(each, value) for each, value in zip(held, before, strict=True)) and not weights.replaced
    assert [each.data_ptr() for each in held] == places


def test_an_error_in_the_block_leaves_the_weights_as_they_were() -> None:
    held = parameters()
    weights, before = Weights(held), [each.detach().clone() for each in held]
    with pytest.raises(RuntimeError), weights.instead([each * 2 for each in before]):
        raise RuntimeError
    assert all(torch.equal(each, value) for each, value in zip(held, before, strict=True))


def test_without_others_nothing_is_touched() -> None:
    held = parameters()
    versions = [each._version for each in held]
    with Weights(held).instead(None):
        pass
    assert [each._version for each in held] == versions


def test_the_average_is_the_sum_by_hand() -> None:
    (held,) = parameters()[:1]
    average, expected = Average([held], 0.5), held.detach().double().clone()
    for step in range(30):
        held.data += 0.25
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * held.detach().double()
        average.update(step)
    torch.testing.assert_close(average.values[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_average_of_halved_weights_is_finer_than_they_are() -> None:
    held = parameters(torch.bfloat16)
    average = Average(held, 0.999)
    assert {each.dtype for each in average.values} == {torch.float32}
    before = [each.clone() for each in average.values]
    for each in held:
        each.data += 0.5
    for step in range(1000, 1003):
        average.update(step)
    assert all(not torch.equal(mine, old) for mine, old in zip(average.values, before, strict=True))
    with pytest.raises(ValueError, match="an average is"):
        average.restore([each[:1] for each in average.values])
