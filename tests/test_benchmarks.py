"""The benchmarks' arithmetic and reports, with clocks that are made up; the sizes of the peers' networks."""

import dataclasses
import re

import pytest
import torch

from benchmarks import page, peers, race
from benchmarks import run as bench
from pofx.base import files
from pofx.base.errors import UserError
from pofx.models.unet import UNet
from stages import ROOT

CPU = torch.device("cpu")


def clocks(monkeypatch, *took: tuple[float, float]) -> None:
    """`race.seconds` as it will answer, turn by turn, without running anything."""
    turns = iter(took)
    monkeypatch.setattr(race, "seconds", lambda what: next(turns))


def test_a_ratio_is_the_median_of_the_rounds_own(monkeypatch):
    ran = []
    sides = {name: race.Runner(lambda name=name: ran.append(name)) for name in ("ours", "slow", "shared")}
    others = {"slow": sides["slow"], "shared": dataclasses.replace(sides["shared"], workers=True, target=2.0)}
    # ours, slow, shared; then backwards; then as before: the machine is ten times slower in the last round
    clocks(monkeypatch, (1, 1), (2, 4), (3, 1), (1, 1), (4, 8), (1, 2), (10, 1), (30, 3), (50, 1))
    record = race.run(race.Race("x", 8, sides["ours"], others | {"gone": "cannot import gone"}, rounds=3), CPU)
    assert ran == ["ours", "slow", "shared"], "one turn to warm up"
    assert record["ours"]["rate"] == 8  # 1, 1 and 10 s
    slow, shared = record["others"]["slow"], record["others"]["shared"]
    assert [slow[key] for key in ("ratio", "min", "max", "cpu ratio")] == [3, 2, 4, 4]
    assert shared["ratio"] == 3 and shared["target"] == 2 and "cpu ratio" not in shared  # its workers are not seen
    assert record["absent"] == {"gone": "cannot import gone"}


def test_flops_are_counted_and_set_against_a_product_of_matrices(monkeypatch):
    monkeypatch.setattr(race, "SIDE", 10)
    a, b = torch.randn(5, 7), torch.randn(7, 11)
    clocks(monkeypatch, (9, 2), (9, 4), (9, 4), (9, 4))
    record = race.run(race.Race("x", 2, race.Runner(lambda: a @ b), {}, rounds=1, counted=True), CPU)
    assert record["ours"]["gflop"] * 1e9 * 2 == pytest.approx(2 * 5 * 7 * 11)
    assert record["ours"]["ceiling"] == pytest.approx((2 * 5 * 7 * 11 / 2) / (2 * 10**3 / 4), rel=1e-3)
    assert record["matmul_gflops"] == pytest.approx(2e-9 * 10**3 / 4)


def record(**changes) -> dict:
    other = {"rate": 2.0, "ratio": 1.5, "min": 1.2, "max": 1.7, "cpu ratio": 1.4, "target": 1.2}
    found = {"what": "a task", "unit": "images/s", "rounds": 3, "ours": {"rate": 3.0}, "others": {"peer": other}}
    return found | {"absent": {}, "date": "2026-01-01", "load": [0.1, 0.2]} | changes


def test_what_one_benchmark_cannot_do_the_others_do_and_keep(monkeypatch, tmp_path, capsys):
    def fails(_):
        raise UserError("cannot import rare: it needs a compiler")

    known = {"first": lambda _: record(), "second": fails, "third": lambda _: record(what="another")}
    monkeypatch.setattr(bench, "benchmarks", lambda: known)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "write", lambda *_: None)
    bench.main([])
    assert "second: not measured: cannot import rare: it needs a compiler" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    assert list(files.read_json(path)["rows"]) == ["first", "third"]
    known["first"] = lambda _: record(what="again")
    bench.main(["fir*"])
    assert {name: row["what"] for name, row in files.read_json(path)["rows"].items()} == {
        "first": "again",
        "third": "another",
    }
    with pytest.raises(UserError, match="no benchmark is called forth: they are first, second, third"):
        bench.main(["forth"])


def test_a_peer_that_cannot_be_imported_says_why_in_one_line():
    assert peers.runner(peers.package, "no_such_package") == (
        "cannot import no_such_package: No module named 'no_such_package'"
    )


def test_the_page_shows_what_is_kept(tmp_path):
    kept = {"machine": "A machine", "torch": "2", "rows": {"task": record(absent={"rare": "cannot import rare"})}}
    files.write_json(tmp_path / "a.json", kept)
    (tmp_path / "page.md").write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.write(tmp_path / "page.md", tmp_path)
    text = (tmp_path / "page.md").read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    row = next(line for line in text.splitlines() if "peer" in line)
    assert [cell.strip() for cell in row.split("|")[1:8]] == [
        "`task`", "3 images/s", "peer", "2", "**1.5** (1.2 to 1.7)", "1.4", "1.2",
    ]  # fmt: skip
    assert "not measured: cannot import rare" in text
    (tmp_path / "bare.md").write_text("nothing")
    with pytest.raises(UserError, match="has no markers"):
        page.write(tmp_path / "bare.md", tmp_path)


def test_the_documented_tables_are_those_of_the_kept_records():
    text = (ROOT / "docs/performance.md").read_text()
    shown = re.search(f"{re.escape(page.BEGIN)}(.*?){re.escape(page.END)}", text, re.DOTALL)[1]
    assert shown.strip() == page.block(ROOT / "benchmarks/results"), "python -m benchmarks.run --page"


def test_cost_in_proportion_is_told_from_cost_that_is_not():
    assert "at most 0% off" in page.straight({"1": 3.0, "2": 5.0, "4": 9.0})
    assert "at most 20% off" in page.straight({"1": 1.0, "2": 4.0, "3": 9.0, "4": 13.0})


def test_peers_have_networks_of_our_size(tmp_path):
    pytest.importorskip("diffusers")
    cfg, _, _ = bench.published(bench.Bench(CPU, tmp_path), 2, 1)
    ours = UNet(cfg.net, bench.SHAPE, "step")
    assert peers.size(peers.diffusers_unet(cfg.net)) == pytest.approx(peers.size(ours), rel=0.02)


def test_every_peer_is_pinned():
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    wanted = [line for line in (ROOT / "requirements-bench.txt").read_text().splitlines() if not line.startswith("#")]
    assert wanted and all(">=" in line and line.partition(">=")[0] in pinned for line in wanted)
