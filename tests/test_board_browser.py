"""TensorBoard's pages in Chromium show the data of two runs of a sweep, by their names."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from test_report_browser import DEEP, chromium, pytestmark  # noqa: F401

TABS = {  # of the page: what stands in it
    "scalars": ["s/0/tb", "s/1/tb", "accuracy"],
    "images": ["plots/curves", "s/0/tb", "s/1/tb"],
    "hparams": ["s/0/tb", "s/1/tb", "optimizer.lr", "test/accuracy"],
    "pr_curves": ["val/", "s/0/tb", "s/1/tb"],
    "text": ["settings", "command", "s/0/tb", "s/1/tb"],
}
TEXT = """
const parts = [];
const walk = (root) => {
  for (const each of root.childNodes) {
    if (each.nodeType === 3) parts.push(each.textContent);
    else if (!["STYLE", "SCRIPT"].includes(each.nodeName)) walk(each);
  }
  if (root.shadowRoot) walk(root.shadowRoot);
};
walk(document.body);
return parts.join(" ");
"""


@pytest.fixture
def board(cli: Cli, tiny_mnist: Path) -> Iterator[str]:
    """The address of TensorBoard on a sweep of two runs."""
    words = ("data=mnist", f"paths.data={tiny_mnist}", "model=softmax", "epochs=2", "report=false", "plots=true")
    assert cli("-m", "name=s", "optimizer.lr=0.1,0.2", *words).code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("--logdir", "outputs", "--port", str(port), "--load_fast=false")
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address, until = f"http://127.0.0.1:{port}/", time.monotonic() + 60
        while True:
            try:
                runs = urllib.request.urlopen(f"{address}data/runs", timeout=5).read()
                if b"s/1" in runs:
                    break
            except OSError:
                pass
            assert time.monotonic() < until
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_every_tab_shows_both_runs(board: str, chromium: Any) -> None:  # noqa: F811
    chromium.set_window_size(1600, 1200)
    for tab, expected in TABS.items():
        chromium.get("about:blank")
        chromium.get(f"{board}#{tab}")
        until, missing = time.monotonic() + 30, expected
        while missing and time.monotonic() < until:
            time.sleep(0.3)
            text = chromium.execute_script(TEXT)
            missing = [each for each in expected if each not in text]
        if folder := os.environ.get("SCREENSHOTS"):  # to look at them
            time.sleep(2)
            chromium.save_screenshot(f"{folder}/{tab}.png")
        assert not missing, (tab, missing, text[:3000])
        assert chromium.execute_script(DEEP, "img, canvas, svg, table"), tab
