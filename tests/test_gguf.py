"""GGUF files have the numbers of their weights made wide and saved as an ordinary folder; what cannot be read is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as t

from attribution.model_cache.cache import ModelCache
from attribution.model_cache.device_memory import DeviceMemory
from demo_models.smollm2 import build
from problems import ModelUnavailable, OutOfMemory
from settings import Settings
from tests import gguf_files
from tests.hub import byte_level_tokenizer
from tests.test_adapters import JOB, assert_equal, numbers
from tests.test_loading import SIZE, config

WIDE = SIZE | {"intermediate_size": 64}  # a multiple of the 32 numbers that Q8_0 takes together
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def write(path, **more):
    torch.manual_seed(6)
    network = t.LlamaForCausalLM(config(**WIDE))
    tokenizer = byte_level_tokenizer(300, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    gguf_files.write(path, network, tokenizer, **more)
    return network


@pytest.fixture(scope="module")
def files(model_dir):
    """A folder with one GGUF file, one with two, and the first as an ordinary folder of float32 weights."""
    write(model_dir / "gguf-one" / "model-Q8_0.gguf", chat_template=TEMPLATE)
    build(model_dir / "gguf-one" / "model-Q8_0.gguf", model_dir / "gguf-wide")
    write(model_dir / "gguf-two" / "model-F16.gguf", quantized="F16")
    write(model_dir / "gguf-two" / "model-Q8_0.gguf")
    write(model_dir / "gguf-alone.gguf")
    return model_dir


def test_a_file_has_the_numbers_of_its_weights_made_wide(server, files):
    expected = server.result(server.run(model="gguf-wide", **JOB), granular=True)
    for name in ("gguf-one", "gguf-one/model-Q8_0.gguf", "gguf-two/model-Q8_0.gguf", "gguf-alone.gguf"):
        assert_equal(server.result(server.run(model=name, **JOB), granular=True), expected)
    others = server.result(server.run(model="gguf-two/model-F16.gguf", **JOB), granular=True)
    assert not np.allclose(numbers(others)[1], numbers(expected)[1], rtol=1e-5)
    messages = [{"role": "user", "content": "The quick"}]
    job = {"method": "saliency", "messages": messages, "generated_text": " fox"}
    found, wide = (server.result(server.run(model=name, **job), granular=True) for name in ("gguf-one", "gguf-wide"))
    assert [each["token"] for each in found["sequence_attributions"][0]["target"]] == [
        each["token"] for each in wide["sequence_attributions"][0]["target"]
    ]


def test_the_tests_write_what_a_converter_writes(files):
    """Without quantization, Transformers reads the model back that was written."""
    network = write(files / "gguf-float" / "model.gguf", quantized="F32")
    read = t.AutoModelForCausalLM.from_pretrained(files / "gguf-float", gguf_file="model.gguf")
    ids = torch.arange(10, 16)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, network(ids).logits)


def test_the_memory_of_a_file_is_that_of_its_wide_weights(tmp_path, monkeypatch):
    network = write(tmp_path / "one" / "model.gguf")
    cache = ModelCache(Settings(data_dir=tmp_path / "data", model_dirs=(str(tmp_path),)))
    source = cache.sources.resolve("one")
    count = network.num_parameters()
    assert source.parameters == count
    vectors = 5 * 32
    assert source.bytes_by_dtype == {"F32": 4 * vectors, "Q8_0": (count - vectors) // 32 * 34}
    free = 4 * count + 2 * count - 1  # all tensors in float32, and the model in bfloat16
    monkeypatch.setattr("attribution.model_cache.cache.memory_of", lambda _: DeviceMemory(free, free))
    with (
        pytest.raises(OutOfMemory, match="while the files are read"),
        cache.lease("one", device="cpu", dtype="bfloat16"),
    ):
        pass


def nothing(path):
    path.parent.mkdir()
    path.write_bytes(b"GGUF")


def another_format(path):
    path.parent.mkdir()
    path.write_bytes(b"GGML" + bytes(100))


def cut(path):
    write(path)
    path.write_bytes(path.read_bytes()[:2000])


def a_part(path):
    write(path, parts=3)


def several(path):
    write(path)
    write(path.with_name("other.gguf"))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (nothing, ["model.gguf cannot be read"]),
        (another_format, ["does not begin as a GGUF file"]),
        (cut, ["model.gguf cannot be read"]),
        (a_part, ["one of 3 parts", "llama-gguf-split"]),
        (several, ["holds 2 GGUF files", "'folder/model.gguf', 'folder/other.gguf'"]),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_cannot_be_read_is_refused(tmp_path, build, words):
    build(tmp_path / "folder" / "model.gguf")
    sources = ModelCache(Settings(data_dir=tmp_path / "data", model_dirs=(str(tmp_path),))).sources
    with pytest.raises(ModelUnavailable) as refusal:
        sources.on_this_machine("folder")
    for each in ["'folder'", *words]:
        assert each in str(refusal.value)


def test_no_file_outside_the_model_directories(tmp_path):
    write(tmp_path / "outside" / "model.gguf")
    (tmp_path / "inside").mkdir()
    sources = ModelCache(Settings(data_dir=tmp_path / "data", model_dirs=(str(tmp_path / "inside"),))).sources
    assert sources.on_this_machine("outside/model.gguf") is None
    assert sources.on_this_machine("model.gguf") is None


def test_a_file_in_the_hub_cache(server, hub_cache):
    """`org/name/file.gguf` is a file of a repository."""
    folder = hub_cache / "hub" / "models--org--tiny-gguf"
    commit = "b" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    write_into = folder / "snapshots" / commit
    write_into.mkdir(parents=True)
    write(write_into / "model.gguf")
    for name in ("org/tiny-gguf", "org/tiny-gguf/model.gguf", f"org/tiny-gguf/model.gguf@{commit}"):
        job = server.run(model=name, method="dummy", input_text="The quick", generated_text="The quick fox")
        assert server.result(job)["info"]["model_revision"].startswith(commit)
