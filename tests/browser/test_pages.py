"""What a user sees and does: a replayed run, a session by hand, an audience, servers that end, and reports."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from lab import cli
from lab.live.children import child_environment
from lab.plan.sense import load_checked
from lab.rundir import RunDir
from lab.runs import judge
from lab.show.report import SIZE_MOST, write
from tests import TOO_LONG_S
from tests.browser.conftest import Foreign, Page, Served
from tests.lab.synthetic import build_run

HOSTILE = """<img src=x onerror=document.title='hit'><b>bold</b> 'single' "double" \\ back #"""


def place_of(results: Path) -> str:
    run = (results / "latest").resolve()
    return f"run/{quote(run.parent.name)}/{quote(run.name)}"


def begin_session(page: Page, served: Served) -> None:
    page.open(served.address())
    page.click("Start")
    page.has('[role="toolbar"]')
    page.node(3, "leader")


# ---- a finished run ---------------------------------------------------------------------------------


def test_a_finished_run_shows_its_nodes_its_faults_and_its_news_in_order(
    page: Page, served: Served, finished: Path
) -> None:
    page.open(served.address())
    page.says("leader_failure")
    assert page.text("tbody tr td:nth-child(5)") == "✓ pass"
    page.open(served.address(place_of(finished)))
    page.says("PASS", '[role="status"]')
    assert [element.get_attribute("aria-label").split(",")[0] for element in page.all(".node")]
    page.says("The last failover: kill: leader")
    assert {element.get_attribute("textContent") for element in page.all(".window title")} == {"kill: leader"}
    times = [float(element.text) for element in page.all(".news li span:first-child")]
    assert times == sorted(times, reverse=True) and len(times) > 10
    assert not page.all('[role="toolbar"], form'), "nothing can be done to a finished run"
    assert page.errors() == []


def test_a_replay_goes_through_the_run_in_the_time_that_is_asked_for(
    page: Page, served: Served, finished: Path
) -> None:
    page.open(served.address(f"{place_of(finished)}?speed=0.05"))
    page.node(3, "leader")
    assert "PASS" not in page.text("header"), "the kill comes after 20 s"
    page.open(served.address(f"{place_of(finished)}?speed=2"))
    page.node(3, "down")
    page.node(2, "leader")
    page.says("PASS", '[role="status"]')


# ---- a session by hand ------------------------------------------------------------------------------


def test_a_session_by_hand_is_judged_and_its_scenario_passes_again(page: Page, served: Served, tmp_path: Path) -> None:
    begin_session(page, served)
    page.node(3, "leader").click()
    page.click("Kill")
    page.node(3, "down")
    page.node(2, "leader")
    assert page.has(".hands button:disabled").get_attribute("title") == "node 3 is down"
    page.type("#step", "load: stop\n")
    page.says("load: stop: done", ".said")
    page.type("#say", f"{HOSTILE}\n")
    page.says(f"9999: {HOSTILE[:40]}", ".logs > div:nth-child(1)")
    page.says(f"9999: {HOSTILE[:40]}", ".logs > div:nth-child(2)")
    assert not page.all(".logs b b, .logs img") and "hit" not in page.browser.title
    page.type("#step", "load: start\n")
    page.says("load: start: done", ".said")
    page.click("Start")
    page.node(3, "follower")
    page.has('[aria-label="link of node 1 and node 2: whole"]').send_keys("\ue007")
    page.has('[role="group"][aria-label="Link of node 1 and node 2"]')
    page.click("Cut both ways")
    page.has(".link.ruled")
    page.says("Leader timeout! node_2: not heard", ".news")
    page.click("Heal all")
    page.lacks(".link.ruled")
    page.type("#step", "kill: n9\n")
    page.says('found "n9", allowed leader, follower', ".said")
    page.click("End the session")
    page.says("PASS", "header")
    (tmp_path / "kept.yml").write_text(page.file_behind("Save as a scenario"))
    again = load_checked(tmp_path / "kept.yml")
    words = [step.words for step in again.steps if step.word not in ("sleep", "load", "wait", "send")]
    assert words == ["kill: 3", "start: 3", "cut: {from: leader, to: 1, both: true}", "heal: all"]
    assert HOSTILE in next(step for step in again.steps if step.word == "send").clients[0].messages  # type: ignore[attr-defined]
    assert cli.main([str(tmp_path / "kept.yml"), "--sim", "--seed", "1", "--out", str(tmp_path / "again")]) == 0
    assert [error for error in page.errors() if "422" not in error] == []


