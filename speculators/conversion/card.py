"""The model card of a drafter: what it is, how good, from what, and how to serve it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CARD_FILE = "README.md"

_GROUPS = ("speculator", "data", "optimizer", "schedule", "training", "seed")
_PLACES = ("path", "validation_path", "from_pretrained", "prompt_sets")
_SETTINGS = ("temperature", "sampling", "max_new_tokens", "seed")


@dataclass(frozen=True)
class Facts:
    """What a card is made of; what is empty is left out.

    Attributes:
        name: of the drafter: repository or folder.
        layout: name of its layout.
        own_layout: whether `vllm serve` needs no further arguments.
        serving: `config.json` of this project's layout.
        run: `resolved.yaml` of the run.
        data: `data_report.json` of the run.
        evaluation: `evaluation.json` of the run.
        parity: `parity.json` of the checkpoint.
    """

    name: str
    layout: str
    own_layout: bool
    serving: Mapping[str, Any]
    run: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Name of the algorithm."""
        return self.serving["speculators_model_type"]

    @property
    def verifier(self) -> str:
        """Hub id or folder of the verifier."""
        return self.serving["speculators_config"]["verifier"]["name_or_path"]

    @property
    def on_hub(self) -> bool:
        """Whether the verifier's name means something elsewhere."""
        return not Path(self.verifier).is_absolute()

    @property
    def num_draft_tokens(self) -> int:
        """Tokens of one proposal."""
        return self.serving["speculators_config"]["proposal_methods"][0]["speculative_tokens"]


def model_card(facts: Facts) -> str:
    """Return the card, in Markdown with the Hub's header."""
    parts = [
        _header(facts),
        f"# {facts.name.rpartition('/')[2]}",
        _what(facts),
        *_section("How to serve", _serve(facts)),
        *_section("Acceptance", _acceptance(facts)),
        *_section("Parity with the serving engine", _parity(facts)),
        *_section("Data", _data(facts)),
        *_section("Training configuration", _configuration(facts)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(facts: Facts) -> str:
    head: dict[str, Any] = {
        "library_name": "speculators",
        "pipeline_tag": "text-generation",
        "tags": ["speculative-decoding", "draft-model", facts.kind],
    }
    if facts.on_hub:
        head["base_model"] = facts.verifier
    if hub_id := (facts.run.get("data") or {}).get("hub_id"):
        head["datasets"] = [hub_id]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _what(facts: Facts) -> str:
    layer = facts.serving["transformer_layer_config"]
    ids = next((v for k, v in facts.serving.items() if k.endswith("hidden_state_layer_ids")), None)
    vocabulary = facts.serving.get("draft_vocab_size") or layer["vocab_size"]
    rows = {
        "verifier": f"`{facts.verifier}`",
        "algorithm": facts.kind,
        "tokens drafted per proposal": facts.num_draft_tokens,
        "draft layers": layer["num_hidden_layers"],
        "verifier layers read (extraction ids)": ids,
        "draft vocabulary": f"{vocabulary:,} of {layer['vocab_size']:,} tokens",
        "number format": facts.serving.get("dtype"),
        "layout": facts.layout,
    }
    text = (
        f"A {facts.kind} drafter for speculative decoding with `{facts.verifier}`: it proposes "
        f"{facts.num_draft_tokens} tokens at a time and the verifier keeps those it would have "
        "written itself, so its output does not change."
    )
    return f"{text}\n\n{_table(('', ''), rows.items())}"


def _serve(facts: Facts) -> str:
    if facts.own_layout:
        command = f"vllm serve {facts.name}"
    else:
        speculation = {
            "method": facts.kind,
            "model": facts.name,
            "num_speculative_tokens": facts.num_draft_tokens,
        }
        command = (
            f"vllm serve {facts.verifier} \\\n    --speculative-config '{json.dumps(speculation)}'"
        )
    text = f"```\n{command}\n```"
    if facts.on_hub:
        return text
    return (
        f"{text}\n\nThe verifier is named by a folder, `{facts.verifier}`, which has to exist "
        "where this is served."
    )


def _acceptance(facts: Facts) -> str:
    found = facts.evaluation
    if "acceptance_length" not in found:
        return ""
    rows = [_acceptance_row("all", found)]
    rows += [_acceptance_row(n, part) for n, part in (found.get("categories") or {}).items()]
    head = ("prompts", "number", "acceptance length", "95 % interval", "rate", "per position")
    used = found.get("settings") or {}
    settings = ", ".join(f"{k} {used[k]}" for k in _SETTINGS if used.get(k) is not None)
    lines = [_table(head, rows), f"{found.get('definition', '')} ({settings})".strip()]
    if found.get("lossless_prompts") is not None:
        lines.append(
            f"{found['lossless_prompts']} of {found['num_prompts']} answers equal plain decoding "
            "token for token."
        )
    return "\n\n".join(lines)


def _acceptance_row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = found.get("acceptance_length_ci95") or (None, None)
    interval = "" if low is None else f"{low:.2f} to {high:.2f}"
    positions = " ".join(f"{share:.3f}" for share in found["acceptance_per_position"])
    length, rate = f"{found['acceptance_length']:.3f}", f"{found['acceptance_rate']:.2%}"
    return name, str(found["num_prompts"]), length, interval, rate, positions


def _parity(facts: Facts) -> str:
    plain = {
        key.replace("_", " "): value
        for key, value in facts.parity.items()
        if isinstance(value, (str, int, float, bool)) and value != "" and not _is_place(value)
    }
    stages = [
        (one["stage"], one["verdict"], one.get("measured", ""), one.get("allowed", ""))
        for one in facts.parity.get("findings") or ()
        if not any(_is_place(text) for text in one.values())
    ]
    parts = []
    if facts.parity.get("passed") is False:
        parts.append("**This drafter is not served as it was trained:** see the first failure.")
    if plain:
        parts.append(_table(("check", "result"), plain.items()))
    if stages:
        parts.append(_table(("stage", "verdict", "measured", "allowed"), stages))
    return "\n\n".join(parts)


def _data(facts: Facts) -> str:
    rows = {
        key.replace("_", " "): f"{value:,}" if isinstance(value, int) else value
        for key, value in facts.data.items()
        if isinstance(value, (str, int)) and not _is_place(value)
    }
    return _table(("", ""), rows.items()) if rows else ""


def _configuration(facts: Facts) -> str:
    shown = {name: _without_places(facts.run[name]) for name in _GROUPS if name in facts.run}
    return f"```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```" if shown else ""


def _without_places(group: Any) -> Any:
    """Leave out what only means something on the machine of the run."""
    if isinstance(group, list):
        return [_without_places(item) for item in group if not _is_place(item)]
    if not isinstance(group, Mapping):
        return group
    kept = {k: v for k, v in group.items() if k not in _PLACES and not _is_place(v)}
    return {k: _without_places(v) for k, v in kept.items()}


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()


def _section(title: str, text: str) -> Iterator[str]:
    if text:
        yield f"## {title}"
        yield text


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = [[str(cell).replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)
