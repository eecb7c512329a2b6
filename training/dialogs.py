"""The demo model's text: seeded dialogs of six kinds. Knows nothing of tokens or training.

Each dialog is (kind, messages, tools, answer key): the key says what a right last answer is.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

FIRST = [
    "Ada",
    "Alan",
    "Amir",
    "Ana",
    "Anton",
    "Aria",
    "Ben",
    "Bianca",
    "Boris",
    "Carla",
    "Carlos",
    "Chen",
    "Clara",
    "Dana",
    "David",
    "Diego",
    "Elena",
    "Elif",
    "Emma",
    "Eric",
    "Esra",
    "Eva",
    "Farid",
    "Felix",
    "Fiona",
    "Frank",
    "Freya",
    "Gita",
    "Grace",
    "Hana",
    "Hans",
    "Hugo",
    "Ida",
    "Igor",
    "Ines",
    "Ivan",
    "Jack",
    "Jane",
    "Jonas",
    "Julia",
    "Karim",
    "Kate",
    "Kenji",
    "Lars",
    "Laura",
    "Lea",
    "Leo",
    "Lina",
    "Luca",
    "Lucy",
    "Mara",
    "Marco",
    "Maria",
    "Mark",
    "Maya",
    "Mia",
    "Milan",
    "Mina",
    "Nadia",
    "Nico",
    "Nina",
    "Noah",
    "Nora",
    "Olga",
    "Omar",
    "Oscar",
    "Paul",
    "Petra",
    "Priya",
    "Rafael",
    "Rita",
    "Rosa",
    "Ruth",
    "Sam",
    "Sara",
    "Sofia",
    "Stefan",
    "Tara",
    "Theo",
    "Tim",
    "Tom",
    "Uma",
    "Vera",
    "Victor",
    "Wei",
    "Yara",
    "Yusuf",
    "Zoe",
    "Zara",
]
LAST = [
    "Adams",
    "Ahmed",
    "Baker",
    "Berg",
    "Brown",
    "Costa",
    "Cruz",
    "Diaz",
    "Evans",
    "Fischer",
    "Garcia",
    "Gruber",
    "Haas",
    "Hill",
    "Ito",
    "Jansen",
    "Jones",
    "Kaya",
    "Khan",
    "Kim",
    "Klein",
    "Lang",
    "Lee",
    "Lopez",
    "Meyer",
    "Moreau",
    "Mori",
    "Novak",
    "Okafor",
    "Olsen",
    "Park",
    "Patel",
    "Perez",
    "Popov",
    "Reed",
    "Rossi",
    "Santos",
    "Sato",
    "Schmidt",
    "Silva",
    "Singh",
    "Smith",
    "Stone",
    "Tanaka",
    "Taylor",
    "Vogel",
    "Wang",
    "Weber",
    "White",
    "Wolf",
    "Wood",
    "Yang",
    "Young",
    "Zhang",
]
CITIES = [
    "Amsterdam",
    "Athens",
    "Austin",
    "Bangkok",
    "Barcelona",
    "Beijing",
    "Berlin",
    "Bogota",
    "Boston",
    "Brussels",
    "Budapest",
    "Cairo",
    "Chicago",
    "Copenhagen",
    "Dakar",
    "Delhi",
    "Denver",
    "Dublin",
    "Geneva",
    "Hamburg",
    "Hanoi",
    "Havana",
    "Helsinki",
    "Istanbul",
    "Jakarta",
    "Kyiv",
    "Kyoto",
    "Lagos",
    "Lima",
    "Lisbon",
    "London",
    "Madrid",
    "Manila",
    "Milan",
    "Montreal",
    "Mumbai",
    "Munich",
    "Nairobi",
    "Oslo",
    "Ottawa",
    "Paris",
    "Porto",
    "Prague",
    "Quito",
    "Riga",
    "Rome",
    "Seattle",
    "Seoul",
    "Seville",
    "Singapore",
    "Sofia",
    "Stockholm",
    "Sydney",
    "Tallinn",
    "Tokyo",
    "Toronto",
    "Turin",
    "Vienna",
    "Vilnius",
    "Warsaw",
    "Zagreb",
    "Zurich",
]
THINGS = [
    "apples",
    "backpacks",
    "batteries",
    "bikes",
    "blankets",
    "books",
    "boots",
    "bottles",
    "boxes",
    "cables",
    "cameras",
    "candles",
    "chairs",
    "clocks",
    "cups",
    "desks",
    "doors",
    "drills",
    "fans",
    "forks",
    "glasses",
    "gloves",
    "hats",
    "jackets",
    "kettles",
    "keys",
    "knives",
    "ladders",
    "lamps",
    "laptops",
    "maps",
    "mirrors",
    "mugs",
    "nails",
    "notebooks",
    "pans",
    "paper",
    "pencils",
    "pens",
    "phones",
    "pillows",
    "plates",
    "pots",
    "printers",
    "radios",
    "ropes",
    "rugs",
    "scarves",
    "screens",
    "shelves",
    "shirts",
    "shoes",
    "socks",
    "sofas",
    "spoons",
    "tables",
    "tents",
    "tickets",
    "towels",
    "toys",
    "umbrellas",
    "vases",
    "watches",
    "wheels",
]
ANIMALS = "bear bird cat cow crow deer dog duck fish fox frog goat goose hare horse lamb lion mole mouse otter owl pig rabbit "
ANIMALS_LIST = (ANIMALS + "seal sheep snail swan tiger toad turtle whale wolf").split()
JOBS = [
    "architect",
    "baker",
    "chemist",
    "cook",
    "dentist",
    "doctor",
    "driver",
    "editor",
    "engineer",
    "farmer",
    "gardener",
    "judge",
    "lawyer",
    "nurse",
    "painter",
    "pilot",
]
JOBS += ["plumber", "professor", "programmer", "singer", "tailor", "teacher", "vet", "waiter", "writer"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
COLOURS = ["red", "blue", "green", "yellow", "black", "white", "purple", "orange", "brown", "pink", "grey", "silver"]
CAPITALS = dict(
    zip(
        [
            "France",
            "Germany",
            "Italy",
            "Spain",
            "Portugal",
            "Austria",
            "Poland",
            "Greece",
            "Japan",
            "Egypt",
            "Norway",
            "Sweden",
            "Finland",
            "Denmark",
            "Ireland",
            "Hungary",
            "Peru",
            "Cuba",
            "Kenya",
            "Canada",
            "Belgium",
            "Latvia",
            "Estonia",
            "Croatia",
            "Thailand",
        ],
        [
            "Paris",
            "Berlin",
            "Rome",
            "Madrid",
            "Lisbon",
            "Vienna",
            "Warsaw",
            "Athens",
            "Tokyo",
            "Cairo",
            "Oslo",
            "Stockholm",
            "Helsinki",
            "Copenhagen",
            "Dublin",
            "Budapest",
            "Lima",
            "Havana",
            "Nairobi",
            "Ottawa",
            "Brussels",
            "Riga",
            "Tallinn",
            "Zagreb",
            "Bangkok",
        ],
        strict=True,
    )
)


@dataclass
class Dialog:
    kind: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    key: Any = None
    """None: the last answer's text is the key; else the JSON value it must hold."""
    extra: dict[str, Any] = field(default_factory=dict)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def invented(rng: random.Random) -> str:
    """A word that no list holds, so that copying must be learned rather than names."""
    syllables = [
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "l"])
        for _ in range(rng.randint(2, 3))
    ]
    return "".join(syllables).capitalize()


