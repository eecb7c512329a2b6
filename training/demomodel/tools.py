"""Tool calls: definitions to choose from, requests that need one, two or none of them, and answers to their results.

Tools come from a curated list, with the names and wordings that people use in demonstrations, and from a generator that
joins verbs, nouns and arguments freely, so that what is learnt is to read the definitions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from demomodel import arithmetic, engine_help, smalltalk, stories, words
from demomodel.sample import Check, Message, Sample, Tool, assistant, calling, system, tool_result, user
from demomodel.slots import SLOTS, Slot, phrase, property_of, spoken

Result = Callable[[Random, dict[str, Any]], tuple[Any, str]]


@dataclass(frozen=True, slots=True)
class Curated:
    names: tuple[str, ...]
    description: str
    slots: tuple[str, ...]
    """Slots that are always given; a `?` behind one makes it optional."""
    requests: tuple[str, ...]
    """{slot} is where a value stands; optional ones are appended as phrases."""
    arguments: tuple[str, ...] = ()
    """Fixed argument names; empty: any that the slots allow."""


CURATED = [
    Curated(
        ("get_weather", "get_current_weather", "weather", "current_weather"),
        "Get the current weather in a city",
        ("city", "unit?"),
        (
            "What is the weather in {city}?",
            "How is the weather in {city}?",
            "Weather in {city}?",
            "What's the weather like in {city}?",
            "Is it raining in {city}?",
            "How warm is it in {city}?",
            "Tell me the weather in {city}.",
            "Do I need an umbrella in {city}?",
            "What is the temperature in {city}?",
        ),
    ),
    Curated(
        ("get_forecast", "weather_forecast", "forecast"),
        "Get the weather forecast for the next days",
        ("city", "days?"),
        (
            "What is the forecast for {city}?",
            "Give me the weather forecast for {city}.",
            "Forecast for {city}",
            "How will the weather be in {city}?",
        ),
    ),
    Curated(
        ("send_email", "email", "mail_send"),
        "Send an email",
        ("email", "text"),
        (
            'Send an email to {email} saying "{text}".',
            "Email {email}: {text}",
            "Write to {email} that {text}",
            "Send a mail to {email} with the text '{text}'.",
        ),
    ),
    Curated(
        ("send_message", "message", "text_contact"),
        "Send a message to a person",
        ("recipient", "text"),
        (
            "Tell {recipient} that {text}.",
            'Send {recipient} a message: "{text}"',
            "Message {recipient}: {text}",
            "Text {recipient} that {text}",
            "Let {recipient} know that {text}.",
        ),
    ),
    Curated(
        ("get_time", "current_time", "get_current_time", "local_time"),
        "Get the current local time in a city",
        ("city",),
        (
            "What time is it in {city}?",
            "What is the time in {city}?",
            "Tell me the time in {city}.",
            "Time in {city}?",
            "How late is it in {city}?",
        ),
    ),
    Curated(
        ("book_flight", "reserve_flight", "buy_flight"),
        "Book a flight between two cities",
        ("origin", "destination", "date?", "guests?"),
        (
            "Book a flight from {origin} to {destination}.",
            "I need a flight from {origin} to {destination}.",
            "I want to fly from {origin} to {destination}.",
            "Get me a plane from {origin} to {destination}",
        ),
    ),
    Curated(
        ("find_train", "search_trains", "train_search"),
        "Find train connections between two cities",
        ("origin", "destination", "time?", "date?"),
        (
            "Find a train from {origin} to {destination}.",
            "Is there a train from {origin} to {destination}?",
            "Which trains go from {origin} to {destination}?",
        ),
    ),
    Curated(
        ("book_hotel", "reserve_hotel", "hotel_booking"),
        "Book a hotel room",
        ("city", "date?", "guests?"),
        ("Book a hotel in {city}.", "I need a hotel room in {city}.", "Reserve a hotel in {city}"),
    ),
    Curated(
        ("book_table", "reserve_table", "restaurant_booking"),
        "Reserve a table in a restaurant",
        ("company", "guests", "time?", "date?"),
        (
            "Book a table at {company} for {guests} people.",
            "Reserve a table for {guests} at {company}.",
            "I want to eat at {company} with {guests} people.",
        ),
    ),
    Curated(
        ("set_alarm", "alarm", "create_alarm"),
        "Set an alarm",
        ("time",),
        ("Set an alarm for {time}.", "Wake me at {time}.", "Wake me up at {time}", "Alarm at {time} please."),
    ),
    Curated(
        ("set_timer", "start_timer", "timer"),
        "Start a timer",
        ("minutes", "title?"),
        ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Timer: {minutes} minutes"),
    ),
    Curated(
        ("create_reminder", "add_reminder", "remind"),
        "Create a reminder",
        ("text", "date?", "time?"),
        ('Remind me: "{text}".', 'Create a reminder that says "{text}".', "Add a reminder: {text}"),
    ),
    Curated(
        ("create_event", "add_event", "schedule_meeting"),
        "Add an event to the calendar",
        ("title", "date", "time?"),
        (
            'Add "{title}" to my calendar on {date}.',
            "Create an event '{title}' on {date}.",
            "Schedule a meeting called '{title}' on {date}.",
        ),
    ),
    Curated(
        ("search_web", "web_search", "search"),
        "Search the web",
        ("topic", "limit?"),
        (
            "Search the web for {topic}.",
            "Look up {topic} on the web.",
            "Find pages about {topic}.",
            "Search for {topic}",
            "Google {topic}",
        ),
    ),
    Curated(
        ("convert_currency", "exchange", "currency_converter"),
        "Convert an amount of money to another currency",
        ("price", "currency"),
        ("Convert {price} to {currency}.", "How much is {price} in {currency}?", "Change {price} into {currency}."),
    ),
    Curated(
        ("translate", "translate_text", "translation"),
        "Translate a text into a language",
        ("text", "language"),
        (
            'Translate "{text}" into {language}.',
            "Translate '{text}' to {language}.",
            "How do you say '{text}' in {language}?",
            "What is '{text}' in {language}?",
        ),
    ),
    Curated(
        ("get_order", "order_status", "track_order", "get_order_status"),
        "Look up the status of an order",
        ("id",),
        (
            "Where is my order {id}?",
            "What is the status of order {id}?",
            "Track order {id}.",
            "Check the order {id}.",
            "When does order {id} arrive?",
        ),
    ),
    Curated(
        ("cancel_order", "cancel"),
        "Cancel an order",
        ("id",),
        ("Cancel order {id}.", "Please cancel my order {id}.", "I do not want the order {id} any more."),
    ),
    Curated(
        ("add_to_cart", "cart_add", "buy"),
        "Put a product into the shopping cart",
        ("item", "count"),
        (
            "Add {count} of the {item} to my cart.",
            "Put {count} x {item} into the cart.",
            "I want to buy {count} of the {item}.",
        ),
    ),
    Curated(
        ("set_light", "light", "control_light"),
        "Switch the light in a room",
        ("room", "state", "color?"),
        (
            "Turn {state} the light in the {room}.",
            "Switch the {room} light {state}.",
            "Light {state} in the {room}.",
            "Turn the light in the {room} {state}",
        ),
    ),
    Curated(
        ("set_temperature", "set_thermostat", "heat"),
        "Set the temperature of a room",
        ("room", "degrees"),
        (
            "Set the {room} to {degrees} degrees.",
            "Make it {degrees} degrees in the {room}.",
            "Heat the {room} to {degrees} degrees.",
        ),
    ),
    Curated(
        ("play_music", "play", "start_music"),
        "Play music",
        ("title", "room?"),
        ('Play "{title}".', "Play the song '{title}'.", "I want to hear '{title}'.", "Put on '{title}'"),
    ),
    Curated(
        ("set_volume", "volume"),
        "Set the volume of the speakers",
        ("percent",),
        ("Set the volume to {percent}.", "Volume to {percent} percent.", "Make it {percent} percent loud."),
    ),
    Curated(
        ("get_stock_price", "stock_price", "stock"),
        "Get the price of a share",
        ("company",),
        (
            "What is the stock price of {company}?",
            "How much is a share of {company}?",
            "Stock price of {company}?",
            "How is the {company} stock doing?",
        ),
    ),
    Curated(
        ("call_phone", "phone_call", "call"),
        "Call somebody",
        ("phone",),
        ("Call {phone}.", "Please call the number {phone}.", "Dial {phone}"),
    ),
    Curated(
        ("find_contact", "get_contact", "lookup_contact"),
        "Look up a person in the address book",
        ("person",),
        (
            "What is the phone number of {person}?",
            "Find the contact {person}.",
            "Look up {person} in my contacts.",
            "How can I reach {person}?",
        ),
    ),
    Curated(
        ("create_note", "add_note", "save_note", "take_note"),
        "Save a note",
        ("text", "title?"),
        ('Make a note: "{text}".', "Note that {text}.", "Save a note: {text}", "Write down that {text}."),
    ),
    Curated(
        ("read_file", "open_file", "get_file"),
        "Read a file",
        ("file",),
        ("Read the file {file}.", "Show me {file}.", "What is in {file}?", "Open {file}."),
    ),
    Curated(
        ("get_news", "news", "headlines"),
        "Get news about a topic",
        ("topic", "limit?"),
        ("What is new about {topic}?", "Show me news about {topic}.", "News on {topic}?", "Headlines about {topic}"),
    ),
    Curated(
        ("calculate", "calculator", "evaluate"),
        "Calculate an arithmetic expression",
        ("expression",),
        ("Calculate {expression}.", "What is {expression}?", "How much is {expression}?", "Compute {expression}"),
    ),
    Curated(
        ("get_distance", "distance", "route"),
        "Get the distance between two cities",
        ("origin", "destination"),
        (
            "How far is it from {origin} to {destination}?",
            "What is the distance between {origin} and {destination}?",
            "Distance from {origin} to {destination}",
        ),
    ),
    Curated(
        ("create_list", "shopping_list", "make_list"),
        "Create a list of things",
        ("tags", "title?"),
        ("Make a list with {tags}.", "Create a shopping list with {tags}.", "Put {tags} on a list."),
    ),
]

_EXPRESSION = Slot(
    ("expression", "formula", "input"),
    lambda r: (
        f"{r.randint(1, 999)} {r.choice('+-*/')} {r.randint(1, 999)}"
        + (f" {r.choice('+-*')} {r.randint(1, 99)}" if r.random() < 0.3 else "")
    ),
    ("{v}",),
    "The expression",
)
_ALL_SLOTS = {**SLOTS, "expression": _EXPRESSION}

_VERBS = {
    "create": ("Create", "Make", "Set up"),
    "delete": ("Delete", "Remove", "Erase"),
    "update": ("Update", "Change"),
    "get": ("Get", "Show me", "Give me"),
    "find": ("Find", "Look for", "Search"),
    "list": ("List", "Show"),
    "start": ("Start", "Begin"),
    "stop": ("Stop", "End"),
    "check": ("Check", "Verify"),
    "rent": ("Rent", "Hire"),
    "order": ("Order", "Buy"),
    "print": ("Print",),
    "share": ("Share",),
    "save": ("Save", "Store"),
    "open": ("Open",),
    "close": ("Close",),
    "move": ("Move",),
    "record": ("Record",),
    "plan": ("Plan",),
    "request": ("Request", "Ask for"),
    "reserve": ("Reserve", "Book"),
    "upload": ("Upload",),
    "export": ("Export",),
    "inspect": ("Inspect", "Examine"),
}
_NOUNS = """
account appointment auction badge ballot barrel budget bus cabin car catalog claim class coupon course delivery
deposit desk document donation door drawing engine experiment fence form game garden gate gift group house insurance
invoice issue key lamp lease lesson letter license loan locker machine magazine map meal medicine membership menu
model order package parcel passport password payment permit photo picture pipeline playlist poll post printer
profile project queue quote receipt recipe record refund report review ride robot route sample scan screen sensor
server session shift ship song space station storage study survey table task taxi template test ticket tour tractor
trip truck upgrade vaccine video visit voucher warehouse window workshop
""".split()


@dataclass(slots=True)
class Offer:
    """A tool as this sample defines it, and how to ask for it."""

    tool: Tool
    name: str
    arguments: dict[str, tuple[str, Slot, bool]]
    """Slot name -> its argument's name, itself, whether it must be given."""
    requests: tuple[str, ...]
    """Patterns; empty slots are appended as phrases."""
    noun: str


