"""The inputs of the model, computed offline over whole tables.

This is the cloud's side of ``package/main.py``: the same numbers from joins
over columns instead of a fold over events. Training uses it, and it is the
oracle that the predictions coming back from devices are checked against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shoal.data.flights import FORECAST_MINUTES, TAXI_MINUTES, FlightTable

__all__ = [
    "CARRIERS",
    "LATE_MINUTES",
    "LEG_COLUMNS",
    "SCHEDULE_COLUMNS",
    "STREAM_COLUMNS",
    "matrix",
    "offline_features",
    "week_of",
]

#: A departure counts as late above this delay (the usual 15-minute rule).
LATE_MINUTES = 15
CARRIERS = ("MQ", "B6", "UA", "DL", "EV", "AA", "9E", "US", "WN")

SCHEDULE_COLUMNS = (
    "hour_sin",
    "hour_cos",
    "hour",
    "weekend",
    "distance",
    "origin_EWR",
    "origin_JFK",
    *(f"carrier_{carrier}" for carrier in CARRIERS),
)
LEG_COLUMNS = ("leg_dep_delay", "leg_arr_delay", "turnaround", "legs_known")
WEATHER_COLUMNS = ("wind", "rain", "visibility", "air_pressure", "temperature")
STREAM_COLUMNS = (*SCHEDULE_COLUMNS, *LEG_COLUMNS, *WEATHER_COLUMNS)


def week_of(column: str = "scheduled") -> pl.Expr:
    """Return the week of the year, from 0, of a UTC time column."""
    return ((pl.col(column).dt.ordinal_day() - 1) // 7).alias("week")


def _last_known(rows: pl.DataFrame, events: pl.DataFrame, at: str) -> pl.DataFrame:
    """Join the last event of the same aircraft that was known when a departure was filed."""
    return rows.sort("filed", maintain_order=True).join_asof(
        events.sort(at, maintain_order=True),
        left_on="filed",
        right_on=at,
        by="tailnum",
        strategy="backward",
        check_sortedness=False,
    )


def offline_features(table: FlightTable, aircraft: Sequence[str] | None = None) -> pl.DataFrame:
    """Compute every input and the label for every departure.

    Parameters
    ----------
    table : FlightTable
        Departures and weather.
    aircraft : sequence of str, optional
        Only these tail numbers.

    Returns
    -------
    polars.DataFrame
        One row a departure: ``tailnum``, ``scheduled``, ``week``, ``departure``
        (the key that devices report), the columns of :data:`STREAM_COLUMNS`
        (float64) and ``late`` (null if cancelled).
    """
    rows = table.departures
    if aircraft is not None:
        rows = rows.filter(pl.col("tailnum").is_in(list(aircraft)))
    rows = rows.with_columns(
        filed=pl.col("scheduled") - pl.duration(minutes=FORECAST_MINUTES),
        left_at=pl.col("scheduled") + pl.duration(minutes=pl.col("dep_delay")),
    ).with_columns(
        landed_at=pl.col("left_at") + pl.duration(minutes=pl.col("air_time") + TAXI_MINUTES)
    )
    left = rows.filter(pl.col("left_at").is_not_null()).select(
        "tailnum", "left_at", last_dep=pl.col("dep_delay").cast(pl.Float64)
    )
    landed = rows.filter(
        pl.col("landed_at").is_not_null() & pl.col("arr_delay").is_not_null()
    ).select("tailnum", "landed_at", last_arr=pl.col("arr_delay").cast(pl.Float64))
    facts = rows.drop("left_at", "landed_at")
    facts = _last_known(_last_known(facts, left, "left_at"), landed, "landed_at")
    facts = facts.with_columns(report_hour=pl.col("filed").dt.truncate("1h")).join(
        table.weather.rename({"hour": "report_hour"}), on=["origin", "report_hour"], how="left"
    )
    local = pl.col("scheduled").dt.convert_time_zone("America/New_York")
    hour = local.dt.hour().cast(pl.Float64) / 24
    turnaround = (pl.col("scheduled") - pl.col("landed_at")).dt.total_microseconds() / 60_000_000
    return (
        facts.with_columns(
            hour_sin=(hour * 2 * math.pi).sin(),
            hour_cos=(hour * 2 * math.pi).cos(),
            hour=hour,
            weekend=(local.dt.weekday() >= 6).cast(pl.Float64),
            distance=pl.col("distance").cast(pl.Float64) / 1000,
            origin_EWR=(pl.col("origin") == "EWR").cast(pl.Float64),
            origin_JFK=(pl.col("origin") == "JFK").cast(pl.Float64),
            **{
                f"carrier_{carrier}": (pl.col("carrier") == carrier).cast(pl.Float64)
                for carrier in CARRIERS
            },
            leg_dep_delay=(pl.col("last_dep").clip(-60, 240) / 60).fill_null(0.0),
            leg_arr_delay=(pl.col("last_arr").clip(-60, 240) / 60).fill_null(0.0),
            turnaround=turnaround.fill_null(600.0).clip(upper_bound=3000.0) / 600,
            legs_known=pl.col("last_dep").is_not_null().cast(pl.Float64)
            + pl.col("last_arr").is_not_null().cast(pl.Float64),
            wind=pl.col("wind_speed").fill_null(10.0) / 20,
            rain=pl.col("precip").fill_null(0.0) * 10,
            visibility=pl.col("visib").fill_null(10.0) / 10,
            air_pressure=(pl.col("pressure").fill_null(1018.0) - 1018) / 10,
            temperature=pl.col("temp").fill_null(55.0) / 50,
            late=(pl.col("dep_delay") > LATE_MINUTES).cast(pl.Int8),
            departure=pl.format("{}@{}", pl.col("flight"), pl.col("scheduled").dt.timestamp("us")),
        )
        .with_columns(week_of())
        .select("tailnum", "scheduled", "week", "departure", *STREAM_COLUMNS, "late")
        .sort("tailnum", "scheduled", "departure")
    )


def matrix(rows: pl.DataFrame, columns: Sequence[str]) -> NDArray[np.float32]:
    """Return the inputs as a float32 array, shape (rows, columns)."""
    return rows.select(columns).to_numpy().astype(np.float32)
