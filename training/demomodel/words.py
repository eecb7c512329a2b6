"""The words that the training text is made of: lists of real ones, and makers of invented ones.

Invented words are what teaches a model this small to copy: a list of any length would be learnt by heart.
"""

from __future__ import annotations

from random import Random

FIRST_NAMES = """
Ada Adam Agnes Aisha Akira Alan Alice Amara Amir Ana Anders Andrea Anna Anton Aria Arjun Astrid Ayo Ben Bella Bianca
Boris Bruno Carla Carlos Cecilia Chen Chloe Clara Daniel Daria David Deniz Diana Diego Dina Dora Edgar Elena Eli
Ella Elsa Emil Emma Erik Esther Eva Fatima Felix Fiona Frank Freya Gabriel George Gina Grace Greta Hana Hannah
Hassan Helen Henry Hugo Ida Igor Ines Ingrid Irene Iris Isaac Ivan Jack Jakob James Jana Jane Jasmin Joan Joel John
Jonas Julia Kai Karim Karin Kate Kenji Klara Lara Lars Laura Lea Leila Leo Leon Lena Liam Lily Lina Linda Louis
Lucia Luis Luna Magnus Maja Mara Marco Maria Marta Martin Mateo Maya Mei Mia Michael Milan Mina Mira Mohamed Nadia
Naomi Nico Nina Noah Nora Olga Oliver Omar Oscar Otto Paula Pavel Pedro Peter Petra Priya Rafael Raj Rita Robert
Rosa Ruth Sam Samira Sana Sara Simon Sofia Stefan Susan Tara Theo Thomas Tim Tina Tom Uma Vera Victor Viola Wanda
Wei Yara Yasmin Yuki Zara Zoe
""".split()

LAST_NAMES = """
Adler Almeida Anderson Bauer Becker Berg Bianchi Brown Carter Chen Clark Cohen Costa Cruz Davis Diaz Dubois Eriksen
Evans Fischer Fontaine Foster Garcia Gomez Gray Green Gupta Haas Hall Hansen Harris Hoffmann Horvat Hughes Ito
Ivanov Jackson Jansen Jensen Johnson Jones Kaya Keller Khan Kim King Klein Kovacs Kumar Larsen Lee Lewis Lopez
Lindberg Marino Martin Meyer Miller Moore Moreau Morgan Mori Murphy Nakamura Nguyen Nielsen Novak Okafor Olsen
Ortega Owens Park Patel Pereira Peters Petrov Popescu Price Quinn Ramos Reed Reyes Ricci Rivera Roberts Rossi Roth
Russo Sanchez Santos Sato Schmidt Schneider Scott Sharma Silva Singh Smith Stone Suzuki Tanaka Taylor Torres Turner
Varga Vogel Walker Wagner Wang Weber White Wilson Wolf Wong Wright Yamamoto Young Zhang Ziegler
""".split()

CAPITALS = {
    "Argentina": "Buenos Aires",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Bolivia": "Sucre",
    "Brazil": "Brasilia",
    "Bulgaria": "Sofia",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Colombia": "Bogota",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Cyprus": "Nicosia",
    "Denmark": "Copenhagen",
    "Ecuador": "Quito",
    "Egypt": "Cairo",
    "Estonia": "Tallinn",
    "Ethiopia": "Addis Ababa",
    "Finland": "Helsinki",
    "France": "Paris",
    "Georgia": "Tbilisi",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "India": "New Delhi",
    "Indonesia": "Jakarta",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Jamaica": "Kingston",
    "Japan": "Tokyo",
    "Jordan": "Amman",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Lebanon": "Beirut",
    "Lithuania": "Vilnius",
    "Luxembourg": "Luxembourg City",
    "Malaysia": "Kuala Lumpur",
    "Malta": "Valletta",
    "Mexico": "Mexico City",
    "Mongolia": "Ulaanbaatar",
    "Morocco": "Rabat",
    "Nepal": "Kathmandu",
    "the Netherlands": "Amsterdam",
    "New Zealand": "Wellington",
    "Nigeria": "Abuja",
    "Norway": "Oslo",
    "Pakistan": "Islamabad",
    "Peru": "Lima",
    "the Philippines": "Manila",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Romania": "Bucharest",
    "Russia": "Moscow",
    "Senegal": "Dakar",
    "Serbia": "Belgrade",
    "Singapore": "Singapore",
    "Slovakia": "Bratislava",
    "Slovenia": "Ljubljana",
    "South Korea": "Seoul",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Switzerland": "Bern",
    "Thailand": "Bangkok",
    "Tunisia": "Tunis",
    "Turkey": "Ankara",
    "Ukraine": "Kyiv",
    "the United Kingdom": "London",
    "the United States": "Washington",
    "Uruguay": "Montevideo",
    "Venezuela": "Caracas",
    "Vietnam": "Hanoi",
    "Zambia": "Lusaka",
}

