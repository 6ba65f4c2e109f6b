"""The training loop and what it rests on: resuming, averaging, batches, the guards that end a run."""

import errno
import math
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SHAPE, budget, build, pool, slot, small, weights
from torch import nn

from pofx.base import config, files
from pofx.base.errors import UserError
from pofx.base.images import to_model
from pofx.models.ebm.contrast import Contrast
from pofx.models.family import Family
from pofx.train import loop, safety, state
from pofx.train.config import Train, lr_at, settings
from pofx.train.ema import Ema
from pofx.train.loop import Run
from pofx.train.pool import Pool


def run(name, images, folder, stop=lambda: False, preview=lambda seen: None, **train):
    model, train = build(*small(name)), budget(name, **train)
    with slot(folder, precision=train.precision) as held:
        curve, *_ = loop.train(model, pool(images, train), train, Run(0, held, stop, preview))
    return weights(model), curve


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_interrupted_equals_undisturbed_bitwise(name, precision, sprites, tmp_path):
    whole, curve = run(name, sprites, tmp_path / "whole", precision=precision)
    asked = iter([False, True])  # stop after the second row of four
    with pytest.raises(loop.Stopped, match="16 of 32 images"):
        run(name, sprites, tmp_path / "parts", stop=lambda: next(asked), precision=precision)
    resumed, again = run(name, sprites, tmp_path / "parts", precision=precision)
    assert all(np.array_equal(whole[k], resumed[k]) for k in whole)
    assert curve == again


def test_interrupted_within_a_row_of_the_curve(sprites, tmp_path):
    whole, curve = run("vae", sprites, tmp_path / "whole", rows=1)
    asked = iter([False, True])
    with pytest.raises(loop.Stopped, match="16 of 32 images"):
        run("vae", sprites, tmp_path / "parts", rows=1, stop=lambda: next(asked))
    resumed, again = run("vae", sprites, tmp_path / "parts", rows=1)
    assert all(np.array_equal(whole[k], resumed[k]) for k in whole)
    assert curve == again and len(curve) == 1


HELD = {"validation": 40, "patience": 2, "images": 24 * 30, "batch": 24, "rows": 30, "warmup": 0, "lr": 0.02}


def prior(sprites, folder, stop=lambda: False, **train):
    """Trained on 24 images again and again, at a rate at which the loss on the 40 others soon rises."""
    model, train = build(*small("vqprior")), budget("vqprior", **HELD | train)
    with slot(folder) as held:
        curve, *_ = loop.train(model, pool(sprites[:64], train), train, Run(0, held, stop))
    return model, curve


def test_training_ends_early_with_its_best_weights(sprites, tmp_path):
    model, curve = prior(sprites, tmp_path)
    losses = [row["val_loss"] for row in curve]
    best = int(np.argmin(losses))
    assert best > 0 and len(curve) == best + 1 + 2 < 30
    held = to_model(sprites[24:64])
    with torch.no_grad():
        assert model.validate(held).mean().item() == pytest.approx(losses[best], rel=1e-5)
        assert not model.training and losses[-1] > losses[best]


def test_a_stopped_run_goes_on_with_the_best_weights_and_ends_where_it_would_have(sprites, tmp_path):
    model, curve = prior(sprites, tmp_path / "whole")
    whole = weights(model)
    for at in (2, len(curve) - 1):  # before the best row, and after it
        asked, folder = iter([*[False] * (at - 1), True]), tmp_path / str(at)
        with pytest.raises(loop.Stopped, match=f"stopped at {24 * at} of"):
            prior(sprites, folder, stop=lambda asked=asked: next(asked))
        for _ in range(2):  # the second finds a finished run and only exports it again
            model, again = prior(sprites, folder)
            assert curve == again and all(np.array_equal(v, whole[k]) for k, v in weights(model).items())


