"""A config that is right, to which a test adds its sections."""

import pytest

from zsjax.config import resolve


@pytest.fixture
def checked():
    def checked(sections):
        right = {"policy": {"init": "asset:tiny_world/policy"}, "search": {"engine": "bm25"}}
        return resolve(right | {name: right.get(name, {}) | fields for name, fields in sections.items()})

    return checked
