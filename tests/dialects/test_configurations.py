"""A configuration of transformers is read as its own code reads it."""

import copy
import importlib
import inspect
import json
import warnings

import pytest
import torch

from rope_teach import cos_sin
from rope_teach.dialects.hugging_face import (
    ConfigurationWarning,
    families,
    rotary_embedding,
)
from rope_teach.dialects.hugging_face.configuration import described
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
    for tag, said in found.items():
        assert said == "agrees" or any(reason in said for reason in reasons), (
            tag,
            said,
        )
    agree = {config.model_type for tag, config, *_ in cases if found[tag] == "agrees"}
    listed = families.INTERLEAVED | families.FLAGGED | families.HALF
    assert agree <= listed
    assert listed - agree <= WITHOUT_PARAMETERS  # none is there on trust


# Compared below, or known only from files.
WITHOUT_PARAMETERS = {"blt", "codegen", "gptj", "kimi_k2", "roformer"}
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
    said = [
        word for word in found.values() if not word.startswith(("refused", "no or"))
    ]
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


WIDTHS = (
    "head_dim", "qk_rope_head_dim", "rotary_dim", "rotary_pct", "attention_head_dim",
    "kv_channels",
)  # fmt: skip


def widths(data, layer_type):
    """Features of a head and those that turn, or None where it is refused."""
    try:
        head_dim, options, _ = described(data, layer_type, length=64)
    except ValueError:
        return None
    return head_dim, options["rotary_dim"]


def test_a_width_that_a_file_leaves_out_is_the_classs_own():
    types = sorted(families.INTERLEAVED | families.FLAGGED | families.HALF)
    known = set(importlib.import_module("transformers").CONFIG_MAPPING)
    compared = 0
    for model_type in known.intersection(types):
        auto = importlib.import_module("transformers").AutoConfig
        data = auto.for_model(model_type).to_dict()
        blocks = data.get("rope_parameters") or {}
        nested = any(isinstance(block, dict) for block in blocks.values())
        for layer_type in blocks if nested else [None]:
            whole = widths(data, layer_type)
            for left_out in WIDTHS:
                less = {key: x for key, x in data.items() if key != left_out}
                found = widths(less, layer_type)
                said = model_type, layer_type, left_out, whole, found
                assert None in (whole, found) or found == whole, said
                compared += data.get(left_out) is not None and found is not None
    assert compared > 100


def test_two_blocks_of_parameters_must_agree(refuses):
    """transformers takes the older block, and its base is then the one outside."""
    new = {"rope_type": "default", "rope_theta": 5e5}
    old = {"type": "linear", "factor": 4.0}
    sizes = {**SIZES, "model_type": "llama", "rope_theta": 5e5}
    message = "ValueError: rope_parameters and rope_scaling that differ ... remove one"
    refuses(
        lambda: rotary_embedding(
            {**sizes, "rope_parameters": new, "rope_scaling": old}
        ),
        message,
    )
    both = {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}
    rope = rotary_embedding({**sizes, **both, "rope_scaling": old})
    assert rope.base == 5e5 and float(rope.inv_freq[0]) == 0.25


def test_names_that_only_gpt_neox_reads():
    llama = {**SIZES, "model_type": "llama", "rope_theta": 5e5}
    with pytest.warns(ConfigurationWarning, match="rotary_pct is not used"):
        assert rotary_embedding({**llama, "rotary_pct": 0.5}).rotary_dim == 8
    neox = {**SIZES, "model_type": "gpt_neox", "rope_theta": 5e5}
    with pytest.warns(ConfigurationWarning, match="rope_theta is not used"):
        assert rotary_embedding(neox).base == 10_000


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
    llama_2 = {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "rope_scaling": None,
    }
    rope = rotary_embedding(llama_2, base=10_000.0)
    assert (rope.head_dim, rope.base) == (128, 10_000.0)


# --------------------------------------------------------- which layers, and what kind

FILE = {"model_type": "llama", "head_dim": 8, "rope_theta": 1000.0,
        "max_position_embeddings": 64}  # fmt: skip


def scaling(kind, **parameters):
    return {**FILE, "rope_scaling": {"rope_type": kind, **parameters}}


