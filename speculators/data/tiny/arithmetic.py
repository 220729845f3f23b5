"""Small numbers: sums with their steps, and word problems."""

from __future__ import annotations

import random

from speculators.data.tiny.exchange import Exchange, FollowUp
from speculators.data.tiny.words import COUNTABLE, PEOPLE, Person


def add_steps(a: int, b: int) -> str:
    """Write out the addition of two numbers below 100, ones first."""
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}."
    ones, tens = a % 10 + b % 10, a // 10 + b // 10
    carry = ones // 10
    text = f"Ones: {a % 10} + {b % 10} = {ones}"
    text += f", write {ones % 10} and carry 1. " if carry else ". "
    text += f"Tens: {a // 10} + {b // 10}" + (" + 1" if carry else "") + f" = {tens + carry}. "
    return text + f"So {a} + {b} = {a + b}."


def subtract_steps(a: int, b: int) -> str:
    """Write out the subtraction of two numbers below 100, a at least b, ones first."""
    if a < 10:
        return f"{a} - {b} = {a - b}."
    ones, tens = a % 10 - b % 10, a // 10 - b // 10
    if ones < 0:
        text = f"Ones: {a % 10} is less than {b % 10}, so borrow 10: "
        text += f"{a % 10 + 10} - {b % 10} = {ones + 10}. "
        text += f"Tens: {a // 10} - 1 - {b // 10} = {tens - 1}. "
    else:
        text = f"Ones: {a % 10} - {b % 10} = {ones}. Tens: {a // 10} - {b // 10} = {tens}. "
    return text + f"So {a} - {b} = {a - b}."


def multiply_steps(a: int, b: int) -> str:
    """Write out a small product by counting up in steps."""
    counted = ", ".join(str(b * i) for i in range(1, a + 1))
    return f"Count in steps of {b}, {a} times: {counted}. So {a} x {b} = {a * b}."


def addition(rng: random.Random) -> Exchange:
    """Add two numbers."""
    a, b = rng.randint(2, 79), rng.randint(2, 20 if rng.random() < 0.3 else 79)
    wording = rng.choice(
        [
            "What is {} + {}?",
            "Please add {} and {}.",
            "Can you work out {} + {} for me?",
            "{} + {} = ?",
        ]
    )
    c = rng.randint(2, 9)
    total = a + b
    follow = None
    if total + c < 100:
        answer = f"Then we add {c} to {total}. {add_steps(total, c)}"
        follow = FollowUp(f"And if I add {c} more?", answer, (f"= {total + c}.",))
    end = rng.choice(["", f" The sum is {total}.", f" That makes {total}."])
    return Exchange(
        ("add", a, b), wording.format(a, b), add_steps(a, b) + end, (f"= {total}.",), follow
    )


def subtraction(rng: random.Random) -> Exchange:
    """Subtract the smaller of two numbers."""
    a = rng.randint(11, 99)
    b = rng.randint(2, a - 1)
    wording, first, second = rng.choice(
        [
            ("What is {} - {}?", a, b),
            ("Please take {} away from {}.", b, a),
            ("How much is {} minus {}?", a, b),
            ("What is the difference between {} and {}?", a, b),
        ]
    )
    rest = a - b
    follow = None
    if rest > 3:
        c = rng.randint(1, min(rest - 1, 9))
        answer = f"Now we start from {rest}. {subtract_steps(rest, c)}"
        follow = FollowUp(f"Now take away {c} more.", answer, (f"= {rest - c}.",))
    return Exchange(
        ("subtract", a, b),
        wording.format(first, second),
        subtract_steps(a, b),
        (f"= {rest}.",),
        follow,
    )


def multiplication(rng: random.Random) -> Exchange:
    """Multiply two small numbers, or count in steps."""
    a, b = rng.randint(2, 10), rng.randint(2, 12)
    wording = rng.choice(["What is {} x {}?", "How much is {} times {}?", "Multiply {} by {}."])
    return Exchange(
        ("multiply", a, b), wording.format(a, b), multiply_steps(a, b), (f"= {a * b}.",)
    )


