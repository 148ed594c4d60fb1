"""func_adl queries, against func-adl-uproot, which runs them in ServiceX's own transformers."""

import math

from benchmarks.race import HEADINGS, race, skipped
from benchmarks.report import Section
from benchmarks.samples import coffea_sample, package_sample

HZZ, ZMUMU, NANO = (
    "uproot-HZZ.root",
    "uproot-Zmumu.root",
    "nano_dy.root",
)
_EVENTS = "(call EventDataset 'bench.root' 'events')"
_NANO = "(call EventDataset 'bench.root' 'Events')"


def _select(source: str, **columns: str) -> str:
    names = " ".join(f"'{name}'" for name in columns)
    values = " ".join(columns.values())
    return f"(call Select {source} (lambda (list e) (dict (list {names}) (list {values}))))"


def _where(source: str, condition: str) -> str:
    return f"(call Where {source} (lambda (list e) {condition}))"


def _branch(name: str) -> str:
    return f"(attr e '{name}')"


def _on(what: str, method: str, *arguments: str) -> str:
    return " ".join((f"(call (attr {what} '{method}')", *arguments)) + ")"


_JET_PX, _JET_E, _MUON_PX = _branch("Jet_Px"), _branch("Jet_E"), _branch("Muon_Px")
_MET = f"(+ (** {_branch('MET_px')} 2) (** {_branch('MET_py')} 2))"
_HARD = _on(_JET_PX, "Where", "(lambda (list p) (> (call abs p) 20))")
_COUNTED = f"(> {_on(_JET_PX, 'Count')} 0)"
_JETS = f"(dict (list 'px' 'py' 'E') (list {_JET_PX} {_branch('Jet_Py')} {_JET_E}))"
_ZIPPED = f"(call Select {_EVENTS} (lambda (list e) (call Zip {_JETS})))"


def _of_hard(field: str) -> str:
    hard = _on("js", "Where", "(lambda (list j) (> (attr j 'E') 50))")
    return _on(hard, "Select", f"(lambda (list j) (attr j '{field}'))")


_PROJECTED = (
    f"(call Select {_ZIPPED} (lambda (list js) "
    f"(dict (list 'px' 'py') (list {_of_hard('px')} {_of_hard('py')}))))"
)

QUERIES: dict[str, tuple[str, str]] = {
    "flat columns": (HZZ, _select(_EVENTS, x=_branch("MET_px"), y=_branch("MET_py"))),
    "jagged and flat": (HZZ, _select(_EVENTS, px=_JET_PX, e=_JET_E, n=_branch("NJet"))),
    "cut on events": (
        HZZ,
        _select(_where(_EVENTS, f"(> {_branch('NJet')} 1)"), px=_JET_PX, n=_branch("NJet")),
    ),
    "cut of and, or": (
        HZZ,
        _select(
            _where(
                _EVENTS,
                f"(or (and (> {_branch('NJet')} 1) (> {_branch('MET_px')} 0)) "
                f"(>= {_branch('NMuon')} 2))",
            ),
            n=_branch("NJet"),
            px=_MUON_PX,
        ),
    ),
    "objects counted in a cut": (
        HZZ,
        _select(_where(_EVENTS, f"(>= {_on(_HARD, 'Count')} 2)"), n=_branch("NJet")),
    ),
    "mask by another branch": (
        HZZ,
        _select(_EVENTS, px=f"(subscript {_JET_PX} (> {_JET_E} 50))", n=_branch("NJet")),
    ),
    "sum, maximum, minimum": (
        HZZ,
        _select(_EVENTS, s=_on(_JET_PX, "Sum"), top=_on(_JET_E, "Max"), low=_on(_JET_E, "Min")),
    ),
    "the first behind a guard": (
        HZZ,
        _select(_where(_EVENTS, _COUNTED), lead=_on(_JET_PX, "First"), energy=_on(_JET_E, "First")),
    ),
    "objects zipped and cut": (
        HZZ,
        _PROJECTED,
    ),
    "mathematics": (
        HZZ,
        _select(
            _EVENTS,
            met=f"(call (attr np 'sqrt') {_MET})",
            phi=f"(call (attr np 'arctan2') {_branch('MET_py')} {_branch('MET_px')})",
        ),
    ),
    "one of two values": (
        HZZ,
        _select(
            _EVENTS,
            x=f"(if (> {_branch('MET_px')} 0) {_branch('MET_px')} {_branch('MET_py')})",
            n=_branch("NJet"),
        ),
    ),
    "pairs of objects": (
        HZZ,
        _select(
            _EVENTS,
            pairs=_on(
                _MUON_PX,
                "SelectMany",
                f"(lambda (list p) {_on(_JET_PX, 'Select', '(lambda (list q) (* p q))')})",
            ),
            n=_branch("NJet"),
        ),
    ),
    "flat file, cut": (
        ZMUMU,
        _select(_where(_EVENTS, f"(> {_branch('pt1')} 30)"), m=_branch("M"), q=_branch("Q1")),
    ),
    "NanoAOD, columns": (
        NANO,
        _select(_NANO, pt=_branch("Jet_pt"), eta=_branch("Jet_eta"), n=_branch("nJet")),
    ),
    "NanoAOD, triggers": (
        NANO,
        _select(
            _where(_NANO, f"(or {_branch('HLT_IsoMu20')} {_branch('HLT_IsoMu27')})"),
            pt=_branch("Muon_pt"),
            met=_branch("MET_pt"),
        ),
    ),
}
"""By what it shows: the sample it is asked of, and the query in qastle."""


def func_adl(repeats: int) -> list[Section]:
    """Measure each query, and the geometric mean of all."""
    rows, ratios = [], []
    for what, (name, qastle) in QUERIES.items():
        tree = "Events" if name == NANO else "events"
        try:
            path = coffea_sample(name) if name == NANO else package_sample(name)
            run = race(
                "func_adl_uproot", {"path": str(path), "tree": tree, "qastle": qastle}, repeats
            )
        except LookupError as error:
            rows.append(skipped(what, "", error))
            continue
        ratios.append(run.ratio)
        rows.append(run.row(what, "", name))
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        how = f"geometric mean of {len(ratios)} of {len(QUERIES)} queries"
        rows.append(("all", "", "", f"{mean:.2f}", "5", "", "", how))
    note = (
        "The peer is func-adl-uproot 2.2.0, its function made before the time is taken, and "
        "`ak.to_parquet`; in an environment of its own, since it needs an older dask."
    )
    return [Section("func_adl queries", HEADINGS, tuple(rows), note)]
