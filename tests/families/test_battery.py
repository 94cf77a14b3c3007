"""Every family keeps the same promises, on a tiny model with its real structure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers.families import TINY, Tiny
from tests.helpers.runs import tiny_config, tiny_settings, write_dataset
from tests.helpers.texts import tokens_of
from trainer import families
from trainer.adapters import make_spec
from trainer.adapters.lora.adapter import LoraAdapter
from trainer.config import load_config, rates
from trainer.families.reading.headers import read_model_header
from trainer.families.reading.weights import fingerprint
from trainer.families.text.clip import clip_tokenizer
from trainer.families.unet.bundle import StableBundle
from trainer.families.unet.facts import EPSILON, VELOCITY
from trainer.ground.commands import Command, Inbox
from trainer.ground.events import Event, StepDone
from trainer.planning.plan import plan
from trainer.results.export import read_adapter, save
from trainer.run import Start, train

CPU = torch.device("cpu")
DATA = Path(__file__).parents[1] / "data"
TOKENS = json.loads((DATA / "tokens_families.json").read_text())
TOKENS["sd15"] = [{**case, "ids": [case["chunks"]]} for case in json.loads((DATA / "tokens_sd15.json").read_text())]
FAMILIES = list(TINY)
STEPS = 6


@dataclass(frozen=True)
class Ground:
    """A family's tiny model in all forms, and a folder of pictures."""

    family: str
    tiny: Tiny
    file: Path
    ckpt: Path
    folder: Path
    half: Path
    dataset: Path
    output: Path

    def settings(self, output: str, model: Path | None = None, **settings: object) -> dict[str, object]:
        """A run with all parts trained and everything random in it."""
        return tiny_settings(
            model or self.file,
            self.dataset,
            self.output / output,
            **{
                "max_train_steps": STEPS,
                "text_encoder_lr": [5e-4, 3e-4],
                "flip_aug": True,
                "shuffle_caption": True,
                "conv_dim": 2,
                "save_every_n_epochs": None,
                **settings,
            },
        )

    def run(self, output: str, model: Path | None = None, **settings: object) -> tuple[list[float], Path]:
        """Train and return the losses and the finished file."""
        told: list[Event] = []
        config = load_config(overrides=self.settings(output, model, **settings))
        finished = train(config, emit=told.append)
        return [event.loss for event in told if isinstance(event, StepDone)], Path(finished.path)

    def bundle(self, model: Path | None = None, dtype: torch.dtype = torch.float32, **settings: object) -> StableBundle:
        config = load_config(overrides={"pretrained_model_name_or_path": str(model or self.file), **settings})
        made = families.load(config, device=CPU, dtype=dtype)
        assert isinstance(made, StableBundle)
        return made

    def pipeline(self) -> Any:
        """Return the family's diffusers pipeline, made from the modules, with no tokenizer of anybody's folder."""
        modules = self.tiny.modules()
        kind = getattr(diffusers, self.tiny.pipeline)
        extra = {} if "text_encoder_2" in modules else {"safety_checker": None, "feature_extractor": None}
        second = {"tokenizer_2": padded_with_exclamation()} if "text_encoder_2" in modules else {}
        tokenizer = padded_with_exclamation() if self.family == "sd2" else clip_tokenizer()
        scheduler = diffusers.DDIMScheduler(**self.tiny.scheduler)
        return kind(**modules, tokenizer=tokenizer, scheduler=scheduler, **extra, **second)


def metadata_of(path: Path) -> dict[str, str]:
    return dict(read_model_header(path).metadata)


def padded_with_exclamation() -> Any:
    """CLIP's tokenizer as the second one of SDXL and that of SD 2 are published; "!" is not used in these tests."""
    return clip_tokenizer(True)


@pytest.fixture(scope="module", params=FAMILIES)
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder, tiny = tmp_path_factory.mktemp(request.param), TINY[request.param]
    return Ground(
        request.param,
        tiny,
        tiny.write_file(folder / "tiny.safetensors"),
        tiny.write_ckpt(folder / "tiny.ckpt"),
        tiny.write_folder(folder / "tiny"),
        tiny.write_folder(folder / "half", variant="fp16"),
        write_dataset(folder / "pictures"),
        folder / "out",
    )


@pytest.fixture(scope="module")
def trained(ground: Ground) -> tuple[list[float], Path]:
    """Losses and LoRA of a run from the single file."""
    return ground.run("file")


