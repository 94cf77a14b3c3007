"""The first page comes with nothing of torch loaded. How soon: `python -m benchmarks.first_page`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.first_page import FIRST_PAGE, free_port, run


@pytest.mark.slow
def test_the_first_page_needs_nothing_of_torch(tmp_path: Path) -> None:
    run(FIRST_PAGE, str(tmp_path), str(free_port()))
