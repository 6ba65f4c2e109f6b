"""Data: the smileys, the sprites, the binary layout, and the download with everything that can go wrong with it."""

import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import stages
import stages.download
import stages.explore
import stages.preprocess
from pofx.base import config, fetch
from pofx.base.errors import UserError
from pofx.data import binary, download, smileys, sprites
from pofx.report import explore

ROOT = Path(__file__).resolve().parents[1]
RECORDS = dict.fromkeys([*binary.TRAIN, *binary.TEST], 3)  # a CIFAR-10 of 18 images
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


# The smileys


def test_smileys_are_a_function_of_seed_split_and_index():
    images, factors = smileys.generate(24, seed=3)
    again, more = smileys.generate(40, seed=3), smileys.factors(40, 3, 0)
    assert images.shape == (24, 3, 32, 32) and images.dtype == np.uint8
    assert (again[0][:24] == images).all() and (more[:24] == factors).all()
    assert (smileys.render(factors[5:9]) == images[5:9]).all()
    assert (smileys.generate(24, seed=4)[0] != images).any()
    assert (smileys.generate(24, seed=3, split=1)[0] != images).any()


def test_smileys_are_the_same_bytes_everywhere():
    digests = {16: "08d6be856fbe", 32: "e5609d5f10a8", 64: "e0096abf11d5"}
    for side, digest in digests.items():
        assert sha(smileys.generate(256, seed=0, side=side)[0].tobytes())[:12] == digest, side


def test_a_tenth_of_the_kinds_is_held_out_of_training_and_of_training_alone():
    train, test = (smileys.factors(40_000, 0, split) for split in (0, 1))
    kinds = [np.ravel_multi_index(f[:, :5].astype(int).T, smileys.COUNTS) for f in (train, test)]
    assert len(smileys.HELD_OUT) == 86 and len(smileys.TRAINED) == 778
    assert set(kinds[0]) == set(smileys.TRAINED) and set(kinds[1]) == set(range(864))
    assert np.isin(kinds[1], smileys.HELD_OUT).mean() == pytest.approx(86 / 864, abs=0.01)
    for column, count in zip(train[:, :5].T, smileys.COUNTS, strict=True):
        assert np.bincount(column.astype(int)) / len(train) == pytest.approx(np.full(count, 1 / count), abs=0.02)
    poses = np.concatenate([train, test])[:, 5:]
    assert (poses >= smileys.LOW).all() and (poses <= smileys.HIGH).all()
    assert poses.mean(0) == pytest.approx([16, 16, 12], abs=0.02)
    assert np.abs(np.corrcoef(test.T) - np.eye(8)).max() < 0.03


@pytest.mark.parametrize("side", [16, 32, 64])
def test_a_flipped_smiley_is_a_smiley(side):
    images, f = smileys.generate(200, seed=1, split=1, side=side)
    f[:, 5] = 32 - f[:, 5]
    assert np.abs(smileys.render(f, side).astype(int) - images[..., ::-1]).max() <= 1  # the place is a float32


def test_smileys_of_all_sizes_are_the_same_faces():
    """An image of half the side is the mean of squares of four pixels, but for what a ramp a pixel wide rounds off."""
    f = smileys.factors(200, 0, 1)
    large, middle, small = (smileys.render(f, side).astype(float) for side in (64, 32, 16))
    for one, half, most in ((large, middle, 3), (middle, small, 6)):
        pooled = one.reshape(*one.shape[:2], half.shape[2], 2, half.shape[3], 2).mean((3, 5))
        assert np.sqrt(np.square(pooled - half).mean()) < most


