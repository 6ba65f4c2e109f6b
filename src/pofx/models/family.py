"""What every family of generative models is, and how one is found, built, saved and loaded.

A family is one file or folder in `pofx/models/` with three names: `Config` and `Sample(Draw)` (frozen dataclasses: how
to train, how to draw) and `Model`. Families are found by file name, so that an edit of one cannot touch another.
"""

import abc
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, UInt8
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pofx.base import config, files
from pofx.base.errors import UserError
from pofx.base.rng import Noise

PROBED = 0.1  # noise level at which a denoiser's features are taken, images on [-1, 1]: that of small things
Terms = dict[str, Tensor]  # "loss": (B,); every other entry (B,) or (), logged only; but alarm_, warn_...: () bool


@dataclasses.dataclass(frozen=True)
class Draw:
    """What every family's Sample is made from."""

    also: dict = dataclasses.field(default_factory=dict, kw_only=True)  # see `draws`


class Family(nn.Module, abc.ABC):
    """A generative model of images in [-1, 1].

    State that must survive a restart is a parameter or a persistent buffer; what the config determines is a
    non-persistent buffer. Several processes may share a batch: random numbers of its images come from pofx.base.rng,
    and statistics of it go through pofx.base.dist. A family touches no files (but in `fetch`), devices or autocast, and
    changes its buffers only in train mode and in `finish`.
    """

    cfg: Any  # the Config it was built from
    net: nn.Module  # what may be compiled, and whose calls are counted as function evaluations (NFE)
    # What it means, and what to do, when forward returns a true "alarm_<name>" in any step of a row of the curve, which
    # rolls the training back or ends it, or a true "warn_<name>" in more than half of them, which is told once.
    alarms: Mapping[str, str] = {}
    warnings: Mapping[str, str] = {}
    # How bits per dimension are measured (pofx.score.likelihood): "forward" in eval mode returns them; so it does with
    # "importance", and `log_weights` gives a tighter bound; the variational "bound" of a chain, the "flow" of a
    # continuum of noise levels; None: the family has no honest likelihood.
    likelihood: Literal["forward", "importance", "bound", "flow"] | None = None
    # Of a denoiser D(x, sigma), which then is the method `denoise`: smallest and largest noise level, images on
    # [-1, 1], and the levels it was trained on, falling (None: a continuum).
    sigma_range: tuple[float, float] | None = None
    ladder: Float64[np.ndarray, " _"] | None = None
    # Another family whose trained model this one is built on, as Model(cfg, base): it keeps it as `base`, frozen and in
    # eval mode, and its weights are saved along. The stage that trains has models/<needs> among its deps.
    needs: str | None = None
    layer: str | None = None  # what `features` gives, in words

    # Images after which the training calls `keep` once, with the averaged weights in the model; None: never.
    keep_at: int | None = None

    def keep(self) -> None:
        """Keep the weights of this moment in persistent buffers or frozen parameters."""

    def guides(self) -> list[nn.Module]:
        """What was kept: networks of no parameters of their own, whose calls count as evaluations too."""
        return []

    def fetch(self, cache: Path, base: Path) -> None:
        """Bring what training alone needs and the model's own file will not hold, such as a frozen network of the loss.

        Called once before training; what samples or scores does without. `cache` keeps what comes from a URL, `base` is
        the folder at which relative paths start.
        """
        return None

    def prepare(self, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, float]:
        """Look at the training images once, before training: returns what is worth a metric, warns on stderr."""
        return {}

    def finish(self, images: UInt8[Tensor, "n 3 h w"]) -> None:
        """Look at the training images once, after training, in eval mode under no_grad, and set persistent buffers."""
        return None

    def monitor(self, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, Any]:
        """Look at test images after training, under no_grad in eval mode: returns what is worth a metric (numbers and
        lists of numbers), warns on stderr."""
        return {}

    def validate(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """The loss of images held out of training, in eval mode under no_grad, without what else `forward` computes."""
        return self(x)["loss"]

    def encode(self, x: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b latent"], Float[Tensor, "b latent"]] | None:
        """Mean and log variance of the Gaussian code of every image; None: the family has no such code."""
        return None

    def decode(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b 3 h w"]:
        """The images of codes, for a family whose `encode` gives them."""
        raise NotImplementedError

    def features(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"] | None:
        """What the model makes of images at the place that `layer` names, without randomness, for a linear probe: the
        mean of a Gaussian code, if not said otherwise (see `inside`). None: the family offers none."""
        code = self.encode(x)
        return None if code is None else code[0]

    def energy(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"] | None:
        """Energies, lower is likelier, up to a constant that is the same for all images; None: no energy-based model.

        With it come `path`, `inpaint` and `restore`, and a `chain` in the family's Sample: Langevin steps, 0 for none.
        """
        return None

    def path(self, noise: Noise, cfg: Any) -> Iterator[Float[Tensor, "n 3 h w"]]:
        """What `sample` goes through: where the chains start, their states on the way, and the samples."""
        raise NotImplementedError

    def inpaint(
        self, x: Float[Tensor, "b 3 h w"], known: Bool[Tensor, "b 1 h w"], noise: Noise, cfg: Any
    ) -> Float[Tensor, "b 3 h w"]:
        """Images whose known pixels are those of x and whose others are drawn given these, by `cfg`, a
        Sample; what x holds elsewhere does not matter. Called as `sample` is."""
        raise NotImplementedError

    def restore(self, x: Float[Tensor, "b 3 h w"], sigma: float, noise: Noise, cfg: Any) -> Float[Tensor, "b 3 h w"]:
        """What Langevin dynamics makes of images that had Gaussian noise of standard deviation `sigma` added, images on
        [-1, 1], from where they are and with the steps of `cfg`, a Sample. Called as `sample` is."""
        raise NotImplementedError

    def reconstruct(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"] | None:
        """Images in [-1, 1] as they come back from the family's code, without randomness; None: it has no code."""
        return None

    def log_weights(self, x: Float[Tensor, "b 3 h w"], k: int) -> Float[Tensor, "k b"]:
        """log p(x, z) / q(z|x) in nats for k codes z ~ q(z|x) an image, p(x, z) being a probability of grey levels; for
        `likelihood = "importance"`."""
        raise NotImplementedError

    @abc.abstractmethod
    def forward(self, x: Float[Tensor, "b 3 32 32"]) -> Terms:
        """The loss for every image, and whatever is worth a curve. In eval mode also "bpd" (B,) where it exists, and
        "bpd_..." (B,), parts of it that are worth a metric."""

    @abc.abstractmethod
    def sample(self, noise: Noise, cfg: Any) -> Float[Tensor, "n 3 32 32"]:
        """len(noise) images, all randomness from `noise`. Called under no_grad, never inference_mode."""


def module(name: str) -> ModuleType:
    """The file of the family `name`."""
    if name not in config.family_names():
        raise UserError(f"no family is called {name!r}: the families are {', '.join(config.family_names())}")
    return importlib.import_module(config.family_module(name))


def draws(name: str, cfg: Draw) -> dict[str, Any]:
    """The rows that the family `name` has in the report: the Sample of each.

    The first is called like the family and drawn as `cfg` says. `cfg.also` names more, drawn from the same model and
    the same noise: its {ddim: {sampler: ddim}} makes a row edm-ddim, which differs from the first in its sampler.

    Raises:
        UserError: a row's name is not of small letters and digits, or what differs is no valid part of a Sample.
    """
    rows = {name: dataclasses.replace(cfg, also={})}
    for word, differs in cfg.also.items():
        where = f"sample.{name}.also"
        if not re.fullmatch("[a-z0-9]+", str(word)):
            raise UserError(f"{where}: {word!r} cannot name a row: use small letters and digits")
        if not isinstance(differs, dict) or not differs or "also" in differs:
            raise UserError(f"{where}.{word} = {differs!r} should say what differs from sample.{name}, key by key")
        rows[f"{name}-{word}"] = config.build(type(cfg), dataclasses.asdict(rows[name]) | differs, f"{where}.{word}")
    return rows


def stems(row: str, seeds: int) -> list[str]:
    """What the files of a row are called that is drawn `seeds` times: edm, edm.seed1, edm.seed2.

    Raises:
        UserError: it is not drawn at all.
    """
    if seeds < 1:
        raise UserError(f"sample.seeds = {seeds} should be 1 or more: images are drawn so many times")
    return [row, *(f"{row}.seed{k}" for k in range(1, seeds))]


def create(name: str, cfg: Any, models: Path) -> Family:
    """A model to be trained; what it needs is loaded from the folder `models`."""
    family = module(name).Model
    return family(cfg, *([load(models / family.needs)] if family.needs else []))


def save_model(folder: Path, name: str, cfg: Any, model: Family, provenance: dict[str, Any]) -> None:
    """Write `folder`/model.safetensors and model.json: all that sampling needs."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with files.atomic(Path(folder) / "model.safetensors") as file:
        file.write(save(tensors))
    card = {"family": name, "config": dataclasses.asdict(cfg), "provenance": provenance}
    if model.needs:
        card["base"] = {"family": model.needs, "config": dataclasses.asdict(model.base.cfg)}
    files.write_json(Path(folder) / "model.json", card)


def load(folder: Path, device: torch.device | str = "cpu") -> Family:
    """The model in `folder`, on `device`, in eval mode."""
    model = _build(folder)
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.to(device)


def untrained(folder: Path, seed: int, device: torch.device | str = "cpu") -> Family:
    """A model like that in `folder`, on `device`, in eval mode, with random initial weights (its base's too)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _build(folder).to(device)


def _build(folder: Path) -> Family:
    def build(card: dict[str, Any]) -> Family:
        family = module(card["family"])
        cfg = config.build(family.Config, card["config"], f"{folder}/model.json")
        return family.Model(cfg, *([build(card["base"])] if "base" in card else []))

    model = build(files.read_json(Path(folder) / "model.json"))
    if model.cfg.train.channels_last:
        model.to(memory_format=torch.channels_last)
    return model.eval()


@contextmanager
def counted(*nets: nn.Module) -> Iterator[list[int]]:
    """Count the calls of the networks in the block: the one-element list holds the number of evaluations."""
    calls = [0]

    def hook(*_):
        calls[0] += 1

    handles = [net.register_forward_pre_hook(hook) for net in nets]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def inside(layer: nn.Module, run: Callable[[], Any]) -> Float[Tensor, "b d"]:
    """The map that `layer` puts out while `run` runs, as features (see `averaged`); what comes after it is not run."""

    class Reached(Exception):
        pass

    def hook(_module, _input, out: Tensor):
        raise Reached(out)

    handle = layer.register_forward_hook(hook)
    try:
        run()
    except Reached as reached:
        return averaged(reached.args[0])
    finally:
        handle.remove()
    raise ValueError("the layer was not reached")


def averaged(h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """A map averaged to 2x2 places, which keeps roughly where things are: 4 numbers a channel."""
    return F.adaptive_avg_pool2d(h.float(), 2).flatten(1)
