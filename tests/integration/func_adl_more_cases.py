"""func_adl queries of other files than HZZ: by their shapes, of experiments, and benchmarks."""

SHAPES = {
    ("uproot-stl_containers.root", "tree"): """
        e.vector_int32.Where(lambda i: i > 1)
        e.vector_string
        e.vector_string.Count()
        e.vector_string.First()
        e.vector_string.Concat(e.vector_tstring)
        e.vector_string.Choose(2)
        e.vector_string.Select(lambda s: (s, 1))
        (e.string, e.vector_string)
        SelectMany(lambda e: e.vector_string)
        e.vector_vector_int32.Count()
        e.vector_vector_int32.Select(lambda v: v.Count())
        e.vector_vector_int32.Select(lambda v: v.Sum())
        e.vector_vector_int32.Select(lambda v: v.Max())
        e.vector_vector_int32.SelectMany(lambda v: v)
        e.vector_vector_int32.SelectMany(lambda v: v).Sum()
        e.vector_vector_int32.Where(lambda v: v.Count() > 1)
        e.vector_vector_int32.Select(lambda v: v.Where(lambda i: i > 1))
        e.vector_vector_int32.Select(lambda v: v.Select(lambda i: i * 2))
        e.vector_vector_int32 * 2
        e.vector_vector_int32.First()
        e.vector_vector_int32.Concat(e.vector_vector_int32)
        e.vector_vector_string.SelectMany(lambda v: v)
        e.vector_vector_string.Select(lambda v: v.Count())
        e.set_int32.Max()
        e.set_int32.Where(lambda i: i > 1)
        e.map_int32_int16.Select(lambda m: m[0] + m[1])
        e.map_int32_vector_int16.Select(lambda m: m[1].Sum())
        e.vector_set_int32.Select(lambda s: s.Count())
    """,
    ("uproot-vectorVectorDouble.root", "t"): """
        e.x.Select(lambda v: v.Sum())
        e.x.Where(lambda v: v.Count() > 1)
        e.x.SelectMany(lambda v: v)
        e.x.SelectMany(lambda v: v.Where(lambda d: d > 1)).Count()
        e.x.OrderBy(lambda v: v.Count())
        np.sqrt(e.x)
        SelectMany(lambda e: e.x)
        SelectMany(lambda e: e.x).SelectMany(lambda v: v)
    """,
    ("uproot-Zmumu.root", "events"): """
        Where(lambda e: e.pt1 > 30).Select(lambda e: {'M': e['M'], 'Q': e.Q1, 't': e.Type})
        (e.E1 + e.E2) ** 2 - (e.px1 + e.px2) ** 2
    """,
    ("uproot-sample-6.20.04-zlib.root", "sample"): """
        e.ai4
        e.af8.Sum()
        e.ai4.First()
        e.Ai4.Max()
        e.Ai4.Select(lambda i: i + e.i8)
        e.ab.Any(lambda b: b)
        e.ab.Sum()
        {'str': e.str, 'i1': e.i1 + 1, 'u8': e.u8 + 1}
    """,
}
"""Of other files: texts, vectors of vectors, sets, maps and arrays of fixed length."""

SHAPES_ONLY_HERE = {
    ("uproot-stl_containers.root", "tree"): """
        e.vector_string.Where(lambda s: s == 'one')
        e.vector_string.Select(lambda s: s != 'two')
        e.vector_string.Contains('two')
        e.vector_string.OrderBy(lambda s: 1)
        e.string if e.vector_int32.Count() > 2 else 'few'
        Where(lambda e: e.string == 'one').Select(lambda e: e.vector_int32)
        Where(lambda e: e.vector_string.Contains('two')).Select(lambda e: {'s': e.string})
        SelectMany(lambda e: {'s': e.vector_string, 'n': e.vector_int32.Count()})
    """,
    ("uproot-vectorVectorDouble.root", "t"): """
        e.x.First()
        e.x[0][0]
        e.x.Select(lambda v: v.First())
    """,
    ("uproot-Zmumu.root", "events"): """
        Where(lambda e: e.Type == 'GT').Select(lambda e: {'t': e.Type, 'm': e.M})
        {'is': e.Type != 'GT', 'q': e.Q1 * e.Q2}
        e.Type if e.M > 80 else 'other'
        ['GT', 'TT'].Contains(e.Type)
    """,
    ("uproot-sample-6.20.04-zlib.root", "sample"): """
        e.ai4.Where(lambda i: i > 0)
        e.ai4[0]
        e.ai4 * e.n
        e.ai4.Select(lambda i: i * e.n)
    """,
}
"""Of other files, what func-adl-uproot refuses."""