def test_a_smiley_is_whole_and_its_strokes_are_two_pixels():
    f = smileys.factors(2000, 0, 1)
    kinds, pose = f[:, :5].astype(int), f[:, 5:].astype(float)
    ground, skin, white, ink = smileys.cover(*kinds[:, [0, 3, 4]].T, pose, 32).swapaxes(0, 1)
    face = 1 - ground
    assert np.concatenate([face[:, [0, -1]], face[:, :, [0, -1]].swapaxes(1, 2)]).max() < 0.5 + 1e-9
    assert skin.min() > -1e-9, "eyes and mouth lie within the head, and apart"
    assert min(white.min(), ink.min()) >= 0 and (white.sum((1, 2)) > 0).tolist() == (kinds[:, 3] == 1).tolist()
    assert (ink.max(2) > 0.5).sum(1).min() >= 4, "two rows of eyes and two of mouth, at least"
    area = {"disc": math.pi, "square": 4 * 0.86**2 - (4 - math.pi) * 0.04, "triangle": 1.85, "hexagon": 1.5 * 3**0.5}
    for head, shape in enumerate(smileys.KINDS["head"]):
        rows = kinds[:, 0] == head
        assert face[rows].sum((1, 2)) == pytest.approx(area[shape] * pose[rows, 2] ** 2, rel=0.01)


# The sprites


def test_sprites_are_a_function_of_seed_split_and_index():
    images, factors = sprites.generate(24, seed=3)
    again, more = sprites.generate(40, seed=3), sprites.factors(40, 3, 0)
    assert images.shape == (24, 3, 32, 32) and images.dtype == np.uint8
    assert (again[0][:24] == images).all() and (more[:24] == factors).all()
    assert (sprites.render(factors[5:9]) == images[5:9]).all()
    assert (sprites.generate(24, seed=4)[0] != images).any()
    assert (sprites.generate(24, seed=3, split=1)[0] != images).any()


def test_factors_fill_their_ranges_and_are_independent():
    f = sprites.factors(4000, 0, 0)
    top = np.array(
        [6 if name == "shape" else 2 * math.pi if name in ("rotation", "slope") else 1 for name in sprites.FACTORS]
    )
    assert f.min() >= 0 and (f.max(axis=0) <= top).all()
    assert set(f[:, 0]) == set(range(6))
    unit = np.where(top == 6, (f + 0.5) / 6, f / top)
    assert np.allclose(unit.mean(axis=0), 0.5, atol=0.03) and np.allclose(unit.var(axis=0), 1 / 12, atol=0.005)
    assert np.abs(np.corrcoef(f.T) - np.eye(8)).max() < 0.06


@pytest.mark.parametrize("shape", range(6))
def test_shapes_cover_the_area_of_their_outlines(shape):
    """Area on paper: pi r^2 for discs, the shoelace formula for polygons."""
    r = 10.0
    if sprites.SHAPES[shape] in ("disc", "ring"):
        area = math.pi * r * r * (1 if sprites.SHAPES[shape] == "disc" else 1 - 0.55**2)
    else:
        x, y = r * np.array(sprites.OUTLINES[sprites.SHAPES[shape]]).T
        area = abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
    assert sprites._mask(shape, 16.0, 16.0, r, 0.4).sum() == pytest.approx(area, rel=0.04)
    assert sprites._mask(shape, r, 32 - r, r, 1.1).sum() == pytest.approx(area, rel=0.04)  # in a corner, still whole


# The binary layout and what is computed from it


def test_a_record_is_the_label_then_red_green_and_blue_row_by_row(tmp_path):
    image = np.arange(3 * 1024).reshape(1, 3, 32, 32).astype(np.uint8)
    binary.write_batch(tmp_path / "b", image, np.array([7], np.uint8))
    data = (tmp_path / "b").read_bytes()
    assert len(data) == 3073 and data[0] == 7
    assert data[1 + 1024 * 2 + 32 * 5 + 9] == image[0, 2, 5, 9]


@pytest.mark.parametrize("side", [16, 32])
def test_batches_survive_a_round_trip(tmp_path, side):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 3, side, side), np.uint8), rng.integers(0, 10, 5, np.uint8)
    binary.write_batch(tmp_path / "b", images, labels)
    x, y = binary.read_batch(tmp_path / "b", 5, 10, side)
    assert (x == images).all() and (y == labels).all()


