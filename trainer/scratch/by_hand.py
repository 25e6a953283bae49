"""The backward of every operation, derived by hand: one autograd.Function each, whose forward is in formulas.py.

A Function is a node of the graph that loss.backward() walks from the loss to the weights. Its `backward` gets
g = dL/dy, the derivative of the loss with respect to the output, in the shape of the output. By the chain rule it
returns dL/dx for each input, or None where it is not needed. ctx keeps what it needs from the forward.

A backward treats what the forward kept as constant, so a second derivative would be wrong: once_differentiable makes
the attempt an error where g depends on x. Where it does not, as in sigmoid(x) + x^2, the term of the sigmoid is
silently missing.

Layers and losses call the functions at the end, which have the names and arguments of formulas.py.
"""

# mypy: disable-error-code="no-untyped-call"
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from trainer.scratch import formulas
from trainer.scratch.formulas import per_channel

__all__ = formulas.__all__


class Linear(Function):
    """y = x W^T + b. dL/dx = g W; dL/dW = g^T x; dL/db = sum_n g_n."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return formulas.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, _, needs_bias = ctx.needs_input_grad
        return g @ weight if needs_x else None, g.T @ x, g.sum(0) if needs_bias else None


class ReLU(Function):
    """y = max(x, 0). dL/dx = g where x > 0, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = formulas.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return g * y.sign()  # 0 or 1; a comparison takes longer


class Sigmoid(Function):
    """y = 1 / (1 + e^-x). dy/dx = e^-x / (1 + e^-x)^2 = y (1 - y)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = formulas.sigmoid(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return g * y * (1 - y)


class Tanh(Function):
    """y = tanh(x). dy/dx = 1 - y^2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = formulas.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return g * (1 - y * y)


class Dropout(Function):
    """y = x m with a random mask m. dL/dx = g m, with the mask of the forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask = formulas.dropout_mask(x, p)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return g * mask, None


class BatchNorm(Function):
    """y = w x_hat + b with x_hat = (x - mean) r, r = 1 / sqrt(var + eps); means are over the m numbers of a channel.

    dL/dw = sum g x_hat; dL/db = sum g. For dL/dx, mean and var depend on every x of the channel:
    with h = g w = dL/dx_hat, dL/dvar = -r^2/2 sum h x_hat and dL/dmean = -r sum h; dvar/dx_i = 2 (x_i - mean) / m and
    dmean/dx_i = 1 / m. Together dL/dx = r [h - mean(h) - x_hat mean(h x_hat)]: h without its parts along 1 and x_hat.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        x_hat, mean, var, inverse = formulas.standardize(x, eps)
        ctx.save_for_backward(x_hat, weight, inverse)
        ctx.mark_non_differentiable(mean, var)  # only the running statistics use them
        return formulas.scale_and_shift(x_hat, weight, bias), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Any) -> Any:
        x_hat, weight, inverse = ctx.saved_tensors
        axes, m = formulas.channels_apart(g), g.numel() // len(weight)
        d_bias, d_weight = g.sum(axes), (g * x_hat).sum(axes)
        along = torch.addcmul(per_channel(d_bias / m, g), x_hat, per_channel(d_weight / m, g))
        return (g - along).mul_(per_channel(weight * inverse, g)), d_weight, d_bias, None