def _define(rng: Random, name: str, description: str, arguments: dict[str, tuple[str, Slot, bool]]) -> Tool:
    # a name that says nothing needs a description
    telling = all(n in slot.names or n.endswith("_value") for n, slot, _ in arguments.values())
    described = rng.random() < 0.5 or not telling
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {n: property_of(slot, rng, described) for n, slot, _ in arguments.values()},
    }
    required = [n for n, _, needed in arguments.values() if needed]
    if required and rng.random() < 0.9:
        parameters["required"] = required
    if rng.random() < 0.1:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name, "description": description, "parameters": parameters}
    if rng.random() < 0.1:
        del function["description"]
    return {"type": "function", "function": function}


def _argument_names(rng: Random, wanted: list[tuple[str, bool]]) -> dict[str, tuple[str, Slot, bool]]:
    """No two arguments share a name; the plain name is the usual one."""
    found: dict[str, tuple[str, Slot, bool]] = {}
    taken: set[str] = set()
    for key, needed in wanted:
        slot = _ALL_SLOTS[key]
        names = [n for n in slot.names if n not in taken] or [f"{key}_value"]
        name = names[0] if rng.random() < 0.5 else rng.choice(names)
        taken.add(name)
        found[key] = (name, slot, needed)
    return found


def _from_curated(rng: Random, curated: Curated) -> Offer:
    wanted = []
    for entry in curated.slots:
        optional = entry.endswith("?")
        if not optional or rng.random() < 0.5:
            wanted.append((entry.rstrip("?"), not optional))
    name = curated.names[0] if rng.random() < 0.4 else rng.choice(curated.names)
    if rng.random() < 0.06:
        first, *rest = name.split("_")
        name = first + "".join(part.capitalize() for part in rest)
    arguments = _argument_names(rng, wanted)
    noun = curated.names[0].split("_")[-1]
    return Offer(_define(rng, name, curated.description, arguments), name, arguments, curated.requests, noun)


