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
)

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """The keys and values of earlier tokens, for one attention layer.

    Keys are stored as rotated when their token arrived, and never rotated again.
    ``next`` is the position of the next token: an int, or ``(batch,)`` where
    sequences differ. It keeps counting when old keys are dropped.

    Parameters
    ----------
    start
        Position of the first token.
    max_len
        How many tokens to allocate memory for, exactly and once; holding more raises
        ``ValueError``. Default: memory doubles whenever it is full. With :meth:`keep`,
        twice the window is a good choice: tokens move once a window, not at each step.

    Notes
    -----
    A slot is written once, so a step costs the same at any length, and what
    :meth:`append` returned stays as it was. Where a gradient is needed through the
    cache, keys and values are concatenated instead, at the price of a copy a step:
    generate text under ``torch.no_grad``. ``copy.copy`` gives a cache that goes on by
    itself. With ``max_len`` a compiled step is compiled once; without, again when the
    memory first grows. Lesson 09.

    Examples
    --------
    >>> from rope_teach.attention import Attention
    >>> attention, cache = Attention(64, heads=4, encoding="rope"), KeyValueCache()
    >>> prompt = attention(torch.randn(1, 10, 64), cache=cache)
    >>> one_more = attention(torch.randn(1, 1, 64), cache=cache)
    >>> cache
    KeyValueCache(length=11, next=11)
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
        """``(batch, kv_heads, length, head_dim)``, a view; None before any token."""
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
        return self._keys.length

    def slot(self, keys: Tensor) -> Tensor | None:
        """Memory for the next ``keys``, to write them into before :meth:`append`.

        Spares the copy: ``append(slot, values)`` finds its keys in place. None where
        they cannot be written in place: a gradient is needed, or the cache holds a
        wider dtype.
        """
        self._check_continues("keys", keys, self._keys)
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
        """Take in ``(batch, kv_heads, seq, head_dim)`` each; return all that is held.

        ``positions``, ``(seq,)`` or ``(batch, seq)``, are those at which the keys were
        rotated, by default ``next``, ``next + 1``, ... With ``keep_positions`` they
        are stored as well. Raises ``ValueError`` if they do not continue where the
        cache left off (checked on the CPU), if a shape or device does not match what
        it holds, or if ``max_len`` is too small; nothing is stored then.
        """
        self._check_continues("keys", keys, self._keys)
        self._check_continues("values", values, self._values)
        batch, _, seq, _ = keys.shape
        if values.shape[:3] != keys.shape[:3]:
            raise ValueError(
                "keys and values must agree in (batch, kv_heads, seq), got "
                f"{tuple(keys.shape)} and {tuple(values.shape)}"
            )
        if positions is not None:
            check_token_positions(positions, batch, seq)
            if self.keys is not None or isinstance(self.next, Tensor) or self.next:
                self._check_next(positions)
        if keep_positions:
            if self._positions.length != self.length:
                raise ValueError("positions must be kept from the first token on")
            kept = self.place(seq, keys.device) if positions is None else positions
            kept = kept.expand(batch, seq)[:, None, :, None]
            self._positions.append(kept, in_place=True)
        in_place = not self._needs_gradient(keys, values)
        held = self._keys.append(keys, in_place), self._values.append(values, in_place)
        if positions is None:
            self.next = self.next + seq
        elif seq:
            following = positions[..., -1] + 1
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
        if self._layer is not None and self._layer is not layer and self.length:
            raise ValueError(
                "this cache already holds the keys of another attention layer: give "
                "each layer a KeyValueCache() of its own"
            )
        self._layer = layer

    def _needs_gradient(self, *new: Tensor) -> bool:
        held = (self._keys.memory, self._values.memory)
        return torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (*new, *held)
        )

    def _check_continues(self, name: str, new: Tensor, slots: _Slots) -> None:
        check_floating(name, new)
        if new.ndim != 4:
            raise ValueError(
                f"{name} must be (batch, kv_heads, seq, head_dim), got "
                f"{tuple(new.shape)}"
            )
        needed, max_len = slots.length + new.shape[2], slots.max_len
        if max_len is not None and needed > max_len:
            raise ValueError(
                f"max_len={max_len} is too small for {needed} tokens; keep() drops old "
                "ones"
            )
        if slots.memory is None:
            return
        batch, heads, _, size = slots.memory.shape
        if tuple(new.shape) != (batch, heads, new.shape[2], size):
            raise ValueError(
                f"the cache holds {name} (batch={batch}, kv_heads={heads}, seq, "
                f"head_dim={size}), got {tuple(new.shape)}"
            )
        if new.device != slots.memory.device:
            raise ValueError(
                f"the cache holds {name} on {slots.memory.device}, got {new.device}"
            )

    def _check_next(self, positions: Tensor) -> None:
        # Only where the values are at hand: not in a graph, nor at the price of waiting
        # for a GPU. Keys and `next` follow `positions` in any case.
        at_hand = positions.device.type == "cpu" and not torch.compiler.is_compiling()
        if not at_hand or not positions.shape[-1]:
            return
        if (positions[..., 0] != self.next).any():
            raise ValueError(
                f"the next position is {self.next}, got positions that begin with "
                f"{positions[..., 0].tolist()}; leave positions out to go on "
                "from there"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Give a copy memory of its own; it belongs to no layer yet."""
        own = {n: copy.copy(v) for n, v in vars(self).items() if isinstance(v, _Slots)}
        return {**self.__dict__, **own, "_layer": None}

    def __repr__(self) -> str:
        return f"KeyValueCache(length={self.length}, next={self.next})"


