"""Token ids mean what they meant while training."""

from __future__ import annotations

from speculators.conversion.integrity import TOKENIZER_KEY
from speculators.doctor.causes import OTHER_TOKENIZER
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.subject import Subject

STAGE = Stage("tokenizer", "the verifier's tokenizer is the one the drafter was trained with")


def check(subject: Subject) -> Finding:
    """Compare the hash of the tokenizer with what config.json and training say."""
    now = subject.spec.tokenizer_hash
    said = {} if subject.content is None else subject.content.config
    then = said.get(TOKENIZER_KEY) or (subject.recorded and subject.recorded.tokenizer_hash)
    if not then:
        return STAGE.unchecked(subject.unrecorded)
    if then != now:
        return STAGE.failed(
            OTHER_TOKENIZER,
            "the tokenizer is another one",
            where=subject.spec.name_or_path,
            measured=f"sha256 {now[:12]}",
            allowed=then[:12],
        )
    return STAGE.passed("the tokenizer is that of training", measured=f"sha256 {now[:12]}")
