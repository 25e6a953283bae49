"""train() and load() from Python: what the command line gives, bit for bit, and a process that is left as it was."""

import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from conftest import ROOT, Cli, assert_refused, predictions, write_class_folders
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from trainer import load, train
from trainer.commands import predict
from trainer.data.given import images_given
from trainer.data.workers import signals_waiting
from trainer.run.safe_load import read_checkpoint
from trainer.utils.errors import ConfigError, DivergedError, Interrupted, ResourceError
from trainer.utils.files import read_csv

OF_IMPORTS = ("KMP_DUPLICATE_LIB_OK", "PYTEST_CURRENT_TEST")  # the first one is set when threadpoolctl is imported
CLOCK = {"seconds", "samples_per_second", "run"}
PLAIN = {"plots": False, "device": "cpu"}
SHORT = {"data": "mnist", "model": "mlp", "model.num_hiddens": [8], "epochs": 1, "batch_size": 100} | PLAIN


def typed(settings: dict[str, Any]) -> list[str]:
    """The words for these settings on a command line."""
    return [f"{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in settings.items()]


def without_clock(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if key not in CLOCK}


def state_of_process() -> dict[str, Any]:
    """What a caller would notice if it had changed."""
    return {
        "threads": torch.get_num_threads(),
        "matmul": torch.backends.mkldnn.matmul.fp32_precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "random": (torch.get_rng_state().tolist(), np.random.get_state(legacy=True)[1].tolist(), random.getstate()),
        "numpy": np.geterr(),
        "handlers": {signum: signal.getsignal(signum) for signum in signal.Signals if signum != signal.SIGKILL},
        "environment": {key: value for key, value in os.environ.items() if key not in OF_IMPORTS},
        "here": (os.getcwd(), sys.stdout, sys.stderr, list(sys.argv), list(sys.orig_argv)),
        "hydra": GlobalHydra.instance().hydra,
        "thread": threading.excepthook,
        "logging": (logging.root.level, list(logging.root.handlers), logging.getLogger("somebody").disabled),
        "drawing": mpl.rcParams["backend"],
    }


@contextmanager
def same_process() -> Iterator[None]:
    """What is inside leaves the process as it was."""
    before = state_of_process()
    try:
        yield
    finally:
        after = state_of_process()
        assert {key: value for key, value in after.items() if value != before[key]} == {}


def test_train_gives_the_files_of_the_command_line_to_the_last_bit(
    cli: Cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SHORT | {"paths.data": str(tiny_mnist), "device.num_threads": 2}
    outcome = cli(*typed(settings), "name=a")
    assert outcome.code == 0, outcome.err
    torch.rand(3)  # what was drawn before changes nothing
    somebody = initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "configs"))
    with somebody, same_process():
        runs = [train(settings, name="b"), train(typed(settings | {"name": "c"}))]
        assert compose("config", overrides=["seed=3"]).seed == 3
    weights = {name: read_checkpoint(Path("checkpoints", name, "best.pt"))["model"] for name in "abc"}
    for run in runs:
        by_hand = json.loads(Path("outputs/a/result.json").read_text())
        assert without_clock(run.result) == without_clock(by_hand)
        assert run.result["run"] == run.name
        rows = [json.loads(line) for line in Path("outputs/a/metrics.jsonl").read_text().splitlines()]
        assert list(map(without_clock, run.metrics)) == list(map(without_clock, rows))
        for name, tensor in weights["a"].items():
            assert torch.equal(weights[run.name][name], tensor), name
    here = {path.relative_to("outputs/a") for path in Path("outputs/a").rglob("*") if "tfevents" not in path.name}
    assert {p.relative_to("outputs/b") for p in Path("outputs/b").rglob("*") if "tfevents" not in p.name} == here
    saved = [json.loads(Path("outputs", name, "config.json").read_text()) for name in "ab"]
    assert saved[1]["config"] == saved[0]["config"] | {"name": "b"}
    assert saved[1]["command"][1:] == [str(ROOT / "main.py"), *typed(settings), "name=b"]
    monkeypatch.chdir("..")  # a run is found again from elsewhere
    assert runs[0].load().trained.path.is_file()


