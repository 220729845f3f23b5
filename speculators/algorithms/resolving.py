"""What null means for a verifier, and what cannot go with it: the part all algorithms share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from speculators.config.schema import DraftLayersConfig
from speculators.config.schema.problem import Problem
from speculators.config.wording import line
from speculators.errors import ConfigError
from speculators.modules.rotary import plain_rope, plain_theta, rope_problem
from speculators.verifier.layers import check_layer_ids
from speculators.verifier.spec import VerifierSpec

ConfigT = TypeVar("ConfigT", bound=DraftLayersConfig)


def fill(config: ConfigT, spec: VerifierSpec, **defaults: Any) -> ConfigT:
    """Replace nulls: `defaults` of the algorithm, the verifier's sizes for the rest."""
    values = {
        "draft_vocab_size": spec.vocab_size,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.intermediate_size,
        "rope_theta": plain_theta(spec.rope_parameters),
        **defaults,
    }
    return replace(config, **{n: v for n, v in values.items() if getattr(config, n) is None})


def with_own_rope(config: DraftLayersConfig, spec: VerifierSpec) -> VerifierSpec:
    """Return the verifier as a drafter sees it: with the rotary embedding of the draft layers.

    A drafter's positions matter to its own attention alone, so a verifier whose embedding drafters
    do not compute (stretched, partial) can have a drafter with a plain one.
    """
    if config.rope_theta is None:
        return spec
    return replace(spec, rope_parameters=plain_rope(config.rope_theta))


def refuse(config: ConfigT, spec: VerifierSpec, more: Iterable[Problem] = ()) -> ConfigT:
    """Return a filled `config` that can go with the verifier.

    Args:
        config: without nulls.
        spec: the verifier.
        more: problems the algorithm found.

    Raises:
        ConfigError: everything that cannot go with the verifier, one line each.
    """
    found = [*_problems(config, spec), *more]
    problems = [line(f"speculator.{p.field}", p.value, p.message) for p in found]
    rope = rope_problem(spec.rope_parameters)
    if rope is not None and config.rope_theta is None:
        problems.append(
            f"verifier.name_or_path={spec.name_or_path}: {rope}; a drafter can have a plain one of "
            "its own: give speculator.rope_theta, for example 1000000"
        )
    if problems:
        raise ConfigError(problems)
    return config


def unused_token(spec: VerifierSpec, unused_token_ids: Sequence[int]) -> int | None:
    """Return the best embedding row that stands for no token, or None."""
    taken = {spec.pad_token_id, spec.bos_token_id, *spec.eos_token_ids}
    return next((i for i in unused_token_ids if i not in taken), None)


def mask_problems(
    mask: int | None, spec: VerifierSpec, unused_token_ids: Sequence[int]
) -> Iterator[Problem]:
    """Say what is wrong with `mask_token_id`; no `unused_token_ids`: use is not known."""
    name = "mask_token_id"
    if mask is None:
        yield Problem(
            name, None, "no unused embedding row was found: give the id of a token no text holds"
        )
    elif mask >= spec.vocab_size:
        yield Problem(
            name,
            mask,
            f"outside the verifier's vocabulary: ids lie between 0 and {spec.vocab_size - 1}",
        )
    else:
        special = {spec.pad_token_id: "padding", spec.bos_token_id: "beginning-of-text"}
        special |= dict.fromkeys(spec.eos_token_ids, "end-of-turn")
        if mask in special:
            yield Problem(
                name,
                mask,
                f"is the verifier's {special[mask]} token: choose an embedding row that no text "
                "uses, or null to have one found",
            )
        elif unused_token_ids and mask not in unused_token_ids:
            yield Problem(
                name,
                mask,
                "occurs in the data: choose an embedding row that no text uses, or null to have "
                "one found",
            )


def _problems(config: DraftLayersConfig, spec: VerifierSpec) -> Iterator[Problem]:
    yield from config.problems()
    ids = config.target_layer_ids or []
    already_told = {p.field for p in config.problems()}
    wrong = check_layer_ids(ids, spec.num_layers)
    if wrong and "target_layer_ids" not in already_told:
        yield Problem("target_layer_ids", ids, wrong)
    size = config.draft_vocab_size or 0
    if size > spec.vocab_size:
        yield Problem(
            "draft_vocab_size",
            size,
            f"larger than the verifier's {spec.vocab_size} embedding rows",
        )
    yield from _head_problems(config)


def _head_problems(config: DraftLayersConfig) -> Iterator[Problem]:
    sizes = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in sizes and value < 1:
            yield Problem(field.name, value, "must be 1 or more")
            return
    heads, groups = config.num_attention_heads or 1, config.num_key_value_heads or 1
    if heads % groups:
        yield Problem(
            "num_key_value_heads",
            groups,
            f"must divide the {heads} query heads (num_attention_heads)",
        )
    if (config.head_dim or 2) % 2:
        yield Problem("head_dim", config.head_dim, "must be even: rotary embedding turns pairs")
