"""Filters of wordings: what each one leaves out, and what it must let pass."""

import numpy as np
import pytest

from coin_jax.curation.config import FilterConfig
from coin_jax.curation.filters import (
    WORDING_FILTERS,
    Candidate,
    wording_fault,
    wording_faults,
)
from coin_jax.data.sources import DataError

SETTINGS = FilterConfig()
ORIGINAL = "Read the review and say whether it is positive or negative: {text}"
GOOD = "Is the following review negative or positive in tone? {text}"
LABELS = ("positive", "negative")


def fault(original, candidate, settings=SETTINGS, **more) -> str | None:
    """The name of the filter."""
    found = wording_fault(original, candidate, settings=settings, **more)
    assert found is None or (found.filter in WORDING_FILTERS and found.detail)
    return found and found.filter


def test_a_good_rewording_passes_all_filters():
    assert fault(ORIGINAL, GOOD, answers=LABELS, target="positive") is None


@pytest.mark.parametrize(
    "candidate",
    [
        "Is the following review negative or positive in tone?",
        "Is the following review negative or positive in tone? {texts}",
        "Is the following review negative or positive in tone? {Text}",
        "Is the following review {text} negative or positive in tone? {text}",
        "Is the following review negative or positive in tone? {{text}}",
        "Is the following review negative or positive in tone? {text} {label}",
        "Is the following review negative or positive in tone? {text",
        "Is the following review negative or positive in tone? {text} {}",
        "Is the following review negative or positive in tone? {text} {0}",
        "Is the following review negative or positive in tone? {text!r}",
        "Is the following review negative or positive in tone? text",
        "",
        " \n",
    ],
)
def test_placeholders_are_kept(candidate):
    assert fault(ORIGINAL, candidate) == "placeholders"


def test_placeholders_may_change_places():
    original = "Does {premise} entail that {hypothesis}, as far as you can tell from it?"
    swapped = "Judging from the first alone: is {hypothesis} entailed by {premise} here?"
    assert fault(original, swapped) is None
    assert fault(original, swapped.replace("{premise}", "{hypothesis}")) == "placeholders"


def test_the_place_of_the_options_is_kept():
    original = ORIGINAL + "\n{options_}"
    assert fault(original, GOOD + "\n{options_}") is None
    assert fault(original, GOOD) == "options"
    assert fault(ORIGINAL, GOOD + "\n{options_}") == "options"
    assert fault(original, "How is it?\n{options_}") == "placeholders"


@pytest.mark.parametrize(
    ("candidate", "found"),
    [
        ("Is this review good, or is it bad? {text}\nOPTIONS:\n- it is good\n- it is bad", None),
        ("Is this review good, or is it bad? {text}\nOPTIONS:\n-  it is good \n- it is bad", None),
        (
            "Is this review good, or is it bad? {text}\nOPTIONS:\n- it is bad\n- it is good",
            "options",
        ),
        ("Is this review good, or is it bad? {text}\nOPTIONS:\n- it is good", "options"),
        ("Is this review good, or is it bad? {text}\n- it is good\n- it is bad", "options"),
        (
            "Is this review good, or is it bad? {text}\nChoices:\n- it is good\n- it is bad",
            "options",
        ),
        (
            "Is this review good, or bad? Options: {text}\nOPTIONS:\n- it is good\n- it is bad",
            "options",
        ),
    ],
)
def test_a_list_of_options_inside_the_text_is_kept(candidate, found):
    original = "Read this and say how it is. {text}\nOPTIONS:\n- it is good\n- it is bad"
    assert fault(original, candidate) == found


@pytest.mark.parametrize(
    ("candidate", "found"),
    [
        (GOOD, None),
        (GOOD.replace("negative", "NEGATIVE"), None),
        (GOOD.replace("negative or positive", '"Positive"/"negative"'), None),
        (GOOD.replace("negative", "bad"), "label words"),
        (GOOD.replace("in tone", "or positive"), "label words"),
        (GOOD.replace("positive", "positively"), "label words"),
        (GOOD.replace("negative", "non-negative"), None),  # a whole word all the same
        (GOOD.replace("negative", "ｎｅｇａｔｉｖｅ"), None),  # the same letters
        (GOOD.replace("in tone", "or ｐositive"), "label words"),
        (GOOD.replace("{text}", "(NEGATIVE!) {text}"), "label words"),
    ],
)
def test_the_same_label_words_stand_in_both(candidate, found):
    assert fault(ORIGINAL, candidate, answers=LABELS) == found


