"""The contract of what is trained: an adapter of any kind, injected into a model. Torch-free at run time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from trainer.adapters.rates import Rate

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Adapter(Protocol):
    """What is trained, injected into a model's parts, which keep their own weights frozen."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the model with an adapter, in file order."""

    def parameters(self, part: str | None = None) -> list[nn.Parameter]:
        """Return what is trained of one part, or of all."""

    def groups(self) -> list[tuple[Rate, list[nn.Parameter]]]:
        """Return what is trained by the rate that it learns at, part after part."""

    def dropping(self, seed: int, step: int, slots: tuple[int, ...], first: int) -> AbstractContextManager[None]:
        """Within the context, forward and backward passes are of these samples of a step, and leave out what theirs is.

        `first` is the first slot of the micro-batch, of which `slots` may be a piece.
        """

    def limit_norms(self, most: float) -> None:
        """Scale what layers add to their weights down to a norm of at most `most` (sd-scripts' scale_weight_norms)."""

    def stack(self) -> None:
        """Let the values of layers of one shape be one parameter, where the kind gains by it.

        For optimizers to which that makes no difference. Their state has another layout then, which `state_by_matrix`
        and `state_by_parameter` translate.
        """

    def state_by_matrix(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state_dict as it is where each matrix is a parameter of its own, in file order."""

    def state_by_parameter(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return a state_dict for the parameters as they are. The reverse of `state_by_matrix`."""

    def tensors(self) -> dict[str, Tensor]:
        """Return key -> tensor of the file, in creation order, in the dtype that is trained."""

    def state(self) -> dict[str, Tensor]:
        """Return all that the adapter has of state, so that `restore(state())` is exact."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `state` returned into this adapter. Raises ModelError, before anything is copied."""

    def load(self, tensors: Mapping[str, Tensor], *, strict: bool = True, source: str = "The LoRA") -> tuple[str, ...]:
        """Copy the tensors of a file into this adapter and return a notice for each kind of difference.

        Without `strict`, modules that `tensors` lacks keep their start values and modules that only `tensors` has stay
        out. Raises ModelError, before anything is copied.
        """

    def multiplied(self, factor: float) -> AbstractContextManager[None]:
        """Within the context the adapter's effect counts `factor` times: 0 shows the model without it."""

    def to(self, device: torch.device) -> None:
        """Follow the parts to another device; parameters keep their identity."""
