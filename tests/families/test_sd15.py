"""Stable Diffusion 1.x: every form of a checkpoint gives the same model, and the model does what sd-scripts' does."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn

from tests.helpers.checkpoints import tiny_modules, tiny_sd15, tiny_sd15_folder
from tests.helpers.texts import tokens_of
from trainer import families
from trainer.config import TrainingConfig, load_config
from trainer.families.reading.weights import fingerprint
from trainer.families.sd15 import facts
from trainer.families.sd15.bundle import Bundle
from trainer.families.text.clip import PromptTokenizer
from trainer.families.unet import weight_names
from trainer.families.unet.facts import UNET_PREFIX, VAE_PREFIX
from trainer.ground.errors import ConfigError, ModelError, Stopped

CPU = torch.device("cpu")


def settings(model: Path | str, **overrides: object) -> TrainingConfig:
    return load_config(overrides={"pretrained_model_name_or_path": str(model), **overrides})


def loaded(model: Path | str, dtype: torch.dtype = torch.float32, **overrides: object) -> Bundle:
    bundle = families.load(settings(model, **overrides), device=CPU, dtype=dtype)
    assert isinstance(bundle, Bundle)
    return bundle


@pytest.fixture(scope="module")
def bundle(models: dict[str, Path]) -> Bundle:
    """A shared bundle; tests leave it as they found it."""
    return loaded(models["file"])


def modules(bundle: Bundle) -> dict[str, nn.Module]:
    assert bundle.vae is not None
    return {**bundle.components, "vae": bundle.vae}


def same_bits(made: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    return made.keys() == expected.keys() and all(torch.equal(made[name], expected[name]) for name in expected)


# Loading


@pytest.mark.parametrize("form", ["file", "ckpt", "legacy", "folder"])
def test_every_form_gives_the_same_bits(models: dict[str, Path], form: str) -> None:
    unet, vae, text_encoder = tiny_modules()
    made = modules(loaded(models[form]))
    for name, module in {"unet": unet, "vae": vae, "text_encoder": text_encoder}.items():
        assert same_bits(made[name].state_dict(), module.state_dict()), name
        assert not any(weight.requires_grad for weight in made[name].parameters())
        assert not any(part.training for part in made[name].modules())


def test_forms_predict_the_same(models: dict[str, Path]) -> None:
    noisy, steps = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    results = []
    for form in ("file", "folder"):
        made = loaded(models[form])
        text = made.encode_text(tokens_of(made, "a cat", ""))
        results.append(made.predict(noisy, steps, text))
    assert torch.equal(*results)


def test_a_model_does_not_depend_on_its_file_once_loaded(tmp_path: Path) -> None:
    made = loaded(tiny_sd15(tmp_path))
    before = fingerprint(made.unet)
    (tmp_path / "tiny_sd15.safetensors").write_bytes(b"")
    assert fingerprint(made.unet) == before


def test_original_names_are_those_that_diffusers_reads() -> None:
    """Sent back through diffusers' own converters, every weight of the published model arrives where it came from."""
    with init_empty_weights():
        unet, vae = UNet2DConditionModel(**facts.UNET_CONFIG), AutoencoderKL(**facts.VAE_CONFIG)
    state = unet.state_dict()
    original = {UNET_PREFIX + weight_names.unet_name(name, facts.UNET_CONFIG): state[name] for name in state}
    assert len(original) == len(state) == 686
    converted = convert_ldm_unet_checkpoint(original, dict(unet.config))
    assert {name: id(value) for name, value in converted.items()} == {name: id(value) for name, value in state.items()}

    numbered = {name: torch.full((1, 1, 1, 1), float(number)) for number, name in enumerate(vae.state_dict())}
    original = {VAE_PREFIX + weight_names.vae_name(name, facts.VAE_CONFIG): numbered[name] for name in numbered}
    converted = convert_ldm_vae_checkpoint(original, dict(vae.config))
    assert {name: value.item() for name, value in converted.items()} == {
        name: value.item() for name, value in numbered.items()
    }


