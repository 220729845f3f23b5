"""Chat templates of model families, written down anew with the behaviour of the published ones.

Each says what a verifier with that template would write for an assistant turn: an oracle for loss
masks that knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from speculators.data.types import Turn


@dataclass(frozen=True)
class Family:
    """A template and what it makes of an assistant turn.

    Attributes:
        template: Jinja source.
        tokens: its control tokens; the first ends a turn.
        written: what the verifier writes for a turn, end included.
        kinds: conversations it accepts: system, tools, reasoning.
        arguments: template arguments.
        bos: begin token.
        eos: the tokenizer's end token, where it is another.
        calls_think: whether a call's reasoning stays in the prompt of the answer after it.
        stops: further tokens at which the verifier stops (its generation configuration).
    """

    template: str
    tokens: Sequence[str]
    written: Callable[[Turn], str]
    kinds: frozenset[str] = frozenset({"system", "tools", "reasoning"})
    arguments: Mapping[str, Any] = field(default_factory=dict)
    bos: str | None = None
    eos: str | None = None
    stops: Sequence[str] = ()
    calls_think: bool = True


def _call(turn: Turn) -> tuple[str, dict[str, Any]] | None:
    calls = turn.extra.get("tool_calls")
    return (calls[0]["function"]["name"], calls[0]["function"]["arguments"]) if calls else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ---- ChatML: one header per turn, nothing else ------------------------------------------------

_CHATML = r"""
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

# ---- Qwen3: reasoning only behind the last question, an empty block where there is none -------

_QWEN3 = r"""
{%- macro call_text(call) -%}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
{%- set arguments = call.function.arguments -%}
{{- (arguments if arguments is string else arguments | tojson) -}}
{{- '}\n</tool_call>' -}}
{%- endmacro -%}
{%- set first = messages[0].content if messages[0].role == 'system' else none -%}
{%- if tools -%}
{{- '<|im_start|>system\n' + (first + '\n\n' if first is not none else '') + '# Tools\n<tools>' -}}
{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\n</tools><|im_end|>\n' -}}
{%- elif first is not none -%}
{{- '<|im_start|>system\n' + first + '<|im_end|>\n' -}}
{%- endif -%}
{%- set ns = namespace(last=-1) -%}
{%- for message in messages -%}
{%- if message.role == 'user' and not message.content.startswith('<tool_response>') -%}
{%- set ns.last = loop.index0 -%}
{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message.role == 'user' or (message.role == 'system' and not loop.first) -%}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- elif message.role == 'assistant' -%}
{%- set content = message.content -%}
{%- set reasoning = '' -%}
{%- if message.reasoning_content is defined and message.reasoning_content is not none -%}
{%- set reasoning = message.reasoning_content -%}
{%- elif '</think>' in content -%}
{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\n') -%}
{%- endif -%}
{{- '<|im_start|>assistant\n' -}}
{%- if loop.index0 > ns.last and (loop.last or reasoning) -%}
{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') -}}
{%- else -%}
{{- content -}}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- if (loop.first and content) or not loop.first -%}{{- '\n' -}}{%- endif -%}
{{- call_text(call) -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- elif message.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}
{{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\n\n</think>\n\n' -}}
{%- endif -%}
{%- endif -%}
"""


def _qwen3_answer(turn: Turn) -> str:
    text = turn.content
    if call := _call(turn):
        body = f'{{"name": "{call[0]}", "arguments": {_json(call[1])}}}'
        text += ("\n" if text else "") + f"<tool_call>\n{body}\n</tool_call>"
    return text + "<|im_end|>"


def _qwen3_thinking(turn: Turn) -> str:
    reasoning = turn.extra.get("reasoning_content", "")
    return f"<think>\n{reasoning}\n</think>\n\n{_qwen3_answer(turn)}"


# ---- Llama-3.1: a date in the system turn, tools in the first question, trimmed contents ------

