"""`serve`: a vLLM server that hands over the hidden states this configuration trains on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speculators.config.schema.problem import Problem, at_least, between, positive


@dataclass
class ServeConfig:
    """How the server is started. What it must serve follows from the other groups."""

    command: str = "vllm"
    """Program to run: a name on PATH, a path, or a line such as `docker exec box vllm`."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, without a password."""
    port: int = 8000
    """Port to listen on."""
    max_model_len: int | None = None
    """Longest prompt plus one token; null: training.sequence_length + 1, at most the verifier's."""
    startup_timeout_seconds: float = 1800.0
    """Longest wait until the server answers; large models load for a long time."""
    stop_timeout_seconds: float = 30.0
    """Longest wait for the server to end before it is killed."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from between(self, "port", 1, 65535)
        yield from at_least(self, "max_model_len", 2)
        yield from positive(self, "startup_timeout_seconds")
        yield from positive(self, "stop_timeout_seconds")
        if not self.command.split():
            yield Problem("command", self.command, "must name the program that starts vLLM")
