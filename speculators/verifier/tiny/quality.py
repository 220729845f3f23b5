"""How good the tiny verifier's greedy answers to held-out prompts are.

`python -m speculators.verifier.tiny.quality` prints examples and shares.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from speculators.data.tiny import TinyPrompt, tiny_prompts
from speculators.data.types import Turn
from speculators.verifier.tiny import folder


@dataclass(frozen=True)
class Answer:
    """A greedy answer to one user turn of a held-out prompt.

    Attributes:
        task: name of the task of the first turn, or "later turn".
        question: the user turn.
        text: what the model wrote.
        token_ids: its tokens, end of turn included.
        ended: whether it ended its turn by itself.
        right: whether it holds all that a right answer must; None where there is no such list.
    """

    task: str
    question: str
    text: str
    token_ids: tuple[int, ...]
    ended: bool
    right: bool | None


def distinct_share(token_ids: Sequence[int], n: int = 4) -> float:
    """Return the share of n-grams that are distinct; 1 for answers shorter than n."""
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def answer_all(
    prompts: Sequence[TinyPrompt], path: Path, max_new_tokens: int = 200, batch_size: int = 50
) -> list[Answer]:
    """Answer every user turn greedily, the model's own answers between them.

    Args:
        prompts: of `tiny_prompts`.
        path: folder of the model.
        max_new_tokens: longest answer.
        batch_size: prompts decoded together.

    Returns:
        One answer per user turn.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    answers = []
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        answers += _answer_batch(some, tokenizer, model, max_new_tokens)
    return answers


def _answer_batch(
    prompts: Sequence[TinyPrompt],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    max_new_tokens: int,
) -> list[Answer]:
    histories = [_messages(t for t in p.turns if t.role == "system") for p in prompts]
    questions = [_messages(t for t in p.turns if t.role == "user") for p in prompts]
    answers = []
    for index in range(max(map(len, questions))):
        going = [i for i, asked in enumerate(questions) if index < len(asked)]
        for i in going:
            histories[i].append(questions[i][index])
        rows = _generate([histories[i] for i in going], tokenizer, model, max_new_tokens)
        for i, ids in zip(going, rows, strict=True):
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            histories[i].append({"role": "assistant", "content": text})
            answers.append(
                Answer(
                    task=prompts[i].task if index == 0 else "later turn",
                    question=questions[i][index]["content"],
                    text=text,
                    token_ids=tuple(ids),
                    ended=ids[-1] == tokenizer.eos_token_id,
                    right=prompts[i].is_right(index, text) if prompts[i].checks[index] else None,
                )
            )
    return answers


def _messages(turns: Iterable[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _generate(
    histories: list[list[dict[str, str]]],
    tokenizer: PreTrainedTokenizerBase,
    model: Any,
    max_new_tokens: int,
) -> list[list[int]]:
    inputs: Any = tokenizer.apply_chat_template(
        histories, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    length, end = inputs["input_ids"].shape[1], tokenizer.eos_token_id
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    rows = out[:, length:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def summary_of(answers: Sequence[Answer]) -> str:
    """Return the measured shares, as lines."""
    by_task: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_task[answer.task].append(answer)
    lines = [
        f"answers {len(answers)}",
        f"distinct 4-grams {_mean([distinct_share(a.token_ids) for a in answers]):.4f}",
        f"ended by themselves {_mean([a.ended for a in answers]):.4f}",
        f"tokens per answer {_mean([len(a.token_ids) for a in answers]):.1f}",
        f"right {_right(answers)}",
    ]
    lines += [f"  {task}: {_right(some)}" for task, some in sorted(by_task.items())]
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _right(answers: Sequence[Answer]) -> str:
    judged = [a.right for a in answers if a.right is not None]
    return f"{sum(judged)} of {len(judged)}"


def main() -> None:
    """Answer held-out prompts, print shares and examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=folder())
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=10, help="examples to print")
    parser.add_argument("--wrong", action="store_true", help="print wrong answers only")
    options = parser.parse_args()
    answers = answer_all(tiny_prompts(options.count, options.seed), options.folder)
    shown = [a for a in answers if a.right is False] if options.wrong else answers
    for answer in shown[: options.show]:
        print(f"[{answer.task}] {answer.question}\n> {answer.text}\n")
    print(summary_of(answers))


if __name__ == "__main__":
    main()
