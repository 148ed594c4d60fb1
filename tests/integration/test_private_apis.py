"""A canary for every private or undocumented name of a dependency that the project relies on.

Each row says which file breaks if a release of the dependency changes the name. A private name in
the source without a row fails too, so that the table is complete.
"""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "servicex_server"


@dataclass(frozen=True)
class Name:
    """A name that a file relies on.

    Parameters
    ----------
    file
        The file that breaks, below the source folder.
    place
        A module, a colon, and the object in it.
    attributes
        Names that the source of the object has, such as those of instances.
    parameters
        The first parameters of the object, which is called by position.
    """

    file: str
    place: str
    attributes: str = ""
    parameters: str = ""

    def object(self) -> Any:
        """Return what the name stands for."""
        module, _, path = self.place.partition(":")
        found: Any = import_module(module)
        for part in filter(None, path.split(".")):
            found = inspect.getattr_static(found, part)
        return found.fget if isinstance(found, property) else found


LAZY = "columnar/reading/lazy_branches.py"
NTUPLE = "columnar/reading/rntuple_pages.py"
SOURCES = "columnar/reading/sources.py"
BASKETS = "columnar/reading/basket_decoding.py"

NAMES = (
    # uproot: branches that are parsed late
    Name(
        LAZY,
        "uproot.models.TObjArray:Model_TObjArray.read_members",
        "_bases _members _data",
        parameters="self chunk cursor context file",
    ),
    Name(LAZY, "uproot.model:Model.read", "_file _parent"),
    Name(LAZY, "uproot.source.cursor:Cursor", "_refs refs origin index"),
    Name(LAZY, "uproot.behaviors.TBranch:HasBranches", "_lookup"),
    Name(LAZY, "uproot.behaviors.TBranch:TBranch", "_cache_key"),
    # uproot: pages of RNTuples
    Name(
        NTUPLE,
        "uproot.models.RNTuple:Model_ROOT_3a3a_RNTuple",
        "page_link_list column_records field_records get_field_metadata cluster_summaries",
    ),
    Name(
        NTUPLE,
        "uproot.models.RNTuple:Model_ROOT_3a3a_RNTuple.read_cluster_range",
        parameters="self col_idx cluster_start cluster_stop",
    ),
    Name(
        NTUPLE,
        "uproot.models.RNTuple:Model_ROOT_3a3a_RNTuple.read_cluster_pages",
        parameters="self cluster_idx col_idx field_metadata destination array_cache",
    ),
    Name(NTUPLE, "uproot.const:RNTupleFieldRole"),
    Name(NTUPLE, "uproot.const:rntuple_index_types"),
    # the sources of uproot
    Name(SOURCES, "uproot.reading:ReadOnlyFile", "_source streamers"),
    Name(SOURCES, "uproot.source.file:FileResource", "_file_path _file"),
    Name(SOURCES, "uproot.source.file:MultithreadedFileSource", "_executor _num_bytes _open"),
    Name(SOURCES, "uproot.source.futures:ResourceThreadPoolExecutor"),
    Name(SOURCES, "uproot.source.futures:TrivialFuture"),
    Name(SOURCES, "uproot.source.xrootd:trivial_resource"),
    Name(SOURCES, "uproot.source.xrootd:XRootDResource", "_open _file_path _file _xrd_error"),
    Name(
        SOURCES,
        "uproot.source.xrootd:XRootDSource",
        "_open _resource _executor _timeout _max_num_elements _max_element_size",
    ),
    Name(
        SOURCES,
        "uproot.source.chunk:Source",
        "_file_path _num_requests _num_requested_chunks _num_requested_bytes",
    ),
    Name(
        SOURCES,
        "uproot.source.coalesce:coalesce_requests",
        parameters="ranges submit_fn source notifications config",
    ),
    Name(SOURCES, "uproot.source.coalesce:CoalesceConfig", "max_request_ranges"),
    # uproot: baskets that only uproot understands
    Name(
        BASKETS,
        "uproot.interpretation.objects:AsObjects.basket_array",
        parameters="self data byte_offsets basket branch context cursor_offset library options",
    ),
    Name(
        BASKETS,
        "uproot.interpretation.objects:AsObjects.final_array",
        parameters="self basket_arrays entry_start entry_stop entry_offsets library branch options",
    ),
    Name(BASKETS, "uproot.source.chunk:Chunk.wrap", parameters="source data"),
    Name(BASKETS, "uproot.models.TBasket:Model_TBasket.read"),
    Name("columnar/reading/trees.py", "uproot.interpretation.identify:UnknownInterpretation"),
    Name("columnar/reading/trees.py", "uproot.interpretation.objects:CannotBeAwkward"),
    Name("columnar/reading/ttree_baskets.py", "uproot.interpretation.grouped:AsGrouped"),
    Name("columnar/writing/root_writer.py", "uproot.writing.identify"),
    # distributed
    Name("engine/worker_main.py", "distributed.worker:Worker", "_ongoing_background_tasks"),
    Name("engine/dask_plugins.py", "distributed.nanny:Nanny", "_on_worker_exit"),
    Name(
        "engine/dask_plugins.py",
        "distributed.worker_memory:NannyMemoryManager",
        "_last_terminated_pid",
    ),
    Name("engine/dask_engine.py", "distributed.client:Future", "_state"),
    Name("clusters/wire.py", "distributed.client:Client", "_default_event_handlers"),
    # of other packages
    Name("clusters/jobqueue.py", "dask_jobqueue.core:Job", "_job_id_from_submit_output"),
    Name("clusters/kubernetes.py", "kr8s._api:Api", "_session"),
    Name("columnar/reading/http_transport.py", "httpx:HTTPTransport.__init__", "_pool"),
    Name("finders/rucio_client.py", "rucio.client.baseclient:BaseClient", "_send_request"),
    Name("web/s3/signatures.py", "botocore.auth:HmacV1QueryAuth", "_get_date get_signature"),
    Name(
        "web/s3/signatures.py",
        "botocore.auth:S3SigV4Auth.canonical_request",
        parameters="self request",
    ),
)

