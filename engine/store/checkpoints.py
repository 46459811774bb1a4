"""Checkpoints of a training in its work folder: which are whole, how far the last one got, and whether it is to rest there.

Owns the marks of both.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

from caiflow.engine.errors import StepError
from caiflow.engine.store.disk import sync, sync_tree
from caiflow.engine.store.file_digests import file_sizes

CHECKPOINTS = "checkpoints"
LEARNT = "learnt"
"""Beside the checkpoints: what a training learnt, of which every form of it is made."""
COMPLETE = "complete"
"""The file that marks a checkpoint as written to its end."""
RESTS = "rests"
"""Beside the checkpoints: the file whose presence asks the training to save one and to go no further."""

SEEN_S = 90.0
"""How long what one node wrote may take to be seen on another: NFS keeps what it knows of a folder for a minute."""
KEPT = "what is done is kept, and of a training what its last checkpoint has"
"""What a run that is cut off keeps, in words."""


def steps_kept(work_dir: Path) -> int:
    """Return the optimizer steps that a training cut off before needn't do again."""
    return steps_of(last_checkpoint(work_dir / CHECKPOINTS, clean=False))


def going_on(work_dir: Path) -> str:
    """Say where a training that was cut off will go on; its process may yet save one more checkpoint."""
    kept = steps_kept(work_dir)
    told = f"goes on from its last checkpoint, of step {kept} or later" if kept else "begins anew: no checkpoint was due yet"
    return f"the training {told} (`save_steps` says when one is made)"


def have_rest(work_dir: Path, asked: bool) -> None:
    """Ask a training to rest, or no longer."""
    if asked:
        (work_dir / RESTS).touch()
    else:
        (work_dir / RESTS).unlink(missing_ok=True)


def is_to_rest(work_dir: Path) -> bool:
    """Say whether a training is asked to rest."""
    return (work_dir / RESTS).exists()


def last_checkpoint(folder: Path, *, clean: bool = True) -> Path | None:
    """Return the newest checkpoint that was written to its end; `clean` removes those that weren't."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).exists():
            found.append((int(path.name.rpartition("-")[2]), path))
        elif clean:
            shutil.rmtree(path)
    return max(found)[1] if found else None


def seen_checkpoint(folder: Path, step: int) -> Path | None:
    """Return the whole checkpoint of a step, which another process has found; none of step 0.

    Raises:
        StepError: it isn't seen from here, however long a shared file system may take to show it.
    """
    if not step:
        return None
    checkpoint, until = folder / f"checkpoint-{step}", time.monotonic() + SEEN_S
    while not (checkpoint / COMPLETE).exists():
        if time.monotonic() > until:
            told = f"{checkpoint} is whole, and isn't seen from {socket.gethostname()}"
            raise StepError(told, "put CAIFLOW_HOME on a file system that all nodes share, under one path")
        time.sleep(0.2)
    return checkpoint


def leave_learnt(made: Path, work_dir: Path) -> Path:
    """Move a folder with all that a training learnt to its place in the work folder, with a list of its files; return where."""
    (made / COMPLETE).write_text(json.dumps(file_sizes(made)), encoding="utf-8")
    kept = work_dir / LEARNT
    shutil.rmtree(kept, ignore_errors=True)
    made.rename(kept)
    return kept


def left_learnt(work_dir: Path) -> Path | None:
    """Return where a work folder has what a training learnt, once every file is seen from here."""
    folder = work_dir / LEARNT
    try:
        listed = json.loads((folder / COMPLETE).read_bytes())
    except OSError:
        return None
    return folder if listed == {name: size for name, size in file_sizes(folder).items() if name != COMPLETE} else None


def steps_of(checkpoint: Path | None) -> int:
    """Return the optimizer steps that a checkpoint holds; 0 for none."""
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def mark_complete(checkpoint: Path) -> None:
    """Mark a checkpoint as written to its end; a kill before this leaves it unmarked, and it is never resumed from."""
    sync_tree(checkpoint)
    (checkpoint / COMPLETE).touch()
    sync(checkpoint)
