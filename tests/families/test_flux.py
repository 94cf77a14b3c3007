"""FLUX.1: recognised and read in every form, sd-scripts' numbers and names, and all the way of a run."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kohya_gui.form.draft import Draft, payload
from kohya_gui.form.suggestions import notes
from kohya_gui.form.survey import survey as surveyed
from kohya_gui.parts.folders import Folders
from tests.helpers import flux as tiny
from tests.helpers.ground import Ground, Made, assert_equal
from tests.helpers.runs import Kill, RunServer
from tests.helpers.source import PROJECT
from tests.helpers.texts import tokens_of
from trainer import families
from trainer.adapters import make_spec, read_header
from trainer.advice import Situation, advise
from trainer.config import known_settings, load_config, rates, save_config, to_flat
from trainer.config.recipes import open_recipe
from trainer.families import FAMILIES, recognise, recognise_chosen
from trainer.families.flux.bundle import Bundle
from trainer.families.flux.checkpoint import TransformerWeights
from trainer.families.flux.facts import CLIP, CONFIGS, DENOISER, T5, TRANSFORMER_CONFIG, VAE_CONFIG
from trainer.families.flux.transformer import build_transformer, packed, places, run, unpacked
from trainer.families.flux.weight_names import original_name
from trainer.families.reading.headers import Header
from trainer.families.reading.weights import build_empty, fill
from trainer.families.text import t5
from trainer.families.unet.weight_names import vae_name
from trainer.ground.errors import ConfigError, ModelError
from trainer.planning.dialects import DIFFUSERS
from trainer.planning.inspection import inspect
from trainer.planning.plan import plan
from trainer.results import key_names
from trainer.settings.kohya import export_flat, import_flat

DATA = Path(__file__).parents[1] / "data"
GOLDEN = json.loads((DATA / "golden_flux.json").read_text())
TINY_CONFIGS = {**CONFIGS, DENOISER: tiny.TRANSFORMER, CLIP: tiny.CLIP_SIZES, T5: tiny.T5_SIZES}
CPU, STEPS = torch.device("cpu"), 6
TABLE = "encoder.embed_tokens.weight"


def rule(name: str, shape: tuple[int, ...], size: float) -> Tensor:
    """Return the tensor that the recorded numbers were made with."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (torch.sin(count * 0.37 + zlib.crc32(name.encode()) % 1000) * size).float().reshape(shape)


def close(actual: Tensor, expected: list[Any], off: float = 1e-5) -> None:
    wanted = torch.tensor(expected).view_as(actual)
    assert (actual - wanted).norm() <= off * wanted.norm()
    torch.testing.assert_close(actual, wanted, rtol=off, atol=2 * off)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The settings that name a model in each form."""
    folder = tmp_path_factory.mktemp("flux")
    name = "pretrained_model_name_or_path"
    return {
        "files": tiny.write_files(folder / "files"),
        "checkpoint": {name: str(tiny.write_checkpoint(folder / "one" / "all.safetensors"))},
        "folder": {name: str(tiny.write_folder(folder / "diffusers"))},
    }


def loaded(given: dict[str, str], **more: object) -> Bundle:
    bundle = families.load(load_config(overrides={**given, **more}), device=CPU, dtype=torch.float32)
    assert isinstance(bundle, Bundle)
    return bundle


@torch.no_grad()
def predicted(bundle: Bundle) -> Tensor:
    text = bundle.encode_text(tokens_of(bundle, "a cat", "red"))
    noisy = rule("x", (2, 16, 8, 6), 1.0)
    return bundle.predict(noisy, torch.tensor([0.3, 0.85]), text, {"guidance": torch.tensor([1.0, 3.5])})


# --- against sd-scripts ----------------------------------------------------------------------------------------------


def test_names_shapes_and_order_are_kohyas() -> None:
    family = FAMILIES["flux"]
    config = load_config(overrides={"network_dim": 8})
    spec = make_spec(config.network, rates(config, family.parts), config.transformer)
    lines = (line.split() for line in (DATA / "lora_keys_flux.txt").read_text().splitlines())
    expected = {name: (int(inputs), int(outputs)) for name, inputs, outputs in lines}
    selected = spec.select(family.targets(family.configs, conv=True))
    assert {target.name: (target.in_features, target.out_features) for target in selected} == expected
    assert [target.name for target in selected] == list(expected)


IN_DIMS = {"in_dims": [4] * 5}
COUNTED: list[tuple[dict[str, Any], int, int, bool]] = [
    ({}, 376, 39_616_512, True),
    ({"train_t5xxl": True}, 544, 54_165_504, True),
    ({"train_blocks": "single"}, 186, 18_137_088, True),
    ({"train_blocks": "double"}, 262, 22_806_528, True),
    (IN_DIMS, 384, 39_773_440, True),
    (IN_DIMS, 382, 39_735_552, False),
    ({"single_dim": 0}, 300, 0, True),
    ({"img_mlp_dim": 0, "txt_mod_dim": 0, "single_mod_dim": 0}, 376 - 38 - 19 - 38, 0, True),
    ({"train_double_block_indices": "0,1,5-8", "train_single_block_indices": "none"}, 72 + 60, 0, True),
    ({"train_single_block_indices": "none", "network_reg_dims": ["single_blocks_3_=2"]}, 72 + 190 + 3, 0, True),
]


@pytest.mark.parametrize(("settings", "modules", "numbers", "guided"), COUNTED)
def test_parts_and_blocks_are_chosen_as_by_sd_scripts(
    settings: dict[str, Any], modules: int, numbers: int, guided: bool
) -> None:
    family, config = FAMILIES["flux"], load_config(overrides={"network_dim": 8, **settings})
    spec = make_spec(config.network, rates(config, family.parts), *config.of_adapters)
    configs = {**family.configs, DENOISER: {**TRANSFORMER_CONFIG, "guidance_embeds": guided}}
    selected = spec.select(family.targets(configs, conv=True))
    assert len(selected) == modules
    # sd-scripts' count leaves the alphas out.
    counted = sum(spec.rank(target) * (target.in_features + target.out_features) for target in selected)
    assert numbers in (0, counted)


def test_ranks_by_part_are_each_its_own() -> None:
    ranks = {"img_attn_dim": 2, "txt_attn_dim": 3, "img_mlp_dim": 5, "txt_mlp_dim": 6, "img_mod_dim": 7}
    ranks |= {"txt_mod_dim": 9, "single_dim": 10, "single_mod_dim": 11}
    family, config = FAMILIES["flux"], load_config(overrides={**ranks, "in_dims": [1, 2, 3, 4, 5]})
    spec = make_spec(config.network, ("transformer",), *config.of_adapters)
    found = {target.name: spec.rank(target) for target in spec.select(family.targets(family.configs, conv=True))}
    for part, layers in (("img", ("attn_qkv", "attn_proj", "mlp_0", "mlp_2", "mod_lin")), ("txt", ("attn_qkv",))):
        for layer in layers:
            assert found[f"lora_unet_double_blocks_7_{part}_{layer}"] == ranks[f"{part}_{layer.split('_')[0]}_dim"]
    assert [found[f"lora_unet_single_blocks_37_{name}"] for name in ("linear1", "linear2", "modulation_lin")] == [
        10,
        10,
        11,
    ]
    first = ("img_in", "time_in_in_layer", "vector_in_out_layer", "guidance_in_in_layer", "txt_in")
    assert [found[f"lora_unet_{name}"] for name in first] == [1, 2, 3, 4, 5]
    assert spec.network_args()["in_dims"] == "[1, 2, 3, 4, 5]"


def test_latents_are_packed_as_by_sd_scripts() -> None:
    latents = torch.arange(48.0).view(1, 2, 4, 6)
    assert packed(latents).tolist() == GOLDEN["pack"]["packed"]
    assert places(2, 3).tolist() == GOLDEN["pack"]["img_ids"][0]
    assert torch.equal(unpacked(packed(latents), 2, 3), latents)


def golden_model() -> FluxTransformer2DModel:
    """Return the recorded transformer, read as a file in the original's layout."""
    keys = GOLDEN["tiny_model"]["keys"]
    weights = {name: rule(name, tuple(shape), 0.05) for name, shape in keys.items()}
    weights = {name: value + 1 if name.endswith(".scale") else value for name, value in weights.items()}
    module = build_transformer(tiny.TRANSFORMER)
    read = TransformerWeights(weights, "", list(module.state_dict()))
    assert set(read.used) == set(weights)
    names = {own: own for own in module.state_dict()}
    return fill(module, read, names, device=CPU, dtype=torch.float32, source="recorded")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_transformer_computes_as_sd_scripts(masked: bool, checkpointing: bool) -> None:
    told = GOLDEN["tiny_model"]
    text = {"context": rule("txt", (2, 7, 48), 1.0), "pooled": rule("y", (2, 32), 1.0)}
    if masked:
        text["mask"] = torch.tensor(told["mask"]).bool()
    noisy = rule("x", (2, 16, 4, 6), 1.0).requires_grad_()
    made = run(
        golden_model(),
        noisy,
        torch.tensor(told["t"]),
        text,
        torch.tensor(told["guidance"]),
        checkpointing=checkpointing,
    )
    close(made.flatten()[:: told["output_stride"]].detach(), told["with_mask" if masked else "output_unpacked"])
    made.square().sum().backward()
    assert noisy.grad is not None and bool(noisy.grad.isfinite().all())


