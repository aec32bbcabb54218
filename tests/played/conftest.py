"""Each test on the played GPU counts from the start: it empties the caches of what models copy to a device once."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _nothing_is_on_the_device_yet():
    if "tests.played.device" in sys.modules:
        from engine.models.bloom import alibi_slopes
        from engine.models.rotary import inverse_frequencies

        alibi_slopes.cache_clear()
        inverse_frequencies.cache_clear()