@pytest.mark.parametrize(
    ("cut", "records", "classes", "says"),
    [
        (1, 5, 10, "has 15364 bytes, should be 5 records"),
        (0, 6, 10, "6 records"),
        (0, 5, 4, "a label 4, should be below 4"),
    ],
)
def test_a_damaged_batch_is_refused(tmp_path, cut, records, classes, says):
    binary.write_batch(tmp_path / "b", np.zeros((5, 3, 32, 32), np.uint8), np.arange(5, dtype=np.uint8))
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[: 5 * 3073 - cut])
    with pytest.raises(UserError, match=says):
        binary.read_batch(tmp_path / "b", records, classes, 32)


def test_a_subset_is_shuffled_nested_and_checked():
    assert sorted(binary.subset(10, None, "n")) == list(range(10))
    small, large = binary.subset(100, 20, "n"), binary.subset(100, 50, "n")
    assert (large[:20] == small).all() and len(set(large)) == 50 and (np.diff(large) < 0).any()
    for n in (0, -1, 101):
        with pytest.raises(UserError, match=rf"n = {n} should be between 1 and 100"):
            binary.subset(100, n, "n")


def test_statistics_equal_numpys():
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8), np.uint8)
    mean, std = binary.moments(binary.histogram(x))
    assert np.allclose(mean, (x / 255).mean(axis=(0, 2, 3))) and np.allclose(std, (x / 255).std(axis=(0, 2, 3)))


def test_all_of_cifar10_must_have_its_statistics():
    binary.check_cifar10(np.array(binary.CIFAR10_MEAN) + 4e-5, np.array(binary.CIFAR10_STD) - 4e-5)
    black = np.broadcast_to(np.zeros((1, 3, 1, 1), np.uint8), (50_000, 3, 1, 1))
    for name, n, fails in (("cifar10", 50_000, True), ("cifar10", 49_999, False), ("sprites", 50_000, False)):
        data = binary.Images(name, {"train": black[:n], "test": black[:1]}, {}, CLASSES, {}, [])
        if fails:
            with pytest.raises(UserError, match="not CIFAR-10: mean"):
                binary.summary(data)
        else:
            assert binary.summary(data)["images"]["train"] == n


def test_principal_components_equal_the_svd():
    rng = np.random.default_rng(0)
    for n in (9, 60):  # fewer and more images than their 27 numbers
        x = rng.integers(0, 256, (n, 3, 3, 3), np.uint8)
        shares, components = explore.principal_components(x)
        leading = components[:4]
        flat = (x.reshape(n, -1) / 255) - (x.reshape(n, -1) / 255).mean(axis=0)
        _, s, v = np.linalg.svd(flat, full_matrices=False)
        assert np.allclose(shares[: n - 1][:20], (s**2 / (s**2).sum())[: n - 1][:20], rtol=1e-3, atol=1e-6)
        assert np.allclose(np.abs((leading.reshape(4, -1) * v[:4]).sum(axis=1)), 1, atol=1e-3)


# A small CIFAR-10 as an archive, and a server that misbehaves


def members() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {f"cifar-10-batches-bin/{binary.NAMES}": ("\n".join(CLASSES) + "\n\n").encode()}
    for file, n in RECORDS.items():
        records = rng.integers(0, 256, (n, binary.record(32)), np.uint8)
        records[:, 0] %= 10
        files[f"cifar-10-batches-bin/{file}"] = records.tobytes()
    return files | {"cifar-10-batches-bin/readme.html": b"<html>"}


def pack(path: Path, files: dict[str, bytes], *hostile: tarfile.TarInfo) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w:") as tar:
        for info in hostile:
            tar.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sha(data: bytes | Path) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else data.read_bytes()).hexdigest()


def get(url: str, sha256: str, root: Path) -> Path:
    """The whole download into root/data/raw, with what is fetched in root/runs."""
    data = download.Data("cifar10", url, sha256)
    download.fetch_cifar10(data, root / "data" / "raw", root / "runs", root, RECORDS)
    return root / "data" / "raw"


