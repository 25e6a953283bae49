import inspect
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision  # type: ignore[import-untyped]
import yaml
from torch import Tensor, nn

from trainer.models import MODELS
from trainer.models.torchvision import torchvision_model
from trainer.utils.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "model"
IMAGE_MODELS = [name for name in MODELS if name != "linreg"]


def build(name: str, in_shape: tuple[int, ...] = (3, 32, 32), num_outputs: int = 10, **options: Any) -> Any:
    torch.manual_seed(0)
    return MODELS[name](nn, in_shape, num_outputs, **options)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_model_has_its_yaml_file() -> None:
    assert {path.stem for path in CONFIGS.rglob("*.yaml")} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_yaml_keys_and_values_are_the_constructors_keywords_and_defaults(name: str) -> None:
    parameters = inspect.signature(MODELS[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    options = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert options.pop("weights", "none") == "none"  # put in when the model is built
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()} == defaults


@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_logits_have_one_column_per_class(name: str, channels: int, size: int) -> None:
    model = build(name, (channels, size, size), 7)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["softmax", "mlp", "lenet", "resnet18", "torchvision"])
def test_oblong_images_fit(name: str) -> None:
    assert build(name, (3, 40, 28))(torch.zeros(2, 3, 40, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "in_shape", "num_outputs", "options", "count"),
    [
        ("linreg", (2,), 1, {}, 3),
        ("softmax", (1, 28, 28), 10, {}, 7_850),
        ("mlp", (1, 28, 28), 10, {}, 203_530),
        ("mlp", (784,), 10, {"num_hiddens": []}, 7_850),
        ("mlp", (1, 28, 28), 10, {"num_hiddens": (64, 128, 64), "batch_norm": True}, 67_978),
        ("lenet", (1, 28, 28), 10, {}, 61_706),
        ("resnet34", (3, 32, 32), 10, {}, 21_282_122),
        ("resnet34", (3, 224, 224), 1000, {}, 21_797_672),  # the count that torchvision publishes
        ("resnet18", (3, 224, 224), 1000, {}, 11_689_512),
    ],
)
def test_parameter_counts(
    name: str, in_shape: tuple[int, ...], num_outputs: int, options: dict[str, Any], count: int
) -> None:
    assert num_parameters(build(name, in_shape, num_outputs, **options)) == count


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_one_seed_gives_equal_weights_and_every_parameter_a_gradient(name: str) -> None:
    model, again = build(name), build(name)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    model(images(2, 3, 32, 32).float()).square().sum().backward()
    learning = [(n, p.grad) for n, p in model.named_parameters() if p.requires_grad]
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    scales = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert frozen == (scales if name == "cifarnet" else set())
    assert [n for n, grad in learning if grad is None or not grad.isfinite().all()] == []
    if name != "timm":  # whose residual branches begin at 0
        assert [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()] == []


LAYERS = (
    *("Linear", "Conv2d", "BatchNorm2d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d", "AdaptiveMaxPool2d"),
    *("ReLU", "Sigmoid", "Tanh", "Dropout", "Flatten", "Identity", "Sequential"),
)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("torchvision", "timm")])
def test_every_layer_comes_from_the_library_handed_over(name: str) -> None:
    library: Any = SimpleNamespace(**{k: type(k, (getattr(nn, k),), {}) for k in LAYERS})
    model = MODELS[name](library, (784,) if name == "linreg" else (1, 28, 28), 10)
    assert [m for m in model.modules() if type(m).__module__.startswith("torch.")] == []


def test_linear_models_start_from_narrow_weights_and_zero_bias() -> None:
    for model in (build("softmax", (784,)), build("linreg", (784,), init_std=0.01)):
        assert model.linear.weight.std().item() == pytest.approx(0.01, rel=0.05)  # 7,840 draws: 0.8% standard error
        assert not model.linear.bias.any()


