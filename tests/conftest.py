"""Settings for all tests."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A busy machine makes an example slow, not wrong
settings.register_profile("deepen", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deepen")


@pytest.fixture(autouse=True, scope="session")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests find nothing in the user's cache and data, and leave nothing there; the processes that they start neither."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("DEEPEN_DATA", str(tmp_path_factory.mktemp("data")))
        yield
