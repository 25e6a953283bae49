"""The forward formula of every operation, in plain tensor operations. with_numpy.py has some of them in NumPy.

impl=autograd trains with these as they are and leaves their derivatives to torch. impl=scratch calls them from
by_hand.py, which has the derivatives; a function in `__all__` has a twin of the same name and arguments there. The
other functions are steps that several of them share, or whose result a derivative needs.

Shapes: N examples, C channels, (H, W) pixels, K classes, M outputs of a regression. Images (N, C, H, W) may have any
memory layout.
"""

import torch
from torch import Tensor

__all__ = (
    *("linear", "relu", "sigmoid", "tanh", "dropout", "batch_norm", "normalize"),
    *("conv2d", "max_pool2d", "avg_pool2d", "global_avg_pool2d"),
    *("mse", "l1", "huber", "cross_entropy", "sigmoid_cross_entropy", "quadratic"),
)
COLUMNS_AT_ONCE = 3_000_000  # numbers: 12 MB in fp32. More leave the cache; fewer make too small a product


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x W^T + b: (N, D), (M, D), (M,) -> (N, M)."""
    return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)


def relu(x: Tensor) -> Tensor:
    """max(x, 0). The sign makes the derivative at 0 be 0; with clamp alone it depends on the version of torch."""
    return x.clamp(min=0) * x.detach().sign()


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), with e^-x divided out where it would overflow: e^min(x,0) / (e^min(x,0) + e^-max(x,0))."""
    zero = x.new_zeros(())
    above, below = torch.exp(torch.minimum(x, zero)), torch.exp(-torch.maximum(x, zero))
    return above / (above + below)


def tanh(x: Tensor) -> Tensor:
    """(e^x - e^-x) / (e^x + e^-x)."""
    return x.tanh()


def dropout(x: Tensor, p: float) -> Tensor:
    """x times a mask that is 0 with probability p, else 1 / (1 - p), which keeps the mean."""
    return x * dropout_mask(x, p)


def dropout_mask(x: Tensor, p: float) -> Tensor:
    """A new mask, drawn from the global generator as torch draws it."""
    return torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y = w (x - mean) / sqrt(var + eps) + b per channel, over the batch (N, C) or (N, C, H, W).

    Returns:
        y, and mean (C,) and var (C,) of the batch (divided by m, not m - 1) for the running statistics.
    Source: Ioffe & Szegedy 2015, algorithm 1.
    """
    x_hat, mean, var, _ = standardize(x, eps)
    return scale_and_shift(x_hat, weight, bias), mean, var


def normalize(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """y = w (x - mean) / sqrt(var + eps) + b with given mean and var (C,), as in evaluation."""
    return scale_and_shift((x - per_channel(mean, x)) * per_channel(1 / (var + eps).sqrt(), x), weight, bias)


def standardize(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_hat = (x - mean) / sqrt(var + eps) per channel, and mean, var and 1 / sqrt(var + eps), each (C,).

    It takes two passes: first the mean, then the squares of x - mean. E[x^2] - mean^2 would lose all its digits in fp32
    where the mean is large.
    """
    axes = channels_apart(x)
    mean = x.mean(axes)
    centered = x - per_channel(mean, x)
    var = centered.square().mean(axes)
    inverse = 1 / (var + eps).sqrt()
    return centered * per_channel(inverse, x), mean, var, inverse


