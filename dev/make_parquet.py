#!/usr/bin/env python3
"""Writes tests/fixtures/parquet/: small files as pyarrow writes them, so that `cargo test` needs no Python.

    pip install pyarrow==26.0.1
    python dev/make_parquet.py

Running it again with the same pyarrow gives the same bytes, except for the encrypted files, whose keys are random.
"""

from __future__ import annotations

import base64
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "parquet"

# Seven rows in three row groups: a null, an empty text, characters of several bytes, repetitions.
TEXTS = ["One fine day.", None, "", "naïve café — 你好 🦀", "again", "again", "The <|endoftext|> end.\n"]
TABLE = pa.table({
    "id": pa.array(range(7), pa.int64()),
    "text": pa.array(TEXTS, pa.string()),
    "meta": pa.array([{"url": f"https://example.org/{i}"} for i in range(7)], pa.struct([("url", pa.string())])),
    "tags": pa.array([["a", "b"]] * 7, pa.list_(pa.string())),
})


def with_text(kind: pa.DataType) -> pa.Table:
    return TABLE.set_column(1, "text", TABLE["text"].cast(kind))


class Keys(pe.KmsClient):
    """Wraps keys without protecting them: the files are for tests."""

    def __init__(self, _config: object) -> None:
        pe.KmsClient.__init__(self)

    def wrap_key(self, key: bytes, _name: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, wrapped: bytes, _name: str) -> bytes:
        return base64.b64decode(wrapped)


def write_encrypted(path: Path, *, plaintext_footer: bool) -> None:
    config = pe.EncryptionConfiguration(
        footer_key="footer", column_keys={"column": ["text"]}, plaintext_footer=plaintext_footer
    )
    factory = pe.CryptoFactory(Keys)
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(path, TABLE.schema, encryption_properties=properties) as writer:
        writer.write_table(TABLE)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for codec in ["snappy", "gzip", "zstd", "lz4", "none"]:
        pq.write_table(TABLE, OUT / f"{codec}.parquet", compression=codec, row_group_size=3)
    pq.write_table(TABLE, OUT / "brotli.parquet", compression="brotli")
    pq.write_table(with_text(pa.large_string()), OUT / "large_string.parquet", data_page_version="2.0")
    pq.write_table(with_text(pa.binary()), OUT / "binary.parquet", use_dictionary=False)
    pq.write_table(with_text(pa.dictionary(pa.int32(), pa.string())), OUT / "dictionary.parquet")
    required = pa.schema([pa.field("text", pa.string(), nullable=False)])
    pq.write_table(pa.table({"text": ["One fine day.", "again"]}, schema=required), OUT / "required.parquet")
    pq.write_table(TABLE.slice(0, 0), OUT / "empty.parquet")
    latin = pa.table({"text": pa.array([b"fine", "café".encode("latin-1")], pa.binary())})
    pq.write_table(latin, OUT / "latin1.parquet")
    write_encrypted(OUT / "encrypted.parquet", plaintext_footer=False)
    write_encrypted(OUT / "encrypted_column.parquet", plaintext_footer=True)


if __name__ == "__main__":
    main()
