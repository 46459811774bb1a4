"""What is loaded from a model's folder or the hub: tokenizer, renderer, weights with their adapter.

Owns devices, dtypes and the errors of loading. Starts no engine, and imports torch and the libraries only where they load.
"""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any, Literal

from caiflow.engine.errors import EngineError
from caiflow.engine.llm.base import ModelSource
from caiflow.engine.llm.chat_template import with_variables
from caiflow.engine.llm.render import Renderer, own_template

Task = Literal["causal", "reward", "labels"]
"""What a model gives: the next token, one score, or a score for each of its labels."""


def classifier(source: ModelSource) -> str:
    """Return the architecture of a model that scores texts instead of writing them; empty for any other."""
    from transformers import AutoConfig

    try:
        found = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError):
        return ""  # an adapter alone, or nothing that can be read: loading it will tell
    return next((name for name in found.architectures or () if name.endswith("ForSequenceClassification")), "")


def refuse_kernels(source: ModelSource) -> None:
    """Refuse a model whose own settings name a repository of kernels: transformers would fetch it and run its code.

    Raises:
        EngineError: kind `load`: they do, and the model's code isn't trusted.
    """
    from transformers import AutoConfig

    if source.trust_remote_code:
        return
    try:
        found = AutoConfig.from_pretrained(source.path, revision=source.revision)
    except (OSError, ValueError):
        return  # loading it will tell
    for part in (found, *(getattr(found, name, None) for name in found.sub_configs)):
        for kind in ("attn", "experts"):
            named = getattr(part, f"_{kind}_implementation", None)
            if "/" in str(named):
                told = f"{source.path} names the kernels of {named}, whose code would run on this machine"
                raise EngineError(told, "that needs --trust-remote-code on the command line", kind="load")


def writes_no_text(source: ModelSource, architecture: str) -> EngineError:
    """Return the refusal of a model that scores texts where one is to write them."""
    said = f"{source.path} is a reward model or classifier ({architecture}), which writes no text"
    return EngineError(said, "name another; as a grader it gives the probability of a `label`", kind="load")


def refuse_classifier(source: ModelSource) -> None:
    """Refuse a model that scores texts where one is to write them: the libraries would give it a head with random weights.

    Raises:
        EngineError: kind `load`: it is one.
    """
    if name := classifier(source):
        raise writes_no_text(source, name)


def load_renderer(source: ModelSource) -> Renderer:
    """Return the renderer of `source`'s tokenizer and chat template, for generating, training and serving alike."""
    return Renderer(load_tokenizer(source), template_text(source.chat_template))


def load_tokenizer(source: ModelSource) -> Any:
    """Load the tokenizer of `source`: its own, or the one it names, else the adapter's model's.

    Raises:
        EngineError: kind `load`: it can't be found or read.
    """
    from transformers import AutoTokenizer

    name = source.tokenizer or source.path
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=None if source.tokenizer else source.revision, trust_remote_code=source.trust_remote_code
        )
    except Exception as error:
        raise load_error(f"the tokenizer of {name}", error) from error
    if source.template_variables:
        tokenizer.chat_template = with_variables(own_template(tokenizer), source.template_variables)
    return tokenizer


def load_model(source: ModelSource, device: str = "auto") -> Any:
    """Load the causal LM of `source` to answer with, its adapter on top, onto `device` (auto: cuda, mps or cpu).

    `dtype: auto` is float32 on a CPU, where half precision is slow, and the checkpoint's own elsewhere.

    Raises:
        EngineError: kind `load`: files missing or unreadable, memory short, a dtype or quantization that isn't known.
    """
    where = choose_device() if device == "auto" else device
    options = {"dtype": torch_dtype(source.dtype, where), **_quantization(source.quantization, where)}
    model = load_weights(source, fold=source.quantization is None, **options)
    if source.quantization is None:
        model = model.to(where)
    return model.eval()


def load_weights(source: ModelSource, task: Task = "causal", *, fold: bool = True, **options: Any) -> Any:
    """Load weights with their adapter folded in, or laid on top; `options` are those of transformers' `from_pretrained`.

    Raises:
        EngineError: kind `load`: files missing or unreadable, memory short, a reward model where one is to write texts.
    """
    from transformers.utils.logging import disable_progress_bar

    path, revision, adapter = base_and_adapter(source)
    refuse_kernels(source._replace(path=path, revision=revision))
    if task == "causal":
        refuse_classifier(source._replace(path=path, revision=revision))
    elif task == "reward":
        options["num_labels"] = 1
    kind = _auto_class(task)
    disable_progress_bar()  # it would stand between what commands print
    try:
        model = kind.from_pretrained(path, revision=revision, trust_remote_code=source.trust_remote_code, **options)
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
            model = folded(model) if fold else model
    except Exception as error:
        raise load_error(path + (f" with adapter {adapter}" if adapter else ""), error) from error
    return model


