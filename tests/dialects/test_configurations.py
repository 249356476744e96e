"""A configuration of transformers is read as its own code reads it."""

import importlib
import inspect
import json
import warnings

import pytest
import torch

from rope_teach import cos_sin
from rope_teach.dialects.hugging_face import families, rotary_embedding
from rope_teach.dialects.hugging_face.configuration import ConfigurationWarning
from tests.dialects import sweep
from tests.dialects.peers import LISTS, OLD, SIZES, build, modeling

# ------------------------------------------------- every type that transformers has


@pytest.fixture(scope="module")
def cases():
    """Every type of layer of every installed configuration, with its own code."""
    return list(sweep.cases())


def test_every_type_is_read_as_its_own_code_rotates_or_refused(cases):
    found = sweep.verdicts(sweep.read, cases)
    wrong = {
        tag: said
        for tag, said in found.items()
        if said != "agrees" and not said.startswith("refused")
    }
    assert not wrong
    reasons = ("rope_type must be one of", "model_type", "config must have head_dim")
    reasons += ("RotaryEmbedding does not serve",)
    for tag, said in found.items():
        assert said == "agrees" or any(reason in said for reason in reasons), (tag, said)
    assert sum(said == "agrees" for said in found.values()) >= 200


RULES = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "default": {"partial_rotary_factor": 0.5},
    "proportional": {"partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("kind", RULES)
def test_every_type_is_read_under_this_rule_too(kind, cases):
    """Scaled, or with half of each head rotated: which many types do not heed."""
    changed = [sweep.scaled(case, kind, RULES[kind]) for case in cases]
    found = sweep.verdicts(sweep.read, [case for case in changed if case is not None])
    said = [word for word in found.values() if not word.startswith(("refused", "no or"))]
    assert said.count("agrees") >= 170
    assert not {tag: word for tag, word in found.items() if "differs" in word}


def same(rope, other):
    assert (rope.head_dim, rope.rotary_dim) == (other.head_dim, other.rotary_dim)
    assert (rope.pairing, rope.attention_factor) == (
        other.pairing,
        other.attention_factor,
    )
    assert torch.equal(rope.inv_freq, other.inv_freq)


@pytest.mark.parametrize("whole", [False, True])
def test_a_file_is_read_as_the_configuration_that_it_was_written_from(whole, cases):
    for tag, config, layer_type, *_ in cases:
        file = json.loads(config.to_json_string(use_diff=not whole))
        try:
            rope = sweep.read(config, layer_type)
        except ValueError:
            with pytest.raises(ValueError):
                sweep.read(file, layer_type)
            continue
        try:
            same(rope, sweep.read(file, layer_type))
        except (AssertionError, ValueError) as error:
            raise AssertionError(tag) from error


def test_what_a_short_file_leaves_out_is_taken_from_the_family(cases):
    """Heads of 96 features would be rotated whole, if no default said otherwise."""
    for tag, config, layer_type, *_ in cases:
        parameters = getattr(config, "rope_parameters", None) or {}
        plain = parameters.get("rope_type") == "default" and layer_type is None
        # A class with rope parameters of its own does not look at rope_theta.
        theta = parameters.get("rope_theta")
        file = {"model_type": config.model_type, "rope_theta": theta}
        file |= {"hidden_size": 1536, "num_attention_heads": 16}
        if not plain or getattr(config, "qk_rope_head_dim", None):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rope = sweep.read(type(config)(**file), None)
        except Exception:  # sizes that this class does not take
            continue
        try:
            same(rope, sweep.read(file, None))
        except ValueError as error:  # it asks for what it needs
            assert "attention_head_dim" in str(error) or "head_dim" in str(error), tag
        except AssertionError as error:
            raise AssertionError(tag) from error


UNREAD = "minimax_m3_vl_text"  # its default of 64 is what transformers overlooks


def test_no_default_configuration_is_warned_about(cases):
    for tag, config, layer_type, *_ in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConfigurationWarning)
            try:
                sweep.read(config, layer_type)
            except ValueError:
                pass
            except ConfigurationWarning as warning:
                if "rotary_dim" in str(warning) and config.model_type == UNREAD:
                    continue
                raise AssertionError(tag) from warning