PUBLIC = frozenset(("_mapping", "_replace", "_asdict", "_exit"))
"""Names that their packages document, although they begin with an underscore."""

OURS = frozenset(("_starts", "_parent"))
"""Private names of classes of the same file."""


@pytest.mark.parametrize("one", NAMES, ids=lambda one: one.place)
def test_private_name_exists(one: Name) -> None:
    """It has the attributes and parameters that the file relies on."""
    assert (SOURCE / one.file).is_file()
    found = one.object()
    found = getattr(found, "__func__", found)
    if one.attributes:
        text = "\n".join(_sources(found))
        missing = [name for name in one.attributes.split() if name not in text]
        assert not missing, f"{one.file} breaks: {one.place} has no {', '.join(missing)}"
    if one.parameters:
        wanted = one.parameters.split()
        given = [name for name in inspect.signature(found).parameters if name != "cls"]
        given = given[: len(wanted)]
        assert given == wanted, f"{one.file} breaks: {one.place} takes {given}"


def _sources(found: Any) -> Iterator[str]:
    """Yield the text of an object, and of the classes it comes from."""
    if not inspect.isclass(found):
        yield inspect.getsource(found)
        return
    for kind in found.__mro__[:-1]:
        try:
            yield inspect.getsource(kind)
        except (OSError, TypeError):
            continue


def test_every_private_name_has_a_row() -> None:
    """A new name needs a row with the file that breaks."""
    known = {
        (one.file, name)
        for one in NAMES
        for name in [*one.attributes.split(), one.place.rpartition(".")[2]]
    }
    unknown = [
        f"{path}: {name}"
        for path, name in _private()
        if name not in PUBLIC | OURS and (path, name) not in known
    ]
    assert not unknown, "\n".join(unknown)


def _private() -> Iterator[tuple[str, str]]:
    """Yield private names that are asked of something else than the class they stand in."""
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        set_here = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
                continue
            if not node.attr.startswith("_") or node.attr in set_here:
                continue
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                continue
            yield str(path.relative_to(SOURCE)), node.attr
