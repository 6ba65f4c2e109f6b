"""Who learns the same images for the same minutes: ours, and others' recipes as their own examples run them.

Networks of others are sized for images of 32x32 and for minutes on a CPU where their default is not; `note` says how.
All get images in memory where they take these. Samples come from averaged weights.
"""

import abc
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO

import numpy as np
import torch
from PIL import Image

from benchmarks import peers
from benchmarks.task import Task, size
from pofx.base.images import Images, to_uint8
from pofx.models.unet import UNetConfig
from pofx.train import loop
from pofx.train.ema import Ema
from pofx.train.pool import Pool
from pofx.train.state import Slot

Stop = Callable[[], bool]  # asked after every step
DRAWN = 100  # images at a time, of others
QUARTER = UNetConfig(
    channels=32, multipliers=(1, 2, 2, 2), blocks=2, block="residual", attention=(16,), heads=1, resample="conv",
    patch=1, dropout=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class How:
    """What others' defaults leave open."""

    evaluations: int = 50  # of the network, for an image
    half: bool = False  # train in bf16; their default is fp32


class Side(abc.ABC):
    """One that learns. `seen` counts the images of its steps so far, `plan` those after which it ends."""

    note: str  # what it is, in words
    batch: int
    parameters: int
    dtype: str

    def __init__(self, plan: int):
        self.seen, self.plan = 0, plan

    @property
    def done(self) -> bool:
        """Whether the plan has no further step."""
        return self.seen + self.batch > self.plan

    @abc.abstractmethod
    def go(self, stop: Stop) -> None:
        """Train until `stop`, or to the end of the plan."""

    @abc.abstractmethod
    def draw(self, n: int) -> Images:
        """n samples of what was learned so far."""


class Ours(Side):
    """The project's own loop. The rate falls to zero at the end of the plan."""

    def __init__(self, task: Task, plan: int):
        super().__init__(max(plan, task.train.batch))
        self.task, self.train = task, dataclasses.replace(task.train, images=self.plan, preview_rows=0)
        self.batch, self.pool = self.train.batch, task.pool(self.train)
        self.model = task.model(self.pool, self.train)
        self.parameters, self.dtype = size(self.model), task.dtype
        self.note = f"{task.family}, batch {self.batch}, {task.sample.sampler}, {task.sample.steps} levels"

    def go(self, stop: Stop) -> None:
        steps = 0

        def stops() -> bool:
            nonlocal steps
            steps += 1
            return stop()

        with Slot(self.task.scratch, "ours", [self.plan], self.train.precision, fresh=not self.seen) as slot:
            try:
                loop.train(self.model, self.pool, self.train, loop.Run(self.task.seed, slot, stops))
            except loop.Stopped:  # the model has its last weights, the saved state the averaged ones
                average = Ema(self.model, 0)
                average.load_state_dict(slot.load(self.task.device)["ema"])
                average.swap()
        self.model.eval()
        self.seen += steps * self.batch

    def draw(self, n: int) -> Images:
        return self.task.draw(self.model, n)


class Diffusers(Side):
    """diffusers' examples/unconditional_image_generation. The rate falls to zero at the end of the plan."""

    batch = 16

    def __init__(self, task: Task, how: How, plan: int):
        super().__init__(plan)
        self.how, self.pool = how, Pool(task.pool(task.train).images, self.batch, task.seed, flip=True)
        torch.manual_seed(task.seed)
        net = peers.diffusers_unet(QUARTER).to(task.device)
        self.recipe = peers.Diffusers(net, plan // self.batch, how.half)
        self.parameters, self.dtype = peers.size(net), "bfloat16" if how.half else "float32"
        self.note = (
            "UNet2DModel with a quarter of the widths of google/ddpm-cifar10-32 (the example's own are for 64x64 and "
            f"hours on GPUs); DDPM, batch {self.batch}, AdamW 1e-4 (500 steps of warm-up, cosine), EMA; "
            f"DDIM, {how.evaluations} evaluations"
        )

    def go(self, stop: Stop) -> None:
        self.recipe.net.train()
        while not self.done and not stop():
            self.recipe.step(self.pool(self.seen // self.batch))
            self.seen += self.batch

    @torch.no_grad()
    def draw(self, n: int) -> Images:
        diffusers, net, average = peers.package("diffusers"), self.recipe.net.eval(), self.recipe.average
        pipeline = diffusers.DDIMPipeline(net, diffusers.DDIMScheduler.from_config(self.recipe.chain.config))
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        average.store(net.parameters())
        average.copy_to(net.parameters())
        drawn = [
            pipeline(k, generator, num_inference_steps=self.how.evaluations, output_type="np").images for k in parts(n)
        ]
        average.restore(net.parameters())
        return np.rint(255 * np.concatenate(drawn)).astype(np.uint8).transpose(0, 3, 1, 2)


class Lucidrains(Side):
    """denoising-diffusion-pytorch's Trainer with its defaults and the rate of its README, on a folder of PNG files."""

    batch = 16

    def __init__(self, task: Task, how: How, plan: int):
        super().__init__(10**9)  # its rate is constant: no plan
        ddp = peers.package("denoising_diffusion_pytorch")
        torch.manual_seed(task.seed)
        net = ddp.Unet(64, dim_mults=(1, 2, 4, 8))
        model = ddp.GaussianDiffusion(net, image_size=task.images.shape[-1], sampling_timesteps=how.evaluations)
        with quiet():
            self.trainer = ddp.Trainer(
                model, png(task), train_batch_size=self.batch, train_lr=8e-5, save_and_sample_every=10**9,
                calculate_fid=False, results_folder=str(task.scratch / "lucidrains"), amp=how.half,
                mixed_precision_type="bf16",
            )  # fmt: skip
        self.parameters, self.dtype = peers.size(net), "bfloat16" if how.half else "float32"
        self.note = (
            f"Unet(64, dim_mults=(1, 2, 4, 8)) and Trainer with their defaults: batch {self.batch}, Adam 8e-5, EMA, "
            f"PNG files, a worker a core; DDIM, {how.evaluations} evaluations"
        )

    def go(self, stop: Stop) -> None:
        while not self.done and not stop():
            self.trainer.train_num_steps = self.trainer.step + 1  # its loop has no other way to pause
            with quiet():
                self.trainer.train()
            self.seen += self.batch

    @torch.no_grad()
    def draw(self, n: int) -> Images:
        torch.manual_seed(0)
        model = self.trainer.ema.ema_model.eval()
        with quiet():
            drawn = torch.cat([model.sample(batch_size=k).cpu() for k in parts(n)])
        return to_uint8(2 * drawn - 1).numpy()


def parts(n: int) -> list[int]:
    """n images in parts of DRAWN, and the rest."""
    return [min(DRAWN, n - start) for start in range(0, n, DRAWN)]


def png(task: Task) -> str:
    """The training images as files, in a folder."""
    folder = task.scratch / "png"
    if not folder.exists():
        folder.mkdir()
        for i, image in enumerate(task.images):
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{i:06d}.png")
    return str(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, words and warnings of others' code."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield
