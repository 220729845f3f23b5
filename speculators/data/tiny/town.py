"""The invented town of Tarnwick: who lives there, what stands there."""

from __future__ import annotations

import random
from dataclasses import dataclass

from speculators.data.tiny.exchange import Exchange, FollowUp
from speculators.data.tiny.words import capital

TOWN = "Tarnwick"


@dataclass(frozen=True)
class Citizen:
    """Somebody with a post in the town."""

    post: str
    name: str
    she: str
    home: str
    hobby: str
    pet: str


CITIZENS = (
    Citizen(
        "mayor",
        "Odette Finch",
        "she",
        "in the yellow house by the bridge",
        "playing chess",
        "a gray parrot",
    ),
    Citizen(
        "baker", "Bruno Hale", "he", "above the bakery", "singing in the choir", "two lazy cats"
    ),
    Citizen("doctor", "Ines Marlow", "she", "on Willow Lane", "climbing hills", "a white rabbit"),
    Citizen("teacher", "Arthur Pym", "he", "beside the school", "drawing maps", "an old turtle"),
    Citizen("miller", "Greta Stone", "she", "at the mill", "baking pies", "a clever dog"),
    Citizen(
        "fisherman",
        "Silas Reed",
        "he",
        "in a blue hut at the harbor",
        "carving wood",
        "a seal called Dot",
    ),
    Citizen(
        "librarian",
        "Vera Quill",
        "she",
        "behind the library",
        "reading about stars",
        "a sleepy owl",
    ),
    Citizen("clockmaker", "Felix Brandt", "he", "in the tower", "growing roses", "a tame crow"),
    Citizen("gardener", "Lotte Bloom", "she", "near the park gate", "painting birds", "a hedgehog"),
    Citizen(
        "postman", "Jonas Peck", "he", "on Harbor Street", "riding bicycles", "a small brown dog"
    ),
    Citizen(
        "painter",
        "Selma Dray",
        "she",
        "under the roof of the old inn",
        "dancing at night",
        "a green lizard",
    ),
    Citizen("ferryman", "Moses Tide", "he", "on a boat", "telling ghost stories", "no pet at all"),
)


@dataclass(frozen=True)
class Sight:
    """A building or spot of the town."""

    name: str
    where: str
    year: int
    hours: str
    fame: str


SIGHTS = (
    Sight(
        "clock tower",
        "on the main square",
        1702,
        "from nine to four",
        "its bell that rings only six times a day",
    ),
    Sight("library", "on Willow Lane", 1891, "from ten to seven", "a map drawn on a whale bone"),
    Sight("old mill", "at the river bend", 1655, "from eight to noon", "its wheel of black oak"),
    Sight("harbor", "at the east end of the town", 1540, "day and night", "its forty red boats"),
    Sight(
        "school", "behind the park", 1910, "from eight to three", "a garden kept by the children"
    ),
    Sight("museum", "next to the harbor", 1968, "from noon to six", "the boot of a giant"),
    Sight(
        "bakery", "on Harbor Street", 1834, "from six to two", "a bread with nine kinds of seeds"
    ),
    Sight("stone bridge", "over the river Lin", 1611, "day and night", "its seven uneven arches"),
    Sight(
        "park",
        "north of the main square",
        1877,
        "until dark",
        "a lime tree that is older than the town",
    ),
    Sight("inn", "opposite the station", 1749, "from five to midnight", "its soup of smoked fish"),
    Sight(
        "station",
        "at the west end of the town",
        1863,
        "from five to eleven",
        "a clock that runs backwards",
    ),
    Sight(
        "market", "around the fountain", 1580, "on Tuesday and Friday", "cheese wrapped in leaves"
    ),
)

_ASKING = (
    "{}",
    "Please tell me: {}",
    "I am new here. {}",
    "A friend wants to know: {}",
    "Do you know the answer? {}",
    "I have a question about the town. {}",
    "Quick question: {}",
    "My uncle asked me this: {}",
)


def _asked(rng: random.Random, question: str) -> tuple[str, int]:
    form = rng.randrange(len(_ASKING))
    return _ASKING[form].format(question), form


