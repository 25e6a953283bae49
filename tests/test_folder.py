"""Folders of images: layouts, refusals, the cache of decoded images, streaming."""

import functools
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli, assert_refused, write_class_folders
from PIL import Image

from trainer.data import decoded, folder, workers
from trainer.data.folder import ImageFiles, class_folders, memory_available
from trainer.data.images import Frame
from trainer.data.splits import Source, cut
from trainer.utils.errors import ConfigError


def plant(root: Path, *, parts: tuple[str, ...] = ("",), classes: str = "ab", count: int = 10) -> Path:
    """A tree of plain grey 4x4 images: image i of class k has the value 100 * k + i."""
    for part in parts:
        for k, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("L", (4, 4), 100 * k + i).save(root / part / name / f"{i:02d}.png")
    return root


def load(root: Path, **options: Any) -> Source:
    return class_folders(Path(), root.parent / "cache", root=str(root), **{"size": 4, "channels": 1} | options)


def values(source: Source, part: str = "train") -> list[tuple[int, int]]:
    """(grey value, label) of each image of a part."""
    split = getattr(source, part)
    return [(int(split.x[i][0, 0, 0]), int(split.y[i])) for i in range(len(split))]


EVERY = [(100 * k + i, k) for k in range(2) for i in range(10)]


def test_given_parts_are_taken_as_they_are(tmp_path: Path) -> None:
    source = load(plant(tmp_path / "p", parts=("train", "test", "val")))
    assert values(source) == values(source, "test") == values(source, "val") == EVERY
    assert source.classes == ("a", "b")
    assert source.in_shape == (1, 4, 4)


def test_without_a_test_folder_a_stratified_test_is_cut(tmp_path: Path) -> None:
    source = load(plant(tmp_path / "p"), test_fraction=0.2)
    assert [label for _, label in values(source, "test")] == [0, 0, 1, 1]
    assert sorted(values(source) + values(source, "test")) == EVERY
    assert source.val is None
    assert values(load(tmp_path / "p", test_fraction=0.2), "test") == values(source, "test")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    root = plant(tmp_path / "p")
    (root / "a").rename(root / "train")
    assert load(root).classes == ("b", "train")


def test_mean_and_std_are_those_of_the_training_pixels(tmp_path: Path) -> None:
    source = load(plant(tmp_path / "p"), test_fraction=0.3)
    pixels = source.train.x.numpy() / 255.0
    assert np.allclose(source.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(source.std, pixels.std((0, 2, 3)), rtol=1e-9)


def test_other_files_are_ignored_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plant(tmp_path / "p")
    for name in ("a/notes.txt", "a/.hidden.png", "readme.md"):
        (root / name).write_text("x")
    (root / ".git").mkdir()
    assert len(load(root).train) == 18
    assert "20 images in memory, 0 MB (2 other files ignored)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "test" / "b").rename(root / "test" / "c"), "it lacks b and has c in addition"),
        (lambda root: [p.unlink() for p in (root / "train" / "a").iterdir()], "no images"),
        (lambda root: (root / "train" / "b").rename(root / "train" / ".b"), "only the class 'a'"),
        (lambda root: root.rename(root.parent / "pp"), r"there is no such folder\. Did you mean \S+/pp\?"),
    ],
)
def test_a_tree_that_is_no_data_set_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    root = plant(tmp_path / "p", parts=("train", "test"))
    spoil(root)
    with pytest.raises(ConfigError, match=message):
        load(root)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with pytest.raises(ConfigError, match="no class folders"):
        load(tmp_path / "p")


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root is missing"):
        class_folders(tmp_path, tmp_path)


@pytest.mark.parametrize("resident", [True, False])
def test_a_bad_image_is_named(tmp_path: Path, resident: bool) -> None:
    root = plant(tmp_path / "p")
    (root / "a" / "03.png").write_text("no image")
    with pytest.raises(ConfigError, match=r"1 image.*data\.on_error=skip(.|\n)*a/03\.png: not an image"):
        load(root, resident=resident)


@pytest.mark.parametrize("resident", [True, False])
def test_skip_leaves_out_the_same_images_on_every_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], resident: bool
) -> None:
    root = plant(tmp_path / "p", parts=("train", "test"))
    (root / "train" / "a" / "03.png").write_text("no image")
    (root / "test" / "b" / "dead.png").symlink_to("nowhere")
    for _ in range(2):
        source = load(root, on_error="skip", resident=resident)
        assert values(source) == [pair for pair in EVERY if pair != (3, 0)]
        assert values(source, "test") == EVERY
        printed = capsys.readouterr().out
        assert "2 images cannot be read, left out" in printed
        assert "b/dead.png: dead link" in printed


