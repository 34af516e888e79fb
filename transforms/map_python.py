"""A Python function over batches, as a step of MapEvents: Arrow, pandas, Polars or NumPy in and out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from streamgauge.transforms.batch import POSITION, SPLIT
from streamgauge.transforms.config import Config, did_you_mean, user_error
from streamgauge.transforms.formats.fields import FieldSchema, arrow_schema, fields_of
from streamgauge.transforms.map_steps import Mapped, RowFailed, by_halves, replaced, whole, with_fields

MAX_MESSAGE_CHARACTERS = 500


class ContractError(ValueError):
    """The function did not return what MapEvents was told. That is about no event, so it fails the job: asked for one event, a function that
    returns a mean would be right by chance."""


def load(name: str) -> Callable[[Any], Any]:
    """The function ``module:name``. Raises a user's error when there is none."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise user_error(f"'{name}' is no function; write `module:name`, such as `analytics.scores:score`")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the user's module does when it is imported
        raise user_error(f"the module '{module}' cannot be imported: {type(error).__name__}: {error}; it must be installed, or on PYTHONPATH, wherever the job runs") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise user_error(f"'{module}' has no '{attribute}'{did_you_mean(part, [known for known in dir(found) if not known.startswith('_')])}")
        found = getattr(found, part)
    if not callable(found):
        raise user_error(f"'{name}' is {type(found).__name__}, and no function")
    return found  # type: ignore[no-any-return]


def _function(value: object) -> object:
    if callable(value):
        return value
    if not isinstance(value, str):
        raise user_error(f"expected `module:name`, found {value!r}")
    load(value)
    return value


Function = Annotated[
    Any, BeforeValidator(_function), WithJsonSchema({"type": "string", "pattern": r"^[\w.]+:[\w.]+$", "examples": ["analytics.scores:score"]}),
    PlainSerializer(lambda value: value if isinstance(value, str) else getattr(value, "__qualname__", repr(value)), return_type=str),
]  # fmt: skip
"""``module:name``; in Python programs also the function itself."""


class PythonOptions(Config):
    """A Python function that makes fields of a whole batch at once."""

    function: Function = Field(description="The function, `module:name`. It takes a batch and returns one value for each of its rows and each field of `schema`.")
    takes: Literal["batch", "pandas", "polars", "numpy"] = Field(
        "batch", description="What it takes and returns: a pyarrow RecordBatch (or Table), a pandas or Polars frame, or a mapping of names to NumPy arrays."
    )
    fields: FieldSchema = Field(alias="schema", description="The fields that it makes, {name: type}; those that are there are replaced.")


class Python:
    """Calls the function; what it makes is taken by name and cast to the declared types."""

    def __init__(self, schema: pa.Schema, options: PythonOptions) -> None:
        self._options = options
        self._made = arrow_schema(fields_of(options.fields))
        self._hidden = [name for name in (SPLIT, POSITION) if name in schema.names]
        self.schema = with_fields(schema, list(self._made))
        self._loaded: Callable[[Any], Any] | None = None
        if options.takes in ("pandas", "polars"):
            _library(options.takes)
        self._check(schema)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def _check(self, schema: pa.Schema) -> None:
        """Asks the function for no events; a user's error when its answer is not what is declared. It may raise: no rows may be none of its business."""
        try:
            self._answer(pa.record_batch([pa.array([], field.type) for field in schema], schema=schema))
        except ContractError as error:
            raise user_error(str(error)) from None
        except RowFailed as error:
            if error.error_type == "type":
                raise user_error(str(error)) from None

    def __call__(self, events: pa.RecordBatch) -> Mapped:
        pieces, rows, failed = by_halves(events, self._answer)
        made = whole(pieces, self._made.types)
        return Mapped(replaced(events, rows, self._made.names, made, self.schema), rows, failed)

    def _answer(self, events: pa.RecordBatch) -> list[pa.Array]:
        if self._loaded is None:
            self._loaded = load(self._options.function) if isinstance(self._options.function, str) else self._options.function
        give, take = _TAKES[self._options.takes]
        given = give(events.drop_columns(self._hidden))
        try:
            answer = self._loaded(given)
        except Exception as error:  # the function is the user's: whatever it raises is about these events
            raise RowFailed("function", _short(f"{type(error).__name__}: {error}")) from None
        columns = take(answer)
        if columns is None:
            wanted = {"batch": "a RecordBatch", "pandas": "a pandas DataFrame", "polars": "a Polars DataFrame", "numpy": "a mapping of names to arrays"}
            raise ContractError(f"the function returned {type(answer).__name__}; expected {wanted[self._options.takes]}")
        return [self._column(columns, field, events.num_rows) for field in self._made]

    def _column(self, columns: Mapping[str, Any], field: pa.Field, rows: int) -> pa.Array:
        if field.name not in columns:
            raise ContractError(f"the function returned no field '{field.name}'{did_you_mean(field.name, list(columns))}; it has {', '.join(columns) or 'none'}")
        try:
            column = _array(columns[field.name])
            if len(column) == rows:
                return column if column.type == field.type else column.cast(field.type)
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise RowFailed("type", _short(f"{field.name}: expected {field.type}: {error}")) from None
        raise ContractError(f"the function returned {len(column)} values of '{field.name}' for {rows} events; only `where` drops events")


