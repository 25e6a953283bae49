"""export and bench: a file that other programs read, compared with the model; and how long the model takes."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli, Outcome, assert_refused, predictions, write_class_folders
from PIL import Image

from trainer import load
from trainer.commands import bench, export
from trainer.run import formats
from trainer.run.safe_load import read_checkpoint, read_weights
from trainer.utils.files import read_csv

onnxruntime = pytest.importorskip("onnxruntime")

QUICK = ("plots=false", "device=cpu", "epochs=1", "name=a")
HOSTILE = ["'); import os #", "caf\u00e9 \u2028 {x}", 'a"b\\c \x1b[2J', "\udcff"]
EQUAL = "labels are equal, the probabilities differ by at most "


def exported(cli: Cli, *words: str) -> str:
    """What export prints of the run a."""
    outcome = cli("export", "a", *words)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    return outcome.out


def about_in(path: Path) -> Any:
    """What travels with an ONNX file."""
    return json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["about"])


def use(script: Path, *arguments: str) -> list[str]:
    """The lines that the script prints in a process of its own, in its own folder."""
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    words = [sys.executable, script.name, *arguments]
    done = subprocess.run(words, cwd=script.parent, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def photos(cli: Cli, tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "photos", {"train": 24, "test": 9})


OF_PHOTOS = ("data=folder", "data.root=photos", "data.size=16", *QUICK)
PLUGIN = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self, in_shape, num_outputs, decides):
        super().__init__()
        self.fc, self.decides = nn.Linear(in_shape[0], num_outputs), decides

    def forward(self, x):
        x = x.mean((2, 3))
        if self.decides == "by value" and x.sum() > 0:
            return self.fc(x + 1)
        if self.decides == "by size":
            return torch.stack([self.fc(row) for row in x])
        return self.fc(x)

def odd(in_shape, num_outputs, decides="nothing"):
    return Odd(in_shape, num_outputs, decides)

MODELS = {"odd": odd}
"""
FAMILIES = {
    "linreg": (),
    "regression mlp": ("model=mlp", "loss=mse"),
    "softmax": (*OF_PHOTOS, "model=softmax"),
    "mlp": (*OF_PHOTOS, "model=mlp", "model.num_hiddens=[8]", "loss=sigmoid_cross_entropy"),
    "lenet": (*OF_PHOTOS, "model=lenet", "data.channels=1", "data.size=28"),
    "convnet": (*OF_PHOTOS, "model=convnet", "model.layers=[conv4x3,max2,fc8]", "model.dropout=0.5"),
    "resnet18": (*OF_PHOTOS, "model=resnet18", "data.limit=6", "data.eval_limit=4"),
}
LIKE_OTHERS = ("regression mlp", "softmax", "lenet", "convnet")  # what they are made of is in the others


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name in LIKE_OTHERS else name for name in FAMILIES]
)
def test_the_file_computes_what_the_model_does(family: str, photos: Path, cli: Cli) -> None:
    outcome = cli(*QUICK, *FAMILIES[family])
    assert outcome.code == 0, outcome.err
    out = exported(cli)
    assert "compared with the model in float32, read back by onnxruntime" in out
    module, session = (
        load("a", {"device.precision": "fp32"}),
        onnxruntime.InferenceSession(Path("outputs/a/export/a.onnx")),
    )
    [given] = session.get_inputs()
    assert given.shape == ["N", *module.in_shape]
    generator = np.random.default_rng(0)
    for n in (1, 3):  # by the module's own formula, whatever was compared
        if len(module.in_shape) == 1:
            x = generator.normal(size=(n, *module.in_shape)).astype(np.float32)
            expected = module.predict(x).outputs
        else:
            x = generator.integers(0, 256, (n, *module.in_shape), dtype=np.uint8)
            expected = module.predict(x.transpose(0, 2, 3, 1)).probabilities
            assert EQUAL in out
        np.testing.assert_allclose(session.run(None, {given.name: x})[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["alexnet", "mobilenet_v3_small", "vit_b_16", "googlenet"])
def test_torchvision_models_are_exported(arch: str, photos: Path, cli: Cli) -> None:
    size = {"alexnet": 64, "vit_b_16": 224}.get(arch, 96)
    words = ("data.limit=4", "data.eval_limit=4", "batch_size=4", "model=torchvision", f"model.arch={arch}")
    assert cli(*OF_PHOTOS, *words, f"data.size={size}").code == 0
    assert "4 of 4 " + EQUAL in exported(cli)
    assert "4 of 4 " + EQUAL in exported(cli, "format=torch_export")


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_the_script_says_what_predict_says(kind: str, photos: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli(*OF_PHOTOS, "model=softmax", "data.fit=pad", "data.augment=resized_crop", "epochs=3").code == 0
    (tmp_path / "more").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("more/-tall photo.png")
    Image.fromarray(pixels[:9]).save("more/wide.png")
    for i in range(3):
        (tmp_path / "more" / f"class{i}.png").write_bytes(Path(f"photos/test/class{i}/{i:04d}.png").read_bytes())
    assert cli("predict", "a", "more", "plots=false").code == 0
    said = read_csv(predictions())
    out = exported(cli, f"format={kind}")
    script = Path("outputs/a/export/use.py").resolve()
    assert script.read_text(encoding="utf-8").splitlines() == out.partition("this program:\n\n")[2].splitlines()
    assert "trainer" not in script.read_text(encoding="utf-8")
    files = [str(Path(row["input"]).resolve()) for row in said]
    expected = [
        f"{file} {row['class']!r} {float(row['probability']):.0%}" for file, row in zip(files, said, strict=True)
    ]
    assert use(script, *files) == expected
    assert len({row["class"] for row in said}) > 1


def test_the_script_reads_a_table(cli: Cli, houses: Path, tmp_path: Path) -> None:
    table = ("data=table", "data.path=houses.csv", *QUICK)
    for target, words in (("price", ("model=linreg",)), ("city", ("model=mlp",))):
        assert cli(*table, f"data.target={target}", *words, "overwrite=true").code == 0
        assert cli("predict", "a", "houses.csv", "plots=false").code == 0
        said = read_csv(predictions())
        out = exported(cli)
        lines = use(Path("outputs/a/export/use.py").resolve(), str(houses))
        if target == "price":
            assert "numbers differ by at most" in out
            np.testing.assert_allclose([float(x) for x in lines], [float(row["prediction"]) for row in said], rtol=1e-5)
        else:
            found = [row["prediction"] for row in said]
            assert [line.rpartition(" ")[0] for line in lines] == [repr(city) for city in found]
            assert EQUAL in out


@pytest.mark.parametrize("separator", [";", "\t"])
def test_the_script_reads_other_separators_and_names_with_spaces(separator: str, cli: Cli, tmp_path: Path) -> None:
    rows = [f"{i},{['a', 'b'][i % 2]},{3 * i}" for i in range(60)]
    text = "\n".join([" area , kind,price", *rows]) + "\n"
    (tmp_path / "t.csv").write_text("\n" + text.replace(",", separator), encoding="utf-8")
    assert cli("data=table", "data.path=t.csv", "data.target=price", "model=linreg", *QUICK).code == 0
    assert cli("predict", "a", "t.csv", "plots=false").code == 0
    exported(cli)
    script = Path("outputs/a/export/use.py").resolve()
    said = [float(row["prediction"]) for row in read_csv(predictions())]
    np.testing.assert_allclose([float(x) for x in use(script, str(tmp_path / "t.csv"))], said, rtol=1e-5)
    (tmp_path / "less.csv").write_text("area\n1\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script, "less.csv"], capture_output=True, encoding="utf-8", check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (1, "columns that are not in the file: ['kind']\n")


@pytest.fixture
def houses(tmp_path: Path) -> Path:
    """price = 3 area + 1,000,000 (in Paris); cells are missing in each column."""
    rows = [
        f"{'' if i % 7 == 0 else i},{['Paris', 'Rome, Italy', ''][i % 3]},{3 * i + 10**6 * (i % 3 == 0)}"
        for i in range(60)
    ]
    quoted = [row.replace("Rome, Italy", '"Rome, Italy"') for row in rows]
    (tmp_path / "houses.csv").write_text("\n".join(["area,city,price", *quoted]) + "\n", encoding="utf-8")
    return tmp_path / "houses.csv"


def test_the_script_takes_rows(cli: Cli) -> None:
    assert cli(*QUICK).code == 0
    exported(cli, "format=torch_export")
    [line] = use(Path("outputs/a/export/use.py").resolve(), "-1,2.5")
    name, value = line.split()
    assert name == "-1,2.5"
    assert float(value) == pytest.approx(load("a").predict([[-1, 2.5]]).outputs.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["onnx", pytest.param("torch_export", marks=pytest.mark.slow), "safetensors"])
def test_names_of_classes_may_hold_anything(kind: str, cli: Cli, tmp_path: Path) -> None:
    for k, name in enumerate(HOSTILE):
        folder = Path(os.fsdecode(os.fsencode(tmp_path)), "photos", name)
        folder.mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (60 * k, 200, 9)).save(folder / f"{i}.png")
    assert cli(*OF_PHOTOS, "data.size=8", "data.test_fraction=0.2", "model=softmax").code == 0
    out = exported(cli, f"format={kind}")
    script = Path("outputs/a/export/use.py").resolve()
    if kind == "safetensors":
        from safetensors import safe_open

        with safe_open(script.with_name("a.safetensors"), "pt") as file:
            assert sorted(json.loads(file.metadata()["about"])["classes"]) == sorted(HOSTILE)
        assert use(script)[1:] == ["linear.bias [4]", "linear.weight [4, 192]"]
        return
    assert EQUAL in out
    image = tmp_path / "photos" / HOSTILE[0] / "0.png"
    [line] = use(script, str(image))
    assert any(line.startswith(f"{image} {name!r} ") for name in HOSTILE)


def test_what_travels_with_it(photos: Path, cli: Cli) -> None:
    assert cli(*OF_PHOTOS, "model=softmax").code == 0
    exported(cli)
    about, content = about_in(Path("outputs/a/export/a.onnx")), read_checkpoint(Path("checkpoints/a/best.pt"))
    result = json.loads(Path("outputs/a/result.json").read_text(encoding="utf-8"))
    assert about["test"] == result["test"]
    assert about["classes"] == ["class0", "class1", "class2"]
    assert (about["run"], about["data"], about["in_shape"]) == ("a", "folder", [3, 16, 16])
    assert [about["mean"], about["std"]] == [content["preprocess"][key] for key in ("mean", "std")]
    looks = json.loads(Path("outputs/a/test.json").read_text(encoding="utf-8"))["looks"]
    assert looks == 1  # no label was looked at
    Path("outputs/a/result.json").write_bytes(b"{")
    exported(cli)
    assert "test" not in about_in(Path("outputs/a/export/a.onnx"))


def test_weights_are_those_that_are_measured_and_come_back(photos: Path, cli: Cli) -> None:
    assert cli(*OF_PHOTOS, "model=resnet18", "data.limit=6", "data.eval_limit=4", "ema_decay=0.9", "epochs=2").code == 0
    assert "4 of 4 " + EQUAL in exported(cli, "format=safetensors")
    path = Path("outputs/a/export/a.safetensors")
    weights, content = read_weights(path)[0], read_checkpoint(Path("checkpoints/a/best.pt"))
    assert weights.keys() == content["ema"].keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in content["ema"].items())
    words = ("model=resnet18", "data.limit=6", "data.eval_limit=4", "fast_dev_run=true")
    for i, key in enumerate(("init_from", "model.weights")):
        outcome = cli(*OF_PHOTOS, *words, f"{key}={path}", f"name=b{i}")
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    "words", [["impl=scratch"], ["impl=numpy"], ["impl=autograd"], ["device.precision=bf16"], ["device.precision=fp64"]]
)
def test_other_libraries_and_precisions_become_torch_s_in_float32(words: list[str], photos: Path, cli: Cli) -> None:
    assert cli(*OF_PHOTOS, "model=mlp", "model.num_hiddens=[8]", *words).code == 0
    assert "9 of 9 " + EQUAL in exported(cli, "format=torch_export")
    program = torch.export.load(Path("outputs/a/export/a.pt2"))
    assert {tensor.dtype for tensor in program.state_dict.values()} == {torch.float32}


