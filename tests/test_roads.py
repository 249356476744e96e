"""Each fast path is taken: these tests fail when it no longer is, however right results
stay. Seen from outside: the operators of torch that ran, launches, memory, graphs.
"""

import gc
import re
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

import rope_teach
from rope_teach import RotaryEmbedding, ops, rotate
from rope_teach.ops import cpu
from rope_teach.rotary import SMALLEST_TABLE, SharedRows
from tests.samples import (
    PAIRINGS,
    all_close,
    as_on_cuda,
    both_pairings,
    close,
    oracle,
    queries_and_keys,
    sample,
)

EACH = torch.tensor([[4, 0, 1, 9, 2], [7, 7, 0, 3, 2_000]])


def operators(call):
    """How often each operator of torch runs in ``call``, those inside others too."""
    call()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    return Counter(event.name.removeprefix("aten::") for event in profile.events())


def count_calls(monkeypatch, place, name):
    """Count the calls of a function that has its place in a module or a class."""
    calls, original = [], getattr(place, name)

    def counted(*arguments, **named):
        calls.append(arguments)
        return original(*arguments, **named)

    monkeypatch.setattr(place, name, counted)
    return calls


# ----------------------------------------------------------------- eager, on a CPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_decode_step_takes_three_operators_for_each_tensor(dtype):
    rope = RotaryEmbedding(64, pairing="half")
    q, k = queries_and_keys(heads=8, seq=1, head_dim=64, dtype=dtype)
    ran = operators(lambda: rope(q, k, start=5))
    assert (ran["roll"], ran["mul"], ran["addcmul_"]) == (2, 2, 2)
    assert "rope_teach::rotate" not in ran  # its call is a cost where none is recorded
    assert ran["copy_"] == (4 if dtype == torch.bfloat16 else 0) and "stack" not in ran
    assert ran["cat"] <= 4  # roll has one of its own; factors are made once
    assert not {"empty_like", "expand", "chunk"} & {*ran}  # no blocks of a small tensor


def test_a_decode_step_of_neighbours_is_one_complex_product_for_each_tensor():
    rope = RotaryEmbedding(64)
    q, k = queries_and_keys(heads=8, seq=1, head_dim=64)
    ran = operators(lambda: rope(q, k, start=5))
    assert (ran["complex"], ran["mul"]) == (2, 2)  # complex: one asks for its size
    assert not {"stack", "cat", "roll", "addcmul_", "sub", "copy_"} & {*ran}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_halves_go_block_by_block(dtype):
    rope = RotaryEmbedding(64, pairing="half")
    x = sample(1, 8, 1024, 64, dtype=dtype)
    blocks = 1 + x.numel() // cpu.BLOCK
    assert blocks > 4
    ran = operators(lambda: rope.rotate(x))
    assert (ran["mul"], ran["addcmul_"]) == (blocks, 2 * blocks)
    assert not {"roll", "stack"} & {*ran}
    close(rope.rotate(x), oracle(x, torch.arange(1024), "half"), 2e-2)


@pytest.mark.parametrize("partial", [False, True])
def test_large_neighbours_take_one_pass_over_memory(partial):
    rope = RotaryEmbedding(64, rotary_dim=48 if partial else 64)
    x = sample(1, 8, 1024, 64)
    ran = operators(lambda: rope.rotate(x))
    assert ran["mul"] == 1 and ran["copy_"] == partial  # the rest is copied
    assert not {"stack", "cat", "roll", "addcmul_", "sub"} & {*ran}
    bfloat16 = operators(lambda: rope.rotate(x.bfloat16()))
    assert bfloat16["mul"] == 1 + x[..., : rope.rotary_dim].numel() // cpu.BLOCK


@both_pairings
def test_writing_into_given_memory_makes_no_copy(pairing):
    rope = RotaryEmbedding(64, pairing=pairing)
    q, k = queries_and_keys(seq=5, head_dim=64)
    cache = torch.zeros(2, 2, 9, 64)
    ran = operators(lambda: rope(q, k, out=(torch.empty_like(q), cache[:, :, 2:7])))
    assert ran["mul"] == 2
    assert "copy_" not in ran and "stack" not in ran
    assert torch.equal(cache[:, :, 2:7], rope(q, k)[1])


# ------------------------------------------------------------- gradients and one node


@both_pairings
def test_the_function_is_called_only_where_a_gradient_is_asked(pairing, monkeypatch):
    calls = count_calls(monkeypatch, ops, "_differentiated")
    rope = RotaryEmbedding(8, pairing=pairing)
    q, k = queries_and_keys()
    leaf = q.clone().requires_grad_()
    with torch.no_grad():
        rope(leaf, k)
    with torch.inference_mode():
        rope(leaf, k)
    rope(q, k), rope(leaf.detach(), k), rope(q, nn.Parameter(k, requires_grad=False))
    assert not calls
    rope(leaf, k)
    assert len(calls) == 1


