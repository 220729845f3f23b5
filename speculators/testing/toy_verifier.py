"""A causal model made of tables: states in microseconds, no weights file, no transformers.

It has what hidden-state code must be able to tell apart: every layer's stream differs from its
neighbours', every row depends on all tokens before it, and the next token follows from the last
stream through a real final norm and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec


def toy_spec(
    *, num_layers: int = 4, hidden_size: int = 32, vocab_size: int = 97, name: str = "toy"
) -> VerifierSpec:
    """Return the sizes of a verifier that exists in memory only."""
    return VerifierSpec(
        name_or_path=name,
        folder="",
        revision=None,
        architecture="ToyForCausalLM",
        model_type="toy",
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        vocab_size=vocab_size,
        num_tokens=vocab_size,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=hidden_size // 2,
        hidden_act="silu",
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        max_position_embeddings=4096,
        dtype="float32",
        tie_word_embeddings=False,
        bos_token_id=None,
        pad_token_id=None,
        eos_token_ids=(1,),
        tokenizer_hash="0" * 64,
    )


@dataclass
class ToyVerifier:
    """Tables drawn from a seed, and the states they give.

    Attributes:
        spec: its sizes.
        seed: two toys with different seeds are different models of the same shape.
        embed_tokens: embedding.
        head: final norm and head.
    """

    spec: VerifierSpec = field(default_factory=toy_spec)
    seed: int = 0
    embed_tokens: Float[Tensor, "vocab hidden"] = field(init=False, repr=False)
    head: VerifierHead = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Draw the tables."""
        random = torch.Generator().manual_seed(self.seed)
        vocab, hidden = self.spec.vocab_size, self.spec.hidden_size
        self.embed_tokens = torch.randn(vocab, hidden, generator=random)
        gain = 1 + 0.1 * torch.randn(hidden, generator=random)
        lm_head = torch.randn(vocab, hidden, generator=random)
        self.head = VerifierHead(self.spec, gain, lm_head)
        self._mixers = torch.randn(self.spec.num_layers, hidden, generator=random)

    def states(
        self, token_ids: Sequence[int], layer_ids: Sequence[int]
    ) -> Float[Tensor, "token layer hidden"]:
        """Return the streams entering `layer_ids` (0: embeddings, L: before the final norm)."""
        stream = self.embed_tokens[torch.as_tensor(token_ids)]
        positions = torch.arange(1, len(stream) + 1).unsqueeze(1)
        streams = [stream]
        for mixer in self._mixers:
            stream = stream + torch.tanh(mixer * stream.cumsum(0) / positions)
            streams.append(stream)
        return torch.stack([streams[i] for i in layer_ids], dim=1)

    def __call__(
        self, token_ids: Sequence[int], layer_ids: Sequence[int]
    ) -> tuple[Float[Tensor, "token layer hidden"], int]:
        """Return the states and the greedy next token: what a server computes per request."""
        states = self.states(token_ids, [*layer_ids, self.spec.num_layers])
        return states[:, :-1], int(self.head.argmax(states[-1:, -1])[0])
