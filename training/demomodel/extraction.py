"""A text about a person, an order, an event ...; the request to extract fields; the JSON object that is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from demomodel import words
from demomodel.sample import Check, Sample, assistant, compact, system, user


@dataclass(frozen=True, slots=True)
class Fact:
    """One field of a domain."""

    names: tuple[str, ...]
    """What the JSON key may be called; the first is the plain one."""
    make: Callable[[Random], Any]
    clauses: tuple[str, ...]
    """Sentence parts that state it: {s} is the subject, {v} the value."""
    type: str = "string"


@dataclass(frozen=True, slots=True)
class Domain:
    title: str
    head: Fact
    """The field that the text begins with; {s} in other clauses is its value or a pronoun."""
    facts: tuple[Fact, ...]
    pronouns: tuple[str, ...]


def _job(rng: Random) -> str:
    return rng.choice(words.JOBS)


DOMAINS = [
    Domain(
        "person",
        Fact(("name", "full_name", "person", "customer_name"), words.full_name, ()),
        (
            Fact(
                ("age", "years", "age_years"),
                lambda r: r.randint(5, 99),
                ("{s} is {v} years old", "{s} is {v}", "{s} just turned {v}", "{s} is aged {v}"),
                "integer",
            ),
            Fact(
                ("city", "town", "home_city", "location", "residence"),
                words.city,
                ("{s} lives in {v}", "{s} comes from {v}", "{s} moved to {v}", "{s} is based in {v}"),
            ),
            Fact(
                ("job", "occupation", "profession", "role"),
                _job,
                ("{s} works as a {v}", "{s} is a {v}", "{s} earns a living as a {v}"),
            ),
            Fact(
                ("email", "email_address", "mail"),
                words.email,
                ("{s} can be reached at {v}", "the email address is {v}", "{s} writes from {v}"),
            ),
            Fact(
                ("phone", "phone_number", "telephone"),
                words.phone,
                ("the phone number is {v}", "{s} can be called at {v}", "the telephone number is {v}"),
            ),
            Fact(("company", "employer"), words.company, ("{s} works for {v}", "{s} is employed by {v}")),
            Fact(("hobby", "interest"), lambda r: r.choice(words.TOPICS), ("{s} likes {v}", "{s} is fond of {v}")),
            Fact(("children", "number_of_children"), lambda r: r.randint(1, 9), ("{s} has {v} children",), "integer"),
            Fact(("married", "is_married"), lambda r: r.random() < 0.5, ("{s} is {v:married}",), "boolean"),
        ),
        ("She", "He", "They"),
    ),
    Domain(
        "order",
        Fact(("customer", "name", "buyer", "client"), words.full_name, ()),
        (
            Fact(
                ("quantity", "count", "amount", "number"),
                lambda r: r.randint(2, 99),
                ("the quantity is {v}", "{s} wants {v} pieces", "{s} ordered {v} of them"),
                "integer",
            ),
            Fact(
                ("item", "product", "article"),
                words.thing,
                ("{s} ordered the {v}", "the item is the {v}", "{s} bought the {v}"),
            ),
            Fact(
                ("price", "total", "cost"),
                words.price,
                ("the price is {v} euros", "{s} paid {v} dollars", "it costs {v}"),
                "number",
            ),
            Fact(
                ("order_id", "order_number", "id", "reference"),
                words.code,
                ("the order number is {v}", "the order is {v}", "it has the reference {v}"),
            ),
            Fact(
                ("date", "order_date", "delivery_date"),
                words.date,
                ("the order was placed on {v}", "it arrives on {v}", "it is due on {v}"),
            ),
            Fact(("city", "destination", "ship_to"), words.city, ("it is shipped to {v}", "the delivery goes to {v}")),
            Fact(("color", "colour"), lambda r: r.choice(words.COLORS), ("the color is {v}", "{s} wants it in {v}")),
            Fact(("express", "is_express"), lambda r: r.random() < 0.5, ("the delivery is {v:express}",), "boolean"),
        ),
        ("She", "He", "The customer"),
    ),
    Domain(
        "event",
        Fact(
            ("event", "title", "name", "event_name"),
            lambda r: (
                f"{words.invented(r).capitalize()} "
                + r.choice(["Festival", "Concert", "Conference", "Workshop", "Fair", "Party", "Meeting", "Cup"])
            ),
            (),
        ),
        (
            Fact(
                ("date", "day", "event_date"),
                words.date,
                ("{s} takes place on {v}", "{s} is on {v}", "the date is {v}"),
            ),
            Fact(("time", "start", "start_time"), words.clock_time, ("{s} starts at {v}", "doors open at {v}")),
            Fact(("place", "city", "location", "venue"), words.city, ("{s} is held in {v}", "{s} happens in {v}")),
            Fact(
                ("attendees", "guests", "visitors", "participants"),
                lambda r: r.randint(3, 9000),
                ("{v} people are expected", "there is room for {v} guests", "{v} visitors will come"),
                "integer",
            ),
            Fact(("organizer", "host", "contact"), words.full_name, ("{v} is the host", "it is organized by {v}")),
            Fact(
                ("price", "ticket_price", "fee"), words.price, ("a ticket costs {v}", "the fee is {v} euros"), "number"
            ),
            Fact(
                ("topic", "subject", "theme"), lambda r: r.choice(words.TOPICS), ("it is about {v}", "the topic is {v}")
            ),
        ),
        ("It", "The event"),
    ),
    Domain(
        "product",
        Fact(("product", "name", "item", "product_name"), words.thing, ()),
        (
            Fact(
                ("price", "cost"),
                words.price,
                ("{s} costs {v} euros", "{s} sells for {v}", "the price is {v}"),
                "number",
            ),
            Fact(("color", "colour"), lambda r: r.choice(words.COLORS), ("{s} comes in {v}", "its color is {v}")),
            Fact(
                ("brand", "maker", "manufacturer", "company"), words.company, ("{s} is made by {v}", "the brand is {v}")
            ),
            Fact(
                ("stock", "quantity", "in_stock", "units"),
                lambda r: r.randint(0, 999),
                ("there are {v} left", "{v} pieces are in stock", "the shop has {v} of them"),
                "integer",
            ),
            Fact(("sku", "code", "id", "article_number"), words.code, ("its code is {v}", "the article number is {v}")),
            Fact(
                ("weight_kg", "weight"),
                lambda r: r.choice([r.randint(1, 90), round(r.random() * 30 + 0.1, 1)]),
                ("{s} weighs {v} kg",),
                "number",
            ),
            Fact(
                ("rating", "stars"),
                lambda r: r.choice([r.randint(1, 5), round(1 + r.random() * 4, 1)]),
                ("it is rated {v} stars", "customers give it {v} stars"),
                "number",
            ),
        ),
        ("It", "The product"),
    ),
    Domain(
        "trip",
        Fact(("traveler", "passenger", "name", "traveller"), words.full_name, ()),
        (
            Fact(
                ("origin", "from", "departure_city", "start"),
                words.city,
                ("{s} leaves from {v}", "the trip starts in {v}", "{s} departs from {v}"),
            ),
            Fact(
                ("destination", "to", "arrival_city", "goal"),
                words.city,
                ("{s} travels to {v}", "{s} wants to go to {v}", "the destination is {v}"),
            ),
            Fact(("date", "departure_date", "day"), words.date, ("{s} leaves on {v}", "the trip is on {v}")),
            Fact(
                ("seats", "passengers", "tickets"),
                lambda r: r.randint(1, 12),
                ("{s} needs {v} seats", "{v} tickets are booked"),
                "integer",
            ),
            Fact(
                ("train", "flight", "number", "connection"), words.code, ("the connection is {v}", "it is number {v}")
            ),
            Fact(("time", "departure_time"), words.clock_time, ("the departure is at {v}", "{s} leaves at {v}")),
            Fact(("hotel", "stay"), words.company, ("{s} stays at {v}", "the hotel is called {v}")),
        ),
        ("She", "He", "They"),
    ),
    Domain(
        "ticket",
        Fact(("reporter", "user", "name", "author"), words.full_name, ()),
        (
            Fact(("ticket", "ticket_id", "id", "case"), words.code, ("the ticket is {v}", "{s} opened the case {v}")),
            Fact(
                ("problem", "issue", "summary", "message"),
                words.sentence,
                ('{s} writes: "{v}"', 'the message says "{v}"'),
            ),
            Fact(
                ("priority", "severity", "urgency"),
                lambda r: r.choice(["low", "medium", "high", "urgent"]),
                ("the priority is {v}", "it has {v} priority"),
            ),
            Fact(("device", "product", "component"), words.thing, ("it is about the {v}", "{s} uses a {v}")),
            Fact(("date", "created", "reported_on"), words.date, ("it was reported on {v}", "{s} wrote on {v}")),
            Fact(
                ("version", "release"),
                lambda r: f"{r.randint(0, 9)}.{r.randint(0, 20)}.{r.randint(0, 9)}",
                ("the version is {v}", "{s} runs version {v}"),
            ),
            Fact(("assignee", "owner", "agent"), words.full_name, ("{v} takes care of it", "it is assigned to {v}")),
        ),
        ("She", "He", "The user"),
    ),
    Domain(
        "book",
        Fact(
            ("title", "book", "name"),
            lambda r: (
                f"The {r.choice(words.ADJECTIVES).capitalize()} "
                f"{(r.choice(words.OBJECTS) if r.random() < 0.6 else words.invented(r)).capitalize()}"
            ),
            (),
        ),
        (
            Fact(
                ("author", "writer"), words.full_name, ("{s} was written by {v}", "the author is {v}", "{v} wrote it")
            ),
            Fact(
                ("year", "published", "publication_year"),
                lambda r: r.randint(1850, 2030),
                ("{s} appeared in {v}", "it was published in {v}"),
                "integer",
            ),
            Fact(
                ("pages", "page_count", "length"),
                lambda r: r.randint(40, 1200),
                ("{s} has {v} pages", "it is {v} pages long"),
                "integer",
            ),
            Fact(("publisher", "company"), words.company, ("it is published by {v}", "the publisher is {v}")),
            Fact(("language",), lambda r: r.choice(words.LANGUAGES), ("{s} is written in {v}", "the language is {v}")),
            Fact(("price",), words.price, ("it costs {v}", "the price is {v} euros"), "number"),
        ),
        ("It", "The book"),
    ),
]

_ASKS = [
    "Extract {k} as JSON.",
    "Extract {k} as JSON",
    "Extract the {k} as JSON.",
    "Extract {k} from the text as JSON.",
    "Return a JSON object with {k}.",
    "Give me {k} as JSON.",
    "Answer with JSON: {k}.",
    "Extract JSON with the keys {k}.",
    "Return JSON with the fields {k}.",
    "I need {k} as a JSON object.",
    "Please extract {k} in JSON format.",
    "Extract these fields as JSON: {k}",
    "Find {k} and return JSON.",
    "JSON with {k}, please.",
]
_SYSTEMS = [
    "You extract data and answer with JSON only.",
    "Answer with a JSON object.",
    "You are a helpful assistant.",
    "You turn text into JSON.",
    "You are a data extraction tool. Reply with JSON only.",
    "Reply in JSON.",
]


def _state(rng: Random, fact: Fact, value: Any, subject: str) -> str:
    clause = rng.choice(fact.clauses)
    if isinstance(value, bool):
        word = clause[clause.index(":") + 1 : clause.index("}", clause.index(":"))]
        clause = clause.replace("{v:" + word + "}", word if value else f"not {word}")
    return clause.format(s=subject, v=value)


def _tell(rng: Random, domain: Domain, name: str, stated: list[tuple[Fact, Any]]) -> str:
    """Sentences that state every fact once."""
    roll = rng.random()
    if roll < 0.12:  # as a form
        lines = [f"{domain.head.names[0].replace('_', ' ').capitalize()}: {name}"]
        lines += [f"{f.names[0].replace('_', ' ').capitalize()}: {_form_value(v)}" for f, v in stated]
        return rng.choice(["\n", "; ", ", "]).join(lines)
    pronoun = rng.choice(domain.pronouns)
    clauses = []
    for index, (fact, value) in enumerate(stated):
        subject = name if index == 0 or rng.random() < 0.1 else pronoun
        clauses.append(_state(rng, fact, value, subject))
    if name not in clauses[0]:
        clauses.insert(
            0, rng.choice(["This is about {}", "{} is on the list", "Here is {}", "A note on {}"]).format(name)
        )
    text, index = "", 0
    while index < len(clauses):
        sentence = clauses[index]
        index += 1
        if index < len(clauses) and rng.random() < 0.45:
            second = clauses[index]
            if second.startswith(pronoun + " "):
                second = second[len(pronoun) + 1 :] if rng.random() < 0.7 else pronoun.lower() + second[len(pronoun) :]
            sentence += f" and {second}"
            index += 1
        # a name or a code may begin in lower case, but a sentence of words does not
        sentence = sentence[0].upper() + sentence[1:] if sentence.split(" ")[0] in _STARTERS else sentence
        text += sentence + ". "
    return text.strip()


_STARTERS = {"the", "it", "its", "there", "a", "doors", "customers"}


def _form_value(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _schema(fields: list[tuple[str, str]], rng: Random) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": {name: {"type": kind} for name, kind in fields}}
    if rng.random() < 0.7:
        schema["required"] = [name for name, _ in fields]
    if rng.random() < 0.3:
        schema["additionalProperties"] = False
    return schema


def _words_for(keys: list[str], rng: Random) -> str:
    shown = [f"'{k}'" for k in keys] if rng.random() < 0.15 else keys
    if len(shown) > 1 and rng.random() < 0.6:
        return ", ".join(shown[:-1]) + " and " + shown[-1]
    return ", ".join(shown)


def make(rng: Random) -> Sample:
    domain = rng.choice(DOMAINS)
    name = domain.head.make(rng)
    count = rng.randint(1, min(6, len(domain.facts)))
    stated = [(f, f.make(rng)) for f in rng.sample(domain.facts, count)]
    text = _tell(rng, domain, name, stated)

    plain = rng.random() < 0.55
    asked: list[tuple[str, Any, str]] = []
    for fact, value in [(domain.head, name), *stated]:
        if fact is domain.head and rng.random() < 0.1 and stated:
            continue
        if fact is not domain.head and len(stated) > 1 and rng.random() < 0.2:
            continue
        key = fact.names[0] if plain else rng.choice(fact.names)
        asked.append((key, value, fact.type))
    missing = [f for f in domain.facts if all(f is not g for g, _ in stated)]
    if missing and rng.random() < 0.06:
        fact = rng.choice(missing)
        asked.append((fact.names[0], None, fact.type))
    # two facts can share a name; the first keeps it
    unique = {key: (value, kind) for key, value, kind in reversed(asked)}
    keys = [key for key in dict.fromkeys(key for key, _, _ in asked)]
    if not keys:
        keys, unique = [domain.head.names[0]], {domain.head.names[0]: (name, "string")}
    if rng.random() < 0.4:
        rng.shuffle(keys)
    # an odd spelling of the keys shows that they are to be copied
    spelling: Callable[[str], str] = str
    roll = rng.random()
    if roll < 0.05:
        spelling = str.upper
    elif roll < 0.1:
        spelling = _camel
    elif roll < 0.13:
        spelling = str.capitalize
    want = {spelling(key): unique[key][0] for key in keys}
    fields = [(spelling(key), unique[key][1]) for key in keys]

    pretty = rng.random() < 0.06
    answer = json.dumps(want, ensure_ascii=False, indent=2) if pretty else compact(want)
    ask = rng.choice(_ASKS).format(k=_words_for(list(want), rng))
    if pretty:
        ask += rng.choice([" Indent it.", " Use indentation.", " Format it with indentation."])
    messages = []
    roll = rng.random()
    if roll < 0.14 and not pretty:
        rule = rng.choice(
            [
                "Answer with JSON that fits this schema: {}",
                "Reply with a JSON object of this schema:\n{}",
                "Extract data as JSON. Schema: {}",
                "You extract data. Follow this JSON schema:\n{}",
            ]
        )
        messages = [system(rule.format(compact(_schema(fields, rng)))), user(text)]
    elif roll < 0.26 and not pretty:
        rule = rng.choice(
            [
                "{t}\n\nExtract JSON that fits this schema: {s}",
                "{t}\nSchema: {s}\nAnswer with JSON.",
                "Use this JSON schema: {s}\n\n{t}",
                "Extract the data as JSON.\nSchema: {s}\nText: {t}",
            ]
        )
        messages = [user(rule.format(t=text, s=compact(_schema(fields, rng))))]
    elif roll < 0.36:
        messages = [system(ask), user(text)]
    else:
        quoted = f'"{text}"' if rng.random() < 0.1 and '"' not in text else text
        form = rng.choice(
            [
                "{t} {a}",
                "{t} {a}",
                "{t}\n{a}",
                "{t}\n\n{a}",
                "{a}\n{t}",
                "{a}\n\n{t}",
                "{a} {t}",
                "{a}\nText: {t}",
                "Text: {t}\n{a}",
            ]
        )
        messages = [user(form.format(t=quoted, a=ask))]
    if messages[0]["role"] == "user" and rng.random() < 0.2:
        messages.insert(0, system(rng.choice(_SYSTEMS)))
    messages.append(assistant(answer))
    return Sample("extraction", messages, Check("json", want), keys=[text])


def _camel(key: str) -> str:
    head, *rest = key.split("_")
    return head + "".join(part.capitalize() for part in rest)
