"""What goes out as a command line comes in again as it was, whatever signs are in it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import TrainingConfig, load_config, open_recipe, to_flat, to_kohya
from trainer.settings.exporting import SHELLS, command_line
from trainer.settings.toml import encoded

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