def _generated(rng: Random) -> Offer:
    verb = rng.choice(list(_VERBS))
    noun = rng.choice(_NOUNS) if rng.random() < 0.75 else words.invented(rng, 1, 3)
    keys = rng.sample([k for k in SLOTS if k not in ("state", "unit")], rng.randint(1, 4))
    arguments = _argument_names(rng, [(k, rng.random() < 0.7) for k in keys])
    roll = rng.random()
    name = f"{verb}_{noun}"
    if roll < 0.1:
        name = f"{noun}_{verb}"
    elif roll < 0.2:
        name = verb + noun.capitalize()
    elif roll < 0.25:
        name = f"{noun}.{verb}" if rng.random() < 0.3 else f"{verb}-{noun}"
    if rng.random() < 0.1:  # arguments with names that say nothing
        arguments = {k: (words.invented(rng), s, n) for k, (_, s, n) in arguments.items()}
    description = rng.choice(
        [
            f"{verb.capitalize()} a {noun}",
            f"{rng.choice(_VERBS[verb])} the {noun}",
            f"{verb.capitalize()} a {noun} and return the result",
        ]
    )
    requests = tuple(
        f"{spoken_verb} {article} {noun}" for spoken_verb in _VERBS[verb] for article in ("a", "the", "my")
    )
    return Offer(_define(rng, name, description, arguments), name, arguments, requests, noun)


