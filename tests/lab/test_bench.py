"""The benchmark: its arithmetic, its table, its prepared data, and its processes."""

from __future__ import annotations

import argparse
import asyncio
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from lab.bench import bare, bench, floor, prepared, table
from lab.bench.figures import TARGETS, Bench, Collected, Figure, change, decode, encode, judge
from lab.bench.loads import CASES
from lab.bench.pipeline import Send
from lab.bench.runs import Ran, Runs, check_run
from lab.places import RESULTS
from lab.plan.scenario import Load
from lab.steps.machine import RunFailed
from nodeproc.core.messages import Batch
from nodeproc.disk.files import RealFiles
from nodeproc.disk.storage import Storage
from tests import TOO_LONG_S

HOST = {"cpus": 2}


def made(*figures: Figure) -> Bench:
    return Bench("2024-10-21T12:34:56", False, HOST, figures)


def rate(*values: float, floor_name: str = floor.PIPELINED) -> Figure:
    return Figure("throughput", "100 B, 1 client on the leader", "messages/s", "more", floor_name, values)


FLOOR = Figure("floor", floor.PIPELINED, "messages/s", "more", "", (400_000.0,))


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


# ---- figures -----------------------------------------------------------------------------------------


def test_values_of_one_name_are_one_figure_with_their_median() -> None:
    into = Collected()
    for value in (3.0, 1.0, 100.0):
        into.add("closed", "1 client", "p50 ms", value)
    into.add("closed", "64 clients", "p50 ms", 7.0)
    assert [(figure.name, figure.median) for figure in into.figures()] == [("1 client", 3.0), ("64 clients", 7.0)]


def test_a_ratio_is_to_the_floor_of_the_same_measurement() -> None:
    figure = rate(200_000, 300_000, 100_000)
    assert made(FLOOR, figure).ratio(figure) == 0.5
    assert made(figure).ratio(figure) is None
    assert made(FLOOR, rate(1, floor_name="")).ratio(rate(1, floor_name="")) is None


@pytest.mark.parametrize(
    ("value", "of_floor", "verdict"),
    [(350_000.0, "goal", "goal"), (250_000.0, "met", "met"), (100_000.0, "missed", "missed")],
)
def test_a_target_is_reached_or_missed(value: float, of_floor: str, verdict: str) -> None:
    found = {reached.target: reached.verdict for reached in judge(made(FLOOR, rate(value)))}
    assert found[TARGETS[0]] == of_floor
    assert found[TARGETS[1]] == verdict


def test_the_worst_value_counts_where_the_target_says_so() -> None:
    failover = Figure("failover", "leader killed, to the next acknowledgement", "ms", "less", "", (20.0, 30.0, 900.0))
    found = [reached for reached in judge(made(failover)) if reached.target.section == "failover"]
    assert [(reached.value, reached.verdict) for reached in found] == [(30.0, "goal"), (900.0, "missed")]


def test_a_target_that_was_not_measured_is_reported_as_such() -> None:
    assert {reached.verdict for reached in judge(made())} == {"not measured"}


def test_saved_figures_are_read_back_equal() -> None:
    whole = made(FLOOR, rate(1, 2, 3))
    assert decode(encode(whole)) == whole


# ---- the table ---------------------------------------------------------------------------------------


def test_the_table_shows_median_spread_ratio_and_targets() -> None:
    text = table.render(made(FLOOR, rate(200_000, 300_000, 100_000)))
    line = next(line for line in text.splitlines() if line.startswith("throughput  "))
    assert line.split()[-7:] == ["200,000", "100,000", "..", "300,000", "3", "messages/s", "0.50"]
    assert "missed" in text
    assert "x floor" in text


def said(now: Figure, then: Figure) -> list[str]:
    """The columns of the table about the other measurement."""
    return table.compared(change(now, made(then)))


