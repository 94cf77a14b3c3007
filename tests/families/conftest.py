"""Tiny models for all tests of families."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.checkpoints import tiny_sd15, tiny_sd15_ckpt, tiny_sd15_folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of Stable Diffusion 1.x in every form; nobody changes it."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "file": tiny_sd15(folder),
        "ckpt": tiny_sd15_ckpt(folder / "new"),
        "legacy": tiny_sd15_ckpt(folder / "old", legacy=True),
        "folder": tiny_sd15_folder(folder),
    }
