"""The arguments that tools take: what they may be called, what values they have, how a request says them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from demomodel import words


@dataclass(frozen=True, slots=True)
class Slot:
    names: tuple[str, ...]
    make: Callable[[Random], Any]
    phrases: tuple[str, ...]
    """How a request states it, after the verb and its object."""
    description: str
    type: str = "string"
    choices: tuple[str, ...] = ()


SLOTS: dict[str, Slot] = {
    "city": Slot(
        ("city", "location", "place", "town"), words.city, ("in {v}", "for {v}", "near {v}"), "Name of the city"
    ),
    "origin": Slot(
        ("origin", "from_city", "start", "departure"), words.city, ("from {v}", "starting in {v}"), "Where it starts"
    ),
    "destination": Slot(
        ("destination", "to_city", "arrival", "goal"), words.city, ("to {v}", "going to {v}"), "Where it goes"
    ),
    "person": Slot(
        ("name", "person", "customer", "contact", "user"),
        lambda r: words.full_name(r) if r.random() < 0.6 else words.first_name(r),
        ("for {v}", "on behalf of {v}", "in the name of {v}"),
        "Name of the person",
    ),
    "recipient": Slot(
        ("to", "recipient", "receiver"),
        lambda r: r.choice([words.full_name, words.first_name])(r),
        ("to {v}",),
        "Who receives it",
    ),
    "email": Slot(("email", "address", "to", "email_address"), words.email, ("to {v}",), "Email address"),
    "date": Slot(
        ("date", "day", "when"),
        lambda r: words.date(r) if r.random() < 0.5 else r.choice(["today", "tomorrow", *words.WEEKDAYS]),
        ("on {v}", "for {v}"),
        "The day",
    ),
    "time": Slot(("time", "at", "start_time", "hour"), words.clock_time, ("at {v}",), "Time of day"),
    "count": Slot(
        ("count", "quantity", "number", "amount"),
        lambda r: r.randint(1, 99),
        ("{v} times", "with a quantity of {v}", "{v} of them"),
        "How many",
        "integer",
    ),
    "guests": Slot(
        ("guests", "people", "seats", "party_size"),
        lambda r: r.randint(1, 20),
        ("for {v} people", "for {v} guests", "with {v} seats"),
        "Number of people",
        "integer",
    ),
    "minutes": Slot(
        ("minutes", "duration", "duration_minutes", "length"),
        lambda r: r.choice([5, 10, 15, 30, 45, 60, 90, r.randint(1, 120)]),
        ("for {v} minutes", "lasting {v} minutes"),
        "Duration in minutes",
        "integer",
    ),
    "days": Slot(
        ("days", "num_days", "horizon"),
        lambda r: r.randint(1, 14),
        ("for {v} days", "for the next {v} days"),
        "Number of days",
        "integer",
    ),
    "limit": Slot(
        ("limit", "max_results", "top", "n"),
        lambda r: r.randint(1, 50),
        ("with at most {v} results", "and show {v} results", "limited to {v}"),
        "Most results",
        "integer",
    ),
    "price": Slot(
        ("price", "amount", "max_price", "budget"),
        words.price,
        ("for {v} euros", "with a price of {v}", "for up to {v}"),
        "Amount of money",
        "number",
    ),
    "degrees": Slot(
        ("temperature", "degrees", "value"),
        lambda r: r.choice([r.randint(5, 30), r.randint(10, 59) / 2]),
        ("to {v} degrees", "at {v} degrees"),
        "Temperature",
        "number",
    ),
    "percent": Slot(
        ("percent", "level", "brightness", "volume"),
        lambda r: r.randint(0, 100),
        ("to {v} percent", "at {v}%"),
        "Level from 0 to 100",
        "integer",
    ),
    "color": Slot(("color", "colour"), lambda r: r.choice(words.COLORS), ("in {v}", "with the color {v}"), "A color"),
    "item": Slot(
        ("item", "product", "object", "article"), words.thing, ("with the {v}", "for the {v}"), "Name of the item"
    ),
    "topic": Slot(
        ("topic", "query", "subject", "keywords"),
        lambda r: r.choice(words.TOPICS) if r.random() < 0.6 else words.thing(r),
        ("about {v}", "on {v}"),
        "What it is about",
    ),
    "text": Slot(
        ("text", "message", "body", "content", "note"),
        words.sentence,
        ('saying "{v}"', "with the text '{v}'", 'with the message "{v}"', "that says: {v}"),
        "The text",
    ),
    "title": Slot(
        ("title", "name", "label"),
        lambda r: r.choice([words.thing, lambda q: q.choice(words.SUBJECTS)])(r),
        ('called "{v}"', "with the title '{v}'", "named '{v}'"),
        "The title",
    ),
    "id": Slot(
        ("id", "code", "number", "reference"), words.code, ("with the id {v}", "with number {v}", "{v}"), "Identifier"
    ),
    "language": Slot(
        ("language", "lang", "target_language"),
        lambda r: r.choice(words.LANGUAGES),
        ("in {v}", "into {v}"),
        "A language",
    ),
    "currency": Slot(("currency", "currency_code"), lambda r: r.choice(words.CURRENCIES), ("in {v}",), "Currency code"),
    "phone": Slot(("phone", "phone_number"), words.phone, ("with the number {v}", "at {v}"), "Phone number"),
    "company": Slot(
        ("company", "vendor", "shop"), words.company, ("at {v}", "from {v}", "of {v}"), "Name of the company"
    ),
    "room": Slot(
        ("room", "area", "zone"),
        lambda r: r.choice(
            ["kitchen", "bedroom", "bathroom", "living room", "office", "hall", "garage", "garden", words.invented(r)]
        ),
        ("in the {v}", "of the {v}"),
        "Which room",
    ),
    "size": Slot(
        ("size",),
        lambda r: r.choice(["small", "medium", "large"]),
        ("in size {v}", "and make it {v}"),
        "The size",
        "string",
        ("small", "medium", "large"),
    ),
    "priority": Slot(
        ("priority", "urgency"),
        lambda r: r.choice(["low", "normal", "high"]),
        ("with {v} priority",),
        "How urgent it is",
        "string",
        ("low", "normal", "high"),
    ),
    "unit": Slot(
        ("unit", "units"),
        lambda r: r.choice(["celsius", "fahrenheit"]),
        ("in {v}", "in degrees {v}"),
        "Unit of the temperature",
        "string",
        ("celsius", "fahrenheit"),
    ),
    "state": Slot(("state", "mode"), lambda r: r.choice(["on", "off"]), ("{v}",), "On or off", "string", ("on", "off")),
    "urgent": Slot(
        ("urgent", "notify", "express", "confirmed"),
        lambda r: True,
        ("as {n}", "and mark it as {n}"),
        "Whether this is set",
        "boolean",
    ),
    "file": Slot(
        ("file", "path", "filename"),
        lambda r: f"{words.invented(r)}.{r.choice(['txt', 'pdf', 'csv', 'md', 'py'])}",
        ("from the file {v}", "in {v}"),
        "Name of the file",
    ),
    "tags": Slot(
        ("tags", "items", "names"),
        lambda r: r.sample(words.FOODS + words.OBJECTS, r.randint(2, 4)),
        ("with {v}", "with the list {v}"),
        "A list of words",
        "array",
    ),
}


def property_of(slot: Slot, rng: Random, described: bool) -> dict[str, Any]:
    """The slot as a property of a JSON schema."""
    schema: dict[str, Any] = {"type": slot.type}
    if slot.type == "array":
        schema["items"] = {"type": "string"}
    if described:
        schema["description"] = slot.description
    if slot.choices:
        schema["enum"] = list(slot.choices)
    return schema


def phrase(slot: Slot, name: str, value: Any, rng: Random) -> str:
    """The value as part of a request; now and then it is given by the argument's own name."""
    shown = spoken(value)
    if slot.type == "boolean":
        return rng.choice(slot.phrases).format(n=name)
    if rng.random() < 0.1:
        return rng.choice(["with {n} {v}", "with {n} = {v}", "({n}: {v})"]).format(n=name.replace("_", " "), v=shown)
    return rng.choice(slot.phrases).format(v=shown)


def spoken(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value[:-1]) + f" and {value[-1]}"
    return str(value)