def part(root: Path, archive: Path) -> Path:
    """Where an unfinished download lies."""
    return root / "runs" / f"{sha(archive)[:8]}-cifar.tar.gz.part"


def assert_clean(root: Path) -> None:
    """Nothing that looks like a result, nor half of one."""
    assert not (root / "data").exists() or not list((root / "data").iterdir())


def assert_complete(raw: Path) -> None:
    for name, data in members().items():
        file = raw / Path(name).name
        assert file.suffix == ".html" or file.read_bytes() == data
    assert sorted(p.name for p in raw.iterdir()) == sorted([*RECORDS, binary.NAMES, binary.META])
    assert [p.name for p in raw.parent.iterdir()] == ["raw"]


class Server(ThreadingHTTPServer):
    """Serves `body` at any path. Each request takes the next number of `cuts`: break off after so many bytes; None: do
    not; -3 digits: answer with that status. When they are used up it does not break off."""

    daemon_threads = True

    def __init__(self, body: bytes, ranges: bool):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.ranges = body, ranges
        self.cuts, self.asked, self.stalled = [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/cifar.tar.gz?mirror=http://a"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        s, wanted = self.server, self.headers.get("Range")
        s.asked.append(wanted)
        cut = s.cuts.pop(0) if s.cuts else None
        if cut is not None and cut < 0:
            return self.send_error(-cut)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and s.ranges else 0
        if start >= len(s.body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(s.body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(s.body) - 1}/{len(s.body)}")
        self.end_headers()
        self.wfile.write(s.body[start:] if cut is None else s.body[start : start + cut])
        if cut is not None and s.stalled.is_set():  # neither more bytes nor an end, until the client is gone
            self.wfile.flush()
            self.connection.recv(1)

    def log_message(self, *args):
        pass


@contextmanager
def serve(body: bytes, ranges: bool = True):
    server = Server(body, ranges)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0.001)


@pytest.fixture(scope="module")
def tar(tmp_path_factory) -> Path:
    return pack(tmp_path_factory.mktemp("mirror") / "cifar.tar.gz", members())


# Where archives come from


@pytest.mark.parametrize("kind", ["gz", "xz", "tar"])
def test_a_mirror_on_disk_is_read_and_kept(tmp_path, kind):
    path = pack(tmp_path / f"c i.{kind}", members())
    assert_complete(get(f"file://{tmp_path}/c%20i.{kind}", sha(path), tmp_path))
    assert path.exists() and not (tmp_path / "runs").exists()
    assert_complete(get(f"file://c i.{kind}", sha(path)[:8].upper(), tmp_path))  # relative, over what was there
    assert_complete(get(str(path), sha(path), tmp_path))
    data = binary.read(tmp_path / "data" / "raw")
    assert data.classes == CLASSES and len(data.images["train"]) == 15 and len(data.labels["test"]) == 3


def test_a_download_is_kept_and_needs_no_network_again(tmp_path, tar):
    with serve(tar.read_bytes()) as server:
        assert_complete(get(server.url, sha(tar), tmp_path))
        kept = part(tmp_path, tar).with_suffix("")
        assert kept.read_bytes() == tar.read_bytes() and not part(tmp_path, tar).exists()
        assert_complete(get(server.url, sha(tar), tmp_path))
        assert server.asked == [None]
        kept.write_bytes(b"damaged since")
        assert_complete(get(server.url, sha(tar), tmp_path))
    assert server.asked == [None, None]


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path, tar):
    with serve(tar.read_bytes()) as server:
        server.cuts = [10_000, 5_000, -503, 20_000]
        assert_complete(get(server.url, sha(tar), tmp_path))
    assert server.asked == [None, "bytes=10000-", "bytes=15000-", "bytes=15000-", "bytes=35000-"]


