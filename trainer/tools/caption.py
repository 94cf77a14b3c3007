"""Caption pictures with a tagger or a describing model, and write what it says when asked to."""

from __future__ import annotations

from pathlib import Path

from trainer.config.values import parse_extension
from trainer.settings.section import Show, argument
from trainer.tools.tool import COMPLETED, Arguments, Desk, Tool
from trainer.workbench.album import open_folder
from trainer.workbench.captioners import DEVICES, MODES, CaptionerSettings, caption_pictures
from trainer.workbench.changes import apply
from trainer.workbench.describing import PRECISIONS, DescriberSettings
from trainer.workbench.tagging import TaggerSettings

TAGGER, DESCRIBER = "tags", "sentence"


class CaptionArguments(Arguments):
    """Which pictures, which model, and what of its answers is taken."""

    folder: str = argument(..., Show("Folder", widget="folder"))
    """A folder of pictures, or of numbered folders with pictures."""

    model: str = argument(..., Show("Model", widget="folder"))
    """The folder of the model, or its name on the hub."""

    kind: str = argument(TAGGER, Show("Kind"), choices=(TAGGER, DESCRIBER))
    """tags for a tagger of the WD14 kind, sentence for a model of transformers that describes pictures."""

    mode: str = argument("missing", Show("Captions that are there"), choices=MODES)
    """missing passes over pictures with a caption; append adds what is new; replace writes anew."""

    general_threshold: float = argument(0.35, Show("Threshold"), ge=0, le=1)
    """The least number of a tag that is taken."""

    character_threshold: float = argument(0.85, Show("Threshold for characters"), ge=0, le=1)
    """The least number of a character's name that is taken."""

    unwanted: tuple[str, ...] = argument((), Show("Unwanted tags"))
    """Tags that are never written."""

    underscores: bool = argument(False, Show("Underscores"))
    """Write tags with underscores, as the model's list has them, not with blanks."""

    prompt: str = argument("", Show("Prompt"))
    """What a describing model is asked, its task, or how its sentence begins."""

    max_new_tokens: int = argument(128, Show("Longest answer"), ge=1, le=4096)
    """Tokens of a describing model's answer at most."""

    device: str = argument("auto", Show("Device"), choices=DEVICES)
    """auto takes the GPU where there is one."""

    precision: str = argument("auto", Show("Precision"), choices=PRECISIONS)
    """Number format of a describing model; auto is bf16 on a GPU, else fp32."""

    caption_extension: str = argument(".txt", Show("Caption file ending"), parse=parse_extension)
    """The ending of caption files."""

    write: bool = argument(False, Show("Write"))
    """Write the captions; without it they are only shown."""


class Caption(Tool[CaptionArguments]):
    """Shows each caption as it would be and, asked to, writes them as one change that the page can undo."""

    name = "caption"
    title = "Caption pictures"
    help = "caption pictures with a tagger or a describing model"
    arguments = CaptionArguments
    positional = {"folder": "FOLDER"}

    def run(self, arguments: CaptionArguments, desk: Desk) -> int:
        album = open_folder(Path(arguments.folder), arguments.caption_extension)
        progress = desk.progress()
        planned = caption_pictures(
            album.entries, _settings(arguments), mode=arguments.mode, by=desk.by, progress=progress
        )
        for change in planned.changes:
            desk.say(f"{change.caption}: {change.new}")
        for path, why in planned.refused:
            desk.note(f"Note: {path.name} is left as it is: {why}")
        if not arguments.write:
            desk.say(f"{len(planned.changes)} captions would be written; --write does it.")
            return COMPLETED
        done = apply(planned, progress)
        for path, why in done.conflicts:
            desk.note(f"Note: {path} is left as it is: {why}.")
        desk.say(f"{len(done.done)} captions are written.")
        return COMPLETED


def _settings(arguments: CaptionArguments) -> CaptionerSettings:
    if arguments.kind == DESCRIBER:
        return DescriberSettings(
            arguments.model, arguments.prompt, arguments.max_new_tokens, arguments.device, arguments.precision
        )
    return TaggerSettings(
        arguments.model,
        arguments.general_threshold,
        arguments.character_threshold,
        arguments.unwanted,
        arguments.underscores,
        device=arguments.device,
    )
