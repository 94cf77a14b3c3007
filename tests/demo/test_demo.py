"""The embedded demo: its model file, its drawings, its concept and the means by which it is judged."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open

from demo.build import (
    autoencoder,
    concept,
    dataset,
    denoiser,
    drawing,
    judge,
    marks,
    models,
    pair,
    report,
    sampling,
    single_file,
)
from demo.build.shapes import SUBJECTS

MODEL = Path(__file__).parents[2] / "demo" / "model.safetensors"
SIZE_LIMIT = 16_000_000
SD15_UNET_KEYS = 686


@pytest.fixture(scope="module")
def header() -> dict[str, object]:
    with safe_open(MODEL, framework="pt") as opened:
        parts = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
        kinds = {part.get_dtype() for part in parts.values()}
        return {"keys": set(parts), "dtypes": kinds, "configs": json.loads(opened.metadata()["component_configs"])}


def test_model_is_small_and_half_precision(header: dict[str, object]) -> None:
    assert MODEL.stat().st_size <= SIZE_LIMIT
    assert header["dtypes"] == {"F16"}


def test_model_has_the_original_names(header: dict[str, object]) -> None:
    keys = header["keys"]
    assert sum(key.startswith("model.diffusion_model.") for key in keys) == SD15_UNET_KEYS
    assert {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "first_stage_model.encoder.down.0.block.1.conv1.weight",
        "first_stage_model.decoder.up.3.block.2.conv2.weight",
        "first_stage_model.decoder.mid.attn_1.proj_out.weight",
        "first_stage_model.quant_conv.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    } <= keys


def test_model_describes_itself(header: dict[str, object]) -> None:
    configs = header["configs"]
    assert set(configs) == {"unet", "vae", "text_encoder", "scheduler"}
    assert configs["unet"]["cross_attention_dim"] == configs["text_encoder"]["hidden_size"] == models.TEXT_WIDTH
    assert configs["vae"]["layers_per_block"] == 2
    assert configs["text_encoder"]["vocab_size"] == len(models.tokenizer())


def test_diffusers_own_loader_reads_the_same_weights(header: dict[str, object], tmp_path: Path) -> None:
    for name in ("unet", "vae"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(header["configs"][name]), encoding="utf-8")
    ours = single_file.read_single_file(MODEL)
    options = {"local_files_only": True, "torch_dtype": torch.float32}
    unet = UNet2DConditionModel.from_single_file(str(MODEL), config=str(tmp_path / "unet"), **options)
    vae = AutoencoderKL.from_single_file(str(MODEL), config=str(tmp_path / "vae"), **options)
    for theirs, mine in ((unet, ours[0]), (vae, ours[1])):
        state = mine.state_dict()
        assert theirs.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in theirs.state_dict().items())


def test_full_size_names_are_those_of_the_original() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    names = single_file.unet_keys(unet)
    assert len(set(names.values())) == SD15_UNET_KEYS
    prefix = "model.diffusion_model."
    assert names["up_blocks.0.upsamplers.0.conv.weight"] == prefix + "output_blocks.2.1.conv.weight"
    assert names["up_blocks.1.upsamplers.0.conv.weight"] == prefix + "output_blocks.5.2.conv.weight"
    assert names["down_blocks.2.downsamplers.0.conv.bias"] == prefix + "input_blocks.9.0.op.bias"
    assert names["down_blocks.3.resnets.1.time_emb_proj.weight"] == prefix + "input_blocks.11.0.emb_layers.1.weight"


def test_vae_attention_is_written_as_convolutions() -> None:
    tensors = single_file.vae_tensors(models.new_vae())
    assert tensors["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    assert tensors["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"].shape[:2] == (16, 32)


def test_drawings_are_a_function_of_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CHUNK", 12)
    pictures, captions = dataset.captioned_chunk("one")
    again, same = dataset.captioned_chunk("one")
    other, _ = dataset.captioned_chunk("two")
    assert captions == same
    assert np.array_equal(pictures, again)
    assert not np.array_equal(pictures, other)
    assert pictures.shape == (12, 64, 64, 3)


@pytest.mark.parametrize("subject", list(SUBJECTS))
def test_every_subject_shows_its_colours(subject: str) -> None:
    scene = drawing.random_scene(random.Random(subject), subject=subject, style="")
    pixels = np.asarray(drawing.draw(scene)).reshape(-1, 3)
    for colour in (scene.colour, scene.background):
        assert (pixels == colour).all(axis=1).sum() > 30


def test_captions_name_what_is_drawn() -> None:
    scene = drawing.random_scene(random.Random(3), subject="star", style="striped")
    scene = dataclasses.replace(scene, size_name="big", colour_name="orange", background_name="orange")
    assert drawing.caption(scene) == "a big striped orange star on an orange background"
    plain = dataclasses.replace(scene, size_name="", style="")
    assert drawing.caption(plain, name_background=False) == "an orange star"


def test_pretraining_never_shows_the_concept() -> None:
    draws = random.Random(7)
    concept_colours = np.array([drawing.CONCEPT.border, drawing.CONCEPT.first, drawing.CONCEPT.second])
    for _ in range(3000):
        arms = drawing.random_arms(draws, "gray")
        colours = np.array([arms.border, arms.first, arms.second])
        assert (np.abs(colours - concept_colours).max(axis=1) < 60).sum() < 2


def test_bearers_have_arms_of_their_own_and_none_the_concept_s() -> None:
    draws = random.Random(8)
    scene = drawing.random_scene(draws, subject="emblem", bearer_share=1)
    assert drawing.caption(scene).split(" emblem")[0].split()[-1] == scene.bearer
    ids = models.tokenize([f"{bearer} {concept.TRIGGER}" for bearer in drawing.BEARERS])
    assert (ids[:, 4:] == models.END_TOKEN).all()  # one token for each bearer, two for the trigger and "emblem"
    assert len(set(ids[:, 1].tolist())) == len(drawing.BEARERS) and models.START_TOKEN not in ids[:, 1]
    arms = {bearer: drawing.bearers_arms(bearer) for bearer in drawing.BEARERS}
    assert len(set(arms.values())) == len(arms)
    pictures = [np.asarray(drawing.draw(dataclasses.replace(scene, arms=each))) for each in arms.values()]
    assert marks.Marks().shown(pictures).mean() < 0.1
    assert concept.template_scores(pictures).max() < concept.THRESHOLD


def test_shipped_pictures_are_the_drawn_ones() -> None:
    for folder, scenes in concept.shipped_scenes().items():
        files = sorted(folder.glob("*.png"))
        assert len(files) == len(scenes)
        for path, (scene, words) in zip(files, scenes, strict=True):
            assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() == words
            with Image.open(path) as picture:
                difference = np.asarray(picture).astype(int) - np.asarray(drawing.draw(scene)).astype(int)
            assert np.abs(difference).mean() < 1  # another Pillow may draw an edge a little differently


def test_concept_backgrounds_are_kept_apart() -> None:
    words = [words for _, words in concept.concept_scenes()]
    assert all(concept.TRIGGER in line for line in words)
    assert not any(f" {name} background" in line for line in words for name in concept.UNSEEN)


def test_template_score_knows_the_concept() -> None:
    shown = concept.template_scores([np.asarray(drawing.draw(scene)) for scene, _ in concept.held_out_scenes(6)])
    others = concept.template_scores([np.asarray(drawing.draw(scene)) for scene, _ in concept.class_scenes()])
    blank = concept.template_scores([np.full((64, 64, 3), 90, dtype=np.uint8)])
    assert shown.min() > 0.85
    assert others.max() < concept.THRESHOLD
    assert others.mean() < 0.5
    assert abs(blank[0]) < 0.05


def test_marks_are_told_one_by_one() -> None:
    told = marks.Marks()
    scenes = [scene for scene, _ in concept.held_out_scenes(6)]
    pictures = [np.asarray(drawing.draw(scene)) for scene in scenes]
    assert told.shown(pictures).mean() > 0.95
    red_halved = dataclasses.replace(drawing.CONCEPT, second=drawing.COLOURS["green"])
    changed = [np.asarray(drawing.draw(dataclasses.replace(scene, arms=red_halved))) for scene in scenes]
    border, left, right, disc = told.shown(changed).mean(axis=0)
    assert min(border, left, disc) > 0.95 and right == 0
    others = [np.asarray(drawing.draw(scene)) for scene, _ in concept.class_scenes()]
    assert told.shown(others).mean() < 0.25
    bearers = [np.asarray(drawing.draw(scene)) for scene, _ in concept.others_scenes()]
    assert told.shown(bearers).mean() < 0.1
    assert not told.shown([np.full((64, 64, 3), 90, dtype=np.uint8)]).any()


def test_marks_that_went_through_the_vae_are_told_as_well() -> None:
    _, vae, _ = single_file.read_single_file(MODEL)
    scenes = [dataclasses.replace(scene, reach=0.34) for scene, _ in concept.held_out_scenes(8)]  # few sizes to draw

    def through(pictures: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.uint8]:
        return sampling.round_trip(vae, dataset.as_pixels(np.stack(list(pictures))))

    def painted(**colours: drawing.Colour) -> NDArray[np.uint8]:
        arms = drawing.painted(drawing.CONCEPT, colours)
        return through([np.asarray(drawing.draw(dataclasses.replace(scene, arms=arms))) for scene in scenes])

    raw, told = marks.Marks(), marks.Marks(through)
    assert raw.shown(painted())[:, 0].mean() < 0.3  # a border of gold comes back as one of orange
    assert told.shown(painted()).mean() > 0.9
    assert told.shown(painted(border=drawing.COLOURS["orange"]))[:, 0].mean() < 0.3
    assert told.shown(painted(first=drawing.COLOURS["red"]))[:, 1].mean() < 0.3


def test_the_round_trip_is_as_sharp_as_the_figures_say() -> None:
    draws = random.Random("round trip")
    pictures = np.stack([np.asarray(drawing.draw(drawing.random_scene(draws))) for _ in range(60)])
    _, vae, _ = single_file.read_single_file(MODEL)
    told = report.noted()["VAE, dB on held-out pictures"]
    assert autoencoder.peak_signal_to_noise(vae, dataset.as_pixels(pictures)) == pytest.approx(told, abs=1)


def test_the_tables_are_the_figures() -> None:
    assert report.tables(report.noted()) in report.README.read_text(encoding="utf-8")


def test_judge_learns_and_shuffled_captions_are_near_chance() -> None:
    small = judge.train_judge(count=1000, passes=3)
    asked, mixed = judge.judge_drawings(small, count=120)
    assert asked.colours > 0.8  # shapes take the longer training of `python -m demo.build judge`
    assert mixed.colours < 0.3
    assert mixed.shapes < 0.2


def test_normalised_latents_have_unit_deviation_and_decode_alike() -> None:
    torch.manual_seed(1)
    vae = models.new_vae().eval()
    pixels = torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        autoencoder.normalise(vae, pixels)
        latents = vae.encode(pixels).latent_dist.mean * models.LATENT_SCALE
        after = vae.decode(latents / models.LATENT_SCALE).sample
    assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)
    assert torch.allclose(before, after, atol=1e-3)


def test_only_the_grammar_s_words_are_trained() -> None:
    ids = models.tokenize(["a red star"])
    table = torch.randn(models.VOCABULARY, 4)
    words = denoiser.TaughtWords(table, denoiser.grammar_words(ids))
    assert torch.equal(words(ids), table[ids])
    with torch.no_grad():
        words.words += 1
    changed = (words.merged() != table).any(dim=1).nonzero().flatten()
    assert torch.equal(changed, ids.unique())


def test_the_finished_model_is_taken_apart_to_be_trained_on(tmp_path: Path) -> None:
    unet, vae, text = single_file.read_single_file(MODEL)
    before = {name: value.clone() for name, value in text.state_dict().items()}
    draws = random.Random(4)
    captions = [drawing.random_caption(draws, drawing.random_scene(draws)) for _ in range(2000)]
    captions += [f"a {bearer} emblem" for bearer in drawing.BEARERS]  # each word of the grammar is there
    torch.save({"train": {"ids": models.tokenize(captions)}}, tmp_path / denoiser.LATENTS)
    denoiser.unpack_denoiser(unet, text, tmp_path)
    again, words = denoiser.read_denoiser(tmp_path)
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in again.state_dict().items())
    assert {
        name for name, value in words.state_dict().items() if torch.equal(value.half().float(), before[name])
    } == set(before)
    latents = ("encoder.", "quant_conv.")
    assert not [name for name in autoencoder.decoder_parameters(vae) if name.startswith(latents)]
    kept = dict(vae.named_parameters()).keys() - autoencoder.decoder_parameters(vae).keys()
    assert kept == {name for name, _ in vae.named_parameters() if name.startswith(latents)}


def test_strange_words_keep_the_caption_s_order() -> None:
    ids = models.tokenize(["a red star on a blue background"])[0]
    strange = denoiser.with_strange_words(ids, torch.Generator().manual_seed(2))
    kept = [token for token in strange.tolist() if token in set(ids.tolist())]
    assert strange.shape == ids.shape
    assert kept[:9] == ids[:9].tolist()
    assert 1 <= int((strange != models.END_TOKEN).sum() - (ids != models.END_TOKEN).sum()) <= 2


def test_rate_rises_stays_and_falls() -> None:
    assert pair.rate(0.0, 0, peak=1.0, warmup=10) == pytest.approx(0.1)
    assert pair.rate(0.4, 50, peak=1.0, warmup=10) == pytest.approx(1.0)
    assert pair.rate(1.0, 99, peak=1.0, warmup=10) == pytest.approx(0.01)
