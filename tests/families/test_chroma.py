"""Chroma: recognised and read in every form, diffusers' numbers, kohya's names, and all the way of a run."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kohya_gui.form.draft import Draft, payload
from kohya_gui.form.suggestions import notes
from kohya_gui.form.survey import survey as surveyed
from kohya_gui.parts.folders import Folders
from tests.helpers import chroma as tiny
from tests.helpers.ground import Ground, Made, assert_equal
from tests.helpers.runs import Kill, RunServer
from tests.helpers.source import PROJECT
from tests.helpers.texts import tokens_of
from trainer import families, train
from trainer.__main__ import COMPLETED, main
from trainer.adapters import make_spec
from trainer.config import known_settings, load_config, save_config, to_flat
from trainer.families import FAMILIES, recognise
from trainer.families.chroma.bundle import Bundle
from trainer.families.chroma.facts import CONFIGS, DENOISER, T5, TRANSFORMER_CONFIG
from trainer.families.chroma.transformer import build_transformer
from trainer.families.chroma.weight_names import original_name
from trainer.families.flux.checkpoint import TransformerWeights
from trainer.families.flux.transformer import packed, places, unpacked
from trainer.families.reading.headers import Header
from trainer.families.reading.weights import build_empty
from trainer.forecast.tracing import trace
from trainer.ground.errors import ModelError
from trainer.planning.inspection import inspect
from trainer.planning.plan import plan
from trainer.results import key_names
from trainer.run import Start
from trainer.settings.kohya import export_flat, import_flat

CPU, STEPS = torch.device("cpu"), 4
TINY_CONFIGS = {**CONFIGS, DENOISER: tiny.TRANSFORMER, T5: tiny.T5_SIZES}
FAMILY = FAMILIES["chroma"]
NAME = "pretrained_model_name_or_path"


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The settings that name a model in each form."""
    folder = tmp_path_factory.mktemp("chroma")
    return {
        "files": tiny.write_files(folder / "files"),
        "checkpoint": {NAME: str(tiny.write_checkpoint(folder / "one" / "all.safetensors"))},
        "folder": {NAME: str(tiny.write_folder(folder / "diffusers"))},
    }


def loaded(given: dict[str, str], **more: object) -> Bundle:
    more = {"t5xxl_max_token_length": 24, **more}
    bundle = families.load(load_config(overrides={**given, **more}), device=CPU, dtype=torch.float32)
    assert isinstance(bundle, Bundle)
    return bundle


NOISY, SIGMAS = torch.randn(2, 16, 8, 6, generator=torch.Generator().manual_seed(3)), torch.tensor([0.3, 0.85])


@torch.no_grad()
def predicted(bundle: Bundle) -> Tensor:
    return bundle.predict(NOISY, SIGMAS, bundle.encode_text(tokens_of(bundle, "a cat", "red")), {})


# --- names, counts and files -----------------------------------------------------------------------------------------


def test_names_and_counts_are_those_of_sd_scripts() -> None:
    """As it makes them of the published model: no text encoder, no modulation; 228 modules."""
    config = load_config(overrides={"network_dim": 8})
    spec = make_spec(config.network, (DENOISER,), config.transformer)
    shapes = spec.shapes(FAMILY.targets(CONFIGS, conv=True))
    names = list(dict.fromkeys(key.partition(".")[0] for key in shapes))
    assert len(names) == 228 and sum(map(math.prod, shapes.values())) - 228 == 28_016_640
    of_double = ["img_attn_qkv", "img_attn_proj", "img_mlp_0", "img_mlp_2"]
    of_double += [each.replace("img", "txt") for each in of_double]
    expected = [f"lora_unet_double_blocks_{number}_{layer}" for number in range(19) for layer in of_double]
    expected += [f"lora_unet_single_blocks_{n}_{layer}" for n in range(38) for layer in ("linear1", "linear2")]
    assert names == expected
    with_t5 = load_config(overrides={"train_t5xxl": True, "in_dims": [4, 4, 4, 4, 4]})
    more = make_spec(with_t5.network, (DENOISER, T5), with_t5.transformer)
    names = [each.name for each in more.select(FAMILY.targets(CONFIGS, conv=True))]
    assert len(names) == 168 + 228 + 2 and names[0].startswith("lora_te3_encoder_block_0_")
    assert names[-2:] == ["lora_unet_img_in", "lora_unet_txt_in"]


