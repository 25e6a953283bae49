"""The hand-written operations: against finite differences, against torch.nn.functional, and with extreme numbers."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from trainer.scratch import by_hand, formulas, with_numpy

IN_NUMPY = tuple(name for name in with_numpy.__all__ if name != "SGD")
BY_HAND = [(by_hand, name) for name in formulas.__all__] + [(with_numpy, name) for name in IN_NUMPY]
EVERYWHERE = [(formulas, name) for name in formulas.__all__] + BY_HAND
TENSORS, LIBRARIES = (formulas, by_hand), (formulas, by_hand, with_numpy)
DOUBLE = torch.float64
quiet = settings(max_examples=10, deadline=None, derandomize=True, database=None, phases=[Phase.generate])


@pytest.fixture(scope="module", autouse=True)
def silent() -> Iterator[None]:
    """NumPy is silent about extreme numbers, as in a run (runtime.set_up_numpy)."""
    with np.errstate(all="ignore"):
        yield


def short(value: Any) -> str | None:
    """How a module or a type is called in the name of a test."""
    return value.__name__.split(".")[-1] if isinstance(value, ModuleType) else None


def each(argument: str | tuple[str, ...], values: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(argument, values, ids=short)


@dataclass(frozen=True)
class Case:
    """The arguments of a call: the tensors that have a derivative, and the others."""

    tensors: tuple[Tensor | None, ...]
    others: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def outputs(self, operation: Callable[..., Any], tensors: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
        torch.manual_seed(5)  # for dropout
        y = operation(*tensors, *self.others, **self.options)
        return y if isinstance(y, tuple) else (y,)


def spread(*shape: int, seed: int = 0) -> Tensor:
    """Numbers from -3 to 3 in random order, 6 / n apart, and none nearer to 0 than half of that."""
    n = math.prod(shape)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return ((order - n // 2 + 0.5) * (6 / n)).to(DOUBLE).view(shape)


@dataclass(frozen=True)
class Draw:
    """Random choices of a test case."""

    data: st.DataObject

    def size(self, low: int = 1, high: int = 4) -> int:
        return self.data.draw(st.integers(low, high))

    def one_of(self, *values: Any) -> Any:
        return self.data.draw(st.sampled_from(values))

    def numbers(self, *shape: int) -> Tensor:
        return spread(*shape, seed=self.size(0, 10**6))

    def any_shape(self) -> tuple[int, ...]:
        return tuple(self.size(1, 3) for _ in range(self.size(1, 4)))

    def labels(self, n: int, num_classes: int) -> Tensor:
        return torch.tensor([self.size(0, num_classes - 1) for _ in range(n)])


def linear_case(draw: Draw) -> Case:
    n, d, m = draw.size(), draw.size(), draw.size()
    return Case((draw.numbers(n, d), draw.numbers(m, d), draw.one_of(None, draw.numbers(m))))


def batch_shape(draw: Draw, at_least: int) -> tuple[int, ...]:
    """(N, C) or (N, C, H, W) with so many numbers in each channel."""
    pixels = draw.one_of((), (draw.size(1, 3), draw.size(1, 3)))
    enough = -(-at_least // math.prod(pixels))
    return draw.size(enough, enough + 2), draw.size(1, 3), *pixels


def batch_norm_case(draw: Draw) -> Case:
    shape = batch_shape(draw, at_least=2)
    tensors = draw.numbers(*shape), draw.numbers(shape[1]), draw.numbers(shape[1])
    return Case(tensors, (draw.one_of(1e-5, 0.1),))


def normalize_case(draw: Draw) -> Case:
    shape = batch_shape(draw, at_least=1)
    mean, var = draw.numbers(shape[1]), draw.numbers(shape[1]).abs()
    tensors = draw.numbers(*shape), draw.numbers(shape[1]), draw.numbers(shape[1])
    return Case(tensors, (mean, var, draw.one_of(1e-5, 0.1)))


def conv2d_case(draw: Draw) -> Case:
    n, channels, filters = draw.size(1, 3), draw.size(1, 2), draw.size(1, 2)
    window, stride, padding = (draw.size(1, 3), draw.size(1, 3)), draw.size(1, 3), draw.size(0, 2)
    height, width = (draw.size(max(1, side - 2 * padding), 4) for side in window)
    tensors = draw.numbers(n, channels, height, width), draw.numbers(filters, channels, *window)
    return Case((*tensors, draw.one_of(None, draw.numbers(filters))), (stride, padding))


def pool_case(draw: Draw) -> Case:
    size, stride = draw.size(1, 3), draw.size(1, 3)
    padding = draw.size(0, size // 2)
    height, width = (draw.size(max(1, size - 2 * padding), 5) for _ in range(2))
    return Case((draw.numbers(draw.size(1, 2), draw.size(1, 2), height, width),), (size, stride, padding))


def regression_case(draw: Draw, *, huber: bool = False, mse: bool = False) -> Case:
    n, m = draw.size(), draw.size()
    y, error = draw.numbers(n, m), draw.numbers(n, m)
    options = {"form": draw.one_of("half", "mean", "sum")} if mse else {}
    if huber:  # |error| is an odd multiple of 3 / (n m), delta an even one
        options["delta"] = draw.size(1, n * m // 2 + 1) * 6 / (n * m)
    return Case((y + error, y), (), options)


def classification_case(draw: Draw, *, smoothed: bool = False) -> Case:
    n, num_classes = draw.size(), draw.size(1, 5)
    options = {"label_smoothing": draw.one_of(0.0, 0.1, 0.9)} if smoothed else {}
    return Case((draw.numbers(n, num_classes),), (draw.labels(n, num_classes),), options)


def elementwise_case(draw: Draw) -> Case:
    return Case((draw.numbers(*draw.any_shape()),))


CASES: dict[str, Callable[[Draw], Case]] = {
    "linear": linear_case,
    "relu": elementwise_case,
    "sigmoid": elementwise_case,
    "tanh": elementwise_case,
    "dropout": lambda draw: Case((draw.numbers(*draw.any_shape()),), (draw.one_of(0.1, 0.5, 0.9),)),
    "batch_norm": batch_norm_case,
    "normalize": normalize_case,
    "conv2d": conv2d_case,
    "max_pool2d": pool_case,
    "avg_pool2d": pool_case,
    "global_avg_pool2d": lambda draw: Case((draw.numbers(*(draw.size(1, 3) for _ in range(4))),)),
    "mse": lambda draw: regression_case(draw, mse=True),
    "l1": regression_case,
    "huber": lambda draw: regression_case(draw, huber=True),
    "cross_entropy": lambda draw: classification_case(draw, smoothed=True),
    "sigmoid_cross_entropy": classification_case,
    "quadratic": classification_case,
}


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    return F.one_hot(labels, logits.shape[1]).to(logits)


def torch_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
    axes = [0, *range(2, x.ndim)]
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return y, x.mean(axes), x.var(axes, correction=0)


def torch_mse(y_hat: Tensor, y: Tensor, *, form: str) -> Tensor:
    return F.mse_loss(y_hat, y, reduction="sum" if form == "sum" else "mean") * (0.5 if form == "half" else 1)


REFERENCES: dict[str, Callable[..., Any]] = {
    "linear": F.linear,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "dropout": F.dropout,
    "batch_norm": torch_batch_norm,
    "normalize": lambda x, w, b, mean, var, eps: F.batch_norm(x, mean, var, w, b, training=False, eps=eps),
    "conv2d": F.conv2d,
    "max_pool2d": F.max_pool2d,
    "avg_pool2d": F.avg_pool2d,
    "global_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mse": torch_mse,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "cross_entropy": F.cross_entropy,
    "sigmoid_cross_entropy": lambda logits, labels: (
        F.binary_cross_entropy_with_logits(logits, one_hot(labels, logits), reduction="sum") / len(logits)
    ),
    "quadratic": lambda logits, labels: (
        F.mse_loss(logits.sigmoid(), one_hot(labels, logits), reduction="sum") / (2 * len(logits))
    ),
}


def test_every_operation_is_tested_here_in_every_library() -> None:
    assert set(CASES) == set(REFERENCES) == set(formulas.__all__) == set(by_hand.__all__)
    assert set(IN_NUMPY) <= set(CASES)
    written = {name for name, value in vars(by_hand).items() if isinstance(value, type)} - {"Any", "Tensor", "Function"}
    assert len(written) == len(formulas.__all__)  # one autograd.Function each, and no other


@each(("library", "name"), BY_HAND)
@quiet
@given(st.data())
def test_the_backward_is_the_slope_of_the_forward(library: ModuleType, name: str, data: st.DataObject) -> None:
    case, operation = CASES[name](Draw(data)), getattr(library, name)
    there = [t.requires_grad_() for t in case.tensors if t is not None]
    nothing = (None,) * (len(case.tensors) - len(there))  # a bias, the last one
    assert torch.autograd.gradcheck(lambda *t: case.outputs(operation, t + nothing), there, atol=1e-6, rtol=1e-5)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers, in another order in memory or with gaps between them."""
    if layout == "sliced" and x.ndim:
        gaps = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 99.0)
        gaps[..., ::2] = x
        return gaps[..., ::2]
    if layout == "transposed" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.T.contiguous().T if layout == "transposed" and x.ndim == 2 else x.clone()


