"""Everyday advice: how-to steps, comparisons, what to take along."""

from __future__ import annotations

import random

from speculators.data.tiny.exchange import Exchange, FollowUp
from speculators.data.tiny.words import ANIMALS, PEOPLE, PLACES, THINGS, WEATHER, a, capital, join

DISHES = {
    "vegetable soup": (
        ("carrot", 2),
        ("onion", 1),
        ("potato", 3),
        "Boil everything in salted water for twenty minutes",
    ),
    "apple pie": (
        ("apple", 3),
        ("egg", 1),
        ("spoon of sugar", 2),
        "Fill the dough and bake it until it is golden",
    ),
    "pancakes": (
        ("egg", 2),
        ("cup of flour", 1),
        ("cup of milk", 1),
        "Fry thin rounds in a hot pan",
    ),
    "fish stew": (("fish", 1), ("tomato", 2), ("onion", 1), "Let it simmer slowly with some herbs"),
    "fruit salad": (
        ("banana", 1),
        ("orange", 2),
        ("pear", 1),
        "Cut the fruit and mix it with lemon juice",
    ),
    "oat cookies": (
        ("cup of oats", 1),
        ("spoon of honey", 3),
        ("egg", 1),
        "Form small balls and bake them for ten minutes",
    ),
    "hot cocoa": (
        ("cup of milk", 1),
        ("spoon of cocoa", 2),
        ("spoon of sugar", 1),
        "Warm the milk and stir until it is smooth",
    ),
    "mushroom rice": (
        ("cup of rice", 1),
        ("mushroom", 4),
        ("onion", 1),
        "Cook the rice and add the fried mushrooms",
    ),
}


def _plural(noun: str, count: int) -> str:
    if count == 1:
        return f"1 {noun}"
    head, of, rest = noun.partition(" of ")
    head += "" if head == "fish" else "es" if head in ("tomato", "potato") else "s"
    return f"{count} {head}{of}{rest}"


def recipe(rng: random.Random) -> Exchange:
    """Ask how to cook a dish for some people."""
    dish, people = rng.choice(list(DISHES)), rng.randint(1, 6)
    *parts, method = DISHES[dish]
    who = "one person" if people == 1 else f"{people} people"
    question = rng.choice(
        [
            "How do I make {} for {}?",
            "I want to cook {} for {}. What do I need?",
            "Give me a recipe: {} for {}.",
        ]
    )
    amounts = [_plural(noun, count * people) for noun, count in parts]
    steps = [
        f"You need {join(amounts)}.",
        rng.choice(
            [
                "Wash your hands and clear the table.",
                "Prepare everything first.",
                "Take a large bowl and a sharp knife.",
            ]
        ),
        f"{method}.",
        rng.choice(
            [
                "Taste it and add a little salt if you like.",
                "Serve it warm.",
                "Let it rest for five minutes.",
                "Put it on a nice plate.",
            ]
        ),
    ]
    answer = "\n".join(f"{i}. {step}" for i, step in enumerate(steps, 1))
    return Exchange(
        ("recipe", dish, people), question.format(dish, who), answer, (amounts[0], amounts[2])
    )


PLANTS = {
    "tulips": ("in late autumn", "a hand deep", "once a week"),
    "tomatoes": ("in May", "a finger deep", "every morning"),
    "beans": ("in early June", "a thumb deep", "every second day"),
    "roses": ("in March", "two hands deep", "twice a week"),
    "mint": ("in April", "just below the soil", "every day"),
    "pumpkins": ("after the last frost", "a finger deep", "every evening"),
    "sunflowers": ("in spring", "a thumb deep", "when the soil is dry"),
}
SITES = {
    "pot": ("Choose a pot with a hole in the bottom", "put it on a window sill"),
    "garden bed": ("Dig the soil and remove the weeds", "leave a foot between the plants"),
    "wooden box": ("Line the box with gravel", "put it where the sun comes early"),
    "greenhouse": ("Open the roof on warm days", "keep the air moist"),
}


def planting(rng: random.Random) -> Exchange:
    """Ask how to grow a plant somewhere."""
    plant, site = rng.choice(list(PLANTS)), rng.choice(list(SITES))
    when, deep, water = PLANTS[plant]
    first, second = SITES[site]
    wording = rng.randrange(3)
    question = (
        "How do I grow {} in a {}?",
        "I would like to have {} in my {}. What should I do?",
        "Explain how to plant {} in a {}.",
    )[wording].format(plant, site)
    last = rng.choice(
        [
            "Be patient.",
            "Watch out for snails.",
            "Turn them to the light.",
            "Add some compost in summer.",
        ]
    )
    answer = (
        f"1. {first}.\n2. Plant the {plant} {when}, {deep}.\n3. Water them {water}, and {second}.\n"
        f"4. {last}"
    )
    follow = FollowUp(
        "How often should I water them?",
        f"Water the {plant} {water}. Less is better than too much.",
        (water,),
    )
    return Exchange(("plant", plant, site, wording), question, answer, (deep, first), follow)


