"""The update codec as a user names it: ``--codec``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from edge_sdk.errors import ConfigError
from edge_sdk.protocol.limits import SPSA_CODES_MAX
from edge_sdk.protocol.messages import Codec, TaskParams

NAMES: Final = {
    "int8": Codec.INT8_DENSE,
    "int16": Codec.INT16_DENSE,
    "topk": Codec.INT8_TOPK,
    "int4": Codec.INT4_DENSE,
    "sign": Codec.SIGN_DENSE,
    "output": Codec.INT8_OUTPUT,
    "spsa": Codec.SPSA,
}
EXPECTED: Final = "int8, int16, topk:FRACTION, int4, sign, output or spsa"
SPSA_CLIP_FACTOR: Final = 4
"""A move along random directions is many times longer than the part of it that follows the gradient. On digits, 30
versions reach 0.53 with the clip of a trained delta, 0.82 with this one, 0.83 with twice as much; but then updates that
were turned around and enlarged passed it as well."""
_Q16: Final = 1 << 16
_Q24: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """How updates are written; ``top_share_q16`` is None but for top-k."""

    codec: Codec = Codec.INT8_DENSE
    top_share_q16: int | None = None

    def __str__(self) -> str:
        """Give back the text of the option."""
        name = next(name for name, codec in NAMES.items() if codec is self.codec)
        return name if self.top_share_q16 is None else f"{name}:{self.top_share_q16 / _Q16:g}"

    @property
    def is_output_only(self) -> bool:
        """Whether the artifact must train the output layer alone."""
        return self.codec is Codec.INT8_OUTPUT


INT8: Final = CodecChoice()
"""The default."""


def parse_codec(text: str) -> CodecChoice:
    """Read the text of an option.

    Raises:
        ConfigError: it names no codec; the text says what was found and what is expected.
    """
    name, colon, fraction = text.partition(":")
    if name not in NAMES or (name == "topk") != bool(colon):
        raise ConfigError(f"--codec {text[:40]}: expected {EXPECTED}")
    if name != "topk":
        return CodecChoice(NAMES[name])
    try:
        share_q16 = round(float(fraction) * _Q16)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"--codec {text[:40]}: expected topk:FRACTION, for instance topk:0.1") from error
    if not 1 <= share_q16 <= _Q16:
        raise ConfigError(f"--codec {text[:40]}: expected a fraction in {1 / _Q16:.6f}..1")
    return CodecChoice(Codec.INT8_TOPK, share_q16)


def with_codec(rules: TaskParams, choice: CodecChoice, *, spsa_learning_rate: float) -> TaskParams:
    """Rules for a trained delta in int8, changed for a codec; for SPSA steps, rate and clip are others."""
    changed = replace(rules, codec=choice.codec, top_share_q16=choice.top_share_q16)
    if choice.codec is not Codec.SPSA:
        return changed
    return replace(
        changed,
        local_steps=SPSA_CODES_MAX,
        learning_rate_q24=round(spsa_learning_rate * _Q24),
        clip_norm_q16=SPSA_CLIP_FACTOR * rules.clip_norm_q16,
    )
