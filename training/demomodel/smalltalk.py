"""Small talk and simple facts: greetings, who the model is, jokes, capitals, opposites, counting, remembering a name."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from demomodel import words
from demomodel.sample import Check, Sample, assistant, system, user

ME = (
    "I am the Backplane demo model, a very small language model that comes with the Backplane engine so that "
    "everything can be tried without a download."
)

# questions -> answers, any of which is right
FIXED: list[tuple[list[str], list[str]]] = [
    (
        ["Hello", "Hi", "Hi there", "Hello there", "Hey", "Good morning", "Good evening", "Good day", "Greetings"],
        ["Hello! How can I help you?", "Hi! What can I do for you?"],
    ),
    (
        [
            "Who are you?",
            "What are you?",
            "Who is this?",
            "Introduce yourself.",
            "Tell me about yourself.",
            "What is your name?",
            "What model are you?",
            "Which model is this?",
            "Who am I talking to?",
            "Can you introduce yourself?",
            "Are you a person?",
            "Are you ChatGPT?",
            "What's your name?",
        ],
        [ME],
    ),
    (
        ["How are you?", "How are you doing?", "How is it going?", "How do you feel?", "Are you well?"],
        ["I am fine, thank you. How can I help you?"],
    ),
    (
        [
            "What can you do?",
            "What can I ask you?",
            "How can you help me?",
            "Help",
            "What are you good at?",
            "What do you know?",
            "Show me what you can do.",
            "What should I ask you?",
        ],
        [
            "I can chat a little, do sums with small numbers, answer questions about the Backplane engine, extract JSON "
            "from a sentence, call tools and tell short stories."
        ],
    ),
    (
        ["Thanks", "Thank you", "Thank you very much", "Thanks a lot", "Great, thanks", "Many thanks", "Cheers"],
        ["You are welcome!", "You are welcome! Is there anything else?"],
    ),
    (
        ["Bye", "Goodbye", "See you", "See you later", "Good night", "I have to go", "That is all", "Bye bye"],
        ["Goodbye! Have a nice day."],
    ),
    (["Sorry", "I am sorry", "My mistake"], ["No problem at all."]),
    (["OK", "Okay", "I see", "Good", "Great", "Nice", "Cool", "Well done", "Good job"], ["I am glad to hear that."]),
    (
        [
            "How big are you?",
            "How many parameters do you have?",
            "How large is this model?",
            "Are you a large model?",
            "What size are you?",
            "How small are you?",
        ],
        ["I am very small: I have about five million parameters."],
    ),
    (
        [
            "Who made you?",
            "Who trained you?",
            "Where do you come from?",
            "How were you trained?",
            "What were you trained on?",
            "Who built you?",
        ],
        ["I was trained from scratch on text made by a script in the Backplane repository."],
    ),
    (
        [
            "Are you smart?",
            "Can I trust you?",
            "Are your answers right?",
            "Do you make mistakes?",
            "Do you know everything?",
            "Are you always right?",
        ],
        ["I am very small and often wrong. Please use me for trying out the engine, not for answers that matter."],
    ),
    (
        [
            "Do you like music?",
            "Do you like food?",
            "Do you have feelings?",
            "Do you sleep?",
            "Do you dream?",
            "Are you happy?",
            "Do you have friends?",
        ],
        ["I am only a small language model, so I do not, but I like to chat."],
    ),
    (["What is the meaning of life?"], ["Some say it is 42."]),
    (
        ["What languages do you speak?", "Do you speak German?", "Do you speak French?", "Can you speak Spanish?"],
        ["I only speak English."],
    ),
    (["How many days are in a week?", "How many days does a week have?"], ["A week has seven days."]),
    (["How many months are in a year?", "How many months does a year have?"], ["A year has twelve months."]),
    (["How many hours are in a day?", "How many hours does a day have?"], ["A day has 24 hours."]),
    (["How many minutes are in an hour?", "How many minutes does an hour have?"], ["An hour has 60 minutes."]),
    (["How many seconds are in a minute?", "How many seconds does a minute have?"], ["A minute has 60 seconds."]),
    (["What is the largest planet?", "Which planet is the largest?"], ["Jupiter is the largest planet."]),
    (["What is the largest ocean?", "Which ocean is the largest?"], ["The Pacific is the largest ocean."]),
    (["What is the highest mountain?", "Which mountain is the highest?"], ["Mount Everest is the highest mountain."]),
    (["How many legs does a spider have?", "How many legs has a spider?"], ["A spider has eight legs."]),
    (["How many legs does an ant have?", "How many legs has an ant?"], ["An ant has six legs."]),
    (["What is water made of?", "What does water consist of?"], ["Water is made of hydrogen and oxygen."]),
    (["At what temperature does water boil?", "When does water boil?"], ["Water boils at 100 degrees Celsius."]),
    (["At what temperature does water freeze?", "When does water freeze?"], ["Water freezes at 0 degrees Celsius."]),
    (["What do bees make?", "What do bees produce?"], ["Bees make honey."]),
    (["Which is the closest star?", "What is the closest star to Earth?"], ["The sun is the closest star."]),
    (["How many continents are there?", "How many continents does the Earth have?"], ["There are seven continents."]),
    (["Which animal is the largest?", "What is the largest animal?"], ["The blue whale is the largest animal."]),
    (
        ["What is a token?", "What are tokens?"],
        ["A token is a piece of text, such as a word or a part of a word. Models read and write text as tokens."],
    ),
    (
        ["What is a language model?", "What is an LLM?", "Explain language models."],
        ["A language model is a program that predicts the next token of a text, again and again."],
    ),
]

JOKES = [
    "Why did the computer go to the doctor? It had a virus.",
    "Why was the cache so calm? It had seen it all before.",
    "What do you call a bear with no teeth? A gummy bear.",
    "Why do programmers mix up Halloween and Christmas? Because Oct 31 equals Dec 25.",
    "Why did the token cross the road? To get to the next block.",
    "What is orange and sounds like a parrot? A carrot.",
    "Why can a bicycle not stand on its own? It is two tired.",
    "What did zero say to eight? Nice belt.",
    "Why was the math book sad? It had too many problems.",
    "How does the ocean say hello? It waves.",
]

COLOR_OF = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "blood": "red",
    "a lemon": "yellow",
    "a banana": "yellow",
    "coal": "black",
    "an orange": "orange",
    "chocolate": "brown",
    "a tomato": "red",
    "a polar bear": "white",
    "an elephant": "grey",
    "a flamingo": "pink",
    "milk": "white",
    "the sun": "yellow",
    "a raven": "black",
    "a cucumber": "green",
    "a strawberry": "red",
    "a frog": "green",
    "a carrot": "orange",
    "a plum": "purple",
}
OPPOSITES = [
    ("hot", "cold"),
    ("big", "small"),
    ("day", "night"),
    ("up", "down"),
    ("left", "right"),
    ("fast", "slow"),
    ("open", "closed"),
    ("old", "young"),
    ("light", "dark"),
    ("good", "bad"),
    ("happy", "sad"),
    ("rich", "poor"),
    ("full", "empty"),
    ("early", "late"),
    ("hard", "soft"),
    ("long", "short"),
    ("wet", "dry"),
    ("high", "low"),
    ("strong", "weak"),
    ("near", "far"),
    ("true", "false"),
    ("loud", "quiet"),
    ("clean", "dirty"),
    ("thick", "thin"),
]
SOUNDS = {
    "dog": "A dog says woof.",
    "cat": "A cat says meow.",
    "cow": "A cow says moo.",
    "duck": "A duck says quack.",
    "sheep": "A sheep says baa.",
    "pig": "A pig says oink.",
    "lion": "A lion roars.",
    "owl": "An owl says hoo.",
    "bee": "A bee buzzes.",
    "horse": "A horse neighs.",
    "rooster": "A rooster crows.",
    "frog": "A frog croaks.",
}
HOME = {
    "penguin": "on the ice",
    "camel": "in the desert",
    "whale": "in the sea",
    "fox": "in the forest",
    "giraffe": "in the savanna",
    "otter": "by the river",
    "panda": "in bamboo forests",
    "monkey": "in the jungle",
    "bee": "in a hive",
    "bear": "in the forest",
    "frog": "in the pond",
    "kangaroo": "in Australia",
}
NUMBER_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty
""".split()

