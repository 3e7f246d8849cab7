"""Every command and every block of Python of README and docs runs, and prints what a page shows.

docs/shorten.md says what is made shorter.
"""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from blocks import ROOT, SHELL, Session, blocks, inline, is_notebook, missing, shortened, table

# pages with a test of their own
OWN = {
    "docs/extending.md": "tests/test_extending.py",
    "docs/reliability.md": "tests/faults/test_faults.py",
}
# blocks of shell that can run nowhere but on a cluster
ELSEWHERE = {"docs/clusters.md": 1}
FILES = {
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-py",
}
PLACES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "EXPERIMENTS.md")]
PLACES += [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
TEXTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in PLACES}
PAGES = {
    name: page
    for name, page in TEXTS.items()
    if name not in OWN
    and not is_notebook(page)
    and (any(inline(page)) or any(b.language in (*SHELL, "python") for b in blocks(page)))
}


def absent(words):
    """Whether a command needs a data set that does not lie in $FMDIFF_DATA."""
    folder = Path(os.environ.get("FMDIFF_DATA", "/nonexistent"))
    needs = [name for name in FILES if re.search(rf"=(\[.*)?{name}\b", " ".join(words))]
    return any(not (folder / FILES[name]).exists() for name in needs)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The folder that holds the runs of docs/shorten.md after they were first needed."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def session(command, capfd, made, tmp_path, monkeypatch):
    """Runs pages in an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    if "FMDIFF_DATA" in os.environ:  # a cache of its own beside the real data
        data = tmp_path / "data"
        data.mkdir()
        for entry in Path(os.environ["FMDIFF_DATA"]).iterdir():
            (data / entry.name).symlink_to(entry)
        monkeypatch.setenv("FMDIFF_DATA", str(data))

    def prepare(text):
        """Copy the runs that a text names into the working folder."""
        for name, line in table("Runs that lie in the folder"):
            words = shlex.split(line)[1:]
            target = words[-1].partition("=")[2]
            if re.search(rf"[=\[\",]{name}\b", text) and not Path(target).exists():
                if not (made / target).exists():
                    assert command(*words[:-1], f"out={made / target}") == 0
                shutil.copytree(made / target, target)

    return Session(command, lambda: "".join(capfd.readouterr()), absent, prepare)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_does_what_it_says(name, session, record_property):
    session.run(name, PAGES[name])
    for entry in inline(PAGES[name]):
        session.compose(name, entry)
    record_property("counts", session.counts)
    assert not session.faults, "\n\n".join(session.faults)


def test_every_block_that_is_not_run_is_known():
    rests = {
        name: [b.text for b in blocks(page) if "code-block" in b.language]
        for name, page in TEXTS.items()
    }
    assert {name: len(texts) for name, texts in rests.items() if texts} == ELSEWHERE


def test_pages_with_tests_of_their_own_exist():
    assert OWN.keys() <= TEXTS.keys()
    assert all((ROOT / path).exists() for path in OWN.values())


GOOD = """# A page

```shell
for steps in 1 2; do fmdiff sample model=exact data=gmm4 \\
    n=4 steps=$steps out=s$steps; done  # a comment
```

```text
2 evaluations per sample counted, ...
...
  s2/samples.npz
```

```python
value = 3 / 7
```

Text between.

```python
print(f"{value:.3f}")
```

```text
0.429
```

```shell
fmdiff sample ckpt=none
```

```text
fmdiff sample: ckpt=none does not exist; ...
exit 2
```
"""


def test_a_good_page_has_no_faults(session):
    session.run("page", GOOD)
    assert not session.faults
    assert session.counts == {"run": 3, "composed": 0, "other": 0, "python": 2, "text": 3}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("0.429", "0.428", 21),  # a number
        ("2 evaluations", "3 evaluations", 4),
        (
            "  s2/samples.npz",
            "  s1/samples.npz\n2 evaluations per sample counted, ...",  # the order
            4,
        ),
        ("data=gmm4", "data=gmm5", 4),  # a command
        ("for steps", "show me; for steps", 4),  # a word that is no command
        ("done", "don", 4),  # the shell
        ("3 / 7", "3 / 0", 15),  # Python
        ("exit 2", "exit 3", 29),
        ("fmdiff sample ckpt=none", "python scripts/none.py", 29),
    ],
)
def test_a_page_that_says_what_does_not_hold_fails(session, old, new, line):
    assert old in GOOD
    session.run("page", GOOD.replace(old, new))
    assert any(fault.startswith(f"page:{line}: ") for fault in session.faults), session.faults


def test_a_command_in_a_sentence_is_composed(session):
    page = "Say `fmdiff train model.hiden=3` or `fmdiff train -m seed=1,2` or `fmdiff train out=`."
    for entry in inline(page):
        session.compose("page", entry)
    assert session.counts["composed"] == 2
    assert len(session.faults) == 1 and "page:1: " in session.faults[0]
    assert "did you mean 'model.hidden'" in session.faults[0]


def test_what_is_shorter():
    rules = [["train", "a=1 b=2"], ["train c=*", "--cfg job"], ["sample", "d=4"]]
    assert shortened(["train", "a=9", "e=[1]"], rules) == ["train", "a=1", "e=[1]", "b=2"]
    assert shortened(["train", "c=5"], rules) == ["train", "c=5", "a=1", "b=2", "--cfg", "job"]
    assert missing("a\n...\nc 1 s", "a\nb\nc 1 s\n") is None
    assert missing("b\na", "a\nb\n") == "a"
    assert missing("a ... s", "a 1.5 s") is None and missing("1.5", "1.53") == "1.5"
