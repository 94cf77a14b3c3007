"""Saved files tried out at several weights, as the previews draw them; and the one that is kept."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from safetensors import safe_open

from tests.helpers.checkpoints import full_sd15, tiny_sd15
from tests.helpers.runs import tiny_config, write_dataset
from trainer.__main__ import COMPLETED, REFUSED, main
from trainer.config import TrainingConfig
from trainer.ground import events
from trainer.ground.errors import ConfigError, RunError, StateError, Stopped
from trainer.ground.safetensors_header import read_table
from trainer.preview.prompts import SamplePrompt, settle
from trainer.results.event_log import read_events
from trainer.results.export import hashes
from trainer.results.run_folder import RunFolder
from trainer.results.run_record import RunReader
from trainer.run import train
from trainer.tools import TOOLS
from trainer.tools.try_it import request_of
from trainer.trial import grid
from trainer.trial.drawing import draw
from trainer.trial.grid import Request
from trainer.trial.keeping import KEPT_FROM

PROMPT = "tok, red --n big --w 64 --h 64 --s 3 --l 4 --d 11 --ss euler_a"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("ground")
    return tiny_sd15(folder), write_dataset(folder)


@pytest.fixture(scope="module")
def run(ground: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of six steps with files and samples at 0, 2, 4 and 6."""
    output = tmp_path_factory.mktemp("run")
    options = {"save_every_n_steps": 2, "sample_every_n_steps": 2, "sample_at_first": True, "learning_rate": 2e-2}
    train(tiny_config(*ground, output, **options, sample_prompts=PROMPT), emit=lambda event: None)
    return RunFolder(output, "tiny")


def copied(run: RunFolder, to: Path) -> RunFolder:
    shutil.copytree(run.output_dir, to, dirs_exist_ok=True)
    return RunFolder(to, run.output_name)


def previews(run: RunFolder) -> dict[int, Image.Image]:
    ready = [each for each in read_events(run.events) if isinstance(each, events.SampleReady)]
    return {each.step: Image.open(run.samples / Path(each.path).name) for each in ready}


def same(one: Image.Image | Path, other: Image.Image | Path) -> bool:
    pair = [Image.open(each) if isinstance(each, Path) else each for each in (one, other)]
    return ImageChops.difference(*pair).getbbox() is None


