"""Replicas: which is tried first, by how the doors have done of late.

A door is a host and a protocol. One that does not answer is shut after a few failures: its replicas
come last, and now and then one file tries it. So a dead door costs the service a few deadlines, and
not one for each file.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from servicex_server.errors import ErrorRecord
from servicex_server.model import Attempt, Replica, now

SHUT_AFTER = 3
"""Failures in a row after which a door is shut. One that was waited for in vain counts as many: it
has cost as much as a thousand refusals."""

PAUSE, LONGEST_PAUSE = 30.0, 1800.0
"""Seconds until a door that was shut is tried again; after each failure twice as many."""

BAD_FOR = 86_400.0
"""Seconds for which a replica comes after the others that was bad where another one worked."""

_MOST_BAD = 100_000
"""Bad replicas that are kept in mind; the oldest are forgotten first."""

WEAK = 0.5
"""Share of attempts that worked of late, below which a door comes after those that are well."""

_MEMORY = 0.9
"""How much of what is thought of a door is left after one more attempt."""

_WELL, _WEAK, _BAD, _SHUT = range(4)
"""Ranks: of doors, and of a replica that was bad, which costs an answer and not a deadline."""

_PORTS = {"root": 1094, "roots": 1094, "xroot": 1094, "http": 80, "https": 443}


def door_of(url: str) -> str:
    """Return the protocol and the host of a URL; empty for a file of this machine.

    Examples
    --------
    >>> door_of("root://eos.cern.ch:1094//eos/x.root"), door_of("https://x.org:8443/y?a=b")
    ('root://eos.cern.ch', 'https://x.org:8443')
    >>> door_of("/data/x.root"), door_of("file:///data/x.root")
    ('', '')
    """
    if "://" not in url:
        return ""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:  # it is no URL, which its reader will say
        return ""
    if not host:
        return ""
    shown = f"[{host}]" if ":" in host else host
    known = port is None or port == _PORTS.get(parts.scheme)
    return f"{parts.scheme}://{shown}" + ("" if known else f":{port}")


@dataclass
class Door:
    """How a door has done. Rates are of late; ``speed`` in bytes a second, 0 while unknown.

    ``since`` tells for how long it has been in its state, and is when it was first heard of for
    one that was never shut; ``url`` is a replica that was read there, or tried, and ``site`` the
    RSE of the latest one that has one.
    """

    attempts: int = 0
    worked: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    rate: float = 1.0
    speed: float = 0.0
    shut: bool = False
    since: str = ""
    last_error: str = ""
    url: str = ""
    site: str = ""
    in_row: int = 0
    pause: float = PAUSE
    again: float = field(default=0.0, repr=False)

    @property
    def state(self) -> str:
        """In a word: ``well``, ``weak`` or ``shut``."""
        if self.shut:
            return "shut"
        return "well" if self.rate >= WEAK else "weak"

    def worked_well(self, speed: float) -> None:
        """Note that a file was read."""
        self.worked += 1
        self.rate = self.rate * _MEMORY + 1 - _MEMORY
        if speed:
            self.speed = self.speed * _MEMORY + speed * (1 - _MEMORY) if self.speed else speed
        self.answered()

    def answered(self) -> None:
        """Note that it answers, whatever it said."""
        self.in_row, self.pause = 0, PAUSE
        if self.shut:
            self.shut, self.since = False, now().isoformat()

    def failed_by(self, error: ErrorRecord, moment: float) -> None:
        """Note that it did not answer."""
        self.rate *= _MEMORY
        self.in_row += SHUT_AFTER if error.kind == "Slow" else 1
        self.last_error = error.message[:500]
        if self.shut:
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
        elif self.in_row >= SHUT_AFTER:
            self.shut, self.since = True, now().isoformat()
        if self.shut:
            self.again = moment + self.pause


class Doors:
    """All doors that were heard of, and the order in which replicas are tried.

    Parameters
    ----------
    known
        What `as_dict` returned in an earlier process. A door that was shut is tried at once.
    bad
        URLs of replicas that were bad of late.
    """

    def __init__(
        self, known: Mapping[str, Mapping[str, Any]] | None = None, bad: Iterable[str] = ()
    ) -> None:
        self._bad = dict.fromkeys(bad, time.monotonic())
        # another release may have known other things
        ours = {one.name for one in fields(Door)} - {"again"}
        self._doors = {
            name: Door(**{key: value for key, value in about.items() if key in ours})
            for name, about in (known or {}).items()
        }

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return what is known as JSON-ready data."""
        found = {name: asdict(door) for name, door in sorted(self._doors.items())}
        for name, about in found.items():
            del about["again"]  # by a clock of this process
            about["state"] = self._doors[name].state
        return found

    def ranked(self, replicas: Iterable[Replica], *, probe: bool) -> tuple[Replica, ...]:
        """Return replicas in the order to try them: by how they and their doors did, then as given.

        With ``probe`` a door that is shut and due is put where it belongs, for this one caller,
        from whom it will be heard.
        """
        given = tuple(replicas)
        if len(given) < 2:  # noqa: PLR2004  # there is nothing to choose
            return given
        moment = time.monotonic()
        ranks: dict[str, int] = {}
        for door in dict.fromkeys(door_of(replica.url) for replica in given):
            ranks[door] = self._rank(door, moment, probe=probe)
        bad = {one.url for one in given if self._is_bad(one.url, moment)}

        def rank(replica: Replica) -> int:
            of_door = ranks[door_of(replica.url)]
            return max(of_door, _BAD) if replica.url in bad else of_door

        return tuple(sorted(given, key=rank))

    def _is_bad(self, url: str, moment: float) -> bool:
        seen = self._bad.get(url)
        return seen is not None and moment - seen < BAD_FOR

    def by_cache(
        self, ranked: tuple[Replica, ...], key: str, caches: Sequence[str], *, probe: bool
    ) -> tuple[Replica, ...]:
        """Return replicas with the first one through a cache before all, if one is up.

        Parameters
        ----------
        ranked
            The replicas of a file in the order to try them.
        key
            What the file is known by: each has its cache, as long as that is up, and a cache that
            is dead has its files shared out among the others.
        caches
            URLs of caches, to be put before that of a replica by ``root://``.
        probe
            As `ranked` has it.
        """
        if not ranked or not ranked[0].url.startswith("root://"):
            return ranked
        moment = time.monotonic()
        for cache in sorted(caches, key=lambda one: sha256(f"{one} {key}".encode()).digest()):
            if self._rank(door_of(cache), moment, probe=probe) < _SHUT:
                return (replace(ranked[0], through=cache.rstrip("/")), *ranked)
        return ranked

    def _rank(self, name: str, moment: float, *, probe: bool) -> int:
        door = self._doors.get(name)
        if door is None or door.state == "well":
            return _WELL
        if not door.shut:
            return _WEAK
        if moment < door.again or not probe:
            return _SHUT
        door.again = moment + door.pause  # until it is known what becomes of this one
        return _WELL

    def urls(self) -> list[str]:
        """Return a replica of each door by which to see how that does."""
        return [door.url for door in self._doors.values() if door.url]

    def heard(
        self, attempts: Sequence[Attempt], *, read: int = 0, rses: Mapping[str, str] | None = None
    ) -> None:
        """Learn from the attempts on a file.

        Parameters
        ----------
        read
            Bytes that were read of it.
        rses
            By URL of a replica the site that it is at, as far as a catalogue has told.
        """
        worked = bool(attempts) and attempts[-1].error is None
        for attempt in attempts:
            self._bad.pop(attempt.url, None)
            if worked and attempt.error is not None and attempt.error.blame == "replica":
                self._bad[attempt.url] = time.monotonic()
                if len(self._bad) > _MOST_BAD:
                    del self._bad[next(iter(self._bad))]
            name, error = door_of(attempt.url), attempt.error
            known = error is None or error.blame in ("query", "site", "replica", "credential")
            if not name or not known or (error and error.kind == "Expired"):
                continue  # the door has no part in it, or was not asked
            door = self._doors.setdefault(name, Door(since=now().isoformat()))
            door.attempts += 1
            door.site = (rses or {}).get(attempt.url) or door.site
            if error is None or not door.url:
                door.url = attempt.url
            if error is None:
                speed = read / attempt.seconds if attempt.seconds else 0.0
                door.worked_well(speed if len(attempts) == 1 else 0.0)
            elif error.blame == "query":
                door.worked_well(0.0)  # it was read, and the query did not fit
            else:
                door.failed[error.kind] = door.failed.get(error.kind, 0) + 1
                if error.blame == "site":
                    door.failed_by(error, time.monotonic())
                else:
                    door.last_error = error.message[:500]
                    door.answered()