class _Slots:
    """A tensor that grows along its third axis, into memory allocated ahead.

    Slots ``first`` to ``end`` are in use. None is ever written twice: when the memory
    is full, what is in use moves to new memory, twice as large as needed.
    """

    def __init__(self, max_len: int | None) -> None:
        self.max_len = max_len
        self.memory: Tensor | None = None
        self.handed_out: Tensor | None = None  # the slot that `append` finds filled
        self.first = self.end = 0

    @property
    def length(self) -> int:
        return self.end - self.first

    @property
    def held(self) -> Tensor | None:
        return None if self.memory is None else self.memory[:, :, self.first : self.end]

    def slot(self, new: Tensor) -> Tensor:
        """Memory for ``new``, behind what is in use."""
        seq, dtype = new.shape[2], new.dtype
        if self.memory is not None:
            dtype = torch.promote_types(self.memory.dtype, dtype)
        if not self._has_room(self.length + seq, dtype):
            self._move(self.length + seq, new, dtype)
        assert self.memory is not None
        return self.memory[:, :, self.end : self.end + seq]

    def append(self, new: Tensor, in_place: bool) -> Tensor:
        """Take in ``new``, and return what is held, in place or as a new tensor."""
        held = self.held
        if in_place:
            if new is not self.handed_out:
                self.slot(new).copy_(new)
            self.handed_out = None
            self.end += new.shape[2]
        else:
            self.memory = new if held is None else torch.cat([held, new], dim=2)
            self.first, self.end = 0, self.memory.shape[2]
        assert self.memory is not None
        return self.memory[:, :, self.first : self.end]

    def _has_room(self, needed: int, dtype: torch.dtype) -> bool:
        if self.memory is None or self.memory.dtype != dtype:
            return False
        room = self.memory.shape[2]
        # Memory that is hardly used, after a long prompt was dropped, is given back.
        wasted = self.max_len is None and 4 * needed < room
        return self.first + needed <= room and not wasted

    def _move(self, needed: int, new: Tensor, dtype: torch.dtype) -> None:
        """Copy what is in use to new memory, with room for more than is ``needed``."""
        held, length = self.held, self.length
        room = 2 * needed if self.max_len is None else self.max_len
        batch, heads, _, size = new.shape
        # Outside inference mode, so that a later call outside of it may write, too.
        with torch.inference_mode(False), torch.no_grad():
            memory = new.new_empty(batch, heads, room, size, dtype=dtype)
            if held is not None:
                memory[:, :, :length] = held
        self.memory, self.first, self.end = memory, 0, length

    def __getstate__(self) -> dict[str, Any]:
        """Leave out free slots: two copies must not write into the same ones."""
        held, length = self.held, self.length
        memory = None if held is None else held.clone()
        own = {"memory": memory, "handed_out": None, "first": 0, "end": length}
        return {**self.__dict__, **own}
