"""The sources of members: the files beside a plug-in that it may import, and the hash that names its cells.

The hash of a member covers the file that defines it and all that this imports, directly or not, from

- the zoo (`pezoo.encodings` and `pezoo.data.tasks`),
- for a plug-in that is a file: its folder, what is below that, and the package that the folder is in, if any,
- for a plug-in that is installed: its own package.

It reads import statements, wherever in a file they stand. The rest of pezoo is named by `pezoo.study.plan.VERSIONS`;
Python's own library, other packages, data files and imports by `importlib` name nothing.

What cannot move a number is left out of the hash: comments, layout, docstrings, the facts under `@register`, the help
of a `setting`, and annotations that nothing reads, with the imports that serve them alone. So what is hashed is the
syntax tree, written out here and not by `ast.dump` or `ast.unparse`: they
change between versions of Python, by fields that are new and empty, or in how they quote.
"""

import ast
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeGuard

PLUGIN = "pezoo_plugin_"
"""Begins the names of modules that are plug-ins, or lie beside one."""
ZOO = ("pezoo.encodings", "pezoo.data.tasks")
IDLE_FIELDS = {"ctx", "kind", "type_comment"}
"""Fields of a syntax tree that say nothing of their own."""
BLIND = {"classmethod", "property", "staticmethod"}
"""Decorators that read no annotations."""


# ---- what lies beside a plug-in -----------------------------------------------------------------


def plugin_module(path: Path) -> ModuleType:
    """The module of a plug-in's file, not yet run unless a neighbour has imported it.

    The file's folder is a package, private to it: `from .helper import X` and `from helper import X` both find
    `helper.py` there, no other module sees it, and two plug-ins may each have their own `helper.py`. Python's own
    library goes before a neighbour, and a neighbour before an installed package.

    Args:
        path: absolute, of a Python file.
    """
    package = PLUGIN + hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:12]
    if package not in sys.modules:
        spec = ModuleSpec(package, None, is_package=True)
        spec.submodule_search_locations = [str(path.parent)]
        sys.modules[package] = importlib.util.module_from_spec(spec)
    name = f"{package}.{path.stem.replace('.', '_')}"
    if name not in sys.modules:
        importlib.invalidate_caches()  # files may be a moment old
        spec = ModuleSpec(name, _Loader(name, str(path)), origin=str(path), loader_state=[])
        spec.has_location = True
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return sys.modules[name]


def plugins_loaded() -> list[str]:
    """Files of the plug-ins that this process has loaded, for another one to load."""
    specs = [module.__spec__ for name, module in list(sys.modules.items()) if name.startswith(PLUGIN)]
    return [str(spec.origin) for spec in specs if spec is not None and spec.loader_state]


def _is_near(top: str, folder: str) -> bool:
    """Whether `import top` in a plug-in means what is in its folder, and not what everybody else gets by that name."""
    near = PathFinder.find_spec(top, [folder]) if _may_be_near(top) else None
    if near is None:
        return False
    try:
        usual = importlib.util.find_spec(top)
    except ValueError:  # a module without a spec
        usual = None
    if usual is None or near.origin is None:  # a folder without __init__.py comes after all others
        return usual is None
    return not (usual.origin and os.path.realpath(usual.origin) == os.path.realpath(near.origin))


def _may_be_near(top: str) -> bool:
    return top != "pezoo" and top not in sys.stdlib_module_names


class _Loader(SourceFileLoader):
    """Runs a file of a plug-in, whose imports find what lies beside it."""

    def get_code(self, fullname: str) -> CodeType:
        """The code, with the private names of neighbours; never from `__pycache__`, where others would find it."""
        data, package = self.get_data(self.path), fullname.partition(".")[0]
        [folder] = sys.modules[package].__path__
        tree, changed = ast.parse(data, self.path), False
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                if _is_near(node.module.partition(".")[0], folder):
                    node.module, changed = f"{package}.{node.module}", True
            elif isinstance(node, ast.Import):
                found = [(alias, _is_near(alias.name.partition(".")[0], folder)) for alias in node.names]
                node.names = [a for alias, near in found for a in (_private(alias, package) if near else [alias])]
                changed |= any(near for _, near in found)
        return self.source_to_code(tree if changed else data, self.path)


