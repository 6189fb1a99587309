"""The way from a command to the box loss stays short, in this process and through a worker."""

from house import MOST_CALLS, commands


def test_few_calls_lead_from_a_command_to_the_box_loss(tmp_path):
    found = commands(tmp_path)
    assert found.keys() == MOST_CALLS.keys()
    for command, calls in found.items():
        assert calls[0] == "cli/__init__.py main" and calls[-1] == "model/box_head.py loss"
        assert len(calls) <= MOST_CALLS[command], f"{command}: {calls}"