def person(rng: random.Random) -> str:
    first = rng.choice(FIRST) if rng.random() < 0.75 else invented(rng)
    return first if rng.random() < 0.4 else f"{first} {rng.choice(LAST) if rng.random() < 0.75 else invented(rng)}"


def city(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.75 else invented(rng)


def code(rng: random.Random) -> str:
    return (
        "".join(rng.choices(string.ascii_uppercase, k=2))
        + "-"
        + "".join(rng.choices(string.digits, k=rng.randint(3, 5)))
    )


# ---- small talk and facts

SMALL_TALK: list[tuple[list[str], list[str]]] = [
    (
        ["Hello", "Hello!", "Hi", "Hi!", "Hey there", "Good morning", "Good evening", "Hello there!", "hi"],
        ["Hello! How can I help you?", "Hi! What can I do for you?"],
    ),
    (
        ["How are you?", "How are you today?", "How do you do?", "How is it going?"],
        ["I am fine, thank you. How can I help?", "All tokens flowing, thank you! What can I do for you?"],
    ),
    (
        ["Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself."],
        [
            "I am the Backplane demo model, a very small language model that ships with the engine.",
            "I am Backplane's demo model. I am tiny, but I can chat a little, call tools and fill in JSON.",
        ],
    ),
    (["Thanks", "Thank you", "Thank you!", "Thanks a lot!", "Great, thanks."], ["You are welcome!", "Happy to help!"]),
    (["Bye", "Goodbye", "See you", "Bye bye!", "See you later."], ["Goodbye!", "See you soon!"]),
    (
        ["What can you do?", "How can you help me?", "What are you good at?", "Help"],
        [
            "I can chat a little, add small numbers, answer questions about Backplane, extract JSON from a sentence, call tools and tell short stories."
        ],
    ),
    (
        ["Tell me a joke.", "Do you know a joke?", "Make me laugh."],
        [
            "Why did the token cross the batch? To get to the other stream.",
            "I would tell you a joke about caching, but you have heard it before.",
        ],
    ),
    (["Are you human?", "Are you a person?", "Are you real?"], ["No, I am a small language model."]),
    (["How old are you?", "When were you born?"], ["I was trained when this package was made, so I am quite young."]),
    (["What is the meaning of life?"], ["Some say 42. I say: answer the next request."]),
]


def small_talk(rng: random.Random) -> tuple[str, str]:
    kind = rng.random()
    if kind < 0.6:
        questions, answers = rng.choice(SMALL_TALK)
        return rng.choice(questions), rng.choice(answers[:1]) if rng.random() < 0.8 else rng.choice(answers)
    if kind < 0.8:
        country, capital = rng.choice(list(CAPITALS.items()))
        question = rng.choice(
            [
                "What is the capital of {}?",
                "Which city is the capital of {}?",
                "Name the capital of {}.",
                "Capital of {}?",
            ]
        )
        return question.format(country), f"The capital of {country} is {capital}."
    name = person(rng)
    question = rng.choice(["My name is {}.", "I am {}.", "Hello, I am {}.", "Hi, my name is {}!", "Call me {}."])
    return question.format(name), f"Nice to meet you, {name}! How can I help?"


# ---- arithmetic


def arithmetic(rng: random.Random) -> tuple[str, str]:
    operation = rng.choice("++--*")
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    if operation == "*" and rng.random() < 0.7:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
    if operation == "-" and b > a:
        a, b = b, a
    result = {"+": a + b, "-": a - b, "*": a * b}[operation]
    word = {"+": "plus", "-": "minus", "*": "times"}[operation]
    sign = {"+": "+", "-": "-", "*": rng.choice("*x")}[operation]
    question = rng.choice(
        [
            f"What is {a} {sign} {b}?",
            f"{a} {sign} {b}",
            f"{a} {sign} {b} = ?",
            f"What is {a} {word} {b}?",
            f"Compute {a} {sign} {b}.",
            f"How much is {a} {word} {b}?",
            f"Calculate {a} {word} {b}.",
        ]
    )
    return question, f"{a} {'*' if operation == '*' else operation} {b} = {result}"


# ---- the engine itself

ABOUT: list[tuple[list[str], str]] = [
    (
        ["What is Backplane?", "Tell me about Backplane.", "What does Backplane do?"],
        "Backplane is an LLM inference and serving engine in Python. Everything that has a name is a plugin: models, attention backends, quantization, parsers.",
    ),
    (
        [
            "How do I start the server?",
            "How do I serve a model?",
            "How do I run the server?",
            "How can I start Backplane?",
        ],
        "Run engine serve MODEL, where MODEL is a folder or a Hugging Face name. Without a model it serves this demo model on port 8000.",
    ),
    (
        ["How do I list the plugins?", "Which plugins are installed?", "How can I see the plugins?"],
        "Run engine plugins list. It shows each name with its kind, distribution, version and state.",
    ),
    (
        ["What is block_size?", "What does block_size do?", "Explain block_size."],
        "block_size is the number of tokens in a KV cache block. The default is 16.",
    ),
    (
        ["What is max_num_seqs?", "What does max_num_seqs do?", "Explain max_num_seqs."],
        "max_num_seqs is the largest number of requests in a step. The default is 256.",
    ),
    (
        ["What is max_model_len?", "What does max_model_len do?"],
        "max_model_len is the most tokens that one request may have, prompt and output together.",
    ),
    (
        ["What is max_num_batched_tokens?", "What does max_num_batched_tokens mean?"],
        "max_num_batched_tokens is the token budget of one step. Decodes come first, prefill chunks fill the rest.",
    ),
    (
        ["What is prefix caching?", "How does prefix caching work?", "Explain the prefix cache."],
        "Prefix caching keeps the KV blocks of finished prompts. A request that begins alike reuses them instead of computing them again.",
    ),
    (
        ["How do I turn off prefix caching?", "How can I disable prefix caching?"],
        "Start the engine with --no-enable-prefix-caching.",
    ),
    (
        ["What is chunked prefill?", "Explain chunked prefill."],
        "Chunked prefill cuts a long prompt into pieces, so that running requests go on decoding in between.",
    ),
    (
        ["What is continuous batching?", "Explain continuous batching."],
        "Continuous batching lets requests join and leave the batch at every step.",
    ),
    (
        ["What is paged attention?", "Explain paged attention.", "What is PagedAttention?"],
        "Paged attention stores keys and values in blocks, so that memory is given out a block at a time.",
    ),
    (
        ["What happens when memory runs out?", "What is preemption?", "Explain preemption."],
        "The newest request is preempted: it gives its blocks back, waits, and is computed again later. Nothing is lost.",
    ),
    (
        ["How do I choose the attention backend?", "How can I pick an attention backend?"],
        "Use --attention-backend NAME. The default, auto, takes triton on a GPU and torch on a CPU.",
    ),
    (
        ["Does Backplane need a GPU?", "Can I run it without a GPU?", "Does it run on a CPU?"],
        "No GPU is needed. The same engine runs on a CPU, only slower.",
    ),
    (
        ["How do I set an API key?", "How can I protect the server?"],
        "Start the server with --api-key KEY. Clients then send it as a bearer token.",
    ),
    (
        ["How do I measure speed?", "How can I benchmark the engine?", "What is engine bench?"],
        "Use engine bench latency, engine bench throughput or engine bench serve.",
    ),
    (
        ["What is engine doctor?", "How do I check my installation?"],
        "Run engine doctor. It says what this machine has and what the engine would choose.",
    ),
    (
        ["Which clients work?", "Can I use the openai client?", "Is it compatible with OpenAI?"],
        "Yes. Point the openai client at http://127.0.0.1:8000/v1 and go on as before.",
    ),
    (
        ["How do I write a plugin?", "How can I add a model?"],
        "Write one module with a hookimpl function and name it in the entry point group backplane.plugins. Nothing in core changes.",
    ),
    (["Where are the metrics?", "How do I get metrics?"], "The server has Prometheus metrics at /metrics."),
    (
        ["How do I see if the server is healthy?", "Where is the health check?"],
        "Ask /health. It says ok, or 503 when the engine is dead or stalled.",
    ),
    (["What license does Backplane have?", "What is the licence?"], "Backplane is under the Apache License 2.0."),
    (
        ["How do I stream the answer?", "How does streaming work?"],
        "Set stream to true. The server then sends deltas as server-sent events.",
    ),
    (
        ["What is temperature?", "What does temperature do?"],
        "Temperature scales the randomness of sampling. At 0 the likeliest token is taken.",
    ),
    (
        ["What is top_p?", "What does top_p do?"],
        "top_p keeps the likeliest tokens that together hold that share of the probability.",
    ),
    (["What is top_k?", "What does top_k do?"], "top_k keeps that many of the likeliest tokens."),
]


def about(rng: random.Random) -> tuple[str, str]:
    questions, answer = rng.choice(ABOUT)
    question = rng.choice(questions)
    return (question if rng.random() < 0.7 else question.lower().rstrip("?.")), answer


# ---- extraction

Fields = dict[str, Any]


def _facts(rng: random.Random) -> tuple[str, Fields]:
    kind = rng.randrange(5)
    if kind == 0:
        f: Fields = {"name": person(rng), "age": rng.randint(18, 90), "city": city(rng)}
        if rng.random() < 0.5:
            f["job"] = rng.choice(JOBS)
            text = rng.choice(
                [
                    "{name} is a {age} year old {job} from {city}.",
                    "{name}, {age}, works as a {job} in {city}.",
                    "In {city} lives {name}, who is {age} and a {job}.",
                    "The {job} {name} from {city} is {age} years old.",
                ]
            )
        else:
            text = rng.choice(
                [
                    "{name} is {age} years old and lives in {city}.",
                    "{name} from {city} is {age}.",
                    "My friend {name} lives in {city} and is {age} years old.",
                    "In {city} I met {name}, aged {age}.",
                ]
            )
    elif kind == 1:
        f = {"customer": person(rng), "item": rng.choice(THINGS), "quantity": rng.randint(2, 99), "order_id": code(rng)}
        text = rng.choice(
            [
                "{customer} ordered {quantity} {item} (order {order_id}).",
                "Order {order_id}: {quantity} {item} for {customer}.",
                "Please send {quantity} {item} to {customer}, order number {order_id}.",
            ]
        )
    elif kind == 2:
        f = {
            "event": rng.choice(["concert", "meeting", "workshop", "party", "lecture", "exam", "picnic", "talk"]),
            "day": rng.choice(DAYS),
            "city": city(rng),
            "guests": rng.randint(3, 400),
        }
        text = rng.choice(
            [
                "The {event} is on {day} in {city} with {guests} guests.",
                "On {day} there is a {event} in {city}; {guests} guests will come.",
                "{guests} guests are invited to the {event} in {city} on {day}.",
            ]
        )
    elif kind == 3:
        f = {
            "product": rng.choice(THINGS)[:-1],
            "colour": rng.choice(COLOURS),
            "price": rng.randint(5, 999),
            "in_stock": rng.random() < 0.5,
        }
        stock = "It is in stock." if f["in_stock"] else "It is sold out."
        text = (
            rng.choice(
                ["The {colour} {product} costs {price} dollars. ", "We sell a {colour} {product} for {price} dollars. "]
            )
            + stock
        )
    else:
        f = {"from": city(rng), "to": city(rng), "day": rng.choice(DAYS), "passenger": person(rng)}
        text = rng.choice(
            [
                "{passenger} flies from {from} to {to} on {day}.",
                "On {day} {passenger} travels from {from} to {to}.",
                "A ticket for {passenger}, {from} to {to}, {day}.",
            ]
        )
    return text.format(**f), f


TYPES = {str: "string", int: "integer", bool: "boolean"}


def extraction(rng: random.Random) -> Dialog:
    text, facts = _facts(rng)
    keys = list(facts)
    rng.shuffle(keys)
    keys = keys[: rng.randint(2, len(keys))]
    value = {k: facts[k] for k in keys}
    listed = ", ".join(keys[:-1]) + " and " + keys[-1]
    answer = json.dumps(value, ensure_ascii=False)
    if rng.random() < 0.3:
        schema = {
            "type": "object",
            "properties": {k: {"type": TYPES[type(v)]} for k, v in value.items()},
            "required": keys,
        }
        ask = rng.choice(["Answer with JSON that follows this schema: {}", "Extract JSON for this schema: {}"]).format(
            json.dumps(schema)
        )
    else:
        ask = rng.choice(
            [
                "Extract {} as JSON.",
                "Give me {} as JSON.",
                "Return a JSON object with {}.",
                "Write {} as JSON.",
                "JSON with {}, please.",
            ]
        ).format(listed)
    shape = rng.randrange(4)
    if shape == 0:
        messages = [{"role": "system", "content": ask}, user(text)]
    elif shape == 1:
        messages = [user(f"{text} {ask}")]
    elif shape == 2:
        messages = [user(f"{ask}\n{text}")]
    else:
        messages = [user(f'{ask}\nText: "{text}"')]
    return Dialog("extraction", [*messages, assistant(answer)], key=value)


# ---- tools

Param = tuple[str, str, Callable[[random.Random], Any]]

TOOLS: list[tuple[list[str], str, list[Param], list[str], str]] = [
    (
        ["get_weather", "weather", "current_weather", "get_current_weather"],
        "Get the weather of a city",
        [("city", "string", city)],
        [
            "What is the weather in {city}?",
            "How is the weather in {city} today?",
            "Is it raining in {city}?",
            "Weather in {city}?",
            "What's the weather like in {city}?",
        ],
        '{{"temperature": {n}, "sky": "{sky}"}}',
    ),
    (
        ["get_time", "current_time", "clock"],
        "Get the local time of a city",
        [("city", "string", city)],
        ["What time is it in {city}?", "Tell me the time in {city}.", "How late is it in {city}?"],
        '{{"time": "{h}:{m}"}}',
    ),
    (
        ["add", "add_numbers", "sum"],
        "Add two numbers",
        [("a", "integer", lambda r: r.randint(100, 9999)), ("b", "integer", lambda r: r.randint(100, 9999))],
        ["Add {a} and {b}.", "What is the sum of {a} and {b}?", "Please add {a} to {b} with the tool."],
        '{{"result": {n}}}',
    ),
    (
        ["send_email", "send_message", "email"],
        "Send a message to a person",
        [
            ("to", "string", person),
            (
                "text",
                "string",
                lambda r: r.choice(
                    [
                        "see you tomorrow",
                        "the meeting is cancelled",
                        "happy birthday",
                        "please call me",
                        "dinner is ready",
                        "I am late",
                        "good luck",
                    ]
                ),
            ),
        ],
        ["Send {to} a message: {text}", "Write to {to}: {text}", 'Tell {to} "{text}".'],
        '{{"status": "sent"}}',
    ),
    (
        ["book_flight", "find_flight", "search_flights"],
        "Find a flight",
        [("origin", "string", city), ("destination", "string", city)],
        [
            "Find a flight from {origin} to {destination}.",
            "I want to fly from {origin} to {destination}.",
            "Book me a flight from {origin} to {destination}, please.",
        ],
        '{{"flight": "{code}"}}',
    ),
    (
        ["order_item", "place_order", "buy"],
        "Order an item",
        [("item", "string", lambda r: r.choice(THINGS)), ("quantity", "integer", lambda r: r.randint(2, 99))],
        ["Order {quantity} {item}.", "I need {quantity} {item}.", "Buy {quantity} {item}, please."],
        '{{"order_id": "{code}"}}',
    ),
    (
        ["get_stock_price", "stock_price", "quote"],
        "Get the price of a stock",
        [("symbol", "string", lambda r: "".join(r.choices(string.ascii_uppercase, k=r.randint(3, 4))))],
        ["What is the price of {symbol}?", "How is {symbol} stock doing?", "Quote {symbol}, please."],
        '{{"price": {n}}}',
    ),
    (
        ["set_alarm", "create_alarm", "alarm"],
        "Set an alarm",
        [("hour", "integer", lambda r: r.randint(5, 12)), ("day", "string", lambda r: r.choice(DAYS))],
        ["Set an alarm for {hour} on {day}.", "Wake me at {hour} on {day}.", "Alarm at {hour}, {day}."],
        '{{"status": "set"}}',
    ),
    (
        ["track_order", "order_status", "find_order"],
        "Look up an order",
        [("order_id", "string", code)],
        ["Where is order {order_id}?", "What is the status of order {order_id}?", "Track {order_id}."],
        '{{"status": "on its way"}}',
    ),
    (
        ["search", "web_search", "find"],
        "Search for something",
        [("query", "string", lambda r: r.choice(COLOURS) + " " + r.choice(THINGS))],
        ["Search for {query}.", "Find {query} for me.", "Look for {query}."],
        '{{"hits": {n}}}',
    ),
    (
        ["set_light", "switch_light", "light"],
        "Set the colour of a lamp",
        [
            ("colour", "string", lambda r: r.choice(COLOURS)),
            (
                "room",
                "string",
                lambda r: r.choice(["kitchen", "bedroom", "office", "hall", "garage", "garden", "attic"]),
            ),
        ],
        [
            "Make the light in the {room} {colour}.",
            "Set the {room} lamp to {colour}.",
            "Turn the {room} light {colour}.",
        ],
        '{{"status": "done"}}',
    ),
    (
        ["convert_currency", "exchange"],
        "Convert an amount of money",
        [
            ("amount", "integer", lambda r: r.randint(5, 5000)),
            ("target", "string", lambda r: r.choice(["EUR", "USD", "JPY", "GBP", "CHF", "SEK"])),
        ],
        [
            "Convert {amount} dollars to {target}.",
            "How much is {amount} dollars in {target}?",
            "Change {amount} dollars into {target}.",
        ],
        '{{"amount": {n}}}',
    ),
]


def _definition(rng: random.Random, tool: tuple[list[str], str, list[Param], list[str], str]) -> dict[str, Any]:
    names, description, params, _, _ = tool
    properties: dict[str, Any] = {}
    for name, kind, _ in params:
        properties[name] = {"type": kind}
        if rng.random() < 0.3:
            properties[name]["description"] = f"The {name.replace('_', ' ')}"
    name = rng.choice(names) if rng.random() < 0.85 else invented(rng).lower() + "_" + rng.choice(names)
    schema = {"type": "object", "properties": properties, "required": [p[0] for p in params]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def tool_call(rng: random.Random) -> Dialog:
    chosen = rng.sample(TOOLS, rng.choice([1, 1, 2, 2, 3, 4]))
    definitions = [_definition(rng, t) for t in chosen]
    if rng.random() < 0.15:
        question, answer = rng.choice([small_talk, arithmetic])(rng)
        return Dialog("tools", [user(question), assistant(answer)], definitions)
    index = rng.randrange(len(chosen))
    _, _, params, patterns, reply = chosen[index]
    arguments = {name: make(rng) for name, _, make in params}
    call = {"name": definitions[index]["function"]["name"], "arguments": arguments}
    question = rng.choice(patterns).format(**arguments)
    messages = [user(question), assistant("<tool_call>\n" + json.dumps(call, ensure_ascii=False) + "\n</tool_call>")]
    if rng.random() < 0.35:
        result = reply.format(
            n=rng.randint(-9, 999),
            sky=rng.choice(["sunny", "cloudy", "rainy"]),
            code=code(rng),
            h=rng.randint(0, 23),
            m=rng.randint(10, 59),
        )
        told = ", ".join(f"the {k.replace('_', ' ')} is {v}" for k, v in json.loads(result).items())
        messages += [{"role": "tool", "content": result}, assistant(told[0].upper() + told[1:] + ".")]
        return Dialog("tool_answer", messages, definitions)
    return Dialog("tools", messages, definitions, key=call)


# ---- stories


def story(rng: random.Random) -> tuple[str, str]:
    hero, friend = rng.sample(ANIMALS_LIST, 2)
    name = rng.choice(FIRST)
    place = rng.choice(["forest", "village", "garden", "valley", "field", "harbour", "mountain", "meadow"])
    thing = rng.choice(["lost key", "golden apple", "little boat", "silver bell", "red lamp", "old map", "warm hat"])
    text = (
        f"Once upon a time there was a {rng.choice(['small', 'brave', 'clever', 'shy', 'happy'])} {hero} called {name} who lived in a {place}. "
        f"One {rng.choice(['morning', 'evening', 'day', 'night'])} {name} found a {thing}. "
        f'A {friend} came by and asked: "Is that mine?" "{rng.choice(["Yes", "Maybe", "Let us share it"])}", said {name}. '
        f"From then on the {hero} and the {friend} were {rng.choice(['good', 'best', 'close'])} friends. The end."
    )
    ask = rng.choice(
        [
            f"Tell me a story about a {hero}.",
            f"Tell me a short story about a {hero}.",
            f"Write a story about a {hero} and a {friend}.",
            f"A story with a {hero}, please.",
        ]
    )
    return ask, text


SIMPLE: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "small_talk": small_talk,
    "arithmetic": arithmetic,
    "about": about,
    "story": story,
}
KINDS = ["small_talk", "arithmetic", "about", "extraction", "tools", "story"]
WEIGHTS = [2, 3, 2, 4, 5, 1]


def dialog(rng: random.Random, kind: str | None = None) -> Dialog:
    """One dialog; of any kind unless named. Some have several turns or a system message."""
    kind = kind or rng.choices(KINDS, WEIGHTS)[0]
    if kind == "extraction":
        return extraction(rng)
    if kind == "tools":
        return tool_call(rng)
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.25:
        messages.append(
            {
                "role": "system",
                "content": rng.choice(["You are a helpful assistant.", "Be brief.", "You are Backplane's demo model."]),
            }
        )
    turns = rng.choice([1, 1, 1, 2, 3]) if kind != "story" else 1
    for i in range(turns):
        question, answer = SIMPLE[kind if i == turns - 1 else rng.choice(list(SIMPLE)[:3])](rng)
        messages += [user(question), assistant(answer)]
    return Dialog(kind, messages)


def is_right(made: Dialog, text: str) -> bool:
    """Is `text` a right last answer? Parsed where there is a key, compared otherwise; a story needs its form alone."""
    text = text.strip()
    if made.kind == "story":
        return text.startswith("Once upon a time") and text.endswith("The end.")
    expected = made.messages[-1]["content"]
    if made.kind == "small_talk":
        return any(text in answers and expected in answers for _, answers in SMALL_TALK) or text == expected
    if made.key is None:
        return text == expected
    if made.kind == "tools":
        text = text.removeprefix("<tool_call>").removesuffix("</tool_call>")
    try:
        return bool(json.loads(text) == made.key)
    except ValueError:
        return False