def test_without_patience_the_budget_is_spent_and_the_best_weights_are_kept(sprites, tmp_path):
    model, curve = prior(sprites, tmp_path, patience=0, images=24 * 12, rows=12)
    with torch.no_grad():
        now = model.validate(to_model(sprites[24:64])).mean().item()
    assert len(curve) == 12 and now == pytest.approx(min(row["val_loss"] for row in curve), rel=1e-5)


def test_watching_held_out_images_does_not_disturb_training(name, sprites, tmp_path):
    """The pool is the same without them: losses of the steps agree to the last bit."""
    _, plain = run(name, sprites[:64], tmp_path / "a")
    _, watched = run(name, sprites[:80], tmp_path / "b", validation=16)
    assert all(math.isfinite(row.pop("val_loss")) for row in watched)
    assert plain == watched


# Every family at its default, and what no default trains.
KINDS = [(name,) for name in config.family_names()] + [
    ("vae", "vae-resnet"), ("vae", "vae.likelihood=logistic"), ("vae", "vae.importance=3", "vae.beta=1"),
    ("vqprior", "vqprior.network=pixelcnn"), ("ebm", "ebm-igebm"), ("ebm", "ebm-icd"), ("ebm", "ebm.chain=2"),
    ("ncsn", "ncsn.network=refinenet"), ("ncsn", "ncsn.network=refinenet_conditional"), ("ddpm", "ddpm-ho2020"),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_every_kind_trains_in_bf16_with_its_loss_in_float32(kind, sprites, tmp_path):
    (name, *words), seen = kind, []
    model, train = build(*small(name, *words)), budget(name, *words, images=8, batch=4, precision="bf16")
    model.net.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with slot(tmp_path, precision="bf16") as held:
        curve, *_ = loop.train(model, pool(sprites, train), train, Run(0, held))
    assert seen and all(seen) and all(math.isfinite(row["loss"]) for row in curve)
    with torch.autocast("cpu", torch.bfloat16):
        terms = model.train()(to_model(sprites[:2]))
    assert terms["loss"].dtype == torch.float32
    terms["loss"].mean().backward()
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(value.dtype != torch.bfloat16 for value in model.state_dict().values())


def test_accumulated_gradients_are_those_of_the_big_batch(sprites, tmp_path):
    """The VAE draws normal numbers alone, row by row: the parts of a batch see the same ones as the whole."""
    runs = {}
    for parts in (1, 2):
        model, train = build(*small("vae")), budget("vae", images=96, batch=32, accumulate=parts)
        with slot(tmp_path / str(parts)) as held:
            curve, *_ = loop.train(model, pool(sprites, train), train, Run(0, held))
        runs[parts] = weights(model), curve
    (whole, curve), (parts, again) = runs[1], runs[2]
    start = weights(build(*small("vae")))
    for key in whole:  # Adam magnifies the rounding of gradients near zero, in few elements
        assert np.linalg.norm(parts[key] - whole[key]) <= 0.01 * np.linalg.norm(whole[key] - start[key]), key
    for one, two in zip(curve, again, strict=True):
        assert one == pytest.approx(two, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accumulate": 3}, r"accumulate = 3 should divide the batch \(8\)"),
        ({"clip": 0.0}, "clip = 0.0 should be above 0"),
        ({"rows": 0}, "rows = 0 should be at least 1"),
        ({"images": 3}, r"images = 3 should be at least one batch \(8\)"),
        ({"patience": 2}, "patience = 2 needs validation images"),
        ({"validation": -1}, "validation = -1 should be at least 0"),
        ({"memory_mib": -1}, "memory_mib = -1 should be at least 0"),
        ({"rollbacks": -1}, "rollbacks = -1 should be at least 0"),
        ({"betas": [0.9, 1.0]}, r"betas = \[0.9, 1.0\] should lie in \[0, 1\)"),
        ({"betas": [0.9]}, r"betas = \[0.9\] should have 2 entries"),
        ({"lr": float("nan")}, "lr = nan should be a finite number"),
        ({"ima": 3}, "unknown key 'ima' in .*train: did you mean images?"),
    ],
)
def test_values_out_of_range_are_refused_by_name(change, says):
    with pytest.raises(UserError, match="^vae.train." + says if "ima" not in change else says):
        settings("vae", {"train": {"batch": 8}, "vae": {"train": change}})
    with pytest.raises(UserError, match="^train." + says if "ima" not in change else says):
        settings("vae", {"train": {"batch": 8} | change, "vae": {}})


