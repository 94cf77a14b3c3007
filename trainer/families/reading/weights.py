"""Reading weights from files, and giving them to modules that were built without any."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainer.families.reading.headers import SAFETENSORS, container_of
from trainer.families.reading.pickles import Inert
from trainer.families.reading.scaled import unscaled
from trainer.families.reading.stored import SafeFile, converted, only_shapes, shapes_alone, unreadable
from trainer.ground.errors import ModelError
from trainer.ground.paths import open_regular
from trainer.ground.safetensors_header import HeaderError

Module = TypeVar("Module", bound=nn.Module)

_NAMED = 3
"""How many weights an error names; the rest are counted."""


class Weights(Mapping[str, Tensor]):
    """The tensors of one checkpoint's files, in memory of their own each time that one is asked for.

    `dtype` is what floats are given in; None for what they are stored in.
    """

    def __init__(self, files: Iterable[SafeFile], loaded: Mapping[str, Tensor]) -> None:
        self._loaded = loaded
        self._files = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping
        self.dtype: torch.dtype | None = None

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._loaded:
            return self._files[name].tensor(name, self.dtype)
        value = self._loaded[name]
        return converted(value, self.dtype if self.dtype and value.is_floating_point() else value.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._files, **self._loaded})

    def __len__(self) -> int:
        return len({**self._files, **self._loaded})

    def __contains__(self, name: object) -> bool:
        return name in self._files or name in self._loaded


@contextmanager
def open_weights(*paths: Path, dtype: torch.dtype | None = None) -> Iterator[Mapping[str, Tensor]]:
    """Open the weights of one checkpoint, which may lie in several files; they can be asked for inside the block only.

    Args:
        dtype: what floats are wanted in; those that have scales beside them come in float32.

    Raises:
        ModelError: a file is missing or damaged.
    """
    safe = [path for path in paths if container_of(path) == SAFETENSORS]
    pickled: dict[str, Tensor] = {}
    for path in paths:
        if path not in safe:
            pickled |= _read_pickle(path)
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(SafeFile(path)) for path in safe]
        except (HeaderError, OSError) as error:
            raise unreadable(paths, error) from error
        weights = Weights(files, pickled)
        found = unscaled(weights, [file.metadata for file in files])
        if found is weights:  # else they are multiplied before they are rounded
            weights.dtype = dtype
        yield found


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a PyTorch pickle with torch's restricted unpickler.

    Checkpoints of PyTorch Lightning hold objects beside the weights, which that unpickler refuses. Every global that it
    would refuse is replaced by an inert stand-in, so such files load and still nothing in them runs. What torch blocks
    in any case, such as the module os, stays refused.
    """
    try:
        strangers = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (ValueError, RuntimeError):
        # The format before PyTorch 1.6, which has no such listing, or a damaged file, of which torch.load will tell.
        strangers = []
    # torch takes pairs of stand-in and name; its annotation knows classes only.
    replaced: list[Any] = [(Inert, name) for name in strangers]
    where = "meta" if only_shapes() else "cpu"
    try:
        with torch.serialization.safe_globals(replaced):
            content = torch.load(path, map_location=where, weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"The model file {path} holds what cannot be loaded as weights alone, and is not safe to load otherwise.",
            "Choose a .safetensors of the same model.",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable([path], error) from error
    weights = content.get("state_dict", content)
    return {name: value for name, value in weights.items() if isinstance(value, Tensor)}


def _is_zip(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(2) == b"PK"


def build_empty(make: type[Module], *arguments: Any) -> Module:
    """Build a module on the meta device: its structure, without memory for weights and without random numbers.

    Raises:
        ModelError: the libraries don't take its configuration.
    """
    try:
        with torch.device("meta"), NothingDrawn():
            return make(*arguments)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, ArithmeticError) as error:
        kind = getattr(make, "__self__", make)
        raise ModelError(
            f"The model's configuration of its {getattr(kind, '__name__', kind)} cannot be built ({error}).",
            "Copy or download the model again.",
        ) from error


class NothingDrawn(TorchFunctionMode):
    """Leaves out the initial values of layers, and makes counts on the CPU.

    Where there is no memory, PyTorch does both in Python, and loads a computer algebra system for it. What is made in
    memory only to be taken to "meta" is not filled either.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor as it is, where it is to be given initial values."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs | {"device": "cpu"} if func is torch.arange else kwargs))


def keep_whole(layer: nn.Module) -> nn.Module:
    """Return a layer as it is."""
    return layer


def fill(
    module: Module,
    weights: Mapping[str, Tensor],
    names: Mapping[str, str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    source: str,
    smaller: Callable[[nn.Module], nn.Module] = keep_whole,
) -> Module:
    """Give a module built by `build_empty` its weights, freeze it, and set it to eval mode.

    Args:
        weights: what gives each tensor in memory that nothing else has; see `Weights`.
        names: for every entry of the module's state dict the name it has in `weights`.
        source: where the weights come from, for errors.
        smaller: called with each layer as soon as it has its weights; what it returns takes the layer's place. So of a
            model that is to be stored in few bits never more than one layer is in memory whole.

    Raises:
        ModelError: weights are missing or have other shapes than the module.
    """
    missing = [name for name in names.values() if name not in weights]
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} weights of its {type(module).__name__}: {some(missing)}.",
            "Choose a complete checkpoint.",
        )
    entries = module.state_dict()
    for path, group in groupby(entries, key=lambda own: own.rpartition(".")[0]):
        state = {}
        for own in group:
            value = _without_kernel(weights[names[own]], entries[own])
            if value.shape != entries[own].shape:
                raise _of_other_shapes(weights, names, entries, module, source)
            state[own.rpartition(".")[2]] = _kept(value, device, dtype)
        layer = module.get_submodule(path)
        layer.load_state_dict(state, strict=False, assign=True)
        parent, _, name = path.rpartition(".")
        if path:
            setattr(module.get_submodule(parent), name, smaller(layer))
    # A buffer that no file holds would stay without memory: training would fail later, or compute nothing.
    empty = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if empty and device.type != "meta":
        raise ModelError(f"{source} gave no values for {some(empty)} of {type(module).__name__}.")
    return module.requires_grad_(False).eval()


def _of_other_shapes(
    weights: Mapping[str, Tensor],
    names: Mapping[str, str],
    entries: Mapping[str, Tensor],
    module: nn.Module,
    source: str,
) -> ModelError:
    """Return the error that names what has another shape than the module has."""
    with shapes_alone():
        values = {own: _without_kernel(weights[names[own]], entry) for own, entry in entries.items()}
    odd = [
        f"{names[own]} is {list(value.shape)}, not {list(entries[own].shape)}"
        for own, value in values.items()
        if value.shape != entries[own].shape
    ]
    return ModelError(
        f"{source} has {len(odd)} weights of another shape than its configuration says: {some(odd)}.",
        "It is not the kind of model that its structure suggests.",
    )


def _kept(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a tensor as a layer has it; a part of another one, such as of a joined matrix, is copied."""
    if value.dtype != dtype:
        return converted(value, dtype).to(device)
    whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
    return value.to(device=device, copy=not whole, memory_format=torch.contiguous_format)


Naming = Callable[[str], str]
"""From a name in a module's state dict to a name in a file."""


def best_names(weights: Mapping[str, Tensor], module: nn.Module, namings: Sequence[Naming]) -> dict[str, str]:
    """Choose the naming under which most weights are there; what is still missing is for `fill` to report."""
    own = list(module.state_dict())
    tables = [{name: naming(name) for name in own} for naming in namings]
    return max(tables, key=lambda names: sum(name in weights for name in names.values()))


def check_leftovers(
    weights: Mapping[str, Tensor],
    known: Iterable[str],
    module: nn.Module,
    *,
    prefix: str,
    unused: re.Pattern[str],
    source: str,
) -> None:
    """See that a file has no weights of a component that its module has not.

    Args:
        known: the names of those that it has.
        prefix: what the names of this component begin with.
        unused: what the modules compute or do not use.

    Raises:
        ModelError: there are some.
    """
    having = set(known)
    strange = [name for name in weights if name.startswith(prefix) and name not in having]
    strange = [name for name in strange if not unused.fullmatch(name)]
    if strange:
        raise ModelError(
            f"{source} has {len(strange)} weights that no {type(module).__name__} of its configuration has: "
            f"{some(strange)}.",
            "It is not the kind of model that its structure suggests.",
        )


def fingerprint(module: nn.Module) -> str:
    """Return 32 hex digits that depend on names, dtypes and bits of a module's weights, wherever they came from.

    Weights on "meta" have no bits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype}".encode())
        if value.is_meta:
            continue
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_kernel(value: Tensor, own: Tensor) -> Tensor:
    """Read a 1x1 convolution as the linear layer that it is, where the module has one."""
    if value.ndim == own.ndim + 2 and value.shape[-2:] == (1, 1):
        return value.flatten(-3)
    return value


def some(names: list[str]) -> str:
    """Name a few of many."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
