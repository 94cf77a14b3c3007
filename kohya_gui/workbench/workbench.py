"""What the workbench does: opens folders, shows and writes captions and remarks, takes back, and sends out errands.

It keeps the folders that were opened last, and changes that were previewed; both are bounded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_gui.parts.folders import Folders, Refused
from kohya_gui.workbench import told
from kohya_gui.workbench.bench import Bench
from kohya_gui.workbench.errand import Errands, Standing
from kohya_gui.workbench.told import Said
from trainer.config import TrainingConfig
from trainer.ground.control import Progress
from trainer.ground.errors import DataError, StateError, TrainerError
from trainer.pictures.remarks import Remark, change_remarks
from trainer.workbench import changes
from trainer.workbench.album import open_album, open_folder
from trainer.workbench.changes import Applied, Change, Preview

MOST_OPEN = 3
MOST_PLANS = 4
MOST_ACTS = 200
PLAN_PAGE = 200
READ_SECONDS = 0.3
"""Time for the first pictures to be shown before all captions are read."""

PICTURE_KEYS = ("train_data_dir", "reg_data_dir")

Answer = dict[str, object]


@dataclass(frozen=True, slots=True)
class Act:
    """Something that can be taken back: what it was, in which folders, and how; None where the journal knows.

    `back` returns the folder that is to be opened then, None where the open one stays.
    """

    title: str
    folders: frozenset[Path]
    back: Callable[[], Path | None] | None = None


class Conflict(DataError):
    """A caption is not what the page showed; `row` is what there is now."""

    def __init__(self, row: Answer) -> None:
        self.row = row
        super().__init__("The caption was changed elsewhere in the meantime.", "It is shown as it is now.")


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
        self._acts: list[Act] = []

    # --- opening ----------------------------------------------------------------------------------------------------

    def state(self) -> Answer:
        """Return the folder that was opened last, else that of the form; nothing is open where it cannot be."""
        with self._lock:
            last = next(reversed(self._open.values()), None)
        if last is not None:
            return self.about(last)
        chosen = self._form.config().dataset.train_data_dir
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
        own = config.dataset.train_data_dir and path == Path(self.folders.check(config.dataset.train_data_dir))
        album = open_album(config) if own else open_folder(path, config.captions.caption_extension)
        bench = Bench(str(path), config, album, self.folders)
        with self._lock:
            self._open[bench.token] = bench
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        reading = threading.Timer(READ_SECONDS, _read, (bench,))
        reading.daemon = True
        reading.start()
        return self.about(bench)

    def bench(self, token: str) -> Bench:
        """Return an open folder.

        Raises:
            DataError: it is not open any more.
        """
        with self._lock:
            bench = self._open.get(token)
            if bench is None:
                raise DataError("This folder is not open any more.", "Open it again.")
            self._open.move_to_end(token)
            return bench

    def about(self, bench: Bench, words: str = "") -> Answer:
        """Return what the frame shows of an open folder; `words` say what was just done."""
        places = bench.places
        last = self._last(bench)
        record = changes.last_change(places) if last is None or last.back is None else None
        title = last.title if last is not None and last.back is not None else record.title if record else ""
        broken = [
            {"number": number, "title": each.title, "done": len(each.done), "pending": len(each.pending)}
            for number, each in enumerate(changes.unfinished(places))
        ]
        more = {"undo": title, "told": words, "unfinished": broken, "errand": self.errands.standing.to_json()}
        return {**bench.about(), **more}

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
        return {"row": bench.row(entry), "undo": planned.title}

    def preview(self, bench: Bench, said: Said) -> Answer:
        """Return what an operation would do to the captions of pictures; nothing is written."""
        wanted = told.operation(said, bench.tags())
        return self.kept(bench, changes.preview(bench.entries(said.get("ids")), [wanted]))

    def kept(self, bench: Bench, planned: Preview) -> Answer:
        """Keep a preview, and return the beginning of it for the page."""
        with self._lock:
            self._plan += 1
            number = self._plan
            self._plans[number] = (bench.token, planned)
            while len(self._plans) > MOST_PLANS:
                self._plans.popitem(last=False)
        return {
            "plan": number,
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
            token, planned = self._plans.get(told.whole(said, "plan") or 0, ("", None))
        if planned is None or token != bench.token:
            raise DataError("This preview is not kept any more.", "Preview it again.")
        return planned

    def apply(self, bench: Bench, said: Said) -> Answer:
        """Write what was previewed, as an errand.

        Raises:
            StateError: another errand is under way.
        """
        planned = self._planned(bench, said)

        def work(progress: Progress) -> Answer:
            done = self._apply(bench, planned, progress)
            conflicts = [[path.name, why] for path, why in done.conflicts]
            return {"told": f"{planned.title}: {_captions(len(done.done))} written.", "conflicts": conflicts}

        return self.sent(self.errands.start(planned.title, work))

    def _apply(self, bench: Bench, planned: Preview, progress: Progress | None = None) -> Applied:
        try:
            done = changes.apply(planned, progress)
        finally:
            bench.wrote(each.caption for each in planned.changes)
        if done.done:
            self.did(Act(planned.title, frozenset(path.parent for path in done.done)))
        return done

    # --- taking back ------------------------------------------------------------------------------------------------

    def did(self, act: Act) -> None:
        """Remember something that can be taken back."""
        with self._lock:
            self._acts = [*self._acts, act][-MOST_ACTS:]

    def _last(self, bench: Bench) -> Act | None:
        places = set(bench.places)
        with self._lock:
            return next((each for each in reversed(self._acts) if each.folders & places), None)

    def _forget(self, act: Act) -> None:
        with self._lock:
            if act in self._acts:
                self._acts.remove(act)

    def undo(self, bench: Bench, said: Said) -> Answer:
        """Take back what was done last in this folder."""
        last = self._last(bench)
        if last is not None and last.back is not None:
            path = last.back()
            self._forget(last)
            if path is not None:
                return {**self.open(str(path)), "told": f"Taken back: {last.title}."}
            return self.about(bench, f"Taken back: {last.title}.")
        undone = changes.undo(bench.places)
        if last is not None:
            self._forget(last)
        if undone is None:
            return self.about(bench, "There is nothing to take back.")
        bench.wrote(undone.done)
        return self.about(bench, _of_applied(f"Taken back: {undone.title}", undone))

    def settle(self, bench: Bench, said: Said) -> Answer:
        """Bring to its end, or take back, a change that was interrupted."""
        number = told.whole(said, "number")
        found = changes.unfinished(bench.places)
        if number is None or not 0 <= number < len(found):
            return self.about(bench)
        cut_off, back = found[number], told.yes(said, "back")
        done = changes.take_back(cut_off) if back else changes.finish(cut_off)
        bench.wrote([*done.done, *cut_off.done, *cut_off.pending])
        if back == cut_off.undoing:
            self.did(Act(cut_off.title, frozenset(cut_off.folders)))
        return self.about(bench, _of_applied(f"{'Taken back' if back else 'Finished'}: {done.title}", done))

    # --- remarks ----------------------------------------------------------------------------------------------------

    def remark(self, bench: Bench, said: Said) -> Answer:
        """Say of pictures that they are left out, how often they are repeated, or what of them is used."""
        entries = bench.entries(said.get("ids"))
        wanted = {each.picture: told.remark(said, bench.remark(each)) for each in entries}
        title = told.text(said, "title") or "Remarks"
        return self.remarked(bench, title, wanted)

    def remarked(self, bench: Bench, title: str, wanted: Mapping[Path, Remark]) -> Answer:
        """Write remarks, which can be taken back."""
        return self.noted(bench, title, change_remarks(wanted), wanted)

    def noted(self, bench: Bench, title: str, before: Mapping[Path, Remark], now: Iterable[Path]) -> Answer:
        """Remember that remarks were written, and return what the frame shows now."""

        def back() -> None:
            change_remarks(before)

        changed = tuple(now)
        self.did(Act(title, frozenset(path.parent for path in changed), back))
        numbers = [number for path in changed if (number := bench.number_of(path)) is not None]
        return {**self.about(bench, f"{title}."), "changed": numbers}

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

    def sent(self, standing: Standing) -> Answer:
        """Return that an errand was begun."""
        return {"errand": standing.to_json()}


def _read(bench: Bench) -> None:
    try:
        bench.index.read()
    finally:
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
        path, why = refused[0]
        raise StateError(f"{path.name}: {why}", "Change its permissions, or write it in a text editor.")
