"""Object detectors: YOLO, SSD, Faster R-CNN, RetinaNet, DETR, with NonMaxSuppression if they export it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.catalog import package_folder
from benchmarks.families.registry import floats, net
from benchmarks.untrained import calibrate_batch_norms


class _Scores(nn.Module):
    """The scores of a torchvision detector for one image.

    With random weights scores are 1e-6 apart, so rounding swaps neighbours, and with them boxes and labels.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Any) -> Any:
        return self.detector([image])[0]["scores"]


def _torchvision(name: str, size: int, **options: object) -> nn.Module:
    from torchvision.models import detection

    torch.manual_seed(0)
    detector = getattr(detection, name)(weights=None, weights_backbone=None, **options).eval()
    calibrate_batch_norms(detector.backbone, torch.rand(2, 3, size, size))
    return _Scores(detector).eval()


@net("yolov8n", {"images": floats("batch", 3, "height", "width")}, [{"batch": 1, "height": 320, "width": 320}])
def yolov8n() -> Path:
    """Trained YOLOv8n, sizes dynamic."""
    return package_folder("nudenet") / "320n.onnx"


@net("yolox", {"images": floats(1, 3, 416, 416)})
def yolox() -> Path:
    """Trained YOLOX with its focus of slices."""
    return package_folder("ddddocr") / "common_det.onnx"


@net("ssdlite320", {"image": floats(3, 320, 320)}, exporter="torchscript", tolerance=1e-3)
def ssdlite() -> nn.Module:
    """SSDLite of MobileNetV3 with NonMaxSuppression over 91 classes."""
    return _torchvision("ssdlite320_mobilenet_v3_large", 320, score_thresh=0.02)


@net("fasterrcnn-320", {"image": floats(3, 320, 320)}, exporter="torchscript", tolerance=1e-3)
def fasterrcnn() -> nn.Module:
    """Faster R-CNN of MobileNetV3: proposals, RoiAlign, NonMaxSuppression twice."""
    return _torchvision("fasterrcnn_mobilenet_v3_large_320_fpn", 320)


@net("detr", {"pixels": floats(1, 3, 320, 320)}, tolerance=1e-3)
def detr() -> nn.Module:
    """DETR (arXiv:2005.12872) of ResNet-18 with three encoder and three decoder layers."""
    import torchvision

    torch.manual_seed(0)

    class Detr(nn.Module):
        def __init__(self, width: int = 256, queries: int = 100) -> None:
            super().__init__()
            self.backbone = nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:-2])
            self.project = nn.Conv2d(512, width, 1)
            self.position = nn.Parameter(torch.randn(100, 1, width) * 0.1)
            self.queries = nn.Parameter(torch.randn(queries, 1, width))
            self.transformer = nn.Transformer(width, 8, 3, 3, 1024, dropout=0.0)
            self.classes, self.boxes = nn.Linear(width, 92), nn.Linear(width, 4)

        def forward(self, pixels: torch.Tensor) -> Any:
            features = self.project(self.backbone(pixels)).flatten(2).permute(2, 0, 1)
            found = self.transformer(features + self.position, self.queries).transpose(0, 1)
            return self.classes(found), self.boxes(found).sigmoid()

    result = Detr().eval()
    calibrate_batch_norms(result, torch.randn(1, 3, 320, 320))
    return result