CITIES = sorted(
    {
        *CAPITALS.values(),
        *[
            "Antwerp",
            "Atlanta",
            "Auckland",
            "Austin",
            "Barcelona",
            "Basel",
            "Bergen",
            "Bilbao",
            "Bologna",
            "Boston",
            "Bremen",
            "Bristol",
            "Chicago",
            "Cologne",
            "Cordoba",
            "Dallas",
            "Denver",
            "Detroit",
            "Dresden",
            "Dubai",
            "Durban",
            "Florence",
            "Frankfurt",
            "Geneva",
            "Genoa",
            "Glasgow",
            "Graz",
            "Hamburg",
            "Houston",
            "Istanbul",
            "Kobe",
            "Krakow",
            "Kyoto",
            "Lagos",
            "Leeds",
            "Leipzig",
            "Liverpool",
            "Lyon",
            "Malmo",
            "Manchester",
            "Marseille",
            "Melbourne",
            "Miami",
            "Milan",
            "Montreal",
            "Mumbai",
            "Munich",
            "Nagoya",
            "Nantes",
            "Naples",
            "Nice",
            "Osaka",
            "Palermo",
            "Perth",
            "Philadelphia",
            "Phoenix",
            "Pisa",
            "Porto",
            "Portland",
            "Rotterdam",
            "Salzburg",
            "Seattle",
            "Seville",
            "Shanghai",
            "Split",
            "Sydney",
            "Tampere",
            "Toronto",
            "Toulouse",
            "Turin",
            "Utrecht",
            "Valencia",
            "Vancouver",
            "Venice",
            "Verona",
            "Winnipeg",
            "York",
            "Zurich",
        ],
        "New York",
        "San Francisco",
        "Los Angeles",
        "Cape Town",
        "Rio de Janeiro",
        "Hong Kong",
        "The Hague",
        "San Diego",
    }
)

COLORS = """
red blue green yellow black white orange purple pink brown grey silver gold turquoise violet
""".split()

ANIMALS = """
fox owl bear cat dog rabbit mouse hedgehog squirrel deer wolf frog turtle heron crow goose duck horse goat sheep
donkey otter badger beaver lynx whale dolphin seal penguin parrot pigeon sparrow snail beetle bee ant spider lizard
tiger lion elephant giraffe monkey camel panda koala kangaroo swan robin
""".split()

OBJECTS = """
lamp chair table desk sofa bookshelf clock mirror carpet pillow blanket mug kettle teapot pan knife fork spoon plate
bowl bottle basket bucket broom ladder hammer drill saw screwdriver rope lantern candle torch backpack suitcase
umbrella jacket scarf hat gloves boots shoes shirt sweater watch ring necklace wallet camera tripod laptop keyboard
monitor printer headphones speaker phone charger cable battery radio guitar violin piano drum flute notebook pencil
pen stapler calendar map compass telescope microscope bicycle helmet tent kite ball racket skateboard puzzle robot
drone toaster blender fridge heater fan vase painting poster key coin bell whistle feather shell stone seed book
letter stamp box boat wagon
""".split()

