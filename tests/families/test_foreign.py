"""A family that is like none of the program's, in a folder of its own, goes all the way of a run.

`patchy` is made for this, with one and with three text encoders.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from kohya_gui.form.draft import Checked, Draft, payload
from kohya_gui.form.plan_panel import plan_panel
from kohya_gui.form.survey import survey as surveyed
from kohya_gui.parts.folders import Folders
from tests.families import patchy
from tests.families.patchy import Patchy
from tests.families.patchy.bundle import write_file
from tests.families.patchy.models import modules
from tests.helpers.runs import Kill, RunServer, logged, tiny_settings, write_dataset
from tests.helpers.source import PROJECT
from tests.training.test_loop import wired
from trainer import families, train
from trainer.adapters import make_spec
from trainer.config import TrainingConfig, load_config, rates, save_config
from trainer.families import FAMILIES
from trainer.ground.errors import ConfigError
from trainer.planning.dialects import COMFYUI
from trainer.planning.inspection import inspect, suits
from trainer.planning.plan import plan
from trainer.results import key_names
from trainer.targets import TEXT, names_of
from trainer.training.loop import loss_of

STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    register()
    yield
    assert isinstance(FAMILIES, dict)
    for family in FOREIGN:
        FAMILIES.pop(family.name)


FOREIGN = (Patchy(1), Patchy(3))


def register() -> None:
    """Add the families to the list, as a line each in `FAMILIES` would."""
    assert isinstance(FAMILIES, dict)
    FAMILIES.update({family.name: family for family in FOREIGN})


@dataclass(frozen=True)
class Ground:
    """A family, its model, pictures, and where its runs go."""

    family: Patchy
    model: Path
    dataset: Path
    output: Path

    @property
    def encoders(self) -> int:
        """How many text encoders it has."""
        return len(names_of(self.family.parts, TEXT))

    def settings(self, name: str, **more: object) -> dict[str, object]:
        """Return the settings of a run of the whole model: every part learns, at a rate of its own."""
        given = {
            "text_encoder_lr": [5e-4, 2e-4, 1e-4][: self.encoders],
            "shuffle_caption": True,
            "flip_aug": True,
            "max_train_steps": STEPS,
            "timestep_sampling": "shift",
            "learning_rate": 5e-3,
        }
        return tiny_settings(self.model, self.dataset, self.output / name, **{**given, **more})

    def config(self, name: str, **more: object) -> TrainingConfig:
        return load_config(overrides=self.settings(name, **more))

    def run(self, name: str, **more: object) -> tuple[list[float], dict[str, torch.Tensor]]:
        """Train, and return the losses and the file's tensors."""
        train(self.config(name, **more), emit=lambda event: None)
        return self.made(name)

    def made(self, name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
        losses = [each["loss"] for each in logged(self.output / name / "tiny.run") if each["event"] == "StepDone"]
        return losses, load_file(self.output / name / "tiny.safetensors")


@pytest.fixture(scope="module", params=[1, 3], ids=["one encoder", "three encoders"])
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("foreign")
    path = write_file(folder / "model.safetensors", request.param)
    return Ground(Patchy(request.param), path, write_dataset(folder), folder / "out")


@pytest.fixture(scope="module")
def trained(ground: Ground) -> tuple[list[float], dict[str, torch.Tensor]]:
    return ground.run("straight", sample_prompts="a tok class --w 96 --h 64 --s 3", sample_every_n_steps=STEPS)


def assert_equal(one: tuple[list[float], dict[str, torch.Tensor]], other: tuple[list[float], dict[str, Any]]) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def test_it_is_recognised_and_says_what_suits_it(ground: Ground) -> None:
    seen = families.recognise(ground.model)
    assert (seen.family, seen.missing) == (ground.family.name, ())
    assert "clip_skip" not in suits(seen).settings
    told = inspect(ground.model)
    assert (told["kind"], told["prediction"]) == ("checkpoint", "unknown")
    assert told["what"] == f"a {ground.family.title} model"


def test_its_plan_and_the_pages_name_its_parts(ground: Ground) -> None:
    config = ground.config("plan")
    seen = plan(config)
    assert list(seen.rates) == [part.name for part in seen.parts]
    assert len(seen.parts) == 1 + ground.encoders
    modules_of_all = len(ground.family.targets(ground.family.configs, conv=True))
    assert f"LoRA: {modules_of_all} modules" in "\n".join(seen.lines())
    survey = surveyed(config)
    shown = plan_panel(Checked(config, config, (), {}), survey)
    assert all(f"<th>{part.title}</th>" in shown for part in seen.parts)
    assert "UNet" not in shown
    unused = plan(ground.config("more", text_encoder_lr=[1e-4] * (ground.encoders + 1))).notices
    assert any(
        f"text_encoder_lr has {ground.encoders + 1} rates and this model {ground.encoders} text" in n for n in unused
    )


def test_the_form_hides_what_means_nothing_for_it(ground: Ground) -> None:
    survey = surveyed(ground.config("form"))
    assert survey.unused >= ground.family.unused
    assert ("clip_g" in survey.unused) == ("clip_g" not in ground.family.files)
    draft = Draft(Folders([]))
    shown = payload(draft, draft.check(), process=survey.process, unused=survey.unused)["hidden"]
    assert isinstance(shown, list) and set(shown) >= survey.unused
    assert "clip_skip" not in payload(draft, draft.check())["hidden"]  # type: ignore[operator]


def test_no_line_of_the_program_knows_it(ground: Ground) -> None:
    """What the runs here do is done by the program as it is: a family is its folder, and a line in the list."""
    own = {ground.family.name, type(ground.family).__name__, *(part.name for part in ground.family.parts)}
    # Names that are the field's, and not this family's alone.
    words = own - {"transformer", "text_encoder", "text_encoder_2"}
    assert len(words) > 1
    for folder in ("trainer", "kohya_gui", "presets"):
        for path in (PROJECT / folder).rglob("*.*"):
            if path.suffix in (".py", ".js", ".css", ".toml"):
                assert not any(word in path.read_text(encoding="utf-8") for word in words), path


def test_sizes_that_its_patches_do_not_fit_are_refused(ground: Ground) -> None:
    step = ground.family.latents.step
    assert step == 32
    with pytest.raises(ConfigError, match=f"multiple of {step}"):
        plan(ground.config("step", bucket_reso_steps=step // 2))
    with pytest.raises(ConfigError, match=f"multiples of {step}"):
        plan(ground.config("sides", enable_bucket=False, resolution="72,72"))


def test_it_trains_every_part_and_its_file_is_read_back(ground: Ground, trained: tuple[list[float], Any]) -> None:
    losses, tensors = trained
    config, family = ground.config("straight"), ground.family
    spec = make_spec(config.network, rates(config, family.parts))
    assert {name: tuple(value.shape) for name, value in tensors.items()} == spec.shapes(
        family.targets(family.configs, conv=True)
    )
    assert len(losses) == STEPS
    assert all(value.abs().max() > 0 for name, value in tensors.items() if name.endswith("lora_up.weight"))
    with safe_open(ground.output / "straight" / "tiny.safetensors", "pt") as file:
        assert file.metadata()["ss_base_model_version"] == family.file_names("").base_model_version
    told = inspect(ground.output / "straight" / "tiny.safetensors")
    assert (told["kind"], told["family"]) == ("lora", family.name)


def test_the_loss_is_that_of_the_models_own_arithmetic(ground: Ground) -> None:
    """One step at batch 1, computed with nothing of the program but its random numbers."""
    training = wired(ground.config("one", train_batch_size=1, shuffle_caption=False, flip_aug=False), [])
    batch = next(iter(training.batches))
    models, tokens = modules(ground.encoders), batch.tokens
    assert batch.mean is not None and batch.std is not None and tokens is not None
    latents = (batch.mean + batch.std * batch.draws.posterior - 0.25) * 0.7
    assert latents.shape[1] == 5
    sigma = batch.draws.timesteps
    words = [models[name](tokens[name]["ids"]) for name in tokens]
    masks = [tokens[name].get("mask", tokens[name]["ids"] >= 0) for name in tokens]
    assert [ids.shape[1] for ids in words] == list(patchy.LENGTHS[: ground.encoders])
    size = torch.tensor([[batch.draws.noise.shape[3], batch.draws.noise.shape[2]]]) * 16 / 64
    made = models["transformer"](
        (1 - sigma) * latents + sigma * batch.draws.noise, sigma, torch.cat(words, 1), torch.cat(masks, 1), size
    )
    expected = ((made - (batch.draws.noise - latents)) ** 2).mean()
    torch.testing.assert_close(loss_of(training, batch), expected, rtol=1e-5, atol=1e-6)


def test_samples_are_drawn_in_the_size_asked_for(ground: Ground, trained: tuple[list[float], Any]) -> None:
    (path,) = (ground.output / "straight" / "tiny.run" / "samples").glob("*.png")
    with Image.open(path) as picture:
        assert picture.size == (96, 64)
        assert len(picture.getcolors(96 * 64) or ()) > 100


def test_captions_encoded_ahead_train_the_same(ground: Ground) -> None:
    frozen: dict[str, Any] = {"text_encoder_lr": 0, "shuffle_caption": True, "caption_variants": 3}
    ahead = ground.run("ahead", cache_text_encoder_outputs=True, **frozen)
    on_disk = ground.run("on disk", cache_text_encoder_outputs_to_disk=True, **frozen)
    assert_equal(ahead, on_disk)
    live = {"shuffle_caption": False, "text_encoder_lr": 0}
    assert_equal(ground.run("live", **live), ground.run("still", cache_text_encoder_outputs=True, **live))


def test_without_caches_and_with_checkpointing_it_trains_the_same(
    ground: Ground, trained: tuple[list[float], Any]
) -> None:
    losses, tensors = ground.run("uncached", cache_latents=False, gradient_checkpointing=True)
    assert losses == pytest.approx(trained[0], rel=1e-5)
    assert all(torch.allclose(value, trained[1][name], atol=1e-4) for name, value in tensors.items())


def test_it_goes_on_from_its_own_file(ground: Ground, trained: tuple[list[float], dict[str, Any]]) -> None:
    weights = str(ground.output / "straight" / "tiny.safetensors")
    still = {"learning_rate": 1e-12, "text_encoder_lr": 1e-12, "max_train_steps": 1}
    _, tensors = ground.run("goes on", network_weights=weights, **still)
    assert all(torch.allclose(value, trained[1][name], atol=1e-9) for name, value in tensors.items())


@pytest.mark.skipif(sys.platform == "win32", reason="a kill is a signal")
def test_killed_runs_resume_bit_for_bit(ground: Ground, trained: tuple[list[float], dict[str, Any]]) -> None:
    server, settings = RunServer(), ground.settings("killed", save_state_minutes=0.00001)
    kills = (Kill("step", 2), Kill("caching", 2), Kill("state", 1), Kill("lora", 1))
    for kill in kills if ground.encoders == 3 else kills[:1]:
        code = server.run(settings, resume="auto", kill=kill, prepare=register)
        assert code == -signal.SIGKILL, f"at {kill.moment}"
    assert server.run(settings, resume="auto", prepare=register) == 0
    assert_equal(ground.made("killed"), trained)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo between processes is tested on POSIX")
def test_two_ranks_train_as_one_with_twice_the_accumulation(ground: Ground, tmp_path: Path) -> None:
    if ground.encoders != 3:
        pytest.skip("three encoders are the widest case")
    alone = ground.run("alone", gradient_accumulation_steps=2, optimizer_args=["eps=1e-4"])
    run = tmp_path / "RUN.toml"
    save_config(ground.config("together", optimizer_args=["eps=1e-4"]), run)
    launched = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [*launched, "-m", "tests.families.patchy", "train", str(run)]
    answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode == 0, answer.stderr[-2000:]
    together = ground.made("together")
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    assert all(torch.allclose(value, alone[1][name], rtol=1e-4, atol=1e-5) for name, value in together[1].items())


def test_layers_that_comfyui_has_no_name_for_keep_kohyas_keys() -> None:
    """None is written over another, though the family says of no layer what ComfyUI calls it."""
    family = FOREIGN[1]
    targets = family.targets(family.configs, conv=True)
    config = load_config(overrides={"network_dim": 2, "network_alpha": 1.0})
    shapes = make_spec(config.network, tuple(part.name for part in family.parts), config.transformer).shapes(targets)
    tensors = {key: torch.full(shape, 1.0 + number) for number, (key, shape) in enumerate(shapes.items())}
    made = key_names.renamed(tensors, COMFYUI, family, family.configs, targets)
    assert made.keys() == tensors.keys()
    assert all(torch.equal(made[key], tensors[key]) for key in made)
