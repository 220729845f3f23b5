"""Training of the tiny verifier: every conversation once, AdamW, cosine, one core."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from speculators.data.tiny import tiny_conversations
from speculators.data.types import Turn
from speculators.verifier.tiny.initial import initialize
from speculators.verifier.tiny.model import TinyQwen3
from speculators.verifier.tiny.settings import Settings
from speculators.verifier.tiny.tokenizer import TURN_END, TURN_START

Row = tuple[list[int], list[bool]]
"""Tokens of a conversation, and which of them the assistant writes."""


def encode(turns: tuple[Turn, ...], tokenizer: Tokenizer) -> Row:
    """Render turns as the chat template does and mark what the assistant writes."""
    ids: list[int] = []
    written: list[bool] = []
    for turn in turns:
        head = tokenizer.encode(f"{TURN_START}{turn.role}\n", add_special_tokens=False).ids
        body = tokenizer.encode(f"{turn.content}{TURN_END}", add_special_tokens=False).ids
        tail = tokenizer.encode("\n", add_special_tokens=False).ids
        ids += head + body + tail
        written += (
            [False] * len(head) + [turn.role == "assistant"] * len(body) + [False] * len(tail)
        )
    return ids, written


def rows_of(settings: Settings, tokenizer: Tokenizer) -> list[Row]:
    """Encode the training conversations."""
    conversations = tiny_conversations(settings.num_conversations, settings.seed)
    return [encode(conversation.turns, tokenizer) for conversation in conversations]


def batches_of(rows: list[Row], settings: Settings, generator: torch.Generator) -> list[list[Row]]:
    """Group rows of about equal length, `batch_tokens` at most with padding, in random order."""
    batches: list[list[Row]] = []
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row[0])):
        if batch and (len(batch) + 1) * len(row[0]) > settings.batch_tokens:
            batches.append(batch)
            batch = []
        batch.append(row)
    batches.append(batch)
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in order]


def tensors_of(
    batch: list[Row], prompt_weight: float
) -> tuple[Int[Tensor, "batch sequence"], Float[Tensor, "batch sequence"]]:
    """Pad a batch at its end.

    Returns:
        tokens, and the weight of each as a label: 0 at padding and for the first token.
    """
    length = max(len(ids) for ids, _ in batch)
    input_ids = torch.zeros(len(batch), length, dtype=torch.long)
    weights = torch.zeros(len(batch), length)
    for i, (ids, written) in enumerate(batch):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        weights[i, : len(ids)] = torch.tensor([1.0 if w else prompt_weight for w in written])
    weights[:, 0] = 0
    return input_ids, weights


def loss_of(
    model: TinyQwen3, batch: list[Row], precision: torch.dtype
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the weighted loss, and the plain loss on what the assistant writes."""
    input_ids, weights = tensors_of(batch, model.settings.prompt_weight)
    cast = {name: p.to(precision) for name, p in model.named_parameters()}
    states = torch.func.functional_call(model, cast, (input_ids[:, :-1],))
    counted = weights[:, 1:] > 0
    labels, label_weights = input_ids[:, 1:][counted], weights[:, 1:][counted]
    logits = states[counted] @ cast["model.embed_tokens.weight"].T
    losses = functional.cross_entropy(logits.float(), labels, reduction="none")
    written = label_weights == 1
    return (losses * label_weights).sum() / label_weights.sum(), losses[written].mean().detach()


def optimizers_of(model: TinyQwen3, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    adam = {"betas": (0.9, 0.98), "eps": 1e-9, "weight_decay": 0.0, "foreach": True}
    if settings.muon_lr == 0:
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return [torch.optim.AdamW(groups, lr=settings.peak_lr, **adam)]
    return [
        torch.optim.Muon(
            matrices,
            lr=settings.muon_lr,
            weight_decay=settings.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=settings.peak_lr, **adam),
    ]


def lr_share(step: int, num_steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


def train(
    settings: Settings,
    tokenizer: Tokenizer,
    report: Callable[[str], None] = print,
    report_steps: int = 100,
) -> TinyQwen3:
    """Train from nothing.

    Args:
        settings: sizes and schedule.
        tokenizer: of the model.
        report: takes the lines of progress.
        report_steps: a line every so many steps.

    Returns:
        The trained model in float32. The same machine, library and number of threads give the
        same bits.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    model = TinyQwen3(settings)
    initialize(model, generator)
    batches = batches_of(rows_of(settings, tokenizer), settings, generator)
    optimizers = optimizers_of(model, settings)
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    precision = getattr(torch, settings.precision)
    start, tokens, shown = time.perf_counter(), 0, []
    for step, batch in enumerate(batches):
        share = lr_share(step, len(batches), settings.warmup_steps)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
        loss, plain = loss_of(model, batch, precision)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += sum(len(ids) for ids, _ in batch)
        shown.append(plain)
        if (step + 1) % report_steps == 0 or step + 1 == len(batches):
            seconds = time.perf_counter() - start
            mean = float(torch.stack(shown).mean())
            report(
                f"step {step + 1} of {len(batches)}  loss {mean:.4f}  "
                f"{tokens / seconds:.0f} tokens/s  {seconds:.0f} s"
            )
            shown = []
    return model