@pytest.mark.parametrize("layout", ["original", "ComfyUI", "diffusers"])
def test_every_weight_of_the_published_model_is_mapped(layout: str, tmp_path: Path) -> None:
    """By shapes alone: none is left, none missing, and the header tells the configuration."""
    config = dict(TRANSFORMER_CONFIG)
    theirs = build_empty(ChromaTransformer2DModel.from_config, config).state_dict()
    ours = build_transformer(config).state_dict()
    prefix = "model.diffusion_model." if layout == "ComfyUI" else ""
    published = dict(theirs) if layout == "diffusers" else {prefix + original_name(n): v for n, v in ours.items()}
    assert layout == "diffusers" or len(published) == 643
    assert sum(value.numel() for value in published.values()) == 8_899_983_424
    read = TransformerWeights(published, prefix, list(ours), original_name)
    assert sorted(read.used) == sorted(published)
    assert all(read[name].shape == value.shape for name, value in ours.items())
    header = Header({name: tuple(value.shape) for name, value in published.items()}, {}, "safetensors")
    assert [name for name, family in FAMILIES.items() if family.matches_file(header)] == ["chroma"]
    assert {**config, **FAMILY.sizes(DENOISER, header)} == config and FAMILY.missing(header) == ("vae", T5)
    shapes = {name: tuple(value.shape) for name, value in published.items()}
    assert shapes in [dict(each) for each in FAMILY.layouts(DENOISER, CONFIGS, "file")]


