"""GLUE and SuperGLUE of TensorFlow Datasets, as a source of contrastive sets."""

import sys
import types

import numpy as np
import pytest
from data_files import WEATHER, write_json
from suite_files import unreachable

from coin_jax.config import TaskConfig
from coin_jax.curation.config import SourceConfig
from coin_jax.curation.sources import make_source
from coin_jax.curation.sources.tfds import FLAN
from coin_jax.data.sources import DataError

PUBLISHED = {
    "glue/sst2": (["sentence"], ["negative", "positive"]),
    "glue/rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"]),
    "super_glue/boolq": (["question", "passage"], ["False", "True"]),
    "super_glue/record": (["passage", "query"], None),
}
"""Text columns and class names, as TFDS has them."""

TEMPLATES = {
    "sst2": [{"input": "{sentence}\nGood?\n{options_}", "target": "{answer}"}],
    "rte": [{"input": "{premise} So {hypothesis}?", "target": "{answer}"}],
    "bool_q": [{"input": "{text}\n\n{question}\n{options_}", "target": "{answer}"}],
    "record": [{"input": "{passage} {query}", "target": "{answer}"}],
    "weather": WEATHER,
}


class Stored:
    """Stands in for TFDS: rows of the published columns, in the types that it yields."""

    def __init__(self, count=4, label=None):
        self._count, self._label = count, label

    def builder(self, name):
        return types.SimpleNamespace(is_prepared=lambda: True)

    def load(self, name, split, with_info):
        assert with_info
        columns, names = PUBLISHED[name]
        features = dict.fromkeys([*columns, "idx"])
        if names:
            features["label"] = types.SimpleNamespace(names=names)

        def rows():
            for number in range(self._count):
                row = {column: f"{split} {column} {number}".encode() for column in columns}
                row["idx"] = np.int32(number)
                if names:
                    number = number % len(names) if self._label is None else self._label
                    row["label"] = np.int64(number)
                yield row

        return types.SimpleNamespace(as_numpy_iterator=rows), types.SimpleNamespace(
            features=features
        )


@pytest.fixture
def read(tmp_path, monkeypatch):
    def source(*names, stored=None, **settings):
        if stored is not None:
            monkeypatch.setitem(sys.modules, "tensorflow_datasets", stored)
        file = write_json(tmp_path / "templates.json", TEMPLATES)
        config = SourceConfig("tfds", files=names, template_files=(str(file),), **settings)
        return make_source(config, 0)

    return source


def test_flans_data_sets_fit_flans_templates_without_a_word_of_configuration(read):
    source = read("glue/rte", "super_glue/boolq", stored=Stored(), split="validation")
    assert list(source.tasks) == ["glue/rte", "super_glue/boolq"]
    assert [source.task_of(index) for index in (0, 3, 4)] == ["glue/rte"] * 2 + ["super_glue/boolq"]
    rte, boolq = source.instance(1), source.instance(4)
    assert rte.inputs == {
        "premise": "validation sentence1 1",
        "hypothesis": "validation sentence2 1",
    }
    assert (rte.target, source.tasks["glue/rte"].answers) == ("no", ("yes", "no"))
    assert boolq.inputs == {"text": "validation passage 0", "question": "validation question 0"}
    assert (boolq.target, source.tasks["super_glue/boolq"].answers) == ("no", ("no", "yes"))
    assert boolq.where == "tfds:super_glue/boolq, row 1"


def test_a_task_config_says_how_a_data_set_fits_other_templates(read):
    fits = TaskConfig(
        "glue/sst2", "weather", {"sentence": "report"}, {"negative": "wet", "positive": "dry"}
    )
    source = read("glue/sst2", stored=Stored(), tasks=(fits,), name="sky")
    assert len(source.tasks["sky/glue/sst2"].wordings) == 4
    assert source.instance(3).inputs == {"report": "train sentence 3"}
    assert source.instance(3).target == "dry"


def test_every_row_is_read_only_once_and_then_by_number(read):
    stored = Stored(50)
    source = read("glue/sst2", stored=stored, rows_per_task=7)
    stored.load = None
    wheres = [source.instance(index).where for index in reversed(range(len(source)))]
    assert len(set(wheres)) == 7


def test_rows_without_a_label_are_named(read):
    source = read("glue/sst2", stored=Stored(label=-1), split="test")
    assert "tfds:glue/sst2, row 1: label '-1'" in str(source.instance(0))
    with pytest.raises(DataError, match="no column 'label' for the label; there are passage"):
        read("super_glue/record", stored=Stored())


def test_a_data_set_that_cannot_be_had_says_what_to_put_where(read, monkeypatch):
    unreachable(monkeypatch)
    monkeypatch.setenv("TFDS_DATA_DIR", "/data/tfds")
    with pytest.raises(DataError) as caught:
        read("glue/sst2")
    (message,) = str(caught.value).splitlines()
    for part in (
        "'glue/sst2' (train) is not on this machine",
        "ConnectionError: no network",
        "tensorflow_datasets.load('glue/sst2')",
        "into /data/tfds here",
        'rows {"task": "glue/sst2", "inputs": {field: text}, "label": label}',
        "kind 'tasks'",
    ):
        assert part in message


def test_a_task_that_no_file_names_is_an_error(read):
    with pytest.raises(DataError, match=r"'glue/cola' is no data set of its `files`: 'glue/sst2'"):
        read("glue/sst2", stored=Stored(), tasks=(TaskConfig("glue/cola"),))


@pytest.mark.parametrize("name", sorted(FLAN))
def test_labels_and_fields_are_those_that_tfds_publishes(name):
    """Of the installed TFDS, which knows the columns without a download."""
    tensorflow_datasets = pytest.importorskip("tensorflow_datasets")
    features = tensorflow_datasets.builder(name).info.features
    assert set(FLAN[name].answers) == set(features["label"].names)
    assert FLAN[name].fields.keys() <= features.keys()