def test_a_family_trains_by_the_shared_block_and_its_own_key_by_key():
    tree = {"train": {"batch": 16, "lr": 1e-3}, "vae": {"latent": 4, "train": {"lr": 0.5}}, "edm": {}}
    assert settings("vae", tree) == Train(batch=16, lr=0.5)
    assert settings("edm", tree) == Train(batch=16, lr=1e-3)
    assert settings("ddpm", {}) == Train()


def test_a_finished_run_is_exported_again_without_training(sprites, tmp_path):
    first, _ = run("vae", sprites, tmp_path)
    again, curve = run("vae", sprites, tmp_path, stop=lambda: pytest.fail("trained a step"))
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert curve[-1]["images"] == 32


def test_previews_do_not_disturb_training(sprites, tmp_path):
    plain, _ = run("ncsn", sprites, tmp_path / "a")
    seen = []
    shown, _ = run("ncsn", sprites, tmp_path / "b", preview=lambda n: (seen.append(n), torch.rand(3)), preview_rows=2)
    assert seen == [16], "and at the end the caller shows what it is given"
    assert all(np.array_equal(plain[k], shown[k]) for k in plain)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(sprites, tmp_path, value):
    class Breaks(Pool):
        def __call__(self, step):
            return super().__call__(step) * (value if step == 2 else 1.0)

    with slot(tmp_path) as kept:
        with pytest.raises(UserError, match=r"diverged before 24 images: .*loss.*last good state is kept in"):
            loop.train(build(*small("vae")), Breaks(sprites, 8, 0, False), budget("vae"), Run(0, kept))
        saved = kept.load("cpu")
    assert saved["step"] == 2
    assert all(torch.as_tensor(v).isfinite().all() for v in saved["model"].values())


def test_the_energy_guard_stops_the_run(sprites, tmp_path):
    module, cfg = small("ebm", "ebm-igebm")
    model = build(module, replace(cfg, contrast=replace(cfg.contrast, energy_limit=1e-6)))
    train = budget("ebm")
    with slot(tmp_path) as held, pytest.raises(UserError, match="stopped at 8 images: the mean energy left its bounds"):
        loop.train(model, pool(sprites, train), train, Run(0, held))


def test_second_derivatives_are_not_compiled(sprites, tmp_path):
    model, train = build(*small("vae")), budget("vae", compile=True)
    model.second_order = True
    with slot(tmp_path) as held, pytest.raises(UserError, match=r"^train\.compile = true: .*second derivatives"):
        loop.train(model, pool(sprites, train), train, Run(0, held))


class Toy(Family):
    """A weight that grows by about the learning rate a step; after `calm` images more than `limit` is a fault."""

    alarms = {"jump": "the weight jumped"}  # noqa: RUF012
    warnings = {"far": "the weight is far from where it began"}  # noqa: RUF012

    def __init__(self, limit=0.0, calm=32, fault="alarm", far=math.inf):
        super().__init__(None, SHAPE)
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.net.weight)
        self.limit, self.calm, self.fault, self.far = limit, calm, fault, far
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("before", torch.zeros(()))

    def forward(self, x):
        now = self.net.weight.squeeze()
        faulty = ((now - self.before).detach() > self.limit) & (self.seen >= self.calm)
        with torch.no_grad():
            self.before.copy_(now)
            self.seen.add_(len(x))
        loss = (x.mean((1, 2, 3)) + 10 - now).square() + torch.rand(len(x), device=x.device)
        terms = {"loss": torch.where(faulty, math.nan, loss) if self.fault == "nan" else loss}
        return terms | {"alarm_jump": faulty & (self.fault == "alarm"), "warn_far": now > self.far}

    def preview(self, noise):
        raise NotImplementedError


