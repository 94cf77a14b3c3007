"""The kinds of process, as plain data: what a family names, and what builds the arithmetic. No torch until `build`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from trainer.process.process import Process


class Settings(Protocol):
    """The sections of the settings that a process reads, by the names of their fields."""

    @property
    def noise(self) -> Any:
        """What noise is drawn and at which timesteps."""

    @property
    def flow(self) -> Any:
        """What is special to rectified flow."""

    @property
    def loss(self) -> Any:
        """How a prediction is compared with its target."""


class ProcessKind(ABC):
    """One kind of process. A new one is a subclass and a line in `PROCESSES`."""

    name: ClassVar[str]
    """What settings and samplers are marked with that belong to this kind alone."""
    title: ClassVar[str]
    """What models of this kind are called in messages, to stand before "models"."""

    @abstractmethod
    def build(
        self,
        scheduler: Mapping[str, Any],
        settings: Settings,
        *,
        prediction_type: str = "",
        patch: int = 1,
        weighted: bool = False,
    ) -> Process:
        """Make the process of one model. Settings win over what the model says.

        Args:
            scheduler: the configuration of the model's scheduler, as diffusers has it.
            settings: the sections that say how to train.
            prediction_type: what the model predicts, where there is a choice: "epsilon" or "v_prediction".
            patch: latent pixels on the side of what the model takes as one token.
            weighted: of rectified flow: the output is compared as it is, and `weighting_scheme` weights its loss.
        """


class _Ddpm(ProcessKind):
    name = "ddpm"
    title = "noise and velocity predicting"

    def build(
        self,
        scheduler: Mapping[str, Any],
        settings: Settings,
        *,
        prediction_type: str = "",
        patch: int = 1,
        weighted: bool = False,
    ) -> Process:
        from trainer.process.ddpm import Ddpm

        return Ddpm.of_model(scheduler, settings, prediction_type)


class _Flow(ProcessKind):
    name = "flow"
    title = "rectified flow"

    def build(
        self,
        scheduler: Mapping[str, Any],
        settings: Settings,
        *,
        prediction_type: str = "",
        patch: int = 1,
        weighted: bool = False,
    ) -> Process:
        from trainer.process.flow import Flow

        return Flow.of_model(scheduler, settings, patch, weighted=weighted)


DDPM: ProcessKind = _Ddpm()
FLOW: ProcessKind = _Flow()
PROCESSES: Mapping[str, ProcessKind] = {kind.name: kind for kind in (DDPM, FLOW)}
"""Every kind by its name."""
