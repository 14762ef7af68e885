"""The explorer: the product keeps all invariants within small bounds, and a mutant is found on the shortest path."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Final

import pytest

from lab.mutants.catalogue import mutated
from lab.search.explore import Finding, search
from lab.search.explore_cluster import Bounds, Clusters, Move, World
from lab.search.explore_node import Local, Locals, Numbers, content, copied, forget_times, let_pass, round_times
from nodeproc.core import state as core_state
from nodeproc.core.state import FOREVER, Leader


def silent(line: str) -> None:
    """Takes the lines about the progress."""


def explore(bounds: Bounds, depth: int | None = None) -> Finding:
    return search(Clusters(bounds), depth, silent)


def locals_of(clusters: Clusters, world: World) -> list[Local]:
    return [clusters.locals.nodes.things[world[a - 1]] for a in clusters.ids]


# ---- the product ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(messages=1),
        Bounds(elections=0),
        Bounds(messages=1, crashes=0, silences=2),
        Bounds(messages=1, crashes=0, elections=0, losses=2),
        Bounds(messages=1, crashes=0, elections=0, timeouts=1),
        Bounds(messages=0, crashes=0, elections=2, boot=True),
        Bounds(messages=1, elections=0, slow_disks=True),
        Bounds(nodes=2, elections=2),
        Bounds(nodes=1, crashes=2, elections=2),
        Bounds(messages=0, crashes=0, changes=1),
        Bounds(nodes=2, messages=0, crashes=0, changes=2, newcomers=1),
        Bounds(messages=1, crashes=0, changes=2, newcomers=1, exchanges=True),
    ],
    ids=str,
)
def test_no_order_of_events_breaks_the_product(bounds: Bounds) -> None:
    found = explore(bounds)
    assert (found.exhausted, found.problem, found.trace) == (True, "", ())
    assert found.transitions > found.states > 100


def test_the_search_begins_behind_an_election_or_before_any() -> None:
    for boot, leaders in ((False, [False, False, True]), (True, [False, False, False])):
        clusters = Clusters(Bounds(boot=boot))
        first = clusters.first()
        assert [clusters.locals.views[first[a - 1]].leads for a in clusters.ids] == leaders
        assert clusters.account(first)[:3] == (1, 1, 0), "what leads to the start is not counted"


def test_everything_that_the_bounds_allow_does_happen() -> None:
    clusters = Clusters(Bounds(messages=1, silences=2, losses=1))
    seen, level, done = {clusters.first()}, [clusters.first()], set[str]()
    for _ in range(6):
        moves = [(world, move) for world in level for move in clusters.moves(world)]
        done |= {move.do for _, move in moves}
        level = sorted({clusters.after(world, move) for world, move in moves} - seen)[:400]
        seen |= set(level)
    assert done == {"start", "sync", "submit", "stand", "kill", "lose_power", "take", "take_late", "lose", "relink"}


def test_a_timer_fires_only_where_that_is_asked_for() -> None:
    for timeouts in (0, 1):
        clusters = Clusters(Bounds(timeouts=timeouts))
        fires = [move for move in clusters.moves(clusters.first()) if move.do == "fire"]
        assert fires == [Move("fire", a) for a in clusters.ids if timeouts]


def test_polls_elect_a_leader_where_timers_fire() -> None:
    clusters = Clusters(Bounds(messages=0, crashes=0, elections=0, timeouts=1, boot=True))
    world = clusters.settled(clusters.after(clusters.first(), Move("fire", 3)))
    assert [clusters.locals.views[world[a - 1]].leads for a in clusters.ids] == [False, False, True]


def test_a_node_waits_no_longer_for_a_disk_that_has_answered() -> None:
    clusters = Clusters(Bounds(messages=2, timeouts=1))
    world = clusters.settled(clusters.after(clusters.first(), Move("submit", 3)))
    world = clusters.settled(clusters.after(world, Move("submit", 3)))
    for local in locals_of(clusters, world):
        assert local.node is not None and not local.disk.pending
        state = local.node.state
        assert (state.synced, state.unsynced_since) == (state.written, FOREVER)


def test_every_time_in_the_state_of_the_core_says_what_it_is() -> None:
    kinds = [each for each in vars(core_state).values() if isinstance(each, type)]
    parts = [each for each in kinds if dataclasses.is_dataclass(each) and each.__module__ == core_state.__name__]
    plain = {f"{part.__name__}.{field.name}" for part in parts for field in fields(part) if "float" in str(field.type)}
    assert len(parts) > 8 and plain == set()


def test_all_times_of_a_node_pass_and_are_forgotten_together() -> None:
    clusters = Clusters(Bounds(timeouts=1))
    leader = locals_of(clusters, clusters.first())[2].node
    assert leader is not None and isinstance(leader.state.role, Leader)
    state, role = leader.state, leader.state.role
    progress = role.progress[1]
    state.unsynced_since, role.heartbeat_at, progress.answered_at = 0.25, 0.5, 0.125
    let_pass(state, 0.25)
    assert (state.unsynced_since, role.heartbeat_at, progress.answered_at) == (0.0, 0.25, -0.125)
    let_pass(state, 9.0)
    round_times(state)
    assert (state.unsynced_since, role.heartbeat_at, progress.answered_at) == (-0.5, 0.0, -0.5)
    forget_times(state)
    assert (state.unsynced_since, role.heartbeat_at, progress.answered_at) == (FOREVER, FOREVER, 0.0)


# ---- changes of the members --------------------------------------------------------------------------


def test_a_leader_is_asked_for_the_changes_that_it_would_begin() -> None:
    clusters = Clusters(Bounds(messages=0, crashes=0, elections=0, changes=2, newcomers=1))
    assert list(clusters.moves(clusters.first())) == [Move("remove", 3, 1), Move("remove", 3, 2), Move("add", 3, 4)]
    world = clusters.settled(clusters.after(clusters.first(), Move("add", 3, 4)))
    assert Move("give_vote", 3, 4) in clusters.moves(world)
    world = clusters.settled(clusters.after(world, Move("give_vote", 3, 4)))
    lists = [clusters.list_of(clusters.marks(clusters.locals.views[world[a - 1]].log)[-1]) for a in clusters.ids]
    assert [(each.version, each.voters) for each in lists] == [(2, (1, 2, 3, 4))] * 4
    assert list(clusters.moves(world)) == [], "both changes are used up"


def test_a_removed_node_stops_when_a_heartbeat_of_its_leader_says_so() -> None:
    clusters = Clusters(Bounds(messages=0, crashes=0, elections=0, changes=1, timeouts=1))
    world = clusters.settled(clusters.after(clusters.first(), Move("remove", 3, 1)))
    assert [clusters.locals.views[world[a - 1]].up for a in clusters.ids] == [True, True, True]
    world = clusters.settled(clusters.after(world, Move("fire", 3)))
    assert [clusters.locals.views[world[a - 1]].up for a in clusters.ids] == [False, True, True]


def test_an_exchange_leaves_no_frame_between_its_two_nodes() -> None:
    clusters = Clusters(Bounds(messages=1, crashes=0, exchanges=True))
    world = clusters.after(clusters.first(), Move("submit", 3))
    assert list(clusters.moves(world)) == [Move("exchange", 1, 3), Move("exchange", 2, 3)]
    world = clusters.after(world, Move("exchange", 1, 3))
    assert not clusters.queue(world, 1, 3) and not clusters.queue(world, 3, 1) and clusters.queue(world, 3, 2)
    assert [clusters.locals.views[world[a - 1]].delivered for a in clusters.ids] == [1, 0, 1]


class OneOfEachKind(Clusters):
    """Of the choices that differ in the numbers of the nodes only: node 4 removes node 1, node 2 removes node 3."""

    CHOICES: Final = {Move("remove", 4, 1), Move("stand", 2), Move("remove", 2, 3), Move("stand", 4)}

    def moves(self, world: World) -> Iterator[Move]:
        return (move for move in super().moves(world) if move.do == "exchange" or move in self.CHOICES)


def test_the_bug_of_single_server_changes_is_found_and_the_product_does_not_have_it() -> None:
    bounds = Bounds(nodes=4, messages=0, crashes=0, elections=2, changes=2, exchanges=True)
    with mutated("change_right_after_an_election"):
        found = search(OneOfEachKind(bounds), None, silent)
    changes = [move for move in found.trace if move.do == "remove"]
    assert (len(found.trace), changes) == (13, [Move("remove", 4, 1), Move("remove", 2, 3)])
    assert found.problem == (
        "A4: node_4 leads term 5 without the mark of term 4 with list 1: node_1, node_2, node_4, which was committed"
    )
    right = search(OneOfEachKind(bounds), None, silent)
    assert (right.exhausted, right.problem) == (True, "") and right.states > found.states


# ---- crashes ----------------------------------------------------------------------------------------


def test_a_killed_process_keeps_written_data_and_a_power_loss_drops_it() -> None:
    clusters = Clusters(Bounds())
    world = clusters.after(clusters.first(), Move("submit", 3))
    written = {do: locals_of(clusters, clusters.after(world, Move(do, 3)))[2].disk for do in ("kill", "lose_power")}
    assert [record.position for record in written["kill"].log] == [(1, 0), (1, 1)]
    assert [record.position for record in written["lose_power"].log] == [(1, 0)]
    assert not written["kill"].pending and not written["lose_power"].pending


def test_a_restarted_node_remembers_term_and_vote_and_catches_up() -> None:
    clusters = Clusters(Bounds())
    world = clusters.after(clusters.first(), Move("lose_power", 1))
    world = clusters.settled(clusters.after(world, Move("submit", 3)))
    assert [len(local.disk.delivered) for local in locals_of(clusters, world)] == [0, 1, 1]
    world = clusters.settled(clusters.after(world, Move("start", 1)))
    first = locals_of(clusters, world)[0]
    assert (first.disk.term, first.disk.voted_for, len(first.disk.delivered)) == (1, 3, 1)


def test_an_fdatasync_covers_operations_written_before_it_began() -> None:
    clusters = Clusters(Bounds())
    world = clusters.after(clusters.first(), Move("submit", 3))
    world = clusters.after(world, Move("submit", 3))
    disk = locals_of(clusters, world)[2].disk
    assert (len(disk.pending), disk.begun) == (2, 1)
    disk = locals_of(clusters, clusters.after(world, Move("sync", 3)))[2].disk
    assert (len(disk.pending), disk.begun, disk.log[-1].position) == (1, 1, (1, 1))


# ---- states -----------------------------------------------------------------------------------------


def test_a_step_leaves_the_node_as_it_was() -> None:
    clusters = Clusters(Bounds())
    leader = locals_of(clusters, clusters.first())[2]
    assert leader.node is not None
    before = content(leader.node.state)
    copy = copied(leader.node.state)
    assert copy is not leader.node.state and content(copy) == before
    copy.role.progress[1].synced = False
    copy.log.marks.clear()
    assert content(copy) != before == content(leader.node.state)
    clusters.after(clusters.first(), Move("submit", 3))
    assert content(leader.node.state) == before


def test_two_orders_of_independent_events_lead_to_one_state() -> None:
    clusters = Clusters(Bounds())
    world = clusters.after(clusters.first(), Move("submit", 3))
    there, back = (Move("take", 1, 3), Move("take", 2, 3)), (Move("take", 2, 3), Move("take", 1, 3))
    ends = {clusters.after(clusters.after(world, one), other) for one, other in (there, back)}
    assert len(ends) == 1


def test_equal_things_have_one_number() -> None:
    numbers = Numbers()
    assert [numbers.of(key, key) for key in ("a", "b", "a")] == [0, 1, 0]


def test_each_node_takes_each_input_once() -> None:
    nodes = Locals(3, timers=False)
    empty = nodes.empty(1)
    assert nodes.step("start", empty) is nodes.step("start", empty)
    assert nodes.views[nodes.step("start", empty).local].up and not nodes.views[empty].up


# ---- broken rules -----------------------------------------------------------------------------------

BOOT = Bounds(messages=0, crashes=0, elections=2, boot=True)
CHANGE = Bounds(messages=0, crashes=0, elections=0, changes=1, newcomers=1, exchanges=True)


@pytest.mark.parametrize(
    ("mutant", "bounds", "moves", "problem"),
    [
        ("two_votes_in_one_term", BOOT, 4, "E4: node_3 votes for node_1 and for node_2 in term 1"),
        ("vote_not_durable", BOOT._replace(crashes=1), 7, "E4: node_1 votes for node_1 and for node_2"),
        ("vote_without_the_position_check", Bounds(messages=1), 9, "A4: node_2 leads term 2 without message 1"),
        ("acknowledge_before_durable", Bounds(messages=1), 4, "A4: message 1, .* is durable on 1 disks"),
        ("leader_counts_itself_before_its_fsync", Bounds(messages=1), 5, "A4: message 1, .* is durable on 1 disks"),
        ("commit_seq_used_before_the_own_mark", Bounds(messages=1), 14, "A1: node_3 delivers message 1"),
        ("duplicate_not_dropped", Bounds(messages=1), 13, "A3, A5: node_1 delivers message 1"),
        ("gap_in_the_log_accepted", Bounds(messages=2, crashes=0, elections=0, losses=1), 4, "R4: two logs differ"),
        ("two_voters_at_once", CHANGE._replace(nodes=5), 3, "G2: majorities of list 0: .* need not share a node"),
        ("newcomer_counted", CHANGE._replace(exchanges=False), 9, "G4: .* durable on 1 of its voters"),
        ("old_majority_for_the_new_mark", CHANGE._replace(changes=2), 5, "G4: .* durable on 2 of its voters"),
        ("list_in_force_late", CHANGE, 2, "G4: .* durable on 1 of its voters"),
    ],
)
def test_a_broken_rule_is_found_on_the_shortest_way(mutant: str, bounds: Bounds, moves: int, problem: str) -> None:
    with mutated(mutant):
        found = explore(bounds)
        short = explore(bounds, depth=moves - 1)
    assert len(found.trace) == found.depth == moves and not found.exhausted
    assert re.match(problem, found.problem)
    assert (short.problem, short.exhausted, short.depth) == ("", False, moves - 1)
