"""Bad input costs one sentence and exit code 2: no traceback, nothing written, no long wait."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.corpus import models, pictures, settings
from tests.helpers.checkpoints import tiny_sd15
from tests.helpers.pictures import write_picture
from tests.helpers.runs import tiny_settings, write_dataset
from trainer.__main__ import COMPLETED, REFUSED, main
from trainer.settings.toml import encoded

LONGEST_WAIT = 1.0
"""Seconds of this process's own time; the machine may be busy."""

NAMED_BY_THEIR_FILE = ("pretrained_model_name_or_path", "network_weights", "vae")

Capture = pytest.CaptureFixture[str]
posix = pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and such names need a POSIX system")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


@pytest.fixture(scope="module", autouse=True)
def everything_imported(ground: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pay for the imports before anything is timed."""
    folder = tmp_path_factory.mktemp("first")
    assert main(["train", str(write_run(ground, folder, network_weights="gone.safetensors"))]) == REFUSED


def write_run(ground: tuple[Path, Path], folder: Path, **changed: object) -> Path:
    """Write a RUN.toml that would train, with some settings replaced."""
    lines = [f"{key} = {encoded(value)}" for key, value in tiny_settings(*ground, folder / "out", **changed).items()]
    path = folder / "RUN.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@contextmanager
def refusal(folder: Path, capture: Capture) -> Iterator[Callable[[int], str]]:
    """Yield a function that judges an exit code; then nothing may have been written and little time have passed."""
    before = listing(folder)
    began = time.process_time()
    capture.readouterr()
    printed: list[str] = []

    def judge(code: int) -> str:
        text = capture.readouterr().err
        printed.append(text)
        assert code == REFUSED, text
        return text

    yield judge
    assert printed and printed[0].strip(), "a refusal says why"
    assert "Traceback" not in printed[0]
    assert all(len(line) < 1500 for line in printed[0].splitlines())
    assert time.process_time() - began < LONGEST_WAIT
    assert listing(folder) == before


def listing(folder: Path) -> list[str]:
    return sorted(os.fsdecode(path) for path in folder.rglob("*"))


@pytest.mark.parametrize("content", settings.MALFORMED.values(), ids=settings.MALFORMED)
@pytest.mark.parametrize("command", ["train", "export"])
def test_malformed_settings(tmp_path: Path, capsys: Capture, content: bytes, command: str) -> None:
    path = tmp_path / "RUN.toml"
    path.write_bytes(content)
    with refusal(tmp_path, capsys) as judge:
        judge(main([command, str(path)]))


@pytest.mark.parametrize("key", settings.WRONG_VALUES)
def test_values_that_a_setting_cannot_have(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, key: str
) -> None:
    for value in settings.WRONG_VALUES[key]:
        path = write_run(ground, tmp_path, sample_at_first=True)
        lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key} =")]
        path.write_text("\n".join([*lines, f"{key} = {value}"]) + "\n")
        with refusal(tmp_path, capsys) as judge:
            printed = judge(main(["train", str(path), "--check"]))
            assert key in printed or key in NAMED_BY_THEIR_FILE, value


@pytest.mark.parametrize("key", settings.WRONG_VALUES)
def test_values_that_a_setting_cannot_have_on_the_command_line(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, key: str
) -> None:
    """But a bare 1, which a shell leaves of "1": there it is a text where one is wanted."""
    path = write_run(ground, tmp_path, sample_at_first=True)
    for value in set(settings.WRONG_VALUES[key]) - {"1"}:
        with refusal(tmp_path, capsys) as judge:
            printed = judge(main(["train", str(path), "--check", "--set", f"{key}={value}"]))
            assert key in printed or key in NAMED_BY_THEIR_FILE, value


def test_a_byte_order_mark_as_some_editors_write_it_does_no_harm(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    path = write_run(ground, tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert main(["train", str(path), "--check"]) == COMPLETED, capsys.readouterr().err


@pytest.mark.parametrize("setting", ["pretrained_model_name_or_path", "network_weights"])
@pytest.mark.parametrize("content", models.BYTES.values(), ids=models.BYTES)
def test_model_files_that_lie(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, content: bytes, setting: str
) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(content)
    path = write_run(ground, tmp_path, **{setting: str(model)})
    with refusal(tmp_path, capsys) as judge:
        assert "model.safetensors" in judge(main(["train", str(path), "--check"]))


@posix
@pytest.mark.parametrize("setting", ["pretrained_model_name_or_path", "network_weights"])
@pytest.mark.parametrize("write", models.WRITTEN.values(), ids=models.WRITTEN)
def test_model_files_that_are_traps(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, write: Callable[[Path], None], setting: str
) -> None:
    model = tmp_path / "model.safetensors"
    write(model)
    path = write_run(ground, tmp_path, **{setting: str(model)})
    with refusal(tmp_path, capsys) as judge:
        judge(main(["train", str(path), "--check"]))


@pytest.mark.parametrize("name", ["data cut short", "a torn pickle", "component_configs is no table", "zeros"])
def test_vae_files_that_lie(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, name: str) -> None:
    """These are met when the model has been loaded, so there is no limit to how long it takes."""
    model = tmp_path / "model.safetensors"
    model.write_bytes(models.BYTES[name])
    path = write_run(ground, tmp_path, vae=str(model))
    before = listing(tmp_path)
    assert main(["train", str(path)]) == REFUSED
    assert "model.safetensors" in capsys.readouterr().err
    assert listing(tmp_path) == before


def test_inspecting_files_that_lie(tmp_path: Path, capsys: Capture) -> None:
    """What is no LoRA may be described as what it is; it must not end otherwise than by words."""
    path = tmp_path / "lora.safetensors"
    for name, content in models.BYTES.items():
        path.write_bytes(content)
        assert main(["inspect", str(path)]) in (COMPLETED, REFUSED), name
    assert "Traceback" not in capsys.readouterr().err
    assert listing(tmp_path) == [str(path)]


@pytest.mark.parametrize("name", pictures.BYTES)
def test_pictures_that_are_none(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, name: str) -> None:
    folder = tmp_path / "train" / "1_cat"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(pictures.BYTES[name])
    path = write_run((ground[0], tmp_path), tmp_path)
    with refusal(tmp_path, capsys) as judge:
        assert "train_data_dir" in judge(main(["train", str(path), "--check"]))


def test_bad_pictures_are_named_beside_good_ones(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "train" / "1_cat"
    write_picture(folder / "good.png", (64, 64))
    for name, content in list(pictures.BYTES.items())[:15]:
        (folder / name).write_bytes(content)
    assert main(["train", str(write_run((ground[0], tmp_path), tmp_path)), "--check"]) == COMPLETED
    printed = capsys.readouterr().out
    assert "Pictures: 1" in printed
    assert all(name in printed for name in list(pictures.BYTES)[:15])


@pytest.mark.parametrize("no_upscale", [True, False])
def test_odd_pictures_are_trained(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, no_upscale: bool) -> None:
    folder = tmp_path / "train" / "1_cat"
    folder.mkdir(parents=True)
    for name, content in pictures.ODD.items():
        (folder / name).write_bytes(content)
    path = write_run((ground[0], tmp_path), tmp_path, bucket_no_upscale=no_upscale, max_train_steps=3)
    assert main(["train", str(path), "--check"]) == COMPLETED
    assert f"Pictures: {len(pictures.ODD)};" in capsys.readouterr().out
    assert main(["train", str(path)]) == COMPLETED, capsys.readouterr().err


@posix
@pytest.mark.parametrize("trap", pictures.TRAPS.values(), ids=pictures.TRAPS)
def test_folders_with_traps(
    ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, trap: Callable[[Path], None]
) -> None:
    folder = tmp_path / "train" / "1_cat"
    folder.mkdir(parents=True)
    trap(folder)
    path = write_run((ground[0], tmp_path), tmp_path)
    with refusal(tmp_path, capsys) as judge:
        judge(main(["train", str(path), "--check"]))


@posix
def test_odd_names_are_pictures_like_any_other(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "train" / "1_odd ünïcode\nclass"
    for index, name in enumerate(pictures.NAMES):
        write_picture(folder / name, (64, 64), index)
    undecodable = os.fsdecode(pictures.UNDECODABLE_NAME)
    (folder / undecodable).write_bytes((folder / pictures.NAMES[0]).read_bytes())
    (folder / f"broken {undecodable}").write_bytes(b"no picture")
    assert main(["train", str(write_run((ground[0], tmp_path), tmp_path)), "--check"]) == COMPLETED
    assert f"Pictures: {len(pictures.NAMES) + 1}" in capsys.readouterr().out


@pytest.mark.parametrize("content", pictures.CAPTIONS.values(), ids=pictures.CAPTIONS)
def test_captions_that_are_no_text(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture, content: bytes) -> None:
    picture = write_picture(tmp_path / "train" / "1_cat" / "a.png", (64, 64))
    picture.with_suffix(".txt").write_bytes(content)
    path = write_run((ground[0], tmp_path), tmp_path)
    with refusal(tmp_path, capsys) as judge:
        assert "a.txt" in judge(main(["train", str(path), "--check"]))


@posix
def test_odd_names_and_captions_are_trained(ground: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "train" / "1_cat"
    for index, content in enumerate(pictures.ODD_CAPTIONS.values()):
        name = pictures.NAMES[index % len(pictures.NAMES)].removesuffix(".png").removesuffix(".PNG")
        write_picture(folder / f"{name}{index}.png", (64, 64), index).with_suffix(".txt").write_bytes(content)
    write_picture(tmp_path / "a.png", (64, 64), 50).rename(folder / os.fsdecode(pictures.UNDECODABLE_NAME))
    captions = {"enable_wildcard": True, "shuffle_caption": True}
    path = write_run((ground[0], tmp_path), tmp_path, max_train_steps=1, train_batch_size=13, **captions)
    assert main(["train", str(path)]) == COMPLETED, capsys.readouterr().err


WITHOUT_POWERS = """
import sys
from tests.helpers.mishaps import drop_powers
from trainer.__main__ import main
drop_powers()
sys.exit(main(sys.argv[1:]))
"""


@posix
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train", "cannot be opened"),
        ("train/1_cat", "cannot be opened"),
        ("train/1_cat/a.png", "Permission denied"),
        ("train/1_cat/a.txt", "a.txt"),
        ("RUN.toml", "RUN.toml"),
        ("model.safetensors", "model.safetensors"),
    ],
)
def test_what_may_not_be_read(ground: tuple[Path, Path], tmp_path: Path, name: str, said: str) -> None:
    """In a process to which permissions apply, whoever runs the tests."""
    model = Path(shutil.copy(ground[0], tmp_path / "model.safetensors"))
    write_picture(tmp_path / "train" / "1_cat" / "a.png", (64, 64), caption="a cat")
    path = write_run((model, tmp_path), tmp_path)
    (tmp_path / name).chmod(0)
    command = [sys.executable, "-c", WITHOUT_POWERS, "train", str(path), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (tmp_path / name).chmod(0o700)
    assert done.returncode == REFUSED, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
