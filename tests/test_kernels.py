"""The CUDA kernel, without a GPU: in Triton's interpreter, and compiled for Hopper.

The interpreter truncates where the GPU rounds when it makes bfloat16, so that bfloat16
is held to 4e-3 here. `test_gpu.py` holds the same kernel to one rounding.
"""

import importlib
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
if torch.cuda.is_available():
    pytest.skip("test_gpu.py runs the kernel itself", allow_module_level=True)

from torch.fx.experimental.proxy_tensor import make_fx

from rope_teach import (
    cos_sin,
    inverse_frequencies,
    kernels,
    laws,
    rotate,
    rotate_matrix,
)
from rope_teach.pairing import full_table
from rope_teach.tables import angles

pytestmark = pytest.mark.skipif(
    not kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1"
)

PAIRINGS = ["interleaved", "half"]
TOLERANCE = {torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 4e-3}


def tensors(dtype=torch.float32, batch=2, seq=3, heads=4, kv_heads=2, head_dim=16):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, seq, h, head_dim, generator=generator).to(dtype)
        for h in (heads, kv_heads)
    ]  # stored token by token: (batch, seq, heads, head_dim)


def table(positions, rotary_dim=16):
    return cos_sin(positions, inverse_frequencies(rotary_dim))


def assert_rotated(got, x, positions, pairing, rotary_dim=16):
    angle = angles(positions, inverse_frequencies(rotary_dim))
    expected = rotate_matrix(x.double(), angle, pairing)
    assert got.dtype == x.dtype and got.shape == x.shape
    error = (got.double() - expected).norm()
    assert error <= TOLERANCE[x.dtype] * expected.norm()


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", ["bhsd", "bshd", "packed"])
def test_equals_the_matrix_form(pairing, dtype, layout):
    q, k = tensors(dtype)
    if layout == "packed":  # slices of one projection, as attention layers make them
        q, k = torch.cat([q, k], dim=2).split([4, 2], dim=2)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    if layout == "bhsd":
        q, k = q.contiguous(), k.contiguous()
    positions = torch.tensor([5, 6, 7])
    turned = kernels.rotate_qk(q, k, *table(positions), pairing == "interleaved")
    for got, x in zip(turned, (q, k), strict=True):
        assert_rotated(got, x, positions, pairing)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary_dim"),
    [(1, 1, 8, 8), (6, 3, 24, 24), (5, 0, 16, 4), (3, 1, 20, 12), (8, 2, 10, 10)],
)
def test_heads_and_widths_of_any_size(pairing, heads, kv_heads, head_dim, rotary_dim):
    q, k = tensors(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    positions = torch.arange(3)
    tables = table(positions, rotary_dim)
    turned = kernels.rotate_qk(q, k, *tables, pairing == "interleaved")
    for got, x in zip(turned, (q, k), strict=True):
        if x.numel():
            assert_rotated(got, x, positions, pairing, rotary_dim)
        assert torch.equal(got[..., rotary_dim:], x[..., rotary_dim:])


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_tables_that_lie_in_memory_in_different_ways(pairing):
    """A view of a repeated table beside a fresh one, as in undoing a rotation."""
    q, k = (x.transpose(1, 2) for x in tensors())
    cos, sin = table(torch.arange(3))
    view = full_table(cos, "half")[:, :8]
    assert view.stride() != sin.stride()
    wide = [x.expand(2, 3, 8) for x in (cos, sin)]
    for tables in ((view, sin), (cos, wide[1].contiguous()[0]), (wide[0], wide[1] + 0)):
        turned = kernels.rotate_qk(q, k, *tables, pairing == "interleaved")
        for got, x in zip(turned, (q, k), strict=True):
            assert_rotated(got, x, torch.arange(3), pairing)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_trace_records_the_rotation():
    q, k = (x.transpose(1, 2) for x in tensors())
    tables = table(torch.arange(3))
    kernels.rotate_qk(q, k, *tables, True)

    def rotate_twice(q, k):
        return [2 * x for x in kernels.rotate_qk(q, k, *tables, True)]

    for traced in (
        torch.jit.trace(rotate_twice, (q, k), check_trace=False),
        make_fx(rotate_twice)(q, k),
    ):
        other = q + 1, k - 1
        for got, x in zip(traced(*other), other, strict=True):
            assert_rotated(got / 2, x, torch.arange(3), "interleaved")


def test_any_number_of_heads_gets_a_power_of_two_of_warps():
    for heads, head_dim in itertools.product(range(1, 40), (4, 24, 64, 80, 128, 256)):
        q = torch.empty(1, heads, 1, head_dim, dtype=torch.bfloat16)
        cos = torch.empty(1, head_dim // 2)
        grid, _, choices, warps = kernels._plan(q, q, q, q, cos, False, False)
        assert warps in (1, 2, 4)
        shares = choices["Q_SHARES"], choices["SHARES"] - choices["Q_SHARES"]
        assert grid[0] == sum(shares)
        assert all(share * choices["HEADS"] >= heads for share in shares)


def test_numbers_that_grow_with_the_prompt_are_arguments():
    def constant(batch, seq, contiguous=False, last=None):
        x = torch.empty(batch, seq, 4, 16).transpose(1, 2)
        x = x.contiguous() if contiguous else x
        x = x if last is None else x[:, :, -last:]
        numbers = kernels._compiled_in((*x.stride()[:3], 7), x)
        return all(isinstance(number, kernels.tl.constexpr) for number in numbers)

    assert constant(64, 1) and constant(64, 1, contiguous=True)
    assert constant(1, 512)
    assert not constant(1, 512, contiguous=True)  # from head to head: 512 rows
    assert not constant(2, 512)
    assert not constant(1, 8192)  # no constant makes that faster
    assert constant(1, 512, last=1)  # nothing steps over the 512
    assert not constant(1, 512, last=1, contiguous=True)
    assert not constant(2, 512, last=1) and not constant(2, 512, True, last=1)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_heads_shared_over_programs(pairing, monkeypatch):
    monkeypatch.setattr(kernels, "LARGEST_ROW", 128)
    q, k = (x.transpose(1, 2) for x in tensors(seq=2, heads=6, kv_heads=3))
    turned = kernels.rotate_qk(q, k, *table(torch.arange(2)), pairing == "interleaved")
    for got, x in zip(turned, (q, k), strict=True):
        assert_rotated(got, x, torch.arange(2), pairing)


@pytest.mark.parametrize("heads, kv_heads", [(0, 3), (1, 4)])
def test_more_heads_of_k_than_of_q_and_none(heads, kv_heads):
    q, k = (x.transpose(1, 2) for x in tensors(heads=heads, kv_heads=kv_heads))
    turned = kernels.rotate_qk(q, k, *table(torch.arange(3)), False)
    for got, x in zip(turned, (q, k), strict=True):
        assert_rotated(got, x, torch.arange(3), "half")


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_each_sequence_at_its_own_positions(pairing):
    q, k = (x.transpose(1, 2) for x in tensors())
    positions = torch.tensor([[0, 1, 2], [1_000_000, -3, 70]])
    turned = kernels.rotate_qk(q, k, *table(positions), pairing == "interleaved")
    for got, x in zip(turned, (q, k), strict=True):
        assert_rotated(got, x, positions, pairing)


def test_first_row_is_where_the_first_token_stands():
    q, k = (x.transpose(1, 2) for x in tensors())
    got, _ = kernels.rotate_qk(q, k, *table(torch.arange(20)), True, first_row=11)
    assert_rotated(got, q, torch.arange(11, 14), "interleaved")


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_gradient_is_the_rotation_back(pairing):
    q, k = (x.transpose(1, 2).requires_grad_() for x in tensors())
    cos, sin = table(torch.arange(3))
    turned = kernels.rotate_qk(q, k, cos, sin, pairing == "interleaved")
    grads = [torch.randn_like(x) for x in turned]
    got = torch.autograd.grad(turned, (q, k), grads)
    for back, grad in zip(got, grads, strict=True):
        expected = rotate(grad, cos, -sin, pairing)
        assert torch.allclose(back, expected, atol=1e-6)


def test_double_backward():
    q, k = (x.transpose(1, 2).requires_grad_() for x in tensors())
    turned, _ = kernels.rotate_qk(q, k, *table(torch.arange(3)), True)
    (grad,) = torch.autograd.grad((turned**3).sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), q)
    expected = torch.autograd.functional.hvp(
        lambda x: (rotate(x, *table(torch.arange(3))) ** 3).sum(), q, torch.ones_like(q)
    )[1]
    assert torch.allclose(second, expected, atol=1e-4)


def test_no_graph_is_kept_where_nothing_needs_a_gradient():
    q, k = (x.transpose(1, 2) for x in tensors())
    turned, _ = kernels.rotate_qk(q, k, *table(torch.arange(3)), True)
    assert turned.grad_fn is None


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_obeys_the_laws(pairing):
    def rotation(x, positions):
        x = x.float()[None, None]
        cos, sin = table(positions, 8)
        turned, _ = kernels.rotate_qk(x, x[:, :0], cos, sin, pairing == "interleaved")
        return turned[0, 0]

    laws.check_all(rotation)


@pytest.mark.parametrize("shape", [(0, 4, 3, 16), (2, 4, 0, 16), (2, 0, 3, 16)])
def test_empty_inputs(shape):
    q = torch.empty(shape)
    turned, _ = kernels.rotate_qk(q, q, *table(torch.arange(shape[2])), True)
    assert turned.shape == shape


def test_operator_is_registered_in_full():
    q, k = (x.transpose(1, 2) for x in tensors())
    arguments = (q.requires_grad_(), k, *table(torch.arange(3)), True, 0, False)
    verdicts = torch.library.opcheck(torch.ops.rope_teach.rotate_qk.default, arguments)
    assert len(verdicts) >= 4 and set(verdicts.values()) == {"SUCCESS"}


def test_compiles_without_a_graph_break():
    q, k = (x.transpose(1, 2) for x in tensors())
    cos, sin = table(torch.arange(3))
    compiled = torch.compile(
        lambda q, k: kernels.rotate_qk(2 * q, k, cos, sin, False),
        fullgraph=True,
        backend="aot_eager",
    )
    got, _ = compiled(q, k)
    assert torch.allclose(got, rotate(2 * q, cos, sin, "half"), atol=1e-5)


def test_what_the_kernel_leaves_to_the_torch_form():
    q = torch.randn(1, 2, 3, 16)
    cos, sin = table(torch.arange(3))

    def served(q, k, cos, sin=sin):
        return kernels.rotate_qk(q, k, cos, sin, True) is not None

    assert served(q, q, cos)
    assert not served(q.double(), q, cos)
    assert not served(q, q, cos.double())
    assert not served(q, q, cos.clone().requires_grad_())
    assert not served(q, q, cos, sin.clone().requires_grad_())
    assert not served(q, q, cos[None, None], sin[None, None])
    assert not served(q, q, cos[0], sin[0])  # one position for all
    assert not served(q, torch.cat([q, q]), cos)  # another batch
    assert not served(q, q[:, :, :2], cos)  # another length


# ---------------------------------------------------------- compiled, without a GPU


def test_each_choice_that_the_benchmark_changes_is_in_the_kernel(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    gpu_choices = importlib.import_module("gpu_choices")
    q, k = (x.transpose(1, 2) for x in tensors())
    tables = table(torch.arange(3))
    for name in gpu_choices.CHANGES:
        module = gpu_choices.changed(name, tmp_path)
        for got, x in zip(module.rotate_qk(q, k, *tables, True), (q, k), strict=True):
            assert_rotated(got, x, torch.arange(3), "interleaved")


COMPILE = """
import importlib.util, json, subprocess, sys, tempfile, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

pointers = ["q", "k", "q_out", "k_out", "cos", "sin"]
found = {}
for path in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[Path(path).stem] = module
    spec.loader.exec_module(module)
    names = module._rotate_token.arg_names
    heads = module.LARGEST_ROW // 256  # of 128 features in bfloat16
    choices = dict(HEAD_DIM=128, PAIRS=64, WIDTH=64, HEADS=heads, TAIL=0, BACK=False,
                   SHARES=32 // heads - (-8 // heads), Q_SHARES=32 // heads)
    for interleaved in (True, False):
        constants = {**choices, "INTERLEAVED": interleaved}
        signature = {n: "constexpr" if n in constants else "i32" for n in names}
        signature |= {n: "*bf16" for n in pointers} | {"cos": "*fp32", "sin": "*fp32"}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names)
                   if n not in constants}
        source = ASTSource(module._rotate_token, signature, constants, aligned)
        kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32),
                                options={"num_warps": 4})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
            usage = subprocess.run([tool, "--dump-resource-usage", file.name],
                                   capture_output=True, text=True, check=True).stdout
        found[f"{Path(path).stem} {interleaved}"] = kernel.asm["ptx"], usage
print(json.dumps(found))
"""


TRACE = """
import torch, triton
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
from rope_teach import cos_sin, fused_norm, inverse_frequencies, kernels

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
tables = cos_sin(torch.arange(64), inv_freq)
norms = [torch.nn.RMSNorm(16) for _ in range(2)]
q, k = (torch.randn(2, heads, 5, 16) for heads in (4, 2))
long = torch.randn(2, 4, 10, 16)
turn = kernels.rotate_qk

def changing(q, k):
    for x in (q, k):
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 2)
    return q, k

both = ["q_out", "k_out"]
for name, function, *arguments in (
    ("plain", lambda q, k: turn(q, k, *tables, True), q, k),
    ("any length", lambda q, k: turn(q, k, *tables, False), *changing(q + 0, k + 0)),
    ("length in the data", lambda x, m: turn(x[:, :, m], x[:, :, m], *tables, True),
     long, mask),
    ("batch in the data", lambda x, m: turn(x[m], x[m], *tables, True),
     long.transpose(0, 2).contiguous(), mask),
    ("start in the data", lambda q, n: turn(q, q, *tables, True, n.item()),
     q, torch.tensor(7)),
    ("with norms", lambda q, k: fused_norm.normalise_and_rotate(
        q, k, norms, *tables, True), q, k),
    ("with norms, length in the data", lambda x, m: fused_norm.normalise_and_rotate(
        x[:, :, m], x[:, :, m], norms, *tables, True), long, mask),
):
    there, *back = traced(function, *arguments)
    assert there == both, (name, there)
    assert back in ([], [[*both, "q_sums", "k_sums"]]), (name, back)
print("all", end="")
"""


def without_interpreter(monkeypatch, program, *arguments):
    """What a program prints in a process that does not interpret its kernels."""
    monkeypatch.delenv("TRITON_INTERPRET")
    command = [sys.executable, "-c", program, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_torch_compiler_sees_the_kernel_and_what_it_writes(monkeypatch):
    """With sizes that are known, that change, and that only the data tell."""
    assert without_interpreter(monkeypatch, TRACE) == "all"


def compiled_for_hopper(monkeypatch, *paths):
    """PTX and registers of both pairings of each kernel, compiled without a GPU."""
    return json.loads(without_interpreter(monkeypatch, COMPILE, *map(str, paths)))


@pytest.mark.skipif(sys.platform != "linux", reason="ptxas ships for Linux")
def test_compiled_for_hopper_each_thread_moves_16_bytes_at_a_time(monkeypatch):
    """Of one row where pairs are neighbours, 8 of each half where they are not.

    With 16 of each half it takes up to one per cent longer: benchmarks/results/gpu.md.
    """
    found = compiled_for_hopper(monkeypatch, kernels.__file__)
    tables = {".v4.b32": 4}  # of cos and sin, once for q and once for k
    for interleaved, features in (("True", {".v4.b32": 4}), ("False", {".v2.b32": 8})):
        ptx, usage = found[f"kernels {interleaved}"]
        accesses = re.findall(r"(?:ld|st)\.global\S*?((?:\.v\d)?\.b\d+) ", ptx)
        assert Counter(accesses) == Counter(tables) + Counter(features)
        assert "STACK:0 SHARED:0 LOCAL:0" in usage  # nothing spilled, no detour
        (registers,) = re.findall(r"REG:(\d+)", usage)
        assert int(registers) <= 32  # 2,048 threads at once, all that fit


@pytest.mark.skipif(sys.platform != "linux", reason="ptxas ships for Linux")
def test_each_choice_that_the_benchmark_changes_compiles(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    gpu_choices = importlib.import_module("gpu_choices")
    for name in gpu_choices.CHANGES:
        gpu_choices.changed(name, tmp_path)
    files = sorted(tmp_path.glob("choice_*.py"))
    assert len(compiled_for_hopper(monkeypatch, *files)) == 2 * len(gpu_choices.CHANGES)
