"""Search the towns of the world: nearest with a word, ranked words, a preference, and why not."""

from shoal.data.places import load_places_sample
from shoal.spatial import AttributeSpec, Linear, Query, SpatialKeywordIndex

towns = load_places_sample().split_keywords()  # 4,000 of GeoNames, CC BY 4.0
index = SpatialKeywordIndex.build(
    towns.lon,
    towns.lat,
    keywords=towns.keywords,  # names, also in other languages and scripts
    attributes=towns.attributes,  # population, elevation
    ids=towns.ids,
    labels=towns.names,
    attribute_specs=[AttributeSpec(name="population", low=0, high=2_000_000)],
)
BERLIN = (13.405, 52.52)

print("the nearest that are called new something")
for place in index.query(BERLIN, "new", 2):
    print(f"  {place.km:5.0f} km  {place.label}")

print("san or jose, both being best")
for place in index.query((-122.0, 37.0), "san jose", 3, match="ranked", decay=Linear(1000)):
    print(f"  {place.score:.3f}  {place.km:5.0f} km  {place.label}")

print("within 600 km, the more people the better, and above 300 m")
weights = {"space": 0.2, "attributes": 0.8}
wanted = Query(
    point=BERLIN,
    k=3,
    prefer={"population": "max"},
    where={"elevation": (">=", 300)},
    max_km=600,
    weights=weights,
    explain=True,
)
for place in index.ask(wanted):
    parts = ", ".join(f"{part} {value:.3f}" for part, value in place.parts.items())
    print(f"  {place.score:.3f}  {place.label}: {parts}")

print("why not Hamburg?")
hamburg = index.query((9.99, 53.55), "hamburg", 1).ids[0]
for reason in index.explain(wanted, hamburg).reasons:
    print(f"  {reason}")
