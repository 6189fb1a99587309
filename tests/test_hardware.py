"""What this machine says of itself."""

import os
from unittest.mock import patch

from headstart.hardware import usable_cores


def test_cores_are_those_of_the_affinity_mask_where_the_system_has_one():
    with patch.object(os, "process_cpu_count", lambda: 3, create=True):
        assert usable_cores() == 3
    with patch.object(os, "process_cpu_count", lambda: None, create=True):
        assert usable_cores() == 1


def test_cores_without_process_cpu_count(monkeypatch):
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1
