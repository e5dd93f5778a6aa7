"""Paraphrasers by rules and by a model: what is reworded, and what stays as it is."""

import io

import pytest
from rich.console import Console

from coin_jax.curation.config import ParaphraseConfig
from coin_jax.curation.paraphrasers import Request, Usage, make_paraphrasers
from coin_jax.curation.paraphrasers.model import Model
from coin_jax.curation.paraphrasers.paraphraser import keep_sound
from coin_jax.progress import progress_bar
from coin_jax.robustness.perturb import PerturbationError

TEXT = 'Decide whether the review below sounds good or bad.\n\n"{text}"\n{options_}\nAnswer:'
FINISHED = Request("finished", "finished/1", "{prompt_1}")
REVIEW = Request("review", "review/1", TEXT, ("good", "bad"))
OTHER = Request("topic", "topic/1", "Name the subject of this question: {question}", ())


def quiet(done, total, note):
    """Shows no progress."""


def by_rules(*rules, **settings):
    config = ParaphraseConfig(methods=("rules",), rules=rules, **settings)
    (made,) = make_paraphrasers(config)
    return made


def test_rules_give_enough_distinct_copies_with_every_place_and_answer():
    paraphraser = by_rules("deepwordbug", "textbugger", "checklist", wordings=5)
    (found,) = paraphraser.reword([REVIEW], quiet)
    assert len(found) == len(set(found)) >= 5
    for copy in found:
        assert copy != TEXT
        assert [copy.count(kept) for kept in ("{text}", "{options_}", "good", "bad")] == [1] * 4


def test_rules_take_turns():
    (found,) = by_rules("checklist", "deepwordbug", wordings=2).reword([REVIEW], quiet)
    # A handle or an address is appended; words get a letter more or less.
    assert [len(copy) - len(TEXT) > 9 for copy in found] == [True, False, True, False]


def test_what_a_rule_makes_of_a_text_depends_on_the_text_and_the_seed_alone():
    paraphraser = by_rules("deepwordbug", wordings=3)
    alone = paraphraser.reword([REVIEW], quiet)[0]
    assert by_rules("deepwordbug", wordings=3).reword([OTHER, REVIEW, REVIEW], quiet)[1:] == [
        alone,
        alone,
    ]
    config = ParaphraseConfig(methods=("rules",), rules=("deepwordbug",), wordings=3)
    (other_seed,) = make_paraphrasers(config, seed=1)
    assert other_seed.reword([REVIEW], quiet)[0] != alone


