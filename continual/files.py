"""Files that are whole or absent: named by content, written beside and moved into place."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from uuid import uuid4

LENGTH = 8
"""Bytes at the beginning of a safetensors file that tell how long its header is."""


def content_sha256(path: Path) -> str:
    """Hash a file's bytes.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(start: bytes) -> dict[str, str]:
    """Read the texts that a safetensors file carries, from its first bytes: a length, and so many bytes of JSON.

    Raises:
        ValueError: these are not such bytes, or not enough of them.
    """
    if len(start) < LENGTH:
        raise ValueError("the file ends before its header")
    length = int.from_bytes(start[:LENGTH], "little")
    texts: dict[str, str] = json.loads(start[LENGTH : LENGTH + length]).get("__metadata__", {})
    return texts


def partials_of(name: str) -> str:
    """Give the pattern of what a process that was killed while it wrote a file of this name may have left beside it."""
    return f".{name}.*.partial"


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a reader, or a process killed at any moment, sees all of it or none.

    The bytes reach the disk before the name does; what a killed process leaves behind starts with ".".

    Raises:
        OSError: the disk is full or the folder may not be written; nothing is left at ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / partials_of(path.name).replace("*", uuid4().hex)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
