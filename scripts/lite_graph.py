"""The two changes to the graph of Kokoro: a pitch control, and faster operators, such as products for convolutions.

`make_lite_data` writes both to the data files; `kokoro` applies them where the weights are.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

node: Callable[..., Any] = helper.make_node
_GRAPH, _NODE, _INITIALIZER = 7, 1, 5  # field numbers in ModelProto and GraphProto
_SQUARED_SINE = {"turns": 1 / np.pi, "lowest": 0.32357717, "middle": -1.01568341, "highest": 30.2919007}
"""Coefficients of 1, q and q ** 2 times q, relative to the highest, with the least error for q up to 0.25."""


def pitch_fragment() -> bytes:
    """Return the nodes that replace the graph's pitch curve with a controllable one, and two outputs.

    The curve is voiced where it exceeds 30 Hz. The mean of its logarithm over the voiced part is the source pitch
    (unless f0_src is set); the distance from it is scaled by f0_gamma and added to f0_dst (natural logarithms). The
    outputs are the curve before that, and the frames that the graph gives each token.
    """
    curve, raw = "/encoder/Squeeze_output_0", "/encoder/Squeeze_output_R"
    nodes = [
        node("Max", [raw, "aw_floor"], ["aw_clipped"]),
        node("Log", ["aw_clipped"], ["aw_log"]),
        node("Greater", [raw, "aw_floor"], ["aw_is_voiced"]),
        node("Cast", ["aw_is_voiced"], ["aw_voiced"], to=TensorProto.FLOAT),
        node("Mul", ["aw_log", "aw_voiced"], ["aw_log_voiced"]),
        node("ReduceSum", ["aw_log_voiced"], ["aw_sum"]),
        node("ReduceSum", ["aw_voiced"], ["aw_count"]),
        node("Div", ["aw_sum", "aw_count"], ["aw_mean"]),
        node("Sub", ["aw_mean", "f0_src"], ["aw_shift"]),
        node("Mul", ["aw_shift", "f0_auto"], ["aw_auto_shift"]),
        node("Add", ["aw_auto_shift", "f0_src"], ["aw_source"]),
        node("Sub", ["aw_log", "aw_source"], ["aw_distance"]),
        node("Mul", ["aw_distance", "f0_gamma"], ["aw_scaled"]),
        node("Add", ["aw_scaled", "f0_dst"], ["aw_new_log"]),
        node("Exp", ["aw_new_log"], ["aw_new"]),
        node("Where", ["aw_is_voiced", "aw_new", raw], [curve]),
    ]
    for number, new_node in enumerate(nodes):
        new_node.name = f"aw_pitch_{number}"
    graph = onnx.GraphProto()
    graph.node.extend(nodes)
    for name, value in (("aw_floor", 30.0), ("f0_src", 0.0), ("f0_dst", 0.0), ("f0_gamma", 1.0), ("f0_auto", 0.0)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.float32), name))
    for name in ("f0_src", "f0_dst", "f0_gamma", "f0_auto"):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]))
    for name in (raw, "/encoder/Clip_output_0"):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return _serialize(graph)


def products(model: bytes) -> bytes:
    """Return the edits that make a model with pitch control faster: its convolutions become matrix products.

    ConvInteger takes weights of unsigned bytes, for which processors have no instruction. A matrix product of
    unsigned activations and signed weights is twice as fast, and sums the same integers. The result is an npz of the
    edits `at` (n, 2: start and end in the model), `sizes` (n,) of their replacements, joined in `new`, and `weights`
    (n, 4): the place of a kernel and its shape.
    """
    graph = onnx.load_from_string(model).graph
    product = _Products(graph)
    position, end = next(span for field, _, *span in _fields(model, 0, len(model)) if field == _GRAPH)
    edits: list[tuple[int, int, bytes]] = []
    weights = []
    for field, start, content, stop in _fields(model, position, end):
        if field == _NODE and onnx.NodeProto.FromString(model[content:stop]).name in product.replaced:
            edits.append((start, stop, b""))
        elif field == _INITIALIZER:
            tensor = onnx.TensorProto.FromString(model[content:stop])
            if tensor.name in product.kernels:
                raw = tensor.raw_data
                assert model[stop - len(raw) : stop] == raw, "the weights are not the last field"
                shape = product.kernels[tensor.name]
                matrix = onnx.TensorProto(
                    dims=(shape[1] * shape[2], shape[0]), data_type=TensorProto.INT8, name=tensor.name
                )
                header = matrix.SerializeToString() + b"\x4a" + _varint(len(raw))  # field 9: raw_data
                header = model[start : start + 1] + _varint(len(header) + len(raw)) + header
                edits.append((start, stop - len(raw), header))
                weights.append((stop - len(raw), *shape))
    length = end - position + sum(len(new) - (stop - start) for start, stop, new in edits)
    tag = position - len(_varint(end - position))
    edits = [(tag, position, _varint(length)), *edits, (len(model), len(model), _serialize(product.graph()))]
    out = io.BytesIO()
    np.savez_compressed(
        out,
        at=np.array([edit[:2] for edit in edits]),
        sizes=np.array([len(edit[2]) for edit in edits]),
        new=np.frombuffer(b"".join(edit[2] for edit in edits), np.uint8),
        weights=np.array(weights),
    )
    return out.getvalue()


class _Products:
    """The matrix products and other faster operators of a graph, and what they replace."""

    def __init__(self, graph: Any) -> None:
        self.replaced: set[str] = set()
        self.kernels: dict[str, tuple[int, ...]] = {}
        self._initial = {tensor.name: tensor for tensor in graph.initializer}
        self._source = {output: of for of in graph.node for output in of.output}
        self._users = defaultdict(list)
        for of in graph.node:
            for name in of.input:
                self._users[name].append(of)
        self._nodes: dict[str, Any] = {}
        self._constants: dict[str, Any] = {}
        replacements = {
            "ConvInteger": self._replace_convolution,
            "Sin": self._replace_sine,
            "Sqrt": self._replace_norm,
            "STFT": self._replace_transform,
        }
        for of in graph.node:
            if of.op_type in replacements:
                replacements[of.op_type](of)

    def graph(self) -> Any:
        """Return the new nodes and constants."""
        return onnx.GraphProto(node=self._nodes.values(), initializer=self._constants.values())

    def _replace_convolution(self, convolution: Any) -> None:
        attributes = {of.name: helper.get_attribute_value(of) for of in convolution.attribute}
        quantized, kernel, zero, kernel_zero = convolution.input
        shape = tuple(self._initial[kernel].dims)
        n_out, n_in, width = shape
        if attributes["strides"] != [1] or attributes["group"] != 1 or n_out < 64:
            return
        (dilation,), (padding, end_padding) = attributes["dilations"], attributes["pads"]
        assert padding == end_padding == dilation * (width - 1) // 2
        self.kernels[kernel] = shape
        scale = self._source[quantized].output[1]
        output, kernel_scale, bias = self._remove(convolution, scale)
        rows = self._node("Transpose", [quantized], perm=[0, 2, 1])
        if width > 1:
            ends = self._constant(np.array([0, padding, 0, 0, padding, 0]))
            padded = self._node("Pad", [rows, ends, zero])
            # Within a level of the vocoder all lengths are equal, so its convolutions share their indices.
            level = f"level {n_in}" if "generator" in convolution.name else quantized
            indices = self._node(
                "Add", [self._positions(level, quantized), self._constant(np.arange(width, dtype=np.int32) * dilation)]
            )
            gathered = self._node("Gather", [padded, indices], axis=1)
            rows = self._node("Reshape", [gathered, self._constant(np.array([1, -1, n_in * width]))])
        value = int(numpy_helper.to_array(self._initial[kernel_zero])) - 128
        inputs = [rows, kernel, scale, kernel_scale, zero, self._constant(np.array(value, np.int8)), bias]
        product = self._node("MatMulIntegerToFloat", inputs, domain="com.microsoft")
        self._nodes[output] = node("Transpose", [product], [output], perm=[0, 2, 1])

    def _remove(self, convolution: Any, scale: str) -> tuple[str, str, str]:
        """Remove a convolution with its bias and its scale; return its output, the scale of its kernel, its bias."""
        self.replaced.add(convolution.name)
        bias = ""
        (user,) = self._users[convolution.output[0]]
        if user.op_type == "Add":
            of = self._source[next(name for name in user.input if name != convolution.output[0])]
            while True:
                self.replaced.add(of.name)
                bias = of.input[0]
                if of.op_type == "Div":
                    break
                of = self._source[bias]
            self.replaced.add(user.name)
            (user,) = self._users[user.output[0]]
        assert user.op_type == "Cast"
        (scaling,) = self._users[user.output[0]]
        both = self._source[next(name for name in scaling.input if name != user.output[0])]
        self.replaced |= {user.name, scaling.name, both.name}
        assert all(of.name in self.replaced for of in self._users[both.output[0]])
        return scaling.output[0], next(name for name in both.input if name != scale), bias

    def _replace_sine(self, sine: Any) -> None:
        """Replace the squared sine of Snake activations by a polynomial, which takes less time and all threads.

        With r = x / pi - round(x / pi) and q = r * r it is a polynomial of q, with an error below 0.001. Its highest
        coefficient is multiplied into the factor of each channel that follows, which saves a pass over all values.
        """
        square, scaling = self._users[sine.output[0]][0], self._source[sine.input[0]]
        if square.op_type != "Pow":
            return
        (scaled,) = self._users[square.output[0]]
        self.replaced |= {scaling.name, sine.name, square.name, scaled.name}
        alpha, signal = scaling.input
        constant = {name: self._constant(np.array(value, np.float32)) for name, value in _SQUARED_SINE.items()}
        turns = self._node("Mul", [signal, self._node("Mul", [alpha, constant["turns"]])])
        rest = self._node("Sub", [turns, self._node("Round", [turns])])
        squared = self._node("Mul", [rest, rest])
        total = self._node("Mul", [self._node("Add", [squared, constant["middle"]]), squared])
        total = self._node("Mul", [self._node("Add", [total, constant["lowest"]]), squared])
        (factor,) = (name for name in scaled.input if name != square.output[0])
        inputs = [self._node("Mul", [factor, constant["highest"]]), total]
        self._nodes[scaled.output[0]] = node("Mul", inputs, list(scaled.output))

    def _replace_norm(self, root: Any) -> None:
        """Replace the seven operators of an adaptive norm by one."""
        division = self._users[root.output[0]][0]
        if division.op_type != "Div" or "generator" not in root.name:
            return
        stabilized = self._source[root.input[0]]
        variance = self._source[stabilized.input[0]]
        squared = self._source[variance.input[0]]
        difference = self._source[squared.input[0]]
        mean = self._source[difference.input[1]]
        chain = [mean, difference, squared, variance, stabilized, root, division]
        assert [of.op_type for of in chain] == ["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Sqrt", "Div"]
        self.replaced |= {of.name for of in chain}
        epsilon = float(numpy_helper.to_array(self._initial[stabilized.input[1]]))
        flat = self._constant(np.array([-1]))
        for scaled in self._users[division.output[0]]:
            (shifted,) = self._users[scaled.output[0]]
            assert (scaled.op_type, shifted.op_type) == ("Mul", "Add")
            self.replaced |= {scaled.name, shifted.name}
            scale, shift = (self._node("Reshape", [of, flat]) for of in (scaled.input[0], shifted.input[1]))
            inputs, (output,) = [difference.input[0], scale, shift], shifted.output
            self._nodes[output] = node("InstanceNormalization", inputs, [output], epsilon=epsilon)

    def _replace_transform(self, transform: Any) -> None:
        """Replace the short-time Fourier transform, which runs on one thread frame by frame, by a convolution.

        The imaginary part of the first and the last bin is zero. Rounding errors would give a negative real part a
        phase of pi or -pi at random; a tiny bias makes it pi, as in the training.
        """
        signal, step, window, _ = transform.input
        (turned,) = self._users[transform.output[0]]
        parts = self._users[turned.output[0]]
        self.replaced |= {transform.name, turned.name, *(of.name for of in parts)}
        taper = numpy_helper.to_array(self._initial[window]).astype(np.float64)
        bins = np.fft.rfft(np.eye(len(taper)) * taper, axis=1).T
        kernel = np.concatenate([bins.real, bins.imag])[:, None].round(12).astype(np.float32)
        channel = self._node("Unsqueeze", [signal, self._constant(np.array([1]))])
        stride = int(numpy_helper.to_array(self._initial[step]))
        bias = np.where(kernel.any(axis=(1, 2)), 0, 1e-30).astype(np.float32)
        both = self._node("Conv", [channel, self._constant(kernel), self._constant(bias)], strides=[stride])
        index = {int(numpy_helper.to_array(self._initial[of.input[1]])): of.output[0] for of in parts}
        self._nodes[transform.name] = node("Split", [both], [index[0], index[1]], axis=1, num_outputs=2)

    def _positions(self, level: str, quantized: str) -> str:
        """Return the numbers of all positions, shape (n, 1)."""
        if level not in self._nodes:
            size = self._node("Shape", [quantized], start=2, end=3)
            length = self._node("Squeeze", [self._node("Cast", [size], to=TensorProto.INT32)])
            zero, one = (self._constant(np.array(value, np.int32)) for value in (0, 1))
            numbers = self._node("Range", [zero, length, one])
            self._nodes[level] = node("Unsqueeze", [numbers, self._constant(np.array([1]))], [f"aw {level}"])
        return f"aw {level}"

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node unless the same exists; return its output."""
        key = repr((kind, inputs, attributes))
        if key not in self._nodes:
            self._nodes[key] = node(kind, inputs, [f"aw_{len(self._nodes)}"], **attributes)
        output: str = self._nodes[key].output[0]
        return output

    def _constant(self, value: Any) -> str:
        key = repr((value.dtype, value.tolist()))
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(value, f"aw_c{len(self._constants)}")
        name: str = self._constants[key].name
        return name


def _serialize(graph: Any) -> bytes:
    serialized: bytes = onnx.ModelProto(graph=graph).SerializeToString(deterministic=True)
    return serialized


def _fields(message: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, start, start of the content, and end of each length-delimited field of a serialized message."""
    while position < end:
        start = position
        tag, position = _read_varint(message, position)
        size, position = _read_varint(message, position)
        if tag & 7 == 2:
            yield tag >> 3, start, position, position + size
            position += size
        else:
            assert tag & 7 == 0, "neither a varint nor length-delimited"


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def probe() -> bytes:
    """Return a graph that multiplies bytes a (1, 64) of up to 255 by signed bytes of 127."""
    graph = onnx.GraphProto(name="probe")
    graph.node.append(node("MatMulInteger", ["a", "b"], ["product"]))
    graph.input.append(helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 64]))
    graph.initializer.append(numpy_helper.from_array(np.full((64, 16), 127, np.int8), "b"))
    graph.output.append(helper.make_tensor_value_info("product", TensorProto.INT32, [1, 16]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized
