"""What makes two verifiers the same: content, never names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from speculators.hidden_states.identity import StoreIdentity
from speculators.verifier.spec import VerifierSpec

_BLOCK_BYTES = 4096
_NUM_BLOCKS = 16


def verifier_revision(spec: VerifierSpec) -> str:
    """Return what stored hidden states belong to: the Hub's commit, or a hash of the folder.

    The hash covers config.json and, of every safetensors file, name, size, header and evenly
    spaced blocks: a moved folder keeps it, weights trained further or saved in another precision
    do not, and no more than a few hundred KB are read.
    """
    if spec.revision is not None:
        return spec.revision
    folder = Path(spec.folder)
    digest = hashlib.sha256()
    config = folder / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        _add_samples(digest, path)
    return f"sha256:{digest.hexdigest()}"


def store_identity(
    spec: VerifierSpec, layer_ids: Sequence[int], *, dtype: str, engine: str
) -> StoreIdentity:
    """Return what a store of this verifier's states says of itself.

    Args:
        spec: the verifier.
        layer_ids: target layers, ascending; the teacher's state is added here.
        dtype: number format of the states, or "any" for a run that only reads.
        engine: what computes them.
    """
    return StoreIdentity(
        verifier=spec.name_or_path,
        verifier_revision=verifier_revision(spec),
        layer_ids=(*layer_ids, spec.num_layers),
        num_layers=spec.num_layers,
        hidden_size=spec.hidden_size,
        dtype=dtype,
        tokenizer_hash=spec.tokenizer_hash,
        engine=engine,
    )


def tokenizer_hash(folder: Path, vocabulary: dict[str, int]) -> str:
    """Return the sha256 of tokenizer.json, or of the sorted vocabulary where there is none.

    Args:
        folder: the verifier's folder.
        vocabulary: token to id, added tokens included; empty for a verifier without tokenizer,
            which gives an empty hash.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if not vocabulary:
        return ""
    pairs = sorted(vocabulary.items(), key=lambda pair: (pair[1], pair[0]))
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _add_samples(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        digest.update(file.read(min(header_bytes, size)))
        for i in range(_NUM_BLOCKS + 1):
            file.seek(max(0, size - _BLOCK_BYTES) * i // _NUM_BLOCKS)
            digest.update(file.read(_BLOCK_BYTES))