def results(operation: Callable[..., Any], case: Case, layout: str = "contiguous") -> list[Tensor]:
    """The outputs, then the derivatives of a weighted sum of the first output with respect to each tensor."""
    leaves = tuple(t if t is None else laid_out(t, layout).requires_grad_() for t in case.tensors)
    there = [t for t in leaves if t is not None]
    before = [t.detach().clone() for t in there]
    y, *others = case.outputs(operation, leaves)
    g = laid_out(spread(*y.shape, seed=1).to(y.dtype), layout)
    g_before = g.clone()
    gradients = torch.autograd.grad(y, there, g)
    assert_same([g, *(t.detach() for t in there)], [g_before, *before], atol=0)  # nothing is written into the inputs
    return [t.detach() for t in (y, *others, *gradients)]


def assert_same(got: list[Tensor], expected: list[Tensor], atol: float = 1e-12) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
@each(("library", "name"), EVERYWHERE)
@settings(quiet, max_examples=6)
@given(st.data())
def test_an_operation_is_torchs_forward_and_backward(
    library: ModuleType, name: str, layout: str, data: st.DataObject
) -> None:
    case = CASES[name](Draw(data))
    assert_same(results(getattr(library, name), case, layout), results(REFERENCES[name], case, layout))


@each("library", TENSORS)
@pytest.mark.parametrize("columns_at_once", [1, 600, 1200])
def test_a_convolution_in_several_parts_is_the_same(
    library: Any, columns_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, bias = spread(5, 3, 7, 6), spread(4, 3, 3, 2), spread(4)  # 18 rows, 16 windows in each image
    monkeypatch.setattr(formulas, "COLUMNS_AT_ONCE", columns_at_once)
    sizes = [part.shape[3] for part in formulas.in_parts(F.pad(x, (1, 1, 1, 1)), weight, 2)]
    assert sizes == {1: [1, 1, 1, 1, 1], 600: [2, 2, 1], 1200: [4, 1]}[columns_at_once]
    case = Case((x, weight, bias), (2, 1))
    assert_same(results(library.conv2d, case), results(F.conv2d, case))


@each("library", TENSORS)
@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (2, 2, 1), (3, 1, 1), (3, 2, 1), (3, 3, 0)])
def test_of_equal_numbers_the_first_is_the_largest(library: Any, size: int, stride: int, padding: int) -> None:
    generator = torch.Generator().manual_seed(0)
    few = torch.randint(-3, -1, (2, 3, 7, 6), generator=generator).to(DOUBLE)  # below what a frame of zeros would have
    for x in (few, -few, torch.zeros_like(few)):
        case = Case((x,), (size, stride, padding))
        assert torch.equal(library.max_pool2d(x, size, stride, padding), F.max_pool2d(x, size, stride, padding))
        assert_same(results(library.max_pool2d, case), results(F.max_pool2d, case))


