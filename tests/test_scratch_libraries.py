"""The layer libraries behind impl=: one seed, one network and one run, whichever of them computes it."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer import build
from trainer.build import LIBRARIES
from trainer.config.options import CONFIGS, load_yaml
from trainer.config.ranges import IMPLS
from trainer.config.schema import Choice
from trainer.config.tasks import IMPLS_OF
from trainer.models import MODELS
from trainer.scratch import by_hand, formulas, with_numpy
from trainer.scratch.nn import layers

OPERATIONS = {"autograd": formulas, "scratch": by_hand, "numpy": with_numpy}
HAND_WRITTEN, TENSORS = tuple(OPERATIONS), ("autograd", "scratch")
DOUBLE = torch.float64


def choice(group: str, name: str, impl: str | None = None, **changes: Any) -> Choice:
    """A choice with the options of its YAML file, some of them changed."""
    options = load_yaml(CONFIGS / group / f"{name}.yaml")
    assert changes.keys() <= options.keys()
    return Choice(name, options | changes, impl)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def assert_equal_states(ours: nn.Module, theirs: nn.Module) -> None:
    """The same keys in the same order, and the same bits."""
    got, expected = ours.state_dict(), theirs.state_dict()
    assert list(got) == list(expected)
    assert [k for k in got if got[k].dtype != expected[k].dtype or not torch.equal(got[k], expected[k])] == []
    learnt = [[name for name, p in module.named_parameters() if p.requires_grad] for module in (ours, theirs)]
    assert learnt[0] == learnt[1]


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    assert all(torch.isfinite(t).all() for t in theirs)
    return max(float((a - b).detach().abs().max()) for a, b in zip(ours, theirs, strict=True))


# Layers

LAYERS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("Linear", {"in_features": 5, "out_features": 3}, (4, 5)),
    ("Linear", {"in_features": 5, "out_features": 3, "bias": False}, (4, 5)),
    ("Conv2d", {"in_channels": 3, "out_channels": 4, "kernel_size": 3}, (2, 3, 6, 5)),
    (
        "Conv2d",
        {"in_channels": 3, "out_channels": 4, "kernel_size": 2, "stride": 2, "padding": 1, "bias": False},
        (2, 3, 6, 5),
    ),
    ("BatchNorm1d", {"num_features": 5}, (4, 5)),
    ("BatchNorm1d", {"num_features": 5, "eps": 0.1, "momentum": 0.3}, (4, 5)),
    ("BatchNorm2d", {"num_features": 3}, (2, 3, 6, 5)),
    ("ReLU", {}, (4, 5)),
    ("Sigmoid", {}, (4, 5)),
    ("Tanh", {}, (4, 5)),
    ("Dropout", {}, (4, 5)),
    ("Dropout", {"p": 0.2}, (4, 5)),
    ("MaxPool2d", {"kernel_size": 2}, (2, 3, 7, 6)),
    ("MaxPool2d", {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 3, 7, 6)),
    ("AvgPool2d", {"kernel_size": 2}, (2, 3, 7, 6)),
    ("AvgPool2d", {"kernel_size": 3, "stride": 1, "padding": 1}, (2, 3, 7, 6)),
    ("AdaptiveAvgPool2d", {"output_size": 1}, (2, 3, 7, 6)),
    ("Flatten", {}, (2, 3, 7, 6)),
    ("Identity", {}, (4, 5)),
]
NOT_IN_NUMPY = ("Conv2d", "BatchNorm1d", "BatchNorm2d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d")


def pair_of(library: Any, name: str, options: Mapping[str, Any], seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """A layer of ours and torch's, each from one seed; the generator has moved equally far."""
    made: list[nn.Module] = []
    states: list[Tensor] = []
    for nn_ in (library, nn):
        torch.manual_seed(seed)
        made.append(getattr(nn_, name)(**options))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    return made[0], made[1]


def test_every_layer_of_a_library_is_tested_here() -> None:
    for operations in OPERATIONS.values():
        assert {name for name, *_ in LAYERS} == set(vars(layers(operations))) - {"Sequential"}


