"""The house rules of the source: who may import whom, how long things are, what is documented, what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cl_runner

PACKAGE = Path(cl_runner.__file__).parent
CONFIGS = PACKAGE.parent / "configs"
FILES = sorted(PACKAGE.rglob("*.py"))
HEAVY = (
    "torch", "avalanche", "wandb", "torchvision", "sklearn", "pytorchcv", "matplotlib", "peft", "transformers",
    "plotly", "pandas",
)  # fmt: skip
LONGEST_FILE, LONGEST_FUNCTION = 320, 60

MAY_NOT_IMPORT = {  # a part of the package: what it must know nothing of
    "adapters": ["avalanche", "assembly", "benchmarks", "config", "recording", "reports", "strategies", "training"],
    "backbones": ["avalanche", "adapters", "assembly", "benchmarks", "config", "recording", "reports", "strategies"],
    "benchmarks": ["adapters", "assembly", "backbones", "config", "recording", "reports", "strategies", "training"],
    "config": [*HEAVY, "adapters", "assembly", "backbones", "benchmarks", "recording", "reports", "training"],
    "recording": [*HEAVY, "adapters", "assembly", "backbones", "benchmarks", "config", "strategies", "training"],
    "reports": [
        *(word for word in HEAVY if word not in ("matplotlib", "plotly")),
        "adapters",
        "assembly",
        "backbones",
        "benchmarks",
        "config",
        "recording",
        "training",
    ],
    "training": ["assembly", "config", "recording", "reports", "strategies"],
    "strategies": ["assembly", "config", "recording", "reports", "benchmarks"],
    "keeping": ["avalanche", "adapters", "assembly", "config", "modalities", "reports"],
}
KEPT_BY = {"learning.py", "revisit.py"}  # who may know of checkpoints' contents: no part has to be told that it is kept
MAY_AFTER_ALL = {"recording/wandb_run.py": {"wandb", "matplotlib"}}  # runs in a process of its own
ONLY = {  # third-party libraries that a part may know at all
    "adapters": {"torch", "peft", "safetensors"},
    "metrics": {"numpy"},
    "scores": {"numpy", "rouge", "rapidfuzz"},
}
IMPORTERS = {
    "cli": set(),
    "runner": {"__init__.py", "cli.py"},
    "learning": {"runner.py", "revisit.py"},
    "planning": {"runner.py"},
}


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def name(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def imports(node: ast.AST) -> Iterator[str]:
    """Every module imported anywhere, in full: `from a import b` gives a and a.b; `library("a", ...)` imports a."""
    for item in ast.walk(node):
        if isinstance(item, ast.Call) and "library" in (getattr(item.func, "id", ""), getattr(item.func, "attr", "")):
            yield from (str(word.value) for word in item.args[:1] if isinstance(word, ast.Constant))
        if isinstance(item, ast.Import):
            yield from (alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, "imports are absolute"
            yield item.module or ""
            yield from (f"{item.module}.{alias.name}" for alias in item.names)


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (item for item in ast.walk(node) if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef))


# ---------------------------------------------------------------------------------------------- stays light


@pytest.mark.parametrize(
    "code",
    [
        "import cl_runner",
        "import cl_runner.cli",
        "from cl_runner.cli import execute; assert execute(['--help']) == 0",
        "from cl_runner.cli import execute; assert execute(['--cfg', 'job']) == 0",
        "from cl_runner.cli import execute; assert execute(['adapter.rnk=3']) == 2",
        "from cl_runner.cli import execute; assert execute(['adapter.rank=0']) == 2",
    ],
)
def test_nothing_heavy_is_imported(code, tmp_path):
    check = f"{code}\nimport sys\nheavy = [name for name in {HEAVY!r} if name in sys.modules]"
    check += "\nsys.exit(f'imports {heavy}' if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------- who knows whom


@pytest.mark.parametrize("part", sorted(MAY_NOT_IMPORT))
def test_a_part_knows_nothing_of_what_is_not_its_concern(part):
    own = [file for file in FILES if name(file).split("/")[0] == part]
    assert own
    barred = {word if word in HEAVY else f"cl_runner.{word}" for word in MAY_NOT_IMPORT[part]}
    for file in own:
        for module in imports(tree(file)):
            allowed = MAY_AFTER_ALL.get(name(file), set())
            hit = [word for word in barred - allowed if module == word or module.startswith(f"{word}.")]
            assert not hit, f"{name(file)} imports {module}"


@pytest.mark.parametrize("part", sorted(ONLY))
def test_a_part_knows_few_libraries(part):
    allowed = {*sys.stdlib_module_names, "cl_runner", *ONLY[part]}
    for file in FILES:
        if name(file).split("/")[0] == part:
            for module in imports(tree(file)):
                assert module.split(".")[0] in allowed, f"{name(file)} imports {module}"


def test_metrics_are_plain_functions():
    for file in (PACKAGE / "metrics").glob("*.py"):
        for module in imports(tree(file)):
            assert not module.startswith("cl_runner.") or module.startswith("cl_runner.metrics"), module


@pytest.mark.parametrize("module", sorted(IMPORTERS))
def test_nobody_looks_up_the_stairs(module):
    """`cli` is named by the installed script alone; `runner` by the door and the package's front."""
    importers = {
        name(file)
        for file in FILES
        if any(item == f"cl_runner.{module}" or item.startswith(f"cl_runner.{module}.") for item in imports(tree(file)))
    }
    assert importers == IMPORTERS[module]
    assert (PACKAGE / f"{module}.py").is_file()


