"""The small transformers that the lessons train.

Built in lessons 01, 03, 09, 14, 15 and 17.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rope_teach.absolute import LearnedEncoding, SinusoidalEncoding
from rope_teach.attention import Attention, KeyValueCache, segment_positions
from rope_teach.course.progress import progress
from rope_teach.course.tasks import END, PAD, START
from rope_teach.frequencies import Scaling
from rope_teach.rotary import RotaryEmbedding, Tables

__all__ = [
    "LanguageModel",
    "PictureReader",
    "QuestionAnswerer",
    "Summarizer",
    "generate",
    "sample",
    "summarize",
]

LOUDNESS = 0.3  # tokens and learned positions start with equal spread; a sine's is 0.7


class LanguageModel(nn.Module):
    """A transformer from token ids ``(batch, seq)`` to logits ``(batch, seq, vocab)``.

    Parameters
    ----------
    vocab
        Number of distinct tokens.
    dim, layers, heads
        Features per token, number of blocks, heads per block.
    encoding
        ``"none"``, ``"learned"``, ``"sinusoidal"``, ``"rope"`` or ``"alibi"``.
    max_len
        Rows of the learned encoding, the only one that needs it. A longer
        sequence raises ``ValueError``.
    kv_heads
        Heads of keys and values (default: as many as ``heads``).
    causal
        Whether a token sees only itself and earlier tokens.
    rotary_dim, base, scaling
        Passed to :class:`RotaryEmbedding`; used only by ``"rope"``.
    tied
        Whether the embedding also scores the next token, which saves the second
        table (Press and Wolf, 1608.05859).

    Notes
    -----
    Token ids that are not integers raise ``TypeError``; ids outside the
    vocabulary raise ``ValueError``. Lessons 01 and 03; trained on text in lesson 12.

    Examples
    --------
    >>> model = LanguageModel(256, encoding="rope")
    >>> model(torch.tensor([[72, 105, 33]])).shape
    torch.Size([1, 3, 256])
    """

    def __init__(
        self,
        vocab: int,
        dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        *,
        encoding: str = "none",
        max_len: int | None = None,
        kv_heads: int | None = None,
        causal: bool = True,
        rotary_dim: int | None = None,
        base: float = 10_000.0,
        scaling: Scaling | None = None,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.vocab = vocab
        self.embed = nn.Embedding(vocab, dim)
        nn.init.normal_(self.embed.weight, std=dim**-0.5 if tied else LOUDNESS)
        self.position = added_position(encoding, dim, max_len)
        self.blocks = nn.Sequential(
            *(
                Block(
                    Attention(
                        dim,
                        heads,
                        kv_heads=kv_heads,
                        encoding=encoding,
                        causal=causal,
                        rotary_dim=rotary_dim,
                        base=base,
                        scaling=scaling,
                    )
                )
                for _ in range(layers)
            )
        )
        self.norm = nn.RMSNorm(dim)
        self.head = None if tied else nn.Linear(dim, vocab, bias=False)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """Logits ``(batch, seq, vocab)`` of ``tokens`` ``(batch, seq)``.

        ``mask`` and ``positions`` as in :class:`Attention`, here for any encoding;
        ``caches`` from :meth:`caches`, one per block.
        """
        check_tokens(tokens, self.vocab)
        layers = len(self.blocks)
        if caches is None:
            of_block: list[KeyValueCache | None] = [None] * layers
        elif layers == len(caches) == len(set(map(id, caches))):
            of_block = [*caches]
        else:
            raise ValueError(
                f"caches must be {layers} distinct caches, one per block, as "
                "model.caches() returns"
            )
        x = placed(self.position, self.embed(tokens), positions, of_block[0])
        tables = self._tables(x, positions, of_block[0])
        for block, cache in zip(self.blocks, of_block, strict=True):
            x = block(x, mask, positions=positions, tables=tables, cache=cache)
        weight = self.embed.weight if self.head is None else self.head.weight
        return F.linear(self.norm(x), weight)

    def caches(self, start: int = 0, max_len: int | None = None) -> list[KeyValueCache]:
        """Empty caches, one per block, as :class:`KeyValueCache` makes them."""
        return [KeyValueCache(start, max_len) for _ in self.blocks]

    def _tables(
        self, x: Tensor, positions: Tensor | None, cache: KeyValueCache | None
    ) -> Tables | None:
        """Cos and sin for all layers, if they rotate alike."""
        ropes = [getattr(block.attention, "rope", None) for block in self.blocks]
        first = ropes[0]
        if not isinstance(first, RotaryEmbedding) or first.xpos_scale_base is not None:
            return None
        if not all(first.shares_tables(rope) for rope in ropes):
            return None
        start = cache.next if cache is not None and positions is None else 0
        return first.tables(
            positions, seq=x.shape[1], start=start, dtype=x.dtype, device=x.device
        )


class Block(nn.Module):
    """Attention, then a small network on each token; each adds to its input."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        dim = attention.dim
        self.attention_norm, self.network_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.attention = attention
        self.network = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        tables: Tables | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        x = x + self.attention(
            self.attention_norm(x),
            mask,
            positions=positions,
            tables=tables,
            cache=cache,
        )
        x = x + self.network(self.network_norm(x))
        return x