def test_sigma_and_guidance_are_embedded_as_by_sd_scripts() -> None:
    embed = golden_model().time_text_embed.time_proj
    for values, key in (("t", "time_embedding"), ("guidance", "guidance_embedding")):
        told = GOLDEN[key]
        made = embed(torch.tensor(told[values]) * 1000)
        close(torch.cat([made[:, :4], made[:, 128:132]], dim=1), told["first_4_and_128_to_131"])


def test_the_vae_computes_as_sd_scripts() -> None:
    told = GOLDEN["tiny_vae"]
    config = {
        **VAE_CONFIG,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
    }
    module = build_empty(AutoencoderKL.from_config, config)
    names = {own: vae_name(own, config) for own in module.state_dict()}
    assert len(names) == told["keys"]
    weights = {}
    for own, name in names.items():
        shape = tuple(module.state_dict()[own].shape)
        # The middle's attention is made of 1x1 convolutions there.
        shape = (*shape, 1, 1) if "attn" in name and len(shape) == 2 else shape
        value = rule(name, shape, 0.05)
        weights[name] = value + 1 if "norm" in name and name.endswith(".weight") else value
    vae = fill(module, weights, names, device=CPU, dtype=torch.float32, source="recorded")
    latents = FAMILIES["flux"].latents
    with torch.no_grad():
        posterior = vae.encode(rule("image", (1, 3, 16, 16), 1.0)).latent_dist
        close(posterior.mean.flatten()[:: told["stride"]], told["mean"])
        close(posterior.std.flatten()[:: told["stride"]], told["std"])
        taken = latents.to_model(posterior.mean)
        close(taken.flatten()[:: told["stride"]], told["latents_from_the_mean"])
        drawn = vae.decode(latents.from_model(taken)).sample
        # The recorded numbers are float32's: the same in float64 is 3.6e-5 away from them.
        close(drawn.flatten()[:: told["decoded_stride"]], told["decoded_from_them"], off=5e-5)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("layout", ["original", "ComfyUI", "diffusers"])
def test_every_weight_of_the_published_models_is_mapped(guided: bool, layout: str, tmp_path: Path) -> None:
    """By shapes alone: none is left, none missing, and the header tells the configuration."""
    config = {**TRANSFORMER_CONFIG, "guidance_embeds": guided}
    theirs = build_empty(FluxTransformer2DModel.from_config, config).state_dict()
    ours = build_transformer(config)
    prefix = "model.diffusion_model." if layout == "ComfyUI" else ""
    if layout == "diffusers":
        published = dict(theirs)
    else:
        published = {prefix + original_name(name): value for name, value in ours.state_dict().items()}
        assert len(published) == (780 if guided else 776)
    read = TransformerWeights(published, prefix, list(ours.state_dict()))
    assert sorted(read.used) == sorted(published)
    assert all(read[name].shape == value.shape for name, value in ours.state_dict().items())
    assert sum(value.numel() for value in published.values()) == (11_901_408_320 if guided else 11_891_178_560)
    header = Header({name: tuple(value.shape) for name, value in published.items()}, {}, "safetensors")
    family = FAMILIES["flux"]
    assert family.matches_file(header)
    assert family.marks(header)[DENOISER] == {key: config[key] for key in family.marks(header)[DENOISER]}


