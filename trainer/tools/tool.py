"""The contract of a tool: its name, its help, its arguments as typed data, and `run`.

Arguments are declared as settings are, one field each with a docstring under it. From them come the command line, the
help, and what is refused: every wrong value at once, with its name, the value and the rule.
"""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from pydantic import ValidationError

from trainer.ground.commands import Inbox
from trainer.ground.control import Progress, progress_of
from trainer.ground.errors import ConfigError, Problem, TrainerError
from trainer.ground.events import Emit
from trainer.settings.problems import problems_of_section
from trainer.settings.section import Section
from trainer.settings.walk import Setting, settings_in
from trainer.settings.wording import PROGRAM

COMPLETED, FAILED, REFUSED, STOPPED = 0, 1, 2, 3
"""What `run` returns, and the program's exit codes: refused is before anything was begun, failed after."""


def _unseen(path: Path) -> None:
    """Take no note of a file."""


class Arguments(Section):
    """The arguments of a tool. One without a default (`...`) must be given."""


@dataclasses.dataclass(frozen=True, slots=True)
class Desk:
    """Where a tool is run: what takes its results, its events, and who may stop it.

    `say` takes results, whole texts, which may have several lines; `note` takes one line of what else there is to know,
    `complain` an error that the tool answers itself, `emit` events. `listen` returns the inbox of whoever asked for the
    tool; from then on it must be obeyed. `by` is who asked for it, `wrote` takes each file or folder that is there now.
    """

    say: Callable[[str], None]
    note: Callable[[str], None]
    complain: Callable[[TrainerError], None]
    emit: Emit
    listen: Callable[[], Inbox]
    by: str = "started at the terminal"
    wrote: Callable[[Path], None] = _unseen

    def progress(self) -> Progress:
        """Return what a long phase reports to; it raises Stopped where the tool is to end."""
        return progress_of(self.emit, self.listen())


Given = TypeVar("Given", bound=Arguments)


class Tool(ABC, Generic[Given]):
    """One tool. A new one is a module with a subclass, and a line in `trainer/tools/__init__.py`."""

    name: ClassVar[str]
    """What it is asked for by."""
    title: ClassVar[str] = ""
    """What the page calls it."""
    on_page: ClassVar[bool] = False
    """Whether it has a form of its own in the page."""
    help: ClassVar[str]
    """What it does, in one sentence that begins with a small letter and has no stop."""
    arguments: type[Given]
    """What it takes."""
    positional: ClassVar[Mapping[str, str]] = {}
    """{argument: what the help calls it} of the arguments that stand without their name, in this order."""
    repeated: ClassVar[tuple[str, ...]] = ()
    """Lists of which each entry is given with the argument's name before it; others follow one name together."""

    @property
    def settings(self) -> Mapping[str, Setting]:
        """The arguments as declared, by name: in the order of their places, then of declaration."""
        found = settings_in(self.name, self.arguments)
        return dict(sorted(found.items(), key=lambda pair: pair[1].show.place))

    def read(self, given: Mapping[str, object]) -> Given:
        """Return the arguments of what was given for them.

        Raises:
            ConfigError: with every one that is missing, unknown or wrong.
        """
        fields = self.arguments.model_fields
        problems = [
            Problem(key, f"is not given; {self.usage()}.")
            for key, field in fields.items()
            if field.is_required() and given.get(key) in (None, "", [], ())
        ]
        problems += [Problem(f"--{key}", self.instead_of(key)) for key in given if key not in fields]
        known = {key: value for key, value in given.items() if key in fields}
        try:
            if problems:
                raise ConfigError(problems)
            return self.arguments(**known)
        except ValidationError as error:
            raise ConfigError(problems_of_section(error, self.settings)) from None

    def usage(self) -> str:
        """Return how it is asked for, to follow "is not given;"."""
        return f"{PROGRAM} {self.name} --help shows what it takes"

    def instead_of(self, key: str) -> str:
        """Return what to do about an argument that it does not take."""
        near = difflib.get_close_matches(key.lower(), list(self.settings), n=1)
        return f"there is no such argument; {f'did you mean --{near[0]}?' if near else self.usage() + '.'}"

    @abstractmethod
    def run(self, arguments: Given, desk: Desk) -> int:
        """Do it and return an exit code.

        Raises:
            TrainerError: it could not be done; Stopped where it was told to end.
        """
