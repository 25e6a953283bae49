"""What a user types, and what the machine lacks: settings, data, pictures, network, GPU, and secrets that stay secret.

Rows 21-24, 28, 29 and 46 of the fault matrix, and a collection of bad settings drawn at random: each is refused with
exit code 2 before any data is read, and leaves nothing behind.
"""

import csv
import io
import json
import math
import os
import resource
import shutil
import socket
import string
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Cli, Outcome, assert_refused, predictions, start, write_class_folders
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import main
from trainer import data
from trainer.config.options import CONFIGS, flatten, group_choices, load_yaml
from trainer.config.ranges import RANGES, Either, FilePath, Normalize, OneOf, Range
from trainer.config.schema import GROUPS
from trainer.data import files
from trainer.run.machine import TORCH_THREADS

pytestmark = pytest.mark.timeout(120)

QUICK = ("epochs=1", "plots=false")


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading data fails the test: what is refused has to be refused before."""

    def reached(*_: object, **__: object) -> None:
        raise AssertionError("a bad setting came as far as the data")

    monkeypatch.setattr(data, "load", reached)


def test_the_guard_of_these_tests_is_live(no_data: None, cli: Cli) -> None:
    with pytest.raises(AssertionError, match="as far as the data"):
        cli(*QUICK)


# row 21


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("optimizer.lrr=1",), ("optimizer.lrr", "optimizer.lr?")),
        (("+optimizer.lrr=1",), ("optimizer.lrr", "optimizer.lr?")),
        (("++optimizer.lrr=1",), ("optimizer.lrr", "optimizer.lr?")),
        (("model=resnt34",), ("model=resnt34", "resnet34?")),
        (("modle=resnet34",), ("modle", "model?")),
        (("+extra=1",), ("extra",)),
        (("+optimizer.extra.deep=1",), ("optimizer.extra.deep",)),
        (("data=minst",), ("data=minst", "mnist")),
        (("optimizer=adm",), ("optimizer=adm", "adam")),
        (("experiment=lenet_mnst",), ("experiment=lenet_mnst", "lenet_mnist?")),
        (("-m", "model=mlp,resnt34", "data=mnist"), ("model=resnt34", "resnet34?")),
        (("-m", "optimizer.lrr=1,2"), ("optimizer.lrr", "optimizer.lr?")),
        (("epoch=3",), ("epoch", "epochs?")),
        (("batchsize=3",), ("batchsize", "batch_size?")),
    ],
)
def test_row_21_a_typo_is_refused_with_the_nearest_name(
    words: tuple[str, ...], said: tuple[str, ...], cli: Cli, no_data: None, tmp_path: Path
) -> None:
    assert_refused(cli(*words), *said)
    assert list(tmp_path.iterdir()) == []


# row 22


@pytest.mark.parametrize(
    ("key", "values", "allowed"),
    [
        (
            "optimizer.lr",
            ("abc", "-1", "0", "nan", "inf", "1e400", "null", "[0.1]", "{a:1}"),
            "above 0",
        ),
        ("epochs", ("0", "-5", "1e400", "1.5", "10000000000000000000000", "null", "'x'"), "from 1"),
        ("batch_size", ("0", "-1", "10000000000000000000000", "inf", "true"), "from 1"),
        ("seed", ("-1", "0.5", "10000000000000000000000", "x"), "from 0"),
        ("data.noise", ("-1", "nan"), "from 0"),
        ("data.val_fraction", ("-0.1", "inf"), "from 0"),
        ("save.every_seconds", ("-1", "1e400"), "from 0"),
        ("device.precision", ("fp8", "null", "16", "[fp32]"), "fp32"),
        ("plots", ("maybe", "null", "1"), "true"),
        ("report", ("maybe", "null", "1"), "true"),
    ],
)
def test_row_22_a_value_that_is_not_allowed_is_refused_before_data_and_model(
    key: str, values: tuple[str, ...], allowed: str, cli: Cli, no_data: None, tmp_path: Path
) -> None:
    for value in values:
        assert_refused(cli(f"{key}={value}"), key, allowed if "{" not in value else "")
    assert list(tmp_path.iterdir()) == []


# bad settings drawn at random; whether one is bad is read off the table of ranges and the YAML files


def settings_of(choices: dict[str, str]) -> dict[str, Any]:
    """Every dotted key under these group choices with its default, from the YAML files."""
    plain = {k: v for k, v in load_yaml(CONFIGS / "config.yaml").items() if k not in ("defaults", "hydra")}
    for group, name in choices.items():
        loaded = load_yaml(CONFIGS / group / f"{name}.yaml")
        plain[group] = loaded["data"] if group == "data" else loaded
    return flatten(plain)


WORLDS: list[tuple[tuple[str, ...], dict[str, Any]]] = [  # words, and the settings that there are then
    (words, settings_of(group_choices(dict(word.split("=") for word in words))))
    for words in (
        (),
        ("model=mlp", "optimizer=adam", "loss=huber"),
        ("data=mnist", "model=lenet", "schedule=step"),
        ("data=cifar10", "optimizer=rmsprop"),
    )
]
NAMES = sorted({key for _, world in WORLDS for key in world})


def is_allowed(key: str, value: Any, default: Any) -> bool:
    """Whether the table of ranges allows a value; where it has no entry, the type of the default decides."""
    rule = RANGES.get(key)
    if value is None:
        return default is None
    if isinstance(default, list):
        wanted = rule.length if isinstance(rule, Range) else None
        fits = isinstance(value, list) and (len(value) == wanted if wanted else bool(value))
        return fits and all(is_item(rule, item) for item in value)
    return is_item(rule, value) if rule is not None else isinstance(value, type(default))


def is_item(rule: Any, value: Any) -> bool:
    """Whether one value fulfils a rule, by the rule's bounds and words."""
    if isinstance(rule, Range):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        low = rule.low < value if rule.open_low else rule.low <= value
        high = value < rule.high if rule.open_high else value <= rule.high
        return low and high and (isinstance(value, int) or not rule.whole)
    if isinstance(rule, OneOf):
        return any(value == word and type(value) is type(word) for word in rule.words)
    if isinstance(rule, Either):
        return is_item(rule.first, value) or is_item(rule.second, value)
    if isinstance(rule, Normalize):
        return value in ("own", "none") or (isinstance(value, list) and len(value) == 2)
    return isinstance(value, str) and bool(value)


def typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{typed(v)}" for k, v in value.items()) + "}"
    return str(value)


WORDS = st.text(string.ascii_letters, min_size=3, max_size=9).filter(
    lambda word: word.lower() not in ("nan", "inf", "true", "false", "null", "none", "own", "auto")
)
NUMBERS = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 10**22, -(10**22), 1e300, -1, 0, 1.5, -0.5]),
    st.integers(-(10**25), 10**25),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.one_of(
    NUMBERS,
    WORDS,
    st.sampled_from([None, True, False]),
    st.lists(st.one_of(st.integers(-3, 3), WORDS), max_size=3),
    st.dictionaries(WORDS, st.integers(0, 9), min_size=1, max_size=2),
)
# any word will do, so no value of theirs is surely bad
TEXTS = frozenset(key for key in NAMES if key not in RANGES or isinstance(RANGES[key], FilePath))


@st.composite
def bad_values(draw: st.DrawFn) -> tuple[str, ...]:
    """A setting that exists with a value that its range does not allow."""
    words, world = draw(st.sampled_from(WORLDS))
    key = draw(st.sampled_from(sorted(world.keys() - TEXTS)))
    value = draw(VALUES.filter(lambda v: not is_allowed(key, v, world[key])))
    return (*words, f"{key}={typed(value)}")


@st.composite
def overflows(draw: st.DrawFn) -> tuple[str, ...]:
    """A number as text that no float holds, for a setting with an upper bound."""
    words, world = draw(st.sampled_from(WORLDS))
    bounded = [key for key in world if isinstance(RANGES.get(key), Range) and not isinstance(world[key], list)]
    return (*words, f"{draw(st.sampled_from(bounded))}={draw(st.sampled_from(['1e400', '-1e400', '1' + '0' * 400]))}")