@pytest.mark.parametrize(
    ("now", "answer"),
    [((200,) * 6, "better"), ((50,) * 6, "worse"), ((102,) * 6, "not worse"), ((50, 180) * 3, "undecided")],
)
def test_figures_of_two_measurements_are_compared_by_rounds(now: tuple[float, ...], answer: str) -> None:
    then = rate(100, 110, 90, 100, 105, 95)
    median, _, interval, found = said(rate(*now), then)
    assert (median, found) == ("100", answer)
    assert " .. " in interval


def test_few_rounds_are_shown_and_not_judged() -> None:
    assert said(rate(200), rate(100, 110, 90)) == ["100", "2.00", "", ""]
    text = table.render(made(rate(200)), made(rate(100)))
    assert table.UNJUDGED in text
    assert table.UNJUDGED not in table.render(made(rate(*[200] * 6)), made(rate(*[100] * 6)))


def test_a_figure_of_zero_has_no_ratio() -> None:
    assert said(rate(*[0] * 6), rate(*[100] * 6)) == ["100", "0.00", "", ""]
    assert said(rate(*[100] * 6), rate(*[0] * 6)) == ["0.000", "", "", ""]


def test_a_figure_that_was_not_there_before_is_compared_with_nothing() -> None:
    assert said(rate(1), FLOOR) == ["-", "", "", ""]


