"""Files of data sets: written whole or not at all, checked by digest, and fetched without waiting for ever.

What the files mean is known in vision.py and folder.py.
"""

import hashlib
import http.client
import os
import queue
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainer.utils.errors import ConfigError

PATIENCE = 7.0  # seconds without a byte, over all addresses of a file; an offline machine is to hear of it within 10
MAX_BYTES = 256 * 2**20  # the largest official archive has 163 MiB
CHUNK = 2**18


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp makes files that only the owner reads; data folders are shared
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def save(path: Path, data: bytes) -> None:
    """Keep what was fetched or unpacked; a read-only or full disk costs the next start, not this one."""
    try:
        with temporary_beside(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        print(f"warning: {path} cannot be written ({error}); the next start fetches it again", flush=True)


def read(path: Path) -> bytes:
    """All bytes of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error


def digest(data: bytes, kind: str = "SHA-256") -> str:
    """The hexadecimal digest; kind is SHA-256 or MD5."""
    return hashlib.new(kind.replace("-", "").lower(), data, usedforsecurity=False).hexdigest()


def require(path: Path, data: bytes, kind: str, expected: str) -> None:
    """Refuse the contents of a file whose digest is not the expected one.

    Raises:
        ConfigError: with the file, both digests and what to do.
    """
    found = digest(data, kind)
    if found != expected:
        raise ConfigError(
            f"{path}: its {kind} is {found}, expected {expected}. It is damaged or not the official file. "
            "Delete it and start again to download it; another server: data.mirror=ADDRESS."
        )


def folder_address(mirror: str) -> str:
    """A mirror's address, to which a file name can be added.

    Raises:
        ConfigError: it is no http or https address.
    """
    if not mirror.startswith(("http://", "https://")):
        raise ConfigError(f"data.mirror={mirror} is no address. Allowed: http://... or https://...")
    return mirror.rstrip("/") + "/"


def checker(expected: str, unpack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A check for download(): unpacks, and raises ValueError where the SHA-256 of the result is another."""

    def check(data: bytes) -> bytes:
        data = unpack(data)
        if digest(data) != expected:
            raise ValueError(f"sends something else: SHA-256 {digest(data)}, expected {expected}")
        return data

    return check


def download(path: Path, addresses: Sequence[str], check: Callable[[bytes], bytes], files: str) -> bytes:
    """What fetch() gets for the missing file `path`; `files` are all that the set needs from there.

    Raises:
        ConfigError: with the path, the addresses, the reasons and what to do without a network.
    """
    try:
        return fetch(addresses, check)
    except ConnectionError as error:
        raise ConfigError(
            f"{path} is missing and could not be downloaded:\n{error}\n"
            f"Without a network: fetch {files} from there elsewhere and put them into {path.parent}, or name a "
            "folder that has this layout with paths.data=FOLDER. Another server: data.mirror=ADDRESS."
        ) from error


def fetch(addresses: Sequence[str], check: Callable[[bytes], bytes]) -> bytes:
    """Try the addresses in turn until one gives bytes that pass `check`.

    A transfer that makes progress is never cut off, however slow. One that gives no byte for PATIENCE seconds, shared
    between the addresses, is left behind.

    Args:
        check: gets all bytes, returns what is wanted of them, raises ValueError with the reason if they are wrong.
    Raises:
        ConnectionError: none did; the message has one line per address with the reason.
    """
    reasons = []
    for address in addresses:
        try:
            return check(_transfer(address, PATIENCE / len(addresses)))
        except (OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(f"  {address}: {error}")
    raise ConnectionError("\n".join(reasons))


def _transfer(address: str, patience: float) -> bytes:
    """All bytes behind an address, read in a thread of its own: a name server that is silent ignores every timeout."""
    chunks: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=64)  # bounds what an abandoned thread holds
    threading.Thread(target=_pump, args=(address, patience, chunks), daemon=True).start()
    data = bytearray()
    last = time.monotonic()
    while True:
        try:
            chunk = chunks.get(timeout=max(0.0, last + patience - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"no answer within {patience:.0f} s, given up after {len(data):,} bytes") from None
        if chunk is None:
            return bytes(data)
        if isinstance(chunk, Exception):
            raise chunk
        data += chunk
        last = time.monotonic()
        if len(data) > MAX_BYTES:
            raise ValueError(f"sends more than {MAX_BYTES:,} bytes")


def _pump(address: str, patience: float, chunks: "queue.Queue[bytes | Exception | None]") -> None:
    """Put what arrives into the queue, then None, or the error that ended it."""
    try:
        with urllib.request.urlopen(address, timeout=patience) as response:
            expected, got = response.headers.get("Content-Length"), 0
            while chunk := response.read1(CHUNK):
                got += len(chunk)
                chunks.put(chunk)
            if expected is not None and got < int(expected):
                raise ConnectionError(f"broke off after {got:,} of {int(expected):,} bytes")
        chunks.put(None)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        chunks.put(ConnectionError(f"HTTP status {error.code}, {error.reason}"))
    except urllib.error.URLError as error:
        chunks.put(ConnectionError(str(error.reason)))
    except Exception as error:  # every reason is the reader's to report
        chunks.put(error)
