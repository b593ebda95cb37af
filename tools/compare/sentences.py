"""What the figures show, in words that are chosen by the figures: nothing is said that was not measured."""

from __future__ import annotations

from tools.compare.readers import PIPELINE_DEPTH
from tools.compare.results import Column, Results
from tools.compare.subjects import SERVERS, SUBJECTS

LEVEL = 1.10  # within ten per cent two figures of one run count as level
TITLES = {
    "original": "The original", "v1": "Version 1", "v2": "Version 2", "v3": "Version 3", "millrace": "Millrace",
    "millrace-memory": "Millrace, level memory",
}  # fmt: skip
MUCH_SERVED = 0.995  # of the time; what is missing above this is a few reads at the very start


def sentence(results: Results, subject: str) -> str:
    """Return what one subject showed, beside the one before it."""
    before = _before(results, subject)
    parts = [_posts(results, subject, before), _reads(results, subject, before), _waiting(results, subject)]
    return f"{TITLES[subject]}: {'; '.join(part for part in [*parts, _loss(results, subject)] if part)}."


def verdicts(results: Results) -> list[str]:
    """Return what is to be said of the server beside the earlier shapes, at each of its levels that was measured."""
    return [_verdict(results, server) for server in SERVERS if results.rounds.get(server)]


def _verdict(results: Results, server: str) -> str:
    """Return in which figures the server is ahead of the best of the earlier shapes, level with it, or behind."""
    ahead: list[str] = []
    level: list[str] = []
    behind: list[str] = []
    for column in results.columns:
        places = _against_best(results, server, column)
        if places is None:
            continue
        ratio, best = places
        text = f"{column.heading} ({results.text(server, column)}; {best} {results.text(best, column)})"
        (level if 1 / LEVEL <= ratio <= LEVEL else ahead if ratio > 1 else behind).append(text)
    if not ahead + level + behind:
        return f"{TITLES[server]} was not measured beside an earlier shape."
    groups = (("ahead", ahead), ("level", level), ("behind", behind))
    found = [f"{word} in {', '.join(texts)}" for word, texts in groups if texts]
    return f"{TITLES[server]} beside the best earlier shape of each figure: {'; '.join(found)}."


def _against_best(results: Results, server: str, column: Column) -> tuple[float, str] | None:
    """Return how many times better the server is than the best earlier shape, and which that is."""
    own = results.shown(server, column)
    found = [(value, name) for name in SUBJECTS if name not in SERVERS
             if (value := results.shown(name, column)) is not None]  # fmt: skip
    if not column.direction or own is None or not found:
        return None
    best, name = (max if column.direction > 0 else min)(found)
    return (_ratio(own, best) if column.direction > 0 else _ratio(best, own)), name


def _ratio(value: float, other: float) -> float:
    if value == other:
        return 1.0
    return value / other if other else float("inf")


def _before(results: Results, subject: str) -> str | None:
    """Return the step before in the history, as far as it was measured."""
    earlier = [name for name in SUBJECTS[: SUBJECTS.index(subject)] if results.rounds.get(name)]
    return earlier[-1] if earlier else None


def _posts(results: Results, subject: str, before: str | None) -> str:
    seconds, ratio = results.median(subject, "post_s"), results.median(subject, "post_ratio")
    if seconds is None or ratio is None:
        return "not measured"
    text = f"{results.plan.posts:,} POSTs in {seconds:.2f} s, {_beside_bare(ratio)}"
    earlier = results.median(before, "post_s") if before else None
    return text + (f" ({_compared(earlier / seconds, before, 'faster', 'slower')})" if earlier and before else "")


def _beside_bare(ratio: float) -> str:
    """Say how far it is from the floor; below it there is only the noise of the machine."""
    if ratio > LEVEL:
        return f"{ratio:.2f} times what a server that does nothing takes"
    if ratio >= 1 / LEVEL:
        return "level with a server that does nothing"
    return f"less than a server that does nothing took in the same round ({ratio:.2f} times)"


def _reads(results: Results, subject: str, before: str | None) -> str:
    """Return the rate of k6, the tool of the original experiment, and both of wrk."""
    shown = _rate(results, subject, before, "k6_rate", "reads/s with k6")
    single = _rate(results, subject, before, "wrk_rate", "reads/s with wrk")
    deep = _rate(results, subject, before, "pipelined_rate", f"when {PIPELINE_DEPTH} are in flight per connection")
    return ", ".join(part for part in (shown, single, deep) if part)


def _rate(results: Results, subject: str, before: str | None, name: str, what: str) -> str:
    rate, other = results.median(subject, name), results.median(before, name) if before else None
    if rate is None:
        return ""
    text = f"{rate:,.0f} {what}"
    return text + (f" ({_compared(rate / other, before, 'more', 'fewer')})" if other and before else "")


def _waiting(results: Results, subject: str) -> str:
    served, settle_s = results.median(subject, "served"), results.median(subject, "settle_s")
    if served is None:
        return ""
    share = results.median(subject, "ok_share")
    failed = f"{1 - share:.1%} of what k6 asked failed" if share is not None and share < MUCH_SERVED else ""
    if served >= MUCH_SERVED:
        probe = f"the reads of the probe were answered all the time, but {failed}"
        return probe if failed else "reads were answered all the time"
    shown = f" ({failed})" if failed else ""
    after = f", and for {settle_s:.0f} s after them" if settle_s and settle_s > 2 else ""
    return f"for {1 - served:.0%} of the time of the reads nobody got an answer within a second{shown}{after}"


def _loss(results: Results, subject: str) -> str:
    """Speak of the worst round: one loss in many rounds is a loss."""
    rounds = results.rounds.get(subject, [])
    if not rounds:
        return ""
    count, hit = len(rounds), sum(figures.lost > 0 for figures in rounds)
    if not hit:
        total = sum(figures.acknowledged for figures in rounds)
        return f"of {total:,} acknowledged writes{f' in {count} rounds' if count > 1 else ''} the crash took none"
    worst = max(rounds, key=lambda figures: figures.lost)
    if count == 1:
        return f"the crash took {worst.lost:,} of {worst.acknowledged:,} acknowledged writes"
    share = f"{worst.lost:,} of {worst.acknowledged:,} in the worst"
    return f"in {hit} of {count} rounds the crash took acknowledged writes, {share}"


def _compared(ratio: float, before: str, more: str, less: str) -> str:
    name = TITLES[before].lower().replace("the ", "")
    if 1 / LEVEL <= ratio <= LEVEL:
        return f"level with {name}"
    return f"{ratio:.1f} times {name}'s" if (more, less) == ("more", "fewer") else _speed(ratio, name, more, less)


def _speed(ratio: float, name: str, more: str, less: str) -> str:
    return f"{ratio:.1f} times {more} than {name}" if ratio > 1 else f"{1 / ratio:.1f} times {less} than {name}"
