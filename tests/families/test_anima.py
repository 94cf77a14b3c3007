"""Anima: recognised and read in every form, diffusers' numbers, kohya's names, and all the way of a run."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel
from diffusers.loaders.lora_pipeline import AnimaLoraLoaderMixin
from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers
from diffusers.models.transformers import transformer_cosmos
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from kohya_gui.form.draft import Draft, payload
from kohya_gui.form.suggestions import notes
from kohya_gui.form.survey import survey as surveyed
from kohya_gui.parts.folders import Folders
from tests.helpers import anima as tiny
from tests.helpers.ground import Ground, Made, assert_equal
from tests.helpers.runs import Kill, RunServer
from tests.helpers.source import PROJECT
from tests.helpers.texts import tokens_of
from trainer import families, train
from trainer.__main__ import COMPLETED, main
from trainer.adapters import make_spec
from trainer.config import known_settings, load_config, save_config, to_flat
from trainer.families import FAMILIES, recognise
from trainer.families.anima.bundle import Bundle
from trainer.families.anima.facts import CONDITIONER, CONFIGS, DENOISER, TEXT
from trainer.families.anima.vae_names import original_name as vae_name
from trainer.families.anima.weight_names import original_name
from trainer.families.reading.headers import Header
from trainer.families.reading.weights import build_empty
from trainer.forecast.tracing import trace
from trainer.ground.errors import ModelError
from trainer.planning.inspection import inspect
from trainer.planning.plan import plan
from trainer.process import FLOW
from trainer.results import key_names
from trainer.run import Start
from trainer.settings.exporting.kohya_json import kohya_form
from trainer.settings.kohya import export_flat, import_flat
from trainer.workbench import tokens

CPU, STEPS = torch.device("cpu"), 4
FAMILY = FAMILIES["anima"]
NAME = "pretrained_model_name_or_path"
TINY_CONFIGS = {**CONFIGS, **tiny.SIZES}
LENGTHS = {"qwen3_max_token_length": 24, "t5_max_token_length": 24}


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The settings that name a model in each form."""
    folder = tmp_path_factory.mktemp("anima")
    return {
        "files": tiny.write_files(folder / "files"),
        "checkpoint": {NAME: str(tiny.write_checkpoint(folder / "one" / "all.safetensors"))},
        "folder": {NAME: str(tiny.write_folder(folder / "diffusers"))},
    }


def loaded(given: dict[str, str], **more: object) -> Bundle:
    config = load_config(overrides={**given, **LENGTHS, **more})
    bundle = families.load(config, device=CPU, dtype=torch.float32)
    assert isinstance(bundle, Bundle)
    return bundle


NOISY, SIGMAS = torch.randn(2, 16, 8, 6, generator=torch.Generator().manual_seed(3)), torch.tensor([0.3, 0.85])


@torch.no_grad()
def predicted(bundle: Bundle, *texts: str) -> Tensor:
    return bundle.predict(NOISY, SIGMAS, bundle.encode_text(tokens_of(bundle, *(texts or ("a cat", "red")))), {})


# --- names, counts and files -----------------------------------------------------------------------------------------


def test_names_shapes_and_order_are_those_of_sd_scripts() -> None:
    """As it makes them of the published model: Qwen3, then the blocks; with patterns and a switch all the others."""
    attention = ("q_proj", "k_proj", "v_proj", "output_proj")
    layers = [f"{side}_attn_{each}" for side in ("self", "cross") for each in attention] + ["mlp_layer1", "mlp_layer2"]
    of_text = [f"self_attn_{each}_proj" for each in "qkvo"] + [f"mlp_{each}_proj" for each in ("gate", "up", "down")]
    text = [f"lora_te_layers_{number}_{each}" for number in range(28) for each in of_text]
    blocks = [f"lora_unet_blocks_{number}_{each}" for number in range(28) for each in layers]
    config = load_config(overrides={"network_dim": 8})
    targets = FAMILY.targets(CONFIGS, conv=True)
    shapes = make_spec(config.network, (DENOISER, TEXT), config.transformer).shapes(targets)
    names = list(dict.fromkeys(key.partition(".")[0] for key in shapes))
    assert names == text + blocks and (len(text), len(blocks)) == (196, 280)
    assert sum(math.prod(shape) for key, shape in shapes.items() if "_blocks_" in key) - 280 == 11_468_800
    assert shapes["lora_unet_blocks_5_cross_attn_k_proj.lora_down.weight"] == (8, 1024)
    assert shapes["lora_te_layers_3_mlp_down_proj.lora_down.weight"] == (8, 3072)
    every = load_config(overrides={"include_patterns": ["."], "train_llm_adapter": True})
    more = make_spec(every.network, (DENOISER, CONDITIONER), every.transformer, every.blocks)
    names = [each.name for each in more.select(targets)]
    assert len(names) == len(set(names)) == 454 + 60
    assert names[:3] == ["lora_unet_x_embedder_proj_1"] + [f"lora_unet_t_embedder_1_linear_{n}" for n in (1, 2)]
    adapter = [name for name in names if "llm_adapter" in name]
    assert adapter == names[3:63] and adapter[:2] == [
        f"lora_unet_llm_adapter_blocks_0_self_attn_{e}_proj" for e in "qk"
    ]
    modulations = [
        f"lora_unet_blocks_0_adaln_modulation_{e}_{n}" for e in ("self_attn", "cross_attn", "mlp") for n in (1, 2)
    ]
    assert names[73:79] == modulations