def test_a_server_without_ranges_is_asked_for_the_whole_again(tmp_path, tar):
    with serve(tar.read_bytes(), ranges=False) as server:
        server.cuts = [30_000, 10_000]
        assert_complete(get(server.url, sha(tar), tmp_path))
    assert server.asked == [None, "bytes=30000-", "bytes=10000-"]


def test_a_full_but_wrong_leftover_is_fetched_again(tmp_path, tar):
    (tmp_path / "runs").mkdir()
    part(tmp_path, tar).write_bytes(bytes(tar.stat().st_size))
    with serve(tar.read_bytes()) as server:
        assert_complete(get(server.url, sha(tar), tmp_path))
    assert server.asked == [f"bytes={tar.stat().st_size}-", None]


def test_a_whole_leftover_needs_no_network(tmp_path, tar):
    (tmp_path / "runs").mkdir()
    part(tmp_path, tar).write_bytes(tar.read_bytes())
    assert_complete(get("http://127.0.0.1:9/cifar.tar.gz", sha(tar), tmp_path))


def test_a_server_that_always_breaks_off_is_given_up_and_the_bytes_kept(tmp_path, tar):
    with serve(tar.read_bytes()) as server:
        server.cuts = [1_000, *[0] * fetch.TRIES]
        with pytest.raises(UserError, match=r"cannot fetch http.* broke after 1000 of .* set data.url to a mirror"):
            get(server.url, sha(tar), tmp_path)
        assert_clean(tmp_path)
        assert_complete(get(server.url, sha(tar), tmp_path))
    assert server.asked[-1] == "bytes=1000-"


def test_no_network_is_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"cannot fetch http://127.0.0.1:9/x.*refused.*check the network.*file://"
    ) as told:
        get("http://127.0.0.1:9/x", sha(b""), tmp_path)
    assert "\n" not in str(told.value)
    assert_clean(tmp_path)


def test_a_page_that_is_not_there_is_not_asked_for_twice(tmp_path, tar):
    with serve(tar.read_bytes()) as server:
        server.cuts = [-404]
        with pytest.raises(UserError, match=r"404: Not Found: .* set data.url to a mirror"):
            get(server.url, sha(tar), tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("url", "digest", "says"),
    [
        (
            "file:///nowhere/x.tar.gz",
            "0" * 64,
            "data.url = file.*: there is no file /nowhere/x.tar.gz",
        ),
        ("file://x.tar.gz", "0" * 64, "there is no file"),
        ("ftp://host/x.tar.gz", "0" * 64, "should be a path, or start with https://"),
        ("x.tar.gz", "0" * 64, "there is no file"),
        ("https://host/x", "C4A3", "data.sha256 = 'C4A3' should be 8 to 64 hex digits"),
        ("https://host/x", "not hex!", "8 to 64 hex digits"),
    ],
)
def test_a_bad_parameter_is_one_line(tmp_path, url, digest, says):
    with pytest.raises(UserError, match=says):
        get(url, digest, tmp_path)
    assert_clean(tmp_path)