def modules_of(bundle: StableBundle) -> dict[str, nn.Module]:
    assert bundle.vae is not None
    return {**bundle.components, "vae": bundle.vae}


# Recognition and loading


def test_recognised_from_the_header(ground: Ground) -> None:
    forms = {ground.file: "file", ground.ckpt: "file", ground.folder: "folder", ground.half: "folder"}
    for path, form in forms.items():
        seen = families.recognise(path)
        assert (seen.family, seen.form) == (ground.family, form)
        assert seen.precision == ("fp16" if path == ground.half else "fp32")
        assert {name for name in seen.configs if name.startswith("text")} == set(ground.tiny.text_encoders)


@pytest.mark.parametrize("form", ["file", "ckpt", "folder"])
def test_every_form_gives_the_same_bits(ground: Ground, form: str) -> None:
    made = modules_of(ground.bundle(getattr(ground, form)))
    for name, module in ground.tiny.modules().items():
        state, expected = made[name].state_dict(), module.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected), name
        assert not any(weight.requires_grad for weight in made[name].parameters())


def test_a_folder_of_half_precision_variants_loads(ground: Ground) -> None:
    made = modules_of(ground.bundle(ground.half))
    for name, module in ground.tiny.modules().items():
        expected = {key: value.half().float() for key, value in module.state_dict().items()}
        assert all(torch.equal(value, expected[key]) for key, value in made[name].state_dict().items()), name


def test_diffusers_reads_the_single_file_as_the_same_model(ground: Ground, tmp_path: Path) -> None:
    """The file that the other tests read is one that the community's tools read."""
    kind = getattr(diffusers, ground.tiny.pipeline)
    tokenizers = {"tokenizer": clip_tokenizer()}
    if "text_encoder_2" in ground.tiny.text_encoders:
        tokenizers["tokenizer_2"] = clip_tokenizer()
    pipeline = kind.from_single_file(str(ground.file), config=str(ground.folder), local_files_only=True, **tokenizers)
    for name, module in ground.tiny.modules().items():
        expected = module.state_dict()
        state = getattr(pipeline, name).state_dict()
        assert all(torch.equal(state[key], expected[key]) for key in expected), name


# Text and prediction


def test_tokens_are_those_of_sd_scripts(ground: Ground) -> None:
    """The recorded rows are cut after the first padding token; the rest of each is the same token."""
    bundles = {length: ground.bundle(max_token_length=length) for length in (75, 150, 225)}
    for case in TOKENS[ground.family]:
        bundle = bundles[case["max_token_length"]]
        expected = [[chunk + chunk[-1:] * (77 - len(chunk)) for chunk in encoder] for encoder in case["ids"]]
        made = bundle.tokenize(case["caption"])
        assert [made[encoder]["ids"].tolist() for encoder in ground.tiny.text_encoders] == expected


def test_text_and_prediction_are_those_of_diffusers(ground: Ground) -> None:
    bundle, pipeline = ground.bundle(), ground.pipeline()
    text = bundle.encode_text(tokens_of(bundle, "a red cat, on a bed", ""))
    encoded = pipeline.encode_prompt(
        prompt=["a red cat, on a bed", ""], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(text["context"], encoded[0], rtol=1e-5, atol=1e-5)
    noisy, steps = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 900])
    sizes = torch.tensor([[640, 480, 8, 0, 64, 64], [64, 64, 0, 0, 64, 96]])
    beside = None
    if "pooled" in text:
        torch.testing.assert_close(text["pooled"], encoded[2], rtol=1e-5, atol=1e-5)
        beside = {"text_embeds": encoded[2], "time_ids": sizes}
    expected = pipeline.unet(noisy, steps, encoded[0], added_cond_kwargs=beside).sample
    torch.testing.assert_close(bundle.predict(noisy, steps, text, {"sizes": sizes}), expected, rtol=1e-4, atol=1e-5)


def test_chunks_of_long_prompts_are_encoded_alone_and_joined(ground: Ground) -> None:
    bundle, short = ground.bundle(max_token_length=150), ground.bundle()
    text = bundle.encode_text(tokens_of(bundle, "cat " * 60 + "dog " * 60))
    parts = [short.encode_text(tokens_of(short, part)) for part in ("cat " * 60 + "dog " * 15, "dog " * 45)]
    first, second = (part["context"] for part in parts)
    expected = torch.cat([first[:, :76], second[:, 1:]], dim=1)
    torch.testing.assert_close(text["context"], expected, rtol=1e-5, atol=1e-5)
    if "pooled" in text:
        torch.testing.assert_close(text["pooled"], parts[0]["pooled"], rtol=1e-5, atol=1e-5)


