"""The standard's operator: its published cases, and our module exported to it."""

import functools
import importlib
import warnings

import pytest
import torch

from rope_teach import RotaryEmbedding, cos_sin, inverse_frequencies
from rope_teach.dialects.onnx import ExportableRotary, exportable, rotary_embedding
from rope_teach.frequencies import yarn

CASES = [
    f"test_rotary_embedding{name}{form}"
    for name in (
        "",
        "_3d_input",
        "_interleaved",
        "_with_rotary_dim",
        "_with_interleaved_rotary_dim",
        "_no_position_ids",
        "_no_position_ids_interleaved",
        "_no_position_ids_rotary_dim",
    )
    for form in ("", "_expanded")  # the same inputs, and a graph of simpler operators
]


@pytest.fixture(scope="module")
def published():
    """The standard's own cases for this operator, by name."""
    pytest.importorskip("onnx", reason="the peers extra has it")
    node = importlib.import_module("onnx.backend.test.case.node")
    importlib.import_module("onnx.backend.test.case.node.rotaryembedding")
    # collect_testcases() would run the cases of all operators first.
    return {case.name: case for case in node._NodeTestCases if "rotary_e" in case.name}


@pytest.mark.parametrize("name", CASES)
def test_published_case(name, published):
    onnx = importlib.import_module("onnx")
    assert set(published) == set(CASES)
    operator = published[name.removesuffix("_expanded")].model.graph.node[0]
    attributes = {
        a.name: onnx.helper.get_attribute_value(a) for a in operator.attribute
    }
    for inputs, (expected,) in published[name].data_sets:
        tensors = [torch.from_numpy(x.copy()) for x in inputs]
        got = rotary_embedding(*tensors, **attributes)
        torch.testing.assert_close(
            got, torch.from_numpy(expected), rtol=1e-6, atol=1e-7
        )


# ------------------------------------------------------------- where the reference errs


def reference(*inputs, **attributes):
    module = pytest.importorskip("onnx.reference.ops.op_rotary_embedding")
    arrays = [x.numpy() for x in inputs]
    return torch.from_numpy(module.rotary_embedding(*arrays, **attributes))


def test_position_minus_one_is_no_row():
    x = torch.randn(1, 2, 1, 8)
    tables = cos_sin(torch.arange(4), inverse_frequencies(8))
    last, before = torch.tensor([[3]]), torch.tensor([[-1]])
    assert torch.equal(reference(x, *tables, before), reference(x, *tables, last))
    with pytest.raises(ValueError, match="rows of the tables, 0 to 3, got -1 to -1"):
        rotary_embedding(x, *tables, before)


def test_float16_is_rounded_once():
    torch.manual_seed(0)
    x, ids = torch.randn(2, 4, 64, 32).half(), torch.arange(64).expand(2, -1)
    tables = cos_sin(torch.arange(64), inverse_frequencies(32), torch.float16)
    exact = rotary_embedding(x.double(), *(t.double() for t in tables), ids)
    rounding = 2**-11 * exact.abs() + 2**-24

    def errors(got):
        return ((got.double() - exact).abs() / rounding).max()

    assert errors(rotary_embedding(x, *tables, ids)) <= 1.01
    assert errors(reference(x, *tables, ids)) > 2


# --------------------------------------------------------------------- the export


def by_runtime(inputs, program):
    runtime = pytest.importorskip("onnxruntime", reason="the peers extra has it")
    return evaluate(
        runtime.InferenceSession(program.model_proto.SerializeToString()).run,
        inputs,
        program,
    )


def by_reference(inputs, program):
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator
    return evaluate(evaluator(program.model_proto).run, inputs, program)


def evaluate(run, inputs, program):
    names = [put.name for put in program.model_proto.graph.input]
    arrays = [x.contiguous().numpy() for x in inputs]
    return [
        torch.from_numpy(y) for y in run(None, dict(zip(names, arrays, strict=True)))
    ]


def export(module, inputs, **options):
    pytest.importorskip("onnxscript", reason="the peers extra has it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=23,
            verbose=False,
            **options,
        )


def operators(program):
    return [node.op_type for node in program.model_proto.graph.node]