class Callback:
    """What PyTorch Lightning leaves in checkpoints: an object with a state."""

    def __init__(self) -> None:
        self.best = torch.ones(2)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_objects_beside_the_weights_are_passed_over(models: dict[str, Path], tmp_path: Path) -> None:
    content = torch.load(models["ckpt"], weights_only=True)
    path = tmp_path / "lightning.ckpt"
    torch.save({**content, "callbacks": {Callback: Callback()}}, path)
    assert same_bits(loaded(path).unet.state_dict(), tiny_modules()[0].state_dict())


def test_a_pickle_that_would_run_something_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "hostile.ckpt"
    torch.save({**torch.load(models["ckpt"], weights_only=True), "callbacks": Hostile(mark)}, path)
    with pytest.raises(ModelError, match="not safe"):
        loaded(path)
    assert not mark.exists()


def test_ema_copies_and_unused_entries_do_no_harm(models: dict[str, Path], tmp_path: Path) -> None:
    extra = {
        "model_ema.decay": torch.ones(1),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "first_stage_model.loss.logvar": torch.ones(1),
        "alphas_cumprod": torch.ones(1000),
    }
    path = edited(models["file"], tmp_path, **extra)
    assert fingerprint(loaded(path).unet) == fingerprint(tiny_modules()[0])


def test_text_encoder_without_the_level_text_model(models: dict[str, Path], tmp_path: Path) -> None:
    """Checkpoints of early mergers lack that part of the names."""
    path = rewritten(models["file"], tmp_path, lambda name: name.replace(".transformer.text_model.", ".transformer."))
    assert fingerprint(loaded(path).text_encoders["text_encoder"]) == fingerprint(tiny_modules()[2])


def rewritten(source: Path, folder: Path, rename) -> Path:
    path = folder / "rewritten.safetensors"
    save_file({rename(name): value for name, value in load_file(source).items()}, path, metadata_of(source))
    return path


def metadata_of(path: Path) -> dict[str, str]:
    return dict(families.read_model_header(path).metadata)


def edited(source: Path, folder: Path, *, without: str = "", **changes: torch.Tensor) -> Path:
    tensors = {name: value for name, value in load_file(source).items() if name != without}
    path = folder / "edited.safetensors"
    save_file(tensors | changes, path, metadata_of(source))
    return path


CONV = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("without", "changes", "expected"),
    [
        ("model.diffusion_model.out.2.bias", {}, r"lacks 1 of its UNet's .*model\.diffusion_model\.out\.2\.bias"),
        ("first_stage_model.quant_conv.bias", {}, r"lacks 1 of its VAE's .*quant_conv"),
        ("", {"model.diffusion_model.adapter.weight": torch.ones(1)}, r"no UNet.*has.*adapter"),
        ("", {"cond_stage_model.transformer.text_model.encoder.layers.3.x": torch.ones(1)}, r"no CLIPText.*layers\.3"),
        ("", {CONV: torch.ones(16, 4, 3, 3)}, r"another shape.*is \[16, 4, 3, 3\], not \[32, 4, 3, 3\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    models: dict[str, Path], tmp_path: Path, without: str, changes: dict[str, torch.Tensor], expected: str
) -> None:
    with pytest.raises(ModelError, match=expected):
        loaded(edited(models["file"], tmp_path, without=without, **changes))


def test_a_truncated_pickle_of_the_old_format_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "half.ckpt"
    path.write_bytes(models["legacy"].read_bytes()[:6_000_000])
    with pytest.raises(ModelError, match=r"half\.ckpt cannot be read"):
        loaded(path)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_folder_without_weights_names_the_component(models: dict[str, Path], tmp_path: Path, component: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["folder"], folder)
    for path in (folder / component).glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ModelError, match=rf"{component} holds no weights"):
        loaded(folder)


