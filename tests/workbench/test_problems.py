"""What is wrong with pictures: each kind is planted once and found, nothing else is, and its remedy ends it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageDraw, ImageFilter

from tests.helpers.pictures import data_config, write_picture
from tests.helpers.texts import vocabulary
from trainer.families import FAMILIES, Recognition
from trainer.families.text.t5 import T5Tokenizer, load_tokenizer
from trainer.ground.errors import Stopped
from trainer.pictures.remarks import Remark, amend_remarks, read_remarks
from trainer.pictures.scan import scan
from trainer.workbench import inspection
from trainer.workbench.album import Album, Entry, open_album
from trainer.workbench.changes import apply, preview
from trainer.workbench.duplicates import groups
from trainer.workbench.inspection import Inspected
from trainer.workbench.problems import Finding, Kind, Options, find_problems
from trainer.workbench.tokens import TokenLimit
from trainer.workbench.tokens import load as load_limit

SETTINGS = {"resolution": 128, "min_bucket_reso": 64, "bucket_reso_steps": 64, "validation_split": 0.0}
LIMIT = TokenLimit("max_token_length", 6, lambda text: len(text.split()))


def noise(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (height, width), dtype=numpy.uint8))


@pytest.mark.parametrize(
    ("grey", "recorded"),
    [
        (noise(0, 48, 60), "b46873e928a969d6"),
        (noise(1, 512, 300), "f2ecb143b8c4c7a1"),
        (Image.linear_gradient("L"), "8000800080008000"),
        (Image.radial_gradient("L"), "ee989837e69ac819"),
        (Image.new("L", (40, 30), 128), "8000000000000000"),
    ],
)
def test_perceptual_hashes_are_those_of_imagehash(grey: Image.Image, recorded: str) -> None:
    """Recorded from ImageHash 4.3.2 with Pillow 12.3."""
    assert inspection.perceptual_hash(grey) == recorded


def drawn(seed: int, side: int = 160) -> Image.Image:
    """Return a picture of coloured boxes, another for each seed."""
    rng = random.Random(seed)
    image = Image.new("RGB", (side, side), tuple(rng.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = rng.randrange(side), rng.randrange(side)
        box = (left, top, left + rng.randrange(8, side // 2), top + rng.randrange(8, side // 2))
        pen.rectangle(box, fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures, one of each trouble among them, and a second folder that is shown far more often."""
    folder = tmp_path_factory.mktemp("problems") / "2_cat"
    folder.mkdir()
    for seed in range(30):
        drawn(seed).save(folder / f"{seed:02d}.png")
        (folder / f"{seed:02d}.txt").write_text(f"ohwx, picture {seed}")
    drawn(3).resize((140, 140), Image.Resampling.LANCZOS).save(folder / "again.jpg", quality=70)
    drawn(4, 40).save(folder / "small.png")
    drawn(50).filter(ImageFilter.GaussianBlur(12)).save(folder / "soft.png")
    clear = drawn(51).convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 40, 160))
    clear.save(folder / "clear.png")
    (folder / "torn.png").write_bytes((folder / "00.png").read_bytes()[:200])
    for name in ("again", "small", "soft", "clear", "torn"):
        (folder / f"{name}.txt").write_text("ohwx, x")
    (folder / "01.txt").unlink()
    (folder / "02.txt").write_text("ohwx one two three four five six")
    (folder / "05.txt").write_text("a picture of nobody")
    (folder / "06.txt").write_bytes("ohwx, café garçon".encode("cp1252"))
    often = folder.parent / "90_dog"
    often.mkdir()
    for seed in range(60, 64):
        drawn(seed).save(often / f"{seed}.png")
        (often / f"{seed}.txt").write_text("an ohwx dog")
    return folder


@pytest.fixture(scope="module")
def album(folder: Path) -> Album:
    return open_album(data_config(folder.parent, **SETTINGS))


@pytest.fixture(scope="module")
def found(album: Album, folder: Path) -> tuple[Finding, ...]:
    config = data_config(folder.parent, **SETTINGS)
    return find_problems(album, config, Options(trigger="ohwx", limit=LIMIT))