def test_a_network_of_one_s_own(photos: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(PLUGIN, encoding="utf-8")
    words = ("plugins=[odd.py]", "model=odd")
    assert cli(*OF_PHOTOS, *words).code == 0
    assert EQUAL in exported(cli, "plugins=[odd.py]")
    assert_refused(cli("export", "a"), "plugins=[odd.py]")
    for decides, why in (("by value", "data-dependent"), ("by size", "it takes batches of one size only. ")):
        assert cli(*OF_PHOTOS, *words, f"model.decides={decides}", "overwrite=true").code == 0
        outcome = cli("export", "a", "plugins=[odd.py]")
        assert_refused(outcome, "torch.export cannot make a graph of this model: ", why, "format=safetensors takes the")
        assert len(outcome.err.splitlines()) == 1
    assert EQUAL in exported(cli, "plugins=[odd.py]", "format=safetensors")


def test_a_file_that_computes_something_else_is_said_to_and_kept(
    photos: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*OF_PHOTOS, "model=softmax").code == 0
    read = formats.read_program
    for change in (lambda y: y + 0.001, lambda y: y.flip(1), lambda y: y * math.nan, lambda y: y + (len(y) == 7)):
        form = formats.Format(".pt2", "torch", formats.write_program, lambda p, _: lambda x: change(read(p)(x)))  # noqa: B023
        monkeypatch.setitem(export.EXPORT_FORMATS, "torch_export", form)
        outcome = cli("export", "a", "format=torch_export")
        assert outcome.code == 1
        assert "does not compute what the model does" in outcome.err
        assert "The file is kept" in outcome.err
        assert Path("outputs/a/export/a.pt2").is_file()


def test_it_goes_without_the_data(photos: Path, cli: Cli, tiny_mnist: Path) -> None:
    assert cli(*OF_PHOTOS, "model=softmax").code == 0
    photos.rename("moved")
    out = exported(cli, "format=torch_export")
    assert "100 of 100 " + EQUAL in out
    assert "on random inputs, since the data cannot be read: " in out
    assert "on 9 test images, in batches of 1, 7, 9" in exported(cli, "format=torch_export", "data.root=moved")
    assert cli("data=mnist", "model=softmax", f"paths.data={tiny_mnist}", *QUICK, "overwrite=true").code == 0
    assert "on 100 test images" in exported(cli, "format=torch_export")
    out = exported(cli, "format=torch_export", "paths.data=nowhere")  # nothing is downloaded for it
    assert "on random inputs: mnist is not in nowhere" in out


def test_what_cannot_be_exported_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*QUICK).code == 0
    assert_refused(cli("export"), "export needs a run")
    assert_refused(cli("export", "b"), "b: there is no run of this name")
    assert_refused(cli("export", "a", "format=onx"), "Did you mean format=onnx?", "main.py export a format=onnx")
    assert_refused(cli("export", "a", "epochs=3"), "epochs=3: export takes runs, format=, output=")
    assert_refused(cli("export", "[a,a:last]"), "export takes one run")
    assert_refused(cli("export", "a", "output=a.pt"), "has to end in .onnx")
    assert_refused(cli("export", "a", "output=no/a.onnx", "format=torch_export"), "has to end in .pt2")
    out = exported(cli, "output=there.pt2", "format=torch_export")
    assert f"written  there.pt2 ({Path('there.pt2').stat().st_size / 1000:.0f} kB, (N, 2) float32 -> (N, 1) n" in out
    assert_refused(cli("export", "a", "output=there.pt2", "format=torch_export"), "there.pt2 exists already")
    assert_refused(cli("export", "a", "output=new.pt2", "format=torch_export"), "use.py exists already")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(cli("export", "a"), "format=onnx needs onnx, onnxscript, onnxruntime.", "requirements-export.txt")
    best = Path("checkpoints/a/best.pt")
    content = best.read_bytes()
    best.unlink()  # the step file may be the same one
    best.write_bytes(content[: len(content) // 2])
    assert_refused(cli("export", "a", "format=safetensors"), "best.pt is damaged")
    best.unlink()
    assert_refused(cli("export", "a", "format=safetensors"), "has no best.pt")
    assert "a-last.safetensors" in cli("export", "a:last", "format=safetensors").out


def test_weights_that_onnx_has_no_room_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*QUICK).code == 0
    monkeypatch.setattr(formats, "MOST_OF_ONNX", 11)
    assert_refused(cli("export", "a"), "the weights have 0.00 GB", "format=torch_export or format=safetensors")
    assert not Path("outputs/a/export").exists()


def test_a_checkpoint_from_elsewhere(photos: Path, cli: Cli) -> None:
    assert cli(*OF_PHOTOS, "model=softmax").code == 0
    Path("checkpoints/a/best.pt").rename("theirs.pt")
    Path("outputs").rename("gone")
    outcome = cli("export", "theirs.pt", "format=torch_export")
    assert outcome.code == 0, outcome.err
    assert "on random inputs: the file does not say where its data is" in outcome.out
    assert Path("outputs/eval-theirs/export/a.pt2").is_file()


def bench_of(outcome: Outcome) -> Any:
    assert outcome.code == 0, outcome.err
    return json.loads(Path("outputs/a/bench.json").read_text(encoding="utf-8"))


def test_bench_times_batches(photos: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECONDS_EACH", 0.0)
    assert cli(*OF_PHOTOS, "model=softmax").code == 0
    outcome = cli("bench", "a", "device=cpu", "device.num_threads=1")
    told = bench_of(outcome)
    assert [row["batch"] for row in told["torch"]] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    for row in told["torch"]:
        assert row["times"] >= 10
        assert row["quartiles"][0] <= row["median"] <= row["quartiles"][1]
        assert row["per_second"] == pytest.approx(row["batch"] / row["median"])
    assert (told["threads"], told["device"], "onnx" in told) == (1, "cpu", False)
    assert "1 thread" in outcome.out
    best = max(told["torch"], key=lambda row: row["per_second"])
    assert f"torch: {best['per_second']:,.0f} images/s at best, in batches of {best['batch']}" in outcome.out
    exported(cli)
    assert len(bench_of(cli("bench", "a"))["onnx"]) == 9
    assert_refused(cli("bench", "a", "device=gpu"), "device=gpu")


def test_bench_stops_before_it_takes_too_long_or_too_much(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*QUICK).code == 0
    monkeypatch.setattr(bench, "SECONDS_EACH", 0.0)
    monkeypatch.setattr(bench, "SECONDS_MOST", 0.0)
    outcome = cli("bench", "a")
    assert [row["batch"] for row in bench_of(outcome)["torch"]] == [1]  # the first one is always measured
    assert "a batch of 2 takes more than 0 s: it and larger ones are left out" in outcome.out
    used = iter([0, 0, 10, 20, 40, 2**40])
    monkeypatch.setattr(bench, "SECONDS_MOST", 2.0)
    monkeypatch.setattr(bench, "peak_memory", lambda: next(used))
    outcome = cli("bench", "a")
    assert [row["batch"] for row in bench_of(outcome)["torch"]] == [1, 2, 4, 8]
    assert "batches of 16 may not fit into the memory" in outcome.out


def test_bench_says_where_times_cannot_be_trusted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*QUICK).code == 0
    for times, warned in (([1.0, 1.1, 1.2, 1.1] * 3, False), ([1.0, 1.1, 2.2, 2.1] * 3, True)):
        monkeypatch.setattr(bench, "times_of", lambda *_, times=times: times)
        outcome = cli("bench", "a")
        assert ("warning: times of the same batch differ by half" in outcome.out) == warned
        assert bench_of(outcome)["torch"][0]["median"] == pytest.approx(sorted(times)[5] / 2 + sorted(times)[6] / 2)