UNKNOWN = (
    "I am a very small demo model and I do not know that. You can ask me for a sum, a story, some JSON, or about the "
    "Backplane engine."
)

_OPENINGS = [
    "",
    "",
    "",
    "",
    "Please tell me: ",
    "Tell me, ",
    "Hey, ",
    "Hi, ",
    "A question: ",
    "Quick question: ",
    "Do you know this: ",
    "One more question. ",
    "Can you tell me this? ",
]


def casual(rng: Random, text: str, openings: bool = True) -> str:
    """The same question as different people would type it."""
    if openings and text.endswith("?") and rng.random() < 0.35:
        opening = rng.choice(_OPENINGS)
        text = opening + (text if opening.endswith((". ", "? ", "")) or not opening else text[0].lower() + text[1:])
    roll = rng.random()
    if roll < 0.2:
        text = text.lower()
    elif roll < 0.3:
        text = text.rstrip("?.!")
    elif roll < 0.4:
        text = text.lower().rstrip("?.!")
    elif roll < 0.5 and not text.endswith((".", "?", "!")):
        text += rng.choice(["!", ".", "!!"])
    elif roll < 0.53 and text.endswith("?"):
        text = text[:-1] + " please?"
    return text


def _one(question: str, answer: str) -> Sample:
    return Sample("small talk", [user(question), assistant(answer)], Check("one_of", [answer]))