def data_of(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_at_weight_1_each_file_draws_its_preview_and_at_0_the_base_model(
    ground: tuple[Path, Path], run: RunFolder, tmp_path: Path
) -> None:
    mine = copied(run, tmp_path)
    wider = tiny_config(*ground, tmp_path / "wider", network_dim=8, max_train_steps=2, network_type="loha")
    train(wider, emit=lambda event: None)
    names = ["tiny-step00000002", "tiny-step00000004", "tiny", "wider/tiny"]
    files = [str(tmp_path / f"{name}.safetensors") for name in names]
    assert main(["try", str(mine.path), "--weights", "0", "0.5", "1", "--files", *files]) == COMPLETED
    blue = ["--weights", "1", "--prompt", "blue", "--seed", "3", "--steps", "2"]
    assert main(["try", str(mine.output_dir / "tiny"), *blue]) == COMPLETED
    newest, first = grid.trials(mine.path / grid.TRIED)
    assert [first.number, newest.number] == ["0001", "0002"]
    assert list(first.drawn) == [(row, column) for row in range(4) for column in range(3)]
    before = previews(mine)
    assert same(first.drawn[0, 0], before[0]) and not same(before[0], before[2])
    for row, step in enumerate((2, 4, 6)):
        assert same(first.drawn[row, 2], before[step]), f"the file of step {step} at weight 1"
        assert same(first.drawn[row, 0], before[0]), f"the file of step {step} at weight 0"
        assert not any(same(first.drawn[row, 1], first.drawn[row, other]) for other in (0, 2))
    assert same(first.drawn[3, 0], before[0]) and not same(first.drawn[3, 2], first.drawn[2, 2])
    assert Image.open(first.drawn[0, 2]).info["parameters"] == before[2].info["parameters"]
    assert [Path(each).name for each in newest.request.files] == [Path(each).name for each in files[:3]]
    assert newest.request.prompt == "blue" and (newest.request.seed, newest.request.steps) == (3, 2)

    alone = tmp_path / "elsewhere" / "found.safetensors"
    alone.parent.mkdir()
    shutil.copy(files[0], alone)
    assert main(["try", str(alone), "--prompt", "red"]) == REFUSED, "no model is named"
    words = ["--prompt", "red", "--model", str(ground[0]), "--weights", "1", "--steps", "3", "--width", "64"]
    assert main(["try", str(alone), *words, "--height", "64"]) == COMPLETED
    [found] = grid.trials(alone.parent / "found.tried")
    assert list(found.drawn) == [(0, 0)]


def test_what_a_prompt_leaves_open_is_as_in_the_runs_first_one(run: RunFolder, tmp_path: Path) -> None:
    """So that the page, which always says a prompt, draws what the previews drew."""
    config = run.read_config()

    def ask(config: TrainingConfig = config, **said: object) -> Request:
        return request_of(TOOLS["try"].read({"run": str(run.path), **said}), config, ("a",))

    assert ask(prompt="tok, red", negative="big") == ask()
    blue = ask(prompt="blue")
    assert (blue.negative_prompt, blue.width, blue.height, blue.scale) == ("", 64, 64, 4.0)
    assert (blue.seed, blue.steps, blue.sampler) == (11, 3, "euler_a")
    own = ask(prompt="blue --w 128 --d 5 --n dull --g 2", seed=6)
    assert (own.prompt, own.negative_prompt, own.width, own.height) == ("blue", "dull", 128, 64)
    assert (own.seed, own.guidance) == (6, 2.0)
    with pytest.raises(ConfigError, match="--x 1 is no option"):
        ask(prompt="blue --x 1")

    listed = tmp_path / "prompts.txt"
    listed.write_text("green --s 7\n")
    named = dataclasses.replace(config, sampling=config.sampling.model_copy(update={"sample_prompts": str(listed)}))
    assert (ask(named).prompt, ask(named).steps) == ("green", 7)
    assert ask(named).seed == settle(SamplePrompt("green"), config, 0).seed, "that of the preview"
    listed.unlink()
    assert ask(named, prompt="blue").steps is None
    with pytest.raises(ConfigError, match="there is no file"):
        ask(named)


def test_a_stop_leaves_what_is_drawn_and_refusals_leave_nothing(run: RunFolder, tmp_path: Path) -> None:
    mine, config = copied(run, tmp_path), run.read_config()
    files = tuple(str(path) for path in RunReader(mine).read().files.values())
    request = Request(files, (0.0, 1.0), "tok", steps=2, width=64, height=64)
    where, quiet = mine.path / grid.TRIED, (lambda begun: None, lambda words: None)

    def stop_after_three(phase: str, done: int, total: int) -> None:
        if phase == "drawing pictures" and done == 3:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        draw(config, request, where, stop_after_three, "by a test", quiet)
    [left] = grid.trials(where)
    assert list(left.drawn) == [(0, 0), (0, 1), (1, 0)] and left.request == request
    for changed, words in {
        ("sampler", "sloth"): "'sloth' is no sampler",
        ("steps", 1): "draws with 5 to 1000 steps",
    }.items():
        named = Request(files, (1.0,), "tok", **{"sampler": "heun", **dict([changed])})  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=words):
            draw(config, named, where, lambda *_: None, "by a test", quiet)
    assert len(grid.trials(where)) == 1
    arguments = TOOLS["try"].read({"run": str(mine.path), "weights": [99.0]})
    with pytest.raises(ConfigError, match="99 cannot be used; weights go from -10 to 10"):
        request_of(arguments, config, files)
    with pytest.raises(ConfigError, match="it must be a list of numbers"):
        TOOLS["try"].read({"run": str(mine.path), "weights": ["a"]})


