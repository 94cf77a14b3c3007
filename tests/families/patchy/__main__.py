"""`python -m tests.families.patchy train RUN.toml ...`: the program with this family in its list."""

from __future__ import annotations

import sys

from tests.families.patchy import Patchy
from trainer.__main__ import main
from trainer.families import FAMILIES

assert isinstance(FAMILIES, dict)
FAMILIES.update({family.name: family for family in (Patchy(1), Patchy(3))})
sys.exit(main(sys.argv[1:]))
