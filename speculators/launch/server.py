"""A vLLM server as a child process: found, started, waited for, stopped with all it started."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType

from speculators.errors import LaunchError

_POLL_SECONDS = 0.2
_SAY_EVERY_SECONDS = 15.0


def find_program(command: str) -> list[str]:
    """Return the words that start vLLM.

    Raises:
        LaunchError: there is no such program.
    """
    words = shlex.split(command)
    found = shutil.which(os.path.expanduser(words[0]))
    if found is None:
        raise LaunchError(
            f"serve.command={command}: no such program on PATH; install vLLM in an environment of "
            "its own (python -m venv DIR && DIR/bin/pip install vllm) and give "
            "serve.command=DIR/bin/vllm"
        )
    return [found, *words[1:]]


class ServerProcess:
    """A server that runs until `stop`. Ends with this process when used as a context manager.

    Args:
        command: words of the command line.
        url: base URL without `/v1`, where `/health` answers.
        stop_timeout_seconds: longest wait for it to end before it is killed.
    """

    def __init__(self, command: Sequence[str], url: str, *, stop_timeout_seconds: float) -> None:
        self._command, self._url = list(command), url
        self._stop_timeout = stop_timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a session of its own: Ctrl-C reaches it through `stop` alone.

        Raises:
            LaunchError: the address is taken, or the program cannot be run.
        """
        if self._answers():
            raise LaunchError(
                f"serve.port: a server answers at {self._url} already: stop it, or give another "
                "serve.port"
            )
        try:
            self._process = subprocess.Popen(self._command, start_new_session=True)
        except OSError as error:
            raise LaunchError(
                f"serve.command={self._command[0]}: cannot be run: {error.strerror}"
            ) from error

    def wait_until_ready(self, timeout_seconds: float, say: Callable[[str], None]) -> float:
        """Wait until it answers and return the seconds that took.

        Args:
            timeout_seconds: longest wait.
            say: gets a line now and then.

        Raises:
            LaunchError: it ended, or did not answer in time.
        """
        began = said = time.monotonic()
        while True:
            self._check_alive()
            if self._answers():
                return time.monotonic() - began
            now = time.monotonic()
            if now - began > timeout_seconds:
                raise LaunchError(
                    f"vLLM does not answer at {self._url} after {now - began:.0f} s: its output "
                    "stands above; wait longer with serve.startup_timeout_seconds"
                )
            if now - said > _SAY_EVERY_SECONDS:
                said = now
                say(f"vLLM is starting: {now - began:.0f} of {timeout_seconds:.0f} s")
            time.sleep(_POLL_SECONDS)

    def wait(self) -> None:
        """Wait for its end.

        Raises:
            LaunchError: it ended by itself.
        """
        assert self._process is not None
        self._process.wait()
        self._check_alive()

    def stop(self) -> None:
        """End it and everything it started: politely, then not; twice does no harm."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None:
                _signal(process.pid, signal.SIGTERM, group=False)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self._stop_timeout)
        finally:  # also when somebody presses Ctrl-C once more
            _signal(process.pid, signal.SIGKILL, group=True)
            process.wait()

    def __enter__(self) -> ServerProcess:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/health", timeout=5) as answer:
                return answer.status == 200
        except (OSError, urllib.error.URLError):
            return False

    def _check_alive(self) -> None:
        assert self._process is not None
        status = self._process.poll()
        if status is not None:
            how = f"status {status}" if status >= 0 else signal.Signals(-status).name
            raise LaunchError(f"vLLM ended by itself with {how}: its output stands above")


def _signal(process_id: int, number: signal.Signals, *, group: bool) -> None:
    """Signal a child, or the session it leads: its process id is that of the group."""
    with suppress(ProcessLookupError):
        if group:
            os.killpg(process_id, number)
        else:
            os.kill(process_id, number)
