"""identify leaves alone what code reaches without holding it, and what is hard to copy.

Each function counts its calls somewhere; afterwards the count must be what it was.
"""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rope_teach.identify import identify
from rope_teach.identify.isolate import _reached, isolated
from tests.broken import half, inv_freq, table

CALLS = 0
SEEN = {"shapes": []}


def turn(x, positions):
    return half(x, table(positions, x.shape[-1]))


class OfTheClass:
    shapes = []  # noqa: RUF012  shared by all instances, as caches often are

    def __call__(self, x, positions):
        self.shapes.append(x.shape)
        return turn(x, positions)

    @classmethod
    def made_late(cls, x, positions):
        cls.last = x
        cls.shapes.append(x.shape)
        return turn(x, positions)

    @staticmethod
    def alone(x, positions):
        OfTheClass.shapes.append(x.shape)
        return turn(x, positions)


class OfTheModule:
    def __call__(self, x, positions):
        global CALLS
        CALLS += 1
        SEEN["shapes"].append(x.shape)
        SEEN["last"] = x
        return turn(x, positions)


def counting(x, positions):
    global CALLS
    CALLS += 1
    return turn(x, positions)


class Locked(nn.Module):
    """Neither a lock nor a file can be copied."""

    def __init__(self):
        super().__init__()
        self.lock, self.file, self.calls = threading.Lock(), open(__file__), []

    def forward(self, x, positions):
        with self.lock:
            self.calls.append(x.shape)
        return turn(x, positions)


class Holder:
    """The function that counts is in a list, in an attribute."""

    def __init__(self):
        self.calls = calls = [0]

        def count(x, positions):
            calls[0] += 1
            return turn(x, positions)

        self.ways = {"usual": [functools.partial(count)]}

    def __call__(self, x, positions):
        return self.ways["usual"][0](x, positions)


class Plain(nn.Module):
    def forward(self, x, positions):
        return turn(x, positions)


def hooked():
    module, calls = Plain(), []
    module.register_forward_hook(lambda *_: calls.append(1))
    return module, lambda: calls


def of_a_holder(made, name):
    return made, lambda: getattr(made, name)


KEEPERS = {
    "a class": lambda: (OfTheClass(), lambda: OfTheClass.shapes),
    "a class method": lambda: (
        OfTheClass.made_late,
        lambda: (OfTheClass.shapes, hasattr(OfTheClass, "last")),
    ),
    "a static method": lambda: (OfTheClass.alone, lambda: OfTheClass.shapes),
    "globals of a method": lambda: (OfTheModule(), lambda: (CALLS, SEEN)),
    "globals of a function": lambda: (counting, lambda: CALLS),
    "what holds a lock and a file": lambda: of_a_holder(Locked(), "calls"),
    "a function in a dictionary": lambda: of_a_holder(Holder(), "calls"),
    "a hook": hooked,
    "a compiled module": lambda: of_a_holder(
        torch.compile(Locked(), backend="eager"), "calls"
    ),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_calls_that_are_counted_outside_do_not_show(name):
    function, look = KEEPERS[name]()
    before = repr(look())
    report = identify(function, head_dim=8)
    assert report.correct and report.call == "x, positions"
    assert repr(look()) == before
    function(torch.zeros(1, 1, 2, 8), torch.arange(2))
    assert repr(look()) != before, "the count counts"


def test_a_cache_of_tables_is_not_asked():
    @functools.lru_cache(maxsize=8)
    def cached(seq, d):
        return torch.arange(seq)[:, None] * inv_freq(d)

    assert identify(lambda x: half(x, cached(x.shape[-2], x.shape[-1]))).correct
    assert cached.cache_info().misses == 0
    assert isolated(cached).cache_info().maxsize == 8


def test_a_function_that_sets_the_default_dtype():
    def careless(x, positions):
        torch.set_default_dtype(torch.float64)
        return turn(x, positions)

    assert identify(careless, head_dim=8).correct
    assert torch.get_default_dtype() == torch.float32


class Untouchable(dict):
    """Another thread reads this at any time: it may not be empty for a moment."""

    def clear(self):
        raise AssertionError("emptied while somebody may be reading it")


SHARED = Untouchable(device="cpu")
NO_CONTENT = [torch.zeros(3, device="meta")]
POOL = ThreadPoolExecutor(1)


def test_what_did_not_change_is_not_touched():
    with FakeTensorMode():
        fake = torch.zeros(3)

    def reading(x, positions):
        assert SHARED["device"] == "cpu" and NO_CONTENT and fake is not None
        return turn(x, positions)

    assert identify(reading, head_dim=8).correct


def test_a_pool_keeps_the_threads_that_a_function_starts():
    def waiting(x, positions):
        return POOL.submit(turn, x, positions).result()

    assert identify(waiting, head_dim=8).correct
    assert POOL._threads and POOL.submit(int, "3").result() == 3


def test_an_assert_of_pytest_does_not_lead_to_the_whole_process():
    def asserting(x, positions):
        assert positions is not None
        return turn(x, positions)

    assert any(name.startswith("@py") for name in asserting.__code__.co_names)
    spaces = {space["__name__"] for space, _ in _reached(asserting)
              if isinstance(space, dict)}  # fmt: skip
    assert spaces == {"tests.test_isolate", "tests.broken"}
