"""Pipeline options of our own: what a runner preset tells the transforms."""

from __future__ import annotations

from argparse import ArgumentParser

from apache_beam.options.pipeline_options import PipelineOptions


class StreamgaugeOptions(PipelineOptions):  # type: ignore[misc]
    """``--record_folder``: where the job keeps its record (see record.py), on a path that all workers share."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--record_folder", default=None, help="Folder shared by all workers in which the job says what it read and wrote.")
