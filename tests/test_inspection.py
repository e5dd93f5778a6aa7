"""What `inspect` prints of a set: readable at any width, with and without colours."""

import io
import re

import pytest
from rich.console import Console

from coin_jax.curation.inspection import inspect
from coin_jax.curation.writer import Row, SetWriter
from coin_jax.data.set_format import InstructionTask, Wording
from coin_jax.data.sources import DataError

FILMS = InstructionTask(
    "films",
    ("review",),
    (
        Wording("f/1", "{review}\nGood or bad?"),
        Wording("f/2", "Is this praise? {review}"),
    ),
    ("good", "bad"),
)
SUMS = InstructionTask(
    "sums", ("sum",), (Wording("s/1", "Add up {sum} now"), Wording("s/2", "{sum} makes"))
)
RECORD = {
    "tasks": {
        "films": {"left_out": {"near-duplicate": 12, "unreadable": 0}},
        "sums": {
            "left_out": {"near-duplicate": 1200, "unreadable": 3},
            "wordings_left_out": {"language": 7},
        },
    }
}
LONG = " ".join(f"part{number}" for number in range(900))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspection") / "set"
    unused = InstructionTask("unused", ("a",), (Wording("u/1", "{a}?"), Wording("u/2", "{a}!")))
    with SetWriter(path, (FILMS, SUMS, unused), 100) as writer:
        for number in range(20):
            word = ("superb", "dreadful")[number % 2]
            row = Row({"review": f"Film {number} is {word}."}, ("good", "bad")[number % 2])
            writer.write("train", 0, row)
        for number in range(2):
            text = f"{LONG} + {number} \x1b[31m\x07[bold]"
            writer.write("train", 1, Row({"sum": text}, f"sum{number}"))
        writer.finish(RECORD)
    return path


def shown(folder, count=1, task=None, seed=0, width=80, **console):
    file = io.StringIO()
    inspect(folder, count, Console(file=file, width=width, **console), task, seed)
    return file.getvalue()


def cells(text):
    """The words of the left and of the right column, of anchor and positive and below them."""
    halves = [line.split("│")[1:3] for line in text.splitlines() if line.startswith("│")]
    return [" ".join(" ".join(half[side] for half in halves).split()) for side in (0, 1)]


@pytest.mark.parametrize("width", [80, 160])
def test_pairs_stand_side_by_side_with_their_differences_marked(folder, width):
    text = shown(folder, task="films", width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    number = int(re.search(r"1\. films, set (\d+)", text)[1])
    left, right = cells(text)
    answer = number % 2
    film = f"Film {number} is {('superb', 'dreadful')[answer]}."
    prompts = (f"{film} «Good or bad?»", f"«Is this praise?» {film}")
    for column, role in ((left, "anchor"), (right, "positive")):
        (prompt,) = (prompt for prompt in prompts if prompt in column)
        assert column.startswith(f"{role} {prompt} → {('good', 'bad')[answer]} ")
        assert column.endswith(f"→ {('bad', 'good')[answer]}")
        other = rf"Film «\d+» is «{('dreadful', 'superb')[answer]}»\."
        assert re.search(other, column)  # the hard negative, against the prompt above it
    assert " hard negative " in left
    assert "hard negative, reworded" in right


def test_colours_mark_instead_of_signs(folder):
    text = shown(folder, task="films", force_terminal=True, color_system="standard")
    assert "«" not in text
    assert "\x1b[1;32m" in text  # bold green: where anchor and positive differ
    assert "\x1b[1;31m" in text  # bold red: where the hard negative does
    without = shown(folder, task="films", force_terminal=True, no_color=True)
    assert "«" in without
    assert "[1;32m" not in without


def test_the_choice_is_the_seeds_and_takes_all_tasks_in_turn(folder):
    text = shown(folder, 6)
    assert text == shown(folder, 6)
    titles = re.findall(r"^\d+\. (\w+), set (\d+)$", text, re.MULTILINE)
    assert len(set(titles)) == 6
    assert sorted(name for name, _ in titles[:4]) == ["films", "films", "sums", "sums"]
    assert [name for name, _ in titles[4:]] == ["films", "films"]
    first, second = (
        re.findall(r"films, set (\d+)", shown(folder, 9, "films", seed)) for seed in (0, 1)
    )
    assert sorted(first) != sorted(second)
    everything = re.findall(r"films, set (\d+)", shown(folder, 99, "films"))
    assert sorted(map(int, everything)) == list(range(20))


def test_of_long_prompts_the_middle_is_left_out_and_nothing_commands_the_terminal(folder):
    text = shown(folder, task="sums")
    assert "\x1b" not in text
    assert "\x07" not in text
    for column in cells(text):
        assert "part0 part1" in column
        assert "part899 +" in column
        assert "part450" not in column
        assert re.search(r"\[\d+ words\]", column)
        assert "[31m" in column  # what is left of the control sequence is text
        assert "[bold]" in column  # and markup is text as well


def test_what_the_filters_left_out_is_told_by_the_manifest(folder):
    lines = [" ".join(line.split()) for line in shown(folder, 0).splitlines()]
    assert lines.index("instances near-duplicate 1,212 sums 1,200, films 12") < lines.index(
        "wordings language 7 sums 7"
    )
    assert "instances unreadable 3 sums 3" in lines
    assert "rows: 22 train, 0 evaluation; tasks: 3; wordings: 6" in lines
    of_films = shown(folder, 0, "films")
    assert "near-duplicate" in of_films
    assert "12" in of_films
    assert "language" not in of_films
    assert "unreadable" not in of_films


def test_a_task_that_cannot_be_shown_is_named(folder):
    with pytest.raises(DataError, match="no task 'film'; it has 3, among them films"):
        shown(folder, task="film")
    with pytest.raises(DataError, match="task 'unused' has no training pair"):
        shown(folder, task="unused")
