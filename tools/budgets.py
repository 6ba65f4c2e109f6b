"""What a machine of a given speed trains in given minutes: an estimate from counted operations, measured by nothing.

    python -m tools.budgets cifar10 gpu --minutes 30 --peak 989 --used 0.15

Of every family: billions of operations of a training step for each image; how many images fit,

    operations = 3 x those of the loss,   images = 60 minutes x used x peak / operations,

and what the presets ask for. A backward pass costs as much as two forward ones, for weights and for inputs. `peak` is
in TFLOP/s of dense products (an H100 has 989 in bf16), `used` the assumed share of it, small where maps are small.
"""

import argparse
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch.nn.attention import SDPBackend, sdpa_kernel

from pofx.base import config
from pofx.models import store
from pofx.models.family import Family, Shape
from pofx.sample.cost import Counter
from pofx.train.config import settings
from stages import run
from tools import compose

SHAPE = (3, 32, 32)
COUNTED = 4  # images of the step that is counted


def build(name: str, tree: dict[str, Any], shape: Shape) -> Family:
    """The family as the parameters `tree` have it, untrained, with what it rests on."""
    base, module = store.needs(name), store.module(name)
    cfg = config.build(module.Config, config.untrained(tree[name]), name)
    return module.Model(cfg, shape, *([build(base, tree, shape)] if base else []))


def gflop(model: Family) -> float:
    """Billions of operations of a training step for each image, counted as `cost.gflop` does.

    The backward pass is not counted: PyTorch's formula for it takes a depthwise convolution for a dense one.
    """
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (COUNTED, *model.shape)).astype(np.float32))
    with sdpa_kernel(SDPBackend.MATH), Counter() as counter:
        model.train()(images)
    return 3 * counter.total / COUNTED / 1e9


def table(words: list[str], minutes: float, rate: float) -> list[dict[str, Any]]:
    """A line for every family of the presets `words`, on a machine of `rate` GFLOP/s."""
    tree = compose.load(compose.text(words))
    lines = []
    for name in config.family_names():
        each, asked = gflop(build(name, tree, SHAPE)), settings(name, tree).images
        line = {
            "family": name,
            "GFLOP an image": round(each, 3),
            f"images in {minutes:g} min": 60 * minutes * rate / each,
        }
        lines.append(line | {"budget": asked, "minutes for it": asked * each / rate / 60})
    return lines


def main(words: list[str], minutes: float, rate: float) -> None:
    print(tabulate(table(words, minutes, rate), headers="keys", floatfmt=",.4g", intfmt=","))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.budgets", description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="presets and key=value, as for tools.compose")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--peak", type=float, required=True, help="TFLOP/s of dense products")
    parser.add_argument("--used", type=float, required=True, help="assumed share of the peak")
    given = parser.parse_args()
    run(main, given.words, given.minutes, 1000 * given.peak * given.used)
