"""`Status` and `Stats` in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ghostd.facade import Control, DaemonState, Stats, Status

PREFIX = "orbit"


class ControlCollector(Collector):
    """Turns what `control` says at the moment of the scrape into metrics."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of one scrape."""
        yield from status_metrics(self._control.status())
        yield from stats_metrics(self._control.stats())


def status_metrics(status: Status) -> Iterator[Metric]:
    """Yield the gauges of `Status`."""
    ready = float(status.state is DaemonState.READY)
    yield _gauge("ready", "1 while the mount answers.", ready)
    yield _gauge("uptime_seconds", "Since the daemon started.", status.uptime_s)
    yield _gauge("loop_lag_seconds", "Since the filesystem's loop last ticked.", status.loop_lag_s)
    yield _gauge("dirty_bytes", "Written and not durable yet.", status.dirty_bytes)
    yield _gauge("dirty_operations", "Changed and not committed yet.", status.dirty_ops)
    yield _gauge("free_bytes", "Free in the state folder.", status.free_bytes)
    yield _gauge("damaged_chunks", "Found damaged in this run.", status.damaged_chunks)
    yield _gauge("damaged_files", "Found damaged in this run.", status.damaged_files)
    remotes = GaugeMetricFamily(
        f"{PREFIX}_remote_problem_seconds",
        "Since the last failure of a remote that does not answer well.",
        labels=["url", "state"],
    )
    # Two projections may show one URL; a metric has each set of labels once.
    worst = {(each.url, each.state): each.since_s for each in status.remotes}
    for (url, state), since_s in worst.items():
        remotes.add_metric([url, state], since_s)
    yield remotes
    commits = CounterMetricFamily(f"{PREFIX}_commits", "Commits that succeeded.")
    commits.add_metric([], status.commit.count)
    yield commits
    if status.commit.last_age_s is not None:
        yield _gauge("commit_age_seconds", "Since the last commit.", status.commit.last_age_s)


def stats_metrics(stats: Stats) -> Iterator[Metric]:
    """Yield the counters by FUSE operation and whatever the daemon counts under a name."""
    requests = CounterMetricFamily(
        f"{PREFIX}_fuse_requests", "FUSE requests answered.", labels=["operation"]
    )
    errors = CounterMetricFamily(
        f"{PREFIX}_fuse_errors", "Of these with an errno.", labels=["operation"]
    )
    seconds = CounterMetricFamily(
        f"{PREFIX}_fuse_seconds", "Time spent on them.", labels=["operation"]
    )
    for name, operation in stats.operations.items():
        requests.add_metric([name], operation.count)
        errors.add_metric([name], operation.errors)
        seconds.add_metric([name], operation.seconds)
    yield from (requests, errors, seconds)
    for name, value in stats.counters.items():
        counter = CounterMetricFamily(f"{PREFIX}_{name}", f"Counter {name}.")
        counter.add_metric([], value)
        yield counter
    for name, value in stats.gauges.items():
        yield _gauge(name, f"Gauge {name}.", value)


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", about, value=value)


def exposition(control: Control) -> Callable[[], bytes]:
    """Return the function that renders a scrape; it takes some 15 ms, so call it in a thread."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ControlCollector(control))
    return lambda: generate_latest(registry)
