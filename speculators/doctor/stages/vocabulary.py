"""Every row of the draft head is the token its map says."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.conversion.layout import MAPS
from speculators.data.vocabulary import DraftVocabulary
from speculators.doctor.causes import STALE_VOCABULARY
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.subject import Subject

STAGE = Stage(
    "vocabulary map",
    "d2t and t2d name the same tokens, those of training, and rows of the draft head are theirs",
)
_ROWS = 64
_FEWEST_OWN = 0.9
"""Share of looked-at rows whose closest verifier row is the one the map names."""


def check(subject: Subject) -> Finding:
    """Compare the maps with each other, with the draft head and with what training recorded."""
    if subject.content is None:
        return STAGE.unchecked("nothing is saved yet")
    tensors = subject.content.tensors
    present = [name for name in MAPS if name in tensors]
    if not present:
        return STAGE.passed("every token can be drafted: there is no map")
    if len(present) == 1:
        return _failed(f"there is a {present[0]} and no {'t2d' if present == ['d2t'] else 'd2t'}")
    ids = torch.arange(len(tensors["d2t"])) + tensors["d2t"].long()
    marked = tensors["t2d"].bool().nonzero().flatten()
    if len(tensors["t2d"]) != subject.spec.vocab_size:
        size = subject.spec.vocab_size
        return _failed(f"t2d has {len(tensors['t2d'])} entries", f"the verifier's {size}")
    if not torch.equal(ids, marked):
        return _failed(_first_difference(ids, marked), "equal ids")
    recorded = subject.recorded
    now = DraftVocabulary(ids, subject.spec.vocab_size).fingerprint
    if recorded is not None and recorded.vocabulary not in ("", now):
        return _failed("other tokens than training drafted", f"ids {recorded.vocabulary[:12]}")
    if "lm_head.weight" not in tensors:
        return _failed("there is no lm_head.weight", f"{len(ids)} rows")
    return _check_rows(subject, tensors["lm_head.weight"], ids)


def _check_rows(
    subject: Subject, rows: Float[Tensor, "draft_vocab hidden"], ids: Int[Tensor, "draft_vocab"]
) -> Finding:
    """Look for the verifier row closest to each of some draft rows."""
    if len(rows) != len(ids):
        return _failed(f"lm_head.weight has {len(rows)} rows", str(len(ids)))
    head = subject.head.lm_head.float()
    at = torch.linspace(0, len(ids) - 1, min(_ROWS, len(ids))).long()
    own = torch.nn.functional.normalize(head, dim=-1)
    looked = torch.nn.functional.normalize(rows[at].to(head.device).float(), dim=-1)
    likeness = looked @ own.T
    named = likeness.gather(1, ids[at].to(head.device)[:, None])[:, 0]
    # Rows no text uses are often equal: as close as the closest is close enough.
    right = named >= likeness.amax(-1) - 1e-3
    share = float(right.float().mean())
    if share < _FEWEST_OWN:
        first = int((~right).nonzero()[0])
        row, closest = int(at[first]), int(likeness[first].argmax())
        return _failed(
            f"only {share:.0%} of {len(at)} rows are those of their tokens",
            f"{_FEWEST_OWN:.0%}",
            evidence=f"row {row} is that of token {closest}, d2t says {int(ids[row])}",
        )
    return STAGE.passed(
        "d2t, t2d and the draft head name the same tokens",
        where=f"{len(ids)} of {subject.spec.vocab_size}",
        measured=f"{share:.0%} of {len(at)} rows are those of their tokens",
        allowed=f"{_FEWEST_OWN:.0%} at least",
    )


def _first_difference(ids: Tensor, marked: Tensor) -> str:
    count = min(len(ids), len(marked))
    different = (ids[:count] != marked[:count]).nonzero()
    if not len(different):
        return f"d2t has {len(ids)} tokens, t2d marks {len(marked)}"
    row = int(different[0])
    return f"draft id {row} is token {int(ids[row])} by d2t and {int(marked[row])} by t2d"


def _failed(measured: str, allowed: str = "", *, evidence: str = "") -> Finding:
    return STAGE.failed(
        STALE_VOCABULARY,
        "the vocabulary map contradicts itself or the draft head",
        where="d2t",
        measured=measured,
        allowed=allowed,
        evidence=evidence,
    )
