"""Converted weights say the same by the other pairing, or are refused."""

import copy
import importlib

import pytest
import torch

from rope_teach import convert_projection, rotate
from rope_teach.dialects import gguf
from rope_teach.dialects.hugging_face import convert_checkpoint, swap
from rope_teach.frequencies import inverse_frequencies
from rope_teach.tables import cos_sin
from tests.dialects.peers import logits, tiny

# ------------------------------------------------------ a whole model says the same

GATED = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8,
         "linear_num_value_heads": 4, "linear_num_key_heads": 2,
         "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 2,
         "num_experts_per_tok": 1, "moe_intermediate_size": 8,
         "shared_expert_intermediate_size": 8}  # fmt: skip
HALVED = {"partial_rotary_factor": 0.5}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
CONVERTED = {
    "Llama": ({"attention_bias": True}, {}),  # grouped keys: 4 heads and 2
    "GPTJ": ({"rotary_dim": 4}, {"rotary_dim": 4}),
    "Glm": ({"head_dim": 8, "partial_rotary_factor": 0.5}, {"rotary_dim": 4}),
    "Qwen3": ({"head_dim": 8}, {}),
    "Cohere": ({"use_qk_norm": True}, {}),
    "GPTNeoX": ({"rotary_pct": 0.5}, {"rotary_dim": 4}),  # q, k, v of each head
    "Falcon": ({"multi_query": True}, {}),  # all of q, one k, one v
    "Phi3": ({}, {}),  # q, k, v of all heads
    "Persimmon": ({"qk_layernorm": True}, {"rotary_dim": 4}),
    "StableLm": (
        {**HALVED, "qk_layernorm": True},
        {"rotary_dim": 4},
    ),  # a norm for each head
    "Olmo2": ({}, {}),  # a norm over all heads
    "HunYuanDenseV1": ({"head_dim": 8}, {}),  # query_layernorm
    "Qwen3Next": ({**HALVED, **GATED}, {"rotary_dim": 4}),  # query and gate in one
    "OlmoHybrid": ({**GATED, "linear_num_key_heads": 4}, {}),  # q, k that do not turn
    "SmolLM3": ({"no_rope_layers": [1, 0]}, {}),
    "GptOss": ({"head_dim": 8, **EXPERTS}, {}),  # sinks
}
INTERLEAVED = ("GPTJ", "Glm", "Cohere")


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_checkpoint_says_the_same_by_the_other_pairing(name):
    fields, partial_rotary = CONVERTED[name]
    model = tiny(name, **fields)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start at 1 and 0
            parameter.add_(0.2 * torch.randn_like(parameter))
    expected, state = logits(model), copy.deepcopy(model.state_dict())
    own = "interleaved" if name in INTERLEAVED else "half"
    other = "half" if own == "interleaved" else "interleaved"
    convert = {"head_dim": 8, **partial_rotary}
    converted = convert_checkpoint(state, source=own, target=other, **convert)
    assert list(converted) == list(state)

    swap(model, pairing=other)
    assert not torch.allclose(logits(model), expected, atol=1e-3)
    model.load_state_dict(converted)
    assert torch.allclose(logits(model), expected, atol=2e-5)

    back = convert_checkpoint(converted, source=other, target=own, **convert)
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_metas_names_are_known():
    state = {
        f"layers.0.attention.{name}.weight": torch.randn(rows, 32)
        for name, rows in {"wq": 32, "wk": 16, "wv": 16, "wo": 32}.items()
    }
    got = convert_checkpoint(state, head_dim=8, source="interleaved", target="half")
    for (key, old), heads in zip(state.items(), (4, 2, None, None), strict=True):
        if heads is None:
            assert got[key] is old
        else:  # the script that made Hugging Face's checkpoints from Meta's
            permuted = old.view(heads, 4, 2, 32).transpose(1, 2).reshape(old.shape)
            assert torch.equal(got[key], permuted)


LAYERS = ["sliding_attention", "full_attention"]
THETA = {"rope_type": "default", "rope_theta": 1000.0}
SHARES = {"sliding_attention": THETA,
          "full_attention": {**THETA, "partial_rotary_factor": 0.5}}  # fmt: skip