def test_every_weight_of_a_folder_and_of_files_is_looked_for(tmp_path: Path) -> None:
    """What a header lacks is named before anything is read."""
    family, made = FAMILIES["flux"], tiny.modules()
    configs = {**family.configs, **tiny.described(), T5: tiny.T5_SIZES}
    for component, shapes in family.shapes(configs).items():
        state = {name: tuple(value.shape) for name, value in made[component].state_dict().items()}
        tables = {"shared.weight", TABLE} if component == T5 else set()
        assert dict(shapes) == {name: shape for name, shape in state.items() if name not in tables}
    given = tiny.write_files(tmp_path)
    for component, key in (
        (DENOISER, "pretrained_model_name_or_path"),
        (T5, "t5xxl"),
        ("vae", "vae"),
        (CLIP, "clip_l"),
    ):
        tensors = tiny.parts()[component]
        lost = next(name for name in reversed(tensors) if "norm" in name)
        torn = {name: value for name, value in tensors.items() if name != lost}
        path = tiny.write(tmp_path / "torn.safetensors", torn, {component: tiny.described().get(component, {})})
        with pytest.raises(ModelError, match=lost.replace(".", r"\.")):
            recognise_chosen(load_config(overrides={**given, key: str(path)}))


def test_all_forms_are_one_model(forms: dict[str, dict[str, str]]) -> None:
    seen = {name: recognise_chosen(load_config(overrides=given)) for name, given in forms.items()}
    assert {each.family for each in seen.values()} == {"flux"}
    assert recognise(forms["files"]["pretrained_model_name_or_path"]).missing == ("vae", CLIP, T5)
    made = {name: predicted(loaded(given)) for name, given in forms.items()}
    reference = made.pop("folder")
    assert reference.abs().max() > 0.01
    for name, other in made.items():
        torch.testing.assert_close(other, reference, rtol=1e-5, atol=1e-6, msg=name)


