"""Files of data sets: written whole or not at all, checked by digest, and downloaded without waiting for ever.

vision.py and folder.py know what the files mean.
"""

import hashlib
import http.client
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.utils.bar import Bar
from trainer.utils.errors import ConfigError
from trainer.utils.files import replacing
from trainer.utils.text import emit, one_line

PATIENCE = 7.0  # seconds without a byte, over all addresses of a file: an offline machine gets its error within 10 s
MAX_BYTES = 256 * 2**20  # the largest official archive has 163 MiB
CHUNK = 2**18


def save(path: Path, data: bytes) -> None:
    """Keep what was downloaded or unpacked; a read-only or full disk is a warning, since the data is in memory."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        emit(f"warning: {path} cannot be written ({error}); the next start fetches it again")


def read(path: Path) -> bytes:
    """Return all bytes of a file, or raise a ConfigError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error


def digest(data: bytes, kind: str = "SHA-256") -> str:
    """Return the hexadecimal digest; kind is SHA-256 or MD5."""
    return hashlib.new(kind.replace("-", "").lower(), data, usedforsecurity=False).hexdigest()


def require(path: Path, data: bytes, kind: str, expected: str) -> None:
    """Raise a ConfigError if the digest of a file's content is not the expected one."""
    found = digest(data, kind)
    if found != expected:
        raise ConfigError(
            f"{path}: its {kind} is {found}, expected {expected}. It is damaged or not the official file. "
            "Delete it and start again to download it; another server: data.mirror=ADDRESS."
        )


def folder_address(mirror: str) -> str:
    """Return a mirror's address with a slash at its end, or raise a ConfigError if it is no http or https address."""
    if not mirror.startswith(("http://", "https://")):
        raise ConfigError(f"data.mirror={mirror} is not an address. Allowed: http://... or https://...")
    return mirror.rstrip("/") + "/"


def checker(expected: str, unpack: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Return a check for download() that unpacks and raises ValueError if the SHA-256 of the result is another."""

    def check(data: bytes) -> bytes:
        data = unpack(data)
        if digest(data) != expected:
            raise ValueError(f"sends something else: SHA-256 {digest(data)}, expected {expected}")
        return data

    return check


def download(path: Path, addresses: Sequence[str], check: Callable[[bytes], bytes], files: str) -> bytes:
    """Return what fetch() gets for a missing file.

    Args:
        path: the missing file.
        addresses: where it may be.
        check: see fetch().
        files: all files that the set needs from there, for the message.
    Raises:
        ConfigError: with the path, the addresses, the reasons and what to do without a network.
    """
    try:
        return fetch(addresses, check)
    except ConnectionError as error:
        raise ConfigError(
            f"{path} is missing and could not be downloaded:",
            *str(error).split("\n"),
            f"Without a network: download {files} on another machine and put them into {path.parent}, or name a "
            "folder that has this layout with paths.data=FOLDER. Another server: data.mirror=ADDRESS.",
        ) from error


def fetch(addresses: Sequence[str], check: Callable[[bytes], bytes], most: int = MAX_BYTES) -> bytes:
    """Try the addresses in turn until one gives bytes that pass `check`.

    A transfer that makes progress is never cut off, however slow. One that gives no byte for PATIENCE seconds, divided
    among the addresses, is abandoned.

    Args:
        addresses: URLs of the same file.
        check: gets all bytes, returns what is wanted of them, raises ValueError with the reason if they are wrong.
        most: bytes.
    Raises:
        ConnectionError: no address gave them; the message has one line per address with the reason.
    """
    reasons = []
    for address in addresses:
        try:
            return check(_transfer(address, PATIENCE / len(addresses), most))
        except (OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(one_line(f"  {address}: {error}"))
    raise ConnectionError("\n".join(reasons))


def _transfer(address: str, patience: float, most: int) -> bytes:
    """Return all bytes of an address, read in a thread: looking up a name at a silent server ignores every timeout."""
    chunks: queue.Queue[bytes | int | Exception | None] = queue.Queue(
        maxsize=64
    )  # bounds what an abandoned thread holds
    threading.Thread(target=_pump, args=(address, patience, chunks), daemon=True).start()
    data = bytearray()
    last = time.monotonic()
    with Bar("downloading", 0, "bytes") as bar:
        while True:
            try:
                chunk = chunks.get(timeout=max(0.0, last + patience - time.monotonic()))
            except queue.Empty:
                chunk = TimeoutError()
            if isinstance(chunk, TimeoutError):  # the socket's own may come first
                raise TimeoutError(f"no answer within {patience:.0f} s, given up after {len(data):,} bytes")
            if chunk is None:
                return bytes(data)
            if isinstance(chunk, Exception):
                raise chunk
            last = time.monotonic()
            if isinstance(chunk, int):
                bar.total = chunk
                continue
            data += chunk
            bar.add(len(chunk))
            if len(data) > most:
                raise ValueError(f"sends more than {most:,} bytes")


def _pump(address: str, patience: float, chunks: "queue.Queue[bytes | int | Exception | None]") -> None:
    """Put the length into the queue if it is told, what arrives, then None or the error that ended the transfer."""
    try:
        with urllib.request.urlopen(address, timeout=patience) as response:
            expected, got = response.headers.get("Content-Length"), 0
            chunks.put(int(expected or 0))
            while chunk := response.read1(CHUNK):
                got += len(chunk)
                chunks.put(chunk)
            if expected is not None and got < int(expected):
                raise ConnectionError(f"broke off after {got:,} of {int(expected):,} bytes")
        chunks.put(None)
    except urllib.error.HTTPError as error:
        error.close()  # the error holds the connection
        chunks.put(ConnectionError(f"HTTP status {error.code}, {error.reason}"))
    except urllib.error.URLError as error:
        chunks.put(ConnectionError(str(error.reason)))
    except Exception as error:  # _transfer reports it, whatever it is
        chunks.put(error)
