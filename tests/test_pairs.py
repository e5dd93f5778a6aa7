"""Contrastive sets of tasks and of ready pairs, their tokens, and what is kept for evaluation."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from data_files import (
    WEATHER,
    pair_rows,
    weather_rows,
    write_csv,
    write_json,
    write_jsonl,
)

from coin_jax.config import BatchConfig, DataConfig, TaskConfig
from coin_jax.data.collection import make_pair_source
from coin_jax.data.pairs import (
    OtherAnswer,
    TokenizedInstances,
    TokenizedPairs,
    draw_wordings,
    stratified,
)
from coin_jax.data.ready_pairs import PairPrompt
from coin_jax.data.sources import DataError
from coin_jax.data.templates import Prompt
from coin_jax.data.tokenizer import ByteTokenizer

WEATHER_TASK = TaskConfig(
    "weather", fields={"text": "report"}, answers={"rain": "wet", "sun": "dry"}
)
BATCH = BatchConfig(encoder_length=200, decoder_length=8)


def weather_data(folder, rows=40, **changes) -> DataConfig:
    """A config for files of the weather task; `rows` may be a number of rows or the rows."""
    rows = weather_rows(rows) if isinstance(rows, int) else rows
    config = DataConfig(
        source="tasks",
        files=(str(write_jsonl(folder / "rows.train.jsonl", rows)),),
        template_files=(str(write_json(folder / "templates.json", {"weather": WEATHER})),),
        tasks=(WEATHER_TASK,),
        held_out_wordings=1,
    )
    return dataclasses.replace(config, **changes)


def pairs_data(folder, rows=40, **changes) -> DataConfig:
    rows = pair_rows(rows) if isinstance(rows, int) else rows
    file = write_csv(folder / "pairs.csv", rows)
    return dataclasses.replace(DataConfig(source="pairs", files=(str(file),)), **changes)


def texts(content) -> list[str]:
    return [prompt.text for prompt in content.sequences]


# Tasks


def test_a_set_is_an_instance_in_two_wordings_and_another_with_another_answer_in_the_same(tmp_path):
    source = make_pair_source(weather_data(tmp_path), 0)
    wordings = {w.name: w for w in source.definitions[0].training_wordings}
    options = "OPTIONS:\n- wet\n- dry"
    for index, epoch in itertools.product(range(len(source)), range(3)):
        sequences = source.get(index, epoch).sequences
        reports = [
            next(piece.text for piece in prompt.pieces if piece.is_field) for prompt in sequences
        ]
        assert reports[0] == reports[1] != reports[2] == reports[3]
        answers = [prompt.answer for prompt in sequences]
        assert answers in (["wet", "wet", "dry", "dry"], ["dry", "dry", "wet", "wet"])
        assert [report.startswith("rain") for report in reports] == [a == "wet" for a in answers]
        used = [
            [name for name, w in wordings.items() if w.render({"report": r}, options, "") == p]
            for r, p in zip(
                reports, (dataclasses.replace(p, answer="") for p in sequences), strict=True
            )
        ]
        assert used[0] == used[2] != used[1] == used[3]
        assert all(len(names) == 1 for names in used)


def test_sets_are_a_pure_function_of_seed_epoch_and_index(tmp_path):
    data = weather_data(tmp_path)
    first, again, other = (make_pair_source(data, seed) for seed in (5, 5, 6))
    places = list(itertools.product(range(len(first)), range(4)))
    expected = [first.get(*place) for place in places]
    assert [again.get(*place) for place in reversed(places)] == expected[::-1]
    assert [other.get(*place) for place in places] != expected


def test_every_instance_leads_one_set_an_epoch(tmp_path):
    source = make_pair_source(weather_data(tmp_path), 0)
    leads = {source.get(index, 0).sequences[0].pieces for index in range(len(source))}
    assert len(source) == len(leads) == len(source.definitions[0].training.inputs)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_no_choice_of_wordings_returns_before_all_have_been_shown(count):
    for key in (0, 1, 12345, 2**64 - 1):
        choices = [draw_wordings(count, epoch, key) for epoch in range(count * (count - 1))]
        assert set(choices) == set(itertools.permutations(range(count), 2))


def test_hard_negatives_are_drawn_evenly_among_all_rows_with_another_answer():
    labels = np.array([0, 1, 0, 2, 1, 1, 0, 2])
    others = OtherAnswer(labels, "task")
    for row, label in enumerate(labels):
        different = [i for i, other in enumerate(labels) if other != label]
        drawn = collections.Counter(others.draw(row, r) for r in range(3 * len(different)))
        assert drawn == dict.fromkeys(different, 3)


def test_a_task_with_one_answer_only_is_an_error_that_names_it(tmp_path):
    rows = weather_rows(20, labels=("rain",))
    with pytest.raises(DataError, match=r"task 'weather': .* fewer than two different answers"):
        make_pair_source(weather_data(tmp_path, rows), 0)


def test_contents_are_equal_for_equal_input_and_answer_alone(tmp_path):
    rows = [
        {"task": "weather", "inputs": {"text": text}, "label": label}
        for text, label in (("fog", "rain"), ("fog", "rain"), ("fog", "sun"), ("mist", "sun"))
    ]
    source = make_pair_source(weather_data(tmp_path, rows), 0)
    first, same, other_answer, other_text = (source.get(i, 0).contents[0] for i in range(4))
    assert first == same
    assert len({first, other_answer, other_text}) == 3
    assert all(0 <= content < 2**31 for content in (first, other_answer, other_text))
    assert source.get(0, 0).contents[1] in (other_answer, other_text)


def test_labels_without_answers_in_the_config_are_their_own_answers(tmp_path):
    data = weather_data(tmp_path, tasks=(TaskConfig("weather", fields={"text": "report"}),))
    (task,) = make_pair_source(data, 0).definitions
    assert task.answers == ("rain", "sun")


def test_without_tasks_in_the_config_every_task_of_the_files_is_used_as_it_is(tmp_path):
    rows = [{**row, "inputs": {"report": row["inputs"]["text"]}} for row in weather_rows(20)]
    source = make_pair_source(weather_data(tmp_path, rows, tasks=()), 0)
    assert [(task.name, task.answers) for task in source.definitions] == [
        ("weather", ("rain", "sun"))
    ]


BAD_ROWS = {
    "no field": (
        {"inputs": {"title": "x"}},
        "no field 'report', which the templates of task 'weather' need; its fields are title",
    ),
    "strange label": ({"label": "snow"}, "label 'snow' of task 'weather' is none of 'rain', 'sun'"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_row_that_does_not_fit_its_task_is_an_error_or_skipped_and_counted(tmp_path, case):
    change, reason = BAD_ROWS[case]
    rows = weather_rows(9)
    rows[4] |= change
    data = weather_data(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        make_pair_source(data, 0)
    assert str(caught.value).startswith(f"{data.files[0]}:5: {reason}")
    source = make_pair_source(dataclasses.replace(data, bad_rows="skip"), 0)
    assert len(source) == 8
    assert source.notes[-1].startswith("1 unreadable rows skipped, the first: ")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tasks": (TaskConfig("wether"),)}, "no row of task 'wether' .* there are 'weather'"),
        ({"tasks": (TaskConfig("weather", "sky"),)}, "no templates named 'sky' .* weather"),
        ({"files": ("nowhere/*.jsonl",)}, r"data\.files: 'nowhere/\*\.jsonl' matches no file"),
        ({"template_files": ()}, r"data\.template_files is empty"),
        ({"held_out_wordings": 3}, "training needs at least 2"),
    ],
)
def test_what_the_config_gets_wrong_about_its_files_is_said(tmp_path, changes, reason):
    with pytest.raises(DataError, match=reason):
        make_pair_source(weather_data(tmp_path, **changes), 0)


def test_a_set_on_disk_is_one_folder():
    data = DataConfig(source="set", files=("one", "two"))
    with pytest.raises(DataError, match=r"data\.files: source 'set' reads one folder.* one, two"):
        make_pair_source(data, 0)


def test_tasks_are_neighbouring_indices_and_have_different_names(tmp_path):
    rows = weather_rows(30)
    rows += [{**row, "task": "sky"} for row in weather_rows(20)]
    tasks = (WEATHER_TASK, dataclasses.replace(WEATHER_TASK, name="sky", templates="weather"))
    source = make_pair_source(weather_data(tmp_path, rows, tasks=tasks), 0)
    sizes = [len(task.training.inputs) for task in source.definitions]
    assert source.tasks == {"weather": range(sizes[0]), "sky": range(sizes[0], sum(sizes))}
    with pytest.raises(DataError, match="two tasks are called 'weather'"):
        make_pair_source(weather_data(tmp_path, rows, tasks=(WEATHER_TASK, WEATHER_TASK)), 0)


def test_files_without_a_usable_row_are_an_error_that_gives_the_first_reason(tmp_path):
    data = weather_data(tmp_path, ["{", "{"], bad_rows="skip")
    with pytest.raises(DataError, match=r"no usable row; 2 unreadable rows .*jsonl:1: not JSON"):
        make_pair_source(data, 0)


def test_rows_per_task_takes_the_first_ones_after_a_shuffle(tmp_path):
    (few,), (more,) = (
        make_pair_source(weather_data(tmp_path, 200, rows_per_task=count), 0).definitions
        for count in (10, 20)
    )
    few, more = ([row["report"] for row in task.training.inputs] for task in (few, more))
    assert (len(few), len(more)) == (10, 20)
    assert few == more[:10]
    numbers = [int(text.split()[-1]) for text in more]
    assert numbers != sorted(numbers)


def test_the_notes_say_what_was_read_and_left_out(tmp_path):
    rows = [*weather_rows(40), {"task": "other", "inputs": {"a": "b"}, "label": "c"}]
    notes = make_pair_source(weather_data(tmp_path, rows), 0).notes
    assert notes[0] == (
        "weather: 38 training and 2 held-out rows; 3 training and 1 held-out wordings, "
        "1 templates left out that do not ask for the answer"
    )
    assert notes[1] == "1 rows of tasks that data.tasks leaves out: other"


# Evaluation


def test_rows_of_the_evaluation_files_are_asked_in_every_wording(tmp_path):
    held_out = write_jsonl(tmp_path / "rows.dev.jsonl", weather_rows(6))
    source = make_pair_source(weather_data(tmp_path, evaluation_files=(str(held_out),)), 0)
    items = source.evaluation_items(4)
    assert len(source) == 40
    assert len(items) == 4 * 4
    for instance, group in itertools.groupby(items, lambda item: item.instance):
        group = list(group)
        assert len({item.wording for item in group}) == 4
        assert sorted(item.seen for item in group) == [False, True, True, True]
        label = ("wet", "dry")[instance % 2]
        for item in group:
            assert f"in town number {instance}" in item.prompt.text
            assert item.task == "weather"
            assert item.answers == ("wet", "dry")
            assert item.prompt.answer == item.answers[item.label_index] == label


def test_unseen_wordings_never_come_in_training_and_seen_ones_do(tmp_path):
    source = make_pair_source(weather_data(tmp_path), 3)
    task = source.definitions[0]
    shown = {
        text.replace(row["report"], "{report}").replace("OPTIONS:\n- wet\n- dry", "{options_}")
        for row in task.training.inputs
        for text in itertools.chain(*(texts(source.get(i, e)) for i in range(6) for e in range(4)))
        if row["report"] + "\n" in text or text.endswith(row["report"])
    }
    assert shown == {wording.source for wording in task.training_wordings}
    seen = {item.wording: item.seen for item in source.evaluation_items(2)}
    assert {name for name, is_seen in seen.items() if is_seen} == {
        wording.name for wording in task.training_wordings
    }


def test_a_task_without_evaluation_rows_keeps_some_training_rows_by_their_inputs(tmp_path):
    rows = [row for row in weather_rows(200) for _ in range(2)]
    tasks = [
        make_pair_source(weather_data(tmp_path, order), seed).definitions[0]
        for order, seed in ((rows, 0), (rows[::-1], 0), (rows, 1))
    ]
    training, kept = (
        {row["report"] for row in part.inputs} for part in (tasks[0].training, tasks[0].evaluation)
    )
    assert not training & kept  # equal rows are not parted
    assert len(training | kept) == 200
    assert len(kept) == 10  # 20 of 400 rows
    again, other = ({row["report"] for row in task.evaluation.inputs} for task in tasks[1:])
    assert again == kept != other


def test_any_number_of_evaluation_instances_has_the_labels_in_their_shares():
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    order = stratified(labels, 0, "task")
    assert sorted(order) == list(range(100))
    for count in (10, 20, 50, 90):
        counts = np.bincount(labels[order[:count]], minlength=3)
        assert np.abs(counts - count * np.array([0.6, 0.3, 0.1])).max() <= 1
    assert order == stratified(labels, 0, "task")
    assert order != stratified(labels, 1, "task")


# Ready pairs


def test_ready_pairs_are_anchor_and_positive_with_a_drawn_negative(tmp_path):
    source = make_pair_source(pairs_data(tmp_path), 0)
    drawn = set()
    for index, epoch in itertools.product(range(len(source)), range(5)):
        anchor, positive, negative, negative_positive = source.get(index, epoch).sequences
        assert anchor.text.startswith("Is town")
        assert positive.text.startswith("Tell me")
        assert anchor.text.split()[3] == positive.text.split()[4]
        assert (
            negative.text.split()[3] == negative_positive.text.split()[4] != anchor.text.split()[3]
        )
        assert anchor.answer == positive.answer != negative.answer == negative_positive.answer
        drawn.add((index, negative.text))
    assert len(drawn) > 2 * len(source)  # another one each epoch


def test_hard_negatives_of_ready_pairs_come_from_their_own_task(tmp_path):
    rows = pair_rows(30) + pair_rows(30, answers=("a", "b", "c"), task="letters")
    source = make_pair_source(pairs_data(tmp_path, rows), 0)
    for index in range(len(source)):
        answers = {prompt.answer for prompt in source.get(index, 0).sequences}
        assert answers <= {"wet", "dry"} or answers <= {"a", "b", "c"}


def test_every_odd_row_is_the_hard_negative_of_the_row_above_it_where_the_config_says_so(tmp_path):
    data = pairs_data(tmp_path, 8, odd_rows_are_hard_negatives=True)
    source = make_pair_source(data, 0)
    assert len(source) == 4
    for index, epoch in itertools.product(range(4), range(2)):
        towns = [text.split("number ")[1].split()[0] for text in texts(source.get(index, epoch))]
        even, odd = str(2 * index), str(2 * index + 1)
        assert towns == [even, even, odd, odd]


@pytest.mark.parametrize(
    ("change", "line", "reason"),
    [
        ({"targets": "wet"}, 5, "cannot be the hard negative of the row above it"),
        ({"task": "other"}, 5, "cannot be the hard negative of the row above it"),
        ({"targets": ""}, 5, "`targets` is empty"),
        (None, 8, "the last row, and its hard negative is missing"),
    ],
)
def test_an_odd_row_that_is_no_hard_negative_is_an_error_or_skipped_with_its_pair(
    tmp_path, change, line, reason
):
    rows = pair_rows(8)
    if change is None:
        rows.pop()
    else:
        rows[3] |= change
    data = pairs_data(tmp_path, rows, odd_rows_are_hard_negatives=True)
    with pytest.raises(DataError) as caught:
        make_pair_source(data, 0)
    assert str(caught.value).startswith(f"{data.files[0]}:{line}: ")
    assert reason in str(caught.value)
    source = make_pair_source(dataclasses.replace(data, bad_rows="skip"), 0)
    assert len(source) == 3
    assert all("unreadable" in note for note in source.notes[1:])


def test_a_task_of_ready_pairs_with_one_answer_only_is_an_error_that_names_it(tmp_path):
    rows = pair_rows(30) + pair_rows(30, answers=("a",), task="letters")
    with pytest.raises(DataError, match="task 'letters'"):
        make_pair_source(pairs_data(tmp_path, rows), 0)


def test_ready_pairs_with_a_closed_set_of_answers_are_evaluated(tmp_path):
    free = [f"free answer {i}" for i in range(60)]
    rows = pair_rows(60) + pair_rows(60, answers=free, task="free")
    source = make_pair_source(pairs_data(tmp_path, rows), 0)
    items = source.evaluation_items(2)
    assert {item.task for item in items} == {"weather"}
    assert len(items) == 2 * 2
    trained = {text for i in range(len(source)) for text in texts(source.get(i, 0))}
    for item in items:
        assert item.answers == ("dry", "wet")
        assert item.answers[item.label_index] == item.prompt.answer
        assert item.prompt.text not in trained


def fields_of(text: str, other: str) -> list[str]:
    prompt = PairPrompt(text, other, "yes")
    assert isinstance(prompt, Prompt)
    assert "".join(piece.text for piece in prompt.pieces) == prompt.text == text
    return [piece.text for piece in prompt.pieces if piece.is_field]


def test_the_fields_of_a_ready_pair_are_what_both_wordings_share_but_for_the_options():
    story = "the river rose all night and took the bridge with it"
    options = "OPTIONS:\n- yes\n- no"
    plain = f"{story}.\nTell me whether it is about water at all.\n{options}"
    assert fields_of(f'Read "{story}" now. Is it about rain?\n{options}', plain) == [story]
    assert fields_of(plain, f'Read "{story}" now. Is it about rain?\n{options}') == [story]
    guess = "a new bridge will have to be built before the autumn comes"
    assert fields_of(
        f"If {story}, then {guess}?\n{options}", f"{story}. {options}\nDoes it follow that {guess}?"
    ) == [story, guess]
    # One run goes on behind the options, which are cut out of it.
    both = f"{story}\n{options}\n{guess}"
    assert fields_of(f"Well: {both}", f"{both}. So what?") == [story, guess]
    assert fields_of("Is the sky blue?", "Tell me: is the sky green?") == ["Is the sky"]
    assert fields_of("a b", "c d") == []


# Tokens


def test_tokenized_sets_are_the_ids_of_prompts_and_answers(tmp_path):
    source = make_pair_source(weather_data(tmp_path), 0)
    pairs = TokenizedPairs(source, ByteTokenizer(), BATCH)
    assert len(pairs) == len(source)
    content, tokens = source.get(7, 2), pairs.tokenized(7, 2)
    for prompt, encoder, decoder in zip(
        content.sequences, tokens.encoder, tokens.decoder, strict=True
    ):
        assert encoder.dtype == decoder.dtype == np.int32
        assert encoder.tolist() == [byte + 3 for byte in prompt.text.encode()] + [1]
        assert decoder.tolist() == [byte + 3 for byte in prompt.answer.encode()] + [1]
    assert tokens.contents == content.contents
    assert tokens.cut == 0


def test_sequences_that_are_cut_fit_the_batch_and_are_counted(tmp_path):
    rows = weather_rows(10)
    for row in rows[:5]:
        row["inputs"]["text"] += " and so on" * 50
    source = make_pair_source(weather_data(tmp_path, rows), 0)
    pairs = TokenizedPairs(source, ByteTokenizer(), BATCH)
    cut = 0
    for index in range(len(pairs)):
        tokens = pairs.tokenized(index, 0)
        long = sum("and so on" in text for text in texts(source.get(index, 0)))
        assert tokens.cut == long
        assert sum(len(ids) == BATCH.encoder_length for ids in tokens.encoder) >= long
        assert all(len(ids) <= BATCH.encoder_length for ids in tokens.encoder)
        cut += long
    assert cut


def test_a_wording_too_long_for_the_batch_is_an_error_that_names_it(tmp_path):
    source = make_pair_source(weather_data(tmp_path), 0)
    for bad_rows in ("error", "skip"):
        with pytest.raises(DataError, match=r"task 'weather', wording weather/[1-4]"):
            TokenizedPairs(source, ByteTokenizer(), BatchConfig(encoder_length=40), bad_rows)
    with pytest.raises(DataError, match=r"task 'weather', .* the answer '(wet|dry)' has 3 tokens"):
        TokenizedPairs(source, ByteTokenizer(), BatchConfig(decoder_length=3))


@pytest.mark.parametrize("negatives_below", [True, False])
def test_a_ready_pair_that_cannot_fit_is_an_error_or_skipped_and_counted(tmp_path, negatives_below):
    rows = pair_rows(30)
    rows[5]["targets"] = "dry as a bone"
    rows[8]["original_instruction"] = "word " * 60  # shares nothing with the other wording
    rows[11]["original_instruction"] += " on" * 70  # shares enough, but what is left is too long
    data = pairs_data(tmp_path, rows, odd_rows_are_hard_negatives=negatives_below)
    held_out = pairs_data(tmp_path, rows).files
    source = make_pair_source(dataclasses.replace(data, evaluation_files=held_out), 0)
    with pytest.raises(DataError, match=r"pairs\.csv:7: the answer 'dry as a bone' has 13 tokens"):
        TokenizedPairs(source, ByteTokenizer(), BATCH)
    pairs = TokenizedPairs(source, ByteTokenizer(), BATCH, "skip")
    assert len(pairs) == (12 if negatives_below else 27)
    assert "3 rows skipped that are too long" in pairs.source.notes[-1]
    for index in range(len(pairs)):
        pairs.tokenized(index, 0)


def test_in_a_source_too_large_to_look_through_the_next_row_of_the_task_stands_for_a_long_one(
    tmp_path, monkeypatch
):
    rows = pair_rows(20) + pair_rows(20, task="rivers")
    rows[19]["targets"] = "dry as a bone"
    data = pairs_data(tmp_path, rows)
    data = dataclasses.replace(data, evaluation_files=data.files)
    source = make_pair_source(data, 0)
    long = next(
        index for index in range(len(source)) if "bone" in source.get(index, 0).sequences[0].answer
    )
    first = source.tasks["weather"].start
    assert long == first + 19, "the last row of its task, so that the first one comes next"
    monkeypatch.setattr(source, "tightest", lambda: iter(()))
    pairs = TokenizedPairs(source, ByteTokenizer(), BATCH, "skip")
    instances = TokenizedInstances(source, ByteTokenizer(), BATCH, "skip")
    for epoch in range(20):
        for index in range(len(source)):
            found = pairs.tokenized(index, epoch)
            assert all(len(ids) <= BATCH.decoder_length for ids in found.decoder)
        assert str(instances.tokenized(long, epoch)) == str(instances.tokenized(first, epoch))
    strict = TokenizedPairs(source, ByteTokenizer(), BATCH, "error")
    with pytest.raises(DataError, match="'dry as a bone' has 13 tokens"):
        strict.tokenized(long, 0)
