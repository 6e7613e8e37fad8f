"""The house as CONTRIBUTING.md draws it: imports point one way, and nothing happens at import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import resmon
from resmon.catalogue import CATALOGUE

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "resmon"

GROUND = {"records", "catalogue", "statistics", "settings", "scores", "memory", "quantities", "errors", "rules", "interpreter"}
ROOMS = {"capture", "flight", "detectors", "exporters", "servers"}
HOUSE = {
    "access",
    "agent",
    "page",
    "diff",
    "replay",
    "formats",
    "plots",
    "portrait",
    "postmortem",
    "assets",
    "terminal",
    "handbook",
}
# What each part may import; what is not named here stands on top and may import all of it.
ALLOWED = {
    **dict.fromkeys(GROUND, GROUND),
    **dict.fromkeys(ROOMS, GROUND),
    "objectives": GROUND | {"servers"},
    **dict.fromkeys(HOUSE, GROUND | ROOMS | HOUSE | {"objectives"}),
}
# The rooms of the one room that has some, from the ground up: each imports only those before it.
CAPTURE = ("host", "discovery", "probes", "gradients", "fitting", "forensics", "loop")
TOP = {"__main__", "cli", "commands", "monitor", "integrations"}
TORCH = {"capture", "integrations"}


@cache
def modules() -> list[str]:
    """Those of the package; a wheel also brings the examples, which are scripts."""
    files = [path for path in PACKAGE.rglob("*.py") if (path.parent / "__init__.py").exists()]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files)


def file_of(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def part_of(module: str) -> str:
    """The room or file directly below resmon/ that a module belongs to; "" is the package itself."""
    return module.split(".")[1] if "." in module else ""


@cache
def imports(module: str, types_too: bool = True) -> frozenset[str]:
    """Every module that a module imports, also inside functions; of `from a import b` both a and a.b where that is a module."""
    tree = ast.parse(file_of(module).read_text())
    return frozenset(_imported(tree, module, types_too))


def _imported(node: ast.AST, module: str, types_too: bool) -> Iterator[str]:
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types_too:
        for other in node.orelse:
            yield from _imported(other, module, types_too)
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module.split(".") if file_of(module).name == "__init__.py" else module.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in modules())
    for child in ast.iter_child_nodes(node):
        yield from _imported(child, module, types_too)


def within(names: frozenset[str]) -> set[str]:
    return {name for name in names if name == "resmon" or name.startswith("resmon.")}


def rooms() -> dict[str, str]:
    """Every room and module directly below resmon/, and what it says of itself."""
    return {
        part_of(module): ast.get_docstring(ast.parse(file_of(module).read_text())) or ""
        for module in modules()
        if module.count(".") == 1
    }


def test_every_room_has_its_place_and_says_what_it_is_for() -> None:
    assert rooms().keys() == ALLOWED.keys() | TOP
    assert [name for name, said in rooms().items() if not said] == []


def test_the_map_of_the_house_has_every_room() -> None:
    """As a stranger finds it, in CONTRIBUTING.md; each name once, with what it is."""
    house = (ROOT / "CONTRIBUTING.md").read_text().split("\n## The house\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `([\w.]+)` \| \S.* \|$", house, re.MULTILINE)
    assert sorted(listed) == sorted(rooms().keys() - {"__main__"} | {f"capture.{room}" for room in CAPTURE})


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module: str) -> None:
    part = part_of(module)
    if part not in ALLOWED:
        return
    # The package itself is imported for its version; the names that it hands out lazily are nobody's below.
    others = {part_of(name) for name in within(imports(module))} - {part, ""}
    assert others <= ALLOWED[part], f"{module} imports {sorted(others - ALLOWED[part])}"


def test_the_rooms_of_capture_stand_one_above_the_other() -> None:
    inside = {module: module.split(".")[2] for module in modules() if module.startswith("resmon.capture.")}
    assert set(inside.values()) == set(CAPTURE)
    for module, room in inside.items():
        others = {inside[name] for name in within(imports(module, types_too=False)) & inside.keys()}
        above = [other for other in others if CAPTURE.index(other) > CAPTURE.index(room)]
        assert not above, f"{module} imports {above}"


def test_no_import_cycle() -> None:
    """Also none that an import inside a function hides; only what is imported for types does not count."""
    edges = {module: within(imports(module, types_too=False)) & set(modules()) - {module, "resmon"} for module in modules()}
    # `from resmon.flight import layout` inside resmon/flight is no use of the package's own code.
    edges = {module: {o for o in others if not module.startswith(f"{o}.")} for module, others in edges.items()}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in finished:
            for other in sorted(edges[module]):
                visit(other, (*path, module))
            finished.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("module", modules())
def test_only_capture_and_integrations_import_torch(module: str) -> None:
    if part_of(module) in TORCH:
        return
    heavy = {name.split(".")[0] for name in imports(module, types_too=False)} & {"torch", "transformers", "lightning"}
    assert not heavy, f"{module} imports {heavy}"


@pytest.mark.parametrize("module", modules())
def test_pandas_is_imported_only_where_it_is_used(module: str) -> None:
    """At the top of no module: whoever imports a reader does not pay for frames, and a training process never does."""
    tree = ast.parse(file_of(module).read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.split(".")[0] for node in top for name in _imported(node, module, True)}
    assert not names & {"pandas", "scipy", "plotly", "jinja2", "httpx"}


def test_servers_are_asked_in_one_way() -> None:
    """With one care for credentials, certificates, time and repetition."""
    assert {module for module in modules() if "httpx" in imports(module)} == {"resmon.servers.connection"}


def python(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints; it finds resmon where this one does."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(cwd), "CI": "true"}
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_resmon_imports_no_heavy_package(tmp_path: Path) -> None:
    heavy = "{'torch', 'pandas', 'scipy', 'pyarrow', 'uvicorn', 'pydantic', 'httpx', 'yaml', 'opentelemetry', 'requests'}"
    code = f"import resmon, sys; print({heavy} & set(sys.modules))"
    assert python(code, tmp_path) == "set()\n"


def test_a_planned_window_imports_no_writer_of_rules(tmp_path: Path) -> None:
    """It is planned in the training process, which has no use for a parser of queries."""
    heavy = "{'torch', 'yaml', 'promql_parser', 'httpx'}"
    assert python(f"import resmon.servers.alertmanager.keeper, sys; print({heavy} & set(sys.modules))", tmp_path) == "set()\n"


def test_the_help_imports_neither_torch_nor_pandas(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['resmon', '--help']\nfrom resmon.cli import main\n"
        "try:\n  main()\nexcept SystemExit as end:\n  print('end', end.code, {'torch', 'pandas', 'pyarrow'} & set(sys.modules))"
    )
    assert python(code, tmp_path).endswith("end 0 set()\n")


TRAINING = """
import sys, torch, resmon
class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
    def forward(self, x):
        return x + torch.relu(self.linear(x))
