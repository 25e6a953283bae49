"""Made-up regression data: y = Xw + b + noise (the house prices of D2L 3.2), and targets that depend on nothing."""

import hashlib
from pathlib import Path

import torch

from trainer.data.batches import generator as generator_of
from trainer.data.splits import Source, Split


def synthetic(
    _root: Path,
    _cache: Path,
    *,
    w: list[float],
    b: float,
    noise: float,
    inputs: str | list[float] = "normal",
    num_examples: int,
    fresh: bool = False,
    data_seed: int,
) -> Source:
    """Rows x with targets y = x @ w + b + N(0, noise^2); the test part is as many other rows.

    Args:
        w: D true weights.
        b: true bias.
        noise: standard deviation.
        inputs: normal for x ~ N(0, 1)^D, or [low, high] for numbers that are uniform between these.
        num_examples: number of rows of each part.
        fresh: train each epoch on rows of its own.
        data_seed: seed of rows and noise.
    """
    weight = torch.tensor(w, dtype=torch.float32)[:, None]

    def draw(n: int, generator: torch.Generator) -> Split:
        if inputs == "normal":
            x = torch.randn(n, len(w), generator=generator)
        else:
            low, high = map(float, inputs)
            x = low + (high - low) * torch.rand(n, len(w), generator=generator)
        return Split(x, x @ weight + b + noise * torch.randn(n, 1, generator=generator))

    def of_epoch(epoch: int, n: int) -> Split:
        return draw(n, generator_of(data_seed, epoch, "rows"))

    one = torch.Generator().manual_seed(data_seed)
    train, test = draw(num_examples, one), draw(num_examples, one)
    made_of = (w, b, noise, num_examples, data_seed, *([] if inputs == "normal" else [inputs]))
    law = hashlib.sha256(repr(made_of).encode()).hexdigest()
    return Source(train, test, in_shape=(len(w),), sha256=law, of_epoch=of_epoch if fresh else None)


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
