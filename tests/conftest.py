"""What all tests share: one thread, no network, a cache of their own."""

import gc
import os
import sys
import zlib
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; subprocesses inherit it
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch

from pezoo import registry

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory):
    """One cache for all tests and their subprocesses, so that a corpus is tokenised once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEZOO_CACHE", str(folder))
        yield folder


@pytest.hookimpl(tryfirst=True)  # before pytest chooses by marks
def pytest_collection_modifyitems(items):
    """CI runs one in so many of a slow test's cases, as `ci(one_in=...)` says; files that take longest come first."""
    for item in items:
        mark = item.get_closest_marker("ci")
        if mark is not None and zlib.crc32(item.name.encode()) % mark.kwargs.get("one_in", 1):
            item.own_markers = [each for each in item.own_markers if each.name != "ci"]
    files = ("test_conformance", "test_transformer", "test_study", "test_testing", "test_recipes")
    items.sort(key=lambda item: files.index(item.path.stem) if item.path.stem in files else len(files))


def pytest_collection_finish():
    """Thousands of collected tests stay to the end: the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real text that may stand beside a checkout; never part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data, real text beside the checkout")
    return folder


@pytest.fixture
def small_files():
    """What a disk does that is full: no file can become larger than 4 kB."""
    resource = pytest.importorskip("resource", reason="needs a limit of the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module", autouse=True)
def same_zoo():
    """What a file's tests register, or load as a plug-in, is gone after them."""
    entries, modules = dict(registry.entries()), set(sys.modules)
    yield
    registry._entries.clear()
    registry._entries.update(entries)
    for name in set(sys.modules) - modules:
        if name.startswith("pezoo_plugin_"):
            del sys.modules[name]
