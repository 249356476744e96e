"""transformers itself is the oracle: its functions, its tables and its models."""

import copy
import io
from functools import partial

import pytest
import torch

from rope_teach import RotaryEmbedding, cos_sin, inverse_frequencies, rotate
from rope_teach.dialects.hugging_face import (
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_gptj,
    swap,
)
from rope_teach.pairing import full_table
from tests.dialects.peers import (
    LISTS,
    OLD,
    build,
    generated,
    logits,
    modeling,
    padded_batch,
    tiny,
)

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


@pytest.mark.parametrize(
    ("family", "pairing", "table"),
    [
        ("glm", "interleaved", "half"),
        ("helium", "interleaved", "half"),
        ("ernie4_5", "interleaved", "half"),
        ("gpt_oss", "half", "single"),
        ("openai_privacy_filter", "interleaved", "single"),
    ],
)
def test_rotates_as_families_whose_tables_have_another_form(family, pairing, table):
    q, k = sample(1)
    form = {"half": "half", "single": None}[table]
    tables = [full_table(x, form) if form else x for x in (COS, SIN)]
    theirs = modeling(family).apply_rotary_pos_emb(q, k, *tables)
    ours = apply_rotary_pos_emb(q, k, *tables, pairing=pairing, table=table)
    for got, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_compiles_as_one_graph_and_exports(pairing, dtype):
    q, k = sample(1, dtype)
    tables = [full_table(table, pairing) for table in (COS, SIN)]
    rotate_both = partial(apply_rotary_pos_emb, pairing=pairing)
    expected = rotate_both(q, k, *tables)
    compiled = torch.compile(rotate_both, fullgraph=True, backend="eager")

    class Both(torch.nn.Module):
        def forward(self, *args):
            return rotate_both(*args)

    exported = torch.export.export(Both(), (q, k, *tables)).module()
    on_meta = rotate_both(*(x.to("meta") for x in (q, k, *tables)))
    assert [x.shape for x in on_meta] == [q.shape, k.shape]
    for made in (compiled, exported):
        for got, right in zip(made(q, k, *tables), expected, strict=True):
            assert torch.allclose(got, right, atol=1e-6, rtol=2e-2)


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


# ------------------------------------------------------------- ours in a model's place

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, **OLD}  # fmt: skip
NESTED = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "head_dim": 8,
}
LATENT = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
          "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
          "n_routed_experts": 2, "n_group": 1, "topk_group": 1,
          "moe_intermediate_size": 8, "num_experts_per_tok": 1}  # fmt: skip
ALPHA = {"rope_type": "dynamic", "factor": 1.0, "alpha": 50.0}
LINEAR = {"layer_types": ["linear_attention", "full_attention"],
          "linear_num_value_heads": 2, "linear_num_key_heads": 2,
          "linear_key_head_dim": 8, "linear_value_head_dim": 8}  # fmt: skip
PHI3 = {"rope_type": "longrope", "rope_theta": 1000.0, **LISTS}
MODELS = {
    "Llama": {},
    "Llama, llama3": {"rope_parameters": LLAMA3},
    "GPTJ": {"rotary_dim": 4},
    "GPTNeoX": {"rotary_pct": 0.5},  # fused, partial
    "Qwen3": {"head_dim": 16},  # norms between projection and rotation
    "Gemma3": NESTED,
    "Phi3": {"rope_parameters": PHI3, **OLD},  # an attention factor
    "Glm": {"head_dim": 8, "partial_rotary_factor": 0.5},  # interleaved, partial
    "Cohere": {"use_qk_norm": True},  # interleaved
    "DeepseekV3": LATENT,  # reordered when it rotates
    "NanoChat": {},  # clockwise
    "Gemma3, sliding alone": {**NESTED, "layer_types": ["sliding_attention"] * 2},
    "HunYuanDenseV1": {"rope_parameters": ALPHA, "head_dim": 8},
    "Qwen3_5, text": {**LINEAR, "head_dim": 16},  # three coordinates, by default
}


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
    interleaved = ("GPTJ", "Glm", "Cohere", "DeepseekV3")
    other = "half" if name in interleaved else "interleaved"
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