def test_label_words_of_several_words_and_frozen_words_are_kept():
    original = "Does it follow, not follow, or is it not possible to tell? Don't guess. {text}"
    rewording = "Tell which it is: it is not possible to tell, not follow, or does follow? {text}"
    answers = ("follow", "not follow", "it is not possible to tell")
    assert fault(original, rewording, answers=answers) == "label words"  # lost: is it not possible
    assert fault(original, rewording, answers=answers[:2]) is None
    assert fault(original, rewording, frozen=("don't",)) == "label words"
    guess = rewording.replace("Tell", "Don’t guess but tell")  # another apostrophe
    assert fault(original, guess, frozen=("don't",)) is None


@pytest.mark.parametrize(
    ("target", "candidate", "leaks"),
    [
        ("Paris", "Which city is the capital of France, Paris or another?", True),
        ("Paris", "Which city is the capital of France? PARIS!", True),
        ("Paris", "Which city is the capital of France, seat of its parishes?", False),
        ("Paris.", "Which city (paris) is the capital of France?", True),
        ("capital", "Which city is the capital of the country France?", False),  # in both
        ("in the year 1789 on a Tuesday in July", "In the year 1789 on which day was it?", True),
        (
            "in the year 1789 on a Tuesday in July",
            "In the year when the capital of France was",
            False,
        ),
        ("", "Which city is the capital of the country France?", False),
        ("?!", "Which city is the capital of the country France?!", False),
        (None, "Which city is the capital of France, Paris or another?", False),
    ],
)
def test_an_answer_that_leaks_into_the_instruction_is_found(target, candidate, leaks):
    found = fault("Name the capital city of France for me", candidate, target=target)
    assert found == ("answer leak" if leaks else None)


@pytest.mark.parametrize(
    ("candidate", "found"),
    [
        ("Ist die folgende Besprechung positiv oder negativ gemeint? {text}", "language"),
        ("La critique suivante est-elle plutôt bonne ou plutôt mauvaise ? {text}", "language"),
        ("以下评论是正面的还是负面的？请仔细阅读并回答问题。{text}", "language"),
        ("Является ли следующий отзыв положительным? {text}", "language"),
        ("Positive, negative: sentiment? {text}", None),  # too little to be sure
        ("Is teh folowing reveiw negatvie or posiitve in toen? {text}", None),
        ("(a) positive (b) negative -- 1? 2? 3? {text}", None),
    ],
)
def test_another_language_is_found_and_doubt_passes(candidate, found):
    settings = FilterConfig(length_ratio=9)
    assert fault(ORIGINAL, candidate, settings) == found
    assert fault(ORIGINAL, candidate, FilterConfig(length_ratio=9, language="")) is None


def test_where_the_original_is_in_another_language_it_is_left_open():
    original = "Übersetze den folgenden Satz aus dem Deutschen ins Englische: {text}"
    assert fault(original, "Gib diesen deutschen Satz auf Englisch wieder: {text}") is None


def test_what_stands_in_for_text_is_no_language():
    settings = FilterConfig(length_ratio=9)
    names = "Is this good? {welche_besprechung_ist_hier_gemeint} {die_andere_meinung_dazu}"
    assert fault(names.replace("good", "any good at all"), names, settings) is None


def test_an_unknown_language_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"filters\.language is 'english'.* en, "):
        fault(ORIGINAL, GOOD, FilterConfig(language="english"))


def test_length_is_bounded_on_both_sides_placeholders_aside():
    original = "one two three four {a_very_long_placeholder_that_does_not_count}"  # 18 letters
    field = "{a_very_long_placeholder_that_does_not_count}"
    settings = FilterConfig(length_ratio=2, language="")
    assert fault(original, f"other words that are 36 letters lon {field}", settings) is None
    assert fault(original, f"other words that are 37 letters long {field}", settings) is None
    assert fault(original, f"some other words that are many more {field}", settings) is None
    assert (
        fault(original, f"other words that are far more letters long {field}", settings) == "length"
    )
    assert fault(original, f"nine letter {field}", settings) is None
    assert fault(original, f"eight le {field}", settings) == "length"
    assert fault(original, f"???!!!... {field}", settings) == "length"


@pytest.mark.parametrize(
    "candidate",
    [
        ORIGINAL,
        ORIGINAL.upper().replace("{TEXT}", "{text}"),
        f"  {ORIGINAL.replace(':', '...')}\n",
        ORIGINAL.replace("whether", "wether"),
    ],
)
def test_a_near_copy_is_found(candidate):
    assert fault(ORIGINAL, candidate) == "near-copy"


def test_the_edit_distance_is_a_share_of_the_longer_text():
    original = "abcd" * 5  # of 20 letters, one other is 0.05 and two are 0.1
    one, two = "x" + original[1:], "xx" + original[2:]
    settings = FilterConfig(language="", least_edit_distance=0.1)
    assert fault(original, one, settings) == "near-copy"
    assert fault(original, two, settings) is None
    assert fault(original, one, FilterConfig(language="")) is None
    none = FilterConfig(language="", least_edit_distance=0)
    assert fault(original, one, none) is None
    assert fault(original, original, none) == "near-copy"  # a wording is no rewording of itself


