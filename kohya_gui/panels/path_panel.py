"""What panels share whose fields are paths: the dialog in which one is picked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from kohya_gui.form import folder_dialog
from kohya_gui.panels.desk import Panel
from kohya_gui.panels.wiring import Update
from kohya_gui.parts.dialogs import overlay


class PathPanel(Panel):
    """A panel with fields that a path can be picked for."""

    @abstractmethod
    def picked(self, key: str, path: str) -> None:
        """Take a path, which may be used, for a field."""

    def ask_for(self, key: str, at: str) -> Update:
        """Open the dialog for a field, at a path."""
        return self.desk.ask(overlay(self.name, folder_dialog.dialog(self.session.folders, key, at)))

    def answered(self, said: Mapping[str, object]) -> Update:
        """A folder is to be looked into, or a path was picked."""
        key, path = str(said.get("key")), str(said.get("at"))
        if said.get("act") == "look":
            return self.ask_for(key, path)
        if said.get("act") != "pick" or self.session.folders.problem(path):
            return {}
        self.picked(key, path)
        return self.desk.form_update()
