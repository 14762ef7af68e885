"""`run_lab.py report`: a run as one HTML page, report.html in its directory.

The page works from the file system, loads nothing, and is below SIZE_MOST bytes however long the run was. It is made
from the run directory alone. Texts of the run, such as payloads, are escaped; only the page's own scripts may run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from markupsafe import Markup

from lab.check.evidence import evidence_text
from lab.check.history import RunFileError
from lab.check.metrics import Metrics, decode_metrics
from lab.check.verdict import Check, Verdict, decode_verdict
from lab.places import COMMAND, DOCS, near
from lab.rows import FaultRow, Meta
from lab.rundir import RunDir, RunDirError
from lab.show import closeup, plots
from lab.show.evidence import Excerpt, excerpts
from lab.show.lanes import lanes
from lab.show.page import policy, static, template
from lab.show.sentences import OUTCOMES, rules, sentence_case, sentences

SIZE_MOST: Final = 300_000
LEVELS: Final = (
    {"diagrams": 5, "diagram_rows": 80, "rows": 150, "excerpts": 9, "width": 500},
    {"diagrams": 3, "diagram_rows": 60, "rows": 80, "excerpts": 6, "width": 400},
    {"diagrams": 1, "diagram_rows": 40, "rows": 40, "excerpts": 3, "width": 200},
    {"diagrams": 0, "diagram_rows": 0, "rows": 20, "excerpts": 2, "width": 80},
)
"""How much the page shows, from much to little: the first that keeps it below SIZE_MOST is used.

