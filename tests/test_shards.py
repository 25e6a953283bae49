"""data=shards: tar files of images are read where the images lie, in an order that is fixed, each once an epoch."""

import errno
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli, Server, assert_refused, striped_pictures, write_class_folders
from PIL import Image

from trainer.data import remote, tars
from trainer.data.batches import Batches, Placement
from trainer.data.images import Frame, read_image
from trainer.data.listing import scan
from trainer.data.pack import pack_images
from trainer.data.shards import shards
from trainer.data.splits import Source, cut
from trainer.data.stratify import TOGETHER, shuffled
from trainer.utils.errors import ConfigError, ResourceError

SMALL = ("data=shards", "data.root=photos-shards", "model=softmax", "data.size=8", "plots=false", "report=false")


def png(label: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(striped_pictures(label + 1, 10, 16, label)[0][label]).save(content, "PNG")
    return content.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def of_labels(labels: list[str], suffix: str = "cls") -> list[tuple[str, bytes]]:
    """PNG images, each with a class in front of it or behind it."""
    found = []
    for i, label in enumerate(labels):
        content = label if suffix == "cls" else json.dumps({"label": label, "caption": "x"})
        pair = [(f"a/{i:04d}.png", png(i % 10)), (f"a/{i:04d}.{suffix}", content.encode())]
        found += pair if i % 2 else pair[::-1]
    return found


def load(root: Path | str, cache: Path, **options: Any) -> Source:
    return shards(Path(), cache, root=str(root), size=8, **options)


def test_packed_images_are_those_of_the_folder(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "photos", {"train": 30, "test": 9, "val": 6})
    names = pack_images(tmp_path / "photos", tmp_path / "packed", shard_bytes=3000)
    assert len(names) > 4
    found = load(tmp_path / "packed", tmp_path)
    assert found.val is not None
    assert (len(found.train), len(found.test), len(found.val)) == (30, 9, 6)
    assert found.classes == ("class0", "class1", "class2")
    listing, frame = scan(tmp_path / "photos"), Frame((3, 8, 8))
    for part, split in (("train", found.train), ("test", found.test), ("val", found.val)):
        rows = listing.rows(part).tolist()
        own = {read_image(listing.root / listing.names[i], frame).numpy().tobytes() for i in rows}
        assert {split.x[i].numpy().tobytes() for i in range(len(split))} == own
        assert split.y.bincount().tolist() == listing.labels[rows].bincount().tolist()


def test_packing_twice_gives_the_same_bytes_and_never_overwrites(tmp_path: Path) -> None:
    write_class_folders(tmp_path / "photos", {"": 12})
    for name in ("a", "b"):
        pack_images(tmp_path / "photos", tmp_path / name)
    a, b = ((tmp_path / name / "train-000000.tar").read_bytes() for name in "ab")
    assert a == b
    with pytest.raises(ConfigError, match="is there already"):
        pack_images(tmp_path / "photos", tmp_path / "a")


@pytest.mark.parametrize("suffix", ["cls", "json"])
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["0", "2", "1"] * 4, ("0", "1", "2")),
        (["10", "\ufeff07", "2"] * 4, ("2", "7", "10")),
        (["owl", "bee", "\u732b"] * 4, ("bee", "owl", "\u732b")),
    ],
)
def test_classes_are_numbers_or_words(tmp_path: Path, suffix: str, labels: list[str], classes: tuple[str, ...]) -> None:
    if suffix == "json":  # there the mark of an encoding would be a part of the word
        labels = [label.removeprefix("\ufeff") for label in labels]
    path = write_tar(tmp_path / "s" / "x.tar", of_labels(labels, suffix))
    found = load(path, tmp_path)
    assert found.classes == classes
    images, labels_seen = [], torch.cat([found.train.y, found.test.y]).tolist()
    for split in (found.train, found.test):
        images += [split.x[i] for i in range(len(split))]
    frame = Frame((3, 8, 8))
    for i, label in enumerate(labels):  # each image kept its class
        (tmp_path / "one.png").write_bytes(png(i % 10))
        wanted = read_image(tmp_path / "one.png", frame)
        label = label.removeprefix("\ufeff").lstrip("0") or label
        assert classes.index(label) in [y for x, y in zip(images, labels_seen, strict=True) if x.equal(wanted)]


