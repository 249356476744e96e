"""identify: every peer, conventions made up by hypothesis, and planted faults."""

import importlib
import importlib.util
import json
import math
import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from rope_teach import (
    RotaryEmbedding,
    convert_projection,
    inverse_frequencies,
    rotate,
    rotate_complex,
    rotate_matrix,
)
from rope_teach.__main__ import main
from rope_teach.attention import Attention
from rope_teach.frequencies import (
    llama3,
    longrope,
    ntk_aware,
    position_interpolation,
    proportional,
    yarn,
)
from rope_teach.identify import FAULTS, CannotProbe, Report, conversion, identify
from rope_teach.identify.faults import meaning
from rope_teach.identify.rules import recognize
from tests import broken
from tests.broken import BROKEN, half, interleaved, inv_freq, table


def facts(report, *names):
    return tuple(getattr(report, name) for name in names)


# ------------------------------------------------------------------ what we make here


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
@pytest.mark.parametrize("rotary_dim", [64, 16])
@pytest.mark.parametrize("pairing", ["interleaved", "half"])
def test_our_module(pairing, rotary_dim, layout):
    rope = RotaryEmbedding(
        64, pairing=pairing, rotary_dim=rotary_dim, layout=layout, base=500_000.0
    )
    report = identify(rope)
    assert report.correct and report.call == "q, k, positions"
    assert facts(report, "pairing", "rotary_dim", "layout", "sign", "base") == (
        pairing, rotary_dim, layout, 1, 500_000,
    )  # fmt: skip
    assert facts(report, "rotary_offset", "position_offset") == (0, 0)
    assert facts(report, "scaling", "attention_factor") == (None, 1)
    assert report.angle_dtype == "float64"
    assert torch.allclose(torch.tensor(report.inv_freq).double(), rope.inv_freq)


RULES = {
    "position_interpolation": (position_interpolation, {"factor": 4.0}),
    "yarn": (yarn, {"factor": 16.0, "trained_length": 4096}),
    "paper": (yarn, {"factor": 4.0, "trained_length": 2048, "ramp": "paper"}),
    "llama3": (llama3, {"factor": 8.0, "trained_length": 8192}),
    "proportional": (proportional, {"fraction": 0.25}),
}


@pytest.mark.parametrize("pairing", ["interleaved", "half"])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_for_longer_context_and_its_parameters(name, pairing):
    rule, parameters = RULES[name]
    rope = RotaryEmbedding(64, pairing=pairing, scaling=partial(rule, **parameters))
    report = identify(rope)
    assert report.correct and report.scaling == rule.__name__
    assert report.parameters == parameters
    assert facts(report, "base", "rotary_dim") == (10_000, 64)
    assert report.attention_factor == pytest.approx(rope.attention_factor)


def test_ntk_is_another_base_and_the_note_says_so():
    report = identify(RotaryEmbedding(64, scaling=partial(ntk_aware, factor=4)))
    assert report.correct and report.scaling is None
    assert report.base == pytest.approx(10_000 * 4 ** (64 / 62))
    assert "NTK-aware scaling by 4 makes of 10000" in report.notes[0]


def test_speeds_of_no_rule_are_given_as_they_are():
    lists = {"short_factors": [1.0] * 8, "long_factors": [1, 1, 3, 1, 5, 9, 2, 6]}
    rule = partial(longrope, **lists, trained_length=64, length=256)
    rope = RotaryEmbedding(16, scaling=rule)
    report = identify(rope)
    assert report.correct and facts(report, "scaling", "base") == ("unknown", None)
    assert report.attention_factor == pytest.approx(rope.attention_factor)
    assert torch.allclose(torch.tensor(report.inv_freq).double(), rope.inv_freq)


@pytest.mark.parametrize("rotation", [rotate, rotate_complex, rotate_matrix])
def test_functions_that_are_given_a_table(rotation):
    report = identify(rotation)
    assert report.correct and report.pairing == "interleaved"
    assert facts(report, "base", "scaling", "inv_freq") == (None, None, ())
    assert "tables that the caller brings" in report.notes[0]


def test_an_attention_layer_with_fewer_keys_than_queries():
    layer = Attention(128, 4, kv_heads=2, encoding="rope", rotary_dim=16)
    report = identify(layer)
    assert report.correct and facts(report, "rotary_dim", "head_dim") == (16, 32)
    weight = layer.query.weight.clone()
    assert torch.equal(weight, layer.query.weight)
    assert not layer.query._forward_hooks


def test_attention_without_rope_does_not_rotate():
    with pytest.raises(CannotProbe, match="does not rotate"):
        identify(Attention(128, 4, encoding="alibi"))


# ------------------------------------------------------- how a function may be called


def counted(x):
    return half(x, table(torch.arange(x.shape[-2]), x.shape[-1]))


def test_positions_may_be_counted_given_or_started():
    def started(x, start=0):
        m = start + torch.arange(x.shape[-2])
        return half(x, table(m, x.shape[-1]))

    def queries_and_keys(q, k):
        return counted(q), counted(k)

    def strange_names(a, b, /):
        return half(a, table(b, a.shape[-1]))

    def strange_queries(a, b):
        assert a.shape == b.shape
        return counted(a), counted(b)

    calls = {
        counted: "x",
        started: "x, start",
        queries_and_keys: "q, k",
        strange_names: "x, positions",
        strange_queries: "q, k",
    }
    for function, call in calls.items():
        report = identify(function, head_dim=8)
        assert report.correct and report.call == call


@pytest.mark.parametrize("layout", ["bhsd", "bshd", "sbhd", "bsd", "sd"])
def test_which_axis_is_the_sequence(layout):
    seq = layout.index("s")

    def rotation(x):
        assert x.ndim == len(layout)
        m = torch.arange(x.shape[seq])
        shape = [len(m) if axis == seq else 1 for axis in range(x.ndim - 1)]
        return half(x, table(m, x.shape[-1]).reshape(*shape, -1))

    report = identify(rotation, head_dim=8)
    assert report.correct and report.layout == layout


def test_arguments_can_be_named():
    def rotation(sine, cosine, features):
        return features * cosine + broken.rotate_half(features) * sine

    report = identify(rotation, call="sin, cos, x")
    assert report.correct and report.pairing == "half"
    assert "repeated by cat" in report.notes[0]


def test_a_table_of_one_width_and_length():
    cos, sin = (f(table(torch.arange(100), 24)) for f in (torch.cos, torch.sin))

    def rotation(x):
        c, s = cos[: x.shape[-2]], sin[: x.shape[-2]]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * c - b * s, a * s + b * c], dim=-1)

    report = identify(rotation, head_dim=24)
    assert report.correct and facts(report, "base", "longest") == (10_000, 63)
    with pytest.raises(CannotProbe, match=r"no call worked; tried \(x\).*head_dim"):
        identify(rotation)


