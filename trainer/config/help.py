"""What --help prints: of the program, of a command, of a group, a choice or a setting."""

import itertools
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from trainer.config.command_line import TYPED_GROUPS
from trainer.config.options import CONFIGS, choices_of, text_of_yaml
from trainer.config.roles import ROWS, USED, USES
from trainer.config.schema import GROUPS
from trainer.config.verbs import VERBS
from trainer.utils.errors import ConfigError, listed, nearest
from trainer.utils.program import main_py

HELP = """\
python main.py [train] [group=choice ...] [key=value ...]        train a model (train is the default)
python main.py eval    RUN|PATH [split=test] [...]               measure a trained model
python main.py predict RUN|PATH [FILE|FOLDER ...]                label images or rows of a table, or the test split
                       (or by name: eval checkpoint=RUN, predict checkpoint=RUN input=FILE)
python main.py check-resume [group=choice ...] [key=value ...]   does a run like this resume bit for bit?
python main.py compare-impl [group=choice ...] [key=value ...]   one run in each library: curves, times, differences
python main.py data show|where|verify|fetch|pack NAME [...]     its images and classes; is it whole; pack: as tar files
python main.py summary [group=choice ...] [key=value ...]        layers, shapes, parameters, multiplications, memory
python main.py doctor  [group=choice ...] [key=value ...]        machine, speed, can it learn, which learning rate
python main.py compare RUN RUN [RUN ...]                         is the first better than the others, or is it chance?
python main.py experiments                                       the books' experiments, with their figures and yours
python main.py runs [where=test>0.9] [sort=test] [--json]        all runs, those that meet conditions, the best first
python main.py show RUN [--json]                                 a run: its figures, settings and where they came from
python main.py report RUN                                        one page with everything of a run or sweep: report.html
python main.py diff RUN RUN [RUN ...]                            what differs between runs, and their curves
python main.py rerun RUN [name=NEW]                              train it once more: are the weights equal to the bit?
python main.py export RUN [format=onnx] [output=FILE]            its model as a file that other programs read, compared
python main.py bench RUN [device=cpu]                            how long it takes for batches of 1 to 256
python main.py rm RUN [RUN ...] [--yes]                          delete runs and their checkpoints, after a question
python main.py board [RUN] [port=6006]                           TensorBoard on the runs
python main.py completion [bash|zsh|fish]                        the Tab key completes commands, settings and runs
python main.py -m key=value1,value2 ...                          one run for each combination of values
python main.py [...] seeds=N                                     N runs that differ in the seed: mean, spread, interval
torchrun --nproc_per_node=N main.py ...                          train with N processes (docs/several-processes.md)

groups
{groups}
help WORD: more of a command (help eval), a group or choice (help model=lenet), a setting (help optimizer.lr).
A pair of data and model brings its own tuned values (configs/recipe); recipe=none leaves them out.
--cfg job prints the settings of a command line, --version the versions.

examples
  python main.py                                                 linear regression on synthetic data, in seconds
  python main.py model=mlp data=fashion_mnist optimizer.lr=0.05
  python main.py model=resnet34 data=cifar10 device=cuda name=first
  python main.py resume=first                                    continue after an interruption
  python main.py eval first
  python main.py predict last photos/
  python main.py data=table data.path=houses.csv data.target=price model=linreg    your own CSV file (docs/tables.md)
  python main.py -m data=mnist model=softmax,mlp optimizer.lr=0.1,0.5
  python main.py plugins=[my_net.py] model=my_net data=mnist     a network, data set or loss of your own: docs/adding.md
  python main.py -m hydra/launcher=processes hydra.launcher.n_jobs=2 model=mlp data=mnist seed=0,1,2,3
  python main.py -m hydra/sweeper=optuna model=mlp data=mnist optimizer.lr='tag(log, interval(1e-3,1))'
  python main.py board                                           TensorBoard on all runs
"""
OF_VERBS = {
    "train": """\
A run's files are in outputs/NAME and checkpoints/NAME, with name=NAME. resume=NAME continues it, resume=last the newest
run; resume=auto name=NAME starts or continues it. seeds=N and -m train several.""",
    "eval": """\
RUN is a run's name, last the newest one; RUN:best and RUN:last choose its file. A checkpoint's path works too.
checkpoint=[a,b,c] takes the mean of the probabilities of several; tta=flip the mean over each image and its mirror.
split=train, val or test: the examples are those that the run had there.""",
    "predict": """\
RUN is a run's name, last the newest one; RUN:best and RUN:last choose its file. A checkpoint's path works too.
checkpoint=[a,b,c] takes the mean of the probabilities of several; tta=flip the mean over each image and its mirror.
It writes a CSV file and a plot into the run's folder, or to output=FILE.csv; folders that are named after the classes
give an accuracy.""",
    "check-resume": """\
Trains a short run of these settings, the same killed and resumed again and again, and compares the bits.""",
    "compare-impl": "Trains these settings with impl=concise, autograd, scratch and numpy, and draws the differences.",
    "data": """\
show: sizes, classes, mean and std, and images as they are and as the model sees them in training. where: its files.
verify: all of it can be read, and published files are what was published. fetch: the same, and what is missing
is downloaded. data show folder data.root=photos data.augment=[flip,color] looks at your own.
pack: copies the images of a folder into tar files, which data=shards reads: data pack folder data.root=photos.""",
    "summary": "Builds the network and reads the data set; nothing is written.",
    "doctor": """\
Measures for a minute at most, on the settings of a training: first loss, one batch learnt by heart, units without
gradients, gradient of each layer, speed, memory, and the loss while the learning rate grows. It makes no run.""",
    "compare": """\
Of runs: McNemar's test on their right and wrong test images. Of sweeps over seeds: a t interval of the difference.""",
    "experiments": "experiment=NAME trains one.",
    "runs": """\
where= takes conditions on columns and settings, joined by commas: where='model=mlp,test>0.9,name=clothes*'. Columns:
name, data, model, state, epochs, best, test, seconds, age (in seconds). sort=test puts the best first, sort=-test the
worst; limit=N shows N of them. --json is for scripts.""",
    "show": "Of a sweep it prints the table of its jobs. --json is for scripts.",
    "report": """\
Writes outputs/RUN/report.html anew, which a run by itself writes at its end: it opens without a server. It measures the
test split again, for which the data has to be there: paths.data=, data.root= and data.path= say where it is now.
The setting report=true, false or auto (of a run by itself and of a sweep, where plots are drawn) is for training.""",
    "diff": "Settings, figures and machine, as far as they differ; the plot goes into the first run's folder.",
    "rerun": """\
The same settings and seed under another name (RUN-again); at the end all weights, figures and states are compared.""",
    "export": """\
format=onnx (default), torch_export or safetensors (the weights alone). The file is read back and compared with the
model on 100 test images, and a script that uses it without this program is printed: docs/export.md.""",
    "bench": "From examples in memory to probabilities; with the exported ONNX file beside it where there is one.",
    "rm": "A run or sweep that is in use is not deleted. --yes asks nothing.",
    "completion": "Prints a few lines for the shell; without a word, how to load them.",
    "board": "The same as tensorboard --logdir outputs.",
}
USES_OF = {"train": ("train", "resume", "sweep")}  # the columns of the table of roles; else the command's own
NODE, LINE = re.compile(r"(\w+):\s*(#.*)?$"), re.compile(r"( *)(\w+): *(.*?) *# *(.*)")


