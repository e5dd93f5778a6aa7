"""Synonyms from WordNet (Miller 1995), read from its database files where they are installed.

The format is WordNet's own, wndb(5WN); Debian's `wordnet-base`, NLTK's corpus (packed or not),
Princeton's archive and Open English WordNet all have it. No package is needed to read it.
"""

from __future__ import annotations

import os
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

from coin_jax.robustness.perturb.method import PerturbationError

PARTS = ("noun", "verb", "adj", "adv")
_SUFFIXES = {"noun": ("s",), "verb": ("s", "ed", "ing"), "adj": (), "adv": ()}
_CORPORA = ("wordnet", "wordnet31", "wordnet2022", "wordnet2021")
Folder = pathlib.Path | zipfile.Path


class _Reading(NamedTuple):
    """A word taken as a form of one lemma: its part of speech and the suffix of the form."""

    part: str
    suffix: str
    tagged: int
    """Senses that occur in the annotated corpus: how much this reading is used."""
    synsets: list[int]
    """Byte offsets into the data file, the commonest sense first."""


class WordNetLexicon:
    """Lemmas that share a synset with a word, in the word's own (regular) inflection.

    Commoner senses come first, over all parts of speech, since nothing tells which one is meant.
    Lemmas of several words, with capitals, digits or hyphens are left out, and so are lemmas with
    irregular forms where the word is inflected, and words that are irregular forms themselves.

    Raises: PerturbationError where there is no WordNet, with what to install.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
        place = _open(pathlib.Path(folder)) if folder else _installed()
        if place is None:
            raise PerturbationError(
                f"no WordNet in {folder}: index.noun and data.noun were looked for"
                if folder
                else "WordNet is not installed: `apt-get install wordnet-base`, or `python -m "
                "nltk.downloader wordnet` after `pip install nltk`, or unpack an archive of its "
                "database files and name the folder in WNSEARCHDIR"
            )
        self._data = {part: (place / f"data.{part}").read_bytes() for part in PARTS}
        self._index = {part: _read_index(place / f"index.{part}") for part in PARTS}
        self._irregular = {part: _read_exceptions(place / f"{part}.exc") for part in PARTS}

    def synonyms(self, word: str, text: str, start: int, end: int) -> list[str]:
        found = []
        for reading in self._readings(word.lower()):
            for rank, offset in enumerate(reading.synsets):
                for lemma in self._lemmas(reading.part, offset):
                    if reading.suffix and lemma in self._irregular[reading.part]:
                        continue
                    found.append((rank, -reading.tagged, inflect(lemma, reading.suffix)))
        found.sort(key=lambda entry: entry[:2])
        forms = dict.fromkeys(form for _, _, form in found)
        forms.pop(word.lower(), None)
        return list(forms)

    def _readings(self, word: str) -> Iterator[_Reading]:
        for part in PARTS:
            index = self._index[part]
            if word in index:
                yield _Reading(part, "", *index[word])
            for suffix in _SUFFIXES[part]:
                stems = {
                    word[:-cut] + ending for cut in (1, 2, 3, 4) for ending in ("", "e", "y", "ie")
                }
                for stem in sorted(stems & index.keys()):
                    if inflect(stem, suffix) == word:
                        yield _Reading(part, suffix, *index[stem])

    def _lemmas(self, part: str, offset: int) -> list[str]:
        """Single words of a synset: `offset file type count word id word id ...`, count in hex."""
        data = self._data[part]
        fields = data[offset : data.index(b"\n", offset)].decode("utf-8", "replace").split()
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        words = (re.sub(r"\(\w+\)$", "", word) for word in words)  # able(p): used predicatively
        return [word for word in words if word.isalpha() and word.islower()]


def inflect(lemma: str, suffix: str) -> str:
    """The regular form with `s`, `ed` or `ing`; the lemma itself with no suffix."""
    if not suffix:
        return lemma
    if suffix == "s":
        if re.search(r"(?:[sxz]|ch|sh)$", lemma):
            return lemma + "es"
        return re.sub(r"(?<=[^aeiou])y$", "ie", lemma) + "s"
    if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnprt]", lemma):  # stop: stopped, stopping
        return lemma + lemma[-1] + suffix
    if suffix == "ed":
        return re.sub(r"(?<=[^aeiou])y$", "i", lemma).removesuffix("e") + "ed"
    if lemma.endswith("ie"):
        return lemma[:-2] + "ying"
    return re.sub(r"(?<=[^eoy])e$", "", lemma) + "ing"


def _installed() -> Folder | None:
    """The first WordNet among the places where WordNet, NLTK and Linux packages put it."""
    environment = os.environ
    folders = [environment.get("WNSEARCHDIR")]
    if "WNHOME" in environment:
        folders.append(os.path.join(environment["WNHOME"], "dict"))
    roots = filter(None, environment.get("NLTK_DATA", "").split(os.pathsep))
    shared = ("/usr/share", "/usr/local/share")
    for root in (*roots, os.path.expanduser("~/nltk_data"), *(f"{p}/nltk_data" for p in shared)):
        folders += [os.path.join(root, "corpora", corpus) for corpus in _CORPORA]
    folders += [f"{prefix}/wordnet" for prefix in shared]
    return next(filter(None, (_open(pathlib.Path(name)) for name in folders if name)), None)


def _open(folder: pathlib.Path) -> Folder | None:
    """The folder, or its zip as NLTK keeps it, if the database files stand there."""
    if (folder / "data.noun").is_file():
        return folder
    packed = folder if folder.suffix == ".zip" else folder.with_name(folder.name + ".zip")
    if packed.is_file():
        inside = zipfile.Path(packed, packed.stem + "/")
        return inside if (inside / "data.noun").is_file() else None
    return None


def _read_index(file: Folder) -> dict[str, tuple[int, list[int]]]:
    """{lemma: (tagged senses, synsets)}: `lemma pos synsets p pointer*p senses tagged offset...`"""
    index = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):  # the licence is indented
            fields = line.split()
            count = int(fields[2])
            index[fields[0]] = int(fields[-count - 1]), [int(each) for each in fields[-count:]]
    return index


def _read_exceptions(file: Folder) -> set[str]:
    """Lemmas with irregular forms: `form lemma...`; none where there is no such file."""
    if not file.is_file():
        return set()
    lines = file.read_text(encoding="utf-8").splitlines()
    return {lemma for line in lines for lemma in line.split()[1:]}
