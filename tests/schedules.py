"""Schedules by name at a base of steps, for plans without recipes."""

from collections.abc import Iterable

from headstart.recipe.schedule import Schedule, multiple_of


def make_schedules(
    names: Iterable[str], *, base: int, base_rate: float, warmup: int, warmup_from: float, factor: float = 0.1
) -> dict[str, Schedule]:
    """The schedules of these names; a ValueError names the field and the schedule that cannot be made."""
    made = {}
    for name in names:
        try:
            made[name] = Schedule.nx(
                multiple_of(name, base),
                base,
                base_rate=base_rate,
                warmup=warmup,
                warmup_from=warmup_from,
                factor=factor,
            )
        except ValueError as error:
            raise ValueError(f"schedules: {name} with a base of {base} steps: {error}") from None
    return made
