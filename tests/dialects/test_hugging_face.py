"""transformers itself is the oracle: its functions, tables, models and checkpoints."""

import copy
import importlib
import importlib.util
import io
import json
import warnings

import pytest
import torch

from rope_teach import RotaryEmbedding, cos_sin, inverse_frequencies, rotate
from rope_teach.dialects.hugging_face import (
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_gptj,
    convert_checkpoint,
    rotary_embedding,
    swap,
)
from rope_teach.dialects.hugging_face.configuration import FLAGGED, INTERLEAVED
from rope_teach.pairing import full_table

if importlib.util.find_spec("transformers") is None:
    pytest.skip("the peers extra has transformers", allow_module_level=True)


def modeling(name):
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def build(name, **fields):
    """A configuration or a model of transformers, without its warnings."""
    transformers = importlib.import_module("transformers")  # 2 s, so not when collected
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, name)(**fields)


# -------------------------------------------------------------------- the rotation

SEQ, DIM = 40, 16
COS, SIN = cos_sin(torch.arange(SEQ).expand(2, -1), inverse_frequencies(DIM))


def sample(unsqueeze_dim, dtype=torch.float32):
    torch.manual_seed(0)
    shapes = [(2, heads, SEQ, DIM) for heads in (4, 2)]
    q, k = (torch.randn(shape).to(dtype) for shape in shapes)
    return (q, k) if unsqueeze_dim == 1 else (q.transpose(1, 2), k.transpose(1, 2))


@pytest.mark.parametrize("unsqueeze_dim", [1, 2])
@pytest.mark.parametrize(
    ("family", "pairing"), [("llama", "half"), ("cohere", "interleaved")]
)
def test_rotates_as_theirs(family, pairing, unsqueeze_dim):
    q, k = sample(unsqueeze_dim)
    tables = [full_table(table, pairing) for table in (COS, SIN)]
    theirs = modeling(family).apply_rotary_pos_emb(
        q, k, *tables, unsqueeze_dim=unsqueeze_dim
    )
    ours = apply_rotary_pos_emb(q, k, *tables, unsqueeze_dim, pairing=pairing)
    for got, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(got, expected, atol=1e-6)


def test_rotates_as_gptj():
    q, _ = sample(2)
    theirs = modeling("gptj").apply_rotary_pos_emb(q, SIN, COS)
    assert torch.allclose(apply_rotary_pos_emb_gptj(q, SIN, COS), theirs, atol=1e-6)


def test_bfloat16_is_rounded_once():
    q, k = sample(1, torch.bfloat16)
    tables = [full_table(table, "half") for table in (COS, SIN)]
    exact = rotate(q.double(), COS.double(), SIN.double(), "half")
    rounding = 2**-8 * exact.abs() + 1e-6

    def errors(got):
        assert got.dtype == torch.bfloat16
        return ((got.double() - exact).abs() / rounding).max()

    narrow = [table.bfloat16() for table in tables]  # as a model in bfloat16 has them
    theirs, _ = modeling("llama").apply_rotary_pos_emb(q, k, *narrow)
    assert errors(apply_rotary_pos_emb(q, k, *tables)[0]) <= 1 < 2 < errors(theirs)


# ------------------------------------------------------------- reading a configuration

SIZES = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # so that attention depends on the rotation
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LISTS = {
    "short_factor": [1.0, 1.1, 1.5, 2.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
}
OLD = {"original_max_position_embeddings": 16}
TYPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, **OLD},
    "yarn, untruncated": {"factor": 4.0, "truncate": False, **OLD},
    "yarn, betas": {"factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0, **OLD},
    "yarn, attention": {"factor": 4.0, "attention_factor": 1.5, **OLD},
    "yarn, DeepSeek": {"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7, **OLD},
    "longrope": {"factor": 4.0, **LISTS, **OLD},
    "longrope, no factor": {**LISTS, **OLD},
    "longrope, attention": {"attention_factor": 1.25, **LISTS, **OLD},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **OLD},
    "proportional": {"partial_rotary_factor": 0.5},
    "proportional, slowed": {"partial_rotary_factor": 0.5, "factor": 2.0},
}
LENGTH = 200  # past the trained length of every type


def their_rule(config, layer_type=None):
    kind = config.rope_parameters
    kind = (kind[layer_type] if layer_type else kind)["rope_type"]
    if kind == "default":
        make = modeling("llama").LlamaRotaryEmbedding.compute_default_rope_parameters
        return make(config)
    rules = importlib.import_module("transformers.modeling_rope_utils")
    if kind not in rules.ROPE_INIT_FUNCTIONS:
        pytest.skip(f"this transformers has no {kind!r}")
    more = {"layer_type": layer_type} if layer_type else {}
    return rules.ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=LENGTH, **more)


