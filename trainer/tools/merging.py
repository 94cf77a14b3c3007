"""LoRAs made one, layer by layer, and LoRAs put into a checkpoint, weight by weight."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from torch import Tensor

from trainer.adapters import AdapterHeader
from trainer.ground.control import Progress
from trainer.ground.errors import RunError
from trainer.ground.files import sync_folder, temporary_of
from trainer.results import export
from trainer.tools import low_rank
from trainer.tools.effects import Effects, OpenLora, Weights, part_of
from trainer.tools.lora_files import described, without_hashes
from trainer.tools.low_rank import Cut, Factors
from trainer.tools.merge import SUM, SVD
from trainer.tools.models import Located, Model, Piece
from trainer.tools.tensor_files import Change, rewrite

PHASE = "merging"
"""LoRAs are counted in layers, a checkpoint in megabytes."""

_MEGABYTE = 1_000_000
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".index.json")


@dataclass
class Plan:
    """How LoRAs become one: by which method, to which ranks, on which device."""

    method: str
    rank: int | None
    conv_rank: int | None
    device: str
    quantile: float = 1.0


@dataclass
class Written:
    """The layers of a LoRA file to be."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: list[int] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return len(self.ranks)

    @property
    def rank(self) -> int:
        """The highest rank."""
        return max(self.ranks)

    def take(self, name: str, factors: Factors, kernel: Sequence[int]) -> None:
        """Add a layer, in the shapes of a convolution where it has a kernel."""
        self.tensors |= low_rank.entries(name, factors.shaped(kernel))
        self.ranks.append(factors.rank)
        self.alphas.append(factors.alpha)

    def save(self, target: Path, metadata: Mapping[str, str], comment: str, precision: str) -> int:
        """Write the file, with the ranks and the comment among its metadata, and return its size in bytes."""
        said = described(metadata, self.ranks, self.alphas, comment)
        return export.save(target, self.tensors, said, precision)


def together(
    headers: Sequence[AdapterHeader], ratios: Sequence[float], model: Model | None, plan: Plan, progress: Progress
) -> Written:
    """Return the layers of one LoRA that does what all do together at their ratios.

    Raises:
        ModelError: a file cannot be read.
        Stopped: `progress` says so.
    """
    written = Written()
    with ExitStack() as stack:
        effects = Effects(headers, model, stack)
        names = effects.names
        for done, name in enumerate(names):
            progress(PHASE, done, len(names))
            there = effects.having(name)
            parts = [(effects.of(lora, own), ratios[place]) for place, lora, own in there]
            kernel = effects.kernels.get(there[0][2], ())
            most = (plan.conv_rank if any(side > 1 for side in kernel) else None) or plan.rank
            written.take(name, _one(parts, plan, most), kernel)
    progress(PHASE, len(names), len(names))
    return written


def _one(parts: Sequence[tuple[Factors | Tensor, float]], plan: Plan, most: int | None) -> Factors:
    """Return one layer of what all files have for it, each at its ratio."""
    plain = [(part, ratio) for part, ratio in parts if isinstance(part, Factors)]
    if plan.method == SUM:
        return low_rank.summed(plain)
    if plan.method != SVD:
        return low_rank.added(plain)
    cut = Cut(most or 1, quantile=plan.quantile)
    if len(plain) == len(parts):
        whole = low_rank.added(plain)
        return cut(whole, plan.device) if whole.rank > cut.most or plan.quantile < 1 else whole
    matrices = [(part.difference().float() if isinstance(part, Factors) else part) * ratio for part, ratio in parts]
    return cut(sum(matrices[1:], matrices[0]), plan.device)


# --- into a checkpoint ------------------------------------------------------------------------------------------------


