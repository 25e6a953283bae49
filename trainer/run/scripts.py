"""The script that uses an exported file without this program; export prints it and writes it beside the file."""

from collections.abc import Mapping
from typing import Any

HEAD_OF_SCRIPT = """\
# Uses {file} without the program that trained it: python {script} {arguments}
# It needs: pip install {packages}
import {modules}
from pathlib import Path

import numpy as np
{imports}
file = Path(__file__).with_name({file})
"""
LOAD = {
    "onnx": """\
session = onnxruntime.InferenceSession(file)
about = json.loads(session.get_modelmeta().custom_metadata_map["about"])
""",
    "torch_export": """\
found = {"about.json": ""}
model = torch.export.load(file, extra_files=found).module()
about = json.loads(found["about.json"])
""",
}
COMPUTE = {
    "onnx": '[y] = session.run(None, {"x": x})[0]',
    "torch_export": "[y] = model(torch.from_numpy(x)).detach().numpy()",
}
FIT_OF = {
    "crop": "image = ImageOps.fit(image, (width, height), by)",
    "squash": "image = image.resize((width, height), by)",
    "pad": """\
scale = min(width / image.width, height / image.height)
    inner = image.resize([max(1, round(scale * side)) for side in image.size], by)
    image = Image.new(image.mode, (width, height))
    image.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))""",
}
FOR_IMAGES = """
width, height, by = {width}, {height}, Image.Resampling.{by}
for name in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(name)).convert("{mode}")
    {fit}
    x = np.array(image).reshape(1, height, width, {channels}).transpose(0, 3, 1, 2){middle}  # (N, C, H, W) uint8
    {compute}
    {say}
"""
FOR_ROWS = """
for row in sys.argv[1:]:
    x = np.array([row.split(",")], np.float32)  # (N, D)
    {compute}
    print(row, {said})
"""
FOR_TABLES = """
def numbers(row):
    for column in about["table"]["columns"]:
        cell = (row.get(column["name"]) or "").strip()
        missing = cell.lower() in {{"", "na", "n/a", "#n/a", "nan", "null", "?"}}
        if column["categories"]:
            yield from (float(cell == category) for category in column["categories"])
        else:
            yield ((column["median"] if missing else float(cell)) - column["mean"]) / column["std"]
        if column["flag"]:
            yield float(missing)


lines = open(sys.argv[1], encoding="utf-8-sig", newline="").readlines()
while not lines[0].strip():
    del lines[0]
separator = max(",\t;", key=lambda by: len(next(csv.reader(lines, delimiter=by, skipinitialspace=True))))
table = csv.DictReader(lines, delimiter=separator, skipinitialspace=True)
table.fieldnames = [name.strip() for name in table.fieldnames]
if absent := {{column["name"] for column in about["table"]["columns"]}} - {{*table.fieldnames}}:
    sys.exit(f"columns that are not in the file: {{sorted(absent)}}")
for row in table:
    x = np.array([list(numbers(row))], np.float32)  # (N, D)
    {compute}
    print({said})
"""
FOR_TENSORS = """\
# Lists the weights in {file}: python {script}
# They fit the network that wrote them, in any program: network.load_state_dict(load_file(file))
# It needs: pip install safetensors torch
import json
from pathlib import Path

from safetensors import safe_open

with safe_open(Path(__file__).with_name({file}), "pt") as file:
    about = json.loads(file.metadata()["about"])
    print(about["model"], "of", about["run"], "takes", about["input"])
    for name in file.keys():
        print(name, list(file.get_tensor(name).shape))
"""
SAY_BEST = 'repr(about["classes"][y.argmax()]), f"{y.max():.0%}"'  # repr: a name may hold anything
SAY_NUMBERS = "*y"


def script_for(kind: str, file: str, about: Mapping[str, Any], name: str) -> str:
    """A script in ASCII.

    Args:
        kind: the format of the file.
        file: its name.
        about: what is in it.
        name: of the script.
    """
    if kind == "safetensors":
        return FOR_TENSORS.format(file=ascii(file), script=name)
    has_images, said = len(about["in_shape"]) == 3, SAY_BEST if about["classes"] else SAY_NUMBERS
    library = {"onnx": "onnxruntime", "torch_export": "torch"}[kind]
    head = {
        "file": ascii(file),
        "script": name,
        "arguments": "IMAGE ..." if has_images else "FILE.csv" if "table" in about else "1.5,2 ...",
        "packages": " ".join([library, "numpy", *(["pillow"] if has_images else [])]),
        "modules": "csv, json, sys" if "table" in about else "json, sys",
        "imports": "\n".join([f"import {library}", *(["from PIL import Image, ImageOps"] if has_images else []), ""]),
    }
    compute = COMPUTE[kind]
    if not has_images:
        body = FOR_TABLES if "table" in about else FOR_ROWS
        return HEAD_OF_SCRIPT.format(**head) + LOAD[kind] + body.format(compute=compute, said=said)
    (channels, *sides), fitted = about["in_shape"], about["fitted_to"]
    starts = [(whole - side) // 2 for whole, side in zip(fitted, sides, strict=True)]
    middle = ", ".join(f"{start}:{start + side}" for start, side in zip(starts, sides, strict=True))
    body = FOR_IMAGES.format(
        height=fitted[0],
        width=fitted[1],
        by=about.get("interpolation", "bilinear").upper(),
        mode="L" if channels == 1 else "RGB",
        fit=FIT_OF[about.get("fit", "crop")],
        channels=channels,
        middle=f"[:, :, {middle}]" if any(starts) else "",
        compute=compute,
        say=f"print(name, {said})",
    )
    return HEAD_OF_SCRIPT.format(**head) + LOAD[kind] + body
