"""Every loss of one slot, written down once more (DFlash specification, section 8)."""

from __future__ import annotations

import torch
from torch import Tensor


def slot_losses(z: Tensor, y: Tensor, label: int) -> dict[str, Tensor]:
    """Return the terms by name.

    Args:
        z: draft logits.
        y: the verifier's logits over the same tokens.
        label: token of `ce`, -1 where there is none.
    """
    log_q, log_p = z.log_softmax(-1), y.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    log_m = ((p + q) / 2).log()
    overlap = torch.minimum(p, q).sum()
    mix = (-3 * overlap).exp().detach()
    found = {
        "ce": torch.zeros((), dtype=z.dtype) if label < 0 else -log_q[label],
        "kl": (p * (log_p - log_q)).sum(),
        "reverse_kl": (q * (log_q - log_p)).sum(),
        "js": ((p * (log_p - log_m)).sum() + (q * (log_q - log_m)).sum()) / 2,
        "tv": 1 - overlap,
        "lk_alpha": -overlap.clamp(min=1e-5).log(),
    }
    return found | {"lk_hybrid": mix * found["kl"] + (1 - mix) * found["tv"]}
