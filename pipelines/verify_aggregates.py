"""What each aggregate of a metric should be, in SQL over the events of a window: ours computes it from states, this from the values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from streamgauge.pipelines.verify_sql import sql_type
from streamgauge.transforms.aggregate import AggregateOptions
from streamgauge.transforms.config import Choice
from streamgauge.transforms.expressions import fields_in

_FLOATS = ("FLOAT", "DOUBLE")
_ORDER = "row(time, split, position)"
_LARGEST_SQUARED = 1e150


class Expected(NamedTuple):
    """SQL over the events of one window and key.

    Attributes:
        value: what is stored.
        sizes: the sum of its terms' sizes, which rounding goes by; NULL where it must be exact.
        known: whether the value is known, where that depends on the values.
    """

    value: str
    sizes: str = "NULL"
    known: str = "true"


class Columns:
    """SQL of the columns of a table of events (see verify_sql), for aggregates.

    Args:
        fields: their declared types by name, in the order of f0, f1, ... schema: their Arrow types.

    Attributes:
        conditions: by the SQL of the user's conditions, the name of a column that says whether an event meets it.
    """

    def __init__(self, fields: Mapping[str, str], schema: pa.Schema) -> None:
        self._places = {name: index for index, name in enumerate(fields)}
        self._kinds = {name: sql_type(kind) for name, kind in fields.items()}
        self._schema = schema
        self.conditions: dict[str, str] = {}

    def condition(self, sql: str) -> str:
        return self.conditions.setdefault(sql, f"c{len(self.conditions)}")

    def field(self, name: str) -> str:
        return f"f{self._places[name]}"

    def is_field(self, name: str) -> bool:
        return name in self._places

    def is_float(self, name: str) -> bool:
        return self._kinds[name] in _FLOATS

    def judged(self, events: str) -> str:
        """SQL of the table ``events`` with a column for each condition: false where it is null or has no value."""
        if not self.conditions:
            return events
        used = sorted({name for sql in self.conditions for name in fields_in(sql, self._schema)})
        named = [f"{self._declared(name)} AS {_quoted(name)}" for name in used]
        judged = [f"coalesce(TRY({sql}\n), false) AS {column}" for sql, column in self.conditions.items()]
        # Fields may have the names of our columns: conditions are evaluated over their fields alone.
        return f"(SELECT __event.*, {', '.join(judged)} FROM (SELECT {events} AS __event, {', '.join(named or ['0'])} FROM {events}))"

    def _declared(self, name: str) -> str:
        if name == "__time":
            return "make_timestamptz(time)"
        kind, column = self._schema.field(name).type, self.field(name)
        if pa.types.is_timestamp(kind):
            return f"make_timestamp{'tz' if kind.tz else ''}({column})"
        if pa.types.is_date(kind):
            return f"(DATE '1970-01-01' + {column})"
        if pa.types.is_integer(kind):
            bits, sign = kind.bit_width, "U" if pa.types.is_unsigned_integer(kind) else ""
            return f"{column}::{sign}{ {8: 'TINYINT', 16: 'SMALLINT', 32: 'INTEGER', 64: 'BIGINT'}[bits] }"
        return column


def expected(columns: Columns, choice: Choice) -> Expected | None:
    """None: only the job itself can compute it."""
    make = _KNOWN.get(choice.name)
    return None if make is None else make(columns, choice.options)


def unknown_aggregates(options: AggregateOptions) -> list[str]:
    """Aggregates that only the job itself can compute."""
    return [f"{name} ({choice.name})" for name, choice in options.aggregates.items() if choice.name not in _KNOWN]


def fields_used(options: AggregateOptions, schema: pa.Schema) -> list[str]:
    """Fields on which the rows depend."""
    used = list(options.by.values())
    for choice in options.aggregates.values():
        given = choice.options
        for key in ("of", "by", "x", "y", "to", "where"):
            text = getattr(given, key, None)
            if isinstance(text, str):
                used += [text] if text in schema.names else sorted(fields_in(text, schema))
    return [name for name in dict.fromkeys(used) if not name.startswith("__")]


def _counted(columns: Columns, options: Any, column: str) -> str:
    """The column, null for events that do not count."""
    return column if options.where is None else f"(CASE WHEN {columns.condition(options.where)} THEN {column} END)"


def _value(columns: Columns, options: Any) -> str:
    return _counted(columns, options, columns.field(options.of))


def _count(columns: Columns, options: Any) -> Expected:
    return Expected(f"count({_counted(columns, options, '1') if options.of is None else _value(columns, options)})")


def _sum(columns: Columns, options: Any) -> Expected:
    value = _value(columns, options)
    if columns.is_float(options.of):
        return Expected(f"fsum({value}::DOUBLE)", f"fsum(abs({value}::DOUBLE))")
    return Expected(f"CASE WHEN sum({value}::HUGEINT) BETWEEN -9223372036854775808 AND 9223372036854775807 THEN sum({value}::HUGEINT) END")


def _mean(columns: Columns, options: Any) -> Expected:
    value = _value(columns, options)
    count = f"nullif(count({value}), 0)"
    return Expected(f"fsum({value}::DOUBLE) / {count}", f"fsum(abs({value}::DOUBLE)) / {count}")


def _extreme(name: str) -> Callable[[Columns, Any], Expected]:
    return lambda columns, options: Expected(f"{name}({_value(columns, options)})")


def _pick(name: str) -> Callable[[Columns, Any], Expected]:
    def made(columns: Columns, options: Any) -> Expected:
        value = _value(columns, options)
        return Expected(f"{name}({value}, {_ORDER}) FILTER ({value} IS NOT NULL)")

    return made


def _arg(sign: str) -> Callable[[Columns, Any], Expected]:
    def made(columns: Columns, options: Any) -> Expected:
        value, by = _value(columns, options), columns.field(options.by)
        numbers = by if columns.is_float(options.by) else f"{by}::HUGEINT"
        return Expected(f"arg_min({value}, row({sign}({numbers}), time, split, position)) FILTER ({value} IS NOT NULL AND {by} IS NOT NULL)")

    return made


def _spread(name: str, root: str) -> Callable[[Columns, Any], Expected]:
    def made(columns: Columns, options: Any) -> Expected:
        value = f"{_value(columns, options)}::DOUBLE"
        tame = f"(CASE WHEN abs({value}) < {_LARGEST_SQUARED} THEN {value} END)"
        sizes = f"fsum({tame} * {tame}) / nullif(count({tame}), 0)"
        function = f"{name}_{'pop' if options.population else 'samp'}"
        return Expected(f"{function}({tame})", f"{root}({sizes})", f"count({tame}) = count({value})")

    return made


def _truth(name: str) -> Callable[[Columns, Any], Expected]:
    def made(columns: Columns, options: Any) -> Expected:
        met = columns.field(options.of) if columns.is_field(options.of) else columns.condition(options.of)
        return Expected(f"{name}({_counted(columns, options, met)})")

    return made


def _ratio(columns: Columns, options: Any) -> Expected:
    met, of_all = (_counted(columns, options, f"(CASE WHEN {columns.condition(sql)} THEN 1 END)" if sql else "1") for sql in (options.of, options.to))
    return Expected(f"count({met})::DOUBLE / nullif(count({of_all}), 0)::DOUBLE")


def _distinct(columns: Columns, options: Any) -> Expected:
    number = f"count(DISTINCT {_value(columns, options)})"
    return Expected(number, known="true" if options.exact else f"{number} <= {options.exact_up_to}")


def _mode(columns: Columns, options: Any) -> Expected:
    entries = f"map_entries(histogram({_value(columns, options)}))"
    return Expected(f"list_sort(list_transform({entries}, lambda e: {{'n': -(e.value::BIGINT), 'v': e.key}}))[1].v")


_KNOWN: dict[str, Callable[[Columns, Any], Expected]] = {
    "count": _count, "sum": _sum, "mean": _mean, "min": _extreme("min"), "max": _extreme("max"), "first": _pick("arg_min"), "last": _pick("arg_max"),
    "argmin": _arg(""), "argmax": _arg("-"), "variance": _spread("var", ""), "stddev": _spread("stddev", "sqrt"), "any": _truth("bool_or"), "all": _truth("bool_and"),
    "ratio": _ratio, "distinct": _distinct, "mode": _mode,
}  # fmt: skip


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