def toy(images, folder, stop=lambda: False, train=None, **settings):
    """Weights, curve, events and the state last saved, of 8 rows of two steps of 8 images."""
    eight = {
        "images": 128,
        "rows": 8,
        "optimizer": "adam",
        "lr": 0.1,
        "decay": "constant",
        "ema_half_life": 16,
        "rollbacks": 3,
    }
    train = budget("vae", **eight | (train or {}))
    model = Toy(**settings)
    with slot(folder) as held:
        curve, _, events = loop.train(model, pool(images, train), train, Run(0, held, stop))
        saved = held.load("cpu")
    del saved["seconds"]
    return dict(model.state_dict()), curve, events, saved


def same(a, b):
    """Equal to the last bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(("fault", "parts"), [("alarm", 1), ("alarm", 2), ("nan", 1)])
def test_a_fault_that_a_lower_rate_mends_is_rolled_back(sprites, tmp_path, capsys, fault, parts):
    """It is seen in the row that ends at 80 images; of the rows before it the last three are kept, 32, 48 and 64."""
    after, curve, events, _ = toy(sprites, tmp_path, train={"accumulate": parts}, limit=0.05, calm=64, fault=fault)
    name = {"alarm": "jump", "nan": "not finite"}[fault]
    assert events == [{"images": 80, "guard": name, "did": "rolled back to 32 images, learning rate x 0.3"}]
    assert [row["images"] for row in curve] == list(range(16, 129, 16))
    assert [row["lr"] for row in curve] == pytest.approx([0.1] * 2 + [0.03] * 6)
    assert all(row.keys() == {"images", "loss", "grad_norm", "lr"} for row in curve)
    assert all(math.isfinite(value) for row in curve for value in row.values())
    assert after["seen"] == 128, "buffers go back as well"
    line = f"guard '{name}' fired at 80 images: back to 32 images, learning rate 0.03, roll-backs left: 2"
    assert capsys.readouterr().err.count(line) == 1


def test_a_fault_in_the_first_row_goes_back_to_the_start_and_lower_each_time(sprites, tmp_path):
    after, curve, events, _ = toy(sprites, tmp_path, limit=0.02, calm=8)
    assert [event["images"] for event in events] == [16, 16]
    assert all(event["did"].startswith("rolled back to 0 images") for event in events)
    assert len(curve) == 8 and curve[0]["lr"] == pytest.approx(0.009) and after["seen"] == 128


@pytest.mark.parametrize("fault", ["alarm", "nan"])
def test_a_fault_that_stays_ends_the_run_when_no_roll_back_is_left(sprites, tmp_path, capsys, fault):
    says = {"alarm": "stopped at 72 images: the weight jumped", "nan": "diverged before 72 images: .*loss.* not finite"}
    with pytest.raises(UserError, match=says[fault] + ".*; the last good state is kept in"):
        toy(sprites, tmp_path, limit=-1.0, calm=64, fault=fault)
    assert capsys.readouterr().err.count("back to 32 images") == 3
    with slot(tmp_path) as held:
        saved = held.load("cpu")
    assert len(saved["safety"]["events"]) == 3 and not saved["safety"]["states"]
    assert all(v.isfinite().all() for v in saved["model"].values())


def test_without_roll_backs_no_state_is_kept_and_a_guard_ends_the_run(sprites, tmp_path):
    with pytest.raises(UserError, match="stopped at 72 images: the weight jumped; the last good state is kept in"):
        toy(sprites, tmp_path, train={"rollbacks": 0}, limit=0.05, calm=64)
    with slot(tmp_path) as held:
        saved = held.load("cpu")
    assert saved["step"] == 8 and not saved["safety"]["states"] and not saved["safety"]["events"]


@pytest.mark.parametrize("at", [*range(1, 11), 14])
def test_an_interrupted_run_is_rolled_back_as_an_undisturbed_one(sprites, tmp_path, at):
    """Stopped before the fault, between the fault and its row's end, right at the roll-back, and after it."""
    settings = {"limit": 0.05, "calm": 64, "far": 0.4}
    whole = toy(sprites, tmp_path / "whole", **settings)
    assert [event["did"].split()[0] for event in whole[2]] == ["warned", "rolled"]
    asked = iter([*[False] * (at - 1), True])
    with pytest.raises(loop.Stopped, match="images, state saved in"):
        toy(sprites, tmp_path / "parts", stop=lambda: next(asked), **settings)
    assert same(toy(sprites, tmp_path / "parts", **settings), whole)


