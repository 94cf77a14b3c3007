"""Training with processes of one thread each: on two cores two of them beat one process of two threads."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

PROCESSES = 2


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a training lasts: a number of steps, and minutes of computing after which it ends sooner than that.

    They are counted in the time of the process, not by the clock: what else the machine does takes nothing away.
    """

    steps: int
    minutes: float

    def progress(self, step: int, started: float) -> float:
        """The part that is done, 0 to 1; equal in every process, because the first one decides.

        Args:
            started: ``time.process_time()`` at the beginning, seconds.
        """
        elapsed = (time.process_time() - started) / 60
        done = torch.tensor(max(step / self.steps, elapsed / self.minutes), dtype=torch.float64)
        if dist.is_initialized():
            dist.broadcast(done, 0)
        return min(1.0, float(done))


def running_mean(mean: dict[str, Tensor], parameters: Sequence[Tensor], step: int, memory: float) -> None:
    """Moves the averaged weights towards the current ones; early steps forget faster, so that the start is left."""
    with torch.no_grad():
        share = 1 - min(memory, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(mean.values()), list(parameters), share)


def rate(progress: float, step: int, *, peak: float, warmup: int, floor: float = 0.01) -> float:
    """Learning rate: a linear warm-up, flat to half way, then a cosine down to ``floor`` times the peak."""
    rising = min(1.0, (step + 1) / warmup)
    falling = max(0.0, 2 * progress - 1)
    return peak * rising * (floor + (1 - floor) * (1 + cos(pi * falling)) / 2)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _start(rank: int, port: int, count: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=count)
    work(rank, *arguments)
    dist.destroy_process_group()


def run_together(work: Callable[..., None], *arguments: Any, processes: int = PROCESSES) -> None:
    """Runs ``work(rank, *arguments)`` in each process and waits for all of them."""
    mp.spawn(_start, args=(_free_port(), processes, work, arguments), nprocs=processes)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor]) -> None:
    """Takes one step down the loss, the same one in every process: gradients are averaged, their norm at most 1."""
    optimizer.zero_grad()
    loss.backward()
    average_gradients(parameters)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Replaces each gradient by its mean over the processes, with one message for all."""
    if dist.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