@pytest.mark.parametrize(
    ("value", "shown"), [(123456.7, "123,457"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123")]
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert table.number(value) == shown


# ---- the command -------------------------------------------------------------------------------------


def fake_section(name: str, rounds: int, order: list[str]) -> bench.Section:
    def measure(into: Collected, runs: Runs, quick: bool) -> None:
        order.append(name)
        into.add(name, "one thing", "s", float(len(order)))

    return bench.Section(name, measure, rounds)


def test_rounds_alternate_between_the_sections(tmp_path: Path) -> None:
    order: list[str] = []
    sections = (fake_section("closed", 2, order), fake_section("throughput", 3, order))
    result = bench.measure(Runs(tmp_path, order.append), sections, quick=False)
    assert [each for each in order if each in bench.NAMES] == ["closed", "throughput"] * 2 + ["throughput"]
    assert [(figure.section, len(figure.values)) for figure in result.figures] == [("throughput", 3), ("closed", 2)]


def test_every_section_can_have_the_same_number_of_rounds(tmp_path: Path) -> None:
    sections = (fake_section("closed", 2, []), fake_section("throughput", 3, []))
    result = bench.measure(Runs(tmp_path, lambda text: None), sections, quick=True, every=6)
    assert [len(figure.values) for figure in result.figures] == [6, 6]


def test_the_floor_is_always_measured() -> None:
    assert [section.name for section in bench.chosen(["idle"], quick=True)] == ["floor", "idle"]
    assert [section.name for section in bench.chosen(["growth"], quick=True)] == ["floor", "growth"]
    assert bench.chosen(None, quick=False) == bench.SECTIONS
    assert "growth" not in [section.name for section in bench.chosen(None, quick=True)]


def test_an_unknown_section_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments("--only", "nothing")
    assert "choose from" in capsys.readouterr().err


def test_a_name_is_kept_below_results_and_a_path_where_it_says(tmp_path: Path) -> None:
    assert bench.saved_at("before") == RESULTS / "bench" / "before.json"
    assert bench.saved_at(str(tmp_path / "x")) == tmp_path / "x"
    assert bench.saved_at("x.json") == Path("x.json")


def test_a_missing_comparison_is_reported_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.json").write_text("{}")
    assert bench.main(arguments("--compare", str(tmp_path / "none.json"))) == 64
    assert bench.main(arguments("--compare", str(tmp_path / "broken.json"))) == 64
    assert "none.json" in capsys.readouterr().err


def test_measure_save_and_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SECTIONS", (fake_section("closed", 1, []),))
    monkeypatch.setattr(bench, "SAVED", tmp_path / "bench")
    assert bench.main(arguments("--only", "closed", "--save", "first")) == 0
    assert bench.main(arguments("--only", "closed", "--compare", "first", "--json")) == 0
    output = capsys.readouterr().out
    assert decode(output[output.index("\n{\n") :].encode()).figures[0].section == "closed"
    assert [each.name for each in (tmp_path / "bench").iterdir()] == ["first.json"]


def test_every_case_of_the_throughput_section_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


# ---- what it measures with --------------------------------------------------------------------------


@pytest.mark.parametrize(("messages", "sessions"), [(0, 1), (2500, 1), (2500, 40), (3000, 1500)])
def test_prepared_data_is_a_history_that_a_node_goes_on_from(tmp_path: Path, messages: int, sessions: int) -> None:
    prepared.fill(tmp_path, 2, messages, size=20, sessions=sessions)
    storage, recovered, _ = Storage.open(RealFiles(tmp_path), 2, durability="os")
    try:
        assert recovered.delivered_seq == messages
        assert len(recovered.sessions) == (sessions if messages else 0)
        assert sum(last_n for last_n, _ in recovered.sessions.values()) == messages
        lines, last = storage.read_lines(1, 1 << 20)
        assert last == messages and lines.count(b"\n") == messages
    finally:
        storage.close()


def test_prepared_batches_follow_each_other() -> None:
    headers = [record.header for record in prepared.batches(2500, 20, 3)]
    assert all(isinstance(header, Batch) for header in headers)
    ends = [(header.first, header.last) for header in headers if isinstance(header, Batch)]
    assert ends[0][0] == 1 and ends[-1][1] == 2500
    assert all(after[0] == before[1] + 1 for before, after in pairwise(ends))


def in_pipeline(folder: Path, order: Callable[[int], Send]) -> tuple[float, list[bytes], list[bytes]]:
    """Send through a floor pipeline; returns seconds and what each process has in its two files."""

    async def run() -> float:
        async with floor.processes(folder, 4) as children:
            _, port = await floor.open_pipeline(children, folder)
            return (await floor.send(children[3], order(port))).seconds

    seconds = asyncio.run(run())
    places = sorted(folder.glob("pipeline-?-*"))
    return seconds, [(place / "log").read_bytes() for place in places], [(p / "lines").read_bytes() for p in places]


def test_the_floor_s_pipeline_numbers_writes_and_acknowledges_everything(tmp_path: Path) -> None:
    seconds, logs, lines = in_pipeline(tmp_path, lambda port: Send(port, 3, 50, 2000, 100))
    assert seconds > 0
    assert [data.count(b"\n") for data in logs] == [2000] * 3
    assert logs[0] == logs[1] == logs[2]
    assert lines[2] == logs[2] == lines[0]
    assert b'{"seq_no":2000,"term":1,' in logs[0]


def test_a_sender_may_put_one_text_into_each_frame(tmp_path: Path) -> None:
    _, logs, _ = in_pipeline(tmp_path, lambda port: Send(port, 1, 200, 500, 20, line_messages=1))
    assert [data.count(b"\n") for data in logs] == [500] * 3


# ---- the client in C ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    try:
        return str(bare.compiled(tmp_path_factory.mktemp("client")))
    except bare.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize(("clients", "in_flight", "line_messages"), [(3, 1, 1), (1, 300, 1), (2, 300, 64)])
def test_the_c_client_s_messages_are_in_all_logs(
    program: str, tmp_path: Path, clients: int, in_flight: int, line_messages: int
) -> None:
    step = bare.Drive(program, clients, in_flight, line_messages, 1500, bare.NODES[:clients], 30)
    driven = bare.drive(Runs(tmp_path, lambda text: None), step)
    # The system counts CPU time in steps of 10 ms, which a quick run does not fill.
    assert (driven.nodes_cpu_s > 0) if driven.seconds > 0.1 else (0 <= driven.nodes_cpu_s < 1)
    assert 0 < driven.p50_ms <= driven.p99_ms <= driven.p999_ms <= driven.seconds * 1e3


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (
            b'{"type":"WELCOME","node":1,"session":"s","born":0,"acknowledged":0,"last_seq":0,"leader":0,"term":1}\n',
            "WELC",
        ),
        (b'{"type":"ERROR","reason":"no"}\n', '"reason":"no"'),
        (b"", "the node closed the connection"),
    ],
)
def test_the_c_client_ends_with_an_answer_that_it_does_not_expect(program: str, answer: bytes, complaint: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async def run() -> tuple[int | None, bytes]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            words = ("1", "1", "1", "1", "10", "9001", str(port))
            child = await asyncio.create_subprocess_exec(program, *words, stderr=asyncio.subprocess.PIPE)
            _, said = await asyncio.wait_for(child.communicate(), TOO_LONG_S)
            return child.returncode, said

    code, said = asyncio.run(run())
    assert code == 1 and complaint in said.decode()


def lines_of(*messages: tuple[int, int, int, str]) -> bytes:
    """A message log with (seq_no, sender, n, payload)."""
    return b"".join(
        b'{"seq_no":%d,"term":1,"sender_id":%d,"msg_id":"s-%d","timestamp":1.0,"payload":"%s"}\n'
        % (seq_no, sender, n, payload.encode())
        for seq_no, sender, n, payload in messages
    )


WHOLE = ((1, 9001, 1, "9001:1 xxx"), (2, 9002, 1, "9002:1 xxx"), (3, 9001, 2, "9001:2 xxx"))


@pytest.mark.parametrize(
    ("logs", "reason"),
    [
        ([lines_of(*WHOLE), lines_of(*WHOLE[:2])], "logs differ"),
        ([lines_of(*WHOLE[:2])] * 2, "2 messages are in the message logs, 3 were acknowledged"),
        ([lines_of(WHOLE[0], WHOLE[1], (3, 9001, 1, "9001:1 xxx"))] * 2, "expected message 2 of client 9001"),
        ([lines_of(WHOLE[0], WHOLE[1], (3, 9001, 2, "9001:2 xxy"))] * 2, "expected message 2 of client 9001"),
        ([lines_of(WHOLE[0], WHOLE[1], (4, 9001, 2, "9001:2 xxx"))] * 2, "line 3 of the message logs"),
    ],
)
def test_logs_that_are_not_what_the_c_client_sent_are_refused(logs: list[bytes], reason: str) -> None:
    step = bare.Drive("client", 2, 1, 1, 3, bare.NODES, 10)
    bare.verify(step, [lines_of(*WHOLE)] * 3)
    with pytest.raises(RunFailed, match=reason):
        bare.verify(step, logs)


def test_without_a_compiler_the_section_says_so_and_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    into, said = Collected(), list[str]()
    bare.bare(into, Runs(tmp_path, said.append), quick=True)
    assert not into.figures()
    assert said == ["section bare is left out: no gcc and no cc in PATH"]


def test_a_client_that_cannot_be_compiled_names_the_compiler_s_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    useless = shutil.which("false")
    monkeypatch.setattr("shutil.which", lambda name: useless)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(bare.Unavailable, match="false -O2"):
        bare.compiled(tmp_path)


def test_a_run_that_does_not_complete_gives_no_figure(tmp_path: Path) -> None:
    runs = Runs(tmp_path, lambda text: None)
    scenario = runs.scenario("bench_test", Load(in_flight=1, count=5))
    kept: list[Ran] = []
    runs.carry_out(scenario, kept.append)
    ran = kept[0]
    assert ran.metrics.load.acknowledged == 5
    assert ran.written_bytes > 0
    assert not ran.run.path.exists()
    short = replace(ran.metrics, load=replace(ran.metrics.load, sent=6))
    with pytest.raises(RunFailed, match="1 of 6 messages not acknowledged"):
        check_run(scenario, Ran(ran.run, ran.meta, short))