model = torch.nn.Sequential(Block(), Block())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
bare = {"pandas", "scipy"} & set(sys.modules)
with resmon.watch(model, optimizer, run="tiny", agent="off") as monitor:
    for _ in range(3):
        loss = model(torch.randn(2, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.log(loss=loss)
    assert len(monitor.sites) == 2
print(bare, {"pandas", "scipy"} & set(sys.modules))
"""


def test_a_training_process_never_imports_pandas_or_scipy(tmp_path: Path) -> None:
    assert python(TRAINING, tmp_path) == "set() set()\n"


def test_nothing_happens_at_import(tmp_path: Path) -> None:
    """No module of resmon starts a thread or a child, opens a socket or writes a file when it is imported."""
    code = f"""
import importlib, os, threading
for module in {[m for m in modules() if not m.endswith("__main__")]}:
    importlib.import_module(module)
descriptors = [os.readlink(entry) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry)]
sockets = [descriptor for descriptor in descriptors if "socket:" in descriptor]
children = open(f"/proc/self/task/{{os.getpid()}}/children").read().split()
print([thread.name for thread in threading.enumerate()], sockets, children, os.listdir())
"""
    assert python(code, tmp_path) == "['MainThread'] [] [] []\n"


def test_every_metric_is_documented_and_no_other() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    for metric in CATALOGUE:
        assert f"| `{metric.name}` | {metric.kind} | {', '.join(metric.labels)} | {metric.help} |\n" in page
    documented = re.findall(r"`(resmon_\w+)[`{]", page + (ROOT / "README.md").read_text())
    assert set(documented) == {metric.name for metric in CATALOGUE}


def test_the_documents_that_code_names_are_there() -> None:
    """A page of ours by its whole name; what is named in the middle of a word, a path or an address is somebody else's."""
    there = {path.name for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks") for path in folder.glob("*.md")}
    files = [path for folder in ("resmon", "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    named = {(name, path.name) for path in files for name in re.findall(r"(?<![\w/.<-])[A-Z]{3,}\.md\b", path.read_text())}
    assert {name for name, _ in named} >= {"README.md", "CONTRIBUTING.md"}
    assert sorted(each for each in named if each[0] not in there) == []


def test_no_module_hides_what_the_package_gives() -> None:
    """Whoever imports a module of that name would find it in the place of the function."""
    assert not {path.stem for path in PACKAGE.iterdir()} & set(resmon.__all__)
