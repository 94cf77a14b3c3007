"""pictures.json: what is read, what is refused by name, and what becomes of it in a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.pictures import data_config, gradient, write_folder, write_picture
from trainer.__main__ import main
from trainer.ground.errors import DataError
from trainer.pictures import counts
from trainer.pictures.batches import examples
from trainer.pictures.latent_cache import entry_key
from trainer.pictures.masks import check_masks, has_mask, mask_of
from trainer.pictures.pixels import load_pixels
from trainer.pictures.remarks import ALPHA, FILE, Remark, change_remarks, read_remarks, summary, write_remarks
from trainer.pictures.scan import scan
from trainer.planning.arithmetic import sum_of_steps
from trainer.planning.timetable import make_timetable
from trainer.results.contents import Recorder, changed, read

SETTINGS = {"resolution": 64, "min_bucket_reso": 64, "bucket_reso_steps": 64, "validation_split": 0.0}


def test_what_is_written_is_read_and_undone(tmp_path: Path) -> None:
    said = {
        "a.png": Remark(skip=True),
        "Größe.png": Remark(repeats=3, crop=(1, 2, 30, 40), mask="masks/Größe.png"),
        "c.png": Remark(mask=ALPHA),
    }
    before = change_remarks({tmp_path / name: remark for name, remark in said.items()})
    assert read_remarks(tmp_path) == said and not any(before.values())
    assert "Größe" in (tmp_path / FILE).read_text(encoding="utf-8")
    assert summary(said.values()) == "1 left out, 1 with repeats of their own, 1 cropped, 2 with a mask of their own"
    earlier = change_remarks({tmp_path / "a.png": Remark(repeats=2)})
    assert earlier == {tmp_path / "a.png": Remark(skip=True)}
    change_remarks(earlier)
    assert read_remarks(tmp_path) == said
    change_remarks(before)
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "cannot be read"),
        ("[]", "must be an object"),
        ('{"a.png": 1}', "what is said of it must be an object"),
        ('{"a.png": {"skpi": true}}', "'skpi' is not known"),
        ('{"a.png": {"skip": 1}}', "skip is 1; it must be true or false"),
        ('{"a.png": {"repeats": 0}}', "repeats is 0"),
        ('{"a.png": {"repeats": true}}', "repeats is True"),
        ('{"a.png": {"repeats": 2.0}}', "repeats is 2.0"),
        ('{"a.png": {"repeats": null}}', "repeats is None"),
        ('{"a.png": {"crop": [0, 0, 10]}}', r"crop is \[0, 0, 10\]"),
        ('{"a.png": {"crop": [-1, 0, 10, 10]}}', "crop is"),
        ('{"a.png": {"crop": [0, 0, 0, 10]}}', "crop is"),
        ('{"a.png": {"crop": [0, 0, 9.5, 10]}}', "crop is"),
        ('{"a.png": {"mask": "../a.png"}}', "mask is"),
        ('{"a.png": {"mask": "/etc/passwd"}}', "mask is"),
        ('{"a.png": {"mask": "C:\\\\x.png"}}', "mask is"),
        ('{"a.png": {"mask": "x\\\\..\\\\..\\\\y.png"}}', "mask is"),
        ('{"a.png": {"mask": ""}}', "mask is"),
        ('{"x/a.png": {"skip": true}}', "the name must be that of a file"),
        ('{"": {"skip": true}}', "the name must be that of a file"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError, match=named) as refused:
        scan(data_config(tmp_path))
    assert FILE in str(refused.value)
    with pytest.raises(DataError, match=named):
        change_remarks({tmp_path / "a.png": Remark(skip=True)})
    assert (tmp_path / FILE).read_text() == text


def test_a_remark_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mask is"):
        write_remarks(tmp_path, {"a.png": Remark(mask="../b.png")})
    assert not (tmp_path / FILE).exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures of 64x64 and one of 128x64, with captions, 10 times each."""
    folder = write_folder(tmp_path / "10_cat", 6, caption="cat")
    write_picture(folder / "wide.png", (128, 64), 9, "cat")
    return folder


def test_repeats_and_what_is_left_out_are_counted(folder: Path) -> None:
    config = data_config(folder.parent, **SETTINGS)
    plain = scan(config)
    write_remarks(folder, {"0000.png": Remark(skip=True), "0001.png": Remark(repeats=3), "gone.png": Remark(repeats=1)})
    report = scan(config)
    shown = examples(report, config)
    assert (plain.train_count, report.train_count) == (70, 53)
    assert {each.picture.path.name: each.repeats for each in shown}["0001.png"] == 3
    assert "0000.png" not in {each.picture.path.name for each in shown}
    assert counts.count(report, shown, config).train_samples == 53
    assert "Left out, as pictures.json says: 1 picture: 10_cat/0000.png." in report.notices
    assert "10_cat/pictures.json speaks of pictures that are not there: gone.png." in report.notices
    told = report.to_json()["folders"][0]["pictures"]  # type: ignore[index]
    assert [each.get("said") for each in told][:2] == ["repeats=3", None]
    write_remarks(folder, {path.name: Remark(skip=True) for path in folder.glob("*.png")})
    with pytest.raises(DataError, match="leaves out all pictures"):
        scan(config)


def test_the_plan_says_each_number_of_repeats(folder: Path) -> None:
    write_remarks(folder, {"0001.png": Remark(repeats=3)})
    config = data_config(folder.parent, max_train_epochs=1, train_batch_size=1, **SETTINGS)
    report = scan(config)
    counted = counts.count(report, examples(report, config), config)
    words = sum_of_steps(report, counted, make_timetable(config, micro_batches=counted.batches))
    assert words.startswith("6 × 10 + 1 × 3 images × repeats = 63 an epoch")


