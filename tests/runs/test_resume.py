"""Killed anywhere, a run goes on as if nothing had happened: same steps, same bits."""

from __future__ import annotations

import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.helpers.families import TINY
from tests.helpers.runs import VALIDATED, Kill, RunServer, logged, tiny_settings, write_dataset
from trainer.optimizers import OPTIMIZERS

KILLED = -9

FEW = (
    Kill("renaming", 2),
    Kill("caching"),
    Kill("sampling"),
    Kill("step", 3, seconds=0.05),
)
"""One kill in each phase. The first comes with one epoch's state written, so that all others meet a resumed run."""

MANY = (
    *FEW,
    Kill("step", 1, seconds=0.02),
    Kill("state"),
    Kill("sampling", seconds=0.01),
    Kill("lora"),
    Kill("caching", seconds=0.02),
    Kill("step", 2),
    Kill("state", 2),
    Kill("caching"),
    Kill("sampling"),
    Kill("lora"),
)
"""At least three in each phase: caching, mid-step, mid-save, sampling."""

LARGE_MATRICES = {"network_dim": 64}
"""Rank 64 on 64 channels gives matrices of 4,096 elements, which is where 8-bit states begin."""


def of_optimizer(name: str) -> dict[str, object]:
    """The settings of a run with an optimizer: the rate that it is advised with, and states as it keeps them."""
    rates = OPTIMIZERS[name].usual_rates or (1e-4, 1e-3, 1e-3)
    settings: dict[str, object] = {"optimizer_type": name, "learning_rate": rates[2], "text_encoder_lr": rates[2]}
    return settings | (LARGE_MATRICES if "8bit" in name else {})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family."""
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.write_file(folder / f"{name}.safetensors") for name, tiny in TINY.items()}


@pytest.fixture(scope="module")
def ground(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return models["sd15"], write_dataset(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def server() -> Iterator[RunServer]:
    yield RunServer()


def settings_of(ground: tuple[Path, Path], output: Path, **settings: object) -> dict[str, object]:
    """A run of three epochs of four steps with everything random in it."""
    return tiny_settings(
        *ground,
        output,
        **{
            "max_train_steps": None,
            "max_train_epochs": 3,
            "train_batch_size": 3,
            "gradient_accumulation_steps": 2,
            "flip_aug": True,
            "shuffle_caption": True,
            "keep_tokens": 1,
            "caption_dropout_rate": 0.1,
            "noise_offset": 0.05,
            "sample_prompts": "tok class --w 64 --h 64 --s 2 --d 1",
            "sample_every_n_epochs": 1,
            **settings,
        },
    )


def assert_survives(
    server: RunServer, straight: dict[str, object], killed: dict[str, object], kills: tuple[Kill, ...]
) -> None:
    """Compare a run that is left alone with one that is killed at every moment of `kills`."""
    assert server.run(straight) == 0
    for kill in kills:
        code = server.run(killed, resume="auto", kill=kill)
        assert code == (KILLED if kill.how == signal.SIGKILL else 0), f"exit code {code}: the run did not meet {kill}"
    assert server.run(killed, resume="auto") == 0
    assert_equal_runs(straight, killed)


def assert_same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == sorted(path.name for path in other.glob("*.safetensors"))
    assert "tiny.safetensors" in names
    for name in names:
        expected, found = load_file(one / name), load_file(other / name)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), f"{name}: {key}"


def assert_steps_go_on(killed: list[dict[str, object]], straight: list[dict[str, object]]) -> None:
    """The log tells of each step once, in order, with the same losses; after a resume the next step comes first."""
    expected = [(record["step"], record["loss"]) for record in straight if record["event"] == "StepDone"]
    assert [step for step, _ in expected] == list(range(1, int(str(straight[0]["total_steps"])) + 1))
    assert [(record["step"], record["loss"]) for record in killed if record["event"] == "StepDone"] == expected
    restored: object = 0
    for record in killed:
        if record["event"] == "Started":
            restored = record["step"]
        elif record["event"] == "StepDone" and restored is not None:
            assert record["step"] == int(str(restored)) + 1
            restored = None


def two_runs(ground: tuple[Path, Path], folder: Path, optimizer: str, **more: object) -> list[dict[str, object]]:
    """Return the settings of a run to leave alone and of one to kill."""
    settings = {**of_optimizer(optimizer), **more}
    return [settings_of(ground, folder / name, **settings) for name in ("straight", "killed")]


@pytest.mark.parametrize(
    "optimizer", ["AdamW", *(pytest.param(name, marks=pytest.mark.thorough) for name in OPTIMIZERS if name != "AdamW")]
)
def test_killed_in_each_phase(server: RunServer, ground: tuple[Path, Path], tmp_path: Path, optimizer: str) -> None:
    straight, killed = two_runs(ground, tmp_path, optimizer, **VALIDATED)
    assert_survives(server, straight, killed, FEW)


SOON = ("DAdaptAdan", "ProdigyPlusScheduleFree", "Adafactor", "CAME")
"""Those that keep most, each in a way of its own: the whole suite tries them, the others --thorough."""


@pytest.mark.parametrize(
    "optimizer",
    [
        name if name in SOON else pytest.param(name, marks=pytest.mark.thorough)
        for name in OPTIMIZERS
        if name != "AdamW"
    ],
)
def test_every_optimizer_goes_on_bit_for_bit(
    server: RunServer, ground: tuple[Path, Path], tmp_path: Path, optimizer: str
) -> None:
    """Whatever is in the list is killed in the middle of a step, with a state behind it."""
    straight, killed = two_runs(ground, tmp_path, optimizer, sample_prompts="", flip_aug=False)
    assert_survives(server, straight, killed, (Kill("step", 6, seconds=0.02),))


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", ["AdamW8bit", *(pytest.param(name, marks=pytest.mark.thorough) for name in OPTIMIZERS)]
)
def test_killed_often_with_two_workers(
    server: RunServer, ground: tuple[Path, Path], tmp_path: Path, optimizer: str, pytestconfig: pytest.Config
) -> None:
    straight, killed = two_runs(ground, tmp_path, optimizer, max_data_loader_n_workers=2)
    # The first few are those that `test_killed_in_each_phase` has.
    assert_survives(server, straight, killed, MANY if pytestconfig.getoption("--thorough") else MANY[len(FEW) :])
    if optimizer == "AdamW8bit":
        path = max((tmp_path / "killed" / "tiny.run" / "state").glob("step-*")) / "optimizer.pt"
        assert b"ByteStorage" in path.read_bytes(), "no 8-bit state was used"


ENCODED = {"network_train_unet_only": True, "caption_variants": 3, "flip_aug": False}
KINDS: dict[str, dict[str, object]] = {
    "bf16": {"mixed_precision": "bf16"},
    "latents on disk": {"cache_latents_to_disk": True},
    "no latent cache": {"cache_latents": False},
    "captions in memory": {**ENCODED, "cache_text_encoder_outputs": True},
    "captions on disk": {**ENCODED, "cache_text_encoder_outputs_to_disk": True},
    "convolutions": {"conv_dim": 2, "gradient_checkpointing": True},
    "other noise": {"multires_noise_iterations": 4, "noise_offset": None, "ip_noise_gamma": 0.1, "min_snr_gamma": 5.0},
    "an average": {"use_ema": True, "sample_ema": True, "ema_decay": 0.9, "save_state": True},
    "halved, schedule-free": {
        "full_bf16": True,
        "mixed_precision": "bf16",
        "optimizer_type": "ProdigyPlusScheduleFree",
    },
    "a class of torch's": {"lr_scheduler_type": "OneCycleLR", "lr_scheduler_args": ["max_lr=1e-3", "total_steps=12"]},
    "int8": {"quantize_base": "int8"},
    "loha": {"network_type": "loha", "conv_dim": 2},
    "locon": {"network_type": "locon", "conv_dim": 2, "dora_wd": True, "use_tucker": True, "use_scalar": True},
    "lokr": {"network_type": "lokr", "lycoris_preset": "full", "conv_dim": 2, "factor": 4, "rs_lora": True},
    "ia3": {"network_type": "ia3", "lycoris_preset": "ia3"},
    "oft": {"network_type": "oft", "rescaled": True, "constraint": 0.01},
    "dropouts": {
        "network_dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.3, "scale_weight_norms": 0.02,
        "loraplus_lr_ratio": 4, "down_lr_weight": "cosine", "network_reg_lrs": ["to_k=5e-4"],
        "stop_text_encoder_training": 5, "gradient_accumulation_steps": 2,
    },
    "pissa": {"init_lora_weights": "pissa", "conv_dim": 2},
    "loha with limits": {
        "network_type": "loha", "conv_dim": 2, "rank_dropout": 0.2, "module_dropout": 0.3, "scale_weight_norms": 0.02,
    },
    "nf4": {"quantize_base": "nf4", "mixed_precision": "bf16"},
    "sd2": {},
    "sdxl": {},
    "much at once, sd2": {
        "quantize_base": "int8", "optimizer_type": "Lion", "learning_rate": 1e-4, "text_encoder_lr": 1e-4,
        "cache_latents_to_disk": True, "max_data_loader_n_workers": 1, "validation_split": 0.2, **VALIDATED,
    },
    "much at once, sdxl": {
        **ENCODED, "cache_text_encoder_outputs_to_disk": True, "quantize_base": "nf4", "mixed_precision": "bf16",
        "optimizer_type": "Adafactor",
    },
}  # fmt: skip
"""What a run may be; the name's last word chooses the family."""