class Normalize(Function):
    """y = w x_hat + b with a given mean and var. dL/dx = g w r; dL/dw = sum g x_hat; dL/db = sum g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        return formulas.normalize(x, weight, bias, mean, var, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, mean, var = ctx.saved_tensors
        axes, inverse = formulas.channels_apart(g), 1 / (var + ctx.eps).sqrt()
        d_weight = (g * (x - per_channel(mean, x))).sum(axes) * inverse
        return g * per_channel(weight * inverse, g), d_weight, g.sum(axes), None, None, None


class Conv2d(Function):
    """Y = W X + b with the filters as the rows of W and the windows of x as the columns of X (formulas.conv2d).

    dL/dW = G X^T and dL/dX = W^T G, as for a linear layer. A number of x is in several windows, so dL/dx is the sum
    of dL/dX over the places to which it was copied. dL/db = sum_{n,i,j} g.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return formulas.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, _, needs_bias = ctx.needs_input_grad[:3]
        d_weight = torch.zeros_like(weight).flatten(1)
        frame = formulas.framed(x, ctx.padding, 0.0)
        d_frame = torch.zeros_like(frame) if needs_x else None
        done = 0
        for windows in formulas.in_parts(frame, weight, ctx.stride):
            n = slice(done, done := done + windows.shape[3])
            g_part = g[n].transpose(0, 1).flatten(1)  # (O, n I J)
            d_weight.addmm_(g_part, formulas.columns(windows).T)
            if d_frame is not None:
                add_windows(d_frame[n], (weight.flatten(1).T @ g_part).view(windows.shape), ctx.stride)
        d_x = None if d_frame is None else cropped(d_frame, ctx.padding)
        return d_x, d_weight.view(weight.shape), g.sum((0, 2, 3)) if needs_bias else None, None, None


def add_windows(x: Tensor, windows: Tensor, stride: int) -> None:
    """Add windows (C, U, V, N, I, J) to their places in x (N, C, H, W): the reverse of copying them out."""
    _, height, width, _, down, across = windows.shape
    for u in range(height):
        for v in range(width):
            place = x[:, :, u : u + stride * down : stride, v : v + stride * across : stride]
            place += windows[:, u, v].transpose(0, 1)


def cropped(x: Tensor, padding: int) -> Tensor:
    """(N, C, H, W) without the frame of padding."""
    return x[:, :, padding:-padding, padding:-padding] if padding else x


