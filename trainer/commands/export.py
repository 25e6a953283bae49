"""The export command: a trained model as a file for other programs, compared with the model that it was made of."""

import contextlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from trainer import build, data, engine
from trainer.commands.data_set import is_missing
from trainer.commands.evaluate import Trained, load_trained, prepared_as_trained
from trainer.commands.outputs import check_output
from trainer.config.schema import Choice, Config
from trainer.data.augment import centered
from trainer.data.batches import eval_batch_size, normalizer
from trainer.data.splits import Splits
from trainer.data.stratify import mixed
from trainer.run import directory
from trainer.run.checkpoint import check_fits
from trainer.run.formats import EXPORT_FORMATS, Format, check_installed
from trainer.run.parts import placement
from trainer.run.ready import Ready, described
from trainer.run.scripts import script_for
from trainer.run.tables import own_outputs
from trainer.run.target import Target
from trainer.utils.errors import ConfigError, TrainerError, listed
from trainer.utils.files import replacing
from trainer.utils.screen import Screen
from trainer.utils.text import one_line

COMPARED = 100  # examples
BATCHES_TRIED = (1, 7, COMPARED)
MOST_APART = 1e-4  # of probabilities; of numbers above 1 this share of the largest
SCRIPT = "use.py"


def export(config: Config, target: Target, kind: str, output: str | None, screen: Screen) -> None:
    """Write the model, read the file back, compare, and print the script that uses it.

    Args:
        config: as for predict.
        target: the run.
        kind: a key of EXPORT_FORMATS.
        output: the file; None: in the run's folder.
        screen: is told all of it.
    Raises:
        ConfigError: a package is missing, or the model has no such form.
        TrainerError: the file computes something else than the model.
    """
    if kind == "onnx":
        check_installed()
    config = plainly_computed(config)
    trained = load_trained(config, target, screen)
    form = EXPORT_FORMATS[kind]
    path = place_of_export(config, trained, target, form, output)
    is_best = trained.path.name == "best.pt" and trained.folder.name == Path(trained.content["config"]["name"]).name
    result = directory.read_result(trained.folder) if is_best else None
    about = described(
        trained.content, trained.classes, name=trained.content["config"]["name"], test=(result or {}).get("test")
    )
    x, what = examples_of(config, trained)
    had_folder = path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as temporary:
            form.write(temporary, ready(config, trained), x[[0, -1]], about)
    except BaseException:
        if not had_folder:
            with contextlib.suppress(OSError):  # another process may have written into it
                path.parent.rmdir()
        raise
    made = f"{path.stat().st_size / 1000:,.0f} kB"
    screen.say(f"written  {path} ({made}, {said_of_graph(trained) if kind != 'safetensors' else 'the weights'})")
    found = compare(config, trained, form.read(path, lambda: untrained(config, trained)), x)
    screen.say(said_of_comparison(found, form, trained, what, path))
    script = path.with_name(SCRIPT)
    text = script_for(kind, path.name, about, SCRIPT)
    with replacing(script) as temporary:
        temporary.write_text(text, encoding="utf-8")
    screen.say(f"script   {script} uses it without this program:", "", *text.splitlines())


def plainly_computed(config: Config) -> Config:
    """The config with torch's own layers, in float32 on the CPU: whatever library and precision the run had."""
    plain = {"precision": "fp32", "channels_last": False, "matmul": "torch", "compile": False}
    device = Choice("cpu", dict(config.device.options) | plain)
    return replace(
        config,
        impl="concise",
        model=replace(config.model, impl=None),
        loss=replace(config.loss, impl=None),
        device=device,
    )


def ready(config: Config, trained: Trained) -> Ready:
    """The model with what comes before and after it, on its device and in its type."""
    model = Ready(
        trained.model,
        trained.mean if len(trained.in_shape) == 3 else (),
        trained.std if len(trained.in_shape) == 3 else (),
        config.loss,
        classes=bool(trained.classes),
        table=trained.table,
        dtype=trained.machine.dtype,
    )
    return model.to(trained.machine.device).eval()


def untrained(config: Config, trained: Trained) -> Ready:
    """The same with other weights, for a file that has only these."""
    num_outputs = trained.content["arch"]["num_outputs"]
    model = build.build_model(config.model, config.impl, trained.in_shape, num_outputs)
    return ready(config, replace(trained, model=model))


def place_of_export(config: Config, trained: Trained, target: Target, form: Format, output: str | None) -> Path:
    """The file to write.

    Raises:
        ConfigError: output= or the script beside it exists, or the name is none for this format.
    """
    if output is None:
        directory.check_writable(Path(config.paths.outputs))
        last = "-last" if target.which == "last" else ""
        name = trained.content["config"]["name"].replace("/", "-")
        return trained.folder / "export" / f"{name}{last}{form.suffix}"
    path = Path(output).expanduser()
    check_output(path, form.suffix, path.with_name(SCRIPT), "folder")
    return path