def mending(rng: random.Random) -> Exchange:
    """Ask what to do with a broken thing."""
    thing, who = rng.choice(THINGS), rng.choice(PEOPLE)
    tool, helper = (
        rng.choice(["a clean cloth", "some glue", "a small hammer", "strong tape"]),
        rng.choice(PEOPLE).name,
    )
    question = f"The {thing.name} of {who.name} {thing.fault}. What should {who.she} do?"
    answer = (
        f"If the {thing.name} {thing.fault}, {who.name} should first look at it closely. Then "
        f"{who.she} can try {tool}, or ask {helper} for help. Afterwards {who.she} can {thing.use} "
        "again."
    )
    return Exchange(
        ("mend", thing.name, who.name), question, answer, (f"{who.she} can {thing.use} again",)
    )


SCALES = {
    "bigger": ("size", "The {0} is about as long as {1}, while the {2} is only as long as {3}."),
    "heavier": (
        "weight",
        "You could lift the {2} more easily than the {0}, which is as long as {1}.",
    ),
    "faster": ("speed", "In a race the {0} from {4} would leave the {2} behind."),
}


def compare_animals(rng: random.Random) -> Exchange:
    """Ask which of two animals is bigger, heavier or faster."""
    word = rng.choice(list(SCALES))
    scale, reason = SCALES[word]
    one, two = rng.sample(ANIMALS, 2)
    while getattr(one, scale) == getattr(two, scale):
        one, two = rng.sample(ANIMALS, 2)
    more, less = sorted((one, two), key=lambda animal: -getattr(animal, scale))
    question = rng.choice(
        [
            f"Which is {word}, {a(one.name)} or {a(two.name)}?",
            f"Is {a(one.name)} {word} than {a(two.name)}?",
        ]
    )
    answer = f"{capital(a(more.name))} is {word} than {a(less.name)}. " + reason.format(
        more.name, more.length, less.name, less.length, more.home
    )
    pair = sorted((one.name, two.name))
    return Exchange(("compare", word, *pair), question, answer, (f"{a(more.name)} is {word} than",))


def animal_fact(rng: random.Random) -> Exchange:
    """Ask what an animal eats, where it lives, or what sound it makes."""
    one = rng.choice(ANIMALS)
    who = rng.choice(PEOPLE).name
    kind, words = rng.choice(
        [("eat", f"eats {one.food}"), ("live", f"lives in {one.home}"), ("sound", one.sound)]
    )
    question = {
        "eat": f"What does {a(one.name)} eat?",
        "live": f"Where does {a(one.name)} live?",
        "sound": f"What sound does {a(one.name)} make?",
    }[kind]
    others = [w for w in (f"eats {one.food}", f"lives in {one.home}", one.sound) if w != words]
    answer = (
        f"{capital(a(one.name))} {words}. It also {rng.choice(others)}, and it is as long as "
        f"{one.length}."
    )
    if one.sound == "makes no sound":
        answer = f"{capital(a(one.name))} {words}. It is as long as {one.length}."
    return Exchange(("animal", one.name, kind, who), f"{who} asks: {question}", answer, (words,))


def prices(rng: random.Random) -> Exchange:
    """Ask which of two things is cheaper, at prices named in the question."""
    one, two = rng.sample(THINGS, 2)
    p, q = rng.sample(range(2, 60), 2)
    word = rng.choice(["cheaper", "more expensive"])
    cheap = p < q
    best = one if cheap == (word == "cheaper") else two
    other, low, high = (two if best is one else one), min(p, q), max(p, q)
    question = (
        f"{capital(a(one.name))} costs {p} coins and {a(two.name)} costs {q} coins. Which is "
        f"{word}?"
    )
    first, second = (low, high) if word == "cheaper" else (high, low)
    rest = f"{high - low} coins {'less' if word == 'cheaper' else 'more'}"
    answer = (
        f"The {best.name} is {word}. It costs {first} coins, and the {other.name} costs {second} "
        f"coins. That is {rest}."
    )
    return Exchange(
        ("prices", one.name, two.name, p, q, word),
        question,
        answer,
        (f"the {best.name} is {word}", rest),
    )


GEAR = {
    "sunny": ("a hat", "the sun is strong"),
    "rainy": ("rubber boots", "the paths are muddy"),
    "snowy": ("a thick coat", "it freezes quickly"),
    "windy": ("a scarf", "hats fly away"),
    "foggy": ("a bright lantern", "you cannot see far"),
    "hot": ("a bottle of water", "there is little shade"),
}


def packing_list(rng: random.Random) -> Exchange:
    """Ask what to take to a place in some weather."""
    place, weather, who = rng.choice(PLACES), rng.choice(WEATHER), rng.choice(PEOPLE)
    question = rng.choice(
        [
            (
                f"{who.name} goes to the {place.name}, and it is {weather}. What should {who.she} "
                "take?"
            ),
            f"What should {who.name} bring to the {place.name} on a {weather} day?",
        ]
    )
    gear, reason = GEAR[weather]
    thing = rng.choice(THINGS)
    answer = (
        f"On a {weather} day {who.name} should take {gear}, because {reason}. At the {place.name} "
        f"{who.she} can {place.job}, so {a(thing.name)} "
        f"{rng.choice(['might help', 'would be good'])} too."
    )
    return Exchange(("gear", place.name, weather, who.name), question, answer, (gear,))


TASKS = (
    (recipe, 2.5),
    (planting, 2.0),
    (mending, 1.0),
    (compare_animals, 2.5),
    (animal_fact, 1.0),
    (prices, 2.0),
    (packing_list, 1.5),
)
