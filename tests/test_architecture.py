"""The rules that no linter knows, read from the source: who may import whom, and what nobody may write."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def files_of(*folders: str) -> list[str]:
    """main.py and the Python files below some folders."""
    return ["main.py", *sorted(str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.py"))]


PROGRAM = files_of("trainer", "hydra_plugins")
OURS = files_of("trainer", "hydra_plugins", "tests")
MAX_LINES = 60  # of a function

# Who may import whom: a room may import the rooms in its own line and every room in a line below it.
LAYERS = (
    ("main", "hydra_plugins", "trainer.api"),
    ("trainer.sweep",),
    ("trainer.commands",),
    ("trainer.run",),
    ("trainer.data", "trainer.build"),
    ("trainer.models", "trainer.config", "trainer.engine"),
    ("trainer.utils", "trainer.plots", "trainer.totals", "trainer.scratch", "trainer.schedules"),
)
# Rooms that know less than their line allows: what else they are for would be in the way there.
ONLY = {
    "trainer.data": ("trainer.config.schema", "trainer.utils"),
    "trainer.engine": ("trainer.totals",),
    "trainer.models": ("trainer.utils.errors",),
    "trainer.config": ("trainer.utils",),
    "trainer.plots": ("trainer.utils.files", "trainer.utils.objective", "trainer.utils.text"),
    "trainer.totals": (),
    "trainer.scratch": (),
    "trainer.schedules": (),
}
# Other people's packages that are for few: the files that may import each one.
PACKAGES = {
    "hydra": ("main", "hydra_plugins", "trainer.config.compose", "trainer.sweep.launch"),
    "omegaconf": ("hydra_plugins", "trainer.config"),
    "optuna": ("hydra_plugins", "trainer.sweep.trial", "trainer.sweep.study", "trainer.sweep.search_space"),
    "cmaes": ("trainer.sweep.study",),
    "torchvision": ("trainer.data", "trainer.models.torchvision"),
    "timm": ("trainer.models.timm",),
    "matplotlib": ("trainer.plots",),
    "tensorboard": ("trainer.run.recorder",),
    "rich": ("trainer.utils.screen", "trainer.utils.bar", "trainer.sweep.board"),
    "PIL": ("trainer.data", "trainer.run.recorder", "trainer.plots.page.png"),
    "numpy": ("trainer.data", "trainer.run", "trainer.scratch.with_numpy", "trainer.api"),
    "scipy": ("trainer.utils.evidence",),
    "safetensors": ("trainer.run.safe_load", "trainer.run.formats"),
    "onnxruntime": ("trainer.run.formats",),
    "threadpoolctl": ("trainer.run.machine",),
    "pyarrow": ("trainer.data.table_file",),
    "mlflow": ("trainer.run.services",),
    "wandb": ("trainer.run.services",),
    "fsspec": ("trainer.data.remote",),
    "aiohttp": ("trainer.data.remote",),
    "torch": ("trainer",),
}
# these take long to import, so they are imported where they are used
LAZY = (
    "torchvision",
    "timm",
    "hydra",
    "rich",
    "tensorboard",
    "torch.utils.tensorboard",
    "trainer.plots",
    "trainer.run.report",
    "trainer.run.again",
    "trainer.sweep.page",
    "optuna",
    "cmaes",
    "pyarrow",
    "onnxruntime",
    "mlflow",
    "wandb",
    "fsspec",
    "aiohttp",
)
TORCH_FREE = (
    *(
        "main",
        "trainer.api",
        "trainer.commands.start",
        "trainer.schedules",
        "trainer.run.directory",
        "trainer.run.folders",
        "trainer.run.loggers",
        "trainer.run.plugged",
        "trainer.config",
        "trainer.sweep",
    ),
    *(f"trainer.utils.{name}" for name in ("errors", "files", "locks", "ranks", "screen", "signals", "text")),
)
MAX_FILE = 330  # lines of a file of the program, scratch/ apart


def source_of(path: str) -> str:
    return (ROOT / path).read_text()


def imports(tree: ast.AST) -> Iterator[str]:
    """Each imported module; `from a import b` as a.b, since b may be a module. Relative ones begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def eager(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of functions and of `if TYPE_CHECKING`: what runs when the file is imported."""

    class Drop(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            return ast.Pass()

        def visit_If(self, node: ast.If) -> ast.AST:
            return ast.Pass() if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    dropped: ast.Module = Drop().visit(ast.parse(ast.unparse(tree)))
    return dropped


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == p.rstrip(".") or module.startswith(p.rstrip(".") + ".") for p in packages)


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room_of(module: str) -> tuple[int, str] | None:
    """The line of LAYERS and the room that a module is in; None: not ours."""
    found = [(i, room) for i, line in enumerate(LAYERS) for room in line if within(module, (room,))]
    return found[0] if found else None


def may_import(module: str, other: str) -> bool:
    """Whether a module of ours may import another one, of ours or of other people."""
    if other.split(".")[0] in sys.stdlib_module_names:
        return True
    if module == "trainer":  # `from trainer import load, train`
        return other == "trainer.api"
    here, there = room_of(module), room_of(other)
    assert here is not None, f"{module} is in no room of LAYERS: say there which ones it may import"
    if there is None:
        return within(module, PACKAGES.get(other.split(".")[0], ()))
    if here[1] == there[1]:
        return True
    return here[0] <= there[0] and (here[1] not in ONLY or within(other, ONLY[here[1]]))


def forbidden_imports(source: str, path: str) -> list[str]:
    """What LAYERS, ONLY and PACKAGES do not allow. `from trainer import x` is trainer.x."""
    return [m for m in imports(ast.parse(source)) if not may_import(module_of(path), m)]


def eager_heavy_imports(source: str, path: str) -> list[str]:
    there = ("hydra",) if path.startswith("hydra_plugins/") else ()  # Hydra imports its plugins
    found = [m for m in imports(eager(ast.parse(source))) if within(m, LAZY) and not within(m, there)]
    themselves = ("trainer/plots/", "trainer/run/report/", "trainer/run/again.py", "trainer/sweep/page.py")
    return [] if path.startswith(themselves) else found  # they are lazily imported


def layers_taken_from_torch(source: str, path: str) -> list[str]:
    """In models/ layers arrive as `nn`; only Module itself comes from torch.nn."""
    if not path.startswith("trainer/models/") or path in ("trainer/models/torchvision.py", "trainer/models/timm.py"):
        return []
    tree = ast.parse(source)
    taken = [m for m in imports(tree) if within(m, ("torch.nn",)) and m != "torch.nn.Module"]
    dotted = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return taken + [name for name in dotted if within(name, ("torch.nn", "torch.optim"))]


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    """Each call with the dotted name of what is called."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


# what torch computes in one call, forward or backward, under these names: as functions, and as methods of tensors
WHOLE = {"relu", "sigmoid", "softmax", "log_softmax", "logsumexp", "dropout", "batch_norm", "native_batch_norm"}
WHOLE |= {"conv2d", "convolution", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "linear", "mse_loss", "l1_loss"}
WHOLE |= {
    "huber_loss",
    "nll_loss",
    "cross_entropy_loss",
    "softplus",
    "logsigmoid",
    "var",
    "std",
    "var_mean",
    "backward",
}
OWN = ("formulas", "self.operations", "by_hand", "with_numpy")


def delegated(source: str, path: str) -> list[str]:
    """In scratch/: what is torch's own forward or backward instead of a formula."""
    if not path.startswith("trainer/scratch/"):
        return []
    tree = ast.parse(source)
    names = [*imports(tree), *(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute))]
    containers = {f"torch.nn.{name}" for name in ("Module", "Parameter", "Sequential")} | {"torch.autograd.Function"}
    containers |= {"torch.autograd.function.once_differentiable"}  # only refuses second derivatives
    packages = ("torch.nn", "torch.optim", "torch.autograd", "torch.ops", "torch.func", "torch._C")
    taken = [name for name in names if within(name, packages) and name not in containers]
    return taken + [n for n in names if n.split(".")[-1] in WHOLE and n.rpartition(".")[0] not in OWN]