def test_tables_are_known_by_a_part_of_their_names():
    def rotation(x, sin_emb, cos_emb):
        return x * cos_emb + broken.rotate_every_two(x) * sin_emb

    report = identify(rotation)
    assert report.correct and report.call == "x, sin, cos"
    assert report.pairing == "interleaved"


def test_positions_may_be_rows_of_a_table():
    def rotation(q, k, cos, sin, position_ids):
        cos, sin = cos[position_ids], sin[position_ids]
        return tuple(x * cos + broken.rotate_half(x) * sin for x in (q, k))

    report = identify(rotation)
    assert report.correct and report.call == "q, k, cos, sin, positions"


def test_what_is_changed_in_place_and_not_returned():
    def rotation(x, positions):
        x.copy_(half(x, table(positions, x.shape[-1])))

    report = identify(rotation)
    assert report.correct and report.base == 10_000


def test_a_function_of_arrays():
    def rotation(x, positions):
        assert isinstance(x, np.ndarray)
        angle = positions[:, None] * np.repeat(inv_freq(x.shape[-1]).numpy(), 2)
        turned = np.stack([-x[..., 1::2], x[..., 0::2]], axis=-1).reshape(x.shape)
        return (x * np.cos(angle) + turned * np.sin(angle)).astype(x.dtype)

    report = identify(rotation)
    assert report.correct and report.pairing == "interleaved"


def pair_of_tables(q, k, position_embeddings):
    cos, sin = (part.unsqueeze(1) for part in position_embeddings)
    return tuple(x * cos + broken.rotate_half(x) * sin for x in (q, k))


def tables_called_otherwise(x, freqs_cis):
    """As diffusers has it: the name promises complex numbers."""
    cos, sin = freqs_cis
    return x * cos + broken.rotate_every_two(x) * sin


def positions_of_each(q, k, m, n):
    d = q.shape[-1]
    return half(q, table(m, d)), half(k, table(n, d))


def length_asked_for(x, seq_len):
    return half(x, table(torch.arange(seq_len), x.shape[-1]))


def time(x, t):
    return half(x, table(t, x.shape[-1]))


@pytest.mark.parametrize(
    "function, call",
    [
        (pair_of_tables, "q, k, tables"),
        (tables_called_otherwise, "x, tables"),
        (positions_of_each, "q, k, positions, positions_of_k"),
        (length_asked_for, "x, length"),
        (time, "x, positions"),
    ],
)
def test_other_arguments(function, call):
    report = identify(function, head_dim=8)
    assert report.correct and report.call == call
    assert not any("say which is meant" in note for note in report.notes)


@pytest.mark.parametrize("form", [torch.stack, iter, lambda q_k: dict(enumerate(q_k))])
def test_other_forms_of_an_answer(form):
    def rotation(q, k):
        return form([counted(q), counted(k)])

    report = identify(rotation, head_dim=8)
    assert report.correct and report.call == "q, k"


def test_what_holds_several_is_no_x():
    for function in (
        lambda qkv, cos, sin: qkv,
        lambda xs, positions: [time(x, positions) for x in xs],
    ):
        with pytest.raises(CannotProbe):
            identify(function, head_dim=8)


def halves(x, positions):
    inv_freq = inverse_frequencies(x.shape[-1])
    table = torch.cat([positions[..., None] * inv_freq] * 2, dim=-1)
    table = table[:, None] if table.ndim == 3 else table
    return table.to(x)


def by_halves(x, table):
    a, b = x.chunk(2, dim=-1)
    return x * table.cos() + torch.cat([-b, a], dim=-1) * table.sin()


def test_tables_of_two_numbers_for_each_pair():
    """(batch or 1, seq, heads, head_dim) by real tables (seq, r/2, 2)."""

    def apply_rotary_emb(x, freqs_cis):
        pairs = x.float().reshape(*x.shape[:-1], -1, 2)
        table = freqs_cis.view(1, pairs.size(1), 1, pairs.size(3), 2)
        turned = [
            pairs[..., 0] * table[..., 0] - pairs[..., 1] * table[..., 1],
            pairs[..., 1] * table[..., 0] + pairs[..., 0] * table[..., 1],
        ]
        return torch.stack(turned, dim=-1).flatten(3).type_as(x)

    report = identify(apply_rotary_emb)
    assert report.correct and report.pairing == "interleaved", report


def test_each_row_is_followed_in_decoding():
    def rotation(q, k, position_ids):
        if q.shape[-2] == 1:
            position_ids = position_ids.flatten()[:1]
        return [by_halves(x, halves(x, position_ids)) for x in (q, k)]

    report = identify(rotation, head_dim=16)
    assert not report.correct and "first" in str(report)


@pytest.mark.parametrize("mixed", ["q", "k", None])
def test_q_and_k_follow_positions_of_their_own(mixed):
    def rotation(q, k, q_positions, k_positions):
        of_q = k_positions if mixed == "q" else q_positions
        of_k = q_positions if mixed == "k" else k_positions
        return by_halves(q, halves(q, of_q)), by_halves(k, halves(k, of_k))

    report = identify(rotation, head_dim=16)
    assert report.correct == (mixed is None)
    if mixed:
        assert f"{mixed} is not turned by its own positions" in str(report)


def test_cosine_and_sine_exchanged_in_q_and_k_are_named():
    def rotation(q, k, positions):
        swapped = []
        for x in (q, k):
            table, (a, b) = halves(x, positions), x.chunk(2, dim=-1)
            swapped.append(x * table.sin() + torch.cat([-b, a], dim=-1) * table.cos())
        return swapped

    report = identify(rotation, head_dim=16)
    assert not report.correct and "cos and sin" in str(report)


def test_an_exponent_that_begins_late_is_mentioned():
    def rotation(q, k, positions):
        late = 1e4 ** -(torch.arange(2, q.shape[-1] + 2, 2) / q.shape[-1])
        table = torch.cat([positions[..., None] * late] * 2, dim=-1)
        return [by_halves(x, table) for x in (q, k)]

    report = identify(rotation, head_dim=64)
    assert any("begin at 2 / d" in note for note in report.notes)


# ------------------------------------------------------------- layers of other people


