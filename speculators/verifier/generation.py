"""Batched generation with a key/value cache: how answers are made by the verifier itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.errors import DataError
from speculators.verifier.padding import length_batches, pad_left
from speculators.verifier.passes import VerifierPasses


def generate(
    model: VerifierPasses,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    temperature: float,
    seeds: Sequence[int],
    batch_size: int,
    stop_ids: Sequence[int],
    finished: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt until a stop token, `max_new_tokens` or the model's longest context.

    What a prompt is answered does not depend on the prompts beside it (up to rounding): each one
    draws from numbers of its own, a function of its seed.

    Args:
        model: the verifier.
        prompts: token ids, at least one each.
        max_new_tokens: longest answer; one number, or one for each prompt.
        temperature: 0 takes the most likely token, above 0 draws from softmax(logits / T).
        seeds: of the draws, one for each prompt; unused at temperature 0.
        batch_size: prompts decoded together; finished ones leave the batch.
        stop_ids: tokens that end an answer.
        finished: called with the index of a prompt and its answer, as soon as it is there.

    Returns:
        New tokens of each prompt, the stop token included.

    Raises:
        DataError: an empty prompt, or one that leaves no room for an answer.
    """
    limit = model.spec.max_position_embeddings
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < limit:
            raise DataError(
                f"prompt {number} has {len(prompt)} tokens; allowed: 1 to {limit - 1} (the context "
                f"of {model.spec.name_or_path} holds {limit})"
            )
    longest = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    answers: list[list[int]] = [[] for _ in prompts]

    def finish(index: int, answer: list[int]) -> None:
        answers[index] = answer
        if finished is not None:
            finished(index, answer)

    for batch in length_batches([len(prompt) for prompt in prompts], max_rows=batch_size):
        rooms = [min(longest[index], limit - len(prompts[index])) for index in batch]
        noise = _noise([seeds[i] for i in batch], max(rooms)) if temperature > 0 else None
        decoding = _Batch(model, [prompts[i] for i in batch], batch, rooms, stop_ids)
        decoding.run(temperature, noise, finish)
    return answers


class _Batch:
    """Prompts that are decoded together; rows disappear as they finish."""

    def __init__(
        self,
        model: VerifierPasses,
        prompts: Sequence[Sequence[int]],
        indices: Sequence[int],
        rooms: Sequence[int],
        stop_ids: Sequence[int],
    ) -> None:
        self.model = model
        device = model.device
        tokens, present = pad_left(prompts)
        self.tokens = tokens.to(device)
        self.mask = present.to(device, torch.int64)
        self.positions = (self.mask.cumsum(1) - 1).clamp_min(0)
        self.indices = list(indices)
        self.rooms = torch.tensor(rooms, device=device)
        self.stop_ids = torch.tensor(list(stop_ids), dtype=torch.int64, device=device)
        self.answers = torch.empty(len(prompts), max(rooms), dtype=torch.int64, device=device)
        self.cache = model.new_cache()

    def run(
        self,
        temperature: float,
        noise: Float[Tensor, "row step"] | None,
        finish: Callable[[int, list[int]], None],
    ) -> None:
        """Decode until every row is finished, handing over each answer as it ends."""
        noise = None if noise is None else noise.to(self.model.device)
        for step in range(self.answers.shape[1]):
            logits = self.model.next_logits(
                self.tokens, self.cache, attention_mask=self.mask, position_ids=self.positions
            )
            chosen = (
                logits.argmax(-1)
                if noise is None
                else sample_tokens(logits, temperature, noise[:, step])
            )
            self.answers[:, step] = chosen
            done = torch.isin(chosen, self.stop_ids) | (self.rooms == step + 1)
            self.tokens = chosen[:, None]
            self.positions = self.positions[:, -1:] + 1
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
            if done.any():
                for row in done.nonzero().flatten().tolist():
                    finish(self.indices[row], self.answers[row, : step + 1].tolist())
                keep = (~done).nonzero().flatten()
                if keep.numel() == 0:
                    return
                noise = None if noise is None else noise[keep]
                self._keep(keep)

    def _keep(self, rows: Int[Tensor, "kept"]) -> None:
        self.indices = [self.indices[row] for row in rows.tolist()]
        self.rooms, self.answers = self.rooms[rows], self.answers[rows]
        self.tokens, self.positions = self.tokens[rows], self.positions[rows]
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)


def sample_tokens(
    logits: Float[Tensor, "row vocab"], temperature: float, noise: Float[Tensor, "row"]
) -> Int[Tensor, "row"]:
    """Draw from softmax(logits / T) by inverting the distribution function at `noise` in [0, 1)."""
    cumulated = (logits.float() / temperature).softmax(-1).double().cumsum(-1)
    threshold = noise.double()[:, None] * cumulated[:, -1:]
    chosen = torch.searchsorted(cumulated, threshold, right=True)[:, 0]
    return chosen.clamp_max(logits.shape[-1] - 1)


def _noise(seeds: Sequence[int], steps: int) -> Float[Tensor, "row step"]:
    """Return uniform numbers, each row a function of its seed alone."""
    rows = []
    for seed in seeds:
        digest = hashlib.sha256(f"{seed}/generate".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        rows.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(rows)
