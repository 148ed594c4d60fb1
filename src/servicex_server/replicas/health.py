"""The health of storage endpoints, and the order in which the replicas of a file are tried.

A storage endpoint is a protocol and a host. Each has a circuit breaker: after a few failures it
opens, the replicas at the endpoint come last, and now and then one file tries it. So a dead
endpoint costs the service a few deadlines, and not one for each file.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from typing import Any, Literal
from urllib.parse import urlsplit

from servicex_server.errors import ErrorRecord
from servicex_server.model import Attempt, Replica, now

OPEN_AFTER = 3
"""Failures in a row after which the circuit breaker of an endpoint opens.

One `Slow` counts as many: waiting in vain has cost as much as a thousand refusals.
"""

PAUSE, LONGEST_PAUSE = 30.0, 1800.0
"""Seconds until an endpoint with an open breaker is tried again. Each failure doubles the pause."""

BAD_FOR = 86_400.0
"""Seconds for which a replica that was bad, while another one worked, comes after the others."""

_MOST_BAD = 100_000
"""Bad replicas that are remembered; the oldest are forgotten first."""

DEGRADED = 0.5
"""Share of recent attempts that worked, below which an endpoint comes after the healthy ones."""

_MEMORY = 0.9
"""Weight of the earlier attempts in a rate, after one more attempt."""

_HEALTHY, _DEGRADED, _BAD, _OPEN = range(4)
"""Ranks: of endpoints, and of a bad replica, which costs an answer and not a deadline."""

_PORTS = {"root": 1094, "roots": 1094, "xroot": 1094, "http": 80, "https": 443}

State = Literal["healthy", "degraded", "open"]


def endpoint_of(url: str) -> str:
    """Return the storage endpoint of a URL: protocol and host. Empty for a file of this machine.

    Examples
    --------
    >>> endpoint_of("root://eos.cern.ch:1094//eos/x.root"), endpoint_of("https://x.org:8443/y?a=b")
    ('root://eos.cern.ch', 'https://x.org:8443')
    >>> endpoint_of("/data/x.root"), endpoint_of("file:///data/x.root")
    ('', '')
    """
    if "://" not in url:
        return ""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # not a URL: its reader says so
        return ""
    if not host:
        return ""
    shown = f"[{host}]" if ":" in host else host
    known = port is None or port == _PORTS.get(parts.scheme)
    return f"{parts.scheme}://{shown}" + ("" if known else f":{port}")


@dataclass
class EndpointHealth:
    """The health of one storage endpoint.

    ``rate`` is the share of recent attempts that worked, ``speed`` in bytes per second, 0 while
    unknown. ``since`` is when the breaker last opened or closed, or when the endpoint was first
    used; ``url`` a replica that was read there, or tried; ``site`` the RSE of the latest replica
    that has one.
    """

    attempts: int = 0
    worked: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    rate: float = 1.0
    speed: float = 0.0
    open: bool = False
    since: str = ""
    last_error: str = ""
    url: str = ""
    site: str = ""
    in_row: int = 0
    pause: float = PAUSE
    again: float = field(default=0.0, repr=False)

    @property
    def state(self) -> State:
        """The state of the circuit breaker in a word."""
        if self.open:
            return "open"
        return "healthy" if self.rate >= DEGRADED else "degraded"

    def succeed(self, speed: float) -> None:
        """Note that a file was read, with this many bytes per second; 0 if that is unknown."""
        self.worked += 1
        self.rate = self.rate * _MEMORY + 1 - _MEMORY
        if speed:
            self.speed = self.speed * _MEMORY + speed * (1 - _MEMORY) if self.speed else speed
        self.answer()

    def answer(self) -> None:
        """Note that the endpoint answered, whatever it said: the breaker closes."""
        self.in_row, self.pause = 0, PAUSE
        if self.open:
            self.open, self.since = False, now().isoformat()

    def fail(self, error: ErrorRecord, moment: float) -> None:
        """Note that the endpoint did not answer."""
        self.rate *= _MEMORY
        self.in_row += OPEN_AFTER if error.kind == "Slow" else 1
        self.last_error = error.message[:500]
        if self.open:
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
        elif self.in_row >= OPEN_AFTER:
            self.open, self.since = True, now().isoformat()
        if self.open:
            self.again = moment + self.pause


class StorageEndpoints:
    """All storage endpoints that were used, and the order in which replicas are tried.

    Parameters
    ----------
    known
        The value of `as_dict` of an earlier process. An endpoint whose breaker was open is tried
        at once.
    bad
        URLs of replicas that were bad within the last `BAD_FOR` seconds.
    """

    def __init__(
        self, known: Mapping[str, Mapping[str, Any]] | None = None, bad: Iterable[str] = ()
    ) -> None:
        self._bad = dict.fromkeys(bad, time.monotonic())
        # another release may have stored other fields
        ours = {one.name for one in fields(EndpointHealth)} - {"again"}
        self._endpoints = {
            name: EndpointHealth(**{key: value for key, value in about.items() if key in ours})
            for name, about in (known or {}).items()
        }

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return the health of every endpoint as JSON-ready data, by its name."""
        found = {name: asdict(one) for name, one in sorted(self._endpoints.items())}
        for name, about in found.items():
            del about["again"]  # by a clock of this process
            about["state"] = self._endpoints[name].state
        return found

    def ranked(self, replicas: Iterable[Replica], *, probe: bool) -> tuple[Replica, ...]:
        """Return replicas in the order to try them: by health, then in the given order.

        With ``probe``, an open endpoint whose pause is over is ranked as healthy, for this one
        caller, which has to report the attempt with `observe`.
        """
        given = tuple(replicas)
        if len(given) < 2:  # noqa: PLR2004  # there is nothing to choose
            return given
        moment = time.monotonic()
        ranks: dict[str, int] = {}
        for endpoint in dict.fromkeys(endpoint_of(replica.url) for replica in given):
            ranks[endpoint] = self._rank(endpoint, moment, probe=probe)
        bad = {one.url for one in given if self._is_bad(one.url, moment)}

        def rank(replica: Replica) -> int:
            of_endpoint = ranks[endpoint_of(replica.url)]
            return max(of_endpoint, _BAD) if replica.url in bad else of_endpoint

        return tuple(sorted(given, key=rank))

    def _is_bad(self, url: str, moment: float) -> bool:
        seen = self._bad.get(url)
        return seen is not None and moment - seen < BAD_FOR

    def by_cache(
        self, ranked: tuple[Replica, ...], key: str, caches: Sequence[str], *, probe: bool
    ) -> tuple[Replica, ...]:
        """Return replicas with the first one through a cache before all, if a cache is not open.

        Parameters
        ----------
        ranked
            The replicas of a file in the order to try them.
        key
            The name of the file. It decides which cache the file has, as long as the breaker of
            that cache is not open; the files of an open cache are spread over the others.
        caches
            URLs of caches, which are put before the URL of a replica by ``root://``.
        probe
            See `ranked`.
        """
        if not ranked or not ranked[0].url.startswith("root://"):
            return ranked
        moment = time.monotonic()
        for cache in sorted(caches, key=lambda one: sha256(f"{one} {key}".encode()).digest()):
            if self._rank(endpoint_of(cache), moment, probe=probe) < _OPEN:
                return (replace(ranked[0], through=cache.rstrip("/")), *ranked)
        return ranked

    def _rank(self, name: str, moment: float, *, probe: bool) -> int:
        endpoint = self._endpoints.get(name)
        if endpoint is None or endpoint.state == "healthy":
            return _HEALTHY
        if not endpoint.open:
            return _DEGRADED
        if moment < endpoint.again or not probe:
            return _OPEN
        endpoint.again = moment + endpoint.pause  # until this attempt is reported
        return _HEALTHY

    def urls(self) -> list[str]:
        """Return a replica at each endpoint, for probes."""
        return [one.url for one in self._endpoints.values() if one.url]

    def observe(
        self, attempts: Sequence[Attempt], *, read: int = 0, rses: Mapping[str, str] | None = None
    ) -> None:
        """Learn from the attempts to read a file.

        Parameters
        ----------
        attempts
            The attempts, in their order.
        read
            Bytes that were read of the file.
        rses
            The RSE of a replica by its URL, as far as a catalogue named it.
        """
        worked = bool(attempts) and attempts[-1].error is None
        for attempt in attempts:
            self._bad.pop(attempt.url, None)
            if worked and attempt.error is not None and attempt.error.blame == "replica":
                self._bad[attempt.url] = time.monotonic()
                if len(self._bad) > _MOST_BAD:
                    del self._bad[next(iter(self._bad))]
            name, error = endpoint_of(attempt.url), attempt.error
            known = error is None or error.blame in ("query", "site", "replica", "credential")
            if not name or not known or (error and error.kind == "Expired"):
                continue  # the endpoint has no part in it, or was not asked
            one = self._endpoints.setdefault(name, EndpointHealth(since=now().isoformat()))
            one.attempts += 1
            one.site = (rses or {}).get(attempt.url) or one.site
            if error is None or not one.url:
                one.url = attempt.url
            if error is None:
                speed = read / attempt.seconds if attempt.seconds else 0.0
                one.succeed(speed if len(attempts) == 1 else 0.0)
            elif error.blame == "query":
                one.succeed(0.0)  # the file was read, and the query did not fit
            else:
                one.failed[error.kind] = one.failed.get(error.kind, 0) + 1
                if error.blame == "site":
                    one.fail(error, time.monotonic())
                else:
                    one.last_error = error.message[:500]
                    one.answer()