def test_released_text_encoders_come_back(ground: Ground) -> None:
    bundle = ground.bundle()
    ids = tokens_of(bundle, "a cat")
    before = bundle.encode_text(ids)
    bundle.release_text_encoders()
    assert bundle.components.keys() == {"unet"}
    after = bundle.encode_text(ids)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_that_says_how_it_was_trained_is_trained_so(ground: Ground, tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    bundle = ground.bundle(ground.tiny.write_file(tmp_path / "marked.safetensors", extra=marks))
    assert (bundle.process.prediction_type, bundle.process.zero_terminal_snr) == (VELOCITY, True)
    assert "predicts v" in bundle.notices[0]
    # The schedule that losses are weighted by stays the original one, as in sd-scripts.
    assert torch.equal(bundle.process.schedule.snr, ground.bundle().process.schedule.snr)


# Runs


@pytest.mark.parametrize("form", ["folder", pytest.param("ckpt", marks=pytest.mark.thorough)])
def test_every_form_trains_like_the_file(ground: Ground, trained: tuple[list[float], Path], form: str) -> None:
    losses, path = ground.run(form, getattr(ground, form))
    assert losses == pytest.approx(trained[0], abs=1e-6)
    assert len(losses) == STEPS
    expected, made = load_file(trained[1]), load_file(path)
    assert expected.keys() == made.keys()
    assert all(torch.allclose(made[name].view_as(expected[name]), expected[name], atol=1e-6) for name in made)
    # As sd-scripts does, LoRAs of Stable Diffusion 2 have convolutions only where the model was a single file.
    shaped = {name for name in made if made[name].shape != expected[name].shape}
    assert all(".lora_" in name and "_proj_" in name for name in shaped)
    assert bool(shaped) == (ground.family == "sd2" and form == "folder")


def test_the_file_has_kohyas_keys_and_names_the_family(ground: Ground, trained: tuple[list[float], Path]) -> None:
    config = load_config(overrides=ground.settings("file"))
    family, seen = families.FAMILIES[ground.family], families.recognise(ground.file)
    spec = make_spec(config.network, rates(config, family.parts))
    with safe_open(trained[1], "pt") as file:
        names = family.file_names(EPSILON)
        assert file.metadata()["ss_base_model_version"] == names.base_model_version
        assert file.metadata()["modelspec.architecture"] == f"{names.architecture}/lora"
        assert file.metadata()["ss_v2"] == str(names.v2)
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == spec.shapes(family.targets(seen.configs, conv=True))
    assert len({name.split("_")[1] for name in shapes}) == len(family.parts)


def strong_lora(
    ground: Ground, path: Path, conv_dim: int | None, model: Path | None = None
) -> tuple[StableBundle, LoraAdapter]:
    """Write a LoRA with weights as after a long training, so that it matters, and load it into the model."""
    config = load_config(overrides=ground.settings("file", conv_dim=conv_dim))
    bundle = ground.bundle(model)
    spec = make_spec(config.network, rates(config, families.FAMILIES[ground.family].parts))
    adapter = spec.build(bundle.components, bundle.targets(conv=True), seed=1)
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: value if value.ndim == 0 else torch.randn(value.shape, generator=generator) * 0.2
        for name, value in adapter.tensors().items()
    }
    save(path, tensors, {"ss_network_module": "networks.lora"}, "float")
    adapter.load(read_adapter(path).tensors)
    return bundle, adapter


def one_pass(bundle: StableBundle) -> list[Tensor]:
    """Return what the text encoders and the UNet give, differentiably."""
    text = bundle.encode_text(tokens_of(bundle, "tok class, red"))
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]])
    return [*text.values(), bundle.predict(noisy, torch.tensor([500]), text, {"sizes": sizes})]


