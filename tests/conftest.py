"""What every test stands on: one thread, no network, no cache of the person's."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.internal.conjecture import providers

# Before anything imports torch: two test processes with spinning threads slow each other down tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["HF_HUB_OFFLINE"] = "1"
# A process that forecasts memory takes seconds; tests that are about it take the switch away.
os.environ["TRAINER_FORECAST"] = "off"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

PROJECT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--thorough`: the long forms of tests that have one."""
    parser.addoption("--thorough", action="store_true", help="also run the long forms, such as thirty kills at random")
    parser.addoption("--kill-seed", type=int, default=None, help="repeat the random kills of an earlier --thorough")


def pytest_configure(config: pytest.Config) -> None:
    """Try the same examples each time, and new ones with `--thorough`: what is found then is no fault of a change."""
    settings.register_profile("same", derandomize=True)
    if not config.getoption("--thorough"):
        settings.load_profile("same")
        # It draws from the numbers and texts of whatever modules are loaded, which another order of tests changes.
        assert hasattr(providers, "is_local_module_file"), "Hypothesis finds its constants in another way now"
        providers.is_local_module_file = lambda path: False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long forms unless they are asked for."""
    if not config.getoption("--thorough"):
        for item in items:
            if "thorough" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="a long form; --thorough runs it"))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Leave the garbage alone while tests are collected: what is imported then stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def what_is_there_stays() -> None:
    """Keep the garbage collector from what other files of tests have imported and left.

    Every run collects garbage several times. Among the millions of objects of all libraries and thousands of tests
    each time took up to three seconds, more than the run.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def project() -> Path:
    """The folder of the checkout."""
    return PROJECT


@pytest.fixture(scope="session", autouse=True)
def caches_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep caches out of the person's home: a test may not pass because of what lies there."""
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
    patch.setenv("TRAINER_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()
