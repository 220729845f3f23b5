"""Language: small texts with questions, rewriting, notes to friends."""

from __future__ import annotations

import random

from speculators.data.tiny.exchange import Exchange, FollowUp
from speculators.data.tiny.words import COUNTABLE, PEOPLE, PLACES, THINGS, WEATHER, a, capital

# Present and past of "she ...".
VERBS = {
    "walk": ("walks", "walked"),
    "run": ("runs", "ran"),
    "go": ("goes", "went"),
    "drive": ("drives", "drove"),
    "swim": ("swims", "swam"),
    "ride": ("rides", "rode"),
    "come": ("comes", "came"),
    "hurry": ("hurries", "hurried"),
}
DEEDS = {
    "buy": ("buys", "bought"),
    "find": ("finds", "found"),
    "clean": ("cleans", "cleaned"),
    "sell": ("sells", "sold"),
    "bring": ("brings", "brought"),
    "hide": ("hides", "hid"),
    "paint": ("paints", "painted"),
    "lose": ("loses", "lost"),
    "take": ("takes", "took"),
    "break": ("breaks", "broke"),
}


def where_is_it(rng: random.Random) -> Exchange:
    """Ask where one of two things was put."""
    one, two = rng.sample(PEOPLE, 2)
    things, places = rng.sample(THINGS, 2), rng.sample(PLACES, 3)
    text = [
        f"{one.name} left the {things[0].name} at the {places[0].name}.",
        f"{two.name} took the {things[1].name} to the {places[1].name}.",
    ]
    rng.shuffle(text)
    text.append(f"Then {rng.choice([one, two]).name} went to the {places[2].name}.")
    pick = rng.randrange(2)
    who, thing, place = (one, two)[pick], things[pick], places[pick]
    act = ("left it there", "took it there")[pick]
    ask_who = rng.random() < 0.35
    question = f"Who has moved the {thing.name}?" if ask_who else f"Where is the {thing.name}?"
    answer = f"The {thing.name} is at the {place.name}. The text says that {who.name} {act}."
    if ask_who:
        answer = (
            f"It was {who.name}. The text says that {who.name} moved the {thing.name} to the "
            f"{place.name}."
        )
    key = (
        "where",
        one.name,
        two.name,
        *(t.name for t in things),
        *(p.name for p in places),
        pick,
        int(ask_who),
    )
    passage = " ".join(text)
    query = rng.choice([f"{passage} {question}", f"Read this: {passage}\n{question}"])
    other = 1 - pick
    follow = FollowUp(
        f"And where is the {things[other].name}?",
        (
            f"The {things[other].name} is at the {places[other].name}. {(one, two)[other].name} "
            f"{('left it there', 'took it there')[other]}."
        ),
        (f"is at the {places[other].name}.",),
    )
    return Exchange(
        key, query, answer, ((who.name,) if ask_who else (f"is at the {place.name}.",)), follow
    )


def portrait(rng: random.Random) -> Exchange:
    """Ask for one detail out of a small portrait."""
    who, friend = rng.sample(PEOPLE, 2)
    age, count = rng.randint(6, 79), rng.randint(2, 30)
    what, place, thing = rng.choice(COUNTABLE), rng.choice(PLACES), rng.choice(THINGS)
    facts = [
        f"{who.name} is {age} years old.",
        f"{capital(who.she)} owns {count} {what}.",
        f"{capital(who.she)} works at the {place.name} with {friend.name}.",
    ]
    question, answer, check = rng.choice(
        [
            (
                f"How old is {who.name}?",
                f"{who.name} is {age} years old. That is what the text says.",
                f"is {age} years",
            ),
            (
                f"What does {who.name} own?",
                f"{who.name} owns {count} {what}. {capital(who.she)} does not own {a(thing.name)}.",
                f"{count} {what}",
            ),
            (
                f"Who works with {who.name}?",
                f"{friend.name} works with {who.name}. They work at the {place.name}.",
                friend.name,
            ),
            (
                f"Where does {friend.name} work?",
                f"{friend.name} works at the {place.name}, together with {who.name}.",
                place.name,
            ),
        ]
    )
    key = ("portrait", who.name, friend.name, age, count, what, place.name, question)
    return Exchange(key, f"{' '.join(facts)} {question}", answer, (check,))


