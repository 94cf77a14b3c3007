"""Masks that are painted reach the loss, and renamed folders come back."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.pictures import data_config, write_picture
from trainer.ground.errors import DataError, StateError
from trainer.pictures.batches import examples
from trainer.pictures.masks import mask_of
from trainer.pictures.remarks import Remark, change_remarks, read_remarks
from trainer.pictures.scan import scan
from trainer.workbench import journal
from trainer.workbench.folders import Rename, plan_rename, rename
from trainer.workbench.painting import mask_for, save_mask

SETTINGS = {"resolution": 64, "min_bucket_reso": 64, "bucket_reso_steps": 64, "validation_split": 0.0}


def half(size: tuple[int, int], mode: str = "L") -> Image.Image:
    """Return a mask of which the left half does not count."""
    mask = Image.new(mode, size, (255, 255, 255, 255) if mode == "RGBA" else 255)
    mask.paste((0, 0, 0, 0) if mode == "RGBA" else 0, (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_painted_mask_is_that_of_the_loss_and_undone(tmp_path: Path, mode: str) -> None:
    path = write_picture(tmp_path / "1_x" / "a.png", (64, 64))
    before = path.read_bytes()
    assert mask_for(path) is None
    said = save_mask(path, half((32, 32), mode))
    config = data_config(tmp_path, **SETTINGS)
    report = scan(config)
    assert not any("masks" in notice for notice in report.notices)
    (example,) = examples(report, config)
    mask = mask_of(example, example.placement, False, (8, 8))
    assert mask[0, :, :3].max() == 0 and mask[0, :, 5:].min() == 1
    shown = mask_for(path)
    assert shown is not None and (shown.size, shown.getpixel((0, 0)), shown.getpixel((63, 0))) == ((64, 64), 0, 255)
    second = save_mask(path, Image.new("L", (8, 8), 128))
    assert second == Remark(mask="masks/a.png.png")
    change_remarks({path: second})
    assert mask_for(path).tobytes() == shown.tobytes()  # type: ignore[union-attr]
    change_remarks({path: said})
    assert mask_for(path) is None and read_remarks(path.parent) == {}
    assert path.read_bytes() == before


def test_the_transparency_is_shown_as_a_mask(tmp_path: Path) -> None:
    picture = half((16, 16), "RGBA")
    picture.save(tmp_path / "a.png")
    change_remarks({tmp_path / "a.png": Remark(mask="alpha")})
    shown = mask_for(tmp_path / "a.png")
    assert shown is not None and (shown.getpixel((0, 0)), shown.getpixel((15, 0))) == (0, 255)


def test_masks_are_not_written_elsewhere(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "1_x" / "a.png")
    (tmp_path / "elsewhere").mkdir()
    (path.parent / "masks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link"):
        save_mask(path, half((8, 8)))
    (path.parent / "torn.png").write_bytes(b"torn")
    (path.parent / "masks").unlink()
    with pytest.raises(DataError, match="cannot be kept"):
        save_mask(path.parent / "torn.png", half((8, 8)))


def test_a_folder_is_renamed_and_back(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "10_cat" / "a.png")
    planned = plan_rename(path.parent, 3, " black cat ")
    assert path.exists(), "planned only"
    assert rename(planned) == tmp_path / "3_black cat"
    assert scan(data_config(tmp_path)).folders[0].repeats == 3
    assert rename(planned.back) == tmp_path / "10_cat" and path.exists()
    moved = plan_rename(path.parent, 1, "cat", tmp_path / "reg")
    assert not (tmp_path / "reg").exists()
    assert rename(moved) == tmp_path / "reg" / "1_cat" and (tmp_path / "reg" / "1_cat" / path.name).exists()
    assert rename(moved.back) == tmp_path / "10_cat" and path.exists() and not (tmp_path / "reg").exists()
    rename(moved)
    (tmp_path / "reg" / "other.txt").write_text("of somebody")
    assert rename(moved.back) and path.exists() and (tmp_path / "reg" / "other.txt").exists()


@pytest.mark.parametrize(
    ("repeats", "words", "named"),
    [
        (0, "cat", "must be from 1"),
        (2_000_000, "cat", "must be from 1"),
        (1, "../cat", "holds a sign"),
        (1, "a\0b", "holds a sign"),
        (1, "dog.", "holds a sign"),
        (1, "x" * 200, "longer than"),
        (5, "taken", "is there already"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_are_refused(tmp_path: Path, repeats: int, words: str, named: str) -> None:
    folder = write_picture(tmp_path / "10_cat" / "a.png").parent
    (tmp_path / "5_taken").mkdir()
    with pytest.raises(DataError, match=named):
        plan_rename(folder, repeats, words)


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    plain = write_picture(tmp_path / "plain" / "a.png").parent
    with pytest.raises(DataError, match="no folder named N_class"):
        plan_rename(plain, 2, "cat")
    folder = write_picture(tmp_path / "10_cat" / "a.png").parent
    with pytest.raises(DataError, match=r"a\.png is no folder"):
        plan_rename(folder, 1, "cat", plain / "a.png")
    with pytest.raises(DataError, match="is not there any more"):
        rename(Rename(tmp_path / "1_gone", tmp_path / "2_gone"))
    with journal.locked([folder]), pytest.raises(StateError, match="are being changed"):
        rename(plan_rename(folder, 2, "cat"))
