import pytest

from zsjax.models import cache as cache_module


@pytest.fixture(params=[cache_module.SEGMENT, 4], ids=["whole", "segments"])
def segments(request, monkeypatch):
    monkeypatch.setattr(cache_module, "SEGMENT", request.param)
