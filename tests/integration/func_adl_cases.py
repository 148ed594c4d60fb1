"""func_adl queries as users write them, in Python, by what func-adl-uproot makes of them.

A query begins with the events. What does not begin with an operator on them is an expression that
is computed for each event, called ``e``. All are of ``events`` in ``uproot-HZZ.root``.
"""

import ast

import qastle

MUONS = "Zip({'px': e.Muon_Px, 'py': e.Muon_Py, 'pz': e.Muon_Pz, 'E': e.Muon_E})"
MOMENTA = f"{MUONS}.ToFourMomenta()"
JETS = "Zip({'x': e.Jet_Px, 'y': e.Jet_Py})"
ELECTRONS = "Zip({'x': e.Electron_Px, 'q': e.Electron_Charge})"
MET = "{'px': e.MET_px, 'py': e.MET_py, 'pz': e.MET_px, 'E': e.MET_py}"

SAME = f"""
e.MET_px
e.Jet_Px
e['MET_px']
(e.MET_px, e.MET_py)
[e.MET_px, e.Jet_Px]
(e.MET_px, 1)
{{'met_px': e.MET_px, 'met_py': e.MET_py}}
{{'px': e['Jet_Px'], 'n': e['NJet']}}
{{'jet': {{'px': e.Jet_Px, 'py': e.Jet_Py}}, 'n': e.NJet}}
{{'jet': {{'px': e.Jet_Px, 'm': e.MET_px}}}}
{{'met': {{'x': e.MET_px, 'y': e.MET_py}}, 'n': e.NJet}}
2
e
e.Jet_Px.Select(lambda p: p / 1000)
e.Jet_Px.Select(lambda p: 2)
e.Jet_Px.Select(lambda p: p)
e.Jet_Px.Select(lambda p: p * e.MET_px)
e.Jet_Px.Select(lambda p: (p, p * 2))
e.Jet_Px.Select(lambda p: {{'a': p, 'b': p * 2}})
{{'j': e.Jet_Px.Select(lambda p: {{'a': p, 'b': p * 2}}), 'n': e.NJet}}
e.Jet_Px.Select(lambda p: p - e.MET_px).Select(lambda p: p - e.MET_py)
e.Jet_Px.Where(lambda p: p > 20)
e.Jet_Px.Where(lambda p: p > e.MET_px)
e.Jet_Px.Where(lambda p: p > 10 and p < 50)
e.Jet_Px.Where(lambda p: 10 < p < 50)
e.Jet_Px.Where(lambda p: p < 10 or p > 50)
e.Jet_Px.Where(lambda p: not p > 10)
e.Jet_Px.Where(lambda p: p > 10).Where(lambda p: p < 50)
e.Jet_Px.Where(lambda p: p > 20).Select(lambda p: p)
e.Jet_Px.Where(lambda p: p > 20).Select(lambda p: p * e.NJet)
e.Jet_Px.Where(lambda p: e.Muon_Px.Any(lambda m: p * m > 10))
e.Jet_Px.Where(lambda p: e.Muon_Px.Any(lambda m: p * m < -10))
e.Jet_Px.Where(lambda p: e.Muon_Px.All(lambda m: p * m < -10))
e.Jet_Px.Select(lambda p: e.Muon_Px.Select(lambda m: p * m))
e.Jet_Px.Select(lambda p: e.Muon_Px.Select(lambda m: (p, m)))
e.Jet_Px.Select(lambda p: e.Muon_Px.Select(lambda m: {{'p': p, 'm': m}}))
e.Jet_Px.SelectMany(lambda p: e.Muon_Px.Select(lambda m: p * m))
e.Jet_Px[e.Jet_E > 50]
e.Jet_Px[e.Jet_ID]
e.Jet_Px[not e.Jet_ID]
e.Jet_Px[e.Jet_Px > e.MET_px]
e.Jet_Px.Count()
Count(e.Jet_Px)
e.Jet_Px.Sum()
{{'s': e.Jet_Px.Sum(), 'max': e.Jet_E.Max(), 'min': e.Jet_E.Min()}}
{{'s': e.Jet_Px.Where(lambda p: p > 0).Sum(), 'm': e.Jet_Px.Where(lambda p: p > 0).Max()}}
e.Jet_ID.Sum()
e.Muon_Charge.Sum()
e.Muon_Charge.Max()
e.Jet_Px.Where(lambda p: p > 20).Count()
e.Jet_Px.Any(lambda p: p > 20)
e.Jet_Px.All(lambda p: p > 20)
e.Jet_Px.Where(lambda p: p > 20).All(lambda p: p > 30)
e.Jet_ID.Any(lambda p: p)
e.Jet_ID.All(lambda p: not p)
e.Muon_Charge.Contains(1)
e.Muon_Charge.Contains(e.NJet)
e.Muon_Charge.Contains(e.NJet + 1)
e.Electron_Charge.Select(lambda c: e.Muon_Charge.Contains(c))
e.Electron_Charge.Select(lambda c: e.Muon_Charge.Contains(c + 1))
[0, 1].Contains(e.NJet)
e.Muon_Px.Concat(e.Electron_Px)
e.Muon_Px.Concat(e.Electron_Px).Max()
e.Muon_Px.Concat(e.Electron_Charge)
e.Jet_ID.Concat(e.Electron_Charge)
Zip({{'x': e.Muon_Px}}).Concat(Zip({{'x': e.Electron_Px}}))
Zip({{'x': e.Muon_Px, 'q': e.Muon_Charge}}).Concat({ELECTRONS}).Select(lambda r: r.x * r.q)
{JETS}
Zip([e.Jet_Px, e.Jet_Py])
Zip((e.Jet_Px, e.Jet_Py)).Where(lambda z: z[0] > 0).Count()
Zip([e.Jet_Px, e.Jet_Py]).Select(lambda z: z[0] + z[1])
{{'x': e.Jet_Px, 'y': e.Jet_Py}}.Zip()
Zip({{'x': e.Jet_Px, 'n': e.NJet}})
Zip({{'x': e.MET_px, 'n': e.NJet}})
{{'jet': {JETS}, 'n': e.NJet}}
{JETS}.Where(lambda j: j.x > 0)
{JETS}.Where(lambda j: j.x > 0).Select(lambda j: j['y'])
{JETS}.Select(lambda j: {{'z': j.x + j.y}})
{JETS}.x
e.Jet_Px.OrderBy(lambda p: p)
e.Jet_Px.OrderBy(lambda p: -p)
e.Jet_Px.OrderBy(lambda p: abs(p))
e.Jet_Px.OrderByDescending(lambda p: p)
e.Jet_ID.OrderBy(lambda p: p)
e.Muon_Charge.OrderBy(lambda p: p)
{JETS}.OrderBy(lambda j: j.y).Select(lambda j: j.x)
{JETS}.OrderByDescending(lambda j: j.y)
Zip({{'q': e.Muon_Charge, 'x': e.Muon_Px}}).OrderBy(lambda m: m.q)
Zip({{'q': e.Muon_Charge, 'x': e.Muon_Px}}).OrderByDescending(lambda m: m.q)
e.Jet_Px.Choose(2)
e.Jet_Px.Choose(3)
e.Jet_Px.Choose(2).Count()
e.Jet_Px.Choose(2).Select(lambda c: c.ElementAt(0) + c.ElementAt(1))
e.Jet_Px.Choose(2).Select(lambda c: c.First() + c.Last())
e.Jet_Px.Choose(2).Select(lambda c: c.Sum())
e.Jet_Px.Choose(3).Select(lambda c: c.Max())
e.Jet_Px.Choose(2).Where(lambda c: c.Sum() > 20)
e.Jet_Px.Choose(2).OrderBy(lambda c: c.Sum())
{{'c': e.Jet_Px.Choose(2).OrderBy(lambda c: c.Last()), 'n': e.NJet}}
{JETS}.Choose(2)
{JETS}.Choose(2).Select(lambda c: c.Select(lambda j: j.x))
{JETS}.Choose(2).Select(lambda c: c.ElementAt(0).x * c.ElementAt(1).y)
{JETS}.Choose(2).Where(lambda c: c.ElementAt(0).x > c.ElementAt(1).y).Count()
{MOMENTA}
{MOMENTA}.mass
{MOMENTA}.eta
{MOMENTA}.Sum()
{MOMENTA}.Sum().mass
{MUONS}.Select(lambda m: m.ToFourMomentum().phi)
{MUONS}.Select(lambda m: m.ToFourMomentum())
{MOMENTA}.Where(lambda m: m.pt > 20).Select(lambda m: m.pt)
{MOMENTA}.Choose(2).Select(lambda c: (c.First() + c.Last()).mass)
{MOMENTA}.Choose(2).Select(lambda c: c.First().deltaR(c.Last()))
{MOMENTA}.Choose(2).Select(lambda c: c.Sum().mass)
{MOMENTA}.OrderByDescending(lambda m: m.pt).Select(lambda m: m.pt)
{MET}.ToFourMomentum().pt
{{'met': {MET}.ToFourMomentum()}}
1 if e.NJet > 1 else 0
True if e.MET_px > 0 else False
1.5 if e.MET_px > 0 else 2
e.MET_px if e.MET_px > 0 else e.MET_py
e.MET_px if e.MET_px > 0 else -e['MET_px']
e.NJet if e.MET_px > 0 else e.MET_px
e.NJet if e.MET_px > 0 else e.triggerIsoMu24
e.Jet_Px if e.MET_px > 0 else e.Jet_Py
e.Jet_Px if e.Jet_Px > 0 else e.Jet_Py
e.Jet_Px.Select(lambda p: 1 if p > 0 else 0)
e.Jet_Px.Select(lambda p: p if p > 0 else e.MET_px)
e.NJet + e.NMuon
e.NJet - e.NMuon
e.NJet * e.NMuon
e.NJet / e.NMuon
e.NJet // e.NMuon
e.NJet % e.NMuon
e.NJet % (e.NMuon + 1)
e.NJet ** 2
e.NJet << 2
e.NJet >> 1
e.NJet & 1
e.NJet | 1
e.NJet ^ e.NMuon
~e['NJet']
-e['NJet']
+e['NJet']
not e.NJet
e.NJet and e.NMuon
e.NJet or e.NMuon
e.MET_px and e.MET_py
1 < e.NJet < 4
e.NJet == 1 or e.NJet == 2
e.triggerIsoMu24 + e.NJet
e.triggerIsoMu24 / e.NJet
e.triggerIsoMu24 * 1.5
e.triggerIsoMu24 & e.triggerIsoMu24
e.triggerIsoMu24 | (e.NJet > 1)
e.triggerIsoMu24 ^ True
~e['triggerIsoMu24']
e.triggerIsoMu24 == 1
e.triggerIsoMu24 > 0
e.MET_px // 3
e.MET_px % 3
e.MET_px ** 2
(e.MET_px ** 2 + e.MET_py ** 2) ** 0.5
e.MET_px / 0
e.MET_px * 1000000
e.NJet + 1.5
e.Jet_Px + e.MET_px
e.Jet_Px + e.NJet
e.Jet_Px * 2.5
e.Jet_Px / e.Jet_E
e.Muon_Charge * 0.5
e.Muon_Charge / 2
e.Muon_Charge * e.Muon_Px
e.Jet_Px > 20
abs(e.Jet_Px)
abs(e.NJet)
pow(e.MET_px, 2)
np.abs(e.Jet_Px)
np.absolute(e.Jet_Px)
np.fabs(e.Jet_Px)
np.sqrt(e.Jet_Px)
np.sqrt(e.NJet)
np.cbrt(e.MET_px)
np.square(e.MET_px)
np.power(e.MET_px, 2)
np.exp(e.MET_px)
np.expm1(e.MET_px / 100)
np.log(e.MET_px)
np.log10(e.MET_px)
np.sin(e.Jet_Px)
np.cosh(e.MET_px / 100)
np.arcsinh(e.MET_px)
np.hypot(e.Jet_Px, e.Jet_Py)
np.arctan2(e.MET_py, e.MET_px)
np.maximum(e.MET_px, e.MET_py)
np.minimum(e.MET_px, 0)
np.floor(e.MET_px)
np.ceil(e.MET_px)
np.rint(e.MET_px)
np.trunc(e.MET_px)
np.sign(e.MET_px)
np.reciprocal(e.MET_px)
np.mod(e.NJet, 2)
np.fmod(e.MET_px, 2)
np.add(e.MET_px, 1)
np.subtract(e.MET_px, e.MET_py)
np.multiply(e.MET_px, 2)
np.true_divide(e.MET_px, 2)
np.floor_divide(e.MET_px, 2)
np.negative(e.MET_px)
np.positive(e.MET_px)
np.greater(e.MET_px, 0)
np.less_equal(e.MET_px, 0)
np.not_equal(e.NJet, 1)
np.logical_and(e.NJet > 1, e.NMuon > 1)
np.logical_or(e.NJet > 1, e.NMuon > 1)
np.logical_xor(e.NJet > 1, e.NMuon > 1)
np.logical_not(e.NJet > 1)
np.bitwise_and(e.NJet, 1)
np.left_shift(e.NJet, 1)
np.invert(e.NJet)
np.isnan(e.MET_px)
np.isfinite(e.MET_px)
np.copysign(e.MET_px, e.MET_py)
np.heaviside(e.MET_px, 0.5)
np.logaddexp(e.MET_px, e.MET_py)
np.degrees(e.MET_px)
np.deg2rad(e.MET_px)
np.abs(e.Jet_Px).Max()
Where(lambda e: e.NJet > 3)
Where(lambda e: e.NJet > 2).Select(lambda e: {{'n': e.NJet, 'px': e.Jet_Px}})
Where(lambda e: (e.NJet > 1 and e.MET_px > 0) or e.NMuon >= 2).Select(lambda e: {{'n': e.NJet}})
Where(lambda e: e.NJet > 1).Where(lambda e: e.NMuon > 1).Select(lambda e: e.NJet)
Where(lambda e: -10 < e.MET_px < 10).Select(lambda e: e.MET_px)
Where(lambda e: e.triggerIsoMu24).Select(lambda e: e.MET_px)
Where(lambda e: not e.triggerIsoMu24).Select(lambda e: e.MET_px)
Where(lambda e: e.triggerIsoMu24 or e.NJet > 3).Select(lambda e: e.MET_px)
Where(lambda e: e.triggerIsoMu24 & (e.NJet > 3)).Select(lambda e: e.MET_px)
Where(lambda e: e.Jet_Px.Where(lambda p: abs(p) > 20).Count() >= 2).Select(lambda f: f.NJet)
Where(lambda e: np.sqrt(e.MET_px ** 2) > 20).Select(lambda f: {{'n': f.NJet}})
Where(lambda e: e.Jet_Px.Any(lambda p: p > 50)).Select(lambda e: e.NJet)
Where(lambda e: e.Muon_Charge.Contains(-1)).Select(lambda e: e.Muon_Px)
Where(lambda e: e.NJet == 1 or e.NJet == 2).Select(lambda e: {{'n': e.NJet}})
Where(lambda e: e.NJet > 100).Select(lambda e: {{'n': e.NJet, 'px': e.Jet_Px}})
Where(lambda e: e.Jet_Px.Count() > 0).Select(lambda e: {{'lead': e.Jet_Px.First()}})
Where(lambda e: e.NJet > 0).Select(lambda e: e.Jet_Px.Last())
Where(lambda e: e.NJet > 1).Select(lambda e: e.Jet_Px.ElementAt(1))
Where(lambda e: e.NJet > 1).Select(lambda e: e.Jet_Px.ElementAt(-1))
Where(lambda e: e.NJet > 0).Select(lambda e: {JETS}.First())
Where(lambda e: e.NJet > 0).Select(lambda e: {JETS}.First().x)
Where(lambda e: e.NJet > 0).Select(lambda e: e.Jet_Px.Select(lambda p: p - e.Jet_Px.First()))
Where(lambda e: e.NJet > 0).Select(lambda e: e.Jet_Px.OrderByDescending(lambda p: p).First())
Where(lambda e: e.NJet > 1).Select(lambda e: e.Jet_Px.Choose(2).First().Max())
Where(lambda e: e.NJet > 1).Select(lambda e: e.Jet_Px.Choose(2).OrderBy(lambda c: c.Sum()).First())
Where(lambda e: e.NMuon == 2).Select(lambda e: {MOMENTA}).Select(lambda m: (m.First() + m.Last()).m)
Select(lambda e: e).Where(lambda e: e.NJet > 3).Select(lambda e: e.NJet)
Select(lambda e: {{'e': e, 'n': e.NJet}}).Where(lambda r: r.e.MET_px > 0).Select(lambda r: r.n)
Select(lambda e: (e, e.NJet)).Select(lambda r: r[0].MET_px * r[1])
Select(lambda e: e.NJet).Where(lambda n: n > 2)
Select(lambda e: e.Jet_Px).Where(lambda r: r > 10)
Select(lambda e: e.Jet_Px).Where(lambda r: r.Count() > 2)
Select(lambda e: e.Jet_Px).Where(lambda r: r.Count() > 2).Select(lambda r: r.First())
Select(lambda e: [e.MET_px, e.MET_py]).Select(lambda r: [r[0], r[1]])
Select(lambda e: (e.MET_px, e.MET_py)).Select(lambda r: r[0] + r[1])
Select(lambda e: {{'a': e.MET_px, 'b': e.MET_py}}).Select(lambda r: {{'c': r.a, 'd': r['b']}})
Select(lambda e: {{'a': e.MET_px, 'b': e.MET_py}}).Where(lambda r: r.a > r.b)
Select(lambda e: {{'a': e.Jet_Px, 'b': e.MET_px}}).Where(lambda r: r['b'] > 0)
Select(lambda e: {{'a': e.Jet_Px}}).Where(lambda r: r['a'] > 20)
Select(lambda e: {{'a': e.Jet_Px, 'b': e.Jet_Py}}).Where(lambda r: r.a > 10)
Select(lambda e: {{'a': e.Jet_Px, 'b': e.Jet_Py}}).Where(lambda r: r.a.Count() > 2)
Select(lambda e: {{'a': e.Jet_Px, 'b': e.Jet_Py}}).Select(lambda r: r.a.Where(lambda x: x > 10))
Select(lambda e: {{'px': e.Jet_Px, 'n': e.NJet}}).Where(lambda r: r.n > 1).Select(lambda s: s.px)
Select(lambda e: {JETS}).Select(lambda js: js.Where(lambda j: j.x > 5)).Select(lambda k: k.x)
Select(lambda e: e.Jet_Px.Where(lambda p: p > 20)).Select(lambda r: (r.Count(), r.Sum()))
Select(lambda e: e.Jet_Px).Select(lambda r: r.Select(lambda p: r.Select(lambda q: p - q)))
Select(lambda e: {JETS}).Select(lambda r: r.Select(lambda j: r.Select(lambda k: k.y).Contains(j.x)))
SelectMany(lambda e: e.Jet_Px)
SelectMany(lambda e: e.Jet_Px).Where(lambda p: p > 20)
SelectMany(lambda e: e.Jet_Px).Select(lambda p: {{'p': p, 'q': p * 2}})
SelectMany(lambda e: e.Jet_Px.Select(lambda p: p / e.MET_px))
SelectMany(lambda e: e.Jet_Px.Select(lambda p: {{'p': p, 'm': p - e.MET_px}}))
SelectMany(lambda e: e.Jet_Px.Where(lambda p: p > 20))
SelectMany(lambda e: {JETS})
SelectMany(lambda e: {JETS}).Where(lambda j: j.x > 20)
SelectMany(lambda e: {JETS}).Select(lambda j: j.x + j.y)
SelectMany(lambda e: {{'a': e.Jet_Px}})
SelectMany(lambda e: {MOMENTA}).Select(lambda m: m.pt)
"""


