"""The first stages of every command: the device and the verifier."""

from __future__ import annotations

from pathlib import Path

import torch

from speculators.config.schema import Config
from speculators.data.prepared import PreparedData
from speculators.data.template import VerifierTokenizer
from speculators.data.unused_tokens import unused_token_ids
from speculators.errors import LaunchError
from speculators.verifier.head import VerifierHead
from speculators.verifier.identity import verifier_revision
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec_reader import read_spec
from speculators.verifier.weights import VerifierTables, make_head, read_tables


class Verifier:
    """A verifier as far as a command needs it: sizes at once, weights on first use.

    Args:
        config: `verifier` and `device` are used.

    Attributes:
        spec: sizes and ids.
        tokenizer: its tokenizer and template.
        device: where it runs.
    """

    def __init__(self, config: Config) -> None:
        self._config = config.verifier
        self.device = choose_device(config.device)
        self.spec = read_spec(config.verifier)
        self.tokenizer = VerifierTokenizer.load(
            Path(self.spec.folder),
            template=config.verifier.template,
            template_arguments=config.verifier.template_arguments,
            eos_token_ids=self.spec.eos_token_ids,
            trust_remote_code=config.verifier.trust_remote_code,
        )
        self._model: VerifierModel | None = None
        self._tables: VerifierTables | None = None

    def model(self) -> VerifierModel:
        """Return the whole model, loaded once."""
        if self._model is None:
            self._model = VerifierModel.load(
                self.spec,
                dtype=self._config.dtype,
                device=self.device,
                trust_remote_code=self._config.trust_remote_code,
            )
        return self._model

    def tables(self) -> VerifierTables:
        """Return embedding, head and final norm, read once, straight from the files.

        On a CPU they are fp32, the format of its arithmetic, so that no step converts them.
        """
        if self._tables is None:
            dtype = torch.float32 if self.device.type == "cpu" else None
            self._tables = read_tables(self.spec, dtype)
        return self._tables

    def head(self) -> VerifierHead:
        """Return the teacher's norm and head on the device."""
        return make_head(self.spec, self.tables()).to(self.device)

    def revision(self) -> str:
        """Return the Hub's commit, or a hash of the folder's content."""
        return verifier_revision(self.spec)

    def unused_token_ids(self, data: PreparedData) -> list[int]:
        """Return embedding rows no text of `data` uses, best mask token first."""
        spec, tokenizer = self.spec, self.tokenizer
        taken = {spec.bos_token_id, spec.pad_token_id, *spec.eos_token_ids}
        return unused_token_ids(
            spec.vocab_size,
            tokenizer.num_tokens,
            data.used,
            tokenizer.special_tokens,
            unk_token_id=tokenizer.unk_token_id,
            forbidden=(taken | tokenizer.end_of_turn_ids) - {None},
        )


def longest_sample(config: Config, verifier: Verifier) -> int:
    """Return the tokens of the longest sample: what a row holds and a server can be asked for.

    One place of the verifier's context stays free wherever the states come from: a server generates
    a token behind every prompt, and all sources must deliver the same rows.
    """
    return min(config.training.sequence_length, verifier.spec.max_position_embeddings - 1)


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; auto takes the accelerator where there is one.

    Raises:
        LaunchError: the device does not exist here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise LaunchError(
            f"device={name}: not available here ({str(error).splitlines()[0]}); "
            "use device=auto or device=cpu"
        ) from error
    return torch.device(name)
