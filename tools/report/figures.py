"""What was read and what it means: samples, what was spent between them, and the summary. Pure, no process is touched.

A sample holds the counters of every process as the kernel keeps them, from the start of that process on. An `Interval`
is the time between two samples. A process with another pid than its role had before is a successor: it was born inside
the interval, so all of its counters belong to it. What its predecessor spent since the last sample is lost.

A worker adds to its counters in shared memory once a second, so the requests between two samples are none or those of
a whole second. Rates of requests are therefore means of the last RATE_WINDOW_S, and in hindsight (`intervals_of`) moved
back to when the requests came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

RATE_WINDOW_S = 2.0  # two turns of the workers' clock
RATE_DELAY_S = RATE_WINDOW_S / 2 + 0.5  # from the middle of the window to its end, and half a turn
ALL = "all"  # the name of the row with the sums


class Reading(NamedTuple):
    """One process at one moment."""

    pid: int
    cpu_s: float  # user and system, in nanosecond steps
    user_s: float  # in clock ticks of 10 ms
    system_s: float
    uss_bytes: int  # what would be free if it ended
    pss_bytes: int  # and its share of what it shares: the sum over all processes counts every page once
    rss_bytes: int
    threads: int
    fds: int
    voluntary_switches: int  # of the main thread
    involuntary_switches: int
    read_bytes: int  # from a disk, not from the page cache
    written_bytes: int


class ServerReading(NamedTuple):
    """The server at one moment, from its shared segment."""

    requests: int
    reads: int
    writes: int
    client_errors: int
    server_errors: int
    connections: int
    records: int
    flush_lag_ms: int  # the highest since the sample before
    not_in_sqlite: int  # changes
    reserved_bytes: int  # of the segment, by its header
    limit_bytes: int  # --memory
    shm_file_bytes: int  # blocks of the segment's file
    journal_bytes: int


class Sample(NamedTuple):
    t_s: float  # since the first sample
    server: ServerReading
    processes: dict[str, Reading]  # by role


class Spent(NamedTuple):
    """What one process, or several, used up in some time."""

    cpu_s: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    voluntary_switches: float = 0.0
    involuntary_switches: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0


class Replacement(NamedTuple):
    t_s: float
    role: str
    old_pid: int
    new_pid: int


@dataclass(frozen=True)
class Interval:
    """From one sample to the next."""

    seconds: float
    sample: Sample  # at its end
    requests_per_s: float
    reads_per_s: float
    writes_per_s: float
    spent: dict[str, Spent]
    replacements: list[Replacement]

    def cpu_percent(self, role: str) -> float:
        """Return 100 for one busy core; 0 for a role that has no process."""
        return 100 * self.spent.get(role, Spent()).cpu_s / self.seconds

    @property
    def cpu_percent_all(self) -> float:
        return 100 * total(self.spent.values()).cpu_s / self.seconds


@dataclass
class RoleSummary:
    """One role over the whole time; sizes are those at the end, or the last that were seen."""

    pids: list[int]
    spent: Spent
    cpu_percent: float
    cpu_percent_max: float
    uss_bytes: int
    pss_bytes: int
    pss_bytes_max: int
    rss_bytes: int
    threads_max: int
    fds_max: int


@dataclass
class Summary:
    """The whole time."""

    seconds: float = 0.0
    roles: dict[str, RoleSummary] = field(default_factory=dict)
    replacements: list[Replacement] = field(default_factory=list)
    cpu_s: float = 0.0
    cpu_percent: float = 0.0
    pss_bytes: int = 0
    requests: int = 0
    reads: int = 0
    writes: int = 0
    errors: int = 0
    requests_per_s: float = 0.0
    requests_per_s_max: float = 0.0
    cpu_us_per_request: float | None = None  # of all processes; None without requests
    flush_lag_ms_median: float = 0.0
    flush_lag_ms_max: int = 0
    shm_first_bytes: int = 0
    shm_last_bytes: int = 0
    records: int = 0


class FlushLag:
    """The age of the oldest change that is published but not persisted, counted from when it was first seen.

    It is worked out from the seqs: what the persister says about itself is as old as its last period.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque()  # published seq, when first seen; one per look, not persisted
        self._published = 0
        self._highest_s = 0.0

    def look(self, now_s: float, published: int, persisted: int) -> None:
        """Note the seqs of this moment."""
        if published > self._published:
            self._marks.append((published, now_s))
            self._published = published
        if self._marks:  # what has just been persisted was as old as this, too
            self._highest_s = max(self._highest_s, now_s - self._marks[0][1])
        while self._marks and self._marks[0][0] <= persisted:
            self._marks.popleft()

    def take_highest_ms(self) -> int:
        """Return the highest lag since the last call."""
        highest_s, self._highest_s = self._highest_s, 0.0
        return round(1000 * highest_s)