def test_older_files_say_by_field_what_each_layer_type_has():
    olmo = scaling("yarn", factor=4.0, original_max_position_embeddings=16)
    olmo["model_type"] = "olmo3"
    assert rotary_embedding(olmo, "full_attention").attention_factor > 1.1
    near = rotary_embedding(olmo, "sliding_attention")
    assert near.attention_factor == 1 and near.base == 1000.0
    gemma = {**scaling("linear", factor=8.0), "model_type": "gemma3_text"}
    assert rotary_embedding(gemma, "sliding_attention").base == 10_000.0
    gemma["rope_local_base_freq"] = 500.0
    assert rotary_embedding(gemma, "sliding_attention").base == 500.0
    assert rotary_embedding(gemma, "sliding_attention").inv_freq[0] == 1
    assert rotary_embedding(gemma, "full_attention").inv_freq[0] == 1 / 8
    bert = {"model_type": "modernbert", "head_dim": 8, "global_rope_theta": 160_000.0}
    assert rotary_embedding(bert, "full_attention").base == 160_000.0
    assert rotary_embedding(bert, "sliding_attention").base == 10_000.0


def test_deepseek_v4s_flat_file_has_two_kinds_of_layers():
    config = build("DeepseekV4Config")
    file = {"model_type": "deepseek_v4", "head_dim": 512, "qk_rope_head_dim": 64,
            "rope_theta": 10_000.0, "compress_rope_theta": 160_000.0,
            "max_position_embeddings": config.max_position_embeddings,
            "rope_scaling": {"type": "yarn", "factor": 16.0,
                             "original_max_position_embeddings": 65_536}}  # fmt: skip
    loaded = build("DeepseekV4Config", **copy.deepcopy(file))
    for kind in ("main", "compress"):
        rope = rotary_embedding(file, kind)
        same(rope, rotary_embedding(loaded, kind))
        assert (rope.trailing, rope.rotary_dim, rope.attention_factor) == (True, 64, 1)
    assert rotary_embedding(file, "main").base == 10_000.0


def test_layers_with_bases_of_their_own_are_named_by_number(refuses):
    file = {**FILE, "model_type": "granite_swa", "num_hidden_layers": 4}
    file["layer_rope_theta"] = [10_000.0, 0, 5e5, 5e5]
    config = build("GraniteSWAConfig", **SIZES | {"num_hidden_layers": 4},
                   layer_rope_theta=file["layer_rope_theta"])  # fmt: skip
    for given in (file, config):
        assert rotary_embedding(given, layer=0).base == 10_000.0
        assert rotary_embedding(given, layer=3).base == 5e5
        refuses(lambda g=given: rotary_embedding(g), "ValueError: say which, by layer=")
        refuses(
            lambda g=given: rotary_embedding(g, layer=1),
            "ValueError: layer 1 does not rotate, says layer_rope_theta",
        )
    smol = {**FILE, "model_type": "smollm3", "no_rope_layer_interval": 4}
    refuses(lambda: rotary_embedding(smol, layer=3), "ValueError: no_rope_layer_int")
    smol["no_rope_layers"] = [1, 0]
    assert rotary_embedding(smol, layer=0).base == 1000.0
    refuses(lambda: rotary_embedding(smol, layer=1), "ValueError: says no_rope_layers")


def test_a_layers_number_finds_its_type():
    config = build("Gemma3TextConfig", **{**SIZES, "head_dim": 8})
    for i, kind in enumerate(config.layer_types):
        same(rotary_embedding(config, layer=i), rotary_embedding(config, kind))


def test_molmo_scales_the_layers_that_it_lists(refuses):
    file = {**scaling("linear", factor=4.0), "model_type": "molmo2_text"}
    file |= {"rope_scaling_layers": [1], "num_hidden_layers": 2}
    first = [rotary_embedding(file, layer=i).inv_freq[0].item() for i in (0, 1)]
    assert first == [1.0, 0.25]
    refuses(
        lambda: rotary_embedding(file), "ValueError: rope_scaling_layers says which"
    )


def test_hunyuans_alpha_raises_the_base_whatever_the_length():
    parameters = {"rope_type": "dynamic", "rope_theta": 1000.0, "alpha": 50.0,
                  "factor": 1.0}  # fmt: skip
    config = build("HunYuanDenseV1Config", **{**SIZES, "head_dim": 8},
                   rope_parameters=parameters)  # fmt: skip
    theirs = modeling("hunyuan_v1_dense").HunYuanDenseV1RotaryEmbedding(config)
    for length in (None, 10, 10_000):
        assert_same(rotary_embedding(config, length=length), theirs.inv_freq, 1.0)


@pytest.mark.parametrize(("length", "factor"), [(16, 1.05), (17, 1.25)])
def test_phi_moes_factor_is_that_of_the_list(length, factor):
    parameters = {"rope_type": "longrope", "rope_theta": 1000.0, **LISTS, **OLD,
                  "short_mscale": 1.05, "long_mscale": 1.25}  # fmt: skip
    config = build("PhimoeConfig", **SIZES, rope_parameters=parameters)
    theirs = modeling("phimoe").PhimoeRotaryEmbedding(config)
    cos, _ = theirs(torch.zeros(1), torch.tensor([[0, length - 1]]))
    rope = rotary_embedding(config, length=length)
    assert rope.attention_factor == factor == pytest.approx(cos[0, 0, 0].item())
    slower = torch.tensor(LISTS["short_factor" if length == 16 else "long_factor"])
    plain = rotary_embedding({**FILE, "model_type": "phimoe"}).inv_freq
    assert torch.allclose(rope.inv_freq * slower, plain)


