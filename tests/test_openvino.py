"""The OpenVINO export: one operation a student, the same answers, and nothing read that does not fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import converted
import numpy
import pytest
import torch
from checkpoints import python
from compress.cli import app
from test_kernels_inference import TYPICAL, make_params
from typer.testing import CliRunner, Result

from compress import kernels
from compress.checkpoint import open_rest, verify_outputs
from compress.errors import CompressError, KernelError
from compress.models import load_pretrained

openvino = pytest.importorskip("openvino")
if not shutil.which("g++") or not kernels.available():
    pytest.skip("no C++ compiler, or no native kernel", allow_module_level=True)

from compress.openvino import export, extension, graph, library  # noqa: E402
from compress.openvino.cached import positions  # noqa: E402
from compress.openvino.exporting import MODEL_FILE  # noqa: E402
from compress.openvino.graph import LAYOUT_VERSION, Compiled  # noqa: E402

FAMILIES = ("bert", "bert_masked", "gpt2", "llama", "vit")


@pytest.fixture(scope="module")
def core():
    made = openvino.Core()
    made.add_extension(str(extension()))
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Checkpoints of the pico families by name, each made once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def get(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            converted.save(converted.dense_folder(root / f"{family}-dense", family), folder, noise=0.1)
        return folder

    return get


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])


def operation(params, geometry, bits=16, **changes):
    from openvino.opset13 import constant, parameter
    from openvino.utils.node_factory import NodeFactory

    factory = NodeFactory()
    factory.add_extension(str(extension()))
    (weights, tables), settings = kernels.prepare(params, geometry, bits)
    x = parameter([-1, -1, geometry.d_in], numpy.float32)
    buffers = [constant(buffer.numpy(), dtype=numpy.uint8).output(0) for buffer in (weights, tables)]
    attributes = {"settings": list(settings), "layout_version": LAYOUT_VERSION, **changes}
    node = factory.create("LookupFFN", [x.output(0), *buffers], attributes)
    return openvino.Model([node], [x], "ffn")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("g", TYPICAL)
def test_the_operation_is_the_kernel_bit_for_bit(core, g, bits):
    params = make_params(g, torch.int8, torch.int8, 0)
    prepared, settings = kernels.prepare(params, g, bits)
    for streams in (1, 2):
        compiled = core.compile_model(
            operation(params, g, bits), "CPU", {"INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": streams}
        )
        for shape in ((1, 1), (3, 5), (2, 300), (0, 4)):
            x = torch.randn(*shape, g.d_in, generator=torch.Generator().manual_seed(shape[1]))
            expected = kernels.lookup_ffn(x, prepared, settings)
            assert torch.equal(torch.from_numpy(compiled([x.numpy()])[0]), expected)


def test_a_compiled_model_has_the_buffers_in_its_operations(core, checkpoint, tmp_path):
    """OpenVINO infers shapes at every call of an operation with further inputs; one of a file that is cached too."""
    export(checkpoint("gpt2"), tmp_path / "out")
    text = (tmp_path / "out" / MODEL_FILE).read_text()
    assert text.count('type="LookupFFN"') == 2
    ids = numpy.array([[5, 6, 7]])
    values = {"input_ids": ids, "attention_mask": ids * 0 + 1, "position_ids": numpy.arange(3)[None]}
    values["beam_idx"] = numpy.zeros(1, numpy.int32)
    answers = []
    for settings in ({}, {"CACHE_DIR": str(tmp_path / "cache")}, {"CACHE_DIR": str(tmp_path / "cache")}):
        compiled = core.compile_model(str(tmp_path / "out" / MODEL_FILE), "CPU", settings)
        nodes = compiled.get_runtime_model().get_ops()
        assert [len(node.inputs()) for node in nodes if node.get_rt_info()["layerType"] == "Reference"] == [1, 1]
        names = {port.any_name for port in compiled.inputs}
        answers.append(compiled({name: value for name, value in values.items() if name in names})["logits"])
    assert numpy.array_equal(answers[0], answers[1])
    assert numpy.array_equal(answers[0], answers[2])


@pytest.mark.parametrize(
    "changes",
    [{"layout_version": LAYOUT_VERSION + 1}, {"settings": [1, 2]}, {"settings": [0] * kernels.layout.SETTINGS}],
    ids=["newer layout", "too few settings", "impossible sizes"],
)
def test_a_wrong_geometry_is_refused(changes):
    g = TYPICAL[0]
    with pytest.raises(RuntimeError, match="LookupFFN"):
        operation(make_params(g, torch.int8, torch.int8, 0), g, **changes)


@pytest.mark.parametrize("setting", range(kernels.layout.SETTINGS))
def test_every_size_that_disagrees_with_the_buffers_is_refused(core, checkpoint, tmp_path, setting):
    """An edited file either still describes the same buffers or is not loaded."""
    folder = tmp_path / "ir"
    g = TYPICAL[0]
    model = operation(make_params(g, torch.int8, torch.int8, 0), g)
    openvino.save_model(model, folder / MODEL_FILE, compress_to_fp16=False)
    text = (folder / MODEL_FILE).read_text()
    numbers = [int(number) for number in re.search(r'settings="([^"]*)"', text)[1].split(",")]
    for change in (numbers[setting] + 1, numbers[setting] * 1000 + 17, -1, 2**62):
        changed = [*numbers[:setting], change, *numbers[setting + 1 :]]
        (folder / MODEL_FILE).write_text(
            re.sub(r'settings="[^"]*"', f'settings="{", ".join(map(str, changed))}"', text)
        )
        try:
            compiled = core.compile_model(folder / MODEL_FILE, "CPU")
            y = compiled([numpy.zeros((1, 2, g.d_in), numpy.float32)])[0]
        except (RuntimeError, ValueError):
            continue
        assert y.shape == (1, 2, changed[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_model_answers_as_the_checkpoint(core, checkpoint, tmp_path, family):
    out = tmp_path / "out"
    done = invoke(checkpoint(family), "-o", out)
    assert done.exit_code == 0, done.output
    pretrained = load_pretrained(str(checkpoint(family)))
    compiled = Compiled(core, str(out / MODEL_FILE))
    if family == "vit":
        batches = [{"pixel_values": torch.randn(size, 3, 32, 32)} for size in (1, 3)]
    else:
        texts = [["the cat sat"], ["a man with a hat", "who is there? the dog ran to the hill"]]
        pretrained.processor.pad_token = pretrained.processor.pad_token or pretrained.processor.eos_token
        batches = [dict(pretrained.processor(text, return_tensors="pt", padding=True)) for text in texts]
    for batch in batches:
        with torch.no_grad():
            expected = pretrained.model(**batch)[0]
        answer = next(iter(compiled(**batch).values()))
        mask = batch.get("attention_mask", torch.ones(expected.shape[:-1])).bool()
        assert torch.allclose(answer[mask], expected[mask], rtol=1e-3, atol=1e-3)
    operations = (out / MODEL_FILE).read_text().count('type="LookupFFN"')
    assert operations == 2
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_causal_model_goes_on_from_its_state(core, checkpoint, tmp_path, family):
    export(checkpoint(family), tmp_path / "out")
    compiled = Compiled(core, str(tmp_path / "out" / MODEL_FILE))
    model = load_pretrained(str(checkpoint(family))).model
    ids = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0  # padded on the left, as for generation
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask, 9)).logits
    for _ in range(2):  # a second sequence begins anew
        parts, cache = [], None
        for begin, end in ((0, 5), (5, 6), (6, 9)):
            answer = compiled(input_ids=ids[:, begin:end], attention_mask=mask[:, :end], cache=cache)
            parts.append(answer["logits"])
            cache = answer.cache
        assert cache == 9
        assert torch.allclose(torch.cat(parts, 1)[mask.bool()], expected[mask.bool()], rtol=1e-3, atol=1e-3)
    # Two beams that go on from the third sequence.
    chosen = torch.tensor([2, 2, 0], dtype=torch.int32)
    beams = compiled(input_ids=ids[:, :1], cache=9, attention_mask=torch.ones(3, 10, dtype=torch.long), beam_idx=chosen)
    cache = compiled(input_ids=ids[2:]).cache
    alone = compiled(input_ids=ids[:1, :1], cache=cache)
    assert torch.allclose(beams["logits"][0], alone["logits"][0], atol=1e-4)


def test_a_causal_model_whose_cache_is_of_another_kind(core, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "remembered", lambda model: None)
    out = tmp_path / "out"
    done = invoke(checkpoint("gpt2"), "-o", out)
    assert done.exit_code == 0, done.output
    assert "each call reads its whole sequence" in done.output
    assert not Compiled(core, str(out / MODEL_FILE)).stateful
    assert "reset_state" not in (out / "README.md").read_text()


def test_the_card_generates_as_pytorch_does(checkpoint, tmp_path):
    out = tmp_path / "out"
    export(checkpoint("gpt2"), out)
    blocks = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)
    code = "import os, sys; os.chdir(sys.argv[1])\n" + "\n".join(blocks).replace(
        "print(tokenizer.decode(ids))", "print(ids)"
    )
    written = json.loads(python(code, out))
    pretrained = load_pretrained(str(checkpoint("gpt2")))
    ids = torch.tensor([written[:-20]])
    assert ids.shape[1] > 1
    with torch.no_grad():
        expected = pretrained.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=None
        )
    assert written == expected[0].tolist()


def test_the_card_says_how_to_load_it(checkpoint, tmp_path):
    out = tmp_path / "out"
    export(checkpoint("bert"), out)
    lines = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.S)[1]
    code = f"import os, sys; os.chdir(sys.argv[1])\n{lines}\nprint(len(model.inputs))"
    assert python(code, out).strip() == "2"


def test_the_rest_in_int8(core, checkpoint, tmp_path):
    pytest.importorskip("nncf")
    text = tmp_path / "text.txt"
    text.write_text(converted.TEXT * 40)
    out = tmp_path / "out"
    done = invoke(checkpoint("bert"), "-o", out, "--rest", "int8", "--data", text)
    assert done.exit_code == 0, done.output
    model = core.read_model(out / MODEL_FILE)
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert kinds.count("LookupFFN") == 2
    assert kinds.count("FakeQuantize") > 4
    pretrained = load_pretrained(str(checkpoint("bert")))
    batch = dict(pretrained.processor([converted.TEXT.splitlines()[0]], return_tensors="pt"))
    with torch.no_grad():
        expected = pretrained.model(**batch).last_hidden_state
    error = (Compiled(core, model)(**batch)["last_hidden_state"] - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.2


def test_a_checkpoint_with_its_rest_in_int8_is_exported_opened(core, checkpoint, tmp_path):
    out, rounded = tmp_path / "out", tmp_path / "rounded"
    converted.save(converted.dense_folder(tmp_path / "dense", "bert"), rounded, noise=0.1, int8_rest=True)
    done = invoke(rounded, "-o", out)
    assert done.exit_code == 0, done.output
    compiled, pretrained = Compiled(core, str(out / MODEL_FILE)), load_pretrained(str(rounded))
    assert verify_outputs(rounded, pretrained.model) == []
    open_rest(pretrained.model)
    assert verify_outputs(rounded, compiled, like=pretrained.model) == []
    batch = dict(pretrained.processor(["the cat sat"], return_tensors="pt"))
    with torch.no_grad():
        opened = pretrained.model(**batch).last_hidden_state
        as_stored = load_pretrained(str(rounded)).model(**batch).last_hidden_state
    answer = compiled(**batch)["last_hidden_state"]
    assert (answer - opened).norm() < 1e-3 * opened.norm() < (answer - as_stored).norm()


def test_the_rest_in_int8_of_a_causal_model_goes_on_from_its_state(core, checkpoint, tmp_path):
    pytest.importorskip("nncf")
    text = tmp_path / "text.txt"
    text.write_text(converted.TEXT * 40)
    out = tmp_path / "out"
    done = invoke(checkpoint("gpt2"), "-o", out, "--rest", "int8", "--data", text)
    assert done.exit_code == 0, done.output
    assert "it is not read" in done.output
    nodes = core.read_model(out / MODEL_FILE).get_ops()
    assert not any(node.get_type_name() == "FakeQuantize" for node in nodes)  # attention stays whole
    assert sum(node.get_output_element_type(0) == openvino.Type.i8 for node in nodes) >= 4
    compiled = Compiled(core, str(out / MODEL_FILE))
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_pretrained(str(checkpoint("gpt2"))).model(input_ids=ids).logits
    begun = compiled(input_ids=ids[:, :6])
    logits = torch.cat([begun["logits"], compiled(input_ids=ids[:, 6:], cache=begun.cache)["logits"]], 1)
    assert 1e-4 < (logits - expected).norm() / expected.norm() < 0.2


def test_mistakes_are_named(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    for arguments, expected in (
        ((checkpoint("bert"), "-o", tmp_path / "there"), "exists"),
        ((checkpoint("bert"), "-o", tmp_path / "x", "--to", "tensorrt"), "unknown engine"),
        ((checkpoint("bert"), "-o", tmp_path / "x", "--rest", "int4"), "unknown dtype"),
        ((checkpoint("bert"), "-o", tmp_path / "x", "--rest", "int8"), "no data"),
        ((checkpoint("bert").with_name("bert-dense"), "-o", tmp_path / "x"), "no compressed checkpoint"),
    ):
        done = invoke(*arguments)
        assert done.exit_code == 2, done.output
        assert isinstance(done.exception, SystemExit)
        assert expected in done.output
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    extension.cache_clear()
    with pytest.raises(KernelError, match="no gcc"):
        extension()
    extension.cache_clear()
    with pytest.raises(CompressError):
        export(tmp_path / "nothing", tmp_path / "x")
    assert not (tmp_path / "x").exists()