def test_linear_models_are_the_affine_map() -> None:
    x = images(5, 4)
    for name in ("linreg", "softmax"):
        model = build(name, (4,), 3).double()
        torch.testing.assert_close(model(x), x @ model.linear.weight.T + model.linear.bias)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [("relu", lambda z: z.clamp(min=0)), ("sigmoid", lambda z: 1 / (1 + torch.exp(-z))), ("tanh", torch.tanh)],
)
def test_mlp_is_its_formula(activation: str, formula: Callable[[Tensor], Tensor]) -> None:
    x = images(5, 2, 3, 3)
    model = build("mlp", (2, 3, 3), 4, num_hiddens=(6, 5), activation=activation, init_std=0.5).double()
    w1, b1, w2, b2, w3, b3 = model.parameters()
    hidden = formula(formula(x.reshape(5, 18) @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(model(x), hidden @ w3.T + b3, rtol=0, atol=1e-12)


def test_mlp_keeps_the_layers_own_weights_where_it_is_told_to() -> None:
    weight = build("mlp", (400,), num_hiddens=(30,), init_std="torch").state_dict()["layers.1.weight"]
    torch.manual_seed(0)
    assert torch.equal(weight, nn.Linear(400, 30).weight)


def test_mlp_checkpoint_keys_do_not_depend_on_dropout() -> None:
    assert build("mlp").state_dict().keys() == build("mlp", dropout=0.5).state_dict().keys()


def test_mlp_normalises_over_the_batch_before_the_activation() -> None:
    model, x = build("mlp", (20,), num_hiddens=(6,), batch_norm=True, init_std="torch"), torch.randn(50, 20)
    normed = model.layers[:3](x)  # flatten, linear, normalisation
    assert torch.allclose(normed.mean(0), torch.zeros(6), atol=1e-6)
    assert torch.allclose(normed.var(0, correction=0), torch.ones(6), atol=1e-3)
    assert isinstance(model.layers[3], torch.nn.ReLU)


def test_mlp_dropout_acts_in_training_only() -> None:
    model, x = build("mlp", (20,), dropout=0.5), torch.ones(3, 20)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    windows = x.unfold(2, 5, 1).unfold(3, 5, 1)  # (N, C, H - 4, W - 4, 5, 5)
    return torch.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]


@pytest.mark.parametrize(("side", "padding"), [(12, 2), (28, 2), (33, 0)])
@pytest.mark.parametrize("pooling", ["max", "avg"])
def test_lenet_is_its_formula(pooling: str, side: int, padding: int) -> None:
    def pool(x: Tensor) -> Tensor:
        windows = x.unfold(2, 2, 2).unfold(3, 2, 2)
        return windows.amax((-2, -1)) if pooling == "max" else windows.mean((-2, -1))

    model = build("lenet", (3, side, side), pooling=pooling).double()
    c1, d1, c2, d2, w1, b1, w2, b2, w3, b3 = model.parameters()
    x = images(2, 3, side, side)
    padded = x.new_zeros(2, 3, side + 2 * padding, side + 2 * padding)
    padded[:, :, padding : padding + side, padding : padding + side] = x
    maps = pool(convolve(padded, c1, d1).clamp(min=0))
    maps = pool(convolve(maps, c2, d2).clamp(min=0))
    hidden = (maps.reshape(2, -1) @ w1.T + b1).clamp(min=0)
    hidden = (hidden @ w2.T + b2).clamp(min=0)
    torch.testing.assert_close(model(x), hidden @ w3.T + b3, rtol=0, atol=1e-12)


def test_lenet_layers_are_named_and_sized_as_in_the_paper() -> None:
    shapes = {k: tuple(v.shape) for k, v in build("lenet", (1, 32, 32)).state_dict().items() if k.endswith("weight")}
    assert shapes == {
        "conv1.weight": (6, 1, 5, 5),
        "conv2.weight": (16, 6, 5, 5),
        "fc1.weight": (120, 400),
        "fc2.weight": (84, 120),
        "fc3.weight": (10, 84),
    }


def test_lenet_with_sigmoids_starts_xavier_uniform() -> None:
    model = build("lenet", (1, 28, 28), activation="sigmoid", pooling="avg")
    for layer in (model.conv2, model.fc1, model.fc2):
        fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(layer.weight)
        bound = math.sqrt(6 / (fan_in + fan_out))
        # Of 2,400 or more even draws the largest lies within 1% of the bound but for one seed in 10^10.
        assert 0.99 * bound < layer.weight.abs().max() <= bound


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_resnet_loads_torchvisions_weights_and_gives_its_logits(name: str, training: bool) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(name, num_classes=10).double().train(training)
    ours = build(name, (3, 65, 65)).double().train(training)  # auto takes the imagenet stem from 65 pixels on
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(2, 3, 65, 65)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())  # the running statistics too


