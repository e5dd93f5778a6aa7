"""The instructions of the built-in tasks, by hand: ten wordings to train on and six kept apart.

The held-out wordings ask the same in other words and other syntax, and some name what is *not*
wanted, so that a model that goes by single cue words is misled.
"""

from __future__ import annotations

from typing import NamedTuple


class Wordings(NamedTuple):
    training: tuple[str, ...]
    held_out: tuple[str, ...]


WORDINGS = {
    "person": Wordings(
        training=(
            "Who is this sentence about?\n{sentence}",
            "{sentence}\nWhat is the person's job?",
            "Name the person in the scene.\n\n{sentence}\n\n{options_}",
            "Sentence: {sentence}\nPerson:",
            "Tell me who does it: {sentence}",
            'Read "{sentence}" and say what work this person does.',
            "{sentence}\n\nWho had the things in hand?\n{options_}",
            "Which worker do you meet here? {sentence}",
            "Find the word for somebody's job in the text below and write it down.\n{sentence}",
            "Here is a short scene. {sentence} Who plays the main part in it?",
        ),
        held_out=(
            "{sentence}\nNever mind when and where it is; only the one who does it is wanted.",
            "One word in the next line names somebody by their work. Copy it.\n\n{sentence}",
            "Q: whose hands are the things in? {sentence}\nA:",
            "I want to draw this: {sentence} Which worker should I put in the middle?",
            "Suppose you could talk to somebody in this scene. {sentence} Who would you meet?\n"
            "{options_}",
            "{sentence}\n\nThe things and their colour are clear. Now the job, please.",
        ),
    ),
    "feeling": Wordings(
        training=(
            "How does the person in this sentence feel?\n{sentence}",
            "{sentence}\nWhich feeling is described?",
            "What mood is the person in?\n\n{sentence}\n\n{options_}",
            "Sentence: {sentence}\nFeeling:",
            "Is the person happy, sad, angry or afraid? {sentence}",
            'Read "{sentence}" and say how the person feels.',
            "{sentence}\n\nWhat would you see on the face of this person?\n{options_}",
            "Tell me the mood in this text: {sentence}",
            "Find the feeling in the text below and name it.\n{sentence}",
            "Here is a short scene. {sentence} What emotion does it show?",
        ),
        held_out=(
            "{sentence}\nNever mind who it is and what they do; only the mood is wanted.",
            "Suppose you look at the face of this person. {sentence} What emotion do you see?",
            "Q: in what mood is somebody here? {sentence}\nA:",
            "Is there a smile or are there tears? Name the emotion of the person.\n\n{sentence}\n\n"
            "{options_}",
            "I want to draw this: {sentence} Which feeling should the face show?",
            "{sentence}\n\nThe job is clear. Now tell me how this person feels inside.",
        ),
    ),
    "time": Wordings(
        training=(
            "When does this happen?\n{sentence}",
            "{sentence}\nWhat time of day is it?",
            "Which part of the day is meant?\n\n{sentence}\n\n{options_}",
            "Sentence: {sentence}\nTime:",
            "Is it morning, noon, evening or night? {sentence}",
            'Read "{sentence}" and say when it takes place.',
            "{sentence}\n\nWhat would the clock and the sky tell you here?\n{options_}",
            "Tell me the time of day in this text: {sentence}",
            "Find out at what hour this happens and name the part of the day.\n{sentence}",
            "Here is a short scene. {sentence} How early or late is it?",
        ),
        held_out=(
            "{sentence}\nNever mind where it is and who is there; only the hour is wanted.",
            "Suppose you look at the clock in this scene. {sentence} What part of the day is it?",
            "Q: how late is it here? {sentence}\nA:",
            "I want to draw this: {sentence} Should the sky show the sun or the moon, and how high?"
            "\n{options_}",
            "Look at the sky in the next line: is the day early or late?\n\n{sentence}",
            "{sentence}\n\nThe place is clear. Now tell me when somebody does it.",
        ),
    ),
    "place": Wordings(
        training=(
            "Where does this happen?\n{sentence}",
            "{sentence}\nWhat place is it?",
            "Name the place of the scene.\n\n{sentence}\n\n{options_}",
            "Sentence: {sentence}\nPlace:",
            "Tell me where the person is: {sentence}",
            'Read "{sentence}" and say where it takes place.',
            "{sentence}\n\nWhere would you have to go to see this?\n{options_}",
            "At which spot are the things in this text? {sentence}",
            "Find the word for a place in the text below and write it down.\n{sentence}",
            "Here is a short scene. {sentence} What is the location?",
        ),
        held_out=(
            "{sentence}\nNever mind who it is and when it happens; only the location is wanted.",
            "Suppose you had to go and see this. {sentence} To which spot would you walk?",
            "Q: at what location are we here? {sentence}\nA:",
            "I want to draw this: {sentence} Which place should be behind the person?\n{options_}",
            "One word in the next line names a spot on the map. Copy it.\n\n{sentence}",
            "{sentence}\n\nThe time of day is clear. Now the place where somebody does it, please.",
        ),
    ),
    "count": Wordings(
        training=(
            "How many things are there?\n{sentence}",
            "{sentence}\nWhat number is mentioned?",
            "Count the things in the scene.\n\n{sentence}\n\n{options_}",
            "Sentence: {sentence}\nNumber:",
            "Tell me how many there are: {sentence}",
            'Read "{sentence}" and say what the count of the things is.',
            "{sentence}\n\nIf you put the things in a row, how long is the row?\n{options_}",
            "What amount is named in this text? {sentence}",
            "Find the word for a number in the text below and write it down.\n{sentence}",
            "Here is a short scene. {sentence} How many pieces would you count?",
        ),
        held_out=(
            "{sentence}\nNever mind their colour and the place; only the amount is wanted.",
            "Suppose you put them in a box one by one. {sentence} To what number do you count?",
            "Q: what amount of things do we have here? {sentence}\nA:",
            "I want to draw this: {sentence} How many of the things should I put in?\n{options_}",
            "One word in the next line is a number. Copy it.\n\n{sentence}",
            "{sentence}\n\nThe kind of things is clear. Now tell me the count, please.",
        ),
    ),
    "colour": Wordings(
        training=(
            "What colour are the things in this sentence?\n{sentence}",
            "{sentence}\nWhich colour is mentioned?",
            "Name the colour in the scene.\n\n{sentence}\n\n{options_}",
            "Sentence: {sentence}\nColour:",
            "Tell me the colour of the things: {sentence}",
            'Read "{sentence}" and say which shade the things have.',
            "{sentence}\n\nWhich paint would you need for a picture of these things?\n{options_}",
            "What do the things in this text look like, red, green, blue or another shade? "
            "{sentence}",
            "Find the word for a colour in the text below and write it down.\n{sentence}",
            "Here is a short scene. {sentence} Which pencil would you take to colour the things?",
        ),
        held_out=(
            "{sentence}\nNever mind how many there are and where; only the shade is wanted.",
            "Suppose you need paint for the things in this scene. {sentence} Which do you take?",
            "Q: in what shade do we see the things here? {sentence}\nA:",
            "I want to draw this: {sentence} Which pencil is the right one?\n{options_}",
            "One word in the next line is a colour. Copy it.\n\n{sentence}",
            "{sentence}\n\nThe number of things is clear. Now their paint, please.",
        ),
    ),
    "kind": Wordings(
        training=(
            "What kind of things does this sentence name?\n{sentence}",
            "{sentence}\nAre the things fruit, clothes, toys or tools?",
            "Name the kind of the things.\n\n{sentence}\n\n{options_}",
            "Sentence: {sentence}\nKind of thing:",
            "Tell me what sort of things they are: {sentence}",
            'Read "{sentence}" and say to which group the things belong.',
            "{sentence}\n\nIn which part of a shop would you find these things?\n{options_}",
            "Would you eat them, wear them, play with them or work with them? {sentence}",
            "Find the things in the text below and name their group.\n{sentence}",
            "Here is a short scene. {sentence} What type of goods is it about?",
        ),
        held_out=(
            "{sentence}\nNever mind their colour and how many there are; only the sort is wanted.",
            "Suppose you find the things in a shop. {sentence} Which type of goods do you have?",
            "Q: what group do the things here belong to? {sentence}\nA:",
            "I want to put them away: {sentence} What should I write on the box?\n{options_}",
            "Say in one word what the goods in the next line are for: to eat, to wear, to play or "
            "to work.\n\n{sentence}",
            "{sentence}\n\nThe place is clear. Now the type of things we see there, please.",
        ),
    ),
    "tense": Wordings(
        training=(
            "Is this sentence about the past, the present or the future?\n{sentence}",
            "{sentence}\nWhat tense is the verb in?",
            "Name the tense of the sentence.\n\n{sentence}\n\n{options_}",
            "Sentence: {sentence}\nTense:",
            "Has it happened already, does it happen now, or is it still to come? {sentence}",
            'Read "{sentence}" and say which tense is used.',
            "{sentence}\n\nIs this over, going on or still ahead?\n{options_}",
            "Tell me the tense of this text: {sentence}",
            "Find the verb in the text below and name its tense.\n{sentence}",
            "Here is a short scene. {sentence} Is it behind us, in front of us or right now?",
        ),
        held_out=(
            "{sentence}\nNever mind the time of day; only the tense of the verb is wanted.",
            "Look at the verb in the next line: is it over already, or still to come, or now?\n\n"
            "{sentence}",
            "Q: which tense do we have here? {sentence}\nA:",
            "Suppose you tell this to somebody. {sentence} Is it going on, ahead of you or behind "
            "you?\n{options_}",
            "Past, present or future: to which does the next line belong?\n\n{sentence}",
            "{sentence}\n\nThe part of the day is clear. Now, is it ahead or has it happened?",
        ),
    ),
}
