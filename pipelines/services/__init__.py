"""The servers beside a job: an embedded Flink, Kafka and QuestDB, run from locked jars on a JRE wheel."""

from streamgauge.pipelines.services.errors import ServiceError

__all__ = ["ServiceError"]
