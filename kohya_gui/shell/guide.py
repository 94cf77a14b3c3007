"""The program's own guides, served as pages: `docs/*.md` as HTML, and the pictures beside them."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from markdown_it import MarkdownIt
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from kohya_gui.form.presets import PROJECT

DOCS = PROJECT / "docs"
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_HEADING = re.compile(r"<h([1-6])>(.*?)</h\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body><main>{body}</main></body></html>"""
_STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; font: 16px/1.6 system-ui, sans-serif; background: Canvas; color: CanvasText; }
main { max-width: 46rem; margin: 0 auto; padding: 2rem 1.2rem 6rem; }
h1, h2, h3 { line-height: 1.25; margin: 2em 0 .5em; scroll-margin-top: 1rem; }
:target { background: color-mix(in srgb, Highlight 22%, transparent); border-radius: 4px; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .93em; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; }
th, td { border-bottom: 1px solid color-mix(in srgb, CanvasText 18%, transparent); }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { overflow-x: auto; padding: .8rem 1rem; border-radius: 8px; }
pre { background: color-mix(in srgb, CanvasText 7%, transparent); }
img { max-width: 100%; border-radius: 8px; }
"""


def answer_page(request: Request) -> Response:
    """Answer GET guide/{name}: docs/NAME.md."""
    name = request.path_params["name"].removesuffix(".md")
    path = DOCS / f"{name}.md"
    if not _NAME.fullmatch(name) or not path.is_file():
        return Response("There is no such guide.", 404)
    return HTMLResponse(_render(path, path.stat().st_mtime_ns))


def answer_picture(request: Request) -> Response:
    """Answer GET guide/images/{name}: a picture of the guides."""
    path = (DOCS / "images" / request.path_params["name"]).resolve()
    if path.parent != (DOCS / "images").resolve() or not path.is_file():
        return Response("There is no such picture.", 404)
    return FileResponse(path)


@lru_cache(maxsize=8)
def _render(path: Path, changed: int) -> str:
    """Return a Markdown file as a page. `changed` makes a rewritten file a new entry."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")
    body = _HEADING.sub(_with_anchor, str(markdown.render(path.read_text(encoding="utf-8"))))
    title = _HEADING.search(body)
    return _PAGE.format(title=_TAG.sub("", title[2]) if title else path.stem, style=_STYLE, body=body)


def _with_anchor(match: re.Match[str]) -> str:
    """Return a heading with the anchor that GitHub would give it."""
    words = _TAG.sub("", match[2]).lower()
    anchor = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
    return f'<h{match[1]} id="{anchor}">{match[2]}</h{match[1]}>'
