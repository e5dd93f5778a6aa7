"""The manifest of a checkpoint: the size and SHA-256 of each of its files.

It is written before the checkpoint gets its name, so a checkpoint without one comes from an older
version, and one whose files differ from it was damaged later.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib

from coin_jax.training.storage import flush_folder, write_whole
from coin_jax.untrusted import LONGEST_NAME, printable, read_json

NAME = "manifest.json"
# Orbax's own notes (what the handlers were, when it was done), which it completes after the
# manifest is written; nothing is restored from them.
_NOTES = ("_CHECKPOINT_METADATA", "commit_success.txt")
_THREADS = 8  # hashlib and the disk work without Python's lock


def write_manifest(folder: pathlib.Path) -> None:
    """Writes the manifest of all that lies in `folder`, and has all of it on the disk."""
    files = _files(folder)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        hashes = threads.map(lambda path: _sha256(path, flush=True), files.values())
        content = {
            name: [path.stat().st_size, found]
            for (name, path), found in zip(files.items(), hashes, strict=True)
        }
    write_whole(folder / NAME, json.dumps({"sha256": content}, indent=0))
    for inner in {path.parent for path in files.values()} | {folder}:
        flush_folder(inner)


def add_to_manifest(folder: pathlib.Path, name: str) -> None:
    """Lists one more file, in a checkpoint that is whole and may have a manifest."""
    if not (folder / NAME).exists():
        return
    content = read_json(folder / NAME)["sha256"]
    content[name] = [(folder / name).stat().st_size, _sha256(folder / name)]
    write_whole(folder / NAME, json.dumps({"sha256": content}, indent=0))


def fault(folder: pathlib.Path, read: bool = True) -> str | None:
    """What is wrong with the checkpoint in `folder`; None where it is as it was written.

    read: compare the content of the files too, not only that they are there in their full size.
    """
    try:
        if not (folder / NAME).exists():
            return None if (folder / "state").is_dir() else "it has no state"
        try:
            content = read_json(folder / NAME)["sha256"]
            wanted = {str(name): (int(size), str(found)) for name, (size, found) in content.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return f"{NAME} is not one"
        files = _files(folder)
        for name, (size, _) in wanted.items():
            if name not in files:
                return f"{printable(name[:LONGEST_NAME])} is missing"
            if (there := files[name].stat().st_size) != size:
                return f"{name} has {there:,} of {size:,} bytes"
        if read:
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
                hashes = threads.map(lambda name: _sha256(files[name]), wanted)
                for (name, (_, expected)), found in zip(wanted.items(), hashes, strict=True):
                    if found != expected:
                        return f"the content of {name} is not what was written"
    except OSError as error:  # a sector that cannot be read
        return f"{error.filename or folder} cannot be read: {error.strerror or error}"
    return None


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Name -> path of what a manifest lists. Only these are ever opened, whatever it claims."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in (NAME, *_NOTES)
    }


def _sha256(path: pathlib.Path, flush: bool = False) -> str:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if flush:
            os.fsync(file.fileno())
    return found
