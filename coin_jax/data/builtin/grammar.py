"""Sentences of the built-in data: short scenes that state eight things at once.

    At sunrise the cheerful farmer carried three red apples to the market.

Who, feeling, when, where, how many, which colour, what kind of thing, and past, present or future
can all be read off one sentence, so only the instruction tells which of them is asked.
"""

from __future__ import annotations

from collections.abc import Iterator

from coin_jax.data.draws import mix, stable_hash

PERSONS = ("farmer", "teacher", "doctor", "baker", "sailor", "nurse")
COLOURS = ("red", "blue", "green", "yellow", "black", "white")
COUNTS = ("two", "three", "four", "five", "six")

FEELINGS = {
    "happy": ("happy", "cheerful", "smiling", "joyful"),
    "sad": ("sad", "gloomy", "crying", "unhappy"),
    "angry": ("angry", "furious", "shouting", "raging"),
    "afraid": ("afraid", "frightened", "trembling", "scared"),
}
TIMES = {
    "morning": ("in the morning", "at sunrise", "before breakfast"),
    "noon": ("at noon", "at midday", "during lunch"),
    "evening": ("in the evening", "at sunset", "after dinner"),
    "night": ("at night", "at midnight", "under the stars"),
}
PLACES = {
    "kitchen": ("in the kitchen", "beside the kitchen stove"),
    "garden": ("in the garden", "near the garden gate"),
    "school": ("at school", "in the school yard"),
    "market": ("at the market", "in the busy market"),
    "beach": ("on the beach", "by the beach huts"),
    "library": ("in the library", "outside the library"),
}
KINDS = {
    "fruit": ("apples", "pears", "plums", "grapes"),
    "clothes": ("shirts", "hats", "gloves", "coats"),
    "toys": ("dolls", "kites", "balls", "puzzles"),
    "tools": ("hammers", "saws", "shovels", "ladders"),
}
TENSES = ("past", "present", "future")
VERBS = (  # past, present, base form, participle
    ("carried", "carries", "carry", "carried"),
    ("bought", "buys", "buy", "bought"),
    ("sold", "sells", "sell", "sold"),
    ("found", "finds", "find", "found"),
    ("hid", "hides", "hide", "hidden"),
    ("washed", "washes", "wash", "washed"),
    ("lost", "loses", "lose", "lost"),
    ("dropped", "drops", "drop", "dropped"),
)
BE = {"past": ("was", "were"), "present": ("is", "are"), "future": ("will be", "will be")}

STRUCTURES = (
    "{when} the {mood} {person} {does} {count} {colour} {things} {where}.",
    "the {mood} {person} {does} {count} {colour} {things} {where} {when}.",
    "{where} the {mood} {person} {does} {count} {colour} {things} {when}.",
    "{where}, {when}, a {person} {does} {count} {colour} {things} and {is_} {mood}.",
    "{count} {colour} {things} {are} {done} {where} {when} by the {mood} {person}.",
    "{when} {count} {colour} {things} {are} {done} by a {mood} {person} {where}.",
)

Scene = dict[str, str]
"""The sentence, under `sentence`, and the answer to each task under the task's name."""


def scene(number: int, seed: int) -> Scene:
    """Scene `number` of the endless series that the seed names."""
    state = mix(seed, number)

    def pick(choices):
        nonlocal state
        state = mix(state)
        return choices[state % len(choices)]

    answers = {
        "person": pick(PERSONS),
        "feeling": pick(tuple(FEELINGS)),
        "time": pick(tuple(TIMES)),
        "place": pick(tuple(PLACES)),
        "count": pick(COUNTS),
        "colour": pick(COLOURS),
        "kind": pick(tuple(KINDS)),
        "tense": pick(TENSES),
    }
    past, present, base, participle = pick(VERBS)
    is_, are = BE[answers["tense"]]
    sentence = pick(STRUCTURES).format(
        person=answers["person"],
        mood=pick(FEELINGS[answers["feeling"]]),
        when=pick(TIMES[answers["time"]]),
        where=pick(PLACES[answers["place"]]),
        count=answers["count"],
        colour=answers["colour"],
        things=pick(KINDS[answers["kind"]]),
        does={"past": past, "present": present, "future": f"will {base}"}[answers["tense"]],
        done=participle,
        is_=is_,
        are=are,
    )
    return {"sentence": sentence[0].upper() + sentence[1:], **answers}


def scenes(count: int, seed: int, held_out: bool) -> Iterator[Scene]:
    """`count` different scenes. A sentence is held out or not by its own hash, so training and
    evaluation sentences stay apart whatever the seeds and counts are."""
    seen = set()
    number = 0
    while len(seen) < count:
        candidate = scene(number, seed)
        number += 1
        sentence = candidate["sentence"]
        if (stable_hash(sentence) % 10 == 0) == held_out and sentence not in seen:
            seen.add(sentence)
            yield candidate