def test_classes_txt_names_the_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "x.tar", of_labels(["1", "0"] * 5))
    (tmp_path / "s" / "classes.txt").write_text("owl\nbee\n", encoding="utf-8")
    assert load(tmp_path / "s", tmp_path).classes == ("owl", "bee")
    for text, said in (
        ("owl\n", "has 1 lines, and there is a class 1"),
        ("owl\nowl\n", "has the line 'owl' twice"),
        ("owl\nowl \n", "has the line 'owl ' twice"),
        ("owl\n \nbee\n", "line 2: a blank line is no name of a class"),
    ):
        (tmp_path / "s" / "classes.txt").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            load(tmp_path / "s", tmp_path)
    for text, classes in (("owl\r\nbee\r\n\r\n", ("owl", "bee")), ("\n", ("0", "1"))):  # lines left blank at the end
        (tmp_path / "s" / "classes.txt").write_bytes(text.encode())
        assert load(tmp_path / "s", tmp_path).classes == classes


def test_a_file_that_is_in_two_parts_is_refused_under_any_name(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        path = write_tar(tmp_path / "s" / f"{name}-0.tar", of_labels(["0", "1"] * (3 + len(name))))
    copied = tmp_path / "other.tar"
    for name in ("train", "val"):
        copied.write_bytes(path.with_name(f"{name}-0.tar").read_bytes())
        with pytest.raises(ConfigError, match=rf"{name}-0\.tar \({name} part\).* are the same"):
            load(tmp_path / "s", tmp_path, test_root=str(copied))
    for name in ("train", "val"):  # the names of a known set, which are not train-*.tar
        path.with_name(f"{name}-0.tar").rename(path.with_name(f"photos-{name}-0.tar"))
        with pytest.raises(ConfigError, match=r"which files are to be tested.*data\.test_root="):
            load(tmp_path / "s", tmp_path)


def test_of_several_members_that_of_the_plain_name_is_the_image(tmp_path: Path) -> None:
    members = []
    for i in range(10):  # sorted by name; with what macOS adds
        own = [("depth.png", png(9)), ("json", b'{"caption": 1}'), ("png", png(i % 2)), ("cls", b"%d" % (i % 2))]
        members += [each for end, content in own for each in ((f"a/._{i}.{end}", b"x"), (f"a/{i}.{end}", content))]
    plain = [member for i in range(10) for member in ((f"{i}.png", png(i % 2)), (f"{i}.cls", b"%d" % (i % 2)))]
    found, wanted = (
        load(write_tar(tmp_path / f"{i}.tar", some), tmp_path).train for i, some in enumerate((members, plain))
    )
    assert found.y.equal(wanted.y)
    assert all(found.x[i].equal(wanted.x[i]) for i in range(len(wanted)))


def test_a_pattern_counts(tmp_path: Path) -> None:
    for i in range(8, 12):
        write_tar(tmp_path / f"p-{i:03d}.tar", of_labels(["0" * (i - 7), "1"] * 3))  # no two the same
    found = load(f"{tmp_path}/p-{{009..011}}.tar", tmp_path, test_root=f"{tmp_path}/p-008.tar")
    assert (len(found.train), len(found.test)) == (18, 6)
    (tmp_path / "more").mkdir()
    write_tar(tmp_path / "more" / "x.tar", of_labels(["0", "1"] * 4))  # a folder, as data.root may be one
    found = load(f"{tmp_path}/p-{{009..011}}.tar", tmp_path, test_root=f"{tmp_path}/more")
    assert (len(found.train), len(found.test)) == (18, 8)
    (tmp_path / "other").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"p-009\.tar \(test part\) are the same"):
        load(f"{tmp_path}/p-{{009..011}}.tar", tmp_path, test_root=f"{tmp_path}/other/p-{{008..009}}.tar")
    with pytest.raises(ConfigError, match=r"p-012\.tar: there is no such file \(2 of 3 files are missing\)"):
        load(f"{tmp_path}/p-{{011..013}}.tar", tmp_path)


