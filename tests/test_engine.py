"""The loop against a loop written out by hand, and evaluation against a direct computation."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer import engine
from trainer.engine import Evaluation
from trainer.totals import HELD_AT_ONCE, Totals

CPU = torch.device("cpu")


def totals() -> Totals:
    return Totals(CPU)


def regression_batches(sizes: tuple[int, ...] = (4, 4, 4, 3), features: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    sized = [(torch.randn(n, features, generator=g), torch.randn(n, 1, generator=g)) for n in sizes]
    return [(x.double(), y.double()) for x, y in sized]


def picture_batches(sizes: tuple[int, ...] = (5, 5, 2)) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    sized = [(torch.randn(n, 2, 3, 3, generator=g), torch.randint(4, (n,), generator=g)) for n in sizes]
    return [(x.double(), y) for x, y in sized]


def half_mse(y_hat: Tensor, y: Tensor) -> Tensor:
    return ((y_hat - y) ** 2).mean() / 2


class Net(nn.Module):
    """All that behaves differently in training: batch normalization and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2, dtype=torch.float64)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(18, 4, dtype=torch.float64)
        with torch.no_grad():
            self.norm.running_mean.copy_(torch.tensor([0.5, -1.0]))
            self.norm.running_var.copy_(torch.tensor([2.0, 0.25]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(x)).flatten(1))


def in_eval_mode(net: Net, x: Tensor) -> Tensor:
    """Net's outputs in eval mode written out: running statistics, no dropout."""
    mean, var = net.norm.running_mean[:, None, None], net.norm.running_var[:, None, None]
    weight, bias = net.norm.weight[:, None, None], net.norm.bias[:, None, None]
    normal = (x - mean) / (var + 1e-5).sqrt() * weight + bias
    return (normal.flatten(1) @ net.head.weight.T + net.head.bias).detach()


def run(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any, **changes: Any) -> Iterator[int]:
    options: dict[str, Any] = {"lr_at": lambda step: 0.1, "step": 0, "totals": totals()}
    options |= {"autocast": contextlib.nullcontext} | changes
    loss_fn = options.pop("loss_fn", half_mse)
    return engine.train_epoch(model, loss_fn, optimizer, engine.whole(batches), **options)


def test_training_is_sgd_with_the_closed_form_gradient_of_linear_regression() -> None:
    model = nn.Linear(3, 1, dtype=torch.float64)
    w, b = model.weight.detach()[0].clone(), model.bias.detach().clone()
    batches, sums = regression_batches(), totals()
    loss_sum = 0.0
    rate = {step: 0.3 / (step + 1) for step in range(4)}
    for step, (x, y) in enumerate(batches):  # L = sum (x w + b - y)^2 / 2N; dL/dw = X^T e / N, dL/db = mean e
        error = x @ w + b - y[:, 0]
        loss_sum += float((error**2).sum() / 2)
        w, b = w - rate[step] * x.T @ error / len(x), b - rate[step] * error.mean()
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    assert list(run(model, optimizer, batches, lr_at=rate.__getitem__, totals=sums)) == [1, 2, 3, 4]
    assert torch.allclose(model.weight.detach()[0], w, rtol=0, atol=1e-12)
    assert torch.allclose(model.bias.detach(), b, rtol=0, atol=1e-12)
    assert sums.loss == pytest.approx(loss_sum / 15, rel=0, abs=1e-12)


def test_each_step_takes_the_rate_of_its_number() -> None:
    """With the loss w + b both gradients are 1, so each falls by exactly the learning rate, whatever its group."""
    model = nn.Linear(1, 1, dtype=torch.float64)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias], "lr": 7.0}], lr=5.0)
    batch = (torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1))
    asked: list[int] = []

    def lr_at(step: int) -> float:
        asked.append(step)
        return 2.0**step

    expected = 0.0
    for done in run(model, optimizer, [batch] * 3, lr_at=lr_at, step=7, loss_fn=lambda y_hat, y: y_hat.sum()):
        expected -= 2.0 ** (done - 1)
        assert [p.item() for p in model.parameters()] == [expected] * 2
    assert sorted(set(asked)) == [7, 8, 9]


