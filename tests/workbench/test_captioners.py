"""Captioners: tiny models of the real classes say what the libraries' own calls say, and only apply writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from tests.helpers.onnx_file import SIDE, TAGS, expected, write_tagger
from tests.helpers.pictures import gradient, write_picture
from trainer.__main__ import main
from trainer.gate import Gate
from trainer.ground.errors import ConfigError, ModelError, StateError, Stopped
from trainer.workbench import tagging
from trainer.workbench.album import Album, open_folder
from trainer.workbench.captioners import CAPTIONING, caption_pictures
from trainer.workbench.changes import apply
from trainer.workbench.describing import QUESTION, DescriberSettings
from trainer.workbench.tagging import TaggerSettings, prepared, read_tags

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def album(tmp_path: Path) -> Album:
    folder = tmp_path / "1_x"
    write_picture(folder / "a.png", (90, 60), 1, "red hair, mine")
    write_picture(folder / "b.jpg", (500, 800), 2)
    clear = gradient((64, 64), 3).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((64, 64)))
    clear.save(folder / "c.png")
    (folder / "d.png").write_bytes(b"torn")
    return open_folder(folder)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tagger(tmp_path_factory.mktemp("tagger"))


def published(path: Path) -> numpy.ndarray:
    """Prepare a picture in the words of the models' own program, written out apart from ours."""
    image = Image.open(path).convert("RGBA")
    canvas = Image.new("RGBA", image.size, (255, 255, 255))
    canvas.alpha_composite(image)
    image = canvas.convert("RGB")
    side = max(image.size)
    padded = Image.new("RGB", (side, side), (255, 255, 255))
    padded.paste(image, ((side - image.size[0]) // 2, (side - image.size[1]) // 2))
    if side != SIDE:
        padded = padded.resize((SIDE, SIDE), Image.BICUBIC)
    return numpy.asarray(padded, dtype=numpy.float32)[:, :, ::-1]


def test_a_tagger_says_what_the_librarys_own_call_says(album: Album, tagger: Path) -> None:
    session = onnxruntime.InferenceSession(str(tagger / "model.onnx"))
    loaded = TaggerSettings(str(tagger), batch_size=2).load("cpu")
    for entry in album.entries[:3]:
        given = numpy.ascontiguousarray(published(entry.picture)[None])
        wanted = session.run(None, {"input": given})[0][0]
        with Image.open(entry.picture) as image:
            seen = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
        assert numpy.array_equal(prepared(seen, SIDE), published(entry.picture))
        scores = loaded.scores([seen, seen])
        assert numpy.array_equal(scores[0], wanted) and numpy.array_equal(scores[1], wanted)
        assert numpy.abs(scores[0] - expected(given[0])).max() < 1e-5


def test_thresholds_kinds_unwanted_tags_and_underscores(tagger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = numpy.array([[0.2, 0.7, 0.35, 0.9, 0.5, 0.34, 0.85, 0.8]], dtype=numpy.float32)

    def texts(**settings: object) -> str:
        loaded = TaggerSettings(str(tagger), **settings).load("cpu")  # type: ignore[arg-type]
        monkeypatch.setattr(loaded, "scores", lambda images: scores)
        return loaded.texts([])[0]

    assert [name for name, _ in TAGS][2:6] == ["1girl", "red_hair", "^_^", "blue_sky"]
    assert texts() == "some character, red hair, ^_^, 1girl"
    assert texts(general_threshold=0.3) == "some character, red hair, ^_^, 1girl, blue sky"
    assert texts(character_threshold=0.8) == "some character, other (series), red hair, ^_^, 1girl"
    assert texts(underscores=True, rating=True) == "some_character, red_hair, ^_^, 1girl, explicit"
    assert texts(unwanted=("Red Hair", "some_character")) == "^_^, 1girl"


def test_nothing_is_written_before_it_is_applied(album: Album, tagger: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    settings = TaggerSettings(str(tagger), general_threshold=0.0, character_threshold=0.0)
    planned = caption_pictures(album.entries, settings)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path, _ in planned.refused] == ["d.txt"]
    assert planned.title == "captions by the tagger, 3 of 4"
    assert [(change.caption.name, len(change.new.split(", "))) for change in planned.changes] == [
        ("a.txt", 6),
        ("b.txt", 6),
        ("c.txt", 6),
    ]
    added = caption_pictures(album.entries[:1], settings, mode="append")
    words = added.changes[0].new.split(", ")
    assert words[:2] == ["red hair", "mine"] and len(words) == 7 and words.count("red hair") == 1
    missing = caption_pictures(album.entries, settings, mode="missing")
    assert [change.caption.name for change in missing.changes] == ["b.txt", "c.txt"]
    apply(planned)
    assert (tmp_path / "1_x" / "b.txt").read_text() == planned.changes[1].new


def test_progress_stop_and_the_device(album: Album, tagger: Path) -> None:
    settings = TaggerSettings(str(tagger), general_threshold=0.0)
    told: list[tuple[int, int]] = []

    def stop(at: int) -> Callable[[str, int, int], None]:
        def progress(phase: str, done: int, total: int) -> None:
            assert phase == CAPTIONING
            told.append((done, total))
            if done == at:
                raise Stopped("enough")

        return progress

    partial = caption_pictures(album.entries, settings, progress=stop(2))
    assert [change.caption.name for change in partial.changes] == ["a.txt", "b.txt"]
    assert partial.title.endswith("2 of 4") and told == [(0, 4), (1, 4), (2, 4)]
    with pytest.raises(Stopped):
        caption_pictures(album.entries, settings, progress=stop(0))
    gate = Gate("cpu", "The CPU", "training x", "a test")
    gate.take()
    try:
        with pytest.raises(StateError, match="The CPU is in use: training x") as refusal:
            caption_pictures(album.entries, TaggerSettings(str(tagger), device="cpu"))
        assert "--wait" not in refusal.value.remedy, "only train has it"
    finally:
        gate.leave()
    assert caption_pictures(album.entries, settings).changes


def test_what_is_no_tagger_is_refused_by_name(
    album: Album, tagger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    with pytest.raises(ModelError, match=r"There is no model\.onnx"):
        caption_pictures(album.entries, TaggerSettings(str(broken)))
    (broken / "model.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match="cannot be loaded"):
        caption_pictures(album.entries, TaggerSettings(str(broken)))
    (broken / "model.onnx").write_bytes((tagger / "model.onnx").read_bytes())
    with pytest.raises(ModelError, match=r"selected_tags\.csv, cannot be read"):
        caption_pictures(album.entries, TaggerSettings(str(broken)))
    (broken / "selected_tags.csv").write_text("tag_id,name,category,count\n1,cat,0,5\n")
    assert len(read_tags(broken / "selected_tags.csv")) == 1
    with pytest.raises(ModelError, match="gives 8 numbers, but its list has 1 tags"):
        caption_pictures(album.entries, TaggerSettings(str(broken)))
    (broken / "selected_tags.csv").write_text("name;category\n")
    with pytest.raises(ModelError, match="is empty"):
        read_tags(broken / "selected_tags.csv")
    with pytest.raises(ModelError, match="is no file or folder here"):
        caption_pictures(album.entries, TaggerSettings("nobody/nothing"))
    with pytest.raises(ConfigError, match="general_threshold: is 1.5"):
        TaggerSettings("x", general_threshold=1.5)
    with pytest.raises(ConfigError, match="model: is not set"):
        caption_pictures(album.entries, TaggerSettings(" "))
    with pytest.raises(ConfigError, match="mode: is 'over'"):
        caption_pictures(album.entries, TaggerSettings(str(tagger)), mode="over")
    monkeypatch.setattr(tagging, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="need the package onnxruntime. Run: pip install onnxruntime"):
        caption_pictures(album.entries, TaggerSettings(str(tagger)))


MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
PLAIN = ("a", "photo", "of", "cat", "dog", "red", "blue", "on", "grass", "the")
WORDS = (*MARKS, *PLAIN)
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP of 16 numbers a token."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    folder = tmp_path_factory.mktemp("blip")
    names = {word: number for number, word in enumerate(WORDS)}
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), BertTokenizer(vocab=names))
    text = {**SMALL, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    ends = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(text_config={**text, **ends}, vision_config={**SMALL, "image_size": 32, "patch_size": 16})
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of 16 numbers a token, which is asked in a conversation."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("llava")
    words = [
        "<pad>",
        "<unk>",
        "<s>",
        "</s>",
        "<image>",
        "USER",
        "ASSISTANT",
        *QUESTION.replace(".", " .").split(),
        *PLAIN,
    ]
    plain = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    template = (
        "{% for message in messages %}USER {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}ASSISTANT"
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=16, vision_feature_select_strategy="default", chat_template=template,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**SMALL, image_size=32, patch_size=16, projection_dim=16),
            text_config=LlamaConfig(**SMALL, vocab_size=len(words), pad_token_id=0, bos_token_id=2, eos_token_id=3),
            image_token_index=4,
            vision_feature_layer=-1,
        )
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompt", ["", "a photo of"])
def test_a_blip_says_what_the_librarys_own_call_says(album: Album, blip: Path, prompt: str) -> None:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model, processor = BlipForConditionalGeneration.from_pretrained(blip), BlipProcessor.from_pretrained(blip)
    planned = caption_pictures(album.entries[:2], DescriberSettings(str(blip), prompt=prompt, max_new_tokens=9))
    for change in planned.changes:
        with Image.open(change.picture) as image:
            given = processor(images=image.convert("RGB"), return_tensors="pt", **({"text": prompt} if prompt else {}))
        written = model.generate(**given, max_new_tokens=9, do_sample=False)
        assert change.new == processor.batch_decode(written, skip_special_tokens=True)[0].strip()
    assert len(planned.changes) == 2 and planned.changes[0].new != ""


def test_a_model_that_is_asked_says_what_the_librarys_own_call_says(album: Album, llava: Path) -> None:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    model, processor = LlavaForConditionalGeneration.from_pretrained(llava), LlavaProcessor.from_pretrained(llava)
    planned = caption_pictures(album.entries[1:2], DescriberSettings(str(llava), max_new_tokens=9))
    asked = f"USER <image> {QUESTION} ASSISTANT"
    with Image.open(album.entries[1].picture) as image:
        given = processor(images=image.convert("RGB"), text=asked, return_tensors="pt")
    written = model.generate(**given, max_new_tokens=9, do_sample=False)[:, given["input_ids"].shape[1] :]
    (change,) = planned.changes
    assert change.new == " ".join(processor.batch_decode(written, skip_special_tokens=True)[0].split())
    assert "USER" not in change.new and change.new


@pytest.fixture(scope="module")
def florence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Florence-2 of 16 numbers a token, whose processor turns a task into a question."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Florence2VisionConfig,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("florence")
    asked = "Describe with a paragraph what is shown in the image ."
    words = ["<s>", "<pad>", "</s>", "<unk>", "<image>", *asked.split(), "cat", "dog", "red"]
    plain = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    images = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    stages = {"depths": [1] * 4, "num_heads": [1] * 4, "num_groups": [1] * 4, "embed_dim": [8, 8, 8, 16]}
    text = {"model_type": "bart", "vocab_size": len(words), "d_model": 16, "init_std": 1.0}
    sizes = {
        f"{part}_{what}": number
        for part in ("encoder", "decoder")
        for what, number in (("layers", 1), ("ffn_dim", 16), ("attention_heads", 2))
    }
    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    torch.manual_seed(0)
    Florence2ForConditionalGeneration(
        Florence2Config(
            vision_config=Florence2VisionConfig(**stages, window_size=2, projection_dim=16),
            text_config={**text, **sizes, **ends, "forced_eos_token_id": 2},
            image_token_id=4,
        )
    ).save_pretrained(folder)
    Florence2Processor(images, tokenizer, num_additional_image_tokens=1).save_pretrained(folder)
    return folder


def test_a_florence_says_what_the_librarys_own_call_says(album: Album, florence: Path) -> None:
    from transformers import Florence2ForConditionalGeneration, Florence2Processor

    model = Florence2ForConditionalGeneration.from_pretrained(florence)
    processor = Florence2Processor.from_pretrained(florence)
    planned = caption_pictures(album.entries[1:2], DescriberSettings(str(florence), max_new_tokens=8))
    with Image.open(album.entries[1].picture) as image:
        given = processor(images=image.convert("RGB"), text="<MORE_DETAILED_CAPTION>", return_tensors="pt")
    written = model.generate(**given, max_new_tokens=8, do_sample=False, num_beams=1)
    (change,) = planned.changes
    assert change.new == processor.batch_decode(written, skip_special_tokens=True)[0].strip() != ""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-VL of 16 numbers a token, with the files that its publisher has beside the weights."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("qwen")
    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    words = ["<pad>", "<unk>", "<s>", "</s>", *marks, "USER", "ASSISTANT", *QUESTION.replace(".", " .").split(), *PLAIN]
    plain = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    template = (
        "{% for message in messages %}USER {% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "ASSISTANT"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=marks, chat_template=template,
    ).save_pretrained(folder)  # fmt: skip
    pixels = {"min_pixels": 28 * 28, "max_pixels": 84 * 84, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    for name, kind in (("", "image"), ("video_", "video")):
        told = {**pixels, f"{kind}_processor_type": f"Qwen2VL{kind.title()}Processor"}
        told |= {"processor_class": "Qwen2VLProcessor"}
        (folder / f"{name}preprocessor_config.json").write_text(json.dumps(told))
    ids = {"image_token_id": 4, "video_token_id": 5, "vision_start_token_id": 6, "vision_end_token_id": 7}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = {**SMALL, **ends, "num_key_value_heads": 2, "vocab_size": len(words), "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=vision, **ids, **ends)
    ).save_pretrained(folder)
    return folder


@pytest.mark.skipif(not find_spec("torchvision"), reason="Qwen-VL's own processor needs torchvision, which is not here")
def test_a_qwen_says_what_the_librarys_own_call_says(album: Album, qwen: Path) -> None:
    from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor

    model, processor = Qwen2VLForConditionalGeneration.from_pretrained(qwen), Qwen2VLProcessor.from_pretrained(qwen)
    planned = caption_pictures(album.entries[:2], DescriberSettings(str(qwen), max_new_tokens=9))
    asked = f"USER <|vision_start|><|image_pad|><|vision_end|> {QUESTION} ASSISTANT"
    for change in planned.changes:
        with Image.open(change.picture) as image:
            given = processor(images=image.convert("RGB"), text=asked, return_tensors="pt")
        assert given["image_grid_thw"].prod() > 4
        written = model.generate(**given, max_new_tokens=9, do_sample=False)[:, given["input_ids"].shape[1] :]
        assert change.new == " ".join(processor.batch_decode(written, skip_special_tokens=True)[0].split()) != ""
    assert len(planned.changes) == 2


@pytest.mark.skipif(bool(find_spec("torchvision")), reason="torchvision is here")
def test_a_qwen_without_torchvision_says_what_it_needs(album: Album, qwen: Path) -> None:
    with pytest.raises(ModelError, match="such as Qwen-VL need the package torchvision"):
        caption_pictures(album.entries[:1], DescriberSettings(str(qwen)))


def test_what_describes_nothing_is_refused_by_name(album: Album, blip: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded as a model that describes pictures"):
        caption_pictures(album.entries, DescriberSettings(str(tmp_path)))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for path in blip.iterdir():
        if path.suffix != ".safetensors":
            (pickled / path.name).write_bytes(path.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        caption_pictures(album.entries, DescriberSettings(str(pickled)))
    config = (blip / "config.json").read_text()
    (pickled / "config.json").write_text(config.replace("{", '{"auto_map": {"AutoConfig": "evil.Evil"},', 1))
    (pickled / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError):
        caption_pictures(album.entries, DescriberSettings(str(pickled)))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ConfigError, match="max_new_tokens: is 0"):
        DescriberSettings("x", max_new_tokens=0)


def test_the_command_shows_captions_and_writes_them_when_asked(
    album: Album, tagger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = album.folders[0].path
    command = ["caption", str(folder), "--model", str(tagger), "--general_threshold", "0", "--unwanted", "1girl"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "2 captions would be written; --write does it." in shown.out and not (folder / "b.txt").exists()
    assert main([*command, "--write"]) == 0
    written = (folder / "b.txt").read_text()
    assert f"{folder / 'b.txt'}: {written}" in shown.out and "red hair" in written and "1girl" not in written
    assert (folder / "a.txt").read_text() == "red hair, mine"
    assert main(["caption", str(folder)]) == 2 and "model: is not given" in capsys.readouterr().err
