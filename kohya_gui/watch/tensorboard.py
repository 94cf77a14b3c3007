"""TensorBoard inside the page: its own code answers, behind the page's guard, and nothing listens at another port.

It is loaded at the first click and reads the files when someone looks: while nobody does it costs the training nothing.
Only its plugins for scalars are there; others read files that a log can name.
"""

from __future__ import annotations

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from kohya_gui.session import Session
from trainer.results.run_record import RunRecord

MOST_LOGS = 3
"""Folders of which the numbers are kept in memory, those last looked at."""

READ_SECONDS = 5.0
"""Least time between two looks at the files."""

MOST_ASKED = 1 << 20
"""Bytes of a question."""

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Logs:
    """What has been written for TensorBoard under one folder, and TensorBoard's own answers about it."""

    def __init__(self, folder: Path) -> None:
        from tensorboard import program
        from tensorboard.backend import application
        from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
        from tensorboard.plugins.core.core_plugin import CorePluginLoader
        from tensorboard.plugins.metrics.metrics_plugin import MetricsPlugin
        from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

        self._folder, self._read, self._lock = str(folder), float("-inf"), threading.Lock()
        self._multiplexer = plugin_event_multiplexer.EventMultiplexer()
        board = program.TensorBoard([CorePluginLoader(), ScalarsPlugin, MetricsPlugin])
        board.configure(("",), logdir=self._folder)
        provider = data_provider.MultiplexerDataProvider(self._multiplexer, self._folder)
        self._app: Wsgi = application.TensorBoardWSGIApp(
            board.flags, board.plugin_loaders, provider, board.assets_zip_provider, self._multiplexer
        )

    def _read_on(self) -> None:
        with self._lock:
            if time.monotonic() - self._read > READ_SECONDS:
                self._multiplexer.AddRunsFromDirectory(self._folder)
                self._multiplexer.Reload()
                self._read = time.monotonic()

    def answer(self, environment: dict[str, Any]) -> Response:
        """Return the answer to a request in WSGI's terms."""
        self._read_on()
        told: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], problem: object = None) -> None:
            told[:] = [int(status.split(maxsplit=1)[0]), headers]

        found = self._app(environment, start)
        return Response(b"".join(found), told[0], dict(told[1]))


def folder_of(record: RunRecord) -> Path | None:
    """Return the folder that a run's curves for TensorBoard lie in, or None where it has none."""
    config = record.config()
    chosen = config.logging.logging_dir if config else ""
    folder = Path(chosen) / record.name if chosen else record.folder.path / "logs"
    return folder if config and config.logging.log_with == "tensorboard" and folder.is_dir() else None


def answer_board(session: Session) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers tensorboard/{name}/...: TensorBoard, for that run and those that log beside it."""
    known: OrderedDict[Path, Logs] = OrderedDict()
    lock = threading.Lock()

    def logs_of(name: str) -> Logs | None:
        record = session.view(name).record
        folder = folder_of(record) if record is not None and record.name == name else None
        if folder is None:
            return None
        folder = folder if record is not None and folder.parent == record.folder.path else folder.parent
        if session.folders.problem(str(folder)):
            return None
        with lock:
            logs = known.pop(folder, None) or Logs(folder)
            known[folder] = logs
            while len(known) > MOST_LOGS:
                known.popitem(last=False)
            return logs

    def reply(name: str, environment: dict[str, Any]) -> Response:
        logs = logs_of(name)
        if logs is None:
            return Response("This run has nothing for TensorBoard, or it may not be read.", 404)
        return logs.answer(environment)

    async def answer(request: Request) -> Response:
        name, path = request.path_params["name"], request.path_params.get("path")
        if path is None:
            return RedirectResponse(f"{request.url.path}/")
        body = await request.body()
        if len(body) > MOST_ASKED:
            return Response("That question is too long.", 413)
        return await run_in_threadpool(reply, name, _environment(request, f"/{path}", body))

    return answer


def _environment(request: Request, path: str, body: bytes) -> dict[str, Any]:
    """Return a request as PEP 3333 has it."""
    url = request.url
    named = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in request.headers.items()}
    return {
        **named,
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": url.query,
        "CONTENT_TYPE": request.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_NAME": url.hostname or "",
        "SERVER_PORT": str(url.port or 80),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": url.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