def help_for(args: Sequence[str]) -> str | None:
    """What a command line asks to be told; None where it asks for nothing.

    Raises:
        ConfigError: there is no help on one of its words.
    """
    if {"--version", "-V"} & set(args):
        return versions()
    if not ({"-h", "--help"} & set(args) or args[:1] == ["help"]):
        return None
    words = [
        word
        for i, word in enumerate(args)
        if word not in ("-h", "--help", "-m", "--multirun") and (i or word != "help")
    ]
    return "\n\n".join(map(help_on, words)) if words else help_text()


def versions() -> str:
    """What a report of a fault needs."""
    packages = [f"{name} {version(name)}" for name in ("torch", "torchvision", "hydra-core", "omegaconf", "numpy")]
    return f"Python {platform.python_version()}, {listed(packages)}, {platform.platform()}; {CONFIGS.parent}"


def help_text() -> str:
    """The commands, the groups with their choices, and examples."""
    groups = "".join(f"  {group + '=':12} {listed(choices_of(group))}\n" for group in TYPED_GROUPS)
    return HELP.format(groups=groups)


def help_on(word: str) -> str:
    """The help on one word: a command, a group, a choice, or a setting.

    Raises:
        ConfigError: it is none of these.
    """
    key, _, choice = word.partition("=")
    owners = [group for group in TYPED_GROUPS if word in choices_of(group)]
    if word in VERBS:
        return help_on_verb(word)
    if key in TYPED_GROUPS and (choice in choices_of(key) or not choice):
        return help_on_choice(key, choice) if choice else help_on_group(key)
    if key in settings():
        return "\n".join(settings()[key])
    if owners:
        return "\n\n".join(help_on_choice(group, word) for group in owners)
    known = [*VERBS, *TYPED_GROUPS, *(name for group in TYPED_GROUPS for name in choices_of(group)), *settings()]
    raise ConfigError(
        f"{word}: there is no help on it.{nearest(choice or key, known)} {main_py()} help lists the words."
    )


