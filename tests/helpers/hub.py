"""A model hub on this machine, with as much of the real one's interface as downloading needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


class Hub:
    """Serves the files of one folder as the repository `someone/tiny`.

    `asked` are the paths and ranges of the files that were fetched. Where `patience` is set, every longer answer
    breaks off after so many bytes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []
        self.patience: int | None = None
        self.address = ""

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve on a free port within the context, and give its address."""
        hub = self

        class Handler(_Handler):
            server_hub = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    server_hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        hub = self.server_hub
        if path.startswith("/api/models/someone/tiny/tree/"):
            return self._json(
                [
                    {"type": "file", "path": str(file.relative_to(hub.folder)), "size": file.stat().st_size, "oid": "0"}
                    for file in hub.files()
                ]
            )
        if path.startswith("/api/models/someone/tiny"):
            names = [{"rfilename": str(file.relative_to(hub.folder))} for file in hub.files()]
            return self._json({"id": "someone/tiny", "sha": COMMIT, "siblings": names})
        found = re.fullmatch(r"/someone/tiny/resolve/\w+/(.+)", path)
        file = hub.folder / found[1] if found else hub.folder / "?"
        if not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound" if not found else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return self._file(file, body)

    def _json(self, content: object) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, file: Path, body: bool) -> None:
        data, hub, wanted = file.read_bytes(), self.server_hub, self.headers.get("Range", "")
        begin = int(found[1]) if (found := re.match(r"bytes=(\d+)-", wanted)) else 0
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if not body:
            return
        hub.asked.append((str(file.relative_to(hub.folder)), wanted))
        rest = data[begin:]
        if hub.patience is not None and len(rest) > hub.patience:
            self.wfile.write(rest[: hub.patience])
            self.close_connection = True
            return
        self.wfile.write(rest)