def folded(model: Any) -> Any:
    """Fold a model's adapters into its weights.

    A weight that is both token embedding and output head becomes two where an adapter is on either: folded into the one they
    share, what was learnt for the one would change the other too.
    """
    base = model.get_base_model()
    layers = [layer for layer in (base.get_input_embeddings(), base.get_output_embeddings()) if layer is not None]
    plain = [getattr(layer, "base_layer", layer) for layer in layers]
    if plain != layers and len(plain) == 2 and plain[0].weight is plain[1].weight:
        plain[1].weight = type(plain[1].weight)(plain[1].weight.detach().clone(), requires_grad=plain[1].weight.requires_grad)
        for config in {id(config): config for config in (base.config, base.config.get_text_config())}.values():
            config.tie_word_embeddings = False
    return model.merge_and_unload()


def _auto_class(task: Task) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if task == "causal" else AutoModelForSequenceClassification


def base_and_adapter(source: ModelSource) -> tuple[str, str | None, str | None]:
    """Return (model, revision, adapter); a folder that holds only an adapter names its model itself."""
    if source.adapter is None and (base := adapter_base(Path(source.path))):
        return *base, source.path
    return source.path, source.revision, source.adapter


def choose_device() -> str:
    """Return cuda, mps or cpu: the first one this machine has."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def template_text(value: str | None, base_dir: Path = Path()) -> str:
    """Return a chat template's text, read from a file where `value` is the path of one; empty for None."""
    if value and "{" not in value and (base_dir / value).is_file():
        return (base_dir / value).read_text(encoding="utf-8")
    return value or ""


def load_error(what: str, error: Exception) -> EngineError:
    """Return an EngineError that says in plain words why `what` couldn't be loaded.

    Where nothing is to be advised, the hint is the whole chain of causes, whose last line the message has.
    """
    cause = _root(error)
    text = str(error).strip() or type(error).__name__
    low = text.lower()
    first = next((line for line in text.splitlines() if line.strip()), text)[:400]
    if "out of memory" in low or isinstance(error, MemoryError):
        hint = "the memory is too small for it; use a smaller model, a smaller dtype or quantization, or free the device"
    elif isinstance(error, OSError) and not Path(what).exists():
        hint = "give a folder in the Hugging Face layout or a hub id; without network, HF_HOME must hold the model already"
    elif "trust_remote_code" in text:
        hint = "the model brings its own code; it is run only with --trust-remote-code on the command line"
    else:
        lines = [line.strip() for line in str(cause).strip().splitlines() if "For further information visit" not in line]
        first = (lines or [""])[-1][:400] or type(cause).__name__
        hint = "the cause as a whole:\n" + "".join(traceback.format_exception(error)).rstrip()
    return EngineError(f"can't load {what}: {first}", hint, kind="load")


def _root(error: BaseException) -> BaseException:
    """Return the error at the beginning of a chain: what the ones raised from it, or while it was handled, hide."""
    seen = {id(error)}
    while (before := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) and id(before) not in seen:
        seen.add(id(before))
        error = before
    return error


def torch_dtype(name: str, device: str) -> Any:
    """Return what `from_pretrained` takes for a dtype's name; `auto` is float32 on a CPU, the checkpoint's own elsewhere."""
    import torch

    if name == "auto":
        return torch.float32 if device == "cpu" else "auto"
    known = {"float32": torch.float32, "float16": torch.float16, "half": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise EngineError(f"unknown dtype, got {name!r}", "use auto, float32, float16 or bfloat16", kind="load")
    return known[name]


def _quantization(name: str | None, device: str) -> dict[str, Any]:
    """Return the keyword arguments that quantise while loading; checkpoints quantised already need none."""
    if name is None:
        return {}
    from transformers import BitsAndBytesConfig

    configs = {"bitsandbytes": {"load_in_4bit": True}, "4bit": {"load_in_4bit": True}, "8bit": {"load_in_8bit": True}}
    if name not in configs:
        raise EngineError(
            f"the transformers engine can't quantise to {name!r}",
            "use bitsandbytes (4 bits), 8bit or a quantised checkpoint",
            kind="load",
        )
    return {"quantization_config": BitsAndBytesConfig(**configs[name]), "device_map": {"": device}}


def adapter_base(folder: Path) -> tuple[str, str | None] | None:
    """Return the name and revision of the model that a folder with nothing but an adapter is laid over; None for any other.

    Raises:
        EngineError: kind `load`: the adapter's settings can't be read, or name no model.
    """
    config = folder / "adapter_config.json"
    if not config.is_file() or (folder / "config.json").exists():
        return None
    named = read_object(config)
    base, revision = named.get("base_model_name_or_path"), named.get("revision")
    if not isinstance(base, str) or not isinstance(revision, str | None):
        told = f"{config}: not the settings of an adapter, which name their model as `base_model_name_or_path`"
        raise EngineError(told, "save the adapter anew, or name another folder", kind="load")
    return base, revision


def read_object(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; empty where there is none that can be read: loading the model will tell."""
    try:
        return parsed_object(path.read_bytes())
    except OSError:
        return {}


def parsed_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object that a text is; empty where it is none, or nested too deep."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