def outputs(bundle: StableBundle) -> list[Tensor]:
    with torch.no_grad():
        return one_pass(bundle)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_what_is_idle_is_what_gets_no_gradient(ground: Ground, clip_skip: int) -> None:
    bundle = ground.bundle(clip_skip=clip_skip)
    targets = bundle.targets(conv=False)
    spec = make_spec(load_config(overrides=ground.settings("file")).network, tuple(bundle.components))
    adapter = spec.build(bundle.components, targets, seed=1)
    one_pass(bundle)[-1].square().mean().backward()
    without = {module.target.name for module in adapter.modules if module.up.grad is None}
    assert without == {target.name for target in targets if target.idle}
    assert any(target.idle for target in targets) == (clip_skip > 1 or ground.family == "sdxl")


@pytest.mark.parametrize("conv_dim", [None, 2])
def test_diffusers_gives_the_training_models_output(ground: Ground, tmp_path: Path, conv_dim: int | None) -> None:
    path = tmp_path / "strong.safetensors"
    # diffusers reads no convolution into the linear layers that Stable Diffusion 2 has; see docs/differences.md.
    bundle, adapter = strong_lora(ground, path, conv_dim, ground.folder if ground.family == "sd2" else None)
    ours = outputs(bundle)
    with adapter.multiplied(0.0):
        untrained = outputs(bundle)
    pipeline = ground.pipeline()
    pipeline.load_lora_weights(path)
    other = ground.bundle()
    other.unet = pipeline.unet
    other.text_encoders = {name: getattr(pipeline, name) for name in ground.tiny.text_encoders}
    for own, theirs, plain in zip(ours, outputs(other), untrained, strict=True):
        torch.testing.assert_close(theirs, own, rtol=0, atol=1e-4)
        assert (own - plain).abs().max() > 0.01


def test_loras_of_a_file_and_of_a_folder_go_into_either(ground: Ground, tmp_path: Path) -> None:
    """The same matrices, as convolutions or as linear layers: the model computes the same with both."""
    path = tmp_path / "strong.safetensors"
    bundle, _ = strong_lora(ground, path, 2)
    for source in (ground.file, ground.folder):
        other, adapter = strong_lora(ground, tmp_path / "other.safetensors", 2, source)
        assert len(adapter.load(read_adapter(path).tensors)) == 0
        for one, two in zip(outputs(bundle), outputs(other), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


def test_a_lora_of_kohyas_goes_on_with_its_own_rank(ground: Ground, trained: tuple[list[float], Path]) -> None:
    """The file that a run wrote is kohya's format; another run begins from it, whatever rank its settings say."""
    still = {"max_train_steps": 1, "unet_lr": 1e-12, "text_encoder_lr": 1e-12}
    _, path = ground.run("more", network_weights=str(trained[1]), dim_from_weights=True, network_dim=16, **still)
    before, after = load_file(trained[1]), load_file(path)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)


def test_long_weighted_captions_encoded_ahead_train_the_same(ground: Ground) -> None:
    """Three chunks with weights in them; a caption's states do not depend on when it was encoded."""
    settings: dict[str, Any] = {
        "max_token_length": 225,
        "weighted_captions": True,
        "caption_suffix": "(very big:1.3), [small], " + "red dog " * 80,
        "network_train_unet_only": True,
        "shuffle_caption": False,
        "max_train_steps": 2,
    }
    losses, _ = ground.run("weighted", **settings)
    ahead, _ = ground.run("weighted ahead", cache_text_encoder_outputs=True, **settings)
    assert ahead == losses
    assert ground.run("plain", **{**settings, "weighted_captions": False})[0] != losses
    words = "very big, small, " + "red dog " * 80
    assert ground.run("of the same words", **{**settings, "caption_suffix": words})[0] != losses, "the weights count"


def test_a_marked_model_trains_like_one_whose_settings_say_it(ground: Ground, tmp_path: Path) -> None:
    """V-prediction and zero terminal SNR from the file, or from the form: the same losses, which are no others'."""
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    marked = ground.tiny.write_file(tmp_path / "tiny.safetensors", extra=marks)
    few: dict[str, Any] = {"max_train_steps": 2, "min_snr_gamma": 5.0}
    losses, path = ground.run("marked", marked, **few)
    said, _ = ground.run("said", v_parameterization=True, zero_terminal_snr=True, **few)
    assert losses == said
    assert ground.run("no zero terminal", v_parameterization=True, **few)[0] != losses
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "v"
        assert file.metadata()["ss_zero_terminal_snr"] == "True"