def help_on_verb(verb: str) -> str:
    """How a command is typed, and which settings it takes."""
    usage = next(line for line in HELP.splitlines() if line.split()[2].strip("[]") == verb)
    uses = [use for use in USES_OF.get(verb, (verb,)) if use in USES]
    takes: dict[bool, list[str]] = {True: [], False: []}
    for name, row in ROWS.items():
        takes[any(row.verdicts[use] == USED for use in uses)].append(name + {".": "*", "/": "*"}.get(name[-1], "="))
    told = (
        f"Settings: {listed(takes[True])}."
        if len(takes[True]) < len(takes[False])
        else f"Not for it: {listed(takes[False])}."
    )
    return "\n".join([usage, OF_VERBS[verb], *([told] if uses else [])])


def help_on_group(group: str) -> str:
    """The choices of a group, with the first line of each one's file."""
    return "\n".join(f"{group}={name:20} {head_of(group, name)[0]}" for name in choices_of(group))


def help_on_choice(group: str, name: str) -> str:
    """What a choice is, and its options with their defaults, units and ranges."""
    path = CONFIGS / group / f"{name}.yaml"
    return "\n".join(
        [f"{group}={name}", *(f"  {line}" for line in (*head_of(group, name), *options_in(path, f"{group}.").values()))]
    )


def head_of(group: str, name: str) -> list[str]:
    """The comment at the head of a choice's file."""
    lines = text_of_yaml(CONFIGS / group / f"{name}.yaml").splitlines()
    lines = lines[1:] if lines[0].startswith("# @package") else lines
    return [line.removeprefix("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines)]


def options_in(path: Path, prefix: str) -> dict[str, str]:
    """{setting: its line for the screen} of a file of configs/."""
    found, node = {}, ""
    for line in text_of_yaml(path).splitlines():
        if match := NODE.match(line):
            node = f"{match[1]}."
        elif match := LINE.match(line):
            key = (prefix or (node if match[1] else "")) + match[2]
            found[key] = f"{f'{key}={match[3]}':32} {match[4]}"
    return found


def settings() -> Mapping[str, Sequence[str]]:
    """{setting: a line for each choice that has it, where they differ}."""
    found: dict[str, dict[str, None]] = {}
    files = [(CONFIGS / group / f"{name}.yaml", f"{group}.") for group in GROUPS for name in choices_of(group)]
    for path, prefix in [(CONFIGS / "config.yaml", ""), *files]:
        for key, line in options_in(path, prefix).items():
            found.setdefault(key, {}).setdefault(line)
    return {key: list(lines) for key, lines in found.items()}
