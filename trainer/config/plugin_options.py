"""The options of what a file of plugins= brings, from its signatures and the YAML file beside it.

Each choice gets what those of the program have in configs/: a YAML text with defaults and comments; and a rule for each
option, by the type of its default.
"""

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from trainer.config.options import CONFIGS, PLUGGED, Plugged, check_value, choices_of, load_yaml
from trainer.config.plugins import CHOICE_NAME, Entry
from trainer.config.ranges import OneOf, Rule, Such, as_yaml
from trainer.config.tasks import CLASSIFICATION, REGRESSION
from trainer.utils.errors import ConfigError, PluginError, listed, nearest

FIXED = {"model": ("in_shape", "num_outputs"), "data": (), "loss": ("y_hat", "y")}
OF_EVERY_SET = (
    *("val_fraction", "split_seed", "order_seed", "drop_last", "balance", "limit", "eval_limit"),
    *("normalize", "augment", "mixup", "cutmix"),
)
OF_CLASSES_ALONE = ("balance", "mixup", "cutmix")
OF_THE_MACHINE = ("mirror", "resident", "workers", "root")  # options that begin like these are not part of the numbers
TAKEN = {  # options that mean something to the program, whatever the choice
    "model": ("impl", "weights", "bias_std"),
    "loss": ("impl", "class_weights", "form"),
    "data": (
        *OF_EVERY_SET,
        *("size", "channels", "depth", "fit", "expand", "max_megapixels", "test_fraction", "on_error"),
    ),
}


@dataclass(frozen=True)
class AsFloat(Such):
    """Numbers, each as a float."""

    def __call__(self, value: Any) -> Any:
        """Return the value in its final type, or raise ValueError."""
        return float(super().__call__(value))


# of options that plugins= brings, by the type of their defaults
SOME_WHOLE = Such("a whole number", lambda value: type(value) is int)
SOME_NUMBER = AsFloat("a number", lambda value: type(value) in (int, float) and math.isfinite(value))
SOME_TEXT = Such("text", lambda value: isinstance(value, str))
SOME_VALUE = Such("a number, text, true or false", lambda value: isinstance(value, (bool, int, float, str)))


def options_of(entry: Entry) -> dict[str, Any]:
    """The keyword arguments of an entry with their defaults: the options of the choice.

    Raises:
        PluginError: the fixed arguments are others, or an option has no default or one of another kind; says what to
            write.
    """
    options: dict[str, Any] = {}
    without: list[str] = []
    odd = False  # an argument that cannot be given as the program gives it
    try:
        parameters = inspect.signature(entry.call).parameters.values()
    except (ValueError, TypeError):
        raise PluginError(f"{entry}: its arguments cannot be read. Write a function or a class.") from None
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            without.append(parameter.name)
            odd |= parameter.kind is parameter.KEYWORD_ONLY
        else:
            options[parameter.name] = parameter.default
            odd |= parameter.kind is parameter.POSITIONAL_ONLY
    fixed = FIXED[entry.group]
    if odd or len(without) != len(fixed) or any(name in options for name in fixed):
        is_class = inspect.isclass(entry.call)
        name = "__init__" if is_class else getattr(entry.call, "__name__", entry.name)
        more = [n for n in (*without[len(fixed) :], *options) if n not in fixed]
        args = listed([*(["self"] if is_class else []), *fixed, *(f"{n}={options.get(n, 0)!r}" for n in more)])
        why = f"its arguments without a default are {f'({listed(without)})' if without else 'none'}"
        raise PluginError(f"{entry}: {why}. Write: def {name}({args})")
    for name, default in options.items():
        reserved = name in TAKEN[entry.group] or (entry.group == "data" and name.startswith(OF_THE_MACHINE))
        if reserved or not CHOICE_NAME.fullmatch(name):
            why = "is one of the program's own" if reserved else "is no name for an option"
            raise PluginError(f"{entry}: the option {name} {why}. Choose another name, such as my_{name}.")
        try:
            options[name] = check_value(f"{entry.group}.{name}", default, default, rule_like(default))
        except ConfigError:
            allowed = "true, false, a number, text, None or a list of one kind of these"
            raise PluginError(f"{entry}: {name}={as_yaml(default)} is no default. Allowed: {allowed}.") from None
    return options


def rule_like(default: Any) -> Rule:
    """What an option takes: values of the type of its default; where that is None, any one value."""
    if isinstance(default, list):
        kinds: set[Rule] = {rule_like(item) for item in default}
        kinds -= {SOME_WHOLE} if SOME_NUMBER in kinds else set()  # [1, 2.5]
        return kinds.pop() if len(kinds) == 1 else SOME_VALUE if not kinds else OneOf(())
    rules: dict[type, Rule] = {
        bool: OneOf((True, False)),
        int: SOME_WHOLE,
        float: SOME_NUMBER,
        str: SOME_TEXT,
        type(None): SOME_VALUE,
    }
    return rules.get(type(default), OneOf(()))


