"""The rules that no linter knows, read from the source: who may import whom, and what nobody may write."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def files_of(*folders: str) -> list[str]:
    """main.py and the Python files below some folders."""
    return ["main.py", *sorted(str(p.relative_to(ROOT)) for folder in folders for p in (ROOT / folder).rglob("*.py"))]


PROGRAM = files_of("trainer", "hydra_plugins")
OURS = files_of("trainer", "hydra_plugins", "tests")
MAX_LINES = 60  # of a function

# What a file may import besides the standard library: the entry with the longest fitting path counts, a trailing dot
# stands for a whole package. A new file below trainer/ needs an entry: who may import it, and what, is a decision.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "main.py": (
        *("hydra", "trainer.check_resume", "trainer.command_line", "trainer.commands", "trainer.compare_impl"),
        *("trainer.config", "trainer.measure", "trainer.search", "trainer.sweep", "trainer.utils."),
    ),
    "trainer/__init__.py": (),
    "trainer/command_line.py": ("trainer.config", "trainer.utils.errors"),
    "trainer/config.py": ("omegaconf", "trainer.ranges", "trainer.utils.errors"),
    "trainer/ranges.py": ("trainer.utils.errors",),
    "trainer/schedules.py": (),
    "trainer/engine.py": ("torch",),
    "trainer/build.py": (
        *("torch", "trainer.config", "trainer.models", "trainer.ranges", "trainer.schedules", "trainer.scratch."),
        "trainer.utils.errors",
    ),
    "trainer/scratch/": ("torch", "trainer.scratch."),
    "trainer/scratch/with_numpy.py": ("torch", "numpy", "trainer.scratch."),
    "trainer/state.py": (
        "torch",
        "trainer.build",
        "trainer.config",
        "trainer.data.",
        "trainer.engine",
        "trainer.utils.",
    ),
    "trainer/device.py": ("torch", "trainer.config", "trainer.utils."),
    "trainer/training.py": ("torch", "trainer.config", "trainer.engine", "trainer.state", "trainer.utils."),
    "trainer/resume.py": ("trainer.config", "trainer.ranges", "trainer.state", "trainer.utils."),
    "trainer/report.py": (
        *("torch", "trainer.build", "trainer.config", "trainer.data.", "trainer.engine", "trainer.state"),
        "trainer.utils.",
    ),
    "trainer/commands.py": (
        *("torch", "trainer.build", "trainer.config", "trainer.data.", "trainer.device", "trainer.engine"),
        *("trainer.report", "trainer.resume", "trainer.state", "trainer.training", "trainer.utils."),
    ),
    "trainer/groups.py": ("trainer.config", "trainer.utils."),
    "trainer/stacked.py": ("torch",),
    "trainer/stack.py": (
        *("torch", "trainer.build", "trainer.commands", "trainer.config", "trainer.data.", "trainer.device"),
        *("trainer.engine", "trainer.models", "trainer.resume", "trainer.stacked", "trainer.state"),
        *("trainer.training", "trainer.utils."),
    ),
    "trainer/measure.py": (
        *("torch", "trainer.build", "trainer.commands", "trainer.config", "trainer.data.", "trainer.device"),
        *("trainer.engine", "trainer.report", "trainer.state", "trainer.utils."),
    ),
    "trainer/check_resume.py": ("torch", "trainer.commands", "trainer.config", "trainer.utils."),
    "trainer/compare_impl.py": (
        *("torch", "trainer.config", "trainer.data.", "trainer.device", "trainer.engine", "trainer.ranges"),
        *("trainer.state", "trainer.training", "trainer.utils."),
    ),
    "trainer/sweep.py": (
        *("torch", "trainer.commands", "trainer.config", "trainer.groups", "trainer.search", "trainer.stack"),
        "trainer.utils.",
    ),
    "trainer/search.py": ("optuna", "cmaes", "trainer.ranges", "trainer.space", "trainer.utils."),
    "trainer/space.py": ("optuna", "trainer.config", "trainer.ranges", "trainer.utils.errors"),
    "hydra_plugins/": (
        *("hydra", "omegaconf", "trainer.config", "trainer.ranges", "trainer.search", "trainer.space"),
        "trainer.utils.errors",
    ),
    "trainer/models/": ("torch", "trainer.models.", "trainer.utils.errors"),
    "trainer/models/torchvision.py": ("torch", "torchvision", "trainer.models.", "trainer.utils.errors"),
    "trainer/data/": ("torch", "torchvision", "numpy", "PIL", "trainer.config", "trainer.data.", "trainer.utils."),
    "trainer/utils/": ("trainer.utils.",),
    "trainer/utils/checkpoint.py": ("torch", "trainer.utils."),
    "trainer/utils/metrics.py": ("torch", "trainer.utils."),
    "trainer/utils/plots.py": ("torch", "matplotlib", "trainer.utils."),
    "trainer/utils/sweep_plots.py": ("matplotlib", "trainer.utils.plots"),
    "trainer/utils/board.py": ("rich", "trainer.utils."),
    "trainer/utils/ranks.py": ("torch", "trainer.utils."),
    "trainer/utils/recorder.py": ("torch", "tensorboard", "numpy", "PIL", "trainer.utils."),
    "trainer/utils/runtime.py": ("torch", "numpy", "threadpoolctl", "trainer.utils."),
    "trainer/utils/screen.py": ("rich", "trainer.utils."),
}
# these take long to import, so they are imported where they are used
LAZY = ("torchvision", "hydra", "rich", "tensorboard", "torch.utils.tensorboard", "trainer.utils.plots")
LAZY += ("trainer.utils.sweep_plots", "optuna", "cmaes")
TORCH_FREE = ("main", "trainer.command_line", "trainer.config", "trainer.ranges", "trainer.schedules", "trainer.sweep")
TORCH_FREE += (
    "trainer.search",
    "trainer.space",
    "trainer.utils.board",
    "trainer.utils.errors",
    "trainer.utils.ranks",
    "trainer.utils.runs",
    "trainer.utils.screen",
    "trainer.utils.signals",
)


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


def rule_of(path: str) -> tuple[str, ...]:
    fitting = [key for key in MAY_IMPORT if key == path or (key.endswith("/") and path.startswith(key))]
    assert fitting, f"{path} has no entry in MAY_IMPORT: say there what it may import"
    return MAY_IMPORT[max(fitting, key=len)]


def forbidden_imports(source: str, path: str) -> list[str]:
    """What the table does not allow. `from trainer import x` is trainer.x; the standard library is free."""
    allowed = rule_of(path)
    found = [m for m in imports(ast.parse(source)) if m.split(".")[0] not in sys.stdlib_module_names]
    return [m for m in found if not within(m, allowed)]


def eager_heavy_imports(source: str, path: str) -> list[str]:
    there = ("hydra",) if path.startswith("hydra_plugins/") else ()  # Hydra imports its plugins
    found = [m for m in imports(eager(ast.parse(source))) if within(m, LAZY) and not within(m, there)]
    return [] if path == "trainer/utils/sweep_plots.py" else found  # it is lazily imported itself


def layers_taken_from_torch(source: str, path: str) -> list[str]:
    """In models/ layers arrive as `nn`; only Module itself comes from torch.nn."""
    if not path.startswith("trainer/models/") or path == "trainer/models/torchvision.py":
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
    builtin = ("eval", "exec", "compile", "__import__")
    ending = ("instantiate", "extractall", "import_module", "unpack_archive", "add_safe_globals", "safe_globals")
    whole = ("pickle.load", "pickle.loads", "os.system", "yaml.load", "yaml.unsafe_load")
    return [n for n, _ in calls(source) if n in builtin or n in whole or n.split(".")[-1] in ending]


def global_seeds(source: str, path: str) -> list[str]:
    """Changes of a global generator outside runtime.py."""
    if path == "trainer/utils/runtime.py":
        return []
    seeding = ("torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.set_rng_state", "random.seed")
    seeding += ("torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "np.random.seed", "numpy.random.seed")
    return [name for name, _ in calls(source) if name in seeding]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def long_functions(source: str, path: str) -> list[str]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, Function)]
    return [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > MAX_LINES]


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


Check = Callable[[str, str], list[str]]
CHECKS: list[Check] = [
    *(forbidden_imports, eager_heavy_imports, layers_taken_from_torch, delegated, loads_unsafely, dangerous_calls),
    *(global_seeds, long_functions, without_docstring, not_ascii),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_program_keeps_the_rule(check: Check) -> None:
    found = {path: broken for path in PROGRAM if (broken := check(source_of(path), path))}
    assert not found


def test_tests_are_ascii_too() -> None:
    assert not {path: lines for path in OURS if (lines := not_ascii(source_of(path), path))}


def test_settings_are_ascii_too() -> None:
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")]
    assert len(files) > 30
    assert not {path: lines for path in files if (lines := not_ascii(source_of(path), path))}


BREACHES: list[tuple[Check, str, str]] = [
    (forbidden_imports, "trainer/engine.py", "from trainer.utils import runs"),
    (forbidden_imports, "trainer/engine.py", "def f():\n    import numpy"),
    (forbidden_imports, "trainer/commands.py", "import hydra"),
    (forbidden_imports, "trainer/commands.py", "from omegaconf import DictConfig"),
    (forbidden_imports, "trainer/config.py", "import torch"),
    (forbidden_imports, "trainer/ranges.py", "import torch"),
    (forbidden_imports, "trainer/schedules.py", "import torch"),
    (forbidden_imports, "trainer/utils/errors.py", "import torch"),
    (forbidden_imports, "trainer/utils/runs.py", "import torch"),
    (forbidden_imports, "trainer/utils/screen.py", "import torch.nn as n"),
    (forbidden_imports, "trainer/utils/metrics.py", "from trainer import state"),
    (forbidden_imports, "trainer/utils/metrics.py", "from trainer.data.splits import Split"),
    (forbidden_imports, "trainer/utils/metrics.py", "import matplotlib.pyplot as plt"),
    (forbidden_imports, "trainer/utils/metrics.py", "from .. import state"),
    (forbidden_imports, "trainer/models/lenet.py", "def f():\n    from torchvision import models"),
    (forbidden_imports, "trainer/models/lenet.py", "from trainer.config import Config"),
    (forbidden_imports, "trainer/models/lenet.py", "from trainer.utils import runtime"),
    (forbidden_imports, "trainer/data/folder.py", "from trainer import build"),
    (forbidden_imports, "trainer/state.py", "from trainer import commands"),
    (forbidden_imports, "trainer/search.py", "def f():\n    import hydra"),
    (forbidden_imports, "trainer/search.py", "from trainer import commands"),
    (forbidden_imports, "trainer/commands.py", "def f():\n    import optuna"),
    (forbidden_imports, "hydra_plugins/optuna_sweeper/sweeper.py", "def f():\n    import optuna"),
    (forbidden_imports, "hydra_plugins/optuna_sweeper/sweeper.py", "from trainer import commands"),
    (eager_heavy_imports, "trainer/search.py", "import optuna"),
    (eager_heavy_imports, "hydra_plugins/optuna_sweeper/sweeper.py", "from optuna import samplers"),
    (forbidden_imports, "main.py", "def f():\n    import torch"),
    (forbidden_imports, "main.py", "from trainer import data"),
    (eager_heavy_imports, "trainer/data/vision.py", "import torchvision.datasets"),
    (eager_heavy_imports, "trainer/report.py", "from trainer.utils import plots"),
    (eager_heavy_imports, "trainer/report.py", "if True:\n    from trainer.utils.plots import curves"),
    (eager_heavy_imports, "trainer/utils/recorder.py", "from torch.utils.tensorboard import SummaryWriter"),
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
    (loads_unsafely, "trainer/state.py", "torch.load(path, weights_only=False)"),
    (loads_unsafely, "trainer/state.py", "torch.load(path)"),
    (loads_unsafely, "trainer/state.py", "torch.load(path, weights_only=trusted)"),
    (loads_unsafely, "trainer/state.py", "read(path, weights_only=False)"),
    (dangerous_calls, "trainer/state.py", "eval('1')"),
    (dangerous_calls, "trainer/state.py", "hydra.utils.instantiate(config)"),
    (dangerous_calls, "trainer/state.py", "instantiate(config)"),
    (dangerous_calls, "trainer/state.py", "archive.extractall(folder)"),
    (dangerous_calls, "trainer/state.py", "importlib.import_module(name)"),
    (dangerous_calls, "trainer/state.py", "pickle.loads(data)"),
    (global_seeds, "trainer/state.py", "torch.manual_seed(0)"),
    (global_seeds, "trainer/state.py", "random.seed(0)"),
    (long_functions, "trainer/state.py", "class A:\n    def f(self):\n" + "        pass\n" * MAX_LINES),
    (without_docstring, "trainer/state.py", "def f():\n    pass"),
    (without_docstring, "trainer/state.py", '"""A."""\nclass A:\n    pass'),
    (without_docstring, "trainer/state.py", '"""A."""\nclass A:\n    """B."""\n    def f(self):\n        pass'),
    (not_ascii, "trainer/state.py", "# \u2264"),
]


@pytest.mark.parametrize(("check", "path", "source"), BREACHES)
def test_a_breach_is_seen(check: Check, path: str, source: str) -> None:
    assert check(source, path)


@pytest.mark.parametrize(
    ("check", "path", "source"),
    [
        (forbidden_imports, "trainer/engine.py", "import torch\nfrom collections.abc import Callable\nimport os.path"),
        (forbidden_imports, "main.py", "from trainer import config as settings\nfrom trainer.utils import runs"),
        (forbidden_imports, "trainer/data/vision.py", "def f():\n    import torchvision.datasets"),
        (forbidden_imports, "trainer/models/__init__.py", "from trainer.models.lenet import LeNet"),
        (eager_heavy_imports, "trainer/report.py", "def f():\n    from trainer.utils import plots"),
        (eager_heavy_imports, "trainer/search.py", "if TYPE_CHECKING:\n    import optuna"),
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
        (loads_unsafely, "trainer/state.py", "torch.load(path, weights_only=True)"),
        (dangerous_calls, "trainer/state.py", "model.eval()\nevaluate(x)\nre.compile(x)"),
        (global_seeds, "trainer/state.py", "torch.Generator().manual_seed(0)"),
        (global_seeds, "trainer/utils/runtime.py", "torch.manual_seed(0)"),
        (long_functions, "trainer/state.py", "def f():\n" + "    pass\n" * (MAX_LINES - 1)),
        (
            without_docstring,
            "trainer/state.py",
            '"""A."""\ndef _f():\n    pass\nclass A:\n    """B."""\n    def __len__(self): ...',
        ),
    ],
)
def test_what_is_allowed_is_not_taken_for_a_breach(check: Check, path: str, source: str) -> None:
    assert check(source, path) == []


def test_a_file_without_an_entry_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no entry in MAY_IMPORT"):
        rule_of("trainer/new.py")


def test_every_entry_of_the_table_is_of_a_file_that_exists() -> None:
    assert [path for path in MAY_IMPORT if not (ROOT / path).exists()] == []
    assert len(PROGRAM) > 30


# each takes a tenth of a second or more to import, torch and what is below it one or more
HEAVY = {"torch", "torch._dynamo", "torch._inductor", "sympy", "torchvision", "numpy", "PIL", "matplotlib"}
HEAVY |= {"tensorboard", "rich", "hydra", "optuna"}


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
    assert imported_by("import " + ", ".join(TORCH_FREE)) == set()


def test_training_imports_neither_pictures_nor_curves_before_they_are_drawn() -> None:
    assert imported_by("from trainer import commands, measure") == {"torch", "numpy", "PIL"}


def test_help_and_refusals_load_nothing_heavy() -> None:
    assert loaded_by_command("--help") == set()
    assert loaded_by_command("model=mpl") == set()
    assert loaded_by_command("optimizer.momentm=0.9") == set()
    assert loaded_by_command("optimizer.lr=fast") == {"hydra"}  # Hydra reads the value


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["optimizer=adamw", "clip_norm=1", "ema_decay=0.9"],
        ["optimizer=adam", "device.precision=bf16"],
        ["optimizer=rmsprop", "device.precision=fp16"],
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
