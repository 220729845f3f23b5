"""Short stories, poems and descriptions: much is free, little is predictable."""

from __future__ import annotations

import random

from speculators.data.tiny.exchange import Exchange, FollowUp
from speculators.data.tiny.words import (
    ANIMALS,
    PEOPLE,
    PLACES,
    SEASONS,
    THINGS,
    Person,
    Place,
    Thing,
    a,
    capital,
)

TIMES = (
    "One cold morning",
    "One quiet evening",
    "On a bright Sunday",
    "Late one night",
    "After lunch",
    "Early one day",
    "During a storm",
)
MOODS = ("happy", "tired", "curious", "brave", "worried", "hungry", "cheerful")
WALKS = (
    "walked to",
    "ran down to",
    "went alone to",
    "rode a bicycle to",
    "followed a cat to",
    "hurried to",
)
SURPRISES = (
    "could hardly believe it",
    "smiled at once",
    "looked around",
    "laughed out loud",
    "held very still",
    "knelt down",
)
REPAIRS = (
    "some rope and glue",
    "an old tool box",
    "a bit of wire",
    "warm hands and patience",
    "a clever trick",
    "a drop of oil",
)
ENDINGS = (
    "That night {she} slept very well.",
    "From then on the two were best friends.",
    "Everyone in the town heard about it.",
    "{She} never forgot that day.",
    "They shared a warm pie on the way home.",
    "The next day {she} came back with more friends.",
)
MORALS = (
    "help is better than gold",
    "small hands can do big things",
    "it is good to ask",
    "patience wins in the end",
    "a friend is never far",
)


def _middle(
    rng: random.Random, hero: Person, friend: Person, thing: Thing, place: Place
) -> list[str]:
    she = hero.she
    find = rng.choice(
        [
            f"{capital(place.spot)} {she} found {a(thing.look)} {thing.name}.",
            f"There was {a(thing.look)} {thing.name} {place.spot}.",
            f"{capital(she)} saw something {thing.look} {place.spot}. It was {a(thing.name)}.",
        ]
    )
    trouble = rng.choice(
        [
            f"But the {thing.name} {thing.fault}.",
            f"{capital(she)} {rng.choice(SURPRISES)}, but the {thing.name} {thing.fault}.",
            f"It belonged to {friend.name}, and it {thing.fault}.",
        ]
    )
    help_ = rng.choice(
        [
            f"Luckily {friend.name} came by with {rng.choice(REPAIRS)}.",
            f"So {she} asked {friend.name}, who brought {rng.choice(REPAIRS)}.",
            f"{friend.name} heard {hero.her} and came with {rng.choice(REPAIRS)}.",
        ]
    )
    solved = rng.choice(
        [
            f"Soon they could {thing.use}.",
            f"Together they mended it, and at last {she} could {thing.use}.",
            f"In the end {hero.name} used it to {thing.use}.",
        ]
    )
    return [find, trouble, help_, solved]


def story_text(rng: random.Random, hero: Person, friend: Person, thing: Thing, place: Place) -> str:
    """Write a story of five to seven sentences."""
    mood = rng.choice(MOODS)
    opening = rng.choice(
        [
            f"{rng.choice(TIMES)}, {hero.name} {rng.choice(WALKS)} the {place.name}.",
            f"{hero.name} was {mood}, so {hero.she} {rng.choice(WALKS)} the {place.name}.",
            (
                f"Once {hero.name} had to {place.job}, so {hero.she} {rng.choice(WALKS)} the "
                f"{place.name}."
            ),
        ]
    )
    lines = [opening]
    if rng.random() < 0.4:
        lines.append(f"All {hero.she} could hear was {place.noise}.")
    lines += _middle(rng, hero, friend, thing, place)
    ending = rng.choice(ENDINGS).format(she=hero.she, She=capital(hero.she))
    if rng.random() < 0.3:
        ending = f"{hero.name} learned that {rng.choice(MORALS)}."
    return " ".join([*lines, ending])