@both_pairings
@pytest.mark.parametrize("call", ["rotate", "module"])
def test_backward_is_one_node_that_rotates_back(pairing, call):
    rope = RotaryEmbedding(64, pairing=pairing)
    q, k = queries_and_keys(head_dim=64)
    leaf = q.requires_grad_()
    cos, sin = rope.tables(seq=5)[:2]
    turned = rope(leaf, k)[0] if call == "module" else rotate(leaf, cos, sin, pairing)
    node = turned.grad_fn
    assert node.name() == "_RotationBackward"
    assert [type(n).__name__ for n, _ in node.next_functions if n] == ["AccumulateGrad"]
    upstream = sample(*leaf.shape, seed=3)
    ran = operators(
        lambda: torch.autograd.grad(turned, leaf, upstream, retain_graph=True)
    )
    assert ran["mul"] == 1
    assert not {"slice_backward", "select_backward", "zeros", "stack"} & {*ran}


# ---------------------------------------------------------------- kept, shared rows


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("each", [False, True])
def test_integer_positions_are_looked_up_on_a_cpu(dtype, each):
    rope, (q, k) = RotaryEmbedding(8), queries_and_keys()
    positions = (EACH if each else EACH[1]).to(dtype)
    ran = operators(lambda: rope(q, k, positions))
    assert ran["embedding"] == 1 and not {"cos", "sin"} & {*ran}
    all_close(rope(q, k, positions), [oracle(x, positions) for x in (q, k)])
    far = positions + SMALLEST_TABLE
    fresh = RotaryEmbedding(8, base=9_876.0)  # whose rows no other test has added to
    assert operators(lambda: fresh(q, k, far))["cos"] == 1
    assert operators(lambda: rope(q, k, positions / 2))["cos"] == 1
    rope(q, k, start=2 * SMALLEST_TABLE - 5)  # more rows: those are looked up, too
    assert operators(lambda: rope(q, k, far))["embedding"] == 1


@pytest.mark.parametrize("way", ["start", "pad_len", "start of each"])
def test_other_ways_of_giving_positions_make_no_rows_on_a_cpu(way):
    rope, (q, k) = RotaryEmbedding(8), queries_and_keys()
    starts = torch.tensor([7, 9])
    given = {
        "start": {"start": 7},
        "pad_len": {"pad_len": starts, "start": 20},
        "start of each": {"start": starts},
    }[way]
    ran = operators(lambda: rope(q, k, **given))
    assert not {"cos", "sin"} & {*ran}
    assert ran["embedding"] == (way != "start")


def test_layers_that_rotate_alike_hold_one_table():
    layers = nn.ModuleList(
        RotaryEmbedding(
            64, base=7_654.3, pairing=PAIRINGS[i % 2], layout=("bhsd", "bshd")[i % 2],
            rotary_dim=64, trailing=i % 2 == 1,
        )
        for i in range(32)
    )  # fmt: skip
    x = sample(1, 1, 1, 64)
    for layer in layers:
        layer.rotate(x, start=40_000)
    storages = {
        layer._rows.table.untyped_storage().data_ptr(): layer._rows.table.nbytes
        for layer in layers
    }
    assert [*storages.values()] == [65_536 * 64 * 4]  # 16 MiB, not 512
    others = (
        RotaryEmbedding(64, base=7_654),
        RotaryEmbedding(64, base=7_654.3, rotary_dim=32),
        RotaryEmbedding(64, base=7_654.3, clockwise=True),
        RotaryEmbedding(64, inv_freq=layers[0].inv_freq, attention_factor=2),
    )
    kept = {id(layer._rows) for layer in (layers[0], *others)}
    assert len(kept) == 5
    same = RotaryEmbedding(64, inv_freq=layers[0].inv_freq)
    assert same._rows is layers[0]._rows