def test_a_class_of_bad_images_only_is_refused(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", count=2)
    for path in (root / "b").iterdir():
        path.write_text("no image")
    with pytest.raises(ConfigError, match="no training image of b can be read"):
        load(root, on_error="skip")


def test_the_test_part_leaves_a_rare_class_in_training(tmp_path: Path) -> None:
    root = plant(tmp_path / "p")
    for path in sorted((root / "b").iterdir())[1:]:
        path.unlink()
    source = load(root, test_fraction=0.8)
    assert torch.bincount(source.train.y).tolist() == [1, 1]
    assert torch.bincount(source.test.y).tolist() == [9]
    with pytest.raises(ConfigError, match=r"no training image of .* is left when data\.test_fraction=0\.9 is cut off"):
        load(root, test_fraction=0.9)


def test_the_second_start_does_not_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path / "p")
    first = load(root)
    monkeypatch.setattr(decoded, "decode", None)
    second = load(root)
    assert torch.equal(first.train.x, second.train.x)
    assert (first.mean, first.std, first.sha256) == (second.mean, second.std, second.sha256)


def test_a_changed_image_is_decoded_again(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", parts=("train", "test"))
    before = load(root)
    Image.new("L", (4, 4), 55).save(root / "train" / "a" / "00.png")
    os.utime(root / "train" / "a" / "00.png", ns=(1, 1))  # clocks of file systems are coarse
    assert values(load(root))[0] == (55, 0)
    assert load(root).sha256 != before.sha256


def copy_of(root: Path, to: Path) -> Path:
    """A copy with other times."""
    shutil.copytree(root, to, copy_function=shutil.copyfile)
    return to


@pytest.mark.parametrize("resident", [True, False])
def test_the_digest_is_of_the_contents(tmp_path: Path, resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "SAMPLE", 2)
    root = plant(tmp_path / "p", parts=("train", "test"))
    for path in sorted(root.rglob("*.png")):
        Image.open(path).resize((300, 300)).save(path.with_suffix(".bmp"))  # 90 kB: edits lie anywhere
        path.unlink()
    whole = load(root, resident=resident).sha256
    assert load(copy_of(root, tmp_path / "q"), resident=resident).sha256 == whole
    assert load(root, resident=not resident).sha256 == whole
    for place in ("train/a/03.bmp", "test/b/09.bmp"):
        path = root / place
        data, times = bytearray(path.read_bytes()), path.stat()
        data[45_000] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert load(root, resident=resident).sha256 != whole, place
        data[45_000] ^= 1
        path.write_bytes(data)
        assert load(root, resident=resident).sha256 == whole


def test_the_digest_of_earlier_versions_is_kept_beside(tmp_path: Path) -> None:
    root = plant(tmp_path / "p", parts=("train", "test"), count=2)
    files = [f"{part}/{name}/0{i}.png" for part in ("train", "test") for name in "ab" for i in range(2)]
    lines = "\n".join(repr((name, (root / name).stat().st_size)) for name in files)
    assert load(root).earlier_sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_sets_of_equal_names_sizes_and_times_do_not_share_a_cache_entry(tmp_path: Path) -> None:
    """As git archive and image layers leave them; also where the times of the entries are equal and the place is."""
    one, two = plant(tmp_path / "one" / "p", parts=("train", "test")), tmp_path / "two" / "p"
    for path in sorted(one.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    shutil.copytree(one, two)
    for part in ("train", "test"):  # the classes change places
        (two / part / "a").rename(two / part / "c")
        (two / part / "b").rename(two / part / "a")
        (two / part / "c").rename(two / part / "b")
    for path in (*one.rglob("*"), *two.rglob("*")):
        os.utime(path, ns=(10**18, 10**18))
    cache = tmp_path / "cache"
    options: Any = {"size": 4, "channels": 1}
    first = class_folders(Path(), cache, root=str(one), **options)
    second = class_folders(Path(), cache, root=str(two), **options)
    assert [int(first.train.x[i].max()) for i in (0, 10)] == [0, 100]
    assert [int(second.train.x[i].max()) for i in (0, 10)] == [100, 0]
    assert len(list(cache.iterdir())) == 2  # neither took the other for an earlier state of itself
    names = ["train/a/00.bmp", "train/b/00.bmp"]
    stamps = [(1, 1, 1)] * 2
    key = functools.partial(decoded._entry_name, frame=Frame((1, 4, 4)), keep=True, wanted=None)
    before = key(one, names, stamps)
    assert before == key(one, names, stamps)
    assert before != key(two, names, stamps)
    one.rename(tmp_path / "moved")
    two.rename(one)
    assert before != key(one, names, stamps)  # another set mounted at the same place


def test_the_cache_keeps_one_entry_of_a_set_and_a_limit_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    for name in ("p", "q"):
        load(plant(tmp_path / name, parts=("train", "test")))
    Image.new("L", (4, 4), 55).save(tmp_path / "p" / "train" / "a" / "00.png")
    load(tmp_path / "p")
    assert sorted(path.name[:6] for path in cache.iterdir()) == ["p-1x4-", "q-1x4-"]
    (cache / "best.pt").write_text("not ours")
    size = sum(path.stat().st_size for path in cache.glob("[pq]-*"))
    monkeypatch.setattr(decoded, "CACHE_BYTES", size)
    load(tmp_path / "q")  # used again: p is now the one not used for longest
    load(plant(tmp_path / "r", parts=("train", "test")))
    assert sorted(path.name[:6] for path in cache.iterdir()) == ["best.p", "q-1x4-", "r-1x4-"]
    assert "1 old set removed" in capsys.readouterr().out


NAMES = [("train", "valid", "testing"), ("Train", "Validation", "Test"), ("training", "val", "TEST")]


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_parts_are_known_by_the_names_that_tools_give_them(tmp_path: Path, names: tuple[str, ...]) -> None:
    source = load(plant(tmp_path / "p", parts=names))
    assert source.val is not None
    assert values(source) == values(source, "val") == values(source, "test") == EVERY
    assert source.classes == ("a", "b")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("train", "val", "valid"), "val and valid are both taken as the val part"),
        (("train", "Train"), "Train and train are both taken as the train part"),
        (("test", "valid"), "test holds folders, like a test part, but there is no train folder"),
    ],
)
def test_parts_that_cannot_be_told_are_refused_by_name(tmp_path: Path, parts: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(plant(tmp_path / "p", parts=parts))


def test_parts_without_class_folders_are_no_classes(tmp_path: Path) -> None:
    root = plant(tmp_path / "p")
    (root / "a").rename(root / "train")
    (root / "b").rename(root / "test")
    with pytest.raises(ConfigError, match="test, train hold images but no class folders"):
        load(root)


def test_a_test_part_beside_class_folders_is_not_a_class(tmp_path: Path) -> None:
    root = plant(tmp_path / "p")
    plant(root / "test")
    with pytest.raises(ConfigError, match="there is no train folder"):
        load(root)


@pytest.mark.parametrize("resident", [True, False])
def test_images_in_folders_inside_a_class_belong_to_it(
    tmp_path: Path, resident: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    root = plant(tmp_path / "p", parts=("train", "test"))
    (root / "train" / "a" / "x" / "y").mkdir(parents=True)
    for i in range(5, 10):
        (root / "train" / "a" / f"0{i}.png").rename(root / "train" / "a" / "x" / "y" / f"0{i}.png")
    (root / "train" / "b").rename(tmp_path / "elsewhere")
    (root / "train" / "b").symlink_to(tmp_path / "elsewhere")
    for name in ("loose.png", "train/loose.jpg", "extra/a.png", "readme.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"1")
    source = load(root, resident=resident)
    assert values(source) == EVERY
    assert source.train.names[5] == "train/a/x/y/05.png"
    said = f"3 images in no class folder, left out: {root}/loose.png, {root}/train/loose.jpg, {root}/extra/a.png"
    assert said in capsys.readouterr().out


def test_a_range_that_16_bit_files_do_not_fill_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plant(tmp_path / "p", parts=("train", "test"))
    for path in root.rglob("*.png"):
        Image.fromarray(np.full((4, 4), 4000, dtype=np.uint16)).save(path)
    Image.fromarray(np.full((4, 4), 4095, dtype=np.uint16)).save(root / "train" / "a" / "00.png")
    for _ in range(2):  # from the cache too
        assert values(load(root))[0] == (16, 0)
        assert "up to 4,095 of the 65,536 levels of data.depth=16; data.depth=12 makes" in capsys.readouterr().out
    assert values(load(root, depth=12))[0] == (255, 0)
    assert "data.depth" not in capsys.readouterr().out
    assert values(load(root, depth=8))[0] == (255, 0)
    assert "data.depth=8 makes all above 255 white" in capsys.readouterr().out
    assert [int(image.max()) for image in load(root, depth=12, resident=False).train.x][:2] == [255, 249]


@pytest.mark.parametrize("resident", ["true", "false"])
def test_floats_of_two_ranges_in_one_set_are_refused_by_name(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, resident: str
) -> None:
    root = tmp_path / "p"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(np.full((8, 8), 0.0 if i == 5 else 0.5, dtype=np.float32)).save(root / name / f"{i}.tif")
    words = ("data=folder", f"data.root={root}", "data.size=8", f"data.resident={resident}", "data.workers=0")
    words = (
        *words,
        "model=mlp",
        "model.num_hiddens=[4]",
        "batch_size=4",
        "epochs=1",
        "plots=false",
        "data.augment=none",
    )
    assert cli(*words, "name=black").code == 0  # black is black in either range
    Image.fromarray(np.full((8, 8), 128, dtype=np.float32)).save(root / "b" / "5.tif")
    told = "10 images, such as a/0.tif, with floats up to 1"
    for _ in range(2):  # from the cache too
        outcome = cli(*words, "name=mixed")
        assert_refused(outcome, "data.root", told, "and 1, such as b/5.tif, with floats above 1")
    assert not Path("outputs/mixed").exists()
    with monkeypatch.context() as earlier:  # a run that an earlier version began continues
        earlier.setattr(folder, "mixed_floats", lambda seen: "")
        assert cli(*words, "name=mixed").code == 0
    outcome = cli("resume=mixed", "epochs=2")
    assert outcome.code == 0, outcome.err
    assert f"warning: {told}" in outcome.out
    outcome = cli("predict", "mixed", str(root))
    assert f"such as {root}/a/0.tif, with floats up to 1" in outcome.out


@pytest.mark.parametrize("resident", [True, False])
def test_depth_auto_is_the_fewest_bits_that_hold_the_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], resident: bool
) -> None:
    root = plant(tmp_path / "p", parts=("train", "test"))
    assert load(root, depth="auto").depth == 16  # 8-bit files: nothing to scale
    for path in root.rglob("*.png"):
        Image.fromarray(np.full((4, 4), 4000, dtype=np.uint16)).save(path)
    Image.fromarray(np.full((4, 4), 4095, dtype=np.uint16)).save(root / "train" / "a" / "00.png")
    capsys.readouterr()
    for _ in range(2):  # from the cache too
        source = load(root, depth="auto", resident=resident)
        assert source.depth == 12
        assert values(source)[:2] == [(255, 0), (249, 0)]
        said = capsys.readouterr().out
        assert "data.depth=auto: 12, since the 16-bit images hold values up to 4,095" in said
        assert "warning" not in said


def test_what_is_lost_of_a_set_is_said_with_its_first_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plant(tmp_path / "p", parts=("train", "test"))
    for name in ("train/b/03", "test/a/01"):
        Image.fromarray(np.full((4, 4), 4095, np.float32)).save(root / f"{name}.tif")
    for _ in range(2):  # from the cache too
        load(root)
        said = capsys.readouterr().out
        assert "warning: 2 images, such as train/b/03.tif, with values below black or above white" in said


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    root = plant(tmp_path / "p", parts=("train", "test"))
    load(root)
    (path,) = (tmp_path / "cache").glob("*.pt")
    data = bytearray(path.read_bytes())
    at = data.index(bytes([107] * 16))  # the pixels of one image
    data[at] ^= 1
    torch.save({"pixels": 1, "crc": 2}, tmp_path / "other")
    other = (tmp_path / "other").read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "bit": data, "empty": b"", "other": other}[damage])
    assert values(load(root)) == EVERY


