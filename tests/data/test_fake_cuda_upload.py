"""From decoded images to a batch on a CUDA device without values: the host waits for no copy."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from devices import CUDA, HostWaits, Watch, fake_cuda
from headstart.batch import InputSpec
from headstart.data import paste, train_stream, views
from headstart.data.augment.colour import ColourJitter
from headstart.data.augment.rules import Augmentation, Jitter
from headstart.data.order import Resize
from headstart.data.read.coco import read
from headstart.data.stream import EvalImages, Reading
from headstart.data.train_stream import TrainStream, crop_images
from tiny import SIDE

CONVENTION = InputSpec((100.0, 110.0, 120.0), (50.0, 51.0, 52.0), "bgr")
JITTER = Jitter(0.3, 2.0, SIDE)
AUGMENTATIONS = {
    "views": Augmentation((48, SIDE), 96, 0.5),
    "jitter": Augmentation((SIDE,), SIDE, 0.5, JITTER),
    "copy-paste": Augmentation((SIDE,), SIDE, 0.5, JITTER, True),
    "mosaic": Augmentation(
        (SIDE,), SIDE, 0.5, JITTER, True, None, ColourJitter(0.4, 0.4, 0.4, 0.1, 0.1), 0.5, True, mosaic=0.5
    ),
}


@pytest.fixture(scope="module")
def people(data_root):
    return read(data_root / "keypoints/train.json", data_root / "keypoints/train")


def stream(dataset, augmentation, *, num_workers=0):
    reading = Reading(4, 7, cache=True, num_workers=num_workers)
    return TrainStream(dataset, AUGMENTATIONS[augmentation], CONVENTION, reading, mask_frame=16, max_objects=None)


def assert_alike(fake, real):
    """The same shape, type and memory layout, on the device."""
    assert fake.device == CUDA
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_training_batches_are_made_on_the_device(people, augmentation, num_workers):
    own = stream(people, augmentation, num_workers=num_workers)
    views = [view for step in range(3) for view in own.raw(step).views]
    assert {view.flip for view in views} == {False, True}
    if augmentation == "copy-paste":
        assert sum(paste is not None for step in range(3) for paste in own.raw(step).pastes) > 3
    last = 1 if augmentation == "mosaic" else 3  # a fake operation takes a millisecond
    expected = list(own.batches(0, last))
    with fake_cuda(), Watch():
        found = list(own.batches(0, last, CUDA))
    for fake, real in zip(found, expected, strict=True):
        for field in fields(real):
            assert_alike(getattr(fake, field.name), getattr(real, field.name))


def test_evaluation_batches_and_their_other_looks_are_made_on_the_device(people):
    images = EvalImages(people, Resize(48, 96), CONVENTION, batch=3, cache=True, num_workers=0)
    for other in ({}, {"resize": Resize(80, 96), "flip": True}):
        for raw in images.decoded():
            expected = images.make_batch(raw, "cpu", **other)
            with fake_cuda(), Watch():
                found = images.make_batch(raw, CUDA, **other)
            for fake, real in zip(found, expected, strict=True):
                assert_alike(fake, real)


def test_crops_are_made_on_the_device():
    pixels, crops = [np.zeros((40, 50, 3), np.uint8)] * 2, [(0, 0, 40, 50, False), (4, 5, 20, 30, True)]
    with fake_cuda(), Watch():
        fake = crop_images(pixels, crops, 32, CONVENTION, CUDA)
    assert_alike(fake, crop_images(pixels, crops, 32, CONVENTION, "cpu"))


def pageable(values, device):
    return torch.from_numpy(values).to(device, non_blocking=True)


def waited_for(values, device):
    return torch.from_numpy(values).pin_memory().to(device)


def left_behind(values, device):
    return torch.from_numpy(values)


@pytest.mark.parametrize("module", [views, paste, train_stream], ids=lambda module: module.__name__.split(".")[-1])
@pytest.mark.parametrize(
    ("upload", "error"),
    [(pageable, HostWaits), (waited_for, HostWaits), (left_behind, (RuntimeError, AssertionError))],
)
def test_a_planted_fault_is_found(people, module, upload, error, monkeypatch):
    """In one of the places that copy arrays to the device."""
    own = stream(people, "copy-paste")
    monkeypatch.setattr(module, "to_device", upload)
    with fake_cuda(), Watch(), pytest.raises(error):
        for batch in own.batches(0, 3, CUDA):
            assert all(getattr(batch, field.name).device == CUDA for field in fields(batch))
