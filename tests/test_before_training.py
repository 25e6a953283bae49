"""The commands before a training: data, summary and doctor."""

import contextlib
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Cli, assert_refused, write_class_folders

from trainer.commands import doctor, summary
from trainer.run import diagnosis

FEW = ("data.num_examples=60",)


def rows_of(out: str) -> dict[str, list[str]]:
    """{layer: its cells} of the table that summary prints."""
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layer"))
    table = lines[start + 1 : lines.index("", start)]
    return {line.split()[0]: re.split(r"\s{2,}", line)[1:] for line in table}


def test_summary_counts_what_can_be_counted_by_hand(cli: Cli, tiny_mnist: Path) -> None:
    out = cli("summary", "data=mnist", "model=lenet", f"paths.data={tiny_mnist}", "batch_size=50").out
    rows = rows_of(out)
    assert rows["conv1"] == ["Conv2d", "6 x 28 x 28", "156", f"{6 * 28 * 28 * 25:,}"]
    assert rows["conv2"] == ["Conv2d", "16 x 10 x 10", f"{16 * 6 * 25 + 16:,}", f"{16 * 10 * 10 * 6 * 25:,}"]
    assert rows["fc1"] == ["Linear", "120", f"{400 * 120 + 120:,}", f"{400 * 120:,}"]
    assert "parameters       61,706\n" in out
    assert f"multiplications  {117_600 + 240_000 + 48_000 + 10_080 + 840:,} an example" in out
    assert "with batch_size=50" in out
    assert "540 training examples" in out
    assert not Path("outputs").exists()
    assert not Path("checkpoints").exists()


def test_summary_of_memory(cli: Cli, tiny_mnist: Path) -> None:
    """A linear layer keeps its input alone, which is there anyway; Adam keeps two numbers for each weight."""
    words = (
        "summary",
        "data=mnist",
        "model=softmax",
        f"paths.data={tiny_mnist}",
        "batch_size=400",
        "loss=cross_entropy",
    )
    kept = {
        name: float(re.search(rf"{name} ([\d.,]+) MB", cli(*words, *more).out)[1].replace(",", ""))  # type: ignore[index]
        for name, more in (("weights", ()), ("gradients", ()), ("optimizer", ("optimizer=adam",)), ("the batch", ()))
    }
    weights = 7850 * 4 / 1e6
    assert kept["weights"] == pytest.approx(weights, abs=0.06)
    assert kept["gradients"] == pytest.approx(weights, abs=0.06)
    assert kept["optimizer"] == pytest.approx(2 * weights, abs=0.06)
    assert kept["the batch"] == pytest.approx((400 * 784 * 4 + 400 * 8) / 1e6, abs=0.06)


@pytest.mark.parametrize("impl", ["concise", "autograd", "scratch", "numpy"])
def test_summary_and_doctor_of_every_library(cli: Cli, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "NUM_RATES", 12)
    out = cli("summary", f"impl={impl}", *FEW).out
    assert "parameters       3\nmultiplications  2 an example" in out
    outcome = cli("doctor", f"impl={impl}", *FEW, "plots=false")
    assert outcome.code == 0, outcome.err
    assert re.search(r"by heart +10 examples: .*: well", outcome.out)


