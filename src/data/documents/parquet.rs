//! Reads a column of text from parquet files, row group by row group, so that threads can share a
//! file.

use super::input::check_length;
use super::{Format, Notes, Piece};
use crate::files;
use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Once};

/// First bytes of a parquet file; those of one whose footer is encrypted.
const MAGIC: [&[u8]; 2] = [b"PAR1", b"PARE"];

/// Rows decoded at a time. Their text is not copied until it becomes a document.
const ROWS: usize = 256;

/// Most names of columns in an error.
const MOST_NAMES: usize = 12;

/// Whether a file that starts with `head` is a parquet file.
pub(super) fn is_parquet(head: &[u8]) -> bool {
    MAGIC.iter().any(|magic| head.starts_with(magic))
}

/// An open parquet file with a column of text.
pub(super) struct ParquetFile {
    name: String,
    file: Arc<File>,
    reader: SerializedFileReader<Positioned>,
    /// Index of the column.
    column: usize,
    bytes: u64,
}

impl ParquetFile {
    /// Opens the file at `path` and finds the column of text.
    ///
    /// # Errors
    /// One line, if the file cannot be read, is damaged, cut short or encrypted, or has no such
    /// column, or the column is not text.
    pub fn open(path: &Path, format: &Format) -> Result<Self> {
        let name = path.display().to_string();
        let (file, metadata) = files::open(path)?;
        let bytes = metadata.len();
        let mut start = [0; 4];
        file.read_exact_at(&mut start, 0).with_context(|| format!("{name}: cannot read"))?;
        ensure!(start != MAGIC[1], "{name}: an encrypted parquet file; decrypt it first");
        let file = Arc::new(file);
        let positioned = Positioned { file: Arc::clone(&file), bytes };
        let reader = guarded(|| SerializedFileReader::new(positioned)).map_err(|e| fault(&name, &e))?;
        let column = find_column(&reader, format).with_context(|| name.clone())?;
        Ok(ParquetFile { name, file, reader, column, bytes })
    }

    pub fn row_groups(&self) -> usize {
        self.reader.num_row_groups()
    }

    /// The part of the file's bytes that counts as read when a row group is.
    pub fn share(&self, group: usize) -> u64 {
        let (groups, group) = (self.row_groups() as u64, group as u64);
        self.bytes * (group + 1) / groups - self.bytes * group / groups
    }

    /// Passes the text of all rows of a row group to `sink`, in order: a document each. Rows
    /// without text are counted.
    ///
    /// # Errors
    /// One line, if the data are damaged, a text is not UTF-8, or the file has changed since it was
    /// opened.
    pub fn read(
        &self,
        group: usize,
        format: &Format,
        notes: &mut Notes,
        sink: &mut dyn FnMut(Piece) -> Result<()>,
    ) -> Result<()> {
        let failed = |e: ParquetError| fault(&self.name, &e);
        let mut column = guarded(|| self.column_reader(group)).map_err(failed)?;
        let descriptor = self.reader.metadata().file_metadata().schema_descr().column(self.column);
        let defined = descriptor.max_def_level();
        let before: i64 =
            (0..group).map(|g| self.reader.metadata().row_group(g).num_rows()).fold(0, i64::saturating_add);
        let (mut levels, mut texts, mut row) = (Vec::new(), Vec::new(), before);
        loop {
            levels.clear();
            texts.clear();
            let read = guarded(|| column.read_records(ROWS, Some(&mut levels), None, &mut texts));
            let (rows, ..) = read.map_err(failed)?;
            if rows == 0 {
                break;
            }
            let is_there = |i: usize| defined == 0 || levels.get(i) == Some(&defined);
            let mut next = texts.drain(..);
            for i in 0..rows {
                row = row.saturating_add(1);
                let text = if is_there(i) { next.next() } else { None };
                self.add(text, row, format, notes, sink)?;
            }
        }
        let expected = self.reader.metadata().row_group(group).num_rows();
        let found = row - before;
        ensure!(
            expected == found,
            "{}: row group {group} has {found} rows, its header says {expected}; the file is damaged",
            self.name
        );
        let bytes = self.file.metadata().map_or(0, |m| m.len());
        check_length(&self.name, self.bytes, bytes)
    }