CONTENT = (
    "Der Hund läuft {{schnell}} über die Straße, und niemand weiß, wohin er will. " * 3
).strip()


SHOWN = CONTENT.replace("{{", "{").replace("}}", "}")


def of_finished_prompts(original, text) -> str | None:
    return fault(original, text, frozen=(SHOWN,))


def test_the_content_of_a_finished_prompt_stays_and_does_not_count():
    original = f"Translate this for me: {CONTENT} Thanks!"
    assert of_finished_prompts(original, f"{CONTENT}\nPut this into other words.") is None
    assert of_finished_prompts(original, f"Translate that for me: {CONTENT} Thanks!") is None
    assert (
        of_finished_prompts(original, f"translate this FOR me: {CONTENT} (thanks)") == "near-copy"
    )
    assert (
        of_finished_prompts(original, f"{CONTENT} Gib das bitte auf Englisch wieder.") == "language"
    )
    assert (
        of_finished_prompts(original, f"{CONTENT} {'Put this into other words. ' * 4}") == "length"
    )
    changed = CONTENT.replace("niemand weiß", "jeder weiß")
    assert of_finished_prompts(original, f"{changed} Put this into other words.") == "label words"
    assert of_finished_prompts(original, "Put this into other words.") == "label words"
    compared = f"Compare {{the_first_sentence}} {CONTENT} with {{the_other_one}}"
    swapped = f"Compare {{the_other_one}} {CONTENT} with {{the_first_sentence}}"
    assert of_finished_prompts(compared, swapped) is None
    taken = {"": [f"{CONTENT} PUT THIS, INTO OTHER WORDS"]}
    again = Candidate("", original, f"{CONTENT} Put this into other words.", (), (SHOWN,))
    assert wording_faults([again], SETTINGS, None, taken)[0].filter == "near-duplicate"


def faults(texts, settings=SETTINGS, similarity=None, taken=None, task="t"):
    found = wording_faults(
        [Candidate(task, ORIGINAL, text) for text in texts], settings, similarity, taken
    )
    return [each and each.filter for each in found]


def test_of_near_duplicates_among_the_wordings_of_a_task_the_first_stays():
    alike = GOOD.replace("?", " !").upper().replace("{TEXT}", "{text}")
    other = "Judge this text. Was its author positive or negative about it? {text}"
    assert faults([GOOD, alike, other, other]) == [None, "near-duplicate", None, "near-duplicate"]
    assert faults([alike], taken={"t": [GOOD]}) == ["near-duplicate"]
    assert faults([alike], taken={"another task": [GOOD]}) == [None]
    anything = FilterConfig(least_edit_distance=0)
    assert faults([GOOD, alike], anything) == [None, "near-duplicate"]  # not one word is different
    bad = GOOD.replace("{text}", "")
    assert faults([bad, GOOD]) == ["placeholders", None]  # what is left out does not count


def test_similarity_is_asked_once_for_what_the_other_filters_let_pass():
    asked = []
    far = "Pour the soup into a bowl while it is hot and serve: {text}"

    def encode(texts):
        asked.append(list(texts))
        angles = [1.2 if text == far else 0.1 * (text != ORIGINAL) for text in texts]
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    settings = FilterConfig(least_similarity=0.8)
    texts = [GOOD, "no placeholder", far, GOOD]
    found = faults(texts, settings, encode)
    assert found == [None, "placeholders", "similarity", "near-duplicate"]
    assert asked == [[ORIGINAL, GOOD, far]]
    assert faults(["nothing"], settings, encode) == ["placeholders"]
    assert len(asked) == 1
    assert faults([far], SETTINGS, encode) == [None]  # not asked for
    assert fault(ORIGINAL, far, settings, similarity=encode) == "similarity"


def test_similarity_that_is_missing_or_of_another_shape_is_refused():
    settings = FilterConfig(least_similarity=0.8)
    with pytest.raises(ValueError, match="similarity_checkpoint"):
        faults([GOOD], settings)
    with pytest.raises(ValueError, match=r"2 texts .*\(1, 3\)"):
        faults([GOOD], settings, lambda texts: np.ones((1, 3)))
    nan = lambda texts: np.full((len(texts), 3), np.nan)  # noqa: E731
    assert faults([GOOD], settings, nan) == ["similarity"]


def test_an_original_that_is_no_template_is_an_error_of_its_own():
    with pytest.raises(DataError):
        fault("Is it good? {text", GOOD)


def test_no_candidates_have_no_faults():
    assert wording_faults([], SETTINGS) == []
