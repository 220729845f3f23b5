"""An assistant turn as the verifier meets it: last in its conversation, behind its own prompt."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from speculators.data.chat_template import TemplateRefusalError
from speculators.data.spans import common_prefix
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn

_MARK = "Zq7fKx"
"""An answer that no conversation holds: shows where answers begin."""
_EMPTY_THOUGHT = re.compile(
    r"(?:(<think>)\s*</think>|(<\|channel>)thought\s*<channel\|>"
    r"|(<\|START_THINKING\|>)\s*<\|END_THINKING\|>)\s*\Z"
)
"""An empty think block at the end of a prompt, as Qwen3, Gemma-4 and Command-A write it."""


@dataclass(frozen=True)
class View:
    """A prompt and the answer to it.

    Attributes:
        turn: index of the assistant turn.
        prompt: rendered text after which the verifier begins.
        text: rendered text with the turn.
        stop: characters of `text` up to the end of the turn.
    """

    turn: int
    prompt: str
    text: str
    stop: int

    @property
    def head(self) -> str:
        """Text up to the end of the turn."""
        return self.text[: self.stop]


class Viewer:
    """Renders the assistant turns of conversations.

    A server sends the prompt, so a row has to begin with it. Where the template renders what comes
    before an answer differently once the answer is there (Mistral-v0.3 and Nemo take the system
    text away again, gpt-oss the reasoning of a call, Gemma-4 an empty think block), the answer is
    cut out of the finished text and put behind the prompt.

    Args:
        tokenizer: the verifier's.
        end_texts: what can end a turn.
    """

    def __init__(self, tokenizer: VerifierTokenizer, end_texts: Sequence[str]) -> None:
        self._tokenizer, self._ends = tokenizer, tuple(end_texts)

    def views(self, conversation: Conversation, *, only_last: bool = False) -> Iterator[View]:
        """Yield the assistant turns of a conversation, in order.

        Raises:
            TemplateRefusalError: the template does not accept the conversation.
        """
        turns, tools = conversation.turns, conversation.tools
        wanted = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        for i in wanted[-1:] if only_last else wanted:
            prompt = self._tokenizer.text(turns[:i], tools, add_generation_prompt=True)
            text = self._tokenizer.text(turns[: i + 1], tools)
            if not text.startswith(prompt):
                text = self._behind(prompt, text, conversation, i)
            yield View(i, prompt, text, self._stop(text, common_prefix(text, prompt)))

    def _behind(self, prompt: str, text: str, conversation: Conversation, turn: int) -> str:
        """Return the prompt with the answer of the finished text, or that text as it is.

        The two must agree from the last turn's content to the end of the prompt, but for an empty
        think block there that the answer does not open anew.
        """
        empty = _EMPTY_THOUGHT.search(prompt)
        base = prompt[: empty.start()] if empty else prompt
        answer = text[len(base) :] if empty and text.startswith(base) else None
        if answer is None:
            answer = self._answer(base, text, conversation, turn)
        if answer is None or (
            empty and answer.lstrip().startswith(empty.group(empty.lastindex or 0))
        ):
            return text
        return prompt + answer

    def _answer(self, base: str, text: str, conversation: Conversation, turn: int) -> str | None:
        """Return what follows the end of a prompt in the finished text, or None."""
        turns, tools = conversation.turns[:turn], conversation.tools
        content = turns[-1].content.strip() if turns else ""
        if not content:
            return None
        try:
            asked = common_prefix(base, self._tokenizer.text(turns, tools))
            # Another answer makes the text another one from here on.
            other = self._tokenizer.text((*turns, Turn("assistant", _MARK)), tools)
        except TemplateRefusalError:
            return None
        place, answered = base.rfind(content, 0, asked), common_prefix(text, other)
        tail = base[place:]
        begin = text.rfind(tail, 0, answered) if place >= 0 else -1
        stop = begin + len(tail)
        return None if begin < 0 or content in text[stop:answered] else text[stop:]

    def _stop(self, text: str, start: int) -> int:
        """Return the end of the turn that begins at `start`: behind its end-of-turn token.

        Some templates close the whole document with one more such token (Phi-3); the verifier has
        stopped before it.
        """
        found = ((text.rfind(end, start), len(end)) for end in self._ends)
        place, length = max(((p, n) for p, n in found if p >= 0), default=(len(text), 0))
        while (before := text[start:place].rstrip()).endswith(self._ends) and before:
            length = max(len(end) for end in self._ends if before.endswith(end))
            place = start + len(before) - length
        return place + length


def hidden_call(turn: Turn, view: View) -> str | None:
    """Return the name of a function that a turn calls and its rendered text does not, or None.

    A template that knows no tools leaves calls out; what is left, often nothing but the end of the
    turn, is not what the verifier would have written.
    """
    written = view.text[common_prefix(view.text, view.prompt) :]
    names = (call["function"]["name"] for call in turn.extra.get("tool_calls") or ())
    return next((str(name) for name in names if str(name) not in written), None)