def of_values(kind: str, values: list[float]) -> list[tuple[str, bytes]]:
    """Images of one value each, of two classes."""
    members = []
    for i, value in enumerate(values):
        content = io.BytesIO()
        pixels = np.full((8, 8), value, np.uint16 if kind == "PNG" else np.float32)
        Image.fromarray(pixels).save(content, kind)
        members += [(f"a/{i}.{kind.lower()}", content.getvalue()), (f"a/{i}.cls", b"%d" % (i % 2))]
    return members


def test_values_that_the_model_does_not_see_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "s" / "x.tar", of_values("PNG", [i * 100 for i in range(40)]))
    for _ in range(2):  # the second time from the cache
        assert load(tmp_path / "s", tmp_path, channels=1, depth=10).mixed == ""
        assert "data.depth=10 makes all above 1,023 white: 16-bit images hold up to 3," in capsys.readouterr().out
    write_tar(tmp_path / "s" / "x.tar", of_values("TIFF", [i * 5 if i % 4 < 2 else 0.7 for i in range(1, 41)]))
    for _ in range(2):
        assert "Save all of them in one range" in load(tmp_path / "s", tmp_path, channels=1).mixed


def test_the_order_is_fixed_and_every_example_comes_once_on_all_ranks(tmp_path: Path) -> None:
    for i in range(TOGETHER + 3):
        write_tar(tmp_path / "s" / f"{i:02d}.tar", of_labels(["0", "1"] * 4))
    splits = cut(load(tmp_path / "s", tmp_path), val_fraction=0.1, split_seed=0)
    splits.train.y[:] = torch.arange(len(splits.train))  # tells which one it is
    place = Placement(torch.device("cpu"))

    def seen(epoch: int, start: int = 0, rank: int = 0, world: int = 1, workers: int = 0) -> list[int]:
        options = {"batch_size": 8, "seed": 3, "rank": rank, "world": world, "workers": workers}
        batches = Batches(splits, splits.train, place, **options)
        return [int(y) for _, ys in batches.epoch(epoch, start) for y in ys]

    whole = seen(1)
    assert sorted(whole) == list(range(len(splits.train)))
    assert seen(1) == seen(1, workers=2) == whole != seen(2)
    assert seen(1, start=16) == whole[16:]
    assert sorted(seen(1, rank=0, world=2) + seen(1, rank=1, world=2)) == sorted(whole)


def test_the_examples_of_a_few_files_are_shuffled_together() -> None:
    group = torch.arange(20).repeat_interleave(50)
    order = shuffled(1000, group, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(1000))
    first = group[order[: 50 * TOGETHER]]
    assert len(first.unique()) == TOGETHER
    assert len(group[order[:50]].unique()) > TOGETHER // 2


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def with_a_damaged_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"a/0002", b"x/0002"))  # its sum is then another one


def without_its_end(path: Path) -> None:
    with tarfile.open(path) as tar:
        start = tar.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[:start])


