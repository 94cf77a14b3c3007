"""Stands before every route: the Host that a request names, where it comes from, the password, closed doors.

Gradio's own login leaves some routes open and its `api_visibility` only hides, so nothing here relies on either.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import threading
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

# Routes of Gradio that this page does not use; each would read or take files, or call out.
CLOSED = ("file=", "file/", "upload", "upload_progress", "proxy=", "component_server", "stream", "deep_link", "vibe-")
CLOSED_PAGES = ("/monitoring", "/custom_component", "/gradio_api/custom_component", "/gradio_api/process_recording")

START_CHECK = "/gradio_api/startup-events"
READING = ("GET", "HEAD", "OPTIONS")
WRONG_PASSWORD_SECONDS = 0.5


class Guard:
    """ASGI middleware. `hosts` empty lets any Host in, which only a server with a password may do.

    Until `started` is set, Gradio's own request to find out whether its server is up passes without the password.
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str], password: str, started: threading.Event) -> None:
        if not hosts and not password:
            raise ValueError("a server that answers to any Host needs a password")
        self.app, self.hosts, self.password, self.started = app, hosts, password, started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        if refusal.status_code == 401 and "authorization" in headers:
            await asyncio.sleep(WRONG_PASSWORD_SECONDS)
        await refusal(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        host = headers.get("host", "")
        if self.hosts and _name_of(host) not in self.hosts:
            return PlainTextResponse("This address is not one of the program's own.", 421)
        starting = not self.started.is_set() and scope.get("path") == START_CHECK
        if self.password and not starting and not self._knows(headers.get("authorization", "")):
            asked = {"WWW-Authenticate": 'Basic realm="LoRA trainer", charset="UTF-8"'}
            return PlainTextResponse("A password is needed.", 401, headers=asked)
        if is_closed(str(scope.get("path", ""))):
            return PlainTextResponse("This door is closed.", 403)
        origin = headers.get("origin", "")
        if scope.get("method", "GET") not in READING and origin and urlsplit(origin).netloc != host:
            return PlainTextResponse("Requests from other pages are refused.", 403)
        return None

    def _knows(self, authorization: str) -> bool:
        """True when the header holds the password, under any user name."""
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, self.password.encode())


def is_closed(path: str) -> bool:
    """True for routes that nobody needs here."""
    path = "/" + path.lstrip("/")
    if path.startswith(CLOSED_PAGES):
        return True
    tail = path.removeprefix("/gradio_api/") if path.startswith("/gradio_api/") else path[1:]
    return tail.startswith(CLOSED)


def _name_of(host: str) -> str:
    """Return the host's name without its port: "localhost", "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