def test_summary_counts_attention_and_parameters_beside_the_layers() -> None:
    model = torch.nn.Sequential(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.nn.Linear(8, 1))
    parts: Any = SimpleNamespace(model=model, machine=SimpleNamespace(autocast=contextlib.nullcontext))
    layers = {layer.name: layer for layer in summary.layers_of(parts, (torch.zeros(3, 5, 8), torch.zeros(3)))}
    assert layers["0.self_attn"].multiplications == 5 * 8 * 8 * 4 + 2 * 5 * 5 * 8
    assert layers["0.self_attn"].parameters == 4 * 8 * 8 + 4 * 8
    assert layers["0.linear1"].multiplications == 5 * 8 * 16
    assert sum(layer.parameters for layer in layers.values()) == sum(p.numel() for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def test_steps_in_parts_and_clipped_ones_are_measured(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "NUM_RATES", 12)
    monkeypatch.setattr(diagnosis, "MOST_STEPS", 4)
    assert "with batch_size=10" in cli("summary", "accumulate_steps=3", *FEW).out
    found = []
    for words in ((), ("accumulate_steps=3", "clip_norm=0.001")):
        outcome = cli("doctor", *words, "plots=false", *FEW)
        assert outcome.code == 0, outcome.err
        found.append(next(line for line in outcome.out.splitlines() if line.startswith("gradients")))
    assert found[0] == found[1]


def test_a_slow_backbone_stays_slow_in_each_measurement(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(doctor, "of_rates", lambda patient, _: seen.append(patient.fresh(lambda _: 0.1)) or [])
    monkeypatch.setattr(diagnosis, "MOST_STEPS", 2)
    outcome = cli("doctor", "model=mlp", "finetune.backbone_lr=0.1", "optimizer=adam", "plots=false", *FEW)
    assert outcome.code == 0, outcome.err
    assert [group.get("lr_factor", 1) for group in seen[0].optimizer.param_groups] == [1, 0.1]
    assert not seen[0].optimizer.state


def test_summary_says_what_has_no_effect_and_refuses_what_makes_a_run(cli: Cli) -> None:
    assert "warning: epochs has no effect on summary" in cli("summary", "epochs=3", *FEW).out
    assert_refused(cli("summary", "name=a", *FEW), "name= is not for summary: it makes no run")
    assert_refused(cli("doctor", "resume=a", *FEW), "resume= is not for doctor")
    assert_refused(cli("summary", "modl=mlp"), "Did you mean model?", "main.py summary model=mlp")
    assert_refused(cli("doctor", "-m", "optimizer.lr=0.1,0.2"), "-m is for training")


def test_doctor_finds_nothing_wrong_and_changes_nothing(cli: Cli, tiny_mnist: Path) -> None:
    words = ("data=mnist", "model=mlp", "model.num_hiddens=32", f"paths.data={tiny_mnist}", "batch_size=50")
    assert cli(*words, "epochs=1", "plots=false", "name=a").code == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    out = cli("doctor", *words).out
    found = {line[:13].strip(): line[13:] for line in out.splitlines()}
    for head in ("first loss", "by heart", "units", "gradients"):
        assert found[head].endswith("well"), found[head]
    assert "ln 10 = 2.3026" in found["first loss"]
    assert "100% right" in found["by heart"]
    assert "0 of 32 units" in found["units"]
    assert re.search(r"[\d,]+ examples/s: [\d.,]+ s an epoch of 540, .* for epochs=\d+", found["speed"])
    assert "a batch of all 540 fits" in found["memory"]
    rate = float(re.match(r"optimizer.lr=([\d.e-]+) to begin with", found["rate"])[1])  # type: ignore[index]
    assert 0.005 <= rate <= 1
    after = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    plot = Path("outputs/doctor-mnist-mlp.png")
    assert set(after) - set(before) == {plot}
    assert {path: after[path] for path in before} == before
    assert cli(*words, "epochs=2", f"optimizer.lr={rate:g}", "plots=false", "name=b").code == 0


def test_doctor_finds_what_is_wrong(cli: Cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "MOST_STEPS", 60)
    monkeypatch.setattr(diagnosis, "NUM_RATES", 20)
    words = ("doctor", "data=mnist", "model=mlp", f"paths.data={tiny_mnist}", "batch_size=50", "plots=false")
    sick = cli(*words, "model.num_hiddens=[16,16,16,16]", "model.activation=sigmoid", "optimizer.lr=1e-6").out
    assert re.search(r"by heart .*not learnt: .*Look at optimizer.lr", sick)
    assert "vanishing" in next(line for line in sick.splitlines() if line.startswith("gradients"))
    wild = cli(*words, "model.init_std=30", "model.activation=sigmoid").out
    assert "too large. Look at model.init_std" in wild
    assert re.search(r"units .*most of .*Look at model.init_std", wild)


def test_dead_units_are_counted(cli: Cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = doctor.new_parts

    def killed(*args: object) -> object:
        parts = original(*args)  # type: ignore[arg-type]
        with torch.no_grad():
            first = next(m for m in parts.model.modules() if isinstance(m, torch.nn.Linear))
            first.bias[:9] = -1e6  # never above 0
        return parts

    monkeypatch.setattr(doctor, "new_parts", killed)
    monkeypatch.setattr(diagnosis, "NUM_RATES", 12)
    words = ("data=mnist", "model=mlp", "model.num_hiddens=16", f"paths.data={tiny_mnist}", "plots=false")
    line = next(line for line in cli("doctor", *words).out.splitlines() if line.startswith("units"))
    assert "9 of 16 units have no gradient" in line
    assert "Look at" in line


def test_doctor_with_images_of_ones_own_batch_norm_and_augmentation(cli: Cli, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "shapes", {"train": 24, "test": 6})
    words = ("data=folder", f"data.root={root}", "data.size=16", "data.augment=[flip,color]", "model=resnet18")
    small = ("batch_size=8", "plots=false", "optimizer=adam")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "MOST_STEPS", 4)
        patch.setattr(diagnosis, "NUM_RATES", 10)
        outcome = cli("doctor", *words, *small)
    assert outcome.code == 0, outcome.err
    assert "ln 3 = 1.0986" in outcome.out
    out = cli("summary", *words, *small).out
    assert "BatchNorm2d" in out
    assert not Path("outputs").exists() or not list(Path("outputs").iterdir())


def test_a_rate_is_suggested_from_the_curve() -> None:
    rates = [10**exponent for exponent in torch.linspace(-6, 1, 60).tolist()]
    valley = [(rate, 2.3 - math.exp(-((math.log10(rate) + 0.5) ** 2))) for rate in rates]
    assert diagnosis.suggested(valley) == pytest.approx(0.03)
    assert diagnosis.suggested([(rate, 2.3) for rate in rates]) is None
    assert diagnosis.suggested(valley[:3]) is None


def test_data_show_counts_and_draws(cli: Cli, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "shapes", {"train": 24, "test": 6})
    shutil.rmtree(root / "train" / "class1")
    (root / "train" / "class1").mkdir()
    shutil.copy(root / "test" / "class1" / "0001.png", root / "train" / "class1")
    outcome = cli("data", "show", "folder", f"data.root={root}", "data.augment=flip", "data.val_fraction=0")
    assert outcome.code == 0, outcome.err
    assert "examples     17 train, 6 test, each 3 x 32 x 32" in outcome.out
    counts = [line.split() for line in outcome.out.splitlines() if line.startswith("class")]
    assert counts == [
        ["class", "train", "test"], ["class0", "8", "2"], ["class1", "1", "2"], ["class2", "8", "2"]
    ]  # fmt: skip
    assert "some classes are much rarer" in outcome.out
    assert {path.name for path in Path("outputs").iterdir()} == {"data-folder.png", "data-folder-batch.png"}
    shutil.rmtree("outputs")
    words = ("data", "show", "folder", f"data.root={root}")
    outcome = cli(*words, "plots=false")
    assert not Path("outputs").exists() or not list(Path("outputs").iterdir())
    assert "warning" not in outcome.out + outcome.err
    assert "plot         there" in cli(*words, "paths.outputs=there").out.replace("\\", "/")
    out = cli("data", "show", "synthetic").out
    assert re.search(r"train targets +from -?[\d.]+ to [\d.]+", out)
    assert "the examples are rows" in out


def test_data_where_verify_and_fetch(cli: Cli, tiny_mnist: Path) -> None:
    assert "main.py data fetch mnist downloads it" in cli("data", "where", "mnist").out
    assert_refused(cli("data", "verify", "mnist"), "is missing.", "data fetch mnist downloads it")
    where = f"paths.data={tiny_mnist}"
    assert cli("data", "where", "mnist", where).out.count(" MB\n") == 4
    assert "its files are the published ones" in cli("data", "verify", "mnist", where).out
    file = tiny_mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert_refused(cli("data", "verify", "mnist", where), "t10k-images-idx3-ubyte")
    (tiny_mnist / "cifar10").mkdir()  # nothing is in it: it would be downloaded
    assert_refused(cli("data", "verify", "cifar10", where), "is missing.", f"data fetch cifar10 {where} downloads it")
    (tiny_mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    assert f"data fetch mnist {where} downloads it" in cli("data", "where", "mnist", where).out  # a part of it
    assert "made by the program" in cli("data", "where", "synthetic").out
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("data",), "main.py data show mnist"),
        (("data", "shwo", "mnist"), "Did you mean show?"),
        (("data", "show", "mnits"), "Did you mean data=mnist?"),
        (("data", "show", "mnist", "cifar10"), "the name of one set"),
        (("data", "show", "mnist", "name=x"), "name= is not for data"),
        (("data", "show", "mnist", "data.sise=3"), "Did you mean data.size?"),
    ],
)
def test_data_refuses_what_it_cannot_do(cli: Cli, words: tuple[str, ...], said: str) -> None:
    assert_refused(cli(*words), said)
