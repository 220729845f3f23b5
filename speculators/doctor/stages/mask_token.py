"""Slots to be filled enter as an embedding row that no text uses, the one of training."""

from __future__ import annotations

from speculators.doctor.causes import WRONG_MASK_TOKEN
from speculators.doctor.finding import Finding, Stage, Verdict
from speculators.doctor.stages.conventions import ConventionStage, known_sides
from speculators.doctor.subject import Subject

STAGE = Stage("mask token", "the mask token is that of training, exists, and stands in no text")
_same = ConventionStage(
    STAGE, WRONG_MASK_TOKEN, "mask_token_id", lambda says: says.mask_token_id, str
)


def check(subject: Subject) -> Finding:
    """Compare the sides, then look whether the token means anything."""
    found = _same(subject)
    if found.verdict is not Verdict.passed:
        return found
    mask = list(known_sides(subject))[-1].says.mask_token_id
    if mask is None:
        return STAGE.passed("there are no slots to be filled")
    spec = subject.spec
    meanings = {i: "an end-of-turn token" for i in spec.eos_token_ids}
    meanings |= {spec.bos_token_id: "the beginning-of-text token"}
    meanings |= {spec.pad_token_id: "the padding token"}
    texts = {int(i) for probe in subject.probes for i in probe.input_ids}
    problem = f"it is {meanings[mask]}" if mask in meanings else ""
    if mask in texts:
        problem = "it stands in a probe"
    if not 0 <= mask < spec.vocab_size:
        problem = f"the verifier has {spec.vocab_size} rows"
    if not problem:
        return found
    return STAGE.failed(
        WRONG_MASK_TOKEN,
        "the mask token is a token of texts",
        where="mask_token_id",
        measured=str(mask),
        evidence=problem,
    )