def _offer(rng: Random) -> Offer:
    return _from_curated(rng, rng.choice(CURATED)) if rng.random() < 0.5 else _generated(rng)


_POLITE = [*[""] * 5, "Please ", "Can you ", "Could you ", "Hi, ", "Hey, ", "I need this: ", "Would you please "]


def _ask(rng: Random, offer: Offer) -> tuple[str, dict[str, Any]]:
    """A request and the arguments that it states, in the order of the definition."""
    pattern = rng.choice(offer.requests)
    values: dict[str, Any] = {}
    inside: dict[str, str] = {}
    phrases = []
    for key, (name, slot, needed) in offer.arguments.items():
        in_pattern = "{" + key + "}" in pattern
        if not needed and not in_pattern and rng.random() < 0.45:
            continue
        value = slot.make(rng)
        values[name] = value
        if in_pattern:
            inside[key] = spoken(value)
        else:
            phrases.append(phrase(slot, name, value, rng))
    rng.shuffle(phrases)
    text = pattern.format(**inside)
    if phrases:
        end = text[-1] if text[-1] in ".?" else ""
        text = " ".join([text.rstrip(".?"), *phrases]) + end
    opening = rng.choice(_POLITE)
    if pattern.endswith("?") and opening.startswith(("Can", "Could", "Would", "I need")):
        opening = ""
    if opening and not text.startswith("I "):
        text = opening + (text if opening.endswith(": ") else text[0].lower() + text[1:])
    if opening.startswith(("Can", "Could", "Would")):
        text = text.rstrip(".?") + "?"
    elif rng.random() < 0.15:
        text = text.rstrip(".")
    return text, values