def _private(alias: ast.alias, package: str) -> Iterator[ast.alias]:
    """The same import under private names: `import a.b` imports both, and binds `a`."""
    top, dot, _ = alias.name.partition(".")
    if alias.asname or dot:
        yield ast.copy_location(ast.alias(f"{package}.{alias.name}", alias.asname), alias)
    if not alias.asname:
        yield ast.copy_location(ast.alias(f"{package}.{top}", top), alias)


class _Finder:
    """Finds what lies beside plug-ins, by its private name."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Where a module is, and what runs it."""
        spec = PathFinder.find_spec(name, path, target) if name.startswith(PLUGIN) else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder)


# ---- what a hash covers -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tree:
    """A folder of sources that belong together."""

    name: str
    """How absolute imports call the folder; empty for that of a plug-in's file."""
    folder: Path

    def parts(self, module: str) -> tuple[str, ...] | None:
        """Where in the folder a module is, if it is in it at all."""
        if not self.name:
            return tuple(module.split(".")) if _may_be_near(module.partition(".")[0]) else None
        if module != self.name and not module.startswith(f"{self.name}."):
            return None
        return tuple(module[len(self.name) + 1 :].split(".")) if module != self.name else ()


@dataclass(frozen=True)
class _Source:
    """A source file and its place."""

    tree: _Tree
    parts: tuple[str, ...]
    file: Path = field(compare=False)

    def imported(self, level: int, module: str, names: tuple[str, ...]) -> Iterator["_Source"]:
        """The sources that one import names; `names` may be modules or what is in one."""
        if level:
            package = self.parts if self.file.name == "__init__.py" else self.parts[:-1]
            if level - 1 > len(package):
                return
            above = package[: len(package) - level + 1]
            places = [(self.tree, above + tuple(module.split(".") if module else ()))]
        else:
            trees = dict.fromkeys((self.tree, *_package(self.tree), *_zoo()))
            places = [(tree, parts) for tree in trees if (parts := tree.parts(module)) is not None]
        for tree, parts in places:
            for more in ((), *((name,) for name in names)):
                if (file := _file(tree, parts + more)) is not None:
                    yield _Source(tree, parts + more, file)


def _file(tree: _Tree, parts: tuple[str, ...]) -> Path | None:
    """The file of a module, if there is one."""
    if not (tree.name or parts):
        return None  # the folder of a plug-in's file, whose __init__.py is not run
    place = tree.folder.joinpath(*parts)
    files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((file for file in files if file.is_file()), None)


def _zoo() -> list[_Tree]:
    return [_Tree(name, Path(sys.modules[name].__path__[0])) for name in ZOO if name in sys.modules]


def _package(tree: _Tree) -> list[_Tree]:
    """The package that a plug-in's file is in, if any; its modules may be imported by their full names."""
    top = tree.folder
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    return [_Tree(top.name, top)] if not tree.name and (tree.folder / "__init__.py").is_file() else []


def _source(module: str) -> _Source:
    """The place of a module that is loaded."""
    file = Path(inspect.getfile(sys.modules[module])).resolve()
    for tree in _zoo():
        if (parts := tree.parts(module)) is not None:
            return _Source(tree, parts, file)
    for package in [name for name in sys.modules if name.startswith(PLUGIN) and "." not in name]:
        tree, own = _Tree("", Path(sys.modules[package].__path__[0])), module.removeprefix(f"{package}.")
        parts = tuple(own.split(".")) if own != "__init__" else ()
        private = own != module or _file(tree, parts) == file  # else a neighbour that is imported in the usual way
        if private and not any(tree.folder.glob("*.dist-info")):  # among installed packages, neighbours are strangers
            return _Source(tree, parts, file)
    top, *rest = module.split(".")
    above = [file.with_suffix(""), *file.parents]
    return _Source(_Tree(top, above[len(rest) + (file.name == "__init__.py")]), tuple(rest), file)


