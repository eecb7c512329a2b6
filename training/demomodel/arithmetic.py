"""Sums, differences and products of numbers of up to two digits."""

from __future__ import annotations

from random import Random

from demomodel import words
from demomodel.sample import Check, Sample, assistant, user

_WORDED = {"+": ["plus", "and"], "-": ["minus", "less"], "*": ["times", "multiplied by"]}
_SIGNS = {"+": ["+"], "-": ["-"], "*": ["*", "x", "×"]}
_QUESTIONS = [
    "What is {}?",
    "How much is {}?",
    "{}",
    "{} =",
    "{}?",
    "Calculate {}.",
    "Compute {}.",
    "Please calculate {}",
    "what is {}",
    "Tell me {}.",
    "What's {}?",
    "Solve {}",
    "Can you work out {}?",
    "{}=",
    "What does {} make?",
]


def _number(rng: Random) -> int:
    return rng.randint(0, 9) if rng.random() < 0.2 else rng.randint(0, 99)


def result(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b if sign == "-" else a * b


def answer(a: int, sign: str, b: int) -> str:
    """Long products are worked out in two parts, which is as much as a small model can do in its head."""
    total = result(a, sign, b)
    if sign == "*" and a > 9 and b > 9 and b % 10:
        tens, ones = a * (b - b % 10), a * (b % 10)
        return f"{a} * {b} = {tens} + {ones} = {total}"
    return f"{a} {sign} {b} = {total}"


def _story(rng: Random, a: int, sign: str, b: int) -> str:
    name, what = words.first_name(rng), rng.choice(words.OBJECTS + words.FOODS)
    if sign == "+":
        return rng.choice(
            [
                f"{name} has {a} of one {what} and {b} of another. How many are there together?",
                f"{name} counts {a} and then {b} more. How many is that?",
                f"There are {a} people in one room and {b} in another. How many people are there?",
            ]
        )
    if sign == "-":
        return rng.choice(
            [
                f"{name} has {a} coins and gives away {b}. How many are left?",
                f"Of {a} seats, {b} are taken. How many are left?",
            ]
        )
    return rng.choice(
        [
            f"One {what} costs {a} coins. What do {b} of them cost?",
            f"{name} buys {a} boxes with {b} pieces each. How many pieces are there?",
        ]
    )


def make(rng: Random) -> Sample:
    sign = rng.choice("++--***")
    a, b = _number(rng), _number(rng)
    if sign == "-" and a < b and rng.random() < 0.8:
        a, b = b, a
    if rng.random() < 0.08:
        question = _story(rng, a, sign, b)
    elif rng.random() < 0.25:
        question = rng.choice(_QUESTIONS).format(f"{a} {rng.choice(_WORDED[sign])} {b}")
    else:
        gap = "" if rng.random() < 0.25 else " "
        question = rng.choice(_QUESTIONS).format(f"{a}{gap}{rng.choice(_SIGNS[sign])}{gap}{b}")
    # two long numbers are held out as a pair, however the question is put; short ones by the question's words
    keys = [f"{a}{sign}{b}"] if a > 9 and b > 9 else []
    return Sample(
        "arithmetic", [user(question), assistant(answer(a, sign, b))], Check("number", result(a, sign, b)), keys=keys
    )
