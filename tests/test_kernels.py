"""The CUDA kernels, without a GPU: in Triton's interpreter, and compiled for Hopper.

The interpreter truncates where the GPU rounds when it makes bfloat16, so that bfloat16
is held to 4e-3 here. `test_gpu.py` holds the same kernels to one rounding.
"""

import importlib
import itertools
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if torch.cuda.is_available():
    pytest.skip("test_gpu.py runs the kernels themselves", allow_module_level=True)

from rope_teach import angles, cos_sin, inverse_frequencies, laws, ops, rotate_matrix
from rope_teach.checks import lay_out
from rope_teach.ops import cuda
from rope_teach.pairing import full_table
from tests.samples import (
    as_on_cuda,
    both_pairings,
    each_layout,
    from_layout,
    sample,
    to_layout,
)

TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}


def tensors(dtype=torch.float32, batch=2, seq=3, heads=4, kv_heads=2, head_dim=16):
    """q and k stored token by token, seen as (batch, heads, seq, head_dim)."""
    return [
        sample(batch, seq, h, head_dim, seed=h, dtype=dtype).transpose(1, 2)
        for h in (heads, kv_heads)
    ]


def table(positions, rotary_dim=16, layout="bhsd", ndim=4):
    tables = cos_sin(positions, inverse_frequencies(rotary_dim))
    return [lay_out(t, layout, ndim) for t in tables]


def kernel(xs, tables, pairing, layout="bhsd", inverse=False, out=None):
    out = [torch.empty_like(x) for x in xs] if out is None else out
    return out if cuda.rotate(xs, *tables, pairing, layout, inverse, out) else None


def assert_rotated(got, x, positions, pairing, rotary_dim=16):
    angle = angles(positions, inverse_frequencies(rotary_dim))
    angle = angle.unsqueeze(-3) if positions.ndim == 2 else angle
    expected = rotate_matrix(x.double(), angle, pairing)
    assert got.dtype == x.dtype and got.shape == x.shape
    error = (got.double() - expected).norm()
    assert error <= TOLERANCE[x.dtype] * expected.norm()


# ------------------------------------------------------------------- the rotation


@both_pairings
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("stored", ["head by head", "token by token", "packed"])
def test_equals_the_matrix_form(pairing, dtype, stored):
    q, k = tensors(dtype)
    if stored == "packed":  # slices of one projection, as attention layers make them
        q, k = torch.cat([q, k], dim=1).contiguous().split([4, 2], dim=1)
    if stored == "head by head":
        q, k = q.contiguous(), k.contiguous()
    positions = torch.tensor([5, 6, 7])
    turned = kernel((q, k), table(positions), pairing)
    for got, x in zip(turned, (q, k), strict=True):
        assert_rotated(got, x, positions, pairing)
        assert got.stride() == torch.empty_like(x).stride()


@both_pairings
@each_layout
@pytest.mark.parametrize("each", [False, True])
def test_layouts_and_a_row_of_positions_for_each_sequence(pairing, layout, each):
    q, k = tensors()
    positions = torch.tensor([[5, 0, 2], [1_000_000, -3, 70]])
    positions = positions if each else positions[0]
    given = [to_layout(x, layout) for x in (q, k)]
    turned = kernel(given, table(positions, layout=layout), pairing, layout)
    for got, x in zip(turned, (q, k), strict=True):
        assert_rotated(from_layout(got, layout), x, positions, pairing)
    alone = [x[:, 0] if layout == "sbhd" else x[0] for x in given]  # without batch
    rows = table(positions[0] if each else positions, layout=layout, ndim=3)
    for got, x in zip(kernel(alone, rows, pairing, layout), turned, strict=True):
        assert torch.equal(got, x[:, 0] if layout == "sbhd" else x[0])