def test_what_is_undone_does_not_depend_on_when_states_are_saved(sprites, tmp_path):
    settings = {"limit": 0.05, "calm": 64, "far": 0.4}
    often, seldom = (
        toy(sprites, tmp_path / str(seconds), train={"save_seconds": seconds}, **settings) for seconds in (0.0, 1e9)
    )
    assert same(often, seldom)


def test_a_roll_back_restores_all_of_a_state(sprites, tmp_path, monkeypatch):
    """As if the rate had fallen at the row gone back to. An energy-based model has buffers that no gradient moves."""
    cfg = small("ebm", "ebm-igebm")[1]
    train = budget("ebm", "ebm-igebm", rollbacks=1, validation=16, images=64, rows=8)

    class Once(Contrast):
        """One alarm, in the fifth step, and none when that comes again."""

        calls = 0

        def forward(self, x):
            self.calls += self.training
            return super().forward(x) | {"alarm_energy": torch.tensor(self.training and self.calls == 5)}

    runs, rate = [], lr_at
    for model, falls in ((Once, math.inf), (Contrast, 16)):
        monkeypatch.setattr(safety, "lr_at", lambda c, seen, at=falls: rate(c, seen) * (0.3 if seen >= at else 1.0))
        torch.manual_seed(0)
        trained = model(cfg, SHAPE)
        with slot(tmp_path / model.__name__) as held:
            curve, _, events = loop.train(trained, pool(sprites, train), train, Run(0, held))
            saved = held.load("cpu")
        parts = [saved[key] for key in ("model", "optimizer", "ema", "curve")]
        runs.append([curve, dict(trained.state_dict()), parts, saved["safety"]["best"]])
        assert [event["images"] for event in events] == ([40] if model is Once else [])
    assert same(*runs)


def test_a_warning_is_told_once_and_its_rows_are_counted(sprites, tmp_path, capsys):
    """A step of 0.1 a step: beyond 0.45 from the sixth step on, which ends the third of eight rows."""
    _, curve, events, _ = toy(sprites, tmp_path, limit=math.inf, far=0.45)
    assert events == [{"images": 64, "guard": "far", "did": "warned", "rows": 5}]
    assert len(curve) == 8 and all("warn_far" not in row for row in curve)
    told = "warning: at 64 images: the weight is far from where it began\n"
    assert capsys.readouterr().err.count(told) == 1


def _hold(folder, ready, done):
    with slot(folder):
        ready.set()
        done.wait(30)