@pytest.mark.parametrize(
    ("members", "mode", "change", "message"),
    [
        (of_labels(["0", "1"]), "w:gz", None, "Compressed ones are not read"),
        (of_labels(["0", "1"]), "w", lambda path: path.write_bytes(b"no tar at all" * 99), "not a plain tar file"),
        (of_labels(["0", "1"]), "w", lambda path: path.write_bytes(b""), "not a plain tar file"),
        (of_labels(["0", "1"]), "w", truncated, "not a plain tar file, or a damaged one|lacks an image"),
        (of_labels(["0", "1"] * 3), "w", with_a_damaged_header, "is no member of it: it is damaged"),
        (of_labels(["0", "1"]), "w", lambda path: path.write_bytes(path.read_bytes() * 2), "or several tar files were"),
        (of_labels(["0", "1"] * 3), "w", without_its_end, "it was cut off, or it is still being written"),
        (of_labels(["0", "1"]) * 2 + of_labels(["0"]) * 2, "w", None, "a/0000 is there twice"),
        (of_labels(["0", "1"]) * 2, "w", None, "a/0000 is there twice. .* tar -r adds a file once more"),
        ([("a.png", png(0)), ("a.cls", b"-1")], "w", None, "a.cls says no class: '-1'"),
        ([("a.png", png(0))], "w", None, r"a lacks KEY\.cls or KEY\.json"),
        ([("a.cls", b"0"), ("b.cls", b"1")], "w", None, "lacks an image"),
        ([("a.png", b""), ("a.cls", b"0")], "w", None, "a.png is empty"),
        ([("readme", b"x")], "w", None, "it holds no images with a class"),
        ([("a.png", png(0)), ("a.cls", b" ")], "w", None, "says no class"),
        ([("a.png", png(0)), ("a.cls", b"\xff\xfe")], "w", None, "is no text"),
        ([("a.png", png(0)), ("a.json", b"[" * 99999)], "w", None, "is no JSON object"),
        ([("a.png", png(0)), ("a.json", b"3")], "w", None, "is no JSON object"),
        ([("a.png", png(0)), ("a.json", b'{"label": [1]}')], "w", None, "says no class"),
        (of_labels(["0", "0"]), "w", None, "there is only the class"),
    ],
)
def test_what_is_no_shard_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], mode: str, change: Callable[[Path], object] | None, message: str
) -> None:
    path = write_tar(tmp_path / "s" / "x.tar", members, mode)
    if change is not None:
        change(path)
    with pytest.raises(ConfigError, match=message):
        load(path, tmp_path)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("suffix", ["png", "cls"])
def test_links_are_refused_with_what_packs_their_content(tmp_path: Path, kind: bytes, suffix: str) -> None:
    path = write_tar(tmp_path / "s" / "x.tar", of_labels(["0", "1"] * 3))
    with tarfile.open(path, "a") as tar:
        for each, content in (("png", png(0)), ("cls", b"0")):
            member = tarfile.TarInfo(f"a/9999.{each}")
            if each == suffix:
                member.type, member.linkname = kind, f"a/0000.{each}"
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ConfigError, match=rf"a/9999\.{suffix} is a link .* tar --dereference --hard-dereference"):
        load(path, tmp_path)


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    members = [("a/0.png", b"no image"), ("a/0.cls", b"0"), *of_labels(["1", "0"] * 3)]
    path = write_tar(tmp_path / "s" / "x.tar", members)
    with pytest.raises(ConfigError, match=r"x\.tar: a/0\.png: not an image in a known format"):
        load(path, tmp_path)  # mean and std need all of so few


def test_verify_reads_every_image(cli: Cli, tmp_path: Path) -> None:
    write_tar(tmp_path / "s" / "train-0.tar", of_labels(["0", "1"] * 6))
    write_tar(tmp_path / "s" / "test-0.tar", of_labels(["1", "0"] * 3))
    verify = ("data", "verify", "shards", "data.root=s", "data.workers=0")
    assert "6 test: all of it can be read" in cli(*verify, as_typed=True).out
    damaged = [("a/0.png", b"no image"), ("a/0.cls", b"0"), *of_labels(["1", "0"] * 3)]
    write_tar(tmp_path / "s" / "test-0.tar", damaged)
    assert_refused(cli(*verify, as_typed=True), "test-0.tar: a/0.png: not an image in a known format")


def test_verify_leaves_nothing_out(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "photos", {"": 24})
    verify = ("data", "verify", "folder", "data.root=photos", "data.limit=4", "data.eval_limit=1")
    out = cli(*verify, as_typed=True).out
    assert "warning: data.limit has no effect on data verify" in out
    assert re.search(r"\b(\d+) train, (\d+) val, (\d+) test: all of it can be read", out)
    sizes = re.findall(r"(\d+) (?:train|val|test)\b", out)
    assert sum(map(int, sizes)) == 24
    next((tmp_path / "photos").rglob("*.png")).write_bytes(b"no image")
    assert_refused(cli(*verify, "data.on_error=skip", as_typed=True), "not an image in a known format")


