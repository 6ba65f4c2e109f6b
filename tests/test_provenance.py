"""Which code a number comes from: its commit, or unknown without a repository."""

import subprocess

import pytest

from pofx.base import provenance


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository with one commit."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").write_text("a = 1\n")
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    me = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (("init", "-q"), ("add", "."), (*me, "commit", "-q", "-m", "one")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    return tmp_path


def test_a_clone_has_a_commit_and_its_code_may_be_changed(clone):
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=clone, text=True).strip()
    assert provenance.revision(clone) == (commit, False)
    (clone / "params.yaml").write_text("seed: 1\n")
    assert provenance.revision(clone) == (commit, False), "parameters are recorded by themselves"
    (clone / "src/b.py").touch()
    assert provenance.revision(clone) == (commit, True)


def test_a_copy_without_git_is_unknown(clone, tmp_path_factory, monkeypatch):
    assert provenance.revision(tmp_path_factory.mktemp("export")) == ("unknown", None)
    (clone / "copy").mkdir()
    assert provenance.revision(clone / "copy") == ("unknown", None), "not the repository around it"
    monkeypatch.setenv("PATH", "")
    assert provenance.revision(clone) == ("unknown", None), "no git"
    found = provenance.here(clone)
    assert found["revision"] == "unknown" and found["torch"] and "Python" in found["system"]
