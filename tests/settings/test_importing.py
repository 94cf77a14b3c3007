"""Every kind of recipe opens: what it means is taken over, and the report says what has become of each of its keys."""

from __future__ import annotations

import json
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import toml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.config import TrainingConfig, datasets_of, known_settings, load_config, load_layers, open_recipe, to_flat
from trainer.config.recipes import Opened
from trainer.config.report import Report
from trainer.ground.errors import ConfigError
from trainer.pictures.scan import scan
from trainer.results.metadata import SETTINGS_ENTRY, settings_without_paths
from trainer.settings import importing
from trainer.settings.importing import lora_metadata
from trainer.settings.importing.command_line import read_options
from trainer.settings.importing.shells import BY_ENDING, commands
from trainer.settings.sd_scripts import switches

Open = Callable[[str, str], Opened]

ARGUMENTS_THERE = json.loads((Path(__file__).parents[1] / "data" / "sd_scripts_arguments.json").read_text())
"""Every argument of sd-scripts' LoRA trainer with its default."""


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Return a function that opens a file of this name and text."""

    def open_(name: str, text: str) -> Opened:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return open_recipe(path)

    return open_


def values_of(found: Opened) -> dict[str, object]:
    return to_flat(found.config)


# --- kohya_ss ---------------------------------------------------------------------------------------------------------

KOHYA_SS: dict[str, object] = {
    "LoRA_type": "Standard",
    "additional_parameters": '--log_prefix=xl --max_train_epochs 4 --keep_tokens_separator "|||"',
    "caption_extension": ".txt2",
    "clip_skip": "2",
    "conv_dim": 32,
    "enable_bucket": False,
    "epoch": 16,
    "learning_rate": "0.0003",
    "lr_scheduler_num_cycles": "",
    "lr_warmup": "5",
    "max_grad_norm": 0,
    "max_resolution": "512,650",
    "max_train_steps": "",
    "min_snr_gamma": 5,
    "multires_noise_iterations": 6,
    "network_alpha": 16,
    "network_dim": 32,
    "no_token_padding": False,
    "noise_offset": "0.05",
    "noise_offset_type": "Original",
    "optimizer": "Prodigy",
    "optimizer_args": '"decouple=True" "weight_decay=0.01"',
    "pretrained_model_name_or_path": "D:/models/somebody.safetensors",
    "prior_loss_weight": 1.0,
    "seed": "1234",
    "sdxl": True,
    "sdxl_no_half_vae": True,
    "text_encoder_lr": 0.0003,
    "unet_lr": 0.0003,
    "xformers": True,
}


@pytest.mark.parametrize("box", ["sd3_checkbox", "lumina_checkbox"])
def test_a_form_for_another_model_is_refused_for_the_box_that_says_so(opened: Open, box: str) -> None:
    report = opened("form.json", json.dumps({"LoRA_type": "Standard", "network_dim": 8, box: True})).report
    assert [(each.key, each.value) for each in report.unsupported] == [(box, True)]
    assert not {box, "LoRA_type"} & {*report.unused, *report.off, *report.ignored}


def test_a_form_of_kohya_ss_means_what_its_own_code_makes_of_it(opened: Open) -> None:
    found = opened("preset.json", json.dumps(KOHYA_SS))
    values = values_of(found)
    expected = {
        "caption_extension": ".txt2",
        "clip_skip": 2,
        "conv_dim": None,  # a Standard LoRA is written without it
        "enable_bucket": False,
        "keep_tokens_separator": "|||",
        "learning_rate": 0.0003,
        "lr_scheduler": "cosine",  # what the form holds
        "lr_warmup_steps": 0.05,
        "max_grad_norm": 1.0,  # it leaves a 0 out
        "max_train_epochs": 4,  # what is typed by hand beats the form
        "max_train_steps": None,
        "min_snr_gamma": 5.0,
        "multires_noise_iterations": None,  # the noise offset is the chosen one
        "mixed_precision": "fp16",
        "model_family": "sdxl",
        "network_alpha": 16.0,
        "network_dim": 32,
        "no_half_vae": True,
        "noise_offset": 0.05,
        "optimizer_args": ["decouple=True", "weight_decay=0.01"],
        "optimizer_type": "Prodigy",
        "resolution": "512,648",
        "save_every_n_epochs": 1,
        "seed": 1234,
        "text_encoder_lr": [0.0003, 0.0003],
        "unet_lr": 0.0003,
    }
    assert {key: values[key] for key in expected} == expected
    assert (found.report.wrong, found.report.unsupported) == ((), ())


def told_of(report: Report) -> set[str]:
    """Return the keys that a report names; each has one place."""
    told = [
        *report.taken,
        *report.unused,
        *report.off,
        *report.ignored,
        *dict.fromkeys(each.key for each in report.said),
    ]
    told += [problem.key for problem in report.unsupported]
    assert len(told) == len(set(told)), [key for key in told if told.count(key) > 1]
    return {*told, *report.missing, *(problem.key for problem in report.wrong)}


KINDS_OF_FIELDS = {
    "LyCORIS/LoKr": {
        "factor": 6,
        "use_cp": False,
        "use_tucker": True,
        "decompose_both": True,
        "LyCORIS_preset": "full",
    },
    "LyCORIS/LoHa": {"use_tucker": True, "use_cp": False, "dora_wd": True, "rank_dropout": 0.1, "train_norm": True},
    "LyCORIS/Diag-OFT": {"constrain": 0.5, "rescaled": True, "conv_dim": 100000, "rank_dropout_scale": True},
    "Kohya LoCon": {"conv_dim": 8, "conv_alpha": 4, "block_dims": "4,4", "use_tucker": True},
    "Kohya LoKr": {"conv_dim": 0, "factor": -1, "use_tucker": True, "block_dims": "4,4"},
    "Kohya DyLoRA": {"unit": 4, "module_dropout": 0.1},
}


@pytest.mark.parametrize("kind", KINDS_OF_FIELDS)
def test_what_is_inside_the_networks_arguments_is_told_by_the_names_of_the_form(opened: Open, kind: str) -> None:
    given = {**KOHYA_SS, **KINDS_OF_FIELDS[kind], "LoRA_type": kind}
    found = opened("preset.json", json.dumps(given))
    of_the_kind = {key for key in given for problem in found.report.unsupported if f"{key}=" in problem.message}
    assert set(given) - told_of(found.report) - of_the_kind == set()
    assert "network_args" not in "\n".join(found.report.lines()).replace("Its network_args", "")
    if "Tucker" not in kind and KINDS_OF_FIELDS[kind].get("use_tucker") and kind.startswith("LyCORIS"):
        assert values_of(found)["use_tucker"] is True
        assert "use_cp" in report_of_off(found)


def of_form(given: dict[str, object]) -> dict[str, object]:
    """Return the arguments of sd-scripts that a form becomes."""
    _, recipe = importing.read(importing.Source(Path("preset.json"), json.dumps(given)), known_settings())
    return recipe.flat


def test_the_fields_for_flux_count_where_its_box_is_ticked() -> None:
    own = {
        "LoRA_type": "Flux1",
        "ae": "/models/ae.safetensors",
        "flux1_cache_text_encoder_outputs": True,
        "guidance_scale": 1.0,
        "img_attn_dim": 4,
        "sdxl": False,
        "t5xxl": "/models/t5.safetensors",
    }
    given = {**KOHYA_SS, **own, "flux1_checkbox": True}
    flat = of_form(given)
    expected = {
        "ae": "/models/ae.safetensors",
        "cache_text_encoder_outputs": True,
        "discrete_flow_shift": 3.0,
        "guidance_scale": 1.0,
        "model_prediction_type": "sigma_scaled",
        "network_module": "networks.lora_flux",
        "t5xxl_max_token_length": 512,
        "timestep_sampling": "sigma",
    }
    assert {key: flat[key] for key in expected} == expected
    inside = ["img_attn_dim=4", "train_double_block_indices=all", "train_single_block_indices=all"]
    assert sorted(flat["network_args"]) == inside  # type: ignore[call-overload]
    assert "max_token_length" not in flat
    _, without = importing.read(
        importing.Source(Path("preset.json"), json.dumps({**KOHYA_SS, **own})), known_settings()
    )
    assert not {"ae", "t5xxl", "guidance_scale"} & {*without.flat}


def report_of_off(found: Opened) -> tuple[str, ...]:
    return (*found.report.off, *found.report.unused)


def test_every_key_of_a_form_is_told_of(opened: Open) -> None:
    report = opened("preset.json", json.dumps(KOHYA_SS)).report
    assert set(KOHYA_SS) - told_of(report) == set()
    assert dict(report.missing) == {"pretrained_model_name_or_path": "D:/models/somebody.safetensors"}
    assert report.assumed["max_data_loader_n_workers"] == 0
    said = {each.key: dict(each.becomes) for each in report.said}
    assert said["max_resolution"] == {"resolution": "512,648"}
    assert said["max_grad_norm"] == {"max_grad_norm": 1.0}
    assert "conv_dim" in report.unused


def test_a_form_without_a_length_has_the_one_of_the_form(opened: Open) -> None:
    given = {key: value for key, value in KOHYA_SS.items() if key not in ("max_train_steps", "additional_parameters")}
    found = opened("preset.json", json.dumps(given))
    assert values_of(found)["max_train_steps"] == 1600
    assert any("epoch 16, without effect there, since max_train_steps is 1600" in line for line in found.report.lines())
    found = opened("preset.json", json.dumps({**given, "max_train_steps": 0}))
    assert (values_of(found)["max_train_epochs"], values_of(found)["max_train_steps"]) == (16, None)


@pytest.mark.parametrize(
    ("given", "name"), [({}, "AdamW"), ({"use_8bit_adam": True}, "AdamW8bit"), ({"optimizer": "Lion"}, "Lion")]
)
def test_a_form_of_old_times_has_its_optimizer(opened: Open, given: dict[str, object], name: str) -> None:
    old = {"LoRA_type": "Standard", "max_resolution": "512,512"}
    assert values_of(opened("preset.json", json.dumps({**old, **given})))["optimizer_type"] == name


@pytest.mark.parametrize(
    ("rates", "only"),
    [((0, 1e-4), "network_train_unet_only"), ((1e-4, 0), "network_train_text_encoder_only"), ((1e-4, 1e-4), "")],
)
def test_a_rate_of_zero_leaves_that_part_alone(opened: Open, rates: tuple[float, float], only: str) -> None:
    given = {"LoRA_type": "Standard", "max_resolution": "512,512", "text_encoder_lr": rates[0], "unet_lr": rates[1]}
    values = values_of(opened("preset.json", json.dumps(given)))
    both = ("network_train_unet_only", "network_train_text_encoder_only")
    assert [key for key in both if values[key]] == [only] * bool(only)


def test_another_kind_of_lora_is_refused_for_its_kind_alone(opened: Open) -> None:
    given = {"LoRA_type": "Kohya DyLoRA", "max_resolution": "512,512", "unit": 4, "rank_dropout": 0.1}
    report = opened("preset.json", json.dumps(given)).report
    (problem,) = report.unsupported
    assert problem.key == "LoRA_type"
    assert "unit=4" in problem.message
    assert not any("rank_dropout" in key for key in (*report.unused, *report.ignored))


def test_the_terminal_trains_from_a_form_and_says_what_it_took(tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    path.write_text(json.dumps({**KOHYA_SS, "pretrained_model_name_or_path": ""}))
    assembled = load_layers(path, {"network_dim": 4})
    assert assembled.problems == ()
    assert assembled.config is not None
    assert (assembled.config.network.network_dim, assembled.config.loss.min_snr_gamma) == (4, 5.0)
    assert "Read as a JSON file of kohya_ss." in assembled.notices
    assert any("512,648" in notice for notice in assembled.notices)


# --- command lines ----------------------------------------------------------------------------------------------------

SH = """#!/bin/bash
# accelerate launch train_network.py --network_dim=1
MODEL="/models/my model.safetensors"
accelerate launch --num_cpu_threads_per_process 1 sd-scripts/sdxl_train_network.py \\
  --pretrained_model_name_or_path="$MODEL" --network_dim 16 \\
  --network_args "conv_dim=4" "conv_alpha=2" --optimizer_args 'weight_decay=0.1' \\
  --caption_prefix 'a $5 note' --xformers --learning_rate=1e-4 && echo done
