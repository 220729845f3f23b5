"""What stored hidden states belong to: the part of a store that never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

FORMAT_VERSION = "1"
ANY_DTYPE = "any"


@dataclass(frozen=True)
class StoreIdentity:
    """Common part of every file of a store (hidden-states specification, section 6).

    Attributes:
        verifier: hub id or path, for people; content is told apart by `verifier_revision`.
        verifier_revision: commit of the Hub, or a hash of configuration and weights.
        layer_ids: extraction ids, ascending; the last one is `num_layers`, the teacher's state.
        num_layers: decoder layers of the verifier [L].
        hidden_size: width [H].
        dtype: number format of the states, for example bfloat16; "any" for a run that reads
            whatever a store holds.
        tokenizer_hash: sha256 of the tokenizer.
        engine: what computed the states, for example "transformers 5.0".
    """

    verifier: str
    verifier_revision: str
    layer_ids: tuple[int, ...]
    num_layers: int
    hidden_size: int
    dtype: str
    tokenizer_hash: str
    engine: str

    def __post_init__(self) -> None:
        ids = self.layer_ids
        if not ids or sorted(set(ids)) != list(ids) or ids[-1] != self.num_layers or ids[0] < 0:
            raise ValueError(f"layer ids {ids} must ascend and end with {self.num_layers}")

    def to_json(self) -> dict[str, Any]:
        """Return the content of `store.json`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"format_version": FORMAT_VERSION, **values, "layer_ids": list(self.layer_ids)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> StoreIdentity:
        """Rebuild from the content of `store.json`.

        Raises:
            ValueError: another format version, a key is missing, or a value has a wrong type.
        """
        if content.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version is {content.get('format_version')!r}, not '1'")
        types = {"layer_ids": list, "num_layers": int, "hidden_size": int}
        for field in fields(cls):
            if not isinstance(content.get(field.name), types.get(field.name, str)):
                raise ValueError(f"{field.name} is {content.get(field.name)!r}")
        values = {field.name: content[field.name] for field in fields(cls)}
        return cls(**{**values, "layer_ids": tuple(content["layer_ids"])})

    def header(self) -> dict[str, str]:
        """Return the metadata that stands in every file (strings, as safetensors wants them)."""
        content = self.to_json()
        return {
            **{name: str(value) for name, value in content.items()},
            "layer_ids": "[" + ",".join(map(str, self.layer_ids)) + "]",
        }

    def differences(self, wanted: StoreIdentity) -> list[str]:
        """Return, one per line, why states kept under this identity are not what is wanted.

        More layers than wanted are fine. Names and engines may differ.
        """
        found = []
        if self.verifier_revision != wanted.verifier_revision:
            found.append(
                f"verifier: the store holds {self.verifier} ({self.verifier_revision}), this run "
                f"uses {wanted.verifier} ({wanted.verifier_revision})"
            )
        for name in ("num_layers", "hidden_size", "dtype", "tokenizer_hash"):
            mine, theirs = getattr(self, name), getattr(wanted, name)
            if mine != theirs and (name, theirs) != ("dtype", ANY_DTYPE):
                found.append(f"{name}: the store holds {mine}, this run uses {theirs}")
        if not set(wanted.layer_ids) <= set(self.layer_ids):
            found.append(
                f"layer_ids: the store holds {list(self.layer_ids)}, this run needs "
                f"{list(wanted.layer_ids)} (the last one is the teacher's)"
            )
        return found
