"""Whether what a server wrote may be trained on. Nothing that comes back is trusted."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from speculators.errors import HiddenStateError
from speculators.hidden_states.online.failures import BadStatesError, OtherStatesError
from speculators.hidden_states.types import Tokens
from speculators.hidden_states.validation import (
    NormBand,
    norms_problem,
    row_norms,
    token_problem,
)
from speculators.verifier.head import VerifierHead

_FEWEST_LOOKED_AT = 8
_RESPONSE_TOKENS, _FEWEST_RESPONSE_TOKENS = 32, 128
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


class StatesCheck:
    """Checks one file against the tokens asked for and against all files before it.

    Args:
        layer_ids: ids the file must hold, ascending, the last stream included.
        hidden_size: width of every state.
        norm_band: allowed ratio to the running median of a layer's norm.
    """

    def __init__(
        self,
        layer_ids: Sequence[int],
        hidden_size: int,
        *,
        norm_band: float = 10.0,
    ) -> None:
        self.layer_ids = tuple(layer_ids)
        self.hidden_size = hidden_size
        self.dtype: torch.dtype | None = None
        self._band = NormBand(layer_ids, norm_band)

    def __call__(
        self, tensors: Mapping[str, Tensor], input_ids: Int[Tensor, "token"]
    ) -> Float[Tensor, "token layer hidden"]:
        """Return the states of a file that holds what it should.

        Raises:
            BadStatesError: it does not; the text says what was found and what was expected.
        """
        states = self._checked_shapes(tensors, input_ids)
        norms = row_norms(states)
        quick = norms.numpy()
        # NaN fails every comparison, so one line clears what is in order.
        if not (quick.min() > 0 and quick.max() < np.inf) and (
            problem := norms_problem(norms, [str(i) for i in self.layer_ids])
        ):
            raise BadStatesError(problem)
        if problem := self._band.problem(quick):
            raise BadStatesError(problem)
        return states

    def _checked_shapes(
        self, tensors: Mapping[str, Tensor], input_ids: Tensor
    ) -> Float[Tensor, "token layer hidden"]:
        missing = {"hidden_states", "token_ids"} - tensors.keys()
        if missing:
            raise BadStatesError(f"file lacks {' and '.join(sorted(missing))}")
        states, tokens = tensors["hidden_states"], tensors["token_ids"]
        if not torch.equal(tokens, input_ids):
            raise BadStatesError(token_problem(tokens, input_ids) or "states of other tokens")
        expected = (len(input_ids), len(self.layer_ids), self.hidden_size)
        if tuple(states.shape) != expected:
            kind = BadStatesError if states.shape[1:] == expected[1:] else OtherStatesError
            raise kind(
                f"states are {_times(states.shape)} instead of {_times(expected)} "
                "(tokens x layers x hidden)"
            )
        if states.dtype not in _FLOATS or states.dtype != (self.dtype or states.dtype):
            raise OtherStatesError(f"states are {states.dtype} instead of {self.dtype or _FLOATS}")
        return states


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


class TeacherCheck:
    """Asks the teacher, now and then, what comes next.

    Does it say what the server said, and does it know the responses it is to teach? The first
    question has one right answer. The second has a plausible rate: a model says a third to all of
    the tokens of responses, its own or another's; near zero, rows are shifted, or the template or
    loss mask is that of another model.

    Args:
        head: the verifier's norm and head.
        every: look at every n-th sample; 0 at none.
        min_agreement: smallest plausible share of response tokens; 0 accepts any.
        window: samples of which the rates are taken.
    """

    def __init__(
        self, head: VerifierHead, *, every: int, min_agreement: float = 0.0, window: int = 32
    ) -> None:
        self._head = head
        self._every, self._min_agreement = every, min_agreement
        self._seen = 0
        self._agreed: deque[bool] = deque(maxlen=window)
        self._responses: deque[tuple[int, int]] = deque(maxlen=window)

    @property
    def agreement(self) -> float | None:
        """Share of response tokens the teacher says; None before the first one."""
        agreed, looked = self._response_counts()
        return agreed / looked if looked else None

    def is_due(self) -> bool:
        """Count one sample and return whether to look at it."""
        self._seen += 1
        return self._every > 0 and self._seen % self._every == 0

    def __call__(
        self, last: Float[Tensor, "token hidden"], sample: Tokens, next_token: int
    ) -> None:
        """Look at one sample.

        Args:
            last: its last streams.
            sample: its tokens.
            next_token: what the server says comes after them.

        Raises:
            HiddenStateError: of the last samples looked at, less than half agreed with the
                server, or implausibly few response tokens with the teacher.
        """
        places = sample.loss_mask[1:].nonzero()[:, 0]
        step = max(1, len(places) // _RESPONSE_TOKENS)
        places = places[::step][:_RESPONSE_TOKENS]
        said = self._head.argmax(last[torch.cat([places, places.new_tensor([len(last) - 1])])])
        same = said[:-1].cpu() == sample.input_ids[places + 1]
        self._responses.append((int(same.sum()), len(places)))
        self._agreed.append(int(said[-1]) == next_token)
        agreed, looked = sum(self._agreed), len(self._agreed)
        if looked >= _FEWEST_LOOKED_AT and 2 * agreed < looked:
            raise HiddenStateError(
                f"the teacher's next token equals the server's in only {agreed} of the last "
                f"{looked} samples looked at: the last layer's states are not this verifier's; "
                "check that the server runs the same model and revision"
            )
        agreed, looked = self._response_counts()
        enough = len(self._responses) >= _FEWEST_LOOKED_AT and looked >= _FEWEST_RESPONSE_TOKENS
        if enough and agreed < self._min_agreement * looked:
            raise HiddenStateError(
                f"the teacher says only {agreed} of {looked} response tokens looked at (less than "
                f"hidden_states.fetch.min_teacher_agreement={self._min_agreement:g}): template, "
                "tokenizer or loss mask do not fit this verifier (look with `speculators prepare "
                "show=3`), or the states are of shifted rows"
            )

    def _response_counts(self) -> tuple[int, int]:
        counts = tuple(self._responses)
        return sum(a for a, _ in counts), sum(n for _, n in counts)
