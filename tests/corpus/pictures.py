"""Files that are no pictures, or pictures that would fill the memory; and names that trip programs up."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image


def encoded(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """Return a good picture's bytes in one of Pillow's formats."""
    stream = io.BytesIO()
    Image.effect_noise(size, 60).convert("RGB").save(stream, kind)
    return stream.getvalue()


def png(width: int, height: int, data: bytes = b"\0" * 9, *extra: tuple[bytes, bytes]) -> bytes:
    """Return a PNG that claims a size and holds `data`, with more chunks ahead of it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(text)) + name + text + struct.pack(">I", zlib.crc32(name + text)) for name, text in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


BYTES: dict[str, bytes] = {
    "empty.png": b"",
    "text.png": b"this is no picture",
    "page.jpg": b"<html>404</html>",
    "head.png": encoded("PNG")[:24],
    "head.jpg": encoded("JPEG")[:20],
    "half.png": encoded("PNG")[:2000],
    "half.jpg": encoded("JPEG")[:1500],
    "half.webp": encoded("WEBP")[:600],
    "half.gif": encoded("GIF")[:900],
    "half.bmp": encoded("BMP")[:600],
    "half.tiff": encoded("TIFF")[:600],
    "bomb.png": png(60_000, 60_000),
    "strip.png": png(2_000_000_000, 1),
    "nothing.png": png(0, 0),
    "lying.gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02D\x01\x00;",
    "lying.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 1 << 30, 1 << 30, 1, 24, 0, 0, 0, 0, 0, 0),
    "text bomb.png": png(64, 64, b"\0" * 9, (b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 80_000_000))),
    "pdf.jpg": b"%PDF-1.7\n%%EOF",
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "icon.png": b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\xff\xff\xff\x7f\x16\0\0\0",
}
"""File name -> bytes, none of which is a picture that can be trained on."""


def frames(kind: str) -> bytes:
    """Return four pictures in one file."""
    first, *others = (Image.effect_noise((64, 48), 60).convert("RGB") for _ in range(4))
    stream = io.BytesIO()
    first.save(stream, kind, save_all=True, append_images=others)
    return stream.getvalue()


ODD: dict[str, bytes] = {
    "one pixel.png": encoded("PNG", (1, 1)),
    "a line.png": encoded("PNG", (30_000, 2)),
    "a column.png": encoded("PNG", (2, 30_000)),
    "moving.gif": frames("GIF"),
    "moving.webp": frames("WEBP"),
    "moving.png": frames("PNG"),
    "pages.tiff": frames("TIFF"),
    "really a jpeg.png": encoded("JPEG"),
    "without ending.jpeg.bmp": encoded("BMP"),
}
"""File name -> bytes of a picture that is unusual, and trained like any other; of several frames the first."""


def _loop(folder: Path) -> None:
    (folder / "loop.png").symlink_to(folder / "loop.png")


def _ring(folder: Path) -> None:
    (folder / "ring").symlink_to(folder)


def _dangling(folder: Path) -> None:
    (folder / "gone.png").symlink_to(folder / "nowhere.png")


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")


def _folder(folder: Path) -> None:
    (folder / "folder.png").mkdir()


def _device(folder: Path) -> None:
    (folder / "device.png").symlink_to("/dev/zero")


TRAPS: dict[str, Callable[[Path], None]] = {
    each.__name__.strip("_"): each for each in (_loop, _ring, _dangling, _pipe, _folder, _device)
}
"""Name -> puts something that is no file into a folder of pictures."""

NAMES = ("with space.png", " begins with one.png", "ünïcode 猫 😀.png", "new\nline.png", "tab\t.png", "quote'\".png",
         "-dash.png", "percent%20.png", "comma, and {brace}.png", "a" * 200 + ".png", "UPPER.PNG")  # fmt: skip
"""Names under which a good picture is trained like any other."""

UNDECODABLE_NAME = b"caf\xe9.png"
"""Bytes that are no UTF-8; Linux allows them."""

CAPTIONS: dict[str, bytes] = {
    "latin-1": "café".encode("latin-1"),
    "UTF-16": "a cat".encode("utf-16"),
    "half a character": "猫".encode()[:2],
    "binary": bytes(range(256)),
    "a picture": encoded("PNG"),
}
"""Name -> a caption file's bytes that are no UTF-8 text."""

ODD_CAPTIONS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\t\n ",
    "100 kB": b"tag, " * 20_000,
    "100 kB in a word": b"x" * 100_000,
    "100 kB of braces": b"{" * 50_000 + b"|" * 50_000,
    "100 kB of alternatives": b"{" + b"a|" * 50_000 + b"b}",
    "many lines": b"a line\n" * 20_000,
    "NUL": b"a\0cat",
    "control characters": b"\x01\x02\x1b[31m a cat",
    "byte order mark": b"\xef\xbb\xbfa cat",
    "only commas": b"," * 5000,
    "right to left": "\u202e\u202dcat\u200b".encode(),
}
"""Name -> a caption file's bytes that are unusual, and good enough to train with."""
