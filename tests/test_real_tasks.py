"""configs/tasks.py on the real task files, where they are."""

import importlib.util
import itertools
import pathlib

import pytest
from data_files import real_data

from coin_jax.config import BatchConfig, ConfigError, TokenizerConfig
from coin_jax.data.collection import make_pair_source
from coin_jax.data.pairs import TokenizedPairs
from coin_jax.data.templates import read_templates
from coin_jax.data.tokenizer import make_tokenizer

PATH = pathlib.Path(__file__).parents[1] / "configs" / "tasks.py"
SPEC = importlib.util.spec_from_file_location("tasks_config", PATH)
tasks_config = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tasks_config)


@pytest.fixture(scope="module")
def source():
    real_data("tasks", "rte.train.jsonl")
    return make_pair_source(tasks_config.get_config(str(real_data("templates").parent)).data, 0)


def test_the_config_asks_for_its_folder():
    with pytest.raises(ConfigError, match=r"configs/tasks\.py:FOLDER"):
        tasks_config.get_config()


def test_our_own_templates_are_wordings():
    (file,) = (PATH.parent / "templates").glob("*.json")
    for entries in read_templates([file]).values():
        assert len({entry.input for entry in entries}) == len(entries) >= 8


def test_all_thirteen_tasks_have_wordings_answers_and_held_out_rows(source):
    tasks = {task.name: task for task in source.definitions}
    assert len(tasks) == 13
    for task in tasks.values():
        assert len(task.training_wordings) >= 5
        assert len(task.held_out_wordings) == 2
        assert len(task.evaluation.inputs) >= 170
        assert (
            set(task.training.labels)
            == set(task.evaluation.labels)
            == set(range(len(task.answers)))
        )
    # These have no dev file; some of their training rows are kept.
    for name in ("qqp", "snli"):
        assert len(tasks[name].training.inputs) + len(tasks[name].evaluation.inputs) == 8999
    for name in ("cr", "mr", "mpqa"):
        assert tasks[name].held_out_wordings == tasks["sst2"].held_out_wordings


def test_real_rows_become_the_prompts_that_flan_writes(source):
    rte = next(task for task in source.definitions if task.name == "rte")
    wording = next(wording for wording in rte.wordings if wording.name == "rte/5")
    prompt = wording.render(
        {"premise": "It rained {all} day.", "hypothesis": "It was wet."},
        "OPTIONS:\n- yes\n- no",
        "yes",
    )
    assert prompt.text == (
        "It rained {all} day.\nCan we infer the following?\nIt was wet.\n\nOPTIONS:\n- yes\n- no"
    )
    assert rte.answers == ("yes", "no")


def test_real_rows_are_cut_to_a_short_batch_without_losing_instruction_or_options(source):
    tokenizer = make_tokenizer(TokenizerConfig("bytes"))
    batch = BatchConfig(encoder_length=320, decoder_length=40)
    pairs = TokenizedPairs(source, tokenizer, batch)
    cut = 0
    for index in range(0, len(pairs), 499):
        tokens, content = pairs.tokenized(index, 0), source.get(index, 0)
        cut += tokens.cut
        for ids, prompt in zip(tokens.encoder, content.sequences, strict=True):
            text = tokenizer.decode(ids)
            assert len(ids) <= 320
            if len(prompt.text.encode()) < 320:
                assert text == prompt.text
            else:
                assert len(ids) >= 317  # a cut may leave out a letter of several bytes
            fixed = [piece.text for piece in prompt.pieces if not piece.is_field]
            at = 0
            for literal in fixed:
                at = text.index(literal, at) + len(literal)
            assert list(itertools.accumulate(map(len, fixed)))[-1] <= len(text)
    assert cut