def test_resnet_draws_torchvisions_initial_weights() -> None:
    for zero in (False, True):
        ours = build("resnet18", (3, 224, 224), 10, zero_init_residual=zero)
        torch.manual_seed(0)
        theirs = torchvision.models.resnet18(num_classes=10, zero_init_residual=zero)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize(
    ("stem", "side", "kernel", "last_side"),
    [("auto", 64, 3, 8), ("auto", 65, 7, 3), ("imagenet", 32, 7, 1), ("cifar", 80, 3, 10)],
)
def test_resnet_stem_follows_the_image_or_the_option(stem: str, side: int, kernel: int, last_side: int) -> None:
    model = build("resnet18", (1, side, side), stem=stem).eval()
    maps = []
    model.layer4.register_forward_hook(lambda module, x, y: maps.append(y.shape))
    model(torch.zeros(1, 1, side, side))
    assert model.conv1.kernel_size == (kernel, kernel)
    assert maps == [(1, 512, last_side, last_side)]


def test_resnet_projects_only_where_the_shape_changes() -> None:
    projections = [k for k in build("resnet34").state_dict() if k.endswith("downsample.0.weight")]
    assert projections == [f"layer{stage}.0.downsample.0.weight" for stage in (2, 3, 4)]


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("arch", ["resnet18", "googlenet", "squeezenet1_1", "mobilenet_v3_small", "alexnet"])
def test_torchvision_architectures_take_other_channels_and_classes(arch: str, channels: int) -> None:
    model = build("torchvision", (channels, 64, 64), 5, arch=arch)
    assert model.training
    assert model(torch.zeros(2, channels, 64, 64)).shape == (2, 5)  # a tensor: no auxiliary outputs in training


def test_torchvision_weights_are_untouched_for_three_channels() -> None:
    ours = build("torchvision", (3, 32, 32), 10)
    torch.manual_seed(0)
    assert num_parameters(ours) == num_parameters(torchvision.models.resnet18(num_classes=10))
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.state_dict().items())


@pytest.mark.parametrize(
    ("name", "in_shape", "options", "message"),
    [
        ("linreg", (1, 28, 28), {}, r"rows of shape \(D,\).*\(1, 28, 28\)"),
        ("mlp", (4,), {"activation": "rely"}, r"model.activation=rely.*relu, sigmoid, tanh.*mean relu"),
        ("lenet", (1, 8, 8), {}, r"12x12.*\(1, 8, 8\)"),
        ("lenet", (1, 40, 11), {}, r"12x12.*\(1, 40, 11\)"),
        ("lenet", (784,), {}, r"\(C, H, W\).*\(784,\)"),
        ("lenet", (1, 28, 28), {"pooling": "sum"}, r"model.pooling=sum.*max, avg"),
        ("resnet18", (784,), {}, r"\(C, H, W\)"),
        ("resnet34", (3, 32, 32), {"stem": "cifar10"}, r"model.stem=cifar10.*mean cifar"),
        ("torchvision", (784,), {}, r"\(C, H, W\)"),
        ("torchvision", (3, 32, 32), {"arch": "resnet81"}, r"model.arch=resnet81.*mean resnet18.*list_models"),
        ("torchvision", (3, 32, 32), {"arch": "fcn_resnet50"}, r"model.arch=fcn_resnet50 does not classify images"),
        ("torchvision", (3, 32, 32), {"arch": "alexnet"}, r"model.arch=alexnet.*\(3, 32, 32\).*too small"),
        ("torchvision", (3, 32, 32), {"arch": "vit_b_32"}, r"model.arch=vit_b_32.*Expected 224"),
    ],
)
def test_what_cannot_be_built_is_refused(
    name: str, in_shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, in_shape, **options)


