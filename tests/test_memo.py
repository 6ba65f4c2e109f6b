"""Results kept by what they depend on: a row added to a stage is drawn and scored alone."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_rows import run  # noqa: F401  (a fixture)

from pofx.base import files, machine, memo, provenance
from pofx.base.memo import Memo
from pofx.models import store
from pofx.score import extractor
from stages import fid, sample


def entry(calls: list[int], value: int) -> Callable[[], memo.Entry]:
    def compute() -> memo.Entry:
        calls.append(value)
        return {"images": np.full(3, value, np.uint8)}, {"seconds": value / 3, "none": float("inf")}

    return compute


def test_a_result_is_computed_once_and_comes_back_as_it_was(tmp_path):
    calls: list[int] = []
    first = Memo(tmp_path, "weights")(entry(calls, 1), {"steps": 9}, 0)
    again = Memo(tmp_path, "weights")(entry(calls, 2), {"steps": 9}, 0)
    assert calls == [1] and first[1] == again[1]
    assert list(again[0]) == ["images"] and np.array_equal(first[0]["images"], again[0]["images"])
    assert again[0]["images"].dtype == np.uint8


def test_whatever_it_depends_on_is_another_key(tmp_path):
    calls: list[int] = []
    for i, (shared, parts) in enumerate([("a", [1]), ("b", [1]), ("a", [2]), ("a", [1, 1]), ("a", [{"steps": 1}])]):
        Memo(tmp_path, shared)(entry(calls, i), *parts)
    assert calls == [0, 1, 2, 3, 4]
    Memo(tmp_path, "a", fresh=True)(entry(calls, 5), 1)
    assert calls.pop() == 5
    assert Memo(tmp_path, "a")(entry(calls, 6), 1)[0]["images"][0] == 5, "it takes the old one's place"


def test_nothing_is_kept_of_a_computation_that_fails(tmp_path):
    def fail() -> memo.Entry:
        raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        Memo(tmp_path)(fail, 1)
    assert not list(tmp_path.iterdir())


def test_the_last_used_results_stay_and_those_of_this_run_always(tmp_path, monkeypatch):
    monkeypatch.setattr(memo, "KEEP", 3)
    calls: list[int] = []
    for i in range(5):
        (kept := Memo(tmp_path))(entry(calls, i), i)
        os.utime(*kept.used, times=(i, i))  # as if long ago
    last = Memo(tmp_path)
    last(entry(calls, 0), 0)
    last.prune()
    assert len(list(tmp_path.iterdir())) == 3
    for i in (0, 4, 3):
        Memo(tmp_path)(entry(calls, i), i)
    assert calls == [0, 1, 2, 3, 4]

    many = Memo(tmp_path)
    for i in range(6):
        many(entry(calls, i), i)
    many.prune()
    assert len(list(tmp_path.iterdir())) == 6


@pytest.fixture
def evaluations(run, monkeypatch) -> Callable[..., dict[str, int]]:  # noqa: F811
    """Runs sample@vae and fid@vae with further parameters; returns how often which network was called."""

    def both(*words: str) -> dict[str, int]:
        run(*words)
        calls = dict.fromkeys(("model", "extractor"), 0)

        def counted(build: Callable[..., Any], key: str) -> Callable[..., Any]:
            def built(*args: Any, **kwargs: Any) -> Any:
                net = build(*args, **kwargs)
                net.net.register_forward_pre_hook(lambda *_: calls.update({key: calls[key] + 1}))
                return net

            return built

        with monkeypatch.context() as patch:
            patch.setattr(store, "load", counted(store.load, "model"))
            patch.setattr(extractor, "build", counted(extractor.build, "extractor"))
            sample.main("vae")
            fid.main("vae")
        return calls

    return both


def results() -> dict[str, Any]:
    paths = [Path("samples/vae/vae.npy"), Path("features/vae/vae.npy"), *Path("plots/fid/vae").iterdir()]
    everything: dict[str, Any] = {str(path): files.digest(path) for path in paths}
    for name in ("fid/vae", "time/sample_vae"):
        metrics = files.read_json(Path(f"metrics/{name}.json"))
        everything |= {key: rows.get("vae") for key, rows in metrics.items()}
    del everything["sample_peak_mib"]  # of the process, whatever it drew
    return everything


def test_a_row_that_is_added_is_drawn_and_scored_alone(evaluations):
    evaluations("rows.vae={}")
    first = results()
    assert evaluations("rows.vae={}") == {"model": 0, "extractor": 0}, "nothing has changed"
    assert results() == first

    added = evaluations()
    n, batch = 64, fid.config.section("fid", extractor.Fid).batch
    assert added["extractor"] == -(-n // batch), "the features of the images of one row"
    assert 0 < added["model"] <= 2, "a batch of images, and one image of which the operations are counted"
    assert results() == first, "the seconds of the first row too are those of the first time"
    assert np.load("samples/vae/vae-mixture.npy").shape == (n, 3, 32, 32)


def test_other_weights_are_drawn_from_again(evaluations):
    before = evaluations("rows.vae={}")
    model, card = store.load(Path("models/vae")), store.card(Path("models/vae"))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    store.save(Path("models/vae"), "vae", model, card["train"], {})
    assert evaluations("rows.vae={}") == before


def test_another_precision_is_drawn_anew(run, monkeypatch):  # noqa: F811
    run("rows.vae={}")
    model, card, drawn = store.load(Path("models/vae")), store.card(Path("models/vae")), []
    store.save(Path("models/vae"), "vae", model, card["train"] | {"precision": "auto"}, {})
    monkeypatch.setattr(sample, "draw", lambda model, *rest, real=sample.draw: drawn.append(1) or real(model, *rest))
    for precision, count in (("fp32", 1), ("bf16", 2), ("fp32", 2)):
        monkeypatch.setattr(machine, "precision", lambda asked, device, now=precision: now)
        sample.main("vae")
        assert len(drawn) == count
        assert files.read_json(Path("samples/vae/rows.json"))["vae"]["precision"] == precision


def test_the_hash_of_code_is_of_the_folders_that_are_named():
    assert provenance.code_hash("src/pofx/base") != provenance.code_hash("src/pofx/sample") != provenance.code_hash()
    assert provenance.code_hash("src/pofx/base", "src/pofx/sample") != provenance.code_hash("src/pofx/base")
    assert provenance.code_hash("src", "stages") == provenance.code_hash()