def story(rng: random.Random) -> Exchange:
    """Ask for a story with a hero, a thing and a place."""
    hero, friend = rng.sample(PEOPLE, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    question = rng.choice(
        [
            f"Tell me a short story about {hero.name} and {a(thing.name)} at the {place.name}.",
            (
                f"Write a little story. It should have {hero.name}, the {place.name} and "
                f"{a(thing.name)} in it."
            ),
            f"Can you tell me how {hero.name} found {a(thing.name)} at the {place.name}?",
            (
                f"I would like a story about {a(thing.name)}. The hero is {hero.name}, and it "
                f"happens at the {place.name}."
            ),
        ]
    )
    answer = story_text(rng, hero, friend, thing, place)
    follow = rng.choice(
        [
            FollowUp(
                f"Where did {hero.name} find the {thing.name}?",
                f"{hero.name} found the {thing.name} at the {place.name}, {place.spot}.",
                (place.spot,),
            ),
            FollowUp(
                f"What was wrong with the {thing.name}?",
                (
                    f"The {thing.name} {thing.fault}. {hero.name} could not use it until it was "
                    "mended."
                ),
                (thing.fault,),
            ),
        ]
    )
    check = (hero.name, thing.name, place.name)
    return Exchange(("story", hero.name, thing.name, place.name), question, answer, check, follow)


def animal_story(rng: random.Random) -> Exchange:
    """Ask for a fable with two animals."""
    one, two = rng.sample(ANIMALS, 2)
    question = rng.choice(
        [
            f"Tell me a fable about {a(one.name)} and {a(two.name)}.",
            f"Make up a story in which {a(one.name)} meets {a(two.name)}.",
            f"What happens when {a(one.name)} visits {a(two.name)}? Tell me a story.",
        ]
    )
    opening = (
        f"{capital(a(one.name))} who lived in {one.home} "
        f"{rng.choice(['met', 'visited', 'wanted to find'])} {a(two.name)}."
    )
    wish = (
        f"The {one.name} was {rng.choice(MOODS)} and "
        f"{rng.choice(['had only', 'asked for', 'dreamed of'])} {one.food}."
    )
    reply = rng.choice(
        [
            f'"I eat only {two.food}," said the {two.name}, "but come to {two.home}."',
            f'"You may share my {two.food}," said the {two.name}.',
            f'The {two.name} said, "First help me find {two.food}."',
        ]
    )
    end = rng.choice(
        [
            f"So they ate together, and the {one.name} learned that {rng.choice(MORALS)}.",
            (
                f"The {one.name} stayed until {rng.choice(SEASONS)}, and both learned that "
                f"{rng.choice(MORALS)}."
            ),
        ]
    )
    return Exchange(
        ("fable", one.name, two.name),
        question,
        " ".join([opening, wish, reply, end]),
        (one.name, two.name),
    )


RHYMES = (
    ("night", "light"), ("day", "way"), ("sea", "tree"), ("sky", "high"), ("ground", "sound"),
    ("rain", "lane"), ("stone", "alone"), ("hill", "still"), ("snow", "glow"), ("song", "long"),
)  # fmt: skip
LINES = (
    ("The {thing} is resting in the {0},", "{adverb} it waits, a little {1}."),
    ("I saw the {thing} one {season} by the {0},", "and {adverb} I followed to the {1}."),
    ("The {place} lies {adverb} below the {0},", "and the {thing} dreams of the {1}."),
    ("O {thing}, you know the {place} and the {0},", "you {adverb} sing about the {1}."),
)
ADVERBS = ("softly", "slowly", "gladly", "proudly", "often", "gently")


def poem(rng: random.Random) -> Exchange:
    """Ask for four lines in two rhyming pairs."""
    thing, place, season = rng.choice(THINGS), rng.choice(PLACES), rng.choice(SEASONS)
    question = rng.choice(
        [
            "Write a short poem about {} at the {}.",
            "Please write four lines about {} and the {}.",
            "I need a rhyme about {} near the {}.",
        ]
    )
    pairs = rng.sample(RHYMES, 2)
    lines = []
    for pair, template in zip(pairs, rng.sample(LINES, 2), strict=True):
        words = {
            "thing": thing.name,
            "place": place.name,
            "season": season,
            "adverb": rng.choice(ADVERBS),
        }
        lines += [line.format(*pair, **words) for line in template]
    return Exchange(
        ("poem", thing.name, place.name),
        question.format(a(thing.name), place.name),
        "\n".join(lines),
        (thing.name,),
    )


SEASON_SIGNS = {
    "spring": ("the first flowers are out", "the air smells of rain", "lambs run about"),
    "summer": ("the sun stays until late", "children swim in the river", "it is warm and dry"),
    "autumn": ("the leaves turn red", "a cool wind blows", "the last plums are ripe"),
    "winter": ("snow lies on the roofs", "the nights are long", "smoke rises from every house"),
}


def description(rng: random.Random) -> Exchange:
    """Ask what a place is like in a season."""
    place, season = rng.choice(PLACES), rng.choice(SEASONS)
    name = rng.choice(PEOPLE).name
    wording, question = rng.choice(
        list(
            enumerate(
                [
                    f"Describe the {place.name} in {season}.",
                    f"What is the {place.name} like in {season}?",
                    f"What can {name} see and hear at the {place.name} in {season}?",
                ]
            )
        )
    )
    first, second = rng.sample(SEASON_SIGNS[season], 2)
    body = [
        f"In {season} {first}, and {second}.",
        f"At the {place.name} you see {place.sight}, and you hear {place.noise}.",
        rng.choice(
            [
                f"It is a good time to {place.job}.",
                f"Most people come to {place.job}.",
                f"Take {a(rng.choice(THINGS).name)} with you.",
            ]
        ),
    ]
    if rng.random() < 0.5:
        body[0], body[1] = body[1], body[0]
    who = name if wording == 2 else ""
    return Exchange(
        ("describe", place.name, season, wording, who), question, " ".join(body), (place.sight,)
    )


TASKS = ((story, 8.0), (animal_story, 3.0), (poem, 2.5), (description, 2.5))
