"""The command line: parsed here, so that the words Hydra gets are ones it accepts, and a refusal names what to type.

Neither torch nor Hydra is imported, so that a typo is answered at once.
"""

import importlib.util
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.config.options import (
    all_keys,
    any_default,
    check_choice,
    check_hydra_option,
    check_value,
    choices_of,
    chosen_engines,
    group_choices,
    run_settings,
    swept_by,
    unknown_key,
)
from trainer.config.plugins import as_word, paths_of
from trainer.config.ranges import RANGES, FilePath
from trainer.config.schema import GROUPS
from trainer.config.tasks import EXTRAS, LAUNCHERS
from trainer.config.verbs import OF_RUNS, VERBS, WITH_DATA, check_words_of_runs
from trainer.utils.errors import ConfigError, close_to, did_you_mean, listed
from trainer.utils.program import main_py
from trainer.utils.quotes import quote, quote_items, unquote
from trainer.utils.text import in_brackets

TYPED_GROUPS = (*GROUPS, "experiment")
RECIPES = ("recipe", "recipe/optimizer", "recipe/schedule")
# Text whatever it looks like: name=1e3 is no number. It is quoted, so that Hydra's grammar does not parse it.
PLAIN_TEXT = re.compile(
    r"(checkpoint|resume|input|output|init_from|name|paths\.\w+|model\.weights|reference\.source|"
    r"data\.(root|test_root|mirror|path|test_path|target))$"
)
OF_COLUMNS = ("data.features", "data.drop")  # lists of names, which may hold anything
SCALARS = re.compile(r"(?!null$)[-+.\w]+(,[-+.\w]+)*")
QUOTED_NUMBER = re.compile(r"""^(["'])([-+.\deE]+)\1$""")
ENGINES = ("hydra/sweeper", "hydra/launcher")


@dataclass(frozen=True)
class Command:
    """A prepared command line."""

    verb: str
    overrides: tuple[str, ...]  # the words for Hydra, with short forms written out and text quoted
    multirun: bool = False
    names: tuple[str, ...] = ()  # plain words: the runs that a verb is about
    flags: tuple[str, ...] = ()  # Hydra's own: --cfg and what it prints; --json and the like of a verb about runs

    @property
    def values(self) -> dict[str, str]:
        """{key: value} as typed, without quotes."""
        return {key: unquote(text) for key, text in map(split_word, self.overrides)}

    @property
    def folders(self) -> dict[str, str]:
        """Where runs are: {"outputs": ..., "checkpoints": ...}."""
        keys = {name: f"paths.{name}" for name in ("outputs", "checkpoints")}
        return {name: self.value(key) or run_settings()[key] for name, key in keys.items()}

    def value(self, key: str) -> str | None:
        """What was typed for a key; None if nothing or null was."""
        value = self.values.get(key, "null")
        return None if value == "null" else value

    def without(self, keys: Container[str]) -> "Command":
        """The command line without these keys."""
        return replace(self, overrides=tuple(word for word in self.overrides if split_word(word)[0] not in keys))


def split_word(word: str) -> tuple[str, str]:
    """`++optimizer.lr=0.1` -> ("optimizer.lr", "0.1"); + and ++ are Hydra's signs for "add" and "add or override"."""
    key, _, value = word.partition("=")
    return key.lstrip("+"), value