ADAPTERS = ("loha", "dropouts")
"""Kinds of adapter and their options, which meet the same kills as LoRA."""

TWICE = (Kill("renaming", 2), Kill("step", 2, seconds=0.05))
ENDED_OTHERWISE = (
    Kill("caching", how=signal.SIGTERM),
    Kill("step", 2, how=signal.SIGTERM),
    Kill("caching", how=signal.SIGTERM),
    Kill("paused", 7),
    Kill("sampling", how=signal.SIGTERM),
)
IN_A_PAUSE = (
    Kill("paused in caching latents"),
    Kill("paused in drawing samples"),
    Kill("paused in drawing samples", 4),
    Kill("paused in validating"),
    Kill("paused in reading pictures"),
    Kill("paused in drawing samples", 3),
)
"""The second and the third wait in the same epoch's samples: what was drawn before the pause is not drawn again.
The fourth waits in front of the next epoch's samples: they are drawn after the resume.
"""


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        *(pytest.param(kind, TWICE, id=kind) for kind in KINDS if kind.startswith("much") or kind in ADAPTERS),
        *(pytest.param(kind, FEW, marks=pytest.mark.thorough, id=f"{kind}, each phase") for kind in KINDS),
    ],
)
def test_every_kind_of_run_survives(
    server: RunServer,
    models: dict[str, Path],
    ground: tuple[Path, Path],
    tmp_path: Path,
    kind: str,
    kills: tuple[Kill, ...],
) -> None:
    model = models.get(kind.rsplit(maxsplit=1)[-1], ground[0])
    straight, killed = (settings_of((model, ground[1]), tmp_path / name, **KINDS[kind]) for name in ("one", "other"))
    if not killed.get("cache_latents", True):
        kills = tuple(kill for kill in kills if kill.moment != "caching")
    assert_survives(server, straight, killed, kills)