def into(
    model: Model,
    headers: Sequence[AdapterHeader],
    ratios: Sequence[float],
    target: Path,
    precision: str,
    progress: Progress,
) -> tuple[int, int]:
    """Write a checkpoint with LoRAs in it, and return how many weights were changed and its size in bytes.

    Every tensor keeps its place and its number format, but for `precision` where it is not "". Weights that nothing is
    added to are copied byte by byte.

    Raises:
        ModelError, RunError: a file cannot be read, or the checkpoint not written.
        Stopped: `progress` says so; then nothing is left behind.
    """
    with ExitStack() as stack:
        loras = [OpenLora(header, stack) for header in headers]
        changes = _changes(model, loras, ratios, Weights(stack))
        said = _said(model, headers, target)
        total = max(1, model.bytes // _MEGABYTE)

        def report(before: int, done: int) -> None:
            # Of the end it is told once, below.
            progress(PHASE, min((before + done) // _MEGABYTE, total - 1), total)

        if model.is_folder:
            size = _into_folder(model, target, changes, precision, report)
        else:
            size = rewrite(model.path, target, said, changes.get(model.path, {}), precision, partial(report, 0))
    progress(PHASE, total, total)
    return sum(map(len, changes.values())), size


_Shares = list[tuple[OpenLora, str, float]]
"""The LoRAs that change a layer, one after the other: each with its name for the layer and its ratio."""


def _changes(
    model: Model, loras: Sequence[OpenLora], ratios: Sequence[float], weights: Weights
) -> dict[Path, dict[str, Change]]:
    """Return what is done to each tensor of each file."""
    layers: dict[Located, _Shares] = {}
    for lora, ratio in zip(loras, ratios, strict=True):
        for name in lora.header.modules:
            if located := model.weights.get(name):
                layers.setdefault(located, []).append((lora, name, ratio))
    todo: dict[Piece, dict[Located, _Shares]] = {}
    for located, shares in layers.items():
        for piece in located.pieces:
            todo.setdefault(piece, {})[located] = shares
    found: dict[Path, dict[str, Change]] = {}
    for piece, of_piece in todo.items():
        found.setdefault(piece.path, {})[piece.name] = partial(_apply, piece, of_piece, weights)
    return found


def _apply(piece: Piece, layers: Mapping[Located, _Shares], weights: Weights, weight: Tensor) -> Tensor:
    """Return a tensor with every LoRA in it; of a layer that it is only a piece of, its rows."""
    for located, shares in layers.items():
        # A LoRA may change what a row gets by the whole of its layer, so the other pieces are read too.
        whole = weights.whole(located, {piece: weight})
        part = part_of(whole, located)
        for lora, name, ratio in shares:
            lora.put(name, part, ratio)
        sizes = [each.entry.shape[0] for each in located.pieces]
        weight = whole if len(sizes) == 1 else whole.split(sizes)[located.pieces.index(piece)]
    return weight


def _said(model: Model, headers: Sequence[AdapterHeader], target: Path) -> dict[str, str]:
    """Return a merged file's metadata: what the checkpoint said, and what it is made of now."""
    family, configs = model.family, model.recognition.configs
    names = family.file_names(str(configs.get("scheduler", {}).get("prediction_type", "epsilon")), configs)
    made = ", ".join((model.name, *(header.path.name for header in headers)))
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": names.architecture,
        "modelspec.implementation": names.implementation,
        **without_hashes(model.metadata),
        **{key: value for key, value in model.metadata.items() if key == "modelspec.hash_sha256"},
        "modelspec.title": target.stem,
        "modelspec.date": datetime.now().replace(microsecond=0).isoformat(),
        "modelspec.merged_from": made,
    }


def _into_folder(
    model: Model,
    target: Path,
    changes: Mapping[Path, Mapping[str, Change]],
    precision: str,
    report: Callable[[int, int], None],
) -> int:
    """Write a diffusers folder anew beside its place, and put it there when it is whole."""
    waiting = temporary_of(target)
    shutil.rmtree(waiting, ignore_errors=True)
    rewritten = {path: table for tables in model.tables.values() for path, table in tables.items()}
    done = size = 0
    try:
        for source in sorted(path for path in model.path.rglob("*") if path.is_file()):
            place = waiting / source.relative_to(model.path)
            if source not in rewritten and _is_other_form(source, rewritten):
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if source not in rewritten:
                shutil.copyfile(source, place)
                continue
            table = rewritten[source]
            said = without_hashes(table.metadata)
            size += rewrite(source, place, said, changes.get(source, {}), precision, partial(report, done))
            done += sum(entry.end - entry.begin for entry in table.entries.values())
        os.rename(waiting, target)
        sync_folder(target.parent)
    except OSError as error:
        raise RunError(
            f"{target} can't be written: {error.strerror or error}.", "Free some space or choose another folder."
        ) from error
    except RunError as error:
        # Nobody knows the name that the folder has meanwhile.
        raise RunError(error.message.replace(str(waiting), str(target)), error.remedy) from error
    finally:
        shutil.rmtree(waiting, ignore_errors=True)
    return size


def _is_other_form(path: Path, rewritten: Mapping[Path, object]) -> bool:
    """Say whether a file has the weights of a component in another form, which would not be what was merged."""
    beside = {each.parent for each in rewritten}
    return path.parent in beside and path.name.endswith(_WEIGHTS) and not _is_index(path, rewritten)


def _is_index(path: Path, rewritten: Mapping[Path, object]) -> bool:
    """Say whether a file is the index of parts that are rewritten."""
    parts = [each for each in rewritten if each.parent == path.parent]
    return path.name.endswith(".safetensors.index.json") and len(parts) > 1