DIFFERENT = {
    "what is kept by a condition that is missing stays, without content": """
        Where(lambda e: e.Jet_Px.Max() > 50).Select(lambda e: e.NJet)
        Where(lambda e: not e.Jet_Px.Max() > 50).Select(lambda e: e.NJet)
        Where(lambda e: e.Jet_Px.Max() > 50 and e.NMuon > 1).Select(lambda e: e.NJet)
        Select(lambda e: e.Jet_Px.Max()).Where(lambda m: m > 10)
        Select(lambda e: {'a': e.Jet_Px.Max()}).Where(lambda r: r.a > 10)
        e.Jet_Px.Where(lambda p: e.Muon_Px.Select(lambda m: abs(p - m)).Min() > 10)
    """,
    "what is missing makes missing also what does not depend on it": """
        e.Jet_Px.Max() > 50 and e.NMuon > 1
        e.Jet_Px.Max() > 50 or e.NMuon > 1
        e.Jet_Px.Select(lambda p: p / e.Jet_Px.Max())
        e.Jet_Px.Where(lambda p: p == e.Jet_Px.Max())
        e.Muon_Px.Contains(e.Jet_Px.Max())
    """,
    "a lambda that does not name its element gives one value, not one for each element": """
        e.Muon_Px.Select(lambda p: e.MET_px)
        e.Muon_Px.Select(lambda p: 1 if e.MET_px > 0 else 2)
        e.Muon_Px.Select(lambda p: e.Jet_Px)
        e.Jet_Px.Select(lambda p: e.Muon_Px.Count())
        e.Jet_Px.Select(lambda p: e.MET_px if e.MET_px > 0 else p)
        Where(lambda e: e.NJet > 0).Select(lambda e: e.Muon_Px.Select(lambda p: e.Jet_Px.First()))
    """,
    "a condition that does not name its element keeps events, not elements": """
        e.Jet_Px.Where(lambda p: e.MET_px > 0)
        e.Jet_Px.Where(lambda p: True)
    """,
    "a number as a condition is the position of what is kept": """
        Where(lambda e: e.NJet).Select(lambda e: e.NJet)
        e.Jet_Px.Where(lambda p: 1)
    """,
    "whole numbers overflow at the width of the branch": """
        e.NJet * 1000000000
        e.NJet << 31
    """,
    "the sum and the product of truth values are truth values": """
        e.triggerIsoMu24 + e.triggerIsoMu24
        e.triggerIsoMu24 * e.triggerIsoMu24
        True + e.triggerIsoMu24
    """,
    "the extreme of numbers that are none is infinite": """
        np.sqrt(e.Jet_Px).Max()
        np.sqrt(e.Jet_Px).Min()
    """,
    "what is no number comes first in both orders": """
        np.sqrt(e.Jet_Px).OrderBy(lambda x: x)
        np.sqrt(e.Jet_Px).OrderByDescending(lambda x: x)
    """,
    "a whole number beside floats of 32 bits makes them 64 bits wide": """
        e.MET_px if e.MET_px > 0 else 0
        0 if e.MET_px > 0 else e.MET_px
        e.Jet_Px.Select(lambda p: p if p > 0 else 0)
    """,
    "a power of whole numbers is a whole number, also where the exponent may be negative": """
        e.NJet ** e.NMuon
        2 ** e.NJet
    """,
}
"""By what func-adl-uproot does. Here it is as a loop over the events has it."""