class PictureReader(nn.Module):
    """Reads pictures ``(batch, height, width)`` with a sequence model.

    The cells become one sequence, row by row. ``places(height, width)`` returns the
    position of each cell, ``(cells,)`` or ``(cells, axes)``, as
    :func:`grid_positions` does. Logits are ``(batch, height, width, vocab)``.
    Lesson 17.

    >>> flat = LanguageModel(8, encoding="rope", causal=False)
    >>> reader = PictureReader(flat, lambda height, width: torch.arange(height * width))
    >>> reader(torch.zeros(2, 3, 4, dtype=torch.long)).shape
    torch.Size([2, 3, 4, 8])
    """

    def __init__(
        self, model: LanguageModel, places: Callable[[int, int], Tensor]
    ) -> None:
        super().__init__()
        self.model, self.places = model, places

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.ndim != 3:
            raise ValueError(
                f"pictures must be (batch, height, width), got {tuple(pictures.shape)}"
            )
        size = pictures.shape[1:]
        positions = self.places(*size).to(pictures.device)
        logits: Tensor = self.model(pictures.flatten(1), positions=positions)
        return logits.unflatten(1, size)


class QuestionAnswerer(nn.Module):
    """Reads a question and a text as one sequence, and points at the answer.

    A row of tokens is the question, ``START``, the text and possibly ``PAD``. Every
    token sees every other token, before and after it. At the end the words of the
    question are combined into two vectors; their products with each word of the text
    score it as the start or end of the answer. Logits are -inf outside the text.

    Parameters
    ----------
    vocab, dim, layers, heads, encoding, max_len, base
        As for :class:`LanguageModel`.

    Notes
    -----
    Sources: one sequence in two parts, Devlin et al. (1810.04805), section 4.2;
    pointing by products, Vinyals et al. (1506.03134). Lesson 15.

    Examples
    --------
    >>> model = QuestionAnswerer(30, encoding="rope")
    >>> model(torch.tensor([[5, 6, 7, 1, 8, 9, 0]])).isfinite()[0].int()
    tensor([[0, 0, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 1, 1, 0]], dtype=torch.int32)
    """

    def __init__(
        self,
        vocab: int,
        dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        *,
        encoding: str = "none",
        max_len: int | None = None,
        base: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.vocab = vocab
        self.embed = nn.Embedding(vocab, dim)
        self.part = nn.Embedding(2, dim)  # question or text
        for table in (self.embed, self.part):
            nn.init.normal_(table.weight, std=LOUDNESS)
        self.position = added_position(encoding, dim, max_len)
        self.blocks = nn.ModuleList(
            Block(Attention(dim, heads, encoding=encoding, causal=False, base=base))
            for _ in range(layers)
        )
        self.norm = nn.RMSNorm(dim)
        self.head = nn.Linear(dim, 2 * dim, bias=False)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits ``(batch, 2, seq)`` of the answer's first and last token.

        ``mask`` and ``positions`` as in :class:`Attention`; padding is always hidden.
        Raises ``ValueError`` for a row without a text.
        """
        check_tokens(tokens, self.vocab)
        begun = (tokens == START).cumsum(1) > 0
        text = begun & (tokens != START) & (tokens != PAD)
        if not torch.compiler.is_compiling() and not text.any(1).all():
            raise ValueError("each row needs a question, START and a text")
        real = (tokens != PAD)[:, None, None]
        x = self.embed(tokens) + self.part(begun.long())
        if not isinstance(self.position, nn.Identity):
            x = self.position(x, positions=positions)
        for block in self.blocks:
            x = block(x, real if mask is None else real & mask, positions=positions)
        x = self.norm(x)
        asked = (x * (~begun & (tokens != PAD))[..., None]).sum(1)
        pointers = self.head(asked).unflatten(1, (2, -1))
        logits: Tensor = pointers @ x.transpose(1, 2) / x.shape[-1] ** 0.5
        return logits.masked_fill(~text[:, None], float("-inf"))

    @torch.no_grad()
    def answer(self, tokens: Tensor) -> Tensor:
        """Most likely first and last token ``(batch, 2)``, first at or before last.

        >>> model = QuestionAnswerer(30, encoding="rope")
        >>> model.answer(torch.tensor([[5, 6, 7, 1, 8, 0, 0]]))
        tensor([[4, 4]])
        """
        first, last = self(tokens).unbind(1)
        both = first[:, :, None] + last[:, None, :]
        before = torch.ones_like(both, dtype=torch.bool).tril(-1)
        best = both.masked_fill(before, float("-inf")).flatten(1).argmax(1)
        return torch.stack([best // tokens.shape[1], best % tokens.shape[1]], dim=1)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a token for each row of ``logits`` ``(batch, vocab)``: ``(batch,)``.

    Parameters
    ----------
    temperature
        Divides the logits: 0 takes the most likely token, below 1 prefers likely ones.
    top_k
        Only the ``top_k`` most likely tokens are drawn from (Fan et al., 1805.04833).
    top_p
        Only the most likely tokens that together reach ``top_p`` (nucleus sampling,
        Holtzman et al., 1904.09751); at least one.

    Notes
    -----
    Raises ``ValueError`` for a negative temperature, ``top_k`` below 1, or ``top_p``
    outside (0, 1]. Lesson 12.

    Examples
    --------
    >>> logits = torch.tensor([[0.0, 3.0, 1.0]])
    >>> sample(logits, temperature=0), sample(logits, top_p=0.5)
    (tensor([1]), tensor([1]))
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if temperature == 0:
        return logits.argmax(-1)
    ranked, order = logits.float().sort(dim=-1, descending=True)
    chance = (ranked[:, :top_k] / temperature).softmax(-1)
    if top_p is not None:
        chance = chance * (chance.cumsum(-1) - chance < top_p)  # before this token
    drawn = torch.multinomial(chance, 1, generator=generator)
    return order.gather(1, drawn).squeeze(1)


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokens: Tensor,
    steps: int,
    *,
    real: Tensor | None = None,
    cache: bool = True,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Collection[int] = (),
    seed: int = 0,
    label: str | None = None,
) -> Tensor:
    """Write up to ``steps`` more tokens: ``(batch, seq + at most steps)``.

    Parameters
    ----------
    real
        ``(batch, seq)`` bool, False for the padding of shorter prompts. Padding must
        be on the left, because the next token follows the last one; ``padded(rows,
        left=True)`` does it. Positions count from each prompt's first real token.
    cache
        Whether to keep keys and values, or to reread everything at each step. The
        result is the same.
    temperature, top_k, top_p
        As in :func:`sample`; by default the most likely token is taken.
    stop
        Tokens that end a text. An ended row repeats its stop token; writing ends when
        all rows have ended.
    seed
        Of the random draws.
    label
        Shown before a progress bar; None hides the bar.

    Notes
    -----
    Raises ``ValueError`` for padding on the right and for a stop token outside the
    vocabulary. Lessons 09 and 12.
    """
    if not tokens.shape[1]:
        raise ValueError("tokens must hold at least one token per prompt, got none")
    if real is not None and not bool(
        real[:, -1].all() and (real[:, 1:] >= real[:, :-1]).all()
    ):
        raise ValueError(
            "padding must be on the left, got a prompt with padding after a token"
        )
    if not all(0 <= token < model.vocab for token in stop):
        raise ValueError(
            f"stop must hold tokens between 0 and {model.vocab - 1}, got {list(stop)}"
        )
    longest = tokens.shape[1] + steps
    caches = model.caches(max_len=longest) if cache and longest else None
    chance = torch.Generator(tokens.device).manual_seed(seed)
    ending = torch.tensor(list(stop), dtype=torch.long, device=tokens.device)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in progress(steps, label):
        known = caches[0].length if caches else 0
        mask = positions = None
        if real is not None:
            mask = real[:, None, None]
            positions = None if known else segment_positions(real)  # then caches count
        logits = model(tokens[:, known:], mask, positions=positions, caches=caches)
        new = sample(logits[:, -1], temperature, top_k, top_p, chance)
        new = torch.where(ended, tokens[:, -1], new)
        ended = ended | torch.isin(new, ending)
        tokens = torch.cat([tokens, new[:, None]], dim=1)
        real = real if real is None else F.pad(real, (0, 1), value=True)
        if stop and ended.all():
            break
    return tokens


class Summarizer(nn.Module):
    """An encoder reads a document; a decoder writes its summary, token by token.

    Parameters
    ----------
    vocab, dim, heads, encoding, max_len, base
        As for :class:`LanguageModel`.
    layers
        Number of blocks in the encoder, and in the decoder.

    Notes
    -----
    Cross-attention, through which the summary reads the document, has no positions:
    lesson 14 shows why. Source: Vaswani et al. (1706.03762), figure 1. Lesson 14.

    Examples
    --------
    >>> model = Summarizer(30, encoding="rope")
    >>> document, given = torch.ones(2, 24).long(), torch.ones(2, 6).long()
    >>> model(document, given).shape
    torch.Size([2, 6, 30])
    """

    def __init__(
        self,
        vocab: int,
        dim: int = 64,
        layers: int = 2,
        heads: int = 4,
        *,
        encoding: str = "none",
        max_len: int | None = None,
        base: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.config = arguments(locals())
        self.vocab = vocab
        self.embed = nn.Embedding(vocab, dim)
        nn.init.normal_(self.embed.weight, std=LOUDNESS)
        self.position = added_position(encoding, dim, max_len)

        def attention(causal: bool) -> Attention:
            return Attention(dim, heads, encoding=encoding, causal=causal, base=base)

        self.encoder = nn.ModuleList(Block(attention(False)) for _ in range(layers))
        self.decoder = nn.ModuleList(
            DecoderBlock(attention(True), Attention(dim, heads, causal=False))
            for _ in range(layers)
        )
        self.document_norm, self.norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)

    def forward(
        self, document: Tensor, given: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Logits ``(batch, summary, vocab)`` of the token after each one in ``given``.

        ``document`` is ``(batch, seq)``, and its ``PAD`` is hidden; ``positions`` are
        those of its tokens, ``(seq,)`` or ``(batch, seq)``, by default 0, 1, ...;
        ``given`` is ``(batch, summary)`` and begins with ``START``.
        """
        return self.write(self.read(document, positions), document != PAD, given)

    def read(self, document: Tensor, positions: Tensor | None = None) -> Tensor:
        """Run the encoder, once per document: ``(batch, seq, dim)``."""
        check_tokens(document, self.vocab)
        x = self.embed(document)
        if not isinstance(self.position, nn.Identity):
            x = self.position(x, positions=positions)
        for block in self.encoder:
            x = block(x, (document != PAD)[:, None, None], positions=positions)
        memory: Tensor = self.document_norm(x)
        return memory

    def write(
        self,
        memory: Tensor,
        real: Tensor,
        given: Tensor,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """Run the decoder on ``memory``; ``real`` ``(batch, seq)`` hides padding.

        With ``caches``, one per decoder block, ``given`` are the newest tokens only.
        """
        check_tokens(given, self.vocab)
        if tuple(real.shape) != tuple(memory.shape[:2]) or real.dtype != torch.bool:
            raise ValueError(
                f"real must be boolean (batch, seq) = {tuple(memory.shape[:2])}, got "
                f"{real.dtype} {tuple(real.shape)}"
            )
        layers = len(self.decoder)
        if caches and not layers == len(caches) == len(set(map(id, caches))):
            raise ValueError(
                f"caches must be {layers}: give each block a KeyValueCache() of its own"
            )
        of_block: Sequence[KeyValueCache | None] = caches or [None] * layers
        x = placed(self.position, self.embed(given), None, of_block[0])
        for block, cache in zip(self.decoder, of_block, strict=True):
            x = block(x, memory, real[:, None, None], cache)
        logits: Tensor = self.head(self.norm(x))
        return logits


class DecoderBlock(Block):
    """A block that attends to the document between its two halves."""

    def __init__(self, attention: Attention, cross: Attention) -> None:
        super().__init__(attention)
        self.cross_norm, self.cross = nn.RMSNorm(attention.dim), cross

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        memory: Tensor,
        real: Tensor,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cache=cache)
        x = x + self.cross(self.cross_norm(x), real, context=memory)
        x = x + self.network(self.network_norm(x))
        return x


@torch.no_grad()
def summarize(
    model: Summarizer,
    document: Tensor,
    steps: int = 20,
    beams: int = 1,
    *,
    cache: bool = True,
    label: str | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Write the summary of each document: ``(batch, at most steps)``.

    Keeps the ``beams`` most likely beginnings at each step; one beam is greedy. Stops
    when every summary contains ``END``; after ``END`` comes ``PAD``. ``cache`` keeps
    the decoder's keys and values, with the same result; ``label`` shows a progress bar;
    ``positions`` are the document's, as :class:`Summarizer` takes them. Lesson 14.
    """
    if steps < 1 or not 1 <= beams <= model.vocab:
        raise ValueError(
            f"steps must be at least 1, and beams between 1 and {model.vocab}, got "
            f"steps={steps}, beams={beams}"
        )
    batch = len(document)
    document = document.repeat_interleave(beams, dim=0)
    if positions is not None and positions.ndim == 2:
        positions = positions.expand(batch, -1).repeat_interleave(beams, dim=0)
    memory, real = model.read(document, positions), document != PAD
    caches = [KeyValueCache() for _ in model.decoder] if cache else None
    given = torch.full_like(document[:, :1], START)
    score = memory.new_full((batch, beams), float("-inf"))
    score[:, 0] = 0.0  # all beams start the same, so only one of them counts
    first = beams * torch.arange(batch, device=document.device)[:, None]
    for _ in progress(steps, label):
        known = caches[0].length if caches else 0
        likely = model.write(memory, real, given[:, known:], caches)[:, -1]
        likely = likely.log_softmax(-1)
        ended = (given == END).any(dim=1)
        likely[ended] = float("-inf")
        likely[ended, PAD] = 0.0  # a finished summary becomes no less likely
        total = score.flatten()[:, None] + likely
        score, best = total.reshape(batch, -1).topk(beams)
        token, parent = best % model.vocab, (first + best // model.vocab).flatten()
        given = torch.cat([given[parent], token.reshape(-1, 1)], dim=1)
        if caches and beams > 1:
            caches = [of_rows(each, parent) for each in caches]
        if (given == END).any(dim=1).all():
            break
    return given[::beams, 1:]


def of_rows(cache: KeyValueCache, rows: Tensor) -> KeyValueCache:
    """A cache that holds these rows of the batch, as when some beams go on."""
    if cache.keys is None or cache.values is None:
        return cache
    chosen = KeyValueCache()
    kept = cache.positions  # ALiBi's bias needs them
    chosen.append(
        cache.keys[rows],
        cache.values[rows],
        None if kept is None else kept[rows],
        keep_positions=kept is not None,
    )
    return chosen


def arguments(names: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments among ``locals()``: a checkpoint stores them."""
    return {k: v for k, v in names.items() if k not in ("self", "__class__")}


def added_position(encoding: str, dim: int, max_len: int | None) -> nn.Module:
    """The module that adds positions to embeddings; RoPE and ALiBi act in attention."""
    if encoding == "sinusoidal":
        return SinusoidalEncoding(dim)
    if encoding != "learned":
        return nn.Identity()
    if max_len is None:
        raise ValueError("encoding='learned' needs max_len, its number of rows")
    table = LearnedEncoding(max_len, dim)
    nn.init.normal_(table.weight, std=LOUDNESS)
    return table


def placed(
    position: nn.Module,
    x: Tensor,
    positions: Tensor | None,
    cache: KeyValueCache | None,
) -> Tensor:
    """``x`` with the positions that ``position`` adds, after the cached tokens."""
    if isinstance(position, nn.Identity):
        return x
    if positions is None and cache is not None:
        positions = cache.place(x.shape[1], x.device)
    added: Tensor = position(x, positions=positions)
    return added


def check_tokens(tokens: Tensor, vocab: int) -> None:
    """Raise unless ``tokens`` are int64 ``(batch, seq)``, each below ``vocab``."""
    if tokens.dtype != torch.long or tokens.ndim != 2:
        raise TypeError(
            "tokens must be int64 of shape (batch, seq), got "
            f"{tokens.dtype} of shape {tuple(tokens.shape)}"
        )
    if torch.compiler.is_compiling():  # a graph cannot check values; its lookup raises
        return
    if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < vocab:
        raise ValueError(
            f"token ids must lie between 0 and {vocab - 1}, got "
            f"{tokens.min()} to {tokens.max()}"
        )
