from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from speculators.data.chat_template import TemplateRefusalError
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn
from speculators.errors import ConfigError

MakeTokenizer = Callable[..., VerifierTokenizer]
MakeFast = Callable[..., Any]

HELLO = (Turn("user", "Hello"),)


@pytest.fixture
def folder(tmp_path: Path, make_fast: MakeFast) -> Path:
    """A model folder with a tokenizer that puts bos in front, as base models do."""
    tokenizer = make_fast("llama3")
    bos = ("<|begin_of_text|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos[0]} $A", special_tokens=[bos]
    )
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_rendered_text_gets_no_second_begin_token(folder: Path) -> None:
    tokenizer = VerifierTokenizer.load(folder)
    ids = tokenizer.prompt_ids(HELLO)
    assert tokenizer.decode(ids) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert ids.count(ids[0]) == 1
    assert tokenizer.decode(ids, special=False) == "user\n\nHelloassistant\n\n"
    assert not tokenizer.notices


def test_plain_text_joins_turns_and_uses_the_tokenizer_s_own_begin(folder: Path) -> None:
    tokenizer = VerifierTokenizer.load(folder, template="plain")
    turns = (Turn("user", "One."), Turn("assistant", "Two.\n"), Turn("user", "Three."))
    assert tokenizer.is_plain
    assert tokenizer.decode(tokenizer.prompt_ids(turns)) == "<|begin_of_text|>One. Two.\nThree."
    assert tokenizer.decode(tokenizer.render(turns[:2])) == (
        "<|begin_of_text|>One. Two.\n<|end_of_text|>"
    )


def test_tokenizer_that_adds_no_begin_token_gets_none(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(None)
    assert tokenizer.decode(tokenizer.prompt_ids(HELLO)) == "Hello"


def test_tokenizer_without_a_template_falls_back_with_a_notice(
    tmp_path: Path, make_fast: MakeFast
) -> None:
    make_fast(None).save_pretrained(tmp_path)
    tokenizer = VerifierTokenizer.load(tmp_path)
    assert tokenizer.is_plain
    assert tokenizer.notices == (
        "the tokenizer has no chat template: turns are joined as plain text "
        "(verifier.template=FILE.jinja gives it one)",
    )


def test_template_from_a_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}{{ m.role }}={{ m.content }}<|eot_id|>{% endfor %}")
    tokenizer = VerifierTokenizer.load(folder, template=str(path))
    assert tokenizer.decode(tokenizer.render(HELLO)) == "user=Hello<|eot_id|>"


def test_templates_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        VerifierTokenizer.load(folder, template="missing.jinja")
    assert str(caught.value) == (
        "verifier.template=missing.jinja: cannot be read (No such file or directory); allowed: "
        "auto, plain, or the path of a Jinja file"
    )
    path = tmp_path / "broken.jinja"
    path.write_text("{% for m in messages %}")
    with pytest.raises(ConfigError, match=r"^verifier.template: a user and an assistant turn "):
        VerifierTokenizer.load(folder, template=str(path))
    with pytest.raises(ConfigError, match="no tokenizer: "):
        VerifierTokenizer.load(tmp_path / "nothing")


def test_end_of_turn_is_found_by_rendering(make_fast: MakeFast) -> None:
    for template, end in (("chatml", "<|im_end|>"), ("llama3", "<|eot_id|>")):
        fast = make_fast(template)
        tokenizer = VerifierTokenizer(fast, fast.chat_template, eos_token_ids=(7,))
        expected = {7, fast.eos_token_id, fast.convert_tokens_to_ids(end)}
        assert tokenizer.end_of_turn_ids == expected


def test_refused_turns_name_the_template_s_reason(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(TemplateRefusalError, match=r"^chat template: roles must alternate$"):
        make_tokenizer("strict").text((*HELLO, *HELLO))


def test_template_that_wants_text_arguments_gets_them(make_fast: MakeFast) -> None:
    template = (
        "{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ 'call ' + c.function.arguments }}{% endfor %}"
        "{% endfor %}"
    )
    tokenizer = VerifierTokenizer(make_fast(template), template)
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "é"}}}
    assert tokenizer.text([Turn("assistant", "", {"tool_calls": [call]})]) == 'call {"a": "é"}'


def test_tool_templates_are_chosen_when_there_are_tools(make_fast: MakeFast) -> None:
    named = {"default": "plain", "tool_use": "with {{ tools[0].name }}"}
    tokenizer = VerifierTokenizer(make_fast(None), named)
    assert tokenizer.text(HELLO) == "plain"
    assert tokenizer.text(HELLO, [{"name": "add"}]) == "with add"


def test_fingerprint_follows_everything_that_changes_tokens(make_fast: MakeFast) -> None:
    fast = make_fast("qwen3")

    def fingerprint(template: Any, arguments: Any = None, eos: tuple[int, ...] = ()) -> str:
        return VerifierTokenizer(fast, template, arguments, eos).fingerprint

    first = fingerprint(fast.chat_template)
    assert first == fingerprint(fast.chat_template)
    others = {
        fingerprint(None),
        fingerprint(fast.chat_template, {"enable_thinking": False}),
        fingerprint(fast.chat_template, None, (5,)),
        fingerprint(fast.chat_template + " "),
    }
    assert len(others | {first}) == 5
    grown = make_fast("qwen3")
    grown.add_tokens(["<new>"])
    assert VerifierTokenizer(grown, grown.chat_template).fingerprint != first


def test_template_that_prints_the_date_is_announced(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "dated.jinja"
    path.write_text("{{ strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert "prints today's date" in VerifierTokenizer.load(folder, template=str(path)).notices[0]


def test_ids_and_names(make_tokenizer: MakeTokenizer, make_fast: MakeFast) -> None:
    tokenizer, fast = make_tokenizer("chatml"), make_fast("chatml")
    assert tokenizer.num_tokens == len(fast)
    assert tokenizer.special_tokens[fast.convert_tokens_to_ids("<think>")] == "<think>"
    space = fast("a there")["input_ids"][1]
    assert tokenizer.token_text(space).startswith(" ")
    assert tokenizer.token_text(10**6) == "<row 1000000>"
    assert tokenizer.unk_token_id is None


def test_saved_truncation_is_not_applied(make_fast: MakeFast) -> None:
    fast = make_fast("chatml")
    fast.backend_tokenizer.enable_truncation(4)
    fast.backend_tokenizer.enable_padding()
    tokenizer = VerifierTokenizer(fast, fast.chat_template)
    assert len(tokenizer.render([Turn("user", "word " * 50)])) > 50


def test_slow_tokenizer_gives_the_same_masks(
    make_fast: MakeFast, chat: Callable[..., Conversation]
) -> None:
    from speculators.data.masking import Masker

    class Slow:
        """A tokenizer that cannot tell where its tokens stand."""

        is_fast = False

        def __init__(self, fast: Any) -> None:
            self._fast = fast

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self._fast(*args, **{k: v for k, v in kwargs.items() if k != "verbose"})

        def __len__(self) -> int:
            return len(self._fast)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._fast, name)

    fast = make_fast("qwen3")
    conversation = chat("Hi", "Hello", "So?", "Good.")
    rows = [
        Masker(VerifierTokenizer(tokenizer, fast.chat_template)).mask([conversation])[0].rows
        for tokenizer in (fast, Slow(fast))
    ]
    assert [row.input_ids.tolist() for row in rows[0]] == [r.input_ids.tolist() for r in rows[1]]
    assert [row.loss_mask.tolist() for row in rows[0]] == [r.loss_mask.tolist() for r in rows[1]]