@each("library", TENSORS)
@pytest.mark.parametrize("padding", [0, 1])
def test_what_is_not_a_number_is_the_largest(library: Any, padding: int) -> None:
    x = spread(1, 1, 6, 6)
    x[0, 0, 1, 2] = x[0, 0, 5, 5] = torch.nan
    case = Case((x,), (2, 2, padding))
    (y, dx), (expected_y, expected_dx) = results(library.max_pool2d, case), results(F.max_pool2d, case)
    assert y.isnan().sum() == 2
    assert_same([y, dx], [expected_y, expected_dx], atol=0)


@each("library", LIBRARIES)
def test_relu_at_its_edges_is_torchs(library: Any) -> None:
    x = torch.tensor([0.0, -0.0, 1e-300, -1e-300, torch.inf], dtype=DOUBLE, requires_grad=True)
    y = library.relu(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, F.relu(x))
    assert dx.tolist() == [0, 0, 1, 0, 1]
    assert library.relu(torch.tensor([torch.nan])).isnan().all()


@each("library", LIBRARIES)
def test_relu_of_minus_infinity_is_0(library: Any) -> None:
    x = torch.tensor([-torch.inf], requires_grad=True)
    y = library.relu(x)
    assert y.tolist() == [0]
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0]


@each("library", LIBRARIES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_stands_enormous_logits_in_float32(library: Any, smoothing: float) -> None:
    rows = [[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]]
    case = Case((torch.tensor(rows),), (torch.tensor([0, 1, 1, 2]),), {"label_smoothing": smoothing})
    exact = Case((torch.tensor(rows, dtype=DOUBLE),), case.others, case.options)
    loss, by_logits = results(library.cross_entropy, case)
    expected, expected_by_logits = results(F.cross_entropy, exact)
    assert loss.dtype == by_logits.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(by_logits.double(), expected_by_logits, rtol=1e-6, atol=1e-7)


@each("library", LIBRARIES)
def test_sigmoid_stands_enormous_numbers_in_float32(library: Any) -> None:
    x = torch.tensor([-1000.0, -100.0, -20.0, 0.0, 20.0, 100.0, 1000.0], requires_grad=True)
    y = library.sigmoid(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    exact = x.detach().double().sigmoid()
    assert y.dtype == dx.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-40)
    torch.testing.assert_close(dx.double(), exact * (1 - exact), rtol=1e-6, atol=1e-8)  # 1 - y loses digits near y = 1
    assert dx[[0, -1]].tolist() == [0, 0]


@each("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_losses_of_sigmoids_stand_0_and_enormous_logits(library: Any, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1000.0, -1000.0, 0.0], [1000.0, -1000.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    labels = torch.tensor([0, 1, 2])
    a, y = torch.tensor([[1, 0, 0.5], [1, 0, 0.5], [0.5, 0.5, 0.5]], dtype=dtype), torch.eye(3, dtype=dtype)
    a_gradient = logits.clone().requires_grad_()
    loss = library.sigmoid_cross_entropy(a_gradient, labels)
    assert float(loss.detach()) == pytest.approx((2000 + 5 * math.log(2)) / 3, rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, a_gradient)[0], (a - y) / 3)
    loss = library.quadratic(a_gradient, labels)
    assert float(loss.detach()) == pytest.approx((0.25 + 2.25 + 0.75) / 2 / 3, rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, a_gradient)[0], (a - y) * a * (1 - a) / 3)