def test_a_folder_in_half_precision_or_in_parts_loads(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["folder"], folder)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = list(load_file(path).items())
    path.unlink()
    for number, part in enumerate((tensors[:100], tensors[100:]), 1):
        save_file(dict(part), folder / "unet" / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")
    made = loaded(folder)
    assert fingerprint(made.unet) == fingerprint(tiny_modules()[0])


@pytest.mark.parametrize(("unet", "text"), [("", ""), (".fp16", ".fp16"), (".fp16", "")])
def test_a_folder_of_pickles_loads(models: dict[str, Path], tmp_path: Path, unet: str, text: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["folder"], folder)
    for part, name in (("unet", f"diffusion_pytorch_model{unet}.bin"), ("text_encoder", f"pytorch_model{text}.bin")):
        (path,) = (folder / part).glob("*.safetensors")
        torch.save(load_file(path), folder / part / name)
        path.unlink()
    made = loaded(folder)
    assert fingerprint(made.unet) == fingerprint(tiny_modules()[0])
    assert fingerprint(made.text_encoders["text_encoder"]) == fingerprint(tiny_modules()[2])


def test_a_hub_id_comes_from_the_cache(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="no file or folder here"):
        loaded("someone/tiny")
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(models["folder"], repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert fingerprint(loaded("someone/tiny").unet) == fingerprint(tiny_modules()[0])


def test_stopping_passes_through(models: dict[str, Path]) -> None:
    seen = []

    def progress(phase: str, done: int, total: int) -> None:
        seen.append((phase, done, total))
        if done == 1:
            raise Stopped("stop")

    with pytest.raises(Stopped):
        families.load(settings(models["file"]), device=CPU, dtype=torch.float32, progress=progress)
    assert seen == [("loading the model", 0, 3), ("loading the model", 1, 3)]


def test_loading_leaves_the_global_generator_alone(models: dict[str, Path]) -> None:
    before = torch.get_rng_state()
    loaded(models["file"])
    assert torch.equal(torch.get_rng_state(), before)


# Tokens


def test_long_prompts_are_cut_every_75_tokens(bundle: Bundle) -> None:
    words = ["cat", "dog", "red"]
    ids = bundle.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    tokenize = PromptTokenizer(bundle.tokenizer, 2)
    made = tokenize(" ".join(words[number % 3] for number in range(100)))["ids"]
    texts = [ids[number % 3] for number in range(100)]
    assert made.tolist() == [[49406, *texts[:75], 49407], [49406, *texts[75:], *[49407] * 51]]
    whole = tokenize(" ".join(words[number % 3] for number in range(400)))["ids"]
    assert whole[1].tolist() == [49406, *(ids[number % 3] for number in range(75, 150)), 49407]


def test_the_tokenizer_goes_to_workers_without_the_models(bundle: Bundle) -> None:
    data = pickle.dumps(bundle.tokenize)
    assert len(data) < 10_000_000
    assert repr(pickle.loads(data)("a photo of a cat")) == repr(bundle.tokenize("a photo of a cat"))


def test_a_folder_brings_its_own_tokenizer_if_it_is_clips(
    models: dict[str, Path], bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models["folder"], folder)
    bundle.tokenizer.save_pretrained(folder / "tokenizer")
    own = loaded(folder)
    assert own.tokenizer is not bundle.tokenizer
    assert repr(own.tokenize("a photo of a cat")) == repr(bundle.tokenize("a photo of a cat"))
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ModelError, match="tokenizer"):
        loaded(folder)


# Text


def test_clip_skip_is_a_shorter_encoder(models: dict[str, Path], bundle: Bundle) -> None:
    tokens = tokens_of(bundle, "a cat", "a red dog on a bed")
    ids = tokens["text_encoder"]["ids"]
    for skip in (1, 2, 3):
        shorter = tiny_modules()[2]
        shorter.encoder.layers = shorter.encoder.layers[: 4 - skip]
        made = loaded(models["file"], clip_skip=skip).encode_text(tokens)
        assert made.keys() == {"context"}
        torch.testing.assert_close(made["context"], shorter(ids[:, 0]).last_hidden_state, rtol=1e-6, atol=1e-6)


def test_clip_skip_beyond_the_layers_is_a_config_error(models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"clip_skip.*3 layers"):
        loaded(models["file"], clip_skip=4)


def test_chunks_are_encoded_alone_and_joined(models: dict[str, Path]) -> None:
    made = loaded(models["file"], max_token_length=225)
    tokens = tokens_of(made, "cat " * 80, "a dog")
    ids, context = tokens["text_encoder"]["ids"], made.encode_text(tokens)["context"]
    alone = [tiny_modules()[2](ids[:, chunk]).last_hidden_state for chunk in range(3)]
    expected = torch.cat([alone[0][:, :1], *(states[:, 1:76] for states in alone), alone[2][:, 76:]], dim=1)
    assert context.shape == (2, 227, 32)
    torch.testing.assert_close(context, expected, rtol=1e-6, atol=1e-6)


# UNet


def test_gradients_reach_both_components(models: dict[str, Path]) -> None:
    made = loaded(models["file"], clip_skip=2)
    weights = [
        made.text_encoders["text_encoder"].encoder.layers[0].mlp.fc1.weight.requires_grad_(),
        made.unet.down_blocks[0].attentions[0].proj_in.weight.requires_grad_(),
    ]
    text = made.encode_text(tokens_of(made, "a cat"))
    made.predict(torch.randn(1, 4, 8, 8), torch.tensor([10]), text).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights)


