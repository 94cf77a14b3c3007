"""Models by their name on the hub: fetched with progress, gone on with where a download broke off, into the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.families import TINY
from tests.helpers.hub import Hub
from trainer import families
from trainer.config import load_config

PROJECT = Path(__file__).parents[2]
FETCH = """
import json, sys
import huggingface_hub.constants
from trainer.config import load_config
from trainer.ground.errors import TrainerError
from trainer.families import FAMILIES, look_up, recognise_chosen
from trainer.families.reading import hub
# What arrives of a piece that breaks off is lost; it is 10 MB, more than the tiny files have.
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 50_000
told = []
config = load_config(overrides={"pretrained_model_name_or_path": "someone/tiny", **json.loads(sys.argv[1])})
try:
    look_up(config)
    seen = recognise_chosen(config)
    folder = hub.download(seen.source, FAMILIES[seen.family].weighty, lambda *each: told.append(each))
    print(json.dumps({"family": seen.family, "folder": str(folder), "told": told}))
except TrainerError as error:
    print(json.dumps({"error": str(error), "told": told}))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = Hub(TINY["sdxl"].write_folder(tmp_path / "served", variant="fp16"))
    with hub.serving() as address:
        hub.address = address
        yield hub


def fetch(hub: Hub, cache: Path, **settings: object) -> dict[str, Any]:
    """Fetch in a process of its own, which asks this hub and keeps what it gets in `cache`."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    command = [sys.executable, "-c", FETCH, json.dumps(settings)]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_model_comes_from_the_hub_once(hub: Hub, tmp_path: Path) -> None:
    found = fetch(hub, tmp_path / "cache")
    assert found["family"] == "sdxl"
    assert families.recognise(found["folder"]).precision == "fp16"
    phases = [each for each in found["told"] if each[0] == "downloading the model (MB)"]
    weights = sum(file.stat().st_size for file in hub.files() if file.suffix == ".safetensors")
    assert phases[-1][1] == phases[-1][2] >= weights // 1_000_000
    assert {name for name, _ in hub.asked} == {str(file.relative_to(hub.folder)) for file in hub.files()}
    fetched = len(hub.asked)
    assert fetch(hub, tmp_path / "cache")["folder"] == found["folder"]
    assert len(hub.asked) == fetched


def test_a_connection_that_breaks_off_is_taken_up_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    hub.patience = 4_000_000
    folder = Path(fetch(hub, tmp_path / "cache")["folder"])
    assert any(wanted.startswith("bytes=") for name, wanted in hub.asked if name.startswith("unet/"))
    for file in hub.files():
        assert (folder / file.relative_to(hub.folder)).read_bytes() == file.read_bytes()


def test_a_hub_that_gives_up_is_said_and_what_is_complete_is_kept(hub: Hub, tmp_path: Path) -> None:
    hub.patience = 2_000
    found = fetch(hub, tmp_path / "cache")
    assert found["error"].startswith("The download of someone/tiny broke off")
    assert "is not fetched again" in found["error"]
    hub.patience, before = None, len(hub.asked)
    assert fetch(hub, tmp_path / "cache")["family"] == "sdxl"
    assert {Path(name).suffix for name, _ in hub.asked[before:]} == {".safetensors"}


def test_a_name_that_the_hub_does_not_have(hub: Hub, tmp_path: Path) -> None:
    found = fetch(hub, tmp_path / "cache", pretrained_model_name_or_path="someone/else")
    assert found["error"].startswith("someone/else is no file or folder here, and the hub")
    assert found["told"] == []


def test_another_family_than_the_hubs_is_an_error(hub: Hub, tmp_path: Path) -> None:
    found = fetch(hub, tmp_path / "cache", model_family="sd15")
    assert "model_family: 'sd15' is not what someone/tiny is: a Stable Diffusion XL model" in found["error"]
    assert all(name.endswith(".json") for name, _ in hub.asked)


def test_a_name_that_nobody_has_looked_up_is_of_the_family_that_the_settings_say() -> None:
    config = load_config(overrides={"pretrained_model_name_or_path": "someone/new", "model_family": "sdxl"})
    assert families.recognise_chosen(config).family == "sdxl"
