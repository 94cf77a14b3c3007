"""The most memory that this process has held. Standard library only, but for Windows."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Return bytes. On Linux `ru_maxrss` would be that of the process it was started from, where that is more."""
    if os.name != "posix":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if _STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        if found:
            return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
