"""The words of the tiny world: people, animals, things and places, and what belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    """A first name with its pronouns."""

    name: str
    she: str
    her: str
    hers: str


PEOPLE = tuple(
    [
        Person(n, "she", "her", "her")
        for n in [
            "Mia",
            "Nora",
            "Ella",
            "Ruby",
            "Ada",
            "Ivy",
            "Clara",
            "Rosa",
            "Tess",
            "Hana",
            "Lucy",
            "Maya",
        ]
    ]
    + [
        Person(n, "he", "him", "his")
        for n in [
            "Tom",
            "Ben",
            "Leo",
            "Sam",
            "Max",
            "Finn",
            "Hugo",
            "Otto",
            "Noah",
            "Jack",
            "Omar",
            "Theo",
        ]
    ]
)


@dataclass(frozen=True)
class Animal:
    """An animal, where it lives, what it eats, and three scales from small to large."""

    name: str
    home: str
    food: str
    sound: str
    length: str
    size: int
    weight: int
    speed: int


ANIMALS = (
    Animal("ant", "an anthill", "seeds", "makes no sound", "a grain of rice", 0, 0, 0),
    Animal("bee", "a hive", "nectar", "buzzes", "a fingernail", 1, 1, 9),
    Animal("frog", "a pond", "flies", "croaks", "a plum", 2, 2, 4),
    Animal("mouse", "a hole in the wall", "grain", "squeaks", "a thumb", 3, 3, 5),
    Animal("hedgehog", "a heap of leaves", "worms", "snuffles", "a loaf of bread", 4, 4, 2),
    Animal("hen", "a barn", "corn", "clucks", "a football", 5, 6, 6),
    Animal("cat", "a warm house", "fish", "purrs", "an arm", 6, 7, 12),
    Animal("otter", "a river bank", "crabs", "whistles", "a long scarf", 9, 9, 8),
    Animal("fox", "a den", "berries", "barks", "a small bench", 8, 8, 13),
    Animal("goat", "a hill farm", "grass", "bleats", "a table", 10, 11, 10),
    Animal("wolf", "a dark forest", "meat", "howls", "a sofa", 11, 10, 14),
    Animal("bear", "a cave", "honey", "growls", "a boat", 12, 12, 11),
    Animal("horse", "a stable", "hay", "neighs", "a cart", 13, 13, 16),
    Animal("whale", "the deep sea", "krill", "sings", "two buses", 16, 16, 7),
    Animal("snail", "a garden", "leaves", "makes no sound", "a button", 1, 1, 0),
    Animal("owl", "a hollow tree", "mice", "hoots", "a tall jug", 7, 5, 13),
)


@dataclass(frozen=True)
class Place:
    """A place with a spot to find things in, a sight, a sound and a job to do there."""

    name: str
    spot: str
    sight: str
    noise: str
    job: str


PLACES = (
    Place(
        "mill",
        "under the big wheel",
        "white flour on every shelf",
        "the slow wheel",
        "grind the corn",
    ),
    Place("harbor", "beside an old boat", "red boats in a row", "the gulls", "mend the nets"),
    Place(
        "forest",
        "between two roots",
        "tall pines and soft moss",
        "the wind in the trees",
        "gather wood",
    ),
    Place(
        "market",
        "behind a fruit stall",
        "bright fruit in baskets",
        "many voices",
        "carry the baskets",
    ),
    Place(
        "garden", "below the rose bush", "roses and long beans", "the busy bees", "water the beans"
    ),
    Place("beach", "in the wet sand", "flat sand and gray stones", "the waves", "look for shells"),
    Place(
        "library",
        "on the lowest shelf",
        "books up to the roof",
        "turning pages",
        "put the books away",
    ),
    Place(
        "bridge", "near the stone arch", "a wide green river", "the water below", "paint the rail"
    ),
    Place("barn", "inside the dry hay", "golden hay and old tools", "the hens", "feed the hens"),
    Place("tower", "at the foot of the stairs", "a great brass bell", "the bell", "wind the clock"),
    Place(
        "bakery",
        "next to the warm oven",
        "round loaves in the window",
        "the hot oven",
        "knead the dough",
    ),
    Place("island", "by the cold fire", "bare rocks and seals", "the seals", "build a hut"),
    Place("station", "under a wooden seat", "a long black train", "the whistle", "load the trunks"),
    Place("meadow", "among the daisies", "tall grass and poppies", "the crickets", "cut the grass"),
)


@dataclass(frozen=True)
class Thing:
    """An object with a look, a fault it may have, a use, and a price in coins."""

    name: str
    look: str
    fault: str
    use: str
    price: int


THINGS = (
    Thing("lamp", "green", "had no oil", "light the dark hall", 12),
    Thing("kettle", "copper", "had a hole in it", "make tea for everyone", 15),
    Thing("drum", "round", "was torn on one side", "play in the parade", 21),
    Thing("kite", "yellow", "had lost its string", "fly above the hill", 8),
    Thing("map", "faded", "was ripped in two", "find the old path", 5),
    Thing("clock", "tiny", "had stopped ticking", "wake up early", 34),
    Thing("ladder", "wooden", "had lost three steps", "reach the roof", 27),
    Thing("umbrella", "striped", "would not open", "walk in the rain", 14),
    Thing("violin", "dark brown", "had no strings", "play a slow song", 48),
    Thing("lantern", "silver", "would not burn", "see the way at night", 18),
    Thing("wagon", "red", "had a broken wheel", "carry the pumpkins", 39),
    Thing("key", "rusty", "was bent", "open the cellar", 3),
    Thing("blanket", "soft", "was wet and muddy", "keep warm at night", 16),
    Thing("basket", "wide", "had no handle", "bring home the apples", 7),
    Thing("mirror", "oval", "was cracked", "see who stood behind", 25),
    Thing("telescope", "long", "was full of dust", "watch the stars", 52),
)

FRUITS = ("apple", "fig", "grape", "lemon", "mango", "orange", "peach", "pear", "plum", "cherry")
COLORS = ("amber", "blue", "green", "indigo", "pink", "red", "silver", "violet", "white", "yellow")
TOOLS = ("axe", "brush", "drill", "hammer", "knife", "rake", "saw", "shovel", "tongs", "wrench")
DRINKS = ("cider", "cocoa", "coffee", "juice", "milk", "tea", "water")
CLOTHES = ("apron", "boots", "coat", "dress", "gloves", "hat", "jacket", "scarf", "shirt")
CLASSES = {
    "fruit": FRUITS,
    "color": COLORS,
    "tool": TOOLS,
    "drink": DRINKS,
    "piece of clothing": CLOTHES,
    "animal": tuple(animal.name for animal in ANIMALS),
}

COUNTABLE = (
    "apples", "pears", "shells", "marbles", "stamps", "coins", "books", "cards", "buttons", "eggs",
    "pencils", "stones", "candles", "cakes", "ribbons", "tickets", "beads", "plums",
)  # fmt: skip

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
SEASONS = ("spring", "summer", "autumn", "winter")
WEATHER = ("sunny", "rainy", "snowy", "windy", "foggy", "hot")


def a(noun: str) -> str:
    """Return the noun behind its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def join(items: Sequence[str]) -> str:
    """Return "x, y and z"."""
    return ", ".join(items[:-1]) + " and " + items[-1] if len(items) > 1 else items[0]