def test_no_temporary_file_stays_in_the_cache(tmp_path: Path) -> None:
    load(plant(tmp_path / "p"))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".pt"]


def test_what_a_killed_process_left_in_the_cache_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / ".tmp-0123").write_bytes(b"half of a set")
    (cache / ".tmp-4567").touch()
    lock = "import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    writing = [sys.executable, "-c", lock, str(cache / ".tmp-4567")]
    with subprocess.Popen(writing, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        load(plant(tmp_path / "p", parts=("train", "test")))
        assert [path.name for path in cache.glob(".tmp-*")] == [".tmp-4567"]
        other.kill()
    load(plant(tmp_path / "q", parts=("train", "test")))
    assert not list(cache.glob(".tmp-*"))


def test_a_set_is_written_to_the_cache_under_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def save(content: Any, file: Any) -> None:
        code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        held.append(subprocess.run([sys.executable, "-c", code, file.name], capture_output=True).returncode)

    monkeypatch.setattr(torch, "save", save)
    load(plant(tmp_path / "p", parts=("train", "test")))
    assert held
    assert set(held) == {1}


def test_a_cache_that_cannot_be_written_only_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plant(tmp_path / "p", parts=("train", "test"))
    (tmp_path / "cache").write_text("a file, not a folder")
    assert values(load(root)) == EVERY
    assert "cannot be written" in capsys.readouterr().out


def test_many_processes_decode_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path / "p", classes="ab", count=100)
    (root / "a" / "07.png").write_text("no image")
    monkeypatch.setattr(workers, "MESSAGE_BYTES", 16 * 10)  # ten images a message
    state = torch.random.get_rng_state()
    alone = load(root, on_error="skip")
    monkeypatch.setattr(decoded, "MIN_FOR_WORKERS", 1)
    (path,) = (tmp_path / "cache").glob("*.pt")
    path.unlink()
    together = load(root, on_error="skip")
    assert torch.equal(alone.train.x, together.train.x)
    assert alone.sha256 == together.sha256
    assert torch.equal(state, torch.random.get_rng_state())


