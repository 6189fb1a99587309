"""An option of pytest: fail where a test is skipped."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="fail when a test is skipped")


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # a worker of xdist has none
    if session.config.getoption("--no-skips") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    skipped = len(terminalreporter.stats.get("skipped", ()))
    if config.getoption("--no-skips") and skipped:
        terminalreporter.write_line(f"FAILED: {skipped} skipped, and --no-skips allows none", red=True)