def test_torchvision_refuses_another_layer_library() -> None:
    with pytest.raises(ConfigError, match=r"model\.impl"):
        torchvision_model(math, (3, 32, 32), 10)  # any module but torch.nn


def test_a_conv_net_is_what_its_list_says_and_pooling_first_changes_no_number() -> None:
    layers = ["conv4x3p1", "max2", "conv6x3", "avg2", "fc12"]
    model = build("convnet", (2, 10, 12), 7, layers=layers, activation="tanh", dropout=0.3).double().eval()
    # (2, 10, 12) -> 4 x 5 x 6 -> 6 x 3 x 4 -> 6 x 1 x 2 -> 12 -> 7
    assert [type(layer).__name__ for layer in model.layers] == [
        *("Conv2d", "MaxPool2d", "Tanh", "Conv2d", "Tanh", "AvgPool2d", "Flatten"),
        *("Dropout", "Linear", "Tanh", "Dropout", "Linear"),
    ]
    first, second, hidden, last = (layer for layer in model.layers if hasattr(layer, "weight"))
    x = images(3, 2, 10, 12)
    a = torch.max_pool2d(torch.tanh(torch.conv2d(x, first.weight, first.bias, padding=1)), 2)  # as the book has it
    a = torch.nn.functional.avg_pool2d(torch.tanh(torch.conv2d(a, second.weight, second.bias)), 2)
    expected = torch.tanh(a.flatten(1) @ hidden.weight.T + hidden.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_a_conv_net_without_layers_is_softmax_regression() -> None:
    model = build("convnet", (1, 28, 28), layers=[])
    assert num_parameters(model) == 7850
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_conv_net_with_fan_in_gives_each_layer_the_spread_of_its_inputs() -> None:
    model = build("convnet", (3, 28, 28), init_std="fan_in", bias_std=1.0, layers=["conv200x5", "max2", "fc300"])
    for layer in (layer for layer in model.layers if hasattr(layer, "weight")):
        assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(layer.weight[0].numel()), rel=0.05)
    assert model.layers[0].bias.std().item() == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["fc10", "conv4x3"], "conv4x3 comes after a fully connected layer"),
        (["conv4x3", "max9", "max4"], "max4 needs larger images"),
        (["conv4x31"], "conv4x31 needs larger images"),
        (["dense4"], "dense4 is no layer"),
        (["conv4000x5", "conv4000x5"], "to conv4000x5 an image takes over 100,000,000,000 multiplications"),
        (["conv1x1p99"] * 1000, "to conv1x1p99 an image takes over"),
    ],
)
def test_a_list_of_layers_that_cannot_be_built_is_refused(layers: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build("convnet", (1, 28, 28), layers=layers)


def test_a_conv_net_without_layers_has_the_last_one() -> None:
    model = build("convnet", (1, 4, 4), 3, layers=[])
    assert [tuple(p.shape) for p in model.parameters()] == [(3, 16), (3,)]


def test_a_linear_regression_can_start_from_a_number() -> None:
    assert [p.flatten().tolist() for p in build("linreg", (3,), 1, start=2.0).parameters()] == [[2.0] * 3, [2.0]]