def test_every_weight_of_the_published_model_is_mapped() -> None:
    """By shapes alone: none is left, none missing, and the headers tell the configurations."""
    theirs = {
        DENOISER: build_empty(CosmosTransformer3DModel.from_config, dict(CONFIGS[DENOISER])).state_dict(),
        CONDITIONER: build_empty(AnimaTextConditioner.from_config, dict(CONFIGS[CONDITIONER])).state_dict(),
        TEXT: build_empty(Qwen3Model, Qwen3Config(**CONFIGS[TEXT])).state_dict(),
        "vae": build_empty(
            AutoencoderKLQwenImage.from_config, {**tiny.VAE_SIZES, **lists(CONFIGS["vae"])}
        ).state_dict(),
    }
    shapes = {name: {key: tuple(value.shape) for key, value in each.items()} for name, each in theirs.items()}
    counted = {name: sum(map(math.prod, each.values())) for name, each in shapes.items()}
    assert (counted[DENOISER], counted[CONDITIONER]) == (1_956_405_248, 134_663_680)
    assert {name: dict(each) for name, each in FAMILY.shapes(CONFIGS).items()} == shapes
    original = {original_name(name): shape for name, shape in shapes[DENOISER].items()}
    original |= {f"llm_adapter.{name}": shape for name, shape in shapes[CONDITIONER].items()}
    assert len(original) == 688 - 3  # sd-scripts' model counts three buffers too
    back = convert_cosmos_transformer_checkpoint_to_diffusers(dict.fromkeys(map(original_name, shapes[DENOISER]), None))
    assert list(back) == list(shapes[DENOISER])
    for prefix in ("net.", "model.diffusion_model.", ""):
        published = {prefix + name: shape for name, shape in original.items()}
        header = Header(published, {}, "safetensors")
        assert [name for name, family in FAMILIES.items() if family.matches_file(header)] == ["anima"]
        for component in (DENOISER, CONDITIONER):
            assert {**CONFIGS[component], **FAMILY.sizes(component, header)} == dict(CONFIGS[component])
        assert FAMILY.missing(header) == ("vae", TEXT)
        layouts = [dict(each) for name in (DENOISER, CONDITIONER) for each in FAMILY.layouts(name, CONFIGS, "file")]
        parts = [{n: s for n, s in published.items() if n.startswith(f"{prefix}llm_adapter.") == own} for own in (0, 1)]
        assert all(part in layouts for part in parts)
    text = Header({f"model.{name}": shape for name, shape in shapes[TEXT].items()}, {}, "safetensors")
    assert FAMILY.sizes(TEXT, text).items() <= CONFIGS[TEXT].items() and FAMILY.fits(TEXT, text)
    vae = {vae_name(name, CONFIGS["vae"]): shape for name, shape in shapes["vae"].items()}
    assert {"decoder.upsamples.11.resample.1.weight", "encoder.downsamples.8.time_conv.bias", "conv1.bias"} <= set(vae)
    assert len(vae) == len(shapes["vae"]) and vae in [dict(each) for each in FAMILY.layouts("vae", CONFIGS, "file")]
    assert FAMILY.fits("vae", Header(vae, {}, "safetensors"))