def rewrite(rng: random.Random) -> Exchange:
    """Ask for a sentence in the past, in the future, as a question, or about somebody else."""
    who, other = rng.sample(PEOPLE, 2)
    verb, deed = rng.choice(list(VERBS)), rng.choice(list(DEEDS))
    place, thing = rng.choice(PLACES), rng.choice(THINGS)
    tail, end = f"to the {place.name}", f"{a(thing.name)}"
    sentence = f"{who.name} {VERBS[verb][0]} {tail} and {DEEDS[deed][0]} {end}."
    kind = rng.choice(["past", "future", "question", "other", "no"])
    order, opening, result = {
        "past": (
            "Put this into the past",
            "In the past it is",
            f"{who.name} {VERBS[verb][1]} {tail} and {DEEDS[deed][1]} {end}.",
        ),
        "future": (
            "Put this into the future",
            "In the future it is",
            f"{who.name} will {verb} {tail} and {deed} {end}.",
        ),
        "question": (
            "Turn this into a question",
            "As a question it is",
            f"Does {who.name} {verb} {tail} and {deed} {end}?",
        ),
        "other": (
            f"Write this about {other.name}",
            f"About {other.name} it is",
            sentence.replace(who.name, other.name),
        ),
        "no": (
            "Say the opposite of this",
            "The opposite is",
            f"{who.name} does not {verb} {tail} and does not {deed} {end}.",
        ),
    }[kind]
    key = (
        "rewrite",
        kind,
        who.name,
        other.name if kind == "other" else "",
        verb,
        deed,
        place.name,
        thing.name,
    )
    return Exchange(key, f"{order}: {sentence}", f"{opening}: {result}", (result,))


NEWS = (
    "I hope you are well.",
    "The weather here is fine.",
    "I think of you often.",
    "Everything is good here.",
    "The days pass quickly.",
)
CLOSINGS = ("Your friend", "With love", "Many greetings", "See you soon", "Best wishes")


def note(rng: random.Random) -> Exchange:
    """Ask for a short note from one person to another."""
    one, two = rng.sample(PEOPLE, 2)
    thing, place, weather = rng.choice(THINGS), rng.choice(PLACES), rng.choice(WEATHER)
    kind, purpose, body = rng.choice(
        [
            (
                "thanks",
                f"to thank {two.name} for the {thing.name}",
                f"Thank you very much for the {thing.name}. Now I can {thing.use}.",
            ),
            (
                "invite",
                f"to invite {two.name} to the {place.name}",
                f"Would you like to come to the {place.name} with me? We could {place.job} there.",
            ),
            (
                "sorry",
                f"to say sorry to {two.name} about the {thing.name}",
                f"I am sorry about your {thing.name}. It {thing.fault} when I gave it back.",
            ),
            (
                "borrow",
                f"to ask {two.name} for the {thing.name}",
                f"May I borrow your {thing.name}? I need it to {thing.use}.",
            ),
        ]
    )
    about = place.name if kind == "invite" else thing.name
    question = rng.choice(
        [
            "Write a short note from {} {}.",
            "{} wants {}. Write the note.",
            "Help {} write a letter {}.",
        ]
    ).format(one.name, purpose)
    news = rng.choice([*NEWS, f"It is {weather} today."])
    middle = f"{news} {body}" if rng.random() < 0.6 else f"{body} {news}"
    answer = f"Dear {two.name},\n{middle}\n{rng.choice(CLOSINGS)},\n{one.name}"
    return Exchange(
        ("note", kind, one.name, two.name, about), question, answer, (f"dear {two.name}", body)
    )


TASKS = ((where_is_it, 4.0), (portrait, 2.5), (rewrite, 3.0), (note, 3.0))
