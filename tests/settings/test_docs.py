"""docs/settings.md says what the declarations say."""

from __future__ import annotations

import re
from pathlib import Path

from trainer.config import TrainingConfig, known_settings
from trainer.settings import docs


def test_the_committed_page_is_fresh(project: Path) -> None:
    committed = (project / "docs" / "settings.md").read_text(encoding="utf-8")
    assert committed == docs.page(TrainingConfig), "run `python -m trainer.config` and commit docs/settings.md"


def test_every_setting_has_its_heading_where_links_point() -> None:
    headings = re.findall(r"^### (.*)$", docs.page(TrainingConfig), re.MULTILINE)
    assert headings == list(known_settings())