def test_wrong_names_and_lengths_leave_the_model_as_it_was(refuses):
    model = tiny("Llama")
    before = logits(model)
    refuses(lambda: swap(model, pairing="Half"), "ValueError: pairing must be ... Half")
    refuses(lambda: swap(model, length=-3), "ValueError: length must be positive")
    refuses(lambda: swap(model, length="x"), "TypeError: length must be an int")
    assert torch.allclose(logits(swap(model)), before, atol=1e-5)


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


# ---------------------------------------------------------------------- bad input

Q, K = sample(1)
FULL = [full_table(table, "half") for table in (COS, SIN)]
OPT = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "vocab_size": 9,
       "num_attention_heads": 2}  # fmt: skip


BAD = {
    "ValueError: not repeated for pairing='interleaved'": lambda: apply_rotary_pos_emb(
        Q, K, *FULL, pairing="interleaved"
    ),
    "ValueError: give table=; got pairing='interleaved' and": lambda: (
        apply_rotary_pos_emb(Q, K, *FULL, pairing="interleaved")
    ),
    "ValueError: table must be 'half' or ... got 'twice'": lambda: apply_rotary_pos_emb(
        Q, K, *FULL, table="twice"
    ),
    "ValueError: unsqueeze_dim must be 1 or 2, got 0": lambda: apply_rotary_pos_emb(
        Q, K, *FULL, 0
    ),
    "ValueError: is x in layout='bshd'": lambda: apply_rotary_pos_emb(
        Q.transpose(1, 2), K, *FULL
    ),
    "ValueError: OPTForCausalLM has 0 rotary_emb ... 0 layers": lambda: swap(
        build("OPTForCausalLM", config=build("OPTConfig", **OPT))
    ),
    "ValueError: dynamic' needs the argument length": lambda: swap(
        tiny("Llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    ),
    "ValueError: an earlier swap or a hook": lambda: swap(swap(tiny("Llama"))),
    "ValueError: on the meta device: load its weights": lambda: swap(
        tiny("Llama").to("meta")
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message, refuses):
    refuses(BAD[message], message)


def broken_config(model):
    model.model.rotary_emb.config.rope_parameters["rope_theta"] = 3.0


def slow_frequencies(model):
    """A tenth slower at the slow end: positions 0 to 3 cannot tell."""
    inv_freq = model.model.rotary_emb.inv_freq
    inv_freq[-1] *= 0.9


def another_forward(model):
    """Layers that read more from the maker of tables than its tables."""

    def look(*_):
        assert model.model.rotary_emb.inv_freq.sum() > 0

    model.model.layers[0].self_attn.register_forward_pre_hook(look)


FAULTS = {
    "does not rotate .* as we read its config": [broken_config, slow_frequencies],
    "with ours it raises AttributeError": [another_forward],
}


@pytest.mark.parametrize(
    ("message", "spoil"), [(m, f) for m, faults in FAULTS.items() for f in faults]
)
def test_a_refused_swap_leaves_the_model_as_it_was(message, spoil):
    model = tiny("Llama").train()
    spoil(model)
    maker, expected = model.model.rotary_emb, logits(model)
    with pytest.raises(ValueError, match=message):
        swap(model)
    assert model.model.rotary_emb is maker and model.training
    assert torch.equal(logits(model), expected)
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_that_a_cast_has_rounded_are_known_as_such(dtype):
    cast, model = tiny("Llama").to(dtype).float(), tiny("Llama")
    assert not torch.equal(cast.model.rotary_emb.inv_freq,
                           model.model.rotary_emb.inv_freq)  # fmt: skip
    for other in (cast, tiny("Llama").to(dtype)):
        assert swap(other).model.rotary_emb is not model.model.rotary_emb
    positions = torch.tensor([[10_000]])
    cos, _ = cast.model.rotary_emb(torch.empty(0), positions)
    exact = (10_000 * inverse_frequencies(8, 10_000.0)).cos()
    assert torch.allclose(cos[0, 0].double(), exact, atol=1e-6)  # rounded no more


def test_a_model_whose_layers_have_bases_of_their_own_is_refused():
    """It keeps one rotary_emb that nothing uses, and a list of those that are."""
    model = tiny("GraniteSWA", layer_rope_theta=[10_000.0, 500.0], head_dim=8)
    expected = logits(model)
    with pytest.raises(ValueError, match=r"rope_theta|rotates by something|says some"):
        swap(model)
    assert torch.equal(logits(model), expected)
