"""`python -m tests.families.patchy train RUN.toml ...`: the program with this family in its list."""

from __future__ import annotations

import sys

from tests.families.patchy import register
from trainer.__main__ import main

register()
sys.exit(main(sys.argv[1:]))