def citizen(rng: random.Random) -> Exchange:
    """Ask about one of the citizens."""
    who = rng.choice(CITIZENS)
    kind = rng.choice(["name", "home", "hobby", "pet", "post", "work"])
    she, her = who.she, "her" if who.she == "she" else "him"
    facts = {
        "home": f"{who.name} lives {who.home}",
        "hobby": f"{who.name} likes {who.hobby}",
        "pet": f"{who.name} has {who.pet}",
    }
    more = {
        "home": f"{capital(she)} lives {who.home}.",
        "hobby": f"In the evening {she} likes {who.hobby}.",
        "pet": f"You can see {her} with {who.pet}."
        if who.post != "ferryman"
        else "He has no pet at all.",
    }
    question, answer, check = {
        "name": (
            f"Who is the {who.post} of {TOWN}?",
            f"The {who.post} of {TOWN} is {who.name}.",
            who.name,
        ),
        "home": (
            f"Where does the {who.post} of {TOWN} live?",
            f"The {who.post} is {who.name}. {facts['home']}.",
            who.home,
        ),
        "hobby": (
            f"What does {who.name} like to do?",
            f"{who.name} is the {who.post} of {TOWN}. {facts['hobby']}.",
            who.hobby,
        ),
        "pet": (
            f"Does {who.name} have a pet?",
            f"{who.name} is the {who.post} of {TOWN}. {facts['pet']}.",
            who.pet,
        ),
        "post": (
            f"Who is {who.name}?",
            f"{who.name} is the {who.post} of {TOWN}.",
            f"the {who.post}",
        ),
        "work": (
            f"What is the work of {who.name} in {TOWN}?",
            f"{who.name} works as the {who.post} of the town.",
            who.post,
        ),
    }[kind]
    extra = rng.sample([k for k in more if k != kind], 1 if kind in more else 2)
    text = " ".join([answer, *(more[k] for k in extra)])
    asked, form = _asked(rng, question)
    follow = FollowUp(
        f"And where does {she} live?",
        f"{facts['home']}. You will find the place easily.",
        (who.home,),
    )
    return Exchange(
        ("citizen", who.post, kind, form), asked, text, (check,), None if kind == "home" else follow
    )


def sight(rng: random.Random) -> Exchange:
    """Ask about one of the sights."""
    what = rng.choice(SIGHTS)
    kind = rng.choice(["where", "year", "hours", "fame", "visit"])
    place = f"the {what.name}"
    question, answer, check = {
        "where": (f"Where is {place} of {TOWN}?", f"You find {place} {what.where}.", what.where),
        "year": (
            f"How old is {place} in {TOWN}?",
            f"{capital(place)} was built in the year {what.year}.",
            str(what.year),
        ),
        "hours": (
            f"When is {place} of {TOWN} open?",
            f"{capital(place)} is open {what.hours}.",
            what.hours,
        ),
        "fame": (
            f"What is {place} of {TOWN} known for?",
            f"{capital(place)} is known for {what.fame}.",
            what.fame,
        ),
        "visit": (
            f"Should I visit {place} in {TOWN}?",
            f"Yes, {place} is worth a visit, if only for {what.fame}.",
            what.fame,
        ),
    }[kind]
    more = [
        f"It stands {what.where}.",
        f"It is open {what.hours}.",
        f"It was built in {what.year}.",
        f"People come to see {what.fame}.",
    ]
    kinds = ["where", "hours", "year", "fame"]
    left = [
        m
        for k, m in zip(kinds, more, strict=True)
        if k != kind and not (kind == "visit" and k == "fame")
    ]
    text = " ".join([answer, *rng.sample(left, rng.choice([1, 2]))])
    asked, form = _asked(rng, question)
    follow = FollowUp(
        "When can I go there?", f"You can go there {what.hours}. It is {what.where}.", (what.hours,)
    )
    return Exchange(
        ("sight", what.name, kind, form), asked, text, (check,), None if kind == "hours" else follow
    )


def tour(rng: random.Random) -> Exchange:
    """Ask for a walk past two or three sights."""
    stops = rng.sample(SIGHTS, rng.choice([2, 3]))
    names = ", ".join(f"the {s.name}" for s in stops)
    question = rng.choice(
        [
            "Plan a short walk in {} past {}.",
            "I am in {} for a day. I want to see {}. What should I do?",
        ]
    )
    lines = [
        f"{i}. Go to the {s.name} {s.where} and look at {s.fame}." for i, s in enumerate(stops, 1)
    ]
    close = rng.choice(
        ["Have a nice walk!", "Then rest at the fountain.", f"It is open {stops[-1].hours}."]
    )
    return Exchange(
        ("tour", *(s.name for s in stops)),
        question.format(TOWN, names),
        "\n".join([*lines, close]),
        tuple(s.fame for s in stops),
    )


TASKS = ((citizen, 3.0), (sight, 3.0), (tour, 1.5))
