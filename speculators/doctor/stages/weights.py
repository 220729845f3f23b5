"""The files hold a whole drafter, and exactly the weights that were trained."""

from __future__ import annotations

import torch

from speculators.doctor.causes import CHANGED_WEIGHTS, DAMAGED_CHECKPOINT
from speculators.doctor.finding import Finding, Stage
from speculators.doctor.subject import Subject

STAGE = Stage(
    "weights",
    "every tensor a server needs is there, none it refuses, and while training each equals the one "
    "in memory",
)

_NOT_SAVED = frozenset({"init", "from_pretrained"})
"""Settings of a start, which no checkpoint keeps."""


def check(subject: Subject) -> Finding:
    """Report why no drafter could be made; while training, compare with the weights in memory."""
    if subject.content is None:
        return STAGE.unchecked("nothing is saved yet")
    if subject.problem is not None:
        return STAGE.failed(DAMAGED_CHECKPOINT, subject.problem)
    if found := _changed_settings(subject):
        return found
    saved = subject.content.tensors
    names = f"{len(saved)} tensors"
    if subject.live is None:
        return STAGE.passed("the files hold a whole drafter", where=names)
    for name, tensor in subject.live.saved_tensors().items():
        if name not in saved:
            return STAGE.failed(DAMAGED_CHECKPOINT, "a tensor is missing", where=name)
        kept = tensor.detach().cpu().to(saved[name].dtype)
        if not torch.equal(kept, saved[name]):
            gap = float((kept.float() - saved[name].float()).abs().max())
            return STAGE.failed(
                CHANGED_WEIGHTS,
                "saved weights differ from those in memory",
                where=name,
                measured=f"by {gap:.2g} at most",
                allowed="0",
            )
    return STAGE.passed("saved weights equal those in memory", where=names)


def _changed_settings(subject: Subject) -> Finding | None:
    """While training: hold that `config.json` reads back as the settings in memory."""
    if subject.live is None or subject.content is None:
        return None
    read = type(subject.live).config_from_serving(subject.content.config)
    known = vars(read).keys() - _NOT_SAVED
    changed = [k for k in sorted(known) if vars(read)[k] != vars(subject.live.config).get(k)]
    if not changed:
        return None
    key = changed[0]
    return STAGE.failed(
        CHANGED_WEIGHTS,
        "config.json reads back as other settings",
        where=key,
        measured=str(vars(read)[key]),
        allowed=str(vars(subject.live.config).get(key)),
    )
