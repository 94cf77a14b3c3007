"""What the scan found: pictures, folders, notices, and the numbers and metadata entries that follow from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trainer.pictures.remarks import ALPHA, Box

Size = tuple[int, int]

_TAG_SEPARATOR = ","
"""ss_tag_frequency is split at commas whatever caption_separator says, as sd-scripts does."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture file.

    `size` is (width, height) after EXIF rotation. `caption` is the text as read: stripped, blank lines left out,
    several lines only where the file has them; the class token where there is no caption file. `bytes` is the
    file's size.

    Of what pictures.json says of it: `repeats` instead of the folder's, `crop` the part that is trained, `mask` the
    file of its mask, or ALPHA.
    """

    path: Path
    size: Size
    caption: str
    bytes: int
    caption_missing: bool = False
    repeats: int | None = None
    crop: Box | None = None
    mask: Path | None = None
    alpha_mask: bool = False

    @property
    def trained_size(self) -> Size:
        """Width and height of what of it is trained."""
        return self.crop[2:] if self.crop else self.size

    @property
    def said(self) -> str:
        """What pictures.json says of how it is trained, as a text that is equal where that is; "" for nothing."""
        mask = ALPHA if self.alpha_mask else self.mask and self.mask.as_posix()
        told = (("repeats", self.repeats), ("crop", self.crop and list(self.crop)), ("mask", mask))
        return " ".join(f"{key}={value}" for key, value in told if value)

    @property
    def name(self) -> str:
        """Folder and file name, for messages."""
        return "/".join(self.path.parts[-2:])


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder of pictures with its repeats; `class_tokens` is what follows N_ in its name.

    `dataset` and `subset` are its numbers among the run's datasets, from 0, and `place` what messages call it; it is ""
    where the folder is one of `train_data_dir`'s.
    """

    path: Path
    name: str
    repeats: int
    class_tokens: str
    regularisation: bool
    pictures: tuple[Picture, ...]
    dataset: int = 0
    subset: int = 0
    place: str = ""

    @property
    def count(self) -> int:
        """Pictures times repeats."""
        return sum(repeats * pictures for repeats, pictures in self.repeated.items())

    @property
    def repeated(self) -> dict[int, int]:
        """{repeats: number of pictures}, the folder's own repeats first."""
        found = Counter(map(self.repeats_of, self.pictures))
        own = {self.repeats: found[self.repeats]} if self.repeats in found else {}
        return own | dict(sorted(found.items()))

    def repeats_of(self, picture: Picture) -> int:
        """Return how often one of its pictures is shown in an epoch."""
        return self.repeats if picture.repeats is None else picture.repeats


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """All folders, training first, in the order of their names, and what the user should know about them.

    `unreadable` holds (file, reason) of every picture that was left out; `notices` says it in words. `held_out` are the
    folders with the pictures that are only judged by.
    """

    folders: tuple[Folder, ...]
    notices: tuple[str, ...] = ()
    unreadable: tuple[tuple[Path, str], ...] = field(default=())
    held_out: tuple[Folder, ...] = ()

    @property
    def train_folders(self) -> tuple[Folder, ...]:
        """The folders of what is to be learned."""
        return tuple(folder for folder in self.folders if not folder.regularisation)

    @property
    def reg_folders(self) -> tuple[Folder, ...]:
        """The folders of regularisation pictures."""
        return tuple(folder for folder in self.folders if folder.regularisation)

    @property
    def train_images(self) -> int:
        """Training pictures, each counted once."""
        return sum(len(folder.pictures) for folder in self.train_folders)

    @property
    def reg_images(self) -> int:
        """Regularisation pictures, each counted once."""
        return sum(len(folder.pictures) for folder in self.reg_folders)

    @property
    def train_count(self) -> int:
        """Training pictures times repeats (`ss_num_train_images`)."""
        return sum(folder.count for folder in self.train_folders)

    @property
    def reg_count(self) -> int:
        """Regularisation pictures times their folder's repeats, before balancing (`ss_num_reg_images`)."""
        return sum(folder.count for folder in self.reg_folders)

    def to_json(self) -> dict[str, object]:
        """Return the report in plain lists, texts and numbers, for the run's folder and the page."""
        return {
            "train_count": self.train_count,
            "reg_count": self.reg_count,
            "folders": [_folder_json(folder) for folder in self.folders],
            "held_out": [_folder_json(folder) for folder in self.held_out],
            "notices": list(self.notices),
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
        }


Named = Callable[[Folder], str]
"""What a folder is called."""


def name_of(folder: Folder) -> str:
    """Return a folder's own name."""
    return folder.name


def dataset_dirs(folders: Iterable[Folder], named: Named = name_of) -> dict[str, dict[str, int]]:
    """Return `ss_dataset_dirs` or `ss_reg_dataset_dirs`: folder name -> repeats and number of pictures."""
    return {named(folder): {"n_repeats": folder.repeats, "img_count": len(folder.pictures)} for folder in folders}


def tag_frequency(
    report: DatasetReport, named: Named = name_of, *, all_lines: bool = False
) -> dict[str, dict[str, int]]:
    """Return `ss_tag_frequency`: folder name -> lower-cased tag -> number of pictures that have it.

    Each picture counts once, whatever its repeats. `all_lines` counts every line of a wildcard file, as sd-scripts
    does with enable_wildcard; otherwise only the line that is trained with.
    """
    return {named(folder): _tags_of(folder, all_lines) for folder in report.folders}


def _tags_of(folder: Folder, all_lines: bool) -> dict[str, int]:
    found: Counter[str] = Counter()
    for picture in folder.pictures:
        text = picture.caption if all_lines else picture.caption.partition("\n")[0]
        found.update(tag.strip().lower() for tag in text.split(_TAG_SEPARATOR) if tag.strip())
    return dict(found)


def _folder_json(folder: Folder) -> dict[str, object]:
    return {
        "path": str(folder.path),
        "name": folder.name,
        "repeats": folder.repeats,
        "class_tokens": folder.class_tokens,
        "regularisation": folder.regularisation,
        "dataset": folder.dataset,
        "pictures": [
            {
                "name": picture.path.name,
                "width": picture.size[0],
                "height": picture.size[1],
                "bytes": picture.bytes,
                "caption": picture.caption,
                "caption_missing": picture.caption_missing,
                **({"said": picture.said} if picture.said else {}),
            }
            for picture in folder.pictures
        ],
    }
