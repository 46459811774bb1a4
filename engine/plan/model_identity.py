"""From an entry of `models:` to something that can be loaded, with the identity that decides its answers.

Owns where models are looked for: the bundled one, packages, folders, GGUF files, the hub's cache, the hub, a served endpoint.
Loads nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from caiflow.engine.errors import EngineError, PlanError, UnreachableError
from caiflow.engine.identity import digest
from caiflow.engine.llm.base import ModelSource, only_vllm_gives
from caiflow.engine.llm.chat_template import with_variables
from caiflow.engine.llm.files import adapter_base, template_text
from caiflow.engine.llm.gguf import inspect, read_as, unpacked_name
from caiflow.engine.llm.hub import Told, ask_hub, fetched_adapter
from caiflow.engine.llm.model_files import BUNDLED, COMMIT, PACKAGED, bundled_folder, gguf_file, hub_snapshot
from caiflow.engine.machine import local_path
from caiflow.engine.spec.engine_args import counted
from caiflow.engine.store.artifacts import Store
from caiflow.engine.store.file_digests import file_digest, folder_manifest

if TYPE_CHECKING:
    from caiflow.engine.spec.grammar import ModelEntry
    from caiflow.engine.store.artifacts import Artifact


def resolve_model(
    name: str, entry: ModelEntry, base_dir: Path, *, store: Store | None = None, trust_remote_code: bool = False
) -> ModelSource:
    """Return the loadable form of `models.<name>`; `base_dir` is the spec's folder, `store` where GGUF weights are unpacked.

    Raises:
        PlanError: no such folder, and no such repository in the hub's cache or on the hub; a GGUF file that can't be read.
    """
    if entry.served:
        return _endpoint(name, entry, base_dir)
    where = f"models.{name}"
    gguf = _gguf(where, entry.source, base_dir)
    if gguf:
        path, weights = _unpacked(where, gguf, store or Store())
    else:
        path, weights = _locate(where, entry.source, entry.revision, base_dir)
    parts: dict[str, Any] = {"weights": weights, "dtype": entry.dtype, "quantization": entry.quantization}
    parts |= only_vllm_gives(entry.exact, entry.draws)
    if base := adapter_base(Path(path)):
        parts["base"] = _locate(f"{where}.source", *base, base_dir)[1]
    adapter = tokenizer = None
    if entry.adapter:
        adapter, parts["adapter"] = _locate(f"{where}.adapter", entry.adapter, None, base_dir, adapter=True)
    if entry.tokenizer:
        tokenizer, parts["tokenizer"] = _locate(f"{where}.tokenizer", entry.tokenizer, None, base_dir)
    template = _template(entry, base_dir, parts)
    options = _options(entry)
    if counting := counted(options["engine_args"]):
        parts["engine_args"] = counting
    return ModelSource(
        path=path,
        identity=digest(parts),
        revision=entry.revision,
        adapter=adapter,
        tokenizer=tokenizer,
        chat_template=template,
        template_variables=entry.chat_template_kwargs,
        dtype=entry.dtype,
        quantization=entry.quantization,
        engine=entry.engine,
        exact=entry.exact,
        draws=entry.draws,
        options=options,
        trust_remote_code=trust_remote_code,
        gguf=str(gguf) if gguf else None,
    )


def trained_model(artifact: Artifact, base: ModelSource | None) -> ModelSource:
    """Return the loadable form of a trained step; engine settings are those of the model it was trained from.

    How the engine computes and who draws are part of its identity, as of its model's.
    A kept adapter (`adapter_config.json` without weights of its own) is loaded on top of the model it names.
    """
    path, revision, adapter = str(artifact.path), None, None
    if named := adapter_base(artifact.path):
        adapter = path
        path, revision = (base.path, base.revision) if base else named
    options = {} if base is None or base.served else base.options
    settings: dict[str, Any] = dict(only_vllm_gives(base.exact, base.draws)) if base else {}
    if counting := counted(options.get("engine_args") or {}):
        settings["engine_args"] = counting
    if revision:
        settings["revision"] = revision
    return ModelSource(
        path=path,
        identity=digest({"weights": artifact.content, **settings}) if settings else artifact.content,
        revision=revision,
        adapter=adapter,
        tokenizer=str(artifact.path),
        dtype=base.dtype if base else "auto",
        engine=base.engine if base and not base.served else "auto",
        exact=base.exact if base else False,
        draws=base.draws if base else "caiflow",
        options=options,
        trust_remote_code=base.trust_remote_code if base else False,
        gguf=base.gguf if base and adapter else None,
    )


def _endpoint(name: str, entry: ModelEntry, base_dir: Path) -> ModelSource:
    """Return a served model; a `tokenizer` here renders prompts for it, where its server can't be told all that they need."""
    parts = {"endpoint": entry.base_url, "model": entry.source, "revision": entry.revision}
    tokenizer = None
    if entry.tokenizer:
        tokenizer, parts["tokenizer"] = _locate(f"models.{name}.tokenizer", entry.tokenizer, None, base_dir)
    template = _template(entry, base_dir, parts)
    return ModelSource(
        path=entry.source,
        identity=digest(parts),
        revision=entry.revision,
        tokenizer=tokenizer,
        chat_template=template,
        template_variables=entry.chat_template_kwargs,
        engine="openai",
        options=_options(entry),
    )


