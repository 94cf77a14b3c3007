"""Steps of each kind of adapter over those of this program's plain LoRA, and against lycoris-lora's module of the kind.

All are in one process, in turns, in the same bare loop: the same frozen UNet, inputs, AdamW and clipping. Layers are
those of attention and feed-forward. Where lycoris-lora is not installed its rows are left out.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn.functional import mse_loss

from benchmarks import ground
from benchmarks.ground import random_modules
from benchmarks.options import Options
from benchmarks.peak import peak_memory
from benchmarks.rivals import Inputs
from benchmarks.rows import Row, Target, median_row, ratio_row
from trainer import TrainingConfig, load_config
from trainer.adapters import make_spec
from trainer.families import FAMILIES, recognise_chosen
from trainer.optimizers import OPTIMIZERS
from trainer.training import precision

_WARM = 3
_ALPHA = 16.0
_RANK = 16
FASTER, SMALLER = Target(1.3, at_most=False), Target(0.9)


@dataclass(frozen=True, slots=True)
class Cell:
    """A kind: its settings, LyCORIS' class for it with its options, and what a step may cost over plain LoRA's."""

    name: str
    settings: Mapping[str, object]
    module: str
    options: Mapping[str, object] = field(default_factory=dict)
    target: Target | None = None


CELLS = (
    Cell("loha", {"network_type": "loha"}, "loha.LohaModule", target=Target(1.25)),
    Cell("lokr", {"network_type": "lokr", "factor": 8}, "lokr.LokrModule", {"factor": 8}, Target(1.15)),
    Cell(
        "dora",
        {"network_type": "locon", "dora_wd": True},
        "locon.LoConModule",
        {"weight_decompose": True, "wd_on_out": False},
        Target(1.2),
    ),
    Cell("ia3", {"network_type": "ia3"}, "ia3.IA3Module", target=Target(0.95)),
    Cell("oft", {"network_type": "oft"}, "diag_oft.DiagOFTModule", target=Target(1.3)),
)
PLAIN: Mapping[str, object] = {"network_type": "lora"}


Attach = Callable[[nn.Module, TrainingConfig], list[nn.Parameter]]
"""Puts an adapter into a UNet and returns what is trained."""


class Loop:
    """Forward, backward, clipping and AdamW over a frozen UNet with what `attach` puts into it."""

    def __init__(self, config: TrainingConfig, attach: Attach) -> None:
        chosen = precision.resolve(config)
        torch.manual_seed(0)
        self.inputs = Inputs(config, chosen.device, chosen.compute_dtype)
        (self.unet,) = random_modules({"unet": self.inputs.configs["unet"]}).values()
        self.unet.to(chosen.device, chosen.compute_dtype).requires_grad_(False)
        self.trained = attach(self.unet, config)
        group = {"params": self.trained, "lr": 1e-4, "name": "unet"}
        self.optimizer = OPTIMIZERS["AdamW"].build([group])

    def __call__(self) -> None:
        """Make one step."""
        inputs = self.inputs
        answer = self.unet(
            inputs.latents, inputs.timesteps, inputs.context, added_cond_kwargs=inputs.conditions, return_dict=False
        )
        mse_loss(answer[0].float(), inputs.noise.float()).backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def attach_ours(unet: nn.Module, config: TrainingConfig) -> list[nn.Parameter]:
    """Put this program's adapter into a UNet."""
    spec = make_spec(config.network, ("unet",), *config.of_adapters)
    adapter = spec.build({"unet": unet}, _targets(config), seed=1)
    adapter.stack()
    return adapter.parameters()


def attach_theirs(cell: Cell, unet: nn.Module, config: TrainingConfig) -> list[nn.Parameter]:
    """Put LyCORIS' modules on the same layers."""
    name, _, made = cell.module.partition(".")
    kind: Any = getattr(importlib.import_module(f"lycoris.modules.{name}"), made)
    spec = make_spec(config.network, ("unet",), *config.of_adapters)
    trained = []
    for target in spec.select(_targets(config)):
        layer = unet.get_submodule(target.path)
        module = kind(target.name, layer, 1.0, _RANK, _ALPHA, **cell.options)
        module.to(layer.weight.device).train().apply_to()
        trained += list(module.parameters())
    return trained


def measure(cell: Cell, options: Options) -> Iterator[Row]:
    """Yield the rows of one kind."""
    steps, name = 4 if options.quick else 20, f"adapters/{cell.name}"
    with tempfile.TemporaryDirectory() as work:
        configs = [_config(each, Path(work), options) for each in (PLAIN, cell.settings)]
        rivals = {"plain": Loop(configs[0], attach_ours), "ours": Loop(configs[1], attach_ours)}
        if has_lycoris():
            rivals["theirs"] = Loop(configs[1], lambda unet, config: attach_theirs(cell, unet, config))
        times: dict[str, list[float]] = {each: [] for each in rivals}
        for number in range(_WARM + steps):
            for each, loop in rivals.items():
                began = options.clock()
                loop()
                _wait()
                if number >= _WARM:
                    times[each].append(options.clock() - began)
        rivals.clear()
        for each, values in times.items():
            yield median_row(f"{name}/{each}", [1000 * value for value in values], "ms")
        yield ratio_row(f"{name}/over plain LoRA", times["ours"], times["plain"], cell.target)
        if "theirs" not in times:
            return
        yield ratio_row(f"{name}/rate against lycoris-lora", times["theirs"], times["ours"], FASTER)
        ours, theirs = (_peak(cell, configs[1], who) for who in ("ours", "theirs"))
        yield Row(f"{name}/memory", ours / 1e6, "MB")
        yield Row(f"{name}/memory against lycoris-lora", ours / theirs, "", target=SMALLER)


def has_lycoris() -> bool:
    """Say whether lycoris-lora is there."""
    return importlib.util.find_spec("lycoris") is not None


def _config(settings: Mapping[str, object], work: Path, options: Options) -> TrainingConfig:
    model = ground.model("sd15-quarter", options.folder)
    own = {"network_dim": _RANK, "network_alpha": _ALPHA, "network_train_unet_only": True, "resolution": "256,256"}
    return load_config(overrides=ground.settings(model, work, work, **{**own, **settings}))


def _targets(config: TrainingConfig) -> Any:
    seen = recognise_chosen(config)
    return FAMILIES[seen.family].targets(seen.configs, conv=False)


def _peak(cell: Cell, config: TrainingConfig, who: str) -> int:
    """Return the bytes that a loop takes at most, its model included, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return int(pool.apply(_peak_of, (cell, config, who)))


def _peak_of(cell: Cell, config: TrainingConfig, who: str) -> int:
    before = psutil.Process().memory_info().rss
    attach = attach_ours if who == "ours" else lambda unet, settings: attach_theirs(cell, unet, settings)
    loop = Loop(config, attach)
    for _ in range(_WARM):
        loop()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return peak_memory() - before


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
