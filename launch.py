"""Sets the program up and starts it, from any folder, with nothing but Python's standard library.

    python launch.py                      open the page
    python launch.py train RUN.toml       train without the page; `train --help` says how
    python launch.py inspect FILE         say what a file is; so are all tools of `python -m trainer --help`
    python launch.py test [PYTEST ...]    run the test suite

The first start makes `.venv` beside this file and installs what pyproject.toml asks for, in the versions of
constraints.txt. A stamp, written last, lets every later start go straight on; a start without it finishes the job.

    --no-install      use what is there: `.venv`, or this Python where there is none
    TRAINER_TORCH     pip's words for the torch to install, for example
                      "torch==2.13.0 --index-url https://download.pytorch.org/whl/rocm6.4"
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import IO, Iterator, Sequence  # noqa: UP035 - an older Python must get as far as its refusal

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PROJECT = Path(__file__).resolve().parent
ENVIRONMENT = PROJECT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = ENVIRONMENT / "launch-stamp.json"
WORK = PROJECT / ".launch"
LOG = WORK / "install.log"

OLDEST, NEWEST = (3, 11), (3, 13)
TORCH_WHEELS = "https://download.pytorch.org/whl/"
# PyTorch's CUDA builds, best first, with the least CUDA version that the driver must know for each.
# 12.6 runs on every driver for CUDA 12 (minor version compatibility).
CUDA_BUILDS = (("cu130", (13, 0)), ("cu128", (12, 8)), ("cu126", (12, 0)))
ADVICE = (
    ("No space left on device", "The disk is full. The program needs 2 GB, with a CUDA build of torch 7 GB."),
    ("NewConnectionError", "The package index could not be reached. Is this computer online, behind a proxy?"),
    ("No matching distribution found", "The package index does not offer the version asked for, for this Python."),
    ("Permission denied", "This folder cannot be written to. Move the program to a folder of your own."),
)

TEST_OPTIONS = ("--numprocesses", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal")  # each on one thread


class SetUpError(Exception):
    """The program could not be set up. The message is for the person who started it."""


# --- what to run -----------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Set up what the arguments need, then become the program. Returns the exit code where it gets that far."""
    install = "--no-install" not in arguments
    arguments = [argument for argument in arguments if argument != "--no-install"]
    if arguments[:1] in (["-h"], ["--help"]):
        print((__doc__ or "").strip())
        return 0
    module, rest, extras = door(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C: no pip goes on behind the person's back
    try:
        if install and not is_ready(extras):
            set_up(extras)
    except SetUpError as error:
        say(f"\n{error}")
        return 1
    except KeyboardInterrupt:
        say("\nStopped. The next start goes on from here.")
        return 130
    if module == "pytest":
        os.chdir(PROJECT)
    return become(module, rest)


def door(arguments: Sequence[str]) -> tuple[str, list[str], frozenset[str]]:
    """Which module the arguments ask for, what it is told, and which extras of pyproject.toml it needs."""
    if not arguments or arguments[0].startswith("-"):
        return "kohya_gui", list(arguments), frozenset()
    if arguments[0] == "test":
        return "pytest", [*TEST_OPTIONS, *arguments[1:]], frozenset({"test"})
    return "trainer", list(arguments), frozenset()


def become(module: str, arguments: Sequence[str]) -> int:
    """Go on as `python -m module arguments` inside the environment, in the folder that the person is in."""
    python = PYTHON if PYTHON.exists() else Path(sys.executable)
    # -P keeps the person's own folder off the import path: a folder of pictures named "trainer" is no module.
    command = [str(python), "-P", "-m", module, *arguments]
    environment = clean_environment()
    environment["PYTHONPATH"] = str(PROJECT)
    environment["GRADIO_ANALYTICS_ENABLED"] = "False"
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads that spin cost 3-10x on a busy machine
    if os.name == "posix":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(command[0], command, environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the program; its exit code is ours
    return subprocess.call(command, env=environment)


def clean_environment() -> dict[str, str]:
    """The environment variables, less those that would bring other packages in or keep .pyc files from being cached."""
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONPATH"}
    return {name: value for name, value in os.environ.items() if name not in dropped}


def say(text: str, end: str = "\n") -> None:
    """Talk to the person. Standard output belongs to the program that is started."""
    print(text, end=end, file=sys.stderr, flush=True)


# --- the stamp -------------------------------------------------------------------------------------------------------


def wanted() -> str:
    """A digest of everything that decides what is installed."""
    parts = [(PROJECT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    parts.append(os.environ.get("TRAINER_TORCH", "").encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp() -> dict[str, str]:
    """What the last set-up wrote: empty where there was none."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in stamp.items()} if isinstance(stamp, dict) else {}


def write_stamp(digest: str, extras: frozenset[str], torch: str) -> None:
    """Record a set-up; an empty digest means that it is not finished."""
    stamp = {
        "wanted": digest,
        "extras": " ".join(sorted(extras)),
        "torch": torch,
        "folder": str(PROJECT),
        "python": os.path.realpath(PYTHON),
    }
    temporary = STAMP.with_suffix(".tmp")
    temporary.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
    os.replace(temporary, STAMP)


def is_ready(extras: frozenset[str]) -> bool:
    """Whether the environment is complete, for this folder, these files and these extras."""
    stamp = read_stamp()
    return stamp.get("wanted") == wanted() and extras <= {*stamp.get("extras", "").split()} and is_here(stamp)


def is_here(stamp: dict[str, str]) -> bool:
    """Whether the environment was made in this folder, by the Python that it still leads to."""
    return PYTHON.exists() and stamp.get("folder") == str(PROJECT) and stamp.get("python") == os.path.realpath(PYTHON)


# --- setting up ------------------------------------------------------------------------------------------------------


def set_up(extras: frozenset[str]) -> None:
    """Make the environment, or finish or renew it. Two launches at once: the second waits, then finds it done."""
    try:
        WORK.mkdir(exist_ok=True)
        with only_one() as lock:
            if is_ready(extras):
                return
            started = time.monotonic()
            say("Setting up. This takes a minute or more and happens once.")
            LOG.write_text("", encoding="utf-8")
            stamp = read_stamp()
            make_environment(stamp, lock)
            install(extras | {*stamp.get("extras", "").split()}, stamp.get("torch", ""), lock)
            say(f"Set up in {time.monotonic() - started:.0f} s.")
    except (OSError, subprocess.SubprocessError) as error:
        raise SetUpError(f"The program could not be set up in {PROJECT}: {error}") from error


def make_environment(stamp: dict[str, str], lock: IO[str]) -> None:
    """Make `.venv` where there is none that works: one of a moved folder or of a Python that is gone does not."""
    if (not stamp or is_here(stamp)) and environment_works():
        return
    check_this_python()
    if ENVIRONMENT.exists():
        say("The environment in .venv is of no use here (folder moved, or its Python gone); making a new one.")
        STAMP.unlink(missing_ok=True)
        shutil.rmtree(ENVIRONMENT)
    python = str(getattr(sys, "_base_executable", "") or sys.executable)
    run_step("[1/3] Making .venv", [python, "-m", "venv", str(ENVIRONMENT)], lock)


def environment_works() -> bool:
    """Whether `.venv` holds a Python that we can use, with pip."""
    program = "import sys, pip; print(*sys.version_info[:2], sys.prefix, sep='|')"
    try:
        major, minor, prefix = ask(program).split("|")
    except (OSError, subprocess.SubprocessError, ValueError):
        return False
    return OLDEST <= (int(major), int(minor)) <= NEWEST and os.path.realpath(prefix) == os.path.realpath(ENVIRONMENT)


def ask(program: str, *arguments: str) -> str:
    """What a few lines of Python print inside `.venv`."""
    command = [str(PYTHON), "-P", "-c", program, *arguments]
    answer = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True, timeout=60)
    return answer.stdout.strip()


def check_this_python() -> None:
    """Refuse a Python that the program does not run on, or that can't make environments."""
    here = f"Python {platform.python_version()} ({sys.executable})"
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise SetUpError(f"The program needs Python 3.11, 3.12 or 3.13; this is {here}. Start it with one of those.")
    try:
        __import__("ensurepip")
        __import__("venv")
    except ImportError as error:
        package = "python{}.{}-venv".format(*sys.version_info[:2])
        raise SetUpError(
            f"{here} can't make environments: its part '{error.name}' is missing. "
            f"On Debian or Ubuntu: sudo apt install {package}. Elsewhere: use Python from python.org."
        ) from error


def install(extras: frozenset[str], torch_before: str, lock: IO[str]) -> None:
    """Install torch, then the rest held to the tested versions. The stamp comes last."""
    digest = wanted()
    override = os.environ.get("TRAINER_TORCH", "").strip()
    repair(site_packages())
    write_stamp("", extras, torch_before)
    pip = [str(PYTHON), "-P", "-m", "pip"]
    # No .pyc are written here: Python caches those of the modules that are really used, at their first import.
    get = [*pip, "install", "--no-compile", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    there, fits = torch_there()
    if override and override != torch_before and there:
        # pip would hold that torch 2.13.0+cpu is all that "torch==2.13.0 --index-url .../cu130" asks for.
        run_step("[2/3] Removing the torch of before", [*pip, "uninstall", "-y", "torch"], lock)
    if override:
        run_step(f"[2/3] Installing {override}", [*get, *shlex.split(override, posix=os.name == "posix")], lock)
    elif not fits:
        constraints = write_constraints("")
        request = torch_request()
        run_step(f"[2/3] Installing {request[0]}", [*get, "-c", str(constraints), *request], lock)
    constraints = write_constraints(torch_there()[0])
    run_step("[3/3] Installing the other packages", [*get, "-c", str(constraints), *requirements(extras)], lock)
    write_stamp(digest, extras, override)


def project_table() -> dict[str, object]:
    """The [project] table of pyproject.toml."""
    import tomllib  # not at the top: an older Python, which has none, must get as far as its refusal

    table = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(table, dict)
    return table


def requirements(extras: frozenset[str]) -> list[str]:
    """pip's words for the packages that pyproject.toml asks for."""
    table = project_table()
    groups = [table["dependencies"]]
    optional = table.get("optional-dependencies", {})
    assert isinstance(optional, dict)
    groups += [optional[name] for name in sorted(extras) if name in optional]
    return [str(requirement) for group in groups if isinstance(group, list) for requirement in group]


def write_constraints(torch: str) -> Path:
    """constraints.txt with the version of torch that is there in place of the tested one; "": the tested one."""
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if torch:
        lines = [line for line in lines if not line.startswith("torch==")] + [f"torch=={torch}"]
    path = WORK / "constraints.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def site_packages() -> Path:
    """The folder of `.venv` that packages are installed in."""
    return next(ENVIRONMENT.glob("lib/python3.*/site-packages"), ENVIRONMENT / "Lib" / "site-packages")


def repair(packages: Path) -> None:
    """Forget packages that an interrupted pip left in part, so that it installs them anew.

    pip writes INSTALLER and RECORD when all other files of a package are there; while it replaces a package, files of
    the old one may already be moved away, into folders whose names begin with "~".
    """
    for folder in packages.glob("*.dist-info"):
        if not is_whole(folder):
            shutil.rmtree(folder)
    for leftover in packages.glob("~*"):
        shutil.rmtree(leftover, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether every file that a package's RECORD lists is there, in its recorded size."""
    record = folder / "RECORD"
    if not record.is_file() or not (folder / "INSTALLER").is_file():
        return False
    with record.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.reader(lines) if len(row) == 3 and not row[0].endswith(".pyc")]
    files = [(folder.parent / name, size) for name, _, size in rows]
    return all(path.is_file() and (not size or path.stat().st_size == int(size)) for path, size in files)


# --- which torch -----------------------------------------------------------------------------------------------------


def torch_there() -> tuple[str, bool]:
    """The version of torch in `.venv`, "" where there is none, and whether it is one that pyproject.toml allows."""
    asked = next(text for text in requirements(frozenset()) if re.match(r"torch\b(?!-)", text))
    version, fits = ask(
        "import sys; from importlib import metadata; from pip._vendor.packaging.requirements import Requirement\n"
        "try: version = metadata.version('torch')\n"
        "except metadata.PackageNotFoundError: print('|False')\n"
        "else: print(version, Requirement(sys.argv[1]).specifier.contains(version, prereleases=True), sep='|')",
        asked,
    ).split("|")
    return version, fits == "True"


def torch_request() -> list[str]:
    """pip's words for the tested torch in the build that suits this computer, where PyTorch's index can be reached."""
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = next(line for line in lines if line.startswith("torch=="))
    builds = suitable_builds(platform.system(), driver_cuda())
    if not builds:
        return [pinned]
    build = published_build(builds, pinned[len("torch==") :])
    if build is None:
        say("PyTorch's own index does not answer or lacks this version; taking torch from the usual one.")
        return [pinned]
    # An extra index, not the only one: 2.13.0+cu130 goes before 2.13.0, and all else comes from where it always does.
    return [pinned, "--extra-index-url", TORCH_WHEELS + build]


def suitable_builds(system: str, cuda: tuple[int, int] | None) -> list[str]:
    """The builds of PyTorch's index to look for, best first; none where the usual index has the right one."""
    if system not in ("Linux", "Windows"):
        return []
    if cuda is None:
        return ["cpu"] if system == "Linux" else []
    return [build for build, least in CUDA_BUILDS if cuda >= least]


def driver_cuda() -> tuple[int, int] | None:
    """The CUDA version that the NVIDIA driver knows, None without a driver or a card."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        answer = subprocess.run([program], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"CUDA[^:|]*Version:\s*(\d+)\.(\d+)", answer.stdout)
    return (int(match.group(1)), int(match.group(2))) if match else (12, 0)


def published_build(builds: Sequence[str], version: str, seconds: float = 6.0) -> str | None:
    """The first of the builds that PyTorch's index has for this version and Python; None if none, or no answer."""
    found: list[str] = []

    def look() -> None:
        python = "cp{}{}".format(*sys.version_info[:2])
        for build in builds:
            wheel = re.escape(f"torch-{version}") + r"(\+|%2B)" + f"{build}-{python}-"
            address = f"{TORCH_WHEELS}{build}/torch/"
            # OSError: no network, no such page
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=seconds) as page:
                if re.search(wheel, page.read().decode("utf-8", "replace")):
                    found.append(build)
                    return

    # On a thread, since looking a name up has no time limit of its own.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


# --- running a step --------------------------------------------------------------------------------------------------


def run_step(title: str, command: Sequence[str], lock: IO[str]) -> None:
    """Run a command with its output in the log, and show how long it has been at it."""
    environment = clean_environment()
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PIP_USER"] = "0"  # a pip set to install for the user can't install into an environment
    # The lock is inherited: if this process is killed, it stays taken until the orphaned pip has ended.
    inherited = (lock.fileno(),) if os.name == "posix" else ()
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {shlex.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=inherited
        )
        try:
            code = watch(title, process)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        raise SetUpError(failure(title, code))


def watch(title: str, process: subprocess.Popen[bytes]) -> int:
    """Wait for a step: a line that renews itself on a terminal, a line every 15 seconds elsewhere."""
    started = time.monotonic()
    terminal = sys.stderr.isatty()
    shown = 0.0
    if not terminal:
        say(title)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=0.5)
            break
        passed = time.monotonic() - started
        line = f"{title}  {passed:.0f} s  {activity(last_lines(1))}"
        if terminal:
            say("\r" + line[:100].ljust(100), end="")
        elif passed - shown >= 15:
            shown = passed
            say(line)
    line = f"{title}  {time.monotonic() - started:.0f} s"
    say("\r" + line.ljust(100) if terminal else line)
    return code


def activity(line: str) -> str:
    """What pip is doing, from the last line that it wrote."""
    words = line.split()
    if len(words) < 2:
        return ""
    if words[0] == "Installing":
        return "writing files"
    doing = {"Collecting": "looking up", "Downloading": "downloading", "Using": "unpacking", "Processing": "reading"}
    name = re.split(r"[-=<>~!;\[]", words[-1 if words[0] == "Processing" else 1].rsplit("/", 1)[-1])[0]
    return f"{doing[words[0]]} {name}" if words[0] in doing else ""


def last_lines(count: int) -> str:
    """The last lines of the log."""
    with LOG.open("rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - 8000))
        lines = log.read().decode("utf-8", "replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-count:])


def failure(title: str, code: int) -> str:
    """What went wrong, in the words of the log, and what to do about it."""
    tail = last_lines(15)
    advice = [text for sign, text in ADVICE if sign in tail]
    parts = [f"{title} failed (exit code {code}). The end of {LOG}:", tail, *advice, "Start again to go on from here."]
    return "\n\n".join(parts)


@contextlib.contextmanager
def only_one() -> Iterator[IO[str]]:
    """Hold the lock on setting up. The operating system frees it when its last holder ends, however it ends."""
    with (WORK / "lock").open("a", encoding="utf-8") as lock:
        if not try_lock(lock):
            say("Another start is setting the program up; waiting for it.")
            while not try_lock(lock):
                time.sleep(0.3)
        yield lock


def try_lock(lock: IO[str]) -> bool:
    """Take the lock if it is free."""
    try:
        if sys.platform == "win32":
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