def lists(config: Any) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def test_all_forms_are_one_model(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    bundles = {name: loaded(given) for name, given in forms.items()}
    expected = predicted(bundles["files"])
    assert expected.abs().max() > 0.01
    assert all(torch.equal(predicted(bundle), expected) for bundle in bundles.values())
    assert len({bundle.vae_key + bundle.text_key for bundle in bundles.values()}) == 1
    # Bare, with the buffers that sd-scripts counts, and in 8 bits with ComfyUI's scales.
    state = {**tiny.parts()[DENOISER], "pos_embedder.seq": torch.arange(4.0)}
    scaled: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, value in state.items():
        if name.startswith("blocks.") and value.dim() == 2:
            scale = value.abs().max() / 448
            scaled |= {
                name: (value / scale).to(torch.float8_e4m3fn),
                f"{name.removesuffix('weight')}scale_weight": scale,
            }
        else:
            scaled[name] = value
    told = {DENOISER: tiny.TRANSFORMER, CONDITIONER: tiny.ADAPTER}
    for tensors, equal in ((state, True), (scaled, False)):
        path = tiny.write(tmp_path / f"{equal}.safetensors", tensors, told)
        found = predicted(loaded({**forms["files"], NAME: str(path)}))
        assert torch.equal(found, expected) == equal and (found - expected).norm() < 0.1 * expected.norm()
    superfluous = tiny.write(tmp_path / "more.safetensors", {**state, "blocks.0.mlp.layer3.weight": NOISY}, told)
    with pytest.raises(ModelError, match="layer3"):
        loaded({**forms["files"], NAME: str(superfluous)})


def test_it_computes_as_diffusers_and_transformers(
    forms: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose modules resize a mask of nothing with torchvision, which is not there."""
    bundle, made = loaded(forms["files"]), tiny.modules()
    taken = tokens_of(bundle, "a cat, red", "red")
    text = bundle.encode_text(taken)
    seen, mask = taken[TEXT]["mask"], taken[CONDITIONER]["mask"]
    with torch.no_grad():
        states = made[TEXT](taken[TEXT]["ids"], attention_mask=seen.long()).last_hidden_state
        assert torch.allclose(text["states"][seen], states[seen], atol=1e-5) and not text["states"][~seen].any()
        context = made[CONDITIONER](states * seen[..., None], taken[CONDITIONER]["ids"], mask, seen)
        assert context.shape[1] == tiny.ADAPTER["min_sequence_length"] and not context[0, mask[0].sum() :].any()
        nearest = SimpleNamespace(functional=SimpleNamespace(resize=lambda mask, *_, **__: mask))
        nearest.InterpolationMode = SimpleNamespace(NEAREST=None)
        monkeypatch.setattr(transformer_cosmos, "transforms", nearest, raising=False)
        nothing = torch.zeros(1, 1, *NOISY.shape[-2:])
        answer = made[DENOISER](NOISY[:, :, None], SIGMAS, context, padding_mask=nothing).sample[:, :, 0]
        assert torch.allclose(bundle.predict(NOISY, SIGMAS, text, {}), answer, atol=1e-5)
        # The VAE's mean, by channel, and the way back.
        pixels = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(5)) * 2 - 1
        mean, deviation = bundle.encode_images(pixels)
        theirs = made["vae"].encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
        assert torch.allclose(mean, theirs, atol=1e-5) and not deviation.any()
        given, spread = (torch.tensor(tiny.VAE_SIZES[f"latents_{name}"])[:, None, None] for name in ("mean", "std"))
        latents = bundle.latents.to_model(mean)
        assert torch.allclose(latents, (theirs - given) / spread, atol=1e-6)
        drawn = made["vae"].decode(theirs[:, :, None]).sample[:, :, 0]
        assert torch.allclose(bundle.decode_latents(latents), drawn, atol=1e-5)


def test_padding_and_length_mean_nothing_and_an_empty_caption_something(forms: dict[str, dict[str, str]]) -> None:
    bundle = loaded(forms["files"])
    expected = predicted(bundle, "a cat", "")
    longer = loaded(forms["files"], qwen3_max_token_length=32, t5_max_token_length=32)
    assert torch.allclose(predicted(longer, "a cat", ""), expected, atol=1e-6) and expected.isfinite().all()
    text = bundle.encode_text(tokens_of(bundle, "a cat", ""))
    assert text["seen"].sum(1).tolist() == [5 - 2, 0] and text["mask"].sum(1).tolist() == [2 + 1, 1]
    assert text["ids"][1].tolist() == [1] + [0] * 23 and not text["states"][1].any()
    hidden = text["states"] + 7.0 * ~text["seen"][..., None]
    assert torch.allclose(bundle.predict(NOISY, SIGMAS, {**text, "states": hidden}, {})[:1], expected[:1], atol=1e-6)
    assert not torch.allclose(predicted(bundle, "a cat", "cat"), expected, atol=1e-4)


def test_losses_are_weighted_as_sd_scripts_weights_anima() -> None:
    """By sigma_sqrt and cosmap always, since nothing is made of the model's output there."""
    sigmas = torch.tensor([0.25, 0.5, 0.9])
    expected = {"sigma_sqrt": sigmas**-2, "cosmap": 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))}
    for scheme in ("none", "uniform", "logit_normal", "mode", *expected):
        config = load_config(overrides={"weighting_scheme": scheme, "model_prediction_type": "sigma_scaled"})
        process = FLOW.build(CONFIGS["scheduler"], config, patch=2, weighted=True)
        assert torch.allclose(process.timestep_weights(sigmas), expected.get(scheme, torch.ones(3)))
        assert torch.equal(process.as_target(NOISY[:1], NOISY[1:], sigmas[:1]), NOISY[:1])