def test_gradient_checkpointing_changes_no_gradient(models: dict[str, Path]) -> None:
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    gradients = []
    for checkpointing in (False, True):
        made = loaded(models["file"])
        if checkpointing:
            made.enable_gradient_checkpointing()
        weight = made.text_encoders["text_encoder"].encoder.layers[0].self_attn.q_proj.weight.requires_grad_()
        layer = made.text_encoders["text_encoder"].encoder.layers[1]
        calls = count_calls(made.unet.down_blocks[1].resnets[0]), count_calls(layer.mlp.fc1)
        text = made.encode_text(tokens_of(made, "a cat", ""))
        made.predict(noisy, torch.tensor([10, 900]), text).square().mean().backward()
        gradients.append(weight.grad)
        # Checkpointed parts run again in the backward pass.
        assert [len(call) for call in calls] == [1 + checkpointing] * 2
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_predict_takes_any_dtype_and_answers_in_its_own(models: dict[str, Path]) -> None:
    made = loaded(models["file"], torch.bfloat16)
    text = {"context": torch.randn(1, 77, 32)}
    assert made.predict(torch.randn(1, 4, 8, 8), torch.tensor([1]), text).dtype == torch.bfloat16


def test_noise_schedule_and_prediction_type(models: dict[str, Path], bundle: Bundle) -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = torch.cumprod(1 - betas, dim=0).float()
    assert bundle.process.schedule.alphas_cumprod.dtype == torch.float32
    torch.testing.assert_close(bundle.process.schedule.alphas_cumprod, expected, rtol=1e-5, atol=0)
    assert (bundle.process.prediction_type, bundle.notices) == ("epsilon", ())
    velocity = loaded(models["file"], v_parameterization=True)
    assert velocity.process.prediction_type == "v_prediction"
    assert "v_parameterization" in velocity.notices[0]


# VAE


