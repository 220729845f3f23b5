"""The verifier's final norm and head: what turns its last stream into teacher logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from speculators.verifier.spec import NormKind, VerifierSpec

_CHUNK_BYTES = 64 * 2**20


class VerifierHead(nn.Module):
    """Frozen teacher: logits = lm_head(norm(last)), in fp32, never saved.

    Args:
        spec: the verifier.
        norm_weight: weight of the final norm, as stored.
        lm_head: the head, `vocab hidden`.
    """

    norm_weight: Tensor
    lm_head: Tensor

    def __init__(
        self,
        spec: VerifierSpec,
        norm_weight: Float[Tensor, "hidden"],
        lm_head: Float[Tensor, "vocab hidden"],
    ) -> None:
        super().__init__()
        self.spec = spec
        gain = norm_weight.float()
        if spec.norm_kind is NormKind.rms_plus_one:
            gain = gain + 1
        self.register_buffer("norm_weight", gain, persistent=False)
        self.register_buffer("lm_head", lm_head, persistent=False)

    def normed(self, last: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Apply the final norm in fp32; returns the head's number format."""
        x = last.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.spec.rms_norm_eps)
        return (x * self.norm_weight).to(self.lm_head.dtype)

    def logits(
        self, last: Float[Tensor, "token hidden"], rows: Int[Tensor, "row"] | None = None
    ) -> Float[Tensor, "token row"]:
        """Return fp32 logits over the whole vocabulary, or over `rows` of it.

        Memory grows with token x row: give it chunks.
        """
        weight = self.lm_head if rows is None else self.lm_head[rows]
        logits = (self.normed(last) @ weight.T).float()
        cap = self.spec.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def argmax(self, last: Float[Tensor, "token hidden"]) -> Int[Tensor, "token"]:
        """Return the most likely token after each position, over the whole vocabulary.

        Works through chunks of rows; memory does not grow with the number of tokens.
        """
        parts = [self.logits(chunk).argmax(-1) for chunk in self._chunks(last)]
        return torch.cat(parts) if parts else last.new_empty(0, dtype=torch.int64)

    def _chunks(self, last: Tensor) -> Iterator[Tensor]:
        rows = max(1, _CHUNK_BYTES // (4 * self.lm_head.shape[0]))
        yield from last.split(rows)