def _template(entry: ModelEntry, base_dir: Path, parts: dict[str, Any]) -> str | None:
    """Return the entry's chat template with its variables, which count towards the identity's `parts`."""
    template = template_text(entry.chat_template, base_dir)
    if template:
        parts["chat_template"] = digest(template)
    if entry.chat_template_kwargs:
        parts["chat_template_kwargs"] = entry.chat_template_kwargs
    return with_variables(template, entry.chat_template_kwargs) or None


def _options(entry: ModelEntry) -> dict[str, Any]:
    """Return what only the engine needs to know: its own arguments and, for an endpoint, how to reach it."""
    names = (
        "replicas",
        "node_labels",
        "num_gpus",
        "num_cpus",
        "base_url",
        "api_key_env",
        "max_calls",
        "max_tokens_total",
        "max_cost",
        "answers_as",
        "timeout_s",
        "concurrency",
    )
    options = {name: getattr(entry, name, None) for name in names}
    arguments = {**entry.engine_args.model_dump(mode="json", exclude_none=True), **entry.other_engine_args}
    if entry.prices is not None:
        options["prices"] = entry.prices.model_dump()
    return {**{name: value for name, value in options.items() if value not in (None, {})}, "engine_args": arguments}


def _gguf(where: str, source: str, base_dir: Path) -> Path | None:
    """Return the GGUF file that a source means, if it means one."""
    if (found := gguf_file(source, base_dir)) is not None:
        return found.resolve()
    if source in PACKAGED:
        raise PlanError(f"{where}: {source} isn't on this machine", PACKAGED[source].command)
    if source.endswith(".gguf"):
        raise PlanError(f"{where}: there is no file {source!r}", "give its path, absolute or beside the spec")
    return None


def _unpacked(where: str, file: Path, store: Store) -> tuple[str, str]:
    """Return where the weights of a GGUF file are, or will be once they are asked for, and what identifies them."""
    try:
        inspect(file)
    except EngineError as error:
        raise PlanError(f"{where}: {error.message}", error.hint) from error
    model = read_as(file, file_digest(file, store.files))
    return str(store.path(unpacked_name(model))), model


def _locate(where: str, source: str, revision: str | None, base_dir: Path, *, adapter: bool = False) -> tuple[str, str]:
    """Return (what `from_pretrained` takes, what identifies its contents); an `adapter` of the hub is fetched for its files."""
    if source in BUNDLED:
        return _folder(where, bundled_folder(source))
    for folder in (base_dir / source, local_path(source, Path())):
        if folder.is_dir():
            return _folder(where, folder.resolve())
    if source.endswith(".gguf"):
        raise PlanError(f"{where}: a GGUF file holds a whole model, got {source!r}", "name it as `source`")
    if source.count("/") > 1 or source.startswith((".", "~")):
        hint = "give a folder, a GGUF file, a hub id (org/name), `tiny` or `smollm2`"
        raise PlanError(f"{where}: no folder {source!r} beside the spec", hint)
    snapshot = hub_snapshot(source, revision)
    if snapshot is not None and not _cut_off(snapshot):
        return str(snapshot), f"hub:{source}@{snapshot.name}"
    try:
        commit, names = _asked(source, revision)
        if not adapter and ("adapter_config.json" not in names or "config.json" in names):
            return source, f"hub:{source}@{commit}"
        if "adapter_config.json" not in names:
            raise PlanError(f"{where}: {source!r} holds no adapter", "name a whole model as `source`")
        snapshot = fetched_adapter(source, revision)  # which model it is laid over is part of what identifies it
    except ValueError as error:
        told = f"{where}: {source!r} is neither a folder, nor in the hub's cache, nor to be had ({error})"
        kind = UnreachableError if isinstance(error, UnreachableError) else PlanError
        raise kind(told, "check the name, download it, or pin `revision` to a commit") from error
    return str(snapshot), f"hub:{source}@{snapshot.name}"


def _cut_off(folder: Path) -> bool:
    """Return whether this is an adapter whose download was cut off before its weights came."""
    return (folder / "adapter_config.json").exists() and not any(
        next(folder.glob(names), None) for names in ("config.json", "adapter_model.*")
    )


def _asked(repo: str, revision: str | None) -> Told:
    """Return a revision's commit and files; of a commit no files where the hub is out of reach."""
    pinned = revision if revision and COMMIT.fullmatch(revision) else None
    try:
        return ask_hub(repo, revision, "model")
    except UnreachableError:
        if pinned is None:
            raise
        return Told(pinned, ())


def _folder(where: str, folder: Path) -> tuple[str, str]:
    if (
        not (folder / "config.json").exists()
        and not (folder / "adapter_config.json").exists()
        and not list(folder.glob("token*"))
    ):
        raise PlanError(f"{where}: {folder} has no config.json", "give a folder in the Hugging Face layout")
    return str(folder), str(folder_manifest(folder)["digest"])
