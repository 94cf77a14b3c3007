"""Starts the page: arguments, password, the guard before every route, the server.

    python -m kohya_gui [--host NAME] [--port NUMBER] [--share] [--no-browser] [--allow FOLDER ...]

Listening beyond this computer needs a password, from the variable TRAINER_PASSWORD or asked for at the terminal.
"""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by gradio when it is imported

import gradio as gr
from starlette.middleware import Middleware
from starlette.routing import Route

from kohya_gui.form.presets import PROJECT, Presets
from kohya_gui.parts.folders import Folders
from kohya_gui.session import Session
from kohya_gui.shell import guide, look
from kohya_gui.shell.early import Early
from kohya_gui.shell.guard import LOCAL_HOSTS, Guard
from kohya_gui.shell.page import Page
from kohya_gui.watch.curve_panel import answer_comparison, answer_curves
from kohya_gui.watch.tensorboard import answer_board
from kohya_gui.workbench.routes import Routes
from trainer.faststart import libraries
from trainer.ground.commands import Command

PASSWORD_VARIABLE = "TRAINER_PASSWORD"
LEAST_PASSWORD = 8
PORT = 7860
OWN = PROJECT / "presets" / "own"
STOP_SECONDS = 60
QUEUE_SECONDS = 0.05
LOAD_AHEAD_SECONDS = 5.0
"""Time for the browser to draw the page: loading takes every second moment of Python's."""

REFUSED = 2

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl+C, and return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    given = parser().parse_args(arguments)
    open_to_others = given.share or given.host not in LOCAL_HOSTS
    try:
        password = find_password(needed=open_to_others)
    except ValueError as error:
        say(str(error))
        return REFUSED
    session = make_session(given.allow, given.presets)
    try:
        serve(Page(session), given, password, open_to_others=open_to_others)
    except OSError as error:
        say(f"The page cannot be served at {given.host}: {error} Choose another --port or --host.")
        return REFUSED
    load_ahead()
    wait_for_the_end(session)
    libraries.leave()
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(prog="launch.py", description="Open the page of the LoRA trainer.")
    top.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at; beyond this computer it needs a password"
    )
    top.add_argument("--port", type=int, default=None, help=f"the port; by default the first free one from {PORT}")
    top.add_argument(
        "--share", action="store_true", help="make a public link through gradio's servers; needs a password"
    )
    top.add_argument("--no-browser", action="store_true", help="do not open a browser")
    top.add_argument(
        "--allow", action="append", default=[], type=Path, metavar="FOLDER", help="a folder that the page may use too"
    )
    top.add_argument(
        "--presets", type=Path, default=OWN, metavar="FOLDER", help="where your own presets and the form are kept"
    )
    return top


def find_password(*, needed: bool) -> str:
    """Return the password of the environment, or one asked for at the terminal, or "" where none is needed.

    Raises:
        ValueError: one is needed and there is none, or it is too short; the text says what to do.
    """
    password = os.environ.get(PASSWORD_VARIABLE, "")
    if not password and needed:
        if not sys.stdin.isatty():
            raise ValueError(
                f"Listening beyond this computer needs a password. Set the variable {PASSWORD_VARIABLE}, or start "
                "the program at a terminal, where it asks for one."
            )
        password = getpass.getpass("A password for the page (at least 8 characters): ")
    if password and len(password) < LEAST_PASSWORD:
        raise ValueError(f"The password must have at least {LEAST_PASSWORD} characters.")
    return password


def make_session(allowed: Sequence[Path], own: Path) -> Session:
    """Return the session, with the folders that the page may use: the program's, the one it was started in, home."""
    folders = Folders([PROJECT, Path.cwd(), Path.home(), *allowed])
    return Session(folders, Presets(PROJECT / "presets", own), own / ".form.json")


def serve(page: Page, given: argparse.Namespace, password: str, *, open_to_others: bool) -> None:
    """Start the server; returns when it answers."""
    hosts = frozenset() if open_to_others else LOCAL_HOSTS
    pictures, board, started = page.session.pictures, answer_board(page.session), threading.Event()
    options: dict[str, Any] = {
        "middleware": [Middleware(Guard, hosts=hosts, password=password, started=started), Middleware(Early)],
        "routes": [
            Route("/news/{number:int}", page.news.answer),
            Route("/pictures/{kind}/{name}", pictures.answer),
            Route("/curves/{name}", answer_curves(page.session)),
            Route("/comparison/{name}", answer_comparison(page.session)),
            Route("/tensorboard/{name}", board),
            Route("/tensorboard/{name}/{path:path}", board, methods=["GET", "POST"]),
            Route("/guide/images/{name}", guide.answer_picture),
            Route("/guide/{name}", guide.answer_page),
            *Routes(page.session.workbench).routes(),
        ],
        "docs_url": None,
        "redoc_url": None,
    }
    _, address, public = patient(page.blocks.queue(api_open=False)).launch(
        server_name=given.host,
        server_port=given.port,
        share=given.share,
        inbrowser=not given.no_browser,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        allowed_paths=[],
        theme=look.theme(),
        css_paths=[*look.STYLE_SHEETS],
        head=look.HEAD,
        app_kwargs=options,
    )
    started.set()
    say(f"The page is at {public or address}  (Ctrl+C ends the program)")


def patient(blocks: gr.Blocks) -> gr.Blocks:
    """Let Gradio's queue look for work 20 times a second, not 1,100 times: each look takes Python from the training."""
    blocks._queue.sleep_when_free = QUEUE_SECONDS
    blocks._queue.progress_update_sleep_when_free = QUEUE_SECONDS
    return blocks


def load_ahead() -> None:
    """Load PyTorch and the rest in the background, a while after the page is there: the first Start finds them loaded.

    A run that starts earlier loads them itself, or waits for what is under way.
    """
    timer = threading.Timer(LOAD_AHEAD_SECONDS, libraries.load)
    timer.daemon = True
    timer.start()


def wait_for_the_end(session: Session) -> None:
    """Wait for Ctrl+C or SIGTERM; a run under way is stopped, and saves, before the program ends."""
    asked = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            os._exit(1)
        asked.set()

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    while not asked.wait(1.0):
        pass
    session.workbench.errands.stop()
    session.tools.stop()
    session.tools.join(STOP_SECONDS)
    session.workbench.errands.join(STOP_SECONDS)
    session.queue_worker.leave(Command.STOP)
    if session.run is not None and session.busy:
        say("Stopping the run and saving it; Ctrl+C again ends at once.")
        session.send(Command.STOP)
        session.run.join(STOP_SECONDS)
    session.queue_worker.join(STOP_SECONDS)


def say(text: str) -> None:
    """Talk to the person who started the program."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
