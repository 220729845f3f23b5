"""The two heads DSpark adds to a block: which token follows which, and how sure the draft is."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_MARKOV_STD = 0.01


class MarkovHead(nn.Module):
    """Bias on the draft logits from the token before: W2 W1[token], of low rank.

    Args:
        vocab_size: verifier tokens [V].
        draft_vocab_size: draft tokens [Vd].
        rank: width in between [r].
    """

    def __init__(self, vocab_size: int, draft_vocab_size: int, rank: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, draft_vocab_size, bias=False)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Start with next to no bias: N(0, 0.01) both."""
        for parameter in self.parameters():
            parameter.normal_(0.0, _MARKOV_STD, generator=generator)

    def embed(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch rank"]:
        """Return what stands for the token before."""
        return self.markov_w1(tokens)


class ConfidenceHead(nn.Module):
    """Logit of the probability that a drafted token is accepted.

    Args:
        width: of what it reads.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 1)

    @torch.no_grad()
    def initialize(self) -> None:
        """Start undecided: one half everywhere."""
        for parameter in self.parameters():
            parameter.zero_()

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
        """Return the logit, in the format of the weights whatever autocast says."""
        with torch.autocast(x.device.type, enabled=False):
            return self.proj(x.to(self.proj.weight.dtype))[..., 0]
