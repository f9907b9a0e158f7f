"""Departures as tables and as event streams."""

from __future__ import annotations

import zipfile
from pathlib import Path

import polars as pl
import pytest

from shoal.core.errors import InputError, NotFoundError
from shoal.data import flights
from shoal.data.flights import (
    FORECAST_MINUTES,
    LANDING,
    OFF_BLOCK,
    SCHEDULE,
    WEATHER,
    busiest_aircraft,
    event_stream,
    load_flights,
    make_sample,
)

FLIGHTS_CSV = """\
year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour
2013,1,1,517,515,2,830,819,11,UA,1545,N1,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z
2013,1,1,NA,1300,NA,NA,1500,NA,UA,1546,N1,EWR,IAH,NA,1400,13,0,2013-01-01T18:00:00Z
2013,1,1,600,600,0,700,700,0,AA,9,N2,JFK,BOS,40,187,6,0,2013-01-01T11:00:00Z
2013,1,1,600,600,0,700,700,0,AA,9,NA,JFK,BOS,40,187,6,0,2013-01-01T11:00:00Z
"""
WEATHER_CSV = """\
origin,year,month,day,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour
EWR,2013,1,1,4,39.021,26.06,59.37,270,10.357019,NA,0,NA,1.5,2013-01-01T09:00:00Z
EWR,2013,1,1,4,99,26.06,59.37,270,10.357019,NA,0,NA,1.5,2013-01-01T09:00:00Z
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "weather.csv").write_text(WEATHER_CSV)
    with zipfile.ZipFile(tmp_path / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", FLIGHTS_CSV)
    return tmp_path


def test_event_stream_of_a_known_day(source: Path) -> None:
    events = event_stream(load_flights(source), "N1")
    assert [event.kind for event in events] == [WEATHER, SCHEDULE, OFF_BLOCK, LANDING, SCHEDULE]
    scheduled = 1357035300_000000  # 2013-01-01 10:15 UTC
    weather, filed, left, down, cancelled = events
    assert weather.content == {"temp": 39.02, "wind_speed": 10.36, "precip": 0.0, "visib": 1.5}
    assert filed.ts_us == scheduled - FORECAST_MINUTES * 60_000_000
    assert filed.content["scheduled_us"] == scheduled
    assert (left.ts_us, left.content["delay"]) == (scheduled + 120_000_000, 2)
    assert (down.page, down.content["delay"]) == ("IAH", 11)
    assert down.ts_us == left.ts_us + (227 + flights.TAXI_MINUTES) * 60_000_000
    assert cancelled.content["flight"] == 1546


def test_nothing_is_known_before_its_time() -> None:
    table = load_flights()
    for tailnum in busiest_aircraft(table, 3, per_carrier=1):
        events = event_stream(table, tailnum)
        assert events == sorted(events, key=lambda event: event.ts_us)
        rows = table.departures.filter(pl.col("tailnum") == tailnum)
        kinds = [event.kind for event in events]
        assert kinds.count(SCHEDULE) == rows.height
        assert kinds.count(OFF_BLOCK) == rows["dep_delay"].count()
        for event in events:
            if event.kind == SCHEDULE:
                ahead = event.content["scheduled_us"] - event.ts_us
                assert ahead == FORECAST_MINUTES * 60_000_000
                assert "delay" not in event.content


def test_sample_is_what_make_sample_cuts(source: Path, tmp_path: Path) -> None:
    make_sample(source, tmp_path / "cut", aircraft=1)
    cut = pl.read_parquet(tmp_path / "cut" / "departures.parquet")
    assert cut["tailnum"].unique().to_list() == ["N1"]
    shipped = load_flights()
    assert shipped.departures["tailnum"].n_unique() == 800
    assert cut.schema == shipped.departures.schema


def test_busiest_is_ranked_and_mixed(source: Path) -> None:
    table = load_flights(source)
    assert busiest_aircraft(table, 2) == ["N1", "N2"]
    mixed = busiest_aircraft(load_flights(), 20, per_carrier=4)
    carriers = load_flights().departures.filter(pl.col("tailnum").is_in(mixed))
    per_carrier = carriers.group_by("carrier").agg(pl.col("tailnum").n_unique())
    assert per_carrier["tailnum"].max() <= 4 + 1  # an aircraft may change hands
    with pytest.raises(InputError, match="only 2 aircraft"):
        busiest_aircraft(table, 3)


def test_bad_sources_are_named(tmp_path: Path, source: Path) -> None:
    with pytest.raises(NotFoundError, match=r"flights\.csv"):
        load_flights(tmp_path / "nowhere")
    (source / "flights.csv.zip").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="zip"):
        load_flights(source)
    (source / "flights.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="columns"):
        load_flights(source)
    (source / "flights.csv").write_text("")
    with pytest.raises(InputError, match="readable"):
        load_flights(source)
    with pytest.raises(NotFoundError, match="N000"):
        event_stream(load_flights(), "N000")
