"""Judge a run and leave the answer in its directory: verdict.json, metrics.json, summary.txt and junit.xml."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from lab.check.history import RunFileError
from lab.check.invariants import check
from lab.check.metrics import Metrics, encode_metrics, measure
from lab.check.verdict import Verdict, encode_verdict
from lab.rundir import RunDir
from lab.show.junit import junit
from lab.show.table import summary


class Judgement(NamedTuple):
    """One run, judged."""

    run: RunDir
    scenario: str
    verdict: Verdict
    metrics: Metrics | None
    """None: meta.json or the history could not be read; then some checks are UNKNOWN too."""
    text: str
    """As in summary.txt."""

    def as_object(self) -> dict[str, Any]:
        """For `--json`: one run."""
        return {
            "scenario": self.scenario,
            "run": str(self.run.path),
            "outcome": self.verdict.outcome,
            "exit_code": self.verdict.exit_code,
            "verdict": msgspec.to_builtins(self.verdict),
            "metrics": msgspec.to_builtins(self.metrics),
        }


def judge(run: RunDir) -> Judgement:
    """Judge a run from its directory and write what was found. May be done again at any time."""
    metrics = _measure(run)
    verdict = check(run, metrics)
    scenario = metrics.scenario if metrics is not None else run.path.parent.name
    text = summary(scenario, str(run.path), verdict, metrics)
    run.verdict.write_bytes(encode_verdict(verdict))
    if metrics is not None:
        run.metrics.write_bytes(encode_metrics(metrics))
    else:
        # Figures of an earlier judgement would be taken for this one's.
        run.metrics.unlink(missing_ok=True)
    run.summary.write_text(text)
    run.junit.write_bytes(junit(scenario, verdict, metrics.duration_s if metrics is not None else 0.0))
    return Judgement(run, scenario, verdict, metrics, text)


def _measure(run: RunDir) -> Metrics | None:
    try:
        return measure(run)
    except (OSError, RunFileError, msgspec.MsgspecError):
        # The checks read the same files and say which of them is unreadable.
        return None


def json_document(judgements: list[Judgement]) -> str:
    """What `--json` prints: one object with all runs in the order in which they were judged."""
    runs = [judgement.as_object() for judgement in judgements]
    return msgspec.json.format(msgspec.json.encode({"runs": runs}), indent=1).decode()