def sample(layout, length=6):
    torch.manual_seed(0)
    shape = (2, 4, length, 16) if layout == "bhsd" else (2, length, 4, 16)
    q = torch.randn(shape)
    return q, q.narrow(1 if layout == "bhsd" else 2, 0, 2) * 2


MODULES = {
    "interleaved": {},
    "half, partial": {"pairing": "half", "rotary_dim": 8},
    "bshd": {"layout": "bshd", "pairing": "half"},
    "yarn": {"scaling": functools.partial(yarn, factor=4, trained_length=8)},
    "own frequencies": {"inv_freq": torch.linspace(0, 2, 8), "learned": True},
}


@pytest.mark.parametrize("name", MODULES)
def test_the_exportable_module_rotates_as_ours(name):
    rope = RotaryEmbedding(16, **MODULES[name])
    twin, (q, k) = exportable(rope, length=40), sample(rope.layout)
    rows = torch.stack([torch.arange(6), torch.arange(30, 36)])
    for where in (
        {},
        {"start": 20},
        {"positions": rows},
        {"positions": (rows, rows + 1)},
    ):
        for got, expected in zip(twin(q, k, **where), rope(q, k, **where), strict=True):
            assert torch.allclose(got, expected, atol=1e-6)
    halves = twin(q.half(), k.half())[0]
    assert halves.dtype == torch.float16
    assert torch.allclose(halves.float(), rope(q, k)[0], atol=1e-2)


def test_a_rotation_exports_as_one_operator():
    rope = RotaryEmbedding(16, pairing="half", rotary_dim=8)
    q, k = sample("bhsd")
    positions = torch.stack([torch.arange(6), torch.arange(30, 36)])
    program = export(exportable(rope, length=40), (q, k, positions))
    assert operators(program) == ["RotaryEmbedding"] * 2
    expected = rope(q, k, positions)
    for evaluated in (by_runtime, by_reference):
        outputs = evaluated((q, k, positions), program)
        for got, exact in zip(outputs, expected, strict=True):
            assert torch.allclose(got, exact, atol=1e-6)


class Layer(torch.nn.Module):
    """Attention without a transpose before the rotation."""

    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(32, 96)
        self.rope = RotaryEmbedding(8, layout="bshd")

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).unbind(2)
        q, k = (x.transpose(1, 2) for x in self.rope(q, k))
        attend = torch.nn.functional.scaled_dot_product_attention
        return (
            attend(q, k, v.transpose(1, 2), is_causal=True).transpose(1, 2).flatten(2)
        )


def test_a_layer_exports_for_any_length():
    torch.manual_seed(0)
    layer, longer = Layer().eval(), torch.randn(3, 50, 32)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    few = torch.randn(2, 7, 32)
    program = export(exportable(layer, 64), (few,), dynamic_shapes=(free,))
    assert operators(program).count("RotaryEmbedding") == 2
    (mixed,) = by_runtime((longer,), program)
    assert torch.allclose(mixed, layer(longer), atol=1e-5)


def test_export_leaves_the_module_as_it_was():
    layer = Layer()
    twin = exportable(layer, 64)
    assert isinstance(layer.rope, RotaryEmbedding)
    assert isinstance(twin.rope, ExportableRotary)
    assert twin.qkv.weight is not layer.qkv.weight
    assert list(twin.state_dict()) == list(layer.state_dict())


X = torch.randn(2, 4, 3, 8)
IDS = torch.arange(3).expand(2, -1)
COS, SIN = cos_sin(torch.arange(50), inverse_frequencies(8))
ROPE = RotaryEmbedding(8)


def test_a_clockwise_module_stays_clockwise():
    rope = RotaryEmbedding(8, clockwise=True)
    torch.testing.assert_close(exportable(rope, 16)(X, X[:, :2]), rope(X, X[:, :2]))


def test_a_module_with_two_names_is_replaced_under_both():
    model = torch.nn.ModuleDict({"a": ROPE, "b": ROPE})
    assert {type(x) for x in exportable(model, 8).values()} == {ExportableRotary}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.int32])
