"""Settings for all tests."""

import os
import tempfile

from hypothesis import HealthCheck, settings

# A busy machine makes an example slow, not wrong
settings.register_profile("deepen", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("deepen")

# GGUFs that are made on the way do not go to the user's cache
_CACHE = tempfile.TemporaryDirectory(prefix="deepen-cache-")
os.environ["DEEPEN_CACHE"] = _CACHE.name
