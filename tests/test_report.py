"""report.html: what stands on the page, that nothing in a name becomes markup, and that it works in a browser."""

import base64
import importlib.util
import json
import re
import struct
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, assert_refused, write_class_folders
from PIL import Image

from trainer.plots.page import markup
from trainer.plots.page.charts import curve, ends_of_shares
from trainer.plots.page.png import png_of, shrunk
from trainer.run.report.inside import Convolutions
from trainer.utils.text import one_line

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bokeh") is None, reason="needs bokeh: requirements.txt")
BAD = """</script><script>alert(1)</script>"><img src=x onerror=alert(2)>'{{x}}$$x$$"""
QUICK = ("plots=false", "report=true", "device.num_threads=1")
MNIST = ("data=mnist", "batch_size=50", "data.normalize=own", *QUICK)
MOST = 3_000_000


class Page(HTMLParser):
    """What a browser would find on a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.bytes = path.read_bytes()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.inside = ""
        self.feed(self.bytes.decode("utf-8"))
        self.close()
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def ids(self) -> list[str | None]:
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]


def check(page: Page) -> None:
    """What holds of each page: its size, its scripts, and that it names no address."""
    assert len(page.bytes) < MOST
    kinds = [attrs.get("type") for tag, attrs in page.tags if tag == "script"]
    assert kinds == ["application/json", None, None, None]  # data, the library, its interface, our own
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")], tag
        assert not {"src", "srcset", "action", "integrity"} & attrs.keys(), tag
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        if "href" in attrs:
            assert re.fullmatch(r"#[\w-]+|\d+/report\.html", attrs["href"] or ""), attrs["href"]
    ours = " ".join([*page.texts, page.scripts[0], page.scripts[-1]])
    assert not re.search(r"https?://(?!127)", ours)
    [policy] = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert all(address.startswith("data:image/png;base64,") for address in page.data["images"])
    assert [a["data-chart"] for _, a in page.tags if "data-chart" in a] == list(page.data["charts"])


@pytest.fixture
def report_of(cli: Cli, tmp_path: Path) -> Any:
    """report_of(*words): trains with a report, and reads and checks its page."""

    def made(*words: str, name: str = "a") -> Page:
        outcome = cli(*QUICK, f"name={name}", *words)
        assert outcome.code == 0, outcome.err
        assert "warning: without report" not in outcome.out
        page = Page(tmp_path / "outputs" / name / "report.html")
        check(page)
        return page

    return made


def test_a_classifier_of_images_has_everything(report_of: Any, cli: Cli, tiny_mnist: Path) -> None:
    page = report_of(*MNIST, f"paths.data={tiny_mnist}", "model=lenet", "epochs=2")
    parts = ("loss", "accuracy", "confusion", "mistakes", "classes", "calibration", "filters", "rate", "origin")
    assert {*parts, "settings"} - {"mistakes"} <= set(page.ids())
    result = json.loads(Path("outputs/a/result.json").read_text(encoding="utf-8"))
    assert f"{100 * result['test']['accuracy']:.2f} %" in page.text
    test = json.loads(Path("outputs/a/test.json").read_text(encoding="utf-8"))
    counts: dict[str, int] = {}
    for true, predicted in zip(test["true"], test["predicted"], strict=True):
        counts[f"{true}-{predicted}"] = counts.get(f"{true}-{predicted}", 0) + 1
    buttons = [attrs["data-cell"] for tag, attrs in page.tags if tag == "button" and "data-cell" in attrs]
    assert sorted(map(str, buttons)) == sorted(counts)  # a button for each cell that has examples
    assert set(page.data["cells"]) == set(counts)
    assert all(0 < len(images) <= counts[cell] for cell, images in page.data["cells"].items())
    rows = [json.loads(row) for row in Path("outputs/a/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train, val, _ = page.data["charts"]["loss"]["layers"]
    assert train["y"] == [row["train_loss"] for row in rows]
    assert val["y"] == [row["val_loss"] for row in rows]
    assert "rerun a" in page.text
    before = page.data
    assert cli("report", "a", f"paths.data={tiny_mnist}").code == 0  # measured again: the same
    assert Page(Path("outputs/a/report.html")).data == before
    assert json.loads(Path("outputs/a/test.json").read_text(encoding="utf-8"))["looks"] == 1


def test_axes_of_shares_end_at_one(report_of: Any, tiny_mnist: Path) -> None:
    page = report_of(*MNIST, f"paths.data={tiny_mnist}", "model=softmax", "epochs=1")
    low, high = page.data["charts"]["accuracy"]["range"]
    [train, val, _] = page.data["charts"]["accuracy"]["layers"]
    assert low < min(*train["y"], *val["y"]) <= max(*train["y"], *val["y"]) < high <= 1.1
    assert ends_of_shares([curve("", [1], [0.5])]) == [0.49, 0.51]
    assert ends_of_shares([curve("", [1, 2], [0.0, 1.0])]) == pytest.approx([-0.02, 1.02])
    assert ends_of_shares([curve("", [1], [None])]) == []


def test_the_page_of_a_run_that_is_continued_is_of_all_its_epochs(report_of: Any, cli: Cli) -> None:
    report_of("epochs=1")
    assert cli("resume=a", "epochs=2", "plots=false").code == 0
    page = Page(Path("outputs/a/report.html"))
    assert page.data["charts"]["loss"]["layers"][0]["x"] == [1, 2]
    assert cli("resume=a", "epochs=3", "report=false").code == 0
    assert not Path("outputs/a/report.html").exists()


def test_the_default_writes_one_beside_the_plots_and_none_without_them(cli: Cli) -> None:
    outcome = cli("name=a", "epochs=1")
    assert "report       outputs/a/report.html" in outcome.out
    check(Page(Path("outputs/a/report.html")))
    assert cli("name=b", "epochs=1", "plots=false").code == 0
    assert cli("name=c", "epochs=1", "report=false").code == 0
    assert [path.parent.name for path in Path("outputs").glob("*/report.html")] == ["a"]


def test_a_sweep_has_one_page_and_its_jobs_none(cli: Cli) -> None:
    words = ("-m", "name=s", "epochs=1", "data.num_examples=60", "optimizer.lr=0.01,0.1", "batch_size=5,10", "seed=0,1")
    outcome = cli(*words)
    assert outcome.code == 0, outcome.err
    assert "report       outputs/s/report.html" in outcome.out
    assert [*Path("outputs").rglob("report.html")] == [Path("outputs/s/report.html")]
    page = Page(Path("outputs/s/report.html"))
    check(page)
    assert {"means", "option0", "option1", "parallel", "curve-train_loss", "jobs"} <= set(page.ids())
    [lines, _] = page.data["charts"]["parallel"]["layers"]
    assert len(lines["lines"]) == 8
    assert all(len(line) == 3 and all(0 <= height <= 1 for height in line) for line in lines["lines"])
    assert cli("report", "s").code == 0
    again = Page(Path("outputs/s/report.html"))
    assert again.data == page.data
    assert cli("report", "s/0").code == 0  # of a job too, to which the table then leads
    assert cli("report", "s").code == 0
    assert [a["href"] for t, a in Page(Path("outputs/s/report.html")).tags if t == "a" and "/" in str(a["href"])] == [
        "0/report.html"
    ]


def test_a_table_shows_numbers_and_coefficients_and_its_names_are_text(report_of: Any, tmp_path: Path) -> None:
    lines = [f'{i},"{BAD.replace(chr(34), chr(34) * 2) if i % 2 else "flat"}",{3 * i + i % 2}' for i in range(60)]
    bad = "<b>price</b>"
    (tmp_path / "h.csv").write_text(f"area,kind,{bad}\n" + "\n".join(lines), encoding="utf-8")
    page = report_of("data=table", "data.path=h.csv", f"data.target='{bad}'", "model=linreg")
    assert {"numbers", "errors", "coefficients"} <= set(page.ids())
    assert not {"b", "img"} & {tag for tag, _ in page.tags}
    assert bad in page.text
    assert len(page.data["charts"]["predicted"]["layers"][0]["x"]) == 12  # a fifth of the rows


def test_class_and_file_names_cannot_become_markup(report_of: Any, tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(2)>'\"$$x$$ \u202e\u4e2d"
    for part in ("train", "test"):
        for kind in (bad, "plain"):
            folder = tmp_path / "pictures" / part / kind
            folder.mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (90, 20 + i), (40 * i, 0, 255 if kind == bad else 0)).save(folder / f"<i>{i}.png")
    words = ("data=folder", "data.root=pictures", "data.size=80", "model=softmax", "epochs=1", "batch_size=4")
    page = report_of(*words, "data.val_fraction=0", "data.resident=false")
    assert one_line(bad) in page.text
    assert "\u202e" not in page.text  # it would turn the rest of a line round
    assert not {"i"} & {tag for tag, _ in page.tags}
    assert all(set(attrs) <= {"data-image", "alt"} for tag, attrs in page.tags if tag == "img")
    sizes = [struct.unpack(">II", decoded(address)[16:24]) for address in page.data["images"]]
    assert max(max(size) for size in sizes) <= 96


def test_of_many_classes_the_pairs_that_are_confused_are_listed(report_of: Any, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "p", {"train": 80, "test": 120}, num_classes=40)
    page = report_of("data=folder", "data.root=p", "model=softmax", "epochs=1", "data.size=16", "data.val_fraction=0")
    test = json.loads(Path("outputs/a/test.json").read_text(encoding="utf-8"))
    wrong = Counter((t, p) for t, p in zip(test["true"], test["predicted"], strict=True) if t != p)
    buttons = [attrs["data-cell"] for tag, attrs in page.tags if tag == "button" and "data-cell" in attrs]
    pairs = [tuple(map(int, str(cell).split("-"))) for cell in buttons]
    assert [wrong[t, p] for t, p in pairs] == [count for _, count in wrong.most_common(60)]
    assert len({*pairs}) == len(pairs)
    assert all(page.data["cells"][str(cell)] for cell in buttons)


def decoded(address: str) -> bytes:
    return base64.b64decode(address.partition(",")[2])


@pytest.mark.parametrize("impl", ["scratch", "numpy"])
def test_other_libraries_have_a_page_too(report_of: Any, tiny_mnist: Path, impl: str) -> None:
    model = "lenet" if impl == "scratch" else "mlp"
    page = report_of(
        *MNIST, f"paths.data={tiny_mnist}", f"model={model}", "epochs=1", f"impl={impl}", "schedule=constant"
    )
    assert "confusion" in page.ids()
    assert "filters" in page.ids()
    assert "maps" not in page.ids()  # torch computes no convolution there


def test_a_run_that_diverged_and_one_whose_data_is_gone_have_a_page(cli: Cli, tmp_path: Path) -> None:
    assert cli("name=d", "optimizer.lr=900", "epochs=2", *QUICK).code == 3
    assert not Path("outputs/d/report.html").exists()
    assert cli("report", "d").code == 0
    page = Page(Path("outputs/d/report.html"))
    check(page)
    assert "DivergedError: diverged in epoch" in page.text
    (tmp_path / "h.csv").write_text("a,b\n" + "\n".join(f"{i},{2 * i}" for i in range(40)), encoding="utf-8")
    words = ("data=table", "data.path=h.csv", "data.target=b", "model=linreg", "epochs=1", "name=g")
    assert cli(*words, *QUICK).code == 0
    for file, field in (("result.json", "weight"), ("result.json", "coefficients")):  # shown from the weights
        path = tmp_path / "outputs" / "g" / file
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {field: 3}), encoding="utf-8")
    for path in (tmp_path / "checkpoints" / "g").glob("step_*"):
        path.unlink()
    (tmp_path / "h.csv").rename(tmp_path / "moved.csv")
    assert_refused(cli("report", "g"), "report.html is left as it is, since it may show what is missing now")
    Path("outputs/g/report.html").unlink()
    outcome = cli("report", "g")
    assert outcome.code == 0
    assert "warning: without what the test examples tell" in outcome.out
    page = Page(Path("outputs/g/report.html"))
    check(page)
    assert {"loss", "settings", "origin"} <= set(page.ids())
    assert "numbers" not in page.ids()
    assert "warning" not in cli("report", "g", "data.path=moved.csv").out
    assert {"numbers", "coefficients"} <= set(Page(Path("outputs/g/report.html")).ids())
    (tmp_path / "h.csv").write_text("a,b\n" + "\n".join(f"{i},{3 * i}" for i in range(40)), encoding="utf-8")
    assert_refused(cli("report", "g"), "is not what it was in the training of g", "report.html is left as it is")
    assert {"numbers", "coefficients"} <= set(Page(Path("outputs/g/report.html")).ids())


def test_report_downloads_nothing(cli: Cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*MNIST, f"paths.data={tiny_mnist}", "model=softmax", "epochs=1", "report=false", "name=a").code == 0
    monkeypatch.setattr("trainer.data.vision.download", pytest.fail)
    outcome = cli("report", "a", "paths.data=elsewhere")
    assert "elsewhere/MNIST/raw/train-images-idx3-ubyte is missing. paths.data=" in outcome.out


def test_what_report_cannot_show_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(cli("report", "nothing"), "there is no run of this name")
    assert_refused(cli("report"), "report needs a run")
    assert cli("name=a", "epochs=1", "plots=false").code == 0
    monkeypatch.setattr(markup.importlib.util, "find_spec", lambda name: None)
    assert_refused(cli("report", "a"), "bokeh is not installed", "requirements.txt")


def test_a_report_that_cannot_be_written_ends_no_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError("no room")

    monkeypatch.setattr("trainer.plots.page.draft.page", fail)
    outcome = cli("name=a", "epochs=1", *QUICK)
    assert outcome.code == 0
    assert outcome.out.count("warning: without report.html: no room") == 1
    assert json.loads(Path("outputs/a/status.json").read_text(encoding="utf-8"))["state"] == "done"
    outcome = cli("-m", "name=s", "epochs=1", "seed=0,1", "report=true", "plots=false", "data.num_examples=60")
    assert outcome.code == 0
    assert outcome.out.count("warning: without outputs/s/report.html: no room") == 1


def test_markup_escapes_all_that_is_text() -> None:
    made = markup.el("p", BAD, markup.el("b", "<&>"), None, title=BAD, class_="x", hidden=False)
    assert made.count("<") == 4
    assert made.startswith('<p title="')
    assert '"' not in made[len('<p title="') :].partition('" class="x">')[0]
    script = markup.in_script({"a": [BAD, float("nan"), {"b": float("inf")}], "c": "\u2028\ud800"})
    assert "<" not in script
    assert script.isascii()
    assert json.loads(script) == {"a": [BAD, None, {"b": None}], "c": "\u2028\ud800"}


@pytest.mark.parametrize("channels", [1, 3])
def test_png_files_hold_the_pixels(tmp_path: Path, channels: int) -> None:
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    (tmp_path / "a.png").write_bytes(png_of(pixels))
    with Image.open(tmp_path / "a.png") as image:
        found = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(5, 7, channels).permute(2, 0, 1)
    assert torch.equal(found, pixels)
    assert zlib.crc32(png_of(pixels)[-8:-4]) == struct.unpack(">I", png_of(pixels)[-4:])[0]
    assert shrunk(torch.zeros(2, 300, 100, dtype=torch.uint8), 60).shape == (1, 60, 20)


def test_the_last_convolution_that_torch_computes_is_found() -> None:
    first, second = torch.nn.Conv2d(1, 2, 3), torch.nn.Conv2d(2, 3, 3)
    x = torch.randn(4, 1, 8, 8)
    with Convolutions() as seen:
        y = second(first(x))
        torch.nn.Conv2d(3, 3, 4)(y)  # one pixel is no map
    assert seen.last is y


def test_maps_and_mistakes_name_the_same_probability(report_of: Any, tiny_mnist: Path) -> None:
    words = (f"paths.data={tiny_mnist}", "model=lenet", "loss=sigmoid_cross_entropy", "epochs=1")
    page = report_of(*MNIST, *words)
    mistakes, maps = (page.text.split(title, 2)[-1] for title in ("The worst mistakes", "What the network looked at"))
    first = re.search(r"not (\d) ([\d.]+%)", mistakes)
    assert first is not None
    assert re.search(rf"\b{first[1]} {re.escape(first[2])} true", maps)
