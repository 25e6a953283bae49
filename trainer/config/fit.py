"""Which settings fit together: tasks and losses, models and libraries, options that contradict each other."""

from collections.abc import Sequence

from trainer.config.ranges import as_yaml
from trainer.config.schema import BUILT, FITTED, Choice, Config
from trainer.config.tasks import CLASSIFICATION, IMPLS_OF, MODELS_OF_ROWS, TASKS_OF, tasks_of
from trainer.utils.errors import ConfigError, listed
from trainer.utils.text import number_of

PUBLISHED = {"mnist": (1, 28), "fashion_mnist": (1, 28), "cifar10": (3, 32)}  # channels and size of their images


NEEDS_VALIDATION = "early_stopping.patience, stop_at.val_* and monitor=val_*"


def needs_validation(config: Config) -> bool:
    """Whether a setting needs validation data."""
    stops = (config.stop_at.val_loss, config.stop_at.val_accuracy)
    return config.monitor != "auto" or config.early_stopping.patience > 0 or stops != (None, None)


def shape_of(data: Choice) -> tuple[int, int, int] | None:
    """(C, H, W) of the images that a data set will have, known before it is read; None: it has rows."""
    channels, published = PUBLISHED.get(data.name, (data.options.get("channels"), None))
    size = data.options.get("size") or published
    return (channels, size, size) if channels and size else None


def check_fit(config: Config) -> None:
    """Refuse settings that are allowed alone but not together.

    Raises:
        ConfigError: names both settings and the choices that fit.
    """
    check_task(config, tasks_of(config.data), f"data={config.data.name}")
    check_impl(config)
    if config.optimizer.options.get("nesterov") and not config.optimizer["momentum"]:
        raise ConfigError(
            "optimizer.nesterov=true needs optimizer.momentum above 0, for example optimizer.momentum=0.9."
        )
    model = config.model.options
    has_biases = model.get("bias", True)
    if model.get("bias_std") and (model["init_std"] == "torch" or not has_biases):
        reason = "model.init_std=torch draws them itself" if has_biases else "model.bias=false has none"
        raise ConfigError(f"model.bias_std={model['bias_std']:g} is for the initial biases, but {reason}. Allowed: 0.")
    if config.data.name == "folder" and not config.data["root"] and config.input is None:  # else it is not read
        raise ConfigError("data=folder needs data.root=<a folder with a folder of images for each class>.")
    if config.data.name == "shards" and not config.data["root"] and config.input is None:
        raise ConfigError("data=shards needs data.root=<a folder of tar files, or train-{000..127}.tar>.")
    if config.data.name == "table" and None in (config.data["path"], config.data["target"]) and config.input is None:
        raise ConfigError("data=table needs data.path=<a CSV, TSV or Parquet file> and data.target=<a column>.")
    if config.reference.metric is not None and config.reference.value is None:
        raise ConfigError("reference.metric needs reference.value: the published figure, shown beside the result.")
    check_channels(config.data)
    if config.whiten and config.model.name in MODELS_OF_ROWS:
        raise ConfigError(f"whiten=true: model={config.model.name} has no convolution. Allowed: whiten=false.")
    check_finetune(config)
    val_fraction = config.data["val_fraction"]
    if val_fraction >= 1 and val_fraction != int(val_fraction):
        raise ConfigError(
            f"data.val_fraction={val_fraction} is not allowed. Allowed: [0, 1), or a whole number from 1 on."
        )
    no_val = val_fraction == 0 and config.data.name not in FITTED  # they may have a val part of their own
    if no_val and needs_validation(config):
        instead = f", or monitor=auto instead of {config.monitor}" if config.monitor != "auto" else ""
        raise ConfigError(f"{NEEDS_VALIDATION} need validation data: data.val_fraction above 0{instead}.")
    typed = [f"{key}=" for key in ("epochs", "max_steps") if key in config.typed and "budget" in config.typed]
    if typed and config.budget is not None:
        raise ConfigError(f"budget={config.budget} chooses epochs and max_steps: leave {' and '.join(typed)} out.")
    if not has_open_end(config) and not 0 <= config.schedule.options.get("warmup_epochs", 0) < config.epochs:
        warmup = f"schedule.warmup_epochs={config.schedule['warmup_epochs']:g}"
        raise ConfigError(f"{warmup} is not allowed: it must be below epochs={config.epochs}.")
    check_labels(config)


def has_open_end(config: Config) -> bool:
    """Whether the epochs are chosen later, for a budget."""
    return config.budget is not None and config.max_steps is None


def check_task(config: Config, tasks: Sequence[str], what: str) -> None:
    """Refuse what is for another task than the data.

    Args:
        config: all settings.
        tasks: that the data can have; one, once it is read.
        what: the data, for messages.
    Raises:
        ConfigError: names the setting and the choices that fit.
    """
    for group, choice in (("model", config.model), ("loss", config.loss)):
        fitting = [task for task in tasks if task in TASKS_OF[group][choice.name]]
        if not fitting:
            names = [name for name, own in TASKS_OF[group].items() if set(tasks) & set(own)]
            rows = group == "model" and config.data.name == "table"
            fit = listed([name for name in names if not rows or name in MODELS_OF_ROWS])
            raise ConfigError(
                f"{group}={choice.name} does not fit {what}, which is {listed(tasks)}. Allowed: {group}={fit}."
            )
        what = what if len(fitting) == len(tasks) else f"{group}={choice.name}"
        tasks = fitting
    if CLASSIFICATION in tasks:
        return
    if config.monitor not in ("auto", "val_loss"):
        raise ConfigError(f"monitor={config.monitor} does not fit {what}, which has only losses.")
    if config.stop_at.train_accuracy is not None or config.stop_at.val_accuracy is not None:
        raise ConfigError(
            f"stop_at.*_accuracy does not fit {what}: regression has only losses. Allowed: stop_at.*_loss."
        )
    if config.data.options.get("balance"):
        raise ConfigError(f"data.balance=true does not fit {what}: it draws each class equally often. Leave it out.")