def scale_and_shift(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """w x + b per channel."""
    return torch.addcmul(per_channel(bias, x), x, per_channel(weight, x))


def channels_apart(x: Tensor) -> tuple[int, ...]:
    """The axes that a channel is averaged over: all except 1."""
    return (0, *range(2, x.ndim))


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) as (1, C) or (1, C, 1, 1), to broadcast with x (N, C) or (N, C, H, W)."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """y[n,o,i,j] = b[o] + sum_{c,u,v} W[o,c,u,v] x[n,c,i s + u,j s + v]: (N, C, H, W), (O, C, U, V) -> (N, O, I, J).

    As a product of matrices (im2col): each filter is a row, each window of x a column. The columns are U V times as
    large as the images, so a few images at a time go through, which keeps them in the cache.
    """
    parts = []
    for part in in_parts(framed(x, padding, 0.0), weight, stride):
        y = weight.flatten(1) @ columns(part)  # (O, n I J)
        parts.append(y.view(len(weight), *part.shape[3:]).transpose(0, 1))
    y = torch.cat(parts)
    return y if bias is None else y.add_(bias[:, None, None])


def in_parts(x: Tensor, weight: Tensor, stride: int) -> list[Tensor]:
    """The windows of x (N, C, H, W) under the filters, a few images at a time: views (C, U, V, n, I, J)."""
    height, width = weight.shape[2:]
    windows = x.unfold(2, height, stride).unfold(3, width, stride).permute(1, 4, 5, 0, 2, 3)
    per_image = max(1, windows[:, :, :, :1].numel())
    return list(windows.split(max(1, COLUMNS_AT_ONCE // per_image), 3))


def columns(windows: Tensor) -> Tensor:
    """Copy windows (C, U, V, n, I, J) into the columns of a matrix (C U V, n I J)."""
    return windows.reshape(windows.shape[:3].numel(), -1)


def output_size(x: Tensor, size: int, stride: int, padding: int) -> tuple[int, int]:
    """The number of windows from top to bottom and from left to right.

    Raises:
        ValueError: no window fits, or the padding is more than half a window.
    """
    down, across = ((side + 2 * padding - size) // stride + 1 for side in x.shape[2:])
    if min(down, across) < 1 or padding > size // 2:
        raise ValueError(f"windows of {size} with padding {padding} do not fit images of {tuple(x.shape[2:])}")
    return down, across


def max_pool2d(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """The largest number of each size x size window, the first of equal ones. (N, C, H, W) -> (N, C, I, J)."""
    return largest(x, size, stride, padding)[0]


def largest(x: Tensor, size: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """The largest number of each window, and its place there, counted row by row."""
    count = output_size(x, size, stride, padding)
    values, place = torch.stack(shifted(framed(x, padding, -torch.inf), size, stride, count)).max(0)
    return values, place


def avg_pool2d(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """The mean of each size x size window, zeros outside the image included. (N, C, H, W) -> (N, C, I, J)."""
    count = output_size(x, size, stride, padding)
    first, *others = shifted(framed(x, padding, 0.0), size, stride, count)
    return sum(others, start=first) / size**2


def framed(x: Tensor, padding: int, fill: float) -> Tensor:
    """(N, C, H, W) -> (N, C, H + 2 padding, W + 2 padding), with `fill` round each image."""
    if not padding:
        return x
    n, channels, height, width = x.shape
    frame = x.new_full((n, channels, height + 2 * padding, width + 2 * padding), fill)
    frame[:, :, padding:-padding, padding:-padding] = x
    return frame


def shifted(x: Tensor, size: int, stride: int, count: tuple[int, ...]) -> list[Tensor]:
    """For each place in a size x size window, row by row, the numbers of all windows there: views (N, C, I, J)."""
    down, across = (stride * (n - 1) + 1 for n in count)
    corners = [(u, v) for u in range(size) for v in range(size)]
    return [x[:, :, u : u + down : stride, v : v + across : stride] for u, v in corners]


def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel: (N, C, H, W) -> (N, C, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


def mse(y_hat: Tensor, y: Tensor, *, form: str) -> Tensor:
    """Squared error of (N, M): mean (e^2), half (e^2 / 2, averaged as well) or sum."""
    squares = (y_hat - y).square()
    return squares.sum() if form == "sum" else squares.mean() / (2 if form == "half" else 1)


def l1(y_hat: Tensor, y: Tensor) -> Tensor:
    """Mean of |e| over (N, M)."""
    return (y_hat - y).abs().mean()


def huber(y_hat: Tensor, y: Tensor, *, delta: float) -> Tensor:
    """Mean over (N, M) of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2)."""
    size = (y_hat - y).abs()
    return torch.where(size <= delta, size.square() / 2, delta * (size - delta / 2)).mean()


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """Mean of -sum_k q_k log softmax(z)_k with q = (1 - s) onehot(y) + s / K. (N, K) and (N,) int64 -> nats.

    Labels may also be shares of the classes (N, K), which then stand for onehot(y).
    """
    return mean_surprise(log_softmax(logits), labels, label_smoothing)


def log_softmax(logits: Tensor) -> Tensor:
    """z_k - m - log sum_j e^(z_j - m) with m = max_j z_j, so that no e^z overflows. (N, K)."""
    below = logits - logits.amax(1, keepdim=True)
    return below - below.exp().sum(1, keepdim=True).log()


def mean_surprise(log_p: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean of -sum_k q_k log p_k over the examples."""
    soft = labels.is_floating_point()  # shares of the classes (N, K)
    of_label = (log_p * labels).sum(1).mean() if soft else log_p.gather(1, labels[:, None]).mean()
    if not label_smoothing:
        return -of_label
    return (label_smoothing - 1) * of_label - label_smoothing * log_p.mean()


def sigmoid_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the examples of -sum_k [y_k log a_k + (1 - y_k) log(1 - a_k)], a = sigmoid(z), y = onehot(label).

    Written as max(z, 0) - z y + log(1 + e^-|z|), in which nothing overflows and no logarithm meets 0.
    Source: Nielsen, eq. 63.
    """
    zero = logits.new_zeros(())
    costs = torch.maximum(logits, zero) - logits * one_hot(labels, logits) + torch.log1p(torch.exp(-logits.abs()))
    return costs.sum() / len(logits)


def quadratic(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the examples of ||a - y||^2 / 2 with a = sigmoid(z), y = onehot(label). Source: Nielsen, eq. 6."""
    return (sigmoid(logits) - one_hot(labels, logits)).square().sum() / (2 * len(logits))


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """(N,) int64 -> (N, K): 1 at the label, else 0, in the type of the logits; targets (N, K) stay as they are."""
    if labels.is_floating_point():
        return labels
    return torch.zeros_like(logits).scatter_(1, labels[:, None], 1)
