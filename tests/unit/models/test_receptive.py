"""Which outputs an input changes and which inputs an output needs, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from deepcovid_edge.models.graph.reader import Graph, Node
from deepcovid_edge.models.graph.receptive_field import Chain, Kernel, NotSpatialError, kernel

quick = settings(max_examples=60)
KERNELS = st.builds(
    Kernel,
    size=st.integers(1, 7),
    stride=st.integers(1, 4),
    before=st.integers(0, 3),
    after=st.integers(0, 3),
    dilation=st.integers(1, 2),
    ceiling=st.booleans(),
)


def reads(how: Kernel, output: int, inputs: int) -> set[int]:
    """The inputs that one output reads, tap by tap."""
    first = output * how.stride - how.before
    taps = {first + tap * how.dilation for tap in range(how.size)}
    return {place for place in taps if 0 <= place < inputs}


def node(operator: str, inputs: tuple[str, ...], output: str, **numbers: tuple[int, ...]) -> Node:
    return Node(operator, "", inputs, (output,), dict(numbers), {}, memoryview(b""))


@quick
@given(how=KERNELS, inputs=st.integers(8, 40), data=st.data())
def test_a_change_reaches_every_output_that_reads_it(
    how: Kernel, inputs: int, data: st.DataObject
) -> None:
    assume(how.reach <= inputs)
    first = data.draw(st.integers(0, inputs - 1))
    span = first, data.draw(st.integers(first + 1, inputs))
    outputs = how.length(inputs)
    changed = how.changed(span, outputs)
    for output in range(outputs):
        if reads(how, output, inputs) & set(range(*span)):
            assert changed[0] <= output < changed[1]
    for edge in (changed[0], changed[1] - 1):
        if changed[0] < changed[1] and how.dilation == 1:
            assert reads(how, edge, inputs) & set(range(*span)), "wider than it must be"


@quick
@given(how=KERNELS, inputs=st.integers(8, 40), data=st.data())
def test_an_output_needs_every_input_that_it_reads(
    how: Kernel, inputs: int, data: st.DataObject
) -> None:
    assume(how.reach <= inputs)
    outputs = how.length(inputs)
    first = data.draw(st.integers(0, outputs - 1))
    span = first, data.draw(st.integers(first + 1, outputs))
    needed = how.needed(span, inputs)
    read = set.union(*(reads(how, output, inputs) for output in range(*span)))
    assert read <= set(range(*needed))
    if read and how.dilation == 1:
        assert needed[0] == min(read) or needed[0] == 0
        assert needed[1] == max(read) + 1 or needed[1] == inputs


@quick
@given(
    size=st.integers(1, 5),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    ceiling=st.booleans(),
    length=st.integers(6, 30),
)
def test_lengths_are_those_that_onnx_runtime_makes(
    size: int, stride: int, pad: int, ceiling: bool, length: int
) -> None:
    onnx = pytest.importorskip("onnx", reason="needs extra export")
    runtime = pytest.importorskip("onnxruntime", reason="needs extra cpu")
    assume(pad < size)
    made = onnx.helper.make_node(
        "MaxPool",
        ["x"],
        ["y"],
        kernel_shape=[size, 1],
        strides=[stride, 1],
        pads=[pad, 0, pad, 0],
        ceil_mode=int(ceiling),
    )
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [made], "g", [value("x", 1, [1, 1, length, 1])], [value("y", 1, None)]
    )
    opsets = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString())
    (y,) = session.run(None, {"x": np.zeros((1, 1, length, 1), np.float32)})
    assert Kernel(size, stride, pad, pad, 1, ceiling).length(length) == y.shape[2]


def test_an_operator_that_is_not_known_to_keep_places_is_refused() -> None:
    with pytest.raises(NotSpatialError, match="Flatten"):
        kernel(node("Flatten", ("x",), "y"), 0)
    with pytest.raises(NotSpatialError, match="Conv"):
        kernel(node("Conv", ("x", "w"), "y", kernel_shape=(3,)), 0)
    padded = Node(
        "Conv",
        "",
        ("x",),
        ("y",),
        {"kernel_shape": (3, 3)},
        {"auto_pad": "SAME_UPPER"},
        memoryview(b""),
    )
    with pytest.raises(NotSpatialError, match="Conv"):
        kernel(padded, 0)


def test_branches_of_unlike_stride_are_refused() -> None:
    nodes = [
        node("Conv", ("x", "w"), "a", kernel_shape=(1, 1), strides=(2, 2)),
        node("Conv", ("x", "w"), "b", kernel_shape=(1, 1)),
        node("Add", ("a", "b"), "y"),
    ]
    with pytest.raises(NotSpatialError, match="unlike stride"):
        Chain(Graph(nodes, {}, ["x"], ["y"]), nodes, ["x"], "y", 0)


def test_the_widest_branch_decides() -> None:
    nodes = [
        node("Conv", ("x", "w"), "a", kernel_shape=(1, 1)),
        node("Conv", ("x", "w"), "b", kernel_shape=(5, 5), pads=(2, 2, 2, 2)),
        node("Concat", ("a", "b"), "c"),
        node("MaxPool", ("c",), "y", kernel_shape=(2, 2), strides=(2, 2)),
    ]
    chain = Chain(Graph(nodes, {}, ["x"], ["y"]), nodes, ["x"], "y", 0)
    lengths = chain.lengths({"x": 20})
    assert lengths["y"] == 10
    assert chain.changed({"x": (7, 8)}, lengths)["y"] == (2, 5)
    assert chain.needed((2, 5), lengths)["x"] == (2, 12)
    assert chain.crops((2, 5), lengths) == (((2, 12),), (1, 4))
    assert chain.strides["x"] == 2
