"""Files of models on the Hugging Face hub: fetched once into the hub's cache, from a revision that is named."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape, glob
from typing import Any

from precompute.errors import WeightsError
from precompute.system.addresses import QUERY, without_secrets

COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """path: of a file or a folder on this machine · revision: the commit it belongs to, 40 hexadecimal digits."""

    path: str
    revision: str


def hub_file(repository: str, names: Sequence[str], revision: str | None = None) -> HubFile:
    """The first of `names` that `repository` has, at `revision` or at its newest one.

    Without a network, or with HF_HUB_OFFLINE=1, what is in the cache already. Raises WeightsError naming the files, the
    cache and the remedies where there is none.
    """
    huggingface_hub, errors, cache = _library(repository, "timm")
    missing: list[str] = []
    for name in names:
        try:
            with _bars_on_terminals_alone(huggingface_hub):
                path = huggingface_hub.hf_hub_download(repository, name, revision=revision)
        except errors.LocalEntryNotFoundError as error:  # of the cache: there is no network
            raise _not_here(repository, names, revision, cache, error) from error
        except errors.EntryNotFoundError:
            missing.append(name)
            continue
        except Exception as error:  # of the network, the hub or a library below: of any class
            raise _not_here(repository, names, revision, cache, error) from error
        commit = os.path.basename(os.path.dirname(path))
        if not COMMIT.fullmatch(commit):
            raise WeightsError(
                f"The hub's cache has {name} of {repository} under no revision: {path}.",
                hint="Update huggingface_hub, or name the file with --weights PATH.",
            )
        return HubFile(path, commit)
    raise WeightsError(
        f"{repository} on the Hugging Face hub has no weights in a form that runs no code: no {', no '.join(missing)}.",
        hint="Name a .safetensors or .pth file with a state dict: --weights PATH.",
    )


def cached_repositories() -> list[str]:
    """The models in the hub's cache that have a config.json, by name; empty where there is no cache."""
    cache = _library("the hub", "hf")[2]
    places = sorted(glob(os.path.join(escape(cache), "models--*", "snapshots", "*", "config.json")))
    names = [place.split(os.sep)[-4] for place in places]
    return [name.removeprefix("models--").replace("--", "/") for name in dict.fromkeys(names)]


def hub_folder(repository: str, patterns: Sequence[str], revision: str | None = None, *, fetch: bool = True) -> HubFile:
    """The folder with those files of `repository` that match `patterns`, at `revision` or at its newest one.

    Without a network, with HF_HUB_OFFLINE=1, or not to `fetch`, what is in the cache already. Raises WeightsError
    naming the cache and the remedies where there is none.
    """
    huggingface_hub, _, cache = _library(repository, "hf")
    options: dict[str, Any] = {"allow_patterns": list(patterns), "local_files_only": not fetch}
    try:
        with _bars_on_terminals_alone(huggingface_hub):
            path = str(huggingface_hub.snapshot_download(repository, revision=revision, **options))
    except Exception as error:  # of the network, the hub or a library below: of any class
        raise _not_here(repository, ["config.json"], revision, cache, error, folder=True) from error
    commit = os.path.basename(path)
    if not COMMIT.fullmatch(commit):
        raise WeightsError(
            f"The hub's cache has {repository} under no revision: {path}.",
            hint="Update huggingface_hub, or name the folder: -b hf:./folder.",
        )
    return HubFile(path, commit)


def _library(repository: str, extra: str) -> tuple[Any, Any, str]:
    """huggingface_hub, its errors, and where its cache lies."""
    try:
        import huggingface_hub
        import huggingface_hub.utils  # it loads its parts late
        from huggingface_hub import constants, errors
    except ImportError as error:
        raise WeightsError(
            f"The weights of {repository} need huggingface_hub: {error}.",
            hint=f"Install it: pip install 'precompute[{extra}]'",
        ) from error
    return huggingface_hub, errors, str(constants.HF_HUB_CACHE)


def _not_here(
    repository: str, names: Sequence[str], revision: str | None, cache: str, error: Exception, *, folder: bool = False
) -> WeightsError:
    """folder: whether a whole folder was requested, and can be named in its place."""
    lines = str(error).strip().splitlines() or [""]
    reason = QUERY.sub("", without_secrets(lines[0]))[:300]
    place = os.path.join(cache, f"models--{repository.replace('/', '--')}")
    at = f" at {revision}" if revision else ""
    return WeightsError(
        f"The weights of {repository}{at} are not on this machine and could not be downloaded "
        f"({type(error).__name__}: {reason}).\nMissing file: {names[0]} in {place}",
        hint="Four options: download them on a machine with a network, and copy that folder here (HF_HOME sets the "
        "place of the cache); if the repository requires it, log in with `hf auth login` or set HF_TOKEN; "
        + (
            "name a folder you have: -b hf:./folder; or use another backbone."
            if folder
            else "name a file you have with --weights PATH; or use --weights random."
        ),
    )


@contextmanager
def _bars_on_terminals_alone(hub: Any) -> Iterator[None]:
    """A download may take long, so the library's own bars stay where someone sees them, and fill no log."""
    asked = "HF_HUB_DISABLE_PROGRESS_BARS" in os.environ
    quiet = not (asked or sys.stderr.isatty() or hub.utils.are_progress_bars_disabled())
    if quiet:
        hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            hub.utils.enable_progress_bars()
