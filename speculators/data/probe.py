"""What a chat template does, found out on conversations whose answers are known."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from enum import Enum

import numpy as np

from speculators.data.masking import Masked, MaskedRow, Masker
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn
from speculators.errors import ConfigError

_THOUGHT, _FUNCTION = "Let me consider distances.", "look_up"
_SHOWN = {"reasoning": _THOUGHT, "tools": _FUNCTION}
"""What a template has to show of a kind of conversation, or it does not know that kind."""
_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class MaskMethod(Enum):
    """How loss masks are made."""

    tags = "generation tags of the template"
    prefix = "prefix rendering"
    plain = "plain text"


@dataclass(frozen=True)
class TemplateProbe:
    """Findings about a template.

    Attributes:
        method: how masks are made.
        rewrites_history: an earlier answer is rendered differently than when it was the last one,
            so that conversations of several turns become several rows.
        refused: kinds of conversation the template does not accept or show.
    """

    method: MaskMethod
    rewrites_history: bool
    refused: tuple[str, ...] = ()


def _probes() -> dict[str, Conversation]:
    """Return short conversations by kind; no answer is contained in another text."""
    first = (Turn("user", "How far is the moon?"), Turn("assistant", "Very far away."))
    second = (Turn("user", "And what about Mars?"), Turn("assistant", "Even further out."))
    thought = tuple(
        dataclasses.replace(turn, extra={"reasoning_content": _THOUGHT})
        if turn.role == "assistant"
        else turn
        for turn in (*first, *second)
    )
    properties = {"what": {"type": "string", "description": "The thing to look up."}}
    parameters = {"type": "object", "properties": properties, "required": ["what"]}
    function = {"name": _FUNCTION, "description": "Looks up.", "parameters": parameters}
    call = {"name": _FUNCTION, "arguments": {"what": "moon"}}
    # Nine letters and figures: Mistral's templates accept no other id.
    calls = [{"type": "function", "id": "lookup001", "function": call}]
    tools = [{"type": "function", "function": function}]
    called = (
        first[0],
        Turn("assistant", "", {"tool_calls": calls}),
        Turn("tool", "384400 km", {"name": _FUNCTION, "tool_call_id": "lookup001"}),
        Turn("assistant", "Very far away."),
    )
    return {
        "two turns": Conversation((*first, *second), "probe", "probe"),
        "system turn": Conversation((Turn("system", "Be brief."), *first), "probe", "probe"),
        "reasoning": Conversation(thought, "probe", "probe"),
        "tools": Conversation(called, "probe", "probe", tools),
    }


def probe_template(tokenizer: VerifierTokenizer) -> TemplateProbe:
    """Mask known conversations and choose the method.

    Raises:
        ConfigError: a mask holds what the assistant did not say, or lacks what it did.
    """
    probes = _probes()
    prefix = dict(zip(probes, Masker(tokenizer).mask(list(probes.values())), strict=True))
    accepted = {kind: result for kind, result in prefix.items() if result.refusal is None}
    for kind, text in _SHOWN.items():
        if kind in accepted and not _shows(tokenizer, accepted[kind], text):
            del accepted[kind]
    for kind, result in accepted.items():
        for row in result.rows:
            _check(tokenizer, kind, probes[kind], row)
    rewrites = any(len(result.rows) > 1 for result in accepted.values())
    method = MaskMethod.plain if tokenizer.is_plain else MaskMethod.prefix
    if not rewrites and tokenizer.is_fast and _TAG.search(tokenizer.template_for()):
        tags = Masker(tokenizer, use_tags=True).mask([probes[kind] for kind in accepted])
        if all(map(_same, tags, accepted.values())):
            method = MaskMethod.tags
    return TemplateProbe(method, rewrites, tuple(kind for kind in probes if kind not in accepted))


def _same(tags: Masked, prefix: Masked) -> bool:
    """Whether both methods agree, or only the tags tell where an answer begins."""
    if not prefix.rows:
        return bool(tags.rows)
    return len(tags.rows) == len(prefix.rows) and all(
        np.array_equal(a.input_ids, b.input_ids) and np.array_equal(a.loss_mask, b.loss_mask)
        for a, b in zip(tags.rows, prefix.rows, strict=True)
    )


def _shows(tokenizer: VerifierTokenizer, result: Masked, text: str) -> bool:
    """Whether something appears in what the verifier sees; simple templates leave it out."""
    seen = (tokenizer.decode(row.input_ids[row.loss_mask]) for row in result.rows)
    return any(_letters(text) in _letters(one) for one in seen)


def _check(
    tokenizer: VerifierTokenizer, kind: str, conversation: Conversation, row: MaskedRow
) -> None:
    said = _letters(tokenizer.decode(row.input_ids[row.loss_mask]))
    answers = [_said_by(turn) for turn in conversation.turns if turn.role == "assistant"]
    others = [turn.content for turn in conversation.turns if turn.role != "assistant"]
    if not all(_survives(tokenizer, text) for text in (*answers, *others)):
        return
    wrong = any(_letters(text) in said for text in others)
    if wrong or not any(_letters(text) in said for text in answers):
        raise ConfigError(
            f"verifier.template: the loss mask of a probe ({kind}) comes out wrong: supervised is "
            f"{said!r}, the assistant said {answers!r}"
        )


def _said_by(turn: Turn) -> str:
    calls = turn.extra.get("tool_calls")
    return calls[0]["function"]["name"] if calls else turn.content


def _survives(tokenizer: VerifierTokenizer, text: str) -> bool:
    """Whether the vocabulary can spell a text at all."""
    return _letters(tokenizer.decode(tokenizer.tail_ids(text).tolist())) == _letters(text)


def _letters(text: str) -> str:
    """Return a text without spaces and case: tokenizers differ in what they restore."""
    return "".join(text.split()).lower()
