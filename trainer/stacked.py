"""K models of one architecture computed at once: layers whose weights have an axis of runs, and their optimizers.

`layers(K)` takes the place of torch.nn for a model of models/: Linear is its own, the others are torch's. The runs see
the same examples, so that the first layer is one wide product; from there on numbers have the shape (N, K, D) for
examples, runs, features.
"""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Module):
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
        y = (
            torch.bmm(runs_first, weight)
            if self.bias is None
            else torch.baddbmm(self.bias[:, None], runs_first, weight)
        )
        return y.transpose(0, 1)


def layers(num_runs: int) -> SimpleNamespace:
    """The layers under the names of torch.nn, for models of one input that is the same for all runs."""
    linear = type("Linear", (Linear,), {"num_runs": num_runs})
    same = {layer.__name__: layer for layer in (nn.Flatten, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Dropout, nn.Sequential)}
    return SimpleNamespace(Linear=linear, **same)


def stack(stacked: nn.Module, models: Sequence[nn.Module]) -> None:
    """Put copies of the weights of lone models into a stacked one, which goes to their device and type."""
    states = [model.state_dict() for model in models]
    whole = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    stacked.load_state_dict(whole, assign=True)


def objective(loss_fn: Any, y_hat: Tensor, y: Tensor, *, is_sum: bool, classes_second: bool) -> Tensor:
    """The sum over the runs of each one's loss: its derivative by a run's weights is that of the run's own loss.

    Args:
        y_hat: (N, K, M).  y: (N,) or (N, M).
        is_sum: loss_fn adds over the batch instead of averaging.
        classes_second: loss_fn also takes (N, M, K), which is faster: M is short.
    """
    num_runs = y_hat.shape[1]
    if classes_second:
        loss: Tensor = loss_fn(y_hat.transpose(1, 2), y[:, None].expand(-1, num_runs))
    else:
        loss = loss_fn(y_hat.flatten(0, 1), y.repeat_interleave(num_runs, 0))
    return loss if is_sum else loss * num_runs


