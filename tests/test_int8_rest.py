"""The rest of a model in int8: the layer, checkpoints that hold it, and models that cannot have it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import checkpoints
import converted
import families
import pytest
import torch
from kernel_levels import LEVELS, using_level, using_threads
from pico_tokenizer import WORDS
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from compress import convert, evaluate, kernels
from compress.checkpoint import Int8Rest, load, open_rest, quantise_rest, read_config, verify_files, verify_outputs
from compress.errors import CheckpointError, CompressError, KernelError
from compress.int8_linear import Int8Linear
from compress.lookup import PackedLookupFFN
from compress.lookup.packed import rounded

RECIPE = """\
version: 1
lookup: {budget: 0.5, memory: 40, bits: 3, rank: 16}
data: {sequence_length: 16, tokens: 1000}
fit: {tokens: 500}
distill: {steps: 2, batch_tokens: 128}
finetune: {steps: 1, batch_tokens: 128}
pack: {rest: int8}
"""


def dense(kind: type[nn.Module] = nn.Linear) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(48, 33) if kind is nn.Linear else Conv1D(33, 48)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


# -- the layer


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@torch.no_grad()
def test_the_layer_is_near_the_dense_one_and_its_own_dequantised_one(kind: type[nn.Module]) -> None:
    layer = dense(kind)
    made, x = Int8Linear.of(layer), torch.randn(2, 5, 48)
    assert error(made.dequantised()(x), layer(x)) < 0.01
    assert error(made(x), made.dequantised()(x)) < 0.02
    assert made(x).shape == (2, 5, 33)
    assert made(x[:0]).shape == (0, 5, 33)
    assert made(x[0, 0]).shape == (33,)
    assert made(x.bfloat16()).dtype == torch.bfloat16
    again = Int8Linear.of(made.dequantised())
    assert torch.equal(again.values, made.values)


def test_gradients_flow_through_the_layer() -> None:
    made, x = Int8Linear.of(dense()), torch.randn(3, 48, requires_grad=True)
    made(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, made.dequantised().weight.sum(0).expand(3, -1).detach())


@torch.no_grad()
def test_the_layer_follows_its_weights_and_keeps_their_dtypes() -> None:
    made, x = Int8Linear.of(dense()), torch.randn(4, 48)
    before, bias = made(x), made.bias.clone()
    assert torch.equal(copy.deepcopy(made)(x), before)
    made.scale.mul_(2)
    assert error(made(x) - made.bias, 2 * (before - made.bias)) < 1e-5
    made.bias = nn.Parameter(torch.zeros(33))
    assert error(made(x), 2 * (before - bias)) < 1e-5
    assert {tensor.dtype for tensor in made.to(torch.bfloat16).parameters()} == {torch.int8, torch.float32}
    assert made.weight.dtype == torch.bfloat16  # what models ask for


def test_a_layer_made_in_inference_mode_runs() -> None:
    with torch.inference_mode():
        made, x = Int8Linear.of(dense()), torch.randn(4, 48)
        assert torch.equal(made(x), made(x))
        assert error(made(x), made.dequantised()(x)) < 0.02
        other = Int8Linear.of(made.dequantised())
        other.scale.mul_(2)
        made.load_state_dict(other.state_dict())
        assert torch.equal(made(x), other(x))


@torch.no_grad()
def test_the_layer_compiles_whole() -> None:
    model, x = nn.Sequential(Int8Linear.of(dense()), nn.GELU()), torch.randn(4, 48)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.skipif(not LEVELS, reason="the native extension is not installed")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("d_in", "d_out"), [(32, 96), (33, 17), (48, 1), (1, 40), (100, 1003), (769, 64)])
@torch.no_grad()
def test_the_layer_is_its_rounded_product_whatever_the_batch_and_the_threads(d_in: int, d_out: int, level: str) -> None:
    torch.manual_seed(d_in)
    layer = Int8Linear.of(nn.Linear(d_in, d_out, bias=d_out != 64))
    x = torch.randn(211, d_in)
    wanted = functional.linear(rounded(x).double(), layer.values.double() * layer.scale[:, None])
    wanted += 0 if layer.bias is None else layer.bias
    with using_level(level), using_threads(1):
        y = layer(x)
        torch.testing.assert_close(y.double(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
        for count in (1, 2, 31, 97):
            assert torch.equal(layer(x[-count:]), y[-count:])
    for threads in (2, 3):
        with using_level(level), using_threads(threads):
            assert torch.equal(layer(x), y)
            assert torch.equal(layer(x[:5]), y[:5])


def test_one_loud_token_does_not_drown_the_others() -> None:
    layer, x = Int8Linear.of(dense()), torch.randn(4, 48)
    with torch.no_grad():
        alone = layer(x[:3])
        x[3] *= 1e4
        assert torch.equal(layer(x)[:3], alone)
        x[3, 0] = torch.nan
        y = layer(x)
    assert torch.equal(y[:3], alone)
    assert y[3].isnan().all()


def test_what_does_not_fit_the_layer_is_refused() -> None:
    layer = Int8Linear.of(dense())
    prepared = kernels.prepare_linear(layer.values, layer.scale, layer.bias)
    for d_in, d_out in (49, 33), (44, 33), (48, 49), (48, 32):
        with pytest.raises(KernelError, match=f"does not fit {d_in} inputs and {d_out} outputs"):
            kernels.bind_linear(prepared, d_in, d_out)
    bound = kernels.bind_linear(prepared, 48, 33)
    for x, problem in (
        (torch.randn(2, 49), r"\[2, 49\]"), (torch.randn(2, 48).double(), "float64"), (torch.tensor(1.0), r"\[\]"),
        (torch.empty(2, 48, device="meta"), "on meta"),
    ):  # fmt: skip
        with pytest.raises(KernelError, match=problem):
            bound(x)
    with pytest.raises(KernelError, match="scale has shape"):
        kernels.prepare_linear(layer.values, layer.scale[:-1], layer.bias)


# -- a whole model


def test_all_linear_layers_but_the_students_are_rounded_and_opened_again() -> None:
    model = families.FAMILIES["bart"].make()
    checkpoints.convert(model)
    rest = quantise_rest(model)
    assert not [path for path, module in model.named_modules() if type(module) is nn.Linear]
    assert len(rest.base) == 2 * 4 + 2 * 8  # attention of encoder and decoder
    assert rest.head == ("lm_head",)
    open_rest(model)
    assert not [path for path, module in model.named_modules() if isinstance(module, Int8Linear)]
    assert Int8Rest.from_dict(json.loads(json.dumps(rest.to_dict()))) == rest


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(
        "".join(" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(8)) + ".\n" for i in range(120))
    )
    (file.parent / "recipe.yaml").write_text(RECIPE)
    return file


FAMILIES = ("gpt2", "llama", "bert_masked", "vit")  # with Conv1D and a tied head; without biases; with a tied bias


@pytest.fixture(scope="module")
def convert_family(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a pico model converted with its rest in int8, made once each."""

    @cache
    def get(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        source = converted.dense_folder(folder / "dense", family)
        data, images = text, ()
        if family == "vit":
            data, images = pictures(folder / "pictures"), ("data.source=images",)
        recipe = text.parent / "recipe.yaml"
        convert(str(source), recipe, folder / "out", data=str(data), overrides=images, threads=1)
        return folder / "out"

    return get


@pytest.fixture(params=FAMILIES)
def out(request: pytest.FixtureRequest, convert_family: Callable[[str], Path]) -> Path:
    return convert_family(request.param)


def inputs(out: Path) -> dict[str, Tensor]:
    return checkpoints.inputs("vit" if (out.parent / "pictures").exists() else "bert")


def pictures(folder: Path) -> Path:
    from PIL import Image

    folder.mkdir()
    for index in range(12):
        pixels = bytes((index * 31 + i * i) % 256 for i in range(8 * 8 * 3))
        Image.frombytes("RGB", (8, 8), pixels).save(folder / f"{index:02}.png")
    return folder


def test_a_checkpoint_with_its_rest_in_int8_comes_back(out: Path) -> None:
    config = read_config(out)
    tensors = load_file(out / "model.safetensors")
    model = load(out)
    paths = config.int8.paths(model)
    assert paths
    rounded = [name for name in tensors if name.endswith(".values")]  # transformers renames modules in files
    assert len(rounded) == len(paths)
    assert all(tensors[name].dtype == torch.int8 for name in rounded)
    assert not [path for path, module in model.named_modules() if type(module) in (nn.Linear, Conv1D)]
    assert verify_files(out) == []
    assert verify_outputs(out, model) == []
    size = json.loads((out / "report.json").read_text())["size"]["compressed_bytes"]
    assert size == pytest.approx(sum(tensor.nbytes for tensor in tensors.values()), rel=0.01)


def test_it_answers_alike_in_a_fresh_process(out: Path) -> None:
    model = load(out)
    batch = inputs(out)
    torch.save({"batch": batch, "answer": checkpoints.answer(model, batch)}, out.parent / "answer.pt")
    code = (
        "import sys, torch, compress, transformers\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"  # PyTorch's attention rounds by it
        f"model = transformers.{type(model).__name__}.from_pretrained(sys.argv[1]).eval()\n"
        "kept = torch.load(sys.argv[2])\n"
        "with torch.no_grad(): print(torch.equal(model(**kept['batch'])[0], kept['answer']))\n"
    )
    assert checkpoints.python(code, out, out.parent / "answer.pt").strip() == "True"


def test_the_base_model_alone_loads_too(out: Path) -> None:
    base = AutoModel.from_pretrained(out)
    linears = [module for module in base.modules() if isinstance(module, Int8Linear)]
    assert len(linears) >= len(read_config(out).int8.base)
    assert sum(isinstance(module, PackedLookupFFN) for module in base.modules()) == 2


def test_opened_and_saved_again_it_is_the_same(out: Path, tmp_path: Path) -> None:
    model = load(out, trainable=True)
    assert not [path for path, module in model.named_modules() if isinstance(module, Int8Linear)]
    batch = inputs(out)
    model(**batch)[0].sum().backward()
    assert any(type(m) is nn.Linear and m.weight.grad is not None for m in model.modules())
    model.save_pretrained(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (out, tmp_path))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        torch.testing.assert_close(after[name], tensor, rtol=1e-6, atol=0)


def test_eval_and_inspect_take_it(convert_family: Callable[[str], Path], text: Path) -> None:
    out = convert_family("gpt2")
    report = evaluate(out, data=str(text), latency=False)
    assert report.quality["perplexity"]["compressed"] > 0
    lines = checkpoints.python(
        "import sys; sys.argv[0] = 'compress'; from compress.cli import main; main()", "inspect", out, "--json"
    )
    total = json.loads(lines)["total"]["compressed"]
    assert total["bytes"] == report.size["compressed_bytes"]


@torch.no_grad()
def test_a_tied_head_is_rounded_and_the_embeddings_stay(convert_family: Callable[[str], Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(convert_family("gpt2"))
    assert isinstance(model.lm_head, Int8Linear)
    embeddings = model.get_input_embeddings().weight
    assert embeddings.is_floating_point()
    assert 0 < error(model.lm_head.dequantised().weight, embeddings) < 0.02


def test_without_it_the_format_stays_that_of_older_versions(tmp_path: Path) -> None:
    saved = checkpoints.save("bert", tmp_path)
    config = json.loads((saved.folder / "config.json").read_text())["quantization_config"]
    assert config["format_version"] == 1
    assert "int8" not in config


@pytest.mark.parametrize(
    "int8",
    [
        5, [], ["encoder"], {"base": "encoder"}, {"base": [3]}, {"base": [""]}, {"more": []}, {"base": ["embeddings"]},
        {"base": ["encoder.layer.0.attention.self.query"] * 2}, {"base": ["encoder.layer.0.output.LayerNorm"]},
        {"base": ["encoder.layer.9.attention.self.query"]}, {"base": ["embeddings.word_embeddings"]},
        {"base": ["encoder.layer.0.attention.self.query"]},  # which is stored in float32
    ],
)  # fmt: skip
def test_what_config_says_of_it_is_checked(int8: Any, tmp_path: Path) -> None:
    saved = checkpoints.save("bert", tmp_path)
    checkpoints.edit_config(saved.folder, int8=int8, format_version=2)
    with pytest.raises(CheckpointError) as caught:
        load(saved.folder)
    assert caught.value.remedy


def test_a_model_that_reads_its_weights_itself_is_refused_before_training(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.bert.modeling_bert import BertSelfAttention

    own = BertSelfAttention.forward

    def forward(self: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        nn.functional.linear(hidden, self.query.weight)
        return own(self, hidden, *args, **kwargs)

    monkeypatch.setattr(BertSelfAttention, "forward", forward)
    source = converted.dense_folder(tmp_path / "dense", "bert_masked")
    with pytest.raises(CompressError, match="does not run with linear layers in int8") as caught:
        convert(str(source), text.parent / "recipe.yaml", tmp_path / "out", data=str(text), threads=1)
    assert caught.value.where == "pack.rest"
    assert not (tmp_path / "out").exists()
