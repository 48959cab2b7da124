"""The features of this project. `tiercel apply` checks this file, `tiercel materialize` computes what it defines.

Replace the example below: point the source at your own Parquet file and name its columns.
"""

from datetime import timedelta

from tiercel import Entity, FeatureService, FeatureView, Field, Float32, Int64, ParquetSource, RequestSource

customer = Entity("customer", join_keys=["customer_id"])

orders = ParquetSource(
    "orders",
    path="data/orders.parquet",  # relative to this directory; globs work too
    timestamp_field="ordered_at",
)

customer_orders = FeatureView(
    "customer_orders",
    entities=[customer],
    sources=[orders],
    sql="""
        SELECT customer_id,
               ordered_at,
               CAST(count(*) OVER running AS BIGINT) AS n_orders,
               CAST(avg(amount) OVER running AS FLOAT) AS mean_amount
        FROM orders
        WINDOW running AS (PARTITION BY customer_id ORDER BY ordered_at)
    """,
    timestamp_field="ordered_at",
    schema=[Field("n_orders", Int64), Field("mean_amount", Float32)],
    ttl=timedelta(days=365),
)

basket = RequestSource("basket", schema=[Field("amount", Float32)])

checkout = FeatureService("checkout", features=[customer_orders, basket])
