"""A script that has to run before Gradio's own: what is handed to Gradio as the page's head runs only after them."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kohya_gui.parts.markup import ASSETS

_SCRIPT = f"<head><script>{(ASSETS / 'frames.js').read_text(encoding='utf-8')}</script>".encode()


class Early:
    """ASGI middleware that puts the script first into the page's head."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; the answer to one for the page itself comes back longer."""
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        start: Message = {}
        text = b""

        async def lengthen(message: Message) -> None:
            nonlocal start, text
            if message["type"] == "http.response.start":
                start = message
                return
            text += message.get("body", b"")
            if message.get("more_body"):
                return
            text = text.replace(b"<head>", _SCRIPT, 1)
            MutableHeaders(scope=start)["content-length"] = str(len(text))
            await send(start)
            await send({"type": "http.response.body", "body": text})

        await self.app(scope, receive, lengthen)