"""
BAT = """@echo off
set MODEL=C:\\models\\my model.safetensors
accelerate launch ^
  .\\sd-scripts\\sdxl_train_network.py ^
  --pretrained_model_name_or_path="%MODEL%" --network_dim=16 ^
  --network_args "conv_dim=4" "conv_alpha=2" --optimizer_args weight_decay=0.1 ^
  --caption_prefix "a $5 note" --xformers --learning_rate=1e-4
pause
"""
PS1 = """$model = "/models/my model.safetensors" # the base
$ext_args = [System.Collections.ArrayList]::new()
accelerate launch "./sd-scripts/sdxl_train_network.py" `
  --pretrained_model_name_or_path=$model --network_dim=16 `
  --network_args "conv_dim=4" "conv_alpha=2" --optimizer_args weight_decay=0.1 `
  --caption_prefix 'a $5 note' --xformers --learning_rate=1e-4 $ext_args
"""


@pytest.mark.parametrize(
    ("name", "text", "model"),
    [
        ("train.sh", SH, "/models/my model.safetensors"),
        ("pasted.txt", SH, "/models/my model.safetensors"),
        ("train.bat", BAT, "C:\\models\\my model.safetensors"),
        ("train.ps1", PS1, "/models/my model.safetensors"),
    ],
)
def test_a_command_line_is_read_as_its_shell_reads_it(opened: Open, name: str, text: str, model: str) -> None:
    found = opened(name, text)
    expected = {
        "caption_prefix": "a $5 note",
        "conv_alpha": 2.0,
        "conv_dim": 4,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "model_family": "sdxl",
        "network_dim": 16,
        "optimizer_args": ["weight_decay=0.1"],
    }
    assert {key: values_of(found)[key] for key in expected} == expected
    assert dict(found.report.missing) == {"pretrained_model_name_or_path": model}
    assert "xformers" in found.report.unused
    assert (found.report.wrong, found.report.unsupported) == ((), ())
    assert any("$ext_args" in remark for remark in found.report.remarks) == (name == "train.ps1")


def test_a_command_line_lies_over_its_config_file(tmp_path: Path, opened: Open) -> None:
    (tmp_path / "base.toml").write_text('network_dim = 8\nnetwork_alpha = 4\noutput_name = "x"\n')
    found = opened("train.sh", "python train_network.py --config_file=base.toml --network_dim=16\n")
    values = values_of(found)
    assert (values["network_dim"], values["network_alpha"], values["output_name"]) == (16, 4.0, "x")
    found = opened("train.sh", "python train_network.py --config_file=gone --network_dim=16\n")
    assert [problem.key for problem in found.report.wrong] == ["config_file"]


def test_a_variable_that_the_file_does_not_set_is_that_arguments_problem(opened: Open) -> None:
    found = opened("train.sh", "python train_network.py --output_name=$NAME --network_dim=16\n")
    assert [problem.key for problem in found.report.wrong] == ["output_name"]
    assert values_of(found)["network_dim"] == 16


SCRIPT_OF_LISTS = """ext=()
if [[ $v2 == 1 ]]; then ext+=("--v2"); fi
python -m accelerate.commands.launch ${launch[@]} "./sd-scripts/train_network.py" \\
  --network_dim=16 --caption_extension=txt --shuffle_caption ${ext[@]}
"""
SCRIPT_OF_REMARKS = """rem train_network.py --network_dim=1
REM python train_network.py --network_dim=2
set "NAME=cat"
set "PROJECT=%NAME%_2"
venv\\Scripts\\python train_network.py ^
\t--output_name="%PROJECT%" --network_args "conv_dim=4"^
\t--network_dim=16 --caption_extension=txt
"""


@pytest.mark.parametrize(("name", "text"), [("a.sh", SCRIPT_OF_LISTS), ("a.bat", SCRIPT_OF_REMARKS)])
def test_scripts_as_people_write_them(opened: Open, name: str, text: str) -> None:
    found = opened(name, text)
    values = values_of(found)
    assert (values["network_dim"], values["caption_extension"]) == (16, ".txt")
    assert (found.report.wrong, found.report.unsupported) == ((), ())
    if name == "a.bat":
        assert (values["output_name"], values["conv_dim"]) == ("cat_2", 4)
    else:
        assert values["shuffle_caption"] is True
        assert [remark.split()[0] for remark in found.report.remarks] == ["${launch[@]}", "${ext[@]}"]


def test_a_trainer_for_other_models_is_named(opened: Open) -> None:
    found = opened("a.sh", "python hunyuan_train_network.py --network_dim 8\n")
    assert [problem.key for problem in found.report.wrong] == ["hunyuan_train_network.py"]


def test_json_of_an_unknown_program_is_told_apart_from_broken_toml(opened: Open) -> None:
    with pytest.raises(ConfigError, match="it is JSON, but of no program"):
        opened("a.json", '{"lora_type": "standard", "lora_rank": 8}')


def test_options() -> None:
    found = read_options(["--qa", "1", "--qb=2", "--qc", "--qd", "x", "y", "--qe=", "--qf"], known_settings())
    assert found.flat == {"qa": "1", "qb": "2", "qc": True, "qd": ["x", "y"], "qe": "", "qf": True}
    assert found.problems == []


def test_switches_are_those_of_its_parser() -> None:
    alone = switches(known_settings())
    assert {key for key, default in ARGUMENTS_THERE.items() if default is False} <= alone
    assert not {key for key, default in ARGUMENTS_THERE.items() if default is not False} & alone


@pytest.mark.parametrize(
    "text", ["--network_dim --seed 1", "--network_dim=$DIM --seed 1", "--network_dim $DIM --seed 1"]
)
def test_a_value_that_is_missing_or_not_known_is_that_arguments_problem(opened: Open, text: str) -> None:
    for name, written in (("a.sh", text), ("a.ps1", text), ("a.bat", re.sub(r"\$(\w+)", r"%\1%", text))):
        found = opened(name, f"python train_network.py --output_name=x {written} --network_alpha 2\n")
        (problem,) = found.report.wrong
        assert problem.key == "network_dim"
        assert ("has no value" in problem.message) == ("DIM" not in text)
        assert ("DIM" in problem.message) == ("DIM" in text)
        values = values_of(found)
        assert (values["seed"], values["network_alpha"], values["network_dim"]) == (1, 2.0, 4), "the default there"


def test_an_argument_may_be_cut_short_where_it_can_be_told(opened: Open) -> None:
    found = opened("a.sh", "python train_network.py --max_train_epoch 50 --network_di 8 --save_every_n 2\n")
    values = values_of(found)
    assert (values["max_train_epochs"], values["network_dim"]) == (50, 8)
    assert [problem.key for problem in found.report.wrong] == ["save_every_n"]
    assert "--max_train_epoch, short for max_train_epochs" in "\n".join(found.report.lines())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.sh", "python train_network.py --output_name='cat \\\n  --network_dim=8\n"),
        ("a.sh", 'cd x\npython train_network.py --output_name="cat --network_dim=8\n'),
        ("a.ps1", 'python train_network.py --output_name="cat --network_dim=8\n'),
        ("a.bat", 'python train_network.py --output_name="cat ^\n --network_dim=8\n'),
        ("pasted.txt", "What I've run:\npython train_network.py --output_name='cat --network_dim=8\n"),
    ],
)
def test_a_quote_that_is_never_closed_is_told_with_its_line(opened: Open, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"line {1 if text.startswith('python') else 2}: the quote . that opens"):
        opened(name, text)


def test_a_text_around_a_pasted_call_is_passed_over(opened: Open) -> None:
    found = opened("a.txt", "That's what I run:\n\npython train_network.py --network_dim 8 --seed 3\n")
    assert (values_of(found)["network_dim"], values_of(found)["seed"]) == (8, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hello\n", "no call of train_network.py"),
        ("python sdxl_train.py --learning_rate 1e-5\n", "calls sdxl_train.py, which trains no LoRA"),
        ("python train_network.py\n", "no call of train_network.py"),
    ],
)
def test_a_script_without_a_call_says_so(opened: Open, text: str, words: str) -> None:
    for ending in BY_ENDING:
        with pytest.raises(ConfigError, match=words):
            opened(f"a{ending}", text)


WORDS = {
    "lists": ('A=(\n  --x=1\n  "--y=b c"  # why\n)\nA+=(--z)\nrun "${A[@]}" $B\n', ["--x=1", "--y=b c", "--z", "$B"]),
    "words of a text": ('A="--x 1 --y 2"\nrun $A "$A"\n', ["--x", "1", "--y", "2", "--x 1 --y 2"]),
    "otherwise": ("run ${A:-7} ${A%x} $(date) `date` $1 $@ $HOME\n",
                  ["7", "${A%x}", "$(date)", "`date`", "$1", "$@", "$HOME"]),
    "conditions": ("A=1\nif [ $X ]; then A=2; fi\nB=3\nrun $A $B\n", ["$A", "3"]),
    "two lines": ('run "a\nb" c\\\n d > log.txt 2>&1 && run e\n', ["a\nb", "c", "d"]),
    "empty": ('A=""\nE=()\nrun --x="$A" "$A" $A ${E[@]} "${E[@]}" b\n', ["--x=", "", "b"]),
    "a text for a command": ("cat <<EOF\nit's $5\nEOF\nA=1; run $A\n", ["1"]),
    "%": ("set A=x y\nset \"B=%A% z\"\nrun %B% \"%B%\" 5%% %C% %~dp0m\n",
          ["x", "y", "z", "x y z", "5%", "%C%", "%~dp0m"]),
    "if": ("set A=1\nif exist q set A=2\nif exist q (\nset B=3\n)\nset C=4\nrun %A% %B% %C%\n", ["%A%", "%B%", "4"]),
    "late": ("setlocal EnableDelayedExpansion\nset A=1\nrun !A! %A% wow!\n", ["1", "1", "wow!"]),
    "$": ("$a = 16 # why\n$b = \"$a x\"\n$c = @('p')\nif ($q) {\n$a = 3\n}\nrun $a $b \"$b\" $c @c $env:Z\n",
          ["$a", "16 x", "16 x", "$c", "@c", "$env:Z"]),
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize("name", WORDS)
def test_scripts_are_read_as_their_shell_reads_them(name: str) -> None:
    text, expected = WORDS[name]
    shell = BY_ENDING[".bat" if "set" in text.lower().split("\n")[0] else ".ps1" if name == "$" else ".sh"]
    found = next(words for words in commands(text, shell) if words and words[0].text == "run")
    assert [word.text for word in found[1:]] == expected
    unknown = [word.text for word in found[1:] if word.unknown]
    assert unknown == [text for text in expected if re.match(r"[$`@]|%[C~A-B]", text)]
    if name in ("lists", "words of a text", "two lines", "empty", "a text for a command"):
        program = f"run() {{ {shlex.quote(sys.executable)} -c 'import sys; print(ascii(sys.argv[1:]))' \"$@\"; }}\n"
        said = subprocess.run(["bash", "-c", program + text.replace(" > log.txt 2>&1 && run e", "")],
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert said.stdout.splitlines()[-1] == ascii([text for text in expected if text != "$B"])


# --- TOML -------------------------------------------------------------------------------------------------------------

EASY = """
[train_mode]
train_mode = "lora"

[[subsets]]
image_dir = "/pictures/dog"
num_repeats = 10
shuffle_caption = true
keep_tokens = 1

[[subsets]]
image_dir = "/pictures/cat"
num_repeats = 5
shuffle_caption = true
keep_tokens = 2

[general_args.args]
pretrained_model_name_or_path = "/models/base.safetensors"
mixed_precision = "bf16"
max_train_epochs = 6
sdxl = true

[general_args.dataset_args]
resolution = 1024
batch_size = 2

[network_args.args]
network_dim = 16
network_alpha = 8.0

[network_args.args.network_args]
conv_dim = 4

[optimizer_args.args]
optimizer_type = "AdamW8bit"
learning_rate = 0.0002
lr_scheduler = "cosine"
warmup_ratio = 0.1

[optimizer_args.args.optimizer_args]
weight_decay = "0.1"

[bucket_args.dataset_args]
enable_bucket = true
max_bucket_reso = 2048
"""


def test_nested_tables_of_lora_easy_training_scripts(opened: Open) -> None:
    found = opened("easy.toml", EASY)
    expected = {
        "conv_dim": 4,
        "enable_bucket": True,
        "learning_rate": 0.0002,
        "lr_warmup_steps": 0.1,
        "max_bucket_reso": 2048,
        "max_train_epochs": 6,
        "model_family": "sdxl",
        "network_dim": 16,
        "optimizer_args": ["weight_decay=0.1"],
        "optimizer_type": "AdamW8bit",
        "resolution": "1024,1024",
        "train_batch_size": 2,
    }
    assert {key: values_of(found)[key] for key in expected} == expected
    (dataset,) = found.config.dataset.datasets
    assert [subset["keep_tokens"] for subset in dataset["subsets"]] == [1, 2]
    assert found.report.wrong == ()
    assert sum("Not on this computer" in remark for remark in found.report.remarks) == 2


DATASETS = """
[general]
enable_bucket = true
caption_extension = ".txt"
resolution = 512
shuffle_caption = false

[[datasets]]
resolution = 768
shuffle_caption = false
caption_prefix = "x"
batch_size = 4

  [[datasets.subsets]]
  image_dir = "/pictures/dog"
  num_repeats = 10
  class_tokens = "sks dog"
  keep_tokens = 1
  caption_prefix = "a"

  [[datasets.subsets]]
  image_dir = "/pictures/reg"
  is_reg = true
  keep_tokens = 2
  flip_aug = false
  caption_prefix = "a"
"""


@pytest.mark.parametrize("way", ["inside", "beside", "on the command line"])
def test_datasets_are_read_with_what_they_inherit(tmp_path: Path, opened: Open, way: str) -> None:
    (tmp_path / "d.toml").write_text(DATASETS)
    rest = 'network_module = "networks.lora"\nnetwork_dim = 8\nresolution = "512"\n'
    texts = {
        "inside": ("run.toml", rest.replace('resolution = "512"\n', "") + DATASETS),
        "beside": ("run.toml", rest + 'dataset_config = "d.toml"\n'),
        "on the command line": ("a.sh", "train_network.py --network_dim 8 --resolution 512 --dataset_config d.toml\n"),
    }
    found = opened(*texts[way])
    assert values_of(found)["network_dim"] == 8
    (dataset,) = datasets_of(found.config)
    assert dataset.config.dataset.resolution == "768,768" and dataset.config.training.train_batch_size == 4
    told = [(each.image_dir, each.num_repeats, each.class_tokens, each.is_reg) for each in dataset.subsets]
    assert told == [("/pictures/dog", 10, "sks dog", False), ("/pictures/reg", 1, "", True)]
    captions = [each.config.captions for each in dataset.subsets]
    assert [(each.caption_prefix, each.keep_tokens, each.caption_extension) for each in captions] == [
        ("a", 1, ".txt"),
        ("a", 2, ".txt"),
    ]
    assert found.report.wrong == () and found.report.unsupported == ()
    assert sum("Not on this computer" in remark for remark in found.report.remarks) == 2


def test_folders_beside_datasets_are_passed_over_as_sd_scripts_does(tmp_path: Path, opened: Open) -> None:
    (tmp_path / "dog").mkdir()
    subset = f"[[datasets.subsets]]\nimage_dir = '{tmp_path / 'dog'}'\nface_crop_aug_range = [2.0, 4.0]\n"
    text = f"network_module = 'networks.lora'\ntrain_data_dir = '{tmp_path}'\n[[datasets]]\nresolution = 512\n"
    found = opened("d.toml", text + subset)
    assert values_of(found)["train_data_dir"] == "" and "train_data_dir" in found.report.unused
    (problem,) = found.report.unsupported
    assert problem.key == "datasets" and "dataset 1, subset 1: face_crop_aug_range" in problem.message
    assert "cut the faces out beforehand" in problem.message
    assert found.config.dataset.datasets[0]["subsets"] == [{"image_dir": str(tmp_path / "dog")}]


def test_a_folder_that_a_run_makes_is_no_path_of_another_computer(tmp_path: Path, opened: Open) -> None:
    common = 'network_module = "networks.lora"\n'
    for folder in ("outputs/cat", "loras", str(tmp_path / "new" / "deep")):
        found = opened("run.toml", f"{common}output_dir = '{folder}'\n")
        assert (values_of(found)["output_dir"], dict(found.report.missing)) == (folder, {})
    for folder in ("/nowhere-at-all/loras", "D:\\loras\\cat" if sys.platform != "win32" else "/workspace/loras"):
        found = opened("run.toml", f"{common}output_dir = '{folder}'\n")
        assert dict(found.report.missing) == {"output_dir": folder}


@pytest.mark.parametrize(("step", "rounded"), [(1, 8), (20, 16), (64, 64)])
def test_steps_of_buckets_that_the_vae_cannot_hold_are_rounded_and_said(opened: Open, step: int, rounded: int) -> None:
    found = opened("run.toml", f'network_module = "networks.lora"\nbucket_reso_steps = {step}\n')
    assert values_of(found)["bucket_reso_steps"] == rounded
    assert any("bucket_reso_steps" in line and "VAE" in line for line in found.report.lines()) == (step != rounded)


def test_a_file_of_datasets_alone_opens_in_both_its_forms(opened: Open) -> None:
    tables = {"general": {"resolution": 512}, "datasets": [{"batch_size": 4, "subsets": [{"image_dir": "/p"}]}]}
    unable = {"face_crop_aug_range": [2.0, 4.0], "image_dir": "/p"}
    written = toml.dumps({"general": {"resolution": 512}, "datasets": tables["datasets"]})
    for name, text in (("d.json", json.dumps(tables)), ("d.toml", written)):
        found = opened(name, text)
        assert [each.config.dataset.resolution for each in datasets_of(found.config)] == ["512,512"]
        assert datasets_of(found.config)[0].config.training.train_batch_size == 4
        assert any("/p" in remark for remark in found.report.remarks)
    found = opened("d.json", json.dumps({"datasets": [{"subsets": [unable]}]}))
    assert (
        "  dataset 1, subset 1: face_crop_aug_range [2.0, 4.0]; cut the faces out beforehand." in found.report.lines()
    )


@pytest.mark.parametrize(("length", "meant"), [(255, 225), (150, 150), (200, 150), (100, 75), (225, 225)])
def test_texts_are_as_long_as_sd_scripts_cuts_them(opened: Open, length: int, meant: int) -> None:
    found = opened("sd.toml", f'network_module = "networks.lora"\nmax_token_length = {length}\n')
    assert (found.config.model.max_token_length, found.report.wrong) == (meant, ())
    assert any(each.key == "max_token_length" for each in found.report.said) == (length != meant)


def test_what_is_said_otherwise_twice_is_told_with_what_it_is_in_the_end(opened: Open) -> None:
    form = {**KOHYA_SS, "max_resolution": "512,650", "enable_bucket": False, "additional_parameters": ""}
    found = opened("form.json", json.dumps(form))
    (said,) = [each for each in found.report.said if "resolution" in each.becomes]
    assert (said.key, said.before, said.becomes) == ("max_resolution", "512,650", {"resolution": "512,648"})
    assert said.why == "the VAE drops what is left over of 8 pixels"


def test_our_own_file_opens_as_it_is_and_keeps_its_paths(opened: Open) -> None:
    found = opened("run.toml", '[network]\nnetwork_dim = 8\n[saving]\noutput_dir = "/gone/away/x"\n')
    assert found.config == load_config(None, {"network_dim": 8, "output_dir": "/gone/away/x"})
    assert set(found.report.taken) == {"network_dim", "output_dir"}
    assert (found.report.missing, found.report.wrong, found.report.unsupported) == ({}, (), ())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.toml", "network_dim = 8\nseed = 'x'\n"),
        ("sd.toml", "network_module = 'networks.lora'\nnetwork_dim = 8\nseed = 'x'\n"),
        ("easy.toml", "[network_args.args]\nnetwork_dim = 8\nseed = 'x'\n"),
        ("train.sh", "python train_network.py --network_dim 8 --seed x\n"),
        (
            "preset.json",
            json.dumps({**KOHYA_SS, "network_dim": 8, "train_batch_size": "x", "additional_parameters": ""}),
        ),
    ],
)
def test_one_wrong_value_keeps_nothing_else_out(opened: Open, name: str, text: str) -> None:
    found = opened(name, text)
    (problem,) = found.report.wrong
    assert problem.key in ("seed", "train_batch_size")
    assert values_of(found)["network_dim"] == 8
    assert values_of(found)[problem.key] == to_flat(TrainingConfig())[problem.key]


