"""`train --check` as it is asked for at the terminal, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.settings.toml import encoded


def check_run(
    folder: Path, settings: Mapping[str, object], capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str]:
    """Write a file of settings, check it, and return the exit code and all that was printed."""
    path = folder / "RUN.toml"
    path.write_text("".join(f"{key} = {encoded(value)}\n" for key, value in settings.items()), encoding="utf-8")
    capsys.readouterr()
    code = main(["train", str(path), "--check", *words])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out + err
