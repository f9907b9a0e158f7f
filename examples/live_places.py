"""Places that change: acknowledged means kept, also when the process dies at once."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shoal.spatial import SpatialKeywordIndex

HERE = (24.94, 60.17)


def show(what: str, index: SpatialKeywordIndex) -> None:
    """Print what is found near."""
    found = index.query(HERE, "coffee", 5)
    print(f"{what}: {', '.join(str(place.label) for place in found)}")


def writer(folder: Path) -> None:
    """Change an index in its folder, and die without closing it."""
    index = SpatialKeywordIndex.open(folder)
    index.upsert([24.941], [60.171], ids=["c"], keywords=["coffee books"], labels=["Chapter"])
    index.delete(["a"])
    print("acknowledged", flush=True)
    os._exit(9)


def main() -> None:
    """Build, change, keep, lose the writer, and open again."""
    index = SpatialKeywordIndex.build(
        [24.945, 24.95],
        [60.17, 60.18],
        keywords=["coffee bar", "coffee cakes"],
        ids=["a", "b"],
        labels=["Anchor", "Bakery"],
    )
    show("built", index)
    index.upsert([24.93], [60.16], ids=["b"], keywords=["coffee cakes"], labels=["Bakery 2"])
    show("changed in memory", index)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "cafes"
        index.save(folder)
        done = subprocess.run([sys.executable, __file__, str(folder)], check=False)
        print(f"the writer died with {done.returncode}")
        with SpatialKeywordIndex.open(folder) as again:
            show("opened again", again)
            again.compact()
            show("compacted", again)


if __name__ == "__main__":
    writer(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