def captured(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The probabilities that the predict command writes, before they are rounded."""
    seen: list[torch.Tensor] = []
    write = predict.write_predictions

    def writes(path: Path, config: Any, classes: Any, names: Any, chances: torch.Tensor, labels: Any) -> Path:
        seen.append(chances)
        return write(path, config, classes, names, chances, labels)

    monkeypatch.setattr(predict, "write_predictions", writes)
    return seen


@pytest.fixture
def shapes(cli: Cli, tmp_path: Path) -> Path:
    """A folder of photos on which the run `a` was trained, with a few more of other sizes and kinds in `more`."""
    write_class_folders(tmp_path / "photos", {"train": 24, "test": 6})
    settings = {"data": "folder", "data.root": "photos", "data.size": 12, "model": "convnet", "epochs": 1} | PLAIN
    words = typed(settings | {"model.layers": "[conv4x3,max2,fc8]"})
    assert cli(*words, "name=a", "paths.outputs=o", "paths.checkpoints=c").code == 0
    more = tmp_path / "more"
    more.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(more / "clear.png")
    Image.fromarray(pixels[:, :, :3]).save(more / "colours.png")
    Image.fromarray(pixels[:, :, 0]).resize((300, 500)).save(more / "photo.jpg")
    Image.fromarray(pixels[:12, :12, 0].astype(np.uint16) * 256).save(more / "wide.png")
    return more


def test_load_gives_the_probabilities_of_the_predict_command_to_the_last_bit(
    shapes: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = captured(monkeypatch)  # by the command
    folders = ["paths.outputs=o", "paths.checkpoints=c"]
    assert cli("predict", "a", str(shapes), *folders, "plots=false").code == 0
    rows = read_csv(predictions(Path("o/a")))
    with same_process():
        model = load("a", outputs="o", checkpoints=Path("c"))
        model.predict(shapes)
    assert model.classes == ("class0", "class1", "class2")
    files = sorted(shapes.iterdir())
    for given in (str(shapes), files, list(map(str, files))):
        found = model.predict(given)
        assert np.array_equal(found.probabilities, seen[0].numpy())
        assert found.names == [row["input"] for row in rows]
        assert found.labels.tolist() == [row["class"] for row in rows]
        assert found.indices.tolist() == [int(row["label"]) for row in rows]
        best = found.probabilities.max(1)
        assert [f"{p:.6f}" for p in best] == [row["probability"] for row in rows]
    # in memory, but for photo.jpg, which is decoded at a part of its size from the file
    in_memory = [0, 1, 3]
    images = [Image.open(files[i]) for i in in_memory]
    assert np.array_equal(model.predict(images).probabilities, seen[0][in_memory].numpy())
    lying = Image.new("RGB", (30, 20))
    lying.getexif()[0x0112] = 6  # by its orientation it is to be turned upright
    model.predict(lying)
    assert (lying.size, lying.getexif()[0x0112]) == ((30, 20), 6)  # not the caller's own
    arrays = [np.array(images[0]), torch.from_numpy(np.array(images[1])), images[2]]
    assert np.array_equal(model.predict(arrays).probabilities, seen[0][in_memory].numpy())
    assert not model.module.training
    assert model.module(torch.zeros(1, *model.in_shape)).shape == (1, 3)


@pytest.mark.parametrize("target", ["a", "a:best", "a:last", "last", "checkpoints/a/best.pt", "s:best"])
def test_load_takes_what_the_command_line_takes(target: str, cli: Cli) -> None:
    words = ("-m", "name=s", "optimizer.lr=0.03,0.1") if target.startswith("s") else ("name=a",)
    assert cli(*words, "epochs=1", "plots=false").code == 0
    assert repr(model := load(target)).startswith("<linreg of ")
    with pytest.raises(ConfigError, match="input= is for the command line"):
        load(target, {"input": "photos"})
    assert model.module.state_dict().keys() == {"linear.weight", "linear.bias"}


def test_rows_are_predicted_as_the_model_says(cli: Cli, tmp_path: Path) -> None:
    with same_process():
        line = train(epochs=1, name="a", **PLAIN).load()
    weight, bias = (p.detach().double().numpy() for p in line.module.parameters())
    rows = np.array([[1.0, 2.0], [-3.0, 0.5]])
    found = line.predict(rows)
    np.testing.assert_allclose(found.outputs, rows @ weight.T + bias, rtol=1e-6)  # in float32
    assert found.labels is found.indices is found.probabilities is None
    assert np.array_equal(line.predict(rows[1]).outputs, found.outputs[1:])
    assert np.array_equal(line.predict(torch.tensor(rows)).outputs, found.outputs)
    assert np.array_equal(line.predict(torch.tensor(rows, dtype=torch.bfloat16)).outputs, found.outputs)
    for odd in (rows.T[:, :1], [], "photos", np.zeros((2, 3)), None, [[10**400, 1]]):
        with pytest.raises(ConfigError, match=r"2 numbers each|not allowed"):
            line.predict(odd)
    one = train({"data.w": [2.0], "epochs": 1, "name": "b"} | PLAIN).load()
    assert one.predict([1.0, 2.0, 3.0]).outputs.shape == (3, 1)


GREY, COLOUR = np.zeros((5, 6), np.uint8), np.zeros((5, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "channels", "modes"),
    [
        (GREY, 1, ["L"]),
        (GREY[:, :, None], 3, ["L"]),
        (COLOUR, 1, ["RGB"]),
        (np.zeros((5, 6, 4), np.uint8), 3, ["RGBA"]),
        (np.zeros((2, 5, 6), np.uint8), 1, ["L", "L"]),
        (np.zeros((2, 5, 6, 1), np.uint8), 3, ["L", "L"]),
        (torch.zeros(2, 5, 6, 3, dtype=torch.uint8), 1, ["RGB", "RGB"]),
    ],
)
def test_an_array_is_one_image_or_a_batch(given: Any, channels: int, modes: list[str]) -> None:
    images = images_given(given, channels)
    assert [(image.mode, image.size) for image in images] == [(mode, (6, 5)) for mode in modes]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (COLOUR / 255.0, "type float64"),
        (torch.zeros(5, 6), "type float32"),
        (torch.zeros(5, 6, requires_grad=True), "type float32"),
        (torch.zeros(5, 6, dtype=torch.bfloat16), "type bfloat16"),
        (np.zeros((3, 5, 6), np.uint8), r"shape \(3, 5, 6\)"),  # of torchvision's layout, or three grey ones
        (torch.zeros(2, 3, 5, 6, dtype=torch.uint8), "permute"),
        (np.zeros(5, np.uint8), r"shape \(5\)"),
        (np.zeros((0, 5, 6, 3), np.uint8), "no pixels"),
        (None, "NoneType is no image"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        images_given(given, 3)


def test_images_that_cannot_be_read_are_refused_by_name(shapes: Path) -> None:
    model = load("a", outputs="o", checkpoints="c")
    (shapes / "broken.png").write_bytes(b"no picture")
    for given in (str(shapes), [shapes / "broken.png"], []):
        with pytest.raises(ConfigError, match=r"broken\.png: not an image|there is no image in what"):
            model.predict(given)
    with pytest.raises(ConfigError, match="no such file"):
        model.predict("nowhere.png")


@pytest.mark.parametrize(
    "settings",
    [{"modle": "lenet"}, {"model": "lenett"}, {"epochs": True}, {"model": "linreg", "data": "mnist"}, {"resume": "b"}],
)
def test_a_refusal_is_the_one_of_the_command_line(settings: dict[str, Any], cli: Cli) -> None:
    with same_process(), pytest.raises(ConfigError) as refused:
        train(settings)
    assert_refused(cli(*typed(settings)), str(refused.value))
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": {"lr": 1}}, 'Write each setting in it with a dot: "optimizer.NAME"'),
        ("seeds=3", "trains one run"),
        (["-m", "optimizer.lr=0.1,0.2"], "trains one run"),
        (["--cfg", "job"], "trains one run"),
        (["eval", "a"], "eval is a command"),
        ({"epochs": [1, 2]}, r"epochs=\[1, 2\] is not allowed"),
    ],
)
def test_what_is_no_run_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train(given)


def test_other_ends_are_raised_too_and_a_run_that_was_interrupted_can_be_resumed(
    cli: Cli, signal_at: Callable[..., None]
) -> None:
    with pytest.raises(DivergedError):
        train({"optimizer.lr": 1000, "name": "b"} | PLAIN)
    signal_at(7, signal.SIGTERM)
    with same_process(), pytest.raises(Interrupted, match=r"main\.py resume=a continues"):
        train({"name": "a", "record.every_steps": 1} | PLAIN)
    run = train(resume="a")
    assert run.result["status"] == "done"
    assert train(resume="last").result == run.result  # nothing is left to do


def test_other_threads_may_train_and_predict(cli: Cli) -> None:
    ended: list[Any] = []

    def work(name: str) -> None:
        try:
            with signals_waiting():  # as round the start of processes that decode
                ended.append(train({"name": name, "epochs": 1} | PLAIN).load().predict([[0.0, 1.0]]).outputs.item())
        except BaseException as error:
            ended.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    with same_process():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(ended)) == 1, ended
    assert isinstance(ended[0], float)


@contextmanager
def in_float64() -> Iterator[None]:
    """Where a program has chosen float64 for all that it makes."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_a_caller_has_switched_on_in_torch_changes_no_number(cli: Cli) -> None:
    def numbers() -> Any:
        run = train({"epochs": 1} | PLAIN)
        return run.result["test"]["loss"], run.load().predict([[0.1, 0.2]]).outputs.item()

    plain = numbers()
    modes = (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"), in_float64())
    for mode in modes:
        with mode:
            assert numbers() == plain, mode


def test_processes_that_a_caller_starts_meanwhile_are_left_alone(cli: Cli, change_at: Callable[..., None]) -> None:
    began: list[Any] = []

    def start_one() -> None:
        began.append(multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,)))
        began[0].start()

    change_at(5, start_one)
    train({"epochs": 1, "record.every_steps": 1} | PLAIN)
    try:
        began[0].join(0.5)
        assert began[0].is_alive()
    finally:
        began[0].kill()
        began[0].join()


