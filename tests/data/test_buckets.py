"""Padded sizes: every image fits, little is wasted, no group is too small for a batch."""

import numpy as np
import pytest

from headstart.data.order import STRIDE, Resize, bucket_of, group_by_bucket

RNG = np.random.default_rng(0)
SIZES = [(int(h), int(w)) for h, w in RNG.integers(1, 2000, (400, 2))] + [(1, 3000), (3000, 1), (480, 640), (800, 800)]
RESIZES = [Resize(800, 1333), Resize(96, 96), Resize(64, 256), Resize(256, 100), Resize(33, 70)]


@pytest.mark.parametrize("resize", RESIZES, ids=str)
def test_sides_obey_both_limits_and_one_of_them_is_met(resize):
    for height, width in SIZES:
        new = resize.size(height, width)
        assert max(new) <= resize.long and min(new) >= 1
        assert min(new) <= max(resize.short, 1)
        assert max(new) == resize.long or min(new) == resize.short


@pytest.mark.parametrize("resize", RESIZES, ids=str)
def test_every_image_fits_its_bucket_and_sides_are_whole_strides(resize):
    for height, width in SIZES:
        (new_height, new_width), bucket = resize.size(height, width), bucket_of(height, width, resize)
        assert new_height <= bucket[0] and new_width <= bucket[1]
        assert bucket[0] % STRIDE == bucket[1] % STRIDE == 0


def test_few_buckets_on_cocos_shapes():
    assert bucket_of(480, 640, Resize(800, 1333)) == (800, 1088)
    assert bucket_of(640, 480, Resize(800, 1333)) == (1088, 800)
    assert bucket_of(500, 500, Resize(800, 1333)) == (800, 832)
    assert bucket_of(400, 1000, Resize(800, 1333)) == (800, 1344)
    assert len({bucket_of(h, w, Resize(800, 1333)) for h, w in SIZES}) <= 12


def test_smaller_training_sizes_fit_the_bucket_of_the_largest():
    for height, width in SIZES:
        bucket = bucket_of(height, width, Resize(800, 1333))
        for short in (640, 672, 799):
            assert all(new <= side for new, side in zip(Resize(short, 1333).size(height, width), bucket))


@pytest.mark.parametrize("smallest", [1, 2, 16, 150, 10_000])
def test_groups_are_a_partition_into_groups_that_are_large_enough(smallest):
    heights, widths = np.array(SIZES).T
    resize = Resize(800, 1333)
    groups = group_by_bucket(heights, widths, resize, smallest=smallest)
    assert sorted(index for group in groups.values() for index in group) == list(range(len(SIZES)))
    assert len(groups) == 1 or min(map(len, groups.values())) >= smallest
    for bucket, group in groups.items():
        for index in group:
            assert all(new <= side for new, side in zip(resize.size(*SIZES[index]), bucket))
    again = group_by_bucket(heights, widths, resize, smallest=smallest)
    assert {key: value.tolist() for key, value in again.items()} == {k: v.tolist() for k, v in groups.items()}


def test_groups_do_not_depend_on_the_order_of_images():
    heights, widths = np.array(SIZES).T
    order = RNG.permutation(len(SIZES))
    plain = group_by_bucket(heights, widths, Resize(800, 1333), smallest=16)
    mixed = group_by_bucket(heights[order], widths[order], Resize(800, 1333), smallest=16)
    assert {bucket: sorted(order[group].tolist()) for bucket, group in mixed.items()} == {
        bucket: group.tolist() for bucket, group in plain.items()
    }


def test_equal_images_make_one_group():
    groups = group_by_bucket(np.full(5, 480), np.full(5, 640), Resize(96, 128), smallest=8)
    assert {bucket: group.tolist() for bucket, group in groups.items()} == {(96, 128): [0, 1, 2, 3, 4]}
