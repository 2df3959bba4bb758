"""An archive of any size: list its images, assess them in shards, and summarise the records.

    folders -> manifest (Parquet) -> shards of records (Parquet) -> summary

A shard is the unit of work: it is written under a temporary name and renamed, and it says which run
it is of. So the same command goes on after any end, on one machine, in a job array or on Ray.
"""
