"""What holds for every test: CPU, eight fake devices, no network, quiet libraries.

The variables are read when jax and TensorFlow are first imported, so they are set before any test
module is. Tests that care about sharding build meshes over the eight devices; everything else runs
on the first device as if it were alone.
"""

import os

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAGS = {
    "--xla_force_host_platform_device_count": 8,
    "--xla_backend_optimization_level": 0,  # compiles in half the time
}
for _name, _value in _FLAGS.items():
    if _name not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_name}={_value}".strip()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes: pytest --slow"))


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A user's cache that nothing was put into before: the same set may have been mapped there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