class Optimizer:
    """Changes stacked parameters, each run with its own figures; the formulas and their order are torch.optim's.

    Args:
        model: the stacked model; its parameters are (K, ...).
        options: of each run's optimizer, as in configs/optimizer.
    """

    kept: ClassVar[tuple[str, ...]]  # what is kept for each parameter between steps, under torch's names

    def __init__(self, model: nn.Module, options: Sequence[Mapping[str, Any]]) -> None:
        self.params = list(model.parameters())
        self.param_groups: list[dict[str, Any]] = [{"params": self.params}]  # the loop puts the learning rates here
        self.options = options[0]  # for what is the same in all runs
        self.num_steps = 0
        self.buffers = [{name: torch.zeros_like(p) for name in self.kept_by(options)} for p in self.params]
        self.decays = any(one["weight_decay"] for one in options)
        self.decay: list[Tensor | None] = []
        for p in self.params:
            is_decayed = self.decays and (self.options["decay_all"] or p.ndim > 2)  # a vector of each run is 2-d here
            self.decay.append(self.of_runs("weight_decay", options, p) if is_decayed else None)

    def kept_by(self, options: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """The names of the buffers that runs with these options need."""
        return self.kept

    def of_runs(self, name: str, options: Sequence[Mapping[str, Any]], like: Tensor) -> Tensor:
        """The runs' values of an option as a tensor (K, 1, ...) that fits a parameter."""
        return like.new_tensor([one[name] for one in options]).view(-1, *[1] * (like.ndim - 1))

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters by their gradients, at the learning rates (K,) of param_groups."""
        self.num_steps += 1
        lr: Tensor = self.param_groups[0]["lr"]
        for p, buffers, decay in zip(self.params, self.buffers, self.decay, strict=True):
            assert p.grad is not None, "every parameter takes part"
            self.update(p, p.grad, buffers, decay, lr.view(-1, *[1] * (p.ndim - 1)))

    def update(self, p: Tensor, g: Tensor, buffers: dict[str, Tensor], decay: Tensor | None, lr: Tensor) -> None:
        """Change one parameter in place."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def stop(self, run: int) -> None:
        """Take a run out: from now on its numbers are zeros. Its learning rate has to be 0 too."""
        for p, buffers in zip(self.params, self.buffers, strict=True):
            for tensor in (p, *buffers.values()):
                tensor[run].zero_()

    def give(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """Copy what is kept for a run into its own optimizer, in torch's form."""
        for p, buffers in zip(parameters, self.buffers, strict=True):
            optimizer.state[p] = {name: buffer[run].clone() for name, buffer in buffers.items()}

    def take(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """The other way round: go on from what a run's own optimizer was given by a checkpoint."""
        for p, buffers in zip(parameters, self.buffers, strict=True):
            for name, buffer in buffers.items():
                if name in optimizer.state.get(p, {}):
                    buffer[run].copy_(optimizer.state[p][name])


class SGD(Optimizer):
    """v = momentum v + g, w = w - lr v; with nesterov w = w - lr (g + momentum v). First g = g + weight_decay w."""

    kept = ("momentum_buffer",)

    def __init__(self, model: nn.Module, options: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(model, options)
        self.has_momentum = [bool(one["momentum"]) for one in options]
        shapes = {p.ndim: self.of_runs("momentum", options, p) for p in self.params}
        self.momentum = shapes if any(self.has_momentum) else {}  # by the number of axes

    def kept_by(self, options: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        """Without momentum nothing is kept."""
        return self.kept if any(one["momentum"] for one in options) else ()

    def update(self, p: Tensor, g: Tensor, buffers: dict[str, Tensor], decay: Tensor | None, lr: Tensor) -> None:
        """One parameter."""
        if decay is not None:
            g = g.addcmul(p, decay)
        if buffers:
            momentum, velocity = self.momentum[p.ndim], buffers["momentum_buffer"]
            velocity.mul_(momentum).add_(g)
            g = g.addcmul(velocity, momentum) if self.options["nesterov"] else velocity
        p.addcmul_(g, lr, value=-1)

    def give(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """A run without momentum keeps nothing, whatever the others do."""
        if self.has_momentum[run]:
            super().give(run, optimizer, parameters)


class Adam(Optimizer):
    """Kingma & Ba 2015, algorithm 1; first g = g + weight_decay w."""

    kept = ("exp_avg", "exp_avg_sq")
    is_decoupled = False

    def update(self, p: Tensor, g: Tensor, buffers: dict[str, Tensor], decay: Tensor | None, lr: Tensor) -> None:
        """One parameter."""
        beta1, beta2 = self.options["betas"]
        m, v = buffers["exp_avg"], buffers["exp_avg_sq"]
        if decay is not None and self.is_decoupled:
            p.mul_(1 - lr * decay)
        elif decay is not None:
            g = g.addcmul(p, decay)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = v.sqrt().div_(math.sqrt(1 - beta2**self.num_steps)).add_(self.options["eps"])
        p.addcdiv_(m * lr, root, value=-1 / (1 - beta1**self.num_steps))

    def give(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """With the number of steps, which torch keeps for each parameter."""
        super().give(run, optimizer, parameters)
        for p in parameters:
            step = torch.tensor(float(self.num_steps), device=p.device)
            optimizer.state[p] = {"step": step, **optimizer.state[p]}

    def take(self, run: int, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
        """With the number of steps, which is the same for all runs."""
        super().take(run, optimizer, parameters)
        self.num_steps = int(optimizer.state.get(parameters[0], {}).get("step", 0))


class AdamW(Adam):
    """Loshchilov & Hutter 2019: w = (1 - lr weight_decay) w comes first, apart from the gradient."""

    is_decoupled = True


OPTIMIZERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
