"""What can be asked of the program by name: `python -m trainer NAME ...`. A new tool is one class and one line here.

From the class come its command line with help, and the checks of its arguments. Importing this package imports no
torch; a tool that needs it imports it while it runs.
"""

from __future__ import annotations

from typing import Any

from trainer.tools.caption import Caption
from trainer.tools.compare import Compare
from trainer.tools.convert import Convert
from trainer.tools.export import Export
from trainer.tools.extract import Extract
from trainer.tools.import_settings import Import
from trainer.tools.inspect import Inspect
from trainer.tools.keep import Keep
from trainer.tools.keys import Keys
from trainer.tools.merge import Merge
from trainer.tools.metadata import Metadata
from trainer.tools.queue import TrainQueue
from trainer.tools.recode import Recode
from trainer.tools.resize import Resize
from trainer.tools.show import Show
from trainer.tools.tool import Arguments, Desk, Tool
from trainer.tools.train import Train
from trainer.tools.try_it import TryIt
from trainer.tools.verify import Verify

TOOLS: dict[str, Tool[Any]] = {
    tool.name: tool
    for tool in (
        Train(),
        TrainQueue(),
        Keys(),
        Inspect(),
        Show(),
        TryIt(),
        Keep(),
        Export(),
        Import(),
        Recode(),
        Caption(),
        Merge(),
        Extract(),
        Resize(),
        Convert(),
        Verify(),
        Metadata(),
        Compare(),
    )
}  # fmt: skip
"""Every tool by the name that means it."""

__all__ = ["TOOLS", "Arguments", "Desk", "Tool"]
