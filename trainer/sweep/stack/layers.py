"""K models of one architecture computed at once: layers whose weights have an axis of runs.

`stacked_layers(K)` takes the place of torch.nn for a model of models/: Linear is its own, the others are torch's. The
runs see the same examples, so that the first layer is one wide product; from there on numbers have the shape (N, K, D)
for examples, runs, features.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.engine import LossFn


class StackedLinear(nn.Module):
    """y = x W^T + b for each run: weight (K, out_features, in_features), bias (K, out_features)."""

    num_runs: ClassVar[int]
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(self.num_runs, out_features, in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(self.num_runs, out_features)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features), the same for all runs, or (N, K, in_features) -> (N, K, out_features)."""
        num_runs, num_outputs, _ = self.weight.shape
        if x.ndim == 2:
            bias = None if self.bias is None else self.bias.view(-1)
            return F.linear(x, self.weight.view(num_runs * num_outputs, -1), bias).view(-1, num_runs, num_outputs)
        runs_first, weight = x.transpose(0, 1), self.weight.transpose(1, 2)
        if self.bias is None:
            return torch.bmm(runs_first, weight).transpose(0, 1)
        return torch.baddbmm(self.bias[:, None], runs_first, weight).transpose(0, 1)


def stacked_layers(num_runs: int) -> SimpleNamespace:
    """The layers under the names of torch.nn, for models of one input that is the same for all runs."""
    linear = type("Linear", (StackedLinear,), {"num_runs": num_runs})
    same = {layer.__name__: layer for layer in (nn.Flatten, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Dropout, nn.Sequential)}
    return SimpleNamespace(Linear=linear, **same)


def copy_into_stack(stacked: nn.Module, models: Sequence[nn.Module]) -> None:
    """Put copies of the weights of lone models into a stacked one, which goes to their device and type."""
    states = [model.state_dict() for model in models]
    whole = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    stacked.load_state_dict(whole, assign=True)


def objective(loss_fn: LossFn, y_hat: Tensor, y: Tensor, *, is_sum: bool, classes_second: bool) -> Tensor:
    """The sum over the runs of each one's loss: its derivative by a run's weights is that of the run's own loss.

    Args:
        loss_fn: the loss of one run.
        y_hat: (N, K, M).
        y: (N,) or (N, M).
        is_sum: loss_fn adds over the batch instead of averaging.
        classes_second: loss_fn also takes (N, M, K), which is faster: M is short.
    """
    num_runs = y_hat.shape[1]
    if classes_second:
        loss = loss_fn(y_hat.transpose(1, 2), y[:, None].expand(-1, num_runs))
    else:
        loss = loss_fn(y_hat.flatten(0, 1), y.repeat_interleave(num_runs, 0))
    return loss if is_sum else loss * num_runs
