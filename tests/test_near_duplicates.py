"""Near-duplicate instances: what counts as one, that candidates are found, and what it takes."""

import itertools
import json
import pathlib
import string
import tracemalloc

import numpy as np
import pytest

from coin_jax.curation.config import FilterConfig
from coin_jax.curation.filters import DuplicateFinder
from coin_jax.curation.filters.near_duplicates import CANDIDATES

TASKS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "tasks"


def finder(threshold: float = 0.9) -> DuplicateFinder:
    return DuplicateFinder(FilterConfig(near_duplicate=threshold))


def sentence(count: int, start: int = 0) -> str:
    """`count` different words."""
    return " ".join(f"w{number}" for number in range(start, start + count))


def verdicts(*rows, threshold: float = 0.9) -> list[bool]:
    """Whether each is new; rows are texts with the same answer, or (answer, inputs)."""
    rows = [("a", {"text": row}) if isinstance(row, str) else row for row in rows]
    return finder(threshold).are_new(rows)


def test_the_share_of_five_word_runs_decides():
    # 25 words have 21 runs. Another last word leaves 20 of 22: 0.909. Of 20 words, 15 of 17: 0.882.
    long, short = sentence(25), sentence(20)
    assert verdicts(long, long.replace("w24", "other")) == [True, False]
    assert verdicts(short, short.replace("w19", "other")) == [True, True]
    # A word in the middle stands in five runs: 16 of 26.
    assert verdicts(long, long.replace("w12", "other")) == [True, True]
    assert verdicts(long, long.replace("w12", "other"), threshold=0.6) == [True, False]


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ("Fine film", "fine FILM", True),
        ("Fine  film\n", "Fine film", True),
        ("ﬁne ｆｉｌｍ", "fine film", True),  # the same letters in other code points
        ("cafe\u0301 noir", "café noir", True),
        ("What is 3 - 5 ?", "What is 3 + 5 ?", False),
        ("Fine film", "Film fine", False),
        ("Fine film", "Fine film, really", False),
        ("电影很好看", "电影很难看", False),
        ("?", "!", False),
        ("", "", True),
        ("", "?", False),
    ],
)
def test_of_short_texts_only_equal_ones_are_one(first, second, is_one):
    assert verdicts(first, second) == [True, not is_one]


def test_a_small_difference_that_changes_the_answer_is_kept():
    text = sentence(40)
    changed = text.replace("w39", "not")
    assert verdicts(("yes", {"text": text}), ("no", {"text": changed})) == [True, True]
    assert verdicts(("yes", {"text": text}), ("yes", {"text": changed})) == [True, False]
    # The same question with two answers would be its own hard negative.
    assert verdicts(("yes", {"text": text}), ("no", {"text": text})) == [True, False]


def test_every_field_must_be_alike():
    passage = sentence(200)
    rows = [("yes", {"passage": passage, "question": f"is {name} named"}) for name in ("A", "B")]
    assert verdicts(*rows) == [True, True]
    swapped = {"question": "is A named", "passage": passage}  # the order of fields does not matter
    assert verdicts(rows[0], ("yes", swapped)) == [True, False]
    assert verdicts(rows[0], ("yes", {"passage": passage})) == [True, True]


def test_the_frame_of_finished_prompts_does_not_make_them_one():
    frame = sentence(200)
    texts = [
        f"{frame} The title is {a}{b}"
        for a, b in itertools.product(string.ascii_letters[:9], repeat=2)
    ]
    new = verdicts(*texts, *texts)
    first, second = new[: len(texts)], new[len(texts) :]
    # Until it shows that the frame is common, short titles in it cannot be told apart.
    assert all(first[16:])
    assert second == [not seen for seen in first]


def test_a_row_that_comes_often_does_not_pass_for_a_frame():
    text = sentence(40)
    new = verdicts(*[text] * 64, text.replace("w39", "other"))
    assert new == [True] + 64 * [False]


def test_a_field_of_few_values_still_counts():
    rows = [
        ("yes", {"language": language, "text": f"{sentence(30, 100 * number)}"})
        for number in range(32)
        for language in ("from French into English", "from German into English")
    ]
    assert all(verdicts(*rows))
    near = {**rows[-1][1], "text": rows[-1][1]["text"] + " more"}
    assert not verdicts(*rows, ("yes", near))[-1]


