"""llama.cpp's order of q and k, as a GGUF file has them.

Each architecture has one. Where the model that a file was made from has the other, the
script that made it has reordered q and k. :func:`.convert_checkpoint` of
``hugging_face`` takes names of GGUF too, so that ``source=pairing("llama")`` and
``target="half"`` bring a file's tensors to Hugging Face's order. Lesson 20.
"""

from __future__ import annotations

from torch import Tensor

from rope_teach.checks import Pairing, check_count
from rope_teach.pairing import convert_projection

__all__ = ["pairing", "permute"]

# general.architecture of files whose q and k rotate (0, 1)(2, 3)...: ROPE_TYPE_NORM.
INTERLEAVED = frozenset(
    """
    arcee arctic baichuan bailingmoe chameleon chatglm cohere2 command-r deci deepseek
    deepseek2 ernie4_5 ernie4_5-moe granite granitehybrid granitemoe internlm2 llada
    llama llama4 llama-embed maincoder minicpm mistral3 mistral4 neo-bert olmo plm
    smollm3 starcoder xverse
    """.split()
)
# (0, r/2)(1, r/2 + 1)...: ROPE_TYPE_NEOX, and MROPE and IMROPE, which pair alike.
HALF = frozenset(
    """
    afmoe apertus bailingmoe2 bert bitnet codeshell cogvlm dbrx dots1 dream eurobert
    exaone exaone4 exaone-moe falcon falcon-h1 gemma gemma2 gemma3 gemma3n gemma4
    gemma-embedding gptneox gpt-oss grok grovemoe hunyuan-dense hunyuan-moe hy_v3 jais2
    jina-bert-v3 laguna lfm2 lfm2moe llada-moe mellum mimo2 minicpm3 minimax-m2
    modern-bert nemotron nomic-bert nomic-bert-moe olmo2 olmoe openelm orion
    pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 qwen qwen2 qwen2moe qwen2vl
    qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe rnd1 seed_oss
    smallthinker stablelm starcoder2 step35
    """.split()
)


def pairing(architecture: str) -> Pairing:
    """The pairing of q and k in a file whose ``general.architecture`` this is.

    Raises ``ValueError`` for one that is not known, or that does not rotate: a wrong
    guess would cost every logit. Source: ``llama_model_rope_type`` of llama.cpp, as of
    2026. ``glm4`` and ``glm4moe`` depend on more than their name. Lesson 20.

    >>> pairing("llama"), pairing("qwen2")
    ('interleaved', 'half')
    """
    if architecture in INTERLEAVED:
        return "interleaved"
    if architecture in HALF:
        return "half"
    raise ValueError(
        f"architecture {architecture!r} is not one whose pairing is known: "
        f"{len(INTERLEAVED)} are interleaved and {len(HALF)} half; see "
        "llama_model_rope_type of llama.cpp"
    )


def permute(weights: Tensor, n_head: int, n_head_kv: int | None) -> Tensor:
    """Reorder a q or k projection from half to interleaved: ``LlamaModel.permute``.

    Parameters
    ----------
    weights
        ``(heads * head_dim, in_features)``, or the bias.
    n_head, n_head_kv
        Heads of the query, and of the key. For a query give its own number twice, or
        None: whenever ``n_head_kv`` is given, it is what counts.

    Returns
    -------
    Tensor
        A new tensor of the same shape.

    Raises
    ------
    ValueError
        If the rows do not divide into that many even heads: the original reshapes
        whatever divides. Both reorder all features of a head, and are wrong where only
        a part is rotated: use :func:`.convert_checkpoint`.

    Notes
    -----
    Until llama.cpp's pull request 3364 the original divided ``n_head`` by
    ``n_head_kv``. That is right for 64 heads and 8, and for hardly any other model:
    TinyLlama's 32 and 4 came out as noise. Reading back, transformers forgot
    ``n_head_kv`` until its pull request 31788. Lesson 20.

    Examples
    --------
    >>> import torch
    >>> permute(torch.arange(8.0), 2, 2)
    tensor([0., 2., 1., 3., 4., 6., 5., 7.])
    """
    check_count("n_head", n_head)
    heads = n_head if n_head_kv is None else n_head_kv
    return convert_projection(weights, heads, "half", "interleaved")