def test_two_at_the_same_time_fetch_once(tmp_path, tar):
    want, paths = fetch.File("", sha(tar), ("data.url", "data.sha256"), ""), []
    with serve(tar.read_bytes()) as server:
        want = dataclasses.replace(want, source=server.url)
        both = [threading.Thread(target=lambda: paths.append(fetch.find(want, tmp_path, tmp_path))) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join(30)
    assert server.asked == [None] and len(paths) == 2 and paths[0].read_bytes() == tar.read_bytes()


def test_a_second_process_waits_for_the_lock_of_the_file(tmp_path, tar):
    (tmp_path / "runs").mkdir()
    with serve(tar.read_bytes()) as server, open(part(tmp_path, tar).with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(target=get, args=(server.url, sha(tar), tmp_path))
        other.start()
        other.join(0.3)
        assert other.is_alive() and not server.asked
        fcntl.flock(lock, fcntl.LOCK_UN)
        other.join(30)
    assert_complete(tmp_path / "data" / "raw")


# Archives that must not be trusted


def test_a_wrong_checksum_is_named_and_the_file_removed(tmp_path, tar, monkeypatch):
    monkeypatch.setattr(tarfile, "open", lambda *a, **k: pytest.fail("opened before it was verified"))
    with serve(b"not the archive") as server:
        with pytest.raises(UserError) as told:
            get(server.url, sha(tar), tmp_path)
        for part in (server.url, sha(b"not the archive"), sha(tar), "data.sha256"):
            assert part in str(told.value)
        assert "\n" not in str(told.value) and not list((tmp_path / "runs").glob("*.part"))
        assert_clean(tmp_path)
        monkeypatch.undo()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        server.body = tar.read_bytes()
        assert_complete(get(server.url, sha(tar), tmp_path))


def test_a_mirror_with_a_wrong_checksum_is_kept(tmp_path, tar):
    with pytest.raises(UserError, match=f"sha256 {sha(tar)}, not {'0' * 64}"):
        get(f"file://{tar}", "0" * 64, tmp_path)
    assert tar.exists()
    assert_clean(tmp_path)


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (info("/evil"), "'/evil'"),
        (info("../evil"), "'../evil'"),
        (info("cifar/../../data_batch_1.bin"), "data_batch_1.bin'"),
        (info("data_batch_1.bin", tarfile.SYMTYPE, "/etc/passwd"), "is no plain file"),
        (info("data_batch_1.bin", tarfile.LNKTYPE, "cifar/test_batch.bin"), "is no plain file"),
        (info("cifar", tarfile.SYMTYPE, "/tmp"), "is no plain file"),
        (info("null", tarfile.CHRTYPE), "is no plain file"),
        (info("pipe", tarfile.FIFOTYPE), "is no plain file"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path, member, says):
    path = pack(tmp_path / "c.gz", members(), member)
    with pytest.raises(UserError, match=f"not safe to unpack: .*{says}"):
        get(f"file://{path}", sha(path), tmp_path)
    assert_clean(tmp_path)
    assert not (tmp_path / "evil").exists()


def without(name: str) -> dict[str, bytes]:
    return {k: v for k, v in members().items() if not k.endswith(name)}


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (without("data_batch_3.bin"), "lacks data_batch_3.bin"),
        (without("meta.txt"), "lacks batches.meta.txt"),
        (
            members() | {"cifar-10-batches-bin/test_batch.bin": bytes(3073 * 4)},
            "test_batch.bin twice, or larger",
        ),
        (members() | {"cifar-10-batches-bin/test_batch.bin": bytes(3073 * 2)}, "has 6146 bytes, should be 3 records"),
        (members() | {"elsewhere/test_batch.bin": bytes(3073 * 3)}, "holds elsewhere/test_batch.bin twice"),
        (members() | {f"cifar-10-batches-bin/{binary.NAMES}": bytes(70_000)}, "meta.txt twice, or larger"),
        (members() | {"cifar-10-batches-bin/test_batch.bin": b"\x0a" + bytes(9218)}, "a label 10, should be below 10"),
    ],
)
def test_an_archive_of_something_else_is_refused(tmp_path, files, says):
    path = pack(tmp_path / "c.tar", files)
    with pytest.raises(UserError, match=says):
        get(f"file://{path}", sha(path), tmp_path)
    assert_clean(tmp_path)


