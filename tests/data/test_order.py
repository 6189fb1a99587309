"""Which image stands where: a pure function of (seed, step), every image once an epoch, buckets in proportion."""

import threading

import numpy as np
import pytest

from headstart.data.order import Order, repeat_factors, slot_generator

GROUPS = [np.arange(0, 7), np.arange(7, 40), np.arange(40, 43)]


def drawn(order, group, num):
    """The first `num` images that steps of one group draw, in order."""
    found, step = [], 0
    while len(found) < num:
        if order.group(step) == group:
            found.extend(order.indices(step).tolist())
        step += 1
    return np.array(found[:num])


@pytest.mark.parametrize("batch", [1, 4, 10])
@pytest.mark.parametrize("group", range(3))
def test_every_image_once_an_epoch_in_a_new_order_each(batch, group):
    size = len(GROUPS[group])
    epochs = drawn(Order(GROUPS, batch=batch, seed=3), group, 5 * size).reshape(5, size)
    for epoch in epochs:
        assert sorted(epoch) == GROUPS[group].tolist()
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_step_does_not_depend_on_what_was_asked_before():
    forward = Order(GROUPS, batch=4, seed=5)
    expected = [(forward.group(step), forward.indices(step).tolist()) for step in range(300)]
    for step in np.random.default_rng(0).permutation(300).tolist():
        fresh = Order(GROUPS, batch=4, seed=5) if step % 50 == 0 else forward
        assert (fresh.group(step), fresh.indices(step).tolist()) == expected[step]


def test_far_steps_agree_with_steps_reached_one_by_one():
    """Beyond the block that the table of groups grows by."""
    near, far = Order(GROUPS, batch=2, seed=1), Order(GROUPS, batch=2, seed=1)
    for step in (0, 16383, 16384, 40000):
        near.group(step)
    for step in (16383, 16384, 39999):
        assert near.indices(step).tolist() == far.indices(step).tolist()


def test_seeds_differ_and_repeat():
    one, same, other = (Order(GROUPS, batch=8, seed=seed) for seed in (1, 1, 2))
    steps = range(20)
    assert [one.indices(s).tolist() for s in steps] == [same.indices(s).tolist() for s in steps]
    assert [one.indices(s).tolist() for s in steps] != [other.indices(s).tolist() for s in steps]


def test_groups_advance_through_their_epochs_at_the_same_pace():
    order = Order(GROUPS, batch=4, seed=0)
    turns = np.bincount([order.group(step) for step in range(2000)], minlength=3)
    share = np.array([len(group) for group in GROUPS]) / 43
    assert np.abs(turns / 2000 - share).max() < 2e-3
    for step in (50, 200, 999):  # and at every moment, not only in the end
        so_far = np.bincount([order.group(s) for s in range(step)], minlength=3)
        assert np.abs(so_far - step * share).max() < 3


def test_one_image_fills_a_batch():
    order = Order([np.array([9])], batch=3, seed=0)
    assert order.indices(0).tolist() == order.indices(7).tolist() == [9, 9, 9]


def test_a_slow_thread_does_not_shrink_the_table_under_a_fast_one(monkeypatch):
    """The slow thread builds the first block while the fast one, a step further, builds two."""
    order, search, fast_is_done = Order(GROUPS, batch=2, seed=4), np.searchsorted, threading.Event()

    def slow_on_one_block(edges, position, side):
        if len(position) == 16384:
            fast_is_done.wait(timeout=0.3)
        return search(edges, position, side=side)

    monkeypatch.setattr(np, "searchsorted", slow_on_one_block)
    slow = threading.Thread(target=order.indices, args=(16383,))
    slow.start()
    found = order.group(16384)
    fast_is_done.set()
    slow.join()
    alone = Order(GROUPS, batch=2, seed=4)
    assert (found, order.indices(16384).tolist()) == (alone.group(16384), alone.indices(16384).tolist())
    assert len(order._turn_of_step) == 32768


def test_slot_numbers_are_keyed_by_every_part_of_the_place():
    places = [(0, 3, 1), (0, 3, 2), (1, 3, 1), (0, 4, 1), (0, 1, 3)]
    first = [slot_generator(*place).random(4).tolist() for place in places]
    assert first == [slot_generator(*place).random(4).tolist() for place in places]
    assert len({tuple(values) for values in first}) == len(places)


def test_repeat_factors_are_those_of_the_rarest_class():
    """Against loops over images and classes; an image without objects has 1."""
    generator = np.random.default_rng(0)
    image_of, labels = np.sort(generator.integers(0, 39, 150)), np.minimum(generator.geometric(0.5, 150), 6) - 1
    shares = [len(set(image_of[labels == c].tolist())) / 40 for c in range(6)]
    assert 0 < min(shares) < 0.2
    found = repeat_factors(image_of, labels, 40, 0.6)
    for image in range(40):
        own = set(labels[image_of == image].tolist())
        assert found[image] == max([1.0, *(max(1.0, np.sqrt(0.6 / shares[c])) for c in own)])
    assert found[39] == 1.0 and found.max() > 1.5
    assert repeat_factors(np.zeros(0, int), np.zeros(0, int), 3, 0.5).tolist() == [1, 1, 1]


def test_an_epoch_shows_an_image_as_often_as_its_factor_says():
    """Rounded up or down in each epoch, exactly on average; every epoch of a group is as long."""
    factors = np.random.default_rng(1).uniform(1, 3, 43)
    order = Order(GROUPS, batch=4, seed=3, repeats=factors)
    for group, members in enumerate(GROUPS):
        length = order.lengths[group]
        assert length == round(factors[members].sum())
        epochs = drawn(order, group, 200 * length).reshape(200, length)
        exact = factors[members] * length / factors[members].sum()
        counts = np.array([np.bincount(epoch, minlength=43)[members] for epoch in epochs])
        assert (counts >= np.floor(exact)).all() and (counts <= np.ceil(exact)).all()
        np.testing.assert_allclose(counts.mean(0), exact, atol=0.15)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    fresh = Order(GROUPS, batch=4, seed=3, repeats=factors)
    for step in (250, 3, 17):
        assert fresh.indices(step).tolist() == order.indices(step).tolist()


def test_factors_of_one_show_every_image_once():
    order = Order(GROUPS, batch=4, seed=3, repeats=np.ones(43))
    assert sorted(drawn(order, 1, 33)) == GROUPS[1].tolist()