@pytest.mark.parametrize("impl", HAND_WRITTEN)
@pytest.mark.parametrize(("name", "options", "shape"), LAYERS)
def test_a_layer_is_torchs(impl: str, name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    ours, theirs = pair_of(LIBRARIES[impl].layers, name, options)
    assert type(ours) is not type(theirs)
    assert_equal_states(ours, theirs)
    if impl == "numpy" and name in NOT_IN_NUMPY:
        return
    ours.double(), theirs.double()
    for training, seed in itertools.product((True, False), (0, 1)):
        runs = []
        for layer in (ours.train(training), theirs.train(training)):
            torch.manual_seed(9)
            x = draw(*shape, seed=seed).requires_grad_()
            y = layer(x)
            runs.append([y, *torch.autograd.grad((y * draw(*y.shape, seed=2)).sum(), (x, *layer.parameters()))])
        assert largest_difference(*runs) <= 1e-12
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("impl", HAND_WRITTEN)
@pytest.mark.parametrize("bias", [True, False])
def test_initial_values_are_torchs_bits_for_every_number_of_inputs(impl: str, bias: bool) -> None:
    def check(name: str, **options: Any) -> None:
        ours, theirs = pair_of(library, name, options | {"bias": bias}, seed=sum(options.values()))
        expected = theirs.state_dict()
        assert [key for key, value in ours.state_dict().items() if not torch.equal(value, expected.pop(key))] == []
        assert not expected

    library = LIBRARIES[impl].layers
    for fan_in in (*range(1, 301), 784, 1000, 1024, 4096, 9216, 25_088):
        check("Linear", in_features=fan_in, out_features=3)
        if fan_in % 3 == 0:
            check("Conv2d", in_channels=fan_in, out_channels=2, kernel_size=1)
    for channels, size in itertools.product((1, 2, 3, 6, 16, 64, 512), (2, 3, 4, 5, 7)):
        check("Conv2d", in_channels=channels, out_channels=2, kernel_size=size)


@pytest.mark.parametrize("impl", TENSORS)
@pytest.mark.parametrize(
    ("name", "shape"), [("BatchNorm1d", (2, 5)), ("BatchNorm1d", (9, 5)), ("BatchNorm2d", (1, 5, 3, 2))]
)
def test_running_statistics_are_torchs(impl: str, name: str, shape: tuple[int, ...]) -> None:
    ours, theirs = pair_of(LIBRARIES[impl].layers, name, {"num_features": 5})
    for seed in range(3):
        batch = 3 + 2 * draw(*shape, seed=seed)
        ours.double()(batch), theirs.double()(batch)
    state = ours.state_dict()
    torch.testing.assert_close(state, theirs.state_dict(), rtol=0, atol=1e-12)
    assert state["num_batches_tracked"] == 3
    assert (state["running_mean"].abs() > 0.1).all()
    ours.eval()(batch)
    torch.testing.assert_close(ours.state_dict(), state, rtol=0, atol=0)  # evaluation leaves them as they are


@pytest.mark.parametrize("impl", TENSORS)
@pytest.mark.parametrize(("name", "shape"), [("BatchNorm1d", (1, 5)), ("BatchNorm2d", (1, 5, 1, 1))])
def test_one_number_has_no_variance(impl: str, name: str, shape: tuple[int, ...]) -> None:
    for layer in pair_of(LIBRARIES[impl].layers, name, {"num_features": 5}):
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(torch.zeros(shape))
        assert layer.eval()(torch.zeros(shape)).shape == shape
        if type(layer).__module__ != nn.BatchNorm1d.__module__:
            torch.testing.assert_close(layer.state_dict(), before)


@pytest.mark.parametrize("impl", HAND_WRITTEN)
def test_dropout_draws_only_where_it_drops(impl: str) -> None:
    library, x = LIBRARIES[impl].layers, draw(50, 4)
    state = torch.get_rng_state()
    for layer in (library.Dropout(0.0), library.Dropout(0.5).eval()):
        assert torch.equal(layer(x), x)
        assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(library.Dropout(0.5)(x), x)
    assert not torch.equal(torch.get_rng_state(), state)


def test_libraries_do_not_share_their_classes() -> None:
    names = [name for name, *_ in LAYERS if name not in ("Flatten", "Identity")]
    for a, b in itertools.combinations([library.layers for library in LIBRARIES.values()], 2):
        assert [name for name in names if getattr(a, name) is getattr(b, name)] == []
    for impl, operations in OPERATIONS.items():
        assert all(getattr(LIBRARIES[impl].layers, name).operations is operations for name in names)


# Models

MODEL_CASES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("linreg", (7,), {}),
    ("linreg", (7,), {"init_std": "torch"}),
    ("softmax", (1, 6, 6), {}),
    *(("mlp", (1, 6, 6), {"num_hiddens": [9, 5], "activation": name}) for name in ("relu", "sigmoid", "tanh")),
    ("mlp", (12,), {"init_std": "torch", "dropout": 0.3}),
    ("mlp", (12,), {"init_std": "fan_in", "bias_std": 1.0}),
    ("mlp", (12,), {"bias": False, "init_std": 1.0}),
    ("mlp", (12,), {"batch_norm": True}),
    ("lenet", (1, 28, 28), {}),
    ("lenet", (3, 33, 35), {"activation": "tanh"}),
    ("lenet", (1, 28, 28), {"activation": "sigmoid", "pooling": "avg"}),
    ("resnet18", (3, 8, 9), {"project_stage1": True}),
    ("resnet18", (3, 40, 33), {"stem": "imagenet", "zero_init_residual": True}),
    ("resnet34", (3, 8, 8), {}),
    ("convnet", (1, 14, 14), {"layers": ["conv4x3p1", "max2", "conv6x3", "avg2", "fc12"], "dropout": 0.4}),
]


