"""Files with changed bytes are read, or refused in one line that names them: hypothesis looks for one that is neither.

The targets, and a longer run, are those of `benchmarks/fuzz.py`.
"""

import zlib

import pytest
from fuzz import EDITS, TARGETS, TOKENS, attempt, edited
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

EDIT = st.tuples(
    st.sampled_from(EDITS), st.integers(0, 2**16), st.integers(1, 20), st.sampled_from(TOKENS) | st.binary(max_size=8)
)
CASES = 120  # of a target: all of them together take some 20 s of one core


@pytest.mark.parametrize("name", TARGETS)
def test_changed_bytes_are_a_value_or_a_refusal(tmp_path, name):
    target = TARGETS[name]
    target.prepare(tmp_path)
    contents = target.contents()
    assert all(attempt(target, content, tmp_path) for content in contents)

    @seed(zlib.crc32(name.encode()))
    @settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(contents), st.lists(EDIT, min_size=1, max_size=3))
    def check(content, edits):
        attempt(target, edited(content, edits), tmp_path)

    check()


def test_an_edit_of_each_kind():
    whole = b"abcdef"
    found = [edited(whole, [(kind, 2, 3, b"XY")]) for kind in EDITS]
    assert found == [b"abkdef", b"abXYcdef", b"abXYf", b"abf", b"abcdecdef", b"ab"]
