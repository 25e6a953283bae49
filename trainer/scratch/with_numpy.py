"""The operations again in NumPy, forward and backward, for the small networks of the notes; and SGD.

Each is an autograd.Function, so that the same loop drives it: torch only passes the arrays from one to the next.
Shapes and names are those of formulas.py; `array` and `tensor` share memory, nothing is copied.
"""

# mypy: disable-error-code="no-untyped-call"
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from trainer.scratch import formulas, optim

__all__ = (
    *("SGD", "linear", "relu", "sigmoid", "tanh", "dropout"),
    *("mse", "cross_entropy", "sigmoid_cross_entropy", "quadratic"),
)

Array = np.ndarray[Any, Any]


def array(x: Tensor) -> Array:
    """A tensor in main memory as an array."""
    return x.detach().numpy()


def tensor(x: Any) -> Tensor:
    """An array as a tensor."""
    return torch.from_numpy(np.asarray(x))


class Linear(Function):
    """y = x W^T + b. dL/dx = g W; dL/dW = g^T x; dL/db = sum_n g_n."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = array(x) @ array(weight).T
        return tensor(y if bias is None else y + array(bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, g = *map(array, ctx.saved_tensors), array(grad)
        needs_x, _, needs_bias = ctx.needs_input_grad
        return tensor(g @ weight) if needs_x else None, tensor(g.T @ x), tensor(g.sum(0)) if needs_bias else None


class ReLU(Function):
    """y = max(x, 0). dL/dx = g where x > 0, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return tensor(np.maximum(array(x), 0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = map(array, ctx.saved_tensors)
        return tensor(np.where(x > 0, array(grad), 0))


class Sigmoid(Function):
    """y = 1 / (1 + e^-x). dy/dx = y (1 - y)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = tensor(sigmoid_of(array(x)))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = map(array, ctx.saved_tensors)
        return tensor(array(grad) * y * (1 - y))


def sigmoid_of(z: Array) -> Array:
    """1 / (1 + e^-z), written with e^-|z| alone, so that nothing overflows."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, small) / (1 + small)


class Tanh(Function):
    """y = tanh(x). dy/dx = 1 - y^2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = tensor(np.tanh(array(x)))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (y,) = map(array, ctx.saved_tensors)
        return tensor(array(grad) * (1 - y * y))


class Dropout(Function):
    """y = x m with the mask m that the other libraries draw. dL/dx = g m."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask = formulas.dropout_mask(x, p)
        ctx.save_for_backward(mask)
        return tensor(array(x) * array(mask))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (mask,) = map(array, ctx.saved_tensors)
        return tensor(array(grad) * mask), None


class MSE(Function):
    """L = scale sum e^2 with e = y_hat - y. dL/dy_hat = 2 scale e g, dL/dy = -dL/dy_hat."""

    @staticmethod
    def forward(ctx: Any, y_hat: Tensor, y: Tensor, form: str) -> Tensor:
        error = array(y_hat) - array(y)
        scale = {"sum": 1.0, "mean": 1 / error.size, "half": 0.5 / error.size}[form]
        ctx.save_for_backward(tensor(2 * scale * error))
        return tensor(scale * np.square(error).sum())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        d_y_hat = array(ctx.saved_tensors[0]) * array(grad)
        return tensor(d_y_hat), tensor(-d_y_hat) if ctx.needs_input_grad[1] else None, None


class CrossEntropy(Function):
    """L = -mean_n sum_k q_k log p_k with p = softmax(z), q = (1 - s) onehot(y) + s / K. dL/dz = (p - q) / N g."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        z, n = array(logits), len(logits)
        below = z - z.max(1, keepdims=True)
        log_p = below - np.log(np.exp(below).sum(1, keepdims=True))
        q = (1 - label_smoothing) * one_hot(labels, z) + label_smoothing / z.shape[1]
        ctx.save_for_backward(tensor((np.exp(log_p) - q) / n))
        surprise = -np.where(q > 0, q * log_p, 0)  # 0 times an infinite log_p is 0
        return tensor(surprise.sum() / n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (d_logits,) = map(array, ctx.saved_tensors)
        return tensor(d_logits * array(grad)), None, None


class SigmoidCrossEntropy(Function):
    """L = -mean_n sum_k [y log a + (1 - y) log(1 - a)] with a = sigmoid(z). dL/dz = (a - y) / N g."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        z, n = array(logits), len(logits)
        y = one_hot(labels, z)
        ctx.save_for_backward(tensor((sigmoid_of(z) - y) / n))
        return tensor((np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z)))).sum() / n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (d_logits,) = map(array, ctx.saved_tensors)
        return tensor(d_logits * array(grad)), None


class Quadratic(Function):
    """L = mean_n ||a - y||^2 / 2 with a = sigmoid(z). dL/dz = (a - y) a (1 - a) / N g."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        z, n = array(logits), len(logits)
        a = sigmoid_of(z)
        error = a - one_hot(labels, z)
        ctx.save_for_backward(tensor(error * a * (1 - a) / n))
        return tensor(np.square(error).sum() / (2 * n))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (d_logits,) = map(array, ctx.saved_tensors)
        return tensor(d_logits * array(grad)), None


def one_hot(labels: Tensor, like: Array) -> Array:
    """(N,) int64 -> (N, K): 1 at the label, else 0; targets (N, K) stay as they are."""
    if labels.is_floating_point():
        return array(labels)
    y = np.zeros_like(like)
    y[np.arange(len(y)), array(labels)] = 1
    return y


class SGD(optim.SGD):
    """v = momentum v + g, w = w - lr v; with nesterov w = w - lr (g + momentum v). First g = g + weight_decay w."""

    def update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], options: Mapping[str, Any]) -> None:
        """One parameter, changed in place: the array shares the tensor's memory."""
        weight, grad, momentum = array(w), array(g), options["momentum"]
        if options["weight_decay"]:
            grad = grad + options["weight_decay"] * weight
        if momentum:
            if "momentum_buffer" in state:
                velocity = array(state["momentum_buffer"])
                velocity *= momentum
                velocity += grad
            else:
                velocity = grad.copy()
                state["momentum_buffer"] = tensor(velocity)
            grad = grad + momentum * velocity if options["nesterov"] else velocity
        weight -= options["lr"] * grad


linear, relu, sigmoid, tanh, dropout = Linear.apply, ReLU.apply, Sigmoid.apply, Tanh.apply, Dropout.apply
sigmoid_cross_entropy, quadratic = SigmoidCrossEntropy.apply, Quadratic.apply


def mse(y_hat: Tensor, y: Tensor, *, form: str) -> Tensor:
    """Squared error; a wrapper, since apply() takes no keyword arguments."""
    loss: Tensor = MSE.apply(y_hat, y, form)
    return loss


def cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
    """Softmax cross-entropy."""
    loss: Tensor = CrossEntropy.apply(logits, labels, label_smoothing)
    return loss
