"""One byte per step: the slope of the loss along a random direction, which whoever receives it draws again.

    seed, codes      8 bytes; one signed byte per direction

Direction i has one sign per carried value, from SHAKE128 (FIPS 202) over label, seed, i, the position of the tensor in
the model and the number of the block of 65,536 values; bit 1 is +1, lowest bit first. Integers and bytes only, so that
it is the same everywhere and any block can be drawn alone. The update is

    sum_i step(code_i) * direction_i * 2**exponent

with step(0) = 0 and step(+-c) = +-floor(2**(3 + c / 8)) for c in 1..127, one eighth of an octave apart, computed with
integer roots. -128 is no code. So sign and zero are part of the byte.

Source: Bazzi et al. 2023 (arXiv:2306.10015) for the idea and the logarithmic byte; its published program sends the
unquantized slope and forgets the sign. Directions of signs are those of Spall 1992 (doi 10.1109/9.119632).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import DecodeError
from edge_sdk.protocol.limits import SPSA_CODES_MAX, SPSA_SEED_BYTES
from edge_sdk.protocol.messages import Reason
from edge_sdk.training.codecs.values import BLOCK

if TYPE_CHECKING:
    import numpy.typing as npt

MESSAGE_NAME: Final = "spsa"
"""Stands where other codecs name a tensor: one message speaks of all of them."""
CODE_MAX: Final = 127
CODES_PER_OCTAVE: Final = 8
_ROOTS: Final = 3
"""Three square roots are an eighth root."""
_OFFSET_OCTAVES: Final = 3
"""The smallest step is 8.7, so that neighbouring codes differ."""
_LABEL: Final = b"fl/spsa/1"
_BITS: Final = 8


def _step(code: int) -> int:
    """floor(2**(3 + code / 8)): nested floors of roots are the floor of the root."""
    power = 1 << _OFFSET_OCTAVES * CODES_PER_OCTAVE + code
    for _ in range(_ROOTS):
        power = math.isqrt(power)
    return power


STEPS: Final = (0, *(_step(code) for code in range(1, CODE_MAX + 1)))
"""Magnitude of each code; the largest is 480,774."""


@dataclass(frozen=True, slots=True)
class Probes:
    """The checked content of a message."""

    seed: bytes
    codes: tuple[int, ...]

    @property
    def steps(self) -> tuple[int, ...]:
        """Signed integers that multiply the directions."""
        return tuple(STEPS[code] if code >= 0 else -STEPS[-code] for code in self.codes)

    def to_bytes(self) -> bytes:
        """What the payload carries."""
        return self.seed + np.array(self.codes, np.int8).tobytes()


@dataclass(frozen=True, slots=True)
class ProbeValues:
    """What the probes add to one tensor."""

    probes: Probes
    position: int
    """Of the tensor in the model."""
    size: int

    def __getitem__(self, block: slice) -> npt.NDArray[Any]:
        """Draw the directions of the block, and add them up."""
        start, stop, _ = block.indices(self.size)
        total = np.zeros(stop - start, np.int32)
        for number, step in enumerate(self.probes.steps):
            if step:
                total += step * signs(self.probes.seed, number, self.position, start, stop).astype(np.int32)
        return total

    def peak(self) -> int:
        """If all directions agree somewhere; below 2**24."""
        return sum(map(abs, self.probes.steps))


def signs(seed: bytes, number: int, position: int, start: int, stop: int) -> npt.NDArray[np.int8]:
    """Part of a direction: +1 and -1 of the values ``start:stop`` of a tensor, within one block.

    Args:
        seed: ``SPSA_SEED_BYTES``.
        number: Of the direction.
        position: Of the tensor in the model.
        start: Multiple of ``BLOCK``.
        stop: At most ``start + BLOCK``.
    """
    assert start % BLOCK == 0 <= stop - start <= BLOCK, "directions are drawn by blocks"
    place = b"".join(part.to_bytes(4, "big") for part in (number, position, start // BLOCK))
    count = stop - start
    drawn = hashlib.shake_128(_LABEL + seed + place).digest(-(-count // _BITS))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8), count=count, bitorder="little").view(np.int8)
    return 2 * bits - 1


def nearest_code(steps: float) -> int:
    """The code whose step is nearest on a logarithmic scale; zero below the half of the smallest.

    Args:
        steps: Finite, in units of 2**exponent.
    """
    magnitude = abs(steps)
    if magnitude < STEPS[1] / 2:
        return 0
    code = round(CODES_PER_OCTAVE * (math.log2(magnitude) - _OFFSET_OCTAVES))
    return int(math.copysign(min(max(code, 1), CODE_MAX), steps))


def read_probes(values: bytes) -> Probes:
    """Take a message.

    Raises:
        DecodeError: no seed, no codes or too many: SHAPE. -128: MALFORMED.
    """
    count = len(values) - SPSA_SEED_BYTES
    if not 1 <= count <= SPSA_CODES_MAX:
        raise DecodeError(f"{len(values)} bytes are not a seed and 1..{SPSA_CODES_MAX} codes", reason=Reason.SHAPE)
    codes = tuple(byte - 256 if byte > CODE_MAX else byte for byte in values[SPSA_SEED_BYTES:])
    if min(codes) < -CODE_MAX:
        raise DecodeError("-128 is no code", reason=Reason.MALFORMED)
    return Probes(values[:SPSA_SEED_BYTES], codes)
