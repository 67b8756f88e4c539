"""Files at a URL such as s3://bucket/results: in object stores, where a put is seen whole or not at all.

pyarrow speaks to them, as Ray itself does; it is there anyway, and finds the credentials in the machine's
environment, files or role. What the files hold is for `checkpoint_files.py` and `tuning/tables/mirror.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from trainables.trial import SettingsError

#: S3 and what speaks like it, Google Cloud Storage, Azure. Elsewhere half a file could be seen.
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SECRET = re.compile(r"key|secret|token|password|signature|^sig$|^sas", re.IGNORECASE)


def is_url(place: object) -> bool:
    """Whether `place` is a URL, not a folder."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def local(place: str) -> str:
    """`file:///data/results` as the folder that it is; any other place as it is."""
    return place.removeprefix("file://") if place.lower().startswith("file:///") else place


def under(place: str, *names: str) -> str:
    """The place `names` below `place`, a folder or a URL; what follows a `?` stays at the end."""
    start, question, options = place.partition("?") if is_url(place) else (place, "", "")
    return "/".join([start.rstrip("/"), *names]) + question + options


def refuse_url(url: str) -> None:
    """Refuse a URL that cannot hold results, or that holds a secret. Asks nobody.

    Raises:
        ValueError: the rule that it breaks.
    """
    found = _SCHEME.match(url)
    scheme = found[1] if found else ""
    if scheme not in SCHEMES:
        raise ValueError(f"takes a folder or a URL that begins with {', '.join(f'{s}://' for s in SCHEMES)}")
    parts = urlsplit(url)
    named = next((name for name, _ in parse_qsl(parts.query) if _SECRET.search(name)), None)
    if parts.password is not None or named is not None or (scheme == "s3" and parts.username is not None):
        raise ValueError("must hold no secret: credentials come from the environment, or the machine's role")
    if not (parts.hostname or parts.username):
        raise ValueError("names no bucket, as in s3://bucket/results")


def without_secrets(text: str) -> str:
    """`text` with the credentials of the URLs in it struck out."""
    text = re.sub(r"(://)[^/@\s?]+@(?!\w+\.dfs\.)", r"\1***@", text)
    return re.sub(r"([?&][^=&\s]*(?:key|secret|token|password|sig|sas)[^=&\s]*=)[^&\s'\"]+", r"\1***", text)


class Store:
    """The files below a URL; names are relative to it, with slashes.

    Raises (from everything here):
        FileNotFoundError: there is no such file.
        OSError: the store cannot be reached, or refuses.
        SettingsError: pyarrow does not understand the URL.

    Args:
        url: see `SCHEMES`.
        filesystem: a pyarrow file system that takes the place of the URL's, for tests.
    """

    def __init__(self, url: str, filesystem: Any = None):
        import pyarrow
        import pyarrow.fs

        self.url = url
        self._filesystem, self._base = filesystem, ""
        if filesystem is None:
            try:
                self._filesystem, base = pyarrow.fs.FileSystem.from_uri(url)
            except pyarrow.ArrowInvalid as error:
                raise SettingsError(("storage",), f"got {without_secrets(url)!r}: {error}") from error
            self._base = f"{base.rstrip('/')}/"

    def put(self, name: str, content: bytes) -> None:
        """Make `content` the file `name`."""
        with self._filesystem.open_output_stream(self._base + name) as file:
            file.write(content)

    def upload(self, path: Path, name: str) -> None:
        """Make a copy of the file at `path` the file `name`; an interrupted one leaves what was there."""
        import pyarrow.fs

        # Not a loop in Python: a signal in its midst would close the stream, and half a file would be kept.
        local = pyarrow.fs.LocalFileSystem()
        pyarrow.fs.copy_files(str(path), self._base + name, local, self._filesystem)

    def read(self, name: str) -> bytes:
        """The file's content."""
        with self._filesystem.open_input_file(self._base + name) as file:
            return file.read()

    def download(self, name: str, path: Path) -> None:
        """Write the file's content to `path`."""
        import pyarrow.fs

        local = pyarrow.fs.LocalFileSystem()
        pyarrow.fs.copy_files(self._base + name, str(path), self._filesystem, local)

    def copy(self, name: str, other: str) -> None:
        """Make a copy of the file `name` the file `other`, without it passing through here."""
        self._filesystem.copy_file(self._base + name, self._base + other)

    def delete(self, name: str) -> None:
        """Delete a file; nothing where it is not there."""
        if self.has(name):
            self._filesystem.delete_file(self._base + name)

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return self._filesystem.get_file_info(self._base + name).is_file

    def version(self, name: str) -> str:
        """What tells a file from another that was there before or comes after it."""
        info = self._filesystem.get_file_info(self._base + name)
        return f"{info.size} {info.mtime_ns}"

    def files(self, folder: str = "", *, deep: bool = True) -> dict[str, int]:
        """Bytes of every file in `folder`, by name relative to the URL; `deep`: in its folders, too."""
        return {info.path.removeprefix(self._base): info.size for info in self._below(folder, deep)[0]}

    def folders(self, folder: str = "") -> list[str]:
        """Names of the folders in `folder`, in order."""
        return sorted(info.base_name for info in self._below(folder, deep=False)[1])

    def _below(self, folder: str, deep: bool) -> tuple[list[Any], list[Any]]:
        import pyarrow.fs

        place = (self._base + folder).rstrip("/")
        selector = pyarrow.fs.FileSelector(place, recursive=deep, allow_not_found=True)
        found = self._filesystem.get_file_info(selector)
        return [each for each in found if each.is_file], [each for each in found if not each.is_file]


def store_is_away(error: BaseException) -> bool:
    """Whether waiting may help: what pyarrow raises has no number, and only a missing file a class."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
