"""The files that a source's names mean, on this machine: local ones, or fetched once and kept."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

from coin_jax.curation.sources.records import SUFFIXES
from coin_jax.data.sources import DataError, expand_files
from coin_jax.untrusted import shown, without_credentials

HUB = "hub:"
SCHEMES = (
    *("http", "https", "gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "adl", "oss", "hf"),
    *("ftp", "sftp", "hdfs", "webhdfs", "memory"),
)
"""Of addresses: others of fsspec's read this machine's files, unpack, or run templates."""
_SPLITS = {"train", "validation", "valid", "dev", "test"}


def resolve_files(
    patterns: Sequence[str], field: str, suffixes: Sequence[str] = SUFFIXES, split: str = ""
) -> list[pathlib.Path]:
    """Files of local names, each once, in order; what is not here is fetched and stays here.

    A pattern is a file, a glob pattern, a folder (all its files with these suffixes, at any depth),
    an address of SCHEMES (gs://, https:// and so on: a file, and but for https a glob
    pattern or a folder), or hub:OWNER/NAME[/PATTERN] for a data set of the Hugging Face hub.

    Args:
      field: of the config, to name in errors.
      split: leaves out of a folder what another split is named after (test/cola.jsonl,
        test-00000-of-00001.parquet); of a hub data set without PATTERN only files named after this
        split are fetched. Empty: all.

    Raises: DataError that names the field and the pattern; where something cannot be fetched, also
    what to put where by hand.
    """
    if not patterns:
        raise DataError(f"{field} is empty: name files, folders, glob patterns or addresses")
    files: dict[pathlib.Path, None] = {}
    for pattern in patterns:
        if pattern.startswith(HUB):
            found = _of_hub(pattern, field, suffixes, split)
        elif "://" in pattern:
            found = _of_address(pattern, field, suffixes, split)
        elif pathlib.Path(pattern).is_dir():
            found = _below(pathlib.Path(pattern), suffixes, split)
        else:
            found = expand_files([pattern], field)
            bad = [file for file in found if not _has(file.name, suffixes)]
            if bad:
                raise DataError(f"{field}: {str(bad[0])!r} is none of {', '.join(suffixes)}")
        if not found:
            what = f"{', '.join(suffixes)} file" + (f" of the split {split!r}" if split else "")
            raise DataError(f"{field}: {pattern!r} has no {what}")
        files.update(dict.fromkeys(found))
    return list(files)


def cache_folder() -> pathlib.Path:
    """Where fetched files stay, by address."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "coin_jax" / "files"


def _of_hub(pattern: str, field: str, suffixes: Sequence[str], split: str) -> list[pathlib.Path]:
    import huggingface_hub

    owner, _, rest = pattern.removeprefix(HUB).partition("/")
    name, _, wanted = rest.partition("/")
    if not owner or not name:
        raise DataError(f"{field}: {pattern!r} is not of the form hub:OWNER/NAME[/PATTERN]")
    # The hub's patterns are those of fnmatch, whose * also stands for folders.
    patterns = [wanted] if wanted else [f"*{split}*{suffix}" for suffix in suffixes]
    try:
        folder = pathlib.Path(
            huggingface_hub.snapshot_download(
                f"{owner}/{name}", repo_type="dataset", allow_patterns=patterns
            )
        )
    except (OSError, ValueError) as error:  # the hub's own errors are either
        what = wanted or f"the {', '.join(suffixes)} files" + (f" named {split!r}" if split else "")
        raise DataError(
            f"{field}: {pattern!r} is not here and cannot be fetched: {_first_line(error)}. Where "
            f"there is a network, get {what} from "
            f"https://huggingface.co/datasets/{owner}/{name}/tree/main, put them in a folder on "
            f"this machine, and name that folder in {field}"
        ) from None
    found = _below(folder, suffixes, "" if wanted else split)
    if not wanted:
        return found
    return [
        file for file in found if fnmatch.fnmatchcase(file.relative_to(folder).as_posix(), wanted)
    ]


def _of_address(
    address: str, field: str, suffixes: Sequence[str], split: str
) -> list[pathlib.Path]:
    import fsspec

    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in SCHEMES or "::" in address:
        raise DataError(f"{field}: {address!r}: addresses begin with one of {', '.join(SCHEMES)}")
    # Places stand in errors and manifests, so neither passwords nor signatures are part of one.
    host, query = parts.netloc.rpartition("@")[2], parts.query
    if without_credentials(f"?{query}") != f"?{query}":
        query = hashlib.sha256(query.encode("utf-8", "replace")).hexdigest()[:16]
    folder = cache_folder() / parts.scheme / host / urllib.parse.quote(query, "")
    place = _within(folder, parts.path, field)
    is_web = parts.scheme in ("http", "https")
    is_file = is_web or (_has(parts.path, suffixes) and not glob.has_magic(parts.path))
    if is_file and place.exists():
        return [place]
    try:
        system, path = fsspec.core.url_to_fs(address)
        if is_file:
            return [_fetched(system, path, place)]
        if glob.has_magic(path):
            paths = [name for name in sorted(system.glob(path)) if _has(name, suffixes)]
        else:
            paths = _of_split(path, sorted(system.find(path)), suffixes, split)
        root = fsspec.core.url_to_fs(f"{parts.scheme}://{parts.netloc}")[1]
        return [
            _fetched(system, path, _within(folder, path.removeprefix(root), field))
            for path in paths
        ]
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{field}: {address!r} needs a package that is missing: {error}") from None
    except Exception as error:  # every file system has errors of its own
        raise DataError(
            f"{field}: {address!r} is not here and cannot be fetched: {_first_line(error)}. Where "
            f"there is a network, fetch it, put it on this machine and name that place in {field}"
            + (f"; at {place} it is found as it is" if is_file else "")
        ) from None


def _within(folder: pathlib.Path, name: str, field: str) -> pathlib.Path:
    """Where a file of that name stays. DataError for a name, or a host, that leads elsewhere."""
    place = folder / name.lstrip("/")
    inside = place.relative_to(cache_folder()).parts
    if ".." in inside or "\0" in name or "\\" in name:
        raise DataError(f"{field}: {shown(name)} leads out of its folder")
    return place


def _fetched(system: Any, path: str, place: pathlib.Path) -> pathlib.Path:
    """The local copy of a remote file; what is there already is not asked for again."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f"{place.name}.{os.getpid()}.part")
        try:
            system.get_file(path, str(part))
            part.replace(place)
        finally:
            part.unlink(missing_ok=True)
    return place


def _below(folder: pathlib.Path, suffixes: Sequence[str], split: str) -> list[pathlib.Path]:
    files = (str(file) for file in sorted(folder.rglob("*")) if file.is_file())
    return list(map(pathlib.Path, _of_split(str(folder), files, suffixes, split)))


def _of_split(folder: str, files: Iterable[str], suffixes: Sequence[str], split: str) -> list[str]:
    """Files with these suffixes, without those whose path below the folder names another split."""
    found = []
    for file in files:
        words = set(re.split(r"[^a-z]+", file.removeprefix(folder).lower()))
        if _has(file, suffixes) and (not split or split in words or not words & _SPLITS):
            found.append(file)
    return found


def _has(name: str, suffixes: Sequence[str]) -> bool:
    return name.lower().endswith(tuple(suffixes))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