@each("library", TENSORS)
@pytest.mark.parametrize("std", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(256, 4), (8, 4, 6, 5)])
def test_batch_norm_keeps_its_digits_far_from_0(library: Any, std: float, shape: tuple[int, ...]) -> None:
    """In float32 two numbers near 1e4 are 1e-3 apart: the mean is off by no more than two of these steps."""
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    x, (weight, bias) = (1e4 + std * drawn).float(), spread(2, 4).float()
    axes = [0, *range(2, x.ndim)]
    exact = Case((x.double(), weight.double(), bias.double()), (1e-5,))
    y, mean, var, dx, *_ = results(library.batch_norm, Case((x, weight, bias), (1e-5,)))
    exact_y, exact_mean, exact_var, exact_dx, *_ = results(torch_batch_norm, exact)
    one_pass = x.square().mean(axes) - x.mean(axes).square()
    assert ((one_pass - exact_var).abs() > 0.9 * exact_var).all()  # what the formula E[x^2] - E[x]^2 would have given
    torch.testing.assert_close(mean.double(), exact_mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-3, atol=0)
    torch.testing.assert_close(y.double(), exact_y, rtol=1e-3, atol=3 * 2e-3 / std)  # |weight| is 3 at most
    torch.testing.assert_close(dx.double(), exact_dx, rtol=0, atol=0.01 * float(exact_dx.abs().max()))


