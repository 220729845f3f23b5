"""The verifier's tokenizer and chat template: turns in, exactly the tokens it serves out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from speculators.data.chat_template import (
    AUTO,
    KEY,
    REFUSALS,
    TemplateRefusalError,
    choose_template,
    reasoning_key,
    renamed_reasoning,
    with_text_arguments,
)
from speculators.data.types import Turn
from speculators.errors import ConfigError

_MARK = "Zq7fKx"
"""Text that no template contains; finds an answer in a rendered conversation."""


@dataclass(frozen=True)
class Tokenized:
    """Tokens of one text, and where in the text special tokens stand.

    Attributes:
        input_ids: tokens.
        anchors: (index of a special token, its first character), ascending. Tokenizers work
            between special tokens separately, so that a text may be tokenised anew from any of
            them on; empty where this is not known.
        encoding: the backend's result, or None.
    """

    input_ids: Int[np.ndarray, "token"]
    anchors: tuple[tuple[int, int], ...]
    encoding: Any = None


class VerifierTokenizer:
    """Renders conversations as the verifier's server does.

    Args:
        tokenizer: a `transformers` tokenizer.
        template: Jinja source of the chat template, or None for plain text.
        template_arguments: passed to the template.
        eos_token_ids: ids at which the verifier stops, from its configuration files.
        notices: lines a user should read once.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | dict[str, str] | None,
        template_arguments: Mapping[str, Any] | None = None,
        eos_token_ids: Sequence[int] = (),
        notices: Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self.template = template
        self.template_arguments = dict(template_arguments or {})
        self.eos_token_ids = tuple(eos_token_ids)
        self.notices = tuple(notices)
        self._tails: dict[str, Int[np.ndarray, "token"]] = {}
        if tokenizer.is_fast:
            # A file may carry the truncation of whoever saved it.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        template: str = AUTO,
        template_arguments: Mapping[str, Any] | None = None,
        eos_token_ids: Sequence[int] = (),
        trust_remote_code: bool = False,
    ) -> VerifierTokenizer:
        """Load the tokenizer of a model folder.

        Args:
            folder: holds the tokenizer's files.
            template: `auto`, `plain`, or the path of a Jinja file (`verifier.template`).
            template_arguments: passed to the template.
            eos_token_ids: ids at which the verifier stops.
            trust_remote_code: run tokenizer code that comes with the folder.

        Raises:
            ConfigError: the folder holds no tokenizer, or the template cannot be read.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=trust_remote_code, local_files_only=True
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"verifier.name_or_path={folder}: no tokenizer: {reason}") from error
        source, notices = choose_template(template, tokenizer.chat_template)
        loaded = cls(tokenizer, source, template_arguments, eos_token_ids, notices)
        loaded.end_of_turn_ids  # noqa: B018  renders a probe, so that a broken template fails here
        return loaded

    @property
    def is_plain(self) -> bool:
        """Whether turns are joined as they are, without a template."""
        return self.template is None

    @property
    def is_fast(self) -> bool:
        """Whether the tokenizer reports where its tokens stand in the text."""
        return bool(self._tokenizer.is_fast)

    @property
    def num_tokens(self) -> int:
        """One more than the highest token id."""
        return max([len(self._tokenizer) - 1, *self._added]) + 1

    # ---- text -------------------------------------------------------------------------------

    def text(
        self,
        turns: Sequence[Turn],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return the rendered text.

        Raises:
            TemplateRefusalError: the template does not accept these turns.
        """
        text = self._rendered(turns, tools, add_generation_prompt)
        try:
            if not text.isascii():
                text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TemplateRefusalError("not Unicode text: half of a surrogate pair") from error
        return text

    def _rendered(
        self,
        turns: Sequence[Turn],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        if self.is_plain:
            return self._plain_text(turns, add_generation_prompt)
        messages = self._messages(turns)
        try:
            return self._apply(messages, tools, add_generation_prompt)
        except REFUSALS as error:
            if any("tool_calls" in turn.extra for turn in turns):
                try:
                    return self._apply(with_text_arguments(messages), tools, add_generation_prompt)
                except REFUSALS:
                    pass
            raise TemplateRefusalError(f"chat template: {error}") from error

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, Any]]:
        key = self._reasoning_key
        return [
            {"role": t.role, "content": t.content, **renamed_reasoning(t.extra, key)} for t in turns
        ]

    @cached_property
    def _reasoning_key(self) -> str:
        return reasoning_key(str(self.template))

    def _apply(
        self, messages: list[dict[str, Any]], tools: Any, generation: bool, **kind: Any
    ) -> Any:
        return self._tokenizer.apply_chat_template(
            messages,
            tools=list(tools) if tools else None,
            chat_template=self.template_for(tools),
            add_generation_prompt=generation,
            **(kind or {"tokenize": False}),
            **self.template_arguments,
        )

    def tagged(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[Tokenized, Bool[np.ndarray, "token"]]:
        """Return tokens, and which of them the template's generation tags enclose.

        Only for fast tokenizers.

        Raises:
            TemplateRefusalError: the template does not accept these turns.
        """
        messages = self._messages(turns)
        kind = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        try:
            result = self._apply(
                messages, tools, False, **kind, tokenizer_kwargs={"verbose": False}
            )
        except REFUSALS as error:
            raise TemplateRefusalError(f"chat template: {error}") from error
        encoding = result.encodings[0]
        row = Tokenized(np.array(encoding.ids, dtype=np.int64), (), encoding)
        return row, np.array(result["assistant_masks"], dtype=bool)

    def template_for(self, tools: Any = None) -> str:
        """Return the template used with or without tools; some tokenizers name several."""
        if isinstance(self.template, dict):
            named = self.template.get("tool_use") if tools else None
            return named or self.template.get("default") or next(iter(self.template.values()))
        return self.template or ""

    def _plain_text(self, turns: Sequence[Turn], generation: bool) -> str:
        text = ""
        for turn in turns:
            glue = text and turn.content and not (text[-1].isspace() or turn.content[0].isspace())
            text += (" " if glue else "") + turn.content
        ends = bool(turns) and turns[-1].role == "assistant" and not generation
        return text + (self._plain_end if ends else "")

    @cached_property
    def _plain_end(self) -> str:
        token = self._tokenizer.eos_token
        if token is None and self.eos_token_ids:
            token = self._tokenizer.convert_ids_to_tokens(self.eos_token_ids[0])
        return token or ""

    @cached_property
    def _plain_start(self) -> Int[np.ndarray, "token"]:
        """Ids the tokenizer itself puts in front of a text (for most base models one bos)."""
        ids = list(self._tokenizer("a", add_special_tokens=True)["input_ids"])
        bare = list(self._tokenizer("a", add_special_tokens=False)["input_ids"])
        places = (i for i in range(len(ids)) if ids[i : i + len(bare)] == bare)
        return np.array(ids[: next(places, 0)], dtype=np.int64)

    # ---- tokens -----------------------------------------------------------------------------

    def render(
        self,
        turns: Sequence[Turn],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> list[int]:
        """Return the tokens of rendered turns; special tokens come from the template alone.

        Raises:
            TemplateRefusalError: the template does not accept these turns.
        """
        text = self.text(turns, tools, add_generation_prompt=add_generation_prompt)
        return self.tokenize([text])[0].input_ids.tolist()

    def prompt_ids(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Return the tokens after which the verifier begins its answer.

        Raises:
            TemplateRefusalError: the template does not accept these turns.
        """
        return self.render(turns, tools, add_generation_prompt=True)

    def tokenize(self, texts: Sequence[str]) -> list[Tokenized]:
        """Tokenise rendered texts together."""
        start = self._plain_start if self.is_plain else np.empty(0, dtype=np.int64)
        if not self.is_fast:
            ids = [self._slow_ids(text) for text in texts]
            return [Tokenized(np.concatenate([start, row]), ()) for row in ids]
        backend = self._tokenizer.backend_tokenizer
        encodings = backend.encode_batch(list(texts), add_special_tokens=False)
        return [self._tokenized(encoding, start) for encoding in encodings]

    def _slow_ids(self, text: str) -> Int[np.ndarray, "token"]:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array(ids, dtype=np.int64)

    def _bare_ids(self, text: str) -> Int[np.ndarray, "token"]:
        if not self.is_fast:
            return self._slow_ids(text)
        # Not through the tokenizer's own call: that may change its state while another thread
        # is at work.
        encoding = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, dtype=np.int64)

    def _tokenized(self, encoding: Any, start: Int[np.ndarray, "start"]) -> Tokenized:
        ids = np.array(encoding.ids, dtype=np.int64)
        special = np.flatnonzero(self._is_anchor[ids])
        anchors = tuple(
            (int(index) + len(start), encoding.token_to_chars(int(index))[0]) for index in special
        )
        return Tokenized(np.concatenate([start, ids]), anchors, encoding)

    def tail_ids(self, text: str) -> Int[np.ndarray, "token"]:
        """Tokenise a text that begins with a special token; short ones are remembered."""
        ids = self._tails.get(text)
        if ids is None:
            ids = self._bare_ids(text)
            if len(text) <= 256 and len(self._tails) < 4096:
                self._tails[text] = ids
        return ids

    @cached_property
    def _added(self) -> dict[int, Any]:
        return dict(self._tokenizer.added_tokens_decoder)

    @cached_property
    def _is_anchor(self) -> np.ndarray:
        """By id: whether the text on both sides of this token is tokenised separately."""
        table = np.zeros(self.num_tokens, dtype=bool)
        for index, token in self._added.items():
            table[index] = not (token.lstrip or token.single_word or token.normalized)
        return table

    # ---- what tokens mean -------------------------------------------------------------------

    def decode(
        self,
        ids: Sequence[int] | Int[np.ndarray, "token"] | Int[Tensor, "token"],
        *,
        special: bool = True,
    ) -> str:
        """Return the text of tokens, with special tokens unless `special` is False."""
        return self._tokenizer.decode(
            list(map(int, ids)), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )

    def token_text(self, token_id: int) -> str:
        """Return one token for display, its leading space kept."""
        token = self._tokenizer.convert_ids_to_tokens(int(token_id))
        if token is None:
            return f"<row {token_id}>"
        if token.startswith("\u2581"):
            return token.replace("\u2581", " ")
        text = self.decode([token_id])
        return token if "\ufffd" in text or not text else text

    def raw_token(self, token_id: int) -> str | None:
        """Return a token as the tokenizer's files write it, or None."""
        return self._tokenizer.convert_ids_to_tokens(int(token_id))

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """Added tokens by id: control tokens, tags, reserved places."""
        return {index: token.content for index, token in sorted(self._added.items())}

    @property
    def unk_token_id(self) -> int | None:
        """Id of the unknown token, or None."""
        return self._tokenizer.unk_token_id

    @property
    def end_of_turn_ids(self) -> frozenset[int]:
        """Ids that end an answer, the verifier's own and the template's."""
        return self._end_of_turn_ids

    @cached_property
    def _end_of_turn_ids(self) -> frozenset[int]:
        """Ids that end an assistant turn.

        The verifier's own list, the tokenizer's end token, and the special token that the
        template puts behind an answer (data specification, section 3).
        """
        ids = set(self.eos_token_ids)
        if self._tokenizer.eos_token_id is not None:
            ids.add(self._tokenizer.eos_token_id)
        if not self.is_plain:
            turns = (Turn("user", "a"), Turn("assistant", _MARK))
            rest = self._probe_text(turns).rpartition(_MARK)[2].lstrip()
            first = self.tail_ids(rest)[:1].tolist() if rest else []
            ids |= {index for index in first if index in self._added}
        return frozenset(ids)

    def _probe_text(self, turns: Sequence[Turn]) -> str:
        try:
            return self.text(turns)
        except TemplateRefusalError as error:
            raise ConfigError(
                f"{KEY}: a user and an assistant turn cannot be rendered: {error}"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over tokenizer, template, arguments and what they make of a short conversation.

        The rendered conversation is part of it because some templates print today's date.
        """
        digest = hashlib.sha256()
        if self.is_fast:
            digest.update(self._tokenizer.backend_tokenizer.to_str().encode())
        else:
            digest.update(json.dumps(sorted(self._tokenizer.get_vocab().items())).encode())
        turns = (Turn("user", "a"), Turn("assistant", _MARK))
        state = [self.template, self.template_arguments, self._probe_text(turns)]
        state.append(sorted(self.end_of_turn_ids))
        digest.update(json.dumps(state, sort_keys=True, default=str).encode())
        return digest.hexdigest()
