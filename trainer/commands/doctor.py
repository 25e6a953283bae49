"""The doctor command: what this machine has, and whether a network can learn, before hours are spent on it."""

import math
import os
import platform
import shlex
import shutil
from pathlib import Path

import torch

from trainer.commands.summary import Memory, megabytes, memory_of_step, new_parts, one_batch
from trainer.config.schema import Config
from trainer.data.folder import memory_available
from trainer.run import diagnosis, directory
from trainer.run.diagnosis import Patient
from trainer.run.machine import cpu_name, gpu_name
from trainer.run.parts import Parts
from trainer.totals import Batch
from trainer.utils.screen import Screen, shown
from trainer.utils.text import emit, number_of

FAR = 1.5  # a first loss so many times ln K, or a share of it, is odd
VANISHING = 1e-4  # of the largest gradient
MOST_DEAD = 0.5  # of the units of a layer
MOST_LAYERS = 12  # that are shown each
SHARED = Path("/dev/shm")  # where worker processes leave images


def run_doctor(config: Config) -> None:
    """Print what is well and what is not, and draw the loss over the learning rate; no run is made or changed."""
    directory.check_writable(Path(config.paths.outputs))
    screen = Screen()
    parts = new_parts(config, screen)
    batch = one_batch(parts)
    emit(*of_this_machine(parts, config.paths.outputs))
    patient = Patient(config, parts)
    emit(*of_first_loss(patient, batch), *of_heart(patient, batch))
    emit(*of_units(patient, batch), *of_gradients(patient, batch), *of_speed(patient))
    memory = memory_of_step(patient.fresh(lambda _: 0.0), batch)
    emit(*of_memory(parts, memory, len(batch[1])))
    emit(*of_rates(patient, config))


def finding(head: str, text: str) -> str:
    """A finding under its head."""
    return f"{head:13}{text}"


def of_this_machine(parts: Parts, outputs: str) -> list[str]:
    """Torch, processor, memory and disk."""
    device = parts.machine.device
    threads = number_of(torch.get_num_threads(), "thread")
    processor = f"{cpu_name()}, {threads} of {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    there = next(path for path in (Path(outputs), *Path(outputs).absolute().parents) if path.exists())
    sizes = [f"{memory_available() / 1e9:.1f} GB of memory", f"{shutil.disk_usage(there).free / 1e9:.1f} GB of {there}"]
    if SHARED.is_dir():
        sizes.append(f"{shutil.disk_usage(SHARED).free / 1e9:.1f} GB of {SHARED}")
    return [
        finding("torch", f"{torch.__version__}, Python {platform.python_version()}, device={device}"),
        finding("machine", gpu_name(device) or processor),
        finding("free", ", ".join(sizes)),
    ]


def of_first_loss(patient: Patient, batch: Batch) -> list[str]:
    """The loss of the initial weights, beside that of a network that knows nothing."""
    parts = patient.fresh(lambda _: 0.0)
    loss, _ = next(patient.losses(parts, iter([batch])))
    expected = diagnosis.expected_loss(patient)
    if not math.isfinite(loss):
        return [finding("first loss", f"{loss}: not finite before the first step. Look at the data, data.normalize.")]
    if expected is None:
        return [finding("first loss", shown(loss))]
    said = f"{shown(loss)}, ln {patient.parts.splits.num_outputs} = {expected:.4f} for one that knows nothing"
    if loss > FAR * expected:
        return [finding("first loss", f"{said}: too large. Look at model.init_std, data.normalize.")]
    return [finding("first loss", f"{said}: {'well' if loss > expected / FAR else 'it knows something already'}")]


def of_heart(patient: Patient, batch: Batch) -> list[str]:
    """Whether a few examples can be learnt by heart."""
    lesson = diagnosis.learnt_by_heart(patient, batch)
    count = number_of(min(len(batch[1]), diagnosis.FEW_EXAMPLES), "example")
    share = f", {lesson.right:.0%} right" if patient.parts.splits.classes else ""
    said = f"loss {shown(lesson.first)} -> {shown(lesson.last)}{share} after {number_of(lesson.steps, 'step')}"
    if lesson.is_learnt:
        return [finding("by heart", f"{count}: {said}: well")]
    if lesson.is_late and math.isfinite(lesson.last):
        return [finding("by heart", f"{count}: {said}: too slow here to tell in {diagnosis.MOST_SECONDS:.0f} s")]
    advice = "Look at optimizer.lr (below), the size of the network, and the labels."
    return [finding("by heart", f"{count}, not learnt: {said}. {advice}")]