def test_relatives_are_told_apart(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    state = {key: torch.zeros(value.shape) for key, value in tiny.parts(start="net.")[DENOISER].items()}
    cosmos = {key: value for key, value in state.items() if "llm_adapter" not in key}
    wider = {**state, "net.x_embedder.proj.1.weight": torch.zeros(48, 72)}
    for name, tensors, what in (("cosmos", cosmos, "a Cosmos model"), ("wider", wider, "a model like Anima")):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(ModelError, match=what):
            recognise(tmp_path / f"{name}.safetensors")
    found = inspect(Path(forms["files"][NAME]))
    assert (found["what"], found["family"], found["missing"]) == ("an Anima model", "anima", ["vae", TEXT])
    for key, value in (("qwen3", ""), ("qwen3", forms["files"]["vae"]), ("vae", forms["files"]["qwen3"])):
        with pytest.raises(ModelError, match=key):
            families.recognise_chosen(load_config(overrides={**forms["files"], key: value}))


def test_without_vocabularies_the_settings_are_named(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    words = tmp_path / "tokenizer.json"
    words.write_text(json.dumps({"model": {"vocab": {"<|endoftext|>": 0, "a</w>": 1}}}), encoding="utf-8")
    for key, value in (("qwen3_tokenizer_path", str(tmp_path)), ("qwen3_tokenizer_path", str(words))):
        with pytest.raises(ModelError, match=key):
            loaded(forms["files"], **{key: value})
    known = tiny.qwen_vocabulary()
    content = json.loads(known.to_str())["model"]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "vocab.json").write_text(json.dumps(content["vocab"]), encoding="utf-8")
    pairs = [" ".join(pair) for pair in content["merges"]]
    (tmp_path / "pairs" / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]), encoding="utf-8")
    both = [
        loaded(forms["files"], **more).tokenize("a cat, red")
        for more in ({}, {"qwen3_tokenizer_path": str(tmp_path / "pairs")})
    ]
    assert all(torch.equal(both[0][TEXT][name], both[1][TEXT][name]) for name in ("ids", "mask"))
    taken = both[0][TEXT]["ids"][both[0][TEXT]["mask"]].tolist()
    assert taken == known.encode("a cat, red").ids


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(forms: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(
        forms["files"],
        tmp_path_factory.mktemp("runs"),
        **LENGTHS,
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
        "ss_base_model_version": "anima",
        "ss_network_module": "networks.lora_anima",
        "ss_timestep_sampling": "sigmoid",
        "ss_weighting_scheme": "none",
        "modelspec.architecture": "anima-preview/lora",
        "modelspec.implementation": "https://huggingface.co/circlestone-labs/Anima",
    }
    assert {key: said.get(key) for key in expected} == expected
    assert not {"ss_model_type", "ss_guidance_scale", "ss_model_prediction_type", "ss_apply_t5_attn_mask"} & set(said)
    found = inspect(ground.output / "straight" / "tiny.safetensors")
    assert (found["kind"], found["family"]) == ("lora", "anima")
    # Pushed away from the negative prompt, without a word in the prompt.
    pictures = sorted((ground.output / "straight" / "tiny.run" / "samples").glob("*.png"))
    parts = [path.read_bytes().decode("latin-1").split(", ") for path in pictures]
    scales = [next(part for part in each if part.startswith("CFG")) for each in parts]
    assert scales == ["CFG scale: 4.0", "CFG scale: 2.0"]


def test_a_run_goes_on_bit_for_bit(ground: Ground, straight: Made) -> None:
    for steps in (2, STEPS):
        train(ground.config("on", max_train_steps=steps), emit=lambda event: None, start=Start(resume="auto"))
    assert_equal(ground.made("on"), straight)


def test_every_way_to_less_memory_trains_the_same(
    ground: Ground, straight: Made, forms: dict[str, dict[str, str]]
) -> None:
    frozen: dict[str, Any] = {"caption_variants": 3, "max_train_steps": 2, "caption_dropout_rate": 0.3}
    ahead = ground.run("ahead", cache_text_encoder_outputs=True, **frozen)
    streamed = {"streamed_weights": 1.0, "cache_text_encoder_outputs_to_disk": True}
    assert_equal(ahead, ground.run("streamed", **streamed, **frozen))
    own = {**dict.fromkeys(("qwen3", "vae"), ""), **forms["folder"]}
    losses, tensors = ground.run("folder", gradient_checkpointing=True, cache_latents=False, **own)
    assert losses == pytest.approx(straight[0], rel=1e-4)
    assert all(torch.allclose(value, straight[1][name], atol=5e-4) for name, value in tensors.items())


@pytest.fixture(scope="module")
def whole(ground: Ground) -> Made:
    """Every part is trained: transformer, adapter and Qwen3."""
    more: dict[str, Any] = {"text_encoder_lr": 1e-3, "train_llm_adapter": True, "max_train_steps": 2}
    return ground.run(
        "whole", validation_split=0.25, validate_every_n_steps=1, include_patterns=["final_layer"], **more
    )


def test_all_parts_kinds_and_small_bases_train(ground: Ground, whole: Made) -> None:
    _, tensors = whole
    starts = ("lora_te_layers", "lora_unet_blocks", "lora_unet_llm_adapter", "lora_unet_final_layer")
    trained = {next(start for start in starts if name.startswith(start)) for name in tensors}
    assert trained == set(starts)
    assert all(value.abs().max() > 0 for name, value in tensors.items() if name.endswith("lora_up.weight"))
    with safe_open(ground.output / "whole" / "tiny.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ss_network_args"])["train_llm_adapter"] == "True"
    kind: dict[str, Any] = {"network_type": "lokr", "quantize_base": "int8", "max_train_steps": 1}
    losses, _ = ground.run("lokr", mixed_precision="bf16", **kind)
    assert 0 < losses[0] < 10