def test_where_memory_runs_out_nothing_is_to_be_resumed(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, config = copied(run, tmp_path), run.read_config()

    def full(*about: object, **more: object) -> Image.Image:
        raise MemoryError("no more")

    monkeypatch.setattr("trainer.trial.drawing.sample", full)
    request = Request((str(mine.lora),), (1.0,), "tok", steps=2, width=64, height=64)
    with pytest.raises(RunError, match="Out of memory: no more") as caught:
        draw(
            config, request, mine.path / grid.TRIED, lambda *at: None, "a test", (lambda begun: None, lambda say: None)
        )
    assert "width and height" in caught.value.remedy and "esume" not in caught.value.remedy


def test_the_one_that_is_kept_is_the_final_one(run: RunFolder, tmp_path: Path) -> None:
    mine = copied(run, tmp_path)
    chosen, final = mine.output_dir / "tiny-step00000002.safetensors", mine.lora
    before, wanted = data_of(final), data_of(chosen)
    assert before != wanted
    assert main(["keep", str(chosen)]) == COMPLETED
    assert data_of(final) == wanted == data_of(chosen)
    with safe_open(chosen, "pt") as was, safe_open(final, "pt") as kept:
        told = kept.metadata()
        assert {**was.metadata(), KEPT_FROM: chosen.name, "sshs_legacy_hash": told["sshs_legacy_hash"]} == told
        assert told["ss_steps"] == "2" and list(kept.keys()) == list(was.keys())
    with open(final, "rb") as file:
        table = read_table(file, final.stat().st_size)
    entries = {
        name: {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": [each.begin, each.end]}
        for name, each in table.entries.items()
    }
    sums = hashes(dict(told), entries, memoryview(wanted))
    assert sums["sshs_model_hash"] == told["sshs_model_hash"]
    aside = mine.output_dir / "tiny-step00000006.safetensors"
    assert data_of(aside) == before, "the final file of before stays"
    assert {step: path.name for step, path in RunReader(mine).read().files.items()} == {
        2: final.name, 4: "tiny-step00000004.safetensors", 6: aside.name
    }  # fmt: skip
    assert main(["keep", str(aside)]) == COMPLETED
    assert data_of(final) == before and data_of(chosen) == wanted

    stranger = mine.output_dir / "stranger.safetensors"
    shutil.copy(chosen, stranger)
    assert main(["keep", str(stranger)]) == REFUSED
    lock = mine.lock()
    with pytest.raises(StateError, match="another run is writing"):
        TOOLS["keep"].load().keep(mine, chosen)  # type: ignore[attr-defined]
    lock.release()


@pytest.mark.thorough
def test_a_grid_at_the_width_of_stable_diffusion(ground: tuple[Path, Path], tmp_path: Path) -> None:
    """128 px, 4 steps, two files at two weights on whatever is there; at weight 1 each is its preview."""
    prompt = "tok, red --w 128 --h 128 --s 4 --d 5"
    options = {"max_train_steps": 2, "save_every_n_steps": 1, "sample_every_n_steps": 1, "learning_rate": 1e-2}
    options |= {"text_encoder_lr": 0.0, "sample_prompts": prompt, "train_batch_size": 1}
    train(tiny_config(full_sd15(tmp_path), ground[1], tmp_path, **options), emit=lambda event: None)
    mine = RunFolder(tmp_path, "tiny")
    assert main(["try", str(mine.path), "--weights", "0", "1"]) == COMPLETED
    [trial] = grid.trials(mine.path / grid.TRIED)
    assert list(trial.drawn) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    before = previews(mine)
    assert same(trial.drawn[0, 1], before[1]) and same(trial.drawn[1, 1], before[2])
    assert same(trial.drawn[0, 0], trial.drawn[1, 0]) and not same(trial.drawn[0, 0], trial.drawn[0, 1])
