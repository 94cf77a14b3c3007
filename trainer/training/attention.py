"""Which kernel computes attention. On a GPU it is measured, once, when a run first starts.

PyTorch has several for scaled dot products and takes one by a fixed order. Which is fastest depends on the GPU, the
size of the heads and the number of tokens. They round differently, so the choice belongs to the run's state.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
"""Name in a run's state -> PyTorch's kernel."""

_WARM, _REPEATS = 2, 10

Shape = tuple[int, int, int, int]
"""Samples, heads, tokens, features of a head."""


def choose(shape: Shape, device: torch.device, dtype: torch.dtype, known: str = "") -> str:
    """Return the kernel for attention of this shape: `known` where a run has one, else the fastest.

    Empty where there is nothing to choose: elsewhere than on a CUDA device PyTorch decides, which costs nothing.
    """
    if device.type != "cuda":
        return ""
    if known in KERNELS:
        return known
    seconds = measure(shape, device, dtype)
    return min(seconds, key=seconds.__getitem__) if seconds else ""


def measure(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Return the seconds that a forward and a backward pass take with each kernel that can compute them."""
    found = {}
    for name, kernel in KERNELS.items():
        try:
            with sdpa_kernel(kernel):
                found[name] = _seconds(shape, device, dtype)
        except RuntimeError:
            # A kernel that lacks this shape, dtype or device, or the memory for it, says so by failing.
            continue
    return found


def _seconds(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    query, key, value = (torch.ones(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    began = 0.0
    for turn in range(_WARM + _REPEATS):
        if turn == _WARM:
            _wait(device)
            began = time.perf_counter()
        output = scaled_dot_product_attention(query, key, value)
        torch.autograd.grad(output, (query, key, value), output.detach())
    _wait(device)
    return (time.perf_counter() - began) / _REPEATS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def preferring(name: str) -> Iterator[None]:
    """Within the context attention is computed by this kernel, and by the others only what it can't compute."""
    if not name:
        yield
        return
    others = [kernel for other, kernel in KERNELS.items() if other != name]
    with sdpa_kernel([KERNELS[name], *others], set_priority=True):
        yield
