"""Latents, encoded once: each picture's posterior mean and standard deviation, in memory or on disk.

What is kept is the distribution, not a sample: the sample is drawn per (seed, step, slot) like everything random.
An entry is found by what it was made from (the picture's bytes, its placement, whether it is mirrored, the VAE, how
pixels are made), so it is never stale, equal pictures share one, and the folder may be deleted at any time between
runs. Files that are torn, altered or not ours are made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from trainer.config import TrainingConfig
from trainer.ground.errors import DataError
from trainer.ground.files import replacing, sha256_of
from trainer.pictures.batches import Example
from trainer.pictures.header_cache import WORTH, HeaderCache
from trainer.pictures.pixels import RESAMPLING, load_pixels

Latent = tuple[torch.Tensor, torch.Tensor]
"""Posterior mean and standard deviation, each float32 [channels, height, width], not scaled."""

Encode = Callable[[torch.Tensor], Latent]
"""[b, 3, H, W] in [-1, 1] -> posterior mean and standard deviation, each [b, channels, h, w]."""

Progress = Callable[[str, int, int], None]

FOLDER = "latent_cache"
HASHING = "reading pictures"
ENCODING = "caching latents"

_FORMAT = "latents/1"
_CONTENTS = "sha256"
_THREADS = 4
_AHEAD = 2
"""Batches that are decoded while the VAE works on another."""


@dataclass(frozen=True, slots=True)
class _Item:
    """One picture as it is to be encoded, with the name of its entry."""

    key: str
    example: Example
    flipped: bool


class LatentCache:
    """The latents of a run's examples.

    `folder` is where files go, None keeps all in memory. Pictures that are mirrored at random are also kept mirrored
    (the latent of a mirrored picture is not the mirrored latent).
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._keys: dict[tuple[int, bool], str] = {}
        self._memory: dict[str, Latent] = {}

    @classmethod
    def from_config(cls, config: TrainingConfig) -> LatentCache | None:
        """Return the cache that the settings ask for, or None; on disk it is OUTPUT_DIR/latent_cache."""
        dataset = config.dataset
        if not (dataset.cache_latents or dataset.cache_latents_to_disk):
            return None
        folder = Path(config.saving.output_dir) / FOLDER if dataset.cache_latents_to_disk else None
        return cls(folder)

    def fill(
        self,
        examples: Sequence[Example],
        encode: Encode,
        vae_key: str,
        batch: int = 1,
        progress: Progress | None = None,
    ) -> None:
        """Encode what is not there yet, `batch` pictures of one bucket at a time.

        Batches are made of all examples, also of those already there, and encoded whole: which pictures share a batch
        can change the last bits of a latent, and a run that was cut off here must find the same bits again.

        Args:
            vae_key: fingerprint of the VAE's weights, for the files' names; in memory there is but one VAE.
            progress: called with (phase, done, total); what it raises, such as Stopped, passes through. Entries that
                are on disk by then stay.

        Raises:
            DataError: a picture cannot be decoded or has changed, the VAE gives numbers that are not finite, or the
                folder cannot be written.
        """
        items = self._name_entries(examples, vae_key, progress or _silent)
        batches = list(_batches(items, batch))
        missing = [group for group in batches if not all(self._is_there(item.key) for item in group)]
        total = len(items)
        done = total - sum(len(group) for group in missing)
        report = progress or _silent
        report(ENCODING, done, total)
        for group, pixels in _decoded(missing):
            self._encode(group, pixels, encode)
            done += len(group)
            report(ENCODING, done, total)

    def get(self, index: int, flipped: bool = False) -> Latent:
        """Return the latent of the example at `index` of those that `fill` was given.

        Raises:
            DataError: its file was deleted or damaged since `fill`.
        """
        key = self._keys.get((index, flipped), self._keys[index, False])
        if self.folder is None:
            return self._memory[key]
        latent = _read(self._path(key), key)
        if latent is None:
            raise DataError(
                f"cache_latents_to_disk: the cached latent {self._path(key)} is gone or damaged.",
                remedy="Resume; it will be made anew. Leave the cache alone while training.",
            )
        return latent

    def _name_entries(self, examples: Sequence[Example], vae_key: str, report: Progress) -> list[_Item]:
        """Return each distinct entry once, sorted by bucket; remember which example has which."""
        contents = _contents(list(dict.fromkeys(example.picture.path for example in examples)), report)
        items: dict[str, _Item] = {}
        for index, example in enumerate(examples):
            for flipped in (False, True) if example.treatment.flip else (False,):
                key = entry_key(contents[example.picture.path], example, flipped, vae_key)
                self._keys[index, flipped] = key
                items.setdefault(key, _Item(key, example, flipped))
        return sorted(items.values(), key=lambda item: item.example.bucket)

    def _is_there(self, key: str) -> bool:
        if self.folder is None:
            return key in self._memory
        return _read(self._path(key), key) is not None

    def _encode(self, group: Sequence[_Item], pixels: torch.Tensor, encode: Encode) -> None:
        means, deviations = (part.detach().to("cpu", torch.float32) for part in encode(pixels))
        for item, mean, deviation in zip(group, means, deviations, strict=True):
            if not (torch.isfinite(mean).all() and torch.isfinite(deviation).all()):
                raise DataError(
                    f"no_half_vae: the VAE makes numbers that are not finite of {item.example.picture.path}.",
                    remedy="Set no_half_vae = true, or choose another vae.",
                )
            # A slice would keep the whole batch alive and be saved as such.
            self._keep(item.key, (mean.clone(), deviation.clone()))

    def _keep(self, key: str, latent: Latent) -> None:
        if self.folder is None:
            self._memory[key] = latent
            return
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(_packed(key, latent))
        except OSError as error:
            raise DataError(
                f"cache_latents_to_disk: cannot write {path}: {error.strerror}.",
                remedy="Free some space, choose another output_dir, or set cache_latents_to_disk = false.",
            ) from error

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"