class Follower:
    """Makes intervals of samples, one after the other, and follows each role through its processes."""

    def __init__(self) -> None:
        self._last: dict[str, Reading] = {}  # of each role, also of one that is missing now
        self._recent: deque[Sample] = deque()  # from the start of the rate window on

    def follow(self, sample: Sample) -> Interval | None:
        """Return what happened since the sample before; None for the first one."""
        interval = self._interval_to(sample) if self._recent else None
        self._last.update(sample.processes)
        self._recent.append(sample)
        return interval

    def _interval_to(self, now: Sample) -> Interval:
        recent, last = self._recent, self._last
        seconds = now.t_s - recent[-1].t_s
        while len(recent) > 1 and recent[1].t_s <= now.t_s - RATE_WINDOW_S:
            recent.popleft()
        start = recent[0]
        window_s = now.t_s - start.t_s
        return Interval(
            seconds=seconds,
            sample=now,
            requests_per_s=(now.server.requests - start.server.requests) / window_s,
            reads_per_s=(now.server.reads - start.server.reads) / window_s,
            writes_per_s=(now.server.writes - start.server.writes) / window_s,
            spent={role: spent_between(last.get(role), reading) for role, reading in now.processes.items()},
            replacements=[
                Replacement(now.t_s, role, last[role].pid, reading.pid)
                for role, reading in now.processes.items()
                if role in last and last[role].pid != reading.pid
            ],
        )


def intervals_of(samples: Sequence[Sample]) -> list[Interval]:
    """Return what happened between the samples, with the rates of requests moved back by their delay."""
    follower = Follower()
    found = [interval for sample in samples if (interval := follower.follow(sample)) is not None]
    moved = []
    later = 0
    for one in found:
        while later < len(found) - 1 and found[later].sample.t_s < one.sample.t_s + RATE_DELAY_S:
            later += 1
        seen = found[later]
        moved.append(
            replace(
                one,
                requests_per_s=seen.requests_per_s,
                reads_per_s=seen.reads_per_s,
                writes_per_s=seen.writes_per_s,
            )
        )
    return moved


def spent_between(before: Reading | None, now: Reading) -> Spent:
    """Return what a role spent; the counters of a successor began at zero."""
    if before is None or before.pid != now.pid:
        return Spent(*(float(getattr(now, name)) for name in Spent._fields))
    return Spent(*(float(getattr(now, name) - getattr(before, name)) for name in Spent._fields))


def total(parts: Iterable[Spent]) -> Spent:
    """Return the sum."""
    return Spent(*(sum(values) for values in zip(Spent(), *parts, strict=True)))


def summarise(samples: Sequence[Sample]) -> Summary:
    """Return the summary; an empty one of fewer than two samples."""
    intervals = intervals_of(samples)
    if not intervals:
        return Summary()
    seconds = sum(interval.seconds for interval in intervals)
    spent = total(one for interval in intervals for one in interval.spent.values())
    lags = [interval.sample.server.flush_lag_ms for interval in intervals]
    first, last = samples[0].server, samples[-1].server
    requests = last.requests - first.requests
    return Summary(
        seconds=seconds,
        roles={role: _summarise_role(role, intervals, seconds) for role in roles_of(intervals)},
        replacements=[one for interval in intervals for one in interval.replacements],
        cpu_s=spent.cpu_s,
        cpu_percent=100 * spent.cpu_s / seconds,
        pss_bytes=sum(reading.pss_bytes for reading in samples[-1].processes.values()),
        requests=requests,
        reads=last.reads - first.reads,
        writes=last.writes - first.writes,
        errors=last.client_errors + last.server_errors - first.client_errors - first.server_errors,
        requests_per_s=requests / seconds,
        requests_per_s_max=max(interval.requests_per_s for interval in intervals),
        cpu_us_per_request=1e6 * spent.cpu_s / requests if requests else None,
        flush_lag_ms_median=median(lags),
        flush_lag_ms_max=max(lags),
        shm_first_bytes=first.reserved_bytes,
        shm_last_bytes=last.reserved_bytes,
        records=last.records,
    )


def roles_of(intervals: Iterable[Interval]) -> list[str]:
    """Return every role that was seen, in the order of the server."""
    return list(dict.fromkeys(role for interval in intervals for role in interval.sample.processes))


def _summarise_role(role: str, intervals: Sequence[Interval], seconds: float) -> RoleSummary:
    readings = [interval.sample.processes[role] for interval in intervals if role in interval.sample.processes]
    spent = total(interval.spent[role] for interval in intervals if role in interval.spent)
    replaced = [one for interval in intervals for one in interval.replacements if one.role == role]
    pids = [one.old_pid for one in replaced] + [readings[-1].pid]
    return RoleSummary(
        pids=pids,
        spent=spent,
        cpu_percent=100 * spent.cpu_s / seconds,
        cpu_percent_max=max(interval.cpu_percent(role) for interval in intervals),
        uss_bytes=readings[-1].uss_bytes,
        pss_bytes=readings[-1].pss_bytes,
        pss_bytes_max=max(reading.pss_bytes for reading in readings),
        rss_bytes=readings[-1].rss_bytes,
        threads_max=max(reading.threads for reading in readings),
        fds_max=max(reading.fds for reading in readings),
    )
