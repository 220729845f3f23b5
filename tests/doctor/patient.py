"""A drafter of any algorithm with everything the doctor compares it with, made in milliseconds.

The verifier is a real Qwen3 of eight small random layers; the tokenizer is that of the bundled one.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from algorithms.rows import make_spec
from algorithms.test_every_algorithm import settings
from speculators.algorithms.base import Drafter
from speculators.algorithms.registry import drafter_class
from speculators.config.schema import DoctorConfig, FloatType
from speculators.conversion.folders import Content, read_content
from speculators.conversion.layout import read_model, write_model
from speculators.data.template import VerifierTokenizer
from speculators.data.vocabulary import DraftVocabulary
from speculators.doctor.attending import TrainingDoctor
from speculators.doctor.probe import Probe
from speculators.doctor.subject import Subject
from speculators.hidden_states.types import HiddenStates
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.tiny import folder as tiny_folder
from speculators.verifier.weights import make_head

LAYERS = [1, 4, 6]
SPEC = make_spec(tokenizer_hash="f" * 64)
REDUCED = DraftVocabulary(torch.arange(5, 95, 3), SPEC.vocab_size)
REVISION = f"sha256:{'a' * 64}"


@cache
def verifier() -> VerifierModel:
    torch.manual_seed(0)
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "rms_norm_eps")
    config = Qwen3Config(
        **{name: getattr(SPEC, name) for name in sizes},
        num_hidden_layers=SPEC.num_layers,
        num_attention_heads=SPEC.num_attention_heads,
        num_key_value_heads=SPEC.num_key_value_heads,
        rope_parameters=dict(SPEC.rope_parameters),
        initializer_range=0.2,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return VerifierModel(SPEC, model)


@cache
def tokenizer() -> VerifierTokenizer:
    return VerifierTokenizer.load(tiny_folder())


def probes(layer_ids: list[int] = LAYERS, count: int = 2, length: int = 26) -> list[Probe]:
    """Random texts with the verifier's states."""
    random = torch.Generator().manual_seed(1)
    texts = [torch.randint(4, 90, (length,), generator=random) for _ in range(count)]
    states = verifier().capture(texts, layer_ids, max_tokens=1)
    return [Probe(ids, 8, one) for ids, one in zip(texts, states, strict=True)]


def drafter(
    name: str, vocabulary: DraftVocabulary | None = None, seed: int = 5, **changes: Any
) -> Drafter[Any]:
    """A drafter over this verifier, with weights of visible size."""
    vocabulary = vocabulary or DraftVocabulary.full(SPEC.vocab_size)
    kind, random = drafter_class(name), torch.Generator().manual_seed(seed)
    asked = settings(name, draft_vocab_size=len(vocabulary), **changes)
    tables = verifier().tables
    built = kind.build(
        kind.resolve(asked, SPEC, [95]), SPEC, vocabulary, embed_tokens=tables.embed_tokens,
        lm_head=tables.lm_head, generator=random,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in built.parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.add_(noise * (0.2 if parameter.ndim == 2 else 0.1))
    return built.eval()


def in_training(built: Drafter[Any], folder: Path | None = None) -> Subject:
    """What the doctor sees beside training: with a folder, at a checkpoint."""
    content = None
    if folder is not None:
        write_model(folder, built, FloatType.float32)
        content = read_content(folder)
    return Subject(
        spec=SPEC,
        tokenizer=tokenizer(),
        head=make_head(SPEC, verifier().tables),
        revision=REVISION,
        probes=probes(list(built.config.target_layer_ids or ())),
        drafter=built,
        live=built,
        content=content,
        own=verifier().own_streams,
    )


def checkpoint(built: Drafter[Any], folder: Path, dtype: FloatType = FloatType.float32) -> Subject:
    """What the doctor sees of a checkpoint that training examined."""
    write_model(folder, built, dtype)
    subject = in_training(built)
    doctor = TrainingDoctor(
        DoctorConfig(), SPEC, subject.tokenizer, subject.head, REVISION, subject.probes,
        subject.own, folder, print,
    )  # fmt: skip
    return reread(
        dataclasses.replace(subject, live=None, recorded=doctor.record(built, subject.drafts)),
        read_content(folder),
    )


def reread(subject: Subject, content: Content, spec: VerifierSpec = SPEC) -> Subject:
    """The same with the drafter that the files hold now."""
    again, problem = None, None
    try:
        again = read_model(content.folder, spec=spec, tables=verifier().tables).eval()
    except Exception as error:
        problem = str(error)
    return dataclasses.replace(subject, content=content, drafter=again, problem=problem)


def with_states(subject: Subject, change: Any) -> Subject:
    """The same with other captured states: `change(states, own streams)` returns them."""
    changed = []
    for probe in subject.probes:
        own = verifier().own_streams(probe.input_ids)
        aux, last = change(probe.states, own)
        changed.append(Probe(probe.input_ids, probe.start, HiddenStates(aux, last)))
    return dataclasses.replace(subject, probes=changed)
