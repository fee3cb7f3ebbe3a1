"""Addresses such as s3://bucket/prefix. None may hold a password or a signature, so each may be shown and recorded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from precompute.errors import SourceError
from precompute.sources.base import ascii_name

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
AZURE = re.compile(r"[A-Za-z0-9-]+(@[A-Za-z0-9.-]+)?")  # container@account, which is no password
QUERY = re.compile(r"\?[^/]*=")
NOT_STORES = ("file", "local", "pipe", "data", "http", "https")
CREDENTIALS = "Credentials come from the environment, from ~/.aws or from the machine's role: see docs/remote.md."


@dataclass(frozen=True)
class Address:
    """protocol: in lower case, such as "s3" · bucket: or container · key: of an object, or a prefix without `/` at its
    end; "" for the whole bucket."""

    protocol: str
    bucket: str
    key: str

    @property
    def root(self) -> str:
        """The bucket alone."""
        return f"{self.protocol}://{self.bucket}"

    @property
    def url(self) -> str:
        """As it is recorded."""
        return f"{self.root}/{self.key}" if self.key else self.root

    @property
    def shown(self) -> str:
        """For a terminal."""
        return ascii_name(self.url)

    @property
    def prefix(self) -> str:
        """What the keys of all objects below it begin with."""
        return f"{self.key}/" if self.key else ""


def is_address(name: str) -> bool:
    """Whether `name` begins like s3://."""
    return SCHEME.match(name) is not None


def address_of(name: str) -> Address:
    """Take `name` apart. Raises SourceError, which shows no more of it than its scheme where it may hold a secret."""
    found = SCHEME.match(name)
    protocol = found[1].lower() if found else ""
    if not found or protocol in NOT_STORES:
        raise SourceError(
            f"Samples are read from files and object stores, not from an address that begins with {protocol}://.",
            hint="Copy them to a disk or a bucket, and name that.",
        )
    bucket, _, key = name[found.end() :].partition("/")
    pattern = AZURE if protocol in ("az", "abfs", "abfss", "adl") else BUCKET
    if not pattern.fullmatch(bucket) or QUERY.search(name) or "::" in name:
        raise SourceError(
            f"An address begins like {protocol}://BUCKET/PREFIX, without user, password, port or query.",
            hint=CREDENTIALS,
        )
    address = Address(protocol, bucket, key.removesuffix("/"))
    if "\0" in key or (address.key and set(address.key.split("/")) & {"", ".", ".."}):
        raise SourceError(
            f"{address.shown} has an empty part, `.`, `..` or NUL in it.", hint="Write the address without it."
        )
    return address


def absolute(name: str) -> str:
    """An absolute path, or an address as it is."""
    return name if is_address(name) else os.path.abspath(name)
