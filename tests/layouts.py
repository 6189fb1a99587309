"""Tiny data sets in the layouts of the wild: four pictures of 40 x 30 px with an object each, as tools export them."""

import json
from pathlib import Path

from PIL import Image

BOX = (4.0, 6.0, 20.0, 16.0)  # x1, y1, x2, y2 of the only object of each picture, 40 x 30 px
TRAIN, VAL = ("a", "b", "c"), ("d",)
# A conda environment, whose tag PyYAML refuses; and files of the same suffixes as annotations.
STRAY = {
    "environment.yml": "name: x\ndependencies: !!python/tuple [python=3.9]\n",
    "docker-compose.yaml": "services: {web: {image: x}}\n",
    "package.json": '{"name": "x", "images": 3}',
    "settings.json": "[1, 2",
    "pom.xml": "<project/>",
    ".idea/workspace.xml": "<project/>",
    "results.csv": "epoch,loss\n1,0.5\n",
    "README.dataset.txt": "made by hand\n",
    "preview/a.png": None,
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (len(path.stem), 90, 30)).save(path)
    return path


def label(stem: str) -> str:
    return "cat" if stem[-1:] == "a" else "dog"


def coco_text(stems) -> str:
    x1, y1, x2, y2 = BOX
    entry = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": 160, "iscrowd": 0}
    return json.dumps(
        {
            "info": {"licenses": []},
            "images": [{"id": i, "file_name": f"{s}.png", "height": 30, "width": 40} for i, s in enumerate(stems)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1 + (label(s) == "dog"), **entry} for i, s in enumerate(stems)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
    )


def voc_text(stem: str) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (BOX[0] + 1, BOX[1] + 1, BOX[2], BOX[3]))
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
    size = "<size><width>40</width><height>30</height></size>"
    inside = f"<object><name>{label(stem)}</name><bndbox>{box}</bndbox></object>"
    return f"<annotation><folder>images</folder><filename>{stem}.png</filename>{size}{inside}</annotation>"


def yolo_text(stem: str) -> str:
    x1, y1, x2, y2 = BOX
    return f"{int(label(stem) == 'dog')} {(x1 + x2) / 80} {(y1 + y2) / 60} {(x2 - x1) / 40} {(y2 - y1) / 30}\n"


def labelme_text(stem: str, image: str) -> str:
    shape = {"label": label(stem), "points": [BOX[:2], BOX[2:]], "shape_type": "rectangle", "group_id": None}
    found = {"version": "5", "flags": {}, "shapes": [shape], "imagePath": image, "imageData": None}
    return json.dumps(found | {"imageHeight": 30, "imageWidth": 40})


def voc_lower_case(root):
    for stem in TRAIN + VAL:
        write(root / "annotations" / f"{stem}.xml", voc_text(stem))
        picture(root / "images" / f"{stem}.png")


def voc_beside(root):
    for stem in TRAIN + VAL:
        write(root / f"{stem}.xml", voc_text(stem))
        picture(root / f"{stem}.png")


def voc_usual(root):
    for stem in TRAIN + VAL:
        write(root / "Annotations" / f"{stem}.xml", voc_text(stem))
        picture(root / "JPEGImages" / f"{stem}.png")
        picture(root / "SegmentationClass" / "deep" / f"{stem}.png")
    for name, stems in (("train", TRAIN), ("val", VAL)):
        write(root / "ImageSets" / "Main" / f"{name}.txt", "\n".join(stems))


def voc_with_trimaps(root):
    """Oxford's pets: masks of the names of the pictures, nearer to the XML files than these."""
    for stem in TRAIN + VAL:
        write(root / "annotations" / "xmls" / f"{stem}.xml", voc_text(stem).replace(".png", ".jpg"))
        picture(root / "annotations" / "trimaps" / f"{stem}.png")
        picture(root / "images" / f"{stem}.jpg")


def voc_roboflow(root):
    for name, stems in (("train", TRAIN), ("valid", VAL)):
        for stem in stems:
            write(root / name / f"{stem}.xml", voc_text(stem))
            picture(root / name / f"{stem}.png")


