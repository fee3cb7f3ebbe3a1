"""Where the features go: the finished file, and all that stands next to it while it is made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from precompute.cache import Cache, WriteLock, check_lock, lock_path, open_cache
from precompute.errors import CacheError, CacheFormatError
from precompute.system.output import Kind, Output, check_beside, check_output

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file of HDF5; False where it cannot be read."""
    if not os.path.isfile(path):  # a pipe is not opened
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    except OSError:
        return False  # whoever opens it says why


class OpenFiles:
    """Feature files by name, each opened once: checked, mapped, its table of samples compared with its digest."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int, int], Cache] = {}  # with device and inode: another file is another matter

    def open(self, path: str) -> Cache | None:
        """The feature file that is at `path` now; None where there is none.

        Raises CacheFormatError for a file of another kind, CacheError for one that cannot be read.
        """
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return None
        name = (path, status.st_dev, status.st_ino)
        if name not in self._found:
            cache = open_cache(path)
            name = (path, *cache.layout.identity)
            self._found[name] = cache
        return self._found[name]

    @property
    def kind(self) -> Kind:
        """What an output of a feature file replaces without `overwrite`."""
        return Kind(CacheError, self.open)


class CacheOutput:
    """A feature file that may be written, and the files next to it. Made by `check_cache_output`.

    path: of the finished file, links followed · overwrite: a finished file of any kind may be replaced · reuse: other
    feature files, whose rows may be copied.
    """

    def __init__(
        self, path: str, *, overwrite: bool = False, reuse: Sequence[str] = (), files: OpenFiles | None = None
    ) -> None:
        self.path = path
        self.overwrite = overwrite
        self.reuse = tuple(reuse)
        self._files = files or OpenFiles()

    @property
    def partial(self) -> str:
        """The file in progress. It appears whole, by a rename, and is filled row by row."""
        return f"{self.path}.partial"

    @property
    def kept(self) -> str:
        """Rows that files in progress held and that today's source does not list (see `leftovers`)."""
        return f"{self.partial}.kept"

    @property
    def fresh(self) -> str:
        """Where a file in progress is laid out. A crash leaves anything there, so the name must be nobody else's."""
        return f"{self.path}.precompute.new"

    @property
    def fresh_kept(self) -> str:
        """The same for rows that are put aside."""
        return f"{self.path}.precompute.kept.new"

    def lock(self) -> WriteLock:
        """Anyone who holds it is the only one who writes."""
        return WriteLock(self.path)

    def open(self, path: str) -> Cache | None:
        """What is at `path`, one of these names; see `OpenFiles`."""
        return self._files.open(path)

    def put(self, made: str) -> None:
        """Give `made`, whose bytes are on the disk, the name of the finished file, in one step.

        Raises CacheError where a file that may not be replaced has appeared there meanwhile.
        """
        Output(self.path, self._files.kind, self.overwrite).put(made)

    def check_beside(self) -> None:
        """Raise CacheError where a name that a run needs next to the file belongs to another file."""
        check_lock(self.path)
        check_leftover(self.fresh)
        check_leftover(self.fresh_kept)
        for path in (self.partial, self.kept):
            self._check_begun(path)

    def _check_begun(self, path: str) -> None:
        """Files in progress and of kept rows appear complete, by a rename: any other file there is not ours."""
        hint = f"{path} is left as it is, and precompute needs that name. Choose another output, or move it away."
        if os.path.islink(path):
            raise CacheError(f"{path} is a link.", hint=hint)
        try:
            self.open(path)
        except CacheFormatError as error:
            if os.path.lexists(path):  # else a run that is just ending has renamed it: its lock decides
                raise CacheFormatError(error.message, hint=hint) from error


def check_cache_output(
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str] | None] = (),
    reuse: Iterable[str | os.PathLike[str]] = (),
) -> CacheOutput:
    """Find out before the work whether the feature file `path`, and the files next to it, can and may be written.

    Raises CacheError and UsageError. A file next to it with a name that a run needs is precompute's own.
    """
    files, beside, others = OpenFiles(), CacheOutput(""), [os.path.realpath(os.fspath(one)) for one in reuse]
    suffixes = (beside.partial, beside.kept, beside.fresh, beside.fresh_kept, lock_path(""))
    allowed = check_output(path, files.kind, overwrite=overwrite, inputs=(*inputs, *others), suffixes=suffixes)
    output = CacheOutput(allowed.path, overwrite=overwrite, reuse=others, files=files)
    output.check_beside()
    return output


def check_leftover(fresh: str) -> bool:
    """Whether a run that ended while it was laying out has left this. Raises CacheError where it is no such file."""
    return check_beside(fresh, _laid_out, CacheError)


def remove_leftover(fresh: str) -> None:
    """Raises CacheError where it is no such file."""
    if check_leftover(fresh):
        os.unlink(fresh)


def _laid_out(content: bytes) -> bool:
    """HDF5 writes its signature when it likes: until then there is nothing, or zeros."""
    return content.startswith((HDF5_SIGNATURE, b"\0")) or HDF5_SIGNATURE.startswith(content)