def assert_same(rope, inv_freq, factor):
    assert torch.allclose(rope.inv_freq, inv_freq.double(), rtol=1e-6, atol=0)
    assert rope.attention_factor == pytest.approx(factor)


@pytest.mark.parametrize("name", TYPES)
def test_reads_every_type(name):
    kind = name.partition(",")[0]
    parameters = {"rope_type": kind, "rope_theta": 1000.0, **TYPES[name]}
    config = build("LlamaConfig", **SIZES, rope_parameters=parameters)
    rope = rotary_embedding(config, length=LENGTH)
    assert (rope.head_dim, rope.rotary_dim, rope.pairing) == (8, 8, "half")
    assert_same(rope, *their_rule(config))

    older = {**parameters, "type": kind}  # as configurations were until 2025
    del older["rope_theta"], older["rope_type"]
    old = {**SIZES, "rope_theta": 1000.0, "rope_scaling": older}
    again = rotary_embedding(json.loads(json.dumps(old)), length=LENGTH)
    assert torch.equal(again.inv_freq, rope.inv_freq)
    assert again.attention_factor == rope.attention_factor


def test_reads_partial_rotary_and_the_families_own_words():
    half = {**SIZES, "partial_rotary_factor": 0.5}
    glm = rotary_embedding(build("GlmConfig", head_dim=8, **half))
    assert (glm.rotary_dim, glm.pairing) == (4, "interleaved")
    neox = {"rotary_pct": 0.25, "rotary_emb_base": 500, "model_type": "gpt_neox"}
    from_file = rotary_embedding({**SIZES, **neox})
    loaded = rotary_embedding(build("GPTNeoXConfig", **SIZES, **neox))
    for rope in (from_file, loaded):
        assert (rope.rotary_dim, rope.base, rope.pairing) == (2, 500.0, "half")
    gptj = build("GPTJConfig", n_embd=32, n_head=4, rotary_dim=4)
    for config in (gptj, json.loads(gptj.to_json_string())):
        rope = rotary_embedding(config)
        assert (rope.head_dim, rope.rotary_dim) == (8, 4)
        assert (rope.base, rope.pairing) == (10_000.0, "interleaved")


def test_reads_each_layer_types_own():
    config = build("Gemma3TextConfig", **{**SIZES, "head_dim": 8})
    if "sliding_attention" not in config.rope_parameters:
        pytest.skip("this transformers has one dictionary for all layers")
    near = rotary_embedding(config, "sliding_attention")
    far = rotary_embedding(config, "full_attention")
    assert (near.base, far.base) == (10_000.0, 1_000_000.0)
    with pytest.raises(ValueError, match=r"one of \['full_attention', 'sliding"):
        rotary_embedding(config)


def test_reads_heads_that_differ_between_layer_types():
    more = {"head_dim": 8, "global_head_dim": 16, "num_hidden_layers": 6}
    config = build("Gemma4TextConfig", **{**SIZES, **more})
    rope = rotary_embedding(config, "full_attention")
    assert rope.head_dim == 16 and (rope.inv_freq == 0).sum() == 6
    assert rotary_embedding(config, "sliding_attention").head_dim == 8


@pytest.mark.parametrize("dealt", [False, True])
def test_reads_multimodal_sections(dealt):
    family = "Qwen3VL" if dealt else "Qwen2VL"
    sections = {"mrope_section": [4, 2, 2], "mrope_interleaved": dealt}
    parameters = {"rope_type": "default", "rope_theta": 1000.0, **sections}
    sizes = {**SIZES, "head_dim": 16, "hidden_size": 64}
    config = build(f"{family}TextConfig", **sizes, rope_parameters=parameters)
    positions = torch.stack([torch.arange(5), torch.arange(5) + 3, torch.arange(5) * 2])
    name = "qwen3_vl" if dealt else "qwen2_vl"
    kind = "Qwen3VLTextRotaryEmbedding" if dealt else "Qwen2VLRotaryEmbedding"
    cos, _ = getattr(modeling(name), kind)(config)(torch.ones(1), positions[:, None])
    ours, _ = cos_sin(positions.T, rotary_embedding(config).inv_freq)
    assert torch.allclose(cos[0, :, :8], ours, atol=1e-6)


