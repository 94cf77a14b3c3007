"""What goes out as a command line comes in again as it was, whatever signs are in it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.config import TrainingConfig, known_settings, load_config, open_recipe, rates, to_flat, to_kohya
from trainer.config.assembly import assemble
from trainer.config.rules import RULES
from trainer.settings.exporting import SHELLS, command_line
from trainer.settings.section import PATHS
from trainer.settings.toml import encoded
from trainer.settings.walk import Setting
from trainer.targets import DENOISER, TEXT, Part
from trainer.tools.export import untold, written

TEXTS = st.text(
    st.sampled_from("ab $%^`'\"\\!&|<>();#*?~{}[]=-,:@+é%PATH%") | st.characters(exclude_categories=["Cs", "Cc"]),
    max_size=30,
)
VALUES: dict[str, st.SearchStrategy[object]] = {
    "caption_prefix": TEXTS,
    "caption_suffix": st.sampled_from(["true", "5", "--x", "$HOME", "%PATH%", "a  b", "#"]),
    "conv_dim": st.none() | st.integers(1, 64),
    "flip_aug": st.booleans(),
    "keep_tokens_separator": st.sampled_from(["|||", "&&", ";"]),
    "learning_rate": st.floats(1e-7, 1),
    "lr_warmup_steps": st.integers(0, 500) | st.floats(0.001, 0.9),
    "max_grad_norm": st.sampled_from([0.0, 0.5, 1.0]),
    "max_token_length": st.sampled_from([75, 150, 225]),
    "metadata_title": TEXTS,
    "min_snr_gamma": st.none() | st.floats(0.1, 20),
    "model_family": st.sampled_from(["auto", "sd2", "sdxl"]),
    "network_alpha": st.floats(0.001, 128),
    "network_dim": st.integers(1, 128),
    "optimizer_args": st.lists(st.sampled_from(["weight_decay=0.1", "eps=1e-8"]), unique=True),
    "resolution": st.sampled_from(["512,512", "512,768", "640"]),
    "save_every_n_epochs": st.none() | st.integers(1, 9),
    "seed": st.integers(0, 2**32 - 1),
    "shuffle_caption": st.booleans(),
    "text_encoder_lr": st.floats(0, 1) | st.lists(st.floats(0, 1), min_size=2, max_size=2),
    "unet_lr": st.none() | st.floats(1e-7, 1),
}


def strategy(setting: Setting) -> st.SearchStrategy[object]:
    """Return any value of a setting's own kind, most of them allowed."""
    bounds = setting.bounds
    low = bounds.ge if bounds.ge is not None else (bounds.gt or 0) + (1e-6 if setting.kind == "number" else 1)
    high = min(bounds.le if bounds.le is not None else 1e4, 1e4)
    step = int(bounds.multiple_of or 1)
    kinds: dict[str, st.SearchStrategy[object]] = {
        "switch": st.booleans(),
        "integer": st.integers(int(low) // step, int(high) // step).map(lambda value: value * step),
        "number": st.floats(low, max(high, low)),
        "choice": st.sampled_from(setting.choices),
        "text": TEXTS,
        "list": st.just([]),
    }
    found = kinds.get(setting.kind, st.just(setting.default))
    return st.none() | found if setting.optional else found


OWN_WAYS: dict[str, st.SearchStrategy[object]] = {
    "resolution": st.tuples(st.integers(8, 128), st.integers(8, 128)).map(lambda it: f"{it[0] * 8},{it[1] * 8}"),
    "lr_warmup_steps": st.integers(0, 500) | st.integers(1, 99).map(lambda share: share / 100) | st.floats(0.001, 0.9),
    "text_encoder_lr": st.floats(0, 1) | st.lists(st.floats(0, 1), min_size=2, max_size=2),
    "optimizer_args": st.lists(st.sampled_from(["weight_decay=0.1", "eps=1e-8"]), unique=True),
    "output_name": st.from_regex("[a-z]{1,9}", fullmatch=True),
    "caption_extension": st.sampled_from([".txt", ".caption", ".x y"]),
    "sample_prompts": st.sampled_from(["", "a dog --n bad", "two\nlines"]),
    "block_dims": st.sampled_from([[], [4] * 25, [0, 8] * 12 + [1]]),
    "block_alphas": st.sampled_from([[], [1.5] * 25]),
}
LEFT_OUT = {"mixed_precision": "no", "train_data_dir": "", "output_dir": "outputs"}
ANY = {
    key: OWN_WAYS.get(key, strategy(setting))
    for key, setting in known_settings().items()
    if setting.sd_scripts is not None and setting.show.widget not in PATHS and key not in (*LEFT_OUT, "datasets")
}


def valid(values: dict[str, object]) -> TrainingConfig:
    """Return the configuration of the values that go together."""
    values = {"mixed_precision": "no", **values}
    while True:
        assembled = assemble([values])
        if assembled.config is not None:
            return assembled.config
        wrong = {problem.key for problem in assembled.problems} & values.keys()
        wrong = wrong or {
            key for rule in RULES for key in rule.keys if any(p.key in rule.keys for p in assembled.problems)
        }
        values = {key: value for key, value in values.items() if key not in wrong}


def meant(config: TrainingConfig) -> dict[str, object]:
    """Return what a configuration comes to, whatever it is said by: a part's rate, a network's default."""
    flat = to_flat(config)
    parts = (Part("unet", DENOISER, ""), Part("one", TEXT, ""), Part("two", TEXT, ""))
    kind = flat["network_type"]
    flat["model_family"] = {"sd15": "auto"}.get(str(flat["model_family"]), flat["model_family"])
    if flat["optimizer_type"] == "Adafactor":
        off = {"relative_step=False", "scale_parameter=False"}
        flat["optimizer_args"] = [each for each in flat["optimizer_args"] if each not in off]  # type: ignore[attr-defined]
    for key in ("unet_lr", "text_encoder_lr", "network_train_unet_only", "network_train_text_encoder_only"):
        del flat[key]
    flat["conv_alpha"] = (flat["conv_alpha"] or 1.0) if flat["conv_dim"] else None
    flat["lycoris_preset"] = flat["lycoris_preset"] or (
        "" if kind == "lora" else "attn-mlp" if flat["conv_dim"] is None else "full"
    )
    flat["wd_on_output"] = flat["wd_on_output"] if flat["dora_wd"] else None
    if flat["lr_scheduler"] == "constant" or flat["lr_scheduler_type"]:
        flat["lr_warmup_steps"] = 0
    return {**flat, "rates": rates(config, parts)}


FORMS = [*SHELLS, "toml", "json"]


def goes_round(folder: Path, values: dict[str, object], form: str) -> None:
    """See that a configuration goes out and comes in again as it was, but for what is said to be left out."""
    config = valid(values)
    text, unsaid = written(config, to_kohya(config), form)
    told = "\n".join(untold(config, form))
    path = folder / f"recipe.{form}"
    path.write_text(text, encoding="utf-8")
    found = open_recipe(path)
    report = found.report
    assert (report.wrong, report.unsupported, report.ignored) == ((), (), ()), report
    named = {key for key in known_settings() if f"sd-scripts has no {key} like this" in told}
    left_out = {*named, *unsaid, *report.missing}
    left_out |= {"sample_prompts"} if "takes sample_prompts from a file" in told else set()
    left_out |= {"model_family"} if "only the script says" in told else set()
    left_out |= {"rates"} if {"text_encoder_lr", "unet_lr", "learning_rate"} & {*unsaid} else set()
    before, after = meant(config), meant(found.config)
    assert {key: (before[key], after[key]) for key in before if before[key] != after[key] and key not in left_out} == {}
    assert len(unsaid) <= 12, unsaid


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=12, derandomize=True)
@example(values={"lycoris_preset": "full"})
@example(values={"validation_seed": 0})
@example(values={"model_family": "flux", "network_type": "locon", "timestep_sampling": "sigma"})
@example(values={"model_family": "flux", "model_prediction_type": "sigma_scaled"})
@example(values={"model_family": "flux", "train_t5xxl": True})
@example(values={"text_encoder_lr": [1e-4, 0.0], "seed": 0, "prior_loss_weight": 0.0})
@given(values=st.fixed_dictionaries({}, optional=ANY))
def test_any_configuration_goes_out_and_comes_in_again(
    tmp_path_factory: pytest.TempPathFactory, form: str, values: dict[str, object]
) -> None:
    goes_round(tmp_path_factory.mktemp("round"), values, form)


