"""Data that several tests share, written once."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import write_data

pytest_plugins = ["no_skips"]


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that at the end no process waits for another's."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _same_numbers_every_time(request):
    """Random inputs are a function of the test's name: no draw fails one time in a thousand, on another machine."""
    seed = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(seed)
    np.random.seed(seed)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Digests of images are kept with the tests, not in the home folder of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A folder with tiny scenes and tiny class folders; tests must not write into it."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def real_data():
    """The folder of public data sets that some readers are tried on; CONTRIBUTING.md says where they are from."""
    if not os.environ.get("HEADSTART_REAL_DATA"):
        pytest.skip("needs public data sets: HEADSTART_REAL_DATA=FOLDER make test (CONTRIBUTING.md)")
    return Path(os.environ["HEADSTART_REAL_DATA"])