FOODS = """
bread cheese apple pear banana orange plum cherry grape lemon tomato potato carrot onion pepper soup salad pizza
pasta rice noodles curry omelette pancake waffle cake cookie muffin chocolate honey jam yoghurt coffee tea juice
milk sandwich burger dumpling taco
""".split()

ADJECTIVES = """
small large old new wooden green quiet bright heavy light soft round tiny golden silver broken shiny warm cold brave
clever kind shy curious gentle lazy proud lonely cheerful patient
""".split()

JOBS = """
nurse teacher baker carpenter engineer doctor farmer gardener lawyer painter pilot plumber programmer librarian
musician photographer cook waiter tailor translator electrician chemist architect dentist driver editor biologist
mechanic accountant actor judge journalist designer surgeon geologist sailor
""".split()

COMPANY_ENDS = ["Ltd", "Inc", "GmbH", "Labs", "Systems", "Foods", "Energy", "Media", "Tools", "Group"]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = """
January February March April May June July August September October November December
""".split()
LANGUAGES = """
English German French Spanish Italian Portuguese Dutch Danish Swedish Polish Czech Greek Turkish Arabic Hindi
Japanese Korean Chinese Russian Finnish
""".split()
CURRENCIES = ["USD", "EUR", "GBP", "JPY", "CHF", "SEK", "NOK", "PLN", "CAD", "AUD", "INR", "BRL"]
SUBJECTS = """
budget meeting lunch invoice report holiday launch contract interview delivery review workshop party training plan
offer draft photos tickets survey agenda schedule
""".split()
TOPICS = """solar panels, electric cars, jazz music, bread baking, space travel, chess openings, garden design, deep sea
fish, roman history, bird watching, house plants, sailing knots, mountain hiking, coffee beans, wind energy, street
photography, black holes, water colours, old castles, folk tales, marathon training, robot arms, train travel, film
cameras, cheese making, language learning, volcanoes, bee keeping, wood carving, weather maps""".replace(
    "\n", " "
).split(", ")

_ONSETS = """
b br c ch cl d dr f fl g gl gr h j k kr l m n p pl pr qu r s sh sk sl sp st t th tr v w x y z
""".split()
_VOWELS = ["a", "e", "i", "o", "u", "a", "e", "i", "o", "u", "ai", "ea", "ee", "ie", "oa", "ou", "y"]
_CODAS = ["", "", "", "", "l", "n", "r", "s", "t", "m", "k", "ck", "nd", "rt", "st", "x", "sh", "ng", "v", "d"]


def invented(rng: Random, least: int = 1, most: int = 3) -> str:
    """A lower-case word that is probably in no dictionary."""
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.randint(least, most))]
    return "".join(parts)


def first_name(rng: Random) -> str:
    return rng.choice(FIRST_NAMES) if rng.random() < 0.6 else invented(rng, 1, 2).capitalize()


def last_name(rng: Random) -> str:
    return rng.choice(LAST_NAMES) if rng.random() < 0.6 else invented(rng, 1, 3).capitalize()


def full_name(rng: Random) -> str:
    return f"{first_name(rng)} {last_name(rng)}"


