"""Pictures to show and LoRA files to download, under names that only this program hands out: no client sends a path."""

from __future__ import annotations

import io
import secrets
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from trainer.ground.paths import open_regular, read_bytes

MOST_PICTURE = 256 << 20
"""Bytes of a picture that is shown."""

MOST_NAMES = 50_000
THUMBNAIL_SIDE = 256

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


class Pictures:
    """Hands out addresses for picture files, and for LoRA files to download, and answers requests for them."""

    def __init__(self) -> None:
        self._paths: OrderedDict[str, Path] = OrderedDict()
        self._names: dict[Path, str] = {}
        self._lock = threading.Lock()

    def thumbnail(self, path: Path) -> str:
        """Return the address of a small version of a picture."""
        return f"pictures/small/{self._name(path)}"

    def full(self, path: Path) -> str:
        """Return the address of the picture itself."""
        return f"pictures/full/{self._name(path)}"

    def download(self, path: Path) -> str:
        """Return the address at which a LoRA file can be downloaded."""
        return f"pictures/file/{self._name(path)}"

    def _name(self, path: Path) -> str:
        with self._lock:
            if path not in self._names:
                name = secrets.token_urlsafe(12)
                self._names[path], self._paths[name] = name, path
                if len(self._paths) > MOST_NAMES:
                    _, oldest = self._paths.popitem(last=False)
                    del self._names[oldest]
            return self._names[path]

    def answer(self, request: Request) -> Response:
        """Answer GET pictures/{kind}/{name}."""
        path = self._paths.get(request.path_params["name"])
        if path and request.path_params["kind"] == "file" and path.suffix == ".safetensors" and path.is_file():
            return FileResponse(path, media_type="application/octet-stream", filename=path.name)
        kind = _TYPES.get(path.suffix.lower()) if path else None
        small = request.path_params["kind"] == "small"
        if path is None or not (small or (kind and request.path_params["kind"] == "full")):
            return Response("There is no such picture.", 404)
        try:
            body = _small(path, path.stat().st_mtime_ns) if small else read_bytes(path, MOST_PICTURE)
        except (OSError, ValueError, Image.DecompressionBombError):
            return Response("The picture cannot be read.", 404)
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return Response(body, media_type="image/webp" if small else kind, headers=headers)


@lru_cache(maxsize=1000)
def _small(path: Path, changed: int) -> bytes:
    """Return a picture as WebP of at most THUMBNAIL_SIDE pixels. `changed` makes a rewritten file a new entry."""
    with open_regular(path, MOST_PICTURE) as file, Image.open(file) as picture:
        picture.draft("RGB", (THUMBNAIL_SIDE * 2, THUMBNAIL_SIDE * 2))
        turned = ImageOps.exif_transpose(picture).convert("RGBA")
    turned.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    white = Image.new("RGBA", turned.size, "white")
    white.alpha_composite(turned)
    target = io.BytesIO()
    white.convert("RGB").save(target, "WEBP", quality=82)
    return target.getvalue()
