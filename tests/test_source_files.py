"""Names of files: local ones, addresses and hub data sets, with stand-ins for the network."""

import functools
import http.server
import pathlib
import threading

import fsspec
import huggingface_hub
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub.errors import LocalEntryNotFoundError

from coin_jax.curation.sources import files
from coin_jax.curation.sources.files import resolve_files
from coin_jax.data.sources import DataError

FLAN_FILES = [
    "README.md",
    "test/cola_10templates_test.jsonl",
    "train/cola_10templates_train.jsonl",
    "train/rte_10templates_train.jsonl",
    "validation/cola_10templates_validation.jsonl",
]
"""Some of the names of Muennighoff/flan."""


def make(folder, names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}\n")
    return folder


def names_below(folder, found):
    return [file.relative_to(folder).as_posix() for file in found]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_folder_means_its_files_at_any_depth_less_those_of_other_splits(tmp_path):
    folder = make(tmp_path / "flan", [*FLAN_FILES, "more.jsonl.gz"])
    assert names_below(folder, resolve_files([str(folder)], "files", split="train")) == [
        "more.jsonl.gz",
        *FLAN_FILES[2:4],
    ]
    assert len(resolve_files([str(folder)], "files")) == 5
    assert names_below(folder, resolve_files([f"{folder}/*/c*"], "files", split="train")) == [
        FLAN_FILES[1],
        FLAN_FILES[2],
        FLAN_FILES[4],
    ]  # who writes a pattern means what it matches


def test_what_names_no_file_is_an_error_that_names_the_field(tmp_path):
    make(tmp_path, ["a.txt", "sub/test.csv"])
    for pattern, reason in [
        (str(tmp_path / "a.txt"), "is none of .jsonl"),
        (str(tmp_path / "*.jsonl"), "matches no file"),
        (str(tmp_path / "sub"), "has no .*file of the split 'train'"),
        ("hub:flan", "hub:OWNER/NAME"),
    ]:
        with pytest.raises(DataError, match=f"^sources.0.files: .*{reason}"):
            resolve_files([pattern], "sources.0.files", split="train")
    with pytest.raises(DataError, match="files is empty"):
        resolve_files([], "files")


class Bucket(MemoryFileSystem):
    """Stands in for gs://, and counts what is fetched."""

    protocol = "gs"
    store = {}  # noqa: RUF012 (of its own, not MemoryFileSystem's)
    fetched = 0

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("gs://"))

    def get_file(self, *arguments, **options):
        Bucket.fetched += 1
        return super().get_file(*arguments, **options)


@pytest.fixture
def bucket(monkeypatch):
    system = Bucket()
    monkeypatch.setattr(
        fsspec.core, "url_to_fs", lambda address: (system, system._strip_protocol(address))
    )
    Bucket.store.clear()
    Bucket.fetched = 0
    for name in FLAN_FILES:
        system.pipe(f"/bucket/flan/{name}", name.encode())


def test_files_of_a_bucket_are_fetched_once_and_kept_by_their_address(tmp_path, bucket):
    here = tmp_path / "cache/coin_jax/files/gs/bucket/flan"
    for address, names in [
        (f"gs://bucket/flan/{FLAN_FILES[2]}", [FLAN_FILES[2]]),
        ("gs://bucket/flan/*/cola*", [FLAN_FILES[1], FLAN_FILES[2], FLAN_FILES[4]]),
        ("gs://bucket/flan", FLAN_FILES[2:4]),
        ("gs://bucket/flan/", FLAN_FILES[2:4]),
    ]:
        found = resolve_files([address], "files", split="train")
        assert names_below(here, found) == names
        assert [file.read_text() for file in found] == names
    assert Bucket.fetched == 4
    Bucket.store.clear()
    assert resolve_files([f"gs://bucket/flan/{FLAN_FILES[2]}"], "files")  # without the network


def test_a_bucket_that_cannot_be_reached_is_an_error_that_says_where_to_put_the_file(
    tmp_path, bucket
):
    with pytest.raises(DataError) as caught:
        resolve_files(["gs://bucket/gone.jsonl"], "files")
    place = tmp_path / "cache/coin_jax/files/gs/bucket/gone.jsonl"
    assert str(place) in str(caught.value)
    make(place.parent, [place.name])
    assert resolve_files(["gs://bucket/gone.jsonl"], "files") == [place]


def test_a_fetch_that_breaks_off_leaves_nothing_that_looks_whole(tmp_path, bucket, monkeypatch):
    def break_off(self, path, place, **options):
        pathlib.Path(place).write_bytes(b"half")
        raise ConnectionError("gone")

    monkeypatch.setattr(Bucket, "get_file", break_off)
    with pytest.raises(DataError, match="gone"):
        resolve_files(["gs://bucket/flan"], "files")
    assert not [file for file in files.cache_folder().rglob("*") if file.is_file()]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub's download; returns what it was asked for."""
    asked = []

    def snapshot_download(repo_id, *, repo_type, allow_patterns):
        asked.append((repo_id, repo_type, allow_patterns))
        return str(make(tmp_path / "snapshot", FLAN_FILES))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_data_set_means_the_files_of_its_split_and_only_they_are_asked_for(tmp_path, hub):
    found = resolve_files(["hub:Muennighoff/flan"], "files", (".jsonl",), split="train")
    assert names_below(tmp_path / "snapshot", found) == FLAN_FILES[2:4]
    assert hub == [("Muennighoff/flan", "dataset", ["*train*.jsonl"])]


def test_a_pattern_of_a_hub_data_set_means_what_it_matches(tmp_path, hub):
    found = resolve_files(["hub:Muennighoff/flan/test/*"], "files", split="train")
    assert names_below(tmp_path / "snapshot", found) == [FLAN_FILES[1]]
    assert hub == [("Muennighoff/flan", "dataset", ["test/*"])]


def test_without_a_network_the_error_says_which_files_to_put_where(monkeypatch):
    def snapshot_download(*arguments, **options):
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(DataError) as caught:
        resolve_files(["hub:Muennighoff/flan"], "sources.0.files", (".jsonl",), split="train")
    assert str(caught.value) == (
        "sources.0.files: 'hub:Muennighoff/flan' is not here and cannot be fetched: no connection. "
        "Where there is a network, get the .jsonl files named 'train' from "
        "https://huggingface.co/datasets/Muennighoff/flan/tree/main, put them in a folder on this "
        "machine, and name that folder in sources.0.files"
    )


def test_the_hub_library_is_told_nothing_that_it_refuses(monkeypatch):
    """The real function, offline: its error is the one that is expected."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="is not here and cannot be fetched"):
        resolve_files(["hub:nobody-at-all/no-such-set"], "files", split="train")


def test_an_address_whose_package_is_missing_is_an_error_that_names_it(monkeypatch):
    def url_to_fs(address):
        raise ImportError("Install gcsfs to access GCS")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(DataError, match="package that is missing: Install gcsfs"):
        resolve_files(["gs://bucket/a.jsonl"], "files")


def test_a_web_address_is_fetched_once(tmp_path):
    make(tmp_path / "web", ["rows.jsonl"])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "web")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/rows.jsonl?download=true"
        (found,) = resolve_files([address], "files")
        server.shutdown()
    assert found.read_text() == "{}\n"
    assert found.name == "rows.jsonl"
    assert resolve_files([address], "files") == [found]
