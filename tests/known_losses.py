"""Losses of the first steps at a fixed seed, and to how many digits processors agree on them.

Measured on one machine with AVX-512, with AVX2 and with neither (test_instruction_sets.py):
- float32: 6 digits. torch's normal random numbers, hence the initial weights, already differ in the seventh.
  The hourglass: on the first step alone, 3 digits after an update, whose gradients its small normalised maps magnify.
- float64, from weights and images that are the same everywhere: 14 digits.
The tests ask for one digit less, and for two.
"""

import math
from dataclasses import replace

import torch

from small_detector import in_double

FLOAT32, FLOAT64 = 1e-5, 1e-12  # relative differences


def losses_of_steps(model, batch, num):
    """The losses of `num` steps of SGD on one batch."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    found = []
    for _ in range(num):
        losses = model(batch)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        found.append([loss.item() for loss in losses.values()])
    return found


@torch.no_grad()
def drawn_exactly(model, batch):
    """The model and the batch in double precision, with weights and images that no processor rounds.

    torch.rand draws whole multiples of 2**-24, and these are multiplied by powers of two alone.
    """
    generator = torch.Generator().manual_seed(0)

    def uniform(shape, reach):
        return (torch.rand(shape, generator=generator, dtype=torch.float32).double() - 0.5) * (2 * reach)

    for parameter in model.double().parameters():
        if parameter.dim() > 1:
            inputs = parameter[0].numel()
            parameter.copy_(uniform(parameter.shape, 2.0 ** -round(math.log2(inputs) / 2)))
        elif len(parameter) == 1 or parameter.min() != parameter.max():  # a drawn bias; others start at one value
            parameter.copy_(uniform(parameter.shape, 2.0**-4))
    return model, replace(in_double(batch), images=uniform(batch.images.shape, 2.0))
