import pytest
import torch

from rope_teach import RotaryEmbedding, convert_projection
from rope_teach.attention import (
    ENCODINGS,
    KeyValueCache,
    segment_mask,
    segment_positions,
)
from rope_teach.axes import grid_positions
from rope_teach.course.masks import blockwise_mask, window_mask
from rope_teach.course.models import (
    LanguageModel,
    PictureReader,
    QuestionAnswerer,
    Summarizer,
    generate,
)
from rope_teach.course.training import seed_everything


def small(**kwargs):
    seed_everything(0)
    kwargs = {"encoding": "rope", "max_len": 16} | kwargs
    return LanguageModel(11, 32, 2, 4, **kwargs)


def tokens(batch=2, seq=12):
    return torch.randint(11, (batch, seq), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_shape_and_gradient_everywhere(encoding):
    model = small(encoding=encoding)
    logits = model(tokens(seq=16))
    assert logits.shape == (2, 16, 11)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_no_logit_depends_on_a_later_token(encoding):
    model, x = small(encoding=encoding), tokens()
    changed = x.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    moved = (model(x) - model(changed)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 7 + [True] * 5


def test_without_position_and_mask_a_permutation_goes_through():
    model, x = small(encoding="none", causal=False), tokens()
    order = torch.randperm(12)
    torch.testing.assert_close(model(x[:, order]), model(x)[:, order])


@pytest.mark.parametrize("encoding", ["learned", "sinusoidal", "rope"])
def test_with_position_a_permutation_changes_the_result(encoding):
    model, x = small(encoding=encoding, causal=False), tokens()
    assert (model(x.flip(1)) - model(x).flip(1)).abs().max() > 1e-3


def test_only_the_learned_encoding_costs_parameters():
    size = {
        encoding: sum(p.numel() for p in small(encoding=encoding).parameters())
        for encoding in ENCODINGS
    }
    assert size.pop("learned") == size["none"] + 16 * 32
    assert set(size.values()) == {size["none"]}


def test_untrained_rows_have_no_gradient():
    model = small(encoding="learned")
    model(tokens(seq=10)).square().sum().backward()
    rows = model.position.weight.grad.norm(dim=1)
    assert (rows[:10] > 0).all() and (rows[10:] == 0).all()


def test_same_seed_same_model():
    x = tokens()
    assert torch.equal(small()(x), small()(x))


def test_partial_rotation_reaches_every_block():
    model = small(rotary_dim=4)
    assert [block.attention.rope.rotary_dim for block in model.blocks] == [4, 4]


# ------------------------------------------------ positions, masks and the caches


def close(got, expected, atol=2e-5):
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("encoding", ["none", "rope", "alibi"])
def test_shifting_every_position_changes_nothing(encoding):
    model, x = small(encoding=encoding), tokens()
    close(model(x, positions=torch.arange(12) + 10_000), model(x))


def test_shifting_every_position_changes_an_absolute_encoding():
    model, x = small(encoding="sinusoidal"), tokens()
    shifted = model(x, positions=torch.arange(12) + 10_000)
    assert (shifted - model(x)).abs().max() > 0.1


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 4, 3]])
def test_caches_equal_the_full_pass(encoding, chunks):
    model, x = small(encoding=encoding, kv_heads=2), tokens()
    caches = model.caches(start=4)
    parts = [model(part, caches=caches) for part in x.split(chunks, dim=1)]
    close(torch.cat(parts, 1), model(x, positions=torch.arange(4, 16)))
    assert [(cache.length, cache.next) for cache in caches] == [(12, 16)] * 2


def test_caches_far_into_a_text():
    model, x = small(), tokens()
    caches = model.caches(start=1_000_000)
    parts = [model(part, caches=caches) for part in x.split([7, 1, 4], dim=1)]
    close(torch.cat(parts, 1), model(x))


def test_dropping_the_oldest_keys_of_every_block():
    model, x = small(), tokens()
    caches, parts = model.caches(), []
    for part in x.split(1, dim=1):
        for cache in caches:
            cache.keep(4)
        parts.append(model(part, caches=caches))
    close(torch.cat(parts, 1), model(x, window_mask(12, 5)))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_packed_sequences_are_as_if_alone(encoding):
    model, x = small(encoding=encoding), tokens()
    segments = torch.tensor([[0] * 5 + [1] * 7]).expand(2, -1)
    packed = model(x, segment_mask(segments), positions=segment_positions(segments))
    close(packed, torch.cat([model(x[:, :5]), model(x[:, 5:])], 1))


