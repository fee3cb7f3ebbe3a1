"""Any other store that fsspec knows (gs://, az://, memory://, ...), through what all of its file systems have.

They do not say which object bytes are of, so it is looked up before and after they are read.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from precompute.errors import SourceError
from precompute.sources.files import MAX_FILE_BYTES
from precompute.sources.remote.store import Object, Page, Result, Store, Transient, too_large

INSTALL = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
ETAGS = ("etag", "ETag", "md5Hash")
VERSIONS = ("generation", "version_id", "VersionId")
TIMES = ("last_modified", "LastModified", "updated", "mtime", "created")


@dataclass
class FsspecStore(Store):
    """See `Store`."""

    _system: Any = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        if self.address.protocol == "memory":
            raise TypeError("memory:// exists in one process only")
        return super().__getstate__()

    def connect(self) -> Any:
        """The file system of fsspec. Raises SourceError where a package is missing or lacks the protocol."""
        if self._system is None:
            protocol = self.address.protocol
            package = INSTALL.get(protocol, "fsspec")
            try:
                import fsspec

                self._system = fsspec.filesystem(protocol)
            except ImportError as error:
                raise SourceError(
                    f"{self.address.shown} needs {package}.", hint=f"Install it: pip install {package}"
                ) from error
            except Exception as error:  # noqa: BLE001 - settings of the user's, which each package checks in its own way
                raise SourceError(
                    f"{self.address.shown} cannot be opened ({type(error).__name__}).",
                    hint="Check the address, and the settings of its package.",
                ) from None
        return self._system

    def pages(self, prefix: str, after: str = "") -> Iterator[Page]:
        del after
        todo = [prefix.removesuffix("/")]
        while todo:
            folder = todo.pop()
            try:
                entries = self._listed(folder)
            except PermissionError:
                if folder == prefix.removesuffix("/"):
                    raise
                yield Page((), (f"{folder}/",))
                continue
            below = [(self._key(one["name"]), one) for one in entries]
            yield Page(tuple(self._object(key, one) for key, one in below if one["type"] == "file"))
            todo += sorted((key for key, one in below if one["type"] == "directory"), reverse=True)

    def look_up(self, key: str) -> Object:
        return self._object(key, self.retried(lambda: self._info(key)))

    def read(self, key: str, start: int = 0, size: int | None = None) -> tuple[bytes, Object]:
        def once() -> tuple[bytes, Object]:
            before = self._info(key)
            found = self._object(key, before)
            end = found.size if size is None else min(start + size, found.size)
            if end - start > MAX_FILE_BYTES:  # asked before memory is taken
                raise too_large(found.size)
            data = b""
            if end > start:
                data = self._once(lambda system, path: system.cat_file(path, start, end), key)
            after = self._info(key)
            if _said(before) != _said(after) or len(data) != max(end - start, 0):
                raise Transient("it was changed while it was read")
            return data, found

        return self.retried(once)

    def _path(self, key: str) -> str:
        system = self.connect()
        root = str(system._strip_protocol(self.address.root))
        return f"{root}/{key}" if key else root

    def _key(self, path: str) -> str:
        return path.removeprefix(self._path("").rstrip("/")).strip("/")

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        return self.retried(
            lambda: list(self._once(lambda system, path: system.ls(path, detail=True, refresh=True), folder))
        )

    def _info(self, key: str) -> dict[str, Any]:
        return dict(self._once(lambda system, path: system.info(path, refresh=True), key))

    def _object(self, key: str, info: dict[str, Any]) -> Object:
        etag, version, modified = _said(info)[1:]
        return Object(key, int(info["size"] or 0), self.stamp(etag, version, modified))

    def _once(self, call: Callable[[Any, str], Result], key: str) -> Result:
        """What the file system answers. Raises OSError, and Transient for what `retried` repeats."""
        try:
            return call(self.connect(), self._path(key))
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "No such object") from None
        except PermissionError:
            raise PermissionError(errno.EACCES, "the store refuses it") from None
        except OSError as error:
            raise Transient(type(error).__name__) from None
        except Exception as error:  # noqa: BLE001 - each package has errors of its own
            raise OSError(errno.EIO, f"its package gives {type(error).__name__}") from None


def _said(info: dict[str, Any]) -> tuple[int, str | None, str | None, datetime | float | None]:
    """Size, ETag, version and time of modification, as far as a store says them."""
    etag, version, modified = (
        next((info[name] for name in names if info.get(name)), None) for names in (ETAGS, VERSIONS, TIMES)
    )
    time = modified if isinstance(modified, datetime | float | int) else None
    return int(info["size"] or 0), etag and str(etag), version and str(version), time