@st.composite
def typos(draw: st.DrawFn) -> tuple[str, ...]:
    """A name with a letter lost, doubled, swapped or exchanged, with and without Hydra's prefixes."""
    key = draw(st.sampled_from(NAMES))
    i = draw(st.integers(0, len(key) - 2))
    letter = draw(st.sampled_from(string.ascii_lowercase))
    mutations = [key[:i] + key[i + 1 :], key[:i] + key[i] + key[i:], key[:i] + letter + key[i + 1 :]]
    mutations.append(key[:i] + key[i + 1] + key[i] + key[i + 2 :])
    typo = draw(st.sampled_from(mutations))
    known = {*NAMES, *GROUPS, "experiment", "recipe"}
    if typo in known or typo.startswith("."):
        typo = f"{key}x"
    return (f"{draw(st.sampled_from(['', '+', '++']))}{typo}={draw(st.sampled_from(['1', 'x', 'null', '[1]']))}",)


@st.composite
def wrong_choices(draw: st.DrawFn) -> tuple[str, ...]:
    """A group with a choice that it has no file for."""
    group = draw(st.sampled_from((*GROUPS, "experiment")))
    choice = draw(st.one_of(WORDS, st.sampled_from(["1", "[mlp]", "{a:1}", "mlp.yaml", "../model/mlp", "nan", "''"])))
    if (CONFIGS / group / f"{choice}.yaml").is_file():
        choice += "x"
    return (f"{draw(st.sampled_from(['', '+', '++']))}{group}={choice}",)


@st.composite
def interpolations(draw: st.DrawFn) -> tuple[str, ...]:
    """An interpolation where a value is expected."""
    words, world = draw(st.sampled_from(WORLDS))
    key = draw(st.sampled_from(sorted(world)))
    value = draw(
        st.sampled_from(["${seed}", "${oc.env:HOME}", "${oc.env:NONE,1}", "${hydra:job.num}", "${optimizer.lr}"])
    )
    return (*words, f"{key}={f'[{value}]' if isinstance(world[key], list) else value}")


BAD_SETTINGS = (  # how to draw them, and how many; those that Hydra has to compose take a tenth of a second each
    (bad_values(), 12),
    (overflows(), 6),
    (typos(), 20),
    (wrong_choices(), 18),
    (interpolations(), 8),
)


def test_bad_settings_drawn_at_random_are_refused_before_the_data(cli: Cli, no_data: None, tmp_path: Path) -> None:
    seen: set[tuple[str, ...]] = set()

    def refuse(words: tuple[str, ...]) -> None:
        outcome = cli("name=bad", *words)
        assert outcome.code == 2, (words, outcome)
        assert outcome.err.startswith("error: "), words
        assert "Traceback" not in outcome.err, words
        assert list(tmp_path.iterdir()) == [], words
        seen.add(words)

    for kind, n in BAD_SETTINGS:
        quiet = {"deadline": None, "derandomize": True, "database": None}
        settings(max_examples=n, suppress_health_check=list(HealthCheck), **quiet)(given(kind)(refuse))()
    assert len(seen) >= 50, len(seen)


def test_the_judge_of_these_settings_allows_every_default() -> None:
    for _, world in WORLDS:
        for key, default in world.items():
            assert default == [] or is_allowed(key, default, default), key


# row 23


def test_row_23_a_batch_larger_than_the_data_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("batch_size=901", "data.drop_last=true", *QUICK), "batch_size=901", "900")
    assert list(tmp_path.iterdir()) == []


FOLDER = ("data=folder", "data.root=pictures", "data.size=8", "model=softmax", "batch_size=4", "schedule=constant")


