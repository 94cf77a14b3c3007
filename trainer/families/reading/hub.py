"""Models of the Hugging Face hub: their files, downloaded or from its cache."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trainer.ground.control import Progress
from trainer.ground.errors import ModelError

INDEXES = ("model_index.json", "modular_model_index.json")
"""What says which pipeline of diffusers a folder is for."""
_DESCRIPTIONS = ("*.json", "*/*.json", "tokenizer/*.txt", "spiece.model", "*/spiece.model")
_WEIGHT_FILES = (
    "{stem}.safetensors",
    "{stem}-*-of-*.safetensors",
    "{stem}.fp16.safetensors",
    "{stem}.fp16-*-of-*.safetensors",
    "{stem}.bin",
    "{stem}.fp16.bin",
)
"""Weight files of a component in the order of preference: whole, in parts, half precision, pickled."""

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""What diffusers and transformers call them; the last is transformers' name for pickles."""

PHASE = "downloading the model (MB)"
_MEGABYTE = 1_000_000


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of one component of a diffusers folder.

    Raises:
        ModelError: there are none.
    """
    for pattern in _WEIGHT_FILES:
        for stem in _STEMS:
            if found := sorted(folder.glob(pattern.format(stem=stem))):
                return found
    raise ModelError(f"The folder {folder} holds no weights.", "Copy or download the model again.")


def cached_descriptions(hub_id: str) -> Path | None:
    """Return the folder with a model's descriptions where they are in the cache; the network is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(_DESCRIPTIONS), local_files_only=True))
    except (OSError, HFValidationError):
        return None
    return folder if any((folder / name).is_file() for name in INDEXES) else None


def descriptions(hub_id: str) -> Path:
    """Fetch a model's descriptions, some kilobytes, and return their folder.

    Raises:
        ModelError: as `download`.
    """
    return cached_descriptions(hub_id) or snapshot(hub_id, list(_DESCRIPTIONS))


def download(hub_id: str, components: Iterable[str], progress: Progress | None = None) -> Path:
    """Fetch a model's descriptions and the weights of its components; what the cache has is not fetched again.

    A connection that breaks off is taken up again where it ended, five times in a row at most.

    Args:
        hub_id: "user/name".
        components: sub-folders with weights; "" is the repository's own folder.
        progress: called with `PHASE` and megabytes; what it raises ends the download.

    Raises:
        ModelError: no such model, no access, or no network and not in the cache.
    """
    folders = [f"{component}/" if component else "" for component in components]
    for pattern in _WEIGHT_FILES:
        names = [folder + pattern.format(stem=stem) for folder in folders for stem in _STEMS]
        found = snapshot(hub_id, [*_DESCRIPTIONS, *names], progress)
        if all(_has_weights(found / folder) for folder in folders):
            return found
    raise ModelError(f"{hub_id} on the hub has no weights in the folders of a diffusers model.")


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern.format(stem=stem))) for pattern in _WEIGHT_FILES for stem in _STEMS)


def snapshot(hub_id: str, patterns: list[str], progress: Progress | None = None) -> Path:
    """Fetch the files of a repository whose names fit, and return their folder.

    Raises:
        ModelError: as `download`.
    """
    # huggingface_hub takes a good part of a second to import, and most people have files.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        bar = _bar(progress) if progress else None
        return Path(snapshot_download(hub_id, allow_patterns=patterns, tqdm_class=bar))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{hub_id} is no file or folder here, and the hub cannot be reached for it.",
            "Check the path, or the network.",
        ) from error
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise ModelError(
            f"{hub_id} is no file or folder here, and the hub does not give it: {str(error).splitlines()[0]}",
            "Check the path or the name; a gated model needs a login with `hf auth login`.",
        ) from error
    except HTTPError as error:
        # What the client raises where the connection ends before the file does.
        raise ModelError(
            f"The download of {hub_id} broke off: {str(error).splitlines()[0]}.",
            "Start again; what is complete is not fetched again.",
        ) from error


def _bar(progress: Progress) -> type[Any]:
    """Return a class for huggingface_hub's progress bars that shows nothing and reports bytes to `progress`."""
    from tqdm.auto import tqdm

    lock = threading.Lock()

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.counts_bytes = named.get("unit") == "B"
            super().__init__(*arguments, **{**named, "disable": True})

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.counts_bytes:
                # Files come on threads of their own, and a pause is one for all of them.
                with lock:
                    progress(PHASE, int(self.n) // _MEGABYTE, int(self.total or 0) // _MEGABYTE)

    return Bar
