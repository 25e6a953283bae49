"""Which tar files data=shards reads: those of a folder, of a pattern or at an address, by part."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from trainer.data.listing import PART_OF, PARTS
from trainer.data.remote import Stored, is_address, names_at, stored
from trainer.utils.errors import ConfigError
from trainer.utils.program import main_py

COUNTING = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 100_000


def files_of_parts(root: str, test_root: str | None, cache: Path, most: int) -> dict[str, list[Stored]]:
    """The tar files of each part; cache and most as for stored().

    Raises:
        ConfigError: one is missing.
    """
    names = parts_in(root)
    if test_root is not None:
        names["test"] = tars_in(test_root) or expanded_names(test_root)
    return {part: whole_set(some, cache, most) for part, some in names.items()}


def parts_in(root: str) -> dict[str, list[str]]:
    """The tar files of each part, in the order of their names; one part, train, where the names do not say otherwise.

    Raises:
        ConfigError: there are none, or none to train on.
    """
    if (files := tars_in(root)) is None:
        return {"train": expanded_names(root)}
    last = {name: os.path.basename(name) for name in files}
    named = {part: [name for name in files if last[name].lower().startswith(f"{part}-")] for part in PARTS}
    if not named["train"]:
        words = {word for name in files for word in re.findall("[a-z]+", last[name].lower())}
        if len({PART_OF[word] for word in words & set(PART_OF)}) > 1:
            raise ConfigError(f"{root}: which files are to be tested? Name both: data.root=FILES data.test_root=FILES")
        return {"train": files}
    if odd := [last[name] for name in files if not any(name in part for part in named.values())]:
        raise ConfigError(f"{root}: there are train-*.tar, and {odd[0]} belongs to no part. Rename or move it.")
    return {part: files for part, files in named.items() if files}


def tars_in(root: str) -> list[str] | None:
    """The tar files of a folder, here or at an address, in the order of their names; None: it is no folder.

    Raises:
        ConfigError: there are none.
    """
    if is_address(root):
        is_folder = COUNTING.search(root) is None and not root.partition("?")[0].endswith(".tar")
        names = names_at(root) if is_folder else []
    else:
        is_folder = Path(root).expanduser().is_dir()
        names = sorted(str(path) for path in Path(root).expanduser().iterdir()) if is_folder else []
    files = [name for name in names if name.endswith(".tar") and not os.path.basename(name).startswith(".")]
    if is_folder and not files:
        raise ConfigError(
            f"{root}: there are no tar files in it. {main_py()} data pack folder data.root=PHOTOS makes some."
        )
    return files if is_folder else None


def expanded_names(pattern: str) -> list[str]:
    """The files of a pattern: `a-{00..12}.tar` are thirteen; without braces it is one file.

    Raises:
        ConfigError: they are too many.
    """
    match = COUNTING.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MOST_SHARDS:
        raise ConfigError(f"data.root={pattern}: {match[0]} counts up, at most to {MOST_SHARDS:,} files.")
    width = len(match[1])
    return [f"{pattern[: match.start()]}{n:0{width}}{pattern[match.end() :]}" for n in range(first, last + 1)]


def whole_set(names: Sequence[str], cache: Path, most: int) -> list[Stored]:
    """The files of these names; cache and most as for stored().

    Raises:
        ConfigError: one of them is missing.
    """
    found = {name: stored(name, cache, most) for name in names}
    if missing := [name for name, file in found.items() if file is None]:
        many = f" ({len(missing):,} of {len(names):,} files are missing)" if len(names) > 1 else ""
        raise ConfigError(
            f"{missing[0]}: there is no such file{many}. Allowed: a tar file, train-{{000..127}}.tar, a folder."
        )
    return [file for file in found.values() if file is not None]
