"""The top of the report: what was trained, what came of it."""

from __future__ import annotations

from typing import Any

from speculators.evaluation.report.run_files import RunFiles

_FACTS = (
    ("Verifier", "verifier", ("name_or_path", "revision", "dtype")),
    (
        "Speculator",
        "speculator",
        ("name", "num_layers", "block_size", "target_layer_ids", "draft_vocab_size"),
    ),
    ("Data", "data", ("name", "path", "hub_id", "max_samples")),
    ("Hidden states", "hidden_states", ("mode",)),
    (
        "Training",
        "training",
        ("epochs", "max_steps", "sequence_length", "accumulation_steps", "precision"),
    ),
    ("Optimizer", "optimizer", ("name", "lr", "weight_decay")),
    ("Schedule", "schedule", ("name", "warmup_ratio", "warmup_steps")),
)


def title(files: RunFiles) -> str:
    """Return the page's title: algorithm and verifier where known, else the folder's name."""
    speculator = files.config.get("speculator") or {}
    verifier = files.config.get("verifier") or {}
    if speculator.get("name") and verifier.get("name"):
        return f"{speculator['name']} for {verifier['name']}"
    return files.folder.resolve().name


def verdict(files: RunFiles) -> list[str]:
    """Return what was reached, in sentences."""
    numbers = {**files.result, **files.evaluation}
    sentences = []
    length = numbers.get("acceptance_length")
    if length is not None:
        sentences.append(f"Every verifier call yields {length:.2f} tokens instead of 1.")
    lossless, count = numbers.get("lossless_prompts"), numbers.get("num_prompts")
    if lossless is not None and count:
        same = "token for token what the verifier writes alone"
        if lossless == count:
            sentences.append(f"All {count} answers are {same}.")
        else:
            gaps = [m.get("logit_gap") or 0.0 for m in numbers.get("mismatches") or []]
            largest = f" (largest logit gap {max(gaps):.2g})" if gaps else ""
            sentences.append(
                f"Only {lossless} of {count} answers are {same}; the differences stand "
                f"below{largest}."
            )
    speedup = numbers.get("speedup")
    if speedup is not None:
        if speedup >= 1:
            sentences.append(f"Decoding is {speedup:.2f} times as fast here.")
        else:
            sentences.append(
                f"Decoding is slower here ({speedup:.2f} times plain speed): on this machine "
                "drafting costs more than the saved verifier calls."
            )
    compared = numbers.get("expected") or {}
    for name, one in (compared.get("suites") or {}).items():
        sentences.append(
            f"Published for {name}: acceptance length {one['expected']:.2f} "
            f"({compared['source']}); {one['verdict']}."
        )
    if numbers.get("stopped"):
        sentences.append(f"Training ended before its last step: {numbers['stopped']}.")
    share = numbers.get("distinct_4gram_share")
    if share is not None and share < 0.5:
        sentences.append(
            f"The answers repeat themselves ({share:.0%} distinct 4-grams), so the acceptance says "
            "little about real text."
        )
    return sentences


def tiles(files: RunFiles) -> list[tuple[str, str, str]]:
    """Return (name, number, remark) of the headline numbers that are known."""
    numbers = {**files.result, **files.evaluation}
    walked = files.validation()
    interval = numbers.get("acceptance_length_ci95")
    remark = f"95 %: {interval[0]:.2f} to {interval[1]:.2f}" if interval else "bonus token counted"
    plain = numbers.get("baseline_tokens_per_second")
    found = [
        _tile(numbers, "acceptance_length", "Acceptance length", "{:.2f}", remark),
        _tile(numbers, "acceptance_rate", "Acceptance rate", "{:.1%}", _drafted(numbers)),
        _tile(numbers, "speedup", "Speed-up", "{:.2f}\u00d7", _rates(numbers, plain)),
        _tile(numbers, "verifier_calls_saved", "Verifier calls saved", "{:.0%}", ""),
        _tile(numbers, "lossless_prompts", "Lossless", *_of(numbers)),
        _tile(walked, "acceptance_length", "Walk", "{:.2f}", "validation rows, last"),
        _tile(numbers, "train_seconds", "Training time", "{}", _train_speed(numbers), _duration),
        _tile(numbers, "peak_memory_bytes", "Peak memory", "{}", "", _bytes),
    ]
    return [tile for tile in found if tile is not None]


def facts(files: RunFiles) -> list[tuple[str, str]]:
    """Return what was trained, group by group; nulls are left out."""
    found = []
    for label, group, keys in _FACTS:
        values = files.config.get(group) or {}
        parts = [
            str(values[key]) if key in {"name", "name_or_path", "mode"} else f"{key}={values[key]}"
            for key in keys
            if values.get(key) is not None
        ]
        if parts:
            found.append((label, ", ".join(parts)))
    settings = files.evaluation.get("settings") or {}
    if settings:
        empty = (None, "", {}, [])
        known = [f"{key}={value}" for key, value in settings.items() if value not in empty]
        found.append(("Evaluation", ", ".join(known)))
    if files.result.get("checkpoint"):
        found.append(("Checkpoint", str(files.result["checkpoint"])))
    return found


def data_table(report: dict[str, Any]) -> dict[str, Any]:
    """Return the data report as a table: empty entries and what a chart shows are left out."""
    table = {
        key: value
        for key, value in report.items()
        if value not in (None, "", [], {}) and not key.startswith("length_")
    }
    tokens, supervised = report.get("num_tokens"), report.get("num_supervised")
    if tokens and supervised is not None:
        table["num_supervised"] = f"{supervised:,} ({supervised / tokens:.1%} of the tokens)"
    roles = report.get("roles")
    if isinstance(roles, dict):
        table["roles"] = {
            role: f"{pair[0]:,} tokens, {pair[1]:,} supervised"
            for role, pair in roles.items()
            if isinstance(pair, list | tuple) and len(pair) == 2
        }
    return table


def _tile(
    numbers: dict[str, Any], key: str, name: str, form: str, remark: str, change: Any = None
) -> tuple[str, str, str] | None:
    value = numbers.get(key)
    if value is None:
        return None
    return name, form.format(value if change is None else change(value)), remark


def _drafted(numbers: dict[str, Any]) -> str:
    count = numbers.get("num_draft_tokens")
    return f"of {count} drafted tokens" if count else ""


def _of(numbers: dict[str, Any]) -> tuple[str, str]:
    count = numbers.get("num_prompts")
    return (f"{{}}/{count}", "prompts, token for token") if count else ("{}", "prompts")


def _rates(numbers: dict[str, Any], plain: float | None) -> str:
    fast = numbers.get("tokens_per_second")
    return f"{fast:.0f} instead of {plain:.0f} tokens/s" if fast and plain else ""


def _train_speed(numbers: dict[str, Any]) -> str:
    speed = numbers.get("train_tokens_per_second")
    return f"{speed:,.0f} tokens/s" if speed else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _bytes(count: float) -> str:
    gib = count / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{count / 2**20:.0f} MiB"