def test_a_value_that_does_not_go_with_a_default_is_left_out_too(opened: Open) -> None:
    found = opened("run.toml", "resolution = 128\nbucket_no_upscale = false\nnetwork_dim = 8\n")
    assert {problem.key for problem in found.report.wrong} == {"min_bucket_reso", "resolution", "bucket_no_upscale"}
    assert found.config == load_config(None, {"network_dim": 8})


# --- LoRA files -------------------------------------------------------------------------------------------------------


def lora(path: Path, metadata: dict[str, str]) -> Path:
    """Write a safetensors file that holds metadata and one number."""
    header = json.dumps(
        {"__metadata__": metadata, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return path


def test_a_lora_of_sd_scripts_tells_how_it_was_trained(tmp_path: Path) -> None:
    stored = Path(__file__).parents[1] / "data" / "lora_metadata_sd15.json"
    metadata = json.loads(stored.read_text(encoding="utf-8"))
    metadata["ss_network_args"] = '{"conv_dim": "4", "conv_alpha": "1", "dropout": null}'
    metadata["ss_optimizer"] = "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))"
    found = open_recipe(lora(tmp_path / "kohya.safetensors", metadata))
    expected = {
        "clip_skip": 2,
        "conv_alpha": 1.0,
        "conv_dim": 4,
        "keep_tokens": 1,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "max_bucket_reso": 512,
        "max_train_steps": 40,
        "model_family": "sd15",
        "network_alpha": 4.0,
        "network_dim": 8,
        "optimizer_args": ["weight_decay=0.1", "betas=(0.9, 0.99)"],
        "optimizer_type": "AdamW8bit",
        "resolution": "256,256",
        "seed": 42,
        "shuffle_caption": True,
        "text_encoder_lr": 1e-4,
        "train_batch_size": 1,
    }
    assert {key: values_of(found)[key] for key in expected} == expected
    assert (found.report.wrong, found.report.unsupported) == ((), ())
    assert any("4_tok class, 12 pictures, 4 repeats" in remark for remark in found.report.remarks)
    assert any("tiny-sd15" in remark for remark in found.report.remarks)


def test_a_lora_of_ours_opens_its_own_settings(tmp_path: Path) -> None:
    config = load_config(
        None, {"network_dim": 8, "min_snr_gamma": 5.0, "save_every_n_epochs": 0, "train_data_dir": "x"}
    )
    entry = {lora_metadata.SETTINGS_ENTRY: json.dumps(settings_without_paths(config))}
    assert lora_metadata.SETTINGS_ENTRY == SETTINGS_ENTRY
    found = open_recipe(lora(tmp_path / "ours.safetensors", entry))
    assert settings_without_paths(found.config) == settings_without_paths(config)


def test_a_lora_of_several_datasets_opens_them_without_their_folders(tmp_path: Path) -> None:
    told = json.loads((Path(__file__).parents[1] / "data" / "golden_datasets.json").read_text(encoding="utf-8"))
    run = told["whole_run"]
    metadata = {**run["metadata"], "ss_network_module": "networks.lora", "ss_datasets": json.dumps(run["ss_datasets"])}
    opened = open_recipe(lora(tmp_path / "kohya.safetensors", metadata))
    found = datasets_of(opened.config)
    assert [(each.config.dataset.resolution, each.config.training.train_batch_size) for each in found] == [
        ("128,128", 2),
        ("256,256", 1),
    ]
    assert [each.config.dataset.min_bucket_reso for each in found] == [64, 64]
    subsets = [subset for each in found for subset in each.subsets]
    assert [(each.num_repeats, each.is_reg) for each in subsets] == [(2, False), (1, True), (1, False)]
    captions = subsets[2].config.captions
    assert (captions.shuffle_caption, captions.keep_tokens, captions.caption_prefix) == (True, 1, "p")
    remarks = "\n".join(opened.report.remarks)
    for line in (
        "Dataset 1, subset 1, pictures: one, 4 pictures, 2 repeats.",
        "Dataset 1, subset 2, regularisation pictures: reg, 2 pictures, 1 repeat.",
        "Dataset 2, subset 1, pictures: two, 3 pictures, 1 repeat.",
        "neither steps of buckets",
    ):
        assert line in remarks
    with pytest.raises(ConfigError, match="dataset 2, subset 1: image_dir is not set"):
        scan(opened.config)


@pytest.mark.parametrize("entry", ["null", "[]", "[[]]", '[{"subsets": []}]', '[{"subsets": [3]}]', "[[", "{}"])
def test_datasets_in_a_lora_that_are_none_are_passed_over(tmp_path: Path, entry: str) -> None:
    metadata = {"ss_network_module": "networks.lora", "ss_datasets": entry}
    assert open_recipe(lora(tmp_path / "kohya.safetensors", metadata)).config.dataset.datasets == ()


@pytest.mark.parametrize("metadata", [{}, {"ss_sd_model_name": "x"}])
def test_a_lora_without_a_word_on_its_training_says_so(tmp_path: Path, metadata: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="tells nothing of its training"):
        open_recipe(lora(tmp_path / "mute.safetensors", metadata))
    (tmp_path / "torn.safetensors").write_bytes(b"\x08")
    with pytest.raises(ConfigError, match="damaged"):
        open_recipe(tmp_path / "torn.safetensors")


# --- others -----------------------------------------------------------------------------------------------------------


ONE_TRAINER: dict[str, object] = {
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_XL_10_BASE",
    "lora_rank": 24,
    "lora_alpha": 8.0,
    "epochs": 5,
    "resolution": "768,1024",
    "learning_rate": 0.0003,
    "learning_rate_scheduler": "COSINE",
    "learning_rate_warmup_steps": 50.0,
    "optimizer": {"optimizer": "ADAMW_8BIT", "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "fused": True},
    "output_model_destination": "models/cat.safetensors",
    "text_encoder": {"train": False, "weight_dtype": "FLOAT_16"},
    "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 5.0,
    "train_dtype": "BFLOAT_16",
    "ema": "GPU",
    "debug_mode": False,
}

TOOLKIT = """---
job: extension
config:
  name: "my dog"  # the file's name
  process:
    - type: 'sd_trainer'
      training_folder: "output"
      network: {type: lora, linear: 24, linear_alpha: 8, conv: 4}
      save:
        dtype: float16
        save_every: 250
        max_step_saves_to_keep: 3
      datasets:
        - folder_path: "/path/to/dogs"
          caption_ext: "txt"
          resolution: [ 768, 1024 ]
          shuffle_tokens: true
          mask_path: "/path/to/masks"
          num_repeats: 3
        - {folder_path: "/path/to/cats", is_reg: true, buckets: false, odd: 1}
      trigger_word: d0g
      sample: {prompts: ["[trigger] --w 640", "a cat"], width: 768, height: 512, seed: 4, walk_seed: true, neg: ""}
      train:
        steps: 900
        lr: 3e-4
        optimizer: "adamw8bit"
        optimizer_params: {weight_decay: 1e-2, betas: [0.9, 0.99]}
        train_text_encoder: false
        lr_scheduler: cosine
        dtype: bf16
        min_snr_gamma: 5.0
        ema_config: {use_ema: true}
      model:
        quantize: true
        name_or_path: "some/model"
        is_xl: true
"""


@pytest.mark.parametrize(
    ("name", "text", "own"),
    [
        (
            "one.json",
            json.dumps(ONE_TRAINER),
            {
                "lr_warmup_steps": 50,
                "max_train_epochs": 5,
                "output_name": "cat",
                "output_dir": "models",
                "resolution": "768,768",
            },
        ),
        (
            "toolkit.yaml",
            TOOLKIT,
            {
                "conv_dim": 4,
                "max_train_steps": 900,
                "output_name": "my dog",
                "save_every_n_steps": 250,
                "save_last_n_steps": 500,
                "quantize_base": "fp8",
                "use_ema": True,
                "masked_loss": True,
                "sample_prompts": "d0g --w 640 --h 512 --d 4\na cat --w 768 --h 512 --d 5",
            },
        ),
    ],
)
def test_what_means_the_same_in_other_programs_is_taken_over(
    opened: Open, name: str, text: str, own: dict[str, object]
) -> None:
    found = opened(name, text)
    common = {
        "learning_rate": 3e-4,
        "lr_scheduler": "cosine",
        "min_snr_gamma": 5.0,
        "mixed_precision": "bf16",
        "model_family": "sdxl",
        "network_alpha": 8.0,
        "network_dim": 24,
        "network_train_unet_only": True,
        "optimizer_type": "AdamW8bit",
    }
    values = values_of(found)
    assert {key: values[key] for key in {**common, **own}} == {**common, **own}
    assert {"weight_decay=0.1", "betas=0.9,0.99"} & {*values["optimizer_args"]}  # type: ignore[misc]
    assert (found.report.wrong, found.report.unsupported) == ((), ())
    assert found.report.ignored, "what has no place here is named"
    assert any(key in found.report.ignored for key in ("ema", "datasets.odd"))


def test_each_folder_of_ai_toolkit_is_a_dataset_with_what_is_said_of_it(opened: Open) -> None:
    found = opened("toolkit.yaml", TOOLKIT)
    away = [remark.split('"')[1] for remark in found.report.remarks if remark.startswith("Not on this computer")]
    assert set(away) == {"/path/to/dogs", "/path/to/masks", "/path/to/cats"}
    one, small, other = datasets_of(found.config)
    assert [each.config.dataset.resolution for each in (one, small, other)] == ["768,768", "1024,1024", "512,512"]
    assert [each.config.dataset.enable_bucket for each in (one, small, other)] == [True, True, False]
    told = [(each.subsets[0].image_dir, each.subsets[0].num_repeats, each.subsets[0].is_reg) for each in (one, other)]
    assert told == [("/path/to/dogs", 3, False), ("/path/to/cats", 1, True)]
    assert [each.subsets[0].config.captions.shuffle_caption for each in (one, other)] == [True, False]
    assert one.subsets[0].config.augmentation.conditioning_data_dir == "/path/to/masks"


def test_what_other_programs_leave_out_is_as_they_have_it(opened: Open) -> None:
    found = opened("one.json", json.dumps({"training_method": "LORA"}))
    assert {"network_dim": 16, "network_alpha": 1.0, "max_train_epochs": 100}.items() <= found.report.assumed.items()
    assert values_of(found)["learning_rate"] == 3e-6
    odd = "    datasets: odd\n    sample: {width: 5}\n    model: {quantize: true, qtype: odd}\n"
    found = opened("a.yaml", "job: extension\nconfig:\n  process:\n  - network: {linear: 8}\n" + odd)
    assert {"datasets", "sample.width", "model.quantize", "model.qtype"} <= {*found.report.ignored}
    assert (values_of(found)["network_dim"], found.report.assumed["max_train_steps"]) == (8, 1000)


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("one.json", json.dumps({**ONE_TRAINER, "training_method": "FINE_TUNE"}), "training_method"),
        ("one.json", json.dumps({**ONE_TRAINER, "learning_rate": "x"}), "learning_rate"),
        ("one.json", json.dumps({**ONE_TRAINER, "model_type": "SANA"}), "model_family"),
        ("one.json", json.dumps({**ONE_TRAINER, "optimizer": {"optimizer": "YOGI"}}), "optimizer.optimizer"),
        ("a.yaml", TOOLKIT.replace("sd_trainer", "textual_inversion_trainer"), "type"),
        ("a.yaml", TOOLKIT.replace("is_xl", "is_pixart"), "is_pixart"),
        ("a.yaml", TOOLKIT.replace("is_xl: true", "arch: sd3"), "arch sd3"),
        ("a.yaml", TOOLKIT.replace("lr: 3e-4", "lr: fast"), "learning_rate"),
    ],
)
def test_what_other_programs_have_and_this_one_has_not_is_named(opened: Open, name: str, text: str, key: str) -> None:
    found = opened(name, text)
    assert [problem.key for problem in found.report.wrong] == [key]
    assert values_of(found)["network_dim"] == 24


@pytest.mark.parametrize("model", ["is_flux: true", "arch: flux"])
def test_a_job_for_flux_is_one(opened: Open, model: str) -> None:
    found = opened("a.yaml", TOOLKIT.replace("is_xl: true", model))
    assert (found.config.model.model_family, found.report.wrong) == ("flux", ())


def test_yaml_that_is_none_is_refused_with_its_line(opened: Open) -> None:
    with pytest.raises(ConfigError, match="not valid YAML .line 3"):
        opened("a.yaml", "job: extension\nconfig: [\n")
    with pytest.raises(ConfigError, match="no process"):
        opened("a.yaml", "job: extension\nconfig: {}\n")


SIGNS = st.text(
    st.sampled_from("ab=-_.\\`^$%{}[]()\"' \n,:#1/") | st.characters(exclude_categories=["Cs"]), max_size=80
)


@settings(deadline=None, max_examples=150)
@given(
    SIGNS,
    st.sampled_from(["a.toml", "a.json", "a.sh", "a.bat", "a.ps1", "a.yaml"]),
    st.sampled_from(
        ["", "python train_network.py --a ", '{"LoRA_type": 1, "sdxl": 2, ', "[a.args]\n", "job: extension\n"]
    ),
)
def test_any_text_opens_or_is_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str, begin: str
) -> None:
    path = tmp_path_factory.mktemp("any") / name
    path.write_text(begin + text, encoding="utf-8")
    try:
        assert open_recipe(path).report.lines()
    except ConfigError as error:
        assert error.problems


