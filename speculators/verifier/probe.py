"""Short passes that prove what training assumes of a verifier, on its real weights."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from speculators.errors import HiddenStateError
from speculators.verifier.passes import VerifierPasses
from speculators.verifier.weights import make_head

_LENGTH = 8
_PREFIX = 4
# Relative difference of a row that rounding can explain; the median row counts, because rounding
# can send single tokens of a mixture of experts another way.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_HALF_TOLERANCE = 1e-1


def check_states(model: VerifierPasses) -> None:
    """Prove that the model is causal and that its logits are the head of the last state.

    Raises:
        HiddenStateError: with the measured difference and the likely cause.
    """
    tokens = _tokens(model)
    states = model.capture([tokens], [0])[0]
    expected = (_LENGTH, model.spec.hidden_size)
    if tuple(states.last.shape) != expected:
        raise HiddenStateError(
            f"{_at(model)}: the stream after the last layer has shape {list(states.last.shape)} "
            f"for {_LENGTH} tokens, expected {list(expected)}; serve this family with vLLM instead"
        )
    prefix = model.capture([tokens[:_PREFIX]], [0])[0]
    _compare(
        model,
        states.last[:_PREFIX],
        prefix.last,
        "states change with the tokens that follow: it is not a causal language model",
    )
    logits = model.next_logits(tokens[None].to(model.device), None)
    _compare(
        model,
        make_head(model.spec, model.tables).logits(states.last[-1:]),
        logits,
        f"logits are not lm_head(norm(last state)) with norm_kind "
        f"{model.spec.norm_kind.value} and softcap {model.spec.logit_softcap}",
    )


def check_rollback(model: VerifierPasses) -> None:
    """Prove that decoding with a cropped cache equals decoding without one.

    Raises:
        HiddenStateError: the cache of this family cannot be cropped.
    """
    tokens = _tokens(model)
    whole, cropped = DynamicCache(), DynamicCache()
    cause = (
        "a cropped cache does not give the logits of a fresh one: its layers keep a state that "
        "cannot be rolled back, so it cannot verify drafts in this process; serve it with vLLM"
    )
    try:
        expected = model.forward(tokens, whole).logits[_PREFIX:]
        # Another continuation first, so that what crop leaves behind cannot be right by chance.
        model.forward(torch.cat([tokens[:_PREFIX], tokens.flip(0)]), cropped)
        model.crop(cropped, _PREFIX)
        measured = model.forward(tokens[_PREFIX:], cropped).logits
    except (RuntimeError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise HiddenStateError(f"{_at(model)}: {cause}") from error
    _compare(model, measured, expected, cause)


def _tokens(model: VerifierPasses) -> Tensor:
    return (torch.arange(1, _LENGTH + 1) * 7919) % model.spec.vocab_size


def _compare(model: VerifierPasses, got: Tensor, expected: Tensor, cause: str) -> None:
    """Raise when the median row differs by more than rounding."""
    got, expected = got.double(), expected.double()
    difference = ((got - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)).median()
    allowed = _TOLERANCE.get(model.dtype, _HALF_TOLERANCE)
    if not difference <= allowed:
        raise HiddenStateError(
            f"{_at(model)}: {cause} (relative difference {difference:.2g}, allowed {allowed:g})"
        )


def _at(model: VerifierPasses) -> str:
    return f"verifier.name_or_path={model.spec.name_or_path} ({model.spec.architecture})"
