"""What a LoRA file says about its training: kohya's `ss_*` entries, modelspec's, and the settings to read back.

Every value is a text, absence is "None", as sd-scripts writes them (`train_network.py`, `library/sai_model_spec.py`).
Names of files and of numbered picture folders go in; paths, and names of other folders, never do.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import re
import threading
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path

from trainer.adapters import AdapterSpec
from trainer.config import TrainingConfig, batch_sizes, known_settings, resolution_size, to_flat
from trainer.config.datasets import KEY as DATASETS
from trainer.config.datasets import without_paths
from trainer.config.files import PROJECT
from trainer.ground.files import sha256_of
from trainer.pictures.counts import Counts, bucket_info
from trainer.pictures.report import DatasetReport, dataset_dirs, tag_frequency
from trainer.planning.timetable import Timetable
from trainer.process import DDPM, FLOW
from trainer.results.datasets_entry import datasets_entry, public_name
from trainer.settings import sd_scripts
from trainer.settings.kohya import names_a_file
from trainer.settings.section import PATHS

PROGRAM = "kohya-lora-trainer"

SETTINGS_ENTRY = "trainer_config"
"""The entry with all settings as JSON, without paths."""

VALIDATION_ENTRY = "trainer_validation"
"""The entry with what validation has found, as JSON."""

NEEDED = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
"""What `no_metadata` leaves, beside modelspec's entries: programs read from these how to apply the file."""

TAGS_KEPT = 20_000
"""At most so many tags are listed, the most frequent ones: a header of many megabytes makes files unreadable."""

FOLDER_HASH = "IsADirectory"
"""sd-scripts' word in place of the hash of a diffusers folder."""

_HASHING = threading.Lock()
"""Held while a file is read, so that who needs the hashes meanwhile waits for them and does not read it too."""

_OLD_HASH_OFFSET, _OLD_HASH_LENGTH = 0x100000, 0x10000

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.safetensors)(?<!\.ckpt)")


_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""What a model predicts -> modelspec's word; it has none for rectified flow."""

_OF_ONE_DATASET = frozenset(
    {
        "ss_batch_size_per_device",
        "ss_bucket_info",
        "ss_bucket_no_upscale",
        "ss_color_aug",
        "ss_enable_bucket",
        "ss_flip_aug",
        "ss_keep_tokens",
        "ss_max_bucket_reso",
        "ss_min_bucket_reso",
        "ss_random_crop",
        "ss_reg_dataset_dirs",
        "ss_resolution",
        "ss_shuffle_caption",
        "ss_total_batch_size",
    }
)
"""Entries whose place `ss_datasets` takes where there are several datasets, as with sd-scripts."""

_ELSEWHERE: Mapping[str, object] = {
    "ss_fp8_base": False,
    "ss_sd_scripts_commit_hash": "(unknown)",
}
"""Entries of sd-scripts that belong to no setting and no argument, or to the other one of two arguments."""


@dataclass(frozen=True, slots=True)
class FileHashes:
    """A model file's hashes: `old` is web UIs' former 8 digits, `new` SHA-256."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The base model as the file tells of it. Names are file names or hub ids, never paths (`model_name`).

    `base_model_version`, `architecture`, `implementation`, `v2`, `network_module`, `model_type`, `always` and `never`
    are the family's; `prediction_type` is "epsilon" or "v_prediction", or what modelspec has no word for;
    `zero_terminal_snr` whether the last timestep is pure noise.
    Hashes are None where there is no local file.
    """

    name: str
    base_model_version: str
    architecture: str
    prediction_type: str
    hashes: FileHashes | None = None
    vae_name: str = ""
    vae_hashes: FileHashes | None = None
    implementation: str = "diffusers"
    v2: bool = False
    network_module: str = "networks.lora"
    model_type: str = ""
    always: Mapping[str, object] = field(default_factory=dict)
    never: frozenset[str] = frozenset()
    zero_terminal_snr: bool = False


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What holds for the whole run. `started` is seconds since 1970; `mixed_precision` what "auto" has become."""

    config: TrainingConfig
    adapter: AdapterSpec
    timetable: Timetable
    report: DatasetReport
    counts: Counts
    model: ModelFacts
    optimizer: str
    mixed_precision: str
    started: float
    session_id: int


def build(
    facts: RunFacts, *, step: int, epoch: int, finished: float, validation: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Return the metadata of a file saved after `step` and `epoch`, at `finished` seconds since 1970.

    `validation` is what validation has found up to then, None where it has not.
    `export.save` adds the two hashes.
    """
    found = (
        _network(facts.adapter, facts.model.network_module)
        | _dataset(facts)
        | _run(facts, step, epoch, finished)
        | _model(facts)
    )
    of_run = {f"ss_{key}": value for key, value in found.items()}
    written = {**sd_scripts.entries(), **_ELSEWHERE, **_of_settings(facts), **of_run}
    if facts.config.dataset.datasets:
        written = {key: value for key, value in written.items() if key not in _OF_ONE_DATASET}
        written["ss_datasets"] = datasets_entry(facts.config, facts.report, facts.counts)
    entries = {key: _text(value) for key, value in written.items()}
    if facts.config.metadata.no_metadata:
        entries = {key: value for key, value in entries.items() if key in NEEDED}
    else:
        entries[SETTINGS_ENTRY] = json.dumps(settings_without_paths(facts.config))
        if validation:
            entries[VALIDATION_ENTRY] = json.dumps(validation)
    return entries | _modelspec(facts, finished)