class Layer(nn.Module):
    """An attention layer in a style; its rotation is ours."""

    def __init__(self, style):
        super().__init__()
        self.style = style
        self.c_attn = nn.Linear(64, 192)
        self.q_norm = nn.LayerNorm(32)

    def forward(self, x):
        q, k, v = self.c_attn(x).unflatten(-1, (3, 2, 32)).transpose(1, 3).unbind(2)
        q, k = counted(self.q_norm(q)), counted(k)
        if self.style == "einsum":
            return torch.einsum("b h i d, b h j d -> b h i j", q, k)
        if self.style == "scaled":
            return (32**-0.5 * q) @ k.mT
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("style", ["sdpa", "einsum", "scaled"])
def test_a_layer_of_any_style(style):
    report = identify(Layer(style))
    assert report.correct and report.call == "q, k"
    assert facts(report, "head_dim", "pairing", "base") == (32, "half", 10_000)
    assert report.attention_factor == 1
    scale = "q and k bring the softmax scale with them, head_dim ** -0.5"
    assert (scale in report.notes) == (style == "scaled")


def test_a_report_of_a_model_names_the_layer():
    model = nn.Sequential(nn.Identity(), Layer("einsum"))
    model.forward = lambda x: model[1](x)
    report = identify(model)
    assert report.correct and report.name == "Sequential.1"


def test_a_layer_that_is_given_tables():
    class Meta(nn.Module):
        def __init__(self):
            super().__init__()
            self.wq, self.wk = nn.Linear(64, 64), nn.Linear(64, 32)

        def forward(self, x, freqs_cis, mask):
            q, k = (f(x).unflatten(-1, (-1, 32)) for f in (self.wq, self.wk))
            q, k = (rotate_complex(z, freqs_cis, layout="bshd") for z in (q, k))
            k = k.repeat_interleave(2, dim=2)
            return q.transpose(1, 2) @ k.permute(0, 2, 3, 1)

    report = identify(Meta())
    assert report.correct and report.call == "q, k, phases"
    assert report.pairing == "interleaved"


# ---------------------------------------------------- conventions made up by hypothesis