def beside(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What my_net.yaml beside my_net.py says: {group: {name: {option: default}}}, and the comments of options.

    Raises:
        PluginError: it is not of this form.
    """
    file = Path(path).expanduser().with_suffix(".yaml")
    if not file.is_file():
        return {}, {}
    form = "Allowed: {model: {my_net: {num_hiddens: 256}}}, in lines as in configs/."
    try:
        text = file.read_text(encoding="utf-8")
        loaded = OmegaConf.to_container(OmegaConf.create(text or "{}"))
    except Exception as error:  # of PyYAML, OmegaConf or the system
        raise PluginError(f"{file} cannot be read: {' '.join(str(error).split())[:300]}. {form}") from None
    nested = isinstance(loaded, dict) and all(isinstance(names, dict) for names in loaded.values())
    if not nested or not all(isinstance(options, dict) for names in loaded.values() for options in names.values()):  # type: ignore[union-attr]
        raise PluginError(f"{file} says something else than defaults. {form}")
    return loaded, dict(re.findall(r"^ +(\w+):[^#\n]*[^#\n ] +# *(.+)$", text, re.MULTILINE))  # type: ignore[return-value]


def plug(path: str, entries: Sequence[Entry]) -> None:
    """Make the entries of a file choices, as those that have a file in configs/.

    Raises:
        PluginError: their options, or the defaults in the YAML file beside it, are not as they have to be.
    """
    others, comments = beside(path)
    file = Path(path).with_suffix(".yaml")
    known = {(entry.group, entry.name): entry for entry in entries}
    for group, names in others.items():
        for name in names:
            if (group, name) not in known:
                choices = [f"{g}.{n}" for g, n in known]
                raise PluginError(f"{file}: {group}.{name} is not in {path}.{nearest(f'{group}.{name}', choices)}")
    for entry in entries:
        own = options_of(entry)
        rules = {name: rule_like(default) for name, default in own.items()}
        common = common_of(entry)
        defaults = own | {name: default for name, (default, _) in common.items()}
        for name, value in others.get(entry.group, {}).get(entry.name, {}).items():
            key = f"{entry.group}.{name}"
            if name not in defaults:
                raise PluginError(f"{file}: {key} is no option of {entry.name}.{nearest(str(name), defaults)}")
            try:
                defaults[name] = check_value(key, value, defaults[name], rules.get(name))
            except ConfigError as error:
                raise PluginError(f"{file}: {error}") from None
        comments_of = {name: str(rules[name]) for name in own} | {n: text for n, (_, text) in common.items()} | comments
        PLUGGED[CONFIGS / entry.group / f"{entry.name}.yaml"] = Plugged(
            text_of_entry(entry, defaults, comments_of), rules, str(entry)
        )
    choices_of.cache_clear()


def common_of(entry: Entry) -> dict[str, tuple[Any, str]]:
    """{option: (default, comment)} of the options that every data set has, from the file of one of the program's."""
    if entry.group != "data":
        return {}
    path = CONFIGS / "data" / "mnist.yaml"
    comments = dict(re.findall(r"^  (\w+):.*? # (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
    names = [name for name in OF_EVERY_SET if name not in OF_CLASSES_ALONE or entry.task == CLASSIFICATION]
    return {name: (load_yaml(path)["data"][name], comments[name]) for name in names}


def text_of_entry(entry: Entry, defaults: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """The YAML file that the entry would have in configs/."""
    about = next(iter((entry.call.__doc__ or "").strip().splitlines()), f"of {entry.path}")
    lines = [f"{key}: {as_yaml_text(value)}  # {comments[key]}" for key, value in defaults.items()]
    if entry.group != "data":
        return "\n".join([f"# {about}", *(lines or ["{}"])])
    is_regression = entry.task == REGRESSION
    model, loss = ("linreg", "mse") if is_regression else ("softmax", "cross_entropy")
    brings = {"model": model, "loss": loss, "optimizer": "sgd", "schedule": "constant"}
    head = ["# @package _global_", f"# {about}", "defaults:", *(f"  - override /{g}: {c}" for g, c in brings.items())]
    return "\n".join([*head, "epochs: 10", "batch_size: 32", "data:", *(f"  {line}" for line in lines)])


def as_yaml_text(value: Any) -> str:
    """A default as it stands in a YAML file."""
    is_word = isinstance(value, str) and CHOICE_NAME.fullmatch(value)
    return str(value) if is_word else json.dumps(value, ensure_ascii=False)