def city(rng: Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.65 else invented(rng, 2, 3).capitalize()


def company(rng: Random) -> str:
    name = last_name(rng) if rng.random() < 0.3 else invented(rng, 1, 3).capitalize()
    return f"{name} {rng.choice(COMPANY_ENDS)}" if rng.random() < 0.7 else name


def thing(rng: Random) -> str:
    """Something that can be bought or fetched: one to three words."""
    noun = rng.choice(OBJECTS) if rng.random() < 0.75 else invented(rng, 1, 3)
    roll = rng.random()
    if roll < 0.35:
        return noun
    if roll < 0.7:
        return f"{rng.choice(COLORS if roll < 0.5 else ADJECTIVES)} {noun}"
    return f"{rng.choice(ADJECTIVES)} {rng.choice(COLORS)} {noun}" if roll < 0.8 else f"{rng.choice(FOODS)} {noun}"


def code(rng: Random) -> str:
    """An identifier as shops and ticket systems write them."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 5)))
    roll = rng.random()
    if roll < 0.4:
        return f"{letters}-{digits}"
    if roll < 0.6:
        return letters + digits
    if roll < 0.75:
        return digits
    if roll < 0.85:
        return f"{letters.lower()}{digits}"
    return f"{letters}-{digits[:2]}-{rng.choice('ABCDEFXYZ')}{rng.randint(1, 99)}"


def email(rng: Random) -> str:
    user = first_name(rng).lower()
    if rng.random() < 0.6:
        user += rng.choice([".", "_", ""]) + last_name(rng).lower()
    if rng.random() < 0.2:
        user += str(rng.randint(1, 99))
    host = rng.choice(["example", "mail", "post", invented(rng, 1, 2), invented(rng, 2, 3)])
    return f"{user}@{host}.{rng.choice(['com', 'org', 'net', 'io', 'de', 'eu'])}"


def phone(rng: Random) -> str:
    groups = [str(rng.randint(10, 999)) for _ in range(rng.randint(2, 4))]
    return ("+" + str(rng.randint(1, 99)) + " " if rng.random() < 0.5 else "") + rng.choice([" ", "-"]).join(groups)


def date(rng: Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1998, 2035)
    roll = rng.random()
    if roll < 0.45:
        return f"{year}-{month:02d}-{day:02d}"
    if roll < 0.65:
        return f"{MONTHS[month - 1]} {day}"
    if roll < 0.8:
        return f"{day} {MONTHS[month - 1]} {year}"
    return f"{MONTHS[month - 1]} {day}, {year}"


def clock_time(rng: Random) -> str:
    roll = rng.random()
    if roll < 0.6:
        return f"{rng.randint(0, 23):02d}:{rng.choice([0, 0, 15, 30, 30, 45, rng.randint(0, 59)]):02d}"
    return f"{rng.randint(1, 12)} {rng.choice(['am', 'pm'])}"


def price(rng: Random) -> float | int:
    roll = rng.random()
    if roll < 0.35:
        return rng.randint(1, 999)
    return round(rng.randint(1, 999) + rng.choice([0.5, 0.99, 0.25, rng.randint(1, 99) / 100]), 2)


def sentence(rng: Random) -> str:
    """A short free text, as someone would put into a note or a message."""
    return rng.choice(
        [
            f"the {thing(rng)} is ready",
            f"call {first_name(rng)} back",
            f"buy {rng.choice(FOODS)} and {rng.choice(FOODS)}",
            f"I will be late by {rng.randint(5, 55)} minutes",
            f"bring the {thing(rng)}",
            f"see you in {city(rng)}",
            f"the {rng.choice(SUBJECTS)} starts at {clock_time(rng)}",
            f"happy birthday {first_name(rng)}",
            f"the {rng.choice(SUBJECTS)} is moved to {rng.choice(WEEKDAYS)}",
            f"please send the {rng.choice(SUBJECTS)} to {first_name(rng)}",
            f"water the {rng.choice(FOODS)} plants",
            f"return the {thing(rng)} to {full_name(rng)}",
            f"the code is {code(rng)}",
            "thank you for the help",
            f"I like the {thing(rng)}",
            f"{invented(rng)} {invented(rng)} {invented(rng)}",
            f"pay the {rng.choice(SUBJECTS)} by {rng.choice(WEEKDAYS)}",
            f"meet {first_name(rng)} in {city(rng)}",
        ]
    )


def pick(rng: Random, options: list[str], **values: object) -> str:
    """One of the patterns, filled."""
    return rng.choice(options).format(**values)
