"""The architectures by name. Layers arrive as the argument `nn`, so no file here says how a layer computes.

MODELS is both the index to read and the security boundary: a config or an untrusted checkpoint can name an entry of
this table and nothing else. An entry is called as `MODELS[name](nn, in_shape, num_outputs, **options)`; its
keyword-only arguments are the keys of configs/model/<name>.yaml.
"""

from collections.abc import Callable

from torch.nn import Module

from trainer.models.cifarnet import CifarNet
from trainer.models.convnet import ConvNet
from trainer.models.lenet import LeNet
from trainer.models.linear import LinearRegression, SoftmaxRegression
from trainer.models.mlp import MLP
from trainer.models.resnet import ResNet18, ResNet34
from trainer.models.timm import timm_model
from trainer.models.torchvision import torchvision_model

MODELS: dict[str, Callable[..., Module]] = {
    "linreg": LinearRegression,
    "softmax": SoftmaxRegression,
    "mlp": MLP,
    "lenet": LeNet,
    "convnet": ConvNet,
    "cifarnet": CifarNet,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "torchvision": torchvision_model,
    "timm": timm_model,
}
