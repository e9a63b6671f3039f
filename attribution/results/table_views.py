"""Tidy tables of a result as CSV and Parquet; `attribution_reading.tidy_table` defines their rows and columns."""

from __future__ import annotations

import io

import orjson
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from inseq.data import FeatureAttributionOutput

from attribution.results.aggregation import aggregate
from attribution.results.inseq_fields import without_notes
from attribution.results.scored_sequences import scored_sequences
from attribution_reading.tidy_table import attributions_table, step_scores_table
from attribution_schema.view_options import ViewOptions
from problems import InvalidRequest

MOST_ROWS = 3_000_000  # making that many takes about half a gigabyte


def csv_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """Return CSV (RFC 4180) in UTF-8 with a header line: text is quoted, numbers are not, and a null is an empty field.

    Texts are exact, because the table is data, unless `options.escape_formulas` asks for texts that are safe in a
    spreadsheet. Raises `InvalidRequest` for more than `MOST_ROWS` scores.
    """
    written = io.BytesIO()
    table = _table(output, options)
    pyarrow.csv.write_csv(escaped(table) if options.escape_formulas else table, written)
    return written.getvalue()


def parquet_view(output: FeatureAttributionOutput, options: ViewOptions) -> bytes:
    """Return Parquet, with the result's `info` as JSON in the schema's metadata.

    Raises `InvalidRequest` for more than `MOST_ROWS` scores.
    """
    written = io.BytesIO()
    table = _table(output, options).replace_schema_metadata({"info": orjson.dumps(without_notes(output.info))})
    pyarrow.parquet.write_table(table, written, compression="zstd")
    return written.getvalue()


def _table(output: FeatureAttributionOutput, options: ViewOptions) -> pa.Table:
    aggregated = aggregate(output, options)
    _check_size(aggregated)
    sequences = scored_sequences(aggregated, with_text=options.decode_tokens)
    return step_scores_table(sequences) if options.table == "step_scores" else attributions_table(sequences)


def escaped(table: pa.Table) -> pa.Table:
    """Return the table with an apostrophe before each text that a spreadsheet could take for a formula.

    Those are texts that begin with a character of OWASP's list ("CSV Injection"), in full width too.
    """
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            texts = pa.compute.replace_substring_regex(table[index], r"^([=+\-@\t\r\n＝＋－＠])", r"'\1")  # noqa: RUF001
            table = table.set_column(index, field, texts)
    return table


def _check_size(output: FeatureAttributionOutput) -> None:
    """Raise `InvalidRequest` for too many scores, before any row is made."""
    rows = sum(
        tensor.numel()
        for sequence in output.sequence_attributions
        for tensor in (sequence.source_attributions, sequence.target_attributions)
        if tensor is not None
    )
    if rows > MOST_ROWS:
        raise InvalidRequest(
            f"{rows} scores are too many for a table (at most {MOST_ROWS}). Aggregate them, or ask for format=inseq."
        )
