"""Small pieces of Python: functions, loops, lists, and what they print."""

from __future__ import annotations

import random

from speculators.data.tiny.exchange import Exchange, FollowUp
from speculators.data.tiny.words import CLASSES, PEOPLE

NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
OPERATIONS = {
    "add": ("adds {} to a number", "number + {}", lambda n, k: n + k),
    "subtract": ("subtracts {} from a number", "number - {}", lambda n, k: n - k),
    "multiply_by": ("multiplies a number by {}", "number * {}", lambda n, k: n * k),
}
VARIABLES = ("x", "y", "n", "total", "count", "size")


def function(rng: random.Random) -> Exchange:
    """Ask for a function of one number."""
    name, k, n = rng.choice(list(OPERATIONS)), rng.randint(2, 12), rng.randint(13, 20)
    says, code, compute = OPERATIONS[name]
    argument = rng.choice(["number", "x", "n", "value"])
    wording = rng.randrange(3)
    question = (
        "Write a Python function that {}.",
        "I need Python code that {}.",
        "How do I write a function that {} in Python?",
    )[wording]
    if name == "multiply_by":
        n = rng.randint(2, 5)
    body = code.format(k).replace("number", argument)
    label = f"{name}_{NUMBERS[k]}"
    answer = (
        f"```python\ndef {label}({argument}):\n    return {body}\n```\n"
        f"{rng.choice(['For example', 'As a test'])}, {label}({n}) returns {compute(n, k)}."
    )
    follow = FollowUp(
        f"What does {label}({n + 1}) return?",
        (
            f"The call {label}({n + 1}) computes {code.format(k).replace('number', str(n + 1))}, "
            f"so it returns {compute(n + 1, k)}."
        ),
        (f"returns {compute(n + 1, k)}.",),
    )
    return Exchange(
        ("function", name, k, wording),
        question.format(says.format(k)),
        answer,
        (f"return {body}"[:7], f"def {label}"),
        follow,
    )


def loop(rng: random.Random) -> Exchange:
    """Ask for a loop over numbers."""
    start = rng.randint(0, 12)
    stop, step = start + rng.randint(3, 12), rng.choice([1, 1, 2, 3])
    text = (
        "print the numbers" if step == 1 else f"print every {('second', 'third')[step - 2]} number"
    )
    question = rng.choice(
        ["Write a Python loop to {} from {} to {}.", "How can I {} from {} to {} in Python?"]
    ).format(text, start, stop)
    name = rng.choice(["i", "n", "number"])
    arguments = f"{start}, {stop + 1}" + (f", {step}" if step > 1 else "")
    numbers = list(range(start, stop + 1, step))
    answer = (
        f"```python\nfor {name} in range({arguments}):\n    print({name})\n```\n"
        f"The first number is {numbers[0]} and the last is {numbers[-1]}. The end of a range "
        "is not included."
    )
    return Exchange(
        ("loop", start, stop, step),
        question,
        answer,
        (f"range({arguments})", f"last is {numbers[-1]}."),
    )


def what_prints(rng: random.Random) -> Exchange:
    """Ask what three lines of code print."""
    one, two = rng.sample(VARIABLES, 2)
    p, q = rng.randint(2, 30), rng.randint(2, 30)
    sign = rng.choice("+-*")
    if sign == "*":
        p, q = rng.randint(2, 9), rng.randint(2, 9)
    if sign == "-":
        p, q = max(p, q), min(p, q)
    result = {"+": p + q, "-": p - q, "*": p * q}[sign]
    question = (
        f"What does this code print?\n```python\n{one} = {p}\n{two} = {q}\nprint({one} {sign} "
        f"{two})\n```"
    )
    answer = (
        f"Here {one} is {p} and {two} is {q}. The code prints {p} {sign} {q}, which is {result}."
    )
    return Exchange(("prints", p, q, sign, one, two), question, answer, (f"which is {result}.",))


def make_list(rng: random.Random) -> Exchange:
    """Ask for a list in Python and a loop over it."""
    kind = rng.choice(["fruit", "color", "tool", "animal"])
    words = rng.sample(CLASSES[kind], rng.choice([2, 3]))
    plural = f"{kind}s"
    variable = rng.choice([plural, "words", "items"])
    question = rng.choice(
        [
            "Make a Python list of {} and print each one.",
            "Write Python code with a list of {} and a loop.",
        ]
    ).format(", ".join(words))
    literal = ", ".join(f'"{w}"' for w in words)
    answer = (
        f"```python\n{variable} = [{literal}]\nfor word in {variable}:\n    print(word)\n```\n"
        f"The list has {len(words)} words, and the loop prints one per line."
    )
    return Exchange(("list", *words), question, answer, (f"[{literal}]",))


TERMS = {
    "a variable": ("is a name for a value", "{} = {}"),
    "a list": ("keeps several values in order", "{} = [{}, {}]"),
    "a loop": ("repeats the same lines many times", "for {} in range({}): print({})"),
    "a function": ("is a named piece of code that you can call", "def {}(n): return n + {}"),
    "a comment": ("is a note that Python does not run", "# {} is {} here"),
    "a condition": ("runs code only when something is true", "if {} > {}: print({})"),
}


def explain(rng: random.Random) -> Exchange:
    """Ask what a term of programming means."""
    term, who = rng.choice(list(TERMS)), rng.choice(PEOPLE).name
    says, example = TERMS[term]
    name, p, q = rng.choice(VARIABLES), rng.randint(2, 20), rng.randint(2, 20)
    fills = {"a loop": (name, p, name), "a condition": (name, p, name)}.get(term, (name, p, q))
    wording = rng.randrange(3)
    question = (
        "Explain to {} what {} is in Python.",
        "{} asks what {} means in Python.",
        "Help {} understand {} in Python.",
    )[wording].format(who, term)
    end = rng.choice(["Try it yourself!", "You will use it often.", "It is easy once you see it."])
    answer = f"{who}, {term} {says}. Here is an example: `{example.format(*fills)}`. {end}"
    return Exchange(("explain", term, who, wording), question, answer, (says,))


TASKS = ((function, 2.0), (loop, 2.0), (what_prints, 2.5), (make_list, 2.0), (explain, 1.0))