def test_every_key_does_what_the_list_of_keys_says(page: Page, served: Served) -> None:
    begin_session(page, served)
    page.press("?")
    page.says("next link of the leader", ".keys")
    page.press("\ue00c")
    page.lacks(".keys")
    page.press("k")
    page.says("Kill: choose a node first", ".said")
    page.press("1p")
    page.node(1, "paused")
    page.press("k")
    page.node(1, "down")
    page.press("r")
    page.says("Resume: node 1 is down", ".said")
    page.press("s")
    page.node(1, "follower")
    page.press("c")
    page.has(".link.ruled")
    page.press("h")
    page.lacks(".link.ruled")
    page.press("2p")
    page.node(2, "paused")
    page.press("r")
    page.node(2, "follower")
    page.press("w")
    page.node(2, "down")
    page.press("h")
    page.node(2, "follower")
    page.press("l")
    page.has('[aria-label="Link of node 3 and node 1"]')
    page.press("l")
    page.has('[aria-label="Link of node 3 and node 2"]')
    page.press("\ue00c")
    page.lacks(".link-menu")
    page.press("d")
    assert page.has("html").get_attribute("data-theme") == "dark"
    page.press("d")
    assert page.has("html").get_attribute("data-theme") == "light"
    page.press("/")
    assert page.browser.switch_to.active_element.get_attribute("id") == "say"
    page.press("kill\ue00c")
    assert page.has("#say").get_attribute("value") == "kill", "letters in a text are no orders"
    page.press("k")
    page.says("press K again: Kill", ".said")
    page.press("k")
    page.node(2, "down")


def test_an_audience_sees_everything_and_can_do_nothing(page: Page, served: Served) -> None:
    begin_session(page, served)
    path = page.browser.execute_script("return location.pathname.slice(1)")
    page.press("1p")
    page.node(1, "paused")
    page.browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
    page.open(served.address(path, "looks"))
    page.node(1, "paused")
    assert not page.all("button, form, [role=button], [role=toolbar]")
    page.press("1k")
    for action in ("step", "session", "end"):
        assert _post(page, f"/api/{action}") == 403
    page.node(1, "paused")


def _post(page: Page, path: str) -> int:
    script = """fetch(arguments[0], {method: "POST", headers: {"Content-Type": "application/json"}, body: "{}"})
        .then((answer) => arguments[1](answer.status))"""
    return int(page.browser.execute_async_script(script, path))


# ---- who else may try --------------------------------------------------------------------------------

ATTACK = Path(__file__).with_name("attack.html")
"""What a foreign page tries; `U` stands for the address of the lab's server."""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "evil.test"])
def test_a_page_of_somebody_else_reads_nothing_and_orders_nothing(
    page: Page, served: Served, foreign: Foreign, host: str
) -> None:
    begin_session(page, served)
    own = page.browser.current_window_handle
    assert page.browser.execute_script("return document.cookie") == "", "no script can read the token"
    foreign.content = ATTACK.read_text().replace("U/", f"http://127.0.0.1:{served.port}/").encode()
    page.browser.switch_to.new_window("tab")
    page.browser.get(f"http://{host}:{foreign.port}/")
    found = page.until(lambda browser: browser.execute_script("return window.out && out.done && out"))
    assert found == {
        "a simple POST": "refused",
        "a POST of JSON": "refused",
        "a form": "sent",
        "fetch": "refused",
        "EventSource": "refused",
        "script": "refused",
        "done": True,
    }
    page.browser.switch_to.frame(0)
    assert "Runs" not in page.text("body"), "the page is not shown in a frame"
    page.browser.switch_to.window(own)
    page.press("2p")
    page.node(2, "paused")  # The session is still under way: what was ordered before has had its time.
    page.node(1, "follower")
    assert not re.search("kill", page.text(".news"))


def test_another_name_for_this_machine_is_refused_even_with_the_token(page: Page, served: Served) -> None:
    page.browser.get(served.address().replace("127.0.0.1", "evil.test"))
    assert "found Host 'evil.test:" in page.text("body")
    page.browser.get(f"http://127.0.0.1:{served.port}/?token=wrong")
    assert "open the address that the lab has printed" in page.text("body")


# ---- what ends ---------------------------------------------------------------------------------------


