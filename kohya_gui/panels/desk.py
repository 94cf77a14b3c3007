"""What the panels of one page share: the session, the news, the dialog, and which components an answer may change."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gradio as gr

from kohya_gui.form.draft import Checked
from kohya_gui.form.survey import Survey
from kohya_gui.panels.news import News
from kohya_gui.panels.wiring import FORM, Update, told
from kohya_gui.session import Session

ASK_NEWS = "() => NEWS.ask()"


@dataclass(frozen=True, slots=True)
class Seen:
    """The form at one moment: judged, looked at, and what its fields are to show."""

    checked: Checked
    survey: Survey | None
    fields: Mapping[str, object]


class Panel(ABC):
    """A part of a tab. It keeps nothing but its components: what there is to know, it asks the session each time.

    `name` is what its dialogs are known by. `tab` is the tab that it stands in, None for what stands outside of them.
    """

    name: ClassVar[str]

    def __init__(self, desk: Desk, tab: gr.Tab | None = None) -> None:
        self.desk, self.session, self.tab = desk, desk.session, tab
        self.parts: Sequence[Any] = self.build()

    @abstractmethod
    def build(self) -> Sequence[Any]:
        """Make the components where they are to stand; return those that answers may change."""

    @abstractmethod
    def wire(self) -> None:
        """Say what happens when the components are used. By now all panels are there."""

    def of_form(self, seen: Seen) -> Update:
        """Return what the panel shows of the form."""
        return {}

    def opened(self) -> Update:
        """Return what the panel shows when a page is opened, beyond what is of the form."""
        return {}

    def answered(self, said: Mapping[str, object]) -> Update:
        """A dialog of this panel's was answered; it is closed unless the update opens another."""
        return {}


class Desk:
    """The shared things. `dialog` and `tabs` are there once the page is built."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.news = News(session)
        self.panels: list[Panel] = []
        self.tabs: dict[str, tuple[str, gr.Tabs]] = {}
        self.dialog: Any = None

    def add(self, kind: type[Panel], tab: gr.Tab | None = None) -> Panel:
        """Build a panel here."""
        panel = kind(self, tab)
        self.panels.append(panel)
        return panel

    @property
    def outputs(self) -> list[Any]:
        """Every component that the answer to an event may change, but for the tabs."""
        return [self.dialog, *(part for panel in self.panels for part in panel.parts)]

    @property
    def sides(self) -> list[Any]:
        """The tabs of both sides."""
        return list(dict.fromkeys(tabs for _, tabs in self.tabs.values()))

    def on(
        self, event: Callable[..., Any], act: Callable[..., Update], *, of_run: bool = False, **options: Any
    ) -> None:
        """Answer an event with what `act` returns, whatever part of the page that changes.

        What is done `of_run` may bring a tab to the front, and is followed by asking for the news. For all else the
        tabs are no outputs: Gradio would bring the one to the front again that the server named last.
        """
        outputs = [*self.outputs, *self.sides] if of_run else self.outputs

        @functools.wraps(act)
        def answer(*given: Any) -> Update:
            # One that changes nothing has to name something: Gradio takes it for too few values else.
            return act(*given) or {self.dialog: gr.skip()}

        answered = event(answer, None, outputs, **{**FORM, **options})
        if of_run:
            answered.then(None, js=ASK_NEWS, **{**FORM, "queue": False})

    # --- what answers are made of -----------------------------------------------------------------------------------

    def form_update(self) -> Update:
        """Return what the whole page shows of the form now, which is kept."""
        session = self.session
        checked = session.draft.check()
        survey = session.survey(checked)
        session.keep_form()
        seen = Seen(checked, survey, session.shown(checked, survey))
        return {part: value for panel in self.panels for part, value in panel.of_form(seen).items()}

    def opened(self) -> Update:
        """Return what a page shows that was opened."""
        found = {part: value for panel in self.panels for part, value in panel.opened().items()}
        return {**self.form_update(), **found}

    def show(self, tab: str) -> Update:
        """Bring a tab to the front."""
        return {self.tabs[tab][1]: gr.Tabs(selected=tab)}

    def ask(self, dialog: str) -> Update:
        """Open a dialog."""
        return {self.dialog: dialog}

    def on_dialog(self, event: gr.EventData) -> Update:
        """Something in the dialog was clicked: close it, and tell whoever opened it."""
        said = told(event)
        closed: Update = {self.dialog: ""}
        if said.get("act") == "close":
            return closed
        of = next((panel for panel in self.panels if panel.name == said.get("of")), None)
        return {**closed, **of.answered(said)} if of else closed