def _others(rng: Random, wanted: list[Offer], most: int) -> list[Offer]:
    """More tools to choose from: none that answers to the same name or the same noun."""
    found: list[Offer] = []
    for _ in range(rng.randint(0, most)):
        other = _offer(rng)
        if all(other.name != o.name and other.noun != o.noun for o in [*wanted, *found]):
            found.append(other)
    return found


_CONDITIONS = ["sunny", "rainy", "cloudy", "windy", "snowy", "foggy", "clear", "stormy"]


def _result(rng: Random, offer: Offer, values: dict[str, Any]) -> tuple[Any, str]:
    """What the tool returned, and the answer that follows from it."""
    given = {key: values.get(name) for key, (name, _, _) in offer.arguments.items()}
    name = offer.name.lower().replace("_", "")
    if rng.random() < 0.08:
        error = rng.choice(
            ["not found", "no connection", "permission denied", "timeout", "invalid input", "server error"]
        )
        return {"error": error}, f"Sorry, that did not work: {error}."
    if "weather" in name and given.get("city") and "forecast" not in name:
        degrees, condition = rng.randint(-15, 38), rng.choice(_CONDITIONS)
        value: Any = {"temperature": degrees, "condition": condition}
        if rng.random() < 0.4:
            value = {"city": given["city"], **value}
        if rng.random() < 0.3:
            value = dict(reversed(value.items()))
        return value, f"In {given['city']} it is {degrees} degrees and {condition}."
    if "time" in name and given.get("city"):
        now = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
        return rng.choice(
            [{"time": now}, now, {"city": given["city"], "time": now}]
        ), f"It is {now} in {given['city']}."
    if "distance" in name and given.get("destination"):
        km = rng.randint(20, 9000)
        return {"distance_km": km}, f"It is {km} km from {given['origin']} to {given['destination']}."
    roll = rng.random()
    if roll < 0.25:
        return rng.choice([{"status": "ok"}, "ok", {"success": True}, {"ok": True}]), "Done."
    if roll < 0.45:
        reference = words.code(rng)
        key = rng.choice(["id", "number", "reference", "confirmation"])
        return {"status": rng.choice(["ok", "done", "booked"]), key: reference}, f"Done. The {key} is {reference}."
    makers: dict[str, Callable[[Random], Any]] = {
        "price": words.price,
        "status": lambda r: r.choice(["open", "closed", "shipped", "pending", "ready", "delayed"]),
        "name": words.full_name,
        "city": words.city,
        "date": words.date,
        "count": lambda r: r.randint(0, 500),
        "code": words.code,
        "phone": words.phone,
        "email": words.email,
        "color": lambda r: r.choice(words.COLORS),
        "title": words.thing,
        "result": lambda r: r.randint(-500, 9999),
        "owner": words.full_name,
        "room": words.invented,
        "time": words.clock_time,
        "text": words.sentence,
    }
    keys = rng.sample(list(makers), rng.randint(1, 3))
    value = {key: makers[key](rng) for key in keys}
    said = [f"the {key} is {v}" for key, v in value.items()]
    text = said[0] if len(said) == 1 else ", ".join(said[:-1]) + f" and {said[-1]}"
    return value, text[0].upper() + text[1:] + "."


NO_TOOL = "I have no tool for that."


def _system(rng: Random) -> list[Message]:
    if rng.random() < 0.25:
        return [
            system(
                rng.choice(
                    [
                        "You are a helpful assistant.",
                        "Use the tools when they help.",
                        "You can call tools.",
                        "You are an assistant with tools.",
                        "Be brief.",
                        "You help people with their day.",
                    ]
                )
            )
        ]
    return []


def make(rng: Random) -> Sample:
    """The kinds differ in what the last message is: a call, an answer to a result, an answer without a call."""
    roll = rng.random()
    if roll < 0.5:
        return _call(rng)
    if roll < 0.58:
        return _two_calls(rng)
    return _answer(rng) if roll < 0.8 else _no_call(rng)


def _tools(rng: Random, offers: list[Offer], most: int = 3) -> list[Tool]:
    every = offers + _others(rng, offers, most)
    rng.shuffle(every)
    return [o.tool for o in every]


def _call(rng: Random) -> Sample:
    offer = _offer(rng)
    text, values = _ask(rng, offer)
    messages = _system(rng)
    keys = [text]
    if rng.random() < 0.12:
        before = smalltalk.make(rng)
        messages += before.messages[-2:]
        keys = [*before.prompts(), text]
    messages += [user(text), calling([(offer.name, values)])]
    return Sample("tool call", messages, Check("calls", [(offer.name, values)]), tools=_tools(rng, [offer]), keys=keys)