@pytest.mark.parametrize("kind", [ValueError, Interrupted])
def test_processes_that_decode_go_with_the_call_that_started_them(
    kind: type[BaseException], cli: Cli, tmp_path: Path, change_at: Callable[..., None]
) -> None:
    write_class_folders(tmp_path / "p", {"train": 12, "test": 3})
    seen: list[Any] = []

    def fail() -> None:
        seen.extend(multiprocessing.active_children())
        if kind is ValueError:
            raise ValueError
        os.kill(os.getpid(), signal.SIGTERM)

    change_at(2, fail)
    settings = {"data": "folder", "data.root": "p", "data.size": 8, "data.resident": False, "data.workers": 2}
    with same_process(), pytest.raises(kind) as kept:  # as a notebook keeps the last one, with its frames
        train(settings | {"model": "softmax", "batch_size": 4, "record.every_steps": 1} | PLAIN)
    assert len(seen) == 2, kept
    for process in seen:
        process.join(5)
        assert not process.is_alive()


def test_a_working_directory_that_is_gone_is_said(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = train({"epochs": 1} | PLAIN).load()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for call in (train, lambda: load("a"), lambda: model.predict([[0.0, 1.0]])):
        with pytest.raises(ResourceError, match="the working directory of this command was removed"):
            call()


def test_a_python_inside_another_program_has_no_command_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", [])
    assert train({"epochs": 1} | PLAIN).result["status"] == "done"


@pytest.mark.parametrize("backend", ["svg", ""])
def test_plots_of_others_are_drawn_as_before(backend: str) -> None:
    """A notebook names its own way of drawing in MPLBACKEND, and would else show no plot after train()."""
    code = "import trainer.plots.style, matplotlib, os; print(os.environ.get('MPLBACKEND'), matplotlib.get_backend())"
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    environment |= {"MPLBACKEND": backend} if backend else {}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ([backend, backend] if backend else ["None", "agg"])


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    book = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], len({cell["id"] for cell in book["cells"]})) == (4, len(book["cells"]))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"docs/notebook.ipynb, cell {number}", "exec"), names)
    names["plt"].close("all")
    assert names["run"].result["test"]["accuracy"] > 0.8
    assert f"{names['run'].result['test']['accuracy']:.0%} of 60 right" in capsys.readouterr().out
    assert set(names["found"].labels) <= {"flat", "upright", "disc"}
