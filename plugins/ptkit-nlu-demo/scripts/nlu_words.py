"""Slot values of the demo's texts, each with a share that only validation has.

Everything here was written for ptkit-nlu-demo. Some words are meant to be told apart by what stands
around them: April, May and June are months and people; Paris, Austin, Florence, Jordan, Sydney,
Chelsea, Savannah and Madison are places and people.
"""

from __future__ import annotations

from random import Random
from typing import Literal, TypeAlias

Split: TypeAlias = Literal["train", "validation"]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


PERSONS = {
    "train": _lines(
        "Anna, Ben, Carla, David, Elena, Felix, Grace, Hugo, Ines, Jack, Kira, Liam, Maria, Noah,"
        "Olga, Pedro, Rosa, Samir, Tara, Victor, Wendy, Yusuf, Zoe, Aisha, Boris, Clara, Diego,"
        "April, Austin, Florence, Jordan, May, Sydney, Mr Hall, Mrs Okafor, Dr Chen, Ms Lopez,"
        "Anna Weber, Samir Patel, Grace Kim, Victor Hugo Silva, Rosa Marin, Jack Doyle,"
        "Florence Hart, Jordan Reid, April Stone, Mr Bianchi, Uncle Ray, Aunt Lucy"
    ),
    "validation": _lines(
        "Bella, Cyrus, Daria, Emil, Farah, Greta, Hamid, Ivy, Jonas, Leila, Milo, Nadia, Oscar,"
        "Paris, Chelsea, June, Madison, Savannah, Mr Novak, Mrs Ito, Dr Abebe, Ms Larsen,"
        "Greta Lind, Oscar Moreau, Paris Young, June Carter, Nadia Haddad, Aunt Mabel"
    ),
}
PLACES = {
    "train": _lines(
        "Berlin, Lisbon, Chicago, Toronto, Madrid, Oslo, Dublin, Cairo, Mumbai, Osaka, Lima,"
        "Prague, Warsaw, Athens, Denver, Boston, Leeds, Bristol, Lyon, Porto, Geneva, Naples,"
        "Austin, Florence, Jordan, Sydney, Cape Town, New Delhi, San Diego, Buenos Aires,"
        "Mexico City, St. Gallen, North Bay, Salt Lake City, Park Street, Mill Lane, Station Road,"
        "the Harbour Hotel, the old town hall"
    ),
    "validation": _lines(
        "Paris, Chelsea, Savannah, Madison, Vienna, Seoul, Nairobi, Bergen, Valencia, Glasgow,"
        "Quito, Hanoi, Krakow, Ghent, Las Palmas, Santa Cruz, Kuala Lumpur, Long Beach,"
        "Church Road, Baker Street, the Lakeside Inn"
    ),
}
_COLOURS = _lines("red, blue, black, green, grey, white, yellow, brown")
_THINGS = {
    "train": _lines(
        "wool scarf, rain jacket, desk lamp, coffee grinder, running shoes, garden chair, backpack,"
        "phone case, tea kettle, bath towel, picture frame, bike helmet, bread knife, wall clock,"
        "winter boots, office chair, sleeping bag, water bottle, board game, floor lamp, toaster,"
        "bookshelf, yoga mat, travel pillow, drum kit, keyboard, hair dryer, baby blanket, camera,"
        "swimsuit, leather belt, tent"
    ),
    "validation": _lines(
        "umbrella, rice cooker, silk tie, ski goggles, mirror, electric guitar, hiking poles,"
        "cotton shirt, flower pot, step ladder, cutting board, headphones, suitcase, sewing machine"
    ),
}
_MODELS = {
    "train": _lines("Nordal 200, Brixo Mini, Aero X5, Lumen Pro, Tavo 12, Quill S, Orbit 3000"),
    "validation": _lines("Kestrel 8, Velo Max, Pico 450, Marlow II"),
}
_MONTHS = {
    "train": _lines("January, March, April, May, July, September, November"),
    "validation": _lines("February, June, August, October, December"),
}
_PAST = {
    "train": _lines(
        "yesterday, last Monday, last week, last Thursday, two weeks ago, this morning, last year,"
        "a month ago"
    ),
    "validation": _lines(
        "last Wednesday, three days ago, the day before yesterday, last month, a week ago"
    ),
}
_NEXT = {
    "train": _lines(
        "tomorrow, next Friday, this Tuesday, Sunday, next month, next week, Monday morning"
    ),
    "validation": _lines("next Saturday, this weekend, Tuesday afternoon, the end of the week"),
}
KINDS = ("person", "place", "product", "date", "order", "price")


def person(rng: Random, split: Split) -> str:
    return rng.choice(PERSONS[split])


def place(rng: Random, split: Split) -> str:
    return rng.choice(PLACES[split])


def product(rng: Random, split: Split) -> str:
    """A thing, perhaps with a colour or a model's name; or a model's name alone."""
    roll = rng.random()
    thing = rng.choice(_THINGS[split])
    if roll < 0.4:
        return thing
    if roll < 0.75:
        return f"{rng.choice(_COLOURS)} {thing}"
    return f"{rng.choice(_MODELS[split])} {thing}" if roll < 0.9 else rng.choice(_MODELS[split])


def calendar_date(rng: Random, split: Split) -> str:
    """A date of the calendar, such as "12 May" or "July 3rd"."""
    month, day = rng.choice(_MONTHS[split]), rng.randint(1, 28)
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day % 10 if day // 10 != 1 else 0, "th")
    forms = (
        f"{day} {month}",
        f"{month} {day}",
        f"{month} {day}{ending}",
        f"the {day}{ending} of {month}",
    )
    return rng.choice(forms)


def past(rng: Random, split: Split) -> str:
    """A date before today: half of them of the calendar, half told from today."""
    return rng.choice(_PAST[split]) if rng.random() < 0.5 else calendar_date(rng, split)


def coming(rng: Random, split: Split) -> str:
    """A date after today, likewise."""
    return rng.choice(_NEXT[split]) if rng.random() < 0.5 else calendar_date(rng, split)


def order(rng: Random, split: Split) -> str:
    """An order number: digits and letters in one of five layouts, the last for validation alone."""
    number, letter = rng.randint(1000, 99999), rng.choice("ABCDEFGHKLMNPRSTUVWXYZ")
    forms = (f"{number}", f"{letter}-{number}", f"{letter}{letter}{number}", f"{number}/{letter}")
    return rng.choice((*forms, f"{letter}{number}-{letter}") if split == "validation" else forms)


def price(rng: Random, split: Split) -> str:
    """An amount of money; "pounds" and "£" are validation's alone."""
    whole, cents = rng.randint(3, 400), rng.choice(("", "", ".50", ".99", ".95"))
    forms = (f"${whole}{cents}", f"{whole} dollars", f"{whole}{cents} euros", f"€{whole}{cents}")
    more = (f"£{whole}{cents}", f"{whole} pounds")
    return rng.choice((*forms, *more) if split == "validation" else forms)


_MAKERS = {
    "person": person,
    "place": place,
    "product": product,
    "date": calendar_date,
    "past": past,
    "next": coming,
    "order": order,
    "price": price,
}


def value(slot: str, rng: Random, split: Split) -> str:
    """A value for a slot: one of `KINDS`, or "past" or "next" for a date before or after today."""
    return _MAKERS[slot](rng, split)


def kind_of(slot: str) -> str:
    """The kind of a slot's values: "date" for "past" and "next", else the slot itself."""
    return "date" if slot in ("past", "next") else slot