@each("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_draws_torchs_mask(library: Any, dtype: torch.dtype, p: float) -> None:
    for x in (spread(7, 50).to(dtype), spread(50, 7).to(dtype).T, spread(2, 3, 5, 4).to(dtype)):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        expected, state = F.dropout(x, p), torch.get_rng_state()
        torch.manual_seed(3)
        y = library.dropout(leaf, p)
        assert torch.equal(torch.get_rng_state(), state)
        assert y.dtype == dtype
        assert torch.equal(y, expected)
        mask = torch.where(expected == 0, 0, 1 / (1 - p)).to(dtype)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), leaf)[0], mask)


@pytest.mark.parametrize(
    ("library", "name", "needless"),
    [
        *((library, "Linear", index) for library in (by_hand, with_numpy) for index in (0, 2)),
        *((by_hand, "Conv2d", index) for index in (0, 2)),
        *((library, "MSE", 1) for library in (by_hand, with_numpy)),
        *((by_hand, "L1", 1), (by_hand, "Huber", 1)),
    ],
    ids=short,
)
def test_what_needs_no_gradient_gets_none_computed(
    library: ModuleType, name: str, needless: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images that come in, the targets, and biases that are held fixed."""
    function, returned = getattr(library, name), []
    plain: Callable[..., Any] = function.backward

    def backward(ctx: Any, *g: Tensor) -> Any:
        returned.append(plain(ctx, *g))
        return returned[-1]

    monkeypatch.setattr(function, "backward", staticmethod(backward))
    tensors, others = {
        "Linear": ((spread(3, 4), spread(2, 4), spread(2)), ()),
        "Conv2d": ((spread(2, 3, 5, 4), spread(2, 3, 3, 3), spread(2)), (1, 1)),
        "MSE": ((spread(3, 2), spread(3, 2, seed=1)), ("half",)),
        "L1": ((spread(3, 2), spread(3, 2, seed=1)), ()),
        "Huber": ((spread(3, 2), spread(3, 2, seed=1)), (0.7,)),
    }[name]
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(i != needless)
    function.apply(*tensors, *others).sum().backward()
    ((*gradients,),) = returned
    assert gradients[needless] is None
    wanted = [i for i in range(len(tensors)) if i != needless]
    assert_same([gradients[i] for i in wanted], [grad for t in tensors if (grad := t.grad) is not None], atol=0)


def test_the_first_convolution_puts_no_windows_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(by_hand, "add_windows", lambda *given: calls.append(given))
    x, weight = spread(2, 3, 5, 4), spread(2, 3, 3, 3).requires_grad_()
    by_hand.conv2d(x, weight, None, 1, 1).sum().backward()
    assert not calls
    by_hand.conv2d(x.requires_grad_(), weight, None, 1, 1).sum().backward()
    assert len(calls) == 1


@each("library", TENSORS)
def test_no_images_give_no_images(library: Any) -> None:
    assert library.conv2d(torch.zeros(0, 3, 8, 8), torch.zeros(4, 3, 3, 3), None, 1, 1).shape == (0, 4, 8, 8)
    assert library.max_pool2d(torch.zeros(0, 3, 8, 8), 2, 2, 0).shape == (0, 3, 4, 4)


@each("library", TENSORS)
@pytest.mark.parametrize("window", [(3, 3, 0), (2, 1, 2)])
def test_a_window_that_does_not_fit_is_refused(library: Any, window: tuple[int, int, int]) -> None:
    for pool in (library.max_pool2d, library.avg_pool2d):
        with pytest.raises(ValueError, match="do not fit"):
            pool(torch.zeros(1, 3, 2, 2), *window)


@each("library", (by_hand, with_numpy))
def test_a_second_derivative_is_refused(library: Any) -> None:
    z = torch.ones(2, 2, dtype=DOUBLE, requires_grad=True)
    [dz] = torch.autograd.grad(library.mse(z, torch.zeros(2, 2, dtype=DOUBLE), form="sum"), z, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        dz.sum().backward()


@each("library", LIBRARIES)
def test_a_certain_answer_costs_nothing(library: Any) -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0]])
    assert library.cross_entropy(logits, torch.tensor([0]), label_smoothing=0.0) == 0