FIELDS = st.dictionaries(
    st.sampled_from([*KOHYA_SS, "text_encoder_lr", "xformers", "lr_warmup_steps", "flux1_checkbox", "network_weights"]),
    st.none() | st.booleans() | st.integers() | st.floats() | SIGNS | st.lists(SIGNS, max_size=2) | st.just({"a": []}),
    max_size=8,
)


@settings(deadline=None, max_examples=150)
@given(FIELDS)
@example({"LoRA_type": ""})
@example({"lr_warmup_steps": float("inf")})
@example({"lr_warmup": float("nan"), "epoch": float("-inf")})
@example({"LoRA_type": " "})
@example({"additional_parameters": "--network_module a b"})
@example({"additional_parameters": "--network_module"})
@example(dict.fromkeys(("LoRA_type", "optimizer", "lr_scheduler", "learning_rate", "epoch", "sdxl"), ""))
def test_any_form_opens_or_is_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("form") / "a.json"
    path.write_text(json.dumps({"LoRA_type": "Standard", "max_resolution": "512,512", **fields}), encoding="utf-8")
    try:
        assert open_recipe(path).report.lines()
    except ConfigError as error:
        assert error.problems


def test_a_form_without_a_kind_of_lora_means_the_standard_one(tmp_path: Path) -> None:
    recipes = []
    for kind in ("", "Standard"):
        path = tmp_path / f"{kind or 'none'}.json"
        path.write_text(json.dumps({"LoRA_type": kind, "max_resolution": "512,512"}), encoding="utf-8")
        recipes.append(open_recipe(path))
    without, standard = (list(recipe.report.lines()) for recipe in recipes)
    became = [line for line in without if "LoRA_type" in line]
    assert len(became) == 1 and 'network_type "lora"' in became[0]
    assert [line for line in standard if "LoRA_type" not in line] == [line for line in without if line not in became]


def test_the_last_reader_takes_whatever_is_left() -> None:
    assert importing.READERS[-1].recognises(importing.Source(Path("x"), "anything"))
    assert len({reader.name for reader in importing.READERS}) == len(importing.READERS)
    assert known_settings()


@pytest.mark.parametrize(
    ("swapped", "share"),
    [
        ({"blocks_to_swap": 18}, 0.47),
        ({"blocks_to_swap": "35"}, 0.92),
        ({"blocks_to_swap": 60, "split_mode": True}, 1.0),
        ({"split_mode": True}, 0.47),
        ({"split_mode": "true"}, 0.47),
        ({"blocks_to_swap": 0}, 0.0),
        ({"blocks_to_swap": 18, "network_module": "networks.lora"}, 0.0),
    ],
    ids=str,
)
def test_swapped_blocks_are_streamed_weights(opened: Open, swapped: dict[str, object], share: float) -> None:
    flux = {"network_module": "networks.lora_flux", "model_prediction_type": "raw"}
    found = opened("recipe.toml", toml.dumps({**flux, **swapped}))
    assert found.config.memory.streamed_weights == share
    if share:
        name = next(iter(swapped))
        assert any(name in line and f"-> streamed_weights {share}" in line for line in found.report.lines())
