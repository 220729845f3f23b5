"""The tiny verifier, read once."""

from __future__ import annotations

from functools import cache

import torch

from speculators.config.composition import compose
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.spec_reader import read_spec
from speculators.verifier.weights import VerifierTables, read_tables


@cache
def tiny() -> tuple[VerifierSpec, VerifierTables, VerifierModel]:
    config = compose("train", []).verifier
    spec = read_spec(config)
    model = VerifierModel.load(spec, dtype=config.dtype, device=torch.device("cpu"))
    return spec, read_tables(spec, torch.float32), model
