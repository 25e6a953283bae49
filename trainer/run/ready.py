"""A trained model as somebody uses it who has images or rows, and not this program: export and bench make it.

Images go in as bytes, and probabilities come out: what is done to both stands inside.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer import build
from trainer.config.schema import FITTED, Choice
from trainer.data.augment import stored_size
from trainer.data.columns import Encoding


class Ready(nn.Module):
    """(N, C, H, W) uint8 images, or (N, D) rows, -> (N, K) probabilities; of a regression the numbers.

    Args:
        model: in eval mode.
        mean: of each channel of images in [0, 1]; none for rows, which go in as they are.
        std: likewise.
        loss: that it was trained with: it decides between a softmax over the classes and a sigmoid for each.
        classes: whether it is a classifier.
        table: what its rows come from; the numbers of a regression are then in the target's own unit, as float64.
        dtype: in which the model computes.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        loss: Choice,
        *,
        classes: bool,
        table: Encoding | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model, self.dtype, self.has_images = model, dtype, bool(mean)
        m, s = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))  # (C, 1, 1)
        self.register_buffer("scale", (1 / (255 * s)).to(dtype))
        self.register_buffer("shift", (-m / s).to(dtype))
        self.classes, self.sigmoids = classes, build.has_sigmoids(loss)
        self.unit = (table.mean, table.std) if table is not None and not classes else None

    def forward(self, x: Tensor) -> Tensor:
        """What the model says of examples as they are."""
        x = x.to(self.dtype)
        y: Tensor = self.model(x * self.scale + self.shift if self.has_images else x)
        if self.classes:
            return y.float().sigmoid() if self.sigmoids else y.float().softmax(1)
        # a float32 has 7 digits: of 1,000,000.5 there would be no half
        return y.double() * self.unit[1] + self.unit[0] if self.unit is not None else y


def described(
    content: Mapping[str, Any], classes: Sequence[str], *, name: str, test: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What travels with an exported model, as plain data.

    Args:
        content: of the checkpoint.
        classes: their names.
        name: of the run.
        test: figures of the test split, where they are those of this checkpoint.
    """
    arch, preprocess, saved = content["arch"], content["preprocess"], content["config"]
    about = {
        "run": name,
        "model": arch["name"],
        "data": content["data"].get("name"),
        "classes": list(classes),
        "in_shape": list(arch["in_shape"]),
        "output": "a probability for each class" if classes else "numbers",
    }
    if len(arch["in_shape"]) == 3:
        options = saved.get("data", {})
        about["input"] = "uint8 images (N, C, H, W), 0 is black, 255 is white, colours as RGB; normalised inside"
        about |= {"mean": preprocess["mean"], "std": preprocess["std"]}
        about |= {key: options[key] for key in ("fit", "interpolation") if key in options}
        augment = option_of(content, "augment")
        about["fitted_to"] = [stored_size(side, augment) for side in arch["in_shape"][1:]]  # then the middle is taken
    else:
        about["input"] = "float32 rows (N, D)"
    if "table" in content:
        about["input"] += ": of each column in `table` its numbers as (x - mean) / std, a missing one as the median, "
        about["input"] += "or a 0 or 1 for each category; with `flag` one more that is 1 where the cell is missing"
        about["table"] = content["table"]
        about["output"] += "" if classes else f": {content['table']['target']}, in its own unit"
    return about | ({"test": dict(test)} if test else {})


def option_of(content: Mapping[str, Any], key: str) -> Any:
    """data.fit, data.interpolation or data.augment of the training: how a file becomes an image.

    Images of a published set were never larger than the model sees them: augment is none for these.
    """
    saved = content["config"]
    default = {"fit": "crop", "interpolation": "bilinear", "augment": "none"}[key]
    of_folder = saved.get("choices", {}).get("data") in FITTED
    return saved.get("data", {}).get(key, default) if of_folder or key != "augment" else default


def stored_of(content: Mapping[str, Any]) -> int:
    """Pixels to which a file is decoded before the model sees the middle of it."""
    return stored_size(content["arch"]["in_shape"][-1], option_of(content, "augment"))
