"""Lists and letters: sorting, reversing, choosing, spelling, counting."""

from __future__ import annotations

import random

from speculators.data.tiny.exchange import Exchange, FollowUp
from speculators.data.tiny.words import (
    ALPHABET,
    CLASSES,
    ORDINALS,
    PEOPLE,
    PLACES,
    THINGS,
    a,
    capital,
    join,
)

_SORTABLE = tuple(word for name, words in CLASSES.items() if name != "drink" for word in words)
_SPELLED = tuple(sorted({*_SORTABLE, *(t.name for t in THINGS), *(p.name for p in PLACES)}))


def sort_words(rng: random.Random) -> Exchange:
    """Ask for words in the order of the alphabet."""
    words: list[str] = []
    for word in rng.sample(_SPELLED, 12):
        if len(words) < rng.choice([3, 4, 5]) and word[0] not in {w[0] for w in words}:
            words.append(word)
    ordered = sorted(words)
    question = rng.choice(
        ["Sort these words by the alphabet: {}.", "Put these words in alphabetical order: {}."]
    )
    answer = rng.choice(
        ["Here they are from A to Z: {}.", "In the order of the alphabet they are {}."]
    )
    answer = (
        answer.format(", ".join(ordered))
        + f" The first is {ordered[0]} and the last is {ordered[-1]}."
    )
    back = f"Backwards they are {', '.join(ordered[::-1])}. Now {ordered[-1]} comes first."
    follow = FollowUp("Now turn the order around.", back, (", ".join(ordered[::-1]),))
    return Exchange(
        ("sort words", *words),
        question.format(", ".join(words)),
        answer,
        (", ".join(ordered),),
        follow,
    )


def sort_numbers(rng: random.Random) -> Exchange:
    """Ask for numbers from small to large or the other way."""
    numbers = rng.sample(range(2, 99), rng.choice([3, 4, 5]))
    down = rng.random() < 0.4
    ordered = sorted(numbers, reverse=down)
    ends = ("largest", "smallest") if down else ("smallest", "largest")
    listed, result = (", ".join(map(str, n)) for n in (numbers, ordered))
    question = rng.choice(
        [
            "Sort these numbers from {} to {}: {}.",
            "Put the numbers in order, {} first and {} last: {}.",
        ]
    ).format(*ends, listed)
    answer = (
        f"Sorted from {ends[0]} to {ends[1]}: {result}. The {ends[0]} is {ordered[0]} and the "
        f"{ends[1]} is {ordered[-1]}."
    )
    return Exchange(("sort numbers", *numbers, int(down)), question, answer, (f": {result}.",))


def odd_one_out(rng: random.Random) -> Exchange:
    """Ask which of four words does not belong."""
    main, other = rng.sample(list(CLASSES), 2)
    words = rng.sample(CLASSES[main], 3)
    odd = rng.choice([w for w in CLASSES[other] if w not in CLASSES[main]])
    shown = [*words, odd]
    rng.shuffle(shown)
    question = rng.choice(
        [
            "Which word does not belong: {}?",
            "Find the odd one out: {}.",
            "One of these is different. Which one? {}",
        ]
    )
    answer = (
        f"The word that does not belong is {odd}. "
        f"{capital(a(odd) if odd not in ('boots', 'gloves', 'tongs') else odd)} is {a(other)}, but "
        f"{join(words)} are not."
    )
    if other == "animal":
        answer = (
            f"The word that does not belong is {odd}. It is an animal, but {join(words)} are not."
        )
    elif odd in ("boots", "gloves", "tongs") or other in ("drink", "color"):
        answer = (
            f"The word that does not belong is {odd}. It is {a(other)}, but {join(words)} are not."
        )
    return Exchange(
        ("odd one", *shown), question.format(", ".join(shown)), answer, (f"belong is {odd}.",)
    )


def position(rng: random.Random) -> Exchange:
    """Ask for the word at a position of a list."""
    words = rng.sample(_SPELLED, rng.choice([4, 5, 6]))
    place = rng.randrange(len(words))
    question = f"Which word is the {ORDINALS[place]} in this list: {', '.join(words)}?"
    counted = ", ".join(f"{i + 1} is {w}" for i, w in enumerate(words[: place + 1]))
    answer = f"Let us count: {counted}. So the {ORDINALS[place]} word is {words[place]}."
    return Exchange(("position", *words, place), question, answer, (f"word is {words[place]}.",))