def test_rows_are_made_once_and_end_with_the_last_layer(monkeypatch):
    calls = count_calls(monkeypatch, ops, "cos_sin")
    layers = [RotaryEmbedding(8, base=4_321) for _ in range(8)]
    x = sample(1, 1, 1, 8)
    for layer in layers:
        layer.rotate(x, start=5_000)
    assert len(calls) == 2  # the first rows, and more of them
    rows = weakref.ref(layers[0]._rows)
    keys = len(SharedRows._all)
    del layer, layers[1:]
    gc.collect()
    assert rows() is not None
    layers.clear()
    gc.collect()
    assert rows() is None and len(SharedRows._all) < keys


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learned": True},
        {"xpos_scale_base": 512},
        {"axes": 2},
    ],
)
def test_layers_that_share_tables_compute_none(options):
    layers = [RotaryEmbedding(8, **options) for _ in range(32)]
    positions = EACH[..., None].expand(2, 5, 2) if "axes" in options else EACH / 4
    q, k = queries_and_keys()
    tables = layers[0].tables(positions, seq=5)

    @torch.no_grad()
    def through_all():
        return [layer(q, k, tables=tables) for layer in layers]

    ran = operators(through_all)
    assert not {"cos", "sin", "pow", "embedding", "arange"} & {*ran}
    assert ran["mul"] == 64  # one product for each tensor of each layer
    for turned in through_all():
        all_close(turned, layers[1](q, k, positions))


# ------------------------------------------------------------------- compiled graphs


def graphs_of(call, *arguments, **named):
    """The operators of each graph that torch's compiler makes of a call."""
    torch.compiler.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    torch.compile(call, fullgraph=True, backend=backend)(*arguments, **named)
    return graphs


@both_pairings
def test_a_compiled_call_reads_kept_rows_and_the_plain_formula(pairing):
    rope, (q, k) = RotaryEmbedding(8, pairing=pairing), queries_and_keys()
    (graph,) = graphs_of(rope, q, k, start=3)
    assert not [step for step in graph if "aten.cos" in step or "aten.sin" in step]
    assert not [step for step in graph if "rope_teach" in step]  # nothing opaque
    assert sum("aten.mul." in step for step in graph) == 8


# -------------------------------------------------------------------- as on a GPU


