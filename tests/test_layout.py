"""The layout of the repository, and what a checkout, a wheel and an editable install hold."""

import ast
import configparser
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pezoo
from pezoo import registry

ROOT = Path(__file__).parents[1]
MEMBERS = sorted(ROOT.glob("encodings/*/[!_]*.py"))
RECIPES = sorted(ROOT.glob("experiments/*.yaml"))


def read_setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def requirements(text: str) -> dict[str, Requirement]:
    """Requirements by normalised name, from lines that may hold comments."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    found = [Requirement(line) for line in lines if line]
    return {canonicalize_name(r.name): r for r in found}


@cache
def files() -> tuple[Path, ...]:
    """Files that git tracks, or would."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return tuple(path for name in names.split("\0") if name and (path := ROOT / name).is_file())


def execute(
    *arguments: object,
    python: Path | str = sys.executable,
    cwd: Path | None = None,
    path: str | None = None,
) -> str:
    """Run a program with `path` as PYTHONPATH, and return what it prints."""
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    variables |= {"PYTHONPATH": path} if path else {}
    command = [str(a) for a in (python, *arguments)]
    run = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


# The checkout


def test_encodings_has_no_init():
    assert not (ROOT / "encodings/__init__.py").exists()


def test_the_interpreter_starts_with_the_checkout_on_its_path():
    code = "import encodings; 'é'.encode('cp1252'); print(encodings.__file__)"
    found = Path(execute("-c", code, cwd=ROOT, path=".").strip())
    assert Path(sysconfig.get_path("stdlib")) in found.parents


@pytest.mark.parametrize("path", MEMBERS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_each_member_has_its_file_and_its_name(path):
    name = f"pezoo.encodings.{path.parent.name}.{path.stem}"
    found = registry.entry(path.stem)
    assert found.cls.__module__ == name
    assert found.family == path.parent.name
    assert Path(sys.modules[name].__file__).resolve() == path


def test_no_file_is_imported_twice():
    registry.entries()
    loaded = [m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
    assert len(MEMBERS) > 10
    for path in MEMBERS:
        assert loaded.count(str(path)) == 1, path


def test_no_file_names_a_machine():
    places = "|".join(("home", "root", "Users", "work"))
    pattern = re.compile(rf"(?<![\w.])/({places})/\w")
    for path in files():
        text = path.read_text(encoding="utf-8", errors="ignore")
        match = pattern.search(text)
        assert match is None, f"{path.relative_to(ROOT)}: {match}"


def test_documents_name_only_targets_that_the_makefile_has():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text()
        named = set(re.findall(r"(?:^\s*|`)make ([a-z-]+)", text, re.MULTILINE))
        assert named, document
        assert named <= targets, document


# setup.cfg and constraints.txt


def test_packages_are_the_tree():
    code = [*ROOT.glob("pezoo/**/*.py"), *ROOT.glob("encodings/**/*.py")]
    assert all(path.with_name("__init__.py").is_file() for path in code)
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in code}
    tree = {name if name.startswith("pezoo") else f"pezoo.{name}" for name in folders}
    tree.add("pezoo.experiments")
    assert sorted(tree) == read_setup()["options"]["packages"].split()


def test_dependencies_are_what_the_code_imports():
    needed = requirements(read_setup()["options"]["install_requires"])
    extras = read_setup()["options.extras_require"]
    extra = {
        "pytest",
        "x-transformers",
        *(name for key in ("hf", "lm_eval", "lora", "ray", "slurm") for name in requirements(extras[key])),
    }  # used there
    imported = set()
    for path in [*ROOT.glob("pezoo/**/*.py"), *MEMBERS]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
                if node.module == "torch.utils.tensorboard":
                    imported.add("tensorboard")
    providers = importlib.metadata.packages_distributions()
    outside = imported - sys.stdlib_module_names - {"pezoo"}
    names = {canonicalize_name(providers.get(module, [module])[0]) for module in outside}
    assert names <= needed.keys() | extra
    assert needed.keys() <= names | {"sympy"}  # which is read, not imported: the default corpus


def test_constraints_pin_everything_that_is_needed():
    pins = requirements((ROOT / "constraints.txt").read_text())
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins.values())
    setup = read_setup()
    asked = dict(requirements(setup["options"]["install_requires"]))
    for extra in setup["options.extras_require"].values():
        asked |= requirements(extra)
    pending, seen = list(asked.values()), set()
    while pending:
        need = pending.pop()
        name = canonicalize_name(need.name)
        assert name in pins, f"constraints.txt does not pin {name}"
        assert need.specifier.contains(str(pins[name].specifier)[2:]), f"{pins[name]} breaks {need}"
        if name in seen or importlib.util.find_spec("torch") is None:
            continue
        seen.add(name)
        try:
            lines = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:  # an extra that the tests do without
            continue
        if importlib.metadata.version(name).partition("+")[0] not in pins[name].specifier:
            continue  # another version than the pinned one, which may need something else
        for line in lines:
            inner = Requirement(line)
            # torch pins its own CUDA libraries, which a CPU machine has none of.
            cuda = name == "torch" and "platform_system" in line
            if not cuda and (inner.marker is None or inner.marker.evaluate({"extra": ""})):
                pending.append(inner)


