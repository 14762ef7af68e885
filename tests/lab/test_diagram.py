"""Diagrams: everything in a run has its place, repetitions are counted, and the picture shows the same as the text."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import cli
from lab.course.frames import frame_text
from lab.plan import scenario as plan
from lab.rows import Acked, FaultRow, FrameRow, HistoryRow, Invoke, Phase, Unknown, encode_row
from lab.rundir import RunDir
from lab.runs import How, run_once
from lab.show import window
from lab.show.diagram import LANE, render_svg, render_text
from lab.show.story import CLIENTS, Arrow, Note, Skipped, Story, _without_traffic, around, read
from lab.steps import Kill, Sleep
from lab.words import Duration
from nodeproc.core.messages import Batch, Copy, Record
from tests.lab.synthetic import build_run, doctor_meta

MS = 1_000_000
START = 5_000_000_000

GOLDEN = """\
story, seed 7, mutant two_votes_in_one_term

            clients      node 1      node 2
   0.0010      o           |           |        client 9 sends n=1..2
   0.0020      |           |---------->|        APPEND term 1, 1..2 of term 1 behind 1:0, commit 0
   0.0030      |           |     x-----|        APPENDED term 1, position 1:2  (lost)
   0.0040      |           |           #        link 1>2 1>3: frames APPEND, loss 1
   0.0050      |           *           |        became leader: term 2, last seq 2
   0.0060      #           |           |        heal, all nodes
   0.0070      |           |---------->|        HEARTBEAT term 2  (sent at 0.0010)
   0.0080      |           |           |        … 2 repetitions
   0.0100      o           |           |        client 9: up to n=1 acknowledged, seq_no 4
   0.0110      o           |           |        client 9: n=2 given up, outcome unknown
   0.0120      #           |           |        the lab: healed