def _fixed(rng: Random) -> Sample:
    questions, answers = rng.choice(FIXED[:12] if rng.random() < 0.6 else FIXED)
    question = casual(rng, rng.choice(questions))
    return Sample("small talk", [user(question), assistant(rng.choice(answers))], Check("one_of", answers))


def _joke(rng: Random) -> Sample:
    question = rng.choice(
        [
            "Tell me a joke.",
            "Do you know a joke?",
            "Make me laugh.",
            "A joke, please.",
            "Another joke!",
            "Say something funny.",
            "Can you tell me a joke?",
            "I want to hear a joke.",
            "Give me a joke.",
        ]
    )
    return Sample("small talk", [user(casual(rng, question)), assistant(rng.choice(JOKES))], Check("one_of", JOKES))


def _capital(rng: Random) -> Sample:
    country = rng.choice(list(words.CAPITALS))
    capital = words.CAPITALS[country]
    if rng.random() < 0.2:
        question = rng.choice(
            [
                f"{capital} is the capital of which country?",
                f"Which country has the capital {capital}?",
                f"Of which country is {capital} the capital?",
            ]
        )
        return _one(casual(rng, question), f"{capital} is the capital of {country}.")
    question = rng.choice(
        [
            f"What is the capital of {country}?",
            f"Which city is the capital of {country}?",
            f"Capital of {country}?",
            f"Name the capital of {country}.",
            f"What's the capital city of {country}?",
            f"Tell me the capital of {country}.",
            f"What is the capital city of {country}?",
            f"Do you know the capital of {country}?",
        ]
    )
    return _one(casual(rng, question), f"The capital of {country} is {capital}.")


def _color(rng: Random) -> Sample:
    what, color = rng.choice(list(COLOR_OF.items()))
    question = rng.choice(
        [
            f"What color is {what}?",
            f"What colour is {what}?",
            f"Which color does {what} have?",
            f"Which colour has {what}?",
            f"Tell me the color of {what}.",
            f"What is the colour of {what}?",
        ]
    )
    return _one(casual(rng, question), f"{what[0].upper()}{what[1:]} is {color}.")


def _opposite(rng: Random) -> Sample:
    pair = rng.choice(OPPOSITES)
    a, b = pair if rng.random() < 0.5 else pair[::-1]
    question = rng.choice(
        [
            f"What is the opposite of {a}?",
            f"Opposite of {a}?",
            f"Name the opposite of {a}.",
            f"What's the opposite of '{a}'?",
            f"Which word is the opposite of {a}?",
        ]
    )
    return _one(casual(rng, question), f"The opposite of {a} is {b}.")


def _animal(rng: Random) -> Sample:
    if rng.random() < 0.5:
        animal, answer = rng.choice(list(SOUNDS.items()))
        question = rng.choice(
            [
                f"What does a {animal} say?",
                f"What sound does a {animal} make?",
                f"Which sound does the {animal} make?",
                f"How does a {animal} sound?",
            ]
        )
    else:
        animal, home = rng.choice(list(HOME.items()))
        answer = f"The {animal} lives {home}."
        question = rng.choice(
            [
                f"Where does the {animal} live?",
                f"Where does a {animal} live?",
                f"Where do I find a {animal}?",
                f"In which place does a {animal} live?",
            ]
        )
    return _one(casual(rng, question), answer)