def test_each_planted_problem_is_found_and_no_other(found: tuple[Finding, ...]) -> None:
    names = [(each.kind, tuple(path.name for path in each.pictures)) for each in found]
    assert names == [
        (Kind.BROKEN, ("torn.png",)),
        (Kind.SMALL, ("small.png",)),
        (Kind.DUPLICATE, ("03.png", "again.jpg")),
        (Kind.BLURRED, ("soft.png",)),
        (Kind.TRANSPARENT, ("clear.png",)),
        (Kind.UNCAPTIONED, ("01.png",)),
        (Kind.NOT_UTF8, ("06.png",)),
        (Kind.TOO_LONG, ("02.png",)),
        (Kind.NO_TRIGGER, ("05.png",)),
        (Kind.UNBALANCED, ("60.png", "61.png", "62.png", "63.png")),
    ]
    assert [each.message for each in found if each.kind in (Kind.SMALL, Kind.TRANSPARENT, Kind.TOO_LONG)] == [
        "40x40 pixels are enlarged to 64x64.",
        "25 % of it is transparent, and is trained as white.",
        "Its caption has 7 tokens; the model reads 6 (max_token_length).",
    ]
    assert all(each.remedies for each in found)


def test_every_remedy_is_read_by_the_training_and_taken_back(
    found: tuple[Finding, ...], album: Album, folder: Path
) -> None:
    config = data_config(folder.parent, **SETTINGS)
    pixels = {path: path.read_bytes() for path in folder.parent.rglob("*.*g")}
    by_picture: dict[Path, Entry] = {entry.picture: entry for entry in album.entries}
    (encoded,) = [each for each in found if each.kind is Kind.NOT_UTF8]
    apply(preview([by_picture[path] for path in encoded.pictures], encoded.remedies[0].operations))
    before: dict[Path, Remark] = {}
    for each in found:
        remedy = each.remedies[0]
        if remedy.amend:
            before |= {path: said for path, said in amend_remarks(remedy.amend).items() if path not in before}
        elif each is not encoded:
            planned = preview([by_picture[path] for path in each.pictures], remedy.operations)
            apply(planned)
            assert (folder / "05.txt").read_text() == "ohwx, a picture of nobody"
    said = read_remarks(folder)
    assert said["again.jpg"] == Remark(skip=True) and said["clear.png"] == Remark(mask="alpha")
    report = scan(config)
    assert {path.name for path in (each.path for each in report.folders[0].pictures)}.isdisjoint(
        {"torn.png", "small.png", "again.jpg", "soft.png", "01.png", "02.png"}
    )
    assert report.folders[1].count == 4 * 34
    assert find_problems(album, config, Options(trigger="ohwx", limit=LIMIT)) == ()
    assert {path: path.read_bytes() for path in folder.parent.rglob("*.*g")} == pixels
    amend_remarks({path: {} for path in before})
    crop = next(each for each in found if each.kind is Kind.TRANSPARENT).remedies[1]
    assert crop.amend == {folder / "clear.png": {"crop": (40, 0, 120, 160)}}


def test_only_new_and_changed_pictures_are_decoded_and_a_stop_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "1_x"
    folder.mkdir()
    for seed in range(6):
        drawn(seed).save(folder / f"{seed}.png")
    monkeypatch.setattr("trainer.pictures.header_cache._SETTLED", -(10**9))
    monkeypatch.setattr(inspection, "_AT_ONCE", 2)
    opened: list[str] = []
    real = inspection.look_at
    monkeypatch.setattr(inspection, "look_at", lambda path: opened.append(path.name) or real(path))
    names = [f"{seed}.png" for seed in range(6)]

    def stop(phase: str, done: int, total: int) -> None:
        if done == 3:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        inspection.inspect(folder, names, stop)
    assert sorted(opened) == ["0.png", "1.png", "2.png", "3.png"]
    opened.clear()
    first = inspection.inspect(folder, names)
    assert sorted(opened) == ["3.png", "4.png", "5.png"]
    opened.clear()
    drawn(9).save(folder / "2.png")
    again = inspection.inspect(folder, names)
    assert opened == ["2.png"]
    assert {name for name in names if first[name] != again[name]} == {"2.png"}


