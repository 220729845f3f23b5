"""Small talk, wishes the assistant must decline, and choices it helps with."""

from __future__ import annotations

import random

from speculators.data.tiny.exchange import Exchange, FollowUp
from speculators.data.tiny.words import PEOPLE, PLACES, SEASONS, THINGS, WEATHER, a, capital

HARMFUL = (
    ("open the locked door of {}", "A locked door belongs to somebody", "ask {} for the key"),
    ("read the secret letters of {}", "Letters are private", "ask {} what is in them"),
    ("find the password of {}", "A password is private", "ask {} for help"),
    ("take money from {}", "That would be stealing", "earn some money with honest work"),
    ("frighten {} at night", "That could hurt somebody", "plan a nice surprise for {}"),
    ("spread a lie about {}", "Lies hurt people", "talk to {} about the trouble"),
)
UNABLE = (
    ("call {} on the telephone", "I cannot make calls", "write down what you want to say to {}"),
    (
        "tell me where {} is right now",
        "I cannot see where people are",
        "help you to write a message to {}",
    ),
    ("cook dinner for {}", "I have no hands", "give you a recipe that {} will like"),
    ("send this parcel to {}", "I cannot send anything", "help you to write the address of {}"),
    ("tell me what {} thinks of me", "I cannot read minds", "help you to ask {} kindly"),
)


def refusal(rng: random.Random) -> Exchange:
    """Ask for something the assistant must not or cannot do."""
    who = rng.choice(PEOPLE).name
    harmful = rng.random() < 0.5
    wish, reason, instead = rng.choice(HARMFUL if harmful else UNABLE)
    wording = rng.randrange(3)
    question = ("Please {}." if not harmful else "Help me {}.", "Can you {}?", "I want you to {}.")[
        wording
    ]
    if harmful:
        question = ("Help me to {}.", "Can you help me to {}?", "I want to {}. How?")[wording]
    sorry = rng.choice(
        [
            "I am sorry, but I cannot do that.",
            "Sorry, this is not something I can help with.",
            "I would rather not, sorry.",
        ]
    )
    offer = (
        f"You could {instead.format(who)} instead."
        if harmful
        else f"But I can {instead.format(who)}."
    )
    answer = f"{sorry} {reason}. {offer}"
    return Exchange(
        ("refuse", wish, who, wording), question.format(wish.format(who)), answer, (reason,)
    )


FEELINGS = {
    "tired": ("Rest is important", "go to bed early"),
    "sad": ("I am sorry to hear that", "talk to a good friend"),
    "happy": ("That is lovely to hear", "share it with somebody"),
    "bored": ("Let us change that", "try something new"),
    "nervous": ("That is quite normal", "breathe slowly"),
    "angry": ("Everybody feels like that sometimes", "take a long walk"),
}


def feeling(rng: random.Random) -> Exchange:
    """Tell the assistant about a mood."""
    mood, place, weather = rng.choice(list(FEELINGS)), rng.choice(PLACES), rng.choice(WEATHER)
    says, advice = FEELINGS[mood]
    question = rng.choice(
        [
            f"I am {mood} today. I am at the {place.name}, and it is {weather}.",
            f"It is {weather} here at the {place.name}, and I feel {mood}. What can I do?",
        ]
    )
    hope = rng.choice(
        [
            f"A {weather} day has its good sides too.",
            f"You hear {place.noise}, and that helps.",
            "Tomorrow is a new day.",
        ]
    )
    answer = f"{says}. You could {advice}, or {place.job} while you are at the {place.name}. {hope}"
    thanks = FollowUp(
        "Thank you, that helps.",
        rng.choice(["You are welcome! ", "I am glad to hear it. ", "Any time! "])
        + f"Enjoy your time at the {place.name}, and come back whenever you like.",
    )
    return Exchange(
        ("feeling", mood, place.name, weather), question, answer, (says, advice), thanks
    )


def choice(rng: random.Random) -> Exchange:
    """Ask for a choice between two places or two things."""
    who, season = rng.choice(PEOPLE), rng.choice(SEASONS)
    if rng.random() < 0.5:
        one, two = rng.sample(PLACES, 2)
        best, other = rng.sample((one, two), 2)
        question = f"Should {who.name} go to the {one.name} or to the {two.name} in {season}?"
        but = rng.choice(
            [f"not in {season}", "there is less to do", "it is often full", "it is far away"]
        )
        answer = (
            f"I would choose the {best.name}. There {who.she} can see {best.sight} and {best.job}. "
            f"The {other.name} is nice too, but {but}."
        )
        return Exchange(("choose", one.name, two.name, who.name, season), question, answer)
    one, two = rng.sample(THINGS, 2)
    best, other = rng.sample((one, two), 2)
    question = f"{who.name} can buy {a(one.name)} or {a(two.name)}. What do you advise?"
    has = f"{who.name} has one already"
    flaw = rng.choice(["few people do that", "it costs more", has, "it breaks easily"])
    answer = (
        f"{capital(a(best.name))} is the better choice, I think. With it {who.she} can {best.use}. "
        f"{capital(a(other.name))} is only good to {other.use}, and {flaw}."
    )
    return Exchange(("choose", one.name, two.name, who.name), question, answer)


GREETINGS = ("Hello", "Hi there", "Good morning", "Good evening", "Hey")


def greeting(rng: random.Random) -> Exchange:
    """Say hello, or ask the assistant what it is."""
    who, hello = rng.choice(PEOPLE).name, rng.choice(GREETINGS)
    kind, question = rng.choice(
        [
            ("hello", f"{hello}! My name is {who}."),
            ("able", f"{hello}, I am {who}. What can you do?"),
            ("are", f"{hello}, this is {who}. Who are you?"),
        ]
    )
    skills = rng.sample(
        [
            "tell stories",
            "add and subtract small numbers",
            "sort words",
            "write notes",
            "explain a little Python",
            "talk about the town of Tarnwick",
            "spell words",
        ],
        3,
    )
    answer = {
        "hello": (
            f"{hello}, {who}! It is nice to meet you. I can {skills[0]} or {skills[1]}. What would "
            "you like?"
        ),
        "able": f"{hello}, {who}! I can {skills[0]}, {skills[1]} and {skills[2]}. Just ask me.",
        "are": (
            f"{hello}, {who}! I am a very small language model. I live on your computer, and I can "
            f"{skills[0]}."
        ),
    }[kind]
    follow = FollowUp(
        "What was my name again?",
        f"Your name is {who}. You told me at the beginning.",
        (f"your name is {who}",),
    )
    return Exchange(("greeting", kind, hello, who), question, answer, (who,), follow)


TASKS = ((refusal, 2.0), (feeling, 1.5), (choice, 2.0), (greeting, 1.0))
