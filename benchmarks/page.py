"""How soon the first page is there, as a multiple of `import gradio`, and how long the form takes to answer.

Every try is a fresh Python. The form is asked as a browser asks it, through the server's queue: all its fields are
checked and drawn anew.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.ground import PROJECT
from benchmarks.options import Options
from benchmarks.rows import Row, Target, median_row, ratio_row

TRIES, QUICK_TRIES = 7, 3

IMPORT = "import gradio"

FIRST_PAGE = """
import sys, urllib.request
from kohya_gui.__main__ import load
app = load()
given = app.parser().parse_args(["--no-browser", "--presets", sys.argv[1], "--port", sys.argv[2]])
session = app.make_session([], given.presets)
page = app.Page(session)
app.serve(page, given, "", open_to_others=False)
address = f"http://127.0.0.1:{given.port}/"
text = urllib.request.urlopen(address).read()
assert b"Start" in text
heavy = {"torch", "diffusers", "transformers", "peft", "accelerate"} & set(sys.modules)
assert not heavy, f"loaded before they are needed: {heavy}"
"""

FORM = (
    FIRST_PAGE
    + """
import json, time
function = next(number for number, each in page.blocks.fns.items() if each.name == "form_update")
for turn in range(int(sys.argv[3])):
    began = time.perf_counter()
    body = json.dumps({"data": [], "fn_index": function, "session_hash": f"turn{turn}"}).encode()
    ask = urllib.request.Request(f"{address}gradio_api/queue/join", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(ask).read()
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash=turn{turn}") as answer:
        assert any(b"process_completed" in line and b'"success":true' in line for line in answer)
    print(time.perf_counter() - began)
"""
)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(program: str, *arguments: str) -> str:
    """Run a program in a fresh Python and return its output. Raises CalledProcessError where it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**environment, "PYTHONPATH": str(PROJECT)},
        check=True,
        timeout=120,
        text=True,
        stdout=subprocess.PIPE,
    ).stdout


def measure(options: Options) -> Iterator[Row]:
    """Yield the page's rows."""

    def seconds(program: str, *arguments: str) -> float:
        began = options.clock_of_children()
        run(program, *arguments)
        return options.clock_of_children() - began

    pages, imports = [], []
    with tempfile.TemporaryDirectory() as presets:
        for turn in range(1 + (QUICK_TRIES if options.quick else TRIES)):
            page, gradio = seconds(FIRST_PAGE, presets, str(free_port())), seconds(IMPORT)
            if turn:  # the first may still be writing Python's byte code
                pages.append(page)
                imports.append(gradio)
        told = run(FORM, presets, str(free_port()), "20")
    yield median_row("page/app start to first page", pages, "s")
    yield median_row("page/import gradio", imports, "s")
    yield ratio_row("page/first page over import gradio", pages, imports, Target(1.25))
    yield median_row("page/form update", [1000 * float(line) for line in told.split()[1:]], "ms")


def first_page(presets: Path) -> None:
    """Open the page once and end. Raises CalledProcessError where it fails or loads what it should not."""
    run(FIRST_PAGE, str(presets), str(free_port()))