def test_a_file_that_is_changed_during_training_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s" / "x.tar", of_labels(["1", "0"] * 3))
    found = load(path, tmp_path)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ConfigError, match=r"x\.tar was changed while it was in use"):
        found.test.x[0]


def test_a_file_is_read_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "s" / "x.tar", of_labels(["1", "0"] * 3))
    first = load(path, tmp_path)
    monkeypatch.setattr(tars, "indexed", lambda path: pytest.fail("it is indexed again"))
    monkeypatch.setitem(shards.__globals__, "pixel_sums", lambda x: pytest.fail("it is measured again"))
    again = load(path, tmp_path)
    assert (again.sha256, again.mean, again.std) == (first.sha256, first.mean, first.std)
    for kept in (tmp_path / "shards").iterdir():
        kept.write_bytes(b"damaged")
    monkeypatch.undo()
    assert load(path, tmp_path).sha256 == first.sha256


def test_files_sorted_by_class_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2 * TOGETHER):
        write_tar(tmp_path / "s" / f"{i:02d}.tar", of_labels([str(i // 4)] * 3))
    load(tmp_path / "s", tmp_path)
    assert "lie sorted by class: 8 of them, which are shuffled together, have 2 of 4 classes" in capsys.readouterr().out


def test_a_run_on_shards_resumes_to_the_same_bits_and_is_measured(cli: Cli, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "photos", {"": 60})
    assert cli("data", "pack", "folder", "data.root=photos", as_typed=True).code == 0
    assert_refused(cli("data", "pack", "folder", "data.root=photos", as_typed=True), "is there already")
    assert_refused(cli("data", "pack", "folder", "data.root=photos/class0/..", as_typed=True), "is there already")
    assert cli(*SMALL, "name=a", "epochs=3").code == 0
    assert cli(*SMALL, "name=b", "epochs=1").code == 0
    assert cli("resume=b", "epochs=3", "plots=false").code == 0
    a, b = (torch.load(f"checkpoints/{name}/best.pt", weights_only=True)["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert "accuracy" in cli("eval", "a", "plots=false").out
    assert cli("predict", "a", "photos", "plots=false").code == 0
    assert_refused(cli("resume=b", "data.on_error=skip"), "data.on_error is no option of data=shards", "data.workers")


def test_no_root_and_no_tar_files_are_refused(cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("data=shards"), "data=shards needs data.root=")
    (tmp_path / "empty").mkdir()
    assert_refused(cli("data=shards", "data.root=empty"), "there are no tar files in it", "data pack folder")
    assert_refused(cli("data", "pack", "mnist", as_typed=True), "only data=folder has images to pack")


def test_an_index_of_another_form_is_made_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s" / "x.tar", of_labels(["1", "0"] * 3))
    first = load(path, tmp_path)
    [kept] = (tmp_path / "shards").glob("x*.pt")
    whole = torch.load(kept, weights_only=True)
    changes = {"codes": [whole["codes"] + 9, whole["codes"] * 1.0, whole["codes"][1:]]}
    changes["places"] = [whole["places"] + 10**6, -whole["places"], whole["places"][:, :1]]
    changes["places"].append(whole["places"].tolist())
    changes |= {"words": [(1, 2)], "sha256": [None]}
    for key, values in changes.items():
        for value in values:
            torch.save(whole | {key: value}, kept)
            assert load(path, tmp_path).train.y.equal(first.train.y)


def test_a_sample_of_another_form_is_taken_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s" / "x.tar", of_labels(["1", "0"] * 3))
    first = load(path, tmp_path)
    [kept] = (tmp_path / "shards").glob("sample-*.pt")
    whole = torch.load(kept, weights_only=True)
    sums = whole["sums"]
    wrong = [{"sums": damaged} for damaged in (sums.tolist(), None, sums * 0.0, sums[1:])]
    wrong += [{"peak": "a"}, {"peak": None}, {"lost": [1]}, {"lost": {"colour": 5}}]
    for changed in wrong:
        torch.save(whole | changed, kept)
        assert load(path, tmp_path).mean == first.mean
        assert torch.load(kept, weights_only=True)["sums"].equal(sums)


def test_names_of_classes_may_hold_anything_but_a_line_break(tmp_path: Path) -> None:
    names = ["\u2028 x\x85", "b\udcff"]
    photos = tmp_path / "photos"
    photos.mkdir(exist_ok=True)
    for name in names:
        write_class_folders(tmp_path / "one", {"": 6}, num_classes=1)
        (tmp_path / "one" / "class0").rename(photos / name)
    pack_images(photos, tmp_path / "packed")
    assert set(load(tmp_path / "packed", tmp_path).classes) == set(names)
    (photos / names[0]).rename(photos / "a\nb")
    with pytest.raises(ConfigError, match="line break"):
        pack_images(photos, tmp_path / "again")


def put(server: Server, folder: Path) -> str:
    """Serve the files of a folder, and its listing, from an address."""
    names = sorted(path.name for path in folder.iterdir())
    server.contents |= {f"s/{name}": (folder / name).read_bytes() for name in names}
    server.contents["s/"] = "".join(f'<a href="{name}">{name}</a>' for name in names).encode()
    return f"{server.address}s"


def test_copies_of_another_user_are_read(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "s" / "x.tar", of_labels(["1", "0"] * 3))
    address = put(server, tmp_path / "s")
    first = load(f"{address}/x.tar", tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(remote.os, "utime", refuse)
    assert load(f"{address}/x.tar", tmp_path).test.x[0].equal(first.test.x[0])


def test_an_address_may_end_in_a_question(server: Server, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s" / "x.tar", of_labels(["1", "0"] * 3))
    server.contents["s/x.tar?download=1"] = path.read_bytes()
    found = load(f"{server.address}s/x.tar?download=1", tmp_path)
    assert found.train.y.equal(load(path, tmp_path).train.y)


def test_files_at_an_address_give_the_same_run_and_resume_to_the_same_bits(
    cli: Cli, server: Server, tmp_path: Path
) -> None:
    write_class_folders(tmp_path / "photos", {"train": 60, "test": 12})
    pack_images(tmp_path / "photos", tmp_path / "photos-shards", shard_bytes=6000)
    address = put(server, tmp_path / "photos-shards")
    assert cli(*SMALL, "name=a", "epochs=3").code == 0
    there = [word.replace("data.root=photos-shards", f"data.root={address}") for word in SMALL]
    outcome = cli(*there, "name=b", "epochs=1", "data.workers=2")
    assert outcome.code == 0, outcome.err
    assert cli("resume=b", "epochs=3", "plots=false", "data.workers=0").code == 0
    a, b = (torch.load(f"checkpoints/{name}/best.pt", weights_only=True)["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    tar_files = sorted((tmp_path / "photos-shards").glob("*.tar"))
    copies = [path for path in Path("datasets/.cache/remote").iterdir() if path.suffix == ".tar"]
    assert len(copies) == len(tar_files) > 3
    pattern = address + "/train-{000000..000001}.tar"
    assert cli(*there, f"data.root={pattern}", "name=c", "epochs=1").code == 0


def test_copies_are_removed_beyond_their_room_and_made_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "NEWEST", 2)
    for i in range(5):
        write_tar(tmp_path / "s" / f"{i}.tar", of_labels(["0", "1"] * 3))
    here, there = (load(root, tmp_path / "c", cache_gb=1e-6) for root in (tmp_path / "s", put(server, tmp_path / "s")))
    copies = tmp_path / "c" / "remote"
    assert len(list(copies.glob("*.tar"))) == 2
    (copies / ".tmp-left").write_bytes(b"of a process that was killed")
    os.utime(copies / ".tmp-left", (0, 0))
    for split, other in ((here.train, there.train), (here.test, there.test)):
        assert all(split.x[i].equal(other.x[i]) for i in range(len(split)))
    assert len(list(copies.glob("*.tar"))) == 2
    assert not (copies / ".tmp-left").exists()
    server.contents.clear()
    monkeypatch.setattr(remote, "WAITS", ())
    for path in copies.glob("*.tar"):
        path.unlink()
    with pytest.raises(ResourceError, match=r"s/\d\.tar cannot be read: FileNotFoundError"):
        there.train.x[0]


def test_a_network_that_comes_back_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "s" / "x.tar", of_labels(["0", "1"] * 3))
    address = put(server, tmp_path / "s")
    server.broken.add("s/x.tar")
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            server.broken.clear()

    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=wait, time=time.time))
    assert load(f"{address}/x.tar", tmp_path).sha256 == load(path, tmp_path).sha256
    assert waited == [1.0, 4.0]


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("ADDRESSnothing.tar", r"nothing\.tar: there is no such file"),
        ("ADDRESSs", "there are no tar files in it"),
        ("ADDRESSgone", "gone cannot be read: FileNotFoundError"),
        ("http://me:secret@127.0.0.1/x.tar", "no user name or password in an address"),
        ("http://127.0.0.1/x.tar?X-Amz-Signature=0123", r"http://127.0.0.1/x.tar\?...: no key in an address"),
        ("http://127.0.0.1/x-{0..3}.tar?v=1&sig=0123", "no key in an address"),
        ("http://127.0.0.1:9/x.tar", r"x\.tar cannot be read: ClientConnectorError"),
        ("s3://bucket/x.tar", r"s3://bucket/x\.tar: needs a package: pip install s3fs"),
        ("nonsense://x.tar", r"nonsense://x\.tar cannot be read: ValueError: Protocol not known"),
    ],
)
def test_an_address_without_files_is_refused(server: Server, tmp_path: Path, root: str, message: str) -> None:
    server.contents["s/"] = b"<a href='readme.txt'>"
    with pytest.raises(ConfigError, match=message) as refused:
        load(root.replace("ADDRESS", server.address), tmp_path)
    assert "secret" not in str(refused.value)


def test_a_cache_that_cannot_hold_a_copy_is_said(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "s" / "x.tar", of_labels(["0", "1"] * 3))
    address = put(server, tmp_path / "s")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match=r"cannot be written: .*paths\.cache=FOLDER"):
        load(f"{address}/x.tar", tmp_path / "file")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote, "replacing", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        load(f"{address}/x.tar", tmp_path)


def test_a_pattern_that_the_shell_took_apart_is_said_to_need_quotes(cli: Cli) -> None:
    outcome = cli("data=shards", "data.root=a-0.tar", "data.root=a-1.tar", as_typed=True)
    assert_refused(outcome, "A pattern with braces needs quotes")


def test_a_report_and_where_find_the_files_of_a_pattern_and_of_an_address(
    cli: Cli, server: Server, tmp_path: Path
) -> None:
    for i in range(2):
        write_tar(tmp_path / "s" / f"x-{i}.tar", of_labels(["0", "1"] * 6))
    address = put(server, tmp_path / "s")
    for name, root in (("a", "s/x-{0..1}.tar"), ("b", address)):
        words = [word for word in SMALL if not word.startswith("data.root")]
        assert cli(*words, f"data.root={root}", f"name={name}", "epochs=1").code == 0
        assert "warning" not in cli("report", name, as_typed=True).out
    said = cli("data", "where", "shards", "data.root=s/x-{0..2}.tar", as_typed=True).out
    assert "s/x-1.tar: 0.0 MB" in said
    assert "s/x-2.tar: missing" in said
    outcome = cli("data", "verify", "shards", "data.root=s/x-{0..2}.tar", as_typed=True)
    assert_refused(outcome, "s/x-2.tar is missing")
    said = cli("data", "where", "shards", f"data.root={address}", as_typed=True).out
    assert said == f"{address}: an address; copies of files from there are in datasets/.cache/remote\n"