def test_all_forms_are_one_model(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    bundles = {name: loaded(given) for name, given in forms.items()}
    expected = predicted(bundles["files"])
    assert expected.abs().max() > 0.01
    assert all(torch.equal(predicted(bundle), expected) for bundle in bundles.values())
    keys = {bundle.vae_key + bundle.text_key for bundle in bundles.values()}
    assert len(keys) == 1
    alone = {**forms["files"], NAME: str(tmp_path / "diffusers.safetensors")}
    tiny.write(Path(alone[NAME]), tiny.modules()[DENOISER].state_dict(), {DENOISER: tiny.TRANSFORMER})
    assert torch.equal(predicted(loaded(alone)), expected)
    # In 8 bits with ComfyUI's scales.
    state = tiny.parts()[DENOISER]
    scaled: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, value in state.items():
        if value.dim() == 2 and "blocks" in name:
            scale = value.abs().max() / 448
            scaled[name] = (value / scale).to(torch.float8_e4m3fn)
            scaled[name.removesuffix("weight") + "scale_weight"] = scale
        else:
            scaled[name] = value
    tiny.write(tmp_path / "fp8.safetensors", scaled, {DENOISER: tiny.TRANSFORMER})
    small = predicted(loaded({**forms["files"], NAME: str(tmp_path / "fp8.safetensors")}))
    assert not torch.equal(small, expected) and (small - expected).norm() < 0.1 * expected.norm()


def test_it_computes_as_diffusers(forms: dict[str, dict[str, str]]) -> None:
    """Whose own mask is added to the scores, so each caption is given to it alone and as long as it is seen."""
    bundle = loaded(forms["files"])
    model = tiny.modules()[DENOISER]
    text = bundle.encode_text(tokens_of(bundle, "a cat", "red"))
    assert [int(count) for count in text["mask"].sum(1)] == [4 + 1 - 1, 2 + 1]
    with torch.no_grad():
        for row, found in enumerate(bundle.predict(NOISY, SIGMAS, text, {})):
            words = text["context"][row][text["mask"][row]]
            answer = model(
                hidden_states=packed(NOISY[row : row + 1]),
                encoder_hidden_states=words[None],
                timestep=SIGMAS[row : row + 1],
                img_ids=places(4, 3),
                txt_ids=torch.zeros(len(words), 3),
            ).sample
            assert torch.allclose(unpacked(answer, 4, 3)[0], found, atol=1e-5)


def test_words_are_those_of_transformers_and_their_memory_is_foreseen(ground: Ground) -> None:
    bundle = loaded(ground.given)
    tokens = tokens_of(bundle, "a cat", "red")
    with torch.no_grad():
        states = tiny.modules()[T5](tokens[T5]["ids"], attention_mask=tokens[T5]["mask"].long()).last_hidden_state
        assert torch.equal(bundle.encode_text(tokens)["context"], states)
    for ahead in (True, False):
        config = ground.config("foreseen", cache_text_encoder_outputs=ahead, sample_prompts="a --w 64 --h 64 --s 2")
        assert all(phase.peak > 0 for phase in trace(plan(config)).phases)


def test_padding_is_seen_by_nobody(forms: dict[str, dict[str, str]]) -> None:
    """All but one token of it, as in sd-scripts."""
    bundle = loaded(forms["files"])
    text = bundle.encode_text(tokens_of(bundle, "a cat", "red"))
    outcomes = []
    for change in (0.0, 7.0):
        hidden = text["context"] + change * (~text["mask"])[..., None]
        outcomes.append(bundle.predict(NOISY, SIGMAS, {**text, "context": hidden}, {}))
    assert torch.equal(*outcomes) and outcomes[0].isfinite().all()
    other = bundle.predict(NOISY, SIGMAS, {**text, "mask": torch.ones_like(text["mask"])}, {})
    assert not torch.allclose(other, outcomes[0], atol=1e-4)


def test_relatives_are_told_apart(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    state = {key: torch.zeros(1) for key in tiny.parts()[DENOISER]}
    radiance = {key: value for key, value in state.items() if key != "img_in.weight"}
    save_file({**radiance, "nerf_blocks.0.norm.scale": torch.zeros(1)}, tmp_path / "radiance.safetensors")
    with pytest.raises(ModelError, match="Radiance"):
        recognise(tmp_path / "radiance.safetensors")
    found = inspect(Path(forms["files"][NAME]))
    assert (found["what"], found["family"], found["missing"]) == ("a Chroma model", "chroma", ["vae", T5])
    with pytest.raises(ModelError, match="t5xxl"):
        families.recognise_chosen(load_config(overrides={NAME: forms["files"][NAME], "vae": forms["files"]["vae"]}))


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(forms: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(
        forms["files"],
        tmp_path_factory.mktemp("runs"),
        t5xxl_max_token_length=24,
        max_train_steps=STEPS,
        timestep_sampling="sigmoid",
        lr_scheduler="constant",
    )


@pytest.fixture(scope="module")
def straight(ground: Ground) -> Made:
    prompt = "a tok class --w 96 --h 64 --s 3 --n red\na cat --s 2 --w 64 --h 64 --l 2"
    return ground.run("straight", sample_prompts=prompt, sample_every_n_steps=STEPS)


def test_it_trains_draws_and_tells_of_it(ground: Ground, straight: Made) -> None:
    losses, tensors = straight
    assert len(losses) == STEPS and {name.split("_")[1] for name in tensors} == {"unet"}
    assert all(value.abs().max() > 0 for name, value in tensors.items() if name.endswith("lora_up.weight"))
    with safe_open(ground.output / "straight" / "tiny.safetensors", "pt") as file:
        said = file.metadata()
    expected = {
        "ss_base_model_version": "chroma",
        "ss_network_module": "networks.lora_flux",
        "ss_model_type": "chroma",
        "ss_apply_t5_attn_mask": "True",
        "ss_guidance_scale": "0.0",
        "ss_timestep_sampling": "sigmoid",
        "modelspec.architecture": "chroma/lora",
        "modelspec.implementation": "https://huggingface.co/lodestones/Chroma",
    }
    assert {key: said.get(key) for key in expected} == expected
    found = inspect(ground.output / "straight" / "tiny.safetensors")
    assert (found["kind"], found["family"]) == ("lora", "chroma")
    # Pushed away from the negative prompt, without a word in the prompt.
    pictures = sorted((ground.output / "straight" / "tiny.run" / "samples").glob("*.png"))
    parts = [path.read_bytes().decode("latin-1").split(", ") for path in pictures]
    scales = [next(part for part in each if part.startswith("CFG")) for each in parts]
    assert scales == ["CFG scale: 4.0", "CFG scale: 2.0"]


def test_diffusers_loads_every_layer_of_both_files(straight: Made) -> None:
    targets = FAMILY.targets(TINY_CONFIGS, conv=True)
    copy = key_names.renamed(straight[1], "diffusers", FAMILY, TINY_CONFIGS, targets)
    made = tiny.modules()
    pipe = ChromaPipeline(FlowMatchEulerDiscreteScheduler(), made["vae"], made[T5], None, made[DENOISER])
    pipe.load_lora_weights(copy)
    counted = 0
    for target in targets:
        down, up = (straight[1].get(f"{target.name}.lora_{word}.weight") for word in ("down", "up"))
        if down is None or up is None:
            continue
        whole = up @ down * (straight[1][f"{target.name}.alpha"] / len(down))
        for path, rows in zip(FAMILY.paths(target), whole.split(list(target.parts or (len(up),))), strict=True):
            layer = made[DENOISER].get_submodule(path)
            assert torch.allclose(layer.get_delta_weight("default_0"), rows, atol=1e-6), path
            counted += 1
    layers = tiny.modules()[DENOISER].named_modules()
    of_blocks = [name for name, layer in layers if isinstance(layer, nn.Linear) and "_blocks." in name]
    assert counted == len(of_blocks) == sum(hasattr(layer, "lora_A") for layer in made[DENOISER].modules())
    there = {f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}" for name in tiny.parts()[DENOISER]}
    assert {key.partition(".")[0] for key in straight[1]} <= there, "as ComfyUI makes names of its weights"


def test_a_run_goes_on_bit_for_bit(ground: Ground, straight: Made) -> None:
    for steps in (2, STEPS):
        config = ground.config("on", max_train_steps=steps)
        train(config, emit=lambda event: None, start=Start(resume="auto"))
    assert_equal(ground.made("on"), straight)


@pytest.mark.parametrize("form", ["files", "folder"])
def test_a_merged_model_is_the_model_with_its_lora(
    ground: Ground,
    straight: Made,
    forms: dict[str, dict[str, str]],
    form: str,
    tmp_path: Path,
) -> None:
    source, lora = Path(forms[form][NAME]), ground.output / "straight" / "tiny.safetensors"
    target = tmp_path / ("merged" if source.is_dir() else "merged.safetensors")
    assert main(["merge", "--models", str(lora), "--sd_model", str(source), "--save_to", str(target)]) == COMPLETED
    bundle = loaded(forms["files"])
    before = predicted(bundle)
    spec = make_spec(load_config(lora_of(ground)).network, (DENOISER,))
    adapter = spec.build(bundle.components, bundle.targets(conv=True), seed=0)
    adapter.load(straight[1])
    expected = predicted(bundle)
    assert (expected - before).norm() > 1e-3 * before.norm()
    assert torch.allclose(predicted(loaded({**forms[form], NAME: str(target)})), expected, atol=1e-4)


def lora_of(ground: Ground) -> Path:
    return ground.output / "straight" / "tiny.run" / "config.toml"


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="a kill is a signal")
def test_a_killed_run_resumes_bit_for_bit(ground: Ground, straight: Made) -> None:
    server, settings = RunServer(), ground.settings("killed", save_state_minutes=0.00001)
    assert server.run(settings, resume="auto", kill=Kill("step", 2)) == -signal.SIGKILL
    assert server.run(settings, resume="auto") == 0
    assert_equal(ground.made("killed"), straight)


def test_every_way_to_less_memory_trains_the_same(
    ground: Ground, straight: Made, forms: dict[str, dict[str, str]]
) -> None:
    frozen: dict[str, Any] = {"caption_variants": 3, "max_train_steps": 2}
    ahead = ground.run("ahead", cache_text_encoder_outputs=True, **frozen)
    streamed = {"streamed_weights": 1.0, "cache_text_encoder_outputs_to_disk": True}
    assert_equal(ahead, ground.run("streamed", **streamed, **frozen))
    own = {**dict.fromkeys(("t5xxl", "vae"), ""), **forms["folder"]}
    losses, tensors = ground.run("folder", gradient_checkpointing=True, cache_latents=False, **own)
    assert losses == pytest.approx(straight[0], rel=1e-4)
    assert all(torch.allclose(value, straight[1][name], atol=5e-4) for name, value in tensors.items())


def test_t5_kinds_and_small_bases_train(ground: Ground) -> None:
    more: dict[str, Any] = {"text_encoder_lr": 1e-4, "train_t5xxl": True, "split_qkv": True, "max_train_steps": 2}
    _, tensors = ground.run("t5", validation_split=0.25, validate_every_n_steps=1, **more)
    assert {name.split("_")[1] for name in tensors} == {"te3", "unet"}
    kind: dict[str, Any] = {"network_type": "lokr", "quantize_base": "int8", "max_train_steps": 1}
    losses, _ = ground.run("lokr", mixed_precision="bf16", **kind)
    assert 0 < losses[0] < 10


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="gloo between processes is tested on POSIX")
def test_two_ranks_train_as_one_with_twice_the_accumulation(ground: Ground, tmp_path: Path) -> None:
    alone = ground.run("alone", gradient_accumulation_steps=2, optimizer_args=["eps=1e-4"])
    save_config(ground.config("together", optimizer_args=["eps=1e-4"]), tmp_path / "RUN.toml")
    launched = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [*launched, "-m", "trainer", "train", str(tmp_path / "RUN.toml")]
    answer = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300)
    assert answer.returncode == 0, answer.stderr[-2000:]
    together = ground.made("together")
    assert together[0] == pytest.approx(alone[0], rel=1e-5)
    assert all(torch.allclose(value, alone[1][name], rtol=1e-4, atol=1e-5) for name, value in together[1].items())