def examples_of(config: Config, trained: Trained) -> tuple[Tensor, str]:
    """Up to COMPARED inputs as a user has them, and what they are: of the test split, or where that is not here random.

    No label is looked at: the test split stays unmeasured.
    """
    if is_missing(config):  # a comparison downloads nothing
        return random_examples(trained), f"random inputs: {config.data.name} is not in {config.paths.data}"
    if None in (config.data.options.get("root", ""), config.data.options.get("path", "")):
        return random_examples(trained), "random inputs: the file does not say where its data is"
    try:
        choice = prepared_as_trained(config, trained)
        splits = data.load(choice, config.paths, like=trained.content)
        check_fits(dict(trained.content), splits, trained.path)
    except (ConfigError, OSError) as error:
        return random_examples(trained), f"random inputs, since the data cannot be read: {str(error).splitlines()[0]}"
    x = first_of_test(splits)
    if not len(x):
        return random_examples(trained), "random inputs: there is no test split"
    noun = "image" if len(trained.in_shape) == 3 else "row"
    return x, f"{len(x)} test {noun}{'s' if len(x) > 1 else ''}"


def first_of_test(splits: Splits) -> Tensor:
    """Up to COMPARED examples of the test split, evenly over the classes: (N, C, H, W) uint8 or (N, D) float32."""
    test = splits.test
    rows = mixed(test.y, COMPARED) if splits.classes else torch.arange(min(len(test), COMPARED))
    x = test.take(rows).x
    if not isinstance(x, Tensor):  # images on disk
        x = torch.stack([x[i] for i in range(len(rows))]) if len(rows) else torch.empty(0, *splits.in_shape)
    return centered(x, splits.in_shape[1:]) if len(splits.in_shape) == 3 else x.float()


def random_examples(trained: Trained, count: int = COMPARED) -> Tensor:
    """Inputs without a meaning, the same each time: bytes for images, standard normal numbers for rows."""
    generator = torch.Generator().manual_seed(0)
    if len(trained.in_shape) == 3:
        return torch.randint(0, 256, (count, *trained.in_shape), generator=generator, dtype=torch.uint8)
    return torch.randn(count, *trained.in_shape, generator=generator)


@dataclass(frozen=True)
class Comparison:
    """How a file's answers differ from the model's.

    Attributes:
        difference: the largest one, over all batches.
        allowed: what it may be.
        n: examples.
        equal: those with the same label; of a regression all.
        unlike: those with another label, although the model's first two are further apart than is allowed.
        batches: sizes that were tried.
    """

    difference: float
    allowed: float
    n: int
    equal: int
    unlike: int
    batches: tuple[int, ...]


def compare(config: Config, trained: Trained, compute: Callable[[Tensor], Tensor], x: Tensor) -> Comparison:
    """Put the same examples through the file, in batches of several sizes, and through the model as predict does."""
    normalize = normalizer(trained.mean, trained.std, placement(trained.machine))
    parts = map(normalize, x.split(eval_batch_size(trained.in_shape)))
    outputs = engine.predict(trained.model, parts, trained.machine.autocast)
    sizes = tuple(sorted({min(size, len(x)) for size in BATCHES_TRIED}))
    answers = [compute(x[:size]).double() for size in sizes]
    said = (
        build.probabilities(config.loss, outputs) if trained.classes else own_outputs(trained.table, outputs).double()
    )
    unit = trained.table.std if trained.table is not None else 1.0
    allowed = MOST_APART * (1.0 if trained.classes else max(unit, unit * float(outputs.abs().max())))
    difference = max(float((answer - said[: len(answer)]).abs().max()) for answer in answers)
    if not trained.classes:
        return Comparison(difference, allowed, len(x), len(x), 0, sizes)
    differ = answers[-1].argmax(1) != said.argmax(1)
    first, second = said.topk(min(2, said.shape[1]), dim=1).values[:, [0, -1]].unbind(1)
    unlike = int((differ & (first - second > MOST_APART)).sum())
    return Comparison(difference, allowed, len(x), int((~differ).sum()), unlike, sizes)


def said_of_comparison(found: Comparison, form: Format, trained: Trained, what: str, path: Path) -> str:
    """The line on the comparison.

    Raises:
        TrainerError: they differ by more than rounding.
    """
    by = f"{form.runtime} {importlib.metadata.version(form.runtime)}"
    equal = f"{found.equal} of {found.n} labels are equal, " if trained.classes else ""
    kind = "probabilities" if trained.classes else "numbers"
    said = f"{equal}the {kind} differ by at most {found.difference:.1e}"
    on = f"{one_line(what)}, in batches of {listed([str(size) for size in found.batches])}"
    if found.unlike or not found.difference <= found.allowed:  # nan is not
        raise TrainerError(
            f"{path} does not compute what the model does: read back by {by}, {said} on {on}. "
            f"Allowed: {found.allowed:.1e}. The file is kept, but do not use it."
        )
    close = " (the model's first two are that close)" if found.equal < found.n else ""
    return f"compared with the model in float32, read back by {by}: {said}{close} on {on}"


def said_of_graph(trained: Trained) -> str:
    """What goes into the file's graph and what comes out."""
    shape = ", ".join(map(str, ("N", *trained.in_shape)))
    kind = "uint8" if len(trained.in_shape) == 3 else "float32"
    outputs = trained.content["arch"]["num_outputs"]
    return f"({shape}) {kind} -> (N, {outputs}) {'probabilities' if trained.classes else 'numbers'}"
