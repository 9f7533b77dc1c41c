"""Nothing that is loaded can run: no pickle, no eval, no YAML or weights with code in them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("uml_core", "pipelines", "tune_spaces", "cluster", "docs")
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load"),
    *("yaml.full_load", "yaml.load_all", "pandas.read_pickle", "pd.read_pickle", "torch.jit.load"),
    *("torch.hub.load", "np.fromregex", "tarfile.TarFile.extractall"),
}
METHODS = {"extractall", "unpack_archive"}  # names in archives would become paths
# What makes a call safe: the keyword and the values it may have.
SAFE = {
    "torch.load": ("weights_only", {True}),
    "np.load": ("allow_pickle", {False, None}),  # None: not given, which means False
    "numpy.load": ("allow_pickle", {False, None}),
}
FORBIDDEN_KEYWORDS = {"shell": True, "trust_remote_code": True, "allow_pickle": True}


def dangers(source: str) -> list[tuple[int, str]]:
    """(line, what) of everything in a module that could run code out of data."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        found += [(node.lineno, f"import {n}") for n in names if n.partition(".")[0] in MODULES]
        if isinstance(node, ast.Call):
            found += [(node.lineno, what) for what in _call(node)]
    return found


def _call(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    given = {k.arg: getattr(k.value, "value", ...) for k in node.keywords if k.arg}
    out = [f"{k}={v}" for k, v in FORBIDDEN_KEYWORDS.items() if given.get(k) is v]
    if name in CALLS or (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS):
        out.append(name)
    if name in SAFE and given.get(SAFE[name][0]) not in SAFE[name][1]:
        out.append(f"{name} without {SAFE[name][0]}")
    if name == "yaml.load" and "_Loader" not in ast.unparse(node):  # a SafeLoader: test below
        out.append("yaml.load")
    if name.endswith("Environment") and name != "provenance.environment":
        keyword = next((k.value for k in node.keywords if k.arg == "autoescape"), None)
        if keyword is None or getattr(keyword, "value", ...) is False:
            out.append(f"{name} without autoescape")
    return out


def test_nothing_loads_code():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, what in dangers(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_loader_of_recipes_is_a_safe_one():
    import yaml

    from uml_core import typed

    assert issubclass(typed._Loader, yaml.SafeLoader)
    python = [tag for tag in typed._Loader.yaml_constructors if tag and "python" in tag]
    assert not python and None in typed._Loader.yaml_constructors  # unknown tags are refused


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "exec(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "tar.extractall(folder)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "jinja2.Environment(loader=loader)",
    ],
)
def test_the_audit_sees(line):
    assert dangers(f"def f():\n    {line}\n")


def test_the_audit_passes_what_is_safe():
    safe = """
torch.load(path, weights_only=True)
np.load(path)
yaml.load(text, Loader=_Loader)
yaml.safe_load(text)
re.compile("x")
jinja2.Environment(autoescape=True)
"""
    assert dangers(safe) == []
