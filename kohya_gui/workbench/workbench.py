"""What the workbench does: opens folders, shows and writes captions and remarks, takes back, and sends out errands.

It keeps the folders that were opened last, and changes that were previewed; both are bounded.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_gui.parts.folders import Folders, Refused
from kohya_gui.workbench import told
from kohya_gui.workbench.acts import Act, Acts, Turned
from kohya_gui.workbench.bench import Bench
from kohya_gui.workbench.errand import Errands, Standing
from kohya_gui.workbench.told import Said
from trainer.config import TrainingConfig
from trainer.ground.control import Progress
from trainer.ground.errors import DataError, StateError, TrainerError
from trainer.pictures.remarks import Remark, change_remarks
from trainer.workbench import changes
from trainer.workbench.album import open_album, open_folder
from trainer.workbench.changes import Applied, Change, Preview, Record

MOST_OPEN = 6
MOST_PLANS = 4
PLAN_PAGE = 200
MOST_QUOTED = 300
READ_SECONDS = 0.3
"""Time for the first pictures to be shown before all captions are read."""

PICTURE_KEYS = ("train_data_dir", "reg_data_dir")

Answer = dict[str, object]


class Closed(DataError):
    """A folder is not open any more."""


class Conflict(DataError):
    """A caption is not what the page showed; `row` is what there is now."""

    def __init__(self, row: Answer) -> None:
        self.row = row
        now = "It was taken away" if row["missing"] else f"It is now: {shortened(str(row['caption']))!r}"
        super().__init__("The caption was changed elsewhere in the meantime.", f"{now}.")


@dataclass(frozen=True, slots=True)
class Form:
    """What the workbench knows of the form: its settings, how one is chosen, and whether a run is under way."""

    config: Callable[[], TrainingConfig]
    choose: Callable[[str, str], None]
    busy: Callable[[], bool]


class Workbench:
    """Everything that is open in the workbench. Methods may be called from any thread, and return plain values.

    The form says where the pictures of a training are, and how they are cut.
    """

    def __init__(self, folders: Folders, form: Form) -> None:
        self.folders = folders
        self.errands = Errands()
        self._form = form
        self._lock = threading.RLock()
        self._open: OrderedDict[str, Bench] = OrderedDict()
        self._plans: OrderedDict[int, tuple[str, Preview]] = OrderedDict()
        self._plan = 0
        self._acts = Acts()

    # --- opening ----------------------------------------------------------------------------------------------------

    def state(self, path: str = "") -> Answer:
        """Return the folder that a tab had before, else the one that was opened last, else that of the form.

        Nothing is open where it cannot be.
        """
        with self._lock:
            known = [each for each in reversed(self._open.values()) if not path or each.path == path]
        if known:
            return self.about(known[0])
        chosen = path or self._form.config().dataset.train_data_dir
        try:
            return self.open(str(chosen)) if chosen else self.nothing("")
        except (Refused, TrainerError):
            return self.nothing(str(chosen))

    def nothing(self, path: str) -> Answer:
        """Return that nothing is open."""
        return {"token": "", "path": path, "errand": self.errands.standing.to_json()}

    def open(self, text: str) -> Answer:
        """Open a folder, and what the form says beside it where it is the form's own.

        Raises:
            Refused: the page may not use it.
            ConfigError, DataError: there are no pictures.
        """
        path, config = self.folders.check(text), self._form.config()
        chosen = config.dataset.train_data_dir
        own = bool(chosen) and path == Path(self.folders.check(chosen))
        album = open_album(config) if own else open_folder(path, config.captions.caption_extension)
        bench = Bench(str(path), config, album, self.folders, own)
        with self._lock:
            self._open[bench.token] = bench
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        _begin_to_read(bench)
        return self.about(bench)

    def look_again(self, bench: Bench) -> Answer:
        """Return what the frame shows of a folder; captions that another program changed are read again behind it."""
        if bench.ready.is_set():
            _begin_to_read(bench)
        return self.about(bench)

    def bench(self, token: str) -> Bench:
        """Return an open folder.

        Raises:
            Closed: it is not open any more.
        """
        with self._lock:
            bench = self._open.get(token)
            if bench is None:
                raise Closed("This folder is not open any more.", "Open it again.")
            self._open.move_to_end(token)
            return bench

    def about(self, bench: Bench, words: str = "") -> Answer:
        """Return what the frame shows of an open folder; `words` say what was just done."""
        places = bench.places
        broken = [
            {
                "number": number,
                "title": each.title,
                "undoing": each.undoing,
                "done": len(each.done),
                "pending": len(each.pending),
                "foreign": len(each.foreign),
            }
            for number, each in enumerate(changes.unfinished(places))
        ]
        more = {"told": words, "unfinished": broken, "errand": self.errands.standing.to_json()}
        return {**bench.about(), **self._turns(bench), **more}

    def _turns(self, bench: Bench) -> Answer:
        """Return what can be taken back, and what can be done again, and a mark of each that no other has."""
        undo, redo = self._next(bench, back=True), self._next(bench, back=False)
        return {"undo": _title(*undo), "redo": _title(*redo), "marks": {"undo": _mark(*undo), "redo": _mark(*redo)}}

    def _next(self, bench: Bench, *, back: bool) -> tuple[Act | None, Record | None]:
        """Return what is turned round next: an act, and what the journal has of captions."""
        places = bench.places
        record = changes.last_change(places) if back else changes.last_undone(places)
        return self._acts.last(places, undone=not back, captions=record is not None), record

    # --- captions ---------------------------------------------------------------------------------------------------

    def write_caption(self, bench: Bench, said: Said) -> Answer:
        """Write one caption at once.

        Raises:
            Conflict: it is not what the page showed.
            DataError, StateError: it cannot be written.
        """
        entry, wanted, was = bench.entry(said.get("id")), told.text(said, "text"), told.text(said, "was")
        before = bench.row(entry)
        if before["caption"] != was:
            raise Conflict(before)
        planned = changes.preview_texts(f"Caption of {entry.picture.name}", {entry: wanted})
        if planned.changes:
            done = self._apply(bench, planned)
            if done.conflicts:
                raise Conflict(bench.row(entry))
        _refuse(planned.refused)
        return {"row": bench.row(entry), **self._turns(bench)}

    def preview(self, bench: Bench, said: Said) -> Answer:
        """Return what an operation would do to the captions of pictures; nothing is written."""
        wanted = told.operation(said, bench.tags())
        return self.kept(bench, changes.preview(bench.entries(said.get("ids")), [wanted]))

    def kept(self, bench: Bench, planned: Preview) -> Answer:
        """Keep a preview, and return the beginning of it for the page."""
        with self._lock:
            self._plan += 1
            number = self._plan
            self._plans[number] = (bench.path, planned)
            while len(self._plans) > MOST_PLANS:
                self._plans.popitem(last=False)
        return {
            "plan": number,
            "path": bench.path,
            "title": planned.title,
            "changes": len(planned.changes),
            "unchanged": planned.unchanged,
            "refused": [[path.name, why] for path, why in planned.refused],
            **self.plan_page(bench, {"plan": number}),
        }

    def plan_page(self, bench: Bench, said: Said) -> Answer:
        """Return some of the changes that were previewed, from a place on."""
        planned, begin = self._planned(bench, said), max(0, told.whole(said, "from") or 0)
        listed = planned.changes[begin : begin + PLAN_PAGE]
        return {"from": begin, "listed": [_change(bench, each) for each in listed]}

    def _planned(self, bench: Bench, said: Said) -> Preview:
        with self._lock:
            path, planned = self._plans.get(told.whole(said, "plan") or 0, ("", None))
        if planned is None or path != bench.path:
            raise DataError("This preview is not kept any more.", "Preview it again.")
        return planned

    def drop(self, bench: Bench, said: Said) -> Answer:
        """Forget a preview, which is not offered any more."""
        number = told.whole(said, "plan")
        with self._lock:
            self._plans.pop(number or 0, None)
        self.errands.forget("plan", number)
        return {}

    def apply(self, bench: Bench, said: Said) -> Answer:
        """Write what was previewed, as an errand.

        Raises:
            StateError: another errand is under way.
        """
        planned = self._planned(bench, said)

        def work(progress: Progress) -> Answer:
            done = self._apply(bench, planned, progress)
            conflicts = [[path.name, why] for path, why in done.conflicts]
            words = f"{planned.title}: {_captions(len(done.done))} written."
            return {"told": words, "written": len(done.done), "conflicts": conflicts}

        return self.sent(self.errands.start(planned.title, work))

    def _apply(self, bench: Bench, planned: Preview, progress: Progress | None = None) -> Applied:
        try:
            done = changes.apply(planned, progress)
        finally:
            self._wrote(each.caption for each in planned.changes)
        if done.done:
            self.did(Act(planned.title, frozenset(path.parent for path in done.done)))
        return done

    def _wrote(self, captions: Iterable[Path]) -> None:
        """Captions were written or taken away: all that is open here reads them again."""
        written = tuple(captions)
        with self._lock:
            opened = tuple(self._open.values())
        for bench in opened:
            bench.wrote(written)

    # --- taking back ------------------------------------------------------------------------------------------------

    def did(self, act: Act) -> None:
        """Remember something that can be taken back."""
        self._acts.did(act)

    def undo(self, bench: Bench, said: Said) -> Answer:
        """Take back what was done last in this folder.

        Raises:
            StateError: by now it is another act than that with the `mark` that was shown.
        """
        return self._turn(bench, told.text(said, "mark"), back=True)

    def redo(self, bench: Bench, said: Said) -> Answer:
        """Do again what was taken back last in this folder. Raises as `undo` does."""
        return self._turn(bench, told.text(said, "mark"), back=False)

    def _turn(self, bench: Bench, shown: str, *, back: bool) -> Answer:
        last, record = self._next(bench, back=back)
        if shown and shown != _mark(last, record):
            verb, title = "take back" if back else "do again", _title(last, record)
            words = f"This would {verb} {title!r} now" if title else f"There is nothing to {verb} now"
            raise StateError(f"{words}: something was done elsewhere.", "Press it again if that is meant.")
        what = "Taken back" if back else "Done again"
        if last and last.turn:
            turned = last.turn()
            self._acts.turned(last, turned.act, back=back)
            words = f"{what}: {last.title}."
            if turned.opened is None:
                return self.about(bench, words)
            return {**self.open(str(turned.opened)), "told": words}
        done = (changes.undo if back else changes.redo)(bench.places)
        if done is None:
            return self.about(bench, f"There is nothing to {'take back' if back else 'do again'}.")
        act = last or Act(done.title, frozenset(bench.places))
        self._acts.turned(act, act, back=back)
        self._wrote(done.done)
        return self.about(bench, _of_applied(f"{what}: {done.title}", done))

    def history(self, bench: Bench, said: Said) -> Answer:
        """Return the changes of captions in this folder that stand, the newest first."""
        found = changes.history(bench.places)
        return {"listed": [{"title": each.title, "when": each.when, "count": each.count} for each in found]}

    def settle(self, bench: Bench, said: Said) -> Answer:
        """Bring to its end, or take back, a change that was interrupted."""
        number = told.whole(said, "number")
        found = changes.unfinished(bench.places)
        if number is None or not 0 <= number < len(found):
            return self.about(bench)
        cut_off, back = found[number], told.yes(said, "back")
        done = changes.take_back(cut_off) if back else changes.finish(cut_off)
        self._wrote([*done.done, *cut_off.done, *cut_off.pending])
        if back == cut_off.undoing:
            self.did(Act(cut_off.title, frozenset(cut_off.folders)))
        what = "Taken back" if back is not cut_off.undoing else "Done again" if back else "Finished"
        return self.about(bench, _of_applied(f"{what}: {done.title}", done))

    # --- remarks ----------------------------------------------------------------------------------------------------

    def remark(self, bench: Bench, said: Said) -> Answer:
        """Say of pictures that they are left out, how often they are repeated, or what of them is used."""
        entries = bench.entries(said.get("ids"))
        if gone := [each.picture.name for each in entries if not os.path.lexists(each.picture)]:
            words = gone[0] if len(gone) == 1 else f"{gone[0]} and {len(gone) - 1:,} more"
            raise DataError(f"Not there any more: {words}. Nothing was written.", "Open the folder again.")
        wanted = {each.picture: told.remark(said, bench.remark(each)) for each in entries}
        title = told.text(said, "title") or "Remarks"
        return self.remarked(bench, title, wanted)

    def remarked(self, bench: Bench, title: str, wanted: Mapping[Path, Remark]) -> Answer:
        """Write remarks, which can be taken back."""
        return self.noted(bench, title, change_remarks(wanted), wanted)

    def noted(self, bench: Bench, title: str, before: Mapping[Path, Remark], now: Iterable[Path]) -> Answer:
        """Remember that remarks were written, and return what the frame shows now."""
        self.did(_remarking(title, before))
        return {**self.about(bench, f"{title}."), "changed": _numbers(bench, now)}

    # --- the form ---------------------------------------------------------------------------------------------------

    def use(self, bench: Bench, said: Said) -> Answer:
        """Let the form have this folder, for training or as regularisation pictures."""
        key = told.text(said, "key")
        if key not in PICTURE_KEYS:
            raise DataError(f"key: {key!r} names no folder of pictures.", "Reload the page.")
        self._form.choose(key, bench.path)
        return {"told": "The form has this folder now."}

    def refuse_while_busy(self) -> None:
        """Raises StateError while a run is under way, which may be reading the pictures of any folder."""
        if self._form.busy():
            raise StateError("A run is under way, and may be reading these pictures.", "Rename them when it has ended.")

    def moved(self, opened: Path, old: Path, new: Path) -> Path:
        """A folder has another name: the form follows. Returns where `opened` is now."""
        dataset = self._form.config().dataset
        for key in PICTURE_KEYS:
            named = str(getattr(dataset, key))
            if named and Path(named).absolute() == old:
                self._form.choose(key, str(new))
        return new if opened == old else opened

    @property
    def chosen(self) -> tuple[str, str]:
        """The form's folders of pictures to learn and of regularisation pictures."""
        dataset = self._form.config().dataset
        return dataset.train_data_dir, dataset.reg_data_dir

    def choose_regularisation(self, folder: str) -> str:
        """Let the form have another folder of regularisation pictures, or none; returns the one that it had."""
        _, before = self.chosen
        if folder != before:
            self._form.choose(PICTURE_KEYS[1], folder)
        return before

    def sent(self, standing: Standing) -> Answer:
        """Return that an errand was begun."""
        return {"errand": standing.to_json()}