@st.composite
def conventions(draw):
    head_dim = draw(st.sampled_from([16, 32, 64]))
    rotary_dim = draw(st.sampled_from([head_dim, head_dim, head_dim // 2]))
    base = draw(st.sampled_from([1e4, 5e5, 1e6, 3e3, 12_340.0, 7.7e5]))
    name = draw(st.sampled_from(["none", "none", *RULES]))
    pairing = draw(st.sampled_from(["interleaved", "half", "another"]))
    # With few hands several sets of parameters blend alike.
    assume(name not in ("yarn", "paper", "llama3") or rotary_dim >= 32)
    # Halves show where the still pairs are; else these are few hands of a small base.
    assume(name != "proportional" or (pairing == "half" and rotary_dim == head_dim))
    return {
        "head_dim": head_dim,
        "rotary_dim": rotary_dim,
        "offset": draw(st.sampled_from([0, head_dim - rotary_dim])),
        "pairing": pairing,
        "sign": draw(st.sampled_from([1, -1])),
        "base": base,
        "rule": name,
        "start": draw(st.sampled_from([0, 0, 1, -3, 0.5])),
        "call": draw(st.sampled_from(["x", "x, positions", "q, k"])),
        "layout": draw(st.sampled_from(["bhsd", "bshd", "sd"])),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        "seed": draw(st.integers(0, 99)),
    }


def build(c):
    """The rotation of a convention, by a formula of its own: one matrix of indices."""
    rule, parameters = RULES.get(c["rule"], (None, {}))
    speeds = inverse_frequencies(c["rotary_dim"], c["base"])
    factor = 1.0
    if rule is not None:
        speeds, factor = rule(c["rotary_dim"], c["base"], **parameters)
    place = torch.arange(c["rotary_dim"]) + c["offset"]
    if c["pairing"] == "half":
        first, second = place.chunk(2)
    else:
        first, second = place.unflatten(0, (-1, 2)).unbind(1)
    if c["pairing"] == "another":
        shuffled = torch.randperm(
            c["head_dim"], generator=torch.Generator().manual_seed(c["seed"])
        )
        first, second = shuffled[first], shuffled[second]
    seq = c["layout"].index("s")

    def turn(x, m):
        angle = (m + c["start"]).to(c["dtype"])[:, None] * speeds.to(c["dtype"])
        shape = [len(m) if axis == seq else 1 for axis in range(x.ndim - 1)]
        cos = (angle.cos() * factor).reshape(*shape, -1)
        sin = (c["sign"] * angle.sin() * factor).reshape(*shape, -1)
        out = x.to(c["dtype"], copy=True)
        a, b = out[..., first], out[..., second]
        out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
        return out.to(x.dtype)

    def count(x):
        return torch.arange(x.shape[seq])

    functions = {
        "x": lambda x: turn(x, count(x)),
        "x, positions": lambda x, positions: turn(x, positions),
        "q, k": lambda q, k: (turn(q, count(q)), turn(k, count(k))),
    }
    pairs = tuple(zip(first.tolist(), second.tolist(), strict=True))
    turning = speeds != 0
    return functions[c["call"]], pairs, speeds[turning]


@given(conventions())
@settings(max_examples=30)
def test_a_made_up_convention_is_recovered(c):
    function, pairs, speeds = build(c)
    layout = "sd" if c["layout"] == "sd" else None
    report = identify(function, head_dim=c["head_dim"], layout=layout)
    assert report.correct, report
    assert report.call == c["call"] and report.layout == c["layout"]
    assert torch.allclose(torch.tensor(report.inv_freq).double(), speeds, rtol=1e-5)
    assert report.position_offset == c["start"]
    rule, parameters = RULES.get(c["rule"], (None, {}))
    assert report.base == pytest.approx(c["base"], rel=1e-4)
    assert report.scaling == (rule and rule.__name__)
    assert report.parameters == pytest.approx(parameters)
    if c["pairing"] == "another":  # one rotation: (a, b) by +, or (b, a) by -
        turning = pairs[: len(speeds)]
        assert report.pairing == "another" and report.sign == 1
        oriented = turning if c["sign"] == 1 else tuple(p[::-1] for p in turning)
        assert report.pairs == oriented
    else:
        assert report.pairing == c["pairing"] and report.sign == c["sign"]
        assert report.pairs == pairs[: len(speeds)]
        assert facts(report, "rotary_dim", "rotary_offset") == (
            c["rotary_dim"], c["offset"],
        )  # fmt: skip
    assert report.angle_dtype == str(c["dtype"]).removeprefix("torch.")


# ------------------------------------------------------------------------ peers


def peer(module):
    """Import a peer. Absent, it is skipped; there but broken, the test fails."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (the peers extra has it)")
    return importlib.import_module(module)


def hugging_face(name):
    return peer(f"transformers.models.{name}.modeling_{name}")


def small(family, **more):
    """A configuration with heads of 32, four for queries."""
    transformers = peer("transformers")
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "vocab_size": 50}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return getattr(transformers, f"{family}Config")(**sizes, **tokens, **more)


def small_llama(**more):
    layers = {"num_hidden_layers": 1, "intermediate_size": 64}
    return small("Llama", num_key_value_heads=2, **layers, **more)


def gptj():
    return small("GPTJ", n_layer=1, n_positions=512, rotary_dim=16)


def rotary_embedding_torch(**more):
    return peer("rotary_embedding_torch").RotaryEmbedding(32, **more)


def x_transformers(**more):
    return peer("x_transformers.x_transformers").RotaryEmbedding(32, **more)


def llama_attention(kind):
    config = small_llama(rope_theta=500_000.0)
    config._attn_implementation = kind
    return hugging_face("llama").LlamaAttention(config, 0)


# A peer, how it is called, and its layout, pairing, rotary_dim of head_dim, base.
PEERS = {
    "llama function": (
        lambda: hugging_face("llama").apply_rotary_pos_emb,
        ("q, k, cos, sin", "bhsd", "half", 64, 64, None),
    ),
    "gptj function": (
        lambda: hugging_face("gptj").apply_rotary_pos_emb,
        ("x, sin, cos", "bshd", "interleaved", 64, 64, None),
    ),
    "deepseek_v3 function, reordered": (
        lambda: hugging_face("deepseek_v3").apply_rotary_pos_emb_interleave,
        ("q, k, cos, sin", "bhsd", "interleaved", 64, 64, None),
    ),
    "llama4 vision function, freqs_ci": (
        lambda: hugging_face("llama4").vision_apply_rotary_emb,
        ("q, k, phases", "bshd", "interleaved", 64, 64, None),
    ),
    "roformer method, sine and cosine in one": (
        lambda: (
            hugging_face(
                "roformer"
            ).RoFormerSelfAttention.apply_rotary_position_embeddings
        ),
        ("sin_cos, q, k", "bhsd", "interleaved", 64, 64, None),
    ),
    "gpt_neox function": (
        lambda: hugging_face("gpt_neox").apply_rotary_pos_emb,
        ("q, k, cos, sin", "bhsd", "half", 64, 64, None),
    ),
    "llama table": (
        lambda: hugging_face("llama").LlamaRotaryEmbedding(small_llama()),
        ("q, k, positions", "bhsd", "half", 32, 32, 10_000),
    ),
    "llama layer, sdpa": (
        lambda: llama_attention("sdpa"),
        ("q, k, positions", "bhsd", "half", 32, 32, 500_000),
    ),
    "llama layer, eager": (
        lambda: llama_attention("eager"),
        ("q, k, positions", "bhsd", "half", 32, 32, 500_000),
    ),
    "llama model": (
        lambda: hugging_face("llama").LlamaForCausalLM(small_llama()),
        ("q, k, positions", "bhsd", "half", 32, 32, 10_000),
    ),
    "gemma3 layer, its own base": (
        lambda: hugging_face("gemma3").Gemma3Attention(
            small("Gemma3Text", head_dim=32, num_key_value_heads=2), 5
        ),
        ("q, k, positions", "bhsd", "half", 32, 32, 1_000_000),
    ),
    "gptj layer": (
        lambda: hugging_face("gptj").GPTJAttention(gptj(), 0),
        ("q, k, positions", "bhsd", "interleaved", 16, 32, 10_000),
    ),
    "gpt_neox model, fused projections": (
        lambda: hugging_face("gpt_neox").GPTNeoXForCausalLM(
            small("GPTNeoX", num_hidden_layers=1, intermediate_size=64)
        ),
        ("q, k, positions", "bhsd", "half", 8, 32, 10_000),
    ),
    "torchtune": (
        lambda: peer("torchtune.modules").RotaryPositionalEmbeddings(32),
        ("x, positions", "bshd", "interleaved", 32, 32, 10_000),
    ),
    "rotary-embedding-torch": (
        rotary_embedding_torch,
        ("x, start", "bhsd", "interleaved", 32, 32, 10_000),
    ),
    "rotary-embedding-torch's function": (
        lambda: peer("rotary_embedding_torch").apply_rotary_emb,
        ("freqs, x", "bhsd", "interleaved", 64, 64, None),
    ),
    "x-transformers": (
        x_transformers,
        ("q, k, positions", "bhsd", "interleaved", 32, 32, 10_000),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_a_peer(name):
    make, expected = PEERS[name]
    report = identify(make())
    assert report.correct, report
    names = "call", "layout", "pairing", "rotary_dim", "head_dim", "base"
    assert facts(report, *names) == expected
    assert facts(report, "sign", "position_offset", "scaling") == (1, 0, None)
    assert report.angle_dtype == (None if expected[-1] is None else "float32")


@pytest.mark.parametrize("flag", [0, 1])
def test_the_onnx_operator(flag):
    helper, float32 = peer("onnx.helper"), peer("onnx").TensorProto.FLOAT
    node = helper.make_node("RotaryEmbedding", ["x", "c", "s"], ["y"], interleaved=flag)
    info = [helper.make_tensor_value_info(n, float32, None) for n in "xcsy"]
    graph = helper.make_graph([node], "rotation", info[:3], info[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    evaluator = peer("onnx.reference").ReferenceEvaluator(model)

    def operator(x, cos, sin):
        assert x.ndim == 4 and cos.shape == (1, x.shape[2], x.shape[3] // 2)
        tables = (np.repeat(t.numpy(), len(x), axis=0) for t in (cos, sin))
        given = dict(zip("xcs", (x.numpy(), *tables), strict=True))
        return torch.from_numpy(evaluator.run(None, given)[0])

    report = identify(operator, head_dim=8)
    pairing = "interleaved" if flag else "half"
    assert report.correct and facts(report, "pairing", "layout") == (pairing, "bhsd")


@pytest.mark.parametrize("kind", ["llama3", "yarn", "linear"])
def test_a_rule_in_a_peers_configuration(kind):
    given = {"factor": 8.0, "original_max_position_embeddings": 4096}
    if kind == "llama3":
        given |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = small_llama(
        head_dim=64,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **given},
    )
    report = identify(hugging_face("llama").LlamaRotaryEmbedding(config))
    assert report.correct and report.parameters["factor"] == 8
    assert report.scaling == {"linear": "position_interpolation"}.get(kind, kind)
    assert report.base == 10_000
    if kind != "linear":
        assert report.parameters["trained_length"] == 4096


def dynamic_llama():
    dynamic = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    config = small_llama(max_position_embeddings=128, rope_parameters=dynamic)
    return hugging_face("llama").LlamaRotaryEmbedding(config)


# A peer that goes wrong, the dtype of its inputs, and the fault.
PEERS_AT_FAULT = {
    "llama cast to bfloat16": (
        lambda: hugging_face("llama").LlamaRotaryEmbedding(small_llama()).bfloat16(),
        None,
        "frequencies_cast",
    ),
    "llama model cast to bfloat16": (
        lambda: hugging_face("llama").LlamaForCausalLM(small_llama()).bfloat16(),
        None,
        "frequencies_cast",
    ),
    "rotary-embedding-torch's pixels for tokens": (
        partial(rotary_embedding_torch, freqs_for="pixel"),
        None,
        "for_pixels",
    ),
    "llama with dynamic NTK": (
        dynamic_llama,
        None,
        "length_sets_speed",
    ),
    "rotary-embedding-torch with bfloat16 inputs": (
        rotary_embedding_torch,
        torch.bfloat16,
        "positions_rounded",
    ),
    "rotary-embedding-torch with xPos": (
        partial(rotary_embedding_torch, use_xpos=True),
        None,
        "length_sets_scale",
    ),
    "x-transformers cast to bfloat16": (
        lambda: x_transformers().bfloat16(),
        None,
        "positions_rounded",
    ),
    "x-transformers with xPos": (
        partial(x_transformers, use_xpos=True),
        None,
        "length_sets_scale",
    ),
}


@pytest.mark.parametrize("name", PEERS_AT_FAULT)
def test_a_peer_at_fault(name):
    make, dtype, fault = PEERS_AT_FAULT[name]
    report = identify(make(), dtype=dtype)
    assert report.fault == fault, report


# ------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    "function, options, fault, words",
    BROKEN,
    ids=[getattr(f, "__name__", type(f).__name__) for f, *_ in BROKEN],
)
def test_a_planted_fault_is_named(function, options, fault, words):
    report = identify(function, **options)
    assert not report.correct and report.fault == fault, report
    assert (report.law, report.fix) == (FAULTS[fault].law, FAULTS[fault].fix)
    assert words in report.cause and "{" not in report.cause


def test_every_fault_is_planted_somewhere_and_names_a_law():
    assert {fault for *_, fault, _ in BROKEN} == set(FAULTS)
    assert all(meaning(fault.law) for fault in FAULTS.values())


def over_i_not_2i(x, positions):
    d = x.shape[-1]
    return half(x, positions[:, None] / 10_000 ** (torch.arange(d // 2) / d))


def divided_by_head_dim(x, positions):
    """Partial rotary of which the exponent forgot that it is partial."""
    d, r = x.shape[-1], x.shape[-1] // 2
    turned = half(x[..., :r], positions[:, None] * inv_freq(d)[: r // 2])
    return torch.cat([turned, x[..., r:]], dim=-1)


def test_what_no_probe_can_call_a_fault_gets_a_note():
    report = identify(over_i_not_2i)
    assert report.correct and report.base == 100
    assert "square root of 10000" in report.notes[0] and "i/d" in report.notes[0]
    report = identify(divided_by_head_dim)
    assert report.correct and report.scaling == "proportional"
    assert "should by rotary_dim" in report.notes[0]
    assert facts(report, "base", "parameters") == (10_000, {"fraction": 0.5})


def test_a_gradient_that_is_cut_and_an_input_that_is_written_over_get_a_note():
    report = identify(lambda x: counted(x.detach()), head_dim=8)
    assert report.correct and "no gradient comes back" in report.notes[0]
    report = identify(lambda x: x.copy_(counted(x)), head_dim=8)
    assert report.correct and "it writes over its input" in report.notes


def test_bfloat16_inputs_are_tried_too():
    def rotation(x, positions):
        return half(x, table(positions.to(x.dtype), x.shape[-1])).to(x.dtype)

    report = identify(rotation)
    assert report.correct and "bfloat16 inputs" in report.notes[0]
    assert identify(rotation, dtype=torch.bfloat16).fault == "positions_rounded"


def test_a_wide_tolerance_for_16_bit_outputs_still_names_the_base():
    rope = RotaryEmbedding(64, base=500_000.0, pairing="half")
    report = identify(rope, dtype=torch.bfloat16)
    assert report.correct and report.base == 500_000
    assert report.angle_dtype is None  # bfloat16 hides it


def test_xpos_with_one_origin_is_correct():
    report = identify(lambda q, k: broken.xpos(q, k, lambda length: 0))
    assert report.correct
    assert facts(report, "xpos_scale_base", "xpos_origin") == (512, 0)


# ------------------------------------------------------------------- the report


def test_the_report_reads_aloud_and_is_data():
    report = identify(counted, head_dim=8)
    text = str(report)
    assert text.startswith("counted, called with (x): a correct RoPE.\n")
    assert "half: (0, 4), (1, 5), (2, 6), ..." in text and "float32" in text
    assert json.loads(report.json()) == json.loads(json.dumps(report.as_dict()))
    assert Report(**report.as_dict()) == report
    wrong = str(identify(broken.cos_and_sin_swapped))
    assert "it breaks a law" in wrong and "identity_at_zero: At position 0" in wrong
    assert "cos and sin are swapped" in wrong


BAD = {
    "TypeError: needs a function or a module ... a class: give an instance": (
        lambda: identify(RotaryEmbedding)
    ),
    "TypeError: needs a function ... 3 is not callable": lambda: identify(3),
    "ValueError: layout must be one of ... got 'hsbd'": (
        lambda: identify(counted, layout="hsbd")
    ),
    "ValueError: call may name x, q, k ... got ['z']": (
        lambda: identify(counted, call="z")
    ),
    "ValueError: it does not rotate: equal tokens": lambda: identify(lambda x: x + 0),
    "ValueError: it must return 1 of shape (2, 3, 7, 64) ... [(2, 3, 7, 32)]": (
        lambda: identify(lambda x: x[..., ::2])
    ),
    "ValueError: it must return 1 ... it returned NoneType": (
        lambda: identify(lambda x: None)
    ),
    "ValueError: no arguments that could be x": lambda: identify(lambda: None),
    "ValueError: it has no arguments ... wrap it: identify(lambda q, k": (
        lambda: identify(lambda x, cos, sin, alpha, beta: x)
    ),
    "ValueError: two equal calls differ: dropout? Call .eval()": (
        lambda: identify(nn.Dropout())
    ),
    "TypeError: source must be a Report of identify, got 3": (
        lambda: conversion(3, PLAIN)
    ),
    "ValueError: 7 tokens from position 0 on ... ZeroDivisionError: ": (
        lambda: identify(lambda x: counted(x) if x.any() else 1 // 0)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message, refuses):
    refuses(BAD[message], message)


# --------------------------------------------------------------------- conversion


def scores(function, q, k):
    return function(q) @ function(k).mT


def test_a_conversion_keeps_the_scores():
    def ours(x):
        return interleaved(x, table(torch.arange(x.shape[-2]), x.shape[-1]))

    def clockwise(x):
        d, r = x.shape[-1], x.shape[-1]
        return half(x, -table(torch.arange(x.shape[-2]), d)[:, : r // 2])

    source, target = (identify(f, head_dim=16) for f in (ours, clockwise))
    way = conversion(source, target)
    q, k = torch.randn(2, 1, 3, 20, 16)
    torch.testing.assert_close(
        scores(clockwise, way.activations(q), way.activations(k)), scores(ours, q, k)
    )
    weight, hidden = torch.randn(3 * 16, 5), torch.randn(1, 20, 5)
    for heads, w in ((3, weight), (1, weight[:16])):
        before = (hidden @ w.T).unflatten(-1, (heads, 16)).transpose(1, 2)
        w = way.projection(w, heads)
        after = (hidden @ w.T).unflatten(-1, (heads, 16)).transpose(1, 2)
        torch.testing.assert_close(
            scores(clockwise, after, after), scores(ours, before, before)
        )


@pytest.mark.parametrize("rotary_dim", [8, 16])
def test_a_conversion_is_that_of_the_core(rotary_dim):
    meta, neox = (
        identify(RotaryEmbedding(16, pairing=pairing, rotary_dim=rotary_dim))
        for pairing in ("interleaved", "half")
    )
    weight, bias = torch.randn(48, 5), torch.randn(48)
    for tensor in (weight, bias):
        for a, b in ((meta, neox), (neox, meta), (meta, meta)):
            expected = convert_projection(tensor, 3, a.pairing, b.pairing, rotary_dim)
            assert torch.equal(conversion(a, b).projection(tensor, 3), expected)


def test_a_conversion_moves_pairs_to_the_end_of_the_head():
    c = {
        "head_dim": 12, "rotary_dim": 8, "pairing": "half", "sign": 1, "base": 1e4,
        "rule": "none", "start": 0, "call": "x", "layout": "bhsd", "seed": 0,
        "dtype": torch.float64,
    }  # fmt: skip
    front, back = (build(c | {"offset": offset})[0] for offset in (0, 4))
    way = conversion(*(identify(f, head_dim=12) for f in (front, back)))
    q, k = torch.randn(2, 1, 3, 20, 12)
    torch.testing.assert_close(
        scores(back, way.activations(q), way.activations(k)), scores(front, q, k)
    )


PLAIN = identify(RotaryEmbedding(16))
OTHERS = {
    "other speeds (base 10000.0; base 500000.0)": {"base": 500_000.0},
    "other speeds (base 10000.0; base 10000.0 position_interpolation)": {
        "scaling": partial(position_interpolation, factor=2)
    },
    "8 of 16": {"rotary_dim": 8},
}


@pytest.mark.parametrize("reason", OTHERS)
def test_no_conversion_says_why(reason):
    way = conversion(PLAIN, identify(RotaryEmbedding(16, **OTHERS[reason])))
    assert way.permutation is None and reason in way.reason
    with pytest.raises(ValueError, match="there is no conversion"):
        way.activations(torch.randn(3, 16))


def test_nothing_broken_is_converted_and_a_table_of_the_caller_is_trusted():
    wrong = identify(broken.minus_forgotten, head_dim=16)
    assert "target breaks norm_is_kept" in conversion(PLAIN, wrong).reason
    louder = replace(PLAIN, attention_factor=1.2)
    assert "attention_factor is 1.0" in conversion(PLAIN, louder).reason
    assert conversion(PLAIN, identify(rotate, head_dim=16)).permutation == (*range(16),)
    with pytest.raises(ValueError, match=r"heads \* head_dim = 2 \* 16 rows, got 16"):
        conversion(PLAIN, PLAIN).projection(torch.randn(16), 2)


# ------------------------------------------------------- nothing that is probed changes


class Fragile(nn.Module):
    """It changes whatever it can in every call, as other people's modules do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("angle", table(torch.arange(9000), 16))
        self.plain = torch.arange(4)
        self.calls, self.kept = 0, {}

    def forward(self, x, positions):
        self.calls += 1
        self.kept[len(positions)] = positions
        self.plain += 1
        self.weight.data.mul_(2)
        angle = self.angle[positions]
        self.angle = self.angle.to(x.dtype)
        torch.rand(1), np.random.rand(), random.random()
        return half(x, angle)


def state(module):
    tensors = {name: x.clone() for name, x in module.state_dict().items()}
    tensors |= {"plain": module.plain.clone()}
    seeds = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    return tensors, module.calls, dict(module.kept), seeds


WAYS_TO_HOLD_ONE = {
    "the module": lambda m: m,
    "its method": lambda m: m.forward,
    "a closure": lambda m: lambda x, positions: m(x, positions),
    "a default": lambda m: lambda x, positions, m=m: m(x, positions),
    "a partial": lambda m: partial(Fragile.forward, m),
    "a closure in a closure": lambda m: (
        lambda f: lambda x, positions: f(x, positions)
    )(lambda x, positions: m(x, positions)),
    "a global": lambda m: lambda x, positions: FRAGILE(x, positions),
    "an attribute that replaces forward": lambda m: replaced(m),
}
FRAGILE = Fragile()


def replaced(module):
    module.forward = lambda x, positions: Fragile.forward(module, x, positions)
    return module


@pytest.mark.parametrize("way", WAYS_TO_HOLD_ONE)
def test_nothing_that_is_probed_changes(way):
    module = FRAGILE if way == "a global" else Fragile()
    function = WAYS_TO_HOLD_ONE[way](module)
    before = state(module)
    report = identify(function, head_dim=16)
    assert report.correct and report.call == "x, positions"
    after = state(module)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert module.angle.dtype == torch.float32 and module.weight.requires_grad
    assert not module._forward_hooks and not module._forward_pre_hooks
    assert "negative positions index its table from the end" in report.notes


def test_what_carries_a_gradient_is_copied_too():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.speeds = nn.Parameter(inv_freq(16))
            self.kept = {"angle": torch.arange(9000)[:, None] * self.speeds}

        def forward(self, x, positions):
            angle = self.kept["angle"].detach()[positions]
            self.kept["angle"].data.zero_()
            self.kept["angle"] = torch.arange(9000)[:, None] * self.speeds
            return half(x, angle)

    module = Learned()
    before = module.kept["angle"]
    values = before.detach().clone()
    assert identify(module, head_dim=16).correct
    assert module.kept["angle"] is before and torch.equal(before, values)


def test_a_wrong_guess_does_not_spoil_the_right_one():
    class Recasts(
        Fragile
    ):  # vLLM's: a guess that gives integers for x spoils the table
        def forward(self, *arguments):
            positions, x = arguments
            self.angle = self.angle.to(x.dtype)
            return half(x, self.angle[positions])

    report = identify(Recasts(), head_dim=16)
    assert report.correct and report.call == "positions, x"


def test_a_dynamic_model_answers_as_before():
    model = (
        hugging_face("llama")
        .LlamaModel(
            small_llama(
                max_position_embeddings=64,
                rope_parameters={
                    "rope_type": "dynamic",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                },
            )
        )
        .eval()
    )
    tokens = torch.randint(0, 50, (1, 100))
    with torch.no_grad():
        before = model(tokens).last_hidden_state
        assert identify(model).fault == "length_sets_speed"
        assert torch.equal(model(tokens).last_hidden_state, before)


# -------------------------------------------------------- what a guess may not accuse


def flat_tokens(positions, query, key):
    """vLLM's: any axes before the last are tokens and heads."""

    def turn(x):
        heads = x.reshape(len(positions), -1, 64)
        return half(heads, table(positions, 64)[:, None]).reshape(x.shape)

    return turn(query), turn(key)


def along_axis_1(q, k, position_ids=None):
    m = torch.arange(q.shape[1])[None] if position_ids is None else position_ids
    return tuple(half(x, broken.rows_angle(m, 64).transpose(1, -2)) for x in (q, k))


def test_a_correct_function_is_not_accused_on_a_guess():
    report = identify(flat_tokens)
    assert report.correct and report.call == "positions, q, k"
    assert "say which is meant" in report.notes[-1]
    tokens = identify(lambda x: half(x, table(torch.arange(len(x)), 64)[:, None]))
    assert tokens.correct and tokens.layout == "shd"


def test_a_table_is_not_taken_for_positions():
    def rotation(a, b):  # of x and one angle a pair; it takes positions as (seq, 1)
        angle = b if b.ndim in (2, a.ndim) else b.unsqueeze(1)
        (first, second), cos, sin = a.chunk(2, dim=-1), angle.cos(), angle.sin()
        turned = first * cos - second * sin, second * cos + first * sin
        return torch.cat(turned, dim=-1).float()

    assert identify(rotation).call == "x, freqs"


@pytest.mark.parametrize("tilt", [0, 1e-9, -1e-9])
def test_one_speed_for_all_hands_is_base_1_whichever_way_rounding_tilts_it(tilt):
    rule = recognize(torch.linspace(1, 1 + tilt, 32).double(), 64, 64, 1e-8)
    assert rule.fault is None and rule.base == pytest.approx(1)


def test_what_was_guessed_is_said_beside_an_accusation():
    text = str(identify(broken.minus_forgotten))
    assert 'guessed         call="x, positions" and layout="bhsd"' in text
    said = identify(broken.minus_forgotten, call="x, positions", layout="bhsd")
    assert said.guessed == () and "guessed" not in str(said)


def test_whatever_a_function_raises_becomes_a_sentence():
    class Rude(Exception):
        def __str__(self):
            return "no"

    def rude(x, positions):
        raise Rude

    with pytest.raises(CannotProbe, match="fail with Rude: no"):
        identify(rude)


# --------------------------------------------------------------------- whole models


def test_every_layer_of_a_model_is_asked():
    config = small(
        "Gemma3Text", num_hidden_layers=7, head_dim=32, num_key_value_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    report = identify(hugging_face("gemma3").Gemma3TextModel(config))
    assert report.correct and report.base == 10_000
    (other,) = report.others
    assert report.layers == ("0", "1", "2", "3", "4", "6") and other.layers == ("5",)
    assert other.base == 1_000_000
    lines = str(report).splitlines()
    assert "2 kinds of layers, all correct" in lines[0]
    assert "layers 0-4, 6: half, 32 of 32, base 10000" in lines[1]
    assert Report(**json.loads(report.json())).others[0]["base"] == 1_000_000


def test_layers_without_rotation_are_a_kind():
    config = small(
        "SmolLM3", num_hidden_layers=4, num_key_value_heads=2, intermediate_size=64,
        pad_token_id=0,
    )  # fmt: skip
    report = identify(hugging_face("smollm3").SmolLM3Model(config))
    assert report.correct and report.layers == ("0", "1", "2")
    assert not report.others[0].rotates and "layers 3: no rotation" in str(report)


@pytest.mark.parametrize("rank", [None, 16])
def test_latent_attention(rank):
    config = small(
        "DeepseekV3", num_hidden_layers=1, num_key_value_heads=4, q_lora_rank=rank,
        kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
        head_dim=8, first_k_dense_replace=1, intermediate_size=64,
    )  # fmt: skip
    report = identify(hugging_face("deepseek_v3").DeepseekV3Model(config))
    assert report.correct and report.pairing == "interleaved"
    assert facts(report, "rotary_dim", "rotary_offset", "head_dim") == (8, 16, 24)
    assert report.output_order[:18] == (*range(16), 16, 18)


def test_gates_beside_the_queries():
    config = small(
        "Qwen3Next", num_hidden_layers=4, num_key_value_heads=2, head_dim=32,
        num_experts=2, num_experts_per_tok=1, intermediate_size=64,
    )  # fmt: skip
    layer = hugging_face("qwen3_next").Qwen3NextAttention(config, 3)
    report = identify(layer)
    assert report.correct and facts(report, "pairing", "rotary_dim") == ("half", 8)


@pytest.mark.parametrize("rule", [llama3, yarn, longrope])
def test_a_cast_is_seen_under_every_rule(rule):
    lists = {
        "short_factors": [1.0] * 32,
        "long_factors": torch.rand(32).add(1).tolist(),
    }
    given = {"factor": 8} if rule is not longrope else lists | {"length": 9999}
    speeds, _ = rule(64, 10_000.0, trained_length=4096, **given)

    def cast(x, positions):
        return half(x, positions.double()[:, None] * speeds.bfloat16().double()).float()

    report = identify(cast)
    assert report.fault == "frequencies_cast" and "bfloat16" in report.cause


def test_a_module_beside_a_function_is_tried_as_it_is(monkeypatch):
    def apply_rotary_pos_emb(x, cos, sin):
        return x * cos + broken.rotate_half(x) * sin

    class Esm(nn.Module):
        def forward(self, q, k):
            return counted(q), counted(k)

    monkeypatch.setitem(globals(), "apply_rotary_pos_emb", apply_rotary_pos_emb)
    report = identify(Esm())
    assert report.correct and report.call == "q, k"


# ------------------------------------------------------------- numbers that betray it


def with_speeds(speeds, factor=1.0):
    return lambda x, positions: half(x, positions.double()[:, None] * speeds) * factor


PAIR = torch.arange(0, 64, 2).double() / 64
YARN = yarn(64, 10_000.0, factor=16, trained_length=4096)[0]
BETRAYED = {
    "base 1 gives all hands nearly one speed: is there //": 1e4 ** -(PAIR // 1),
    "are base and dim swapped?": 64 ** -(PAIR * 64 / 1e4),
    "592.3641 is 2 ** ln(10000): exp2": 2 ** (-PAIR * math.log(1e4)),
    "square of 10000": 1e4 ** (-2 * PAIR),
    "none that we know of": 7345.6**-PAIR,
    "No hand is slower than base 10000": 1e4**-PAIR * torch.linspace(1, 8, 32),
}


@pytest.mark.parametrize("words", BETRAYED)
def test_a_number_gets_a_note(words):
    report = identify(with_speeds(BETRAYED[words]))
    assert report.correct and words in report.notes[0]


def test_lone_pairs_and_factors_get_a_note():
    few = inverse_frequencies(64).clone()
    few[-1] = 0
    assert "one pair alone is not turned" in identify(with_speeds(few)).notes[0]
    twice = 0.1 * (0.1 * math.log(16) + 1) * math.log(16) + 1
    assert "own logarithm" in identify(with_speeds(YARN, twice)).notes[0]
    few = inverse_frequencies(64).clone()
    few[5] *= 2
    assert "all hands but [5] turn as base 10000" in identify(with_speeds(few)).notes[0]
    pairs = inverse_frequencies(32).repeat_interleave(2)
    assert "alike 2 by 2" in identify(with_speeds(pairs)).notes[0]
    heads = inverse_frequencies(16).repeat(4)
    assert "begin again every 8 pairs" in identify(with_speeds(heads)).notes[0]
    ones = identify(with_speeds(inverse_frequencies(64), math.sqrt(1 + 5 / 12)))
    assert ones.correct and ones.scaling == "longrope"
    assert "cut off" in identify(lambda x, positions: (
        half(x, table(positions.long(), x.shape[-1])))).notes[0]  # fmt: skip


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["rope_teach:RotaryEmbedding"], 0, "a correct RoPE"),
        (["rope_teach.rotary:RotaryEmbedding", "--head-dim", "8"], 0, "8 of 8"),
        (["tests.broken:chunked"], 1, "restart every 512"),
        (["tests.broken:rotated_across_heads", "--layout", "bhsd"], 1, "across heads"),
        (["tests.broken:half", "--call", "x, freqs"], 0, "half: (0, 32)"),
        (["tests.broken:bfloat16_positions", "--dtype", "float64"], 1, "in bfloat16"),
        (["rope_teach"], 2, "the folder has no config.json"),
        (["rope_teach.rotary"], 2, "is rope_teach:rotary meant?"),
        (["nowhere"], 2, "expected package.module:function, a config.json or"),
        (["tests.broken:chunked", "--head-dim", "-3"], 2, "must be a positive number"),
        (["missing.json"], 2, "missing.json cannot be read"),
        (["a:b", "c:d", "e:f"], 2, "No module named 'a'"),
        (["no_such_module:f"], 2, "No module named 'no_such_module'"),
        (["rope_teach.identify.:f"], 2, "cannot identify rope_teach.identify.:f"),
        (["rope_teach.rotary:Missing"], 2, "has no attribute 'Missing'"),
        (["rope_teach.rotary:math"], 2, "not callable"),
        (["rope_teach.laws:LawBroken"], 2, "is not callable"),
        (["collections:OrderedDict"], 2, "the class cannot be made"),
        (["rope_teach:interleaved_to_half"], 2, "does not rotate"),
        (["rope_teach:wavelengths", "--call", "x, positions"], 2, "no call worked"),
    ],
)
def test_the_command_says_it_and_exits_with_it(arguments, status, words, capsys):
    assert main(["identify", *arguments]) == status
    out, err = capsys.readouterr()
    assert words in (err if status == 2 else out)
    assert not (out if status == 2 else err)


def test_a_module_that_exits_when_imported_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "a_script_that_exits.py").write_text("raise SystemExit(1)")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["identify", "a_script_that_exits:f"]) == 2
    assert "SystemExit: 1" in capsys.readouterr().err