def test_it_computes_as_diffusers_and_transformers(forms: dict[str, dict[str, str]]) -> None:
    models, bundle = tiny.modules(), loaded(forms["folder"])
    tokens = tokens_of(bundle, "a cat", "red")
    with torch.no_grad():
        text = bundle.encode_text(tokens)
        pooled = models[CLIP](tokens[CLIP]["ids"][:, 0]).pooler_output
        states = models[T5](tokens[T5]["ids"]).last_hidden_state
        torch.testing.assert_close(text["pooled"], pooled)
        torch.testing.assert_close(text["context"], states)
        drawn = models[DENOISER](
            hidden_states=packed(rule("x", (2, 16, 8, 6), 1.0)),
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=torch.tensor([0.3, 0.85]),
            guidance=torch.tensor([1.0, 3.5]),
            img_ids=places(4, 3),
            txt_ids=torch.zeros(states.shape[1], 3),
        ).sample
    torch.testing.assert_close(predicted(bundle), unpacked(drawn, 4, 3), rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_one_in_the_original_is_computed_once_in_a_pass(forms: dict[str, dict[str, str]]) -> None:
    bundle, counted = loaded(forms["files"]), list[str]()
    for name, layer in bundle.components[DENOISER].named_modules():
        if name.rpartition(".")[2] in ("qkv", "added_qkv", "linear1"):
            layer.register_forward_hook(lambda *_, name=name: counted.append(name))
    predicted(bundle)
    assert len(counted) > 2
    assert sorted(counted) == sorted(set(counted))


def test_a_transformer_alone_of_diffusers_is_read(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    tensors = {name: value.clone() for name, value in tiny.modules()[DENOISER].state_dict().items()}
    path = tiny.write(tmp_path / "diffusion_pytorch_model.safetensors", tensors, tiny.described())
    given = {**forms["files"], "pretrained_model_name_or_path": str(path)}
    torch.testing.assert_close(predicted(loaded(given)), predicted(loaded(forms["folder"])), rtol=1e-5, atol=1e-6)


def scaled(tensors: dict[str, Tensor], form: str) -> dict[str, Tensor]:
    """Store every matrix in 8 bits with a scale, in one of ComfyUI's forms."""
    made: dict[str, Tensor] = {} if form == "comfy_quant" else {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    for name, value in tensors.items():
        layer = name.removesuffix(".weight")
        if value.dim() != 2 or not name.endswith(".weight") or "embed" in name or "shared" in name:
            made[name] = value
            continue
        scale = value.abs().max() / 448
        made[name] = (value / scale).to(torch.float8_e4m3fn)
        if form == "scaled_fp8":
            made |= {f"{layer}.scale_weight": scale, f"{layer}.scale_input": torch.ones(())}
        else:
            told = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
            made |= {f"{layer}.weight_scale": scale.view(1), f"{layer}.comfy_quant": told}
    return made


@pytest.mark.parametrize("form", ["plain", "scaled_fp8", "comfy_quant"])
def test_weights_in_eight_bits_mean_what_they_meant(
    forms: dict[str, dict[str, str]], tmp_path: Path, form: str
) -> None:
    parts, given = tiny.parts(), dict(forms["files"])
    for name, key in ((DENOISER, "pretrained_model_name_or_path"), (T5, "t5xxl")):
        made = scaled(parts[name], form)
        if form == "plain":
            made = {key_: value.to(torch.float8_e4m3fn) for key_, value in parts[name].items()}
        given[key] = str(tiny.write(tmp_path / tiny.FILES[name], made, {name: tiny.described().get(name, {})}))
    tiny.vocabulary().save(str(tmp_path / "tokenizer.json"))
    found, reference = predicted(loaded(given)), predicted(loaded(forms["files"]))
    error = (found - reference).norm() / reference.norm()
    assert 0 < error < 0.1
    assert recognise(given["pretrained_model_name_or_path"]).precision == "fp8"


def test_other_small_formats_are_refused_by_name(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    made = scaled(tiny.parts()[DENOISER], "comfy_quant")
    told = torch.tensor(list(json.dumps({"format": "nvfp4"}).encode()), dtype=torch.uint8)
    made = {name: told.clone() if name.endswith("comfy_quant") else value for name, value in made.items()}
    path = tiny.write(tmp_path / "flux.safetensors", made, tiny.described())
    with pytest.raises(ModelError, match="nvfp4"):
        loaded({**forms["files"], "pretrained_model_name_or_path": str(path)})
    gguf = tmp_path / "flux.gguf"
    gguf.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match="GGUF"):
        recognise(gguf)


def with_width(width: int) -> dict[str, Tensor]:
    tensors = {name: torch.zeros(1) for name in tiny.parts()[DENOISER]}
    return {**tensors, "img_in.weight": torch.zeros(4, width)}


@pytest.mark.parametrize(
    ("tensors", "name", "what"),
    [
        (with_width(384), "x", "FLUX.1 Fill"),
        (with_width(128), "x", "FLUX.1 Depth or Canny"),
        (with_width(64), "flux1-kontext-dev", "FLUX.1 Kontext"),
        ({**with_width(64), "distilled_guidance_layer.in_proj.weight": torch.zeros(1)}, "x", "Chroma"),
        ({**with_width(64), "single_stream_modulation.lin.weight": torch.zeros(1)}, "x", "Flux 2"),
        ({**with_width(64), "double_blocks.0.img_mlp.0.weight.absmax": torch.zeros(1)}, "x", "4 bits"),
    ],
)
def test_relatives_are_told_apart_and_refused(tensors: dict[str, Tensor], name: str, what: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match=what) as caught:
        recognise(tmp_path / f"{name}.safetensors")
    assert caught.value.remedy


@pytest.mark.parametrize("pipeline", ["FluxKontextPipeline", "FluxFillPipeline", "FluxControlPipeline"])
def test_relatives_in_folders_are_refused(pipeline: str, tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": pipeline}))
    with pytest.raises(ModelError, match="FLUX.1"):
        recognise(folder)


def test_what_is_missing_or_wrong_is_asked_for_by_name(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    given = forms["files"]
    for key, title in (("clip_l", "clip-l"), ("t5xxl", "t5"), ("vae", "VAE")):
        with pytest.raises(ModelError, match=f"{key}.*{title}"):
            recognise_chosen(load_config(overrides={**given, key: ""}))
        with pytest.raises(ModelError, match=f"{key}.*holds no {title}"):
            recognise_chosen(load_config(overrides={**given, key: given["clip_l" if key != "clip_l" else "t5xxl"]}))
    wide = {name: torch.zeros(*(2 * side for side in value.shape)) for name, value in tiny.parts()[T5].items()}
    path = tiny.write(tmp_path / "wide.safetensors", wide, {})
    with pytest.raises(ModelError, match="t5xxl.*96 wide, and the transformer takes 48"):
        recognise_chosen(load_config(overrides={**given, "t5xxl": str(path)}))


def test_a_table_of_tokens_may_have_either_name(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    tensors = tiny.parts()[T5]
    both = {**tensors, TABLE: tensors["shared.weight"].clone(), "decoder.final_layer_norm.weight": torch.ones(3)}
    other = {TABLE if name == "shared.weight" else name: value for name, value in tensors.items()}
    reference = predicted(loaded(forms["files"]))
    for number, each in enumerate((both, other)):
        path = tiny.write(tmp_path / f"{number}.safetensors", each, {})
        tiny.vocabulary().save(str(tmp_path / "tokenizer.json"))
        assert torch.equal(predicted(loaded({**forms["files"], "t5xxl": str(path)})), reference)


def test_inspect_knows_it(forms: dict[str, dict[str, str]]) -> None:
    found = inspect(Path(forms["checkpoint"]["pretrained_model_name_or_path"]))
    assert (found["what"], found["missing"], found["vae"]) == ("a FLUX.1 model, dev", [], True)
    assert found["suits"]["resolution"] == "1024,1024" and "clip_skip" not in found["suits"]


# --- text ------------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def message(*fields: tuple[int, bytes]) -> bytes:
    return b"".join(varint(number << 3 | 2) + varint(len(value)) + value for number, value in fields)


def sentencepiece(path: Path) -> Path:
    """Write the small vocabulary as SentencePiece does."""
    pieces = json.loads(tiny.vocabulary().to_str())["model"]["vocab"]
    made = [
        (1, message((1, piece.encode())) + varint(2 << 3 | 5) + torch.tensor(score).numpy().tobytes())
        for piece, score in pieces
    ]
    path.write_bytes(message(*made, (3, message((1, b"nmt_nfkc")))))
    return path


def test_both_files_of_a_vocabulary_give_the_same_tokens(tmp_path: Path) -> None:
    tiny.vocabulary().save(str(tmp_path / "tokenizer.json"))
    sentencepiece(tmp_path / "spiece.model")
    made = [t5.load_tokenizer(tmp_path / name) for name in t5.VOCABULARY.names]
    for text in ("", "a cat", "  two   spaces ", "tok, class: 5 - ü 日本"):
        one, other = (t5.T5Tokenizer(each, 12, masked=True)(text) for each in made)
        assert torch.equal(one["ids"], other["ids"]) and torch.equal(one["mask"], other["mask"])
        assert one["ids"].shape == (12,) and one["ids"].dtype == torch.int64
        end = int(one["mask"].sum()) - 1
        assert one["ids"][end] == 1 and not one["ids"][end + 1 :].any()
    long = t5.T5Tokenizer(made[0], 4, masked=False)("a cat a cat a cat a cat")
    assert list(long) == ["ids"] and long["ids"][-1] == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"\x0a\xff", b"\x0a\x01\x0b", bytes(200), b"text"])
def test_a_damaged_vocabulary_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(ModelError, match="vocabulary"):
        t5.load_tokenizer(t5.VOCABULARY.find(str(tmp_path)))


def test_the_length_follows_the_model_and_the_setting(forms: dict[str, dict[str, str]], tmp_path: Path) -> None:
    assert loaded(forms["files"]).tokenize("a cat")[T5]["ids"].shape == (512,)
    assert loaded(forms["files"], t5xxl_max_token_length=77).tokenize("a cat")[T5]["ids"].shape == (77,)
    schnell = loaded(tiny.write_files(tmp_path / "schnell", guided=False))
    assert schnell.tokenize("a cat")[T5]["ids"].shape == (256,)
    assert predicted(schnell).isfinite().all()


def test_masked_padding_is_seen_by_nobody(forms: dict[str, dict[str, str]]) -> None:
    """Not by T5 and not in either kind of block: what stands there changes nothing."""
    bundle = loaded(forms["files"], apply_t5_attn_mask=True, t5xxl_max_token_length=24)
    tokens = tokens_of(bundle, "a cat", "red")
    other = copy.deepcopy(tokens)
    ids, mask = other[T5]["ids"], other[T5]["mask"]
    assert not mask.all()
    ids[~mask] = 7
    noisy, told = rule("x", (2, 16, 8, 6), 1.0), {"guidance": torch.ones(2)}
    with torch.no_grad():
        one, two = bundle.encode_text(tokens), bundle.encode_text(other)
        torch.testing.assert_close(one["context"][mask], two["context"][mask])
        made = [bundle.predict(noisy, torch.tensor([0.3, 0.8]), text, told) for text in (one, two)]
        torch.testing.assert_close(made[0], made[1], rtol=1e-5, atol=1e-6)
        unmasked = {name: value for name, value in one.items() if name != "mask"}
        assert (bundle.predict(noisy, torch.tensor([0.3, 0.8]), unmasked, told) - made[0]).abs().max() > 1e-4


def test_in_half_precision_sigma_is_told_whole(forms: dict[str, dict[str, str]]) -> None:
    bundle = families.load(load_config(overrides=dict(forms["files"])), device=CPU, dtype=torch.bfloat16)
    text = bundle.encode_text(tokens_of(bundle, "a cat", "red"))
    noisy, told = rule("x", (1, 16, 4, 4), 1.0).expand(2, -1, -1, -1), {"guidance": torch.ones(2)}
    text = {name: value[:1].expand(2, *value.shape[1:]) for name, value in text.items()}
    seen: list[Tensor] = []
    bundle.components[DENOISER].time_text_embed.time_proj.register_forward_hook(
        lambda _, given, made: seen.append(made)
    )
    with torch.no_grad():
        bundle.predict(noisy, torch.tensor([0.34299, 0.3435]), text, told)
    assert seen[0].dtype == torch.float32 and not torch.equal(seen[0][0], seen[0][1])


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(forms: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("runs")
    return Ground(
        forms["files"],
        folder,
        text_encoder_lr=[5e-4, 2e-4],
        train_t5xxl=True,
        t5xxl_max_token_length=24,
        flip_aug=True,
        max_train_steps=STEPS,
        timestep_sampling="flux_shift",
    )


@pytest.fixture(scope="module")
def straight(ground: Ground) -> Made:
    prompt = "a tok class --w 96 --h 64 --s 3 --g 2 --l 2 --n red\na cat --s 2 --w 64 --h 64"
    return ground.run("straight", sample_prompts=prompt, sample_every_n_steps=STEPS)


def test_it_trains_every_part_and_tells_of_it(ground: Ground, straight: Made) -> None:
    losses, tensors = straight
    assert len(losses) == STEPS
    assert {name.split("_")[1] for name in tensors} == {"te1", "te3", "unet"}
    assert all(value.abs().max() > 0 for name, value in tensors.items() if name.endswith("lora_up.weight"))
    with safe_open(ground.output / "straight" / "tiny.safetensors", "pt") as file:
        said = file.metadata()
    expected = {
        "ss_base_model_version": "flux1",
        "ss_network_module": "networks.lora_flux",
        "ss_v2": "False",
        "ss_model_type": "flux",
        "ss_timestep_sampling": "flux_shift",
        "ss_model_prediction_type": "raw",
        "ss_guidance_scale": "1.0",
        "ss_apply_t5_attn_mask": "False",
        "ss_discrete_flow_shift": "3.0",
        "ss_sigmoid_scale": "1.0",
        "ss_weighting_scheme": "none",
        "ss_logit_mean": "0.0",
        "ss_logit_std": "1.0",
        "ss_mode_scale": "1.29",
        "modelspec.architecture": "flux-1-dev/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.sai_model_spec": "1.0.1",
    }
    assert {key: said.get(key) for key in expected} == expected
    assert json.loads(said["ss_network_args"])["train_t5xxl"] == "True"
    assert "modelspec.prediction_type" not in said
    found = inspect(ground.output / "straight" / "tiny.safetensors")
    assert (found["kind"], found["family"]) == ("lora", "flux")


def test_samples_are_told_guidance_and_may_have_a_negative_prompt(ground: Ground, straight: Made) -> None:
    found = sorted((ground.output / "straight" / "tiny.run" / "samples").glob("*.png"))
    assert len(found) == 2
    for path, size, said in zip(found, ((96, 64), (64, 64)), ("CFG scale: 2.0", "CFG scale: 1.0"), strict=True):
        with Image.open(path) as picture:
            assert picture.size == size and said in picture.info["parameters"]
            assert len(picture.getcolors(96 * 64) or ()) > 50


@pytest.mark.skipif(sys.platform == "win32", reason="a kill is a signal")
def test_killed_runs_resume_bit_for_bit(ground: Ground, straight: Made) -> None:
    server, settings = RunServer(), ground.settings("killed", save_state_minutes=0.00001)
    for kill in (Kill("step", 2), Kill("state", 1)):
        assert server.run(settings, resume="auto", kill=kill) == -signal.SIGKILL
    assert server.run(settings, resume="auto") == 0
    assert_equal(ground.made("killed"), straight)


def test_captions_encoded_ahead_train_the_same(ground: Ground) -> None:
    frozen: dict[str, Any] = {"text_encoder_lr": 0, "apply_t5_attn_mask": True, "max_train_steps": 3}
    shuffled = {**frozen, "caption_variants": 3}
    ahead = ground.run("ahead", cache_text_encoder_outputs=True, **shuffled)
    assert_equal(ahead, ground.run("on disk", cache_text_encoder_outputs_to_disk=True, **shuffled))
    live = {**frozen, "shuffle_caption": False}
    assert_equal(ground.run("live", **live), ground.run("still", cache_text_encoder_outputs=True, **live))


def test_checkpointing_and_the_other_files_train_the_same(
    ground: Ground, straight: Made, forms: dict[str, dict[str, str]]
) -> None:
    own = {**dict.fromkeys(("clip_l", "t5xxl", "vae"), ""), **forms["folder"]}
    losses, tensors = ground.run("folder", gradient_checkpointing=True, cache_latents=False, **own)
    assert losses == pytest.approx(straight[0], rel=1e-4)
    assert all(torch.allclose(value, straight[1][name], atol=5e-4) for name, value in tensors.items())


@pytest.mark.slow
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


@pytest.mark.parametrize("kind", ["loha", "lokr", "locon", "oft", "ia3"])
def test_every_kind_of_adapter_trains_on_it(ground: Ground, kind: str) -> None:
    own = {"text_encoder_lr": 0, "network_type": kind, "max_train_steps": 2, "dora_wd": kind == "locon"}
    _, tensors = ground.run(kind, **own)
    assert any("single_blocks_1_linear1" in name for name in tensors) or kind == "ia3"


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_it_trains_on_a_small_base(ground: Ground, kind: str) -> None:
    losses, _ = ground.run(kind, quantize_base=kind, text_encoder_lr=0, max_train_steps=2)
    assert all(0 < loss < 10 for loss in losses)


def test_settings_of_other_models_are_refused_and_its_own_are_told(ground: Ground) -> None:
    with pytest.raises(ConfigError, match="min_snr_gamma"):
        plan(ground.config("snr", min_snr_gamma=5.0))
    lines = "\n".join(plan(ground.config("plan")).lines())
    assert "FLUX.1 (dev" in lines
    with pytest.raises(ConfigError, match="multiple of 16"):
        plan(ground.config("step", bucket_reso_steps=8))


# --- elsewhere -------------------------------------------------------------------------------------------------------


def test_diffusers_reads_every_layer_of_a_file() -> None:
    """Its converter has FLUX.1's widths built in: a file of rank 1 with the published names, and values that tell."""
    family, config = FAMILIES["flux"], load_config(overrides={"network_dim": 1, "network_alpha": 1.0})
    spec = make_spec(config.network, ("transformer",), config.transformer)
    shapes = spec.shapes(family.targets(family.configs, conv=True))
    state = {key: torch.full(shape, 1.0 + number) for number, (key, shape) in enumerate(shapes.items())}
    made = _convert_kohya_flux_lora_to_diffusers(state)
    model = build_empty(FluxTransformer2DModel.from_config, dict(TRANSFORMER_CONFIG))
    layers = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "_blocks." in name}
    read = {key.removeprefix("transformer.").partition(".lora_")[0] for key in made}
    assert read == layers
    assert len(made) == 2 * len(layers)


def test_a_layer_of_unknown_width_is_not_taken_apart() -> None:
    """Where query ends and key begins, only the model knows: said in a sentence, and nothing is written."""
    family = FAMILIES["flux"]
    published = family.targets(family.configs, conv=True)
    qkv = next(target for target in published if len(target.parts) == 3)
    own = {"alpha": torch.tensor(1.0), "lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(24, 2)}
    with pytest.raises(ModelError, match="has 24 rows, where a published model has 9216"):
        key_names.layer_in(DIFFUSERS, family, family.configs, qkv, own)


def test_the_copy_for_diffusers_is_loaded_whole_by_its_pipeline(
    straight: Made,
) -> None:
    """Every layer of transformer and CLIP-L, each with the strength that was trained; of T5 it reads none."""
    targets = FAMILIES["flux"].targets(TINY_CONFIGS, conv=True)
    copy_ = key_names.renamed(straight[1], DIFFUSERS, FAMILIES["flux"], TINY_CONFIGS, targets)
    made = tiny.modules()
    scheduler = FlowMatchEulerDiscreteScheduler()
    pipe = FluxPipeline(scheduler, made["vae"], made[CLIP], None, made[T5], None, made[DENOISER])
    pipe.load_lora_weights({key: value for key, value in copy_.items() if not key.startswith(T5)})
    counted = 0
    for target in targets:
        down, up = (straight[1].get(f"{target.name}.lora_{word}.weight") for word in ("down", "up"))
        if target.component == T5 or down is None or up is None:
            continue
        expected = up @ down * (straight[1][f"{target.name}.alpha"] / len(down))
        for path, rows in zip(
            FAMILIES["flux"].paths(target), expected.split(list(target.parts or (len(up),))), strict=True
        ):
            layer = made[target.component].get_submodule(path.removeprefix("text_model."))
            assert torch.allclose(layer.get_delta_weight("default_0"), rows, atol=1e-6), path
            counted += 1
    of_blocks = [name for name, layer in tiny.modules()[DENOISER].named_modules()
                 if isinstance(layer, nn.Linear) and "_blocks." in name]  # fmt: skip
    of_clip = [name for name, layer in tiny.modules()[CLIP].named_modules() if isinstance(layer, nn.Linear)]
    assert counted == len(of_blocks) + len(of_clip)
    assert counted == sum(hasattr(layer, "lora_A") for each in made.values() for layer in each.modules())


def test_comfyui_finds_every_layer_once() -> None:
    """Its map from the names in files to weights, which it makes of the weights' names in its own checkpoints."""
    config = load_config(overrides={"train_t5xxl": True, "in_dims": [4, 4, 4, 4, 4]})
    parts = ("transformer", CLIP, T5)
    family, spec = FAMILIES["flux"], make_spec(config.network, parts, config.transformer)
    targets = family.targets(TINY_CONFIGS, conv=True)
    file = {key: torch.ones(shape) for key, shape in spec.shapes(targets).items()}
    here = tiny.parts()
    weights = [f"diffusion_model.{name}" for name in here[DENOISER]]
    weights += [f"clip_l.transformer.{name}" for name in here[CLIP]]
    weights += [f"t5xxl.transformer.{name}" for name in here[T5]]
    known: dict[str, str] = {}
    for name in [each.removesuffix(".weight") for each in weights if each.endswith(".weight")]:
        start, _, path = name.partition(".transformer.")
        flat = path.replace(".", "_")
        if name.startswith("diffusion_model."):
            flat = name.removeprefix("diffusion_model.").replace(".", "_")
            known |= {f"lora_unet_{flat}": name, name: name}
        else:
            numbers = (1,) if start == "clip_l" else (2, 3)
            known |= {f"lora_te{number}_{flat}": name for number in numbers} | {f"text_encoders.{name}": name}
    matrices = [name for part in (DENOISER, CLIP, T5) for name, value in here[part].items() if value.dim() == 2]
    for dialect, ends in (("kohya", (".lora_up.weight", ".lora_down.weight", ".alpha")),
                          ("comfyui", (".lora_B.weight", ".lora_A.weight"))):  # fmt: skip
        keys = key_names.renamed(file, dialect, family, TINY_CONFIGS, targets)
        for end in ends:
            found = [known[key.removesuffix(end)] for key in keys if key.endswith(end)]
            assert len(found) == len(set(found)) == len(spec.select(targets))
        assert len(keys) == len(ends) * len(spec.select(targets))
        # All that are no table and not behind the last block.
        left = {name for name in matrices if not any(f"{name.removesuffix('.weight')}" in each for each in found)}
        assert all("embed" in name or "final_layer" in name or "bias" in name or "shared" in name for name in left)


def test_a_file_with_split_layers_counts_as_it_was_trained(tmp_path: Path) -> None:
    """sd-scripts writes the parts as one module, with the alpha of one of them."""
    names = {"lora_unet_single_blocks_0_linear1": (4, 64, 448), "lora_unet_double_blocks_0_img_attn_qkv": (3, 64, 192)}
    names["lora_unet_single_blocks_0_linear2"] = (1, 320, 64)
    tensors: dict[str, Tensor] = {}
    for name, (parts, inputs, outputs) in names.items():
        tensors |= {f"{name}.alpha": torch.tensor(2.0), f"{name}.lora_down.weight": torch.ones(4 * parts, inputs)}
        tensors[f"{name}.lora_up.weight"] = torch.ones(outputs, 4 * parts)
    said = {"ss_network_args": json.dumps({"split_qkv": "True"}), "ss_network_alpha": "2.0"}
    save_file(tensors, tmp_path / "split.safetensors", said)
    save_file(tensors, tmp_path / "whole.safetensors", {**said, "ss_network_args": "{}"})
    found = read_header(tmp_path / "split.safetensors")
    assert [module.alpha / module.rank for module in found.modules.values() if module.alpha] == [0.5, 0.5, 0.5]
    whole = read_header(tmp_path / "whole.safetensors")
    assert sorted(module.alpha / module.rank for module in whole.modules.values() if module.alpha) == [
        1 / 8,
        1 / 6,
        0.5,
    ]


def test_parts_are_trained_apart_and_written_as_one_layer(ground: Ground) -> None:
    """With split_qkv; the strength of a part is that of a LoRA of its rank."""
    asked: dict[str, Any] = {"network_dim": 4, "network_alpha": 2.0, "split_qkv": True}
    config = load_config(overrides={**asked, "img_attn_dim": 2})
    spec = make_spec(config.network, ("transformer",), config.transformer)
    model = tiny.modules()[DENOISER]
    built = build_transformer(tiny.TRANSFORMER)
    built.load_state_dict(dict(TransformerWeights(tiny.original(model), "", list(built.state_dict()))), assign=True)
    targets = FAMILIES["flux"].targets(TINY_CONFIGS, conv=True)
    adapter = spec.build({DENOISER: built}, targets, seed=1)
    for each in adapter.parameters():
        each.data.normal_(std=0.1, generator=torch.Generator().manual_seed(each.numel()))
    file, layer = adapter.tensors(), "lora_unet_single_blocks_1_linear1"
    assert {key: tuple(value.shape) for key, value in file.items()} == spec.shapes(targets)
    assert (file[f"{layer}.alpha"], file[f"{layer}.lora_down.weight"].shape[0]) == (8.0, 16)
    assert file["lora_unet_double_blocks_0_img_attn_qkv.alpha"] == 6.0
    up = file[f"{layer}.lora_up.weight"]
    assert not up[:64, 4:].any() and not up[192:, :12].any() and up[192:, 12:].any()
    inner, x = built.get_submodule("single_transformer_blocks.1.linear1"), torch.randn(3, 5, 64)
    by_hand = inner.base_layer(x) + 0.5 * x @ file[f"{layer}.lora_down.weight"].T @ up.T
    assert torch.allclose(inner(x), by_hand, atol=1e-5)
    # What it keeps for a resume is what is trained; a file goes on at the same place.
    state = {key: value.clone() for key, value in adapter.state().items()}
    assert {key: tuple(value.shape) for key, value in state.items()} == spec.state_shapes(targets)
    for back, given in ((adapter.restore, state), (adapter.load, {key: value.clone() for key, value in file.items()})):
        for each in adapter.parameters():
            each.data.zero_()
        back(given)
        assert all(torch.equal(value, adapter.state()[key]) for key, value in state.items())
    with pytest.raises(ModelError, match="mixes what split_qkv"):
        adapter.load({**file, f"{layer}.lora_up.weight": torch.ones_like(up)})
    adapter.limit_norms(0.01)
    after = adapter.tensors()
    product = 0.5 * after[f"{layer}.lora_up.weight"] @ after[f"{layer}.lora_down.weight"]
    assert torch.linalg.norm(product).item() == pytest.approx(0.01, rel=1e-4)


def test_a_run_with_parts_apart_goes_on_from_its_file(ground: Ground) -> None:
    asked: dict[str, Any] = {"network_train_unet_only": True, "split_qkv": True, "max_train_steps": 3}
    saved: dict[str, Any] = {"save_copy_for": "diffusers", "use_ema": True, "save_every_n_steps": 1}
    losses, tensors = ground.run("apart", rank_dropout=0.2, save_last_n_steps=1, **saved, **asked)
    path = ground.output / "apart" / "tiny.safetensors"
    header = read_header(path)
    name = "lora_unet_double_blocks_0_txt_attn_qkv"
    module = header.modules[name]
    assert module.rank == 3 * header.ranks["lora_unet_double_blocks_0_txt_attn_proj"]
    assert module.alpha == 3 * header.alphas["lora_unet_double_blocks_0_txt_attn_proj"]
    assert json.loads(header.metadata["ss_network_args"])["split_qkv"] == "True"
    assert all(value.abs().max() > 0 for key, value in tensors.items() if key.endswith("lora_up.weight"))
    # The copy has each part alone, with the rank that it was trained at; older copies go with their files.
    assert {each.name for each in path.parent.glob("*.safetensors")} == {
        f"tiny{step}{average}{copy_}.safetensors"
        for step in ("", "-step00000002", "-step00000003") for average in ("", "-ema") for copy_ in ("", "-diffusers")
    }  # fmt: skip
    copied = path.with_name("tiny-diffusers.safetensors")
    value = load_file(copied)["transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight"]
    assert torch.equal(value, tensors[f"{name}.lora_down.weight"].chunk(3)[1])
    seen = inspect(copied)
    assert (seen["kind"], seen["family"], seen["keys"]) == ("lora", "flux", "diffusers")
    for more in ({}, {"dim_from_weights": True}, {"dim_from_weights": True, "split_qkv": False}):
        other = {**asked, **more, "network_weights": str(path), "learning_rate": 1e-9, "max_train_steps": 1}
        _, again = ground.run(f"on {len(more)}", **other)
        close = (torch.allclose(again[key].float(), tensors[key].float(), atol=1e-4) for key in tensors)
        assert again.keys() == tensors.keys() and all(close)
    for wrong in ({"network_type": "loha"}, {"init_lora_weights": "pissa"}):
        with pytest.raises(ConfigError, match="split_qkv"):
            ground.config("wrong", **{**asked, **wrong})


# --- recipes, advice and the page ------------------------------------------------------------------------------------

RECIPE: dict[str, object] = {
    "network_module": "networks.lora_flux",
    "pretrained_model_name_or_path": "flux1-dev.safetensors",
    "ae": "ae.safetensors",
    "clip_l": "clip_l.safetensors",
    "t5xxl": "t5xxl_fp16.safetensors",
    "network_dim": 16,
    "network_alpha": 16,
    "network_args": ["train_blocks=single", "single_dim=8", "in_dims=[4,4,4,4,4]", "train_t5xxl=False"],
    "timestep_sampling": "shift",
    "discrete_flow_shift": 3.1582,
    "model_prediction_type": "raw",
    "guidance_scale": 1.0,
    "learning_rate": 1e-4,
    "max_train_steps": 10,
    "fp8_base": True,
}


def test_recipes_for_it_mean_what_they_meant() -> None:
    made = import_flat(RECIPE, known_settings())
    assert made.problems == []
    values = made.values
    assert values["model_family"] == "flux"
    expected = {"train_blocks": "single", "single_dim": 8, "vae": "ae.safetensors", "quantize_base": "fp8"}
    expected |= {"timestep_sampling": "shift", "discrete_flow_shift": 3.1582, "weighting_scheme": "none"}
    assert {key: values[key] for key in expected} == expected
    config = load_config(overrides={key: value for key, value in values.items() if value is not None})
    assert config.transformer.in_dims == (4,) * 5 and config.transformer.group_dims["txt_in"] == 4
    again = export_flat(to_flat(config), known_settings())
    assert again["network_module"] == "networks.lora_flux"
    assert (again["ae"], again["t5xxl"], again["guidance_scale"]) == ("ae.safetensors", "t5xxl_fp16.safetensors", 1.0)
    assert "vae" not in again and "train_blocks=single" in again["network_args"]  # type: ignore[operator]
    returned = import_flat(again, known_settings())
    assert returned.problems == []
    assert {key: returned.values[key] for key in expected} == expected


def test_a_recipe_that_leaves_the_prediction_out_is_asked() -> None:
    silent = {key: value for key, value in RECIPE.items() if key not in ("model_prediction_type", "guidance_scale")}
    made = import_flat(silent, known_settings())
    (problem,) = made.problems
    assert problem.key == "model_prediction_type" and "sigma_scaled" in problem.message
    # What it leaves out else is as it was there.
    assert (made.values["guidance_scale"], made.values["timestep_sampling"]) == (3.5, "shift")
    of_stable_diffusion = import_flat({**silent, "network_module": "networks.lora"}, known_settings())
    assert of_stable_diffusion.problems == [] and "t5xxl" in of_stable_diffusion.unused
    split = import_flat({**RECIPE, "network_args": ["split_qkv=True"]}, known_settings())
    assert split.values["split_qkv"] is True and not split.unsupported


def test_a_command_line_says_the_family_by_its_script(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    named = {"pretrained_model_name_or_path": "flux.safetensors", "t5xxl": "t5.safetensors", "ae": "ae.safetensors"}
    named |= {"network_module": "networks.lora_flux", "model_prediction_type": "raw", "guidance_scale": "1.0"}
    words = " ".join(f"--{key} {value}" for key, value in named.items())
    script.write_text(f"accelerate launch flux_train_network.py {words}")
    opened = open_recipe(script)
    assert (opened.config.model.model_family, opened.config.flow.model_prediction_type) == ("flux", "raw")


@pytest.mark.parametrize(
    ("settings", "variant", "rule_"),
    [
        ({"model_prediction_type": "sigma_scaled"}, "dev", "flow-prediction"),
        ({}, "schnell", "distilled-model"),
        ({"apply_t5_attn_mask": True}, "dev", "masked-padding"),
        ({"guidance_scale": 3.5}, "dev", "guidance-in-training"),
        ({"text_encoder_lr": 0}, "dev", "text-encoded-ahead"),
    ],
)
def test_advice_is_for_such_models_alone(settings: dict[str, object], variant: str, rule_: str) -> None:
    config = load_config(overrides=settings)

    def rules(family: str, kind: str = "") -> set[str]:
        return {each.rule for each in advise(config, Situation(model_family=family, model_variant=kind))}

    assert rule_ in rules("flux", variant)
    assert rule_ not in rules("sdxl") | rules("")
    merged = load_config(overrides={**settings, "base_weights": ["style.safetensors"]})
    told = {each.rule for each in advise(merged, Situation(model_family="flux", model_variant=variant))}
    assert (rule_ in told) is (rule_ != "text-encoded-ahead"), "then they stay in memory"
    usual = load_config(overrides={"network_dim": 8, "network_alpha": 8.0})
    fast = load_config(overrides={"learning_rate": 3e-4, "network_dim": 16, "network_alpha": 16.0})
    assert ["learning-rate" in {each.rule for each in advise(fast, Situation(model_family=name))}
            for name in ("flux", "sdxl")] == [False, True]  # fmt: skip
    assert "rank" not in {each.rule for each in advise(usual, Situation(model_family="flux", model_variant="dev"))}


def test_the_page_shows_what_applies_and_what_each_file_is(ground: Ground) -> None:
    config = ground.config("page")
    survey = surveyed(config)
    said = notes(survey)
    assert said["clip_l"].startswith("CLIP-L") and said["t5xxl"].startswith("T5") and said["vae"].startswith("VAE")
    draft = Draft(Folders([ground.dataset.parent]))
    draft.lay(to_flat(config), "", "")
    shown = payload(draft, draft.check(), survey.problems, said, survey.process, survey.unused)
    hidden = shown["hidden"]
    assert isinstance(hidden, list)
    assert {"clip_skip", "max_token_length", "clip_g", "min_snr_gamma", "noise_offset"} <= set(hidden)
    assert not {"t5xxl", "clip_l", "vae", "guidance_scale", "timestep_sampling", "train_blocks"} & set(hidden)


def test_without_a_vocabulary_the_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="t5_tokenizer_path"):
        t5.VOCABULARY.find(str(tmp_path))
    with pytest.raises(ModelError, match="t5_tokenizer_path") as caught:
        t5.VOCABULARY.find("not//a name")
    assert "spiece.model" in str(caught.value)
