"""What each choice is for and needs: the tasks of data sets, models and losses, the libraries, the launchers."""

from trainer.config.schema import Choice

REGRESSION, CLASSIFICATION = "regression", "classification"
BOTH = (REGRESSION, CLASSIFICATION)
TASK_OF_DATA = {
    "synthetic": REGRESSION,
    "random": REGRESSION,
    "mnist": CLASSIFICATION,
    "fashion_mnist": CLASSIFICATION,
    "cifar10": CLASSIFICATION,
    "folder": CLASSIFICATION,
    "shards": CLASSIFICATION,
    "table": "auto",  # its target decides
}
TASKS_OF: dict[str, dict[str, tuple[str, ...]]] = {  # the tasks of each model and loss
    "model": {
        "linreg": (REGRESSION,),
        "softmax": (CLASSIFICATION,),
        "mlp": BOTH,
        "lenet": (CLASSIFICATION,),
        "convnet": (CLASSIFICATION,),
        "cifarnet": (CLASSIFICATION,),
        "resnet18": (CLASSIFICATION,),
        "resnet34": (CLASSIFICATION,),
        "torchvision": (CLASSIFICATION,),
        "timm": (CLASSIFICATION,),
    },
    "loss": {
        "mse": (REGRESSION,),
        "l1": (REGRESSION,),
        "huber": (REGRESSION,),
        "cross_entropy": (CLASSIFICATION,),
        "sigmoid_cross_entropy": BOTH,
        "quadratic": BOTH,
        "auto": BOTH,
    },
}
MODELS_OF_ROWS = ("linreg", "softmax", "mlp")  # they take rows of numbers, and images as such; the others, images alone
TENSORS, ALL = ("autograd", "scratch"), ("autograd", "scratch", "numpy")
IMPLS_OF: dict[str, dict[str, tuple[str, ...]]] = {  # the libraries of each part besides concise, which has all
    "model": {
        "linreg": ALL,
        "softmax": ALL,
        "mlp": ALL,
        "lenet": TENSORS,
        "convnet": TENSORS,
        "resnet18": TENSORS,
        "resnet34": TENSORS,
    },
    "loss": {
        "mse": ALL,
        "l1": TENSORS,
        "huber": TENSORS,
        "cross_entropy": ALL,
        "sigmoid_cross_entropy": ALL,
        "quadratic": ALL,
        "auto": ALL,
    },
    "optimizer": {"sgd": ALL, "adam": TENSORS, "adamw": TENSORS, "muon": TENSORS},
}
LAUNCHERS = {  # the package of each launcher
    "processes": "hydra-joblib-launcher",
    "gpus": "hydra-joblib-launcher",
    "slurm_local": "hydra-submitit-launcher",
    "slurm": "hydra-submitit-launcher",
    "ray_cluster": "hydra-ray-launcher",
}
EXTRAS = dict.fromkeys(LAUNCHERS, "requirements-launchers.txt") | {"ray_cluster": "requirements-ray.txt"}


def tasks_of(data: Choice) -> tuple[str, ...]:
    """The tasks that a data set can have before it is read; of a table its target decides unless data.task= does."""
    task = data.options.get("task", TASK_OF_DATA[data.name])
    return BOTH if task == "auto" else (task,)