def test_a_crop_is_trained_as_if_it_had_been_cut_out(folder: Path, tmp_path: Path) -> None:
    write_remarks(folder, {"wide.png": Remark(crop=(20, 0, 64, 64))})
    config = data_config(folder.parent, **SETTINGS)
    (cropped,) = [each for each in examples(scan(config), config) if each.picture.crop]
    cut = Image.open(folder / "wide.png").crop((20, 0, 84, 64))
    cut.save(write_picture(tmp_path / "other" / "10_cat" / "cut.png"))
    of_cut = data_config(tmp_path / "other", **SETTINGS)
    (wanted,) = examples(scan(of_cut), of_cut)
    assert cropped.placement.bucket == wanted.placement.bucket == (64, 64)
    assert cropped.placement.original == (64, 64)
    assert torch.equal(load_pixels(cropped, False), load_pixels(wanted, False))
    write_remarks(folder, {})
    (whole,) = [each for each in examples(scan(config), config) if each.picture.path.name == "wide.png"]
    assert entry_key("x", cropped, False, "vae") != entry_key("x", whole, False, "vae")


def test_a_crop_of_a_large_turned_jpeg_is_where_it_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    large = gradient((1200, 800))
    (tmp_path / "10_cat").mkdir()
    large.save(tmp_path / "10_cat" / "a.jpg", quality=95, exif=exif)
    seen = large.transpose(Image.Transpose.ROTATE_270)
    write_remarks(tmp_path / "10_cat", {"a.jpg": Remark(crop=(100, 300, 640, 640))})
    config = data_config(tmp_path, **SETTINGS)
    (example,) = examples(scan(config), config)
    wanted = seen.crop((100, 300, 740, 940)).resize((64, 64), Image.Resampling.LANCZOS)
    difference = (
        load_pixels(example, False).add(1).mul(127.5) - torch.tensor(list(wanted.getdata())).T.reshape(3, 64, 64)
    ).abs()
    assert difference.mean() < 2


def test_a_crop_beyond_the_picture_and_a_mask_that_is_gone_are_refused(folder: Path) -> None:
    config = data_config(folder.parent)
    write_remarks(folder, {"wide.png": Remark(crop=(65, 0, 64, 64))})
    with pytest.raises(DataError, match=r"wide\.png, \[65, 0, 64, 64\], reaches beyond the picture, which is 128x64"):
        scan(config)
    write_remarks(folder, {"wide.png": Remark(mask="masks/wide.png")})
    with pytest.raises(DataError, match=r"masks/wide\.png, is not there"):
        scan(config)


def test_masks_weigh_the_loss_without_being_trained(folder: Path) -> None:
    half = Image.new("L", (64, 64), 255)
    half.paste(0, (0, 0, 32, 64))
    (folder / "masks").mkdir()
    half.save(folder / "masks" / "0000.png")
    half.save(folder / "beside.png")
    clear = gradient((64, 64), 5).convert("RGBA")
    clear.putalpha(half)
    clear.save(folder / "0002.png")
    said = {
        "0000.png": Remark(mask="masks/0000.png"),
        "0001.png": Remark(mask="beside.png"),
        "0002.png": Remark(mask=ALPHA),
    }
    write_remarks(folder, said)
    config = data_config(folder.parent, **SETTINGS)
    report = scan(config)
    assert not any("masks" in notice for notice in report.notices)
    shown = {each.picture.path.name: each for each in examples(report, config)}
    assert "beside.png" not in shown and len(shown) == 7
    check_masks(shown.values())
    for name in said:
        assert shown[name].masked and has_mask(shown[name])
        mask = mask_of(shown[name], shown[name].placement, False, (8, 8))
        assert mask[0, :, :4].max() == 0 and mask[0, :, 4:].min() == 1
    assert not shown["0003.png"].masked and not has_mask(shown["0003.png"])
    assert mask_of(shown["0003.png"], shown["0003.png"].placement, False, (8, 8)).min() == 1


def test_a_resumed_run_is_told_what_is_said_otherwise(folder: Path, tmp_path: Path) -> None:
    config = data_config(folder.parent, **SETTINGS)
    recorder = Recorder(tmp_path / "record.json", scan(config))
    recorder.begin()
    recorder.end()
    recorder._thread.join()
    before = read(tmp_path / "record.json")
    assert changed(before, scan(config)).said == ()
    (folder / "masks").mkdir()
    Image.new("L", (8, 8), 255).save(folder / "masks" / "a.png")
    write_remarks(folder, {"0001.png": Remark(repeats=2), "0002.png": Remark(mask="masks/a.png")})
    assert changed(before, scan(config)).said == ("0001.png", "0002.png")
    again = Recorder(tmp_path / "again.json", scan(config))
    again.begin()
    again.end()
    Image.new("L", (8, 8), 0).save(folder / "masks" / "a.png")
    assert changed(read(tmp_path / "again.json"), scan(config)).said == ("0002.png",)


def test_export_says_what_sd_scripts_does_not_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_remarks(folder, {"0001.png": Remark(skip=True), "0002.png": Remark(repeats=1)})
    settings = tmp_path / "run.toml"
    settings.write_text(f"train_data_dir = {json.dumps(str(folder.parent))}\n")
    assert main(["export", str(settings)]) == 0
    assert f"sd-scripts does not read {folder / FILE} (1 left out, 1 with repeats" in capsys.readouterr().err
