"""What the workbench does beside captions: captions by a model, painted masks, folders with other repeats."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

from PIL import Image

from kohya_gui.workbench import told
from kohya_gui.workbench.acts import Act, Turned
from kohya_gui.workbench.bench import Bench
from kohya_gui.workbench.told import Said
from kohya_gui.workbench.workbench import Answer, Workbench
from trainer.ground.control import Progress
from trainer.ground.errors import DataError, StateError
from trainer.pictures.remarks import amend_remarks
from trainer.settings.kohya import names_a_file
from trainer.workbench.album import AlbumFolder
from trainer.workbench.captioners import CaptionerSettings, caption_pictures
from trainer.workbench.describing import DescriberSettings
from trainer.workbench.folders import Rename, plan_rename, rename
from trainer.workbench.painting import mask_for, save_mask
from trainer.workbench.tagging import TaggerSettings
from trainer.workbench.thumbnails import Shown

BY = "started in the page"

MOST_MASK = 64 << 20
"""Bytes of a mask that is sent."""

TAGGER, DESCRIBER = "tagger", "describer"

BESIDE = "reg"
"""The folder of regularisation pictures, beside that of the pictures to learn, where the form names none."""


class Tasks:
    """Does them for a workbench. What is asked of a folder raises as the workbench does."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench

    # --- captions by a model ----------------------------------------------------------------------------------------

    def captioners(self, bench: Bench, said: Said) -> Answer:
        """Return what is missing for each kind of captioner, in words that say what to install."""
        return {
            TAGGER: TaggerSettings(model="").missing_extra(),
            DESCRIBER: DescriberSettings(model="").missing_extra(),
        }

    def caption(self, bench: Bench, said: Said) -> Answer:
        """Let a model write captions of pictures, as an errand whose result is a preview: nothing is written.

        Raises:
            Refused: the model lies where the page may not look.
            ConfigError, DataError: a value cannot be used.
            StateError: another errand is under way, or a package is missing.
        """
        entries, mode = bench.entries(said.get("ids")), told.text(said, "mode")
        settings = self._captioner(said)
        if words := settings.missing_extra():
            raise StateError(words)

        def work(progress: Progress) -> Answer:
            planned = caption_pictures(entries, settings, mode=mode, by=BY, progress=progress)
            return self._workbench.kept(bench, planned)

        heavy = isinstance(settings, DescriberSettings)
        return self._workbench.sent(self._workbench.errands.start("Captions by a model", work, heavy=heavy))

    def _captioner(self, said: Said) -> CaptionerSettings:
        model = told.text(said, "model").strip()
        if not model:
            raise DataError("Model: it is not named yet.", "Write a folder, or a name at the hub such as owner/name.")
        if Path(model).expanduser().exists() or names_a_file(model):
            model = str(self._workbench.folders.check(model))
        if told.text(said, "kind") == DESCRIBER:
            most = told.whole(said, "max_new_tokens") or 128
            return DescriberSettings(model=model, prompt=told.text(said, "prompt"), max_new_tokens=most)
        return TaggerSettings(
            model=model,
            general_threshold=told.share(said, "general_threshold", 0.35),
            character_threshold=told.share(said, "character_threshold", 0.85),
            unwanted=told.texts(said, "unwanted"),
            underscores=told.yes(said, "underscores"),
            rating=told.yes(said, "rating"),
        )

    # --- masks ------------------------------------------------------------------------------------------------------

    def write_mask(self, bench: Bench, number: int, body: bytes) -> Answer:
        """Keep a painted mask, a picture of any size whose white counts; no bytes take it away.

        Raises:
            DataError: it is no picture, or there is no such picture in the folder.
        """
        entry = bench.entry(number)
        picture, title = entry.picture, f"Mask of {entry.picture.name}"
        if not body:
            return self._workbench.noted(bench, title, amend_remarks({picture: {"mask": ""}}), [picture])
        try:
            with Image.open(io.BytesIO(body), formats=["PNG"]) as sent:
                sent.load()
                before = save_mask(picture, sent)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"The mask cannot be read: {error}.", "Paint it anew.") from None
        return self._workbench.noted(bench, title, {picture: before}, [picture])

    def read_mask(self, bench: Bench, number: int) -> Shown:
        """Return a picture's mask as PNG. Raises DataError where it has none."""
        mask = mask_for(bench.entry(number).picture)
        if mask is None:
            raise DataError("This picture has no mask.")
        target = io.BytesIO()
        mask.save(target, "PNG")
        return Shown(target.getvalue(), "image/png")

    # --- folders ----------------------------------------------------------------------------------------------------

    def rename_folder(self, bench: Bench, said: Said) -> Answer:
        """Give a folder other repeats and another class in its name, and put it to the regularisation pictures or back.

        It is asked first, unless `sure`.

        Raises:
            Refused, DataError: it cannot have this name, or cannot lie there.
            StateError: a run is under way, which may be reading its pictures.
        """
        number = told.whole(said, "number")
        if number is None or not 0 <= number < len(bench.album.folders):
            raise DataError("There is no such folder in the list.", "Open the folder again.")
        workbench, folder = self._workbench, bench.album.folders[number]
        into, regularisation = None, workbench.chosen[1]
        if "regularisation" in said and told.yes(said, "regularisation") != folder.regularisation:
            into, regularisation = self._other_side(bench, folder)
        repeats, class_tokens = told.whole(said, "repeats") or 0, told.text(said, "class_tokens").strip()
        planned = plan_rename(folder.path, repeats, class_tokens, into)
        for path in (planned.old, planned.new):
            workbench.folders.check(path)
        if not told.yes(said, "sure"):
            return {"old": planned.old.name, "new": planned.new.name, "into": str(into or "")}
        title = f"{planned.old.name} is {planned.new.name} now"
        if into:
            title += ", to be learned" if folder.regularisation else ", for regularisation"
        done = self._renamed(title, Path(bench.path), planned, regularisation)
        workbench.did(done.act)
        return {**workbench.open(str(done.opened)), "told": f"{title}.", "undo": title}

    def _other_side(self, bench: Bench, folder: AlbumFolder) -> tuple[Path, str]:
        """Return where a folder lies once it is put to the regularisation pictures or back, and the form's folder of
        regularisation pictures then.

        Raises:
            DataError: it cannot be put there.
        """
        training, regularisation = self._workbench.chosen
        if not (bench.own and training and str(self._workbench.folders.check(training)) == bench.path):
            raise DataError(f"{bench.path} is not the form's folder.", "Use it for training, and open it again.")
        into = Path(training) if folder.regularisation else Path(regularisation or Path(training).parent / BESIDE)
        others = [each for each in bench.album.folders if each.path != folder.path]
        if any(each.path == into for each in others):
            raise DataError(
                f"{into} is a plain folder of pictures; numbered folders in it are used instead of them.",
                "Put its pictures into a subfolder named REPEATS_NAME first.",
            )
        if not folder.regularisation and all(each.regularisation for each in others):
            raise DataError(f"{folder.name} is the only folder with pictures to learn.", "Add another one first.")
        if folder.regularisation:
            return into, regularisation if any(each.regularisation for each in others) else ""
        return into, str(into)

    def _renamed(self, title: str, opened: Path, planned: Rename, regularisation: str) -> Turned:
        """Rename a folder; `opened` is the one that is open, `regularisation` what the form names then."""
        self._workbench.refuse_while_busy()
        rename(planned)
        before = self._workbench.choose_regularisation(regularisation)
        now = self._workbench.moved(opened, planned.old, planned.new)
        back = partial(self._renamed, title, now, planned.back, before)
        return Turned(Act(title, frozenset({planned.new}), back), now)
