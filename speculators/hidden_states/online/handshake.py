"""Proof, before the first training step, that a server delivers this verifier's states.

Names prove nothing: a server may run another revision, other layers, or rows that belong to
another request. So a few prompts go through it and what comes back is compared with the
verifier's own tables: embedding rows, a reference where one is cheap, and the teacher's next token
against the server's (hidden-states specification, section 8).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.errors import HiddenStateError
from speculators.hidden_states.online.breaker import Endpoint
from speculators.hidden_states.online.exchange import Exchange, Received
from speculators.hidden_states.online.failures import (
    BadStatesError,
    ForbiddenError,
    NoFileError,
    OtherStatesError,
    RejectedError,
    StuckLockError,
)
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec

_log = logging.getLogger(__name__)
_OLDEST = (0, 18)

TOLERANCE = 5e-2
"""Largest relative difference between two ways to compute the same states; bfloat16 servers were
measured at 1.5e-2 (vLLM specification, section 2)."""

_TIE = 0.5
"""Two logits closer than this share of their spread may swap places by rounding."""

Reference = Callable[[Int[Tensor, "token"]], Mapping[int, Float[Tensor, "token hidden"]]]
"""Computes the streams entering some layers, by layer id; as many layers as are cheap."""


@dataclass(frozen=True)
class Expected:
    """What a server must be.

    Attributes:
        spec: the verifier.
        layer_ids: ids its files hold, ascending, the last stream included.
        max_tokens: longest sample.
        embed_tokens: the verifier's embedding.
        head: the verifier's norm and head.
        reference: own computation of some layers, or None.
        seed: draws the probes.
    """

    spec: VerifierSpec
    layer_ids: tuple[int, ...]
    max_tokens: int
    embed_tokens: Float[Tensor, "vocab hidden"]
    head: VerifierHead
    reference: Reference | None = None
    seed: int = 0

    def probes(self) -> list[Int[Tensor, "token"]]:
        """Return four prompts: the first alone, two that begin like it, one unlike it."""
        random = torch.Generator().manual_seed(self.seed)
        length = max(2, min(24, self.max_tokens))
        first, other, end = (
            torch.randint(self.spec.num_tokens, (n,), generator=random)
            for n in (length, length, length)
        )
        half = length // 2
        return [first, torch.cat([first[:half], end[half:]]), first[: length - 1], other]


@dataclass(frozen=True)
class Greeting:
    """What a server turned out to be.

    Attributes:
        version: of vLLM.
        dtype: number format of its states.
    """

    version: str
    dtype: torch.dtype

    @property
    def dtype_name(self) -> str:
        """Name of the number format, as stores have it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def engine(self) -> str:
        """Name of the engine, as stores have it."""
        return f"vllm {self.version}".strip()


