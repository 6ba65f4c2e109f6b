"""What a family says about images it has not seen: its loss, and bits per dimension where it has a likelihood."""

import math

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from pofx.core.errors import UserError
from pofx.core.images import to_model
from pofx.core.progress import Bar


@torch.no_grad()
def evaluate(
    family: nn.Module, images: UInt8[np.ndarray, "n 3 h w"], batch: int, device: torch.device, seed: int
) -> dict[str, float]:
    """How well `family`, which is put into eval mode, knows `images`.

    The global generator is seeded first, so that a second call gives the same numbers (for the same batch).

    Returns:
        test_loss: mean over the images, in the family's own unit. Where the family has an honest likelihood, also bpd:
        mean bits per dimension, and bpd_stderr: standard error of that mean over the images.

    Raises:
        UserError: the loss is not finite.
    """
    family.eval().to(device)
    torch.manual_seed(seed)
    terms: dict[str, list[torch.Tensor]] = {"loss": [], "bpd": []}
    with Bar(total=len(images), desc="test loss", unit="img") as bar:
        for start in range(0, len(images), batch):
            part = torch.from_numpy(np.array(images[start : start + batch])).to(device)
            got = family(to_model(part))
            for key, rows in terms.items():
                if key in got:
                    rows.append(got[key].double().cpu())
            bar.update(len(part))
    loss = torch.cat(terms["loss"]).mean().item()
    if not math.isfinite(loss):
        raise UserError(
            "the loss on test images is not finite: the weights have diverged; lower the learning rate and train again"
        )
    if not terms["bpd"]:
        return {"test_loss": loss}
    bpd = torch.cat(terms["bpd"])
    return {"test_loss": loss, "bpd": bpd.mean().item(), "bpd_stderr": (bpd.std() / math.sqrt(len(bpd))).item()}
