"""The page in a process of its own, on a free port, with folders of its own.

Its processes are children of one that has imported all there is, seconds sooner than Python starts;
`benchmarks.page.first_page`, a test, starts it as people do.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx

from tests.helpers.runs import RunServer

PROJECT = Path(__file__).resolve().parents[2]
START_SECONDS = 120
STOP_SECONDS = 60

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
"""The browser of the tests; the variable TRAINER_CHROMIUM names another."""
CHROMIUM = os.environ.get("TRAINER_CHROMIUM", CHROMIUM)

QUIET_BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Program:
    """A process in which the page runs, with the words of `subprocess.Popen`."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        process.start()
        atexit.register(process.kill)  # a test that failed in between may leave it, and Python waits for its children
        self.pid = int(process.pid or 0)

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("the page", timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once; one that has ended stays as it is."""
        self._process.kill()


def serve(arguments: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> None:
    """Do what `python -m kohya_gui` does in `folder`, in this process, which is meant to be a child of its own."""
    os.chdir(folder)
    os.environ.update(environment)
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    from kohya_gui.__main__ import leave, load

    leave(load().main(arguments))


@dataclass(frozen=True)
class App:
    """A running page. `folder` is where it was started."""

    url: str
    folder: Path
    own: Path
    process: Program
    log: Path

    def stop(self) -> int:
        """End it as Ctrl+C does, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def start_app(folder: Path, own: Path, *arguments: str, password: str = "", wait: bool = True) -> App:
    """Start the page in `folder`, with presets in `own`, and return when it answers."""
    port = free_port()
    log = folder / f"app-{port}.log"
    words = ["--no-browser", "--port", str(port), "--allow", str(folder), "--presets", str(own), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment |= {"HOME": str(folder), "TRAINER_PASSWORD": password, "GRADIO_TEMP_DIR": str(folder / "gradio")}
    log.touch()
    process = Program(RunServer().context.Process(target=serve, args=(words, folder, log, environment)))
    app = App(f"http://127.0.0.1:{port}", folder, own, process, log)
    if wait:
        wait_until_ready(app)
    return app


def wait_until_ready(app: App) -> None:
    """Return when the page says that it is there. Fails with its log when it ends or takes too long."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and app.process.poll() is None:
        if "The page is at" in app.log.read_text(errors="replace"):
            return
        time.sleep(0.1)
    app.process.kill()
    raise AssertionError(f"the page did not start:\n{app.log.read_text(errors='replace')}")


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def begin_anew(app: App) -> None:
    """End the run under way, if there is one, and give the form the demo's values as at the first start."""
    with httpx.Client(base_url=app.url, timeout=30) as client:
        trigger(client, "act", "dialog", {"of": "controls", "act": "abort"})
        trigger(client, "act", "preset-more", {"act": "defaults"})
        trigger(client, "act", "preset-card", {"act": "apply", "preset": "demo"})
        trigger(client, "act", "undo", {"act": "hide"})


def event_of(config: dict[str, object], name: str, target: str) -> int:
    """Return the number by which the queue knows the event `name` of the component with the id `target`."""
    components = config["components"]
    dependencies = config["dependencies"]
    assert isinstance(components, list) and isinstance(dependencies, list)
    number = next(each["id"] for each in components if each.get("props", {}).get("elem_id") == target)
    return int(next(each["id"] for each in dependencies if [number, name] in map(list, each["targets"])))


def trigger(
    client: httpx.Client, name: str, target: str, told: object = None, data: Sequence[object] = ()
) -> dict[str, object]:
    """Do what the page's script does when an event happens, and return the queue's last word.

    `data` is what the handler's inputs hold; they are empty where it is left out.
    """
    config = client.get("/config").json()
    number = event_of(config, name, target)
    wanted = next(each["inputs"] for each in config["dependencies"] if each["id"] == number)
    data = data or [None] * len(wanted)
    session = f"test{time.monotonic_ns()}"
    body = {"data": list(data), "event_data": told, "fn_index": number, "trigger_id": None, "session_hash": session}
    client.post("/gradio_api/queue/join", json=body).raise_for_status()
    last: dict[str, object] = {}
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}, timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                last = httpx.Response(200, content=line[5:]).json()
                if last.get("msg") == "process_completed":
                    return last
    return last