def entry_key(content: str, example: Example, flipped: bool, vae_key: str) -> str:
    """Return the name of an entry: the sha256, in hex, of everything that decides about its numbers."""
    placement = example.placement
    parts = [
        _FORMAT,
        RESAMPLING,
        vae_key,
        content,
        [*placement.bucket, *placement.resized, placement.left, placement.top],
        flipped,
    ]
    if example.treatment.interpolation:
        parts.append(example.treatment.interpolation)
    if placement.part:
        parts.append({"part": [placement.part.left, placement.part.top, placement.part.width, placement.part.height]})
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _packed(key: str, latent: Latent) -> bytes:
    mean, deviation = (part.contiguous() for part in latent)
    metadata = {"format": _FORMAT, "key": key, "digest": _digest(mean, deviation)}
    return save({"mean": mean, "std": deviation}, metadata)


def _read(path: Path, key: str) -> Latent | None:
    """Return the entry in a file, or None where there is no such file or it is not what it should be."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key or set(file.keys()) != {"mean", "std"}:
                return None
            # Copies: a tensor that looks into the file would keep it open, and suffer if someone rewrote it.
            mean, deviation = file.get_tensor("mean").clone(), file.get_tensor("std").clone()
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return None
    return (mean, deviation) if metadata.get("digest") == _digest(mean, deviation) else None


def _digest(*tensors: torch.Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _contents(paths: Sequence[Path], report: Progress) -> dict[Path, str]:
    """Return the sha256 of every picture's bytes; in large folders, files that have not changed are not read again."""
    folders = Counter(path.parent for path in paths)
    known = {folder: HeaderCache(_CONTENTS, folder) for folder, count in folders.items() if count >= WORTH}
    found: dict[Path, str] = {}
    report(HASHING, 0, len(paths))
    with _threads() as threads:
        for path, content in zip(paths, threads.map(lambda path: _content(path, known), paths), strict=True):
            found[path] = content
            report(HASHING, len(found), len(paths))
    for remembered in known.values():
        remembered.save()
    return found


def _content(path: Path, known: Mapping[Path, HeaderCache]) -> str:
    remembered = known.get(path.parent)
    try:
        if remembered is None:
            return sha256_of(path)
        state = path.stat()
        content = remembered.get(path.name, state)
        if content is None:
            content = sha256_of(path)
            remembered.put(path.name, state, content)
        return content
    except OSError as error:
        raise DataError(
            f"train_data_dir: the picture {path} cannot be read: {error.strerror}.",
            remedy="Resume, and leave the folder as it is while training.",
        ) from error


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield groups of at most `size` items of one bucket."""
    group: list[_Item] = []
    for item in items:
        if group and (len(group) == size or item.example.bucket != group[0].example.bucket):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _decoded(groups: Sequence[list[_Item]]) -> Iterator[tuple[list[_Item], torch.Tensor]]:
    """Yield every group with its pixels [b, 3, H, W]; threads decode a few groups ahead."""
    waiting: deque[tuple[list[_Item], list[Future[torch.Tensor]]]] = deque()
    upcoming = iter(groups)
    with _threads() as threads:
        while True:
            while len(waiting) <= _AHEAD and (group := next(upcoming, None)) is not None:
                waiting.append((group, [threads.submit(load_pixels, item.example, item.flipped) for item in group]))
            if not waiting:
                return
            group, futures = waiting.popleft()
            yield group, torch.stack([future.result() for future in futures])


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Give a few threads; whatever still waits when the block ends, also by an error, is not begun."""
    threads = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), thread_name_prefix="pictures")
    try:
        yield threads
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _silent(phase: str, done: int, total: int) -> None:
    """Tell nobody."""
