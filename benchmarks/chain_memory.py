"""What a forward pass of Eagle-3 leaves in memory, by number of steps in a chain.

    python benchmarks/chain_memory.py

Bytes allocated and not freed in a forward pass, while its result is held: what the backward pass
needs, and what checkpointing needs to compute it again.
"""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from speculators.algorithms.base import StepContext
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.model import Eagle3Drafter
from speculators.config.schema import LossWeights
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.testing.toy_verifier import toy_spec
from speculators.verifier.head import VerifierHead

HIDDEN, VOCAB, TOKENS = 512, 32000, 512


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print("steps   kept MiB   with checkpointing")
    for steps in (1, 3, 5, 7):
        kept = [kept_bytes(steps, recompute=recompute) / 2**20 for recompute in (False, True)]
        print(f"{steps:5d} {kept[0]:10.1f} {kept[1]:20.1f}")


def kept_bytes(steps: int, *, recompute: bool) -> int:
    """Return what one forward pass leaves behind."""
    spec = toy_spec(hidden_size=HIDDEN, vocab_size=VOCAB)
    g = torch.Generator().manual_seed(0)
    head = torch.randn(VOCAB, HIDDEN, generator=g) * 0.02
    config = Eagle3Config(
        num_layers=1, target_layer_ids=[1, 2, 3], ttt_steps=steps, loss=LossWeights(kl=1.0),
        activation_checkpointing=recompute,
    )  # fmt: skip
    drafter = Eagle3Drafter.build(
        Eagle3Drafter.resolve(config, spec, []), spec, DraftVocabulary.full(VOCAB),
        embed_tokens=head, lm_head=head, generator=g,
    )  # fmt: skip
    teacher, index = VerifierHead(spec, torch.ones(HIDDEN), head), torch.arange(TOKENS)
    row = PackedBatch(
        torch.randint(0, VOCAB, (TOKENS,), generator=g), index >= 16, index * 0, index,
        torch.randn(TOKENS, 3, HIDDEN, generator=g), torch.randn(TOKENS, HIDDEN, generator=g),
    )  # fmt: skip
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = drafter.compute_loss(row, teacher, StepContext(0, 0))
    assert output.loss_sum.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


if __name__ == "__main__":
    main()
