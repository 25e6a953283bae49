"""The optimizers, written out: what a step does to each weight w with its gradient g.

Names, arguments, order of the operations and names of the kept state are those of torch.optim, so that either can
resume a run of the other. Of torch's options only those that the configs have are here.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Groups = Iterable[Any]  # parameters, or groups of them


class Optimizer:
    """Holds the parameters in groups that share their options, and the state of each parameter.

    Args:
        params: parameters, or groups {"params": parameters, option: value}.
        defaults: value of each option that a group does not have.
    """

    def __init__(self, params: Groups, **defaults: Any) -> None:
        self.defaults = defaults
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        given = list(params)
        if not given:
            raise ValueError("an optimizer needs parameters")
        groups = [{"params": given}] if isinstance(given[0], Tensor) else given
        self.param_groups: list[dict[str, Any]] = [
            {**defaults, **group, "params": list(group["params"])} for group in groups
        ]

    def zero_grad(self) -> None:
        """Drop the gradients, since backward() adds to existing ones."""
        for group in self.param_groups:
            for w in group["params"]:
                w.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is not None:
                    self.update(w, w.grad, self.state.setdefault(w, {}), group)

    def update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], options: Mapping[str, Any]) -> None:
        """Change one parameter in place; g must not be changed."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return state and options; parameters are numbered through all groups."""
        numbers = {w: i for i, w in enumerate(w for group in self.param_groups for w in group["params"])}
        groups = [group | {"params": [numbers[w] for w in group["params"]]} for group in self.param_groups]
        states = {numbers[w]: dict(state) for w, state in self.state.items() if state}
        return {"state": states, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of a state_dict (as copies, on the parameters' device and in their type) and its options.

        The count of steps stays float32 on the CPU.
        """
        in_order = [w for group in self.param_groups for w in group["params"]]
        kept = state_dict["state"]
        self.state = {
            in_order[i]: {k: v.clone() if k == "step" else v.to(in_order[i], copy=True) for k, v in kept[i].items()}
            for i in kept
        }
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})


class SGD(Optimizer):
    """v = momentum v + g, w = w - lr v; with nesterov w = w - lr (g + momentum v). First g = g + weight_decay w.

    The first v is g itself. Source: Sutskever et al. 2013, in torch's form.
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], options: Mapping[str, Any]) -> None:
        """One parameter."""
        momentum = options["momentum"]
        if options["weight_decay"]:
            g = g + options["weight_decay"] * w
        if momentum:
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(momentum).add_(g)
            else:
                state["momentum_buffer"] = g.clone()
            velocity = state["momentum_buffer"]
            g = g + momentum * velocity if options["nesterov"] else velocity
        w.sub_(g, alpha=options["lr"])


class Adam(Optimizer):
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w = w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).

    First g = g + weight_decay w. Source: Kingma & Ba 2015, algorithm 1.
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], options: Mapping[str, Any]) -> None:
        """One parameter."""
        if options["weight_decay"]:
            g = g + options["weight_decay"] * w
        adam_step(w, g, state, options)


class AdamW(Adam):
    """Adam whose weight decay bypasses m and v: first w = w - lr weight_decay w.

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], options: Mapping[str, Any]) -> None:
        """One parameter."""
        w.mul_(1 - options["lr"] * options["weight_decay"])
        adam_step(w, g, state, options)


class Muon(SGD):
    """SGD whose step for a matrix has all directions in equal strength: w = w - lr sqrt(max(1, rows / columns)) O.

    O is orthogonalized(g + momentum v) with nesterov, else of v; v = momentum v + g. A filter (out, in, height, width)
    is the matrix (out, in height width). First w = w - lr weight_decay w. Vectors take the step of SGD.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". Deviation: the last layer is
    a matrix like the others.
    """

    def __init__(
        self,
        params: Groups,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        nesterov: bool = True,
        ns_steps: int = 5,
    ) -> None:
        Optimizer.__init__(
            self, params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, ns_steps=ns_steps
        )

    def update(self, w: Tensor, g: Tensor, state: dict[str, Tensor], options: Mapping[str, Any]) -> None:
        """One parameter."""
        if w.ndim < 2:
            super().update(w, g, state, options)
            return
        momentum, lr = options["momentum"], options["lr"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(w)
        v = state["momentum_buffer"].mul_(momentum).add_(g)
        g = (g + momentum * v if options["nesterov"] else v).flatten(1)
        rows, columns = g.shape
        w.mul_(1 - lr * options["weight_decay"])
        w.sub_(orthogonalized(g, options["ns_steps"]).view_as(w), alpha=lr * math.sqrt(max(1.0, rows / columns)))


def orthogonalized(g: Tensor, steps: int) -> Tensor:
    """U V^T, nearly, of a matrix g = U S V^T (rows, columns): its singular values become 0.7 to 1.2, but for tiny ones.

    Each step takes every singular value s to a s + b s^3 + c s^5, which lifts small ones fast and stays about 1.

    Source: Jordan et al. 2024, the coefficients too (they do not converge to 1, which does no harm).
    """
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)  # no singular value above 1
    for _ in range(steps):
        square = x @ x.T  # on the shorter side
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def adam_step(w: Tensor, g: Tensor, state: dict[str, Tensor], options: Mapping[str, Any]) -> None:
    """Change w by Adam's rule and advance its state by one step."""
    (b1, b2), lr = options["betas"], options["lr"]
    if not state:
        state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(w), exp_avg_sq=torch.zeros_like(w))
    state["step"] += 1
    t, m, v = int(state["step"]), state["exp_avg"], state["exp_avg_sq"]
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    w.addcdiv_(m, (v / (1 - b2**t)).sqrt_().add_(options["eps"]), value=-lr / (1 - b1**t))
