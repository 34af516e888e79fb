"""Pipeline options of our own: what a runner preset tells the transforms."""

from __future__ import annotations

from argparse import ArgumentParser

from apache_beam.options.pipeline_options import PipelineOptions


class StreamgaugeOptions(PipelineOptions):  # type: ignore[misc]
    """Read while the pipeline is built, so that a job that restarts itself needs no file but those in the record folder."""

    @classmethod
    def _add_argparse_args(cls, parser: ArgumentParser) -> None:
        parser.add_argument("--record_folder", default=None, help="Folder shared by all workers in which the job says what it read and wrote.")
        parser.add_argument(
            "--earlier_layouts", default=None, help="File with the layouts (state_layout.py) of the runs whose state this run starts from, and its own."
        )
        parser.add_argument(
            "--replay_point", default=None, help="File with the positions (replay.py) from which this run reads what an earlier one had not finished."
        )
