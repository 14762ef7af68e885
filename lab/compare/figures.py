"""The figures of a run that are compared, read from the content of metrics.json.

The content is read as plain data, because the other version of the project may have other fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any, Final, NamedTuple

from lab.paired import Better


class Quantity(NamedTuple):
    """One figure of a run.

    path: keys that lead to its value in metrics.json; below a list, to the values of its entries.
    largest: of several values, the largest counts instead of the median.
    scale: the value is divided by it.
    """

    name: str
    unit: str
    better: Better
    path: tuple[str, ...]
    largest: bool = False
    scale: float = 1.0

    def value(self, metrics: Mapping[str, Any]) -> float | None:
        """Return its value; None if the run has none, or one of which there is no logarithm."""
        found = [each for each in _values(metrics, self.path) if each > 0]
        if not found:
            return None
        return (max(found) if self.largest else median(found)) / self.scale


SEEDS: Final = Quantity("seeds", "seeds/s", "more", ("seeds_per_s",))
"""Seeds simulated and judged in a second of CPU time. It is measured by `ab --sim`, and is not in metrics.json."""
QUANTITIES: Final = (
    Quantity("throughput", "messages/s", "more", ("load", "throughput_per_s")),
    Quantity("p50", "ms", "less", ("load", "latency", "p50_ms")),
    Quantity("p90", "ms", "less", ("load", "latency", "p90_ms")),
    Quantity("p99", "ms", "less", ("load", "latency", "p99_ms")),
    Quantity("p99.9", "ms", "less", ("load", "latency", "p999_ms")),
    Quantity("max", "ms", "less", ("load", "latency", "max_ms")),
    Quantity("gap", "ms", "less", ("load", "longest_gap_s"), scale=1e-3),
    Quantity("failover", "ms", "less", ("failovers", "acknowledged_ms")),
    Quantity("cpu", "µs/message", "less", ("cpu_us_per_message",)),
    Quantity("memory", "MiB", "less", ("nodes", "rss_peak_bytes"), largest=True, scale=1 << 20),
    Quantity("converged", "ms", "less", ("converged_s",), scale=1e-3),
    SEEDS,
)
NAMES: Final = tuple(each.name for each in QUANTITIES)
JUDGED: Final = ("throughput", "p50", "cpu")
"""Judged by `ab` unless --metric names others. Rare events, such as p99 or a failover, differ most by chance."""
JUDGED_SIM: Final = (SEEDS.name,)


def values(runs: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return name -> value of each figure that the runs have: the median over several runs of one scenario.

    Args:
        runs: the content of metrics.json of each.
    """
    several = list(runs)
    found = {each.name: [value for run in several if (value := each.value(run)) is not None] for each in QUANTITIES}
    return {name: median(each) for name, each in found.items() if each}


def _values(data: Any, path: tuple[str, ...]) -> list[float]:
    if isinstance(data, list | tuple):
        return [value for each in data for value in _values(each, path)]
    if path:
        return _values(data.get(path[0]), path[1:]) if isinstance(data, dict) else []
    return [float(data)] if isinstance(data, int | float) else []
