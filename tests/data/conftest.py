import pytest


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(shared_cache, monkeypatch):
    """No test reads or writes the user's cache; all tests of a session share one."""
    monkeypatch.setenv("SYNCNORM_CACHE", str(shared_cache))