def test_su_is_the_old_name_of_longrope():
    old = {**scaling("su", **LISTS), **OLD}
    new = {**scaling("longrope", **LISTS), **OLD}
    same(rotary_embedding(old, length=64), rotary_embedding(new, length=64))
    phi = {**scaling("yarn", **LISTS), **OLD, "model_type": "phi3"}
    same(rotary_embedding(phi, length=64), rotary_embedding(new, length=64))


def test_multimodal_positions_and_yarn_go_together():
    sections = {"mrope_section": [4, 2, 2], "rope_theta": 1000.0}
    parameters = {"rope_type": "yarn", "factor": 4.0, **OLD, **sections}
    sizes = {**SIZES, "hidden_size": 64}
    config = build("Qwen2VLTextConfig", **sizes, rope_parameters=parameters)
    theirs = modeling("qwen2_vl").Qwen2VLRotaryEmbedding(config)
    rope = rotary_embedding(config)
    assert rope.axes == 3
    assert rope.attention_factor == pytest.approx(theirs.attention_scaling)
    assert torch.allclose(rope.inv_freq.sum(0), theirs.inv_freq.double(), rtol=1e-6)


def test_whole_numbers_may_be_written_as_floats():
    file = scaling("yarn", factor=4, original_max_position_embeddings=16.0)
    other = scaling("yarn", factor=4.0, original_max_position_embeddings=16)
    same(rotary_embedding(file), rotary_embedding(other))


# ------------------------------------------------------------- what is said about it

NOTES = {
    "attn_factor of the rope parameters is not used": scaling(
        "yarn", factor=4.0, attn_factor=1.0
    ),
    "betafast of the rope parameters is not used": scaling(
        "yarn", factor=4.0, betafast=64
    ),
    "mscale of the rope parameters is not used": scaling(
        "yarn", factor=4.0, mscale=0.7
    ),
    "long_factor of the rope parameters is not used": scaling(
        "yarn", factor=4.0, long_factor=[1.0] * 4
    ),
    "factor of the rope parameters is not used by rope_type 'default'": scaling(
        "default", factor=4.0
    ),
    "partial_rotary_factor of the rope parameters is not used": {
        **FILE, "partial_rotary_factor": 0.5,
    },
    "the field rope_ratio is not used": {**FILE, "rope_ratio": 500},
    "the field use_dynamic_ntk is not used": {**FILE, "use_dynamic_ntk": True},
    "the field rotary_dim is not used": {**FILE, "rotary_dim": 4},
    "the pairing 'half' is a guess": {"head_dim": 8, "rope_theta": 1000.0},
}  # fmt: skip


@pytest.mark.parametrize("note", NOTES)
def test_what_is_guessed_or_not_used_is_said_by_name(note):
    with pytest.warns(ConfigurationWarning, match=note):
        rope = rotary_embedding(NOTES[note])
    assert len(rope.notes) == 1 and rope.notes[0].startswith(note)


def test_nothing_is_said_where_all_is_used():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rope = rotary_embedding(
            scaling("yarn", factor=4.0, beta_fast=8, mscale=1.0, mscale_all_dim=0.7)
        )
        assert rope.notes == ()
        given = {"head_dim": 8, "rope_theta": 1000.0}
        assert rotary_embedding(given, pairing="half").notes == ()