def voc_by_split(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        for stem in stems:
            write(root / "annotations" / name / f"{stem}.xml", voc_text(stem))
            picture(root / "images" / name / f"{stem}.png")


def coco_usual(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        write(root / "annotations" / f"instances_{name}2017.json", coco_text(stems))
        write(root / "annotations" / f"captions_{name}2017.json", '{"images": [], "annotations": []}')
        for stem in stems:
            picture(root / f"{name}2017" / f"{stem}.png")


def coco_roboflow(root):
    for name, stems in (("train", TRAIN), ("valid", VAL)):
        write(root / name / "_annotations.coco.json", coco_text(stems))
        for stem in stems:
            picture(root / name / f"{stem}.png")


def coco_cvat(root):
    write(root / "annotations" / "instances_default.json", coco_text(TRAIN + VAL))
    for stem in TRAIN + VAL:
        picture(root / "images" / "default" / f"{stem}.png")


def coco_label_studio_windows(root):
    write(root / "result.json", coco_text([f"images\\{stem}" for stem in TRAIN + VAL]))
    for stem in TRAIN + VAL:
        picture(root / "images" / f"{stem}.png")


def coco_flat(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        write(root / f"{name}.json", coco_text(stems))
        for stem in stems:
            picture(root / name / f"{stem}.png")


def yolo_pairs(labels, pictures, stems):
    for stem in stems:
        write(labels / f"{stem}.txt", yolo_text(stem))
        picture(pictures / f"{stem}.png")


def yolo_roboflow(root):
    for name, stems in (("train", TRAIN), ("valid", VAL)):
        yolo_pairs(root / name / "labels", root / name / "images", stems)
    write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")


def yolo_ultralytics(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        yolo_pairs(root / "labels" / name, root / "images" / name, stems)
    write(root / "set.yaml", "path: .\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n")


def yolo_label_studio(root):
    yolo_pairs(root / "labels", root / "images", TRAIN + VAL)
    write(root / "classes.txt", "cat\ndog\n")
    write(root / "notes.json", '{"categories": [], "info": {}}')


def yolo_cvat(root):
    yolo_pairs(root / "obj_train_data", root / "obj_train_data", TRAIN + VAL)
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", "classes = 2\n")


def yolo_cvat_splits(root):
    for name, stems in (("train", TRAIN), ("valid", VAL)):
        yolo_pairs(root / f"obj_{name}_data", root / f"obj_{name}_data", stems)
        write(root / f"{name}.txt", "".join(f"data/obj_{name}_data/{stem}.png\n" for stem in stems))
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n")


def yolo_cvat_ultralytics(root):
    for name, stems in (("Train", TRAIN), ("Validation", VAL)):
        yolo_pairs(root / "labels" / name, root / "images" / name, stems)
        write(root / f"{name}.txt", "".join(f"data/images/{name}/{stem}.png\n" for stem in stems))
    write(root / "data.yaml", "Train: Train.txt\nValidation: Validation.txt\nnames: {0: cat, 1: dog}\npath: .\n")


def yolo_windows(root):
    """Paths as Windows writes them; the drive is of another machine."""
    yolo_ultralytics(root)
    write(root / "val.txt", "images\\val\\d.png\r\n")
    write(root / "set.yaml", "path: C:\\sets\\pets\ntrain: images\\train\nval: val.txt\nnames: {0: cat, 1: dog}\n")


def yolo_labelimg(root):
    """labelImg: labels beside the pictures, whatever the folder is called."""
    yolo_pairs(root / "images", root / "images", TRAIN + VAL)
    write(root / "images" / "classes.txt", "cat\ndog\n")


def yolo_lists_in_splits(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        yolo_pairs(root / name, root / name, stems)
        write(root / name / "classes.txt", "cat\ndog\n")


def labelme_beside(root):
    for stem in TRAIN + VAL:
        write(root / f"{stem}.json", labelme_text(stem, f"{stem}.png"))
        picture(root / f"{stem}.png")


def labelme_apart(root):
    for name, stems in (("train", TRAIN), ("val", VAL)):
        for stem in stems:
            write(root / "json" / name / f"{stem}.json", labelme_text(stem, f"..\\..\\images\\{name}\\{stem}.png"))
            picture(root / "images" / name / f"{stem}.png")


def csv_tensorflow(root):
    for name, stems in (("train", TRAIN), ("test", VAL)):
        rows = [f"{s}.png,40,30,{label(s)},{','.join(f'{v:g}' for v in BOX)}" for s in stems]
        write(root / f"{name}_labels.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n" + "\n".join(rows))
        for stem in stems:
            picture(root / "images" / f"{stem}.png")


def csv_of_a_spreadsheet(root):
    """Semicolons, a byte order mark and Windows' line ends."""
    rows = [f"{s}.png;{label(s)};{';'.join(f'{v:g}' for v in BOX)}" for s in TRAIN + VAL]
    write(root / "boxes.csv", "\ufeffImage;Label;X1;Y1;X2;Y2\r\n" + "\r\n".join(rows))
    for stem in TRAIN + VAL:
        picture(root / "images" / f"{stem}.png")


def csv_retinanet(root):
    rows = [f"images/{s}.png,{','.join(f'{v:g}' for v in BOX)},{label(s)}" for s in TRAIN + VAL]
    write(root / "annotations.csv", "\n".join(rows))
    for stem in TRAIN + VAL:
        picture(root / "images" / f"{stem}.png")


LAYOUTS = {
    voc_lower_case: ("voc", ()),
    voc_beside: ("voc", ()),
    voc_usual: ("voc", ("train", "val")),
    voc_with_trimaps: ("voc", ()),
    voc_roboflow: ("voc", ("train", "val")),
    voc_by_split: ("voc", ("train", "val")),
    coco_usual: ("coco", ("train", "val")),
    coco_roboflow: ("coco", ("train", "val")),
    coco_cvat: ("coco", ()),
    coco_flat: ("coco", ("train", "val")),
    coco_label_studio_windows: ("coco", ()),
    yolo_roboflow: ("yolo", ("train", "val")),
    yolo_ultralytics: ("yolo", ("train", "val")),
    yolo_label_studio: ("yolo", ()),
    yolo_cvat: ("yolo", ()),
    yolo_cvat_splits: ("yolo", ("train", "val")),
    yolo_cvat_ultralytics: ("yolo", ("train", "val")),
    yolo_windows: ("yolo", ("train", "val")),
    yolo_labelimg: ("yolo", ()),
    yolo_lists_in_splits: ("yolo", ("train", "val")),
    labelme_beside: ("labelme", ()),
    labelme_apart: ("labelme", ("train", "val")),
    csv_tensorflow: ("csv", ("train", "test")),
    csv_of_a_spreadsheet: ("csv", ()),
    csv_retinanet: ("csv", ()),
}