def of_units(patient: Patient, batch: Batch) -> list[str]:
    """The layers with units that no example moves."""
    layers = diagnosis.silent_units(patient, batch)
    if not layers:
        return []
    odd = [(name, n, silent) for name, n, silent in layers if silent > MOST_DEAD * n]
    silent, total = sum(layer[2] for layer in layers), sum(layer[1] for layer in layers)
    said = f"{silent:,} of {total:,} units have no gradient for any example of a batch"
    if not odd:
        return [finding("units", f"{said}: well")]
    worst = ", ".join(f"{name} {k} of {n}" for name, n, k in odd[:MOST_LAYERS])
    return [finding("units", f"{said}; most of {worst}. Look at model.init_std, data.normalize.")]


def of_gradients(patient: Patient, batch: Batch) -> list[str]:
    """The length of each layer's gradient in the first step."""
    norms = diagnosis.gradient_norms(patient, batch)
    if not norms:
        return []
    largest, least = max(norms, key=lambda name: norms[name]), min(norms, key=lambda name: norms[name])
    is_odd = not all(map(math.isfinite, norms.values())) or norms[least] < VANISHING * norms[largest]
    verdict = "vanishing: look at model.activation, model.init_std, batch normalisation" if is_odd else "well"
    if len(norms) <= MOST_LAYERS:
        each = ", ".join(f"{name} {norm:.2g}" for name, norm in norms.items())
    else:
        each = f"from {norms[least]:.2g} ({least}) to {norms[largest]:.2g} ({largest})"
    return [finding("gradients", f"{each}: {verdict}")]


def of_speed(patient: Patient) -> list[str]:
    """How long an epoch and the whole training take."""
    rate = diagnosis.examples_per_second(patient)
    n, epochs = sum(patient.parts.train.sizes()), patient.config.epochs
    said = f"{rate:,.0f} examples/s: {n / rate:,.1f} s an epoch of {n:,}"
    return [finding("speed", f"{said}, {n / rate * epochs:,.0f} s for epochs={epochs}, validation apart")]


def of_memory(parts: Parts, memory: Memory, count: int) -> list[str]:
    """What a step needs, and the largest batch that fits; the state of the optimizer grows with no batch."""
    device = parts.machine.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_available()
    of_an_example = (memory.kept + memory.batch) / count
    fixed = memory.total - memory.kept - memory.batch
    most = min(len(parts.train.y), int(0.8 * max(0, free - fixed) / max(1.0, of_an_example)))
    largest = f"a batch of {2 ** int(math.log2(most)):,} fits (estimated)" if most else "not even one example fits"
    if most == len(parts.train.y):
        largest = f"a batch of all {most:,} fits (estimated)"
    return [finding("memory", f"{megabytes(memory.total)} for a step with batch_size={count}; {largest}")]


def of_rates(patient: Patient, config: Config) -> list[str]:
    """The learning rate to begin with, and the plot that it was read from."""
    points = diagnosis.range_test(patient)
    rate, lines = diagnosis.suggested(points), []
    if config.plots and points:
        from trainer.plots.run import loss_over_rate  # matplotlib takes 0.4 s

        path = Path(config.paths.outputs) / f"doctor-{config.data.name}-{config.model.name}.png"
        loss_over_rate(points, path, rate)
        lines = [finding("plot", str(path))]
    if rate is None and len(points) < diagnosis.NUM_RATES // 2 and all(math.isfinite(loss) for _, loss in points):
        return [
            finding("rate", f"too slow here to tell: {len(points)} of {diagnosis.NUM_RATES} rates were tried"),
            *lines,
        ]
    if rate is None:
        return [finding("rate", "no learning rate made the loss smaller: what is above tells why"), *lines]
    now = config.optimizer["lr"]
    word = shlex.quote(f"optimizer.lr={rate:g}")
    return [finding("rate", f"{word} to begin with (now {now:g}): a tenth of where the loss was least"), *lines]