=> A7: term 2 has two leaders
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of two nodes with one of everything."""
    run = RunDir(tmp_path)
    build_run(tmp_path)
    doctor_meta(
        run,
        scenario="story",
        seed=7,
        t_start=START,
        mutant="two_votes_in_one_term",
        frames="all",
        watched="A7: term 2 has two leaders",
    )
    for node in run.node_ids():
        run.events(node).write_bytes(b"")
        if node > 2:
            for path in sorted(run.node_dir(node).rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            run.node_dir(node).rmdir()
    at = [START + number * MS for number in range(20)]
    events = [
        {"t_ns": START - MS, "node": 1, "event": "starting", "term": 1},
        {"t_ns": at[5], "node": 1, "event": "became_leader", "term": 2, "last_seq": 2},
        {"t_ns": at[6], "node": 1, "event": "heartbeat_sent", "peers": 1},
    ]
    run.events(1).write_text("".join(json.dumps(event) + "\n" for event in events) + '{"t_ns":12')
    frames = [
        FrameRow(at[1], 1, 2, "APPEND", "term 1, 1..2 of term 1 behind 1:0, commit 0", (at[2],)),
        FrameRow(at[3], 2, 1, "APPENDED", "term 1, position 1:2", ()),
        FrameRow(at[1], 1, 2, "HEARTBEAT", "term 2", (at[7], at[8])),
        FrameRow(at[9], 1, 2, "HEARTBEAT", "term 2", (at[9],)),
    ]
    run.frames.write_bytes(b"".join(map(encode_row, frames)))
    rule = {"frames": ["APPEND"], "loss": 1.0, "delay": 0.0, "distribution": "uniform", "behind": 1, "at_most": 0.1}
    run.write_faults(
        [
            FaultRow("link", 2, "follower", at[4], at[4], {"pairs": [[1, 2], [1, 3]], "rule": rule}, True, 0),
            FaultRow("heal", 0, "", at[6], at[6], {"links": 2}, True, 1),
        ]
    )
    rows: list[HistoryRow] = [
        Invoke(at[1], 9, "s", 1, 2, at[1], payloads=("a", "b")),
        Acked(at[10], "s", 1, 4),
        Unknown(at[11], "s", 2, 1),
        Phase(at[12], "healed"),
        Phase(at[12], "step", "sleep"),
    ]
    run.history.write_bytes(b"".join(map(encode_row, rows)))
    return run


def test_a_diagram_has_a_place_for_everything(run: RunDir) -> None:
    assert render_text(read(run)) == GOLDEN


def test_everything_is_shown_where_it_is_asked_for(run: RunDir) -> None:
    story = read(run, everything=True)
    assert not any(isinstance(item, Skipped) for item in story.items)
    text = render_text(story)
    assert text.count("HEARTBEAT") == 3 and "heartbeat sent: peers 1" in text and "-0.0010" in text


def test_of_a_long_story_the_end_is_shown(run: RunDir) -> None:
    text = render_text(read(run), most=3)
    assert "8 earlier lines left out" in text and "client 9 sends" not in text and "the lab: healed" in text


def test_a_frame_with_copies_of_records_is_shown() -> None:
    record = Record(Batch(2, 4, 6, ()), b"", 0)
    assert frame_text(Copy(1, (record,))) == "number 1, records [4..6 of term 2]"


def test_without_frames_it_is_said_how_to_get_them(run: RunDir) -> None:
    doctor_meta(run, frames="chosen")
    assert render_text(read(run)).endswith("(plain traffic was not recorded; --sim --frames records all frames)\n")
    doctor_meta(run, frames="none")
    run.frames.unlink()
    text = render_text(read(run))
    assert "(no frames were recorded; --sim --frames records all frames)" in text and "became leader" in text


def test_the_story_of_a_window_is_that_part_of_the_whole_story(run: RunDir) -> None:
    whole = read(run, everything=True)
    since, until = START + 4 * MS, START + 9 * MS
    part = read(run, everything=True, window=(since, until))
    assert part.items == [item for item in whole.items if since <= item.t <= until] != []
    assert all(item.mark != "o" for item in read(run, clients=False).items if isinstance(item, Note))


@given(st.lists(st.integers(0, 400), min_size=1, max_size=400).map(sorted), st.integers(0, 401), st.integers(0, 401))
def test_a_window_of_a_file_is_found_whatever_its_times(times: list[int], since: int, lasts: int) -> None:
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "_CLOSE_BYTES", 64)
        path = Path(directory) / "rows"
        path.write_text("".join(f'{{"n":{n},"t_ns": {t}}}\n' + '{"torn' * (n % 7 == 3) for n, t in enumerate(times)))
        lines = list(window.lines_between(path, since, since + lasts, key=b'"t_ns":'))
    assert [json.loads(line[line.index(b'{"n"') :])["n"] for line in lines] == [
        n for n, t in enumerate(times) if since <= t <= since + lasts
    ]


def test_the_picture_has_the_same_words_and_an_arrow_for_each_frame(run: RunDir) -> None:
    story = read(run)
    picture = ElementTree.fromstring(render_svg(story))
    space = "{http://www.w3.org/2000/svg}"
    words = {element.text for element in picture.iter(f"{space}text")}
    for line in GOLDEN.splitlines()[3:-2]:
        assert line[9 + 1 + 3 * LANE + 2 :] in words
    lanes = 3
    frames = 3
    assert len(list(picture.iter(f"{space}line"))) == lanes + frames
    assert len(list(picture.iter(f"{space}polygon"))) == frames - 1, "the lost one has no tip"
    assert GOLDEN.splitlines()[-1].removeprefix("=> ") in words


def test_the_command_draws_a_simulated_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = plan.Scenario(name="short", description="d", steps=(Kill(target=3), Sleep(time=Duration(1))))
    result = run_once(scenario, 1, tmp_path, How(sim=True, frames=True))
    assert result.directory is not None
    assert cli.main(["diagram", str(result.directory)]) == 0
    text = capsys.readouterr().out
    assert "short, seed 1" in text and "kill" in text and "VOTE_REQUEST term 2" in text and "=> nothing broke" in text
    assert "became leader: term 2" in text
    assert cli.main(["diagram", str(result.directory), "--svg"]) == 0
    assert ElementTree.parse(capsys.readouterr().out.strip()).getroot().tag.endswith("svg")


def test_a_directory_that_is_no_run_is_64(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagram", str(tmp_path)]) == 64
    assert "not a finished run" in capsys.readouterr().err


# ---- long stories ---------------------------------------------------------------------------------------


def loaded_story() -> Story:
    """A kill between two long stretches of plain traffic."""
    story = Story("loaded", [1, 2], 0)
    acks = [Note(at, CLIENTS, "o", f"client 9: up to n={at} acknowledged, seq_no {at}") for at in range(200)]
    story.items = list(_without_traffic([*acks[:100], Note(100, 2, "#", "kill"), *acks[100:]]))
    return story


def test_messages_on_their_way_are_counted_and_left_out() -> None:
    items = loaded_story().items
    skipped = [item for item in items if isinstance(item, Skipped)]
    assert [(each.count, each.what) for each in skipped] == [(92, "lines of traffic")] * 2
    assert len(items) == 2 * (4 + 1 + 4) + 1
    assert "… 92 lines of traffic" in render_text(loaded_story())


@pytest.mark.parametrize(
    "odd",
    [
        Note(5, CLIENTS, "o", "client 9: n=5 rejected"),
        Note(5, CLIENTS, "o", "client 9: n=5..7 given up, outcome unknown"),
        Note(5, 1, "*", "leader timeout: leader 2"),
        Arrow(5, 4, 1, 2, "APPEND", "", lost=True),
        Arrow(5, 4, 1, 2, "ELECTION", "term 2", lost=False),
    ],
    ids=lambda item: item.text,
)
def test_items_other_than_traffic_are_never_left_out(odd: Note | Arrow) -> None:
    usual = [Arrow(at, at, 1, 2, "APPEND", str(at), lost=False) for at in range(100)]
    assert odd in list(_without_traffic([*usual[:50], odd, *usual[50:]]))


def test_only_lines_around_a_word_are_kept() -> None:
    story = loaded_story()
    around(story, "kill", 4)
    assert [item.t for item in story.items] == [98, 99, 100, 100]
    with pytest.raises(ValueError, match="allowed: kill"):
        around(story, "cut", 4)


def test_the_command_draws_around_a_word_and_refuses_one_that_is_not_there(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["diagram", str(run.path), "--around", "heal", "--lines", "2"]) == 0
    assert "#           |           |        heal, all nodes" in capsys.readouterr().out
    assert cli.main(["diagram", str(run.path), "--around", "earthquake"]) == 64
    assert "nothing in this run contains 'earthquake'; allowed: became leader," in capsys.readouterr().err
