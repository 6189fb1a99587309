"""What the paper found, for context beside a study's own numbers."""

from __future__ import annotations

from headstart.study.spec import check_names

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
_SIX = ("box.AP", "box.AP50", "box.AP75", "mask.AP", "mask.AP50", "mask.AP75")
# Each start at its best schedule. R101's when pre-trained is not named; AP and Detectron's mask AP are those of 3x.
TABLE_2 = {
    "R50": {
        "random": ("6x", (0.413, 0.618, 0.456, 0.366, 0.590, 0.389)),
        "pre-trained": ("6x", (0.411, 0.617, 0.446, 0.364, 0.585, 0.387)),
    },
    "R101": {
        "random": ("6x", (0.427, 0.629, 0.470, 0.376, 0.599, 0.397)),
        "pre-trained": ("3x", (0.423, 0.626, 0.462, 0.372, 0.597, 0.397)),
    },
}
# From scratch; the schedule of X152 is not stated and stands where the shipped study has it.
TABLE_3 = {
    "R101": (0.450, 0.657, 0.493, 0.395, 0.625, 0.421),
    "X152": (0.464, 0.671, 0.511, 0.405, 0.639, 0.434),
    "X152, cascade": (0.486, 0.668, 0.529, 0.414, 0.642, 0.446),
    "X152, cascade, test augmentation": (0.509, 0.687, 0.554, 0.432, 0.661, 0.468),
}

Values = dict[str, dict[str, float]]  # by what the paper's row is called, and schedule


def _table_2(*backbones: str) -> dict[str, Values]:
    """Table 2 by metric; rows are called by their start, and by their backbone where there are several."""
    rows = {
        (f"{backbone} {start}" if len(backbones) > 1 else start): entry
        for backbone in backbones
        for start, entry in TABLE_2[backbone].items()
    }
    return {
        metric: {label: {schedule: values[place]} for label, (schedule, values) in rows.items()}
        for place, metric in enumerate(_SIX)
    }


def _table_3(label: str, entry: str, schedule: str, variant: str = "") -> dict[str, Values]:
    return {variant + metric: {label: {schedule: value}} for metric, value in zip(_SIX, TABLE_3[entry], strict=True)}


def _x152() -> dict[str, Values]:
    plain, cascade = _table_3("random", "X152", "9x"), _table_3("random, cascade", "X152, cascade", "9x")
    merged = {metric: plain[metric] | cascade[metric] for metric in plain}
    tta = _table_3("random", "X152, cascade, test augmentation", "9x", "tta:")
    tta["tta:box.AP"] |= {"pre-trained": {"6x": 0.503}}
    tta["tta:mask.AP"] |= {"pre-trained": {"6x": 0.425}}
    return merged | tta


# {name that a study gives: {metric: rows}}. What is not printed in the paper says so in the name of its row.
PAPER: dict[str, dict[str, Values]] = {
    **{name: _table_2(name) | {"box.AP": rows} for name, rows in TABLE_1.items()},
    "Table 2": _table_2("R50", "R101"),
    "scale augmentation": _table_3("R101 random", "R101", "9x"),
    "cascade": {
        "box.AP": {"R101 random, read off the figure by others": {"9x": 0.474}},
        "mask.AP": {"R101 random, read off the figure by others": {"9x": 0.405}},
    },
    "test augmentation": {
        "tta:mask.AP": {
            "R50 random": {"9x": 0.416},
            "R50 pre-trained": {"6x": 0.409},
            "R101 random": {"9x": 0.425},
            "R101 pre-trained": {"6x": 0.419},
        }
    },
    "X152": _x152(),
    "keypoints": {"keypoints.AP": {"random": {"2x": 0.656}, "pre-trained": {"2x": 0.655}}},
    "VGG-16": {"box.AP": {"random": {"11x": 0.352}, "pre-trained": {"9x": 0.356}}},
    "35k": {"box.AP": {"random": {"6x": 0.363}, "pre-trained": {"6x": 0.363}}},
    "10k": {"box.AP": {"random": {"220k": 0.259}, "pre-trained": {"60k": 0.260}}},
    "3.5k": {"box.AP": {"random, length not stated": {"77k": 0.093}, "pre-trained, length not stated": {"21k": 0.160}}},
    "1k": {
        "box.AP": {
            "random, length not stated": {"22k": 0.035},
            "random with a search of its own": {"22k": 0.054},
            "pre-trained, length not stated": {"6k": 0.099},
        }
    },
    "VOC": {"voc.AP": {"random": {"144k": 0.776}, "pre-trained": {"18k": 0.827}}},
}


def paper_rows(name: str) -> dict[str, Values]:
    """The paper's rows {metric: {row: {schedule: 0..1}}} of a model or table; ValueError for one it has not."""
    check_names([name], PAPER, "paper: table")
    return PAPER[name]
