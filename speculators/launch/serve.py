"""`speculators serve`: vLLM with the extraction arguments that fit the configuration."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from speculators.config.schema import Config
from speculators.console import marked, open_console
from speculators.errors import LaunchError
from speculators.hidden_states.online.files import reap
from speculators.hidden_states.online.transfer import choose_folder, make_private
from speculators.launch.server import ServerProcess, find_program
from speculators.launch.target_layers import target_layer_ids
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.spec_reader import read_spec

_OURS = (
    "--speculative-config",
    "--speculative_config",
    "--kv-transfer-config",
    "--kv_transfer_config",
)
_DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}


def run(config: Config, argv: Sequence[str] = ()) -> None:
    """Start the server and stay until it is told to end, or print its command.

    Args:
        config: the configuration training will use.
        argv: the command line; what stands after `--` goes to vLLM.

    Raises:
        LaunchError: it cannot be started, or ends by itself.
    """
    console = open_console()
    extra = list(argv[argv.index("--") + 1 :]) if "--" in argv else []
    spec = read_spec(config.verifier)
    layer_ids = (*target_layer_ids(config, spec), spec.num_layers)
    folder = choose_folder(
        config.hidden_states.fetch.transfer_path, _needed_bytes(config, spec, len(layer_ids))
    )
    arguments = server_arguments(config, spec, layer_ids, folder, extra)
    if config.dry_run:
        print(shlex.join([*shlex.split(config.serve.command), *arguments]))
        return
    command = [*find_program(config.serve.command), *arguments]
    make_private(folder)
    console.print(f"$ {shlex.join(command)}", soft_wrap=True)
    host = "127.0.0.1" if config.serve.host in ("0.0.0.0", "::") else config.serve.host
    url = f"http://{host}:{_option(extra, '--port') or config.serve.port}"
    server = ServerProcess(command, url, stop_timeout_seconds=config.serve.stop_timeout_seconds)
    with _stopped_by_signals(), server:
        try:
            seconds = server.wait_until_ready(config.serve.startup_timeout_seconds, console.print)
            _announce(console, config, url, folder, layer_ids, seconds)
            server.wait()
        except KeyboardInterrupt:
            console.print("stopping vLLM")
    reap(folder, "cmpl-", config.hidden_states.fetch.orphan_age_seconds)
    console.print("vLLM has stopped")


def server_arguments(
    config: Config,
    spec: VerifierSpec,
    layer_ids: Sequence[int],
    folder: Path,
    extra: Sequence[str] = (),
) -> list[str]:
    """Return what follows `vllm` (hidden-states specification, section 2).

    Args:
        config: the configuration.
        spec: the verifier.
        layer_ids: ids to extract, ascending, the last stream included.
        folder: where the server writes.
        extra: arguments of the user, which win over those that are not about extraction.

    Raises:
        LaunchError: `extra` would change what is extracted.
    """
    given = {word.partition("=")[0].replace("_", "-") for word in extra if word.startswith("--")}
    if clash := sorted(given & {name.replace("_", "-") for name in _OURS}):
        raise LaunchError(
            f"-- {clash[0]}: set by this command, so that server and trainer agree; choose layers "
            "with speculator.target_layer_ids and the folder with "
            "hidden_states.fetch.transfer_path"
        )
    extraction = {
        "method": "extract_hidden_states",
        "num_speculative_tokens": 1,
        "draft_model_config": {
            "hf_config": {"eagle_aux_hidden_state_layer_ids": sorted(set(layer_ids))}
        },
    }
    transfer = {
        "kv_connector": "ExampleHiddenStatesConnector",
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }
    optional = {
        "--host": config.serve.host,
        "--port": str(config.serve.port),
        "--max-model-len": str(_max_model_len(config, spec)),
        "--dtype": _dtype(config, spec),
        "--revision": spec.revision,
        "--trust-remote-code": "" if config.verifier.trust_remote_code else None,
    }
    arguments = ["serve", spec.name_or_path]
    arguments += ["--speculative_config", json.dumps(extraction, separators=(",", ":"))]
    arguments += ["--kv_transfer_config", json.dumps(transfer, separators=(",", ":"))]
    for name, value in optional.items():
        if value is not None and name not in given:
            arguments += [name, value] if value else [name]
    return [*arguments, *extra]


def _max_model_len(config: Config, spec: VerifierSpec) -> int:
    """Return room for the longest row and one generated token, at most what the verifier has."""
    wanted = config.serve.max_model_len or config.training.sequence_length + 1
    return min(wanted, spec.max_position_embeddings)


def _dtype(config: Config, spec: VerifierSpec) -> str | None:
    """Return the precision this process would use: vLLM's own rule turns fp32 into bf16."""
    name = spec.dtype if config.verifier.dtype == "auto" else config.verifier.dtype
    return name if name in _DTYPES else None


def _needed_bytes(config: Config, spec: VerifierSpec, num_layers: int) -> int:
    """Return what the folder must hold: requests in flight, and files mapped by the trainer."""
    fetch = config.hidden_states.fetch
    item = _DTYPES.get(_dtype(config, spec) or "", 2)
    sample = config.training.sequence_length * num_layers * spec.hidden_size * item
    ahead = min(fetch.prefetch_bytes, fetch.prefetch_samples * sample)
    return fetch.requests_per_endpoint * sample + ahead


def _option(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of an option given as `--name value` or `--name=value`."""
    for word, following in pairwise([*arguments, ""]):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _announce(
    console: Console,
    config: Config,
    url: str,
    folder: Path,
    layer_ids: Sequence[int],
    seconds: float,
) -> None:
    console.print(
        marked(
            "ready",
            "bold",
            f" after {seconds:.0f} s: {url}/v1 writes layers {list(layer_ids)} to {folder}",
        ),
        soft_wrap=True,
    )
    console.print(
        "train with:   speculators train with the same choices and hidden_states=online "
        f"hidden_states.endpoints=[{url}/v1]",
        soft_wrap=True,
    )
    console.print("stop with:    Ctrl-C")


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Turn SIGTERM into what Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
