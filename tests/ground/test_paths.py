"""One text is judged and opened, and only a regular file of a size that makes sense."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_gui.form.draft import refused_paths
from kohya_gui.parts.folders import Folders
from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.opened import opened_below
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.__main__ import REFUSED, main
from trainer.config import load_config, save_config
from trainer.ground.errors import TrainerError
from trainer.ground.paths import normalised, open_regular, read_bytes, read_json
from trainer.planning.plan import plan
from trainer.results.event_log import read_events
from trainer.results.resumption import look_ahead
from trainer.results.run_folder import RunFolder, past_runs
from trainer.training.states import load_newest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, devices and sparse files of POSIX")

HUGE = 3 << 30


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def endpoint(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name may have a hundred bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(HUGE)


Make = Callable[[Path], None]
IRREGULAR = pytest.mark.parametrize("make", [pipe, device, endpoint, huge])


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


def test_a_path_is_what_was_meant() -> None:
    assert normalised(' \t"/a b/c.txt"\n') == "/a b/c.txt"
    assert normalised("'/a/b'") == "/a/b"
    assert normalised("~/x") == str(Path.home() / "x")
    with pytest.raises(ValueError, match="control"):
        normalised("/a\n/b")
    with pytest.raises(ValueError, match="longer"):
        normalised("x" * 5000)


@IRREGULAR
def test_what_is_no_file_is_never_opened(tmp_path: Path, make: Make) -> None:
    make(tmp_path / "x")
    with opened_below(tmp_path) as opened, pytest.raises(OSError):
        read_bytes(tmp_path / "x", 1000)
    assert opened == []
    if make is not huge:
        with pytest.raises(OSError, match="no file"):
            open_regular(tmp_path / "x")


def test_a_table_beyond_all_measure_is_a_plain_error(tmp_path: Path) -> None:
    for content in ("[" * 100_000, '{"step": 1e400}', "nonsense", "\ud800".encode("utf-8", "surrogatepass")):
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "x.json").write_bytes(raw)
        with pytest.raises(ValueError):
            read_json(tmp_path / "x.json")


@IRREGULAR
@pytest.mark.parametrize("key", ["sample_prompts", "network_weights", "vae", "pretrained_model_name_or_path"])
def test_settings_that_name_no_file(
    ground: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Make, key: str
) -> None:
    """`--check` refuses at once; of the huge ones only what may be a model is looked into, and only its header."""
    name = "x.txt" if key == "sample_prompts" else "x.safetensors"
    make(tmp_path / name)
    settings = tiny_settings(*ground, tmp_path, sample_every_n_steps=1, **{key: str(tmp_path / name)})
    save_config(load_config(overrides=settings), tmp_path / "RUN.toml")
    with opened_below(tmp_path) as opened:
        code = main(["train", str(tmp_path / "RUN.toml"), "--check"])
    assert (code, bool(capsys.readouterr().err)) == (REFUSED, True) or key == "vae"
    assert (tmp_path / name in opened) <= (make is huge and key != "sample_prompts")


@IRREGULAR
def test_a_settings_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Make) -> None:
    make(tmp_path / "RUN.toml")
    with opened_below(tmp_path) as opened:
        assert main(["train", str(tmp_path / "RUN.toml"), "--check"]) == REFUSED
    assert opened == []
    assert "RUN.toml" in capsys.readouterr().err


@IRREGULAR
def test_a_caption_that_is_none(ground: tuple[Path, Path], tmp_path: Path, make: Make) -> None:
    pictures = write_dataset(tmp_path / "data") / "train" / "2_tok class"
    caption = pictures / "00.txt"
    caption.unlink()
    make(caption)
    config = load_config(overrides=tiny_settings(ground[0], tmp_path / "data", tmp_path / "out"))
    with opened_below(tmp_path) as opened:
        if make is huge:
            with pytest.raises(TrainerError, match=r"00\.txt"):
                plan(config)
        else:
            plan(config)
    assert caption not in opened


@IRREGULAR
@pytest.mark.parametrize(
    "name", ["config.toml", "events.jsonl", "events-000001.jsonl", "dataset.json", "state/step-00000001/state.json"]
)
def test_a_runs_folder_with_something_else_in_it(
    ground: tuple[Path, Path], tmp_path: Path, make: Make, name: str
) -> None:
    """As the page's list of runs and its question before a resume look at it."""
    folder = RunFolder(tmp_path, "tiny")
    (folder.state / "step-00000001").mkdir(parents=True)
    (folder.state / "step-00000001" / "state.json").write_text('{"step": 1, "settings": {}}')
    folder.events.touch()
    (folder.path / name).unlink(missing_ok=True)
    make(folder.path / name)
    config = load_config(overrides=tiny_settings(*ground, tmp_path))
    seen = plan(config)
    with opened_below(tmp_path) as opened:
        past_runs(tmp_path)
        for look in (
            lambda: look_ahead(folder, config, seen.timetable, seen.report, seen.parts),
            lambda: folder.read_config(),
            lambda: list(read_events(folder.events)),
            lambda: load_newest(folder.state, lambda text: None),
        ):
            try:
                look()
            except (TrainerError, OSError):
                continue
    assert folder.path / name not in opened


@pytest.mark.parametrize("content", ['{"step": 1e400, "settings": {}}', "[" * 100_000, '{"step": "x"}', "[]"])
def test_a_state_that_nobody_wrote_is_passed_over(ground: tuple[Path, Path], tmp_path: Path, content: str) -> None:
    folder = RunFolder(tmp_path, "tiny")
    (folder.state / "step-00000001").mkdir(parents=True)
    (folder.state / "step-00000001" / "state.json").write_text(content)
    config = load_config(overrides=tiny_settings(*ground, tmp_path))
    seen = plan(config)
    assert look_ahead(folder, config, seen.timetable, seen.report, seen.parts) is None
    with pytest.raises(TrainerError, match="none of the 1 states"):
        load_newest(folder.state, lambda text: None)


def test_settings_of_a_run_that_lead_elsewhere_are_not_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out", "tiny")
    folder.make()
    (tmp_path / "secret.toml").write_text("network_dim = 3\n")
    folder.config.symlink_to(tmp_path / "secret.toml")
    with opened_below(tmp_path) as opened, pytest.raises(TrainerError, match="link"):
        folder.read_config()
    assert opened == []


@pytest.mark.parametrize("before", ["", " ", "\t", "\n", '"'])
@pytest.mark.parametrize("where", ["outside.txt", "allowed/.hidden/p.txt", "allowed/link.txt"])
def test_the_guard_judges_what_the_engine_opens(
    ground: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, where: str
) -> None:
    (tmp_path / "allowed" / ".hidden").mkdir(parents=True)
    for name in ("outside.txt", "allowed/.hidden/p.txt"):
        (tmp_path / name).write_text("a secret\n")
    (tmp_path / "allowed" / "link.txt").symlink_to(tmp_path / "outside.txt")
    monkeypatch.chdir(tmp_path / "allowed")
    folders = Folders([tmp_path / "allowed"])
    for written in (str(tmp_path / where), os.path.relpath(tmp_path / where)):
        for key in ("sample_prompts", "network_weights", "output_dir"):
            assert refused_paths(folders, {key: before + written}), (key, before + written)
    config = load_config(overrides=tiny_settings(*ground, tmp_path, sample_prompts=f"{before}{tmp_path / where}"))
    assert [prompt.prompt for prompt in plan(config).prompts] == ["a secret"]