def test_a_second_trainer_is_refused(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(UserError, match=f"process {other.pid} is already training in"):
        slot(tmp_path)
    done.set()
    other.join()
    with slot(tmp_path) as held:  # free again
        assert held.load("cpu") is None


def test_another_key_is_a_fresh_start(tmp_path):
    with state.Slot(tmp_path, "train", ["lr 1"]) as one, state.Slot(tmp_path, "train", ["lr 2"]) as two:
        one.save({"step": 3})
        assert two.load("cpu") is None


def test_fresh_forgets_the_state_and_the_previews(tmp_path):
    with state.Slot(tmp_path, "train", [1]) as held:
        held.save({"step": 3})
        files.write_npy(held.folder / "000000000016.npy", np.zeros(3))
    with state.Slot(tmp_path, "train", [1]) as held:
        assert held.load("cpu") == {"step": 3} and len(list(held.folder.glob("*.npy"))) == 1
    with state.Slot(tmp_path, "train", [1], fresh=True) as held:
        assert held.load("cpu") is None and not list(held.folder.glob("*.npy"))


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    with slot(tmp_path) as held:
        held.save({"step": 1})
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            held.save({"step": 2})
        assert held.load("cpu") == {"step": 1}
        assert not list(held.folder.glob("*.part"))


def test_batches_visit_every_image_once_an_epoch(sprites):
    images = sprites[:10]
    images = images.clone()
    images[:, 0, 0, 0] = torch.arange(10, dtype=torch.uint8)
    seen = [((x[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() for x in map(Pool(images, 4, 0, flip=False), range(5))]
    flat = [i for batch in seen for i in batch]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert ((Pool(images, 4, 0, flip=False)(2)[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() == seen[2]


def test_held_out_images_are_in_no_batch(sprites):
    got = Pool(sprites[:10], 4, 0, flip=False, validation=3)
    assert torch.equal(got.held_out, sprites[7:10]) and torch.equal(got.images, sprites[:7])
    with pytest.raises(UserError, match=r"train\.validation = 10 should be below the 10 training images"):
        Pool(sprites[:10], 4, 0, flip=False, validation=10)


def test_flips_mirror_about_half(sprites):
    torch.manual_seed(0)
    same = Pool(sprites, 128, 0, flip=False)(0)
    flipped = Pool(sprites, 128, 0, flip=True)(0)
    mirrored = (flipped == same.flip(3)).flatten(1).all(1)
    kept = (flipped == same).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert 40 < mirrored.sum() < 88


@pytest.mark.parametrize(("share", "step"), [(0.0, None), (0.01, 1), (0.4, 2), (0.5, 2), (0.9, 4)])
def test_a_guide_is_kept_after_its_share_of_the_images(share, step):
    module, cfg = small("edm")
    model = build(module, replace(cfg, guide=share))
    assert safety.guide_step(model, Train(images=32, batch=8)) == step
    assert safety.guide_step(build(*small("vae")), Train()) is None


def test_learning_rate_follows_images_not_steps():
    cfg = Train(lr=1.0, warmup=100, images=1100, decay="cosine", batch=10)
    assert lr_at(cfg, 40) == pytest.approx(0.5)
    assert lr_at(cfg, 100) == pytest.approx(1.0)
    assert lr_at(cfg, 600) == pytest.approx(0.5)
    assert lr_at(cfg, 1100) == pytest.approx(0.0)
    assert lr_at(replace(cfg, batch=20), 600) == lr_at(cfg, 600)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.register_buffer("counter", torch.zeros(()))


def test_average_halves_an_old_weight_in_a_half_life():
    model = Two()
    ema = Ema(model, half_life=100)
    with torch.no_grad():
        model.w.fill_(1.0)
    for k in range(10):
        ema.update(seen=1_000_000 + 10 * k, batch=10)
    assert torch.allclose(ema.shadow[0], torch.full((3,), 0.5))


def test_average_forgets_the_random_start_and_leaves_buffers_alone():
    model = Two()
    ema = Ema(model, half_life=1e9)
    with torch.no_grad():
        model.w.fill_(1.0)
        model.counter.fill_(7.0)
    for k in range(100):
        ema.update(seen=10 * (k + 1), batch=10)
    with ema.swapped():
        assert (model.w > 0.8).all()
        assert model.counter == 7
    assert (model.w == 1).all()
