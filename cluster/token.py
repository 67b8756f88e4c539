"""The token that guards a Ray: there before Ray starts, and readable by its owner only.

Ray makes one by itself where there is none, and leaves it readable by everybody on the machine; `ray start`
makes none, and then guards nothing.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

OWNER_ONLY = 0o600


def ensure_token() -> str:
    """Make a token where there is none, and shut it from other users; returns where it is, for a person.

    It is looked for as Ray does: `RAY_AUTH_TOKEN`, the file that `RAY_AUTH_TOKEN_PATH` names, then
    `~/.ray/auth_token`.

    Raises:
        FileNotFoundError: `RAY_AUTH_TOKEN_PATH` names no file.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if named and not path.is_file():
        raise FileNotFoundError(
            f"RAY_AUTH_TOKEN_PATH names {named!r}, which is no file: unset it, or make one"
        )
    if not path.exists() or not path.read_text().strip():
        _write(path)
    elif path.stat().st_mode & ~OWNER_ONLY & 0o777 and path.stat().st_uid == os.getuid():
        path.chmod(OWNER_ONLY)
    return str(path)


def _write(path: Path) -> None:
    """A new token, as long as Ray's own; under its name it is seen whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, OWNER_ONLY), "w") as file:
        file.write(secrets.token_hex(32))
    aside.rename(path)