_LLAMA3 = r"""
{{- bos_token -}}
{%- set head = '' -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set head = messages[0]['content'] | trim -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' -}}
{%- if tools is not none -%}{{- 'Environment: ipython\n' -}}{%- endif -%}
{{- 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' + head + '<|eot_id|>' -}}
{%- if tools is not none -%}
{{- '<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, answer.\n\n' -}}
{%- for tool in tools -%}{{- (tool | tojson(indent=4)) + '\n\n' -}}{%- endfor -%}
{{- (messages[0]['content'] | trim) + '<|eot_id|>' -}}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if 'tool_calls' in message -%}
{%- if message.tool_calls | length != 1 -%}
{{- raise_exception('This model only supports single tool-calls at once!') -}}
{%- endif -%}
{%- set call = message.tool_calls[0].function -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' -}}
{%- elif message.role == 'tool' -%}
{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' -}}
{{- (message.content | tojson) + '<|eot_id|>' -}}
{%- else -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}
{{- (message['content'] | trim) + '<|eot_id|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""


def _llama3(turn: Turn) -> str:
    if call := _call(turn):
        return f'{{"name": "{call[0]}", "parameters": {_json(call[1])}}}<|eot_id|>'
    return turn.content.strip() + "<|eot_id|>"


# ---- Gemma-3: the system text opens the first question, roles have to alternate ---------------

_GEMMA3 = r"""
{{- bos_token -}}
{%- set prefix = '' -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set prefix = messages[0]['content'] + '\n\n' -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' -}}
{{- (prefix if loop.first else '') + (message['content'] | trim) + '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}
"""
_GEMMA2 = _GEMMA3.replace(
    r"{%- set prefix = messages[0]['content'] + '\n\n' -%}",
    "{{- raise_exception('System role not supported') -}}",
)

# ---- Gemma-4: prompts close an empty thought that finished answers do not show; a call and what
# follows its result are one turn ----------------------------------------------------------------

_GEMMA4 = r"""
{{- bos_token -}}
{%- if tools or messages[0]['role'] == 'system' -%}
{{- '<|turn>system\n' -}}
{%- if messages[0]['role'] == 'system' -%}
{{- messages[0]['content'] | trim -}}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for tool in tools or [] -%}{{- '<|tool>' + (tool | tojson) + '<tool|>' -}}{%- endfor -%}
{{- '<turn|>\n' -}}
{%- endif -%}
{%- set state = namespace(role='', open=false) -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- 'response:' + message.name + '{' + message.content + '}<tool_response|>' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|turn>model\n' if state.role != 'tool' else '' -}}
{{- message.content | trim -}}
{%- set state.open = message.tool_calls is defined -%}
{%- for call in message.tool_calls or [] -%}
{{- '<|tool_call>call:' + call.function.name + (call.function.arguments | tojson) -}}
{{- '<tool_call|><|tool_response>' -}}
{%- endfor -%}
{{- '' if state.open else '<turn|>\n' -}}
{%- else -%}
{{- '<|turn>' + message.role + '\n' + (message.content | trim) + '<turn|>\n' -}}
{%- endif -%}
{%- set state.role = message.role -%}
{%- endfor -%}
{%- if add_generation_prompt and state.role != 'tool' -%}
{{- '<|turn>model\n<|channel>thought\n<channel|>' -}}
{%- endif -%}
"""


def _gemma4(turn: Turn) -> str:
    if call := _call(turn):
        return f"<|tool_call>call:{call[0]}{_json(call[1])}<tool_call|><|tool_response>"
    return turn.content.strip() + "<turn|>"


# ---- Mistral-v3: tools stand before the last question, wherever that is; the system text opens
# a question that nothing follows, and is gone once the answer is there --------------------------

_MISTRAL = r"""
{%- set head = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- set messages = messages[1:] if head is not none else messages -%}
{%- set users = namespace(count=0, seen=0) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set users.count = users.count + 1 -%}{%- endif -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- set users.seen = users.seen + 1 -%}
{%- if tools is not none and users.seen == users.count -%}
{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' -}}
{%- endif -%}
{{- '[INST] ' + (head + '\n\n' if head is not none and loop.last else '') -}}
{{- message['content'] + '[/INST]' -}}
{%- elif message.tool_calls is defined and message.tool_calls -%}
{{- '[TOOL_CALLS] [' -}}
{%- for call in message.tool_calls -%}
{%- if call.id is undefined or call.id | length != 9 -%}
{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}
{%- endif -%}
{{- ({'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson) -}}
{{- ', ' if not loop.last else '' -}}
{%- endfor -%}
{{- ']' + eos_token -}}
{%- elif message.role == 'assistant' -%}
{{- ' ' + (message['content'] | trim) + eos_token -}}
{%- elif message.role == 'tool' -%}
{{- '[TOOL_RESULTS] {"content": ' + (message.content | tojson) + '}[/TOOL_RESULTS]' -}}
{%- else -%}
{{- raise_exception('Only user and assistant roles are supported!') -}}
{%- endif -%}
{%- endfor -%}
"""


def _mistral(turn: Turn) -> str:
    if call := _call(turn):
        called = {"name": call[0], "arguments": call[1], "id": turn.extra["tool_calls"][0]["id"]}
        return f"[TOOL_CALLS] [{_json(called)}]</s>"
    return f" {turn.content.strip()}</s>"


# ---- Phi-3 closes the whole document with a second end token; Phi-4 does not ------------------

_PHI3 = r"""
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}
"""
_PHI4 = r"""
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant<|im_sep|>' -}}{%- endif -%}
"""

# ---- gpt-oss (harmony): channels, a stop token that only the last answer carries --------------

_GPT_OSS = r"""
{{- '<|start|>system<|message|>You are ChatGPT.\n\n' -}}
{{- '# Valid channels: analysis, commentary, final.<|end|>' -}}
{%- set head = messages[0].content if messages[0].role == 'system' else '' -%}
{%- set messages = messages[1:] if messages[0].role == 'system' else messages -%}
{%- if head or tools -%}
{{- '<|start|>developer<|message|># Instructions\n\n' + head -}}
{%- for tool in tools or [] -%}
{{- '\n\ntype ' + tool.function.name + ' = () => any;' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- set last = namespace(call=none) -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' and message.tool_calls is defined and message.tool_calls -%}
{%- set later = namespace(final=false) -%}
{%- for other in messages[loop.index:] -%}
{%- if other.role == 'assistant' and not (other.tool_calls is defined and other.tool_calls) -%}
{%- set later.final = true -%}
{%- endif -%}
{%- endfor -%}
{%- if message.thinking is defined and message.thinking and not later.final -%}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' -}}
{%- endif -%}
{%- set call = message.tool_calls[0].function -%}
{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' -}}
{{- (call.arguments | tojson) + '<|call|>' -}}
{%- set last.call = call.name -%}
{%- elif message.role == 'assistant' -%}
{%- if loop.last and not add_generation_prompt -%}
{%- if message.thinking is defined and message.thinking -%}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' -}}
{%- endif -%}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' -}}
{%- else -%}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' -}}
{%- endif -%}
{%- elif message.role == 'tool' -%}
{%- if last.call is none -%}
{{- raise_exception('Message has tool role, but there was no call!') -}}
{%- endif -%}
{{- '<|start|>functions.' + last.call + ' to=assistant<|channel|>commentary<|message|>' -}}
{{- (message.content | tojson) + '<|end|>' -}}
{%- else -%}
{{- '<|start|>user<|message|>' + message.content + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}
"""


def _gpt_oss(turn: Turn) -> str:
    reasoning = turn.extra.get("reasoning_content")
    thought = "" if not reasoning else f"<|channel|>analysis<|message|>{reasoning}<|end|>"
    head = "" if not thought else "<|start|>assistant"
    if call := _call(turn):
        body = f"<|channel|>commentary json<|message|>{_json(call[1])}<|call|>"
        return f"{thought}{head} to=functions.{call[0]}{body}"
    return f"{thought}{head}<|channel|>final<|message|>{turn.content}<|return|>"


def _ends(token: str, strip: bool = False) -> Callable[[Turn], str]:
    return lambda turn: (turn.content.strip() if strip else turn.content) + token


_IM = ("<|im_end|>", "<|im_start|>")
_TURN = ("<end_of_turn>", "<start_of_turn>")
_GEMMA4_TOOLS = ("<|tool_response>", "<tool_response|>", "<|tool_call>", "<tool_call|>")
_INST = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
_TOOLS = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
_HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>")
_THINK = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_HEADER = ("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")

FAMILIES = {
    "chatml": Family(_CHATML, _IM, _ends("<|im_end|>"), frozenset({"system"})),
    "qwen3": Family(_QWEN3, (*_IM, *_THINK), _qwen3_thinking),
    "qwen3_no_think": Family(
        _QWEN3,
        (*_IM, *_THINK),
        _qwen3_answer,
        frozenset({"system", "tools"}),
        {"enable_thinking": False},
    ),
    "llama3": Family(_LLAMA3, _HEADER, _llama3, frozenset({"system", "tools"}), bos="<s>"),
    "gemma3": Family(
        _GEMMA3, _TURN, _ends("<end_of_turn>", strip=True), frozenset({"system"}), bos="<s>"
    ),
    "gemma2": Family(_GEMMA2, _TURN, _ends("<end_of_turn>", strip=True), frozenset(), bos="<s>"),
    "gemma4": Family(
        _GEMMA4,
        ("<turn|>", "<|turn>", "<|channel>", "<channel|>", *_GEMMA4_TOOLS),
        _gemma4,
        frozenset({"system", "tools"}),
        bos="<s>",
        stops=("<|tool_response>", "<turn|>"),
    ),
    "mistral": Family(
        _MISTRAL,
        ("</s>", *_INST, *_TOOLS),
        _mistral,
        frozenset({"system", "tools"}),
        bos="<s>",
        eos="</s>",
    ),
    "phi3": Family(
        _PHI3,
        ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"),
        _ends("<|end|>"),
        frozenset({"system"}),
        eos="<|endoftext|>",
        stops=("<|end|>",),
    ),
    "phi4": Family(_PHI4, (*_IM, "<|im_sep|>"), _ends("<|im_end|>"), frozenset({"system"})),
    "gpt_oss": Family(
        _GPT_OSS,
        ("<|return|>", *_HARMONY),
        _gpt_oss,
        eos="<|return|>",
        stops=("<|call|>",),
        calls_think=False,
    ),
}
