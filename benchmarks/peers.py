"""Other people's code at the tasks of ours, as its own examples run it. Each function imports its package when called.

Networks have the sizes of ours. Nothing is fetched; images come as tensors in memory where the peer takes these, which
spares it its own loading.
"""

import importlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pofx.base.torchvision_compat  # noqa: F401  (before the packages that import torchvision)
from benchmarks.race import Runner
from pofx.base import lite0
from pofx.base.errors import UserError
from pofx.models.unet import UNetConfig

SIDE = 32  # of the images, in pixels


def package(name: str) -> ModuleType:
    """The module of that name.

    Raises:
        UserError: it cannot be imported; in one line, why.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"cannot import {name}: {str(error).splitlines()[0]}") from None


def runner(build: Callable[..., Runner], *args: Any, **kwargs: Any) -> Runner | str:
    """`build(*args)`, or why it cannot be had."""
    try:
        return build(*args, **kwargs)
    except UserError as error:
        return str(error)


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


# --- denoising diffusion


def side(shape: UNetConfig, level: int) -> int:
    """Of the maps of a level, in pixels."""
    return SIDE // shape.patch // 2**level


def diffusers_unet(shape: UNetConfig) -> nn.Module:
    """UNet2DModel with the widths, blocks, groups and attention of our U-Net."""
    widths = [shape.channels * m for m in shape.multipliers]
    attended = [side(shape, level) in shape.attention for level in range(len(widths))]
    return package("diffusers").UNet2DModel(
        sample_size=SIDE,
        layers_per_block=shape.blocks,
        block_out_channels=widths,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in attended[::-1]],
        attention_head_dim=widths[-1] // shape.heads,
        norm_num_groups=8,
        norm_eps=1e-6,
        dropout=shape.dropout,
    )


class Diffusers:
    """The recipe of diffusers' examples/unconditional_image_generation with its defaults: DDPM, AdamW, cosine, EMA.

    Args:
        steps: of the optimiser, after which the rate has fallen to zero.
    """

    def __init__(self, net: nn.Module, steps: int, half: bool):
        training, optimization = package("diffusers.training_utils"), package("diffusers.optimization")
        self.net, self.half = net.train(), half
        self.chain = package("diffusers").DDPMScheduler(1000)
        self.optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
        self.rate = optimization.get_scheduler("cosine", self.optimiser, num_warmup_steps=500, num_training_steps=steps)
        self.average = training.EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)

    def step(self, x: Tensor) -> None:
        """One step of the optimiser on the images `x`, in [-1, 1]."""
        noise, t = torch.randn_like(x), torch.randint(1000, (len(x),), device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.half):
            out = self.net(self.chain.add_noise(x, noise, t), t).sample
            loss = F.mse_loss(out.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.rate.step()
        self.optimiser.zero_grad()
        self.average.step(self.net.parameters())
        loss.detach().item()  # logged every step


def diffusers_training(shape: UNetConfig, batch: Tensor, steps: int, half: bool) -> Runner:
    recipe = Diffusers(diffusers_unet(shape).to(batch.device), 100_000, half)

    def run() -> None:
        for _ in range(steps):
            recipe.step(batch)

    return Runner(run, size(recipe.net), 1.2)


def lucidrains(shape: UNetConfig, nfe: int, device: torch.device) -> nn.Module:
    ddp = package("denoising_diffusion_pytorch")
    net = ddp.Unet(shape.channels, dim_mults=shape.multipliers, dropout=shape.dropout)
    return ddp.GaussianDiffusion(
        net, image_size=side(shape, 0), timesteps=1000, sampling_timesteps=nfe, objective="pred_noise"
    ).to(device)


def lucidrains_training(shape: UNetConfig, batch: Tensor, steps: int, half: bool) -> Runner:
    """The steps of denoising-diffusion-pytorch's Trainer, which itself wants a folder of image files."""
    model = lucidrains(shape, 10, batch.device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.99))
    average = package("ema_pytorch").EMA(model, beta=0.995, update_every=10)
    images = batch / 2 + 0.5

    def run() -> None:
        for _ in range(steps):
            with torch.autocast(batch.device.type, torch.bfloat16, enabled=half):
                loss = model(images)
            loss.backward()
            loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            average.update()

    return Runner(run, size(model), 2.0, "a net of its own, with linear attention at every level")


def diffusers_sampling(shape: UNetConfig, n: int, nfe: int, device: torch.device, half: bool) -> Runner:
    diffusers = package("diffusers")
    net = diffusers_unet(shape).to(device).eval()
    pipeline = diffusers.DDIMPipeline(net, diffusers.DDIMScheduler(1000))
    pipeline.set_progress_bar_config(disable=True)

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            pipeline(n, num_inference_steps=nfe, output_type="np")

    return Runner(run, size(net), 1.3)


def lucidrains_sampling(shape: UNetConfig, n: int, nfe: int, device: torch.device, half: bool) -> Runner:
    model = lucidrains(shape, nfe, device).eval()

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half), redirect_stderr(StringIO()):
            model.sample(n).cpu()

    return Runner(run, size(model), 1.3, "a net of its own, with linear attention at every level")