BY_CONFIG = {  # rotated features, or widths of heads, that differ between layers
    "Laguna": {"layer_types": LAYERS, "rope_parameters": SHARES, "head_dim": 8,
               "sliding_window": 4, "mlp_layer_types": ["dense"] * 2},
    "Qwen3Next": {**HALVED, **GATED},
    "SmolLM3": {"no_rope_layers": [1, 0]},
    "Gemma4": {"head_dim": 8, "global_head_dim": 16, "layer_types": LAYERS,
               "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 50,
               "num_kv_shared_layers": 0, "sliding_window": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", BY_CONFIG)
def test_a_configuration_tells_what_each_layer_has(name):
    fields = dict(BY_CONFIG[name])
    if name == "Laguna":
        fields["num_attention_heads_per_layer"] = None
    model = tiny(name, **fields)
    expected = logits(model)
    config, state = model.config, copy.deepcopy(model.state_dict())
    model.load_state_dict(
        convert_checkpoint(state, config=config, target="interleaved")
    )
    swap(model, pairing="interleaved")
    assert torch.allclose(logits(model), expected, atol=2e-5)


# --------------------------------------------------------- one layer, tensor by tensor


def rows(count, width=16):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def layer(**tensors):
    return {f"model.layers.0.self_attn.{name}": x for name, x in tensors.items()}


def converted(state, **more):
    options = {"head_dim": 4, "source": "half", "target": "interleaved", **more}
    return convert_checkpoint(state, **options)


def word(name):
    return f"model.layers.0.self_attn.{name}"


def to_interleaved(x, heads):
    return convert_projection(x, heads, "half", "interleaved")


def test_a_fused_tensor_is_taken_apart_as_its_name_says():
    q, k, v, o = rows(16), rows(8), rows(8), rows(16)
    flat = torch.cat([q, k, v])
    expected = torch.cat([to_interleaved(q, 4), to_interleaved(k, 2), v])
    state = {word("qkv_proj.weight"): flat, word("o_proj.weight"): o}
    assert torch.equal(converted(state)[word("qkv_proj.weight")], expected)

    state = {word("wqkv.weight"): flat, word("wo.weight"): o}  # InternLM 2's lies so:
    groups = zip(q.view(2, 8, -1), k.view(2, 4, -1), v.view(2, 4, -1), strict=True)
    state[word("wqkv.weight")] = torch.cat([torch.cat(group) for group in groups])
    got = converted(state, fused="grouped")[word("wqkv.weight")].view(2, 16, -1)
    q, k = to_interleaved(q, 4), to_interleaved(k, 2)
    assert torch.equal(got[:, :8].flatten(0, 1), q)
    assert torch.equal(got[:, 8:12].flatten(0, 1), k)
    assert torch.equal(got[:, 12:].flatten(0, 1), v)


def test_the_gate_of_a_doubled_query_stays_as_it_is():
    both, k = rows(32).view(4, 2, 4, 16), rows(8)
    state = layer(**{"q_proj.weight": both.flatten(0, 2), "k_proj.weight": k,
                     "v_proj.weight": rows(8), "o_proj.weight": rows(16)})  # fmt: skip
    got = converted(state)[word("q_proj.weight")].view(4, 2, 4, 16)
    assert torch.equal(got[:, 1], both[:, 1])
    query = to_interleaved(both[:, 0].flatten(0, 1), 4)
    assert torch.equal(got[:, 0].flatten(0, 1), query)
    back = converted(converted(state), source="interleaved", target="half")
    assert torch.equal(back[word("q_proj.weight")], state[word("q_proj.weight")])


@pytest.mark.parametrize("linear", ["A_log", "dt_bias", "slope_rate"])
def test_linear_attention_is_left_alone(linear):
    turning = {"q_proj.weight": rows(16), "k_proj.weight": rows(8)}
    state = layer(**turning)
    still = {f"model.layers.1.linear_attn.{n}": x for n, x in turning.items()}
    still[f"model.layers.1.linear_attn.{linear}"] = torch.ones(4)
    got = converted(state | still)
    assert all(got[name] is still[name] for name in still)
    assert not torch.equal(got[word("q_proj.weight")], state[word("q_proj.weight")])


def test_values_may_be_narrower_than_keys():
    state = layer(**{"q_proj.weight": rows(16), "k_proj.weight": rows(8),
                     "v_proj.weight": rows(4),
                     "o_proj.weight": rows(16, 8)})  # fmt: skip
    got = converted(state)
    assert torch.equal(
        got[word("q_proj.weight")], to_interleaved(state[word("q_proj.weight")], 4)
    )


# ----------------------------------------------------------------- llama.cpp's order

LLAMA = {"blk.0.attn_q.weight": rows(32), "blk.0.attn_k.weight": rows(16),
         "blk.0.attn_v.weight": rows(16), "blk.0.attn_output.weight": rows(16, 32),
         "blk.0.attn_norm.weight": torch.ones(16), "blk.0.ffn_up.weight": rows(8),
         "blk.0.attn_q.bias": rows(32)[:, 0], "blk.0.attn_k.bias": rows(16)[:, 0],
         "rope_freqs.weight": torch.ones(2), "token_embd.weight": rows(9)}  # fmt: skip


def test_a_file_of_llama_cpp_comes_back_to_hugging_faces_order():
    options = {"head_dim": 4, "source": gguf.pairing("llama"), "target": "half"}
    got = convert_checkpoint(LLAMA, **options)
    for name, tensor in LLAMA.items():
        heads = {"q": 8, "k": 4}.get(name.removeprefix("blk.0.attn_")[0])
        if heads is None or "norm" in name or "output" in name:
            assert got[name] is tensor
        else:
            assert torch.equal(gguf.permute(got[name], heads, heads), tensor)


def test_transformers_reads_the_same_order_back():
    module = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    back = module.LlamaTensorProcessor()._reverse_permute_weights
    q, k = LLAMA["blk.0.attn_q.weight"], LLAMA["blk.0.attn_k.weight"]
    for x, heads, theirs in (
        (q, 8, back(q.numpy(), 8, 8)),
        (k, 4, back(k.numpy(), 8, 4)),
    ):
        ours = convert_projection(x, heads, "interleaved", "half")
        assert torch.equal(ours, torch.from_numpy(theirs))


def scores(q, k, heads, kv_heads, pairing):
    """Of the same tokens, by weights ``(heads * 16, 16)`` in this order."""
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    tables = cos_sin(torch.arange(6), inverse_frequencies(16))
    q, k = ((x @ w.T).unflatten(-1, (n, 16)).transpose(0, 1)[None]
            for w, n in ((q, heads), (k, kv_heads)))  # fmt: skip
    q, k = rotate(q, *tables, pairing), rotate(k, *tables, pairing)
    return q @ k.repeat_interleave(heads // kv_heads, dim=1).mT


def reshaped(weights, heads):
    """What a script does to however many heads it is told."""
    return weights.view(heads, 2, -1, 16).transpose(1, 2).reshape(weights.shape)


PERMUTED = {  # the key projection, and whether scores are then the same
    "with its own heads": (lambda k: gguf.permute(k, 8, 2), True),
    "with the query's heads": (lambda k: reshaped(k, 8), False),  # transformers 31788
    "with the quotient": (lambda k: reshaped(k, 8 // 2), False),  # llama.cpp 3364
    "not at all": (lambda k: k, False),
}


@pytest.mark.parametrize("name", PERMUTED)
def test_keys_are_permuted_by_their_own_number_of_heads(name):
    q, k = rows(128), rows(32)
    expected = scores(q, k, 8, 2, "half")
    permute, right = PERMUTED[name]
    got = scores(gguf.permute(q, 8, None), permute(k), 8, 2, "interleaved")
    assert torch.allclose(got, expected, atol=1e-3) == right


def test_architectures_have_the_order_that_llama_cpp_gives_them(refuses):
    assert not gguf.INTERLEAVED & gguf.HALF
    for name in ("llama", "granite", "deepseek2", "command-r", "smollm3"):
        assert gguf.pairing(name) == "interleaved"
    for name in ("qwen2", "gemma3", "phi3", "falcon", "stablelm", "gpt-oss"):
        assert gguf.pairing(name) == "half"
    refuses(lambda: gguf.pairing("gpt2"), "ValueError: architecture 'gpt2' is not one")
    refuses(
        lambda: gguf.permute(rows(32), 5, None),
        "ValueError: do not divide into 5 heads",
    )


# ---------------------------------------------------------------------- what is refused

WHOLE = {"q_proj.weight": rows(16), "k_proj.weight": rows(8), "v_proj.weight": rows(8),
         "o_proj.weight": rows(16)}  # fmt: skip


def beside(**more):
    return layer(**WHOLE, **{n.replace("__", "."): x for n, x in more.items()})


REFUSED = {
    "ValueError: its 1 names have neither": {"lm_head.weight": rows(9)},
    "ValueError: self_attn.* has q alone ... nothing without the other": layer(
        **{"q_proj.weight": rows(16)}
    ),
    "ValueError: kv_a_proj_with_mqa.weight cannot be ... a latent": beside(
        kv_a_proj_with_mqa__weight=rows(4)
    ),
    "ValueError: kv_proj.weight cannot be ... fused with something": beside(
        kv_proj__weight=rows(8)
    ),
    "ValueError: q_proj.qweight (torch.int32) cannot be reordered": layer(
        **{"q_proj.qweight": torch.ones(16, 2, dtype=torch.int32)}
    ),
    "ValueError: q_proj.weight (torch.uint8) cannot be reordered ... quantized": layer(
        **WHOLE | {"q_proj.weight": torch.ones(16, 2, dtype=torch.uint8)}
    ),
    "ValueError: q_proj.weight_scale (torch.float32) cannot be": beside(
        q_proj__weight_scale=torch.ones(16)
    ),
    "ValueError: k_proj.lora_B.weight ... merge it": beside(
        k_proj__lora_B__weight=rows(8)
    ),
    "ValueError: (18, 16) does not divide into heads of head_dim=4": layer(
        **WHOLE | {"q_proj.weight": rows(18)}
    ),
    "ValueError: q_proj.weight has 24 rows, which fit no number": layer(
        **WHOLE | {"q_proj.weight": rows(24)}
    ),
    "ValueError: feature_scale of shape (4,) stands beside q and k": beside(
        feature_scale=torch.ones(4)
    ),
    "ValueError: q_conv1d.weight of shape (16, 1, 4) stands beside": beside(
        q_conv1d__weight=torch.ones(16, 1, 4)
    ),
    "ValueError: q_norm.weight has 8 features, neither head_dim=4": beside(
        q_norm__weight=torch.ones(8)
    ),
    "ValueError: vision_tower.layers.0.attn.* is not text": {
        **layer(**WHOLE), "vision_tower.layers.0.attn.q_proj.weight": rows(16),
        "vision_tower.layers.0.attn.k_proj.weight": rows(16),
    },
    "ValueError: query_key_value.weight does not tell how its rows lie": layer(
        **{"query_key_value.weight": rows(32), "dense.weight": rows(16)}
    ),
    "ValueError: attn.qkv_proj.weight does not tell": {  # CodeGen's
        "h.0.attn.qkv_proj.weight": rows(48), "h.0.attn.out_proj.weight": rows(16),
    },
    "ValueError: cannot be taken apart without the output": layer(
        **{"qkv_proj.weight": rows(32)}
    ),
    "ValueError: qkv_proj.weight has 28 rows, which are not 4 heads": layer(
        **{"qkv_proj.weight": rows(28), "o_proj.weight": rows(16)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_reordered_is_named(message, refuses):
    refuses(lambda: converted(REFUSED[message]), message)


def test_bad_arguments_are_refused(refuses):
    for name, value in {"source": "meta", "target": "gguf", "fused": "both"}.items():
        refuses(
            lambda n=name, v=value: converted(layer(**WHOLE), **{n: v}),
            f"ValueError: {name} must be ... got {value!r}",
        )
    refuses(lambda: converted(layer(**WHOLE), head_dim=0), "ValueError: head_dim must")
    refuses(
        lambda: convert_checkpoint(layer(**WHOLE), head_dim=4, target="half"),
        "ValueError: give head_dim and source, or config; got {'head_dim': 4",
    )
    refuses(
        lambda: converted(layer(**WHOLE), config={}),
        "ValueError: config settles these, so leave them out",
    )


def test_what_stands_beside_and_cannot_matter_passes():
    more = {"rotary_emb.inv_freq": torch.ones(2), "sinks": torch.ones(4),
            "g_proj.weight": rows(16), "masked_bias": torch.ones(()),
            "temperature": torch.ones(3)}  # fmt: skip
    assert converted(layer(**WHOLE, **more)).keys() == layer(**WHOLE, **more).keys()
