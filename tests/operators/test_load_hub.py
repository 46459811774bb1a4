"""`load` from the hub, offline: the real hub client and `datasets`, on a cache laid out as the client lays it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image

OLD, NEW = "a" * 40, "b" * 40
PROGRAM = """
import json, sys
from pathlib import Path
from caiflow.operators.load import Load, LoadParams
from caiflow.engine.operator import StepContext
from caiflow.engine.errors import CaiflowError
from support.tables import run_table
for number, fields in enumerate(json.loads(sys.argv[1])):
    base = Path(sys.argv[2]) / str(number)
    base.mkdir(parents=True)
    step = Load(LoadParams(**fields), StepContext(base_dir=base))
    found = {"checks": [list(found[:2]) for found in step.check()], "remarks": [list(found[:2]) for found in step.remarks()]}
    found |= {"open": step.columns({}).open}
    try:
        found |= {"identity": dict(step.identity()), "sources": dict(step.sources())}
        found["rows"] = run_table(step, base / "out")[0].pylist()
    except ValueError as error:
        found["error"] = str(error)
    print(json.dumps(found))
"""


def turns(text: str) -> str:
    return f"\n\nHuman: {text}\n\nAssistant: yes"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A cache with one data set in two commits: `main` is the newer one."""
    folder = tmp_path / "hf" / "hub" / "datasets--org--dialogues"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(NEW)
    for commit, word in ((OLD, "old"), (NEW, "new")):
        for part, split in (("kind", "train"), ("kind", "test"), ("other", "train")):
            place = folder / "snapshots" / commit / part
            place.mkdir(parents=True, exist_ok=True)
            records = [{"chosen": turns(f"{word} {part} {split} {n}"), "rejected": turns("no")} for n in range(3)]
            (place / f"{split}.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
        (folder / "snapshots" / commit / "README.md").write_text("A data set of a test.\n")
    return tmp_path


def load(home: Path, *steps: dict[str, Any], hub: str = "") -> Iterator[dict[str, Any]]:
    """Yield what each load step makes of the cache in one process, offline or with a hub at an address."""
    tests = str(Path(__file__).parents[1])
    env = {
        **os.environ,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "" if hub else "1",
        **({"HF_ENDPOINT": hub} if hub else {}),
        "PYTHONPATH": tests,
        "HF_HUB_CACHE": str(home / "hf" / "hub"),
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(steps), str(home / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    yield from map(json.loads, done.stdout.splitlines())


def asked(found: dict[str, Any]) -> list[str]:
    return [row["prompt"][0]["content"] for row in found["rows"]]


def test_a_hub_id_loads_its_main_revision_and_pins_the_commit(hub: Path) -> None:
    [found] = load(hub, {"source": "org/dialogues", "folder": "kind", "hub_split": "test"})
    assert asked(found) == ["new kind test 0", "new kind test 1", "new kind test 2"]
    assert found["identity"] == {"content": f"org/dialogues:kind:test@{NEW}"}
    assert found["sources"] == {"source": f"org/dialogues@{NEW}"}
    assert found["checks"] == found["remarks"] == []
    assert found["open"]


MOVED = """
import pickle, sys
from pathlib import Path
from caiflow.operators.load import Load, LoadParams
from caiflow.engine.operator import StepContext
from support.tables import run_table
planned = Load(LoadParams(source="org/dialogues", folder="kind"), StepContext())
identity = planned.identity()
Path(sys.argv[1]).write_text(sys.argv[2])
again = pickle.loads(pickle.dumps(planned))
print(again.identity() == identity, run_table(again, Path(sys.argv[3]))[0].pylist()[0]["prompt"][0]["content"])
"""


def test_a_branch_that_moves_after_the_plan_is_read_as_it_was_planned(hub: Path) -> None:
    main = hub / "hf" / "hub" / "datasets--org--dialogues" / "refs" / "main"
    env = {**os.environ, "HF_HUB_CACHE": str(hub / "hf" / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", MOVED, str(main), OLD, str(hub / "out")]
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    assert subprocess.check_output(command, text=True, env=env | path).split() == ["True", "new", "kind", "train", "0"]


PLANNED = """
import pickle, sys
from pathlib import Path
from caiflow.operators.load import Load, LoadParams
from caiflow.engine.operator import StepContext
from support.tables import run_table
plan = Path(sys.argv[1])
if len(sys.argv) == 2:
    planned = Load(LoadParams(source="org/dialogues", folder="kind"), StepContext())
    planned.identity()
    plan.write_bytes(pickle.dumps(planned))
else:
    rows, _ = run_table(pickle.loads(plan.read_bytes()), Path(sys.argv[2]))
    print(rows.pylist()[0]["prompt"][0]["content"])
"""


@contextmanager
def moving(main: list[str], names: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Serve what a hub says of the commits that are in `names`, the last of `main` being the branch's; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            revision = self.path.partition("/revision/")[2]
            commit = revision if revision in names else main[-1]
            said = {"id": "org/dialogues", "sha": commit, "siblings": [{"rfilename": name} for name in names[commit]]}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_worker_reads_the_files_of_the_planned_commit_and_needs_no_hub_for_those_that_are_there(hub: Path) -> None:
    cached = hub / "hf" / "hub" / "datasets--org--dialogues"
    here = [path.relative_to(cached / "snapshots" / OLD).as_posix() for path in (cached / "snapshots" / OLD).rglob("*.*")]
    command = [sys.executable, "-c", PLANNED, str(hub / "plan")]

    def told(address: str, *args: str) -> str:
        env = {**os.environ, "HF_HUB_CACHE": str(cached.parent), "HF_HUB_OFFLINE": "", "HF_ENDPOINT": address}
        return subprocess.check_output([*command, *args], text=True, env=env | {"PYTHONPATH": str(Path(__file__).parents[1])})

    with moving(main := [OLD], {OLD: here, NEW: [*here, "kind/train-more.jsonl"]}) as address:
        told(address)
        main.append(NEW)
        assert told(address, str(hub / "one")) == "old kind train 0\n"
    shutil.rmtree(cached / ".caiflow")
    assert told(address, str(hub / "two")) == "old kind train 0\n", "a node without a way to the hub"


def test_a_part_that_was_never_fetched_is_told_while_offline(hub: Path) -> None:
    data = hub / "hf" / "hub" / "datasets--org--dialogues" / "snapshots" / NEW / "parts"
    data.mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00001-of-00003"):
        (data / f"{name}.jsonl").write_text(json.dumps({"prompt": name}))
    (found, partial) = load(
        hub, *({"source": "org/dialogues", "folder": "parts", "hub_split": part} for part in ("train", "test"))
    )
    assert asked(found) == ["train-00000-of-00002", "train-00001-of-00002"]
    told = "org/dialogues:parts:test: 2 parts of its files aren't in the hub's cache, as the names of the others tell"
    assert partial["error"] == f"{told}; fetch it while online"


def test_rows_with_an_image_are_the_same_in_every_process(hub: Path) -> None:
    images = [Image.new("RGB", (1, 1), colour) for colour in ("red", "blue")]
    kinds = {"prompt": datasets.Value("string"), "images": datasets.List(datasets.Image()), "about": datasets.Json()}
    features = datasets.Features(kinds)
    about = [{"place": 1}, {"place": 2}]
    rows = {"prompt": ["Which colour?"] * 2, "images": [[image] for image in images], "about": about}
    place = hub / "hf" / "hub" / "datasets--org--dialogues" / "snapshots" / NEW / "seen" / "train.parquet"
    place.parent.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(place))
    (found,) = load(hub, {"source": "org/dialogues", "folder": "seen"})
    stored = pq.read_table(place).column("images").to_pylist()
    digests = [hashlib.sha256(image["bytes"]).hexdigest() for (image,) in stored]
    assert [row["images"] for row in found["rows"]] == [[{"name": None, "sha256": digest}] for digest in digests]
    assert len(set(digests)) == 2
    assert [row["about"] for row in found["rows"]] == about


def test_what_has_another_type_in_each_row_is_read_as_it_is(hub: Path) -> None:
    place = hub / "hf" / "hub" / "datasets--org--dialogues" / "snapshots" / NEW / "mixed" / "train.jsonl"
    place.parent.mkdir()
    said = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": [{"type": "text", "text": "Here."}]}]
    place.write_text(json.dumps({"messages": said}))
    (found,) = load(hub, {"source": "org/dialogues", "folder": "mixed"})
    assert (asked(found), found["rows"][0]["response"]) == (["Tea?"], "Here.")


@pytest.mark.soak
def test_a_pinned_revision_and_another_folder(hub: Path) -> None:
    found, newer = load(
        hub, {"source": "org/dialogues", "revision": OLD, "folder": "other"}, {"source": "org/dialogues", "folder": "other"}
    )
    assert asked(found) == ["old other train 0", "old other train 1", "old other train 2"]
    assert asked(newer)[0].startswith("new")
    assert found["identity"] != newer["identity"]


def test_what_is_not_there_is_told(hub: Path) -> None:
    found, unknown, unsplit = load(
        hub,
        {"source": "org/missing"},
        {"source": "org/dialogues", "revision": "no-such"},
        {"source": "org/dialogues", "folder": "kind", "hub_split": "nope"},
    )
    assert found["remarks"][0][0] == ["source"]
    assert found["checks"] == [], "offline nobody knows whether it is there"
    assert "offline" in found["error"]
    assert "no-such" in unknown["error"]
    assert "org/dialogues" in unsplit["error"]


def test_without_a_network_the_cache_serves_or_the_message_says_what_to_do(hub: Path) -> None:
    with socket.socket() as nobody:  # bound, and not listening: whoever calls is refused
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        found, cached = load(hub, {"source": "org/missing"}, {"source": "org/dialogues"}, hub=address)
        assert found["error"].startswith("no data set org/missing in the hub's cache, nor to be had (the hub is out of reach: ")
        assert found["error"].endswith("; check the name, or fetch it while online")
        assert cached["identity"] == {"content": f"org/dialogues:train@{NEW}"}
