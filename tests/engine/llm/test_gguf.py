"""GGUF files as models: what is read is what was written, on every engine and in training; what can't be read is refused."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from caiflow.engine.errors import EngineError, PlanError
from caiflow.engine.llm.base import Completion, ModelSource, Request, Sampling
from caiflow.engine.llm.gguf import READABLE, dequantise, inspect, read_as, unpack
from caiflow.engine.llm.load import load_engine
from caiflow.engine.operator import StepContext
from caiflow.engine.plan.model_identity import resolve_model
from caiflow.engine.spec.grammar import ModelEntry
from caiflow.engine.store.artifacts import Store
from caiflow.operators.sft import Sft, SftParams
from support.agreement import assert_agree
from support.asking import ask
from support.gguf_files import ARCHITECTURES, original, stored, write_gguf
from support.small_models import job, lessons

TEXTS = ("To bake a cake, find the cake.", " two  spaces\nand a line", "Zürich 12345 (A)", "<|user|>How?<|end|>")
QUESTIONS = [Request(tuple(row["messages"][:1]), Sampling(max_tokens=12)) for row in lessons()[:6]]


class Made:
    """A model in the Hugging Face layout, the GGUF file made of it, and the source that names the file."""

    def __init__(self, architecture: str, folder: Path) -> None:
        self.folder = folder / "original"
        self.model = original(architecture, self.folder)
        self.file = write_gguf(self.folder, folder / f"{architecture}.gguf")
        self.store = Store(folder / "home")

    def source(self, **entry: Any) -> ModelSource:
        return resolve_model("base", ModelEntry(source=self.file.name, **entry), self.file.parent, store=self.store)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name == "llama" else [pytest.mark.soak]) for name in ARCHITECTURES],
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made("llama", tmp_path_factory.mktemp("llama"))


def test_the_weights_are_the_files_values_to_the_bit(made: Made) -> None:
    from transformers import AutoModelForCausalLM

    source = made.source()
    unpack(source)
    kind = gguf.GGMLQuantizationType.Q8_0
    written = {
        name: weight if weight.ndim == 1 else gguf.dequantize(gguf.quantize(weight, kind), kind)
        for name, weight in stored(made.model).items()
    }
    read = stored(AutoModelForCausalLM.from_pretrained(source.path))
    assert read.keys() == written.keys()
    assert all((read[name] == written[name]).all() for name in written)


def test_tokenizer_special_tokens_and_chat_template_are_those_of_the_original(made: Made) -> None:
    from transformers import AutoConfig, AutoTokenizer

    source = made.source()
    unpack(source)
    mine, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (source.path, made.folder))
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False)
        assert mine.encode(text, add_special_tokens=False) == ids
        assert mine.decode(ids) == theirs.decode(ids)
    for name in ("bos_token", "eos_token", "pad_token", "chat_template"):
        assert getattr(mine, name) == getattr(theirs, name)
    for question in QUESTIONS:
        shown = [
            tokenizer.apply_chat_template(list(question.prompt), add_generation_prompt=True) for tokenizer in (mine, theirs)
        ]
        assert shown[0]["input_ids"] == shown[1]["input_ids"]
    assert AutoConfig.from_pretrained(source.path).eos_token_id == theirs.eos_token_id


def test_texts_are_divided_before_digits_where_the_file_says_so(llama: Made, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    file = write_gguf(llama.folder, tmp_path / "digits.gguf", rule="smollm")
    dequantise(file, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    parts = [part for part, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12  3")]
    assert parts == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]
    assert [read_as(one, "0a") for one in (file, llama.file)] == ["gguf:0a+digits", "gguf:0a"]
    assert tokenizer.decode(tokenizer.encode("a\n\n12  3", add_special_tokens=False)) == "a\n\n12  3"


@pytest.mark.slow
def test_it_is_trained_like_any_other(made: Made, tmp_path: Path) -> None:
    source = made.source()
    unpack(source)
    done = job(tmp_path, {"rows": lessons()}, base=source)
    fields = {"input": "rows", "model": "base", "lora": {"rank": 4}, "learning_rate": 1e-2, "max_steps": 10}
    Sft(SftParams.model_validate(fields), StepContext()).train(done)
    assert done.metrics["saved_loss"] == pytest.approx(done.metrics["trained_loss"], rel=1e-3)
    assert (done.out_dir / "chat_template.jinja").read_text() == (made.folder / "chat_template.jinja").read_text()


@pytest.mark.soak
@pytest.mark.vllm
@pytest.mark.slow
def test_both_engines_answer_alike(made: Made) -> None:
    # after the training: vLLM changes a class of transformers in this process, and no such model can be made without vLLM then
    args = {"max_num_seqs": 8, "max_model_len": 256, "kv_cache_memory_bytes": 64 << 20}
    answers = []
    for engine in ("transformers", "vllm"):
        loaded = load_engine(made.source(engine=engine, engine_args=args))
        answers.append(ask(loaded, QUESTIONS))
        loaded.close()
    assert all(isinstance(answer, Completion) and answer.completion_tokens for answer in answers[0])
    assert_agree(made.source(), QUESTIONS, *answers)


def test_identity_is_the_files_content_wherever_it_lies(llama: Made, tmp_path: Path) -> None:
    copied = shutil.copy(llama.file, tmp_path / "other-name.gguf")
    elsewhere = resolve_model("base", ModelEntry(source=str(copied)), Path(), store=llama.store)
    assert elsewhere.identity == llama.source().identity
    assert elsewhere.path == llama.source().path
    four_bits = write_gguf(llama.folder, tmp_path / "four.gguf", gguf.GGMLQuantizationType.Q4_0)
    assert resolve_model("base", ModelEntry(source=str(four_bits)), Path(), store=llama.store).identity != elsewhere.identity


def _unpack_at(barrier: Any, source: ModelSource) -> None:
    barrier.wait()
    unpack(source)


@pytest.mark.soak
def test_two_processes_unpack_a_file_once(llama: Made, tmp_path: Path) -> None:
    source = resolve_model("base", ModelEntry(source=str(llama.file)), Path(), store=Store(tmp_path / "home"))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_unpack_at, args=(barrier, source)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    store = Store(tmp_path / "home")
    assert [path.name for path in store.artifacts()] == [Path(source.path).name]
    assert not list(store.staging_dir.iterdir())


def test_weights_that_were_damaged_in_the_store_are_made_anew(llama: Made, tmp_path: Path) -> None:
    source = resolve_model("base", ModelEntry(source=str(llama.file)), Path(), store=Store(tmp_path / "home"))
    unpack(source)
    weights = Path(source.path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    unpack(source)
    assert weights.read_bytes() == whole


def test_a_file_that_changed_after_planning_is_refused(llama: Made, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    shutil.copy(llama.file, file)
    source = resolve_model("base", ModelEntry(source=str(file)), Path(), store=Store(tmp_path / "home"))
    write_gguf(llama.folder, file, gguf.GGMLQuantizationType.Q4_0)
    with pytest.raises(EngineError, match=r"model\.gguf: has changed since the run was planned; run again"):
        unpack(source)


@settings(max_examples=40)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused_with_the_place(
    share: float, llama: Made, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = llama.file.read_bytes()
    cut = tmp_path_factory.mktemp("cut") / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(PlanError, match=r"models\.base: .*cut\.gguf: (an empty file|cut or damaged at byte \d+: )"):
        resolve_model("base", ModelEntry(source=str(cut)), Path())


@settings(max_examples=60)
@given(place=st.integers(0, 2000), value=st.integers(0, 255))
def test_a_changed_byte_of_the_head_never_ends_in_another_error(
    place: int, value: int, llama: Made, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changed = bytearray(llama.file.read_bytes())
    changed[place] = value
    file = tmp_path_factory.mktemp("changed") / "changed.gguf"
    file.write_bytes(changed)
    try:
        found = inspect(file)
    except EngineError as error:
        found = "refused" if "changed.gguf: " in error.message and error.hint else str(error)
    assert found in ("llama", "refused")


def test_weights_that_are_no_numbers_are_refused_by_name(llama: Made, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(llama.file)
    norm = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.attn_norm.weight")
    changed = bytearray(llama.file.read_bytes())
    changed[int(norm.data_offset) : int(norm.data_offset) + 4] = torch.tensor([float("nan")]).numpy().tobytes()
    file = tmp_path / "nan.gguf"
    file.write_bytes(changed)
    with pytest.raises(
        EngineError, match=r"nan\.gguf: damaged: model\.layers\.1\.input_layernorm\.weight holds values that aren't numbers"
    ):
        dequantise(file, tmp_path / "out")


def refused(file: Path) -> str:
    with pytest.raises(PlanError) as caught:
        resolve_model("base", ModelEntry(source=str(file)), Path())
    return str(caught.value)


def test_an_architecture_that_cannot_be_read_is_refused_with_those_that_can(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "rwkv.gguf", "rwkv6")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    said = refused(tmp_path / "rwkv.gguf")
    assert "can't read the architecture 'rwkv6'; those that can be: " in said
    assert all(name in said for name in READABLE)


def test_one_part_of_several_is_refused_with_the_command_that_joins_them(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "one of 3 parts of a model; join them first: llama-gguf-split --merge" in refused(tmp_path / "part.gguf")


def test_a_gguf_file_as_adapter_or_tokenizer_is_refused(llama: Made) -> None:
    for field in ("adapter", "tokenizer"):
        with pytest.raises(PlanError, match=rf"models\.base\.{field}: a GGUF file holds a whole model"):
            llama.source(**{field: llama.file.name})


def test_the_architectures_are_those_whose_language_models_transformers_reads() -> None:
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    renamed = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
    written = set(gguf.MODEL_ARCH_NAMES.values())
    known = {name for name in written if renamed.get(name, name) in GGUF_SUPPORTED_ARCHITECTURES}
    readable = {name for name in known if renamed.get(name, name) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert set(READABLE) == readable | set(GGUF_CONFIG_ARCHS)