def test_a_rule_that_has_few_copies_gives_those_and_one_that_has_none_gives_none():
    paraphraser = by_rules("stresstest", wordings=10)
    found = paraphraser.reword([REVIEW, FINISHED], quiet)
    assert [len(copies) for copies in found] == [3, 0]  # its two tautologies, and one repeated
    assert (paraphraser.usage.asked, paraphraser.usage.failed) == (2, 1)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"rules": ("unheard",)}, "unheard"),
        ({"rules": ("textfooler",)}, "textfooler needs a lexicon"),
        ({"rules": ("semantic",)}, "semantic needs a paraphraser"),
        ({"rules": ()}, "empty"),
        ({"rules": ("checklist",), "share": 0.0}, "share"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused_when_they_are_made(settings, fault):
    with pytest.raises(PerturbationError, match=fault):
        make_paraphrasers(ParaphraseConfig(methods=("rules",), **settings))


def test_word_level_rules_take_their_words_from_the_lexicon_of_their_name():
    class Synonyms:
        def synonyms(self, word, text, start, end):
            return {"review": ["critique"], "sounds": ["good"]}.get(word, [])

    config = ParaphraseConfig(methods=("rules",), rules=("textfooler",), share=1.0)
    (made,) = make_paraphrasers(config, lexicon={"textfooler": Synonyms()}.get)
    assert made.reword([REVIEW], quiet) == [[TEXT.replace("review", "critique")]]


class Rewords:
    """A model with fixed rewordings, which remembers what it was asked."""

    def __init__(self, rewordings):
        self.rewordings, self.calls = rewordings, []

    def __call__(self, texts):
        self.calls.append(texts)
        return [self.rewordings.get(text, []) for text in texts]


def test_the_model_sees_sentences_with_letters_for_places_and_gives_them_back():
    generate = Rewords({"Does X imply Y, yes or no?": ["If X, is Y true, yes or no?", "Does X?"]})
    text = "Think of this.\nDoes {premise} imply {claim}, yes or no?\n{options_}\nAnswer: "
    paraphraser = Model(generate)
    (found,) = paraphraser.reword([Request("nli", "nli/1", text, ("yes", "no"))], quiet)
    assert found == [
        "Think of this.\nIf {premise}, is {claim} true, yes or no?\n{options_}\nAnswer:"
    ]
    assert generate.calls == [["Think of this.", "Does X imply Y, yes or no?"]]
    assert paraphraser.usage.dropped == 1


def test_the_nth_candidates_of_all_lines_make_the_nth_wording():
    generate = Rewords(
        {"Read the review first.": ["First read it.", "Have a look."], "Is it any good?": ["Fine?"]}
    )
    text = "Read the review first.\n{text}\nIs it any good?"
    assert Model(generate).reword([Request("r", "r/1", text)], quiet) == [
        ["First read it.\n{text}\nFine?", "Have a look.\n{text}\nIs it any good?"]
    ]


def test_a_letter_that_the_sentence_uses_stands_for_nothing_else():
    generate = Rewords({"Is vitamin X in Y or {{Z}}?": []})
    Model(generate).reword([Request("v", "v/1", "Is vitamin X found in {food}?")], quiet)
    assert generate.calls == [["Is vitamin X found in Y?"]]


def test_lines_that_say_nothing_but_what_must_stay_are_not_reworded():
    generate = Rewords({})
    lines = (
        "A film of great beauty.",
        "Good or bad?",
        "Answer: {text}",
        "{options_}",
        "",
        "1 2 3 4",
    )
    frozen = ("a film of great beauty", "good", "bad")
    found = Model(generate).reword([Request("r", "r/1", "\n".join(lines), frozen)], quiet)
    assert (found, generate.calls) == ([[]], [])


def test_equal_lines_are_given_to_the_model_once_and_in_batches():
    generate = Rewords({})
    asked = [
        Request("t", f"t/{number}", f"Name the number {number} please.\nNow answer the question.")
        for number in range(100)
    ]
    told = []
    Model(generate).reword(asked, lambda *progress: told.append(progress))
    assert [len(call) for call in generate.calls] == [64, 37]
    assert told == [(64, 101, ""), (101, 101, "")]


def test_a_model_that_names_other_answers_gives_nothing():
    generate = Rewords({"Decide whether the review below sounds good or bad.": ["Is it good?"]})
    paraphraser = Model(generate)
    assert paraphraser.reword([REVIEW], quiet) == [[]]
    assert paraphraser.usage == Usage(asked=1, failed=1, dropped=1)


@pytest.mark.parametrize(
    "candidate",
    [
        "Good or bad: {text} {options_}",  # {options_} twice
        "Good or bad? {options_}",
        "Good or bad: {Text}? {options_}",
        "Good or bad: {text}? {options_",
        "Good or bad: {text!r}? {options_}",
        "Good, bad or not bad: {text}? {options_}",
        "Good or bad: {text} {options_} {{}}",
        " Good  or bad?\n{text} {options_}",  # no change but blanks
        "",
    ],
)
def test_what_cannot_stand_for_a_text_is_left_out(candidate):
    text = "Good or bad? {text} {options_}"
    if candidate.startswith("Good or bad: {text} "):
        candidate += "{options_}"
    assert keep_sound(text, [candidate], ("good", "bad")) == []


def test_what_can_stand_for_a_text_is_kept_once_in_order():
    text = "Good or bad? {text} {{x}}"
    candidates = ["{text} {{x}}: bad or good?", "Bad or GOOD: {text} {{x}} ", "{text}  {{x}}: bad "
                  "or good?"]  # fmt: skip
    assert keep_sound(text, candidates, ("good", "bad")) == [
        "{text} {{x}}: bad or good?",
        "Bad or GOOD: {text} {{x}}",
    ]


def test_methods_are_made_in_their_order_and_a_model_only_where_one_is_needed(tmp_path):
    loaded = []

    def load():
        loaded.append(True)
        return Rewords({})

    made = make_paraphrasers(ParaphraseConfig(methods=("chat", "rules")), load)
    assert [each.name for each in made] == ["chat", "rules"]
    assert not loaded
    made = make_paraphrasers(ParaphraseConfig(methods=("model", "rules", "model")), load)
    assert [(each.name, each.origin) for each in made] == [("model", "model"), ("rules", "rule")]
    with pytest.raises(ValueError, match="checkpoint"):
        make_paraphrasers(ParaphraseConfig(methods=("model",)))


def test_a_log_file_gets_a_line_now_and_then_with_the_time_left(monkeypatch):
    seconds = iter([0, 1, 11, 21, 31, 41])
    monkeypatch.setattr("coin_jax.progress.time.monotonic", lambda: next(seconds))
    output = io.StringIO()
    with progress_bar(Console(file=output, width=40), "rewording [chat]") as progress:
        progress(10, 50, "10 cached")  # after a second
        for done in (20, 30, 40, 50):  # ten seconds each
            progress(done, 50, "10 cached")
    assert output.getvalue().splitlines() == [
        "rewording [chat] 30/50, 10 cached, 21 s left",  # twenty more in 21 s
        "rewording [chat] 50/50, 10 cached",
    ]


def test_a_terminal_gets_a_bar_with_the_note_as_it_is():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    with progress_bar(console, "rewording") as progress:
        progress(3, 4, "trying again: [Errno 111]")
    assert "3/4" in output.getvalue()
    assert "trying again: [Errno 111]" in output.getvalue()