def test_streamed_images_equal_those_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plant(tmp_path / "p")
    streamed, resident = load(root, resident=False), load(root, resident=True)
    assert values(streamed) == values(resident)
    assert values(streamed, "test") == values(resident, "test")
    assert "streamed from disk: data.resident=false" in capsys.readouterr().out
    assert np.allclose(streamed.mean, resident.mean, atol=0.05)  # the sample also has images of the cut test part
    splits = cut(streamed, val_fraction=0.5, split_seed=0)
    assert len(splits.val) == 9
    assert splits.val.x[0].shape == (1, 4, 4)


def test_a_sample_far_smaller_than_the_set_is_not_all_of_the_test_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(tmp_path / "p", count=40)
    monkeypatch.setattr(folder, "SAMPLE", 6)
    source = load(root, resident=False, test_fraction=0.4)
    assert np.isfinite(source.mean).all()
    assert np.isfinite(source.std).all()


def test_auto_streams_what_needs_more_than_half_of_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = plant(tmp_path / "p")
    monkeypatch.setitem(class_folders.__globals__, "memory_available", lambda: 2 * 20 * 16)
    assert not isinstance(load(root).train.x, torch.Tensor)
    monkeypatch.setitem(class_folders.__globals__, "memory_available", lambda: 2 * 20 * 16 + 2)
    assert isinstance(load(root).train.x, torch.Tensor)
    assert "is more than half of the 0 MB available" in capsys.readouterr().out


