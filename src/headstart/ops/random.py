"""Random numbers as a pure function of a key: no generator, no state, the same on every device and process."""

import torch
from torch import Tensor

from headstart.ops.fixed_shapes import constant

_MASK = 0xFFFFFFFF


def mix(value: Tensor) -> Tensor:
    """32-bit avalanche of int64 values in 0..2**32-1 (the finaliser of MurmurHash3, public domain)."""
    value = value ^ (value >> 16)
    value = _multiply(value, 0x85EBCA6B)
    value ^= value >> 13
    value = _multiply(value, 0xC2B2AE35)
    return value.bitwise_xor_(value >> 16)


def _multiply(value: Tensor, factor: int) -> Tensor:
    """value * factor modulo 2**32 for a factor of 32 bits.

    The product with its lower 31 bits stays below 2**63; the top bit adds value << 31, which modulo 2**32 is one bit.
    """
    return (value * (factor & 0x7FFFFFFF)).bitwise_xor_(value << 31).bitwise_and_(_MASK)


@constant
def _columns(num: int, device: torch.device) -> Tensor:
    return mix(torch.arange(num, device=device) + 0x9E3779B9 & _MASK)


def uniform(keys: Tensor, num: int, *, salt: int) -> Tensor:
    """Uniform float32 numbers [B,num] in [0,1), a function of keys [B] int64, the position and the salt only."""
    rows = mix((keys ^ (keys >> 32) ^ (salt * 0x9E3779B1)) & _MASK)
    bits = mix(mix(rows.unsqueeze(1) ^ _columns(num, keys.device)))
    return (bits >> 8).float().mul_(2.0**-24)


def fold(seed: int, *values: int) -> int:
    """One 63-bit key from a seed and any number of integers (order matters); pure Python, for the host side."""
    key = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & (2**64 - 1)
    for value in values:
        key ^= (value + 0x9E3779B97F4A7C15 + (key << 6) + (key >> 2)) & (2**64 - 1)
        key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        key = (key ^ (key >> 27)) * 0x94D049BB133111EB & (2**64 - 1)
        key ^= key >> 31
    return key >> 1
