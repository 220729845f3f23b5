"""A small byte-level tokenizer and chat templates as they are published, written down anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from speculators.config.schema import DataConfig
from speculators.data.prepare import prepare
from speculators.data.prepared import PreparedData
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Conversation, Turn

CHATML = r"""
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

CHATML_TAGGED = r"""
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content -}}{%- endgeneration -%}{{- '<|im_end|>' + '\n' -}}
{%- else -%}
{{- message.content + '<|im_end|>' + '\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

QWEN3 = r"""
{%- set ns = namespace(last=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}
{{- '<|im_start|>system\n' -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content + '\n\n' -}}{%- endif -%}
{{- '# Tools' -}}{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- elif messages[0].role == 'system' -%}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' -}}
{%- elif message.role == 'tool' -%}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' -}}
{%- elif message.role == 'assistant' -%}
{%- set reasoning = message.reasoning_content or '' -%}
{{- '<|im_start|>assistant\n' -}}
{%- if loop.index0 > ns.last and (loop.last or reasoning) -%}
{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + message.content.lstrip('\n') -}}
{%- else -%}
{{- message.content -}}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- (call.function.arguments | tojson) + '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\n\n</think>\n\n' -}}
{%- endif -%}
{%- endif -%}
"""

LLAMA3 = r"""
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' -}}
{{- (message.content | trim) + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""

STRICT = r"""
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role not in ('user', 'assistant') -%}
{{- raise_exception('only user and assistant turns') -}}
{%- endif -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate') -}}
{%- endif -%}
{%- if message.role == 'user' -%}{{- '[INST] ' + message.content + ' [/INST]' -}}
{%- else -%}{{- ' ' + message.content + '<|eot_id|>' -}}{%- endif -%}
{%- endfor -%}
"""

THINKING_PROMPT = CHATML.replace(
    r"'<|im_start|>assistant\n' -}}{%- endif", r"'<|im_start|>assistant\n<think>\n' -}}{%- endif"
)

TEMPLATES = {
    "chatml": CHATML,
    "chatml_tagged": CHATML_TAGGED,
    "qwen3": QWEN3,
    "llama3": LLAMA3,
    "strict": STRICT,
    "thinking_prompt": THINKING_PROMPT,
}

SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|pad|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|reserved_special_token_0|>",
)
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")

SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama-3 and Qwen split text before merging: line breaks stay together."""

CORPUS = [
    "assistant\n\n\nuser\nsystem\n\n The quick brown fox jumps over the lazy dog.\n\n\n" * 3,
    "Hello there! How are you?  I am fine, thank you. \n\nHow far is the moon? Very far away.",
    "assistant\nHello assistant\n\nHello assistant\n hi  there\n\n\n ok [INST] yes [/INST] no",
]


def build_backend() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in TAGS])
    return tokenizer


@pytest.fixture(scope="session")
def backend() -> Tokenizer:
    return build_backend()


@pytest.fixture(scope="session")
def make_fast(backend: Tokenizer) -> Callable[..., Any]:
    """Build a `transformers` tokenizer with one of the templates, or with none."""

    def make(template: str | None, **special: str) -> Any:
        names = {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|end_of_text|>",
            "pad_token": "<|pad|>",
            **special,
        }
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(backend.to_str()), **names
        )
        tokenizer.chat_template = TEMPLATES.get(template or "", template)
        return tokenizer

    return make


@pytest.fixture(scope="session")
def make_tokenizer(make_fast: Callable[..., Any]) -> Callable[..., VerifierTokenizer]:
    """Build a `VerifierTokenizer` around one of the templates (None: plain text)."""

    def make(template: str | None, **arguments: Any) -> VerifierTokenizer:
        fast = make_fast(template)
        return VerifierTokenizer(fast, fast.chat_template, arguments)

    return make


@pytest.fixture
def chat() -> Callable[..., Conversation]:
    """Build a conversation: user and assistant take turns."""

    def make(*texts: str, system: str | None = None, name: str = "c", **extra: Any) -> Conversation:
        turns = [Turn("system", system)] if system is not None else []
        for index, text in enumerate(texts):
            assistant = index % 2 == 1
            turns.append(
                Turn("assistant" if assistant else "user", text, extra if assistant else {})
            )
        return Conversation(tuple(turns), name, "test")

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (objects, or lines as they are) to a JSON Lines file."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def messages() -> Callable[..., dict[str, Any]]:
    """Build a row in the messages layout: user and assistant take turns."""

    def make(*texts: str, **more: Any) -> dict[str, Any]:
        roles = ("user", "assistant")
        turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        return {"messages": turns, **more}

    return make


@pytest.fixture
def run(
    tmp_path: Path, make_tokenizer: Callable[..., VerifierTokenizer]
) -> Callable[..., PreparedData]:
    """Prepare with small defaults; keywords of `DataConfig` and of `prepare` may be mixed."""

    def go(path: Any, template: str | None = "chatml", **settings: Any) -> PreparedData:
        names = (
            "sequence_length",
            "validation_fraction",
            "seed",
            "answerer",
            "verifier",
            "progress",
        )
        given = {name: settings.pop(name) for name in names if name in settings}
        place = str(path) if isinstance(path, Path) else path
        config = DataConfig(**{"name": "rows", "path": place, **settings})
        return prepare(
            config,
            make_tokenizer(template),
            vocab_size=400,
            sequence_length=given.get("sequence_length", 64),
            validation_fraction=given.get("validation_fraction", 0.25),
            seed=given.get("seed", 0),
            cache_dir=tmp_path / "cache",
            answerer=given.get("answerer"),
            verifier=given.get("verifier", ""),
            progress=given.get("progress", False),
        )

    return go


@pytest.fixture
def rows(messages: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """Forty conversations of one exchange each."""
    return [messages(f"Question {i}", f"Answer {i}.", id=f"c{i}") for i in range(40)]