def test_what_is_kept_knows_nothing_of_its_keeper():
    inside = {name(file) for file in FILES if name(file).startswith("keeping/")}
    importers = {
        name(file) for file in FILES if any(item.startswith("cl_runner.keeping") for item in imports(tree(file)))
    }
    assert importers - inside == KEPT_BY


def test_imports_between_the_parts_go_one_way():
    """No two parts import each other, whatever function the import hides in."""
    edges: dict[str, set[str]] = {}
    for file in FILES:
        part = name(file).removesuffix(".py").split("/")[0]
        for module in imports(tree(file)):
            if module.startswith("cl_runner.") and part != "__init__":
                other = module.split(".")[1]
                known = (PACKAGE / other).is_dir() or (PACKAGE / f"{other}.py").is_file()
                if known and other != part:
                    edges.setdefault(part, set()).add(other)
    order: list[str] = []

    def visit(part: str, path: tuple[str, ...]) -> None:
        assert part not in path, " -> ".join([*path[path.index(part) :], part])
        if part not in order:
            for other in sorted(edges.get(part, ())):
                visit(other, (*path, part))
            order.append(part)

    for part in sorted(edges):
        visit(part, ())
    assert order.index("errors") < order.index("runner") < order.index("cli")


# --------------------------------------------------------------------------------------------------- shape


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_file_keeps_the_house_in_order(file):
    text = file.read_text(encoding="utf-8")
    content = tree(file)
    assert len(text.splitlines()) <= LONGEST_FILE
    for function in functions(content):
        length = (function.end_lineno or 0) - function.lineno + 1
        assert length <= LONGEST_FUNCTION, f"{function.name} has {length} lines"
    for node in ast.walk(content):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno} prints"
        if isinstance(node, ast.Global):
            raise AssertionError(f"line {node.lineno} rebinds a global")
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(item, ast.Pass) for item in node.body)
            assert not silent, f"line {node.lineno} swallows an exception; say contextlib.suppress and why"
            assert node.type is not None, f"line {node.lineno} catches everything"
    assert "TODO" not in text and "FIXME" not in text


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_stub_is_an_abstract_hook(file):
    """A function that only raises NotImplementedError promises something nobody built, unless subclasses must."""
    content = tree(file)
    classes = [node for node in ast.walk(content) if isinstance(node, ast.ClassDef)]
    for function in functions(content):
        body = [item for item in function.body if not _is_docstring(item)]
        stub = len(body) == 1 and isinstance(body[0], ast.Raise) and "NotImplementedError" in ast.dump(body[0])
        if not stub:
            continue
        owner = next((item for item in classes if function in item.body), None)
        assert owner is not None, f"{function.name} is a stub"
        heirs = [item for item in classes if any(getattr(base, "id", "") == owner.name for base in item.bases)]
        assert heirs and all(_defines(heir, function.name) for heir in heirs), f"{owner.name}.{function.name} is a stub"


def _defines(owner: ast.ClassDef, function: str) -> bool:
    return any(isinstance(item, ast.FunctionDef) and item.name == function for item in owner.body)


def _is_docstring(item: ast.stmt) -> bool:
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_everything_public_is_documented(file):
    content = tree(file)
    if content.body:
        assert ast.get_docstring(content), "the file says what it is"
    undocumented = []

    def visit(owner: ast.Module | ast.ClassDef, prefix: str) -> None:
        for item in owner.body:
            if isinstance(item, ast.ClassDef | ast.FunctionDef) and not item.name.startswith("_"):
                if not ast.get_docstring(item):
                    undocumented.append(prefix + item.name)
                if isinstance(item, ast.ClassDef):
                    visit(item, f"{prefix}{item.name}.")

    visit(content, "")
    assert not undocumented


def test_no_method_is_named_in_the_trainer():
    """One file a method: the loop, its monitor and its plugin know none of them, nor does `trainer`."""
    methods = {file.stem for group in ("adapter", "strategy") for file in (CONFIGS / group).glob("*.yaml")} - {"none"}
    assert {"convlora", "ewc", "replay"} <= methods
    found = []
    for file in (PACKAGE / "training").glob("*.py"):
        for node in ast.walk(tree(file)):
            words = [getattr(node, field, None) for field in ("id", "attr", "arg", "name")]
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
                words.append(node.value)  # a key or a class path; sentences are free
            for word in words:
                parts = {part for part in str(word).lower().replace(".", "_").split("_")}
                found += [f"{file.name}: {word}" for _ in methods & parts]
    found.remove("capture.py: replay")  # torch's name for launching a CUDA graph once more
    assert not found
    keys = (CONFIGS / "trainer" / "default.yaml").read_text().lower()
    assert not [method for method in methods if f"{method}:" in keys or f"{method}_" in keys]


def test_a_group_has_one_name():
    """A config group, its package folder and its concept have one name."""
    folders = {folder.name for folder in PACKAGE.iterdir() if folder.is_dir()}
    plural = {"benchmark": "benchmarks", "backbone": "backbones", "adapter": "adapters", "strategy": "strategies"}
    for group, folder in plural.items():
        assert folder in folders
        for file in (CONFIGS / group).glob("*.yaml"):
            assert f"_target_: cl_runner.{folder}." in file.read_text(), file.name