def spell(rng: random.Random) -> Exchange:
    """Ask for the letters of a word, their number, or the word backwards."""
    word = rng.choice(_SPELLED)
    letters = "-".join(word)
    kind = rng.choice(["spell", "count", "backwards", "ends", "has"])
    letter = rng.choice(word if rng.random() < 0.5 else ALPHABET)
    count = word.count(letter)
    times = {0: "not at all", 1: "once", 2: "twice", 3: "three times"}[count]
    question, answer, check = {
        "spell": (
            f"How do you spell {word}?",
            f"You spell {word} like this: {letters}. It begins with the letter {word[0]}.",
            letters,
        ),
        "count": (
            f"How many letters are in the word {word}?",
            f"The word {word} is spelled {letters}. That makes {len(word)} letters.",
            f"makes {len(word)} ",
        ),
        "backwards": (
            f"What is {word} backwards?",
            f"First spell it: {letters}. Now from the end: {letters[::-1]}. So it is {word[::-1]}.",
            letters[::-1],
        ),
        "ends": (
            f"What are the first and the last letter of {word}?",
            (
                f"The word {word} is spelled {letters}. The first letter is {word[0]} and the last "
                f"letter is {word[-1]}."
            ),
            f"first letter is {word[0]} and the last letter is {word[-1]}.",
        ),
        "has": (
            f"How often is the letter {letter} in {word}?",
            f"The word {word} is spelled {letters}. The letter {letter} is there {times}.",
            f"is there {times}.",
        ),
    }[kind]
    return Exchange((kind, word, letter if kind == "has" else ""), question, answer, (check,))


def count_up(rng: random.Random) -> Exchange:
    """Ask for numbers in steps, or for a stretch of the alphabet."""
    if rng.random() < 0.35:
        start = rng.randrange(20)
        stop = rng.randint(start + 3, min(start + 9, 25))
        part = ALPHABET[start : stop + 1]
        question = f"Say the alphabet from {part[0]} to {part[-1]}."
        answer = (
            f"The letters from {part[0]} to {part[-1]} are {', '.join(part)}. These are "
            f"{len(part)} letters."
        )
        return Exchange(("letters", part), question, answer, (", ".join(part),))
    step, start = rng.randint(1, 6), rng.randint(1, 40)
    count = rng.randint(4, 8)
    down = rng.random() < 0.3 and start > step * count
    numbers = [start + (-step if down else step) * i for i in range(count)]
    listed = ", ".join(map(str, numbers))
    way = "down" if down else "up"
    question = f"Count {way} from {start} in steps of {step} until {numbers[-1]}."
    answer = f"Counting {way} in steps of {step}: {listed}. These are {count} numbers."
    return Exchange(("count", start, step, numbers[-1]), question, answer, (listed,))


def repeat(rng: random.Random) -> Exchange:
    """Ask for the same words or numbers again."""
    numbers = rng.random() < 0.3
    count = rng.randint(3, 8)
    items = (
        [str(n) for n in rng.sample(range(2, 199), count)]
        if numbers
        else rng.sample(_SPELLED, count)
    )
    kind = "numbers" if numbers else "words"
    listed = ", ".join(items)
    question = rng.choice(
        ["Repeat these {}: {}.", "Say these {} after me: {}.", "Write down these {}: {}."]
    ).format(kind, listed)
    answer = rng.choice(
        [f"Here are your {kind}: {listed}.", f"You said {listed}.", f"The {kind} are {listed}."]
    )
    answer += f" These are {count} {kind}."
    last = FollowUp(
        f"Which of the {kind} was the last?",
        f"The last one was {items[-1]}. Before it came {items[-2]}.",
        (f"last one was {items[-1]}.",),
    )
    return Exchange(("repeat", *items), question, answer, (listed,), last)


def neighbors(rng: random.Random) -> Exchange:
    """Ask for the letters beside a letter, or the numbers beside a number."""
    if rng.random() < 0.3:
        i = rng.randint(1, 24)
        who = rng.choice(PEOPLE).name
        question = f"{who} wants to know which letters stand before and after {ALPHABET[i]}."
        answer = (
            f"Tell {who} that {ALPHABET[i - 1]} comes before {ALPHABET[i]}, and {ALPHABET[i + 1]} "
            "comes after it."
        )
        return Exchange(
            ("beside", who, ALPHABET[i]), question, answer, (f"{ALPHABET[i - 1]} comes before",)
        )
    n = rng.randint(4, 198)
    question = rng.choice(
        ["Which numbers come before and after {}?", "What are the neighbors of the number {}?"]
    ).format(n)
    answer = (
        f"The number before {n} is {n - 1}, and the number after {n} is {n + 1}. In a row: "
        f"{n - 1}, {n}, {n + 1}."
    )
    return Exchange(("beside", n), question, answer, (f"is {n - 1}, and", f"is {n + 1}."))


TASKS = (
    (sort_words, 3.0),
    (sort_numbers, 3.0),
    (odd_one_out, 2.0),
    (position, 2.0),
    (spell, 4.0),
    (count_up, 2.0),
    (neighbors, 1.0),
    (repeat, 3.0),
)