def built(model: Choice, impl: str, in_shape: tuple[int, ...], num_outputs: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return build.build_model(model, impl, in_shape, num_outputs)


def in_library(name: str, options: Mapping[str, Any]) -> list[str]:
    """The hand-written libraries that have a model with these options."""
    return [impl for impl in IMPLS_OF["model"][name] if not (impl == "numpy" and options.get("batch_norm"))]


def test_the_table_of_models_is_complete() -> None:
    of_torch = {"torchvision", "timm", "cifarnet"}
    assert {name for name, *_ in MODEL_CASES} == set(IMPLS_OF["model"]) == set(MODELS) - of_torch


@pytest.mark.parametrize(("name", "in_shape", "options"), MODEL_CASES)
def test_a_model_starts_from_the_same_bits_and_evaluates_alike(
    name: str, in_shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    chosen = choice("model", name, **options)
    concise = built(chosen, "concise", in_shape)
    state = torch.get_rng_state()
    trained = copy.deepcopy(concise).double()
    with torch.no_grad():
        trained(draw(6, *in_shape))  # running statistics
        for i, parameter in enumerate(trained.parameters()):
            parameter.add_(0.1 * parameter.abs().mean() * draw(*parameter.shape, seed=i))
            if parameter.ndim == 1:  # no bias at 0, no scale at 1
                parameter.add_(0.1 * draw(*parameter.shape, seed=i))
    x, outputs = draw(2, *in_shape, seed=1), trained.eval()
    expected = outputs(x)
    for impl in in_library(name, options):
        ours = built(chosen, impl, in_shape)
        assert torch.equal(torch.get_rng_state(), state)
        assert_equal_states(ours, concise)
        assert {type(m).__module__ for m in ours.modules()} & {type(m).__module__ for m in concise.modules()} <= {
            *("torch.nn.modules.container", type(concise).__module__)
        }
        ours.double().load_state_dict(trained.state_dict(), strict=True)
        assert largest_difference([ours.eval()(x)], [expected]) <= 1e-10


# Runs

Batches = list[tuple[Tensor, Tensor]]
SGD, ADAM, ADAMW = (
    choice("optimizer", "sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.001),
    choice("optimizer", "adam"),  # weight decay in front of Adam blows up the rounding of a bias before batch_norm
    choice("optimizer", "adamw", decay_all=False),
)
OPTIMIZERS = [SGD, ADAM, ADAMW]
CROSS_ENTROPY = choice("loss", "cross_entropy")


def images(num_steps: int, n: int, in_shape: tuple[int, ...], num_classes: int = 10) -> Batches:
    generator = torch.Generator().manual_seed(7)
    labels = [torch.randint(num_classes, (n,), generator=generator) for _ in range(num_steps)]
    return [(draw(n, *in_shape, seed=step), labels[step]) for step in range(num_steps)]


def train(
    impl: str, choices: tuple[Choice, Choice, Choice], batches: Batches, dtype: torch.dtype = DOUBLE
) -> nn.Module:
    """A model after a step on each batch, from one seed."""
    model_choice, loss_choice, optimizer_choice = choices
    num_outputs = 10 if batches[0][1].ndim == 1 else batches[0][1].shape[1]
    model = built(model_choice, impl, tuple(batches[0][0].shape[1:]), num_outputs).to(dtype)
    loss_fn = build.build_loss(loss_choice, impl)
    optimizer = build.build_optimizer(optimizer_choice, impl, model)
    for x, y in batches:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    return model


def weights(model: nn.Module) -> list[Tensor]:
    """Parameters and running statistics."""
    return [t.detach() for t in model.state_dict().values()]


def assert_learnt_alike(impls: Sequence[str], choices: tuple[Choice, Choice, Choice], batches: Batches) -> None:
    expected = weights(train("concise", choices, batches))
    start = weights(built(choices[0], "concise", tuple(batches[0][0].shape[1:])).double())
    assert largest_difference(expected, start) > 1e-3
    for impl in impls:
        assert largest_difference(weights(train(impl, choices, batches)), expected) <= 1e-10, impl


RUNS = [
    choice("model", "mlp", num_hiddens=[20, 15], dropout=0.3),
    choice("model", "mlp", num_hiddens=[20, 15], batch_norm=True, activation="tanh"),
    choice("model", "lenet"),
    choice("model", "lenet", activation="sigmoid", pooling="avg"),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda chosen: chosen.name)
@pytest.mark.parametrize("model", RUNS, ids=["dropout", "batch_norm", "lenet_max", "lenet_avg"])
def test_20_steps_end_where_torchs_do(model: Choice, optimizer: Choice) -> None:
    assert_learnt_alike(TENSORS, (model, CROSS_ENTROPY, optimizer), images(20, 8, (1, 28, 28)))


@pytest.mark.parametrize(
    ("model", "loss", "optimizer"),
    [
        (choice("model", "softmax"), CROSS_ENTROPY, SGD),
        (choice("model", "mlp", num_hiddens=[30], dropout=0.3), CROSS_ENTROPY, SGD),
        (
            choice("model", "mlp", num_hiddens=[30], activation="sigmoid", init_std=1.0, bias_std=1.0),
            choice("loss", "quadratic"),
            choice("optimizer", "sgd", lr=3.0),
        ),
        (
            choice("model", "mlp", num_hiddens=[30], activation="sigmoid", init_std="fan_in", bias_std=1.0),
            choice("loss", "sigmoid_cross_entropy"),
            choice("optimizer", "sgd", weight_decay=0.0001, decay_all=False),
        ),
    ],
    ids=["softmax", "mlp", "nielsen", "nielsen_cross_entropy"],
)
def test_100_steps_of_the_notes_networks_end_where_torchs_do(model: Choice, loss: Choice, optimizer: Choice) -> None:
    assert_learnt_alike(HAND_WRITTEN, (model, loss, optimizer), images(100, 10, (1, 28, 28)))


RESNET = choice("model", "resnet34", stem="cifar")


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, 32])
def test_5_steps_of_resnet34_end_where_torchs_do(side: int) -> None:
    sgd = choice("optimizer", "sgd", lr=0.01, momentum=0.9)
    assert_learnt_alike(TENSORS, (RESNET, CROSS_ENTROPY, sgd), images(5, 4, (3, side, side)))


def backward(impl: str, batch: tuple[Tensor, Tensor]) -> nn.Module:
    model = built(RESNET, impl, tuple(batch[0].shape[1:])).double()
    build.build_loss(CROSS_ENTROPY, impl)(model(batch[0]), batch[1]).backward()
    return model


@pytest.mark.parametrize("side", [16, pytest.param(32, marks=pytest.mark.slow)])
def test_gradients_and_steps_of_resnet34_are_torchs(side: int) -> None:
    """Apart from each other: Adam divides by the gradient, so that its step makes much of a little difference."""
    (batch,) = images(1, 4, (3, side, side))
    models = {impl: backward(impl, batch) for impl in ("concise", *TENSORS)}
    concise = models.pop("concise")
    for impl, ours in models.items():
        for (name, p), q in zip(concise.named_parameters(), ours.parameters(), strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert float((q.grad - p.grad).norm() / p.grad.norm()) <= 1e-10, (impl, name)
            q.grad = p.grad
    ours = models["scratch"]  # whose optimizers autograd has too
    start = [p.detach().clone() for p in concise.parameters()]
    for optimizer in (ADAM, ADAMW):
        for impl, model in (("concise", concise), ("scratch", ours)):
            for p, value in zip(model.parameters(), start, strict=True):
                p.data.copy_(value)
            build.build_optimizer(optimizer, impl, model).step()
        assert largest_difference(list(ours.parameters()), list(concise.parameters())) <= 1e-12
        assert largest_difference(start, list(concise.parameters())) > 1e-4


def test_autograd_and_scratch_share_their_optimizers() -> None:
    assert LIBRARIES["autograd"].optimizers == LIBRARIES["scratch"].optimizers


TWO_LAYER = choice("model", "mlp", num_hiddens=[100], bias=False, init_std=1.0)


TWO_LAYER_SGD, TWO_LAYER_ADAM = choice("optimizer", "sgd", lr=1e-6), choice("optimizer", "adam", lr=1e-4)
SUM_OF_SQUARES = choice("loss", "mse", form="sum")


@cache
def two_layer_loss(impl: str, optimizer: str, dtype: torch.dtype, steps: int = 500) -> float:
    """What the notes' network of two layers loses on its 64 random rows after so many steps."""
    x, y = draw(64, 1000).to(dtype), draw(64, 10, seed=1).to(dtype)
    chosen = {"sgd": TWO_LAYER_SGD, "adam": TWO_LAYER_ADAM}[optimizer]
    model = train(impl, (TWO_LAYER, SUM_OF_SQUARES, chosen), [(x, y)] * steps, dtype)
    return float((model(x) - y).detach().square().sum())


@pytest.mark.parametrize(
    ("impl", "optimizer"), [*((impl, "sgd") for impl in HAND_WRITTEN), *((impl, "adam") for impl in TENSORS)]
)
def test_the_two_layer_network_ends_where_torchs_does(impl: str, optimizer: str) -> None:
    expected = two_layer_loss("concise", optimizer, DOUBLE)
    assert expected < {"sgd": 1e-3, "adam": 1e7}[optimizer]  # from 3e7
    assert two_layer_loss(impl, optimizer, DOUBLE) == pytest.approx(expected, rel=1e-10, abs=0)


@pytest.mark.parametrize(("impl", "optimizer"), list(itertools.product(TENSORS, ("sgd", "adam"))))
def test_the_two_layer_network_ends_where_torchs_does_in_float32(impl: str, optimizer: str) -> None:
    expected = two_layer_loss("concise", optimizer, torch.float32)
    assert two_layer_loss(impl, optimizer, torch.float32) == pytest.approx(expected, rel=1e-4, abs=0)


def test_the_two_layer_network_in_float32_is_near_in_numpy_while_the_loss_is_not_rounding() -> None:
    """NumPy's products are of another library. At step 500 the loss is 1e-11 of its start, and float32 itself off."""
    expected = two_layer_loss("concise", "sgd", torch.float32, steps=200)
    assert expected < 1e2
    assert two_layer_loss("numpy", "sgd", torch.float32, steps=200) == pytest.approx(expected, rel=1e-4, abs=0)
    assert two_layer_loss("concise", "sgd", torch.float32) != pytest.approx(
        two_layer_loss("concise", "sgd", DOUBLE), rel=1
    )


# What there is, and how it mixes


def test_the_table_of_ranges_says_what_the_libraries_have() -> None:
    assert tuple(LIBRARIES) == IMPLS
    for impl in HAND_WRITTEN:
        for group, table in (("loss", LIBRARIES[impl].losses), ("optimizer", LIBRARIES[impl].optimizers)):
            assert {name for name, impls in IMPLS_OF[group].items() if impl in impls} == set(table)
    assert set(LIBRARIES["concise"].losses) >= set(IMPLS_OF["loss"])
    assert set(LIBRARIES["concise"].optimizers) >= set(IMPLS_OF["optimizer"])
    assert {impl for group in IMPLS_OF.values() for impls in group.values() for impl in impls} == set(HAND_WRITTEN)


@pytest.mark.parametrize("name", IMPLS_OF["loss"])
def test_a_listed_loss_is_torchs_in_every_library(name: str) -> None:
    """With the options of its YAML file, through the builder."""
    y_hat, y = draw(6, 4), draw(6, 4, seed=1)
    target = y if name in ("mse", "l1", "huber") else torch.tensor([0, 3, 1, 1, 2, 0])
    expected = build.build_loss(choice("loss", name), "concise")(y_hat, target)
    for impl in IMPLS_OF["loss"][name]:
        loss = build.build_loss(choice("loss", name), impl)(y_hat, target)
        assert loss.shape == ()
        assert largest_difference([loss], [expected]) <= 1e-12


@pytest.mark.parametrize(("name", "in_shape", "options"), MODEL_CASES)
def test_a_listed_model_learns_in_every_library(name: str, in_shape: tuple[int, ...], options: dict[str, Any]) -> None:
    chosen = choice("model", name, **options)
    regression = name == "linreg"
    batches = (
        [(draw(4, *in_shape), draw(4, 2))]
        if regression
        else images(2 if options.get("zero_init_residual") else 1, 4, in_shape)
    )
    loss = choice("loss", "mse") if regression else CROSS_ENTROPY
    start = built(chosen, "concise", in_shape, 2 if regression else 10).double()
    for impl in in_library(name, options):
        end = train(impl, (chosen, loss, SGD), batches)
        still = [
            key
            for (key, p), q in zip(start.named_parameters(), end.parameters(), strict=True)
            if torch.equal(p, q) or not q.isfinite().all()
        ]
        assert still == []


@pytest.mark.parametrize(
    "impls", [impls for impls in itertools.product(IMPLS, repeat=3) if len(set(impls)) > 1], ids="-".join
)
def test_model_loss_and_optimizer_may_come_from_different_libraries(impls: tuple[str, str, str]) -> None:
    model, loss, optimizer = impls
    choices = (
        choice("model", "mlp", model, num_hiddens=[7], dropout=0.3),
        choice("loss", "cross_entropy", loss),
        replace(SGD, impl=optimizer),
    )
    concise = choice("model", "mlp", num_hiddens=[7], dropout=0.3), CROSS_ENTROPY, SGD
    batches = images(5, 6, (12,))
    ours, theirs = train("no such library", choices, batches), train("concise", concise, batches)
    assert largest_difference(weights(ours), weights(theirs)) <= 1e-12
    assert isinstance(ours.get_submodule("layers.1"), LIBRARIES[model].layers.Linear)
    assert build.build_loss(choices[1], "concise").func is LIBRARIES[loss].losses["cross_entropy"]  # type: ignore[attr-defined]
    made = build.build_optimizer(choices[2], "concise", ours)
    assert type(made) is type(build.build_optimizer(SGD, optimizer, ours))
    assert made.param_groups[0]["momentum"] == 0.9