def test_images_become_mean_and_deviation_and_back(bundle: Bundle) -> None:
    vae = tiny_modules()[1]
    pixels = torch.rand(2, 3, 64, 48) * 2 - 1
    mean, deviation = bundle.encode_images(pixels)
    expected = vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, expected.mean)
    torch.testing.assert_close(deviation, expected.std)
    assert mean.shape == (2, 4, 8, 6)
    decoded = bundle.decode_latents(mean * 0.18215)
    torch.testing.assert_close(decoded, vae.decode(expected.mean).sample.clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_vae_key_follows_weights_and_dtype_not_the_form(
    models: dict[str, Path], bundle: Bundle, tmp_path: Path
) -> None:
    assert loaded(models["folder"]).vae_key == bundle.vae_key
    assert loaded(models["file"], torch.bfloat16).vae_key != bundle.vae_key
    assert loaded(models["file"], torch.bfloat16, no_half_vae=True).vae_key == bundle.vae_key
    assert loaded(tiny_sd15(tmp_path, seed=1)).vae_key != bundle.vae_key


def test_half_precision_that_overflows_goes_over_to_float32(models: dict[str, Path], tmp_path: Path) -> None:
    name = "first_stage_model.encoder.conv_in.weight"
    path = edited(models["file"], tmp_path, **{name: load_file(models["file"])[name] * 1e5})
    pixels = torch.rand(1, 3, 64, 64)
    made = loaded(path, torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        mean, _ = made.encode_images(pixels)
    assert made.vae is not None and made.vae.dtype == torch.float32
    assert "no_half_vae" in made.notices[0]
    torch.testing.assert_close(mean, loaded(path).encode_images(pixels)[0])


def test_latents_of_a_training_gone_wrong_are_black(bundle: Bundle) -> None:
    assert bool((bundle.decode_latents(torch.full((1, 4, 8, 8), torch.nan)) == -1).all())


@pytest.mark.parametrize("form", ["checkpoint", "bare", "diffusers", "before 2023", "folder", "model folder"])
def test_another_vae_in_every_form(models: dict[str, Path], tmp_path: Path, form: str) -> None:
    vae = tiny_modules(seed=5)[1]
    made = loaded(models["file"], vae=str(write_vae(tmp_path, form, vae, models["file"])))
    assert made.vae_key == fingerprint(vae)
    assert fingerprint(made.unet) == fingerprint(tiny_modules()[0])


def write_vae(folder: Path, form: str, vae: AutoencoderKL, model: Path) -> Path:
    path = folder / "vae.safetensors"
    original = {weight_names.vae_name(name, vae.config): value for name, value in vae.state_dict().items()}
    writers = {
        "checkpoint": lambda: tiny_sd15(folder, seed=5),
        "bare": lambda: save_file(original, path, metadata_of(model)),
        "diffusers": lambda: save_file(vae.state_dict(), path, metadata_of(model)),
        "before 2023": lambda: save_file(
            {weight_names.vae_name_before_2023(name): value for name, value in vae.state_dict().items()},
            path,
            metadata_of(model),
        ),
        "folder": lambda: vae.save_pretrained(folder / "other"),
        "model folder": lambda: tiny_sd15_folder(folder, seed=5),
    }
    writers[form]()
    places = {"checkpoint": "tiny_sd15.safetensors", "folder": "other", "model folder": "tiny_sd15"}
    return folder / places.get(form, path.name)


@pytest.mark.parametrize("vae", ["missing.safetensors", "{folder}"])
def test_a_vae_that_is_none_is_refused(models: dict[str, Path], tmp_path: Path, vae: str) -> None:
    with pytest.raises(ModelError, match="missing.safetensors|config.json"):
        loaded(models["file"], vae=vae.format(folder=tmp_path))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["lora_unet_x.lora_up.weight"], "a LoRA file, not a base model and holds no VAE"),
        (["text_model.final_layer_norm.weight"], "a text encoder alone and holds no VAE"),
        (["first_stage_model.encoder.conv_in.weight"], "holds no VAE"),
    ],
)
def test_another_file_as_the_vae_is_named(models: dict[str, Path], tmp_path: Path, names: list[str], what: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.ones(1) for name in names}, path)
    with pytest.raises(ModelError, match=f"vae: .*other.safetensors is .*{what}"):
        families.recognise_chosen(settings(models["file"], vae=str(path)))


def test_a_checkpoint_without_a_vae_asks_for_one(models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    weights = {name: value for name, value in load_file(models["file"]).items() if not name.startswith("first_stage")}
    save_file(weights, path, metadata_of(models["file"]))
    with pytest.raises(ModelError, match="has no VAE inside"):
        families.recognise_chosen(settings(path))
    assert families.recognise_chosen(settings(path, vae=str(models["file"]))).family == "sd15"


# Memory


def test_release_frees_and_use_loads_again(models: dict[str, Path]) -> None:
    made = loaded(models["file"])
    vae, encoder = weakref.ref(made.vae), weakref.ref(made.text_encoders["text_encoder"])
    pixels, ids = torch.rand(1, 3, 32, 32), tokens_of(made, "a cat")
    mean, context = made.encode_images(pixels)[0], made.encode_text(ids)["context"]
    made.release_vae()
    made.release_text_encoders()
    gc.collect()
    assert vae() is None and encoder() is None
    assert made.vae is None and made.components.keys() == {"unet"}
    assert torch.equal(made.encode_images(pixels)[0], mean)
    assert torch.equal(made.encode_text(ids)["context"], context)


def test_moving_keeps_the_parameters(models: dict[str, Path]) -> None:
    made = loaded(models["file"])
    before = {id(weight) for weight in made.unet.parameters()}
    made.to(CPU)
    assert {id(weight) for weight in made.unet.parameters()} == before
    assert made.device == CPU


def test_a_family_that_is_not_the_files_is_refused(models: dict[str, Path]) -> None:
    assert loaded(models["file"], model_family="sd15").family == "sd15"
    assert families.FAMILIES["sd15"].targets(families.recognise(models["file"]).configs, conv=True) == loaded(
        models["file"]
    ).targets(conv=True)
