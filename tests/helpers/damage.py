"""Pictures with something wrong in them, as hypothesis draws it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from tests.helpers.pictures import write_picture


def damaged_picture(folder: Path, extension: str, data: st.DataObject) -> Path:
    """Write a picture with some bytes changed and its end cut off, and return its path."""
    clean = folder / f"clean.{extension}"
    if not clean.exists():
        write_picture(clean, (24, 16))
    content = bytearray(clean.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = folder / f"damaged.{extension}"
    damaged.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    return damaged
