"""The data that several tests share, written once."""

import zlib

import numpy as np
import pytest
import torch

from tiny import write_data


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