# --- recipes and the page --------------------------------------------------------------------------------------------


def test_recipes_for_it_are_told_by_the_model_type() -> None:
    recipe: dict[str, object] = {
        "network_module": "networks.lora_flux",
        "model_type": "chroma",
        NAME: "chroma.safetensors",
        "t5xxl": "t5.safetensors",
        "ae": "ae.safetensors",
        "apply_t5_attn_mask": True,
        "guidance_scale": 0.0,
        "timestep_sampling": "sigmoid",
        "model_prediction_type": "raw",
        "network_dim": 16,
    }
    made = import_flat(recipe, known_settings())
    assert made.problems == []
    assert (made.values["model_family"], made.values["vae"]) == ("chroma", "ae.safetensors")
    config = load_config(overrides={key: value for key, value in made.values.items() if value is not None})
    again = export_flat(to_flat(config), known_settings())
    assert (again["model_type"], again["ae"]) == ("chroma", "ae.safetensors")
    assert (again["apply_t5_attn_mask"], again["guidance_scale"]) == (True, 0.0)
    assert import_flat(again, known_settings()).values["model_family"] == "chroma"
    others = import_flat({**recipe, "model_type": "flux"}, known_settings())
    assert others.values["model_family"] == "flux"


def test_the_page_shows_what_applies(ground: Ground) -> None:
    config = ground.config("page")
    survey = surveyed(config)
    said = notes(survey)
    assert said["t5xxl"].startswith("T5") and said["vae"].startswith("VAE")
    draft = Draft(Folders([ground.dataset.parent]))
    draft.lay(to_flat(config), "", "")
    shown = payload(draft, draft.check(), survey.problems, said, survey.process, survey.unused)
    hidden = shown["hidden"]
    assert isinstance(hidden, list)
    assert {"clip_l", "clip_g", "guidance_scale", "apply_t5_attn_mask", "img_mod_dim", "clip_skip"} <= set(hidden)
    assert not {"t5xxl", "vae", "timestep_sampling", "train_blocks", "img_attn_dim"} & set(hidden)
    assert json.dumps(shown)