def even_or_odd(rng: random.Random) -> Exchange:
    """Tell whether a number is even."""
    n = rng.randint(3, 199)
    kind = "odd" if n % 2 else "even"
    wording = rng.choice(["Is {} even or odd?", "Is the number {} odd?", "Is the number {} even?"])
    answer = (
        f"The number {n} ends in {n % 10}, and numbers that end in {n % 10} are {kind}. So {n} is "
        f"{kind}."
    )
    return Exchange(("parity", n), wording.format(n), answer, (f"is {kind}.",))


def _gives(
    rng: random.Random, one: Person, two: Person, what: str
) -> tuple[str, str, int, tuple[int, int]]:
    a, b = rng.randint(3, 59), rng.randint(2, 38)
    question = rng.choice(
        [
            (
                f"{one.name} has {a} {what}. {two.name} gives {one.her} {b} more. How many {what} "
                f"does {one.name} have now?"
            ),
            (
                f"{one.name} found {a} {what} and then {b} more. How many {what} did {one.she} "
                "find in all?"
            ),
            (
                f"There are {a} {what} on the table. {two.name} puts {b} more beside them. How "
                "many are there?"
            ),
        ]
    )
    opening = rng.choice(
        [f"We start with {a} {what} and add {b}.", f"More {what} come, so we add."]
    )
    return question, f"{opening} {add_steps(a, b)}", a + b, (a, b)


def _loses(
    rng: random.Random, one: Person, two: Person, what: str
) -> tuple[str, str, int, tuple[int, int]]:
    a = rng.randint(12, 89)
    b = rng.randint(2, a - 2)
    question = rng.choice(
        [
            (
                f"{one.name} has {a} {what} and gives {b} of them to {two.name}. How many {what} "
                "are left?"
            ),
            (
                f"{one.name} had {a} {what}, but {one.she} lost {b}. How many does {one.she} still "
                "have?"
            ),
            f"A box holds {a} {what}. {two.name} takes out {b}. How many {what} stay in the box?",
        ]
    )
    opening = rng.choice(
        [f"We start with {a} {what} and take away {b}.", f"Some {what} go away, so we subtract."]
    )
    return question, f"{opening} {subtract_steps(a, b)}", a - b, (a, b)


def _groups(
    rng: random.Random, one: Person, two: Person, what: str
) -> tuple[str, str, int, tuple[int, int]]:
    a, b = rng.randint(2, 9), rng.randint(2, 10)
    question = rng.choice(
        [
            f"{one.name} has {a} bags with {b} {what} in each. How many {what} is that?",
            (
                f"{one.name} buys {b} {what} every day for {a} days. How many {what} does "
                f"{one.she} buy?"
            ),
            f"{a} friends of {two.name} bring {b} {what} each. How many {what} do they bring?",
        ]
    )
    return question, f"There are {a} groups of {b} {what}. {multiply_steps(a, b)}", a * b, (a, b)


def word_problem(rng: random.Random) -> Exchange:
    """Ask about people who get, lose or group things."""
    one, two = rng.sample(PEOPLE, 2)
    what = rng.choice(COUNTABLE)
    kind = rng.choice([_gives, _loses, _groups])
    question, steps, result, numbers = kind(rng, one, two, what)
    closing = rng.choice([f" The answer is {result} {what}.", f" That is {result} {what}.", ""])
    key = ("story sum", kind.__name__, one.name, two.name, what, *numbers)
    return Exchange(key, question, steps + closing, (f"= {result}.",))


def two_steps(rng: random.Random) -> Exchange:
    """Ask for a sum of a gain and a loss."""
    one, two = rng.sample(PEOPLE, 2)
    what = rng.choice(COUNTABLE)
    a, b = rng.randint(5, 49), rng.randint(3, 40)
    c = rng.randint(2, min(a + b - 2, 40))
    question = (
        f"{one.name} has {a} {what}. {two.name} brings {b} more, and then {one.name} "
        f"{rng.choice(['sells', 'loses', 'gives away'])} {c}. How many {what} are left?"
    )
    answer = (
        f"Step one, add {b}. {add_steps(a, b)} Step two, take away {c}. {subtract_steps(a + b, c)}"
    )
    key = ("two steps", one.name, two.name, what, a, b, c)
    return Exchange(
        key, question, answer + f" So {a + b - c} {what} are left.", (f"= {a + b - c}.",)
    )


TASKS = (
    (addition, 4.0),
    (subtraction, 4.0),
    (multiplication, 2.0),
    (even_or_odd, 1.0),
    (word_problem, 6.0),
    (two_steps, 3.0),
)
