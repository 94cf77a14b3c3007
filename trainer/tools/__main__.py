"""`python -m trainer.tools` writes docs/tools.md anew."""

from trainer.config.files import PROJECT
from trainer.ground.files import write_text
from trainer.tools import TOOLS
from trainer.tools.docs import DOCUMENT, page

if __name__ == "__main__":
    write_text(PROJECT / DOCUMENT, page(TOOLS))
