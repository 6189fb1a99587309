"""What the paper found on COCO, for context beside a study's own numbers."""

from __future__ import annotations

from headstart.study.definition import check_names

SOURCE = "He, Girshick, Dollár: Rethinking ImageNet Pre-training, arXiv 1811.08883, table 1 (COCO train2017 to val2017)"
# Box AP in 0..1 of Mask R-CNN with FPN and GroupNorm, by backbone, start and schedule.
TABLE_1 = {
    "R50": {
        "random": {"2x": 0.368, "3x": 0.395, "4x": 0.406, "5x": 0.407, "6x": 0.413},
        "pre-trained": {"2x": 0.403, "3x": 0.408, "4x": 0.409, "5x": 0.409, "6x": 0.411},
    },
    "R101": {
        "random": {"2x": 0.382, "3x": 0.410, "4x": 0.418, "5x": 0.422, "6x": 0.427},
        "pre-trained": {"2x": 0.418, "3x": 0.423, "4x": 0.423, "5x": 0.419, "6x": 0.422},
    },
}


def paper_rows(backbone: str) -> dict[str, dict[str, float]]:
    """Box AP by start ("random", "pre-trained") and schedule; ValueError for a backbone that the table has not."""
    check_names([backbone], TABLE_1, "paper: backbone")
    return TABLE_1[backbone]
