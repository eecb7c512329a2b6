"""Short stories from a grammar: a hero, a place, something lost, someone who helps."""

from __future__ import annotations

from random import Random

from demomodel import words
from demomodel.sample import Check, Sample, assistant, user

_PLACES = """a small village, a deep forest, a town by the sea, an old castle, a quiet valley, a house on a hill, a big
city, a farm near the river, a lighthouse, an island in the north, a green meadow, a mountain hut, a floating market, a
library full of dust""".replace("\n", " ").split(", ")
_WEATHER = [
    "The sun was shining",
    "It was raining",
    "Snow was falling",
    "The wind was strong",
    "The night was clear",
    "Fog lay over the land",
    "The stars were bright",
]
_FEELINGS = ["happy", "sad", "proud", "tired", "surprised", "calm", "excited", "a little afraid"]
_LESSONS = [
    "a friend is worth more than gold",
    "it is good to ask for help",
    "small steps lead far",
    "it pays to be patient",
    "nobody is too small to help",
    "kind words open doors",
]


def story(rng: Random, animal: str, name: str, item: str, long: bool = False) -> str:
    trait, place, helper = rng.choice(words.ADJECTIVES[-10:]), rng.choice(_PLACES), rng.choice(words.ANIMALS)
    friend = words.first_name(rng)
    while friend == name:
        friend = words.first_name(rng)
    parts = [
        f"Once upon a time there was a {trait} {animal} named {name}, who lived in {place}.",
        rng.choice(
            [
                f"{name} had a {item} and loved it very much.",
                f"Every day {name} took the {item} for a walk.",
                f"The most important thing in the life of {name} was a {item}.",
            ]
        ),
        f"{rng.choice(_WEATHER)} when {name} woke up and saw that the {item} was gone.",
        rng.choice(
            [
                f"{name} looked under the bed and behind the door, but the {item} was not there.",
                f'"Where is my {item}?" asked {name}, and felt {rng.choice(_FEELINGS)}.',
                f"{name} was {rng.choice(_FEELINGS)}, but did not give up.",
            ]
        ),
        rng.choice(
            [
                f"So {name} walked through {rng.choice(_PLACES)} and met a {helper} named {friend}.",
                f"On the way {name} met {friend}, a {rng.choice(words.ADJECTIVES[-10:])} {helper}.",
            ]
        ),
        rng.choice(
            [
                f'"I can help you," said {friend}.',
                f'"I saw a {item} this morning," said {friend}.',
                f'"Let us look together," said {friend} the {helper}.',
            ]
        ),
    ]
    if long:
        for _ in range(rng.randint(2, 5)):
            other = rng.choice(words.ANIMALS)
            parts.append(
                rng.choice(
                    [
                        f"They asked a {other}, but the {other} had not seen the {item}.",
                        f"They crossed {rng.choice(_PLACES)} and shared some {rng.choice(words.FOODS)}.",
                        f"{rng.choice(_WEATHER)}, and {friend} was {rng.choice(_FEELINGS)}.",
                        f'"Do not worry, {name}," said {friend}, "we will find the {item}."',
                        f"A {rng.choice(words.ADJECTIVES[-10:])} {other} showed them the way.",
                    ]
                )
            )
    parts += [
        rng.choice(
            [
                f"They found the {item} in {rng.choice(_PLACES)}.",
                f"At last they saw the {item} under a tree.",
                f"A {rng.choice(words.ANIMALS)} had found the {item} and gave it back.",
            ]
        ),
        f"{name} was {rng.choice(['happy', 'very happy', 'so glad'])} and thanked {friend}.",
        f"From that day on {name} knew that {rng.choice(_LESSONS)}.",
        "The end.",
    ]
    return " ".join(parts)


def make(rng: Random) -> Sample:
    animal, name, item = rng.choice(words.ANIMALS), words.first_name(rng), words.thing(rng)
    long = rng.random() < 0.3
    ask = rng.choice(
        [
            "Tell me a",
            "Write a",
            "Please tell me a",
            "I would like to hear a",
            "Can you write a",
            "Make up a",
            "tell me a",
            "Write me a",
        ]
    )
    size = rng.choice([" long", " longer", " very long"]) if long else rng.choice(["", " short", " little"])
    want: list[str] = []
    roll = rng.random()
    about = ""
    a_animal = f"{'an' if animal[0] in 'aeiou' else 'a'} {animal}"
    if roll < 0.3:
        about, want = f" about {a_animal}", [f" {animal} "]
    elif roll < 0.55:
        about, want = f" about {a_animal} named {name}", [f" {animal} named {name}"]
    elif roll < 0.75:
        about, want = f" about {a_animal} and a {item}", [f" {animal} ", f" {item} "]
    elif roll < 0.9:
        about, want = f" about {name} the {animal} and a {item}", [f" {animal} named {name}", f" {item} "]
    text = story(rng, animal, name, item, long)
    question = f"{ask}{size} story{about}{rng.choice(['.', '', '!', ', please.'])}"
    return Sample(
        "story", [user(question), assistant(text)], Check("contains", [*want, "Once upon a time", "The end."])
    )


def make_text(rng: Random) -> Sample:
    """A story with no conversation around it, for plain completions."""
    text = story(rng, rng.choice(words.ANIMALS), words.first_name(rng), words.thing(rng), rng.random() < 0.4)
    return Sample("text", [], text=text, keys=[text])
