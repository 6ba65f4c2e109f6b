"""A small made-up run, as the stages would have written it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pofx.base.images import save_grid
from pofx.report import page
from pofx.report.metrics import Metrics, merge

MODELS = ("vae", "ebm", "ncsn")
ROWS = {"vae": "vae", "vae-mixture": "vae", "ebm": "ebm", "ncsn": "ncsn"}  # row -> family
SWEPT = ("ncsn", "edm")  # the second is not among the models compared
BASED = ("ebm",)  # on an energy
CODE = {  # of the VAE; no family has a codebook but where a test gives it one
    "bpd_iw": 5.1234, "bpd_iw_stderr": 0.01, "bpd_prior": 0.25, "bpd_decoder": 5.1821, "recon_psnr": 22.25,
    "recon_ssim": 0.57, "active_units": 7, "kl_units": [2.5, 1.25, 0.0],
}  # fmt: skip
GUARDS = {  # that fired; of the other families none
    "ebm": [
        {"images": 3200, "guard": "energy", "did": "rolled back to 2,400 images, learning rate x 0.3"},
        {"images": 4000, "guard": "<still>", "did": "warned", "rows": 12},
    ]
}
CODE_PICTURES = ("reconstructions", "traversals", "interpolations")
KEYS = ["fd_effnet", "kid_effnet", "kid_effnet_std"]
BEYOND = {  # of every row; no row here has images enough to be extrapolated, but where a test gives it a number
    "fd_test_effnet": 640.5, "kid_test_effnet": 1.2345, "kid_test_effnet_std": 0.0321, "precision": 0.8125,
    "recall": 0.0456, "density": 1.25, "coverage": 0.375, "nearest_ratio": 0.875, "copied": 0.0123,
    "duplicates": 0.25, "colour_shift": [-7.94, 8.16, 3.0], "saturated": 0.0312,
}  # fmt: skip


def fake_metrics(keys: list[str] = KEYS) -> Metrics:
    """As the stages write them: the VAE alone has a likelihood."""
    rng = np.random.default_rng(0)
    trees = [{k: {"floor": v} for k, v in zip(keys, (62.0, -0.0004, 0.003), strict=True)}]
    trees[0]["protocol"] = {"floor": {"n": 2000, "reference": "train, 10000 images", "keys": keys}}
    trees[0] |= {"bpd": {"gaussian": 4.7712, "pixel_gaussian": 8.0301}}
    trees[0] |= {"bpd_stderr": {"gaussian": 0.0071, "pixel_gaussian": 0.0123}}
    for i, f in enumerate(MODELS):
        values = dict(zip(keys, (1500.0 - 400 * i, 2.0 - 0.5 * i, 0.04), strict=True))
        trees.append({key: {f: value} for key, value in values.items()})
        trees.append({"test_loss": {f: float(rng.normal())}, "config": {f: {f: {"width": 32, "latent": 10}}}})
        told = {
            "n": 2000,
            "reference": "train, 10,000 images",
            "extractor": "E <1280-d>",
            "test_images": 2000,
            "bpd_images": 64,
            "n_reference": 10_000,
            "traversal": [-1.5, 0.0, 1.5],
        }
        trees.append({"protocol": {f: told | {"kid_subsets": 100, "kid_subset_size": 1000}}})
        trees.append({"guards": {f: GUARDS.get(f, [])}})
        trees.append({"train_loss": {f: 1.0}, "parameters": {f: 68_200 * 10**i}, "images_seen": {f: 100_000}})
        trees.append(
            {
                "train_seconds": {f: 61.0 * (i + 1)},
                "train_images_per_second": {f: 700.0 / (i + 1)},
                "device": {f: "cpu"},
            }
        )
        trees.append({"sample_seconds_per_1000": {f: 0.4 * 20**i}, "nfe": {f: 20**i}})
        if f == "vae":  # drawn from in another way
            row, drawing = f"{f}-mixture", told | {"kid_subsets": 100, "kid_subset_size": 1000}
            values = dict(zip(keys, (1300.0, 1.7, 0.04), strict=True))
            values |= {"sample_seconds_per_1000": 0.5, "nfe": 1, "config": {f"sample.{f}": {"prior": "mixture"}}}
            values["protocol"] = {k: v for k, v in drawing.items() if not k.endswith("_images")}
            trees.append({key: {row: value} for key, value in values.items()})
    trees.append({"overlap": {"ncsn": 0.21}, "largest_distance": {"ncsn": 30.13}})
    trees.append({"bpd": {"vae": 5.4321}, "bpd_stderr": {"vae": 0.01}})
    trees += [{key: {"vae": value} for key, value in row.items()} for row in (CODE, {f"recon_{keys[0]}": 123.4})]
    return merge(trees)


def with_beyond(metrics: Metrics) -> Metrics:
    """The same run as one that measures more than distances, and has baselines; the full Gaussian is refused."""
    rows = {"floor": ("precision", "recall", "density", "coverage", "colour_shift", "saturated")}
    rows |= dict.fromkeys((*ROWS, "halves", "pixel_gaussian"), tuple(BEYOND))
    more: Metrics = {key: {row: BEYOND[key] for row in rows if key in rows[row]} for key in BEYOND}
    protocol = {row: told | {"n_test": 1500, "n_manifold": 1800} for row, told in metrics["protocol"].items()}
    protocol["floor"] = metrics["protocol"]["floor"]
    protocol |= {"halves": {"n": 1234, "reference": "train, 1,234 other images"}}
    protocol |= {"pixel_gaussian": {"n": 2000, "reference": "train, 10,000 images"}}
    distances = {key: metrics[key] | {"halves": 31.4, "pixel_gaussian": 934.0} for key in KEYS}
    bits = {key: {k: v for k, v in metrics[key].items() if k != "gaussian"} for key in ("bpd", "bpd_stderr")}
    return metrics | more | distances | bits | {"protocol": protocol, "refused": {"gaussian": "<60> are too few"}}


def with_seeds(metrics: Metrics) -> Metrics:
    """The same run as one that draws every row three times, counts what it costs, and probes its features."""
    offsets = (0.0, 3.5, -2.0)
    drawn = {f"{key}_seeds": {r: [metrics[key][r] * (1 + d / 100) for d in offsets] for r in ROWS} for key in KEYS[:2]}
    costs = {key: {f: 1.5 * (i + 1) for i, f in enumerate(MODELS)} for key in ("forward_gflop", "train_peak_mib")}
    probe = {"linear_probe": {"pixels": 0.4, "vae": 0.5125}, "linear_probe_random": {"vae": 0.25}}
    probe |= {"linear_probe_stderr": {"pixels": 0.01, "vae": 0.02}}
    asked = {"probe_features": 128, "probe_train": 9000, "probe_layer": "mean of the <code>"}
    probe["protocol"] = metrics["protocol"] | {"vae": metrics["protocol"]["vae"] | asked}
    told = {"date": "2026-01-02", "revision": "0123abc", "changed": True, "system": "Linux", "torch": "2.0", "seed": 7}
    return metrics | drawn | costs | probe | {"trained": {"vae": told | {"data": "d4", "code": "c0"}}}


def with_faces(metrics: Metrics) -> Metrics:
    """The same run on smileys; no image of the EBM is a face, so that no share of them is held out."""
    faces = {"face_error": 31.25, "valid": 0.125, "kinds_tv": 0.0812, "held_out": 0.0625}
    out = {key: {"floor": 0.1} | dict.fromkeys(ROWS, value) for key, value in faces.items()}
    out["valid"]["ebm"] = 0.0
    del out["held_out"]["ebm"]
    return metrics | out | {"face_error_seeds": {"ncsn": [31.25, 32.25, 33.25]}}


def fake_sweep(scale: float, keys: list[str] = KEYS) -> dict[str, Any]:
    """As stages/sweep.py writes it; a larger `scale` is a worse family."""
    rows = [{"own": True, "sampler": "langevin", "steps": None, "denoise": last} for last in (True, False)]
    rows += [
        {"own": False, "sampler": sampler, "steps": steps, "denoise": True}
        for sampler in ("ddim", "heun", "ancestral")
        for steps in (5, 10, 20)
    ]
    for row in rows:
        if row["sampler"] == "ancestral" and row["steps"] == 5:
            row["refused"] = "ancestral <needs> more steps"
            continue
        nfe = (row["steps"] or 50) * (2 if row["sampler"] == "heun" else 1) - (not row["denoise"])
        kid = scale * (0.05 + 4 / nfe) * (1.5 if row["sampler"] == "ancestral" else 1) + (not row["denoise"])
        row |= {
            "nfe": float(nfe),
            "seconds_per_1000": 0.4 * nfe,
            **dict(zip(keys, (900 * kid, kid, 0.05), strict=True)),
        }
    levels = []
    for sigma in np.geomspace(0.01, 60, 16).tolist():
        linear = 1 / (4 + sigma**-2)
        mse = linear * (0.2 + 0.1 * scale)
        levels.append({"sigma": sigma, "mse": mse, "eps_mse": mse / sigma**2, "linear_mse": linear})
        levels[-1]["linear_eps_mse"] = linear / sigma**2
    told = {"reference": "train, 10,000 images", "extractor": "E <1280-d>", "kid_subsets": 50, "kid_subset_size": 256}
    told |= {"test_images": 128, "device": "cpu <fast>"}
    return {"n": 256, "keys": keys, "protocol": told, "sigma_range": [0.02, 60.0], "rows": rows, "levels": levels,
            "strip": [60.0, 8.0, 0.5, 0.02], "noisy": [0.02, 0.5, 8.0, 60.0]}  # fmt: skip


def fake_energy(f: str, keys: list[str] = KEYS) -> dict[str, Any]:
    """As stages/energy.py writes it; the chains of the second row cannot start."""
    rows = [{"row": "test images", "chain": None, "saturated": 0.0, "energy": 0.02}]
    rows += [{"row": row, "chain": k} for row in (f, f"{f}-fresh", f"{f}-odd") for k in (0, 15, 60)]
    for i, row in enumerate(rows):
        if row["row"].endswith("odd"):
            row["refused"] = "the <buffer> is too small"
            continue
        row |= dict(zip(keys, (120.0 + 90 * i, 0.001 + 0.4 * i, 0.05), strict=True))
        if i:
            row |= {"nfe": float(row["chain"]), "seconds_per_1000": 1.5 * row["chain"], "saturated": 0.01 * i}
            row["energy"] = 3.0 - i
    sets = {"training": 0.4731, "uniform noise": 1.0, "blends": 0.2512}
    told = {"reference": "train, 10,000 images", "extractor": "E <1280-d>", "kid_subsets": 50, "kid_subset_size": 128}
    told |= {"test_images": 500, "chance": 0.01827, "device": "cpu"}
    return {
        "n": 128, "keys": keys, "protocol": told, "test_energy": 0.0, "test_std": 0.5,
        "auroc": [{"set": name, "auroc": value, "energy": 0.1} for name, value in sets.items()],
        "rows": rows, "chain": 60,
        "inpainting": [{"unknown": "right half", "images": 32, "psnr_filled": 13.9, "psnr": 12.14}],
        "restoring": [{"sigma": 0.2, "images": 64, "psnr_noisy": 20.2, "psnr": 22.37}],
    }  # fmt: skip


def fake_material(folder: Path, metrics: Metrics) -> page.Material:
    """The same with the pictures and curves that stages leave in `folder`."""
    rng, seen = np.random.default_rng(0), np.arange(1, 101) * 1000

    def picture(name: str, width: int = 34) -> None:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (34, width, 3), dtype=np.uint8)).save(path)

    (folder / "curves").mkdir(parents=True)
    for f in MODELS:
        loss = np.exp(-seen / 30_000) + 0.02 * rng.normal(size=100)
        frame = pd.DataFrame({"images": seen, "loss": loss, "part": rng.uniform(size=100)})
        frame.assign(grad_norm=1 / seen, lr=1e-3).to_csv(folder / f"curves/{f}.csv", index=False)

    def samples(name: str) -> None:
        save_grid(rng.integers(0, 256, (32, 3, 8, 8), dtype=np.uint8), folder / f"samples/{name}.png", columns=16)

    samples("data")
    picture("data/class_balance")
    for row, f in ROWS.items():
        for name in [row, *(f"{row}.seed{k}" for k in (1, 2) if row in metrics.get("fd_effnet_seeds", {}))]:
            samples(f"{f}/{name}")
    wide = [f"denoising/{f}/{name}" for f in SWEPT for name in ("strip", "noisy", "interpolation")]
    wide += [f"energy/{f}/{n}" for f in BASED for n in ("inpainting", "denoising", f"chain_{f}", f"chain_{f}-fresh")]
    wide += [f"fid/vae/{name}" for name in (*CODE_PICTURES, "neighbours")] + ["fid/ncsn/neighbours"]
    for name in [*wide, "progress/vae", "progress/ncsn"]:
        picture(name, 72)
    return page.Material(
        models=MODELS,
        metrics=metrics,
        data={"name": "sprites", "images": {"train": 20_000, "test": 4000}},
        sweeps={f: fake_sweep(1.0 + i) for i, f in enumerate(SWEPT)},
        energies={f: fake_energy(f) for f in BASED},
        plots=folder,
    )
