"""docs/settings.md says what the declarations say."""

from __future__ import annotations

import json
import re
from pathlib import Path

from trainer.config import TrainingConfig, known_settings
from trainer.config.datasets import TABLES
from trainer.settings import docs


def test_the_committed_page_is_fresh(project: Path) -> None:
    committed = (project / "docs" / "settings.md").read_text(encoding="utf-8")
    assert committed == docs.page(TrainingConfig, TABLES), "run `python -m trainer.config` and commit docs/settings.md"


def test_every_setting_has_its_heading_where_links_point() -> None:
    headings = re.findall(r"^### (.*)$", docs.page(TrainingConfig, TABLES), re.MULTILINE)
    of_tables = [key for table in TABLES.values() for key in table.model_fields]
    assert headings == [*known_settings(), *of_tables]


def test_every_argument_of_sd_scripts_is_there_and_each_that_is_refused_has_its_reason() -> None:
    told = json.loads((Path(__file__).parents[1] / "data" / "sd_scripts_arguments.json").read_text(encoding="utf-8"))
    table = docs.page(TrainingConfig, TABLES).partition("## Every argument of sd-scripts")[2]
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", table, re.MULTILINE))
    assert set(told) <= rows.keys()
    unexplained = [name for name, here in rows.items() if here.startswith("not supported")]
    assert unexplained == [], "say why in trainer/settings/sd_scripts.py"