def parse_command(args: Sequence[str]) -> Command:
    """Parse a command line.

    Raises:
        ConfigError: an unknown verb, flag, group choice or key, or spaces round an equals sign.
    """
    words = list(args)
    multirun = words[:1] in (["-m"], ["--multirun"])
    words = words[1:] if multirun else words
    # `lr = 0.1` does not begin with a verb: its first word is a key, and is answered as one below
    names_verb = words and re.fullmatch(r"\w[\w-]*", words[0]) and not "".join(words[1:2]).startswith("=")
    verb = words.pop(0) if names_verb else "train"
    if verb not in VERBS:
        close = close_to(verb, VERBS)
        hint = example(verb, words) if verb in all_keys() else did_you_mean(close)
        error = ConfigError(f"{verb} is not a command.{hint} Commands: {listed(VERBS)}.")
        raise error.instead(verb, "", close[0] if close else "")
    if verb in OF_RUNS:
        return parse_names(verb, words)
    if verb == "data":
        return parse_data(words)
    if verb in ("eval", "predict"):
        words = with_keys(verb, words)
    begins = verb not in ("eval", "predict") and not any(word.startswith("resume=") for word in words)
    choices = choices_in(words) if begins else None
    flags, overrides = list[str](), list[str]()
    while words:
        word = words.pop(0)
        if word in ("-m", "--multirun"):  # anywhere on the line, as in Hydra
            multirun = True
        elif word == "--cfg":
            flags += [word, words.pop(0) if words else "job"]
            if flags[-1] not in ("job", "hydra", "all"):
                raise ConfigError(f"{' '.join(flags)} is not allowed. Allowed: --cfg job, --cfg hydra, --cfg all.")
        elif word.startswith("-"):
            raise ConfigError(f"{word}: settings are written key=value, without dashes.{example(word, words)}")
        elif word in VERBS and word != "train":
            raise ConfigError(f"{word} is a command: it is typed in front of the settings.")
        elif "=" not in word.strip("=") or word.startswith("=") or (word.endswith("=") and words):
            raise ConfigError(f"{word}: settings are written key=value, without spaces.{example(word, words)}")
        else:
            overrides += expand(word, multirun or "-m" in words or "--multirun" in words, choices)
    check_twice(overrides)
    if verb == "train" and not flags:
        overrides, has_lists = with_lists(overrides)
        multirun |= has_lists
    check_engines(overrides, multirun)  # at the end, since -m may come last
    if multirun and flags:
        raise ConfigError(f"{flags[0]} prints the settings of one run. Leave -m and the lists of values out.")
    if multirun and verb != "train":
        raise ConfigError(f"-m is for training. Run {verb} without it, once for each value.")
    if any(split_word(word)[0] == "seeds" for word in overrides):
        what = f"{flags[0]} prints the settings of one run" if flags else "seeds= trains one run for each of so many"
        raise ConfigError(f"{what}: with {verb}, type seed= instead of seeds=.")
    return Command(verb, tuple(overrides), multirun, flags=tuple(flags))


def parse_data(words: Sequence[str]) -> Command:
    """The command line of `data show NAME key=value ...`: the settings are those of a training on this set."""
    plain, rest = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if len(plain) != 2 or plain[0] not in WITH_DATA:
        close = close_to(plain[0], WITH_DATA) if plain and plain[0] not in WITH_DATA else []
        what = f"data takes one of {listed(WITH_DATA)}, and then the name of one set: {main_py()} data show mnist"
        said = f"{' '.join(['data', *plain])}: {what}.{did_you_mean(close)}"
        raise ConfigError(said).instead("".join(plain[:1]), "", "".join(close))
    return replace(parse_command(["summary", f"data={plain[1]}", *rest]), verb=f"data {plain[0]}")


def parse_names(verb: str, words: Sequence[str]) -> Command:
    """The command line of a verb about runs of before, which takes few settings."""
    flags = tuple(word for word in words if word.startswith("-"))
    settings = [word for word in words if "=" in word.strip("=") and word not in flags]
    names = tuple(word for word in words if word not in (*settings, *flags))
    check_words_of_runs(verb, names, settings, flags)
    check_twice(settings)
    own = OF_RUNS[verb].keys
    overrides = [each for w in settings for each in ([w] if split_word(w)[0] in own else expand(w, False, None))]
    return Command(verb, tuple(overrides), names=names, flags=flags)


def with_keys(verb: str, words: Sequence[str]) -> list[str]:
    """`eval RUN`, `predict RUN FILE ...`: the words with checkpoint= and input= in place of those that are plain.

    A file that exists is plain also where it is named like a setting (`seed`) or has a folder and a `=` in its name.

    Raises:
        ConfigError: there are more plain words than the verb takes.
    """
    plain: list[str] = []
    others: list[str] = []
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else ""
        key, equals, _ = word.partition("=")
        of_folder = "/" in key and not key.startswith(("hydra/", "recipe/"))
        is_file = (not equals or of_folder) and os.path.exists(word)
        is_setting = word.startswith("-") or after.startswith("=") or words[i - 1 : i] == ["--cfg"]
        (plain if not is_setting and (is_file or (not equals and word not in all_keys())) else others).append(word)
    given = {key for key, _ in map(split_word, others)}
    found = [f"checkpoint={plain.pop(0)}"] if plain and "checkpoint" not in given else []
    if plain and verb == "predict" and "input" not in given:
        found.append(f"input={plain[0] if len(plain) == 1 else '[' + ','.join(map(quote, plain)) + ']'}")
        plain = []
    if plain:
        mean = " The mean of several runs: checkpoint=[a,b]." if verb == "eval" else ""
        advice = f"Run it once for each; a name with spaces needs quotes.{mean}"
        what = "no files beside input=" if verb == "predict" else "one run"
        raise ConfigError(f"{plain[0]}: {verb} takes {what}, and this is one more. {advice}")
    return found + others


