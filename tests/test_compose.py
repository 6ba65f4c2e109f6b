"""presets/ and params.yaml: every combination composes and is valid, and the committed file is one of them."""

import copy
import itertools
import shlex
import subprocess
from pathlib import Path

import pytest
from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pofx.base import config
from pofx.base.errors import UserError
from pofx.models import store
from pofx.sample import rows
from pofx.score.denoising import Sweep
from pofx.score.energy import Energy
from pofx.score.extractor import Fid
from pofx.score.likelihood import Likelihood
from pofx.score.probe import Probe
from pofx.train.config import Train, settings
from stages import check
from tools import compose
from tools.compose import HEADER, load

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
OF_FAMILIES = [name for name in PRESETS if "-" in name]
SCALES = ["laptop", "hour", "night", "gpu", "paper"]
COMBINATIONS = list(itertools.product(["smileys", "sprites", "cifar10"], SCALES))


def composed(*words: str) -> dict:
    return load(compose.text(list(words)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory, and nothing remembered of other params.yaml files."""
    monkeypatch.chdir(tmp_path)
    config.params.cache_clear()
    yield tmp_path
    config.params.cache_clear()


# --- presets


@pytest.mark.parametrize(("data", "scale"), COMBINATIONS)
def test_every_combination_is_valid(data, scale):
    """`text` checks what it composes."""
    families = {word.partition("-")[0] for word in OF_FAMILIES}
    for words in itertools.zip_longest(*([w for w in OF_FAMILIES if w.startswith(f"{name}-")] for name in families)):
        assert composed(data, scale, *filter(None, words))["data"]["name"] == data


def test_no_more_presets_than_one_can_know():
    assert len(PRESETS) <= 20 and {*SCALES, *compose.DATA, "default"} == set(PRESETS) - set(OF_FAMILIES)


def test_the_default_preset_restates_the_defaults_of_the_code():
    """An empty section means what the listed one does; only how a family trains and a denoiser draws is its own."""
    tree = composed()
    for name in config.family_names():
        cls = store.module(name).Config
        assert config.build(cls, config.untrained(tree[name]), name) == cls()
    for key, cls in {"fid": Fid, "likelihood": Likelihood, "probe": Probe, "sweep": Sweep, "energy": Energy}.items():
        assert config.build(cls, tree[key], key) == cls()
    assert config.build(Train, tree["train"], "train") == Train()
    for name in ("vae", "vqvae", "vqprior", "ebm"):
        assert config.build(rows.kind(name), tree["sample"][name], name) == rows.kind(name)()


@pytest.mark.parametrize("word", OF_FAMILIES)
def test_presets_keep_their_identity_at_every_scale(word):
    """What a preset says of levels, objective and network is what is trained; a scale changes sizes and budgets."""
    name, said = word.partition("-")[0], load((ROOT / "presets" / f"{word}.yaml").read_text())
    sized = {"net", "train", "channels", "blocks", "latent", "perceptual", "chain", "contrast"}
    kept = {key: value for key, value in said[name].items() if key not in sized}
    assert kept
    for scale in SCALES:
        tree = composed("cifar10", scale, word)
        assert {key: tree[name][key] for key in kept} == kept


def test_precedence_is_that_of_kinds_and_not_of_words():
    """default < data < scale < family < by hand."""
    words = ["ncsn.n_sigmas=7", "ncsn-v1", "gpu", "cifar10"]
    for order in (words, words[::-1], [*words[2:], *words[:2]]):
        tree = composed(*order)
        assert tree["ncsn"]["n_sigmas"] == 7  # by hand, over ncsn-v1's 10, over gpu's 232
        assert tree["ncsn"]["sigma_max"] == 1.0  # ncsn-v1's, over cifar10's 50
        assert tree["ncsn"]["net"]["channels"] == 128  # gpu's: the block `laptop` of ncsn-v1 does not count
        assert tree["vae"]["latent"] == 128  # gpu's, over cifar10's 32
        assert tree["edm"]["log_mean"] == -1.2  # cifar10's
    for scale in ("laptop", "hour"):
        assert composed(scale, "ncsn-v1")["ncsn"]["net"]["channels"] == 16


def test_presets_are_as_published():
    """Numbers of the papers, spelt out again."""

    def published(word: str) -> tuple[dict, Train, dict]:
        tree, family = composed("cifar10", "paper", word), word.partition("-")[0]
        return tree[family], settings(family, tree), tree["sample"][family]

    for word, levels, draw, batch, lr in (
        ("ncsn-v1", (10, 1.0, 0.01), ("langevin", 100, 2e-5, False), 128, 1e-3),
        ("ncsn-fifty", (50, 1.0, 0.01), ("langevin", 100, 2e-5, True), 128, 1e-3),
        ("ncsn-v2", (232, 50.0, 0.01), ("langevin", 5, 6.2e-6, True), 128, 1e-4),
    ):
        model, train, sample = published(word)
        assert (model["n_sigmas"], model["sigma_max"], model["sigma_min"]) == levels
        assert (*(sample[k] for k in ("sampler", "langevin_steps", "step_size")), sample.get("denoise", True)) == draw
        assert (train.batch, train.lr, model["weighting"]) == (batch, lr, "dsm")
    assert 0.5 ** (128 / published("ncsn-v2")[1].ema_half_life) == pytest.approx(0.999, abs=1e-6)
    model, train, sample = published("ddpm-ho2020")
    assert (model["timesteps"], model["schedule"], model["prediction"]) == (1000, "linear", "eps")
    assert (train.batch, train.lr, train.clip, train.flip) == (128, 2e-4, 1.0, True)
    assert 0.5 ** (128 / train.ema_half_life) == pytest.approx(0.9999, abs=1e-6)
    drawn = [sample[key] for key in ("sampler", "variance", "steps", "clip")]
    assert drawn == ["ancestral", "large", None, True]
    model, train, _ = published("ddpm-wide")
    net = model["net"]
    assert [net["channels"] * m for m in net["multipliers"]] == [96, 192, 384, 384]
    assert (net["heads"], net["attention"], net["dropout"]) == (8, [16], 0.1)
    assert (train.batch, train.accumulate, train.lr) == (128, 4, 2e-4)


# --- the text


def test_committed_params_are_what_their_header_says():
    committed = subprocess.check_output(["git", "show", "HEAD:params.yaml"], cwd=ROOT, text=True)
    first = committed.splitlines()[0]
    assert first.startswith(HEADER)
    assert committed == compose.text(shlex.split(first.removeprefix(HEADER)))


def test_a_user_reads_all_of_params_yaml():
    lines = compose.text([]).splitlines()
    assert len(lines) <= 170 and max(map(len, lines)) <= 120


def test_comments_order_and_layout_of_the_default_survive():
    source = (ROOT / "presets" / "default.yaml").read_text()
    assert compose.text([]).partition("\n\n")[2] == source
    text = compose.text(["gpu", "cifar10", "vae.train.lr=3e-05", "models=[vae]", "preprocess.n_train=64", "ddpm-wide"])
    comments = [line.partition("#")[2] for line in source.splitlines() if "#" in line]
    assert [line.partition("#")[2] for line in text.splitlines()[1:] if "#" in line] == comments
    assert not [line for line in text.splitlines() if "&id" in line or "*id" in line]
    keys = [line.partition(":")[0] for line in source.splitlines() if ":" in line and not line.strip().startswith("#")]
    written = [line.partition(":")[0] for line in text.splitlines() if ":" in line and not line.startswith("#")]
    assert [key for key in written if key in keys][: len(keys)] == keys
    assert load(text)["vae"]["train"]["lr"] == 3e-5


def test_keys_that_are_not_listed_are_added_to_their_section():
    text = compose.text(["vae-dfc", "ddpm.train.clip=1", "+edm.guide=0.5", "rows.edm.fast.steps=8"])
    tree = load(text)
    assert tree["vae"]["perceptual"]["alpha"] == 0.5 and tree["vae"]["blocks"] == 1
    assert tree["ddpm"]["train"]["clip"] == 1 and tree["edm"]["guide"] == 0.5
    assert tree["rows"]["edm"]["fast"] == {"steps": 8}
    vae = text[text.index("\nvae:") : text.index("\nvqvae:")]
    assert "perceptual:" in vae and vae.index("perceptual:") < vae.index("# Vector-quantised")


def test_the_header_makes_the_same_file_again():
    text = compose.text(["gpu", "cifar10", "ncsn.n_sigmas=20", "data.url='file:///data/a b.tar.xz'", "rows.vae={}"])
    tree = load(text)
    assert tree["ncsn"]["n_sigmas"] == 20 and tree["rows"]["vae"] == {}
    assert tree["data"]["url"] == "file:///data/a b.tar.xz"
    assert text.startswith(f"{HEADER}cifar10 gpu ncsn.n_sigmas=20 ")
    assert compose.text(shlex.split(text.splitlines()[0].removeprefix(HEADER))) == text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lptop", "no preset is called 'lptop': did you mean laptop"),
        ("ncsn-v3", "did you mean ncsn-v2"),
        ("default", "no preset is called 'default'"),
        ("paper", "gpu and paper are both scale presets: choose one"),
        ("scale=laptop", "unknown key 'scale' in params.yaml"),
        ("ncsn.n_sigma=5", "unknown key 'n_sigma' in ncsn: did you mean n_sigmas"),
        ("ncns.n_sigmas=5", "unknown key 'ncns' in params.yaml: did you mean ncsn"),
        ("+ncsn.foo=5", "unknown key 'foo' in ncsn"),
        ("ncsn.n_sigmas=abc", "ncsn.n_sigmas = 'abc' is str, should be int"),
        ("ncsn.n_sigmas=null", "ncsn.n_sigmas = None"),
        ("ncsn.n_sigmas=10,50", "ncsn.n_sigmas"),
        ("ncsn.n_sigmas=1", "ncsn.n_sigmas = 1 should be at least 2"),
        ("ncsn.n_sigmas=[1", "'[1' is no value in YAML"),
        ("ncsn=5", "ncsn"),
        ("ncsn={n_sigma: 5}", "n_sigma"),
        ("seed.x=1", "seed = 0 has no keys: x cannot be set"),
        ("vae.channels=[a]", "vae.channels[0] = 'a'"),
        ("vae.channels=32", "vae.channels"),
        ("vae.train.btch=32", "unknown key 'btch' in vae.train: did you mean batch"),
        ("train.btch=32", "unknown key 'btch' in train: did you mean batch"),
        ("edm.train.lr=.nan", "edm.train.lr = nan should be a finite number"),
        ("models=[vae,ebn]", "models names 'ebn', which is no family: did you mean ebm"),
        ("models=[]", "models = [] should have 1 or more entries"),
        ("models=[vae,vae]", "models = ['vae', 'vae'] should name each family once"),
        ("energy.models=[ebm,ebm]", "energy.models = ['ebm', 'ebm'] should name each family once"),
        ("sweep.models=[ebn]", "sweep.models names 'ebn', which is no family: did you mean ebm"),
        ("energy.chains=[0,-5]", "energy.chains[1] = -5 should be at least 0"),
        ("fid.bach=5", "unknown key 'bach' in fid: did you mean batch"),
        ("seed=1.5", "seed = 1.5 is float"),
        ("--flag", "usage"),
        ("sample.edm.eta=1", "eta is not read by heun"),
        ("sample.vaee.batch=64", "unknown key 'vaee' in sample: did you mean vae"),
        ("sample.seeds=0", "sample.seeds = 0 should be at least 1"),
        ("rows.edm.ddim.samplr=ddim", "unknown key 'samplr' in rows.edm.ddim: did you mean sampler"),
        ("rows.edm.Ddim.sampler=ddim", "'Ddim' cannot name a row"),
        ("rows.edm.ddim=3", "should say what differs from sample.edm"),
        ("rows.adm.ddim.sampler=ddim", "unknown key 'adm' in rows: did you mean edm"),
    ],
)
def test_bad_words_are_one_line_and_leave_the_file_alone(here: Path, word, message):
    (here / "params.yaml").write_text("kept\n")
    with pytest.raises(UserError) as error:
        compose.main("gpu", word)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert (here / "params.yaml").read_text() == "kept\n"
    assert len(list(here.iterdir())) == 1


def test_a_preset_with_an_unknown_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for path in (ROOT / "presets").glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "mine.yaml").write_text("fid: {bach: 3}\n")
    monkeypatch.setattr(compose, "PRESETS", tmp_path)
    with pytest.raises(UserError, match=r"unknown key 'bach' in fid: did you mean batch"):
        compose.text(["mine"])


def test_there_may_be_nothing_to_sweep_and_no_energy():
    tree = composed("sweep.models=[]", "energy.models=[]")
    assert tree["sweep"]["models"] == tree["energy"]["models"] == []


# --- the stage `check`


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("vae",), None, "section vae is missing"),
        (("rows",), None, "section rows is missing"),
        (("extra",), {}, "unknown key 'extra' in params.yaml"),
        (("sample", "n"), None, "sample.n is missing"),
        (("sample", "edm"), None, "sample.edm is missing"),
        (("rows", "edm"), None, "rows.edm is missing"),
        (("fid", "batch"), "x", "fid.batch = 'x'"),
        (("seed",), True, "seed = True is bool"),
        (("models",), "vae", "models = 'vae'"),
        (("sweep",), 3, "sweep = 3 should be a mapping"),
    ],
)
def test_check(path, value, message):
    """None stands for a key that is taken out."""
    tree = composed()
    node = tree
    for key in path[:-1]:
        node = node[key]
    node.pop(path[-1], None)
    if value is not None:
        node[path[-1]] = value
    with pytest.raises(UserError) as error:
        check.check(tree)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_row_by_another_sampler_inherits_nothing_that_this_one_does_not_read():
    composed("paper", "rows.ddpm.fast={sampler: ddim, steps: 20}")  # the first row's variance is ancestral's
    composed("ncsn-v1", "rows.ncsn.heun={sampler: heun, steps: 20}")
    with pytest.raises(UserError, match="variance is not read by ddim"):
        composed("paper", "rows.ddpm.fast={sampler: ddim, steps: 20, variance: large}")


def test_empty_sections_are_valid():
    tree = composed()
    drawn = {"n": 1000, "seeds": 1} | {name: {} for name in config.family_names()}
    drawn |= {"edm": {"steps": 9}}  # trained on a continuum: how many steps to draw by has no default
    bare = {key: {} for key in tree} | {"seed": 0, "models": ["vae"], "sample": drawn}
    check.check(bare | {"rows": {name: {} for name in config.family_names()}})


def test_the_stage_writes_the_same_whatever_the_values(here: Path):
    written = set()
    for words in ([], ["cifar10", "gpu"]):
        (here / "params.yaml").write_text(compose.text(words))
        config.params.cache_clear()
        check.main()
        written.add((here / "metrics/check.json").read_text())
    assert len(written) == 1


# --- -S words for DVC


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ncsn.n_sigmas=232", None),
        ("+ddpm.train.clip=1", None),
        ("++edm.train.lr=1e-3", None),
        ("+rows.edm.fast.steps=8", None),
        ("~rows.vae.mixture", None),
        ("fid.bach=5", "Could not override 'fid.bach'"),  # refused by DVC
        ("+fid.bach=5", "unknown key 'bach' in fid: did you mean batch"),  # refused by the stage
        ("+ddpm.train.clop=1", "unknown key 'clop' in ddpm.train: did you mean clip"),
    ],
)
def test_experiments_set_any_parameter(here: Path, word, message):
    """As `dvc exp run -S` does it."""
    compose.main()
    try:
        apply_overrides("params.yaml", [word])
        check.main()
    except (UserError, InvalidArgumentError) as error:
        found = f"{error} {error.__cause__}"
        assert message is not None and message in found, found
    else:
        assert message is None


def override(now: dict, flags: str) -> dict:
    """What `dvc exp run` makes of the flags: shell words, then Hydra's override grammar."""
    words = shlex.split(flags)
    assert words[::2] == ["-S"] * (len(words) // 2)
    tree = OmegaConf.create(copy.deepcopy(now))
    OmegaConf.set_struct(tree, True)
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(words[1::2]), tree)
    return OmegaConf.to_container(tree)


@pytest.mark.parametrize(
    "words", [*COMBINATIONS, ("gpu", "vae-dfc", "ebm-icd", "ncsn-v2", "ddpm-wide"), ("rows.vae={}",)]
)
def test_flags_make_the_difference(here: Path, capsys: pytest.CaptureFixture, words):
    compose.main("models=[ebm]", "preprocess.n_train=64", "ncsn.train.lr=3e-5", "rows.edm.few.steps=6", "edm.guide=0.5")
    before = (here / "params.yaml").read_text()
    capsys.readouterr()
    compose.main("--flags", *words)
    flags = capsys.readouterr().out
    assert flags.count("\n") == 1 and (here / "params.yaml").read_text() == before
    assert override(load(before), flags) == composed(*words)
    assert flags.split() == shlex.split(flags), "fit for $(...), which does not take quotes off"
    assert {"~edm.guide", "~rows.edm.few"} <= set(flags.split())


def test_edits_are_named_before_they_are_dropped(here: Path, capsys: pytest.CaptureFixture):
    compose.main()
    text = (here / "params.yaml").read_text().replace("{mixture: {prior: mixture}}", "{}", 1)
    (here / "params.yaml").write_text(text.replace("timesteps: 1000", "timesteps: 200\n  guide: 0.5"))
    capsys.readouterr()
    compose.main()
    dropped = capsys.readouterr().err.splitlines()
    edits = ["ddpm.timesteps=200", "+ddpm.guide=0.5", "~rows.vae.mixture"]
    assert dropped == [f"dropped an edit of params.yaml: {edit}" for edit in edits]


@pytest.mark.parametrize(
    "text", ["", "it's: [\n", "# composed by: python -m tools.compose scale=gpu vae=conv\n\nseed: 3\n"]
)
def test_an_old_or_broken_file_is_written_anew(here: Path, capsys: pytest.CaptureFixture, text):
    (here / "params.yaml").write_text(text)
    compose.main("cifar10")
    assert (here / "params.yaml").read_text() == compose.text(["cifar10"])
    assert "dropped" not in capsys.readouterr().err


def test_check_of_the_file_at_hand(here: Path):
    compose.main()
    compose.main("--check")
    (here / "params.yaml").write_text((here / "params.yaml").read_text().replace("seed: 0", "seed: x", 1))
    config.params.cache_clear()
    with pytest.raises(UserError, match="seed = 'x'"):
        compose.main("--check")


VALUES = [
    *(None, True, False, 0, -3, 2.5, 1e-05, 1e20, [1, 2], [], ["a b", "c"], [0.9, 0.999]),
    *("cosine", "pre-2015.pth", "null", "True", "nan", "12", "1e-4", "", "a b", "it's", "a\\", "a\\'b", "é"),
    *("https://host/~user/a.tar.gz", "file:///data/x=y,z.tar.xz", "{x}", "$(ls)", "[1]"),
]


@pytest.mark.parametrize("value", VALUES)
def test_flags_of_any_value(value):
    for now, added in (({"a": {"b": "other"}}, False), ({"a": {}}, True)):
        (word,) = compose.flags(now, {"a": {"b": value}})
        (item,) = OverridesParser.create().parse_overrides([word])
        assert item.key_or_group == "a.b" and item.is_add() == added
        assert item.value() == value and type(item.value()) is type(value)