def test_row_23_a_single_class_is_refused(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", {"train": 12, "test": 3}, size=8, num_classes=1)
    assert_refused(cli(*FOLDER, *QUICK), "pictures/train", "class0")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_row_23_splits_that_leave_nothing_are_refused(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pictures", {"": 12}, size=8)
    for word, said in {
        "data.val_fraction=12": "data.val_fraction=12",
        "data.val_fraction=0.99": "data.val_fraction",
        "data.test_fraction=0.001": "data.test_fraction",
        "data.limit=13": "data.limit=13",
        "batch_size=12 data.drop_last=true": "batch_size=12",
        "early_stopping.patience=1 data.val_fraction=0": "data.val_fraction",
    }.items():
        assert_refused(cli(*FOLDER, *QUICK, *word.split()), said)
        assert not (tmp_path / "outputs").exists()


def test_row_23_a_split_without_examples_is_not_measured(cli: Cli) -> None:
    assert cli("name=a", "data.val_fraction=0", *QUICK).code == 0
    assert_refused(cli("eval", "checkpoint=a", "split=val"), "split=val")


def test_row_23_a_class_without_pictures_and_an_empty_folder_are_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    assert_refused(cli(*FOLDER, *QUICK), "pictures")
    write_class_folders(tmp_path / "pictures", {"train": 12, "test": 3}, size=8)
    (tmp_path / "pictures/train/class3").mkdir()
    assert_refused(cli(*FOLDER, *QUICK), "class3")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


# row 24

SETS = {
    "mnist": ("empty/MNIST/raw/train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz"),
    "fashion_mnist": ("empty/FashionMNIST/raw/train-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz"),
    "cifar10": ("empty/cifar-10-python.tar.gz", "cifar-10-python.tar.gz"),
}


def refused_connection(*_: object, **__: object) -> None:
    raise OSError(101, "Network is unreachable")


def no_such_host(*_: object, **__: object) -> None:
    raise socket.gaierror(-3, "Temporary failure in name resolution")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("blocked", ["connect", "getaddrinfo"])
def test_row_24_missing_data_without_a_network_says_what_to_do(
    blocked: str, name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocked == "connect":
        monkeypatch.setattr(socket.socket, "connect", refused_connection)
    else:
        monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    began = time.monotonic()
    outcome = cli(f"data={name}", "paths.data=empty", *QUICK)
    assert time.monotonic() - began < 10
    path, file = SETS[name]
    assert_refused(outcome, path, file, "://", "paths.data=", "data.mirror=")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def silence() -> Iterator[tuple[str, list[float]]]:
    """An address that takes connections and never says a word, and the times at which it took them."""
    accepted: list[float] = []
    held: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))

    def take() -> None:
        while True:
            try:
                held.append(server.accept()[0])
            except OSError:
                return
            accepted.append(time.monotonic())

    thread = threading.Thread(target=take)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}/", accepted
    server.shutdown(socket.SHUT_RDWR)  # wakes the thread
    server.close()
    thread.join()
    for connection in held:
        connection.close()


@pytest.mark.slow
def test_row_24_an_address_that_never_answers_is_left_within_ten_seconds(
    silence: tuple[str, list[float]], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, accepted = silence
    for name, (path, file) in SETS.items():
        began = time.monotonic()
        outcome = cli(f"data={name}", "paths.data=empty", f"data.mirror={address}", *QUICK)
        assert time.monotonic() - began < 10
        assert_refused(outcome, path, file, address, "paths.data=", "data.mirror=")
        monkeypatch.setattr(files, "PATIENCE", 0.3)  # one of them shows the real time, the others that they obey it
    assert len(accepted) == len(SETS)
    assert list(tmp_path.iterdir()) == []


# row 28


@dataclass(frozen=True)
class Measured:
    """How a process ended, and the most memory it held, in MB."""

    outcome: Outcome
    peak: float


WITH_PEAK = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import main
code = main.main()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak, file=open("peak", "w"))
sys.exit(code)
"""


def measured(*words: str, cwd: Path) -> Measured:
    """A command as a process of its own. VmHWM and not getrusage, which would count the memory of this process too."""
    done = subprocess.run(
        [sys.executable, "-c", WITH_PEAK, str(ROOT), *words], cwd=cwd, capture_output=True, text=True, timeout=100
    )
    peak = int((cwd / "peak").read_text()) / 1024
    return Measured(Outcome(done.returncode, done.stdout, done.stderr), peak)


@pytest.fixture(scope="module")
def labeller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run `a` that tells three heights of a stripe apart, on colour pictures of 16 pixels."""
    folder = tmp_path_factory.mktemp("labeller")
    write_class_folders(folder / "pictures", {"train": 90, "test": 9})
    words = ["data=folder", "data.root=pictures", "data.size=16", "data.augment=none", "model=softmax"]
    words += ["schedule=constant", "batch_size=10", "epochs=8", "plots=false", "device=cpu", "name=a"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["main.py", *words])
        assert main.main() == 0
    torch.set_num_threads(TORCH_THREADS)
    return folder


def grey(label: int, size: int = 16) -> Image.Image:
    """A picture like those of class `label`, without noise."""
    pixels = np.full((16, 16), 30, np.uint8)
    top = label * 12 // 3 + 2
    pixels[top : top + 2] = 255
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)