NANO = """
{'pt': e.Jet_pt, 'eta': e.Jet_eta, 'n': e.nJet}
{'pt': e.Jet_pt[e.Jet_pt > 30], 'run': e.run, 'met': e.MET_pt}
Where(lambda e: e.nJet >= 2).Select(lambda e: {'pt': e.Jet_pt[e.Jet_pt > 30], 'met': e.MET_pt})
Where(lambda e: e.HLT_IsoMu20 or e.HLT_IsoMu27).Select(lambda e: {'pt': e.Muon_pt})
Where(lambda e: e.nMuon > 0).Select(lambda e: e.Muon_pt.OrderByDescending(lambda p: p).First())
{'e': e.event, 'l': e.luminosityBlock, 't': e.event % 10}
e.Muon_pt.Concat(e.Electron_pt).OrderByDescending(lambda p: p)
e.Muon_pt * e.Muon_charge
e.Muon_charge.Sum()
e.Muon_pt[e.Muon_tightId]
e.GenPart_pdgId.Where(lambda p: abs(p) == 13).Count()
e.Jet_jetId & 2
Zip({'pt': e.Muon_pt, 'eta': e.Muon_eta, 'phi': e.Muon_phi, 'mass': e.Muon_mass}).ToFourMomenta().pz
"""
"""Of ``Events`` in ``nano_dy.root``, which is there as an RNTuple, too."""


def _momenta(objects: str) -> str:
    names = ", ".join(f"'{name}': e.{objects}_{name}" for name in ("pt", "eta", "phi", "mass"))
    return f"Zip({{{names}}}).ToFourMomenta()"


def _leptons(objects: str) -> str:
    return f"Zip({{'p4': {_momenta(objects)}, 'charge': e.{objects}_charge}})"


OPPOSITE = "lambda c: c.ElementAt(0).charge * c.ElementAt(1).charge < 0"

WHOLE_EVENTS = {
    "uproot-Zmumu.root": "events",
    "uproot-foriter2.root": "foriter2",
    "uproot-stl_containers.root": "tree",
    "uproot-vectorVectorDouble.root": "t",
    "uproot-small-flat-tree.root": "tree",
    "uproot-small-evnt-tree-fullsplit.root": "tree",
    "uproot-sample-6.20.04-zlib.root": "sample",
    "uproot-HZZ-objects.root": "events",
    "uproot-nesteddirs.root": "one/two/tree",
    "uproot-issue431.root": "KM3NET_TIMESLICE_L1",
    "scouting_nano.root": "Events",
    "treemaker.root": "PreSelection",
    "edm4hep.root": "events",
}
"""Files of published packages and a tree of each: flat branches, texts, arrays of fixed length,
vectors, vectors of vectors, sets and maps, split objects, and branches that cannot be read."""

PHYSLITE = """
{
    'pt': e['AnalysisElectronsAuxDyn.pt'] / 1000,
    'eta': e['AnalysisJetsAuxDyn.eta'],
    'n': e['AnalysisJetsAuxDyn.pt'].Where(lambda p: p > 30000).Count(),
    'q': e['AnalysisElectronsAuxDyn.charge'].Sum(),
}
"""
"""Of ``CollectionTree`` in ``PHYSLITE_example.root``: names with dots."""

