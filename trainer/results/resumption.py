"""What resuming with other settings, pictures or versions means, in words, before it starts. Torch-free.

A run resumed with everything as it was goes on bit for bit. Some changes move the schedule, some change the data, some
only mean that the run is no longer the one that was begun; and some cannot be, since the state would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainer.adapters.adapter import matrix
from trainer.config import TrainingConfig, config_from_layers, known_settings, rates, schedule_of, to_flat
from trainer.config.datasets import KEY as DATASETS
from trainer.config.datasets import differences
from trainer.ground.errors import ConfigError, StateError
from trainer.ground.events import Started
from trainer.ground.paths import read_json
from trainer.pictures.report import DatasetReport
from trainer.planning.timetable import Timetable
from trainer.results import contents
from trainer.results.contents import PictureContent
from trainer.results.event_log import read_events
from trainer.results.run_folder import RunFolder
from trainer.settings.section import Resume
from trainer.targets import Part

_MEANINGS: Mapping[Resume, tuple[str, str]] = {
    "rounding": ("settings", ": the same from step {next} on but for rounding."),
    "learning": ("settings", ": holds from step {next} on."),
    "schedule": ("schedule", "."),
    "data": ("data", ": pictures and noise are another series from here on."),
    "beginning": ("settings", ": without effect, the state's matrices count."),
    "fixed": ("obstacle", ": the saved state does not fit that."),
}
"""{what a setting declares: (what the change is about, what is said of it)}; "free" settings differ without a word."""

_NAMED = 5
"""Pictures that a change names."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A run as it was when its state was saved, as far as its folder tells.

    `models` has a fingerprint of each model file by its setting, `contents` what each picture held.
    """

    step: int
    settings: Mapping[str, object]
    total_steps: int = 0
    steps_per_epoch: int = 0
    pictures: frozenset[str] | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, PictureContent] = field(default_factory=dict)


_SET_BACK = "set these back"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `about` is "settings", "schedule", "data", "models" or "obstacle"; the last forbids resuming.

    `remedy` is the way out of an obstacle that is no setting with another value than it had.
    """

    about: str
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Resumption:
    """What going on after `step` would be. Without changes the run is the same, bit for bit."""

    step: int
    changes: tuple[Change, ...]

    @property
    def exact(self) -> bool:
        """True when nothing differs."""
        return not self.changes

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why it cannot be; empty where it can."""
        return tuple(change.text for change in self.changes if change.about == "obstacle")

    def lines(self) -> list[str]:
        """Return what a person reads, a line each."""
        if self.exact:
            return [f"Going on after step {self.step} exactly as the run would have."]
        texts = [change.text for change in self.changes]
        return [*texts, f"Steps up to {self.step} stay as they are; from there on it is another run than was begun."]

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            StateError: with every obstacle.
        """
        if self.obstacles:
            raise StateError(f"resume: {' '.join(self.obstacles)}", self.way_out)

    @property
    def way_out(self) -> str:
        """What to do about the obstacles."""
        ways = dict.fromkeys(change.remedy or _SET_BACK for change in self.changes if change.about == "obstacle")
        words = " and ".join(ways)
        return (
            f"{words[:1].upper()}{words[1:]} to resume, or train under another output_name; network_weights takes a "
            "LoRA to begin from."
        )