def test_each_type_is_in_one_list():
    lists = [families.INTERLEAVED, families.FLAGGED, families.HALF]
    lists.append(frozenset(families.ELSEWHERE))
    assert sum(map(len, lists)) == len(frozenset().union(*lists))
    every = frozenset().union(*lists)
    for some in (families.CLOCKWISE, families.TRAILING, families.PARTIAL):
        assert some <= every
    for some in (families.UNROTATED, families.MULTIMODAL, families.OLDER_LAYERS):
        assert some.keys() <= every


@pytest.mark.parametrize("family", ["roformer", "codegen", "gptj"])
def test_families_without_rope_parameters_are_interleaved(family):
    module = modeling(family)
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])
    if family == "roformer":
        attention = module.RoFormerSelfAttention
        table = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])  # sines, then cosines
        turned, _ = attention.apply_rotary_position_embeddings(table, x, x)
    else:
        turned = module.rotate_every_two(x)
    assert turned.flatten().tolist() == [-2.0, 1.0, -4.0, 3.0]  # by a right angle
    assert family in families.INTERLEAVED


def layers_that_turn(model_type, kind):
    """Whether attention of this type of layer heeds the tables that it is given."""
    folder = model_type.removesuffix("_text")
    configuration = importlib.import_module(
        f"transformers.models.{folder}.configuration_{folder}"
    )
    (config_class,) = (
        c for c in sweep.classes(configuration) if c.model_type == model_type
    )
    sizes = {**SIZES, "head_dim": 8, "sliding_window": 4}
    types = ["sliding_attention", "full_attention"]
    config = sweep.quiet(config_class, **sizes, layer_types=types)
    config._attn_implementation = "eager"
    attention = next(
        c for c in sweep.classes(modeling(folder), "Attention")
        if "layer_idx" in inspect.signature(c.__init__).parameters
    )  # fmt: skip
    torch.manual_seed(0)
    layer = attention(config, layer_idx=types.index(kind)).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, tables = torch.randn(1, 5, 32), torch.randn(2, 2, 1, 5, 8)
    with torch.no_grad():
        said = [layer(x, tuple(table), None)[0] for table in tables]
    return not torch.allclose(*said)


UNROTATED = [t for t, kind in families.UNROTATED.items() if kind == "full_attention"]


@pytest.mark.parametrize("model_type", [*UNROTATED, "qwen2", "gemma2"])
def test_full_attention_of_these_does_not_rotate(model_type):
    if model_type == "beam":
        pytest.skip("its model leaves the tables out: attention cannot tell")
    assert layers_that_turn(model_type, "sliding_attention")
    assert layers_that_turn(model_type, "full_attention") == (
        model_type not in UNROTATED
    )


# ------------------------------------------------------------- reading a configuration

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
    old = {**SIZES, "model_type": "llama", "rope_theta": 1000.0, "rope_scaling": older}
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


def test_deepseek_says_its_pairing_itself():
    config = build("DeepseekV3Config", qk_rope_head_dim=16)
    file = {**SIZES, "qk_rope_head_dim": 16, "rope_theta": 10_000}  # as published
    for given in (config, {**file, "model_type": "deepseek_v3"}):
        rope = rotary_embedding(given)
        assert (rope.head_dim, rope.pairing) == (16, "interleaved")
    flag = {**file, "model_type": "deepseek_v3", "rope_interleave": False}
    assert rotary_embedding(flag).pairing == "half"


def test_a_base_that_only_the_code_has_can_be_given():
    llama_2 = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "rope_scaling": None}
    rope = rotary_embedding(llama_2, base=10_000.0)
    assert (rope.head_dim, rope.base) == (128, 10_000.0)
