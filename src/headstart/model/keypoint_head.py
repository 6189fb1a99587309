"""Keypoint head (He et al. 2017): convolutions on 14x14 regions and one heat map a keypoint.

S region slots (pooled over the batch), K keypoints, T side of a heat map: four times the pooled side (56).
The heat map covers the region's box; a keypoint is one of its T*T cells, found by a softmax over all of them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.model.pyramid import initialise_convolutions
from headstart.model.regions import RegionConvs
from headstart.ops.precision import at_least_float32
from headstart.ops.processes import mean_over_processes


def cells_of(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The heat-map cell [S,K] of keypoints [S,K,3] in boxes [S,4] (all in pixels), and whether there is one, bool.

    Rows before columns: y * T + x. A keypoint on the right or bottom edge belongs to the last cell; one that is not
    labelled (visibility 0) or lies outside the box has no cell and gives 0. Rule: Detectron's keypoints_to_heatmap.
    """
    low, high, points = boxes[:, None, :2], boxes[:, None, 2:], keypoints[..., :2]
    cell = ((points - low) * (size / (high - low).clamp(min=1e-3))).floor()
    cell = torch.where(points == high, size - 1, cell)
    inside = ((cell >= 0) & (cell < size)).all(dim=2) & (keypoints[..., 2] > 0)
    column, row = cell.long().unbind(dim=2)
    return torch.where(inside, row * size + column, 0), inside


def peaks(heat_maps: Tensor, boxes: Tensor) -> Tensor:
    """Peak [S,K,3] (x, y, score) of each heat map [S,K,T,T] in its box [S,4], in the boxes' pixels.

    Each map is resized to its box by bicubic interpolation, one point a pixel; the highest point is the keypoint and
    its value, a logit, the score: torchvision's heatmaps_to_keypoints, after Detectron. Data-dependent sizes: for the
    host's side of inference, like the pasting of masks. Boxes below one pixel count as one pixel.
    """
    heat_maps = at_least_float32(heat_maps)
    found = heat_maps.new_zeros(*heat_maps.shape[:2], 3)
    sides = at_least_float32(boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    for region, (width, height) in enumerate(sides.ceil().int().tolist()):
        maps = heat_maps[region].unsqueeze(1)
        maps = F.interpolate(maps, size=(height, width), mode="bicubic", align_corners=False)
        score, place = maps.flatten(1).max(dim=1)
        grid = torch.stack([place % width, torch.div(place, width, rounding_mode="floor")], dim=1)
        step = sides[region] / sides[region].ceil()
        found[region] = torch.cat([(grid + 0.5) * step + boxes[region, :2], score.unsqueeze(1)], dim=1)
    return found


class KeypointHead(nn.Module):
    """Predicts one heat map a keypoint for each region, for any class.

    `mirror` [K] has the index of each keypoint's map in a mirrored image; the pairs left_right change places.
    """

    initialiser = "MSRA, fan-out"

    def __init__(self, convs: RegionConvs, *, num_keypoints: int, left_right: Sequence[tuple[int, int]] = ()):
        super().__init__()
        assert num_keypoints > 0, "the keypoints of the data"
        self.convs, self.size = convs, 4 * convs.pooler.size
        order = list(range(num_keypoints))
        for a, b in left_right:
            order[a], order[b] = b, a
        self.mirror = tuple(order)
        self.deconv = nn.ConvTranspose2d(convs.channels, num_keypoints, 4, stride=2, padding=1)
        initialise_convolutions(self)

    def predict(self, features: list[Tensor], boxes: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """Heat-map logits [S,K,T,T] of boxes [S,4] (pixels; image [S]): doubled by a deconvolution, then bilinearly."""
        x = self.convs(features, boxes, image, valid)
        return F.interpolate(at_least_float32(self.deconv(x)), scale_factor=2.0, mode="bilinear", align_corners=False)

    def loss(self, logits: Tensor, keypoints: Tensor, boxes: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Softmax cross-entropy over the cells, averaged over the labelled keypoints inside their region.

        logits [S,K,T,T]; keypoints [S,K,3] of each region's object and boxes [S,4] in pixels; valid [S]. No such
        keypoint gives zero. Detectron's normaliser (NORMALIZE_BY_VISIBLE_KEYPOINTS) and torchvision's.
        """
        cells, inside = cells_of(keypoints, boxes, self.size)
        weight = (inside & valid.unsqueeze(1)).to(logits.dtype).flatten()
        count = mean_over_processes(weight.sum()).clamp(min=1.0)
        per_point = F.cross_entropy(logits.flatten(2).flatten(0, 1), cells.flatten(), reduction="none")
        return {"keypoints": (per_point * weight).sum() / count}
