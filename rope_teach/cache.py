"""The key-value cache: what attention keeps of earlier tokens. Built in lesson 09."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rope_teach.checks import (
    check_count,
    check_floating,
    check_start,
    check_token_positions,
    without_wrapping,
    wrong_shape,
)

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """The keys and values of earlier tokens, for one attention layer.

    Keys are stored as rotated when their token arrived, and never rotated again.
    ``start`` is the position of the first token; ``next`` that of the next one: an int,
    or, once positions were given, a tensor, ``()`` or ``(batch,)``. It keeps counting
    when old keys are dropped.

    Memory doubles whenever it is full, or is as large as ``max_len`` from the start;
    holding more raises ``ValueError``. When :meth:`keep` has dropped tokens, those left
    move to new memory once it is full: twice the window is a good ``max_len``, with
    which they move once a window, not at each step.

    Notes
    -----
    A slot is written once, so a step costs the same at any length, and what
    :meth:`append` returned stays as it was. Where a gradient is needed, keys and values
    are concatenated instead, which copies all of them at every step: generate text
    under ``torch.no_grad``. Copies of a cache are independent. With ``max_len`` a
    compiled step is compiled once; without, again when the memory first grows.
    Lesson 09.

    Examples
    --------
    >>> cache = KeyValueCache()
    >>> keys, values = cache.append(torch.randn(1, 2, 10, 8), torch.randn(1, 2, 10, 8))
    >>> cache
    KeyValueCache(length=10, next=10)
    """

    def __init__(self, start: int = 0, max_len: int | None = None) -> None:
        check_start("start", start)
        if max_len is not None:
            check_count("max_len", max_len)
        self.next: int | Tensor = start
        self._keys, self._values = _Slots(max_len), _Slots(max_len)
        self._positions = _Slots(max_len)
        self._layer: nn.Module | None = None

    @property
    def keys(self) -> Tensor | None:
        """``(batch, kv_heads, length, head_dim)``, a view; None while it is new."""
        return self._keys.held

    @property
    def values(self) -> Tensor | None:
        """The same for the values."""
        return self._values.held

    @property
    def positions(self) -> Tensor | None:
        """``(batch, length)``, where :meth:`append` was told to keep them."""
        held = self._positions.held
        return None if held is None else held[:, 0, :, 0]

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return self._keys.end - self._keys.first

    def slot(self, keys: Tensor) -> Tensor | None:
        """Memory to write the next ``keys`` into, so that :meth:`append` copies none.

        None if a gradient is needed or the cache holds a wider dtype.
        """
        self._keys.check("keys", keys)
        if self._needs_gradient(keys):
            return None
        slot = self._keys.slot(keys)
        self._keys.handed_out = slot if slot.dtype == keys.dtype else None
        return self._keys.handed_out

    def append(
        self,
        keys: Tensor,
        values: Tensor,
        positions: Tensor | None = None,
        *,
        keep_positions: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Add ``(batch, kv_heads, seq, head_dim)`` each, and return all that is held.

        ``positions``, ``(seq,)`` or ``(batch, seq)``, are those at which the keys were
        rotated, by default ``next``, ``next + 1``, ...; ``keep_positions`` stores them.
        Raises ``ValueError`` if they do not continue where the cache left off (checked
        on the CPU), if a shape or device does not match, or if ``max_len`` is too
        small; nothing is stored then.
        """
        self._keys.check("keys", keys)
        self._values.check("values", values)
        batch, _, seq, _ = keys.shape
        if values.shape[:3] != keys.shape[:3]:
            raise ValueError(
                "keys and values must agree in (batch, kv_heads, seq), got "
                f"{tuple(keys.shape)} and {tuple(values.shape)}"
            )
        if positions is not None:
            check_token_positions(positions, (batch, seq))
            self._check_next(positions)
        if keep_positions:
            kept = self.place(seq, keys.device) if positions is None else positions
            if self._positions.end - self._positions.first != self.length:
                raise ValueError("positions must be kept from the first token on")
            self._positions.append(kept.expand(batch, seq)[:, None, :, None], True)
        in_place = not self._needs_gradient(keys, values)
        held = self._keys.append(keys, in_place), self._values.append(values, in_place)
        if positions is None:
            self.next = self.next + seq
        elif seq:
            following = without_wrapping(positions[..., -1]) + 1
            self.next = following.expand(batch) if following.ndim else following
        return held

    def keep(self, newest: int) -> None:
        """Drop all but the ``newest`` tokens; ``next`` stays where it is."""
        if isinstance(newest, bool) or not isinstance(newest, int) or newest < 0:
            raise ValueError(f"newest must be a non-negative int, got {newest!r}")
        for slots in (self._keys, self._values, self._positions):
            slots.first = max(slots.first, slots.end - newest)

    def place(self, seq: int, device: torch.device | None = None) -> Tensor:
        """Positions of the next ``seq`` tokens: ``(seq,)`` or ``(batch, seq)``."""
        places = torch.arange(seq, device=device)
        if isinstance(self.next, Tensor):
            return self.next.to(places.device).unsqueeze(-1) + places
        return self.next + places

    def claim(self, layer: nn.Module) -> None:
        """Reserve it for ``layer``, until it is empty; ``ValueError`` for another."""
        if self._layer not in (None, layer) and self.length:
            raise ValueError(
                "this cache already holds the keys of another attention layer: give "
                "each layer a KeyValueCache() of its own"
            )
        self._layer = layer

    def _needs_gradient(self, *new: Tensor) -> bool:
        used = (*new, self._keys.memory, self._values.memory)
        needed = (x.requires_grad for x in used if x is not None)
        return torch.is_grad_enabled() and any(needed)

    def _check_next(self, positions: Tensor) -> None:
        # Skipped in a graph, and on a GPU, where reading values would synchronize. Keys
        # and `next` follow `positions` either way.
        if positions.device.type != "cpu" or torch.compiler.is_compiling():
            return
        is_new = not self.length and isinstance(self.next, int) and not self.next
        if not is_new and positions.numel() and (positions[..., 0] != self.next).any():
            raise ValueError(
                f"the next position is {self.next}, got positions that begin with "
                f"{positions[..., 0].tolist()}; leave positions out to go on from there"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Give a copy memory of its own; it belongs to no layer yet."""
        own = {n: copy.copy(v) for n, v in vars(self).items() if isinstance(v, _Slots)}
        return {**self.__dict__, **own, "_layer": None}

    def __repr__(self) -> str:
        return f"KeyValueCache(length={self.length}, next={self.next})"


class _Slots:
    """A tensor that grows along its third axis, into memory allocated ahead.

    Slots ``first`` to ``end`` are in use. No slot is written twice: when the memory
    is full, what is in use moves to new memory, twice as large as needed.
    """

    def __init__(self, max_len: int | None) -> None:
        self.max_len = max_len
        self.memory: Tensor | None = None
        self.handed_out: Tensor | None = None  # the slot that `append` finds filled
        self.first = self.end = 0

    @property
    def held(self) -> Tensor | None:
        return None if self.memory is None else self.memory[:, :, self.first : self.end]

    def check(self, name: str, new: Tensor) -> None:
        """Raise unless ``new`` can follow what is held."""
        check_floating(name, new)
        if new.ndim != 4:
            raise wrong_shape(name, "(batch, kv_heads, seq, head_dim)", new)
        needed = self.end - self.first + new.shape[2]
        if self.max_len is not None and needed > self.max_len:
            raise ValueError(
                f"max_len={self.max_len} is too small for {needed} tokens; "
                "keep() drops old ones"
            )
        if self.memory is None:
            return
        (batch, heads, _, size), device = self.memory.shape, self.memory.device
        if tuple(new.shape) != (batch, heads, new.shape[2], size):
            raise ValueError(
                f"the cache holds {name} (batch={batch}, kv_heads={heads}, seq, "
                f"head_dim={size}), got {tuple(new.shape)}"
            )
        if new.device != device:
            raise ValueError(f"the cache holds {name} on {device}, got {new.device}")

    def slot(self, new: Tensor) -> Tensor:
        """Memory for ``new``, behind what is in use."""
        length, seq, held = self.end - self.first, new.shape[2], self.held
        dtype = torch.promote_types(new.dtype, (new if held is None else held).dtype)
        room = 0 if self.memory is None else self.memory.shape[2]
        # Memory that is hardly used, after a long prompt was dropped, is given back.
        wasted = self.max_len is None and 4 * (length + seq) < room
        if held is None or held.dtype != dtype or wasted or self.end + seq > room:
            batch, heads, _, size = new.shape
            room = 2 * (length + seq) if self.max_len is None else self.max_len
            # Outside inference mode, so that a later call outside of it may write, too.
            with torch.inference_mode(False), torch.no_grad():
                memory = new.new_empty(batch, heads, room, size, dtype=dtype)
                if held is not None:
                    memory[:, :, :length] = held
            self.memory, self.first, self.end = memory, 0, length
        assert self.memory is not None
        return self.memory[:, :, self.end : self.end + seq]

    def append(self, new: Tensor, in_place: bool) -> Tensor:
        """Take in ``new``, and return what is held, in place or as a new tensor."""
        if not in_place:
            held = self.held
            self.memory = new if held is None else torch.cat([held, new], dim=2)
            self.first, self.end = 0, self.memory.shape[2]
            return self.memory
        if new is not self.handed_out:
            self.slot(new).copy_(new)
        self.handed_out = None
        self.end += new.shape[2]
        assert self.memory is not None
        return self.memory[:, :, self.first : self.end]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out free slots: two copies must not write into the same ones."""
        memory = None if self.held is None else self.held.clone()
        kept = {"max_len": self.max_len, "memory": memory, "handed_out": None}
        return {**kept, "first": 0, "end": self.end - self.first}
