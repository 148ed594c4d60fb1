"""A user's program: delivers what its argument says with the published client, prints the result.

It runs in a process of its own, because the client leaves event loops and sockets open.
"""

import json
import sys
from typing import Any

from servicex import ServiceXSpec, dataset, deliver, query


def run_query(path: str) -> Any:
    """Return one column: the user's function of the tests, of which only this text is sent."""
    import uproot

    with uproot.open({path: "events"}) as tree:
        return tree.arrays(["E1"])


def jets() -> Any:
    """Return a func_adl query: events with three jets, and of their jets the energetic ones."""
    return (
        query.FuncADL_Uproot()
        .FromTree("events")
        .Where(lambda e: e.NJet > 2)
        .Select(lambda e: {"n": e.NJet, "px": e.Jet_Px.Where(lambda p: p > 20)})
    )


def main() -> None:
    """Deliver ``{"config", "general", "samples": {name: [files, subqueries]}}``.

    Instead of a list of files there may be a pattern of XRootD, or a name in Rucio; instead of
    subqueries the word
    ``python`` or ``func_adl`` stands for a query of this file.
    """
    order = json.loads(sys.argv[1])
    samples = []
    for name, (files, subqueries) in order["samples"].items():
        wanted: Any
        if subqueries == "python":
            wanted = query.PythonFunction().with_uproot_function(run_query)
        elif subqueries == "func_adl":
            wanted = jets()
        else:
            wanted = query.UprootRaw(subqueries)
        of: Any = dataset.FileList(files)
        if isinstance(files, str):
            of = dataset.XRootD(files) if "://" in files else dataset.Rucio(files)
        samples.append({"Name": name, "Dataset": of, "Query": wanted})
    spec = ServiceXSpec(General=order["general"], Sample=samples)
    found = deliver(spec, config_path=order["config"], progress_bar="none")
    answer: dict[str, Any] = {}
    for name, paths in found.items():
        try:
            answer[name] = list(paths)
        except Exception as error:  # noqa: BLE001  # the test looks at the text
            answer[name] = f"{error} {error.__cause__}"
    sys.stdout.write(f"\nDELIVERED {json.dumps(answer)}\n")


if __name__ == "__main__":
    main()
