"""Folders that pass for models or adapters: whatever their files hold, `validate` and `plan` end soon and say it in words."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from support.commands import command_here

DEEP = "[" * 100_000 + "]" * 100_000
OTHER_TYPES = {
    "max_position_embeddings": "many", "vocab_size": [], "text_config": 3, "weight_map": 7, "base_model_name_or_path": [],
    "revision": {}, "model": {"vocab": 3}, "added_tokens": 3, "chat_template": 3, "eos_token": {"content": []},
}  # fmt: skip
FILES: dict[str, bytes] = {
    "deep": DEEP.encode(),
    "deep_object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "no_json": b"{,}",
    "no_text": b"\xff\xfe\x00",
    "empty": b"",
    "null": b"null",
    "a_list": b"[1, 2]",
    "a_number": b"1" * 5000,
    "other_types": json.dumps(OTHER_TYPES).encode(),
    "a_long_head": struct.pack("<Q", 2**63) + b"{}",
}  # fmt: skip
NAMES = [
    "config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "model.safetensors",
    "model.safetensors.index.json", "adapter_config.json", "chat_template.jinja",
]  # fmt: skip
SPEC = """
caiflow: 1
name: theirs
models: {m: {source: model}}
steps:
  rows: {op: load, source: rows.jsonl}
  said: {op: generate, input: rows, model: m}
  sft:  {op: sft, input: said, model: m, max_length: 64, lora: {rank: 4, targets: [q_proj]}}
"""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", FILES)
def test_whatever_a_folder_holds_it_is_no_crash(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?"}\n')
    (tmp_path / "model").mkdir()
    if name != "adapter_config.json":
        (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model" / name).write_bytes(FILES[what])
    for command in ("validate", "plan"):
        found = command_here(tmp_path, command, "spec.yaml", CAIFLOW_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
        said = found.stdout + found.stderr
        assert found.returncode in (0, 1, 2), said
        assert "Traceback" not in said, said
        assert "the traceback is in" not in said, said
