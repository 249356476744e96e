"""Parity: other libraries rotate as we do, or the test says by how much they do not.

The libraries come with the ``peers`` extra. Most tests use a base of 256 with 16
features: the frequencies are powers of two, every angle is exact in float32, and what
is left to compare is the rotation itself. The oracle is the matrix form in float64.
"""

import functools
import importlib
import importlib.util

import numpy as np
import pytest
import torch

from rope_teach import (
    RotaryEmbedding,
    convert_projection,
    cos_sin,
    inverse_frequencies,
    rotate,
    rotate_matrix,
)
from rope_teach.pairing import full_table
from rope_teach.tables import angles

SEQ, DIM, BASE = 300, 16, 256  # past 256, where positions in bfloat16 collide
POSITIONS = torch.arange(SEQ)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str
)


def peer(module):
    """Import a peer. Absent, it is skipped; there but broken, the test fails."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (the peers extra has it)")
    return importlib.import_module(module)


def sample(dtype, layout="bhsd", seq=SEQ):
    torch.manual_seed(0)
    shape = (2, 3, seq, DIM) if layout == "bhsd" else (2, seq, 3, DIM)
    return torch.randn(shape).to(dtype)


def oracle(x, positions, pairing, layout="bhsd", base=BASE, rotary_dim=DIM):
    angle = angles(positions, inverse_frequencies(rotary_dim, base))
    return rotate_matrix(x.double(), angle, pairing, layout)


def ours(x, pairing, layout="bhsd", base=BASE, **more):
    rope = RotaryEmbedding(DIM, base=base, pairing=pairing, layout=layout)
    return rope.rotate(x, **more)


def roundings(got, exact):
    """The largest error, in roundings of ``got``'s dtype, beyond float32's own."""
    info = torch.finfo(got.dtype)
    in_float32 = 2**-23 * exact.norm(dim=-1, keepdim=True)
    rounding = info.eps / 2 * exact.abs() + info.tiny * info.eps
    beyond = ((got.double() - exact).abs() - in_float32).clamp_min(0)
    return (beyond / rounding).max().item()


def assert_parity(theirs, x, pairing, layout="bhsd"):
    exact, mine = oracle(x, POSITIONS, pairing, layout), ours(x, pairing, layout)
    assert theirs.dtype == mine.dtype == x.dtype
    assert theirs.shape == mine.shape == x.shape
    assert roundings(mine, exact) <= 1.001
    assert roundings(theirs, exact) <= 1.001


def test_the_measure_tells_one_rounding_from_two():
    x = sample(torch.bfloat16)
    exact = oracle(x, POSITIONS, "half")
    assert roundings(exact.bfloat16(), exact) <= 1
    cos, sin = cos_sin(POSITIONS, inverse_frequencies(DIM, BASE), torch.bfloat16)
    a, b = x.chunk(2, dim=-1)
    assert roundings(torch.cat([a * cos - b * sin, a * sin + b * cos], -1), exact) > 2


# --------------------------------------------- one rotation, in each library's call


def llama_module(base, dtype=torch.float32):
    llama = peer("transformers.models.llama.modeling_llama")
    config = importlib.import_module("transformers").LlamaConfig(
        hidden_size=DIM, num_attention_heads=1, rope_theta=base
    )
    module = llama.LlamaRotaryEmbedding(config).to(dtype)
    return llama, lambda positions, like: module(like, positions[None])


@each_dtype
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_hugging_face_llama(dtype, layout):
    llama, tables = llama_module(BASE)
    x = sample(dtype, layout)
    cos, sin = tables(POSITIONS, torch.empty(0))  # in float32, whatever x is
    axis = 1 if layout == "bhsd" else 2
    theirs, _ = llama.apply_rotary_pos_emb(x, x, cos, sin, axis)
    assert_parity(theirs.to(dtype), x, "half", layout)


@each_dtype
def test_hugging_face_gptj(dtype):
    gptj = peer("transformers.models.gptj.modeling_gptj")
    x = sample(dtype, "bshd")
    cos, sin = cos_sin(POSITIONS[None], inverse_frequencies(DIM, BASE))
    theirs = gptj.apply_rotary_pos_emb(x, sin, cos).to(dtype)
    assert_parity(theirs, x, "interleaved", "bshd")


@each_dtype
def test_torchtune(dtype):
    modules = peer("torchtune.modules")
    x = sample(dtype, "bshd")
    theirs = modules.RotaryPositionalEmbeddings(DIM, SEQ, BASE)(x)
    assert_parity(theirs, x, "interleaved", "bshd")


@each_dtype
def test_rotary_embedding_torch(dtype):
    library = peer("rotary_embedding_torch")
    x = sample(dtype)
    freqs = library.RotaryEmbedding(DIM, theta=BASE)(POSITIONS.float())
    assert_parity(library.apply_rotary_emb(freqs, x), x, "interleaved")


@each_dtype
def test_x_transformers(dtype):
    library = peer("x_transformers.x_transformers")
    x = sample(dtype)
    freqs, _ = library.RotaryEmbedding(DIM, base=BASE)(POSITIONS)
    assert_parity(library.apply_rotary_pos_emb(x, freqs), x, "interleaved")


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotary_dim", [DIM, 8])
@pytest.mark.parametrize("axes", [3, 4])
def test_onnx_reference(interleaved, rotary_dim, axes):
    helper = peer("onnx.helper")
    evaluator = peer("onnx.reference").ReferenceEvaluator
    x, float32 = sample(torch.float32), peer("onnx").TensorProto.FLOAT
    names = ["x", "cos", "sin", "positions"]
    kinds = [float32, float32, float32, peer("onnx").TensorProto.INT64]
    node = helper.make_node(
        "RotaryEmbedding",
        names,
        ["y"],
        interleaved=interleaved,
        rotary_embedding_dim=0 if rotary_dim == DIM else rotary_dim,
        num_heads=x.shape[1],
    )
    info = [
        helper.make_tensor_value_info(*n, None) for n in zip(names, kinds, strict=True)
    ]
    y = helper.make_tensor_value_info("y", float32, None)
    graph = helper.make_graph([node], "rotation", info, [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])

    cos, sin = cos_sin(POSITIONS, inverse_frequencies(rotary_dim, BASE))
    positions = np.stack([np.arange(SEQ), np.arange(SEQ)[::-1]])  # one row a sequence
    flat = x.transpose(1, 2).flatten(2)  # (batch, seq, heads * head_dim)
    inputs = (x if axes == 4 else flat).numpy(), cos.numpy(), sin.numpy(), positions
    theirs = torch.from_numpy(
        evaluator(model).run(None, dict(zip(names, inputs, strict=True)))[0]
    )
    if axes == 3:
        theirs = theirs.unflatten(2, (3, DIM)).transpose(1, 2)

    pairing = "interleaved" if interleaved else "half"
    rows = torch.from_numpy(positions.copy())
    exact = oracle(x, rows, pairing, rotary_dim=rotary_dim)
    mine = RotaryEmbedding(DIM, base=BASE, rotary_dim=rotary_dim, pairing=pairing)
    assert roundings(theirs, exact) <= 1.001
    assert roundings(mine.rotate(x, rows), exact) <= 1.001


# --------------------------------------------------- where peers round, or go wrong


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_hugging_face_rounds_tables_and_products(dtype):
    llama, tables = llama_module(BASE)
    x = sample(dtype)
    theirs, _ = llama.apply_rotary_pos_emb(x, x, *tables(POSITIONS, x))
    exact = oracle(x, POSITIONS, "half")
    assert roundings(theirs, exact) > 2
    assert roundings(ours(x, "half"), exact) <= 1.001


def by_llama(x):
    llama, tables = llama_module(10_000, torch.bfloat16)  # as model.bfloat16() does
    return llama.apply_rotary_pos_emb(x, x, *tables(POSITIONS, x))[0]


def by_rotary_embedding_torch(x):
    library = peer("rotary_embedding_torch")
    return library.RotaryEmbedding(DIM).rotate_queries_or_keys(x)


def by_x_transformers(x):
    library = peer("x_transformers.x_transformers")
    freqs, _ = library.RotaryEmbedding(DIM).bfloat16()(POSITIONS)
    return library.apply_rotary_pos_emb(x, freqs)


@pytest.mark.parametrize(
    "theirs, pairing, wrong_by",
    [
        (by_llama, "half", 0.1),  # frequencies in bfloat16
        (by_rotary_embedding_torch, "interleaved", 4),  # positions in bfloat16
        (by_x_transformers, "interleaved", 4),  # both
    ],
)
def test_positions_or_frequencies_in_bfloat16(theirs, pairing, wrong_by):
    x = sample(torch.bfloat16)
    exact = oracle(x, POSITIONS, pairing, base=10_000)
    assert (theirs(x).double() - exact).abs().max() > wrong_by
    assert roundings(ours(x, pairing, base=10_000), exact) <= 1.001


MILLION = 1_000_000 + torch.arange(64)


def far_llama(x):
    llama, tables = llama_module(10_000)
    return llama.apply_rotary_pos_emb(x, x, *tables(MILLION, x))[0]


def far_rotary_embedding_torch(x):
    library = peer("rotary_embedding_torch")
    freqs = library.RotaryEmbedding(DIM)(MILLION.float())
    return library.apply_rotary_emb(freqs, x)


def far_x_transformers(x):
    library = peer("x_transformers.x_transformers")
    freqs, _ = library.RotaryEmbedding(DIM)(MILLION)
    return library.apply_rotary_pos_emb(x, freqs)


@pytest.mark.parametrize(
    "theirs, pairing",
    [
        (far_llama, "half"),
        (far_rotary_embedding_torch, "interleaved"),
        (far_x_transformers, "interleaved"),
    ],
)
def test_angles_in_float32_at_a_million(theirs, pairing):
    x = sample(torch.float32, seq=len(MILLION))
    exact = oracle(x, MILLION, pairing, base=10_000)
    assert (theirs(x).double() - exact).abs().max() > 0.03  # of numbers about 1
    assert roundings(ours(x, pairing, base=10_000, start=1_000_000), exact) <= 1.001


# ------------------------------------------------------------- converted weights


def permute(w, heads):
    """The formula of Hugging Face's script that converts Meta's Llama weights."""
    rows, columns = w.shape
    pairs = w.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


@pytest.mark.parametrize("heads", [8, 2])  # of q; of k, with grouped queries
def test_weights_convert_as_hugging_face_does(heads):
    w = torch.randn(heads * DIM, 32, dtype=torch.float64)
    convert = functools.partial(convert_projection, heads=heads)
    converted = convert(w, source="interleaved", target="half")
    assert torch.equal(converted, permute(w, heads))
    assert torch.equal(convert(converted, source="half", target="interleaved"), w)


def test_grouped_query_logits_survive_the_conversion():
    llama = peer("transformers.models.llama.modeling_llama")
    torch.manual_seed(0)
    hidden = torch.randn(1, 5, 32, dtype=torch.float64)
    weights = [(torch.randn(heads * DIM, 32).double(), heads) for heads in (8, 2)]
    cos, sin = cos_sin(torch.arange(5), inverse_frequencies(DIM), torch.float64)

    def project(w, heads):
        return (hidden @ w.T).unflatten(-1, (heads, DIM)).transpose(1, 2)

    def logits(q, k):
        return q @ k.repeat_interleave(4, dim=1).mT

    meta = [rotate(project(w, heads), cos, sin) for w, heads in weights]
    converted = [
        project(convert_projection(w, heads, "interleaved", "half"), heads)
        for w, heads in weights
    ]
    wide = [full_table(t, "half")[None] for t in (cos, sin)]
    hugging_face = llama.apply_rotary_pos_emb(*converted, *wide)
    torch.testing.assert_close(logits(*hugging_face), logits(*meta))
