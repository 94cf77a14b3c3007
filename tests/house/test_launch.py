"""launch.py, run for real: real environments, the real pip, wheels of a few bytes in place of the real packages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import launch
from tests.helpers.wheels import write_wheel

# Stands where the engine would: says how it was started, and ends with the exit code that EXIT asks for.
ENGINE = """
import json, os, sys
from importlib.metadata import distributions
versions = {each.name: each.version for each in distributions()}
print(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd(), "prefix": sys.prefix, "versions": versions,
                  "environment": dict(os.environ), "path": sys.path}))
sys.exit(int(os.environ.get("EXIT", "0")))
"""
PARTS = 4000  # files in a package that takes pip a while
DEPENDENCIES = ("torch>=2.8,<3", "little>=1")


@dataclass(frozen=True, slots=True)
class Checkout:
    """A folder with launch.py, an engine that reports, and the wheels that pip finds there."""

    folder: Path
    wheels: Path

    def ask_for(self, dependencies: Sequence[str] = DEPENDENCIES) -> None:
        """Write the pyproject.toml that wants these."""
        listed = ", ".join(f'"{each}"' for each in dependencies)
        text = f'[project]\nname = "x"\ndependencies = [{listed}]\noptional-dependencies.test = ["pytest"]\n'
        (self.folder / "pyproject.toml").write_text(text)

    def environment(self, **more: str) -> dict[str, str]:
        """PATH and HOME as bare as they come, and a pip that knows nothing but the wheels."""
        return {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.wheels.parent / "home"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_CONFIG_FILE": os.devnull,
            "PYTHONDONTWRITEBYTECODE": "1",
            **more,
        }

    def start(self, *arguments: str, cwd: Path | None = None, **more: str) -> subprocess.Popen[str]:
        """Start launch.py with a process group of its own."""
        return subprocess.Popen(
            [sys.executable, str(self.folder / "launch.py"), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**more),
            cwd=cwd or self.wheels.parent,
            start_new_session=True,
        )

    def run(self, *arguments: str, cwd: Path | None = None, **more: str) -> tuple[int, str, str]:
        """Run launch.py to its end: exit code, output, and what it said."""
        process = self.start(*arguments, cwd=cwd, **more)
        output, said = process.communicate(timeout=120)
        return process.returncode, output, said

    def report(self, *arguments: str, cwd: Path | None = None, **more: str) -> dict[str, object]:
        """What the engine says of itself once it runs."""
        code, output, said = self.run(*arguments, cwd=cwd, **more)
        assert code == 0, said
        report = json.loads(output)
        assert isinstance(report, dict)
        return report

    def versions(self, cwd: Path | None = None, **more: str) -> dict[str, str]:
        """What is installed after a start."""
        versions = self.report("train", cwd=cwd, **more)["versions"]
        assert isinstance(versions, dict)
        return versions

    def start_and_wait_for_part_of(self, package: str) -> tuple[subprocess.Popen[str], Path]:
        """Start, and come back while pip is writing the package's files: the process and the package's folder."""
        folder = next(self.folder.glob(".venv/lib/python3.*/site-packages")) / package
        process = self.start("train")
        deadline = time.monotonic() + 60
        while not (folder / "part9.py").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return process, folder


@pytest.fixture(scope="module")
def first_starts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, list[tuple[int, str]]]:
    """A fresh checkout that was started twice at once: the checkout, and how each start ended and what it said."""
    base = tmp_path_factory.mktemp("launch")
    checkout = Checkout(folder=base / "check out", wheels=base / "wheels")
    (checkout.folder / "trainer").mkdir(parents=True)
    checkout.wheels.mkdir()
    source = Path(launch.__file__).read_text()
    assert source.count(launch.TORCH_WHEELS) == 2
    (checkout.folder / "launch.py").write_text(source.replace(launch.TORCH_WHEELS, "http://127.0.0.1:9/"))
    (checkout.folder / "trainer" / "__main__.py").write_text(ENGINE)
    (checkout.folder / "constraints.txt").write_text("torch==2.13.0\nlittle==1.2\n")
    checkout.ask_for()
    for version in ("2.13.0", "2.14.0", "4.0"):
        write_wheel(checkout.wheels, "torch", version, {"torch/__init__.py": ""})
    for version in ("1.2", "1.3"):
        write_wheel(checkout.wheels, "little", version, {"little.py": ""})
    for name in ("bulky", "heavy"):
        write_wheel(checkout.wheels, name, "1.0", {f"{name}/part{number}.py": "" for number in range(PARTS)})
    write_wheel(checkout.wheels, "pytest", "9.0", {"pytest/__init__.py": "", "pytest/__main__.py": ENGINE})
    processes = [checkout.start("train"), checkout.start("train")]
    ends = []
    for process in processes:
        _, said = process.communicate(timeout=120)
        ends.append((process.returncode, said))
    return checkout, ends


@pytest.fixture
def checkout(first_starts: tuple[Checkout, object]) -> Iterator[Checkout]:
    """A checkout that is set up, put back as it was when the test is over."""
    yield first_starts[0]
    first_starts[0].ask_for()


def test_two_first_starts_at_once_set_up_once_and_both_run(
    first_starts: tuple[Checkout, list[tuple[int, str]]],
) -> None:
    _, ends = first_starts
    assert [code for code, _ in ends] == [0, 0]
    assert sorted("[3/3]" in said for _, said in ends) == [False, True]
    assert sorted("waiting for it" in said for _, said in ends) == [False, True]


def test_tested_versions_are_installed_though_newer_ones_are_there(checkout: Checkout) -> None:
    versions = checkout.versions()
    assert (versions["torch"], versions["little"]) == ("2.13.0", "1.2")


def test_second_start_says_nothing_and_installs_nothing(checkout: Checkout) -> None:
    checkout.versions()
    log = checkout.folder / ".launch" / "install.log"
    before = log.stat().st_mtime_ns
    code, _, said = checkout.run("train", PIP_FIND_LINKS="/nowhere")
    assert (code, said) == (0, "")
    assert log.stat().st_mtime_ns == before


def test_arguments_folder_and_exit_code_pass_through(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()  # a person's folder named as the engine
    (tmp_path / "trainer" / "__main__.py").write_text("raise SystemExit(99)")
    report = checkout.report("train", "RUN.toml", "--set", "a=b c", cwd=tmp_path)
    assert report["arguments"] == ["train", "RUN.toml", "--set", "a=b c"]
    assert report["folder"] == str(tmp_path)
    assert report["prefix"] == str(checkout.folder / ".venv")
    assert checkout.run("keys", EXIT="3")[0] == 3


def test_program_runs_with_cached_bytecode_passive_threads_and_no_foreign_packages(checkout: Checkout) -> None:
    foreign = str(checkout.wheels)
    report = checkout.report("train", PYTHONPATH=foreign, PYTHONHOME="")
    environment, path = report["environment"], report["path"]
    assert isinstance(environment, dict)
    assert isinstance(path, list)
    assert "PYTHONDONTWRITEBYTECODE" not in environment
    assert (environment["OMP_WAIT_POLICY"], environment["GRADIO_ANALYTICS_ENABLED"]) == ("PASSIVE", "False")
    assert foreign not in path
    kept = checkout.report("train", OMP_WAIT_POLICY="ACTIVE")["environment"]
    assert isinstance(kept, dict)
    assert kept["OMP_WAIT_POLICY"] == "ACTIVE"


def test_test_door_brings_its_extra_and_runs_in_the_project(checkout: Checkout) -> None:
    report = checkout.report("test", "-k", "word")
    assert (report["arguments"], report["folder"]) == ([*launch.TEST_OPTIONS, "-k", "word"], str(checkout.folder))
    assert "[3/3]" not in checkout.run("train")[2], "a plain start after `test` must not set up again"


def test_new_dependency_is_installed_and_what_is_there_is_kept(checkout: Checkout) -> None:
    checkout.versions()
    (checkout.folder / "constraints.txt").write_text("torch==2.14.0\nlittle==1.3\n")
    try:
        versions = checkout.versions()
    finally:
        (checkout.folder / "constraints.txt").write_text("torch==2.13.0\nlittle==1.2\n")
    assert versions["little"] == "1.3"
    assert versions["torch"] == "2.13.0", "a torch that is in range already must win"


def test_torch_of_the_persons_choice_replaces_the_other_and_stays(checkout: Checkout) -> None:
    assert checkout.versions(TRAINER_TORCH="torch==2.14.0")["torch"] == "2.14.0"
    assert checkout.versions()["torch"] == "2.14.0"
    assert checkout.versions(TRAINER_TORCH="torch==2.13.0 --upgrade")["torch"] == "2.13.0"


def test_torch_out_of_range_is_replaced_by_the_tested_one(checkout: Checkout) -> None:
    checkout.versions()
    python = checkout.folder / ".venv" / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "-q", "torch==4.0"]
    subprocess.run(command, env=checkout.environment(), check=True)
    checkout.ask_for([*DEPENDENCIES, "little<2"])
    assert checkout.versions()["torch"] == "2.13.0"


def test_install_killed_midway_is_finished_by_the_next_start(checkout: Checkout) -> None:
    checkout.versions()
    checkout.ask_for([*DEPENDENCIES, "bulky"])
    process, folder = checkout.start_and_wait_for_part_of("bulky")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(list(folder.iterdir())) < PARTS, "killed too late to show anything"
    assert checkout.versions()["bulky"] == "1.0"
    assert len(list(folder.glob("*.py"))) == PARTS


def test_failed_install_shows_the_log_and_the_next_start_goes_on(checkout: Checkout) -> None:
    checkout.ask_for([*DEPENDENCIES, "nowhere-to-be-found"])
    code, output, said = checkout.run("train")
    assert (code, output) == (1, "")
    assert "No matching distribution found for nowhere-to-be-found" in said
    assert str(checkout.folder / ".launch" / "install.log") in said
    assert "Traceback" not in said
    checkout.ask_for()
    assert checkout.versions()["little"] == "1.2"


def test_stopping_by_signal_ends_pip_too(checkout: Checkout) -> None:
    checkout.versions()
    checkout.ask_for([*DEPENDENCIES, "heavy"])
    process, _ = checkout.start_and_wait_for_part_of("heavy")
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Stopped. The next start goes on from here." in said
    with (checkout.folder / ".launch" / "lock").open("a") as lock:
        assert launch.try_lock(lock), "pip goes on and holds the lock"


def test_moved_folder_gets_a_new_environment(checkout: Checkout, tmp_path: Path) -> None:
    checkout.versions()
    moved = Checkout(folder=tmp_path / "elsewhere", wheels=checkout.wheels)
    shutil.copytree(checkout.folder, moved.folder, symlinks=True, ignore=shutil.ignore_patterns("bulky*", "heavy*"))
    report = moved.report("train")
    assert report["prefix"] == str(moved.folder / ".venv")
    script = next((moved.folder / ".venv" / "bin").glob("pip")).read_text()
    assert str(moved.folder) in script.splitlines()[0], "the scripts must lead to this folder's Python"


def test_without_install_nothing_is_made(checkout: Checkout, tmp_path: Path) -> None:
    bare = Checkout(folder=tmp_path / "bare", wheels=checkout.wheels)
    shutil.copytree(checkout.folder, bare.folder, ignore=shutil.ignore_patterns(".venv", ".launch"))
    report = bare.report("train", "--no-install", "RUN.toml")
    assert report["arguments"] == ["train", "RUN.toml"]
    assert not (bare.folder / ".venv").exists()


def test_page_is_opened_with_its_options(checkout: Checkout) -> None:
    page = checkout.folder / "kohya_gui" / "__main__.py"
    page.parent.mkdir()
    page.write_text(ENGINE)
    try:
        assert checkout.report("--port", "7861", "--no-browser")["arguments"] == ["--port", "7861", "--no-browser"]
    finally:
        shutil.rmtree(page.parent)


def test_help_needs_no_environment(tmp_path: Path) -> None:
    shutil.copy(launch.__file__, tmp_path)
    command = [sys.executable, str(tmp_path / "launch.py"), "--help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "TRAINER_TORCH" in answer.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["launch.py"]


def test_other_pythons_are_refused_with_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "OLDEST", (3, 99))
    with pytest.raises(launch.SetUpError, match=r"needs Python 3.11, 3.12 or 3.13; this is Python 3\."):
        launch.check_this_python()


@pytest.mark.parametrize(
    ("system", "cuda", "builds"),
    [
        ("Linux", None, ["cpu"]),
        ("Linux", (13, 1), ["cu130", "cu128", "cu126"]),
        ("Windows", (12, 9), ["cu128", "cu126"]),
        ("Windows", (12, 4), ["cu126"]),
        ("Windows", (11, 8), []),
        ("Windows", None, []),
        ("Darwin", None, []),
    ],
)
def test_builds_that_suit_a_computer(system: str, cuda: tuple[int, int] | None, builds: list[str]) -> None:
    assert launch.suitable_builds(system, cuda) == builds


@pytest.mark.parametrize(
    ("shown", "cuda"),
    [
        ("| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0     |", (13, 0)),
        ("| NVIDIA-SMI 590.44.01    KMD Version: 590.44.01    CUDA UMD Version: 13.1    |", (13, 1)),
        ("| NVIDIA-SMI, and nothing that we can read", (12, 0)),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvidia-smi is a shell script")
def test_cuda_version_of_the_driver(
    shown: str, cuda: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.driver_cuda() is None
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{shown}'\n")
    program.chmod(0o755)
    assert launch.driver_cuda() == cuda
    program.write_text("#!/bin/sh\necho no devices were found; exit 6\n")
    assert launch.driver_cuda() is None


class _Index(BaseHTTPRequestHandler):
    """An index that has version 2.13.0 for CUDA 12.8 only."""

    def do_GET(self) -> None:
        here = self.path == "/cu128/torch/"
        self.send_response(200 if here else 404)
        self.end_headers()
        python = "cp{}{}".format(*sys.version_info[:2])
        self.wfile.write(f'<a href="torch-2.13.0%2Bcu128-{python}-{python}-win_amd64.whl">'.encode() if here else b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_first_build_that_the_index_has_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(launch, "TORCH_WHEELS", f"http://127.0.0.1:{server.server_port}/")
    try:
        assert launch.published_build(["cu130", "cu128", "cu126"], "2.13.0") == "cu128"
        assert launch.published_build(["cu130", "cu128"], "2.1") is None
        assert launch.published_build(["cpu"], "2.13.0") is None
    finally:
        server.shutdown()
        server.server_close()


def test_index_that_never_answers_costs_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(launch, "TORCH_WHEELS", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        started = time.monotonic()
        assert launch.published_build(["cu130", "cu128", "cu126"], "2.13.0", seconds=0.5) is None
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("line", "doing"),
    [
        ("Collecting torch==2.13.0 (from -r x)", "looking up torch"),
        ("  Downloading numpy-2.4.6-cp311-manylinux.whl (16.6 MB)", "downloading numpy"),
        ("Processing /some/where/torch-2.13.0.whl", "reading torch"),
        ("Installing collected packages: a, b", "writing files"),
        ("Requirement already satisfied: numpy", ""),
        ("", ""),
    ],
)
def test_what_pip_is_doing_in_plain_words(line: str, doing: str) -> None:
    assert launch.activity(line) == doing


@pytest.mark.parametrize("harm", ["nothing", "missing", "truncated", "no INSTALLER"])
def test_packages_left_in_part_are_forgotten(tmp_path: Path, harm: str) -> None:
    info = tmp_path / "little-1.2.dist-info"
    info.mkdir()
    (tmp_path / "little.py").write_text("12345")
    (info / "INSTALLER").write_text("pip\n")
    (info / "RECORD").write_text("little.py,sha256=x,5\nlittle-1.2.dist-info/RECORD,,\n__pycache__/little.pyc,,\n")
    (tmp_path / "~ittle").mkdir()
    if harm == "missing":
        (tmp_path / "little.py").unlink()
    elif harm == "truncated":
        (tmp_path / "little.py").write_text("123")
    elif harm == "no INSTALLER":
        (info / "INSTALLER").unlink()
    launch.repair(tmp_path)
    assert info.exists() == (harm == "nothing")
    assert not (tmp_path / "~ittle").exists()
