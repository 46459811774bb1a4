"""The hub of models and data sets: what a step made goes there with its card and recipe, and a recipe comes back from there.

Owns the calls of huggingface_hub that write, and what they are given. The token is that library's to find, and never read here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from caiflow.engine.errors import CaiflowError, WrongValue
from caiflow.engine.llm.hub import ask_hub
from caiflow.engine.lookback.cards import card
from caiflow.engine.lookback.export import Export, export
from caiflow.engine.lookback.opened import Run
from caiflow.engine.spec.permissions import Permissions
from caiflow.engine.store.artifacts import META
from caiflow.engine.store.file_digests import folder_files

if TYPE_CHECKING:
    from caiflow.engine.store.artifacts import Store

Kind = Literal["model", "dataset"]
RECIPE = "recipe"
"""The folder of a repository that holds the run to repeat, as `caiflow export` writes it."""
PREFIX = "hub:"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What is, or would be, in the repository; `exported` says what of the recipe had to stay behind."""

    kind: Kind
    files: tuple[str, ...]
    exported: Export
    url: str = ""
    commit: str = ""


def lay_out(run_dir: Path, step: str, target: Path, store: Store, allowed: Permissions, licence: str = "") -> Pushed:
    """Fill a folder with what the hub is to have of a step: its files, its card as README.md, and the recipe.

    Raises:
        CaiflowError: the step made neither rows nor a model.
    """
    run = Run(run_dir)
    text = card(run, step, licence)
    made = run[step].path
    for name in folder_files(made):
        if name != META:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / name, target / name)
    (target / "README.md").write_text(text, encoding="utf-8")
    exported = export(run_dir, target / RECIPE, store, allowed=allowed)
    kind: Kind = "model" if run[step].kind == "model" else "dataset"
    return Pushed(kind, tuple(folder_files(target)), exported)


def push(folder: Path, laid_out: Pushed, repo: str, *, private: bool, message: str) -> Pushed:
    """Make the repository where there is none, and commit the folder to it; return where it is.

    Raises:
        CaiflowError: the hub can't be reached, or refuses.
    """
    from dataclasses import replace

    from huggingface_hub import HfApi

    with _in_words(repo):
        api = HfApi()
        api.create_repo(repo, repo_type=laid_out.kind, private=private or None, exist_ok=True)
        done = api.upload_folder(repo_id=repo, repo_type=laid_out.kind, folder_path=folder, commit_message=message)
    return replace(laid_out, url=done.commit_url, commit=done.oid)


def fetch_recipe(name: str, target: Path) -> str:
    """Fetch the recipe of a repository, `hub:[datasets/]OWNER/REPO[@REVISION]`, into a folder; return its commit.

    Raises:
        CaiflowError: the hub can't be reached, has no such repository, or that has no recipe.
    """
    from huggingface_hub import snapshot_download

    where, _, revision = name.removeprefix(PREFIX).partition("@")
    kind: Kind = "dataset" if where.startswith("datasets/") else "model"
    repo = where.removeprefix("datasets/")
    with _in_words(where):
        commit = ask_hub(repo, revision or None, kind).commit
        fetched = snapshot_download(repo, repo_type=kind, revision=commit, allow_patterns=f"{RECIPE}/*")
    source = Path(fetched) / RECIPE
    if not (source / "spec.yaml").is_file():
        raise CaiflowError(f"{where}: it has no {RECIPE}/spec.yaml", "name a repository that `caiflow push` made")
    for file in folder_files(source):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
    return commit


@contextmanager
def _in_words(repo: str) -> Iterator[None]:
    """Say in words what the hub's library raises, and whatever it sends requests with."""
    from huggingface_hub import errors

    words: dict[type[Exception], tuple[str, str]] = {
        errors.HFValidationError: ("not the name of a repository", "write OWNER/REPO"),
        errors.RepositoryNotFoundError: ("the hub has no such repository, or not for you", "check the name, or hf auth login"),
        errors.RevisionNotFoundError: ("it has no such revision", "name a commit, a tag or a branch"),
        errors.LocalTokenNotFoundError: ("the hub wants to know who writes", "say hf auth login, or set HF_TOKEN"),
        errors.OfflineModeIsEnabled: ("HF_HUB_OFFLINE forbids asking the hub", "unset it"),
    }
    try:
        yield
    except (CaiflowError, WrongValue) as error:
        raise CaiflowError(f"{repo}: {error.message}", error.hint) from error
    except Exception as error:
        known = next((told for kind, told in words.items() if isinstance(error, kind)), None)
        raise (CaiflowError(f"{repo}: {known[0]}", known[1]) if known else _refused(repo, error)) from error


def _refused(repo: str, error: Exception) -> CaiflowError:
    """Return what the hub said no with, or that it can't be reached."""
    told = " ".join((getattr(error, "server_message", None) or str(error) or type(error).__name__).split())
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return CaiflowError(f"{repo}: the hub refused with {status}: {told}", "hf auth login with a token that may write there")
    if status is not None or isinstance(error, ValueError):
        return CaiflowError(f"{repo}: the hub refused{f' with {status}' if status else ''}: {told}")
    return CaiflowError(f"{repo}: the hub is out of reach: {told}", "look at HF_ENDPOINT and the network")
