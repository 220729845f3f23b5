"""Every registered algorithm learns one conversation by heart, and is served so."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from algorithms.test_every_algorithm import every, settings
from algorithms.tiny import tiny
from speculators.algorithms.base import StepContext
from speculators.algorithms.registry import drafter_class
from speculators.config.schema import FloatType
from speculators.conversion.layout import read_model, write_model
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.evaluation.decode import decode
from speculators.verifier.weights import make_head

PROMPT = list(range(300, 312))


@cache
def conversation(layer_ids: tuple[int, ...]) -> PackedBatch:
    """Return the tiny verifier's own answer to a prompt, with its states."""
    spec, _, model = tiny()
    answer = model.generate(
        [PROMPT], max_new_tokens=100, temperature=0.0, batch_size=1, stop_ids=[]
    )[0]
    ids = torch.tensor([*PROMPT, *answer])
    with torch.no_grad():
        step = model.forward(ids, model.new_cache(), [*layer_ids, spec.num_layers])
    index = torch.arange(len(ids))
    aux, last = step.aux[:, :-1], step.aux[:, -1]
    return PackedBatch(ids, index >= len(PROMPT), index * 0, index, aux, last)


@every
def test_overfits_one_conversation_and_is_served_without_loss(name: str, tmp_path: Path) -> None:
    """Trained on one answer, written, read back: nearly every drafted token stands."""
    overfit(name, tmp_path, num_steps=180)


def overfit(name: str, folder: Path, num_steps: int) -> None:
    spec, tables, model = tiny()
    kind, layer_ids = drafter_class(name), (2, 4, 6)
    asked = settings(name, target_layer_ids=list(layer_ids), draft_vocab_size=spec.vocab_size)
    torch.manual_seed(0)
    drafter = kind.build(
        kind.resolve(asked, spec, [1270]), spec, DraftVocabulary.full(spec.vocab_size),
        embed_tokens=tables.embed_tokens, lm_head=tables.lm_head,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    batch, head = conversation(layer_ids), make_head(spec, tables)
    parameters = list(drafter.trainable_parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, weight_decay=0.0)
    losses = []
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / num_steps)
        out = drafter.compute_loss(batch, head, StepContext(0, step))
        (out.loss_sum / out.divisor).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out.loss_sum.detach() / out.divisor))
    assert losses[-1] < 0.1 * losses[0]
    write_model(folder, drafter, FloatType.bfloat16)
    served = read_model(folder, spec=spec, tables=tables)
    found = decode(model, PROMPT, drafter=served, layer_ids=layer_ids, max_new_tokens=60)
    plain = decode(model, PROMPT, drafter=None, layer_ids=layer_ids, max_new_tokens=60)
    assert found.tokens == plain.tokens
    accepted = sum(found.accepted) / (len(found.drafts) * served.num_draft_tokens)
    assert accepted > 0.95
