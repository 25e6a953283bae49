"""The ladder: every experiment that has a published figure, run, kept as a small file, and drawn into docs/results.md.

    python -m benchmarks.ladder [NAME ...] [paths.data=FOLDER ...]

Trains what has no file below docs/results/ yet (NAME: these, even if they have one), in the order of the time that they
take; words with = go to main.py. Interrupted at any moment, the same command continues. `make results` calls it.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainer.run.looks import looks_of, vote_of  # noqa: E402
from trainer.utils.evidence import mean_of  # noqa: E402
from trainer.utils.objective import rating  # noqa: E402

KEPT, PAGE, PICTURE = ROOT / "docs" / "results", ROOT / "docs" / "results.md", ROOT / "docs" / "pictures" / "ladder.png"
BEGIN, END = "<!-- ladder: written by `make results` -->", "<!-- end of the ladder -->"
# how often each one is run; those over half an hour on two cores once
RUNS = {
    "d2l_linreg": 5,
    "line_fit": 5,
    "d2l_softmax": 5,
    "d2l_mlp": 5,
    "nielsen_ch1": 3,
    "nielsen_ch6_fc": 3,
    "nielsen_ch1_100": 3,
    "lenet_mnist": 3,
    "lenet_fashion_mnist": 3,
    "d2l_lenet": 3,
    "pytorch_book_cifar": 3,
    "nielsen_ch3": 3,
    "nielsen_ch6_conv1": 3,
    "nielsen_ch6_conv2": 3,
    "nielsen_ch6_relu": 3,
    "nielsen_ch6_expanded": 1,
    "nielsen_ch6_two_fc": 1,
    "nielsen_ch6_dropout": 1,
    "nielsen_ch6_vote": 5,
    "cifar10_fast": 3,
    "resnet34_cifar10": 1,
}


def main() -> None:
    """Run what is missing, then write the page."""
    words = [word for word in sys.argv[1:] if "=" in word]
    named = [word for word in sys.argv[1:] if "=" not in word]
    if odd := [name for name in named if name not in (*RUNS, "page")]:
        sys.exit(f"{odd[0]} is not one of {', '.join(RUNS)}, page.")
    for name, runs in RUNS.items():
        if name in named or (not named and not (KEPT / f"{name}.json").is_file()):
            result = measured(name, runs, words)
            KEPT.mkdir(exist_ok=True)
            (KEPT / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            write_page()
    write_page()


def measured(name: str, runs: int, words: Sequence[str]) -> dict[str, Any]:
    """Train an experiment so often; what came out, from the files that the program wrote."""
    run = f"ladder-{name}"
    seeds = [f"seeds={runs}"] if runs > 1 else ["resume=auto"]
    command = [sys.executable, str(ROOT / "main.py"), f"experiment={name}", *seeds, f"name={run}", *words]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"{name} did not end well. The same command continues.")
    outputs = next((word.split("=", 1)[1] for word in words if word.startswith("paths.outputs=")), "outputs")
    folders = [Path(outputs, run, str(k)) for k in range(runs)] if runs > 1 else [Path(outputs, run)]
    results = [json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in folders]
    record = json.loads((folders[0] / "config.json").read_text(encoding="utf-8"))
    reference, settings = record["config"]["reference"], [word for word in words if not word.startswith("paths.")]
    if reference["metric"] == "vote_accuracy":
        values = [vote_of([looks_of(folder) for folder in folders])]
    else:
        values = [result["reference"]["yours"] for result in results]
    shown = " ".join([f"experiment={name}", *(seeds if runs > 1 else ()), *settings])
    return {
        "experiment": name,
        "command": f"python main.py {shown}",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": (record["git"] or {}).get("commit", "")[:7],
        "hardware": f"{record['cpu']}, {record['threads']} threads, torch {record['versions']['torch']}",
        # of an epoch that nothing disturbed, times the epochs: a run may have been paused
        "seconds": statistics.fmean(map(undisturbed, folders)),
        "values": values,
        **{key: reference[key] for key in ("metric", "value", "tolerance", "source")},
    }


def undisturbed(folder: Path) -> float:
    """The seconds of a run, had each epoch taken as long as their median; where epochs differ, all that it took."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    if config.get("budget") or config["data"].get("first_sizes"):
        return sum(seconds)
    return statistics.median(seconds) * len(seconds)


def write_page() -> None:
    """Put the table and the picture of all kept files into the page."""
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]
    kept.sort(key=lambda each: list(RUNS).index(each["experiment"]))
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines_of(kept)) + "\n" + END + after, encoding="utf-8")
    if accuracies := [each for each in kept if each["metric"] in ("test_accuracy", "vote_accuracy")]:
        draw(accuracies)


def lines_of(kept: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table, and where its rows were measured."""
    lines = ["| command | figure | yours | n | the book's | verdict | s a run | measured on |", "|---" * 8 + "|"]
    place_of = {each["experiment"]: f"{each['hardware']}, commit {each['commit']}, {each['date']}" for each in kept}
    places = list(dict.fromkeys(place_of.values()))
    for each in kept:
        mean = mean_of(each["values"])
        yours = f"{mean.value:.4f}" + (f" +- {mean.std:.4f}" if mean.std is not None else "")
        book = f"{each['value']:g} +- {each['tolerance']:g} ({each['source']})"
        word = rating(each["metric"], mean.value, each["value"], each["tolerance"])
        place, command = places.index(place_of[each["experiment"]]) + 1, each["command"].removeprefix("python main.py ")
        figure = each["metric"].replace("_", " ")
        cells = (f"`{command}`", figure, yours, mean.n, book, word, f"{each['seconds']:.0f}", f"({place})")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if missing := [name for name in RUNS if name not in {each["experiment"] for each in kept}]:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    lines += ["", *(f"({i}) {place}" for i, place in enumerate(places, 1))]
    return [*lines, "", "![the ladder](pictures/ladder.png)"] if kept else lines


def draw(kept: Sequence[Mapping[str, Any]]) -> None:
    """One picture of the ladder: yours and the book's test errors, side by side."""
    from matplotlib import rc_context

    from trainer.plots.style import BLUE, ORANGE, STYLE, save_figure, side_by_side

    with rc_context(STYLE):
        figure, (axes,) = side_by_side(1, width=8.0, height=1.6 + 0.34 * len(kept))
        figure.subplots_adjust(left=0.27)
        places = range(len(kept))[::-1]
        for each, y in zip(kept, places, strict=True):
            mean = mean_of(each["values"])
            error, book = 100 * (1 - mean.value), 100 * (1 - each["value"])
            axes.errorbar(book, y - 0.12, xerr=100 * each["tolerance"], fmt="s", color=ORANGE, markersize=5, capsize=3)
            spread = 100 * mean.std if mean.std is not None else None
            axes.errorbar(error, y + 0.12, xerr=spread, fmt="o", color=BLUE, markersize=5, capsize=3)
        axes.plot([], [], "o", color=BLUE, label="yours, with the standard deviation over the seeds")
        axes.plot([], [], "s", color=ORANGE, label="the book's, with the tolerance")
        axes.set_yticks(
            list(places), [f"{each['experiment']} (n = {len(each['values'])})" for each in kept], fontsize=9
        )
        axes.set(xscale="log", xlabel="test error in percent", title="The ladder")
        axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
        axes.minorticks_off()
        axes.legend(fontsize=8, loc="upper left")
        save_figure(figure, PICTURE)


if __name__ == "__main__":
    main()
