"""Where a machine keeps what can be fetched or made again."""

from __future__ import annotations

import os
from pathlib import Path


def machine_cache() -> Path:
    """`$CAPTUNE_CACHE`, else `~/.cache/captune`; perhaps it is not there yet."""
    return Path(os.environ.get("CAPTUNE_CACHE") or "~/.cache/captune").expanduser()