def test_stopped_by_a_signal_and_killed_in_a_pause(
    server: RunServer, ground: tuple[Path, Path], tmp_path: Path
) -> None:
    straight, killed = two_runs(ground, tmp_path, "AdamW")
    assert_survives(server, straight, killed, ENDED_OTHERWISE)


def samples_of(output: Path) -> dict[tuple[int, int], bytes]:
    told = [record for record in logged(output / "tiny.run") if record["event"] == "SampleReady"]
    found = {(record["step"], record["index"]): Path(record["path"]).read_bytes() for record in told}
    assert len(found) == len(told) == len(list((output / "tiny.run" / "samples").iterdir()))
    return found


def test_killed_in_a_pause_in_the_middle_of_a_phase(
    server: RunServer, ground: tuple[Path, Path], tmp_path: Path
) -> None:
    prompts = "tok class --w 64 --h 64 --s 2 --d 1\ntok class --w 64 --h 64 --s 2 --d 2"
    straight, killed = two_runs(ground, tmp_path, "AdamW", sample_prompts=prompts, **VALIDATED)
    assert_survives(server, straight, killed, IN_A_PAUSE)
    assert samples_of(tmp_path / "killed") == samples_of(tmp_path / "straight")


def test_a_damaged_state_gives_way_to_the_one_before(
    server: RunServer, ground: tuple[Path, Path], tmp_path: Path
) -> None:
    straight, killed = (settings_of(ground, tmp_path / name) for name in ("straight", "killed"))
    assert server.run(straight) == 0
    assert server.run(killed, kill=Kill("step", 9)) == KILLED
    newest = max((tmp_path / "killed" / "tiny.run" / "state").glob("step-*")) / "optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert server.run(killed, resume="auto") == 0
    assert_same_files(tmp_path / "straight", tmp_path / "killed")
    assert_steps_go_on(logged(tmp_path / "killed" / "tiny.run"), logged(tmp_path / "straight" / "tiny.run"))