def _remarking(title: str, before: Mapping[Path, Remark]) -> Act:
    """Return the act of having said something of pictures, of which `before` was said."""

    def turn() -> Turned:
        return Turned(_remarking(title, change_remarks(before)))

    return Act(title, frozenset(path.parent for path in before), turn)


def _title(last: Act | None, record: Record | None) -> str:
    """Return what is turned round next: the last act, or a change of captions that the journal has."""
    if last is not None and last.turn is not None:
        return last.title
    return record.title if record else ""


def _mark(last: Act | None, record: Record | None) -> str:
    """Return what tells the act that is turned round next from all others."""
    if last is not None and last.turn is not None:
        return f"act {last.number}"
    return record.id if record else ""


def _numbers(bench: Bench, pictures: Iterable[Path]) -> list[int]:
    return [number for path in pictures if (number := bench.number_of(path)) is not None]


def shortened(text: str) -> str:
    """Return a text, or its beginning where it is long."""
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]} …"


def _begin_to_read(bench: Bench) -> None:
    bench.ready.clear()
    reading = threading.Timer(READ_SECONDS, _read, (bench,))
    reading.daemon = True
    reading.start()


def _read(bench: Bench) -> None:
    try:
        bench.index.read()
        bench.recount()
    finally:
        bench.changes += 1
        bench.ready.set()


def _change(bench: Bench, change: Change) -> Answer:
    return {
        "id": bench.number_of(change.picture),
        "name": change.picture.name,
        "old": change.old,
        "new": change.new,
        "encoding": "" if change.encoding in ("utf-8", "") else change.encoding,
    }


def _of_applied(what: str, done: Applied) -> str:
    left = f" {_captions(len(done.conflicts))} left as they are, for they were changed since." if done.conflicts else ""
    return f"{what}: {_captions(len(done.done))}.{left}"


def _captions(count: int) -> str:
    return "1 caption" if count == 1 else f"{count:,} captions"


def _refuse(refused: Sequence[tuple[Path, str]]) -> None:
    if refused:
        raise StateError(refused[0][1])
