"""Values that few fields can mean, put one at a time into every place of nested data."""

import copy
import math

VALUES = {
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "-1": -1, "0": 0, "1e300": 1e300, "text": "text", "true": True,
    "[]": [], "null": None, "'16'": "16", "1e9": 10**9,
}  # fmt: skip


def places(data, path=()):
    """Paths of all values of nested data, sections included; of a list its first element only."""
    items = data.items() if isinstance(data, dict) else enumerate(data[:1]) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def odd_cases(data, start="", skip=()):
    """(dotted path, label of the value, the data with that value there).

    Paths begin with `start` and do not lie below one in `skip`.
    """
    for path in places(data):
        dotted = ".".join(map(str, path))
        if not dotted.startswith(start) or dotted.startswith(tuple(f"{prefix}." for prefix in skip)):
            continue
        for label, value in VALUES.items():
            changed = copy.deepcopy(data)
            part = changed
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = value
            yield dotted, label, changed