def test_groups_are_linked_and_colours_tell_apart() -> None:
    def seen(bits: int, colour: int) -> Inspected:
        return Inspected((8, 8), 99.0, 0.0, None, f"{bits:016x}", f"{colour:02x}" * 192)

    pictures = [seen(0, 10), seen(0b1111, 10), seen(0b11111111, 12), seen(0xFFFF0000, 10), seen(0, 200)]
    assert groups(pictures, 4) == [[0, 1, 2]]
    assert groups(pictures, 3) == []
    assert groups(pictures[:1], 4) == []


def test_the_limit_is_that_of_the_model(tmp_path: Path) -> None:
    sdxl = Recognition("sdxl", "file", "x.safetensors", FAMILIES["sdxl"].configs)
    config = data_config(Path("x"), max_token_length=150)
    clip = load_limit(config, sdxl)
    assert clip is not None and (clip.setting, clip.limit) == ("max_token_length", 150)
    assert (clip.count("a photo of a cat"), clip.count("a (photo:1.2) of a cat")) == (5, 11)
    weighing = load_limit(data_config(Path("x"), weighted_captions=True), sdxl)
    assert weighing is not None and weighing.count("a (photo:1.2) of a cat") == 5


@pytest.mark.parametrize(
    ("family", "guided", "given", "limit"),
    [("flux", True, None, 511), ("flux", False, None, 255), ("flux", False, 128, 127), ("chroma", True, None, 511)],
)
def test_of_t5_the_end_is_one_of_its_tokens_and_the_vocabulary_is_the_models(
    tmp_path: Path, family: str, guided: bool, given: int | None, limit: int
) -> None:
    vocabulary().save(str(tmp_path / "tokenizer.json"))
    configs = {**FAMILIES[family].configs, "transformer": {"guidance_embeds": guided}}
    beside = Recognition(family, "file", str(tmp_path / "model.safetensors"), configs)
    found = load_limit(data_config(Path("x"), t5xxl_max_token_length=given), beside)
    assert found is not None and (found.setting, found.limit) == ("t5xxl_max_token_length", limit)
    text = "a photo of a cat, not a dog"
    told = T5Tokenizer(load_tokenizer(tmp_path / "tokenizer.json"), 64, masked=True)(text)
    assert found.count(text) == int(told["mask"].sum()) - 1 > 5
    assert found.count("") == 0
    folder = tmp_path / "model" / ("tokenizer_2" if family == "flux" else "tokenizer")
    folder.mkdir(parents=True)
    (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    again = load_limit(data_config(Path("x")), Recognition(family, "folder", str(tmp_path / "model"), configs))
    apart = load_limit(
        data_config(Path("x"), t5xxl=str(folder / "t5.safetensors")), Recognition(family, "file", "y", configs)
    )
    assert again is not None and apart is not None and again.count(text) == apart.count(text) == found.count(text)


def test_what_is_trained_of_a_caption_is_what_counts(tmp_path: Path) -> None:
    write_picture(tmp_path / "1_x" / "a.png", (128, 128), 1, "cat one\nohwx two three four five six seven")

    def kinds(**settings: object) -> list[str]:
        config = data_config(tmp_path, **SETTINGS, **settings)
        found = find_problems(open_album(config), config, Options(blur_below=0.0, trigger="ohwx", limit=LIMIT))
        return [each.kind.value for each in found]

    assert kinds() == ["trigger word missing"], "the second line is never trained"
    assert kinds(enable_wildcard=True) == ["caption too long", "trigger word missing"]
    assert kinds(caption_prefix="ohwx,") == []
    assert kinds(caption_prefix="ohwx,", caption_suffix="1 2 3 4") == ["caption too long"]