def test_yarns_truncate_is_heeded_where_transformers_overlooks_it():
    def yarn(truncate):
        rule = {"rope_type": "yarn", "rope_theta": 1000.0, **TYPES["yarn"]}
        return {**rule, "truncate": truncate}

    def config(truncate):
        nested = {"full_attention": yarn(truncate)}
        return build(
            "Gemma3TextConfig",
            **{**SIZES, "head_dim": 8, "num_hidden_layers": 1},
            layer_types=["full_attention"],
            rope_parameters=nested,
        )

    rules = importlib.import_module("transformers.modeling_rope_utils")
    if not hasattr(rules, "RotaryEmbeddingConfigMixin"):
        pytest.skip("this transformers has one dictionary for all layers")
    asked, theirs = config(False), their_rule(config(True), "full_attention")
    assert torch.equal(their_rule(asked, "full_attention")[0], theirs[0])  # overlooked
    flat = build("LlamaConfig", **SIZES, rope_parameters=yarn(False))
    assert_same(rotary_embedding(asked, "full_attention"), *their_rule(flat))


@pytest.mark.parametrize("family", sorted(INTERLEAVED))
def test_the_family_is_interleaved(family):
    try:
        module = modeling(family.removesuffix("_text"))
    except ImportError:
        pytest.skip(f"this transformers has no {family}")
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    if hasattr(module, "apply_rotary_emb"):
        turned, _ = module.apply_rotary_emb(x, x, torch.full((1, 1, 2), 1j))
    else:
        turn = getattr(module, "rotate_half", None) or module.rotate_every_two
        turned = turn(x)
    assert turned.flatten().tolist() == [-2.0, 1.0, -4.0, 3.0]  # by a right angle


def test_deepseek_says_its_pairing_itself():
    config = build("DeepseekV3Config", qk_rope_head_dim=16)
    file = {**SIZES, "qk_rope_head_dim": 16, "rope_theta": 10_000}  # as published
    for given in (config, {**file, "model_type": "deepseek_v3"}):
        rope = rotary_embedding(given)
        assert (rope.head_dim, rope.pairing) == (16, "interleaved")
    flag = {**file, "model_type": "deepseek_v3", "rope_interleave": False}
    assert rotary_embedding(flag).pairing == "half"


@pytest.mark.parametrize("family", sorted(FLAGGED))
def test_the_family_is_interleaved_by_its_flag(family):
    try:
        module = importlib.import_module(
            f"transformers.models.{family}.configuration_{family}"
        )
    except ImportError:
        pytest.skip(f"this transformers has no {family}")
    (config,) = [kind for kind in vars(module).values()
                 if getattr(kind, "model_type", None) == family]  # fmt: skip
    assert config().rope_interleave is True


def test_a_base_that_only_the_code_has_can_be_given():
    llama_2 = {"hidden_size": 4096, "num_attention_heads": 32, "rope_scaling": None}
    rope = rotary_embedding(llama_2, base=10_000.0)
    assert (rope.head_dim, rope.base) == (128, 10_000.0)


# ------------------------------------------------------------- ours in a model's place

NESTED = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "head_dim": 8,
}
PHI3 = {"rope_type": "longrope", "rope_theta": 1000.0, **LISTS}
MODELS = {
    "Llama": {},
    "Llama, llama3": {"rope_parameters": {**TYPES["llama3"], "rope_type": "llama3"}},
    "GPTJ": {"rotary_dim": 4},
    "GPTNeoX": {"rotary_pct": 0.5},  # fused, partial
    "Qwen3": {"head_dim": 16},  # norms between projection and rotation
    "Gemma3": NESTED,
    "Phi3": {"rope_parameters": PHI3, **OLD},  # an attention factor
    "Glm": {"head_dim": 8, "partial_rotary_factor": 0.5},  # interleaved, partial
    "Cohere": {"use_qk_norm": True},  # interleaved
}


def tiny(name, **more):
    """A random model; the rotation decides what it says."""
    name = name.partition(",")[0]
    fields = {**SIZES, **more}
    if "rope_parameters" in fields:
        fields["rope_parameters"] = {"rope_theta": 1000.0, **fields["rope_parameters"]}
    kind = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    torch.manual_seed(0)
    return build(f"{name}ForCausalLM", config=build(kind, **fields)).eval()


def padded_batch():
    torch.manual_seed(1)
    tokens = torch.randint(3, 50, (2, 12))
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    return tokens, mask


@torch.no_grad()
def logits(model):
    """Of the real tokens: what a model says at padding means nothing."""
    tokens, mask = padded_batch()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(tokens, attention_mask=mask, position_ids=positions).logits
    return out[mask.bool()]