@pytest.fixture
def cuda(monkeypatch):
    """The kernels' module, whose launches are counted, on the road of the CPU."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from rope_teach.ops import cuda

    if torch.cuda.is_available():
        pytest.skip("test_gpu.py counts launches on the GPU")
    counted = {
        name: count_calls(monkeypatch, cuda, name) for name in ("rotate", "cos_sin")
    }
    with as_on_cuda():
        yield SimpleNamespace(**counted)


@both_pairings
def test_the_operator_launches_once_for_q_and_k(pairing, cuda):
    rope, (q, k) = RotaryEmbedding(8, pairing=pairing), queries_and_keys()
    rope.rotate(q), cuda.rotate.clear(), cuda.cos_sin.clear()  # there are rows now
    expected = [oracle(x, torch.arange(7, 12), pairing) for x in (q, k)]
    all_close(rope(q, k, start=7), expected)
    assert len(cuda.rotate) == 1
    out = torch.empty_like(q), torch.zeros(2, 2, 9, 8)[:, :, 2:7]
    all_close(rope(q, k, start=7, out=out), expected)
    all_close(out, expected)
    assert len(cuda.rotate) == 2
    rope.rotate(q)
    assert len(cuda.rotate) == 3 and not cuda.cos_sin


@both_pairings
def test_gradients_launch_the_kernel_both_ways(pairing, cuda):
    rope, (q, _) = RotaryEmbedding(8, pairing=pairing), queries_and_keys()
    rope.rotate(q), cuda.rotate.clear()
    leaf = q.requires_grad_()
    turned = rope.rotate(leaf, start=7)
    upstream = sample(*leaf.shape, seed=3)
    (got,) = torch.autograd.grad(turned, leaf, upstream)
    close(got, oracle(upstream, -torch.arange(7, 12), pairing))
    assert len(cuda.rotate) == 2 and cuda.rotate[1][5]  # the second one: the inverse


def test_positions_without_rows_take_the_kernel_of_the_rows(cuda):
    rope, (q, k) = RotaryEmbedding(8), queries_and_keys()
    cuda.cos_sin.clear()
    for count, places in enumerate((EACH / 4, EACH + 10**7), start=1):
        all_close(rope(q, k, places), [oracle(x, places) for x in (q, k)])
        assert len(cuda.cos_sin) == len(cuda.rotate) == count
    axes = RotaryEmbedding(8, axes=2)
    axes(q, k, EACH[..., None].expand(2, 5, 2))
    assert len(cuda.cos_sin) == 3


def test_launches_are_planned_once_for_each_form():
    cuda = pytest.importorskip("rope_teach.ops.cuda")
    q, k = queries_and_keys(seq=11)
    cos = torch.empty(11, 4)

    def planned(q, k, cos):
        forms = cuda._forms((q, k), (q, k), cos)
        return cuda._known_plan(forms, "bhsd", "half", False)

    first = planned(q, k, cos)
    assert planned(q + 1, k + 1, cos + 1) is first
    token_by_token = k.transpose(1, 2).contiguous().transpose(1, 2)
    assert planned(q, token_by_token, cos) != first


def test_q_and_k_with_gradients_go_together_on_cuda(monkeypatch):
    """One node there, in one launch; on a CPU one for each, which costs nothing."""
    calls = []

    def apply(*arguments):
        calls.append(arguments[5:])
        return arguments[5:]

    monkeypatch.setattr(ops._Rotation, "apply", apply)
    for device, expected in (("cuda", 1), ("cpu", 2)):
        xs = [SimpleNamespace(device=torch.device(device)) for _ in range(2)]
        calls.clear()
        got = ops._differentiated(xs, None, None, ("half", "bhsd", False))
        assert len(calls) == expected and [*got] == xs


@pytest.mark.parametrize("way", ["start", "pad_len"])
def test_sequences_are_counted_by_the_kernel_on_cuda(way, monkeypatch):
    """No tensor of positions is made there: a call is two launches, not seven."""
    counts = []

    def spied(*arguments, count=None, **named):
        counts.append(count)
        return original(*arguments, count=count, **named)

    original, rope = ops.cos_sin, RotaryEmbedding(8)
    monkeypatch.setattr(ops, "cos_sin", spied)
    with FakeTensorMode():
        q, k = (torch.empty(2, h, 5, 8, device="cuda") for h in (4, 2))
        numbers = torch.zeros(2, dtype=torch.int64, device="cuda")
        turned = rope(q, k, **{way: numbers})
    assert counts == [5] and [x.shape for x in turned] == [q.shape, k.shape]


def test_norms_go_to_their_kernel_on_cuda(monkeypatch):
    """And only there; test_fused_norm.py holds what the kernel makes of them."""
    norm = pytest.importorskip("rope_teach.ops.norm")
    monkeypatch.setattr(norm, "normalise_and_rotate", lambda *_: "the kernel")
    rope, norms = RotaryEmbedding(8), [nn.Identity() for _ in range(2)]
    for device in ("cuda", "cpu"):
        with FakeTensorMode():
            q, k = (torch.empty(2, h, 5, 8, device=device) for h in (4, 2))
            taken = rope(q, k, norms=norms) == "the kernel"
        assert taken == (device == "cuda")


def test_torch_compiler_gets_the_kernel_on_cuda_alone(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    there, here = (SimpleNamespace(device=torch.device(x)) for x in ("cuda", "cpu"))
    assert ops.takes_kernels(there) and not ops.takes_kernels(here)
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: False)
    assert not ops.takes_kernels(there)  # an export without dynamo
    kernels = SimpleNamespace(compiled=lambda *_: "rotated", cos_sin=lambda *_: "rows")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(ops, "takes_kernels", lambda x: True)
    monkeypatch.setattr(ops, "_kernels", lambda: kernels)
    x, table = torch.ones(1, 1, 5, 8), torch.ones(5, 4)
    assert ops.rotate_together([x], table, table, "half", "bhsd") == "rotated"
    assert ops.cos_sin(torch.arange(5), table[0]) == "rows"


def test_what_triton_has_compiled_is_launched_directly(monkeypatch):
    """For tensors that lie as those did for which it was compiled."""
    cuda, launched = pytest.importorskip("rope_teach.ops.cuda"), []

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            def launch(*arguments, **named):
                launched.append((self.name, grid))
                return Kernel("directly")

            return launch

    monkeypatch.setattr(cuda, "_rotate_token", Kernel("by Triton"))
    aligned, off = torch.empty(2, 4, 5, 8), torch.empty(321)[1:].view(2, 4, 5, 8)
    cos = torch.empty(5, 4)
    plan = cuda.plan_of((aligned, aligned), (aligned, aligned), cos, "bhsd")
    for x in (off, aligned, aligned, off):
        plan(x, x, x, x, cos, cos)
    names = ["by Triton", "by Triton", "directly", "by Triton"]
    assert launched == [(name, plan.grid) for name in names]


# ------------------------------------------------------------------------- public names

PRIVATE = re.compile(
    r"\b(torch|triton)(\.\w+)*\._(?!_)\w+|device_caches|_is_exporting_flag"
)


def test_no_private_name_of_torch_or_triton():
    """They change without notice; public ones are what two years of versions share."""
    package = Path(rope_teach.__file__).parent
    assert PRIVATE.search("from torch._C import x") and PRIVATE.search("torch.fx._x")
    found = [
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if PRIVATE.search(line)
    ]
    assert not found