def test_a_run_ends_with_its_page_open_and_the_page_keeps_the_last_picture(page: Page, tmp_path: Path) -> None:
    scenario = tmp_path / "watched.yml"
    steps = "[{load: start}, {wait: {for: acknowledged, count: 20, within: 120s}}, {hands: 1s}, {sleep: 4s}]"
    scenario.write_text(f"name: watched\ndescription: d\nload: {{rate: 50}}\nsteps: {steps}\n")
    command = [sys.executable, "-m", "lab", str(scenario), "--watch", "--no-report", "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=child_environment()) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith(b"http://"):
                page.browser.get(line.decode().strip())
            if b"step 4" in line:
                break
        address = line.decode()
        page.until(lambda browser: browser.refresh() or browser.find_elements("css selector", ".node"), address)
        run.stderr.read()
        assert run.wait(TOO_LONG_S) == 0
    page.node(3, "")
    page.says("watched")


def test_a_page_continues_without_a_gap_when_its_server_starts_again(
    page: Page, served: Served, tmp_path: Path
) -> None:
    run = tmp_path / "results" / "mine" / "20261128T000000.000Z"
    run.mkdir(parents=True)
    whole = RunDir((tmp_path / "results" / "latest").resolve()).live.read_bytes().splitlines(keepends=True)
    half = len(whole) // 2
    (run / "live.jsonl").write_bytes(b"".join(whole[:half]))
    page.open(served.address(f"run/mine/{run.name}"))
    before = page.until(lambda _: [element.text for element in page.all(".news li")])
    served.stop()
    page.says("the server does not answer: what you see is old", '[role="status"]')
    with (run / "live.jsonl").open("ab") as live:
        live.writelines(whole[half:])
    served.start()
    page.says("PASS", '[role="status"]')
    after = [element.text for element in page.all(".news li")]
    assert after[-len(before) :] == before and len(after) > len(before)
    assert sorted(after) == sorted(_news(page, served, run))


def _news(page: Page, served: Served, run: Path) -> list[str]:
    """The news of a page that is opened now."""
    page.open(served.address(f"run/mine/{run.name}"))
    page.says("PASS", '[role="status"]')
    return [element.text for element in page.all(".news li")]


# ---- the report --------------------------------------------------------------------------------------


def test_a_report_needs_no_server_and_runs_nothing_but_its_own_scripts(
    page: Page, finished: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    shutil.copy(RunDir((finished / "latest").resolve()).report, report)
    page.browser.execute_cdp_cmd("Network.enable", {})
    page.browser.get(report.as_uri())
    page.says("PASS")
    assert page.errors() == []
    loaded = page.browser.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    text = report.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', text)
    assert policy is not None
    for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"sha256-{digest}" in policy[1]
    report.write_text(text.replace("</body>", "<script>document.title = 'hit'</script></body>"))
    page.browser.get(report.as_uri())
    assert page.browser.title != "hit" and any("Content Security Policy" in error for error in page.errors())


def test_the_report_of_a_long_run_opens(page: Page, tmp_path: Path) -> None:
    """REPORT_MESSAGES=1000000 for the figures of docs/results.md; `pytest -s` shows them."""
    messages = int(os.environ.get("REPORT_MESSAGES", "5000"))
    run = build_run(tmp_path / "long", batches=messages, batch=1, clients=50)
    judge(run, "long", 7)
    assert write(run) == ""
    page.browser.get(run.report.as_uri())
    page.says("PASS")
    page.says(f"{messages:,}")
    assert page.all("canvas"), "the curves are drawn"
    took_ms = page.browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    print(f"\n{messages:,} messages: {run.report.stat().st_size:,} bytes, loaded in {took_ms:.0f} ms")
    assert page.errors() == []
    assert run.report.stat().st_size < SIZE_MOST


# ---- for everybody -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_pages_have_no_fault_that_axe_finds(page: Page, served: Served, finished: Path, scheme: str) -> None:
    found: dict[str, Any] = {}
    page.open(served.address())
    found["index"] = page.violations(scheme)
    page.open(served.address(place_of(finished)))
    page.says("PASS", '[role="status"]')
    found["run"] = page.violations(scheme)
    page.open(served.address(f"{place_of(finished)}?stage"))
    found["stage"] = page.violations(scheme)
    begin_session(page, served)
    page.press("1")
    page.press("l")
    page.press("?")
    page.has(".link-menu")
    found["session"] = page.violations(scheme)
    assert {name: faults for name, faults in found.items() if faults} == {}, json.dumps(found, indent=1)