def test_control_comes_back_after_each_step_and_nothing_runs_ahead() -> None:
    model = nn.Linear(3, 1, dtype=torch.float64)
    taken = 0

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal taken
        for batch in regression_batches():
            taken += 1
            yield batch

    sums = totals()
    steps = run(model, torch.optim.SGD(model.parameters()), batches(), totals=sums)
    before = model.weight.detach().clone()
    assert taken == 0
    for expected in range(1, 4):
        assert next(steps) == taken == expected
        assert sums.num_examples == 4 * expected
        assert not torch.equal(model.weight, before)
        before = model.weight.detach().clone()
    steps.close()  # type: ignore[attr-defined]
    assert taken == 3
    assert torch.equal(model.weight, before)


def test_gradients_do_not_add_up_over_steps_and_stay_to_be_looked_at() -> None:
    model = nn.Linear(3, 1, dtype=torch.float64)
    batches = regression_batches()
    x, y = batches[-1]
    for done in run(model, torch.optim.SGD(model.parameters()), batches):
        if done == len(batches) - 1:
            error = x @ model.weight.detach()[0] + model.bias.detach() - y[:, 0]
    assert model.weight.grad is not None
    assert torch.allclose(model.weight.grad[0], x.T @ error / len(x), rtol=0, atol=1e-12)


def test_training_puts_the_model_into_training_mode() -> None:
    net = Net().eval()
    batches = picture_batches()
    list(run(net, torch.optim.SGD(net.parameters()), batches, loss_fn=F.cross_entropy))
    assert net.training
    assert int(net.norm.num_batches_tracked) == len(batches)


def test_autocast_is_entered_anew_for_each_forward_pass_and_left_before_backward() -> None:
    log: list[str] = []

    @contextlib.contextmanager
    def autocast() -> Iterator[None]:
        log.append("in")
        yield
        log.append("out")

    model = nn.Linear(3, 1, dtype=torch.float64)
    model.weight.register_hook(lambda g: log.append("backward"))
    list(run(model, torch.optim.SGD(model.parameters()), regression_batches((2, 2)), autocast=autocast))
    assert log == ["in", "out", "backward"] * 2
    log.clear()
    engine.evaluate(model, half_mse, regression_batches((2, 2)), totals(), autocast)
    engine.predict(model, [x for x, _ in regression_batches((2,))], autocast)
    assert log == ["in", "out"] * 3


def test_an_epoch_of_no_batches_does_nothing() -> None:
    model = nn.Linear(3, 1)
    before = model.weight.detach().clone()
    sums = totals()
    assert list(run(model, torch.optim.SGD(model.parameters()), [], totals=sums)) == []
    assert torch.equal(model.weight, before)
    assert (sums.num_examples, sums.loss, sums.accuracy) == (0, 0.0, 0.0)


def test_totals_are_means_over_examples_also_with_a_short_last_batch() -> None:
    sums = totals()
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0])
    each = F.cross_entropy(logits, labels, reduction="none")
    sums.add(each[:2].mean(), logits[:2], labels[:2])
    assert (sums.num_examples, sums.accuracy) == (2, 0.5)
    sums.add(each[2:].mean(), logits[2:], labels[2:])
    assert sums.loss == pytest.approx(float(each.mean()), rel=0, abs=1e-15)
    assert (sums.num_examples, sums.accuracy) == (3, 2 / 3)


def test_totals_do_not_lose_small_losses_of_float32_batches() -> None:
    """In float32 the sum would stop growing at 2^24 examples of loss 1; in float64 it is exact."""
    sums = totals()
    big, one = torch.tensor(2.0**24), torch.tensor(1.0)
    sums.add(big, torch.zeros(1, 1), torch.zeros(1, 1))
    for _ in range(3):
        sums.add(one, torch.zeros(1, 1), torch.zeros(1, 1))
    assert float(sums.loss_sum) == 2.0**24 + 3


