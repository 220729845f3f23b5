"""The first stages of every command: the device, the verifier, the data."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from speculators.config.schema import Config
from speculators.data.prepare import prepare
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


def longest_sample(config: Config, verifier: Verifier) -> int:
    """Return the tokens of the longest sample: what a row holds and the verifier can read."""
    return min(config.training.sequence_length, verifier.spec.max_position_embeddings)


def prepare_data(config: Config, verifier: Verifier) -> PreparedData:
    """Return the tokenised conversations, from the cache when the same inputs were prepared.

    No sample is longer than a packed row, nor than the verifier's context: behind its end there are
    no states worth learning from.
    """
    settings = config.data
    rewrites = settings.regenerate.enabled
    return prepare(
        settings,
        verifier.tokenizer,
        vocab_size=verifier.spec.vocab_size,
        sequence_length=longest_sample(config, verifier),
        validation_fraction=config.training.validation_fraction,
        seed=config.seed,
        cache_dir=Path(config.cache_dir),
        regenerate=_Answering(config, verifier) if rewrites else None,
        verifier=verifier.revision() if rewrites else "",
    )


class _Answering:
    """The verifier in this process, writing answers for prompts."""

    def __init__(self, config: Config, verifier: Verifier) -> None:
        self._settings, self._seed = config.data.regenerate, config.seed
        self._verifier = verifier

    def __call__(self, prompts: list[list[int]]) -> list[list[int]]:
        columns = (
            TextColumn("answering prompts"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task("", total=len(prompts))
            return self._verifier.model().generate(
                prompts,
                max_new_tokens=self._settings.max_new_tokens,
                temperature=self._settings.temperature,
                seed=self._seed,
                batch_size=self._settings.batch_size,
                stop_ids=sorted(self._verifier.tokenizer.end_of_turn_ids),
                progress=lambda done: bar.update(task, completed=done),
            )