    fn add(
        &self,
        text: Option<ByteArray>,
        row: i64,
        format: &Format,
        notes: &mut Notes,
        sink: &mut dyn FnMut(Piece) -> Result<()>,
    ) -> Result<()> {
        let place = || format!("{}: row {row}", self.name);
        let Some(text) = text else {
            notes.empty_rows.add(place);
            return Ok(());
        };
        match std::str::from_utf8(text.data()) {
            Ok("") => Ok(()),
            Ok(text) => sink(Piece { starts_document: true, text: text.to_owned() }),
            Err(e) => {
                let at = e.valid_up_to();
                let fault = format!("{}: byte {at} of its text is not UTF-8", place());
                ensure!(
                    format.skip_bad_lines,
                    "{fault}; export the column as UTF-8, or leave such rows out with --skip-bad-lines"
                );
                notes.skipped.add(|| fault);
                Ok(())
            }
        }
    }

    fn column_reader(&self, group: usize) -> ParquetResult<ColumnReaderImpl<ByteArrayType>> {
        match self.reader.get_row_group(group)?.get_column_reader(self.column)? {
            ColumnReader::ByteArrayColumnReader(reader) => Ok(reader),
            _ => Err(ParquetError::General("the type of a column changes".to_owned())),
        }
    }
}

/// Finds the column of text: by its path (`meta.text`) or the name of a top-level field.
fn find_column(reader: &SerializedFileReader<Positioned>, format: &Format) -> Result<usize> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let wanted = format.field();
    let columns: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
    let Some(index) = columns.iter().position(|column| column == wanted) else {
        let more = columns.len().saturating_sub(MOST_NAMES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let names = columns[..columns.len().min(MOST_NAMES)].join(", ");
        bail!("no column \"{wanted}\"; name the one with the text with --text-column: {names}{more}");
    };
    let column = schema.column(index);
    ensure!(is_text(&column), "column \"{wanted}\" is {}, expected text", type_of(&column));
    Ok(index)
}

/// Whether a column may hold text: strings, or bytes without another meaning.
fn is_text(column: &ColumnDescriptor) -> bool {
    let plain = matches!(column.logical_type_ref(), None | Some(LogicalType::String | LogicalType::Json));
    let converted =
        matches!(column.converted_type(), ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::JSON);
    column.physical_type() == Type::BYTE_ARRAY && column.max_rep_level() == 0 && plain && converted
}

fn type_of(column: &ColumnDescriptor) -> String {
    let list = if column.max_rep_level() > 0 { "a list of " } else { "" };
    let logical = column.logical_type_ref().map(|logical| format!(" ({logical:?})")).unwrap_or_default();
    format!("{list}{}{logical}", column.physical_type())
}

/// Calls the parquet crate. A panic there is the fault of a damaged file: it becomes an error, and
/// is not reported as a bug.
fn guarded<T>(call: impl FnOnce() -> ParquetResult<T>) -> ParquetResult<T> {
    thread_local! {
        static GUARDED: Cell<bool> = const { Cell::new(false) };
    }
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                report(info);
            }
        }));
    });
    GUARDED.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(false);
    result.unwrap_or_else(|_| Err(ParquetError::General("unexpected values".to_owned())))
}

fn fault(name: &str, error: &ParquetError) -> anyhow::Error {
    let text = match error {
        ParquetError::General(text) | ParquetError::EOF(text) | ParquetError::NYI(text) => text.clone(),
        other => other.to_string(),
    };
    let text = text.replace('\n', " ");
    match () {
        // How the footer of a file with encrypted columns looks without the keys.
        () if text.contains("field type_ is missing") => {
            anyhow!("{name}: its columns are encrypted, or the parquet data are damaged; decrypt it first")
        }
        () if text.contains("ncrypt") => anyhow!("{name}: an encrypted parquet file; decrypt it first"),
        // A codec that the parquet crate was built without.
        () if text.contains("at compile time") => {
            anyhow!("{name}: its codec is not supported; write it with snappy or zstd")
        }
        () => anyhow!("{name}: the parquet data are damaged or cut short: {text}"),
    }
}

/// A file that several threads read, each at positions of its own.
struct Positioned {
    file: Arc<File>,
    bytes: u64,
}

/// A position in a file.
struct Cursor {
    file: Arc<File>,
    at: u64,
}