def check_twice(words: Sequence[str]) -> None:
    """Refuse a setting that was typed twice: the last word would win without a word about the first."""
    before: dict[str, str] = {}
    for key, value in map(split_word, words):
        if key in before:
            both = f"{key}={unquote(before[key])} and {key}={unquote(value)}"
            hint = " A pattern with braces needs quotes." if key in ("data.root", "data.test_root") else ""
            raise ConfigError(f"{key} is given twice: {both}. Leave one of them out.{hint}")
        before[key] = value


def with_lists(words: Sequence[str]) -> tuple[list[str], bool]:
    """The words with the lists that seeds= and an experiment stand for, and whether there are any.

    Raises:
        ConfigError: seeds is no whole number, seed is a list as well, or an experiment of several has lists of its own.
    """
    typed = dict(map(split_word, words))
    # resume=auto may begin what is a sweep, and is refused as it is with -m
    resumes = unquote(typed.get("resume", "null")) not in ("null", "auto")
    several = typed.get("experiment", "").split(",")
    for name in several if len(several) > 1 else ():
        if own := [key for key in swept_by(name) if key not in typed]:
            raise ConfigError(f"experiment={name} has a list of its own, {own[0]}: train it alone, not in a list.")
        if chosen_engines({"experiment": name})["hydra/sweeper"] != "basic":
            raise ConfigError(f"experiment={name} brings a search of its own: train it alone, not in a list.")
    lists = {} if resumes else {k: v for k, v in swept_by(typed.get("experiment")).items() if k not in typed}
    if (seeds := typed.get("seeds")) is not None:
        first = typed.get("seed", "0")
        if not re.fullmatch(r"[1-9]\d{0,2}", seeds) or resumes:
            what = ": a resumed run keeps its own seed" if resumes else ". Allowed: whole numbers from 1 to 999"
            raise ConfigError(f"seeds={seeds} is not allowed{what}. It trains one run for each of so many seeds.")
        if not first.isdecimal():
            raise ConfigError(
                f"seeds={seeds} counts on from seed={first}, which is no whole number from 0. Leave one out."
            )
        lists["seed"] = ",".join(str(int(first) + i) for i in range(int(seeds)))
    kept = [word for word in words if split_word(word)[0] not in ("seeds", *lists)]
    return [*kept, *(f"{key}={value}" for key, value in lists.items())], any("," in v for v in lists.values())


def check_engines(words: Sequence[str], multirun: bool) -> None:
    """Refuse a sweeper or launcher that does not exist or is not installed, and options that it does not have.

    Raises:
        ConfigError: names the word, and what is allowed or has to be installed.
    """
    typed = [(key, value) for key, value in map(split_word, words) if key.startswith(("hydra.", "hydra/"))]
    engines = chosen_engines(dict(map(split_word, words)))  # an experiment may bring one that was not typed
    if not multirun and (typed or set(engines.values()) != {"basic"}):
        what = typed[0][0] if typed else "this experiment"
        raise ConfigError(f"{what} is for sweeps: put -m in front.")
    chosen = {key: value for key, value in engines.items() if value != "basic"}
    for group, choice in chosen.items():
        check_choice(group, choice)
        package = LAUNCHERS.get(choice)
        if package and importlib.util.find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
            raise ConfigError(f"{group}={choice} needs {package}: pip install -r {EXTRAS[choice]}")
    for key, value in typed:
        if "/" not in key:
            _, kind, option = key.split(".", 2)  # hydra.sweeper.n_trials
            if f"hydra/{kind}" not in chosen:
                raise ConfigError(f"{key} is an option of a {kind}: choose one with hydra/{kind}=.")
            check_hydra_option(f"hydra/{kind}", chosen[f"hydra/{kind}"], option, value)