class Handshake:
    """Greets servers; lives on one event loop.

    Args:
        exchange: makes single requests.
        expected: what the servers must be.
    """

    def __init__(self, exchange: Exchange, expected: Expected) -> None:
        self._exchange = exchange
        self._expected = expected
        self._probes = expected.probes()
        self._known: Tensor | None = None

    async def introduce(self, endpoint: Endpoint) -> str:
        """Learn a server's model name and length; return its version.

        Raises:
            HiddenStateError: its model is too short, or it wants a key.
            AttemptError: no answer.
        """
        client, expected = self._exchange.client, self._expected
        try:
            served = await client.served_model(endpoint.url)
        except ForbiddenError as failure:
            raise HiddenStateError(f"server {endpoint.url}: {failure.reason}") from None
        needed = expected.max_tokens + 1
        if served.max_model_len is not None and served.max_model_len < needed:
            raise HiddenStateError(
                f"server {endpoint.url} takes {served.max_model_len} tokens "
                f"(--max-model-len), and the longest sample needs {needed} (one is generated): "
                "start the server with more, or lower training.sequence_length"
            )
        endpoint.model, endpoint.serves = served.name, served.root
        return await client.version(endpoint.url)

    async def again(self, endpoint: Endpoint) -> None:
        """Prove that a server which was away, or erred, still is what it was.

        Raises:
            HiddenStateError: it is another one now.
            AttemptError: it cannot answer.
        """
        await self.introduce(endpoint)
        try:
            received = await self._exchange(endpoint, self._probes[0])
        except NoFileError as failure:
            space = self._exchange.folder.describe_space()
            raise NoFileError(
                f"{failure.reason}; the server cannot write files: disk full or no permission? "
                f"{space}"
            ) from None
        except OtherStatesError as failure:
            raise HiddenStateError(
                f"server {endpoint.url} is not what it was at the start: {failure.reason}"
            ) from None
        if self._known is not None:
            self._compare(endpoint, received.states, self._known, "the same probe earlier")
        endpoint.proven()

    async def prove(self, endpoint: Endpoint, *, thorough: bool = True) -> Greeting:
        """Prove that the server's states are this verifier's.

        Args:
            endpoint: the server.
            thorough: compare with the verifier's own tables, alone and in a batch; otherwise only
                shapes and number format are learnt.

        Raises:
            HiddenStateError: the server is not what it must be; what was measured and why it may
                be so.
            AttemptError: it does not answer.
        """
        version = await self.introduce(endpoint)
        _say_if_old(endpoint, version)
        _say_if_called_otherwise(endpoint, self._expected.spec.name_or_path)
        first = self._probes[0]
        alone = await self._probe(endpoint, first)
        self._exchange.check.dtype = alone.states.dtype
        if self._known is None:
            self._known = alone.states
        self._compare(endpoint, alone.states, self._known, "the same probe at another server")
        if thorough:
            self._check_teacher(endpoint, alone)
            await self._check_layers(endpoint, first, alone.states)
            await self._check_company(endpoint, alone.states)
        endpoint.proven()
        return Greeting(version, alone.states.dtype)

    async def _check_company(self, endpoint: Endpoint, alone: Tensor) -> None:
        """Nothing may change in a batch, behind a shared prefix, or when asked again."""
        first = self._probes[0]
        together = await asyncio.gather(
            *(self._probe(endpoint, probe) for probe in (*self._probes[1:], first))
        )
        for probe, received in zip(self._probes[1:3], together, strict=False):
            shared = _shared_length(probe, first)
            self._check_teacher(endpoint, received)
            what = f"the first {shared} tokens of a prompt that begins in the same way"
            self._compare(endpoint, received.states[:shared], alone[:shared], what)
        self._check_teacher(endpoint, together[2])
        self._compare(endpoint, together[3].states, alone, "the same prompt inside a batch")

    async def _probe(self, endpoint: Endpoint, prompt: Tensor) -> Received:
        try:
            return await self._exchange(endpoint, prompt)
        except RejectedError as failure:
            raise HiddenStateError(
                f"server {endpoint.url} refuses a probe of {len(prompt)} tokens: {failure.reason}"
            ) from None
        except BadStatesError as failure:
            wanted = list(self._expected.layer_ids)
            raise HiddenStateError(
                f"server {endpoint.url}: {failure.reason}; this run reads layers {wanted} of "
                f"{self._expected.spec.name_or_path}: start the server with `speculators serve` "
                "and the same configuration"
            ) from None
        except (NoFileError, StuckLockError) as failure:
            raise HiddenStateError(
                f"server {endpoint.url} answered a probe, but {failure.reason}. Server and trainer "
                "must share that folder (hidden_states.fetch.transfer_path; path_map where it is "
                "called otherwise here), and the server must be able to write there "
                f"({self._exchange.folder.describe_space() or 'it does not exist here'})"
            ) from None

    def _check_teacher(self, endpoint: Endpoint, received: Received) -> None:
        """The last layer must make the teacher say what the server said."""
        logits = self._expected.head.logits(received.states[-1:, -1])[0]
        last = self._expected.layer_ids[-1]
        if not 0 <= received.next_token < len(logits):
            raise HiddenStateError(
                f"server {endpoint.url} generated token {received.next_token}, which "
                f"{self._expected.spec.name_or_path} does not have: it runs another model "
                f"({endpoint.serves})"
            )
        gap = float(logits.max() - logits[received.next_token]) / float(logits.std())
        if gap > _TIE:
            raise HiddenStateError(
                f"server {endpoint.url}: from its last layer's state the teacher says token "
                f"{int(logits.argmax())}, the server said {received.next_token} "
                f"({gap:.2g} standard deviations apart): it runs another model or revision "
                f"({endpoint.serves}), or its last column is not layer {last}"
            )

    async def _check_layers(self, endpoint: Endpoint, prompt: Tensor, states: Tensor) -> None:
        """Columns must be the layers they are called, as far as they can be computed here."""
        ids = self._expected.layer_ids
        if ids[0] == 0:
            self._check_embedding(endpoint, prompt, states[:, 0])
        if self._expected.reference is None:
            return
        loop = asyncio.get_running_loop()
        own = await loop.run_in_executor(self._exchange.readers, self._expected.reference, prompt)
        for column, layer_id in enumerate(ids):
            if layer_id in own:
                self._check_column(endpoint, states[:, column], layer_id, own)

    def _check_embedding(self, endpoint: Endpoint, prompt: Tensor, column: Tensor) -> None:
        """Compare directions: some models scale their embeddings."""
        rows = self._expected.embed_tokens[prompt].float()
        cosine = float(torch.nn.functional.cosine_similarity(column.float(), rows).median())
        if cosine < 1 - TOLERANCE:
            raise HiddenStateError(
                f"server {endpoint.url}: the column for layer 0 is not the embedding (cosine "
                f"{cosine:.3f}): another model, or layer ids are off by one"
            )

    def _check_column(
        self, endpoint: Endpoint, column: Tensor, layer_id: int, own: Mapping[int, Tensor]
    ) -> None:
        measured = relative_difference(column, own[layer_id])
        if measured <= TOLERANCE:
            return
        closest = min(own, key=lambda i: relative_difference(column, own[i]))
        fits = relative_difference(column, own[closest]) <= TOLERANCE
        cause = (
            f"it holds layer {closest}: layer ids are off by {closest - layer_id:+d}"
            if fits
            else f"the server runs another model or revision ({endpoint.serves})"
        )
        raise HiddenStateError(
            f"server {endpoint.url}: the column for layer {layer_id} differs from the verifier's "
            f"by {measured:.2g} (relative; allowed {TOLERANCE:g}): {cause}"
        )

    def _compare(self, endpoint: Endpoint, states: Tensor, known: Tensor, what: str) -> None:
        if states.shape != known.shape:
            raise HiddenStateError(
                f"server {endpoint.url}: states of {list(states.shape)} instead of "
                f"{list(known.shape)} for {what}"
            )
        differences = [
            relative_difference(states[:, i], known[:, i]) for i in range(states.shape[1])
        ]
        worst = max(range(len(differences)), key=differences.__getitem__)
        if differences[worst] > TOLERANCE:
            raise HiddenStateError(
                f"server {endpoint.url}: layer {self._expected.layer_ids[worst]} differs by "
                f"{differences[worst]:.2g} (relative; allowed {TOLERANCE:g}) from {what}: another "
                "model, or states of other requests (restart with --no-enable-prefix-caching)"
            )