# --------------------------------------------------------------------- generation


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_generation_with_and_without_the_cache(encoding):
    model, prompt = small(encoding=encoding), tokens(seq=6)
    out = generate(model, prompt, 9)
    assert out.shape == (2, 15) and torch.equal(out[:, :6], prompt)
    assert torch.equal(out, generate(model, prompt, 9, cache=False))
    for step in range(6, 15):
        assert torch.equal(model(out[:, :step])[:, -1].argmax(-1), out[:, step])


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("cache", [True, False])
def test_generation_from_a_left_padded_batch(encoding, cache):
    model, prompt = small(encoding=encoding), tokens(seq=6)
    real = torch.tensor([[False] * 4 + [True] * 2, [True] * 6])
    out = generate(model, prompt, 8, real=real, cache=cache)
    assert torch.equal(out[:1, 4:], generate(model, prompt[:1, 4:], 8))
    assert torch.equal(out[1:], generate(model, prompt[1:], 8))


def test_generation_refuses_padding_on_the_right(refuses):
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    refuses(
        lambda: generate(small(), tokens(seq=6), 2, real=real),
        "ValueError: padding must be on the left",
    )


# ---------------------------------------------------- a peer with the same weights


def llama_with_the_weights_of(model):
    """Hugging Face's Llama; our small network, not Llama's, follows each attention."""
    transformers = pytest.importorskip("transformers", reason="the peers extra has it")
    attention = model.blocks[0].attention
    config = transformers.LlamaConfig(
        vocab_size=model.vocab,
        hidden_size=attention.dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        rms_norm_eps=torch.finfo(torch.float32).eps,
        rope_theta=10_000.0,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
    )
    llama = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        llama.model.embed_tokens.weight.copy_(model.embed.weight)
        llama.model.norm.weight.copy_(model.norm.weight)
        llama.lm_head.weight.copy_(model.head.weight)
    for theirs, block in zip(llama.model.layers, model.blocks, strict=True):
        ours, heads = block.attention, {"query": attention.heads}
        half = {
            name: convert_projection(
                getattr(ours, name).weight.data,
                heads.get(name, attention.kv_heads),
                "interleaved",
                "half",
            )
            for name in ("query", "key")
        }
        theirs.self_attn.q_proj.weight.data = half["query"]
        theirs.self_attn.k_proj.weight.data = half["key"]
        theirs.self_attn.v_proj.weight.data = ours.value.weight.data
        theirs.self_attn.o_proj.weight.data = ours.out.weight.data
        theirs.input_layernorm.weight.data = block.attention_norm.weight.data
        theirs.post_attention_layernorm.weight.data = block.network_norm.weight.data
        theirs.mlp = block.network
    return llama


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_llama_with_our_weights_gives_our_logits(kv_heads):
    model, x = small(kv_heads=kv_heads), tokens()
    for norm in (block.attention_norm for block in model.blocks):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    llama = llama_with_the_weights_of(model)
    with torch.no_grad():
        close(llama(x).logits, model(x))
        real = torch.tensor([[0] * 4 + [1] * 8, [1] * 12])
        positions = segment_positions(real)
        theirs = llama(x, attention_mask=real, position_ids=positions).logits
        padded = model(x, real[:, None, None].bool(), positions=positions)
        close(theirs[0, 4:], padded[0, 4:])
        close(theirs[1], padded[1])
        out = generate(model, x, 8)
        every = torch.ones_like(x)
        theirs = llama.generate(x, attention_mask=every, max_new_tokens=8)
        assert torch.equal(theirs, out)