# --- variational autoencoders


def pythae_training(
    encoder: nn.Module, decoder: nn.Module, latent: int, images: Tensor, batch: int, folder: Path
) -> Runner:
    """An epoch of pythae's BaseTrainer with our encoder and decoder; it does not flip, clip or average."""
    models, trainers = package("pythae.models"), package("pythae.trainers")
    base, output = package("pythae.models.nn"), package("pythae.models.base.base_utils").ModelOutput
    sets = package("pythae.data.datasets")

    class Encoder(base.BaseEncoder):
        def __init__(self):
            super().__init__()
            self.net = encoder

        def forward(self, x: Tensor):
            mean, log_var = self.net(x).chunk(2, 1)
            return output(embedding=mean, log_covariance=log_var)

    class Decoder(base.BaseDecoder):
        def __init__(self):
            super().__init__()
            self.net = decoder

        def forward(self, z: Tensor):
            return output(reconstruction=self.net(z))

    config = models.VAEConfig(input_dim=(3, 32, 32), latent_dim=latent)
    trainer = trainers.BaseTrainer(
        model=models.VAE(config, encoder=Encoder(), decoder=Decoder()),
        train_dataset=sets.BaseDataset(images.cpu(), torch.zeros(len(images))),
        training_config=trainers.BaseTrainerConfig(
            output_dir=str(folder), per_device_train_batch_size=batch, num_epochs=1, no_cuda=images.device.type == "cpu"
        ),
    )
    trainer.prepare_training()

    def run() -> None:
        with redirect_stderr(StringIO()):
            trainer.train_step(1)

    return Runner(run, size(encoder) + size(decoder), 1.5, "does not flip, clip or average")


def loader(folder: Path, batch: int, workers: int = 2) -> Any:
    """torchvision's ImageFolder behind a DataLoader with the transforms of most training scripts. The workers are kept
    from one epoch to the next, so that starting them is not timed."""
    transforms, datasets = package("torchvision.transforms"), package("torchvision.datasets")
    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    files = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    return torch.utils.data.DataLoader(
        files, batch, shuffle=True, num_workers=workers, persistent_workers=True, drop_last=True
    )


def folder_training(model: nn.Module, folder: Path, batch: int, device: torch.device) -> Runner:
    """An epoch of a plain loop over a folder of PNG files: forward, backward, Adam, the loss read every step."""
    batches = loader(folder, batch)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)

    def run() -> None:
        for x, _ in batches:
            loss = model(x.to(device))["loss"].mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()

    return Runner(run, size(model), 1.5, "PNG files, two workers", workers=True)


def loading(folder: Path, batch: int, device: torch.device) -> Runner:
    batches = loader(folder, batch)

    def run() -> None:
        for x, _ in batches:
            x.to(device)

    return Runner(run, None, 15.0, "PNG files, two workers", workers=True)


# --- distances


def inception_weights(images: np.ndarray) -> dict[str, Tensor]:
    """Random weights of pytorch-fid's InceptionV3 whose BatchNorms have seen `images`, so that features have a scale:
    as slow as the true ones, and nothing is fetched."""
    inception = package("pytorch_fid.inception")
    torch.manual_seed(0)
    with mock.patch.object(inception, "load_state_dict_from_url", side_effect=_random):
        net = inception.fid_inception_v3()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a mean over what is seen, in place of a moving one
    with torch.no_grad():
        net.train()(F.interpolate(torch.from_numpy(images).float() / 127.5 - 1, (299, 299), mode="bilinear"))
    return net.eval().state_dict()


def _random(*_: Any, **__: Any) -> dict[str, Tensor]:
    # torchvision's Inception has weights of the same names and shapes.
    return (
        package("torchvision.models")
        .inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
        .state_dict()
    )


def pytorch_fid_features(folder: Path, weights: dict[str, Tensor], device: torch.device) -> Runner:
    """What the command does to a folder of PNG files, with its default batch of 50 and as many workers as cores."""
    score, inception = package("pytorch_fid.fid_score"), package("pytorch_fid.inception")
    with mock.patch.object(inception, "load_state_dict_from_url", return_value=weights):
        net = inception.InceptionV3([3]).to(device)
    names = sorted(folder.rglob("*.png"))

    def run() -> None:
        with redirect_stderr(StringIO()):
            score.get_activations(names, net, 50, 2048, device, 2)

    return Runner(run, size(net), 1.6, "PNG files, two workers", workers=True)


def pytorch_fid_distance(x: np.ndarray, reference: Sequence[np.ndarray]) -> Runner:
    """Mean and covariance of one set, and the distance to a reference whose own are at hand (the command's .npz)."""
    score, scipy = package("pytorch_fid.fid_score"), package("scipy")
    if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 18):
        raise UserError(f"pytorch-fid needs scipy below 1.18, this is {scipy.__version__}")

    def run() -> float:
        return score.calculate_frechet_distance(np.mean(x, 0), np.cov(x, rowvar=False), *reference)

    return Runner(run, None, 30.0)


def efficientnet_lite0() -> nn.Module:
    """The package's own network, for `pofx.score.extractor.Lite0`."""
    net = package("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(lite0.weights())
    return net
