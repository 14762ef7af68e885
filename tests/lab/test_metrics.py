"""Figures from a run directory: honest arithmetic, the edges of percentiles, phases of a failover."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lab.check.metrics import SERIES_MOST, Histogram, decode_metrics, encode_metrics, measure
from lab.rows import Acked, FaultRow, Gen, Invoke, Phase, Sample, Unknown, encode_row
from lab.rundir import RunDir
from tests.lab.synthetic import MS, T_START, build_run, doctor_lines, doctor_meta


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return build_run(tmp_path)


def exact(values: list[int], share: float) -> int:
    """The smallest value with at least that share of all at or below it."""
    ordered = sorted(values)
    return next(value for at, value in enumerate(ordered, 1) if at >= share * len(ordered))


@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=300))
def test_percentiles_are_within_a_thousandth_of_the_exact_ones(values: list[int]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    shares = (0.5, 0.9, 0.99, 0.999, 1.0)
    for share, found in zip(shares, histogram.percentiles(shares), strict=True):
        wanted = exact(values, share)
        assert found <= wanted
        assert wanted - found <= wanted / 1000
    assert histogram.largest == max(values)


def test_a_histogram_does_not_grow_with_what_is_added() -> None:
    histogram = Histogram()
    rng = random.Random(1)
    for _ in range(100_000):
        histogram.add(int(rng.expovariate(1e-6)))
    assert histogram.count == 100_000
    assert len(histogram._counts) < 25_000


def test_merged_histograms_are_as_one() -> None:
    left, right, whole = Histogram(), Histogram(), Histogram()
    for value in range(0, 10**6, 997):
        (left if value % 2 else right).add(value, 3)
        whole.add(value, 3)
    left.merge(right)
    assert left.latency() == whole.latency()


def test_an_empty_histogram_has_no_latency() -> None:
    assert Histogram().latency() is None


def test_a_negative_latency_counts_as_none() -> None:
    histogram = Histogram()
    histogram.add(-5)
    assert histogram.percentiles((1.0,)) == [0]


def test_load_and_latency_of_a_run(run: RunDir) -> None:
    load = measure(run).load
    assert (load.sent, load.acknowledged, load.rejected, load.unknown) == (200, 200, 0, 0)
    assert load.duration_s == pytest.approx(0.1395)
    assert load.throughput_per_s == pytest.approx(200 / 0.1395)
    assert load.payload_bytes == 200 * 100
    assert load.longest_gap_s == pytest.approx(0.101)
    assert load.longest_gap_at_s == pytest.approx(0.0195)
    assert load.latency is not None
    assert load.latency.count == 200
    assert load.latency.max_ms == 0.5
    assert load.latency.p50_ms == pytest.approx(0.5, rel=1e-3)


def test_latency_counts_from_when_a_message_should_have_been_sent(run: RunDir) -> None:
    t = T_START
    run.history.write_bytes(
        encode_row(Invoke(t, 101, "s", 1, 4, t - 8 * MS, every=2 * MS, gen=Gen(1, 10)))
        + encode_row(Acked(t + MS, "s", 3, 3))
        + encode_row(Acked(t + 2 * MS, "s", 4, 4))
    )
    latency = measure(run).load.latency
    assert latency is not None
    # Due 8, 6, 4 and 2 ms before t; acknowledged 1, 1, 1 and 2 ms after it.
    assert (latency.count, latency.max_ms) == (4, 9.0)
    assert latency.p50_ms == pytest.approx(5, rel=1e-3)


def test_the_load_alone_is_measured_where_named_clients_send_too(run: RunDir) -> None:
    early, late = T_START - 50 * MS, T_START + 400 * MS
    row = encode_row(Invoke(early, 9999, "named", 1, 1, early, payloads=("hello",)))
    run.history.write_bytes(row + run.history.read_bytes() + encode_row(Acked(late, "named", 1, 201)))
    load = measure(run).load
    assert (load.sent, load.acknowledged) == (201, 201)
    assert load.duration_s == pytest.approx(0.1395)
    assert load.throughput_per_s == pytest.approx(200 / 0.1395)


def test_the_phases_of_a_failover(run: RunDir) -> None:
    (failover,) = measure(run).failovers
    assert (failover.node, failover.fault, failover.leader) == (3, "kill", 2)
    assert failover.at_s == pytest.approx(0.02)
    assert (failover.suspected_ms, failover.leader_ms, failover.acknowledged_ms) == (20, 40, 100.5)


def test_the_failover_of_a_leader_that_exits_begins_with_its_own_report(run: RunDir) -> None:
    """The lab notices the exit 50 ms later, when node 2 leads already."""
    (killed,) = measure(run).failovers
    failed = T_START + 20 * MS
    noticed = FaultRow("exit", 3, "leader", failed + 50 * MS, failed + 51 * MS, {"exit": 4}, True, 1)
    doctor_lines(run.faults, lambda lines: lines.__setitem__(0, encode_row(noticed)))
    report = b'{"t_ns":%d,"node":3,"event":"failed","reason":"EIO"}\n' % failed
    doctor_lines(run.events(3), lambda lines: lines.insert(2, report))
    assert measure(run).failovers == (structs.replace(killed, fault="exit"),)


def test_a_failover_that_never_ended_has_no_last_phase(run: RunDir) -> None:
    doctor_lines(run.history, lambda lines: lines.__delitem__(slice(60, 120)))
    doctor_lines(run.events(2), lambda lines: lines.__delitem__(3))
    (failover,) = measure(run).failovers
    assert (failover.suspected_ms, failover.leader_ms, failover.acknowledged_ms) == (20, None, None)


def test_the_parts_of_a_run_add_up_to_it(run: RunDir) -> None:
    segments = measure(run).segments
    assert [each.name for each in segments] == ["before kill node 3", "during kill node 3", "after kill node 3"]
    assert [each.acknowledged for each in segments] == [100, 5, 95]
    assert [each.start_s for each in segments] == pytest.approx([0, 0.02, 0.1205])
    assert sum(each.duration_s for each in segments) == pytest.approx(0.1395)


def test_faults_of_one_step_are_one_part(run: RunDir) -> None:
    t = T_START + 130 * MS
    with run.faults.open("ab") as file:
        for node in (1, 2):
            file.write(encode_row(FaultRow("stop", node, "follower", t, t + MS, {}, True, 5)))
    names = [each.name for each in measure(run).segments]
    assert names[-2:] == ["during stop node 1, stop node 2", "after stop node 1, stop node 2"]


def test_a_fault_without_effect_and_the_labs_own_healing_make_no_part(run: RunDir) -> None:
    doctor_lines(run.faults, lambda lines: lines.__setitem__(0, lines[0].replace(b"true", b"false")))
    metrics = measure(run)
    assert (metrics.segments, metrics.failovers) == ((), ())


def test_cost_of_the_nodes(run: RunDir) -> None:
    metrics = measure(run)
    assert [(cost.node, cost.starts, cost.rss_peak_bytes) for cost in metrics.nodes] == [
        (1, 1, 50 << 20),
        (2, 1, 50 << 20),
        (3, 2, 50 << 20),
    ]
    assert [cost.cpu_s for cost in metrics.nodes] == [0.5, 0.5, 0.5]
    assert [cost.cpu_percent for cost in metrics.nodes] == [None, None, None]
    assert metrics.cpu_us_per_message is None


def test_the_nodes_use_of_a_core_comes_from_samples_and_outlives_a_restart(run: RunDir) -> None:
    at = [(0, 10.0), (50, 10.02), (100, 0.01), (150, 0.03)]
    doctor_meta(run, samples=tuple(Sample(T_START + t * MS, 3, cpu_s, 1) for t, cpu_s in at))
    percents = [cost.cpu_percent for cost in measure(run).nodes]
    assert percents == [None, None, pytest.approx(100 * 0.05 / 0.15)]


def test_cpu_per_message_counts_the_samples_around_the_load(tmp_path: Path) -> None:
    run = build_run(tmp_path, batches=20, batch=1000)
    at = [(-2000, 0.0), (-1000, 5.0), (500, 5.2), (1000, 9.0)]
    samples = [Sample(T_START + t * MS, node, cpu_s, 1) for t, cpu_s in at for node in (1, 2)]
    doctor_meta(run, samples=tuple(samples))
    assert measure(run).cpu_us_per_message == pytest.approx(2 * 0.2 * 1e6 / 20_000)


def test_a_run_in_which_nothing_was_sent_has_figures_too(run: RunDir) -> None:
    run.history.write_bytes(encode_row(Phase(T_START + 900 * MS, "healed")))
    metrics = measure(run)
    assert metrics.segments[0].duration_s == pytest.approx(0.02)
    assert metrics.load.latency is None
    assert metrics.load.throughput_per_s == 0
    assert metrics.cpu_us_per_message is None
    assert encode_metrics(metrics)


def test_what_the_clients_gave_up_is_counted(run: RunDir) -> None:
    with run.history.open("ab") as file:
        file.write(encode_row(Unknown(T_START + 900 * MS, "session101", 71, 4)))
    assert measure(run).load.unknown == 4


def test_no_convergence_has_no_time(run: RunDir) -> None:
    assert measure(run).converged_s == 0.01
    doctor_meta(run, convergence=None)
    assert measure(run).converged_s is None


# ---- figures over time ---------------------------------------------------------------------------


def test_a_series_has_the_figures_of_each_bucket(run: RunDir) -> None:
    metrics = measure(run)
    series = metrics.series
    assert series.bucket_ms == 20
    # One batch of 5 each millisecond, acknowledged half a millisecond later; 100 ms of silence after batch 20.
    assert series.acked[:8] == (100, 0, 0, 0, 0, 0, 100, 0)
    assert series.max[:7] == (0.5, None, None, None, None, None, 0.5)
    assert series.p50[0] == series.p99[6] == pytest.approx(0.5, rel=1e-3)
    assert len({len(series.acked), len(series.p50), len(series.p99), len(series.max)}) == 1
    assert len(series.acked) == -(-metrics.duration_s * 1e3 // 20)


@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 500)), min_size=1, max_size=60), st.integers(1, 20_000))
def test_series_and_histogram_count_each_message_once(sends: list[tuple[int, int]], lasts_ms: int) -> None:
    """sends: (due, latency), ms."""
    with TemporaryDirectory() as directory:
        run = build_run(Path(directory))
        rows: list[Invoke | Acked] = []
        for number, (due, latency) in enumerate(sends):
            at = T_START + due * MS
            rows.append(Invoke(at, 101, f"s{number}", 1, 2, at, payloads=("a", "b")))
            rows.append(Acked(at + latency * MS, f"s{number}", 2, 2 * number + 2))
        run.history.write_bytes(b"".join(map(encode_row, sorted(rows, key=lambda row: row.t))))
        doctor_meta(run, t_end=max(T_START + lasts_ms * MS, *(row.t for row in rows)))
        metrics = measure(run)
    series = metrics.series
    width = series.bucket_ms * MS
    buckets: dict[int, list[int]] = {}
    for due, latency in sends:
        bucket = min(int((due + latency) * MS // width), len(series.acked) - 1)
        buckets.setdefault(bucket, []).append(latency)
    assert len(series.acked) <= SERIES_MOST
    assert {at: count for at, count in enumerate(series.acked) if count} == {
        at: 2 * len(found) for at, found in buckets.items()
    }
    for at, found in buckets.items():
        assert series.max[at] == max(found)
        assert series.p50[at] == pytest.approx(exact(found, 0.5), rel=1e-3)
    assert sum(count for _, count in metrics.histogram) == 2 * len(sends)
    edges = [edge for edge, _ in metrics.histogram]
    assert edges == sorted(set(edges))
    assert max(edges) == pytest.approx(max(latency for _, latency in sends), rel=0.016, abs=1e-5)


def test_a_series_stops_growing_with_the_run(run: RunDir) -> None:
    doctor_meta(run, t_end=T_START + 24 * 3600 * 1000 * MS)
    series = measure(run).series
    assert len(series.acked) == SERIES_MOST
    assert series.acked[0] == sum(series.acked) == 200


def test_metrics_json_has_a_line_for_each_list_of_numbers_and_reads_back(run: RunDir) -> None:
    metrics = measure(run)
    written = encode_metrics(metrics)
    assert len(written.splitlines()) < 150
    assert decode_metrics(written) == metrics