def test_at_one_only_the_same_inputs_are_one_and_at_zero_none():
    texts = ["Fine film", "fine film", "Fine film", sentence(99), sentence(99) + " more"]
    assert verdicts(*texts, threshold=1) == [True, True, False, True, True]
    assert all(verdicts(*texts, threshold=0))


def test_a_copy_of_a_copy_that_is_far_from_the_first_is_new():
    first, second, third = (
        " ".join([sentence(30 - far), *["x", "y", "z"][:far]]) for far in range(3)
    )
    # 26 runs each, of which 25 of 27 are shared with the next, and 24 of 28 (0.857) with the third.
    assert verdicts(first, second, third) == [True, False, True]


def test_thresholds_without_sense_are_refused():
    for threshold in (0.1, 1.5, -1):
        with pytest.raises(ValueError, match=r"near_duplicate.*0\.5 to 1, or 0"):
            finder(threshold)


def random_rows(count: int, alike: float, seed: int = 0) -> list[tuple[str, dict[str, str]]]:
    """Texts of Zipf-distributed words; a share of them changes the end of the one before."""
    random = np.random.default_rng(seed)
    rows, words = [], ["start"]
    for _ in range(count):
        if random.random() < alike:
            end = random.integers(1, 5)
            words = [*words[:-end], *(f"new{number}" for number in random.integers(9, size=end))]
        else:
            words = [f"w{number % 5000}" for number in random.zipf(1.2, random.integers(4, 90))]
        rows.append(("a", {"text": " ".join(words)}))
    return rows


def test_nothing_else_is_found_than_what_comparing_all_with_all_finds():
    rows = random_rows(500, 0.5)
    grams = []
    for _, inputs in rows:
        words = inputs["text"].split()
        grams.append({tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))})
    expected: list[bool] = []
    for row, mine in enumerate(grams):
        expected.append(
            not any(
                expected[other] and len(mine & grams[other]) / len(mine | grams[other]) >= 0.9
                for other in range(row)
            )
        )
    found = finder().are_new(rows)
    copies = expected.count(False)
    assert 60 < copies < 300
    missed = [row for row in range(len(rows)) if found[row] and not expected[row]]
    wrong = [row for row in range(len(rows)) if not found[row] and expected[row]]
    assert len(missed) <= 0.01 * copies
    assert len(wrong) <= len(missed)  # what repeats a missed copy only


@pytest.mark.parametrize("threshold", [0.7, 0.9, 1])
def test_batches_do_not_matter(threshold):
    rows = random_rows(300, 0.4, seed=1)
    rows += rows[:150]
    whole = finder(threshold).are_new(rows)
    single, pieces = finder(threshold), finder(threshold)
    assert [single.is_new(*row) for row in rows] == whole
    assert pieces.are_new(rows[:7]) + pieces.are_new([]) + pieces.are_new(rows[7:]) == whole
    assert whole.count(False) >= 150


def test_an_equal_row_is_found_among_any_number_of_alike_ones():
    # All share most of their grams, so their bands are full of one another.
    rows = [("a", {"text": f"{sentence(60)} {number}"}) for number in range(20 * CANDIDATES)]
    found = finder(0.99).are_new([*rows, *rows])
    first, second = found[: len(rows)], found[len(rows) :]
    assert sum(first) > len(rows) - 16  # while the frame is not known they are taken for one
    assert not any(one and other for one, other in zip(first, second, strict=True))


def test_memory_stays_flat():
    def rows(part):
        return [("a", {"text": f"row {n} of {part}"}) for n in range(500)]

    duplicates = finder()
    held = []
    tracemalloc.start()
    try:
        for part in range(12):
            duplicates.are_new(rows(part))
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # 8 bytes for each of 9 keys, 8 for the place of the text and 1 for the verdict. Growing arrays
    # keep some space in reserve.
    assert (held[-1] - held[3]) / 4000 < 1.3 * 81


@pytest.mark.skipif(not TASKS.is_dir(), reason="needs the task files of ../shared/data")
def test_published_tasks_have_few_copies():
    for task, most in (("rte", 0.01), ("cola", 0.01)):
        with open(TASKS / f"{task}.train.jsonl", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in itertools.islice(lines, 2000)]
        new = finder().are_new([(row["label"], row["inputs"]) for row in rows])
        assert new.count(False) <= most * len(rows)
