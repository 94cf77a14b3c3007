"""Device, dtypes, determinism: where a run computes and in which numbers. The one place with process-wide state.

accelerate keeps its state in process-wide singletons, and torch its determinism switches. Runs follow one another in
one process, each on a thread and with its own precision, so what `make_accelerator` sets, `reset` takes back.
"""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import InitProcessGroupKwargs

from trainer.config import TrainingConfig
from trainer.memory import free_memory
from trainer.training import ranks

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Setting `mixed_precision` -> dtype of the frozen weights and of the arithmetic."""

SMALL_MODEL = 20_000_000
"""Parameters below which a CPU's second thread slows a model down."""

_FP16_ON_CPU = "mixed_precision: fp16 is far slower than bf16 on a CPU; bf16 is used."
_BF16_ON_CPU = (
    "mixed_precision: this processor has no bf16 of its own (AVX-512) and is several times slower with it than in "
    'float32; "no" suits it better where memory allows.'
)

_THREADS = torch.get_num_threads()

_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_DETERMINISTIC_WORKSPACE = ":4096:8"
"""One of the two values with which cuBLAS gives the same bits each time (CUDA documentation, "Reproducibility")."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Where a run computes, and in what.

    `mixed_precision` is "no", "fp16" or "bf16", as accelerate takes it. `full` puts the adapter into that dtype too
    (`full_bf16`, `full_fp16`).
    """

    device: torch.device
    mixed_precision: str
    notices: tuple[str, ...] = ()
    full: bool = False

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the frozen weights."""
        return DTYPES[self.mixed_precision]

    @property
    def adapter_dtype(self) -> torch.dtype:
        """Dtype of what is trained, and with it of the gradients."""
        return self.compute_dtype if self.full else torch.float32


def resolve(config: TrainingConfig) -> Precision:
    """Choose device and precision for the settings on this machine."""
    device = own_device()
    training = config.training
    half = "bf16" if training.full_bf16 else "fp16" if training.full_fp16 else ""
    asked = half if half and training.mixed_precision == "auto" else training.mixed_precision
    mixed_precision, notices = choose(asked, device.type, has_bf16=_has_bf16(device.type))
    return Precision(device, mixed_precision, notices, full=bool(half))


def choose(asked: str, device_type: str, *, has_bf16: bool) -> tuple[str, tuple[str, ...]]:
    """Return the precision to use on a kind of device, and what to tell the user about it.

    "auto" is bf16 on a GPU that has it, fp16 on one that does not, float32 elsewhere. fp16 on a CPU is many times
    slower than anything else and becomes bf16.

    Args:
        asked: setting `mixed_precision`: "auto", "no", "fp16" or "bf16".
        has_bf16: whether the GPU or the processor computes bf16 itself.
    """
    if asked == "auto":
        return (("bf16" if has_bf16 else "fp16") if device_type == "cuda" else "no"), ()
    if device_type == "cpu" and asked in ("fp16", "bf16"):
        replaced = () if asked == "bf16" else (_FP16_ON_CPU,)
        return "bf16", replaced if has_bf16 else (*replaced, _BF16_ON_CPU)
    if asked == "bf16" and device_type == "cuda" and not has_bf16:
        return "bf16", ("mixed_precision: this GPU has no bf16 of its own and is slow with it; fp16 suits it better.",)
    return asked, ()


def _has_bf16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # PyTorch's libraries for x86 have kernels for bf16 from AVX-512 on, and go number by number without it.
    return torch.backends.cpu.get_cpu_capability() != "AVX2"


def make_accelerator(precision: Precision, config: TrainingConfig) -> Accelerator:
    """Make the accelerator of one run, and switch determinism on where the settings ask for it.

    It does not count accumulation: an epoch's last group of micro-batches may be short, so the loop divides by the
    group's real size, and `Accelerator.backward` adds no division of its own.
    """
    if config.training.deterministic:
        # Read when CUDA makes its first handle, so a value from outside is left alone.
        os.environ.setdefault(_CUBLAS_WORKSPACE, _DETERMINISTIC_WORKSPACE)
        _set_deterministic(True)
    with ranks.exchange():
        accelerator = Accelerator(
            cpu=precision.device.type in ("cpu", "meta"),
            mixed_precision=precision.mixed_precision,
            gradient_accumulation_steps=1,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=ranks.LONGEST_WAIT)],
        )
    if precision.device.type == "meta":  # where nothing is computed, only counted
        PartialState().device = accelerator.state.device = precision.device
    if precision.full and accelerator.scaler is not None:
        accelerator.scaler = HalfGradScaler(precision.device.type)
    return accelerator


class HalfGradScaler(torch.amp.GradScaler):
    """A loss scaler for parameters that are float16 themselves, whose gradients torch's own refuses to unscale."""

    def _unscale_grads_(self, optimizer: Any, inv_scale: Any, found_inf: Any, allow_fp16: bool) -> Any:
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)


def use_threads_for(parameters: int) -> None:
    """Compute a model of so many parameters on one thread where it is small: threads cost it more than they bring.

    Measured with the demo on two cores: 0.1 s a step on one thread, 0.3 s on two. OMP_NUM_THREADS overrides.
    """
    if parameters < SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def reset() -> None:
    """Take back what a run has set for the whole process, so that the next may choose otherwise. Never fails."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    # accelerate offers no other way to a second run with another precision; without it the second raises ValueError.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    _set_deterministic(False)
    if "torch._dynamo" in sys.modules:  # else there is nothing compiled, and this would load it
        torch.compiler.reset()
    torch.set_num_threads(_THREADS)
    free_memory()


def own_device() -> torch.device:
    """Return the device of this process; under torchrun and accelerate launch every rank has its own GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def name_of(device: torch.device) -> str:
    """Return what a device is called by whoever made it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"


def _set_deterministic(on: bool) -> None:
    # Asking for what is so already would load the compiler, to tell it.
    if on != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