def loads_unsafely(source: str, path: str) -> list[str]:
    """torch.load without a literal weights_only=True, and weights_only=False anywhere."""
    found = []
    for name, call in calls(source):
        only = [k.value for k in call.keywords if k.arg == "weights_only"]
        literal_true = len(only) == 1 and isinstance(only[0], ast.Constant) and only[0].value is True
        if (only and not literal_true) or (name in ("torch.load", "torch.serialization.load") and not literal_true):
            found.append(ast.unparse(call))
    return found


def dangerous_calls(source: str, path: str) -> list[str]:
    """What would run or import what a string says, unpack an archive as it likes, or widen what a pickle may name."""
    # a file of plugins= is run in one place, since somebody typed its name
    builtin = ("eval", "__import__", *(("exec", "compile") if path != "trainer/config/plugins.py" else ()))
    ending = ("instantiate", "extractall", "import_module", "unpack_archive", "add_safe_globals", "safe_globals")
    whole = ("pickle.load", "pickle.loads", "os.system", "yaml.load", "yaml.unsafe_load")
    return [n for n, _ in calls(source) if n in builtin or n in whole or n.split(".")[-1] in ending]


def global_seeds(source: str, path: str) -> list[str]:
    """Changes of a global generator outside seeds.py."""
    if path == "trainer/run/seeds.py":
        return []
    seeding = ("torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.set_rng_state", "random.seed")
    seeding += ("torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "np.random.seed", "numpy.random.seed")
    return [name for name, _ in calls(source) if name in seeding]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def long_functions(source: str, path: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]
    return [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > MAX_LINES]


def long_file(source: str, path: str) -> list[str]:
    lines = len(source.splitlines())
    return [f"{lines} lines"] if lines > MAX_FILE and not path.startswith("trainer/scratch/") else []


def without_docstring(source: str, path: str) -> list[str]:
    """Public functions, classes and methods, and the file itself; special methods are explained by their names."""

    def look(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
        for child in node.body:
            of_autograd = isinstance(node, ast.ClassDef) and "Function" in map(ast.unparse, node.bases)
            if of_autograd and isinstance(child, Function) and child.name in ("forward", "backward"):
                continue  # the formulas stand in the class
            if isinstance(child, (ast.ClassDef, Function)) and not child.name.startswith("_"):
                if not ast.get_docstring(child):
                    yield prefix + child.name
                if isinstance(child, ast.ClassDef):
                    yield from look(child, f"{child.name}.")

    tree = ast.parse(source)
    return ([] if ast.get_docstring(tree) else ["the file"]) + list(look(tree, ""))


def not_ascii(source: str, path: str) -> list[str]:
    return [line for line in source.splitlines() if not line.isascii()]


def without_encoding(source: str, path: str) -> list[str]:
    """Text that is read or written in the encoding of the machine, which on Windows is not UTF-8."""

    def is_text(name: str, call: ast.Call) -> bool:
        method = name.rpartition(".")[2]
        if method in ("read_text", "write_text") or name in ("open", "os.fdopen", "io.open", "open_regular"):
            modes = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode")]
            return method.endswith("_text") or not any("b" in ast.unparse(mode) for mode in modes)
        return False

    texts = [call for name, call in calls(source) if is_text(name, call)]
    # options that are handed on may hold it; they end in a call that is checked itself
    return [ast.unparse(c) for c in texts if not any(k.arg in ("encoding", None) for k in c.keywords)]


Check = Callable[[str, str], list[str]]
CHECKS: list[Check] = [
    *(forbidden_imports, eager_heavy_imports, layers_taken_from_torch, delegated, loads_unsafely, dangerous_calls),
    *(global_seeds, long_functions, long_file, without_docstring, not_ascii, without_encoding),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_program_keeps_the_rule(check: Check) -> None:
    found = {path: broken for path in PROGRAM if (broken := check(source_of(path), path))}
    assert not found


def test_benchmarks_name_encodings_too() -> None:
    files = files_of("benchmarks")
    assert len(files) > 5
    assert not {path: broken for path in files if (broken := without_encoding(source_of(path), path))}


def test_tests_are_ascii_too() -> None:
    assert not {path: lines for path in OURS if (lines := not_ascii(source_of(path), path))}


def test_settings_are_ascii_too() -> None:
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")]
    assert len(files) > 30
    assert not {path: lines for path in files if (lines := not_ascii(source_of(path), path))}


BREACHES: list[tuple[Check, str, str]] = [
    (forbidden_imports, "trainer/engine.py", "from trainer.run import directory"),
    (forbidden_imports, "trainer/engine.py", "from trainer.utils import files"),
    (forbidden_imports, "trainer/engine.py", "def f():\n    import numpy"),
    (forbidden_imports, "trainer/engine.py", "def f():\n    import unknown_package"),
    (forbidden_imports, "trainer/commands/train.py", "import hydra"),
    (forbidden_imports, "trainer/commands/train.py", "from omegaconf import DictConfig"),
    (forbidden_imports, "trainer/commands/train.py", "from trainer.sweep import job"),
    (forbidden_imports, "trainer/run/parts.py", "from trainer.commands import train"),
    (forbidden_imports, "trainer/config/freeze.py", "from trainer import build"),
    (forbidden_imports, "trainer/config/freeze.py", "from trainer.models import MODELS"),
    (forbidden_imports, "trainer/schedules.py", "from trainer.utils.errors import ConfigError"),
    (forbidden_imports, "trainer/utils/files.py", "from trainer.run import directory"),
    (forbidden_imports, "trainer/utils/metrics.py", "from trainer.data.splits import Split"),
    (forbidden_imports, "trainer/utils/metrics.py", "import matplotlib.pyplot as plt"),
    (forbidden_imports, "trainer/utils/metrics.py", "from .. import run"),
    (forbidden_imports, "trainer/models/lenet.py", "def f():\n    from torchvision import models"),
    (forbidden_imports, "trainer/models/lenet.py", "from trainer.config.schema import Config"),
    (forbidden_imports, "trainer/models/lenet.py", "from trainer.run import machine"),
    (forbidden_imports, "trainer/data/folder.py", "from trainer import build"),
    (forbidden_imports, "trainer/data/folder.py", "from trainer.config.options import flatten"),
    (forbidden_imports, "trainer/build.py", "from trainer.run import parts"),
    (forbidden_imports, "trainer/sweep/study.py", "def f():\n    import hydra"),
    (forbidden_imports, "trainer/commands/train.py", "def f():\n    import optuna"),
    (forbidden_imports, "main.py", "def f():\n    import torch"),
    (eager_heavy_imports, "trainer/sweep/study.py", "import optuna"),
    (eager_heavy_imports, "hydra_plugins/optuna_sweeper/sweeper.py", "from optuna import samplers"),
    (forbidden_imports, "main.py", "def f():\n    import torch"),
    (eager_heavy_imports, "trainer/data/vision.py", "import torchvision.datasets"),
    (eager_heavy_imports, "trainer/run/result.py", "from trainer.plots import run"),
    (eager_heavy_imports, "trainer/run/result.py", "if True:\n    from trainer.plots.run import curves"),
    (eager_heavy_imports, "trainer/run/recorder.py", "from torch.utils.tensorboard import SummaryWriter"),
    (layers_taken_from_torch, "trainer/models/lenet.py", "from torch.nn import Linear"),
    (layers_taken_from_torch, "trainer/models/lenet.py", "from torch import nn"),
    (layers_taken_from_torch, "trainer/models/lenet.py", "import torch\nx = torch.nn.functional.relu(y)"),
    (delegated, "trainer/scratch/nn.py", "from torch.nn import Linear"),
    (delegated, "trainer/scratch/nn.py", "from torch import nn\ny = nn.functional.relu(x)"),
    (delegated, "trainer/scratch/optim.py", "import torch\noptimizer = torch.optim.SGD(p)"),
    (delegated, "trainer/scratch/by_hand.py", "import torch\ng = torch.autograd.grad(y, x)"),
    (delegated, "trainer/scratch/by_hand.py", "y.backward()"),
    (delegated, "trainer/scratch/formulas.py", "y = x.relu()"),
    (delegated, "trainer/scratch/formulas.py", "y = torch.conv2d(x, w)"),
    (delegated, "trainer/scratch/formulas.py", "from torch import softmax"),
    (loads_unsafely, "trainer/run/parts.py", "torch.load(path, weights_only=False)"),
    (loads_unsafely, "trainer/run/parts.py", "torch.load(path)"),
    (loads_unsafely, "trainer/run/parts.py", "torch.load(path, weights_only=trusted)"),
    (loads_unsafely, "trainer/run/parts.py", "read(path, weights_only=False)"),
    (dangerous_calls, "trainer/run/parts.py", "eval('1')"),
    (dangerous_calls, "trainer/run/plugged.py", "exec(source)"),
    (dangerous_calls, "trainer/config/plugins.py", "eval('1')"),
    (dangerous_calls, "trainer/run/parts.py", "hydra.utils.instantiate(config)"),
    (dangerous_calls, "trainer/run/parts.py", "instantiate(config)"),
    (dangerous_calls, "trainer/run/parts.py", "archive.extractall(folder)"),
    (dangerous_calls, "trainer/run/parts.py", "importlib.import_module(name)"),
    (dangerous_calls, "trainer/run/parts.py", "pickle.loads(data)"),
    (global_seeds, "trainer/run/parts.py", "torch.manual_seed(0)"),
    (global_seeds, "trainer/run/parts.py", "random.seed(0)"),
    (long_functions, "trainer/run/parts.py", "class A:\n    def f(self):\n" + "        pass\n" * MAX_LINES),
    (without_docstring, "trainer/run/parts.py", "def f():\n    pass"),
    (without_docstring, "trainer/run/parts.py", '"""A."""\nclass A:\n    pass'),
    (without_docstring, "trainer/run/parts.py", '"""A."""\nclass A:\n    """B."""\n    def f(self):\n        pass'),
    (not_ascii, "trainer/run/parts.py", "# \u2264"),
    (without_encoding, "trainer/run/parts.py", "open(path)"),
    (without_encoding, "trainer/run/parts.py", "open(path, 'w')"),
    (without_encoding, "trainer/run/parts.py", "path.read_text()"),
    (without_encoding, "trainer/run/parts.py", "path.write_text(text)"),
    (without_encoding, "trainer/run/parts.py", "open_regular(path, mode='a+')"),
]


@pytest.mark.parametrize(("check", "path", "source"), BREACHES)
def test_a_breach_is_seen(check: Check, path: str, source: str) -> None:
    assert check(source, path)


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (forbidden_imports, "trainer/engine.py", "import torch\nfrom collections.abc import Callable\nimport os.path"),
        (
            forbidden_imports,
            "main.py",
            "from trainer.config import compose\nfrom trainer.sweep import launch",
        ),
        (forbidden_imports, "trainer/data/vision.py", "def f():\n    import torchvision.datasets"),
        (forbidden_imports, "trainer/models/__init__.py", "from trainer.models.lenet import LeNet"),
        (eager_heavy_imports, "trainer/run/result.py", "def f():\n    from trainer.plots import run"),
        (eager_heavy_imports, "trainer/sweep/study.py", "if TYPE_CHECKING:\n    import optuna"),
        (eager_heavy_imports, "hydra_plugins/optuna_sweeper/sweeper.py", "from hydra.plugins.sweeper import Sweeper"),
        (layers_taken_from_torch, "trainer/models/lenet.py", "from torch.nn import Module\nnn.Linear(1, 2)"),
        (delegated, "trainer/scratch/nn.py", "from torch.nn import Module, Parameter\nself.operations.relu(x)"),
        (delegated, "trainer/scratch/by_hand.py", "from torch.autograd import Function\nformulas.conv2d(x, w)"),
        (delegated, "trainer/build.py", "import torch\ntorch.optim.SGD"),
        (
            without_docstring,
            "trainer/scratch/by_hand.py",
            '"""A."""\nclass A(Function):\n    """B."""\n    def forward(): ...',
        ),
        (loads_unsafely, "trainer/run/parts.py", "torch.load(path, weights_only=True)"),
        (dangerous_calls, "trainer/run/parts.py", "model.eval()\nevaluate(x)\nre.compile(x)"),
        (global_seeds, "trainer/run/parts.py", "torch.Generator().manual_seed(0)"),
        (global_seeds, "trainer/run/seeds.py", "torch.manual_seed(0)"),
        (long_functions, "trainer/run/parts.py", "def f():\n" + "    pass\n" * (MAX_LINES - 1)),
        (
            without_docstring,
            "trainer/run/parts.py",
            '"""A."""\ndef _f():\n    pass\nclass A:\n    """B."""\n    def __len__(self): ...',
        ),
    ],
)
def test_what_is_allowed_is_not_taken_for_a_breach(check: Check, path: str, source: str) -> None:
    assert check(source, path) == []


def test_a_file_outside_all_rooms_is_noticed() -> None:
    with pytest.raises(AssertionError, match="in no room of LAYERS"):
        may_import("trainer.attic", "trainer.engine")


def test_every_name_in_the_tables_is_there() -> None:
    rooms = {room for line in LAYERS for room in line}
    files = {module for modules in PACKAGES.values() for module in modules}
    there = {module_of(path) for path in PROGRAM} | {"hydra_plugins"}
    assert {*rooms, *files, *TORCH_FREE} <= there
    assert set(ONLY) <= rooms
    assert len(PROGRAM) > 60


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Imports inside functions count too, but those for the type checker alone do not."""
    ours = {module_of(path): path for path in PROGRAM}

    class WithoutTypeChecking(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST:
            return ast.Pass() if ast.unparse(node.test) == "TYPE_CHECKING" else self.generic_visit(node)

    def imported(path: str) -> set[str]:
        found = imports(WithoutTypeChecking().visit(ast.parse(source_of(path))))
        return {name if name in ours else name.rpartition(".")[0] for name in found} & set(ours)

    graph = {module: imported(path) - {module} for module, path in ours.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_few_modules_lie_directly_in_trainer() -> None:
    assert len([path for path in (ROOT / "trainer").glob("*.py") if path.name != "__init__.py"]) <= 5


def test_a_name_is_defined_in_one_file() -> None:
    """scratch/ apart, which has the names of torch.nn and torch.optim, once for each library.

    And but for load and train of api.py, which people type.
    """
    places: dict[str, list[str]] = {}
    for path in PROGRAM:
        for node in ast.parse(source_of(path)).body if not path.startswith("trainer/scratch/") else ():
            names = [node.name] if isinstance(node, (Function, ast.ClassDef)) else []
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                places.setdefault(name, []).append(path)
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert set(twice) <= {"T", "load", "train"}, twice  # T is a type variable


# each takes a tenth of a second or more to import, torch and what is below it one or more
HEAVY = {"torch", "torch._dynamo", "torch._inductor", "sympy", "torchvision", "numpy", "PIL", "matplotlib"}
HEAVY |= {"tensorboard", "rich", "hydra", "optuna", "mlflow", "wandb"}


def imported_by(code: str) -> set[str]:
    """What of HEAVY is loaded after running some code in a process of its own; it may print."""
    report = f"{code}\nimport sys\nprint('loaded', *{HEAVY} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", report], cwd=ROOT, text=True, capture_output=True, timeout=60, check=True
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def loaded_by_command(*words: str) -> set[str]:
    """What of HEAVY is loaded by `python main.py <words>`."""
    return imported_by(f"import sys\nimport main\nsys.argv = ['main.py', *{list(words)}]\nmain.main()")


def test_what_has_to_be_quick_imports_nothing_heavy() -> None:
    """Also not through another file."""
    whole = [module_of(path) for path in PROGRAM if within(module_of(path), TORCH_FREE)]
    quick = [module for module in whole if not within(module, ("trainer.sweep.stack", "trainer.sweep.page"))]
    assert len(quick) > 20
    assert imported_by("from trainer import load, train\nimport " + ", ".join(quick)) == set()


def test_training_imports_neither_pictures_nor_curves_before_they_are_drawn() -> None:
    assert imported_by("from trainer.commands import evaluate, predict, train") == {"torch", "numpy", "PIL"}


def test_help_and_refusals_load_nothing_heavy() -> None:
    assert loaded_by_command("--help") == set()
    assert loaded_by_command("nonsense=1") == set()
    assert loaded_by_command("optimizer.momentm=0.9") == {"hydra"}  # which tries the command that is offered instead
    assert loaded_by_command("optimizer.lr=fast") == {"hydra"}  # Hydra reads the value


@pytest.mark.parametrize(
    "words",
    [
        [],
        pytest.param(["optimizer=adamw", "clip_norm=1", "ema_decay=0.9"], marks=pytest.mark.slow),
        pytest.param(["optimizer=adam", "device.precision=bf16"], marks=pytest.mark.slow),
        pytest.param(["optimizer=rmsprop", "device.precision=fp16"], marks=pytest.mark.slow),
    ],
)
def test_a_short_run_loads_torch_but_not_its_compiler(words: list[str], tmp_path: Path) -> None:
    folders = [f"paths.{name}={tmp_path / name}" for name in ("outputs", "checkpoints")]
    found = loaded_by_command(*words, "plots=false", "epochs=1", *folders)
    assert found == {"torch", "numpy", "PIL", "tensorboard", "hydra"}


def test_neither_going_on_nor_a_sweep_loads_the_compiler(tmp_path: Path) -> None:
    folders = [f"paths.{name}={tmp_path / name}" for name in ("outputs", "checkpoints")]
    commands = (["name=a", "epochs=1"], ["resume=a", "epochs=2"], ["-m", "name=s", "epochs=1", "optimizer.lr=0.1,0.2"])
    lines = [f"sys.argv = ['main.py', 'plots=false', *{[*words, *folders]}]; main.main()" for words in commands]
    assert "torch._dynamo" not in imported_by("\n".join(["import sys", "import main", *lines]))
    assert (tmp_path / "outputs" / "s" / "1" / "result.json").is_file()


def test_pictures_add_matplotlib_and_nothing_else(tmp_path: Path) -> None:
    folders = [f"paths.{name}={tmp_path / name}" for name in ("outputs", "checkpoints")]
    found = loaded_by_command("epochs=1", *folders)
    assert found == {"torch", "numpy", "PIL", "tensorboard", "hydra", "matplotlib"}
