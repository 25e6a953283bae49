"""Made-up regression data: y = Xw + b + noise (the house prices of D2L 3.2), and targets that depend on nothing."""

import hashlib
from pathlib import Path

import torch

from trainer.data.splits import Source, Split


def synthetic(
    _root: Path, _cache: Path, *, w: list[float], b: float, noise: float, num_examples: int, data_seed: int
) -> Source:
    """Rows x ~ N(0, 1)^D with targets y = x @ w + b + N(0, noise^2); the test part is as many fresh rows.

    Args:
        w: D true weights.
        b: true bias.
        noise: standard deviation.
        num_examples: number of rows of each part.
        data_seed: seed of rows and noise.
    """
    generator = torch.Generator().manual_seed(data_seed)
    weight = torch.tensor(w, dtype=torch.float32)[:, None]

    def draw() -> Split:
        x = torch.randn(num_examples, len(w), generator=generator)
        return Split(x, x @ weight + b + noise * torch.randn(num_examples, 1, generator=generator))

    law = hashlib.sha256(repr((w, b, noise, num_examples, data_seed)).encode()).hexdigest()
    return Source(draw(), draw(), in_shape=(len(w),), sha256=law)


def random(
    _root: Path, _cache: Path, *, num_examples: int, num_inputs: int, num_targets: int, data_seed: int
) -> Source:
    """Inputs x ~ N(0, 1)^num_inputs and targets y ~ N(0, 1)^num_targets that do not depend on each other."""
    generator = torch.Generator().manual_seed(data_seed)

    def draw() -> Split:
        x = torch.randn(num_examples, num_inputs, generator=generator)
        return Split(x, torch.randn(num_examples, num_targets, generator=generator))

    law = hashlib.sha256(repr(("random", num_examples, num_inputs, num_targets, data_seed)).encode()).hexdigest()
    return Source(draw(), draw(), in_shape=(num_inputs,), sha256=law)
