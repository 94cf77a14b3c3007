"""Where a run computes; and that one run leaves nothing behind for the next."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from trainer.config import load_config
from trainer.training import precision
from trainer.training.precision import Precision, choose, make_accelerator, reset, resolve
from trainer.training.ranks import from_first


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    yield
    reset()


@pytest.mark.parametrize(
    ("asked", "device", "has_bf16", "chosen", "noticed"),
    [
        ("auto", "cuda", True, "bf16", False),
        ("auto", "cuda", False, "fp16", False),
        ("auto", "cpu", False, "no", False),
        ("auto", "mps", False, "no", False),
        ("fp16", "cpu", True, "bf16", True),
        ("fp16", "cpu", False, "bf16", True),
        ("fp16", "cuda", True, "fp16", False),
        ("bf16", "cpu", True, "bf16", False),
        ("bf16", "cpu", False, "bf16", True),
        ("bf16", "cuda", False, "bf16", True),
        ("no", "cuda", True, "no", False),
        ("no", "cpu", False, "no", False),
    ],
)
def test_the_precision_of_a_device(asked: str, device: str, has_bf16: bool, chosen: str, noticed: bool) -> None:
    mixed_precision, notices = choose(asked, device, has_bf16=has_bf16)
    assert mixed_precision == chosen
    assert bool(notices) == noticed
    assert all("mixed_precision" in notice for notice in notices)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU computes there")
def test_without_a_gpu_it_is_the_cpu_in_float32() -> None:
    precision = resolve(load_config())
    assert precision == Precision(torch.device("cpu"), "no")
    assert precision.compute_dtype == torch.float32
    half = resolve(load_config(overrides={"mixed_precision": "fp16"}))
    assert half.compute_dtype == torch.bfloat16
    assert half.notices


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU computes there")
@pytest.mark.parametrize("asked", ["bf16", "fp16"])
@pytest.mark.parametrize(("processor", "slow"), [("AVX2", True), ("AVX512", False), ("DEFAULT", False)])
def test_a_processor_without_bf16_of_its_own_is_told_of(
    asked: str, processor: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    notices = resolve(load_config(overrides={"mixed_precision": asked})).notices
    assert ["AVX-512" in each for each in notices] == [False] * (asked == "fp16") + [True] * slow


def one_run(mixed_precision: str) -> tuple[str, float, weakref.ref]:
    """Train one step of a small layer; return the precision in effect, the loss, and the accelerator."""
    precision = Precision(torch.device("cpu"), mixed_precision)
    accelerator = make_accelerator(precision, load_config())
    torch.manual_seed(0)
    layer = nn.Linear(8, 1)
    optimizer = accelerator.prepare_optimizer(torch.optim.AdamW(layer.parameters()))
    with accelerator.autocast():
        loss = layer(torch.ones(2, 8)).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    return accelerator.mixed_precision, float(loss.detach()), weakref.ref(accelerator)


def test_twenty_runs_in_a_row_in_threads() -> None:
    results: list[tuple[str, float, weakref.ref]] = []
    failures: list[BaseException] = []

    def run(mixed_precision: str) -> None:
        try:
            results.append(one_run(mixed_precision))
        except ValueError as error:
            failures.append(error)
        finally:
            reset()

    wanted = [name for name, _ in zip(cycle(("no", "bf16", "fp16")), range(20), strict=False)]
    for name in wanted:
        thread = threading.Thread(target=run, args=(name,))
        thread.start()
        thread.join()
    assert not failures
    assert [name for name, _, _ in results] == wanted
    assert len({loss for name, loss, _ in results if name == "no"}) == 1
    assert len({loss for name, loss, _ in results if name == "bf16"}) == 1
    gc.collect()
    assert not any(accelerator() for _, _, accelerator in results)
    assert not (AcceleratorState._shared_state or PartialState._shared_state or GradientState._shared_state)


def test_without_reset_the_second_run_fails() -> None:
    """The reason for `reset`; should accelerate stop minding, it may go."""
    one_run("no")
    with pytest.raises(ValueError, match="AcceleratorState"):
        one_run("bf16")


def test_backward_divides_by_nothing() -> None:
    config = load_config(overrides={"gradient_accumulation_steps": 4})
    accelerator = make_accelerator(Precision(torch.device("cpu"), "no"), config)
    weight = torch.ones(1, requires_grad=True)
    accelerator.backward((3 * weight).sum())
    assert weight.grad is not None and weight.grad.item() == 3


def test_determinism_is_switched_on_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    make_accelerator(Precision(torch.device("cpu"), "no"), load_config(overrides={"deterministic": True}))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    reset()
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic


def test_alone_every_rank_is_the_first() -> None:
    assert from_first(["stop"]) == ["stop"]


RANK = """
from trainer.config import load_config
from trainer.training.precision import make_accelerator, reset, resolve
from trainer.training.ranks import from_first
config = load_config()
accelerator = make_accelerator(resolve(config), config)
print(accelerator.num_processes, from_first(["stop"] if accelerator.process_index == 0 else []))
reset()
"""


@pytest.mark.slow
def test_two_ranks_hear_the_first() -> None:
    """As torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    shared |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE
        )
        for rank in ("0", "1")
    ]
    try:
        said = [rank.communicate(timeout=180)[0].decode().strip() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert said == ["2 ['stop']"] * 2


def test_a_small_model_computes_on_one_thread_and_reset_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    monkeypatch.setattr(precision, "_THREADS", 2)
    torch.set_num_threads(2)
    try:
        precision.use_threads_for(precision.SMALL_MODEL)
        assert torch.get_num_threads() == 2
        precision.use_threads_for(precision.SMALL_MODEL - 1)
        assert torch.get_num_threads() == 1
        precision.reset()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