def test_totals_keep_no_graph_and_count_no_hits_for_regression() -> None:
    sums = totals()
    y_hat = torch.ones(2, 1, requires_grad=True)
    sums.add(y_hat.mean(), y_hat, torch.ones(2, 1))
    assert not sums.loss_sum.requires_grad
    assert int(sums.num_correct) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_loss_that_is_not_finite_shows_in_the_mean(bad: float) -> None:
    sums = totals()
    for loss in (1.0, bad, 1.0):
        sums.add(torch.tensor(loss), torch.zeros(1, 1), torch.zeros(1, 1))
    assert not math.isfinite(sums.loss)


def measured(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Evaluation:
    return engine.evaluate(net, F.cross_entropy, batches, totals(), contextlib.nullcontext)


def test_evaluation_equals_the_direct_computation_in_eval_mode() -> None:
    net, batches = Net().train(), picture_batches()
    got = measured(net, batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    logits = in_eval_mode(net, x)
    each = logits.logsumexp(1) - logits[torch.arange(len(y)), y]
    assert torch.allclose(got.outputs, logits, rtol=0, atol=1e-12)
    assert torch.equal(got.labels, y)
    assert got.loss == pytest.approx(float(each.mean()), rel=0, abs=1e-12)
    assert got.accuracy == float((logits.argmax(1) == y).double().mean())


def test_evaluation_changes_no_weight_buffer_gradient_or_generator() -> None:
    net, batches = Net().train(), picture_batches()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    inputs = [(x.clone(), y.clone()) for x, y in batches]
    state = torch.get_rng_state()
    measured(net, batches)
    engine.predict(net, [x for x, _ in batches], contextlib.nullcontext)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert net.norm.weight.grad is None
    for (x, y), (x_before, y_before) in zip(batches, inputs, strict=True):
        assert torch.equal(x, x_before)
        assert torch.equal(y, y_before)


def test_evaluation_between_two_steps_does_not_change_training() -> None:
    def weights(evaluating: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net, batches = Net(), picture_batches()
        optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
        for epoch in range(2):
            list(run(net, optimizer, batches, loss_fn=F.cross_entropy, step=epoch * len(batches)))
            if evaluating:
                measured(net, batches)
        return [tensor.clone() for tensor in net.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(weights(True), weights(False), strict=True))


def test_regression_has_no_accuracy() -> None:
    model = nn.Linear(3, 1, dtype=torch.float64)
    batches = regression_batches()
    got = engine.evaluate(model, half_mse, batches, totals(), contextlib.nullcontext)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    error = x @ model.weight.detach()[0] + model.bias.detach() - y[:, 0]
    assert got.accuracy is None
    assert got.loss == pytest.approx(float((error**2).mean() / 2), rel=0, abs=1e-12)


def test_predictions_are_the_outputs_of_evaluation() -> None:
    net, batches = Net().train(), picture_batches()
    got = engine.predict(net, [x for x, _ in batches], contextlib.nullcontext)
    assert torch.equal(got, measured(net, batches).outputs)
    assert not got.requires_grad


def test_predicting_nothing_gives_nothing() -> None:
    assert engine.predict(Net(), [], contextlib.nullcontext).shape == (0,)


@pytest.mark.parametrize("looks", [(), (1, 31, 32, 33, 69)])
def test_hits_are_the_same_whenever_they_are_looked_at(looks: tuple[int, ...]) -> None:
    sums = totals()
    expected = 0
    for i in range(70):
        y_hat, y = torch.randn(3, 4), torch.randint(4, (3,))
        sums.add(torch.tensor(0.0), y_hat, y)
        expected += int((y_hat.argmax(1) == y).sum())
        if i in looks:
            assert int(sums.num_correct) == expected
    assert sums.accuracy == expected / 210


def test_large_outputs_are_not_held() -> None:
    sums = totals()
    for _ in range(10):
        sums.add(torch.tensor(0.0), torch.zeros(400, 1000), torch.zeros(400, dtype=torch.int64))
    assert sum(y_hat.numel() for y_hat, _ in sums._uncounted) <= HELD_AT_ONCE
    assert sums.accuracy == 1
