"""``shoal spatial build``: from a file of places to an index in a folder."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.compiling import compiling_shown
from shoal.cli.output import Output, json_option
from shoal.core.errors import InputError

if TYPE_CHECKING:
    from shoal.data.places import PlaceTable
    from shoal.spatial import AttributeSpec, SpatialKeywordIndex

__all__ = ["build"]

_ATTRIBUTE = re.compile(
    r"^(?P<name>[^=:]+)(?:=(?P<column>[^:]+))?"
    r"(?::(?P<low>[-+.\deE]+)\.\.(?P<high>[-+.\deE]+))?(?::(?P<missing>worst|neutral|exclude))?$"
)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "form", help="csv, tsv, parquet, jsonl, geojson, geonames or osm.")
@click.option("--lon", help="Column of the longitude.")
@click.option("--lat", help="Column of the latitude.")
@click.option("--id", "id_column", help="Column of the id; rows are numbered without one.")
@click.option("--name", help="Column that labels the answers.")
@click.option("--keywords", multiple=True, help="Column (or OSM tag) with words; repeatable.")
@click.option("--separator", help="Splits a text of keywords, instead of into words.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="NAME[=COLUMN][:LOW..HIGH][:MISSING]",
    help="Number to prefer or filter by; its range, and worst, neutral or exclude for rows "
    "without it. Repeatable.",
)
@click.option(
    "--missing",
    type=click.Choice(["worst", "neutral", "exclude"]),
    default="worst",
    show_default=True,
    help="For attributes that do not say.",
)
@click.option("--encoding", default="utf-8", show_default=True, help="Of a text file.")
@click.option(
    "--layout",
    type=click.Choice(["packed", "quad_cluster", "netr"]),
    default="packed",
    show_default=True,
    help="All give the same answers; packed is the fast one.",
)
@click.option(
    "--analyzer",
    type=click.Choice(["words", "exact"]),
    default="words",
    show_default=True,
    help="Split texts into words, or take keywords as they are.",
)
@click.option("--checkins", type=click.Path(path_type=Path), help="File of user, place, time.")
@click.option("--friendships", type=click.Path(path_type=Path), help="File of pairs of users.")
@click.option("--tz", help="Time zone of the places, such as Europe/Helsinki.")
@click.option(
    "--time-slots",
    type=click.Choice(["24", "168"]),
    default="168",
    show_default=True,
    help="Hours of the day, or of the week.",
)
@click.option("--slots", is_flag=True, help="The times of the check-ins are numbers of slots.")
@click.option("--drop-bad-rows", is_flag=True, help="Leave out and count rows that fail.")
@click.option("--force", is_flag=True, help="Replace an index that is there.")
@json_option
def build(
    out: Output,
    /,
    source: Path,
    folder: Path,
    *,
    form: str | None,
    attributes: tuple[str, ...],
    missing: Any,
    layout: Any,
    analyzer: Any,
    checkins: Path | None,
    friendships: Path | None,
    tz: str | None,
    time_slots: str,
    slots: bool,
    drop_bad_rows: bool,
    force: bool,
    **columns: Any,
) -> None:
    """Build an index FOLDER of the places in SOURCE.

    Columns with a usual name (lon, latitude, id, tags, ...) are found. The
    folder appears whole or not at all. SOURCE "sample" stands for the 4,000 cities
    of GeoNames that come with shoal.
    """
    _refuse_occupied(folder, force=force)
    from shoal.core.progress import progress
    from shoal.data.places import read_places
    from shoal.spatial import SpatialKeywordIndex, SpatialKeywordIndexConfig

    wanted = [_attribute(text) for text in attributes]
    config = SpatialKeywordIndexConfig(
        layout=layout, analyzer=analyzer, tz=tz, time_slots=168 if time_slots == "168" else 24
    )
    with compiling_shown():
        log, social = _people(
            checkins, friendships, slots=config.time_slots if slots else None, tz=tz
        )
    started = time.perf_counter()
    with progress("reading places", 3) as bar:
        read = read_places if not _is_sample(source) else _sample
        table = read(
            source,
            format=form,
            lon=columns["lon"],
            lat=columns["lat"],
            id=columns["id_column"],
            name=columns["name"],
            keywords=list(columns["keywords"]) or None,
            attributes={str(e["name"]): str(e["column"] or e["name"]) for e in wanted} or None,
            separator=columns["separator"],
            encoding=columns["encoding"],
            on_bad_row="drop" if drop_bad_rows else "error",
        )
        if analyzer == "words":
            table = table.split_keywords()
        bar.advance()
        bar.say(f"building {len(table):,} places")
        with compiling_shown(bar.say):
            index = SpatialKeywordIndex.build(
                table.lon,
                table.lat,
                keywords=table.keywords,
                attributes=table.attributes,
                ids=table.ids,
                labels=table.names,
                attribute_specs=_specs(wanted, table, missing),
                missing=missing,
                checkins=log,
                social=social,
                categories=table.category,
                time_zones=None if tz else table.timezone,
                config=config,
            )
        bar.advance()
        bar.say("writing")
        with index:
            _save(index, folder)
        bar.advance()
    _say_built(out, table, folder, index, time.perf_counter() - started)


def _is_sample(source: Path) -> bool:
    return str(source) == "sample" and not source.exists()


def _sample(_source: Path, *, attributes: dict[str, str] | None, **_options: Any) -> PlaceTable:
    """Return the shipped sample with the attributes that are wanted."""
    import dataclasses

    from shoal.data.places import load_places_sample

    table = load_places_sample()
    wanted = attributes or {}
    unknown = sorted(set(wanted.values()) - set(table.attributes))
    if unknown:
        raise InputError(
            f"the sample has {', '.join(table.attributes)}", field="attribute", value=unknown[0]
        )
    chosen = {name: table.attributes[column] for name, column in wanted.items()}
    return dataclasses.replace(table, attributes=chosen)


def _people(
    checkins: Path | None, friendships: Path | None, *, slots: int | None, tz: str | None
) -> tuple[Any, Any]:
    """Return the check-ins and the trained relations of the files, None without one."""
    from shoal.data.checkins import read_checkins, read_friendships

    log = None if checkins is None else read_checkins(checkins, slots=slots, tz=tz)
    if friendships is None:
        return log, None
    from shoal.spatial import SocialEmbedding

    edges = read_friendships(friendships).edges
    users = list(dict.fromkeys(edges.ravel().tolist()))
    return log, SocialEmbedding.fit(edges, users=users)


def _refuse_occupied(folder: Path, *, force: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not (folder / "manifest.json").is_file():
        raise InputError(f"{folder} is there and is no index", hint="choose another folder")
    if not force:
        raise InputError(f"{folder} holds an index already", hint="--force replaces it")


def _save(index: SpatialKeywordIndex, folder: Path) -> None:
    """Write into a folder beside the target and rename; an index that is there replaces itself."""
    import shutil
    import tempfile

    if folder.exists() and any(folder.iterdir()):
        index.save(folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        index.save(part)
        part.chmod(0o755)
        part.rename(folder)
    finally:  # also after Ctrl-C
        shutil.rmtree(part, ignore_errors=True)


def _attribute(text: str) -> dict[str, str | None]:
    match = _ATTRIBUTE.match(text)
    if match is None:
        raise InputError(
            "an attribute is NAME[=COLUMN][:LOW..HIGH][:MISSING]",
            field="attribute",
            value=text,
            hint="price=price_level:1..4:neutral",
        )
    return match.groupdict()


def _specs(
    wanted: list[dict[str, str | None]], table: PlaceTable, missing: Any
) -> list[AttributeSpec]:
    """Return specifications of the attributes, of the data's range where none is said."""
    from shoal.spatial import AttributeSpec
    from shoal.spatial.ingest import make_specs
    from shoal.spatial.textform import parse_number

    made: list[AttributeSpec] = []
    for each in wanted:
        name = str(each["name"])
        policy: Any = each["missing"] or missing
        if each["low"] is None or each["high"] is None:
            made += make_specs({name: table.attributes[name]}, missing=policy)
            continue
        made.append(
            AttributeSpec(
                name=name,
                low=parse_number(each["low"], name),
                high=parse_number(each["high"], name),
                missing=policy,
            )
        )
    return made


def _say_built(
    out: Output, table: PlaceTable, folder: Path, index: SpatialKeywordIndex, seconds: float
) -> None:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    out.value(
        {
            "folder": str(folder),
            "places": len(table),
            "dropped": table.dropped,
            "notes": list(table.notes),
            "attributes": [spec.model_dump() for spec in index.attribute_specs],
            "layout": index.config.layout,
            "bytes": size,
            "seconds": round(seconds, 3),
        }
    )
    out.line(f"{len(table):,} places in {folder}, {size / 1e6:.1f} MB, {seconds:.1f} s")
    for reason, count in table.dropped.items():
        out.line(f"dropped {count:,}: {reason}")
    if not out.as_json:
        for note in table.notes:
            click.echo(f"warning: {note}", err=True)