impl Read for Cursor {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(out, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Length for Positioned {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Positioned {
    type T = BufReader<Cursor>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(BufReader::new(Cursor { file: Arc::clone(&self.file), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        // Checked before memory is allocated: a damaged file may ask for anything.
        if start.checked_add(length as u64).is_none_or(|end| end > self.bytes) {
            return Err(ParquetError::EOF(format!(
                "{length} bytes at {start} lie beyond the end of {} bytes",
                self.bytes
            )));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::documents;
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    /// Files that pyarrow wrote: `dev/make_parquet.py`.
    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parquet").join(name)
    }

    fn read(path: &Path, format: &Format) -> Result<(Vec<String>, Notes)> {
        let file = ParquetFile::open(path, format)?;
        let (mut pieces, mut notes) = (Vec::new(), Notes::default());
        for group in 0..file.row_groups() {
            file.read(group, format, &mut notes, &mut |piece| {
                pieces.push(piece);
                Ok(())
            })?;
        }
        let shares: u64 = (0..file.row_groups()).map(|group| file.share(group)).sum();
        assert_eq!(shares, fs::metadata(path)?.len() * u64::from(file.row_groups() > 0));
        Ok((documents(&pieces), notes))
    }

    fn column(name: &str) -> Format {
        Format { text_column: Some(name.to_owned()), ..Format::default() }
    }

    fn refuse(path: &Path, format: &Format) -> String {
        let error = format!("{:#}", read(path, format).map(drop).unwrap_err());
        assert!(error.contains(path.to_str().unwrap()) && !error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn text_is_read_whatever_the_codec_and_the_type_of_strings() {
        let expected =
            ["One fine day.", "naïve café — 你好 🦀", "again", "again", "The <|endoftext|> end.\n"];
        for name in ["snappy", "gzip", "zstd", "lz4", "none", "large_string", "binary", "dictionary"] {
            let path = fixture(&format!("{name}.parquet"));
            let (found, notes) = read(&path, &Format::default()).unwrap();
            assert_eq!(found, expected, "{name}");
            assert_eq!(notes.empty_rows.count, 1);
            assert_eq!(notes.empty_rows.first, format!("{}: row 2", path.display()));
        }
        assert_eq!(
            read(&fixture("required.parquet"), &Format::default()).unwrap().0,
            ["One fine day.", "again"]
        );
        assert!(read(&fixture("empty.parquet"), &Format::default()).unwrap().0.is_empty());
        let urls = read(&fixture("snappy.parquet"), &column("meta.url")).unwrap().0;
        assert_eq!((urls.len(), urls[6].as_str()), (7, "https://example.org/6"));
    }

    #[test]
    fn other_columns_are_refused_by_name_and_type() {
        let path = fixture("zstd.parquet");
        let error = refuse(&path, &column("body"));
        assert!(error.ends_with(
            "no column \"body\"; name the one with the text with --text-column: id, text, meta.url, \
             tags.list.element"
        ));
        assert!(refuse(&path, &column("id")).ends_with("column \"id\" is INT64, expected text"));
        let list = refuse(&path, &column("tags.list.element"));
        assert!(list.contains("is a list of BYTE_ARRAY"), "{list}");
    }

    #[test]
    fn damaged_encrypted_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let whole = fs::read(fixture("zstd.parquet")).unwrap();
        for len in [0, 3, 4, 11, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            let error = refuse(&path, &Format::default());
            assert!(
                len < 4 || error.contains("the parquet data are damaged or cut short: "),
                "{len}: {error}"
            );
        }
        for name in ["encrypted.parquet", "encrypted_column.parquet"] {
            let error = refuse(&fixture(name), &Format::default());
            assert!(error.contains("encrypted") && error.ends_with("; decrypt it first"), "{error}");
        }
        let error = refuse(&fixture("brotli.parquet"), &Format::default());
        assert!(error.ends_with("its codec is not supported; write it with snappy or zstd"), "{error}");
        let error = refuse(&fixture("latin1.parquet"), &Format::default());
        assert!(error.contains("latin1.parquet: row 2: byte 3 of its text is not UTF-8; export"), "{error}");
        let format = Format { skip_bad_lines: true, ..Format::default() };
        let (found, notes) = read(&fixture("latin1.parquet"), &format).unwrap();
        assert_eq!((found, notes.skipped.count), (vec!["fine".to_owned()], 1));
    }

    /// Damage anywhere is an error or changes the text, and never more than that.
    #[test]
    fn damage_anywhere_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        let whole = fs::read(fixture("zstd.parquet")).unwrap();
        let mut refused = 0;
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            refused += usize::from(read(&path, &Format::default()).is_err());
        }
        assert!(refused > whole.len() / 8, "{refused} of {}", whole.len());
    }
}