def example(word: str, rest: Sequence[str]) -> str:
    """A guess at what was meant by a word that is not key=value, as a hint: `lr = 0.1` -> `optimizer.lr=0.1`."""
    key, _, value = word.strip("-=").partition("=")
    found = close_to(key, all_keys())
    value = value or next((w.strip("=") for w in rest if w.strip("=") and "=" not in w.strip("=")), "...")
    is_sure = found and (value != "..." or found[0].rsplit(".", 1)[-1] == key)  # a stray word may be anything
    return did_you_mean([f"{found[0]}={value}"] if is_sure else [])


def choices_in(words: Sequence[str]) -> dict[str, str]:
    """The group choices of a new run with these words; of a list the first."""
    typed = {key: value.split(",")[0] for key, value in map(split_word, words) if key in TYPED_GROUPS}
    return group_choices({group: name for group, name in typed.items() if name in choices_of(group)})


def expand(word: str, multirun: bool, choices: Mapping[str, str] | None) -> list[str]:
    """The words Hydra gets for one typed word: short forms written out, text quoted, group choices checked.

    Args:
        word: as typed.
        multirun: a list of values is several runs.
        choices: the group choices of the run; None where they come from a run of before.
    """
    key, value = split_word(word)
    if "${" in word:  # resolved, it could carry a secret to the screen and into files
        raise ConfigError(f"{word}: ${{...}} is not resolved here. Allowed: the value itself.")
    if key in ENGINES or key.startswith(("hydra.sweeper.", "hydra.launcher.")):
        if word[0] in "+~" or "{" in value or "_target_" in word:  # Hydra would instantiate what _target_ names
            raise ConfigError(f"{word} is not allowed. Allowed: {key}=<a plain value>.")
        return [word]  # check_engines sees them together: which options there are depends on the choice
    if key.startswith(("hydra.", "hydra/")):
        raise ConfigError(f"{key}: not for the command line. Allowed: {listed(ENGINES)} and their options.")
    if key == "data.mirror" and value != "null":  # now, before a password in it is written into a sweep's folder
        check_value(key, unquote(value), None)
    if key.startswith("~") or "@" in key:
        raise ConfigError(f"{word}: settings can be changed, not removed or moved.")
    if key == "device" and (match := re.fullmatch(r"cuda:(\d+)", value)):
        return ["device=cuda", f"device.index={match[1]}"]
    if key in RECIPES:
        if value != "none":
            raise ConfigError(
                f"{word}: recipes are found by data, model, optimizer and schedule. Allowed: recipe=none."
            )
        return [f"{name}=none" for name in RECIPES]
    if key in TYPED_GROUPS:
        for choice in value.split(",") if multirun else [value]:
            if (key, choice) != ("experiment", "null"):
                check_choice(key, choice)
        return [f"{key}={value}"]
    if key in ("seeds", "plugins"):  # with_lists() writes seeds out
        return [as_word(paths_of(value))] if key == "plugins" else [word]
    if key not in all_keys():
        raise unknown_key(key, choices)
    value = QUOTED_NUMBER.sub(r"\2", value) if not PLAIN_TEXT.match(key) else value
    if SCALARS.fullmatch(value) and isinstance(any_default(key, choices), list) and (multirun or "," not in value):
        value = ",".join(f"[{item}]" for item in value.split(","))  # model.num_hiddens=128
    if key == "checkpoint" and (names := in_brackets(value)):
        names = [quote(FilePath()(unquote(name))) for name in names]
        return [f"{key}={names[0]}", f"ensemble=[{','.join(names[1:])}]"]
    if key == "checkpoint" and "," in value and not multirun and not os.path.exists(os.path.expanduser(unquote(value))):
        error = ConfigError(f"checkpoint={value}: there is no such file. Several runs are written checkpoint=[a,b].")
        raise error.instead("run", value, f"[{value}]")
    if value and isinstance(rule := RANGES.get(key), FilePath):  # here, since a run is looked up before Hydra composes
        value = rule(value)
    if key in OF_COLUMNS:
        value = quote_items(value, multirun)
    if not PLAIN_TEXT.match(key) or (key == "input" and in_brackets(value)):
        return [f"{key}={value}"]
    swept = multirun and key in ("init_from", "model.weights") and value[:1] not in "'\"" and not os.path.exists(value)
    return [f"{key}={','.join(map(quote, value.split(',') if swept else [value]))}"]
