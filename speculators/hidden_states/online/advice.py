"""Why a trainer waits for servers, out of what can be counted, and what to change."""

from __future__ import annotations

from dataclasses import dataclass

from speculators.config.schema.hidden_states import FetchConfig

_NEARLY = 0.9


@dataclass(frozen=True)
class Standing:
    """Where the samples are at one moment.

    Attributes:
        servers_up: servers that take requests.
        in_flight: requests at them.
        queued: requests they have but do not work on yet, by their own account; None: unknown.
        queue_ready: samples that are here.
        queue_samples: samples asked for.
        tokens_per_second: received since the last time somebody asked.
    """

    servers_up: int
    in_flight: int
    queued: int | None
    queue_ready: int
    queue_samples: int
    tokens_per_second: float


def advise(settings: FetchConfig, now: Standing) -> str:
    """Return one sentence: what holds samples up, and which setting moves it.

    A server that has requests it does not work on yet is saturated, whatever else is true. One
    that works on all it has could take more: either the limit of requests is reached, or the
    window ahead of the trainer is too small to fill it.
    """
    rate = f"{now.tokens_per_second:,.0f} tokens/s"
    if now.servers_up == 0:
        return "no server answers: training goes on when one is back (`speculators serve`)"
    slots = now.servers_up * settings.requests_per_endpoint
    if now.queued:
        return (
            f"the servers are saturated ({rate}, {now.queued} requests wait at them): add servers "
            "to hidden_states.endpoints, or fill a store ahead with `speculators extract`"
        )
    if now.in_flight >= _NEARLY * slots:
        more = f"hidden_states.fetch.requests_per_endpoint (now {settings.requests_per_endpoint})"
        if now.queued is None:
            return (
                f"all {slots} requests allowed are under way ({rate}): raise {more}; if the rate "
                "stays, add servers to hidden_states.endpoints"
            )
        return f"the servers work on all {slots} requests allowed ({rate}): raise {more}"
    return (
        f"only {now.in_flight} of {slots} requests allowed are under way, for the window ahead of "
        f"training holds no more ({now.queue_ready} of {now.queue_samples} samples are here): "
        f"raise hidden_states.fetch.prefetch_samples (now {settings.prefetch_samples}) or "
        "prefetch_bytes"
    )