class MaxPool2d(Function):
    """y = the largest x of a window. dL/dx = g for that one, 0 for the others, summed over the windows of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, stride: int, padding: int) -> Tensor:
        y, place = formulas.largest(x, size, stride, padding)
        ctx.save_for_backward(x, place)
        ctx.window = size, stride, padding
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, place = ctx.saved_tensors
        size, stride, padding = ctx.window
        frame = formulas.framed(torch.zeros_like(x), padding, 0.0)
        for k, part in enumerate(formulas.shifted(frame, size, stride, tuple(g.shape[2:]))):
            part += g * (place == k)
        return cropped(frame, padding), None, None, None


class AvgPool2d(Function):
    """y = sum of a window / size^2. dL/dx = g / size^2, summed over the windows of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.window = size, stride, padding
        return formulas.avg_pool2d(x, size, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        size, stride, padding = ctx.window
        frame = formulas.framed(torch.zeros_like(x), padding, 0.0)
        for part in formulas.shifted(frame, size, stride, tuple(g.shape[2:])):
            part += g / size**2
        return cropped(frame, padding), None, None, None


class GlobalAvgPool2d(Function):
    """y = mean of a channel. dL/dx = g / (H W) for every pixel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return formulas.global_avg_pool2d(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        return (g / (ctx.shape[2] * ctx.shape[3])).expand(ctx.shape)


class MSE(Function):
    """L = scale sum e^2 with e = y_hat - y. dL/dy_hat = 2 scale e g, dL/dy = -dL/dy_hat."""

    @staticmethod
    def forward(ctx: Any, y_hat: Tensor, y: Tensor, form: str) -> Tensor:
        ctx.save_for_backward(y_hat - y)
        ctx.scale = {"sum": 1.0, "mean": 1 / y.numel(), "half": 0.5 / y.numel()}[form]
        return formulas.mse(y_hat, y, form=form)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (error,) = ctx.saved_tensors
        d_y_hat = 2 * ctx.scale * error * g
        return d_y_hat, -d_y_hat if ctx.needs_input_grad[1] else None, None


class L1(Function):
    """L = mean |e| with e = y_hat - y. dL/dy_hat = sign(e) / (N M) g."""

    @staticmethod
    def forward(ctx: Any, y_hat: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y_hat - y)
        return formulas.l1(y_hat, y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (error,) = ctx.saved_tensors
        d_y_hat = error.sign() * (g / error.numel())
        return d_y_hat, -d_y_hat if ctx.needs_input_grad[1] else None


class Huber(Function):
    """L = mean huber(e) with e = y_hat - y. dL/dy_hat = e / (N M) g, with e clamped to [-delta, delta]."""

    @staticmethod
    def forward(ctx: Any, y_hat: Tensor, y: Tensor, delta: float) -> Tensor:
        ctx.save_for_backward(y_hat - y)
        ctx.delta = delta
        return formulas.huber(y_hat, y, delta=delta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (error,) = ctx.saved_tensors
        d_y_hat = error.clamp(-ctx.delta, ctx.delta) * (g / error.numel())
        return d_y_hat, -d_y_hat if ctx.needs_input_grad[1] else None, None


class CrossEntropy(Function):
    """L = -mean_n sum_k q_k log p_k with p = softmax(z).

    log p_k = z_k - log sum_j e^z_j, so d log p_k / dz_i = [i = k] - p_i, and as the q_k add up to 1:
    dL/dz = (p - q) / N g. With q = onehot(y) that is the difference between prediction and truth.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        log_p = formulas.log_softmax(logits)
        ctx.save_for_backward(log_p, labels)
        ctx.label_smoothing = label_smoothing
        return formulas.mean_surprise(log_p, labels, label_smoothing)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        log_p, labels = ctx.saved_tensors
        s, (n, num_classes) = ctx.label_smoothing, log_p.shape
        difference = log_p.exp().sub_(s / num_classes).sub_(formulas.one_hot(labels, log_p), alpha=1 - s)
        return difference.mul_(g / n), None, None


class SigmoidCrossEntropy(Function):
    """L = -mean_n sum_k [y log a + (1 - y) log(1 - a)] with a = sigmoid(z).

    dL/da = (a - y) / (a (1 - a)) and da/dz = a (1 - a), so that dL/dz = (a - y) / N g: no factor that vanishes where a
    is near 0 or 1, which is why learning does not slow down there (Nielsen, eq. 61 to 68).
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        return formulas.sigmoid_cross_entropy(logits, labels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        logits, labels = ctx.saved_tensors
        difference = formulas.sigmoid(logits) - formulas.one_hot(labels, logits)
        return difference * (g / len(logits)), None


class Quadratic(Function):
    """L = mean_n ||a - y||^2 / 2 with a = sigmoid(z). dL/dz = (a - y) a (1 - a) / N g (Nielsen, BP1)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        return formulas.quadratic(logits, labels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        logits, labels = ctx.saved_tensors
        a = formulas.sigmoid(logits)
        return (a - formulas.one_hot(labels, logits)) * a * (1 - a) * (g / len(logits)), None


linear, relu, sigmoid, tanh, dropout = Linear.apply, ReLU.apply, Sigmoid.apply, Tanh.apply, Dropout.apply
batch_norm, normalize, conv2d = BatchNorm.apply, Normalize.apply, Conv2d.apply
max_pool2d, avg_pool2d, global_avg_pool2d = MaxPool2d.apply, AvgPool2d.apply, GlobalAvgPool2d.apply
l1, sigmoid_cross_entropy, quadratic = L1.apply, SigmoidCrossEntropy.apply, Quadratic.apply


def mse(y_hat: Tensor, y: Tensor, *, form: str) -> Tensor:
    """formulas.mse with its backward; a wrapper, since apply() takes no keyword arguments."""
    loss: Tensor = MSE.apply(y_hat, y, form)
    return loss


def huber(y_hat: Tensor, y: Tensor, *, delta: float) -> Tensor:
    """formulas.huber with its backward."""
    loss: Tensor = Huber.apply(y_hat, y, delta)
    return loss


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """formulas.cross_entropy with its backward."""
    loss: Tensor = CrossEntropy.apply(logits, labels, label_smoothing)
    return loss