def read_settings(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the settings that a file of ours was trained with, paths left out; empty for files of others."""
    try:
        found = json.loads(metadata.get(SETTINGS_ENTRY, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def settings_without_paths(config: TrainingConfig) -> dict[str, object]:
    """Return every setting by key but those that name a file or folder."""
    shown = {key: setting.show.widget for key, setting in known_settings().items()}
    flat = {key: value for key, value in to_flat(config).items() if shown[key] not in PATHS}
    if names_a_file(str(flat["sample_prompts"])):
        del flat["sample_prompts"]
    flat[DATASETS] = [without_paths(table) for table in config.dataset.datasets]
    return flat


def optimizer_name(optimizer: object, optimizer_args: Sequence[str]) -> str:
    """Return `ss_optimizer`: the class with its module and the arguments given, as texts `name=value`."""
    name = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
    return f"{name}({','.join(optimizer_args)})" if optimizer_args else name


def model_name(source: str) -> str:
    """Return what to call a model: the name of the file or folder, or a hub id such as "user/name" as it is."""
    if _HUB_ID.fullmatch(source) and not os.path.exists(source):
        return source
    return Path(source).name


def model_hashes(path: str | Path) -> FileHashes | None:
    """Return a model file's hashes, or None where no file is to be read (a hub id).

    Reads the whole file, about a second for each gigabyte, once as long as the file and the program last.
    """
    path = Path(path)
    if path.is_dir():
        return FileHashes(FOLDER_HASH, FOLDER_HASH)
    if not path.is_file():
        return None
    state = path.stat()
    with _HASHING:
        return _hashes_of(str(path.resolve()), state.st_size, state.st_mtime_ns)


def hash_ahead(path: str | Path) -> None:
    """Begin to read a model file on a thread, so that its hashes are there when the first LoRA is saved."""

    def work() -> None:
        # Whoever needs the hashes asks again, and is told.
        with suppress(OSError):
            model_hashes(path)

    threading.Thread(target=work, name="hash", daemon=True).start()


@lru_cache(maxsize=16)
def _hashes_of(path: str, size: int, modified: int) -> FileHashes:
    """`size` and `modified` are there to tell apart what the file held at different times."""
    return FileHashes(_old_hash(Path(path)), sha256_of(Path(path)))


def _old_hash(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(_OLD_HASH_OFFSET)
        return hashlib.sha256(file.read(_OLD_HASH_LENGTH)).hexdigest()[:8]


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _of_settings(facts: RunFacts) -> dict[str, object]:
    """Return the entries that settings write as they are, by their declarations."""
    flat = {**to_flat(facts.config), **facts.model.always}
    process = DDPM if facts.model.prediction_type in _PREDICTIONS else FLOW
    return {
        setting.entry: setting.metadata.write(flat[key]) if setting.metadata.write else flat[key]
        for key, setting in known_settings().items()
        if setting.metadata is not None
        and not setting.metadata.of_run
        and setting.belongs_to(process.name)
        and key not in facts.model.never
    }


def _network(adapter: AdapterSpec, module: str) -> dict[str, object]:
    entries: dict[str, object] = {
        "network_module": adapter.module_for(module),
        "network_dim": adapter.network_dim * adapter.copies,
        "network_alpha": adapter.network_alpha * adapter.copies,
    }
    if adapter.dynamic:
        # kohya's word for a file whose modules have ranks of their own
        entries |= {"network_dim": "Dynamic", "network_alpha": "Dynamic"}
    if arguments := adapter.network_args():
        entries["network_args"] = arguments
    return entries


def _run(facts: RunFacts, step: int, epoch: int, finished: float) -> dict[str, object]:
    timetable = facts.timetable
    return {
        "epoch": epoch,
        "max_train_steps": timetable.total_steps,
        "mixed_precision": facts.mixed_precision,
        "num_batches_per_epoch": timetable.micro_batches,
        "num_epochs": timetable.total_epochs,
        "optimizer": facts.optimizer,
        "session_id": facts.session_id,
        "steps": step,
        "total_batch_size": max(batch_sizes(facts.config)) * timetable.accumulation * timetable.ranks,
        "training_finished_at": finished,
        "training_started_at": facts.started,
    }


def _dataset(facts: RunFacts) -> dict[str, object]:
    report, config = facts.report, facts.config
    tags = tag_frequency(report, public_name, all_lines=config.captions.enable_wildcard)
    buckets = json.dumps(bucket_info(facts.counts) if config.dataset.enable_bucket else None)
    return {
        "bucket_info": buckets,
        "dataset_dirs": dataset_dirs(report.train_folders, public_name),
        "num_reg_images": report.reg_count,
        "num_train_images": report.train_count,
        "num_validation_images": sum(len(folder.pictures) for folder in report.held_out),
        "reg_dataset_dirs": dataset_dirs(report.reg_folders, public_name),
        "tag_frequency": _most_frequent(tags, TAGS_KEPT),
    }


def _most_frequent(tags: Mapping[str, Mapping[str, int]], limit: int) -> dict[str, dict[str, int]]:
    """Return at most `limit` tags over all folders, the most frequent ones, in their order."""
    if sum(len(counts) for counts in tags.values()) <= limit:
        return {folder: dict(counts) for folder, counts in tags.items()}
    every = ((count, folder, tag) for folder, counts in tags.items() for tag, count in counts.items())
    kept = {(folder, tag) for _, folder, tag in heapq.nlargest(limit, every)}
    return {
        folder: {tag: count for tag, count in counts.items() if (folder, tag) in kept}
        for folder, counts in tags.items()
    }


def _model(facts: RunFacts) -> dict[str, object]:
    model = facts.model
    entries: dict[str, object] = {
        "base_model_version": model.base_model_version,
        "sd_model_name": model.name,
        "v2": model.v2,
        "zero_terminal_snr": model.zero_terminal_snr,
    }
    if model.model_type:
        entries["model_type"] = model.model_type
    if model.hashes:
        entries |= {"sd_model_hash": model.hashes.old, "new_sd_model_hash": model.hashes.new}
    if model.vae_name:
        entries["vae_name"] = model.vae_name
    if model.vae_hashes:
        entries |= {"vae_hash": model.vae_hashes.old, "new_vae_hash": model.vae_hashes.new}
    return entries


def _modelspec(facts: RunFacts, finished: float) -> dict[str, str]:
    """Return the entries of ModelSpec 1.0.1 (Stability AI's standard for model metadata)."""
    config, given = facts.config, facts.config.metadata
    width, height = resolution_size(config)
    entries = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{facts.model.architecture}/lora",
        "implementation": facts.model.implementation,
        "implementation_version": f"{PROGRAM}/{_program_version()}",
        "title": given.metadata_title or config.saving.output_name,
        "resolution": f"{width}x{height}",
        "date": datetime.fromtimestamp(int(finished)).isoformat(),
        "prediction_type": _PREDICTIONS.get(facts.model.prediction_type, ""),
        "author": given.metadata_author,
        "description": given.metadata_description,
        "license": given.metadata_license,
        "tags": given.metadata_tags,
    }
    if config.model.clip_skip > 1:
        entries["encoder_layer"] = str(config.model.clip_skip)
    if (config.noise.min_timestep, config.noise.max_timestep) != (0, 1000):
        entries["timestep_range"] = f"{config.noise.min_timestep},{config.noise.max_timestep}"
    return {f"modelspec.{key}": value for key, value in entries.items() if value}


@cache
def _program_version() -> str:
    """Return the version that this code says it is; it is started from its folder and installed nowhere."""
    with open(PROJECT / "pyproject.toml", "rb") as file:
        return str(tomllib.load(file)["project"]["version"])