def _array(values: Any) -> pa.Array:
    """Of a column as the libraries have it. What NumPy holds is copied: the function may write there again."""
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(np.array(values.data), mask=np.ma.getmaskarray(values))
    if isinstance(values, np.ndarray):
        return pa.array(np.array(values))
    made = pa.array(values)
    return made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made


def _short(message: str) -> str:
    return " ".join(message.split())[:MAX_MESSAGE_CHARACTERS]


def _from_pandas(frame: Any) -> Mapping[str, Any] | None:
    pandas = _library("pandas")
    if not isinstance(frame, pandas.DataFrame):
        return None
    arrow = pandas.ArrowDtype
    # A copy, where the column is not Arrow's own: the function may write there again.
    return {str(name): pa.array(column if isinstance(column.dtype, arrow) else column.copy(), from_pandas=True) for name, column in frame.items()}


class Arrays(Mapping[str, Any]):
    """A batch as NumPy arrays by name, each made when it is first asked for: texts become objects, which costs."""

    def __init__(self, events: pa.RecordBatch) -> None:
        self._events = events
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            if name not in self._events.schema.names:
                raise KeyError(name)
            self._made[name] = _numpy_column(self._events.column(name))
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._events.schema.names)

    def __len__(self) -> int:
        return len(self._events.schema.names)


def _numpy_column(column: pa.Array) -> Any:
    """Numbers and booleans with nulls are masked arrays, so that an int64 stays one; texts are objects, null is None."""
    kind = column.type
    if column.null_count and (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        filled = column.fill_null(False if pa.types.is_boolean(kind) else 0)
        return np.ma.MaskedArray(filled.to_numpy(zero_copy_only=False), column.is_null().to_numpy(zero_copy_only=False))
    return column.to_numpy(zero_copy_only=False)


def _to_pandas(events: pa.RecordBatch) -> Any:
    return events.to_pandas(types_mapper=_library("pandas").ArrowDtype)


def _to_polars(events: pa.RecordBatch) -> Any:
    return _library("polars").from_arrow(events)


def _from_polars(frame: Any) -> Mapping[str, Any] | None:
    return {column.name: column.to_arrow() for column in frame.get_columns()} if isinstance(frame, _library("polars").DataFrame) else None


def _from_batch(batch: Any) -> Mapping[str, Any] | None:
    return dict(zip(batch.schema.names, batch.columns, strict=True)) if isinstance(batch, (pa.RecordBatch, pa.Table)) else None


def _from_numpy(arrays: Any) -> Mapping[str, Any] | None:
    return arrays if isinstance(arrays, Mapping) else None


_TAKES: dict[str, tuple[Callable[[pa.RecordBatch], Any], Callable[[Any], Mapping[str, Any] | None]]] = {
    "batch": (lambda events: events, _from_batch), "pandas": (_to_pandas, _from_pandas), "polars": (_to_polars, _from_polars), "numpy": (Arrays, _from_numpy),
}  # fmt: skip


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise user_error(f"`takes: {name}` needs {name}; install it with: pip install 'streamgauge[frames]'") from None