def coloured(label: int) -> Image.Image:
    return Image.merge("RGB", [grey(label), grey(label).point(lambda v: v // 2), grey(label)])


def wide_grey(label: int) -> Image.Image:
    return Image.fromarray(np.array(grey(label)).astype(np.uint16) * 257)


def rotated(label: int) -> tuple[Image.Image, Image.Exif]:
    """Stored on its side, with the orientation that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return grey(label).transpose(Image.Transpose.ROTATE_90), exif


def with_alpha(label: int) -> Image.Image:
    """White is transparent: viewers, and the program, show white there."""
    alpha = grey(label).point(lambda v: 0 if v == 255 else 255)
    return Image.merge("LA", [grey(label).point(lambda v: 0 if v == 255 else v), alpha])


def palette(label: int) -> Image.Image:
    image = grey(label).point(lambda v: int(v == 255)).convert("P")
    image.putpalette([30, 30, 30, 255, 255, 255])
    return image


# name: writes it; the plain PNG beside it has to get the same label
GOOD: dict[str, Callable[[Path], tuple[object, Image.Image]]] = {
    "grey16.png": lambda p: (wide_grey(1).save(p), grey(1)),
    "grey16.tiff": lambda p: (wide_grey(2).save(p), grey(2)),
    "cmyk.tiff": lambda p: (coloured(0).convert("CMYK").save(p), coloured(0)),
    "alpha.png": lambda p: (with_alpha(1).save(p), grey(1)),
    "upside.png": lambda p: (rotated(2)[0].save(p, exif=rotated(2)[1]), grey(2)),
    "upside.tiff": lambda p: (rotated(0)[0].save(p, exif=rotated(0)[1]), grey(0)),
    "animated.gif": lambda p: (grey(1).save(p, save_all=True, append_images=[grey(0), grey(2)]), grey(1)),
    "palette.png": lambda p: (palette(2).save(p), grey(2)),
    "plain.bmp": lambda p: (coloured(0).save(p), coloured(0)),
    "plain.webp": lambda p: (coloured(1).save(p, lossless=True), coloured(1)),
    "float.tiff": lambda p: (Image.fromarray(np.array(grey(2)) / np.float32(255)).save(p), grey(2)),
    "capitals.JFIF": lambda p: (grey(0).save(p, format="JPEG", quality=95), grey(0)),
    "large.png": lambda p: (grey(1, 2400).convert("RGBA").save(p, compress_level=1), grey(1)),
    "fifty megapixels.webp": lambda p: (
        grey(2, 7168).convert("RGB").save(p, lossless=True, quality=0, method=0),
        grey(2),
    ),
}


def png(width: int, height: int) -> bytes:
    """A grey PNG with the header of another."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def half_of(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, kind)
    return stream.getvalue()[: len(stream.getvalue()) // 2]


def bomb(path: Path) -> None:
    """169 million pixels in 160 KB, whole and readable."""
    Image.new("L", (13_000, 13_000)).save(path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.png": (lambda p: p.write_bytes(b""), "empty"),
    "text.jpg": (lambda p: p.write_text("hello, this is text"), "not an image"),
    "cut.jpg": (lambda p: p.write_bytes(half_of("JPEG")), "damaged"),
    "cut.png": (lambda p: p.write_bytes(half_of("PNG")), "damaged"),
    "zero.png": (lambda p: p.write_bytes(png(0, 0)), ""),
    "zero.gif": (lambda p: p.write_bytes(b"GIF89a" + bytes(7) + b";"), ""),
    "bomb.png": (bomb, "too large"),
    "giant.png": (lambda p: p.write_bytes(png(2**31 - 1, 2**31 - 1)), "too large"),
    "dead.png": (lambda p: p.symlink_to("nowhere"), "dead link"),
    "pipe.png": (os.mkfifo, "not a regular file"),
    "device.png": (lambda p: p.symlink_to("/dev/zero"), "not a regular file"),
    "linked folder.png": (lambda p: p.symlink_to("."), ""),
    "code.png": (lambda p: p.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"), "not an image"),
}


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_row_28_of_odd_pictures_the_good_are_labelled_and_the_bad_are_named(labeller: Path, tmp_path: Path) -> None:
    shutil.copytree(labeller, tmp_path, dirs_exist_ok=True)
    odd, plain = tmp_path / "odd", tmp_path / "plain"
    odd.mkdir()
    plain.mkdir()
    for name, write in GOOD.items():
        write(odd / name)[1].save(plain / f"{name}.png")
    for name, (make, _) in BAD.items():
        make(odd / name)
    (odd / "folder.png").mkdir()
    grey(1).save(odd / "folder.png" / "within.png")
    grey(1).save(plain / "within.png.png")
    for name in ("README.md", "Thumbs.db", "no suffix", "code.eps"):  # no images, in training neither
        (odd / name).write_text("%!PS-Adobe-3.0 EPSF-3.0")
    assert len(GOOD) + len(BAD) + 1 >= 25

    command = ("predict", "checkpoint=a", "plots=false", "device=cpu")
    expected = measured(*command, "input=plain", cwd=tmp_path)
    assert expected.outcome.code == 0, expected.outcome.err
    labels = {Path(row["input"]).name: row["label"] for row in rows_of(predictions(tmp_path / "outputs/a"))}
    assert set(labels.values()) == {"0", "1", "2"}
    found = measured(*command, "input=odd", cwd=tmp_path)

    bad = {name: reason for name, (_, reason) in BAD.items() if name != "linked folder.png"}
    assert_refused(found.outcome, f"{len(bad)} files")
    assert "4 other files ignored" in found.outcome.out
    for name, reason in bad.items():
        line = next(line for line in found.outcome.err.splitlines() if f"odd/{name}: " in line)
        assert reason in line
        assert len(line.partition(f"{name}: ")[2]) > 3
    rows = rows_of(predictions(tmp_path / "outputs/a"))
    assert {Path(row["input"]).name: row["label"] for row in rows} == {
        name.removesuffix(".png"): label for name, label in labels.items()
    }
    assert found.peak - expected.peak < 1000, "more than 1 GB for pictures"


# row 29


@pytest.mark.parametrize("device", ["cuda", pytest.param("cuda:7", marks=pytest.mark.slow)])
def test_row_29_a_gpu_that_is_not_there_is_refused_at_once(device: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = start(f"device={device}", *QUICK, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    out, err = process.communicate(timeout=20)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    assert seconds < 5  # of computing, nearly all of it for importing torch: a busy machine makes no difference
    assert_refused(Outcome(process.returncode, out, err), "device=cuda", "device=cpu", "device=auto")
    assert out == ""  # nothing was started on the CPU instead
    assert list(tmp_path.iterdir()) == []


def test_row_29_it_is_refused_by_every_command_before_the_data(
    labeller: Path, cli: Cli, no_data: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    shutil.copytree(labeller, tmp_path, dirs_exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    for words in (
        ("name=b",),
        ("resume=a", "epochs=9"),
        ("eval", "checkpoint=a"),
        ("predict", "checkpoint=a", "input=pictures/test"),
        ("init_from=a", "name=c", *FOLDER),
    ):
        for device in ("cuda", "cuda:7"):
            assert_refused(cli(*words, f"device={device}"), "device=cuda")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("device", ["cuda:-1", "cuda:x", "cuda:64", "cuda:", "gpu", "CUDA", "cpu:1"])
def test_row_29_a_device_that_does_not_exist_is_refused(device: str, cli: Cli, no_data: None) -> None:
    assert_refused(cli(f"device={device}"), "device")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_row_29_a_gpu_that_is_there_is_used_and_a_wrong_index_is_refused(cli: Cli, tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    assert_refused(cli(f"device=cuda:{count}", *QUICK), f"device=cuda:{count}")
    assert list(tmp_path.iterdir()) == []
    assert cli("device=cuda", "name=a", *QUICK).code == 0
    assert json.loads((tmp_path / "outputs/a/config.json").read_text())["device"] == "cuda:0"


# row 46

SECRET = "sesame-93c1"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)


def assert_secret(outcome: Outcome, folder: Path) -> None:
    """The secret is neither on the screen nor in the name or the content of a file."""
    assert SECRET not in outcome.out + outcome.err
    for path in folder.rglob("*"):
        assert SECRET not in path.name
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


READS = "${oc.env:TOKEN}"
KEYS = sorted({key for _, world in WORLDS for key in world if not key.startswith(("device.", "stop_at."))})


@pytest.mark.parametrize("root", ["nowhere", "x" * 300])
def test_a_folder_of_images_that_is_not_there_is_refused(root: str, cli: Cli) -> None:
    assert_refused(cli("data=folder", f"data.root={root}", "model=softmax", *QUICK), "there is no such folder")


@pytest.mark.parametrize("form", [READS, f"x{READS}", "${oc.decode:${oc.env:TOKEN}}", "${oc.env:NONE,${oc.env:TOKEN}}"])
def test_row_46_a_secret_of_the_environment_is_refused_in_a_setting(
    form: str, secret: None, cli: Cli, no_data: None, tmp_path: Path
) -> None:
    tried: set[str] = set()
    for words, world in WORLDS[:1] if form != READS else WORLDS:
        for key in ("name", "paths.data", "init_from", "seed", "resume_allow") if form != READS else KEYS:
            if key in world and key not in tried:  # the settings that every world has: once
                tried.add(key)
                value = f"[{form}]" if isinstance(world[key], list) else form
                outcome = cli(*words, f"{key}={value}")
                assert_refused(outcome, key if "no viable alternative" not in outcome.err else value[:12])
                assert_secret(outcome, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        (f"data={READS}",),
        (f"experiment={READS}",),
        (f"resume={READS}",),
        ("eval", f"checkpoint={READS}"),
        ("predict", f"checkpoint={READS}"),
        (f"+extra={READS}",),
        (f"hydra.run.dir={READS}",),
        (f"hydra.job.name={READS}", "hydra.output_subdir=.hydra"),
        ("-m", "seed=0,1", f"hydra.sweep.subdir={READS}"),
        ("-m", f"reference.source={READS},b"),
        ("-m", "seed=0,1", f"data.b={READS}"),
        ("--cfg", "job", f"data.b={READS}"),
        ("--cfg", "all", f"data.b={READS}"),
    ],
)
def test_row_46_a_secret_of_the_environment_is_nowhere(
    words: tuple[str, ...], secret: None, cli: Cli, tmp_path: Path
) -> None:
    outcome = cli(*words, *QUICK) if "=" in words[-1] and words[0] not in ("eval", "predict") else cli(*words)
    assert outcome.code in ((0, 1, 2) if words[0] in ("-m", "--cfg") else (2,))
    assert_secret(outcome, tmp_path)


def test_row_46_a_checkpoint_that_asks_for_a_secret_is_refused(secret: None, cli: Cli, tmp_path: Path) -> None:
    assert cli("name=a", *QUICK).code == 0
    for key, change in {
        "reference.source": lambda config: config["reference"].update(source=READS),
        "name": lambda config: config.update(name=READS),
        "data.w": lambda config: config["data"].update(w=[READS]),
        "init_from": lambda config: config.update(init_from=READS),
        "resume_allow": lambda config: config.update(resume_allow=[READS]),
    }.items():
        content = torch.load("checkpoints/a/best.pt", weights_only=True)
        change(content["config"])
        torch.save(content, tmp_path / "stranger.pt")
        for words in (("resume=stranger.pt", "epochs=2"), ("eval", "checkpoint=stranger.pt")):
            outcome = cli(*words, "plots=false")
            assert outcome.code == 2 or key in ("resume_allow", "init_from"), (key, words)
            assert_secret(outcome, tmp_path)


def test_row_46_a_run_writes_nothing_of_the_environment(secret: None, cli: Cli, tmp_path: Path) -> None:
    outcome = cli("name=a", "epochs=1")
    assert outcome.code == 0
    assert_secret(outcome, tmp_path)
    outcome = cli("-m", "seed=0,1", "name=s", *QUICK)
    assert outcome.code == 0
    assert_secret(outcome, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
@pytest.mark.parametrize(
    "address", ["https://user:{}@127.0.0.1:9/sets", "http://{}@127.0.0.1:9/", "http://:{}@127.0.0.1:9"]
)
def test_row_46_a_password_in_a_mirrors_address_is_refused_unseen(
    address: str, name: str, cli: Cli, tmp_path: Path
) -> None:
    word = f"data.mirror={address.format(SECRET)}"
    outcome = cli(f"data={name}", "paths.data=empty", word, *QUICK)
    assert_refused(outcome, "data.mirror")
    assert_secret(outcome, tmp_path)
    outcome = cli("-m", f"data={name}", "paths.data=empty", word, "seed=0,1", *QUICK)
    assert outcome.code in (1, 2)
    assert_secret(outcome, tmp_path)