diagrams, rows: of tables. excerpts: failed checks, and quoted lines of each. width: characters of a text of the run.
"""
_TEMPLATE: Final = Path(__file__).parent / "templates" / "report.html"
PASS, USAGE, HARNESS = 0, 64, 70


class Failure(NamedTuple):
    """A check that failed, its name and title, the rule that it judges, and the lines that show the violation."""

    check: Check
    name: str
    rule: str
    excerpts: list[Excerpt]


def _failure(run: RunDir, check: Check, said: dict[str, str], titles: dict[str, str]) -> Failure:
    name = check.name
    if check.name == "watch":  # It names the invariant that it found broken, as in `A7: node 1 has …`.
        name = check.detail.partition(":")[0]
    title = titles[name] if name in said else check.title
    return Failure(check, f"{name} {title}", said.get(name, ""), excerpts(run, check))


class Report:
    """The page of one run. Reads everything but the diagrams once.

    Raises:
        RunFileError, OSError, msgspec.MsgspecError: a file of the run cannot be read.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._meta: Meta = run.read_meta()
        self._faults: list[FaultRow] = run.read_faults()
        self._verdict: Verdict = decode_verdict(run.verdict.read_bytes())
        self._metrics: Metrics | None = decode_metrics(run.metrics.read_bytes()) if run.metrics.is_file() else None
        self._lanes = lanes(run, self._meta, self._faults)
        self._windows = plots.windows(self._meta, self._faults)

    def render(self) -> str:
        """Return the page."""
        for level in LEVELS:
            page = self._render(**level)
            if len(page.encode()) < SIZE_MOST:
                break
        return page

    def _render(self, diagrams: int, diagram_rows: int, rows: int, excerpts: int, width: int) -> str:
        meta, verdict, metrics = self._meta, self._verdict, self._metrics
        moments = closeup.failovers(meta, self._faults, self._lanes, self._acknowledged())
        shown = [closeup.draw(self._run, each, diagram_rows) for each in closeup.chosen(moments, diagrams)]
        broken_at = closeup.violation(meta, verdict)
        last = closeup.draw(self._run, broken_at, diagram_rows) if broken_at is not None and diagrams else None
        failures = self._failures()
        mark, word = OUTCOMES[verdict.outcome]
        scripts = [static("vendor/uPlot.iife.min.js"), static("report.js")]
        style = static("vendor/uPlot.min.css") + static("report.css")
        data = plots.data(meta, metrics, self._windows, broken_at.zero if broken_at is not None else 0)
        cut = partial(_cut, width=width)
        return template(_TEMPLATE).render(
            cut=cut,
            excerpts=excerpts,
            policy=policy(style, scripts),
            style=Markup(style),
            scripts=list(map(Markup, scripts)),
            data=Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
            meta=meta,
            verdict=verdict,
            metrics=metrics,
            mark=mark,
            word=word,
            sentences=[sentence_case(text) for text in sentences(meta, metrics, verdict) if text],
            failures=failures,
            undecided=[each for each in verdict.checks if each.result == "UNKNOWN" and each.decisive and not failures],
            missed=[each for each in verdict.expectations if each.met is False and not each.soft],
            last=last,
            windows=self._windows,
            roles=plots.role_bars(meta, self._lanes, self._windows),
            percentiles=None if metrics is None else plots.percentiles(metrics.histogram),
            diagrams=[each for each in shown if each is not None],
            moments_left=len(moments) - len(shown),
            rows=rows,
            fault_rows=[list(map(cut, self._fault_cells(at, row))) for at, row in enumerate(self._faults[:rows], 1)],
            faults_left=max(len(self._faults) - rows, 0),
            environment=[(name, cut(text)) for name, text in self._environment()],
            commands=self._commands(),
            files=self._files(),
        )

    def _failures(self) -> list[Failure]:
        said = rules(DOCS / "protocol.md")
        titles = {check.name: check.title for check in self._verdict.checks}
        failed = (check for check in self._verdict.checks if check.result == "FAIL")
        return [_failure(self._run, check, said, titles) for check in failed]

    def _acknowledged(self) -> dict[int, int]:
        """Return time of a leader's failure -> time of the first acknowledgement by the next leader, ns."""
        found = {}
        for each in () if self._metrics is None else self._metrics.failovers:
            for row in self._faults:
                close = abs((row.t - self._meta.t_start) / 1e9 - each.at_s) < 1e-6
                if close and row.target == each.node and each.acknowledged_ms is not None:
                    found[row.t] = row.t + round(each.acknowledged_ms * 1e6)
        return found

    def _seconds(self, t: int) -> str:
        return f"{(t - self._meta.t_start) / 1e9:.3f}"

    def _fault_cells(self, number: int, row: FaultRow) -> tuple[str, ...]:
        """Return number, from, to, fault, node, role before, effect and evidence of a fault."""
        until = self._seconds(row.t_healed) if row.t_healed else "-"
        node = f"node {row.target}" if row.target else "links" if "pairs" in row.evidence else "-"
        effect = "✓" if row.effect else "none"
        name = row.fault if not row.asked or row.fault in row.asked else f"{row.fault}, by {row.asked}"
        shown = row.asked if row.fault in row.asked else name
        return str(number), self._seconds(row.t), until, shown, node, row.role, effect, evidence_text(row)

    def _environment(self) -> list[tuple[str, str]]:
        meta, host = self._meta, self._meta.host
        memory = f", {host['memory_bytes'] / (1 << 30):.0f} GiB" if host.get("memory_bytes") else ""
        machine = " ".join(str(host.get(key, "")) for key in ("system", "release", "machine")).strip()
        rows = [
            ("started", meta.started_utc),
            ("world", "real processes" if meta.kind == "live" else "simulation, virtual time"),
            ("seed", str(meta.seed)),
            ("links", meta.links),
            ("disks", meta.disks),
            ("machine", f"{machine}, {host.get('cpus', '?')} CPUs{memory}"),
            ("interpreter", meta.interpreter),
            ("libraries", ", ".join(f"{name} {version}" for name, version in meta.versions.items())),
            ("cluster", _plain(meta.cluster)),
        ]
        return [(name, text) for name, text in rows if text]

    def _commands(self) -> list[tuple[str, str]]:
        """Return (purpose, command)."""
        meta, directory = self._meta, str(near(self._run.path))
        again = [COMMAND, shlex.quote(f"{directory}/scenario.yml"), "--sim" if meta.kind == "sim" else ""]
        again += [f"--seed {meta.seed}", f"--mutant {meta.mutant}" if meta.mutant else ""]
        found = [("run it again", " ".join(part for part in again if part))]
        words = ("check", "judge it again"), ("diagram", "draw its messages"), ("report", "make this page again")
        return found + [(purpose, f"{COMMAND} {word} {shlex.quote(directory)}") for word, purpose in words]

    def _files(self) -> list[str]:
        """Return the files that a reader may want to open, relative to the page."""
        run = self._run
        own = (run.scenario, run.meta, run.history, run.faults, run.live, run.frames, run.verdict, run.metrics)
        of_nodes = (path for node in run.node_ids() for path in (run.events(node), run.message_log(node)))
        return [str(path.relative_to(run.path)) for path in (*own, run.summary, *of_nodes) if path.is_file()]


def _plain(values: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# ---- the page -------------------------------------------------------------------------------------------


def write(run: RunDir) -> str:
    """Write report.html into the directory of a judged run. Return "", or in one line why that was not possible."""
    try:
        run.report.write_text(Report(run).render(), "utf-8")
    except OSError as error:
        return f"no report.html: {error.filename or near(run.path)}: {error.strerror}"
    except (RunFileError, msgspec.MsgspecError) as error:
        return f"no report.html: {error}"
    except Exception as error:  # A fault of the report must not look like a fault of the run.
        return f"no report.html: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""


# ---- the command ----------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py report`."""
    parser.add_argument("runs", metavar="RUN_DIR", nargs="+", type=Path, help="a judged run, such as results/latest")


def main(options: argparse.Namespace) -> int:
    """Make the pages again; return 0, 64 if a directory is no run, or 70 if a page could not be made."""
    code = PASS
    for path in options.runs:
        try:
            run = RunDir.open(path)
        except RunDirError as error:
            print(error, file=sys.stderr)
            return USAGE
        if problem := write(run):
            print(problem, file=sys.stderr)
            code = HARNESS
        else:
            print(near(run.report))
    return code