class _Pipeline(AnimaLoraLoaderMixin):
    """What diffusers' loader needs of its pipeline."""

    hf_device_map = None
    components: dict[str, nn.Module] = {}

    def __init__(self, made: dict[str, nn.Module]) -> None:
        self.transformer, self.text_conditioner = made[DENOISER], made[CONDITIONER]


def test_diffusers_and_comfyui_find_every_layer_once(whole: Made) -> None:
    targets = FAMILY.targets(TINY_CONFIGS, conv=True)
    names = {key.partition(".")[0] for key in whole[1]}
    for dialect in ("diffusers", "comfyui"):
        made = tiny.modules()
        copy = key_names.renamed(whole[1], dialect, FAMILY, TINY_CONFIGS, targets)
        _Pipeline(made).load_lora_weights({key: value for key, value in copy.items() if "text_encoder" not in key})
        counted = 0
        for target in (each for each in targets if each.name in names and each.component != TEXT):
            down, up = (whole[1][f"{target.name}.lora_{word}.weight"] for word in ("down", "up"))
            layer: Any = made[target.component].get_submodule(target.path)
            added = up @ down * (whole[1][f"{target.name}.alpha"] / len(down))
            assert torch.allclose(layer.get_delta_weight("default_0"), added, atol=1e-6), target.path
            counted += 1
        having = (
            layer for name in (DENOISER, CONDITIONER) for layer in made[name].modules() if hasattr(layer, "lora_A")
        )
        assert counted == len(list(having)) == 10 + 10 + 3
    # As ComfyUI makes both names of its own weights' names.
    weights = {key.removesuffix(".weight") for key in tiny.parts()[DENOISER] if key.endswith(".weight")}
    texts = {key.removesuffix(".weight") for key in tiny.parts()[TEXT]}
    comfy = {f"diffusion_model.{key}" for key in weights}
    comfy |= {f"text_encoders.qwen3_06b.transformer.model.{key}" for key in texts}
    assert {key.rpartition(".lora_")[0] for key in copy} <= comfy and len(copy) == 2 * len(names)
    kohya = {f"lora_unet_{key.replace('.', '_')}" for key in weights} | {
        f"lora_te_{key.replace('.', '_')}" for key in texts
    }
    assert names <= kohya


