"""Small sizes, and runs that repeat, for the tests that ask for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ghostd.scale import hold_still, scale_down


@pytest.fixture(scope="module")
def small_scale() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        scale_down(patch)
        hold_still(patch)
        yield