def _say_if_old(endpoint: Endpoint, version: str) -> None:
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and tuple(map(int, found.groups())) < _OLDEST:
        _log.warning(
            "server %s runs vLLM %s; %s or newer is what this was written for",
            *(endpoint.url, version, ".".join(map(str, _OLDEST))),
        )


def _say_if_called_otherwise(endpoint: Endpoint, wanted: str) -> None:
    """A model fine-tuned from the verifier has nearly its first layers and nearly its head."""
    served, own = (_model_name(name) for name in (endpoint.serves, wanted))
    if served.lower() != own.lower():
        _log.warning(
            "server %s serves %s, this run's verifier is %s: probes tell models apart, but hardly "
            "one from its fine-tuned sibling; make sure that they are the same",
            *(endpoint.url, endpoint.serves, wanted),
        )


def _model_name(path: str) -> str:
    """Return the name in a path or hub id; folders of the hub's cache are named by commits."""
    cached = re.search(r"models--(?:.+?--)?([^/]+)/snapshots/", path)
    return cached[1] if cached else path.rstrip("/").rpartition("/")[2]


def relative_difference(
    states: Float[Tensor, "token hidden"], reference: Float[Tensor, "token hidden"]
) -> float:
    """Return |a - b| / |b| row by row: the median, or a quarter of the largest if that is more.

    Single tokens carry norms a thousand times larger than the rest and would hide all others in
    one norm over the whole matrix; a single foreign row must not hide behind good ones.
    """
    reference = reference.float()
    gap = (states.float() - reference).norm(dim=-1) / reference.norm(dim=-1).clamp_min(1e-12)
    return max(float(gap.median()), float(gap.max()) / 4)


def _shared_length(a: Tensor, b: Tensor) -> int:
    length = min(len(a), len(b))
    different = (a[:length] != b[:length]).nonzero()
    return int(different[0]) if len(different) else length