BENCHMARKS = {
    "1: a column": "e.MET_pt",
    "2: a column of objects": "SelectMany(lambda e: e.Jet_pt)",
    "3: a cut on objects": """
        SelectMany(
            lambda e: Zip({'pt': e.Jet_pt, 'eta': e.Jet_eta})
            .Where(lambda j: abs(j.eta) < 1).Select(lambda j: j.pt)
        )""",
    "4: a cut on their number": """
        Where(
            lambda e: Zip({'pt': e.Jet_pt, 'eta': e.Jet_eta})
            .Where(lambda j: j.pt > 40 and abs(j.eta) < 2.4).Count() >= 2
        ).Select(lambda e: e.MET_pt)""",
    "5: pairs near the Z": f"""
        Where(
            lambda e: {_leptons("Muon")}.Choose(2).Where({OPPOSITE})
            .Where(lambda c: 60 < (c.ElementAt(0).p4 + c.ElementAt(1).p4).mass < 120).Count() > 0
        ).Select(lambda e: e.MET_pt)""",
    "6: the best of three jets": f"""
        Where(lambda e: e.Jet_pt.Count() >= 3).Select(
            lambda e: Zip({{'p4': {_momenta("Jet")}, 'btag': e.Jet_btagDeepFlavB}})
            .Choose(3)
            .Select(lambda t: {{
                'p4': t.ElementAt(0).p4 + t.ElementAt(1).p4 + t.ElementAt(2).p4,
                'btags': t.Select(lambda j: j.btag),
            }})
            .OrderBy(lambda t: abs(t.p4.m - 172.5))
            .First()
        ).Select(lambda best: {{'pt': best.p4.pt, 'btag': best.btags.Max()}})""",
    "7: jets that are no leptons": f"""
        Select(lambda e: {{
            'jets': {_momenta("Jet")},
            'leptons': {_momenta("Electron")}.Concat({_momenta("Muon")}),
        }})
        .Select(lambda e: {{
            'jets': e.jets.Where(lambda j: j.pt > 30),
            'leptons': e.leptons.Where(lambda l: l.pt > 10),
        }})
        .Select(
            lambda e: e.jets.Where(lambda j: not e.leptons.Any(lambda l: j.deltaR(l) < 0.4))
            .Select(lambda j: j.pt).Sum()
        )""",
    "8: the lepton beside the Z": f"""
        Select(lambda e: {{
            'electrons': {_leptons("Electron")},
            'muons': {_leptons("Muon")},
            'met': {{'pt': e.MET_pt, 'phi': e.MET_phi, 'eta': e.MET_phi, 'mass': e.MET_pt}}
            .ToFourMomentum(),
        }})
        .Select(lambda e: {{
            'leptons': e.electrons.Concat(e.muons),
            'pairs': e.electrons.Choose(2).Where({OPPOSITE})
            .Concat(e.muons.Choose(2).Where({OPPOSITE})),
            'met': e.met,
        }})
        .Where(lambda e: e.leptons.Count() >= 3 and e.pairs.Count() > 0)
        .Select(lambda e: {{
            'leptons': e.leptons,
            'best': e.pairs
            .OrderBy(lambda c: abs((c.ElementAt(0).p4 + c.ElementAt(1).p4).mass - 91.2)).First(),
            'met': e.met,
        }})
        .Select(lambda e: {{
            'other': e.leptons.Where(
                lambda l: l.p4.pt != e.best.ElementAt(0).p4.pt
                and l.p4.pt != e.best.ElementAt(1).p4.pt
            ).OrderBy(lambda l: l.p4.pt).Last().p4,
            'met': e.met,
        }})
        .Select(
            lambda e: (2 * e.other.pt * e.met.pt * (1 - np.cos(e.other.deltaphi(e.met)))) ** 0.5
        )""",
}
"""The benchmarks of analysis description languages, of ``Events`` in ``nano_tt_v12.root``."""
