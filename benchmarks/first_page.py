"""How soon the first page is there, as a multiple of `import gradio`: `python -m benchmarks.first_page`.

The aim is 1.25. Run it on idle cores; the best of some tries counts.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
TRIES = 5

IMPORT = "import gradio"

FIRST_PAGE = """
import sys, urllib.request
from kohya_gui import app
given = app.parser().parse_args(["--no-browser", "--presets", sys.argv[1], "--port", sys.argv[2]])
session = app.make_session([], given.presets)
app.serve(app.Page(session), given, "", open_to_others=False)
page = urllib.request.urlopen(f"http://127.0.0.1:{given.port}/").read()
assert b"Start" in page
heavy = {"torch", "diffusers", "transformers", "peft", "accelerate"} & set(sys.modules)
assert not heavy, f"loaded before they are needed: {heavy}"
"""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(program: str, *arguments: str) -> float:
    """Run a program in a fresh Python and return its seconds. Raises CalledProcessError where it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**environment, "PYTHONPATH": str(PROJECT)},
        check=True,
        timeout=120,
    )
    return time.perf_counter() - began


def main() -> None:
    """Print both times and their ratio."""
    with tempfile.TemporaryDirectory() as presets:
        pages = [run(FIRST_PAGE, presets, str(free_port())) for _ in range(TRIES)]
    imports = [run(IMPORT) for _ in range(TRIES)]
    print(f"first page {min(pages):.2f} s, import gradio {min(imports):.2f} s, ratio {min(pages) / min(imports):.2f}")


if __name__ == "__main__":
    main()
