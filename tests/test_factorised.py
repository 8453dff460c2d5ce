"""Low-rank factors of the FFN's own matrices: closed form, cost, packing, and a checkpoint of them."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import checkpoints
import converted
import pytest
import torch
from compress.cli import app
from pico_tokenizer import save_pico
from torch import Tensor, nn
from typer.testing import CliRunner

import compress
from compress import kernels
from compress.baselines import FactorisedFFN, PackedFactorisedFFN
from compress.baselines.costs import Costs, costs
from compress.baselines.factorisation import fit_factors, low_rank
from compress.baselines.factorised import FactorisedGeometry, fill_factors, pack_factors
from compress.checkpoint import Placement, read_config, save_checkpoint
from compress.conversion import convert
from compress.dense import DenseWeights
from compress.errors import CheckpointError, CompressError
from compress.lookup.budget import DenseGeometry, Sizes
from compress.lookup.fit import SiteData
from compress.models import load_pretrained
from compress.sites import example_inputs, find_sites, swap
from compress.students import bytes_per_token, cost, layout, pack, parse_geometry, stored_bytes


def dense_ffn(d: int = 12, f: int = 40, gated: bool = False, seed: int = 0) -> DenseWeights:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    gate, down = normal(f, d), normal(d, f)
    return DenseWeights(gate, 0.1 * normal(f), normal(f, d) if gated else None, None, down, 0.1 * normal(d))


def site_data(dense: DenseWeights, activation: str, tokens: int = 3000) -> SiteData:
    d = dense.gate.shape[1]
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(d, d, generator=generator) * 0.7 ** torch.arange(d)  # some directions matter, others hardly
    x = torch.randn(tokens, d, generator=generator) @ mix.T + 0.5
    weight = torch.rand(tokens, generator=generator) + 0.5
    return SiteData(x, dense.output(x, activation), weight, torch.ones(dense.down.shape[0]))


@pytest.mark.parametrize(("gated", "activation"), [(False, "gelu"), (True, "silu")])
def test_at_full_rank_the_closed_form_is_the_dense_ffn(gated: bool, activation: str) -> None:
    dense = dense_ffn(gated=gated)
    data = site_data(dense, activation)
    student = FactorisedFFN(12, d_hidden=40, rank=12, gated=gated, activation=activation)
    fit_factors(student, data, dense, ridge=1e-3)
    torch.testing.assert_close(student(data.x), data.y, rtol=1e-4, atol=1e-4)


def test_directions_of_the_inputs_count_not_those_of_the_matrix() -> None:
    dense = dense_ffn()
    data = site_data(dense, "gelu")
    x, matrix, ones = data.x - data.x.mean(0), dense.gate, torch.ones(3000)
    outer, inner = low_rank(matrix, x, ones, torch.ones(40), 4, 1e-6)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    plain = u[:, :4] * s[:4] @ v[:4]

    def error(approximation: Tensor) -> float:
        return float((x @ (matrix - approximation).T).square().mean() / (x @ matrix.T).square().mean())

    assert error(outer @ inner) < 0.5 * error(plain)
    # No other matrix of that rank is better: the best one of the products' own singular values is as good.
    left = torch.linalg.svdvals(x @ matrix.T)[4:].square().sum() / (x @ matrix.T).square().sum()
    assert error(outer @ inner) == pytest.approx(float(left), rel=1e-3)


def test_rank_and_kept_neurons_bound_the_error() -> None:
    dense = dense_ffn()
    data = site_data(dense, "gelu")

    def error(rank: int, neurons: int) -> float:
        student = FactorisedFFN(12, d_hidden=neurons, rank=rank)
        fit_factors(student, data, dense, ridge=1e-3)
        return float((student(data.x).detach() - data.y).square().mean() / data.y.var(0).mean())

    errors = [error(rank, 40) for rank in (2, 4, 8, 12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 < errors[0] < 1
    assert errors[-1] < error(12, 20) < 0.2


@pytest.mark.parametrize("gated", [False, True])
def test_cost_and_bytes_are_those_of_the_tensors(gated: bool) -> None:
    g = FactorisedGeometry(24, 20, 50, 8, gated, "silu")
    inputs = 2 if gated else 1
    assert cost(g) == inputs * 8 * (24 + 50) + 8 * (50 + 20) + 10 * 50
    packed = pack_factors(FactorisedFFN.from_geometry(g))
    assert stored_bytes(g, "int8", "int8") == sum(p.nbytes for p in packed.parameters())
    assert bytes_per_token(g, "int8", "int8") == stored_bytes(g, "int8", "int8")
    assert {n: (v.shape, v.dtype) for n, v in packed.state_dict().items()} == layout(g, "int8", "int8")
    numbers = sum(parameter.numel() for parameter in packed.parameters())
    assert costs(nn.Sequential(packed)) == Costs(cost(g), stored_bytes(g, "int8", "int8"), numbers)
    assert parse_geometry(json.loads(json.dumps(g.to_dict()))) == g
    wrong = [{"rank": 0}, {"rank": True}, {"activation": "none"}, {"student": "other"}, {"tables": 1}, {"d_in": -1}]
    for values in wrong:
        with pytest.raises(CompressError):
            parse_geometry({**g.to_dict(), **values})


@pytest.mark.parametrize("gated", [False, True])
def test_the_budget_buys_the_highest_rank(gated: bool) -> None:
    dense = DenseGeometry(64, 256, 64, gated, "gelu")
    choices = {"table_dtype": "int8", "hash_dtype": "int8"}
    for budget in (0.125, 0.25, 0.5):
        g = fill_factors(dense, Sizes(budget, 4), **choices)
        more = FactorisedGeometry(64, 64, 256, g.rank + 1, gated)
        assert g.d_hidden == 256
        assert cost(g) <= budget * dense.cost < cost(more)
    assert fill_factors(dense, Sizes(0.25, 4, neurons=64), **choices).rank > g.rank / 2
    with pytest.raises(CompressError, match="pays for the activations"):
        fill_factors(dense, Sizes(0.02, 4), **choices)
    with pytest.raises(CompressError, match="more than the budget"):
        fill_factors(dense, Sizes(0.25, 4, rank=60), **choices)
    with pytest.raises(CompressError, match="cannot be kept"):
        fill_factors(dense, Sizes(0.25, 4, neurons=300), **choices)


@pytest.mark.parametrize("gated", [False, True])
def test_packed_runs_as_its_dequantised_parameters(gated: bool) -> None:
    torch.manual_seed(0)
    packed = pack_factors(FactorisedFFN(24, 20, d_hidden=50, rank=8, gated=gated)).eval()
    x = torch.randn(2, 9, 24)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), packed.dequantised()(x), rtol=1e-3, atol=1e-3)
        assert packed(x.bfloat16()).dtype == torch.bfloat16
        assert torch.equal(copy.deepcopy(packed)(x), packed(x))
    if kernels.available():  # each product is a call of the fused kernel
        assert all(packed.get_submodule(name)._prepared for name in packed.geometry.parts)
    packed.dequantised()(x).sum().backward()


RECIPE = """\
version: 1
lookup: {student: factors, budget: 0.5}
data: {sequence_length: 32, tokens: 2000}
fit: {tokens: 1000}
distill: {steps: 4, batch_tokens: 256}
finetune: {steps: 3, batch_tokens: 256}
pack: {table_dtype: int8}
"""


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("factorised")
    model = save_pico(folder / "model", request.param)
    (folder / "text.txt").write_text("the old cat sat on a red hat and ran to the big dog.\n" * 300)
    (folder / "recipe.yaml").write_text(RECIPE)
    convert(str(model), folder / "recipe.yaml", folder / "out", data=str(folder / "text.txt"), threads=1)
    return folder / "out"


_AGAIN = """
import sys, torch, compress
model = compress.load(sys.argv[1]).requires_grad_(False)
torch.save(model(input_ids=torch.arange(20)[None] % 40).logits, sys.argv[2])
"""


def test_a_checkpoint_of_factors_answers_the_same_in_another_process(checkpoint: Path, tmp_path: Path) -> None:
    model = compress.load(checkpoint)
    students = [module for module in model.modules() if isinstance(module, PackedFactorisedFFN)]
    assert len(students) == 2
    ids = torch.arange(20)[None] % 40
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    subprocess.run([sys.executable, "-c", _AGAIN, str(checkpoint), str(tmp_path / "logits")], check=True)
    assert torch.equal(torch.load(tmp_path / "logits"), expected)
    model.save_pretrained(tmp_path / "again")
    trainable = compress.load(checkpoint, trainable=True)
    with torch.no_grad():
        assert torch.equal(compress.load(tmp_path / "again")(input_ids=ids).logits, expected)
        torch.testing.assert_close(trainable(input_ids=ids).logits, expected, rtol=1e-2, atol=1e-2)
    assert CliRunner().invoke(app, ["verify", str(checkpoint)]).exit_code == 0


def test_reports_count_factors(checkpoint: Path) -> None:
    report = json.loads((checkpoint / "report.json").read_text())
    geometry = read_config(checkpoint).sites[0].geometry
    assert isinstance(geometry, FactorisedGeometry)
    dense = DenseGeometry(32, geometry.d_hidden, 32, geometry.gated, geometry.activation)
    assert report["cost"] == pytest.approx(geometry.cost / dense.cost)
    assert 0.4 < report["cost"] <= 0.5
    assert report["size"]["compressed_ffn_bytes"] == 2 * stored_bytes(geometry, "int8", "int8")
    assert any(row["scope"] == "ffn" and row["seconds"]["compressed"] > 0 for row in report["latency"])
    shown = CliRunner().invoke(app, ["inspect", str(checkpoint)])
    assert shown.exit_code == 0, shown.output
    assert f"rank {geometry.rank}, neurons {geometry.d_hidden}" in shown.output
    assert "low-rank factors" in shown.output
    card = (checkpoint / "README.md").read_text()
    assert "with low-rank factors" in card
    assert f"| low-rank factors | {geometry.rank} | {geometry.d_hidden} |" in card


def test_the_format_is_a_newer_one_only_with_factors(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())["quantization_config"]
    assert config["format_version"] == 2
    damaged = checkpoint.with_name("damaged")
    shutil.copytree(checkpoint, damaged)
    sites = [{**site, "geometry": {**site["geometry"], "rank": 15}} for site in config["sites"]]
    checkpoints.edit_config(damaged, sites=sites)
    with pytest.raises(CheckpointError, match="not"):
        compress.load(damaged)


def test_sizes_that_factors_do_not_have_are_refused(checkpoint: Path) -> None:
    folder = checkpoint.parent
    result = CliRunner().invoke(
        app,
        ["convert", str(folder / "model"), str(folder / "recipe.yaml"), "--data", str(folder / "text.txt"),
         "--dry-run", "-o", str(folder / "no"), "--set", "lookup.tables=3"],
    )  # fmt: skip
    assert result.exit_code == 2
    assert "low-rank factors have no tables" in result.output


def test_both_kinds_stand_in_one_model(tmp_path: Path) -> None:
    source = load_pretrained(str(converted.dense_folder(tmp_path / "dense", "bert")))
    first, second = find_sites(source.model)
    torch.manual_seed(0)
    factors = FactorisedFFN(second.d_in, d_hidden=second.d_hidden, activation=second.activation)
    placements = []
    for site, student in ((first, converted.student(source.model, first)), (second, factors)):
        packed = pack(student, "int8", "int8").eval()
        swap(source.model, site, packed)
        placements.append(Placement.of(source.model, site, packed))
    (tmp_path / "out").mkdir()
    save_checkpoint(
        tmp_path / "out", model=source.model, source=source, placements=placements, recipe_text="", resolved_recipe="",
        report=None, probe_batch=example_inputs(source.model),
    )  # fmt: skip
    model = compress.load(tmp_path / "out")
    ids = torch.arange(20)[None] % 40
    with torch.no_grad():
        expected = source.model(input_ids=ids).last_hidden_state
        assert torch.equal(model(input_ids=ids).last_hidden_state, expected)
    assert read_config(tmp_path / "out").to_dict()["format_version"] == 2
    assert costs(model).multiply_adds == sum(cost(placement.geometry) for placement in placements)
