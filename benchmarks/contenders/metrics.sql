-- The workload metrics-1s in Flink SQL; flink_sql.py fills in what begins with a dollar sign.
CREATE TABLE events (
    ts BIGINT, `user` BIGINT, metric STRING, `value` DOUBLE, host STRING, region STRING,
    event_time AS TO_TIMESTAMP_LTZ(ts, 3),
    WATERMARK FOR event_time AS event_time - INTERVAL '0.5' SECOND
) WITH (
    'connector' = 'kafka',
    'topic' = '$topic',
    'properties.bootstrap.servers' = '$brokers',
    'properties.group.id' = 'flink-sql',
    'properties.max.partition.fetch.bytes' = '8388608',
    'properties.max.poll.records' = '10000',
    'scan.startup.mode' = 'earliest-offset',
    'scan.bounded.mode' = 'specific-offsets',
    'scan.bounded.specific-offsets' = '$stop',
    'format' = 'json'
);

CREATE TABLE results (
    window_start TIMESTAMP(3), series STRING, host STRING, events BIGINT, total DOUBLE, lo DOUBLE, hi DOUBLE
) WITH ('connector' = 'filesystem', 'path' = '$results', 'format' = 'csv');

INSERT INTO results
SELECT window_start, metric, host, COUNT(*), SUM(`value`), MIN(`value`), MAX(`value`)
FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(event_time), INTERVAL '1' SECOND))
GROUP BY window_start, window_end, metric, host;
