"""The choice of the attention kernel: measured on a GPU, kept by a run, and nothing at all on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.runs import tiny_config, write_dataset
from trainer import Start, train
from trainer.ground.events import StepDone
from trainer.training import attention
from trainer.training.states import load_state

SHAPE = (1, 4, 64, 16)
CPU = torch.device("cpu")


def order() -> list[int]:
    """Return the kernels as PyTorch tries them on a GPU."""
    return list(torch._C._get_sdp_priority_order())


def test_a_cpu_has_nothing_to_choose() -> None:
    assert attention.choose(SHAPE, CPU, torch.float32) == ""
    assert attention.choose(SHAPE, CPU, torch.float32, known="flash") == ""


def test_a_run_keeps_its_kernel() -> None:
    assert attention.choose(SHAPE, torch.device("cuda"), torch.float32, known="math") == "math"


def test_only_kernels_that_can_compute_it_are_measured() -> None:
    seconds = attention.measure(SHAPE, CPU, torch.float32)
    assert "math" in seconds
    assert "cudnn" not in seconds
    assert all(spent > 0 for spent in seconds.values())


def test_the_kernel_preferred_comes_first_and_only_within() -> None:
    before = order()
    for name, kernel in attention.KERNELS.items():
        with attention.preferring(name):
            assert order()[0] == kernel.value
            inputs = torch.randn(SHAPE)
            assert scaled_dot_product_attention(inputs, inputs, inputs).shape == SHAPE
        assert order() == before
    with attention.preferring(""):
        assert order() == before


def test_a_runs_kernel_is_in_its_state_and_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def choose(shape: attention.Shape, device: torch.device, dtype: torch.dtype, known: str = "") -> str:
        asked.append((shape, known))
        return known or "math"

    seen: list[int] = []
    monkeypatch.setattr(attention, "choose", choose)
    config = tiny_config(tiny_sd15(tmp_path), write_dataset(tmp_path), tmp_path / "out", max_train_steps=2)
    for start in (Start(), Start(resume="auto")):
        train(config, emit=lambda event: seen.append(order()[0]) if isinstance(event, StepDone) else None, start=start)
    assert seen == [SDPBackend.MATH.value] * 2
    assert [known for _, known in asked] == ["", "math"]
    assert asked[0][0] == (2, 4, 64, 8), "two pictures, four heads of 8 features, 64 x 64 pixels"
    (state,) = [load_state(path) for path in (tmp_path / "out" / "tiny.run" / "state").glob("step-*")]
    assert state.position.environment["attention"] == "math"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_chooses_the_fastest() -> None:
    device = torch.device("cuda")
    seconds = attention.measure((2, 8, 4096, 40), device, torch.bfloat16)
    assert len(seconds) >= 2
    assert attention.choose((2, 8, 4096, 40), device, torch.bfloat16) in seconds
