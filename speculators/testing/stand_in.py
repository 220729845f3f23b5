"""A command that stands in for `vllm`: `python -m speculators.testing.stand_in serve MODEL ...`.

It takes the arguments this project gives to vLLM and answers as `FakeVLLM` does, with real states
and real speculative decoding of a model small enough to run in this process. Tutorials can so be
tried, and tested, where no vLLM is installed. It is slow, and serves one request at a time.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speculators.api import compose, load_drafter, load_verifier
from speculators.evaluation.decode import decode
from speculators.launch.verifier_stage import Verifier
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.served_model import ServedModel


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM.

    Args:
        argv: `serve MODEL` and vLLM's arguments; those that need no answer here are ignored.
    """
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--speculative_config", type=json.loads, default={})
    parser.add_argument("--kv_transfer_config", type=json.loads, default={})
    asked, _ = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    described = _read_json(Path(asked.model) / "config.json")
    make = _drafting if "speculators_config" in described else _extracting
    with make(asked, described) as server:
        print(f"standing in for vLLM at {server.url}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return 0
    return 0


def _extracting(asked: argparse.Namespace, described: dict[str, Any]) -> FakeVLLM:
    """Return a server that hands over hidden states, and generates."""
    verifier = _verifier(asked.model, asked.dtype)
    drafted = asked.speculative_config.get("draft_model_config", {}).get("hf_config", {})
    extra = asked.kv_transfer_config.get("kv_connector_extra_config", {})
    served = ServedModel(verifier.model())
    return FakeVLLM(
        extra.get("shared_storage_path") or tempfile.mkdtemp(),
        drafted.get("eagle_aux_hidden_state_layer_ids", ()),
        served,
        answers=served.answer,
        **_common(asked, verifier),
    )


def _drafting(asked: argparse.Namespace, described: dict[str, Any]) -> FakeVLLM:
    """Return a server that decodes with a drafter, and counts."""
    named = described["speculators_config"]["verifier"]["name_or_path"]
    verifier = _verifier(named, asked.dtype)
    drafter, model = load_drafter(asked.model, verifier), verifier.model()

    def answer(
        prompt: Sequence[int], longest: int, stops: Sequence[int]
    ) -> tuple[Sequence[int], list[int]]:
        decoded = decode(
            *(model, prompt),
            drafter=drafter,
            layer_ids=drafter.config.target_layer_ids or (),
            max_new_tokens=longest,
            stop_ids=stops or verifier.spec.eos_token_ids,
        )
        return decoded.tokens, decoded.accepted

    return FakeVLLM(
        tempfile.mkdtemp(),
        (),
        ServedModel(model),
        drafting=answer,
        num_draft_tokens=drafter.num_draft_tokens,
        **_common(asked, verifier),
    )


def _common(asked: argparse.Namespace, verifier: Verifier) -> dict[str, Any]:
    longest = verifier.spec.max_position_embeddings
    return {
        "model": asked.model,
        "dtype": verifier.model().dtype,
        "port": asked.port,
        "max_model_len": asked.max_model_len or longest,
    }


def _verifier(folder: str, dtype: str) -> Verifier:
    named = [f"verifier.name_or_path='{folder}'", f"verifier.dtype={dtype}"]
    return load_verifier(compose("verifier=hf", *named, "data=tiny"))


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