def test_image_files_can_be_sent_to_a_worker(tmp_path: Path) -> None:
    root = plant(tmp_path / "p")
    files = pickle.loads(pickle.dumps(ImageFiles(root, ["b/01.png"], Frame((3, 4, 4)))))
    assert files[0].unique().tolist() == [101]
    (root / "b" / "01.png").unlink()
    with pytest.raises(ConfigError, match=r"b/01\.png: no such file"):
        files[0]


def test_memory_available_is_plausible() -> None:
    assert 0 < memory_available() < 2**50


def test_options_that_a_set_has_no_use_for_are_named(cli: Cli, tmp_path: Path) -> None:
    plant(tmp_path / "p", parts=("train", "test", "val"), count=30)
    words = ("data=folder", "data.root=p", "data.size=8", "model=softmax", "epochs=1", "batch_size=10", "plots=false")
    typed = ("data.val_fraction=0.2", "data.split_seed=3", "data.test_fraction=0.5", "data.workers=2")
    outcome = cli(*words, *typed)
    assert outcome.code == 0, outcome.err
    for word in typed:
        assert f"warning: {word.partition('=')[0]} has no effect: the " in outcome.out
    assert "no effect" not in cli(*words, "data.limit=20", "data.split_seed=3").out


@pytest.mark.parametrize("on_error", ["skip", "fail"])
def test_many_unreadable_images_are_all_listed_in_a_file(on_error: str, tmp_path: Path, cli: Cli) -> None:
    root = write_class_folders(tmp_path / "fotos \u00fc", {"": 9})
    for i in range(7):
        sorted(root.iterdir())[0].joinpath(f"bad{i}.png").write_bytes(b"no")
    words = (
        "data=folder",
        f"data.root={root}",
        f"data.on_error={on_error}",
        "model=softmax",
        "epochs=1",
        "plots=false",
    )
    outcome = cli(*words)
    assert outcome.code == (0 if on_error == "skip" else 2)
    assert "7 images cannot be read" in outcome.out + outcome.err
    listed = Path("datasets/.cache/fotos__-unreadable.txt")
    assert f"and 2 more, all of them in {listed}" in outcome.out + outcome.err
    assert [f"bad{i}.png" in line for i, line in enumerate(listed.read_text(encoding="utf-8").splitlines())] == [
        True
    ] * 7
    Path("afile").touch()  # where no cache can be
    again = cli(*words, "paths.cache=afile/x")
    assert again.code == outcome.code
    assert "bad0.png: not an image" in again.out + again.err
    assert "and 2 more\n" in again.out + again.err