def test_a_picture_is_read_row_by_row_at_its_places():
    model = small(causal=False)
    pictures = tokens(seq=12).unflatten(1, (3, 4))
    flat = PictureReader(model, lambda h, w: torch.arange(h * w))
    torch.testing.assert_close(flat(pictures).flatten(1, 2), model(tokens(seq=12)))

    for block in model.blocks:
        block.attention.rope = RotaryEmbedding(8, axes=2, base=10.0)
    here, there, turned = (
        PictureReader(model, places)(pictures)
        for places in (
            grid_positions,
            lambda h, w: grid_positions(h, w) + 50,  # only offsets count
            lambda h, w: grid_positions(h, w).flip(1),
        )
    )
    torch.testing.assert_close(here, there, rtol=0, atol=1e-5)
    assert (here - turned).abs().max() > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: small(encoding="learned")(tokens(seq=17)),
            "ValueError: max_len=16 rows ... nothing to say past its table",
        ),
        (
            lambda: small(encoding="learned", max_len=None),
            "ValueError: encoding='learned' needs max_len",
        ),
        (lambda: small(encoding="xpos"), "ValueError: encoding must be ... got 'xpos'"),
        (
            lambda: small()(tokens() + 5),
            "ValueError: token ids must lie between 0 and 10, got 5 to 15",
        ),
        (lambda: small()(tokens() - 1), "ValueError: between 0 and 10, got -1"),
        (
            lambda: small()(torch.randn(2, 5)),
            "TypeError: tokens must be int64 of shape (batch, seq), got torch.float32",
        ),
        (lambda: small()(tokens()[0]), "TypeError: of shape (12,)"),
        (
            lambda: small()(tokens(), caches=[KeyValueCache()] * 2),
            "ValueError: caches must be 2 distinct caches, one per block",
        ),
        (
            lambda: small()(tokens(), caches=[KeyValueCache()]),
            "ValueError: caches must be 2 distinct caches",
        ),
        (
            lambda: small(encoding="learned")(tokens(), positions=torch.arange(5, 17)),
            "ValueError: positions 5 to 16 ... max_len=16 rows",
        ),
        (
            lambda: PictureReader(small(), grid_positions)(tokens()),
            "ValueError: pictures must be (batch, height, width), got (2, 12)",
        ),
        (
            lambda: small(encoding="sinusoidal")(tokens(), positions=torch.arange(5)),
            "ValueError: positions must be (seq,) or (batch, seq) ... got (5,)",
        ),
    ],
)
def test_bad_input_is_named(refuses, call, message):
    refuses(call, message)


# ---------------------------------------------------------------- compile, export


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_exports_with_any_length(encoding, strict):
    model = small(encoding=encoding).eval()
    seq = torch.export.Dim("seq", min=2, max=16)
    program = torch.export.export(
        model, (tokens(seq=7),), dynamic_shapes={"tokens": {1: seq}}, strict=strict
    ).module()
    for length in (5, 16):
        x = tokens(seq=length)
        torch.testing.assert_close(program(x), model(x))


def test_readers_of_two_texts_export():
    texts = torch.randint(3, 11, (2, 9)), torch.randint(3, 11, (2, 4))
    question = torch.tensor([[5, 6, 1, 8, 9, 0]])
    for kind, given in ((Summarizer, texts), (QuestionAnswerer, (question,))):
        model = kind(11, 16, 1, 2, encoding="rope").eval()
        program = torch.export.export(model, given).module()
        torch.testing.assert_close(program(*given), model(*given))


def test_compiles_as_one_graph():
    torch.compiler.reset()
    model, x = small(), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))
    with pytest.raises(IndexError, match="out of range"):
        compiled(x + 11)  # eager raises ValueError; a graph is not asked for values


def test_padding_before_a_question_changes_nothing():
    torch.manual_seed(0)
    model = QuestionAnswerer(12, dim=32, encoding="rope").eval()
    row = [5, 6, 7, 1, 8, 9, 10]
    with torch.no_grad():
        alone, padded = (model(torch.tensor([x])) for x in (row, [0, 0, 0, *row]))
    assert torch.allclose(padded[..., 3:], alone, atol=1e-5)


def test_masks_of_no_length_and_prompts_with_holes_are_refused(refuses):
    refuses(lambda: window_mask(3, 0), "ValueError: window must be positive")
    refuses(lambda: window_mask(3, 2, 1), "ValueError: k_len must be at least q_len=3")
    refuses(lambda: blockwise_mask(5, 0), "ValueError: block must be positive")
    model, tokens = LanguageModel(10, dim=16), torch.ones(1, 4, dtype=torch.long)
    holes = torch.tensor([[True, False, True, True]])
    refuses(lambda: generate(model, tokens, 2, real=holes), "ValueError: padding")
    refuses(lambda: generate(model, tokens[:, :0], 2), "ValueError: tokens must hold")