LLAMA = {"model_type": "llama", "head_dim": 32, "rope_theta": 5e5, "hidden_size": 128}


def written(folder, **more):
    (folder / "config.json").write_text(json.dumps(LLAMA | more))
    return folder


def test_a_configuration_and_a_checkpoint(tmp_path, capsys):
    config = str(written(tmp_path) / "config.json")
    assert main(["identify", config]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert "llama" in first and "a correct RoPE" in second
    names = {f"model.layers.{i}.self_attn.{p}.weight": "a.safetensors"
             for i in (0, 1) for p in ("q_proj", "k_proj")}  # fmt: skip
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert main(["identify", str(tmp_path)]) == 0
    assert "4 tensors: 2 q_proj, 2 k_proj" in capsys.readouterr().out
    (tmp_path / "config.json").write_text("[]")
    assert main(["identify", config]) == 2
    assert "must hold an object" in capsys.readouterr().err


def test_the_text_part_of_a_configuration_and_one_type_of_its_layers(tmp_path, capsys):
    text = {"model_type": "gemma3_text", "hidden_size": 2560}  # as Gemma 3 4B's file
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    assert main(["identify", str(path)]) == 2
    assert "layer_type must be one of" in capsys.readouterr().err
    assert main(["identify", str(path), "--layer-type", "full_attention"]) == 0
    out = capsys.readouterr().out
    assert "gemma3_text, the text_config" in out and "256 of 256" in out
    assert "base            1000000" in out


def test_a_class_is_made_with_its_configuration(tmp_path, capsys):
    peer("transformers")
    config = str(written(tmp_path, num_attention_heads=4) / "config.json")
    module = "transformers.models.llama.modeling_llama"
    for name in ("LlamaRotaryEmbedding", "LlamaAttention"):
        assert main(["identify", f"{module}:{name}", "--config", config]) == 0
        assert "32 of 32" in capsys.readouterr().out


@pytest.mark.parametrize(
    "source, target, status, words",
    [
        ("tests.broken:half", "tests.broken:half", 0, "weights fit as they are"),
        ("tests.broken:interleaved", "tests.broken:half", 0, "rows of the q and k"),
        ("tests.broken:half", "tests.broken:minus_forgotten", 1, "target breaks norm"),
    ],
)
def test_from_one_to_the_other(source, target, status, words, capsys):
    call = [] if status else ["--call", "x, freqs"]
    assert main(["identify", source, target, *call]) == status
    assert words in capsys.readouterr().out.splitlines()[0]


def test_the_command_prints_data(capsys):
    assert main(["identify", "tests.broken:degrees", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["law"] == "frequencies_of_a_rule" and data["pairing"] == "half"
    assert data["inv_freq"][0] == pytest.approx(math.pi / 180, rel=1e-5)
