"""docs/client_protocol.md: its examples are what clients and nodes really say."""

from __future__ import annotations

import asyncio
import re
import sys
import textwrap
from pathlib import Path
from typing import get_args

import msgspec

from nodeproc import lines
from nodeproc.core.messages import Line
from tests import TOO_LONG_S
from tests.nodeproc.fakenode import FakeCluster

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "client_protocol.md").read_text(encoding="utf-8")
FROM_CLIENT = (lines.Hello, lines.Chat, lines.Subscribe, lines.StatusRequest, *get_args(lines.AdminRequest))
FROM_NODE = (
    Line,
    lines.Welcome,
    lines.Ack,
    lines.Reject,
    lines.LeaderLine,
    lines.Status,
    lines.Problem,
    lines.ChangeIs,
)


def test_every_line_shown_is_one_of_the_protocol() -> None:
    sent = {type(lines.decode_client_line(line.encode())) for line in re.findall(r"echo '(\{.*\})'", TEXT)}
    for line in re.findall(r"^    (\{.*\})$", TEXT, re.MULTILINE):
        if "…" in line:
            continue
        if line.startswith(('{"type":"HELLO"', '{"type":"CHAT"')):
            sent.add(type(lines.decode_client_line(line.encode())))
        else:
            answer = lines.decode_node_line(line.encode())
            assert isinstance(answer, Line) or lines.encode_line(answer).decode() == line + "\n"
    assert sent == set(FROM_CLIENT)


def test_the_session_shown_is_that_of_the_token_shown() -> None:
    """Rule: S1. The test vector for clients and nodes in other languages."""
    token = re.search(r"printf %s (\w+) \| sha256sum \| cut -c 1-24\n    (\w{24})\n", TEXT)
    assert token is not None
    assert lines.session_of(token[1]) == token[2] == "c4de547cd6625e4e6444c5cf"


def test_every_type_and_field_is_described() -> None:
    tables = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    for kind in (*FROM_CLIENT, *FROM_NODE):
        info = msgspec.inspect.type_info(kind)
        assert isinstance(info, msgspec.inspect.StructType)
        tag = f"`{info.tag}`" if info.tag else "(message)"
        assert tag in tables, tag
        if kind is not lines.Status:
            for field in info.fields:
                assert f"`{field.encode_name}`" in tables, (tag, field.encode_name)


def test_the_python_example_gets_its_acknowledgement() -> None:
    code = textwrap.dedent("    import json, socket" + TEXT.split("    import json, socket")[1].split("\n## ")[0])

    async def story() -> None:
        cluster = FakeCluster()
        (node,) = await cluster.start(1)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code.replace("5001", str(node.port)), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(TOO_LONG_S):
            out, _ = await process.communicate()
        await cluster.stop()
        assert process.returncode == 0 and b"WELCOME" in out
        assert cluster.payloads() == ["Hello"]

    asyncio.run(story())
