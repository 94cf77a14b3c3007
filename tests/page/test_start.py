"""The first page comes with nothing of torch loaded. How soon: `python -m benchmarks --only page`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.page import first_page


@pytest.mark.slow
def test_the_first_page_needs_nothing_of_torch(tmp_path: Path) -> None:
    first_page(tmp_path)