def test_its_other_names_are_read_back(whole: Made, tmp_path: Path) -> None:
    targets = FAMILY.targets(TINY_CONFIGS, conv=True)
    for dialect in ("comfyui", "diffusers"):
        copy = key_names.renamed(whole[1], dialect, FAMILY, TINY_CONFIGS, targets)
        save_file(copy, tmp_path / f"{dialect}.safetensors")
        found = inspect(tmp_path / f"{dialect}.safetensors")
        assert (found["kind"], found["family"]) == ("lora", "anima")
        target = tmp_path / f"{dialect}-back.safetensors"
        assert (
            main(["convert", "--model", str(tmp_path / f"{dialect}.safetensors"), "--save_to", str(target)])
            == COMPLETED
        )
        assert load_file(target).keys() == whole[1].keys()


@pytest.mark.parametrize("form", ["files", "folder"])
def test_a_merged_model_is_the_model_with_its_lora(
    ground: Ground,
    whole: Made,
    forms: dict[str, dict[str, str]],
    form: str,
    tmp_path: Path,
) -> None:
    source = Path(forms[form][NAME])
    lora = tmp_path / "lora.safetensors"
    save_file({name: value for name, value in whole[1].items() if name.startswith("lora_unet")}, lora)
    target = tmp_path / ("merged" if source.is_dir() else "merged.safetensors")
    assert main(["merge", "--models", str(lora), "--sd_model", str(source), "--save_to", str(target)]) == COMPLETED
    bundle = loaded(forms["files"])
    before = predicted(bundle)
    config = load_config(ground.output / "whole" / "tiny.run" / "config.toml")
    spec = make_spec(config.network, (DENOISER, CONDITIONER), config.transformer, config.blocks)
    adapter = spec.build(bundle.components, bundle.targets(conv=True), seed=0)
    adapter.load(load_file(lora))
    expected = predicted(bundle)
    assert (expected - before).norm() > 1e-3 * before.norm()
    assert torch.allclose(predicted(loaded({**forms[form], NAME: str(target)})), expected, atol=1e-4)


def test_its_memory_is_foreseen(ground: Ground) -> None:
    for ahead in (True, False):
        config = ground.config("foreseen", cache_text_encoder_outputs=ahead, sample_prompts="a --w 64 --h 64 --s 2")
        assert all(phase.peak > 0 for phase in trace(plan(config)).phases)


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="a kill is a signal")
def test_a_killed_run_resumes_bit_for_bit(ground: Ground, straight: Made) -> None:
    server, settings = RunServer(), ground.settings("killed", save_state_minutes=0.00001)
    assert server.run(settings, resume="auto", kill=Kill("step", 2)) == -signal.SIGKILL
    assert server.run(settings, resume="auto") == 0
    assert_equal(ground.made("killed"), straight)


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


