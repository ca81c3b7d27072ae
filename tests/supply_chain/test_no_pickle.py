"""Nothing in the project loads a pickle, or runs text that it has read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("qdeploy", "benchmarks", "scripts")
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
LOADERS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
RUNNERS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "torch.hub.load", "onnx.hub.load", "pd.read_pickle"}


def faults_of(text: str) -> Iterator[str]:
    """Yield what a program's text does that it must not do."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {k.arg: ast.literal_eval(k.value) for k in node.keywords if isinstance(k.value, ast.Constant)}
            keyword, wanted = LOADERS.get(name, ("", None))
            if keyword and given.get(keyword) is not wanted:
                yield f"{name} without {keyword}={wanted}"
            if name in RUNNERS or given.get("shell") is True:
                yield name


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_pickle_is_loaded_and_no_text_is_run(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    assert [f"{file.relative_to(ROOT)}: {fault}" for file in files for fault in faults_of(file.read_text())] == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "subprocess.run(words, shell=True)",
    ],
)
def test_the_scan_finds(text: str) -> None:
    assert len(list(faults_of(text))) == 1
    assert list(faults_of("np.load(path, allow_pickle=False); torch.load(path, weights_only=True); model.eval()")) == []