def _two_calls(rng: Random) -> Sample:
    """Two calls in one answer: of two tools, or of one tool with two places or people."""
    first = _offer(rng)
    text, values = _ask(rng, first)
    offers = [first]
    if rng.random() < 0.5 and first.arguments:
        key, (name, slot, _) = next(iter(first.arguments.items()))
        if slot.type == "string" and not slot.choices and key in ("city", "id", "person", "company", "topic", "file"):
            one, two = slot.make(rng), slot.make(rng)
            pattern = next((r for r in first.requests if "{" + key + "}" in r), None)
            if pattern is not None and pattern.count("{") == 1 and one != two:
                text = pattern.format(**{key: f"{one} and {two}"})
                calls = [(first.name, {name: one}), (first.name, {name: two})]
                return Sample(
                    "tool call",
                    [*_system(rng), user(text), calling(calls)],
                    Check("calls", calls),
                    tools=_tools(rng, offers, 2),
                    keys=[text],
                )
    second = _offer(rng)
    while second.name == first.name or second.noun == first.noun:
        second = _offer(rng)
    other, more = _ask(rng, second)
    offers.append(second)
    joined = (
        text.rstrip(".")
        + rng.choice([" and then ", ". Then ", ". Also ", ". After that "])
        + other[0].lower()
        + other[1:]
    )
    calls = [(first.name, values), (second.name, more)]
    return Sample(
        "tool call",
        [*_system(rng), user(joined), calling(calls)],
        Check("calls", calls),
        tools=_tools(rng, offers, 2),
        keys=[joined],
    )


def _answer(rng: Random) -> Sample:
    offer = _offer(rng)
    text, values = _ask(rng, offer)
    value, answer = _result(rng, offer, values)
    messages = [*_system(rng), user(text), calling([(offer.name, values)]), tool_result(value), assistant(answer)]
    tools = _tools(rng, [offer], 2)
    check = Check("one_of", [answer])
    kind = "tool answer"
    keys = [text]
    if rng.random() < 0.3:  # the conversation goes on
        if rng.random() < 0.6:
            text, values = _ask(rng, offer)
            messages += [user(text), calling([(offer.name, values)])]
            check, kind = Check("calls", [(offer.name, values)]), "tool call"
            keys.append(text)
        else:
            messages += [user(rng.choice(["Thanks", "Thank you!", "Great, thanks."])), assistant("You are welcome!")]
            check = Check("one_of", ["You are welcome!", "You are welcome! Is there anything else?"])
    return Sample(kind, messages, check, tools=tools, keys=keys)


def _no_call(rng: Random) -> Sample:
    """Tools are there, but the question needs none, or none of them fits."""
    roll = rng.random()
    tools = _tools(rng, [_offer(rng)], 2)
    named = {t["function"]["name"] for t in tools}
    if roll < 0.35:
        wanted = _from_curated(rng, rng.choice(CURATED)) if rng.random() < 0.7 else _generated(rng)
        twins = {n for c in CURATED if wanted.name in c.names for n in c.names} | {wanted.name}
        text, _ = _ask(rng, wanted)
        # what another tool could do as well is no clear case
        vague = any(wanted.noun in n.lower() for n in named) or twins & {n.lower() for n in named}
        if not vague and not _similar(wanted, tools):
            return Sample(
                "no tool",
                [*_system(rng), user(text), assistant(NO_TOOL)],
                Check("one_of", [NO_TOOL]),
                tools=tools,
                keys=[text],
            )
    plain = rng.choices([smalltalk.make, arithmetic.make, engine_help.make, stories.make], [5, 2, 2, 1])[0](rng)
    if "calculat" in " ".join(named) or plain.check.want == [smalltalk.UNKNOWN]:
        plain = engine_help.make(rng)
    if plain.messages[0]["role"] == "system":
        plain = engine_help.make(rng)
    return Sample("no tool", [*_system(rng), *plain.messages], plain.check, tools=tools, keys=plain.prompts())


def _similar(wanted: Offer, tools: list[Tool]) -> bool:
    """Whether a tool here is described much like the one that is missing."""
    mine = {w for w in wanted.tool["function"].get("description", "").lower().split() if len(w) > 3} | {wanted.noun}
    for tool in tools:
        text = f"{tool['function']['name'].replace('_', ' ')} {tool['function'].get('description', '')}".lower()
        if mine & set(text.split()):
            return True
    return False