def test_position_ids_of_any_integers_are_rows(dtype):
    ids = torch.tensor([4, 1, 0])
    expected = rotary_embedding(X, COS, SIN, ids.expand(2, -1))
    got = rotary_embedding(X, COS, SIN, ids.expand(2, -1).to(dtype))
    assert torch.equal(got, expected)
    module = exportable(ROPE, 8)
    assert torch.equal(module(X, X, ids.to(dtype))[0], module(X, X, ids)[0])


def test_position_ids_in_graphs_and_transforms():
    expected = rotary_embedding(X, COS, SIN, IDS)
    compiled = torch.compile(rotary_embedding, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X, COS, SIN, IDS), expected)
    mapped = torch.vmap(lambda x, at: rotary_embedding(x[None], COS, SIN, at[None])[0])
    torch.testing.assert_close(mapped(X, IDS), expected)


# ---------------------------------------------------------------------- bad input

BAD = {
    "ValueError: positions must be rows of the tables, 0 to 15, got -2 to 0": lambda: (
        ExportableRotary(RotaryEmbedding(8), 16)(X, X, torch.arange(-2, 1))
    ),
    "TypeError: X must be a real floating-point": lambda: rotary_embedding(
        X.long(), COS, SIN, IDS
    ),
    "ValueError: X must be (batch, heads, seq, head_dim) or ... got (4, 8)": lambda: (
        rotary_embedding(X[0, :, 0], COS, SIN, IDS)
    ),
    "ValueError: num_heads must be positive, got 0": lambda: rotary_embedding(
        torch.randn(2, 3, 32), COS, SIN, IDS
    ),
    "ValueError: X of shape (2, 3, 32) does not divide into num_heads=5": lambda: (
        rotary_embedding(torch.randn(2, 3, 32), COS, SIN, IDS, num_heads=5)
    ),
    "ValueError: cos_cache must be (batch, seq, r/2 = 4) without": lambda: (
        rotary_embedding(X, COS, SIN)
    ),
    "ValueError: sin_cache must be (positions, r/2 = 4) with ... got (50, 3)": lambda: (
        rotary_embedding(X, COS, SIN[:, 1:], IDS)
    ),
    "ValueError: r/2 = 2.5": lambda: rotary_embedding(
        X, COS[:, :2], SIN[:, :2], IDS, rotary_embedding_dim=5
    ),
    "ValueError: rows of the tables, 0 to 49, got 48 to 50": lambda: rotary_embedding(
        X, COS, SIN, IDS + 48
    ),
    "TypeError: position_ids must be integers, got torch.float32": lambda: (
        rotary_embedding(X, COS, SIN, IDS.float())
    ),
    "ValueError: module must be or contain a RotaryEmbedding; Linear": lambda: (
        exportable(torch.nn.Linear(2, 2), 8)
    ),
    "ValueError: length must be positive, got 0": lambda: exportable(ROPE, 0),
    "ValueError: neither several axes nor xPos": lambda: exportable(
        RotaryEmbedding(8, axes=2), 8
    ),
    "ValueError: nor xPos ... xpos_scale_base=512": lambda: exportable(
        RotaryEmbedding(8, xpos_scale_base=512), 8
    ),
    "ValueError: neither trailing nor layout='sbhd' ... trailing": lambda: exportable(
        RotaryEmbedding(8, rotary_dim=4, trailing=True), 8
    ),
    "ValueError: neither trailing nor layout='sbhd' ... layout=": lambda: exportable(
        RotaryEmbedding(8, layout="sbhd"), 8
    ),
    "ValueError: give positions, or start": lambda: exportable(ROPE, 8)(
        X, X, IDS[0], start=2
    ),
    "ValueError: q has 1 positions and k has 3": lambda: exportable(ROPE, 8)(
        X[:, :, :1], X
    ),
    "ValueError: positions ... 3 items": lambda: exportable(ROPE, 8)(X, X, (IDS,) * 3),
    "TypeError: start must be an int, got float": lambda: exportable(ROPE, 8)(
        X, X, start=0.5
    ),
    "ValueError: cos_cache and sin_cache ... (50, 4) and (3, 4)": lambda: (
        rotary_embedding(X, COS, SIN[:3], IDS)
    ),
    "ValueError: four axes in layout='bhsd' ... head_dim=8, got (4, 3, 8)": lambda: (
        exportable(ROPE, 8)(X[0], X[0])
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message, refuses):
    refuses(BAD[message], message)
