"""What the hub says of a repository: the commit that a revision stands for, and the files that commit has.

Owns how long the hub is waited for, and telling one that is out of reach from one that says no. Downloads adapters alone, which
are small and which nobody can place before their files are read; models come when they are loaded.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, Literal, NamedTuple

from caiflow.engine.errors import UnreachableError, WrongValue, first_line
from caiflow.engine.llm.model_files import hub_cache

Kind = Literal["model", "dataset"]
PATIENCE_S = 20.0
"""For how long an answer is waited for, whatever holds it up: looking up the name and a server that trickles know no limit."""
_REQUEST_S = 10.0
_TOLD_FOR_S = 60.0
"""For how long what the hub says of a repository holds: for all steps of a plan, and not for ever in a notebook."""
_GONE_FOR_S = 10.0
"""For how long a hub that was out of reach isn't asked again, so that a plan waits once and not for each repository."""
_SAYS_NOTHING = (408, 425, 429)
"""Statuses, beside those of a server's own failures, that say nothing of what was asked for."""


class Told(NamedTuple):
    """What the hub said of a revision: its commit and its files."""

    commit: str
    names: tuple[str, ...]


_Answer = Told | UnreachableError | WrongValue
_told: dict[tuple[str, ...], tuple[float, _Answer]] = {}


def ask_hub(repo: str, revision: str | None, kind: Kind) -> Told:
    """Return what the hub says of a repository, asked once for all who want to know at about the same time.

    Raises:
        UnreachableError: it can't be asked, or doesn't answer.
        WrongValue: it says no: there is no such repository or revision, or not for this user.
    """
    if offline(kind):
        raise UnreachableError("offline by the environment")
    hub = (os.environ.get("HF_ENDPOINT", ""), str(hub_cache()))
    about = (*hub, kind, repo, revision or "")
    answer = _remembered(hub) or _remembered(about)
    if answer is None:
        answer = _within_patience(repo, revision, kind)
        _told[hub if isinstance(answer, UnreachableError) else about] = time.monotonic(), answer
    if isinstance(answer, Told):
        return answer
    raise answer


def fetched_adapter(repo: str, revision: str | None) -> Path:
    """Return the folder of an adapter's repository, downloaded into the hub's cache; what its own folders hold isn't.

    Raises:
        UnreachableError: the hub can't be asked, or the download breaks off.
    """
    from huggingface_hub import snapshot_download

    try:
        where: dict[str, Any] = {"cache_dir": hub_cache(), "endpoint": os.environ.get("HF_ENDPOINT") or None}
        return Path(snapshot_download(repo, revision=revision, ignore_patterns="*/*", **where))
    except Exception as error:  # the hub's own errors, and those of whatever it sends requests with
        raise UnreachableError(f"the adapter {repo} can't be downloaded: {first_line(error)}") from error


def offline(kind: Kind) -> bool:
    """Return whether the environment forbids asking the hub."""
    names = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", *(["HF_DATASETS_OFFLINE"] if kind == "dataset" else [])]
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def _remembered(about: tuple[str, ...]) -> _Answer | None:
    since, answer = _told.get(about, (0.0, None))
    holds = _GONE_FOR_S if isinstance(answer, UnreachableError) else _TOLD_FOR_S
    return answer if time.monotonic() - since < holds else None


def _within_patience(repo: str, revision: str | None, kind: Kind) -> _Answer:
    """Return the answer, or that there was none in time; whoever is still waiting then is left behind."""
    answers: Queue[_Answer] = Queue()
    Thread(target=lambda: answers.put(_asked(repo, revision, kind)), daemon=True).start()
    try:
        return answers.get(timeout=PATIENCE_S)
    except Empty:
        return UnreachableError(f"the hub gives no answer within {PATIENCE_S:g} s")


def _asked(repo: str, revision: str | None, kind: Kind) -> _Answer:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        info = (api.model_info if kind == "model" else api.dataset_info)(repo, revision=revision, timeout=_REQUEST_S)
        return Told(str(info.sha), tuple(sibling.rfilename for sibling in info.siblings or ()))
    except Exception as error:  # the hub's own errors, and those of whatever it sends requests with
        reason = first_line(error)
        status = getattr(getattr(error, "response", None), "status_code", None)
        says_no = isinstance(error, HFValidationError) or (status is not None and status < 500 and status not in _SAYS_NOTHING)
        return WrongValue(f"the hub says: {reason}") if says_no else UnreachableError(f"the hub is out of reach: {reason}")