def test_fit_size_and_limit_are_those_of_the_training_in_eval_and_predict(cli: Cli, tmp_path: Path) -> None:
    """Wide images whose class is told by their left edge alone, which crop would cut away."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 30), ("test", 4), ("other/test", 4), ("other/train", 4)):
        for k in range(2):
            (tmp_path / "p" / part / f"k{k}").mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 40, (8, 32), dtype=np.uint8)
                pixels[:, :8] = 255 * k
                Image.fromarray(pixels).save(tmp_path / "p" / part / f"k{k}" / f"{i}.png")
    (tmp_path / "p/other").rename(tmp_path / "other")
    words = ("data=folder", "data.root=p", "data.size=8", "model=softmax", "epochs=3", "plots=false", "name=a")
    outcome = cli(*words, "data.fit=squash", "data.interpolation=bicubic", "data.augment=none", "data.eval_limit=6")
    assert "squashed to 8 x 8 pixels (data.fit, data.size)" in outcome.out
    assert "accuracy 1.0000" in outcome.out
    assert "on 6 examples" in outcome.out
    assert (
        "data.eval_limit has no effect on eval: it is for" in cli("eval", "a", "data.eval_limit=2", "split=train").out
    )
    for more, said in (((), "on 6 examples"), (("data.eval_limit=null",), "on 8 examples")):
        outcome = cli("eval", "checkpoint=a", *more, "plots=false")
        assert "accuracy 1.0000" in outcome.out
        assert said in outcome.out
    for verb in (("eval", "data=folder", "data.root=other", "data.size=8"), ("predict", "input=other")):
        assert "accuracy 1.0000" in cli(verb[0], "checkpoint=a", *verb[1:], "plots=false").out, verb
    assert "data.fit has no effect" in cli("eval", "checkpoint=a", "data.fit=pad", "plots=false").out
    assert_refused(cli("predict", "checkpoint=a", "input=other", "data.max_megapixels=0.0001"), "too large: 32 x 8")


@pytest.mark.parametrize("verb", [("model=lenet", "name=b"), ("eval", "checkpoint=a")])
def test_what_shapes_alone_refuse_is_refused_before_an_image_is_decoded(
    verb: tuple[str, ...], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "p", {"train": 12, "test": 3})
    words = ("data=folder", "data.root=p", "data.size=8", "plots=false")
    assert cli(*words, "model=softmax", "epochs=1", "name=a").code == 0
    monkeypatch.setattr(decoded, "decode", None)
    wrong = "data.size=10" if verb[0] == "eval" else "data.size=8"
    outcome = cli(*verb, *words[:2], wrong, "paths.cache=another")
    assert_refused(outcome, "Type data.channels=3 data.size=8" if verb[0] == "eval" else "12x12 or more")
    assert "decoding" not in outcome.out


def test_a_set_of_many_chunks_needs_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    monkeypatch.setattr(workers, "MESSAGE_BYTES", 1)  # a message for each image
    monkeypatch.setattr(workers, "num_cores", lambda: 2)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 300, before[1]))
    try:
        found = decoded.decode_files(tmp_path, ["a.png"] * 1000, Frame((3, 8, 8)), keep=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert found.sums.shape == (1000, 2, 3)
