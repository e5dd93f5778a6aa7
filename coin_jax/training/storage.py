"""Files that a crash leaves whole, and what people read where a disk refuses one."""

from __future__ import annotations

import errno
import os
import pathlib

from coin_jax.untrusted import printable


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a crash leaves either the old content or the new one.

    Raises OSError with the file's name.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:  # a full disk does not say which file it has no room for
        raise OSError(error.errno, error.strerror, str(partial)) from error


def flush_folder(folder: pathlib.Path) -> None:
    """Has the names in `folder` on the disk, so that they outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network folders have no such thing
    finally:
        os.close(descriptor)


def remedy(reason: str) -> str:
    """What to do about the message of a failed write."""
    for cause, cure in _REMEDIES.items():
        if cause.lower() in reason.lower():
            return cure
    return "See that the folder can be written"


_REMEDIES = {
    "no space": "Free some space, or write elsewhere with --output",
    "quota": "Free some space of your quota, or write elsewhere with --output",
    "too large": "Raise the limit on the size of a file (ulimit -f)",
    "read-only": "Mount the disk for writing, or write elsewhere with --output",
    "permission": "Allow this user to write there, or write elsewhere with --output",
    "no such file": "Bring it back: it was deleted or moved, or its disk is gone",
}


def why(error: BaseException) -> str:
    """The line of an error that says what the system refused.

    TensorStore names the system's message somewhere in a long status.
    """
    text = str(error)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT):
        if os.strerror(code).lower() in text.lower() or getattr(error, "errno", None) == code:
            return os.strerror(code)
    return printable(text.strip().splitlines()[0][:300]) if text.strip() else type(error).__name__