def check_layers(saved: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> None:
    """Compare the shapes of a state's matrices, by kohya key, with those that the settings make of the model.

    Raises:
        StateError: they differ, as with the checkpoint of another family.
    """
    for name in (*wanted, *saved):
        # As a 1x1 convolution or as a linear layer, a matrix is the same one.
        if matrix(saved.get(name, ())) != matrix(wanted.get(name, ())) or (name in saved) != (name in wanted):
            was, would_be = (list(each[name]) if name in each else "not there" for each in (saved, wanted))
            raise StateError(
                f"resume: the state does not fit this model and network: {name} is {was}, and would be {would_be}.",
                "Set pretrained_model_name_or_path and the network's settings back, or choose another output_name.",
            )


def read_earlier(
    folder: RunFolder, step: int, settings: Mapping[str, object], models: Mapping[str, str] | None = None
) -> Earlier:
    """Return what the run's folder tells of the run whose state has this step, these settings and these models."""
    begun = [event for event in read_events(folder.events) if isinstance(event, Started)]
    earlier = Earlier(
        step,
        settings,
        pictures=_pictures_of(folder.dataset),
        models=models or {},
        contents=contents.read(folder.contents),
    )
    if not begun:
        return earlier
    return replace(earlier, total_steps=begun[-1].total_steps, steps_per_epoch=begun[-1].steps_per_epoch)


def look_ahead(
    folder: RunFolder, config: TrainingConfig, timetable: Timetable, report: DatasetReport, parts: Sequence[Part]
) -> Resumption | None:
    """Return what resuming a run's newest state would be, for a window that asks first; None without a state.

    The state's files are not verified here; that happens when it is loaded.
    """
    for path in folder.states():
        try:
            record = read_json(path)
            models = dict(record.get("contents") or {})
            earlier = read_earlier(folder, int(record["step"]), dict(record["settings"]), models)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            continue
        return compare(earlier, config, timetable, report, parts)
    return None


def _pictures_of(path: Path) -> frozenset[str] | None:
    """Return the paths of the pictures in a run's dataset report, or None where it cannot be read."""
    try:
        report = read_json(path)
        return frozenset(
            f"{folder['path']}/{picture['name']}" for folder in report["folders"] for picture in folder["pictures"]
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def names_of(report: DatasetReport) -> frozenset[str]:
    """Return the paths of the pictures found now."""
    return frozenset(str(picture.path) for folder in report.folders for picture in folder.pictures)


def compare(
    earlier: Earlier, config: TrainingConfig, timetable: Timetable, report: DatasetReport, parts: Sequence[Part]
) -> Resumption:
    """Say what differs between the run that was begun and the one that the settings and pictures make now.

    `parts` are those of the model.
    """
    settings = to_flat(config)
    differing = [key for key, value in settings.items() if earlier.settings.get(key, value) != value]
    said = [*_settings(earlier, settings, differing)]
    changes = [
        *(change for change in said if change.about == "obstacle"),
        *_obstacles(earlier, config, timetable, parts),
        *_steps(earlier, timetable),
        *_rates(earlier, config, timetable, parts),
        *_models(earlier, config),
        *_pictures(earlier, report),
        *_contents(earlier, report),
        *(change for change in said if change.about != "obstacle"),
    ]
    return Resumption(earlier.step, tuple(changes))


def _was(earlier: Earlier, settings: Mapping[str, object], key: str) -> str:
    return f"{key} {_shown(earlier.settings.get(key))} -> {_shown(settings[key])}"


def _shown(value: object) -> str:
    return "not set" if value is None or value == "" else str(value)


def _obstacles(
    earlier: Earlier, config: TrainingConfig, timetable: Timetable, parts: Sequence[Part]
) -> Iterator[Change]:
    before = _config_of(earlier)
    was, would_be = rates(before, parts) if before else {}, rates(config, parts)
    if before and was.keys() != would_be.keys():
        text = f"Trained parts {', '.join(was)} -> {', '.join(would_be)}"
        yield Change("obstacle", f"{text}: the saved state does not fit that.")
    if timetable.total_steps < earlier.step:
        text = f"{timetable.total_steps} steps are planned, but the state is from after step {earlier.step}."
        yield Change("obstacle", text, "plan for more steps with max_train_epochs or max_train_steps")


def _config_of(earlier: Earlier) -> TrainingConfig | None:
    """Return the earlier settings as a configuration; None where another version wrote them."""
    try:
        return config_from_layers([{key: value for key, value in earlier.settings.items() if value is not None}])
    except ConfigError:
        return None


def _steps(earlier: Earlier, timetable: Timetable) -> Iterator[Change]:
    if earlier.total_steps and earlier.total_steps != timetable.total_steps:
        left = timetable.total_steps - earlier.step
        text = f"Steps in all {earlier.total_steps} -> {timetable.total_steps}: {left} are left instead of "
        yield Change("schedule", f"{text}{earlier.total_steps - earlier.step}.")
    if earlier.steps_per_epoch and earlier.steps_per_epoch != timetable.steps_per_epoch:
        old, new = earlier.step / earlier.steps_per_epoch, earlier.step / timetable.steps_per_epoch
        text = f"Steps in an epoch {earlier.steps_per_epoch} -> {timetable.steps_per_epoch}"
        yield Change("data", f"{text}: step {earlier.step} was at epoch {old:.1f} and counts as epoch {new:.1f}.")


def _rates(earlier: Earlier, config: TrainingConfig, timetable: Timetable, parts: Sequence[Part]) -> Iterator[Change]:
    """Say which rate the next step has and would have had."""
    before = _config_of(earlier)
    if before is None:
        return
    total = earlier.total_steps or timetable.total_steps
    old = _rates_at(before, parts, earlier.step, total)
    for part, rate in _rates_at(config, parts, earlier.step, timetable.total_steps).items():
        if part in old and old[part] != rate:
            text = f"The rate of {part} at step {earlier.step + 1} is {rate:.4g} instead of {old[part]:.4g}"
            yield Change(
                "schedule",
                f"{text} ({schedule_of(config, timetable.total_steps).title} over {timetable.total_steps} steps).",
            )


def _rates_at(config: TrainingConfig, parts: Sequence[Part], step: int, total_steps: int) -> dict[str, float]:
    schedule = schedule_of(config, total_steps)
    return {part: schedule.rates(rate, [step])[0] for part, rate in rates(config, parts).items()}


def _pictures(earlier: Earlier, report: DatasetReport) -> Iterator[Change]:
    now = names_of(report)
    if earlier.pictures is None or earlier.pictures == now:
        return
    new, gone = len(now - earlier.pictures), len(earlier.pictures - now)
    text = f"Pictures {len(earlier.pictures)} -> {len(now)} ({new} new, {gone} gone)"
    yield Change("data", f"{text}: from here on every epoch has another order.")


def _models(earlier: Earlier, config: TrainingConfig) -> Iterator[Change]:
    """Say which model files hold something else than they did, whatever they are called."""
    settings = to_flat(config)
    for key, now in contents.of_models(config).items():
        if key in earlier.models and earlier.models[key] != now:
            name = Path(str(settings[key])).name
            if known_settings()[key].resume == "beginning":
                what = "without effect, the state's matrices count"
            else:
                what = f"up to step {earlier.step} the LoRA was trained on what was there before"
            yield Change("models", f"{key} {name} is not the file that it was: {what}.")


def _contents(earlier: Earlier, report: DatasetReport) -> Iterator[Change]:
    found = contents.changed(earlier.contents, report)
    what_is_said = "Repeats, crops or masks of pictures"
    for what, names in (
        ("Pictures", found.pictures),
        ("Captions of pictures", found.captions),
        (what_is_said, found.said),
    ):
        if names:
            listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            text = f"{what} that are not what they were: {len(names)} ({listed}); they count as they are now"
            yield Change("data", f"{text}, from step {earlier.step + 1} on.")


def _settings(earlier: Earlier, settings: Mapping[str, object], differing: list[str]) -> Iterator[Change]:
    known = known_settings()
    for key in differing:
        if key == DATASETS:
            yield from _datasets(earlier, settings)
        elif known[key].resume != "free":
            about, words = _MEANINGS[known[key].resume]
            yield Change(about, f"{_was(earlier, settings, key)}{words.format(next=earlier.step + 1)}")


def _datasets(earlier: Earlier, settings: Mapping[str, object]) -> Iterator[Change]:
    """Say in what datasets differ, each by what its own setting means to a run that is resumed."""
    before, now = (each.get(DATASETS) or [] for each in (earlier.settings, settings))
    if not isinstance(before, list) or not isinstance(now, list):
        yield Change("data", f"{_was(earlier, settings, DATASETS)}{_MEANINGS['data'][1]}")
        return
    for place, setting, was, is_ in differences(before, now):
        about, words = _MEANINGS[setting.resume if setting else "data"]
        yield Change(about, f"{place} {_shown(was)} -> {_shown(is_)}{words.format(next=earlier.step + 1)}")
