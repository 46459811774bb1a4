"""A real run that sends to a real S3: killed while it sends it loses nothing, and another machine goes on from the bucket."""

from __future__ import annotations

from pathlib import Path

import pytest

from caiflow.engine.store.bucket import VARIABLE
from caiflow.engine.store.journal import read_run
from support.bucket_server import KEYS, bucket_server
from support.events import read_events
from support.kills import start

pytestmark = [pytest.mark.soak, pytest.mark.kill]

SPEC = """
caiflow: 1
name: sent
models:
  base: {source: tiny, engine: transformers}
steps:
  prompts:  {op: load, source: "tiny:red_team_train.jsonl", format: hh, limit: 6}
  response: {op: generate, input: prompts, model: base, sampling: {max_tokens: 8}}
  tuned:    {op: sft, input: response, model: base, max_steps: 2, per_device_train_batch_size: 2, lora: {rank: 4}}
"""
MORE = """  again:    {op: generate, input: prompts, model: tuned, sampling: {max_tokens: 8}}
"""


def states(out: Path) -> dict[str, str]:
    return {name: step["status"] for name, step in read_run(out)["steps"].items()}


def test_a_kill_while_sending_loses_nothing_and_another_machine_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, longer = tmp_path / "sent.yaml", tmp_path / "longer.yaml"
    spec.write_text(SPEC)
    longer.write_text(SPEC + MORE)
    with bucket_server() as server:
        for name, value in {**KEYS, VARIABLE: server.address()}.items():
            monkeypatch.setenv(name, value)

        def finish(spec: Path, out: str, home: str) -> dict[str, str]:
            code = start(spec, tmp_path / out, tmp_path / home).wait(timeout=120)
            assert code == 0, (tmp_path / out / "console.txt").read_text()
            return states(tmp_path / out)

        monkeypatch.setenv(VARIABLE, "")
        assert set(finish(spec, "first", "one").values()) == {"done"}
        monkeypatch.setenv(VARIABLE, server.address())
        server.held = ".json"  # files are sent, and the first record is on its way
        driver = start(spec, tmp_path / "killed", tmp_path / "one")
        assert server.holding.wait(60)
        driver.kill()
        driver.wait()
        server.held = ""
        assert server.keys("/files/")
        assert not server.keys(".json")
        server.let_go.set()

        assert set(finish(spec, "resumed", "one").values()) == {"cached"}
        assert len(server.keys(".json")) == 3
        found = finish(longer, "elsewhere", "two")
        assert found == {"prompts": "cached", "response": "cached", "tuned": "cached", "again": "done"}
        logs = [event["text"] for event in read_events(tmp_path / "elsewhere") if event["event"] == "log"]
        assert sum("comes from s3://results/cai" in text for text in logs) == 3
        assert len(server.keys(".json")) == 4
