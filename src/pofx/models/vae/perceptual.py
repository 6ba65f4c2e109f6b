"""The distance of images in features of a frozen network (Hou et al. 2017, arXiv 1610.00291), with one of two networks.

A backbone is a sequence of layers, and the mean and standard deviation of its inputs, for images in [-1, 1].
"""

from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pofx.base import lite0
from pofx.base.errors import UserError

LAYERS = {"efficientnet_lite0": 16, "vgg19": 37}  # residual blocks; modules of torchvision's `features`
STRIDE = 8  # of the third map of EfficientNet-Lite0
Backbone = tuple[nn.Sequential, Sequence[float], Sequence[float]]


def efficientnet_lite0() -> Backbone:
    """Layers are the residual blocks, the first with the stem: 16 channels at half the side of the input after 0, 24 at
    a quarter after 2, 40 at an eighth after 4."""
    net = lite0.folded(lite0.weights())
    first = nn.Sequential(net._conv_stem, net._bn0, net._swish, net._blocks[0])
    return nn.Sequential(first, *net._blocks[1:]), [-0.5 / 127.5] * 3, [128 / 127.5] * 3


def vgg19(path: Path) -> Backbone:
    """Layers are numbered as in torchvision's `features`: relu1_1, relu2_1 and relu3_1, which the paper takes, are 1, 6
    and 11, of 64, 128 and 256 channels at the whole, half and quarter side of the input.

    Raises:
        UserError: the file `path` does not hold torchvision's weights of VGG19.
    """
    import pofx.base.torchvision_compat  # noqa: F401, I001  (before torchvision)
    from torchvision.models import vgg

    with torch.device("meta"):
        net = vgg.make_layers(vgg.cfgs["E"])
    prefix = "features."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        net.load_state_dict(state, assign=True)
    except (RuntimeError, UnpicklingError, EOFError, AttributeError):
        raise UserError(f"{path} does not hold torchvision's weights of VGG19: name another file") from None
    for layer in net:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # it would overwrite the layer before, which may be asked for
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet on [0, 1]
    return net, (2 * mean - 1).tolist(), (2 * std).tolist()


class Perceptual:
    """Squared distance of two images in features of the frozen network.

    No nn.Module: its weights are none of the model's. They are neither trained, averaged, saved nor counted, and follow
    the input from device to device.

    Args:
        layers: after which features are read.
        side: pixels that images are enlarged to: at 32x32 the deeper maps would be a few pixels wide.
    """

    def __init__(self, backbone: Backbone, layers: Sequence[int], side: int):
        net, *moments = backbone
        self.layers, self.side = sorted(layers), side
        self.net = net[: self.layers[-1] + 1].eval().requires_grad_(False)
        self.mean, self.std = (torch.tensor(m)[:, None, None] for m in moments)

    def features(self, x: Float[Tensor, "b 3 h w"], shift: tuple[int, int] = (0, 0)) -> list[Float[Tensor, "b ..."]]:
        """Maps after each of `layers`, of images in [-1, 1], enlarged and moved down and right by `shift` pixels."""
        if self.mean.device != x.device:
            self.net, self.mean, self.std = (part.to(x.device) for part in (self.net, self.mean, self.std))
        size, (down, right) = (self.side, self.side), shift
        h = F.interpolate((x - self.mean) / self.std, size, mode="bilinear", align_corners=False)
        h, maps = F.pad(h, (right, 0, down, 0), mode="replicate"), []
        for i, layer in enumerate(self.net):
            h = layer(h)
            if i in self.layers:
                maps.append(h)
        return maps

    def __call__(self, x: Float[Tensor, "b 3 h w"], y: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """Sum over layers of half the mean squared difference, times the numbers in an image: each layer weighs as much
        as the pixels under a Gaussian of standard deviation 1.

        Both are moved at random, by less than the backbone's stride, which might else print its grid on the images.
        """
        shift = tuple(torch.randint(STRIDE, (2,)).tolist())  # on the CPU: no sync
        with torch.no_grad():
            want = self.features(x, shift)
        pairs = zip(want, self.features(y, shift), strict=True)
        return x[0].numel() * sum(0.5 * (a.float() - b.float()).square().flatten(1).mean(1) for a, b in pairs)
