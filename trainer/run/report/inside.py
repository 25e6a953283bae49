"""What a network has inside: the filters of its first layer, and where in an image it looked (Grad-CAM)."""

from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trainer import build
from trainer.config.schema import Config
from trainer.data.splits import Split
from trainer.engine import Evaluation
from trainer.plots.page.draft import Draft
from trainer.plots.page.markup import clean, el, figure, remark
from trainer.plots.page.png import shrunk
from trainer.run.parts import Parts, eval_batches

MOST_FILTERS = 64
MISTAKES, HITS = 8, 4  # images with a map
MOST_PIXELS_OF_MAP = 96  # pixels of an image with its map, at most
LEAST = 28  # pixels to which a smaller one is enlarged: a map needs some


def add_inside(draft: Draft, config: Config, parts: Parts, test: Evaluation) -> None:
    """Filters and maps, as far as the model has some: nothing for rows of numbers."""
    if len(parts.splits.in_shape) != 3:
        return
    if parts.splits.task == "classification":
        add_maps(draft, config, parts, test)
    add_filters(draft, parts)


def add_filters(draft: Draft, parts: Parts) -> None:
    """The weights of the first layer as images, where they have the channels of an image."""
    channels, height, width = parts.splits.in_shape
    weight = next((p.detach().cpu().float() for p in parts.measured.parameters() if p.ndim >= 2), None)
    if weight is None or channels not in (1, 3):
        return
    if weight.ndim == 2 and weight.shape[1] == channels * height * width:
        weight = weight.view(-1, channels, height, width)
    if weight.ndim != 4 or weight.shape[1] != channels or min(weight.shape[2:]) < 2:
        return
    images = [draft.image(shrunk(as_pixels(each), MOST_PIXELS_OF_MAP)) for each in weight[:MOST_FILTERS]]
    shown = [figure(number) for number in images if number is not None]
    if not shown:
        return
    colours = "blue is negative, orange positive" if channels == 1 else "in the colours that they answer to"
    size = " x ".join(map(str, weight.shape[2:]))
    told = f"{len(shown)} of {len(weight)}, each {size} pixels, {colours}, scaled by its largest weight."
    draft.add(
        "filters", "Filters of the first layer", remark(told), el("div", *shown, class_="gallery small"), wide=True
    )


def as_pixels(weight: Tensor) -> Tensor:
    """Weights (C, H, W) as an image (3, H, W) uint8: grey is 0 for three channels, white for one."""
    scaled = weight / weight.abs().max().clamp(min=1e-12)
    if len(weight) == 3:
        return ((scaled + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    ends = torch.tensor([[0, 90, 170], [220, 120, 0]]).float()[:, :, None, None]  # RGB of -1 and of 1
    share = scaled.abs()
    mixed = 255 * (1 - share) + torch.where(scaled < 0, ends[0], ends[1]) * share
    return mixed.round().clamp(0, 255).to(torch.uint8)


def add_maps(draft: Draft, config: Config, parts: Parts, test: Evaluation) -> None:
    """Grad-CAM for some mistakes and some hits, where torch computes a convolution."""
    if not any(isinstance(layer, nn.Conv2d) for layer in parts.measured.modules()) or parts.machine.compile:
        return
    outputs, labels = test.outputs.cpu(), test.labels.cpu()
    predicted = outputs.argmax(1)
    sure = build.probabilities(config.loss, outputs).gather(1, predicted[:, None])[:, 0]
    order = sure.argsort(descending=True, stable=True)
    right = predicted[order] == labels[order]
    rows = torch.cat([order[~right][:MISTAKES], order[right][:HITS]])
    few: Split = parts.splits.test.take(rows)
    with closing(eval_batches(config, parts.splits, few, parts.machine).epoch(0)) as batches:
        x = torch.cat([x for x, _ in batches])
    maps = grad_cam(parts.measured, x, predicted[rows].to(x.device), parts)
    if maps is None:
        return
    mean, std = (torch.tensor(values)[:, None, None] for values in (parts.splits.mean, parts.splits.std))
    pixels = ((x.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    names, shown = [clean(name) for name in parts.splits.classes], []
    for image, heat, i in zip(pixels, maps, rows.tolist(), strict=True):
        pair = [draft.image(each) for each in (enlarged(image), overlaid(enlarged(image), heat))]
        if None in pair:
            break
        true, guess = names[int(labels[i])], names[int(predicted[i])]
        is_wrong = bool(labels[i] != predicted[i])
        said = el("figcaption", el("b", f"{guess} {float(sure[i]):.1%}"), f" true: {true}" if is_wrong else "")
        pictures = [el("img", data_image=number, alt="") for number in pair]
        shown.append(el("figure", *pictures, said, class_="wrong" if is_wrong else None))
    told = "Where the predicted class comes from, by Grad-CAM: the redder, the more it speaks for it."
    draft.add("maps", "What the network looked at", remark(told), el("div", *shown, class_="gallery pairs"), wide=True)


def grad_cam(model: nn.Module, x: Tensor, classes: Tensor, parts: Parts) -> Tensor | None:
    """Maps (N, h, w) in [0, 1] of what in images speaks for a class; None where no layer has a map.

    The maps of the last convolution, each weighted by the mean of the class's gradient over it; what is positive.
    Parameters and their gradients stay as they are.

    Args:
        model: in evaluation mode.
        x: (N, C, H, W), normalised.
        classes: (N,) int64.
        parts: of the run.
    Source: Selvaraju et al. 2017, Grad-CAM, eq. 1 and 2.
    """
    model.eval()
    with torch.enable_grad(), parts.machine.autocast(), Convolutions() as seen:
        outputs = model(x.requires_grad_())  # also where all weights are frozen
    if seen.last is None:
        return None
    score = outputs.gather(1, classes[:, None]).sum()
    [gradient] = torch.autograd.grad(score, [seen.last])
    weights = gradient.float().mean((2, 3), keepdim=True)
    maps = (weights * seen.last.detach().float()).sum(1).relu().cpu()
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


class Convolutions(TorchFunctionMode):
    """Keeps what the last convolution of torch gave that was computed inside, if it is more than a pixel."""

    last: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.conv2d and min(result.shape[2:]) > 1:
            self.last = result
        return result


def enlarged(image: Tensor) -> Tensor:
    """An image (C, H, W) uint8 of at least LEAST and at most MOST_PIXELS_OF_MAP pixels."""
    image = shrunk(image, MOST_PIXELS_OF_MAP)
    factor = -(-LEAST // min(image.shape[1:]))
    return image.repeat_interleave(factor, 1).repeat_interleave(factor, 2) if factor > 1 else image


def overlaid(image: Tensor, heat: Tensor) -> Tensor:
    """An image (C, H, W) uint8 in grey under a map (h, w) in [0, 1], as (3, H, W) uint8: blue, yellow, red."""
    grey = image.float().mean(0)
    heat = F.interpolate(heat[None, None], grey.shape, mode="bilinear", align_corners=False)[0, 0]
    stops = torch.tensor([[0, 0, 90], [0, 120, 200], [250, 220, 60], [220, 30, 20]]).float()  # at 0, 1/3, 2/3, 1
    place = heat.clamp(0, 1) * (len(stops) - 1)
    low = place.floor().long().clamp(max=len(stops) - 2)
    share = (place - low)[..., None]
    colour = (stops[low] * (1 - share) + stops[low + 1] * share).permute(2, 0, 1)
    return (0.5 * grey + 0.5 * colour).round().clamp(0, 255).to(torch.uint8)