def source_hash(module: str) -> str:
    """SHA-256 of what the members of a loaded module depend on, 64 hexadecimal digits.

    Sources count in the order in which they are imported, so that their own names do not matter.
    """
    waiting, found = [_source(module)], dict[_Source, str]()
    while waiting:
        source = waiting.pop(0)
        if source not in found:
            found[source], imports = _read(source.file.read_bytes())
            waiting.extend(named for one in imports for named in source.imported(*one))
    return hashlib.sha256(" ".join(found.values()).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _read(source: bytes) -> tuple[str, tuple[tuple[int, str, tuple[str, ...]], ...]]:
    """The hash of one file's tree; its imports as (level, module, names)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd strings, say; they were shown when the file was run
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a neighbour that is not imported after all, or it would have failed
        return hashlib.sha256(source).hexdigest(), ()
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names):
                imports += [(0, name[:end], ()) for end in range(len(name), 0, -1) if name[end : end + 1] in ("", ".")]
    return hashlib.sha256(_canonical(tree).encode()).hexdigest(), tuple(imports)


def _annotations(tree: ast.AST) -> list[ast.expr]:
    """The annotations that nothing reads: all but those of a class's fields, and of functions under a decorator."""
    found, waiting = list[ast.expr](), list[tuple[ast.AST, bool]]([(tree, False)])
    while waiting:
        node, in_class = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            in_class = False
            if all(isinstance(d, ast.Name) and d.id in BLIND for d in node.decorator_list):
                every = [node.returns, *(arg.annotation for arg in ast.walk(node.args) if isinstance(arg, ast.arg))]
                found += [annotation for annotation in every if annotation is not None]
        elif isinstance(node, ast.AnnAssign) and not in_class:
            found.append(node.annotation)
        in_class |= isinstance(node, ast.ClassDef)
        waiting += [(child, in_class) for child in ast.iter_child_nodes(node)]
    return found


def _canonical(tree: ast.AST) -> str:
    """A syntax tree as text, without what cannot move a number."""
    inside = {node for annotation in _annotations(tree) for node in ast.walk(annotation)}
    texts = [getattr(node, "id", getattr(node, "value", None)) for node in inside]
    noted = {name for text in texts if isinstance(text, str) for name in re.findall(r"\w+", text)}
    noted -= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in inside}
    ours = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "pezoo"
        for alias in node.names
    }

    def calls(node: object, name: str) -> TypeGuard[ast.Call]:
        """Whether it calls a function of pezoo's, by its name or as pezoo.name."""
        if not isinstance(node, ast.Call):
            return False
        match node.func:
            case ast.Attribute(value=ast.Name(id="pezoo"), attr=called):
                return called == name
            case ast.Name(id=called):
                return ours.get(called) == name
        return False

    def idle(node: object) -> bool:
        """Whether it does nothing: a docstring, `...`, `pass`, the facts of a member, what serves annotations."""
        match node:
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                return True
            case ast.AnnAssign(value=None, annotation=annotation):
                return annotation in inside
            case ast.alias(name=name, asname=asname):
                return (asname or name.partition(".")[0]) in noted
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                return all(map(idle, names))
        return calls(node, "register")

    said, waiting = list[str](), list[object]([tree])
    while waiting:  # no recursion: a sum of a thousand terms is a tree as deep
        item = waiting.pop()
        if isinstance(item, list):
            said.append(str(len(item)))
            waiting += reversed(item)
        elif isinstance(item, ast.AST):
            if isinstance(item, ast.AnnAssign) and item.annotation in inside and item.value:
                item = ast.Assign([item.target], item.value)
            fields = {name: value for name, value in ast.iter_fields(item) if name not in IDLE_FIELDS}
            fields = {k: v for k, v in fields.items() if isinstance(v, list) or v not in inside}
            if isinstance(item, ast.JoinedStr):  # Python 3.12 has empty texts in some
                fields["values"] = [x for x in item.values if getattr(x, "value", None) != ""]
            if calls(item, "setting"):
                fields |= {"args": item.args[:1], "keywords": [k for k in item.keywords if k.arg != "help"]}
            fields = {k: [x for x in v if not idle(x)] if isinstance(v, list) else v for k, v in fields.items()}
            kept = sorted(k for k, v in fields.items() if v is not None and v != [])
            said.append(f"{type(item).__name__} {len(kept)}")
            for name in reversed(kept):
                waiting += [fields[name], name]
        else:
            said.append(ascii(item))
    return "\n".join(said)
