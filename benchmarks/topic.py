"""Names that the workload and its contenders share. Without imports: what a contender imports is in its CPU time."""

NAME = "metrics-1s"
TOPIC = "metrics"
PARTITIONS = 4
TABLE = "metrics"
FIELDS = {"ts": "int64", "user": "int64", "metric": "string", "value": "double", "host": "string", "region": "string"}
"""Of an event, in job files."""