@pytest.mark.parametrize("kind", ["gz", "xz", "tar"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_a_truncated_archive_is_refused(tmp_path, kind, share):
    """Also where its checksum is the right one: the mirror itself may be damaged."""
    path = pack(tmp_path / f"c.{kind}", members())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"truncated or not a tar archive|lacks "):
        get(f"file://{path}", sha(path), tmp_path)
    assert_clean(tmp_path)


# Interruptions and full disks


def full_disk(monkeypatch, module, suffix: str) -> None:
    """Files whose name ends in `suffix` lie on a full disk, as far as `module` is concerned."""

    def opened(path, mode):
        return open("/dev/full" if str(path).endswith(suffix) else path, mode)

    monkeypatch.setattr(module, "open", opened, raising=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("suffix", [".part", "data_batch_2.bin"])
def test_a_full_disk_while_fetching_or_unpacking(tmp_path, tar, monkeypatch, capsys, suffix):
    with serve(tar.read_bytes()) as server:
        full_disk(monkeypatch, fetch, suffix)
        full_disk(monkeypatch, download, suffix)
        with pytest.raises(SystemExit, match=r"error: no space left for (the output|.*data/raw): free some"):
            stages.run(get, server.url, sha(tar), tmp_path)
        assert_clean(tmp_path)
        monkeypatch.undo()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert_complete(get(server.url, sha(tar), tmp_path))


def test_a_full_disk_while_drawing_keeps_the_old_sprites(tmp_path, monkeypatch):
    download.draw(sprites, sprites.Sprites(0, 10, 2), sprites.render, tmp_path / "data" / "raw")

    def full(path, images, labels):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(binary, "write_batch", full)
    with pytest.raises(SystemExit, match=r"error: no space left for .*data_batch_1.bin: free some"):
        stages.run(download.draw, sprites, sprites.Sprites(1, 10, 2), sprites.render, tmp_path / "data" / "raw")
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["raw"]
    assert json.loads((tmp_path / "data" / "raw" / "meta.json").read_text())["seed"] == 0


def test_ctrl_c_while_unpacking_leaves_nothing(tmp_path, tar, monkeypatch):
    def interrupt(source, file, size):
        file.write(source.read(100))
        raise KeyboardInterrupt

    monkeypatch.setattr(download.shutil, "copyfileobj", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(f"file://{tar}", sha(tar), tmp_path)
    assert_clean(tmp_path)


def test_a_killed_download_goes_on(tmp_path, tar):
    """kill -9 while the server stalls: no data/raw; the next run asks for the rest, and clears half a folder away."""
    code = """if True:
        import sys; from pathlib import Path; from pofx.base.fetch import File, find
        find(File(*sys.argv[1:3], ("data.url", "data.sha256"), ""), Path(sys.argv[3]) / "runs", Path())"""
    with serve(tar.read_bytes()) as server:
        server.cuts = [20_000]
        server.stalled.set()
        arguments = [sys.executable, "-c", code, server.url, sha(tar), str(tmp_path)]
        with subprocess.Popen(arguments, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}) as child:
            left, end = part(tmp_path, tar), time.monotonic() + 30
            while not (left.exists() and left.stat().st_size > 0) and child.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            child.send_signal(signal.SIGKILL)
            child.wait()
        kept = left.stat().st_size
        assert kept > 0
        assert_clean(tmp_path)
        (tmp_path / "data" / ".raw.part").mkdir(parents=True)
        (tmp_path / "data" / ".raw.part" / "data_batch_1.bin").write_bytes(b"half")
        assert_complete(get(server.url, sha(tar), tmp_path))
    assert server.asked == [None, f"bytes={kept}-"]


# The stages


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """An empty repository to run stages in; call it with the data section and the subset sizes."""

    def write(data: dict, **preprocess) -> Path:
        sizes = {"n_train": None, "n_test": None} | preprocess
        (tmp_path / "params.yaml").write_text(json.dumps({"data": data, "preprocess": sizes}))
        config.params.cache_clear()
        return tmp_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages.download, "RUNS", tmp_path / "runs")
    yield write
    config.params.cache_clear()


def drawn(name: str, **changes) -> dict:
    """A data section for a few images of a set that is drawn."""
    return {"name": name, "url": "", "sha256": "", name: {"seed": 0, "n_train": 62, "n_test": 20} | changes}


def outputs(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): sha(p) for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("source", "side"), [(smileys, 16), (smileys, 64), (sprites, 32)])
def test_drawn_images_through_all_stages(workspace, monkeypatch, source, side):
    name, sized = source.__name__.split(".")[-1], {"size": side} if source is smileys else {}
    root = workspace(drawn(name, **sized))
    stages.download.main()
    stages.preprocess.main()
    stages.explore.main()
    images, labels = np.load("data/train.npy"), np.load("data/labels.npz")
    assert images.shape == (62, 3, side, side) and images.dtype == np.uint8 and images.flags.c_contiguous
    assert np.load("data/test.npy").shape == (20, 3, side, side)
    assert labels["train"].dtype == np.int64 and tuple(labels["classes"]) == source.CLASSES
    assert tuple(labels["factor_names"]) == source.FACTORS and labels["factors_test"].shape == (20, 8)
    assert (labels["factors_train"][:, source.FACTORS.index(source.LABEL)] == labels["train"]).all()
    assert (source.render(labels["factors_train"], *sized.values()) == images).all()
    told = json.loads(Path("metrics/data.json").read_text())
    assert told["name"] == name and told["images"] == {"train": 62, "test": 20}
    assert list(told["mean"].values()) == pytest.approx((images / 255).mean(axis=(0, 2, 3)).tolist(), abs=1e-6)
    pictures = {p.stem: p.stat().st_size for p in Path("plots/data").iterdir()}
    assert set(pictures) == set(explore.FIGURES) and max(pictures.values()) < 150_000

    before = outputs(root)  # the same bytes again, or DVC would run everything behind again
    monkeypatch.setattr(explore, "FIGURES", {"class_balance": explore.class_balance})  # one stands for all
    for stage in (stages.download, stages.preprocess, stages.explore):
        stage.main()
    assert outputs(root) == before