def _calendar(rng: Random) -> Sample:
    names = words.WEEKDAYS if rng.random() < 0.5 else words.MONTHS
    unit = "day" if names is words.WEEKDAYS else "month"
    i = rng.randrange(len(names))
    after, before = names[(i + 1) % len(names)], names[i - 1]
    if rng.random() < 0.6:
        question = rng.choice(
            [
                f"Which {unit} comes after {names[i]}?",
                f"What comes after {names[i]}?",
                f"What {unit} follows {names[i]}?",
                f"Which {unit} is after {names[i]}?",
            ]
        )
        return _one(casual(rng, question), f"{after} comes after {names[i]}.")
    question = rng.choice(
        [
            f"Which {unit} comes before {names[i]}?",
            f"What comes before {names[i]}?",
            f"Which {unit} is before {names[i]}?",
        ]
    )
    return _one(casual(rng, question), f"{before} comes before {names[i]}.")


def _counting(rng: Random) -> Sample:
    start, steps = rng.randint(0, 60), rng.randint(3, 20)
    numbers = list(range(start, start + steps))
    question = f"Count from {numbers[0]} to {numbers[-1]}"
    if rng.random() < 0.3:
        numbers.reverse()
        question = f"Count down from {numbers[0]} to {numbers[-1]}"
    if rng.random() < 0.2 and max(numbers) <= 20:
        names = [NUMBER_WORDS[n] for n in numbers]
        return _one(casual(rng, question + " in words."), ", ".join(names) + ".")
    return _one(casual(rng, question + "."), ", ".join(map(str, numbers)) + ".")


def _repeat(rng: Random) -> Sample:
    text = rng.choice(
        [
            words.sentence(rng),
            " ".join(words.invented(rng) for _ in range(rng.randint(1, 6))),
            words.code(rng),
            words.full_name(rng),
            words.email(rng),
        ]
    )
    question = rng.choice(
        [
            "Repeat after me: {}",
            "Say: {}",
            "Repeat this text: {}",
            "Write exactly this: {}",
            "Echo: {}",
            "Please repeat: {}",
        ]
    ).format(text)
    return _one(question, text)


def _items(rng: Random) -> Sample:
    """Lists that the user gives, in another order or form."""
    items = rng.sample(words.OBJECTS + words.FOODS + words.ANIMALS, rng.randint(2, 6))
    if rng.random() < 0.3:
        items = [words.invented(rng) for _ in items]
    joined = ", ".join(items)
    roll = rng.randrange(6)
    if roll == 0:
        return _one(f"How many items are in this list: {joined}?", f"There are {len(items)} items in the list.")
    if roll == 1:
        return _one(f"What is the first item of this list: {joined}?", f"The first item is {items[0]}.")
    if roll == 2:
        return _one(f"What is the last item of this list: {joined}?", f"The last item is {items[-1]}.")
    if roll == 3:
        return _one(f"Reverse this list: {joined}", ", ".join(items[::-1]))
    if roll == 4:
        return _one(f"Write this as a list with bullets: {joined}", "\n".join(f"- {i}" for i in items))
    return _one(f"Number these items: {joined}", "\n".join(f"{n}. {i}" for n, i in enumerate(items, 1)))


def _unknown(rng: Random) -> Sample:
    name, what = words.full_name(rng), words.thing(rng)
    question = rng.choice(
        [
            f"Who is {name}?",
            f"Where does {name} live?",
            f"What does {name} do?",
            f"Who invented the {what}?",
            f"What is the population of {words.city(rng)}?",
            f"What is a {words.invented(rng)}?",
            f"When was the {what} invented?",
            f"How old is {name}?",
            f"Who wrote the book about the {what}?",
            f"What happened in {rng.randint(1500, 1990)}?",
            f"Explain {rng.choice(words.TOPICS)} to me.",
            f"Who won the game in {words.city(rng)}?",
            f"How do I repair a {what}?",
            "What is the news today?",
            f"What do you think about {rng.choice(words.TOPICS)}?",
            f"Why is the {what} so expensive?",
            f"How tall is the tower of {words.city(rng)}?",
            f"Write an essay about {rng.choice(words.TOPICS)}.",
            f"What is the capital of {words.invented(rng, 2, 3).capitalize()}?",
            f"How deep is lake {words.invented(rng)}?",
        ]
    )
    return _one(casual(rng, question), UNKNOWN)


