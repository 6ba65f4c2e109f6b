"""Makes `import torchvision` work beside a CPU-only torch. Import this module before anything that imports torchvision.

PyPI's torchvision wheel is a CUDA build. Next to a CPU-only torch its compiled operators do not load, and the import
fails with `operator torchvision::nms does not exist`: torchvision describes `nms` and `qnms` to torch unguarded. Here
they are declared, without code behind them: datasets, models, transforms and utils work, `ops.nms` does not. Declaring
an operator that exists is an error, so the plain import comes first.
"""

import importlib
import sys

import torch

_declared: torch.library.Library | None = None  # the declarations live as long as this object


def _load() -> None:
    global _declared
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        _declared = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


_load()
