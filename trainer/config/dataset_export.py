"""Datasets as a dataset_config that sd-scripts reads, and what it cannot say."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.datasets import ATTRIBUTES, SUBSETS
from trainer.config.pictures import Table
from trainer.config.training_config import TrainingConfig
from trainer.config.values import size_of
from trainer.settings import toml
from trainer.settings.problems import shown

_SUBSET_ALONE = ("alpha_mask", "conditioning_data_dir")
"""What sd-scripts takes in a subset alone."""

_NOT_WITH_MASKS = ("class_tokens", "is_reg", "alpha_mask", "random_crop")
"""What its datasets with masks have not."""


def dataset_config(config: TrainingConfig) -> tuple[str, tuple[str, ...]]:
    """Return the file's text, and a line for each thing that sd-scripts cannot be told in it."""
    tables, unsaid = [], []
    for number, table in enumerate(config.dataset.datasets, 1):
        place = f"dataset {number}"
        for size in table.get("resolutions") or [None]:
            said = table if size is None else {**table, "resolution": size}
            made, lines = _dataset(said, place)
            tables.append(made)
            unsaid += [line for line in lines if line not in unsaid]
    return "\n".join(toml.tables("datasets", tables)) + "\n", tuple(unsaid)


def _dataset(table: Table, place: str) -> tuple[Table, list[str]]:
    above = {key: table[key] for key in _SUBSET_ALONE if key in table}
    own = {key: value for key, value in table.items() if key not in (SUBSETS, "resolutions", *above)}
    unsaid = list(_untold(own, place))
    subsets = []
    masked = [bool({**above, **subset}.get("conditioning_data_dir")) for subset in table[SUBSETS]]
    for index, subset in enumerate(table[SUBSETS], 1):
        said = {**above, **subset}
        if any(masked):
            said, lines = _with_masks(said, f"{place}, subset {index}", whole=all(masked))
            unsaid += lines
        unsaid += _untold(said, f"{place}, subset {index}")
        subsets.append(_there(said))
    return {**_there(own), SUBSETS: subsets}, unsaid


def _with_masks(table: Table, place: str, *, whole: bool) -> tuple[Table, list[str]]:
    """Return what of a subset fits beside masks there, where all or none of a dataset's subsets have them."""
    drop = _NOT_WITH_MASKS if whole else ("conditioning_data_dir",)
    lines = [
        f"{place}: {key} {shown(table[key])} does not go together with masks in sd-scripts' datasets; it is left out."
        for key in drop
        if table.get(key)
    ]
    return {key: value for key, value in table.items() if key not in drop}, lines


def _untold(table: Table, place: str) -> Iterator[str]:
    for key, value in table.items():
        if not _has(key):
            yield f"{place}: sd-scripts says {key} for a whole run alone; {shown(value)} is left out."


def _has(key: str) -> bool:
    """Say whether sd-scripts has a key in its datasets."""
    return key not in ("min_timestep", "max_timestep")


def _there(table: Table) -> Table:
    """Return a table's values in sd-scripts' forms, without what it has not and what says nothing."""
    made: Table = {}
    for key, value in table.items():
        if not _has(key) or value == "" and key in ("image_dir", "metadata_file", "conditioning_data_dir"):
            continue
        if key == "diff_output_preservation":
            made[ATTRIBUTES] = {key: value}
        else:
            made[key] = list(size_of(str(value))) if key == "resolution" else value
    return made