def test_1x1_convolutions_and_linear_layers_are_the_same_projections(ground: Ground, tmp_path: Path) -> None:
    """Some files have the projections of SD 2 and SDXL as convolutions, and so do LoRAs that kohya made on them."""
    tensors = {
        name: value[..., None, None]
        if name.endswith(("proj_in.weight", "proj_out.weight")) and value.ndim == 2
        else value
        for name, value in ground.tiny.original().items()
    }
    path = tmp_path / "tiny.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata_of(ground.file))
    assert families.recognise(path).family == ground.family
    assert fingerprint(ground.bundle(path).unet) == fingerprint(ground.bundle().unet)
    lora = tmp_path / "lora.safetensors"
    _, adapter = strong_lora(ground, lora, None)
    shaped = {
        name: value.flatten(1)[..., None, None] if "proj_in.lora" in name else value
        for name, value in load_file(lora).items()
    }
    again = strong_lora(ground, tmp_path / "other.safetensors", None)[1]
    again.load(shaped)
    assert all(torch.equal(again.tensors()[name], value) for name, value in adapter.tensors().items())


def test_a_lora_with_diffusers_names_is_read(ground: Ground, tmp_path: Path) -> None:
    """SDXL's layers have two names in kohya's files: those of the original layout, and in some diffusers' own."""
    path, renamed = tmp_path / "lora.safetensors", tmp_path / "renamed.safetensors"
    bundle, adapter = strong_lora(ground, path, 2)
    names = {target.name: target.alias or target.name for target in bundle.targets(conv=True)}
    tensors = {
        f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}": value for key, value in load_file(path).items()
    }
    save_file(tensors, renamed)
    assert (tensors.keys() == adapter.tensors().keys()) == (ground.family != "sdxl")
    still = {"max_train_steps": 1, "unet_lr": 1e-12, "text_encoder_lr": 1e-12, "conv_dim": None}
    _, made = ground.run("renamed", network_weights=str(renamed), dim_from_weights=True, **still)
    found, expected = load_file(made), adapter.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-9) for name in found)


def test_a_stopped_run_resumes_exactly(ground: Ground, trained: tuple[list[float], Path]) -> None:
    inbox, losses = Inbox(), []

    def stop_half_way(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.loss)
            if event.step == STEPS // 2:
                inbox.send(Command.STOP)

    config = load_config(overrides=ground.settings("stopped"))
    assert train(config, emit=stop_half_way, inbox=inbox).stopped
    assert len(losses) == STEPS // 2
    finished = train(config, emit=stop_half_way, start=Start(resume="auto"))
    assert losses == trained[0]
    straight, resumed = load_file(trained[1]), load_file(finished.path)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_rates_for_encoders_that_a_model_has_not_are_told(ground: Ground) -> None:
    notices = plan(load_config(overrides=ground.settings("file"))).notices
    told = [notice for notice in notices if "text_encoder_lr has 2 rates and this model 1 text encoder" in notice]
    assert bool(told) == (len(ground.tiny.text_encoders) == 1)


def test_a_part_with_a_rate_of_zero_has_no_adapter(ground: Ground) -> None:
    encoders = len(ground.tiny.text_encoders)
    config = tiny_config(ground.file, ground.dataset, ground.output, text_encoder_lr=[0.0, 1e-5][:encoders])
    family = families.FAMILIES[ground.family]
    targets = family.targets(families.recognise(ground.file).configs, conv=False)
    spec = make_spec(config.network, rates(config, family.parts))
    selected = {target.component for target in spec.select(targets)}
    assert selected == {part.name for part in family.parts} - {"text_encoder"}


def test_the_vae_that_overflows_in_half_precision_goes_over_to_float32(ground: Ground, tmp_path: Path) -> None:
    name = "first_stage_model.encoder.conv_in.weight"
    path = ground.tiny.write_file(tmp_path / "hot.safetensors", extra={name: ground.tiny.original()[name] * 1e5})
    pixels = torch.rand(1, 3, 64, 64)
    made = ground.bundle(path, torch.float16)
    mean, _ = made.encode_images(pixels)
    assert made.vae is not None and made.vae.dtype == torch.float32
    torch.testing.assert_close(mean, ground.bundle(path).encode_images(pixels)[0])
    whole = ground.bundle(path, torch.float16, no_half_vae=True)
    assert whole.vae is not None and whole.vae.dtype == torch.float32
