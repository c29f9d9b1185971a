"""Handwritten digits, 8x8, that come with scikit-learn: real data without a download.

Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(CC BY 4.0); scikit-learn ships its test part, 1,797 images.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from coordinator.datasets.labelled import Features, LabelledData
from edge_sdk.errors import ConfigError

TEST_STRIDE: Final = 5
"""Every fifth image of each class is a test image: the same ones for every seed."""
INK_MAX: Final = 16.0


def load_digits() -> LabelledData:
    """Return the digits with a fixed split, 80 % to train.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as read_bundle
    except ImportError as error:
        raise ConfigError("data set digits: needs scikit-learn, pip install 'edge-flchain[study]'") from error
    bundle = read_bundle()
    x: Features = (np.asarray(bundle.images, dtype=np.float32) / np.float32(INK_MAX))[:, np.newaxis]
    y = np.asarray(bundle.target, dtype=np.int64)
    order_in_class = np.empty(len(y), dtype=np.int64)
    for label in range(10):
        members = np.flatnonzero(y == label)
        order_in_class[members] = np.arange(len(members))
    is_test = order_in_class % TEST_STRIDE == 0
    return LabelledData(
        name="digits",
        x_train=x[~is_test],
        y_train=y[~is_test],
        x_test=x[is_test],
        y_test=y[is_test],
        groups=None,
        class_names=tuple(str(digit) for digit in range(10)),
    )