def check_labels(config: Config) -> None:
    """Refuse classes that are made to count as much twice, and labels that the loss takes for something else."""
    mixed = [key for key in ("mixup", "cutmix") if config.data.options.get(key)]
    if mixed and config.loss.name == "auto":
        raise ConfigError(f"data.{mixed[0]} makes shares of classes, which loss=auto takes for numbers. Name a loss.")
    if config.data.options.get("balance") and config.loss.options.get("class_weights", "none") != "none":
        raise ConfigError("data.balance=true draws rare classes more often already: leave loss.class_weights out.")


def check_finetune(config: Config) -> None:
    """Refuse settings of weights that others trained which contradict each other.

    Raises:
        ConfigError: names them.
    """
    finetune, weights = config.finetune, config.model.options.get("weights", "none")
    if weights != "none" and config.init_from is not None:
        raise ConfigError(f"model.weights={weights} and init_from={config.init_from}: leave one of them out.")
    if config.whiten and (weights != "none" or config.init_from is not None):
        brings = "init_from=" if config.init_from is not None else "model.weights="
        raise ConfigError(
            f"whiten=true would replace the first convolution that {brings} brings. Allowed: whiten=false."
        )
    if finetune.freeze != "none" and weights == "none" and config.init_from is None:
        raise ConfigError(
            "finetune.freeze=backbone keeps the weights that others trained. It needs model.weights= or init_from=."
        )
    if finetune.unfreeze_epoch is not None and finetune.freeze == "none":
        raise ConfigError("finetune.unfreeze_epoch needs finetune.freeze=backbone.")


def check_channels(data: Choice) -> None:
    """Refuse a mean or std for other channels than the images have.

    Raises:
        ConfigError: names the values and the number of channels.
    """
    shape, normalize = shape_of(data), data.options.get("normalize")
    if shape is None or not isinstance(normalize, list):
        return
    for values in normalize:
        if isinstance(values, list) and len(values) != shape[0]:
            channels = number_of(shape[0], "channel")
            raise ConfigError(f"data.normalize: {as_yaml(values)} is not for images of {channels}. Allowed: one each.")


def check_impl(config: Config) -> None:
    """Refuse a part that a hand-written library lacks, or a way of computing that it does not support.

    Raises:
        ConfigError: names the setting, the reason and what is allowed instead.
    """
    impls = config.impls()
    named = {part: f"{part}.impl" if getattr(config, part).impl else "impl" for part in BUILT}
    for part, impl in impls.items():
        key, name = named[part], getattr(config, part).name  # the message names the key that the user may have typed
        there = ("concise", *IMPLS_OF[part].get(name, ()))
        if impl not in there:
            alone = f" {part}.impl=concise takes only the {part} from torch."
            alone = "" if part == "model" or key != "impl" else alone
            raise ConfigError(f"{key}={impl} does not have {part}={name}. Allowed: {key}={listed(there)}.{alone}")
    if impls["model"] == "numpy" and config.model.options.get("batch_norm"):
        raise ConfigError("model.batch_norm=true: impl=numpy has none. Allowed: impl=scratch, autograd or concise.")
    weights = config.loss.options.get("class_weights", "none")
    if weights != "none" and impls["loss"] != "concise":
        raise ConfigError(f"loss.class_weights={as_yaml(weights)} is for loss.impl=concise.")
    options, device = config.device.options, config.device.name
    for part, impl in impls.items():
        said = f"{named[part]}={impl}"
        if impl == "numpy" and device in ("cuda", "mps"):  # device=auto takes the CPU then
            raise ConfigError(f"device={device}: {said} computes on the CPU. Allowed: device=cpu, device=auto.")
        if impl != "concise" and options["precision"] in ("bf16", "fp16"):
            what = f"device.precision={options['precision']}: {said} computes in one type, without autocast."
            raise ConfigError(f"{what} Allowed: device.precision=fp32, fp64.")
        if impl != "concise" and options["compile"]:
            raise ConfigError(f"device.compile=true: {said} runs each operation as it is written. Allowed: false.")
    # Only if typed: auto may have chosen these for another impl, and been saved so.
    said = f"{named['model']}={impls['model']}"
    if impls["model"] != "concise" and options["channels_last"] is True and "device.channels_last" in config.typed:
        raise ConfigError(f"device.channels_last=true has no effect with {said}. Allowed: auto, false.")
    if impls["model"] == "numpy" and options["matmul"] == "onednn" and "device.matmul" in config.typed:
        raise ConfigError(f"device.matmul=onednn has no effect with {said}. Allowed: auto, torch.")
