"""Which 50 packages reach most of Debian, by how much, with a proof, and who would replace them."""

from shoal.data import debian
from shoal.influence import Graph, coverage, max_cover

packages = debian.sample()  # bookworm main, 63,436 packages
graph = Graph.from_table(packages.table())  # from a dependency to its dependents
print(f"{graph.n:,} packages, {graph.m:,} hard dependencies")

for hops in (1, 2):
    result = max_cover(graph, 50, hops, certificate="lagrangian")
    share = result.covered / result.total
    print(f"\n50 packages reach {share:.1%} within {hops} hop{'s' if hops > 1 else ''}")
    print(
        f"no other 50 reach more than {result.upper_bound / result.total:.1%} ({result.bound_kind})"
    )
    for name, gain in list(zip(result.seeds, result.gains, strict=True))[:4]:
        others = [seed for seed in result.seeds if seed != name]
        alone = result.covered - coverage(graph, others, hops)
        print(f"  {name:<16} adds {gain:6,.0f}; {alone:6,.0f} are reached by it alone of the 50")

print("\nthe same by installed size: whose failure stops most of what is on disks")
result = max_cover(graph, 50, weights=packages.installed_kib)
print(f"  {', '.join(result.seeds[:6])}: {result.covered / result.total:.1%} of all KiB")

few = max_cover(graph, hops=3, target=0.8)
print(
    f"\n{len(few.seeds)} packages are enough for 80% within 3 hops: {', '.join(few.seeds[:3])} ..."
)