BAD = {
    "ValueError: config has no rope_theta": {"head_dim": 8},
    "TypeError: config must be a configuration ... got the name 'gpt2'": "gpt2",
    "TypeError: config must be a configuration ... got the list": [1],
    "ValueError: config must have head_dim, or hidden_size": {"rope_theta": 1000.0},
    "ValueError: pass that part, config['text_config']": {"text_config": FILE},
    "ValueError: model_type 'new' is not known": {**FILE, "model_type": "new"},
    "ValueError: latent attention, which occurs with either": {
        **FILE, "model_type": "new", "qk_rope_head_dim": 8,
    },
    "ValueError: rotates patches of an image": {**FILE, "model_type": "dinov3_vit"},
    "ValueError: alibi is true": {**FILE, "model_type": "falcon", "alibi": True},
    "ValueError: position_embedding_type is 'absolute'": {
        **FILE, "position_embedding_type": "absolute",
    },
    "ValueError: position_embedding_type is None": {
        **FILE, "model_type": "granitemoehybrid",
    },
    "ValueError: scale by default": {**FILE, "model_type": "gpt_oss"},
    "ValueError: rope_type must be one of ... 'axial', which is for": scaling("axial"),
    "TypeError: rope_theta must be a number, got '10000'": {
        **FILE, "rope_theta": "10000",
    },
    "ValueError: rope_theta must be positive, got 0": {**FILE, "rope_theta": 0},
    "ValueError: rope_theta must be a number, got nan": {
        **FILE, "rope_theta": float("nan"),
    },
    "TypeError: rope_scaling, must be a dictionary, got 'yarn'": {
        **FILE, "rope_scaling": "yarn",
    },
    "ValueError: rope_type 'linear' needs factor; got": scaling("linear"),
    "TypeError: factor must be a number of at least 1, got '4'": scaling(
        "linear", factor="4"
    ),
    "TypeError: factor must be a number of at least 1, got True": scaling(
        "linear", factor=True
    ),
    "ValueError: factor must be a number of at least 1, got 0.5": scaling(
        "yarn", factor=0.5
    ),
    "ValueError: original_max_position_embeddings must be a whole": scaling(
        "yarn", factor=2, original_max_position_embeddings=16.5
    ),
    "ValueError: beta_fast must exceed its beta_slow": scaling(
        "yarn", factor=2, beta_fast=1
    ),
    "ValueError: 'dynamic' needs the argument length": scaling("dynamic", factor=2.0),
    "ValueError: 'longrope' needs the argument length": scaling("longrope", **LISTS),
    "ValueError: 'llama3' needs low_freq_factor": scaling("llama3", factor=2.0),
    "ValueError: high_freq_factor must exceed its low_freq_factor": scaling(
        "llama3", factor=2.0, low_freq_factor=4.0, high_freq_factor=4.0
    ),
    "ValueError: partial_rotary_factor must be above 0": {
        **FILE, "model_type": "phi", "partial_rotary_factor": 1.5,
    },
    "ValueError: mrope_section must sum to rotary_dim / 2 = 4": scaling(
        "default", mrope_section=[2, 1, 2]
    ),
    "ValueError: no layer_type 'sliding_attention'": (FILE, "sliding_attention"),
    "ValueError: 'linear_attention' do not rotate": (
        {**FILE, "rope_parameters": {"full": {"rope_theta": 9.0},
                                     "linear_attention": None}},
        "linear_attention",
    ),
    "ValueError: of type 'full_attention' of 'cohere2' do not": (
        {**FILE, "model_type": "cohere2", "sliding_window": 4,
         "layer_types": ["full_attention"]},
        "full_attention",
    ),
}  # fmt: skip
LONG = {
    "ValueError: short_factor must have rotary_dim / 2 = 4 numbers": {
        "short_factor": [1.0]
    },
    "ValueError: 'longrope' needs long_factor": {"long_factor": None},
    "TypeError: long_factor must be a list of numbers, got 2.0": {"long_factor": 2.0},
    "ValueError: long_factor[2] must be positive, got 0": {"long_factor": [1, 1, 0, 1]},
    "TypeError: long_factor[0] must be a number, got 'a'": {"long_factor": ["a"] * 4},
    "ValueError: original_max_position_embeddings must be a number of at least 2": {
        "original_max_position_embeddings": 1
    },
}


@pytest.mark.parametrize("message", BAD)
def test_errors_speak_of_the_configurations_own_fields(message, refuses):
    given = BAD[message]
    refuses(
        lambda: rotary_embedding(*(given if isinstance(given, tuple) else (given,))),
        message,
    )


@pytest.mark.parametrize("message", LONG)
def test_errors_speak_of_the_lists(message, refuses):
    file = scaling("longrope", **{**LISTS, **OLD, **LONG[message]})
    refuses(lambda: rotary_embedding(file, length=64), message)


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.001])
def test_longrope_below_one_has_the_attention_factor_one(factor):
    rope = rotary_embedding(
        scaling("longrope", **LISTS, **OLD, factor=factor), length=9
    )
    assert rope.attention_factor == 1


def test_a_wrong_layer_is_refused(refuses):
    file = {**FILE, "num_hidden_layers": 2, "layer_types": ["a", "b"]}
    for layer in (-1, 2, "0", True):
        refuses(
            lambda bad=layer: rotary_embedding(file, layer=bad),
            f"ValueError: layer must be an int from 0 to 1, got {layer!r}",
        )
    refuses(lambda: rotary_embedding(file, "a", layer=1), "ValueError: is of type 'b'")
    cohere = {**FILE, "model_type": "cohere2", "num_hidden_layers": 4}
    refuses(lambda: rotary_embedding(cohere, layer=3), "ValueError: give layer_type")
