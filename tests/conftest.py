"""What every test shares: one thread, reproducible hypothesis, a check of messages."""

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
    """``refuses(call, error, *words)``: the call raises; its message has the words."""

    def check(call, error, *words):
        with pytest.raises(error) as caught:
            call()
        missing = [word for word in words if word not in str(caught.value)]
        assert not missing, f"{missing} not in: {caught.value}"

    return check
