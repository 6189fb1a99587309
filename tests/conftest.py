"""The data that several tests share, written once."""

import pytest

from tiny import write_data


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """A folder with tiny scenes and tiny class folders; tests must not write into it."""
    return write_data(tmp_path_factory.mktemp("data"))
