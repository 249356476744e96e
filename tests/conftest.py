"""What every test shares: one thread, reproducible hypothesis, a check of messages."""

import builtins
import re

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile(
    "rope_teach", deadline=None, derandomize=True, database=None, max_examples=40
)
settings.load_profile("rope_teach")


@pytest.fixture
def refuses():
    """``refuses(call, "ValueError: this ... that")``: it raises, and says so."""

    def check(call, message):
        kind, _, words = message.partition(": ")
        with pytest.raises(getattr(builtins, kind)) as caught:
            call()
        pattern = ".*".join(map(re.escape, words.split(" ... ")))
        assert re.search(pattern, str(caught.value)), str(caught.value)

    return check


@pytest.fixture(scope="module")
def browser():
    """A headless browser; without one the test skips, or fails where it must run."""
    from tests.browser import chromium, chromium_or_skip  # not where none is installed

    with chromium(chromium_or_skip()) as browser:
        yield browser