PHASES: dict[str, int] = {"caching": 2, "step": 6, "state": 2, "renaming": 2, "lora": 2, "sampling": 5}
"""What a run does, and up to how many such moments a random kill may wait."""

KILLS, IN_EACH_PHASE, MOST_ATTEMPTS = 30, 3, 150


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"optimizer_type": "AdamW"},
        {
            "optimizer_type": "AdamW8bit",
            "network_dim": 64,
            "cache_latents_to_disk": True,
            "max_data_loader_n_workers": 2,
            "mixed_precision": "bf16",
        },
    ],
)
def test_killed_thirty_times_at_random(
    server: RunServer,
    ground: tuple[Path, Path],
    tmp_path: Path,
    pytestconfig: pytest.Config,
    capfd: pytest.CaptureFixture[str],
    more: dict[str, object],
) -> None:
    """Run after run, each killed again and again until it ends; every one must equal the run that was left alone."""
    seed = pytestconfig.getoption("--kill-seed")
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    with capfd.disabled():
        sys.stdout.write(f"\nrandom kills: --thorough --kill-seed {seed}\n")
    chance, hits, survived = random.Random(seed), Counter[str](), 0
    straight = settings_of(ground, tmp_path / "straight", **more)
    assert server.run(straight) == 0
    for _ in range(MOST_ATTEMPTS):
        if hits.total() >= KILLS and all(hits[phase] >= IN_EACH_PHASE for phase in PHASES):
            break
        killed = {**straight, "output_dir": str(tmp_path / f"killed-{survived}")}
        phase = chance.choice([each for each in PHASES if hits[each] <= min(hits[other] for other in PHASES) + 2])
        kill = Kill(phase, chance.randint(1, PHASES[phase]), chance.uniform(0, 0.2) if phase == "step" else 0.0)
        code = server.run(killed, resume="auto", kill=kill)
        assert code in (KILLED, 0), f"the run failed by itself around {kill} (seed {seed})"
        hits[phase] += code == KILLED
        if code == 0:
            assert_equal_runs(straight, killed)
            survived += 1
    killed = {**straight, "output_dir": str(tmp_path / f"killed-{survived}")}
    assert server.run(killed, resume="auto") == 0
    assert_equal_runs(straight, killed)
    with capfd.disabled():
        sys.stdout.write(f"killed {dict(hits)} over {survived + 1} runs\n")
    assert hits.total() >= KILLS
    assert min(hits[phase] for phase in PHASES) >= IN_EACH_PHASE


def assert_equal_runs(straight: dict[str, object], killed: dict[str, object]) -> None:
    one, other = Path(str(straight["output_dir"])), Path(str(killed["output_dir"]))
    assert_same_files(one, other)
    assert_steps_go_on(logged(other / "tiny.run"), logged(one / "tiny.run"))


def test_several_datasets_go_on_bit_for_bit(server: RunServer, ground: tuple[Path, Path], tmp_path: Path) -> None:
    """Two datasets over one folder, of two sizes each, one with all that is random or masked in its pictures."""
    folder = ground[1] / "train" / "2_tok class"
    (tmp_path / "masks").mkdir()
    for picture in folder.glob("*.*"):
        if picture.suffix != ".txt":
            Image.linear_gradient("L").save(tmp_path / "masks" / f"{picture.stem}.png")
    plain = {"image_dir": str(folder), "token_warmup_step": 4, "min_timestep": 200}
    random_ones = {"color_aug": True, "random_crop": True, "conditioning_data_dir": str(tmp_path / "masks")}
    datasets = [
        {"resolutions": [64, 96], "batch_size": 3, "subsets": [plain]},
        {"subsets": [{"image_dir": str(folder), "enable_wildcard": True, **random_ones}]},
    ]
    more = {
        "cache_latents": False,
        "masked_loss": True,
        "datasets": datasets,
        "sample_prompts": "",
        "train_data_dir": "",
    }
    straight, killed = (settings_of(ground, tmp_path / name, **more) for name in ("one", "other"))
    assert_survives(server, straight, killed, TWICE[1:])
    log = logged(tmp_path / "one" / "tiny.run")
    assert sum(record["event"] == "StepDone" for record in log) == log[0]["total_steps"]
