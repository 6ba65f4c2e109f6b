"""conf/ and params.yaml: every combination composes and is valid, and the committed file is one of them."""

import copy
import itertools
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from ruamel.yaml import YAML

from pofx.base import config
from pofx.base.errors import UserError
from tools import compose

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = {group: sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml")) for group in ("data", "scale")}
COMBINATIONS = list(itertools.product(OPTIONS["data"], OPTIONS["scale"]))
PRESETS = [(group, p.stem) for group in ("ncsn", "ddpm") for p in sorted((ROOT / "conf" / group).glob("*.yaml"))]
HEADER = compose.HEADER


def load(text: str) -> dict:
    return YAML(typ="safe").load(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory, and nothing remembered of other params.yaml files."""
    monkeypatch.chdir(tmp_path)
    config.params.cache_clear()
    return tmp_path


@pytest.mark.parametrize(("data", "scale"), COMBINATIONS)
def test_every_combination_is_valid(data, scale):
    tree = load(compose.text([f"data={data}", f"scale={scale}"]))
    assert tree["data"]["name"] == data
    compose.check(tree)


@pytest.mark.parametrize("scale", OPTIONS["scale"])
@pytest.mark.parametrize(("family", "preset"), PRESETS)
def test_presets_keep_their_identity_at_every_scale(family, preset, scale):
    """What a preset says of levels, objective and network is what is trained; a scale changes sizes and budgets."""
    tree, paper = (load(compose.text([f"{family}={preset}", f"scale={s}", "data=cifar10"])) for s in (scale, "paper"))
    kept = {k: v for k, v in paper[family].items() if k not in ("net", "train")}
    if (family, preset, scale) == ("ncsn", "unet", "laptop"):
        kept |= {"n_sigmas": 32, "sigma_min": 0.02}
    assert {k: tree[family][k] for k in kept} == kept
    assert tree["sample"][family]["denoise"] == paper["sample"][family]["denoise"]


def test_presets_are_as_published():
    """Numbers of the papers, spelt out again."""

    def published(word: str) -> tuple[dict, dict, dict]:
        tree, family = load(compose.text([word, "scale=paper", "data=cifar10"])), word.partition("=")[0]
        return tree[family], tree[family]["train"], tree["sample"][family]

    for word, levels, draw, batch, lr in (
        ("ncsn=v1", (10, 1.0, 0.01), ("langevin", 100, 2e-5, False), 128, 1e-3),
        ("ncsn=fifty", (50, 1.0, 0.01), ("langevin", 100, 2e-5, True), 128, 1e-3),
        ("ncsn=v2", (232, 50.0, 0.01), ("langevin", 5, 6.2e-6, True), 128, 1e-4),
    ):
        model, train, sample = published(word)
        assert (model["n_sigmas"], model["sigma_max"], model["sigma_min"]) == levels
        assert tuple(sample[k] for k in ("sampler", "langevin_steps", "step_size", "denoise")) == draw
        assert (train["batch"], train["lr"], model["weighting"]) == (batch, lr, "dsm")
    assert 0.5 ** (128 / published("ncsn=v2")[1]["ema_half_life"]) == pytest.approx(0.999, abs=1e-6)
    model, train, sample = published("ddpm=ho2020")
    assert (model["timesteps"], model["schedule"], model["prediction"]) == (1000, "linear", "eps")
    assert (train["batch"], train["lr"], train["clip"], train["flip"]) == (128, 2e-4, 1.0, True)
    assert 0.5 ** (128 / train["ema_half_life"]) == pytest.approx(0.9999, abs=1e-6)
    assert (sample["sampler"], sample["variance"], sample["steps"], sample["clip"]) == (
        "ancestral",
        "large",
        None,
        True,
    )
    model, train, _ = published("ddpm=wide")
    net = model["net"]
    assert [net["channels"] * m for m in net["multipliers"]] == [96, 192, 384, 384]
    assert (net["heads"], net["attention"], net["dropout"]) == (8, [16], 0.1)
    assert (train["batch"], train["accumulate"], train["lr"]) == (128, 4, 2e-4)


def test_committed_params_are_what_their_header_says():
    committed = subprocess.check_output(["git", "show", "HEAD:params.yaml"], cwd=ROOT, text=True)
    first = committed.splitlines()[0]
    assert first.startswith(HEADER)
    assert committed == compose.text(shlex.split(first.removeprefix(HEADER)))


def test_comments_order_and_layout_of_conf_survive():
    text = compose.text(["scale=gpu", "vae.train.lr=3e-05", "models=[vae]", "preprocess.n_train=64"])
    source = (ROOT / "conf" / "config.yaml").read_text()
    body = source[compose.DEFAULTS.match(source).end() :]
    assert [line.partition("#")[2] for line in body.splitlines()] == [
        line.partition("#")[2] for line in text.splitlines()[2:]
    ]
    keys, plain = ([k for k in compose._keys(load(tree)) if not compose.ROW.match(k)] for tree in (text, body))
    assert keys == plain  # but for further rows, which come and go
    assert "models: [vae] #" in text or "models: [vae]\n" in text
    assert "n_test: null" in text
    assert load(text)["vae"]["train"]["lr"] == 3e-5


def test_later_words_win_and_are_in_the_header():
    text = compose.text(["data=cifar10", "scale=gpu", "ncsn.n_sigmas=20", "data.url='file:///data/a b.tar.xz'"])
    assert load(text)["ncsn"]["n_sigmas"] == 20
    assert load(text)["data"]["url"] == "file:///data/a b.tar.xz"
    header = text.splitlines()[0]
    assert compose.text(shlex.split(header.removeprefix(HEADER))) == text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("scale=lptop", "did you mean laptop"),
        ("data=cifar", "did you mean cifar10"),
        ("scal=laptop", "did you mean scale"),
        ("ncsn.n_sigma=5", "did you mean ncsn.n_sigmas"),
        ("ncns.n_sigmas=5", "did you mean ncsn.n_sigmas"),
        ("+ncsn.foo=5", "ncsn.foo"),
        ("++seed=5", "seed"),
        ("~seed=0", "seed"),
        ("ncsn.n_sigmas=abc", "ncsn.n_sigmas = 'abc' is str, should be int"),
        ("ncsn.n_sigmas=null", "ncsn.n_sigmas = None"),
        ("ncsn.n_sigmas=10,50", "ncsn.n_sigmas"),
        ("ncsn.n_sigmas=[1", "ncsn.n_sigmas"),
        ("ncsn=5", "ncsn"),
        ("ncsn={n_sigma:5}", "n_sigma"),
        ("vae.channels=[a]", "vae.channels"),
        ("vae.channels=32", "vae.channels"),
        ("data.url=${nothing}", "nothing"),
        ("models=[vae,ebn]", "did you mean ebm"),
        ("models=[]", "models"),
        ("models=[vae,vae]", "models"),
        ("energy.models=[ebm,ebm]", "energy.models = ['ebm', 'ebm'] should name families, each once"),
        ("energy.models=[ebn]", "energy.models names 'ebn', which is no family: did you mean ebm"),
        ("energy.chains=[0,-5]", "energy.chains = [0, -5]"),
        ("seed=1.5", "seed"),
        ("seed", "key=value"),
        ("--flag", "usage"),
        ("sample.edm.also.ddim.sampler=ddim", "'ddim' is not in struct"),  # a new one has a + before it
        ("+sample.edm.also.ddim.samplr=ddim", "unknown key 'samplr' in sample.edm.also.ddim: did you mean sampler"),
        ("+sample.edm.also.Ddim.sampler=ddim", "'Ddim' cannot name a row"),
        ("+sample.edm.also.ddim=3", "should say what differs from sample.edm"),
        ("+sample.adm.also.ddim.sampler=ddim", "did you mean sample.edm"),
        ("~sample.vae.also.mixtur", "sample.vae.also.mixtur"),
        ("~sample.vae.batch", "key=value"),
    ],
)
def test_bad_words_are_one_line_and_leave_the_file_alone(here: Path, word, message):
    (here / "params.yaml").write_text("kept\n")
    with pytest.raises(UserError) as error:
        compose.main("scale=gpu", word)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert (here / "params.yaml").read_text() == "kept\n"
    assert len(list(here.iterdir())) == 1


def test_there_may_be_nothing_to_sweep_and_no_energy():
    text = compose.text(["sweep.models=[]", "energy.models=[]"])
    tree = load(text)
    assert tree["sweep"]["models"] == tree["energy"]["models"] == []


def test_group_with_an_unknown_key(monkeypatch: pytest.MonkeyPatch):
    real = compose._composed
    monkeypatch.setattr(compose, "_composed", lambda words: real(words) | {"fid": {"bach": 3}})
    with pytest.raises(UserError, match=r"fid\.bach.*did you mean fid\.batch"):
        compose.text([])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("vae",), None, "section vae is missing"),
        (("extra",), {}, "unknown section 'extra'"),
        (("sample", "vaee"), {}, "unknown key 'vaee' in sample"),
        (("sample", "n"), None, "sample.n is missing"),
        (("fid", "batch"), "x", "fid.batch = 'x'"),
        (("seed",), True, "seed = True is bool"),
        (("models",), "vae", "models = 'vae'"),
    ],
)
def test_check(path, value, message):
    """None stands for a key that is taken out."""
    tree = load(compose.text([]))
    node = tree
    for key in path[:-1]:
        node = node[key]
    node.pop(path[-1], None)
    if value is not None:
        node[path[-1]] = value
    with pytest.raises(UserError) as error:
        compose.check(tree)
    assert message in str(error.value) and "\n" not in str(error.value)


def override(now: dict, flags: str) -> dict:
    """What `dvc exp run` makes of the flags: shell words, then Hydra's override grammar."""
    words = shlex.split(flags)
    assert words[::2] == ["-S"] * (len(words) // 2)
    tree = OmegaConf.create(copy.deepcopy(now))
    OmegaConf.set_struct(tree, True)
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(words[1::2]), tree)
    return OmegaConf.to_container(tree)


@pytest.mark.parametrize(("data", "scale"), COMBINATIONS)
def test_flags_make_the_difference(here: Path, capsys: pytest.CaptureFixture, data, scale):
    compose.main("data=sprites", "scale=laptop", "models=[ebm]", "preprocess.n_train=64", "ncsn.train.lr=3e-5")
    before = (here / "params.yaml").read_text()
    capsys.readouterr()
    compose.main("--flags", f"data={data}", f"scale={scale}")
    flags = capsys.readouterr().out
    assert flags.count("\n") == 1 and (here / "params.yaml").read_text() == before
    assert override(load(before), flags) == load(compose.text([f"data={data}", f"scale={scale}"]))
    assert flags.split() == shlex.split(flags), "fit for $(...), which does not take quotes off"


def test_rows_come_and_go(here: Path, capsys: pytest.CaptureFixture):
    compose.main()
    before = load((here / "params.yaml").read_text())
    words = ["+sample.edm.also.few.steps=6", "~sample.vae.also.mixture", "+sample.ddpm.also.guided.guidance=3.0"]
    text = compose.text(words)
    assert compose.text(shlex.split(text.splitlines()[0].removeprefix(HEADER))) == text
    tree = load(text)
    rows = {f: tree["sample"][f]["also"] for f in ("vae", "ddpm", "edm")}
    assert rows == {
        "vae": {},
        "ddpm": {"guided": {"guidance": 3.0}},
        "edm": {"few": {"steps": 6}},
    }
    flags = compose.flags(before, tree)
    assert flags.split() == shlex.split(flags)
    assert override(before, flags) == tree and override(tree, compose.flags(tree, before)) == before

    (here / "params.yaml").write_text((here / "params.yaml").read_text().replace("{mixture: {prior: mixture}}", "{}"))
    capsys.readouterr()
    compose.main()
    assert capsys.readouterr().err == "dropped an edit of params.yaml: ~sample.vae.also.mixture\n"


def test_no_difference_no_flags(here: Path, capsys: pytest.CaptureFixture):
    compose.main("scale=gpu")
    capsys.readouterr()
    compose.main("--flags", "scale=gpu")
    assert capsys.readouterr().out == "\n"


VALUES = [
    *(None, True, False, 0, -3, 2.5, 1e-05, 1e20, [1, 2], [], ["a b", "c"], [0.9, 0.999]),
    *("cosine", "pre-2015.pth", "null", "True", "nan", "12", "1e-4", "", "a b", "it's", "a\\", "a\\'b", "é"),
    *("https://host/~user/a.tar.gz", "file:///data/x=y,z.tar.xz", "{x}", "$(ls)", "[1]"),
]


@pytest.mark.parametrize("value", VALUES)
def test_flags_of_any_value(value):
    flags = compose.flags({"a": {"b": "other"}}, {"a": {"b": value}})
    (word,) = shlex.split(flags)[1:]
    (item,) = OverridesParser.create().parse_overrides([word])
    assert item.key_or_group == "a.b" and item.value() == value and type(item.value()) is type(value)


def test_flags_need_the_same_keys():
    with pytest.raises(UserError, match="without --flags"):
        compose.flags({"seed": 1}, {"seed": 1, "sed": 2})