ONLY_HERE = """
e.Jet_Px.First()
e.Jet_Px.Last()
e.Jet_Px.ElementAt(1)
e.Jet_Px.ElementAt(e.NJet - 1)
e.Jet_Px[0]
e.Jet_Px[-1]
e.Jet_Px.Choose(2).First()
Where(lambda e: e.NJet > 1).Select(lambda e: {'sub': e.Jet_Px[1]})
e.Jet_Px.Choose(2).Select(lambda c: c[0] - c[1])
{'a': 2}
{'x': e.MET_px, 'k': 1}
Zip({'x': e.Jet_Px, 'n': 1})
{'r': (e.MET_px, e.MET_py), 'n': e.NJet}
{'r': {'x': {'z': e.MET_px}, 'y': e.MET_py}}
(e.MET_px, (e.MET_py, e.NJet))
e.NJet ** -1
e.NJet * 10000000000
e.NJet < 10000000000
e.triggerIsoMu24 - e.triggerIsoMu24
-e['triggerIsoMu24']
e.Jet_Px.Where(lambda p: p)
e.Muon_Charge.Where(lambda p: p - 1)
Where(lambda e: True).Select(lambda e: e.NJet)
e.Muon_Px.SelectMany(lambda p: e.Jet_Px)
e.Muon_Px.Any(lambda p: e.MET_px > 0)
e.Jet_Px.OrderBy(lambda x: 1)
e.Jet_Px.Select(lambda p: e.Muon_Px.Select(lambda m: e.Electron_Px.Select(lambda x: p * m * x)))
e.Jet_Px.Select(lambda p: e.Muon_Px.Where(lambda m: m > 0).Select(lambda m: m - p))
e.Jet_Px.Where(lambda p: e.Muon_Px.Where(lambda m: m > p).Count() > 0)
e.Jet_Px.Select(lambda p: e.Muon_Px.Where(lambda m: m > p))
SelectMany(lambda e: {'a': e.Jet_Px, 'b': e.Jet_Py, 'n': e.NJet})
e.Jet_Px.Aggregate(0, lambda total, p: total + p)
e.Jet_Px.Aggregate(10, lambda most, p: max(most, p))
len(e.Jet_Px)
sum(e.Jet_Px)
any(e.Jet_ID)
all(e.Jet_ID)
min(e.Jet_Px)
max(e.Jet_Px)
max(e.MET_px, e.MET_py)
min(e.MET_px, 3)
round(e.MET_px)
math.sqrt(e.MET_px ** 2)
sqrt(e.MET_px ** 2)
ak.num(e.Jet_Px)
np.sum(e.Jet_Px)
np.max(e.Jet_Px)
"""
"""What func-adl-uproot refuses, and what a loop over the events gives."""


def query(text: str, tree: str = "events") -> str:
    """Return a query of the events of a tree as clients send it."""
    text = text.strip()
    if not text.startswith(("Select(", "SelectMany(", "Where(")):
        text = f"Select(lambda e: {text})"
    source = ast.parse(f"(EventDataset('bogus.root', '{tree}').{text})", mode="eval")
    return str(qastle.python_ast_to_text_ast(source.body))


def lines(text: str) -> list[str]:
    """Return the queries of a list."""
    return [line.strip() for line in text.splitlines() if line.strip()]