def test_recipes_for_it_mean_what_they_meant() -> None:
    recipe: dict[str, object] = {
        "network_module": "networks.lora_anima",
        NAME: "anima.safetensors",
        "qwen3": "qwen_3_06b.safetensors",
        "vae": "qwen_image_vae.safetensors",
        "network_args": [
            "train_llm_adapter=True",
            r"exclude_patterns=[r'blocks\.0\..*', r'.*mlp.*']",
            "network_reg_dims=.*q_proj=4",
        ],
        "blocks_to_swap": 14,
        "network_dim": 16,
    }
    made = import_flat(recipe, known_settings())
    assert made.problems == []
    expected = {
        "model_family": "anima",
        "vae": "qwen_image_vae.safetensors",
        "timestep_sampling": "sigmoid",
        "discrete_flow_shift": 1.0,
        "model_prediction_type": "raw",
        "train_llm_adapter": True,
        "streamed_weights": 0.5,
        "exclude_patterns": ["^lora_(unet|te)_(blocks_0_.*)$", "^lora_(unet|te)_(.*mlp.*)$"],
        "network_reg_dims": ["^lora_(unet|te)_(.*q_proj)$=4"],
    }
    assert {key: made.values[key] for key in expected} == expected
    unclear = import_flat({**recipe, "network_args": [r"exclude_patterns=['blocks\.[^.]*']"]}, known_settings())
    assert [problem.key for problem in unclear.problems] == ["network_args"]
    flux = {"network_module": "networks.lora_flux", "model_prediction_type": "raw", NAME: "flux.safetensors"}
    told = import_flat({**flux, "network_args": ["network_reg_lrs=single_blocks_1_=1e-5,attn=0"]}, known_settings())
    assert told.values["network_reg_lrs"] == ["single_blocks_1_=1e-5", "attn=0"] and not told.ignored
    config = load_config(overrides={key: value for key, value in made.values.items() if value is not None})
    again = export_flat(to_flat(config), known_settings())
    assert (again["network_module"], again["vae"], again["qwen3"]) == (
        "networks.lora_anima",
        recipe["vae"],
        recipe["qwen3"],
    )
    assert not {"ae", "guidance_scale", "model_prediction_type", "apply_t5_attn_mask"} & set(again)
    assert import_flat(again, known_settings()).values["model_family"] == "anima"
    lokr = {**recipe, "network_module": "networks.lokr", "network_args": []}
    assert import_flat(lokr, known_settings()).values["model_family"] == "anima"
    apart = import_flat({**recipe, "llm_adapter_path": "adapter.safetensors"}, known_settings())
    assert [problem.key for problem in apart.problems] == ["llm_adapter_path"]


def test_its_box_in_the_form_of_kohya_ss_is_filled_and_read(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    own: dict[str, Any] = {
        **forms["files"],
        "model_family": "anima",
        "timestep_sampling": "shift",
        "discrete_flow_shift": 2.0,
        "t5_max_token_length": 256,
        "cache_text_encoder_outputs": True,
        "network_train_unet_only": True,
        "train_llm_adapter": True,
    }
    flat = export_flat(to_flat(load_config(overrides=own)), known_settings())
    fields, unsaid = kohya_form(flat, known_settings(), family="anima")
    assert fields["anima_checkbox"] is True and fields["LoRA_type"] == "Anima" and not unsaid
    assert (fields["anima_qwen3"], fields["anima_vae"], fields["vae"]) == (own["qwen3"], own["vae"], "")
    (tmp_path / "form.json").write_text(json.dumps(fields), encoding="utf-8")
    made = tmp_path / "made.toml"
    assert main(["import", str(tmp_path / "form.json"), "--out", str(made)]) == COMPLETED
    again = to_flat(load_config(made))
    assert {key: again[key] for key in own} == own


def test_the_page_shows_what_applies(ground: Ground) -> None:
    config = ground.config("page")
    survey = surveyed(config)
    said = notes(survey)
    assert said["qwen3"].startswith("Qwen3") and said["vae"].startswith("VAE")
    draft = Draft(Folders([ground.dataset.parent]))
    draft.lay(to_flat(config), "", "")
    shown = payload(draft, draft.check(), survey.problems, said, survey.process, survey.unused)
    hidden = shown["hidden"]
    assert isinstance(hidden, list)
    assert {"clip_l", "t5xxl", "guidance_scale", "model_prediction_type", "img_attn_dim", "clip_skip"} <= set(hidden)
    assert not {"qwen3", "vae", "timestep_sampling", "train_llm_adapter", "qwen3_max_token_length"} & set(hidden)
    limit = tokens.load(config, families.recognise_chosen(config))
    assert limit is not None and (limit.setting, limit.limit) == ("t5_max_token_length", 24 - 1)
    assert limit.count("a cat") == 2