def test_cifar10_through_the_same_stages(workspace, tar, monkeypatch):
    monkeypatch.setattr(download, "CIFAR10_RECORDS", RECORDS)
    section = {**drawn("sprites"), "name": "cifar10", "url": f"file://{tar}", "sha256": sha(tar)}
    workspace(section, n_train=6, n_test=2)
    stages.download.main()
    stages.preprocess.main()
    raw, rows = binary.read(Path("data/raw")), binary.subset(15, 6, "n")
    assert (np.load("data/train.npy") == raw.images["train"][rows]).all()
    with np.load("data/labels.npz") as labels:
        assert (labels["train"] == raw.labels["train"][rows]).all() and labels["test"].shape == (2,)
        assert set(labels.files) == {"train", "test", "classes"}
    workspace(section, n_train=16)
    with pytest.raises(SystemExit, match=r"error: preprocess.n_train = 16 should be between 1 and 15"):
        stages.run(stages.preprocess.main)


@pytest.mark.parametrize("name", ["smileys", "sprites"])
@pytest.mark.parametrize(
    ("key", "value", "says"),
    [("seed", -1, "at least"), ("n_train", 4, "at least"), ("n_test", 0, "at least"), ("size", 20, "one of|unknown")],
)
def test_images_that_cannot_be_drawn(workspace, name, key, value, says):
    root = workspace(drawn(name, **{key: value}))
    with pytest.raises(SystemExit, match=rf"error: .*({says})"):
        stages.run(stages.download.main)
    assert_clean(root)


def test_preprocess_before_download_says_so(workspace):
    workspace(drawn("smileys"))
    with pytest.raises(SystemExit, match=r"data/raw/meta.json is missing: run `dvc repro download`"):
        stages.run(stages.preprocess.main)


def test_the_notebook_shows_the_same_figures(workspace):
    root = workspace(drawn("smileys"))
    stages.download.main()
    stages.preprocess.main()
    (root / "src").symlink_to(ROOT / "src")
    notebook = nbformat.read(ROOT / "notebooks" / "data_exploration.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without outputs"
    text = "".join(cell.source for cell in notebook.cells)
    assert all(f"explore.{draw.__name__}(" in text for draw in explore.FIGURES.values())
    NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(root)}}).execute()
    shown = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(shown) == len(explore.FIGURES)
