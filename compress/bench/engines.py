"""Dense FFNs in other engines, where they are installed: ONNX Runtime, OpenVINO and torchao."""

from __future__ import annotations

import copy
import functools
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluate.variants import DenseFFN

Layer = Callable[[Tensor], object]
ACTIVATIONS = ("gelu", "silu", "relu")  # those that every engine has
_OPSET = 20  # the first with Gelu


def installed(module: str) -> bool:
    """Whether an optional engine can be imported."""
    return find_spec(module) is not None


def torchao_int8(layers: Sequence[DenseFFN]) -> list[Layer]:
    """Dynamic int8 of torchao: weights per channel, activations per token."""
    logging.getLogger("torchao").setLevel(logging.ERROR)  # of its own extensions for other machines
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        stack = nn.ModuleList(copy.deepcopy(list(layers)))
        quantize_(stack, Int8DynamicActivationInt8WeightConfig())
    return list(stack)


def onnxruntime_layers(layers: Sequence[DenseFFN], int8: bool, threads: int) -> list[Layer]:
    """ONNX Runtime, in float32 or in dynamic int8 with one scale a channel."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    _share_threads(threads)
    options.use_per_session_threads = False  # pools of their own would spin against each other
    options.log_severity_level = 3
    made: list[Layer] = []
    with tempfile.TemporaryDirectory() as folder:
        for layer in layers:
            path = Path(folder) / "ffn.onnx"
            _write_onnx(layer, path)
            if int8:
                path = _quantised_onnx(path)
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            made.append(_onnxruntime_layer(session))
    return made


@functools.cache
def _share_threads(threads: int) -> None:
    """Give all sessions of this process one pool, which is made once and cannot be changed."""
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(threads, 1)


def _onnxruntime_layer(session: Any) -> Layer:
    return lambda x: session.run(None, {"x": x.numpy()})


def _openvino_layer(request: Any) -> Layer:
    return lambda x: request.infer({0: x.numpy()}, share_inputs=True, share_outputs=True)


def _write_onnx(layer: DenseFFN, path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []

    def linear(source: str, linear: nn.Linear, name: str) -> str:
        constants.append(numpy_helper.from_array(linear.weight.detach().T.contiguous().numpy(), f"{name}_weight"))
        nodes.append(helper.make_node("MatMul", [source, f"{name}_weight"], [f"{name}_product"], name=name))
        if linear.bias is None:
            return f"{name}_product"
        constants.append(numpy_helper.from_array(linear.bias.detach().numpy(), f"{name}_bias"))
        nodes.append(helper.make_node("Add", [f"{name}_product", f"{name}_bias"], [f"{name}_sum"]))
        return f"{name}_sum"

    gate = linear("x", layer.gate, "gate")
    if layer.activation == "silu":
        nodes.append(helper.make_node("Sigmoid", [gate], ["sigmoid"]))
        nodes.append(helper.make_node("Mul", [gate, "sigmoid"], ["hidden"]))
    else:
        nodes.append(helper.make_node({"gelu": "Gelu", "relu": "Relu"}[layer.activation], [gate], ["hidden"]))
    hidden = "hidden"
    if layer.up is not None:
        nodes.append(helper.make_node("Mul", [hidden, linear("x", layer.up, "up")], ["gated"]))
        hidden = "gated"
    y = linear(hidden, layer.down, "down")
    graph = helper.make_graph(
        nodes, "ffn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", layer.gate.in_features])],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["tokens", layer.down.out_features])],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="weights", all_tensors_to_one_file=True)


def _quantised_onnx(path: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name("ffn-int8.onnx")
    logging.disable(logging.WARNING)  # advice about preprocessing that changes nothing here
    try:
        quantize_dynamic(path, target, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True)
    finally:
        logging.disable(logging.NOTSET)
    return target


def openvino_layers(layers: Sequence[DenseFFN], int8: bool, threads: int, example: Tensor) -> list[Layer]:
    """OpenVINO in float32, or in int8 as its own tools quantise: weights by channel, activations by their range.

    `example` [N, d_in] float32 is what ranges of activations are taken from.
    """
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    made: list[Layer] = []
    for layer in layers:
        request = core.compile_model(_openvino_model(layer, int8, example), "CPU", settings).create_infer_request()
        made.append(_openvino_layer(request))
    return made


def _openvino_model(layer: DenseFFN, int8: bool, example: Tensor) -> Any:
    import numpy
    import openvino
    from openvino import opset13 as ops

    def range_of(values: Tensor) -> tuple[float, float]:
        return min(0.0, values.min().item()), max(0.0, values.max().item())

    def quantised(node: Any, low: Any, high: Any, levels: int) -> Any:
        ends = [ops.constant(numpy.asarray(end, dtype=numpy.float32)) for end in (low, high)]
        return ops.fake_quantize(node, *ends, *ends, levels)

    def linear(node: Any, linear: nn.Linear) -> Any:
        weight = ops.constant(linear.weight.detach().numpy())
        if int8:
            most = linear.weight.detach().abs().amax(1, keepdim=True).numpy()
            weight = quantised(weight, -most, most, 255)
        product = ops.matmul(node, weight, False, True)
        return product if linear.bias is None else ops.add(product, ops.constant(linear.bias.detach().numpy()))

    x = ops.parameter([-1, layer.gate.in_features], numpy.float32, name="x")
    source = quantised(x, *range_of(example), 256) if int8 else x
    gate = linear(source, layer.gate)
    hidden = {"gelu": lambda v: ops.gelu(v, "ERF"), "silu": ops.swish, "relu": ops.relu}[layer.activation](gate)
    if layer.up is not None:
        hidden = ops.multiply(hidden, linear(source, layer.up))
    if int8:
        with torch.no_grad():
            inner = layer.hidden(example)
        hidden = quantised(hidden, *range_of(inner), 256)
    return openvino.Model([linear(hidden, layer.down)], [x], "ffn")
