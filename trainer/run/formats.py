"""The files that export writes, and how each one is read back by its own library: ONNX, torch.export, safetensors.

All of them carry one text, `about`: JSON in ASCII, so that names of classes may hold anything.
"""

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from trainer.run.ready import Ready
from trainer.run.safe_load import read_weights
from trainer.utils.errors import ConfigError, listed
from trainer.utils.program import pip_install
from trainer.utils.text import one_line

PACKAGES_OF_ONNX = ("onnx", "onnxscript", "onnxruntime")
ABOUT = "about"  # the key in ONNX and safetensors
ABOUT_FILE = "about.json"  # its name inside a .pt2 file
MOST_OF_ONNX = 2**31 - 2**20  # bytes of weights: protobuf takes 2 GiB, and the graph is beside them
INPUT, OUTPUT = "x", "y"  # of the graph in an ONNX file


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its name.
        runtime: the library that reads it.
        write: write(path, model, example, about) with a batch of two examples.
        read: read(path, make) -> what computes (N, K) from N examples; make() makes the same model with new weights.
    """

    suffix: str
    runtime: str
    write: Callable[[Path, Ready, Tensor, Mapping[str, Any]], None]
    read: Callable[[Path, Callable[[], Ready]], Callable[[Tensor], Tensor]]


def check_installed() -> None:
    """Refuse format=onnx where a package is missing; ConfigError says what to type."""
    missing = [name for name in PACKAGES_OF_ONNX if importlib.util.find_spec(name) is None]
    if missing:
        how = f"Type: {pip_install('requirements-export.txt')}"
        raise ConfigError(f"format=onnx needs {listed(missing)}. {how}")


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without what torch's exporters warn of, log and print about themselves, which a user can do nothing about."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(torch|onnx\w*|copyreg)(\.|$)")
        try:
            yield
        finally:
            logging.disable(before)


def traced(model: Ready, example: Tensor) -> ExportedProgram:
    """The graph of a model for any number of examples.

    Raises:
        ConfigError: it has none, as where its code decides by the values that it computes.
    """
    try:
        with torch.no_grad(), quiet_exporter():
            return torch.export.export(model, (example,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    except MemoryError:
        raise
    except Exception as error:  # of many kinds, each with pages of text
        one_size = "Constraints violated" in str(error)
        reason = "it takes batches of one size only." if one_size else first_line(error)
        advice = "Its code has to do the same for all batches and values. format=safetensors takes the weights alone"
        raise ConfigError(f"torch.export cannot make a graph of this model: {reason} {advice}.") from None


def first_line(error: BaseException) -> str:
    """What torch says first, as a sentence."""
    return one_line((str(error).strip() or type(error).__name__).splitlines()[0], 300).rstrip(".: ") + "."


def write_onnx(path: Path, model: Ready, example: Tensor, about: Mapping[str, Any]) -> None:
    """An ONNX file with its weights inside.

    Raises:
        ConfigError: the weights are too large for one, or ONNX has no form for the model.
    """
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > MOST_OF_ONNX:
        said = f"the weights have {size / 1e9:.2f} GB, and an ONNX file has room for {MOST_OF_ONNX / 1e9:.2f} GB"
        raise ConfigError(f"format=onnx: {said}. Type format=torch_export or format=safetensors.")
    program = traced(model, example)
    batch = ({0: "N"},)  # the name of the first axis in the file
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    try:
        with torch.no_grad(), quiet_exporter():
            made = torch.onnx.export(program, (example,), dynamic_shapes=batch, dynamo=True, verbose=False, **names)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise ConfigError(f"ONNX has no form for this model: {reason} format=torch_export may have one.") from None
    assert made is not None
    made.model.metadata_props[ABOUT] = json.dumps(about)
    made.save(path, external_data=False)


def read_onnx(path: Path, _make: object = None) -> Callable[[Tensor], Tensor]:
    """What onnxruntime computes on the CPU, with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0])


def write_program(path: Path, model: Ready, example: Tensor, about: Mapping[str, Any]) -> None:
    """A .pt2 file of torch.export."""
    program = traced(model, example)
    with quiet_exporter(), open(path, "wb") as file:
        torch.export.save(program, file, extra_files={ABOUT_FILE: json.dumps(about)})


def read_program(path: Path, _make: object = None) -> Callable[[Tensor], Tensor]:
    """What the graph of a .pt2 file computes."""
    with quiet_exporter(), open(path, "rb") as file:
        module = torch.export.load(file).module()
    return lambda x: torch.no_grad()(module)(x)


def write_tensors(path: Path, model: Ready, _example: object, about: Mapping[str, Any]) -> None:
    """A .safetensors file with the weights of the model inside `model`, by their own names."""
    from safetensors.torch import save_file

    # copies, since a tensor that two layers share is refused
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.model.state_dict().items()}
    save_file(tensors, path, metadata={ABOUT: json.dumps(about)})


def read_tensors(path: Path, make: Callable[[], Ready]) -> Callable[[Tensor], Tensor]:
    """What a new model computes with the weights of the file."""
    model = make()
    weights, _ = read_weights(path)
    model.model.load_state_dict(weights)
    return lambda x: torch.no_grad()(model)(x)


EXPORT_FORMATS = {
    "onnx": Format(".onnx", "onnxruntime", write_onnx, read_onnx),
    "safetensors": Format(".safetensors", "safetensors", write_tensors, read_tensors),
    "torch_export": Format(".pt2", "torch", write_program, read_program),
}