def generated(model):
    tokens, mask = padded_batch()
    return model.generate(
        tokens, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=True
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_swapped_model_says_the_same(name):
    model = tiny(name, **MODELS[name])
    expected, text = logits(model), generated(model)
    length = 12 if name == "Phi3" else None
    assert swap(model, length=length) is model
    assert torch.allclose(logits(model), expected, atol=2e-5)
    if name != "Phi3":  # transformers takes other angles from the 17th token on
        assert torch.equal(generated(model), text)
    swapped = tiny(name, **MODELS[name])
    other = "half" if name in ("GPTJ", "Glm", "Cohere") else "interleaved"
    swap(swapped, length=length, pairing=other)
    assert not torch.allclose(logits(swapped), expected, atol=1e-3)  # it does matter


def test_a_swap_changes_one_model_alone():
    model, other = tiny("Llama"), tiny("Llama")
    before = type(model.model.layers[0].self_attn).forward
    swap(model, pairing="interleaved")
    assert type(model.model.layers[0].self_attn).forward is before
    assert torch.equal(logits(other), logits(tiny("Llama")))
    twin = copy.deepcopy(model)
    expected = logits(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(logits(twin), expected)  # its layers call its own weights
    assert list(model.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize(("kind", "more"), [("Llama", {}), ("GPTJ", {"rotary_dim": 4})])
def test_a_swapped_model_is_saved_by_its_weights_alone(kind, more, refuses):
    model = swap(tiny(kind, **more))
    refuses(
        lambda: torch.save(model, io.BytesIO()),
        "TypeError: a swapped model cannot be pickled whole",
    )
    loaded = tiny(kind, **more)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(logits(swap(loaded)), logits(model))


def test_a_swapped_model_learns_as_before():
    tokens, _ = padded_batch()
    grads = []
    for model in (tiny("Llama"), swap(tiny("Llama"))):
        model(tokens, labels=tokens).loss.backward()
        grads.append(model.model.layers[0].self_attn.k_proj.weight.grad)
    assert grads[0].abs().max() > 1e-3
    assert torch.allclose(*grads, atol=1e-6)


def test_a_swapped_model_compiles_as_one_graph():
    model = swap(tiny("Llama", num_hidden_layers=1))
    tokens, _ = padded_batch()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(tokens).logits, model(tokens).logits, atol=2e-5)


def test_a_dtype_reaches_no_table_of_ours():
    positions = torch.arange(10_000, 10_040)[None]
    exact = RotaryEmbedding(8).inv_freq * positions[..., None]
    x, errors = torch.empty(0, dtype=torch.bfloat16), []
    for model in (tiny("Llama"), swap(tiny("Llama"))):
        cos, _ = model.bfloat16().model.rotary_emb(x, positions)
        errors.append((cos[..., :4].double() - exact.cos()).abs().max())
    assert errors[0] > 0.5 and errors[1] < 1e-7


def test_a_length_settles_what_transformers_changes_on_the_way():
    rule = {"rope_type": "dynamic", "factor": 4.0}
    fields = {"rope_parameters": rule, "max_position_embeddings": 8}
    theirs, ours = (tiny("Llama", **fields) for _ in range(2))
    swap(ours, length=12)
    tokens, _ = padded_batch()

    def prefill_and_decode(model):
        with torch.no_grad():
            at_once, cache = model(tokens).logits[:, -1], None
            for token in tokens.split(1, dim=1):
                step = model(token, past_key_values=cache, use_cache=True)
                cache = step.past_key_values
        return at_once, step.logits[:, -1]

    assert torch.allclose(*prefill_and_decode(ours), atol=1e-5)
    assert not torch.allclose(*prefill_and_decode(theirs), atol=1e-2)


# ---------------------------------------------------------------- other people's order

CONVERTED = {
    "Llama": ({"attention_bias": True}, {}),  # grouped keys: 4 heads and 2
    "GPTJ": ({"rotary_dim": 4}, {"rotary_dim": 4}),
    "Glm": (MODELS["Glm"], {"rotary_dim": 4}),
    "Qwen3": ({"head_dim": 8}, {}),
    "Cohere": ({"use_qk_norm": True}, {}),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_checkpoint_says_the_same_by_the_other_pairing(name):
    fields, partial_rotary = CONVERTED[name]
    model = tiny(name, **fields)
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases start at 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    expected, state = logits(model), copy.deepcopy(model.state_dict())
    own = "interleaved" if name in ("GPTJ", "Glm", "Cohere") else "half"
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


# ---------------------------------------------------------------------- bad input

Q, K = sample(1)
FULL = [full_table(table, "half") for table in (COS, SIN)]
CONFIG = {"head_dim": 8, "rope_theta": 1000.0, "max_position_embeddings": 64}
WEIGHT = torch.zeros(16, 8)


OPT = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "vocab_size": 9,
       "num_attention_heads": 2}  # fmt: skip


def scaled(kind, **parameters):
    return {**CONFIG, "rope_parameters": {"rope_type": kind, **parameters}}


def convert(name, tensor=WEIGHT, **more):
    options = {"head_dim": 8, "source": "half", "target": "interleaved", **more}
    return convert_checkpoint({name: tensor}, **options)


BAD = {
    "ValueError: not repeated for pairing='interleaved'": lambda: apply_rotary_pos_emb(
        Q, K, *FULL, pairing="interleaved"
    ),
    "ValueError: unsqueeze_dim must be 1 or 2, got 0": lambda: apply_rotary_pos_emb(
        Q, K, *FULL, 0
    ),
    "ValueError: is x in layout='bshd'": lambda: apply_rotary_pos_emb(
        Q.transpose(1, 2), K, *FULL
    ),
    "ValueError: config has no rope_theta": lambda: rotary_embedding({"head_dim": 8}),
    "TypeError: config must be a configuration ... got the name 'gpt2'": lambda: (
        rotary_embedding("gpt2")
    ),
    "ValueError: config must have head_dim, or hidden_size": lambda: rotary_embedding(
        {"rope_theta": 1000.0}
    ),
    "ValueError: rope_type must be one of ... got 'axial'": lambda: rotary_embedding(
        scaled("axial")
    ),
    "ValueError: rope_type 'linear' needs factor; got": lambda: rotary_embedding(
        scaled("linear")
    ),
    "ValueError: 'dynamic' needs the argument length": lambda: rotary_embedding(
        scaled("dynamic", factor=2.0)
    ),
    "ValueError: 'longrope' needs short_factor; got": lambda: rotary_embedding(
        scaled("longrope", factor=2.0)
    ),
    "ValueError: 'llama3' needs low_freq_factor": lambda: rotary_embedding(
        scaled("llama3", factor=2.0)
    ),
    "ValueError: rotary_dim must be even ... got 3": lambda: rotary_embedding(
        {**CONFIG, "partial_rotary_factor": 0.4}
    ),
    "ValueError: mrope_section and an attention factor": lambda: rotary_embedding(
        scaled("yarn", factor=2.0, mrope_section=[2, 1, 1])
    ),
    "ValueError: OPTForCausalLM has 0 rotary_emb ... 0 layers": lambda: swap(
        build("OPTForCausalLM", config=build("OPTConfig", **OPT))
    ),
    "ValueError: dynamic' needs the argument length": lambda: swap(
        tiny("Llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    ),
    "ValueError: 2 layers that rotate, by ['apply_rotary_pos_emb_int": lambda: swap(
        tiny("DeepseekV3", num_key_value_heads=4)
    ),
    "ValueError: an earlier swap or a hook": lambda: swap(swap(tiny("Llama"))),
    "ValueError: its 1 names have neither": lambda: convert("v_proj.weight"),
    "ValueError: the one is worth nothing ... names have q_proj": lambda: convert(
        "q_proj.weight"
    ),
    "ValueError: kv_a_proj_with_mqa.weight cannot be": lambda: convert(
        "kv_a_proj_with_mqa.weight"
    ),
    "ValueError: qkv_proj.weight cannot be reordered ... apart from v": lambda: convert(
        "qkv_proj.weight"
    ),
    "ValueError: q_proj.qweight cannot be reordered": lambda: convert("q_proj.qweight"),
    "ValueError: k_proj.lora_B.weight cannot be ... merge it": lambda: convert(
        "k_proj.lora_B.weight"
    ),
    "ValueError: (16, 8) does not divide into heads of head_dim=12": lambda: convert(
        "q_proj.weight", head_dim=12
    ),
    "ValueError: source must be 'interleaved' or 'half', got 'meta'": lambda: convert(
        "q_proj.weight", source="meta"
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message, refuses):
    refuses(BAD[message], message)


def test_a_refused_swap_leaves_the_model_as_it_was():
    model = tiny("Llama")
    expected = logits(model)
    model.model.rotary_emb.config.rope_parameters["rope_theta"] = 3.0
    with pytest.raises(ValueError, match=r"does not rotate .* as we read its config"):
        swap(model)
    assert torch.equal(logits(model), expected)
