"""Which tokens of a conversation the verifier itself would have generated.

Data specification, section 3. Method G reads the generation tags of a template; method P renders
every prefix and compares token ids, and is exact for every template. Where a template rewrites
history (reasoning of earlier turns removed, say), one row cannot show every turn what the verifier
saw when it produced it; then a conversation becomes several rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int

from speculators.config.schema import MultiTurn
from speculators.data.chat_template import TemplateRefusalError
from speculators.data.roles import RoleTokens, count_roles
from speculators.data.spans import fewest_rows, find_border
from speculators.data.template import Tokenized, VerifierTokenizer
from speculators.data.types import Conversation
from speculators.data.views import View, Viewer, hidden_call


@dataclass(frozen=True)
class MaskedRow:
    """Tokens of a conversation with the assistant's marked.

    Attributes:
        input_ids: tokens as the verifier sees them.
        loss_mask: True on what the verifier would have generated, end of turn included.
        roles: tokens by role, for the report.
        num_open_turns: supervised turns without an end token.
        num_answers: supervised turns; 0 where nobody knows (rows that were tokenised before).
    """

    input_ids: Int[np.ndarray, "token"]
    loss_mask: Bool[np.ndarray, "token"]
    roles: RoleTokens = field(default_factory=dict)
    num_open_turns: int = 0
    num_answers: int = 0


@dataclass(frozen=True)
class Masked:
    """What became of one conversation.

    Attributes:
        rows: training rows.
        unstable: one line per assistant turn whose first token cannot be told.
        hidden: one line per assistant turn whose tool call the template leaves out.
        refusal: why the conversation cannot be used, or not to its end; the same words for all
            that have this reason.
        detail: what exactly happened to this one.
    """

    rows: tuple[MaskedRow, ...] = ()
    unstable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    refusal: str | None = None
    detail: str = ""


class Masker:
    """Turns conversations into rows with a loss mask.

    Args:
        tokenizer: the verifier's.
        multi_turn: how the assistant turns of a conversation become rows.
        use_tags: read the template's generation tags (method G) where that is exact.
    """

    def __init__(
        self,
        tokenizer: VerifierTokenizer,
        multi_turn: MultiTurn = MultiTurn.auto,
        *,
        use_tags: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._multi_turn = multi_turn
        self._use_tags = use_tags and multi_turn is MultiTurn.auto
        self._end_ids = np.array(sorted(tokenizer.end_of_turn_ids), dtype=np.int64)
        self._is_end = np.zeros(
            max([tokenizer.num_tokens, *(self._end_ids + 1).tolist()]), dtype=bool
        )
        self._is_end[self._end_ids] = True
        ends = [tokenizer.decode([index]) for index in self._end_ids.tolist()]
        self._viewer = Viewer(tokenizer, ends)

    def mask(self, conversations: Sequence[Conversation]) -> list[Masked]:
        """Return what became of each conversation, in order."""
        done = {i: row for i, row in self._tagged(conversations)} if self._use_tags else {}
        views: dict[int, list[View]] = {}
        hidden: dict[int, tuple[str, ...]] = {}
        for i, conversation in enumerate(conversations):
            if i not in done:
                try:
                    views[i], hidden[i] = self._views(conversation)
                except TemplateRefusalError as refusal:
                    done[i] = Masked(refusal=str(refusal))
        groups = {i: self._groups(of) for i, of in views.items()}
        texts = [group[-1].text for of in groups.values() for group in of]
        tokenized = iter(self._tokenizer.tokenize(texts))
        for i, of in groups.items():
            rows = [(group, next(tokenized)) for group in of]
            masked = self._masked(conversations[i], rows)
            done[i] = dataclasses.replace(masked, hidden=hidden[i])
        return [done[i] for i in range(len(conversations))]

    # ---- method P ---------------------------------------------------------------------------

    def _views(self, conversation: Conversation) -> tuple[list[View], tuple[str, ...]]:
        """Return the turns to supervise, and a line for each that the template does not show."""
        views: list[View] = []
        hidden: list[str] = []
        only_last = self._multi_turn is MultiTurn.last
        for view in self._viewer.views(conversation, only_last=only_last):
            name = hidden_call(conversation.turns[view.turn], view)
            if name is None:
                views.append(view)
            else:
                hidden.append(f"turn {view.turn + 1} calls {name!r}")
        return views, tuple(hidden)

    def _groups(self, views: list[View]) -> list[list[View]]:
        """Return the views that share a row; the last one of a group gives the row."""
        if self._multi_turn is not MultiTurn.auto:
            return [[view] for view in views]
        rows = fewest_rows([view.text for view in views], [view.head for view in views])
        return [[views[i] for i in row] for row in rows]

    def _masked(
        self, conversation: Conversation, groups: list[tuple[list[View], Tokenized]]
    ) -> Masked:
        rows: list[MaskedRow] = []
        stable: list[View] = []
        unstable: list[str] = []
        for views, row in groups:
            spans = [(view, self._span(conversation, view, views[-1].text, row)) for view in views]
            stable += [view for view, span in spans if isinstance(span, tuple)]
            unstable += [f"turn {v.turn + 1}: {why}" for v, why in spans if isinstance(why, str)]
            marked = [span for _, span in spans if isinstance(span, tuple)]
            rows.append(self._row(conversation, views[-1], row, marked))
        if not unstable:
            return Masked(tuple(rows))
        # A row that ends with a turn nobody supervises would be longer than it need be.
        regrouped = self._groups(stable)
        tokenized = self._tokenizer.tokenize([group[-1].text for group in regrouped])
        rest = self._masked(conversation, list(zip(regrouped, tokenized, strict=True)))
        return Masked(rest.rows, tuple(unstable) + rest.unstable)

    def _row(
        self,
        conversation: Conversation,
        view: View,
        row: Tokenized,
        spans: list[tuple[int, int]],
    ) -> MaskedRow:
        mask = np.zeros(len(row.input_ids), dtype=bool)
        for start, stop in spans:
            mask[start:stop] = True
        roles = count_roles(conversation.turns[: view.turn + 1], view.text, row, mask)
        num_open = sum(not self._is_end[row.input_ids[stop - 1]] for _, stop in spans)
        return MaskedRow(row.input_ids, mask, roles, num_open, len(spans))

    def _span(
        self, conversation: Conversation, view: View, text: str, row: Tokenized
    ) -> tuple[int, int] | str:
        """Return first and one past the last token of a turn, or why they cannot be told."""
        border = find_border(self._tokenizer, row, text, view.prompt)
        if not border.is_exact and not self._harmless(conversation, view, text, border.leftover):
            return f"the generation prompt's {border.leftover!r} is not what the template writes"
        start, stop = border.index, find_border(self._tokenizer, row, text, view.head).index
        ends = np.flatnonzero(self._is_end[row.input_ids[start:stop]])
        if len(ends):
            stop = start + int(ends[-1]) + 1
        elif stop < len(row.input_ids) and self._is_end[row.input_ids[stop]]:
            # GLM ends an answer with the token that opens the next turn.
            stop += 1
        return (start, stop) if stop > start else "the template writes nothing for it"

    def _harmless(self, conversation: Conversation, view: View, text: str, leftover: str) -> bool:
        """Whether what the generation prompt adds is blank or an empty think block."""
        if "".join(leftover.split()) not in ("", "<think></think>"):
            return False
        try:
            before = self._tokenizer.text(conversation.turns[: view.turn], conversation.tools)
        except TemplateRefusalError:
            return False
        fits = len(leftover) <= len(view.prompt) - len(before)
        return fits and view.prompt.startswith(before) and text.startswith(before)

    # ---- method G ---------------------------------------------------------------------------

    def _tagged(self, conversations: Sequence[Conversation]) -> Iterator[tuple[int, Masked]]:
        for i, conversation in enumerate(conversations):
            try:
                row, tags = self._tokenizer.tagged(conversation.turns, conversation.tools)
                text = self._tokenizer.text(conversation.turns, conversation.tools)
            except TemplateRefusalError as refusal:
                yield i, Masked(refusal=str(refusal))
                continue
            ids, mask = row.input_ids, np.zeros(len(row.input_ids), dtype=bool)
            spans = list(tag_spans(ids, tags, self._end_ids))
            answers = [turn for turn in conversation.turns if turn.role == "assistant"]
            # transformers drops a span whose first character has no token of its own: without
            # exactly one span per turn, method P decides. It also sees whether calls are shown.
            if len(spans) != len(answers) or any(turn.extra.get("tool_calls") for turn in answers):
                continue
            for span in spans:
                mask[span] = True
            num_open = sum(int(ids[span.stop - 1]) not in self._end_ids for span in spans)
            roles = count_roles(conversation.turns, text, row, mask)
            yield i, Masked((MaskedRow(ids, mask, roles, num_open, len(spans)),))


def tag_spans(
    ids: Int[np.ndarray, "token"], tags: Bool[np.ndarray, "token"], end_ids: Int[np.ndarray, "end"]
) -> Iterator[slice]:
    """Yield the runs of tagged tokens, each cut after, or extended by, its end-of-turn token."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], tags, [False]]).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2).tolist():
        ends = np.flatnonzero(np.isin(ids[start:stop], end_ids))
        if len(ends):
            stop = start + int(ends[-1]) + 1
        elif stop < len(ids) and ids[stop] in end_ids:
            stop += 1
        yield slice(start, stop)