# Wheel and editable install


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout without what git ignores, so that nothing built earlier gets in."""
    folder = tmp_path_factory.mktemp("source")
    for path in files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    """The wheel, built from the sdist, as a release would be."""
    folder = tmp_path_factory.mktemp("dist")
    execute("-m", "build", "--no-isolation", "--outdir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


def environment(folder: Path, *install: object) -> Path:
    """The bin of a virtual environment that borrows our dependencies and has its own pezoo."""
    execute("-m", "venv", "--without-pip", folder)
    (library,) = folder.glob("lib/python*/site-packages")
    (library / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = ("-m", "pip", "--python", folder / "bin" / "python")
    execute(*pip, "install", "--no-deps", "--no-build-isolation", *install)
    return folder / "bin"


def check_installed(bin: Path, place: Path, cwd: Path) -> None:
    """The package imported by `bin` lies under `place` and offers what the checkout offers."""
    code = (
        "import pezoo, pezoo.encodings.relative.rope as rope;"
        "print(pezoo.__file__, rope.__file__, *pezoo.list_encodings(), *pezoo.list_extensions(), end=' ');"
        "print(*pezoo.list_schedules())"
    )
    package, member, *names = execute("-c", code, python=bin / "python", cwd=cwd).split()
    assert place in Path(package).parents
    assert place in Path(member).parents
    assert names == [*registry.list_encodings(), *registry.list_extensions(), *registry.list_schedules()]
    listed = execute("list", "--json", python=bin / "pezoo", cwd=cwd)
    assert "rope" in listed
    execute("run", "quickstart", "--dry-run", python=bin / "pezoo", cwd=cwd)


def test_wheel_holds_every_member_and_recipe_and_no_results(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    inside = [*ROOT.glob("encodings/**/*.py"), *RECIPES]
    expected = {f"pezoo/{path.relative_to(ROOT)}" for path in inside}
    expected |= {str(path.relative_to(ROOT)) for end in ("py", "txt", "j2") for path in ROOT.glob(f"pezoo/**/*.{end}")}
    expected |= {"pezoo/py.typed"}
    assert names == expected
    assert RECIPES


def test_the_description_of_the_wheel_has_no_link_to_a_file_that_is_not_there(wheel):
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        told = files.read(name).decode()
    links = re.findall(r"\[[^\]]*\]\(([^)]*)\)", told)
    assert links
    assert all(link.startswith(("https://", "#")) for link in links)
    assert "\n# pezoo\n" in told
    assert "Description-Content-Type: text/markdown" in told


@pytest.mark.slow
@pytest.mark.ci
def test_wheel_works_from_anywhere(wheel, tmp_path):
    check_installed(environment(tmp_path / "venv", wheel), tmp_path / "venv", tmp_path)


@pytest.mark.slow
@pytest.mark.ci
def test_editable_install_works_from_anywhere(source, tmp_path):
    check_installed(environment(tmp_path / "venv", "--editable", source), source, tmp_path)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("how", ["import", pytest.param("module", marks=(pytest.mark.slow, pytest.mark.ci)), "script"])
def test_the_package_is_found_in_the_folder_that_holds_the_checkout(tmp_path, how):
    """There `pezoo/` is the checkout; what is imported must be the package in it, not the folder."""
    (tmp_path / "pezoo").symlink_to(ROOT)
    code = "import pezoo; from pezoo import run; print(pezoo.__file__, len(pezoo.list_encodings()) > 10)"
    if how == "module":
        shown = execute("-m", "pezoo", "run", "quickstart", "size=test", "--dry-run", cwd=tmp_path)
        assert "to train" in shown
        return
    (tmp_path / "mine.py").write_text(code)
    arguments = ("-c", code) if how == "import" else ("mine.py",)
    file, many = execute(*arguments, cwd=tmp_path).split()
    assert Path(file) == tmp_path / "pezoo" / "pezoo" / "__init__.py"
    assert many == "True"


def test_citation_and_changelog_name_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == pezoo.__version__
    newest = re.search(
        r"^## (\S+) \((unreleased|\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert newest[1] == pezoo.__version__


def test_source_distribution_holds_the_checkout(wheel):
    """Whoever packages pezoo can run its suite and build its documentation."""
    (source,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    ours = {str(path.relative_to(ROOT)) for path in files()}
    hidden = {name for name in ours if name.startswith(".")}
    assert ours - hidden <= inside