@both_pairings
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary_dim"),
    [
        (1, 1, 8, 8), (6, 3, 24, 24), (5, 0, 16, 4), (3, 1, 20, 12), (8, 2, 10, 10),
        (0, 3, 16, 16), (1, 4, 16, 16),
    ],
)  # fmt: skip
def test_heads_and_widths_of_any_size(pairing, heads, kv_heads, head_dim, rotary_dim):
    q, k = tensors(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    positions = torch.arange(3)
    turned = kernel((q, k), table(positions, rotary_dim), pairing)
    for got, x in zip(turned, (q, k), strict=True):
        if x.numel():
            assert_rotated(got, x, positions, pairing, rotary_dim)
        assert torch.equal(got[..., rotary_dim:], x[..., rotary_dim:])


@both_pairings
@pytest.mark.parametrize("rotary_dim", [16, 12])
def test_one_tensor_alone_and_two_dtypes_together(pairing, rotary_dim):
    q, k = tensors()
    positions = torch.arange(4, 7)
    tables = table(positions, rotary_dim)
    (alone,) = kernel((q,), tables, pairing)
    assert_rotated(alone, q, positions, pairing, rotary_dim)
    turned = kernel((q, k.half()), tables, pairing)
    assert torch.equal(turned[0], alone)
    assert_rotated(turned[1], k.half(), positions, pairing, rotary_dim)


@both_pairings
@pytest.mark.parametrize("rotary_dim", [16, 12])
def test_writes_where_it_is_told(pairing, rotary_dim):
    """Into a slot of a cache, whose strides are not those of the keys."""
    q, k = tensors()
    cache = torch.full((2, 2, 9, 16), 7.0)
    out = torch.empty_like(q), cache[:, :, 4:7]
    positions = torch.arange(3)
    got = kernel((q, k), table(positions, rotary_dim), pairing, out=out)
    assert got[0] is out[0] and got[1] is out[1]
    for into, x in zip(out, (q, k), strict=True):
        assert_rotated(into, x, positions, pairing, rotary_dim)
    assert (cache[:, :, :4] == 7).all() and (cache[:, :, 7:] == 7).all()


@both_pairings
def test_the_inverse_turns_back(pairing):
    q, k = tensors()
    cos, sin = table(torch.arange(3))
    back = kernel((q, k), (cos, sin), pairing, inverse=True)
    for got, x in zip(back, kernel((q, k), (cos, -sin), pairing), strict=True):
        assert torch.equal(got, x)


@both_pairings
def test_tables_that_lie_in_memory_in_different_ways(pairing):
    """A view of a repeated table beside a fresh one, as in undoing a rotation."""
    q, k = tensors()
    cos, sin = table(torch.arange(3))
    view = full_table(cos, "half")[:, :8]
    assert view.stride() != sin.stride()
    wide = [x.expand(2, 1, 3, 8) for x in (cos, sin)]
    rows = torch.stack([cos, sin], dim=1)  # cos above sin, as they are kept
    for tables in ((view, sin), (cos, wide[1][0, 0].clone()), wide, rows.unbind(1)):
        for got, x in zip(kernel((q, k), tables, pairing), (q, k), strict=True):
            assert_rotated(got, x, torch.arange(3), pairing)


@both_pairings
def test_one_position_for_all(pairing):
    q, k = tensors()
    (row,) = cos_sin(torch.tensor([7]), inverse_frequencies(16))[:1]
    tables = cos_sin(torch.tensor(7), inverse_frequencies(16))
    assert row.shape == (1, 8) and tables[0].shape == (8,)
    for given in (tables, [t[None] for t in tables]):
        for got, x in zip(kernel((q, k), given, pairing), (q, k), strict=True):
            assert_rotated(got, x, torch.full((3,), 7), pairing)


@both_pairings
def test_heads_shared_over_programs(pairing, monkeypatch):
    monkeypatch.setattr(cuda, "LARGEST_ROW", 128)
    monkeypatch.setattr(cuda, "_known_plan", cuda._make_plan)
    q, k = tensors(seq=2, heads=6, kv_heads=3)
    turned = kernel((q, k), table(torch.arange(2)), pairing)
    for got, x in zip(turned, (q, k), strict=True):
        assert_rotated(got, x, torch.arange(2), pairing)


def test_any_number_of_heads_gets_a_power_of_two_of_warps():
    for heads, head_dim in itertools.product(range(1, 40), (4, 24, 64, 80, 128, 256)):
        q = torch.empty(1, heads, 1, head_dim, dtype=torch.bfloat16)
        cos = torch.empty(1, head_dim // 2)
        plan = cuda.plan_of((q, q), (q, q), cos, "bhsd")
        assert plan.warps in (1, 2, 4)
        q_shares, shares = plan.choices["Q_SHARES"], plan.choices["SHARES"]
        assert plan.grid == (shares, 1, 1) and shares == 2 * q_shares
        assert q_shares * plan.choices["HEADS"] >= heads


@both_pairings
def test_obeys_the_laws(pairing):
    def rotation(x, positions):
        (turned,) = kernel((x.float()[None, None],), table(positions, 8), pairing)
        return turned[0, 0]

    laws.check_all(rotation)


@pytest.mark.parametrize("shape", [(0, 4, 3, 16), (2, 4, 0, 16), (2, 0, 3, 16)])
def test_empty_inputs(shape):
    q = torch.empty(shape)
    turned = kernel((q, q), table(torch.arange(shape[2])), "half")
    assert [x.shape for x in turned] == [shape, shape]


def test_what_the_kernel_leaves_to_the_formula():
    q = sample(1, 2, 3, 16)
    cos, sin = table(torch.arange(3))

    def served(q, k, cos=cos, sin=sin, layout="bhsd"):
        return kernel((q, k), (cos, sin), "half", layout) is not None

    assert served(q, q) and served(q[0], q[0])
    assert served(q, q, cos[None, None], sin[None, None])
    assert served(q.half(), q)
    assert not served(q.double(), q)
    assert not served(q, q, cos.double(), sin.double())
    assert not served(q, q, *(t.expand(1, 2, 3, 8).contiguous() for t in (cos, sin)))
    assert not served(q, torch.cat([q, q]))  # another batch
    assert not served(q, q[:, :, :2])  # another length
    assert not served(q, q[0]) and not served(q[0, 0], q[0, 0])
    assert not served(sample(1, 2, 3, 32)[..., ::2], q)
    crowd = torch.empty(65_536, 1, 1, 16)
    assert not served(crowd, crowd, cos[:1], sin[:1])  # more than a grid has


# ------------------------------------------------------- the rotation as an operator


@both_pairings
@pytest.mark.parametrize("double", [False, True])
def test_what_is_not_served_follows_the_formula(pairing, double):
    q, k = tensors(seq=3)
    cos, sin = table(torch.arange(3))
    if double:
        q, k = q.double(), k.double()
    else:  # each head has frequencies of its own
        cos, sin = (t.expand(2, 2, 3, 8).contiguous() for t in (cos, sin))
        q = q[:, :2]
    out = torch.empty_like(q), torch.empty_like(k)
    with as_on_cuda():
        turned = ops.rotate_together((q, k), cos, sin, pairing, "bhsd")
        ops.rotate_together((q, k), cos, sin, pairing, "bhsd", out)
    for got, into, x in zip(turned, out, (q, k), strict=True):
        assert torch.equal(got, into)
        assert got.stride() == torch.empty_like(x).stride()
        exact = rotate_matrix(
            x.double(), angles(torch.arange(3), inverse_frequencies(16)), pairing
        )
        assert torch.allclose(got.double(), exact, atol=1e-5)


def test_operators_are_registered_in_full():
    q, k = tensors()
    cos, sin = table(torch.arange(3))
    arguments = ([q, k], cos, sin, "half", "bhsd", False)
    rows = (torch.arange(3), inverse_frequencies(16), 1.5, 2, -1, 4)
    checks = ("test_schema", "test_faketensor")  # gradients are the Function's
    with as_on_cuda():
        for operator, inputs, named in (
            (ops.ROTATE, arguments, {}),
            (ops.ROTATE_OUT, arguments, {"out": [q.clone(), k.clone()]}),
            (ops.COS_SIN, rows, {}),
        ):
            verdicts = torch.library.opcheck(operator, inputs, named, test_utils=checks)
            assert set(verdicts.values()) == {"SUCCESS"}, (operator, verdicts)


# ------------------------------------------------------------------------- the rows

FREQUENCIES = inverse_frequencies(12)
PLACES = {
    "one": torch.tensor(7),
    "few": torch.tensor([0, 3, -1]),
    "a row for each": torch.tensor([[4, 0, 1, 9, 2], [7, 7, 0, -3, 1_000_000]]),
    "far": torch.arange(-3, 4) * 10_000_000,
    "int32": torch.arange(70, dtype=torch.int32),
    "uint8": torch.arange(180, 220, dtype=torch.uint8),
    "fractions": torch.arange(40) / 16 - 1,
    "float64": torch.arange(40, dtype=torch.float64) / 16 + 1e6,
    "every other": torch.arange(60)[::2],
    "none": torch.empty(2, 0, dtype=torch.int64),
    "many": torch.arange(1_030),
}


def rows_by_the_formula(positions, inv_freq, factor=1.0):
    angle = angles(positions, inv_freq)
    return torch.stack([angle.cos(), angle.sin()], dim=-2) * factor


def assert_rounded_once(rows, exact):
    """Half a unit in the last place of float32, and the 1e-11 of Taylor's series."""
    assert rows.dtype == torch.float32 and rows.shape == exact.shape
    allowed = torch.finfo(torch.float32).eps / 2 * exact.abs() + 2e-9
    assert ((rows.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("case", PLACES)
def test_rows_of_any_positions(case):
    positions = PLACES[case]
    rows = cuda.cos_sin(positions, FREQUENCIES, 1.25, 0, 1, None)
    assert_rounded_once(rows, rows_by_the_formula(positions, FREQUENCIES, 1.25))


@pytest.mark.parametrize("position", [10**7, 2**31 - 5, -(10**9)])
def test_rows_at_every_size_of_angle(position):
    """Three parts of half of pi hold the angle's last digits: two would not."""
    positions = torch.arange(position, position + 60)
    rows = cuda.cos_sin(positions, torch.tensor([1.0, 0.9]), 1.0, 0, 1, None)
    exact = rows_by_the_formula(positions, torch.tensor([1.0, 0.9]).double())
    assert_rounded_once(rows, exact)


def test_rows_of_several_axes():
    inv_freq = torch.zeros(3, 6, dtype=torch.float64)
    for axis in range(3):
        inv_freq[axis, axis::3] = FREQUENCIES[axis::3]
    positions = torch.randint(-99, 99, (2, 5, 3), generator=torch.Generator())
    for given in (
        positions,
        positions / 8,
        positions.movedim(-1, 0).contiguous().movedim(0, -1),
    ):
        rows = cuda.cos_sin(given, inv_freq, 1.0, 0, 1, None)
        assert_rounded_once(rows, rows_by_the_formula(given, inv_freq))
    slanted = inv_freq + 0.25  # every axis turns every pair, as in images
    rows = cuda.cos_sin(positions, slanted, 1.0, 0, 1, None)
    assert_rounded_once(rows, rows_by_the_formula(positions, slanted))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32])
@pytest.mark.parametrize(
    "count, sign, first", [(1, 1, 0), (3, 1, 0), (3, -1, 40), (7, -1, -2), (345, -1, 0)]
)
def test_rows_counted_from_where_each_sequence_begins(count, sign, first, dtype):
    begins = torch.tensor([0, 9, 65_000], dtype=dtype)
    rows = cuda.cos_sin(begins, FREQUENCIES, 1.0, first, sign, count)
    positions = first + sign * begins[:, None] + torch.arange(count)
    assert_rounded_once(rows, rows_by_the_formula(positions, FREQUENCIES))
    assert ops._rows(begins, FREQUENCIES, 1.0, first, sign, count).shape == rows.shape
    one = cuda.cos_sin(begins[1], FREQUENCIES, 1.0, first, sign, count)  # no batch
    assert torch.equal(one, rows[1])


def test_half_of_pi_in_three_parts():
    parts = cuda.HALF_PI_1, cuda.HALF_PI_2, cuda.HALF_PI_3
    for part in parts[:2]:  # so few bits that 2**31 quarter turns of them are exact
        mantissa, _ = math.frexp(part)
        assert (mantissa * 2**22).is_integer()
    # In units of 2**-120: pi/2 to 40 digits.
    exact = 1570796326794896619231321691639751442098584699687552910487
    assert abs(
        sum(int(math.ldexp(p, 120)) for p in parts) * 10**57 - exact * 2**120
    ) < (2**120 * 10**57 // 10**30)


# ---------------------------------------------------------- compiled, without a GPU


COMPILE = """
import importlib.util, json, subprocess, sys, tempfile, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def compiled(kernel, pointers, choices, warps):
    names = kernel.arg_names
    signature = {n: "constexpr" if n in choices else "i32" for n in names} | pointers
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
               if n not in choices}
    source = ASTSource(kernel, signature, choices, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32),
                          options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "--dump-resource-usage", file.name],
                               capture_output=True, text=True, check=True).stdout
    return made.asm["ptx"], usage

def module_of(path):
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(path).stem] = module
    spec.loader.exec_module(module)
    return module

found = {}
bf16 = {n: "*bf16" for n in ("q", "k", "q_out", "k_out")}
tables = {"cos": "*fp32", "sin": "*fp32"}
for path in sys.argv[1:]:
    module = module_of(path)
    heads = module.LARGEST_ROW // 256  # of 128 features in bfloat16
    shares = dict(PAIRS=64, HEADS=heads, SHARES=32 // heads - (-8 // heads),
                  Q_SHARES=32 // heads)
    own = dict(HEAD_DIM=128, WIDTH=64, TAIL=0, BACK=False)
    for interleaved in (True, False):
        found[f"{Path(path).stem} {interleaved}"] = compiled(
            module._rotate_token, bf16 | tables,
            {**shares, **own, "INTERLEAVED": interleaved}, 4)
"""

ROWS_AND_NORMS = """
from rope_teach.ops import cuda, norm
parts = dict(TWO_OVER_PI=2 / cuda.math.pi, P1=cuda.HALF_PI_1, P2=cuda.HALF_PI_2,
             P3=cuda.HALF_PI_3)
for counted, axes, block in ((False, 1, 8), (False, 1, 2), (True, 1, 2), (False, 3, 8)):
    found[f"rows {counted} {axes} {block}"] = compiled(
        cuda._write_rows, {"positions": "*i64", "inv_freq": "*fp64", "out": "*fp32"},
        dict(FACTOR=1.0, SIGN=1, COUNTED=counted, AXES=axes, PAIRS=64, WIDTH=64,
             ROWS=block, **parts), 2)
weights = {"q_weight": "*bf16", "k_weight": "*bf16"}
grads = {n: "*bf16" for n in ("q_grad", "k_grad")} | {
    n: "*fp32" for n in ("q_sums", "k_sums")}
for interleaved in (True, False):
    choices = dict(PAIRS=64, HEADS=8, SHARES=5, Q_SHARES=4, INTERLEAVED=interleaved,
                   Q_EPS=1e-6, K_EPS=1e-6)
    found[f"norm {interleaved}"] = compiled(
        norm._forward, bf16 | tables | weights, choices, 1)
    found[f"norm back {interleaved}"] = compiled(
        norm._backward, bf16 | tables | weights | grads, choices | {"TOKENS": 32}, 4)
"""

PRINT = "print(json.dumps(found))"


TRACE = """
import torch, triton
import torch.utils._triton
torch.utils._triton.has_triton = lambda: True  # asks for a device
from torch._dynamo.backends.common import aot_autograd
from triton.backends.compiler import GPUTarget

class Driver:  # tells Triton of a GPU; nothing is started on it
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_active_torch_device(self):
        return torch.device("cpu")
    def is_active(self):
        return True

triton.runtime.driver.set_active(Driver())
from rope_teach import cos_sin, inverse_frequencies, ops
from rope_teach.ops import norm

ops.takes_kernels = lambda x: torch.compiler.is_dynamo_compiling()  # as on CUDA
written = []
class Traced(Exception):
    pass

def look(graph, inputs):
    for node in graph.graph.nodes:
        if "triton_kernel" in str(node.target):
            written.append(node.kwargs["tensors_to_clone"])
    def run(arguments):
        raise Traced
    run._boxed_call = True
    return run

def traced(function, *arguments):
    written.clear()
    torch._dynamo.reset()
    compiled = torch.compile(
        function, fullgraph=True, backend=aot_autograd(fw_compiler=look)
    )
    try:
        compiled(*arguments)
    except Traced:
        return written
    raise AssertionError("it ran")

torch._dynamo.config.capture_dynamic_output_shape_ops = True
torch._dynamo.config.capture_scalar_outputs = True
inv_freq, mask = inverse_frequencies(16), torch.arange(10) > 3
cos, sin = cos_sin(torch.arange(5), inv_freq)
norms = [torch.nn.RMSNorm(16) for _ in range(2)]
q, k = (torch.randn(2, heads, 5, 16) for heads in (4, 2))
long = torch.randn(2, 4, 10, 16)
rows = cos_sin(torch.arange(10), inv_freq)

def turn(q, k, cos=cos, sin=sin, pairing="half", out=None):
    return ops.rotate_together((q, k), cos, sin, pairing, "bhsd", out)

def normalised(q, k, cos=cos, sin=sin):
    return norm.normalise_and_rotate(q, k, norms, cos, sin, "half", "bhsd")

def changing(q, k):
    for x in (q, k):
        torch._dynamo.mark_dynamic(x, 0)
    return q, k

both, sums = ["q_out", "k_out"], ["q_sums", "k_sums"]
grown = lambda x: x.clone().requires_grad_()
for name, expected, function, *arguments in (
    ("plain", [both], turn, q, k),
    ("neighbours", [both], lambda q, k: turn(q, k, pairing="interleaved"), q, k),
    ("with a gradient", [both] * 2, turn, grown(q), grown(k)),
    ("any batch", [both], turn, *changing(q + 0, k + 0)),
    ("length in the data", [both], lambda x, m: turn(
        x[:, :, m], x[:, :, m], *(t[m] for t in rows)), long, mask),
    ("batch in the data", [both], lambda x, m: turn(
        x[m][:, :, :2], x[m][:, :, :2], cos[:2], sin[:2]),
     long.transpose(0, 2).contiguous(), mask),
    ("out", [both], lambda q, k, a, b: turn(q + 1, k + 1, out=(a, b)), q, k,
     torch.empty_like(q), torch.empty_like(k)),
    ("rows", [["out"]], lambda p: ops.cos_sin(p, inv_freq), torch.arange(5)),
    ("rows of each", [["out"]], lambda p: ops.cos_sin(
        p, inv_freq, first=3, sign=-1, count=5), torch.arange(2)),
    ("rows, length in the data", [["out"]], lambda p, m: ops.cos_sin(p[m], inv_freq),
     torch.arange(10), mask),
    ("with norms", [both, both + sums], normalised, q, k),
    ("with norms, length in the data", [both, both + sums], lambda x, m: normalised(
        x[:, :, m], x[:, :, m], *(t[m] for t in rows)), long, mask),
):
    found = traced(function, *arguments)
    # The way back is traced with the way there, where the backend asks for it.
    assert found and found == expected[:len(found)], (name, found)
print("all", end="")
"""


def without_interpreter(monkeypatch, program, *arguments):
    """What a program prints in a process that does not interpret its kernels."""
    monkeypatch.delenv("TRITON_INTERPRET")
    command = [sys.executable, "-c", program, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_torch_compiler_sees_the_kernels_and_what_they_write(monkeypatch):
    """With sizes that are known, that change, and that only the data tell."""
    assert without_interpreter(monkeypatch, TRACE) == "all"


def compiled_for_hopper(monkeypatch, *paths, more=""):
    """PTX and registers of both pairings of each kernel, compiled without a GPU."""
    program = COMPILE + more + PRINT
    return json.loads(without_interpreter(monkeypatch, program, *map(str, paths)))


@pytest.mark.skipif(sys.platform != "linux", reason="ptxas ships for Linux")
def test_compiled_for_hopper_nothing_spills(monkeypatch):
    """And each thread of the rotation moves 16 bytes at a time.

    Of one row where pairs are neighbours, 8 of each half where they are not. With 16
    of each half it takes up to one per cent longer: benchmarks/results/gpu.md.
    """
    found = compiled_for_hopper(monkeypatch, cuda.__file__, more=ROWS_AND_NORMS)
    assert len(found) == 2 + 4 + 4
    for name, (_, usage) in found.items():
        assert "STACK:0 " in usage and " LOCAL:0 " in usage, name  # nothing spilled
    tables = {".v4.b32": 4}  # of cos and sin, once for q and once for k
    for interleaved, features in (("True", {".v4.b32": 4}), ("False", {".v2.b32": 8})):
        ptx, usage = found[f"cuda {interleaved}"]
        accesses = re.findall(r"(?:ld|st)\.global\S*?((?:\.v\d)?\.b\d+) ", ptx)
        assert Counter(accesses) == Counter(tables) + Counter(features)
        assert "SHARED:0 " in usage  # no detour
        (registers,) = re.findall(r"REG:(\d+)", usage)
        assert int(registers) <= 32  # 2,048 threads at once, all that fit


def changed_kernels(monkeypatch, folder):
    """The kernel with each choice made otherwise, as the benchmark compares them."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    gpu_choices = importlib.import_module("gpu_choices")
    return {name: gpu_choices.changed(name, folder) for name in gpu_choices.CHANGES}


@pytest.mark.skipif(sys.platform != "linux", reason="ptxas ships for Linux")
def test_each_choice_that_the_benchmark_changes_works(monkeypatch, tmp_path):
    q, k = tensors()
    tables = table(torch.arange(3))
    changed = changed_kernels(monkeypatch, tmp_path)
    for module in changed.values():
        turned = [torch.empty_like(x) for x in (q, k)]
        assert module.rotate((q, k), *tables, "interleaved", "bhsd", False, turned)
        for got, x in zip(turned, (q, k), strict=True):
            assert_rotated(got, x, torch.arange(3), "interleaved")
    files = sorted(tmp_path.glob("choice_*.py"))
    assert len(compiled_for_hopper(monkeypatch, *files)) == 2 * len(changed)