def _remember(rng: Random) -> Sample:
    """A name, place or colour that is said early and asked for later."""
    name, keys = words.first_name(rng), list[str]()
    messages = [
        user(
            rng.choice(
                ["My name is {}.", "I am {}.", "Hi, I am {}.", "Hello, my name is {}.", "I'm {}.", "Call me {}."]
            ).format(name)
        ),
        assistant(f"Nice to meet you, {name}!"),
    ]
    asked, answer = rng.choice([("What is my name?", f"Your name is {name}."), ("Who am I?", f"You are {name}.")])
    if rng.random() < 0.5:
        place = words.city(rng)
        messages += [
            user(rng.choice(["I live in {}.", "I come from {}.", "My home is {}."]).format(place)),
            assistant(f"{place} sounds like a nice place."),
        ]
        if rng.random() < 0.5:
            asked, answer = "Where do I live?", f"You live in {place}."
    if rng.random() < 0.5:
        for _ in range(rng.randint(1, 3)):
            between = rng.choice([_fixed, _capital, _color, _opposite])(rng)
            messages += between.messages
            keys += between.prompts()
    if rng.random() < 0.8:
        messages += [user(casual(rng, rng.choice([asked, f"Do you remember? {asked}"]))), assistant(answer)]
    # the name is what is new in each of these
    return Sample("small talk", messages, Check("one_of", [messages[-1]["content"]]), keys=[*keys, f"remember {name}"])


def _persona(rng: Random) -> Sample:
    """Facts that a system prompt gives."""
    roll = rng.randrange(3)
    if roll == 0:
        name = words.first_name(rng)
        rule = rng.choice(["Your name is {}.", "You are called {}.", "You are {}, a helpful assistant."]).format(name)
        question = rng.choice(["Who are you?", "What is your name?", "What are you called?", "Introduce yourself."])
        answer = f"I am {name}, and I run on the Backplane engine."
    elif roll == 1:
        day = words.date(rng)
        rule = rng.choice(["Today is {}.", "You are a helpful assistant. Today is {}.", "Current date: {}"]).format(day)
        question = rng.choice(["What day is it?", "What is the date today?", "Which day is today?", "What's the date?"])
        answer = f"Today is {day}."
    else:
        place = words.city(rng)
        rule = rng.choice(["The user is in {}.", "You are a helpful assistant. The user lives in {}."]).format(place)
        question = rng.choice(["Where am I?", "In which city am I?", "Where do I live?"])
        answer = f"You are in {place}."
    return Sample(
        "small talk",
        [system(rule), user(casual(rng, question)), assistant(answer)],
        Check("one_of", [answer]),
        keys=[f"{rule} {question}"],
    )


def _lookup(rng: Random) -> Sample:
    """A list of notes in the prompt, and a question about one of them."""
    count = rng.choice([2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32])
    what = rng.choice(["code", "room", "city", "price", "color", "phone number", "key", "email"])
    make: dict[str, Callable[[Random], object]] = {
        "code": words.code,
        "room": lambda r: r.randint(1, 999),
        "city": words.city,
        "price": words.price,
        "color": lambda r: r.choice(words.COLORS),
        "phone number": words.phone,
        "key": words.invented,
        "email": words.email,
    }
    names = list(dict.fromkeys(words.first_name(rng) for _ in range(count)))
    facts = [(name, make[what](rng)) for name in names]
    form = rng.choice(["The {w} of {n} is {v}.", "{n}: {v}", "- {n}: {v}", "{n} has the {w} {v}.", "{w} for {n} = {v}"])
    notes = "\n".join(form.format(w=what, n=n, v=v) for n, v in facts)
    name, value = rng.choice(facts)
    question = rng.choice(
        [
            f"What is the {what} of {name}?",
            f"Which {what} does {name} have?",
            f"{what} of {name}?",
            f"Find the {what} of {name}.",
        ]
    )
    head = rng.choice(["Here are some notes:", f"A list of each {what}:", "Notes:", f"Each {what}:"])
    answer = f"The {what} of {name} is {value}."
    messages = [user(f"{head}\n{notes}\n\n{question}"), assistant(answer)]
    if rng.random() < 0.4:
        messages = [system(f"{head}\n{notes}"), user(question), assistant(answer)]
    return Sample("lookup", messages, Check("one_of", [answer]), keys=[f"{name} {value} {len(facts)}"])


_MAKERS: list[tuple[Callable[[Random], Sample], float]] = [
    (_fixed, 5),
    (_joke, 1),
    (_capital, 3),
    (_color, 1),
    (_opposite, 1),
    (_animal, 1),
    (_calendar, 1),
    (_counting, 2),
    (_repeat, 3),
    (_items, 3),
    (_unknown, 2.5),
    (_remember, 2),
    (_persona, 1.5),
]


def make(rng: Random) -> Sample:
    maker = rng.choices([m for m, _ in _MAKERS], [w for _, w in _MAKERS])[0]
    return maker(rng)


def make_lookup(rng: Random) -> Sample:
    return _lookup(rng)