def test_kohya_ss_form_has_the_box_and_the_fields_of_flux() -> None:
    config = valid({"model_family": "flux", "split_qkv": True, "guidance_scale": 2.0})
    text, unsaid = written(config, to_kohya(config), "json")
    form = json.loads(text)
    assert (form["flux1_checkbox"], form["LoRA_type"], form["split_qkv"], form["guidance_scale"]) == (
        True,
        "Flux1",
        True,
        2.0,
    )
    assert unsaid == ()


@pytest.mark.thorough
@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=500, derandomize=True)
@given(values=st.fixed_dictionaries({}, optional=ANY))
def test_five_hundred_configurations_go_out_and_come_in_again(
    tmp_path_factory: pytest.TempPathFactory, form: str, values: dict[str, object]
) -> None:
    goes_round(tmp_path_factory.mktemp("round"), values, form)


@settings(deadline=None, max_examples=60)
@given(st.fixed_dictionaries({}, optional=VALUES), st.sampled_from([*SHELLS, "toml"]))
def test_what_goes_out_comes_in_again(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object], shell: str
) -> None:
    config = load_config(None, {"mixed_precision": "no", **values})
    family = str(values.get("model_family", ""))
    path = tmp_path_factory.mktemp("out") / f"recipe.{shell}"
    unsaid: tuple[str, ...] = ()
    if shell == "toml":
        text = "\n".join(f"{key} = {encoded(value)}" for key, value in to_kohya(config).items())
    else:
        text, unsaid = command_line(to_kohya(config), shell, family)
    path.write_text(text, encoding="utf-8")
    found = open_recipe(path)
    assert (found.report.wrong, found.report.unsupported, found.report.ignored) == ((), (), ())
    left_out = {*unsaid, *found.report.missing} | ({"model_family"} if shell == "toml" and family == "sdxl" else set())
    before, after = to_flat(config), to_flat(found.config)
    assert {key: after[key] for key in before if key not in left_out} == {
        key: value for key, value in before.items() if key not in left_out
    }
    assert not unsaid or '"' in text or any('"' in str(value) for value in values.values())


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@given(TEXTS)
@settings(deadline=None, max_examples=20)
def test_the_shell_itself_reads_it_so(text: str) -> None:
    line, unsaid = command_line({"caption_prefix": text, "network_args": ["a=1", text], "flip_aug": True}, "sh")
    assert unsaid == ()
    program = f"{shlex.quote(sys.executable)} -c 'import sys; print(ascii(sys.argv[1:]))'"
    call = line.replace("accelerate launch train_network.py", program)
    done = subprocess.run(["sh", "-c", call], capture_output=True, text=True, check=True, encoding="utf-8")
    assert done.stdout.strip() == ascii([f"--caption_prefix={text}", "--network_args", "a=1", text, "--flip_aug"])


def test_what_a_shell_cannot_say_is_named() -> None:
    arguments = {"metadata_description": "two\nlines", "caption_prefix": 'a "b"'}
    assert command_line(arguments, "sh")[1] == ("metadata_description",)
    assert command_line(arguments, "bat")[1] == ("metadata_description", "caption_prefix")
    assert command_line(to_kohya(TrainingConfig()), "ps1")[0].count("`\n") > 10
    assert Path(command_line({}, "sh", "sdxl")[0].split()[2]).name == "sdxl_train_network.py"
