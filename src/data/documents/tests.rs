use super::*;
use flate2::{Compression, write::GzEncoder};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

pub(super) fn documents(pieces: &[Piece]) -> Vec<String> {
    let mut documents: Vec<String> = Vec::new();
    for piece in pieces {
        if piece.starts_document {
            documents.push(String::new());
        }
        documents.last_mut().unwrap().push_str(&piece.text);
    }
    documents
}

fn read(path: &Path, format: &Format) -> Result<(Vec<String>, u64)> {
    let source = Source { path: path.to_owned(), bytes: fs::metadata(path)?.len(), remote: None };
    let (mut pieces, done) = (Vec::new(), Arc::default());
    source.read(format, &mut Notes::default(), &done, &mut |piece| {
        pieces.push(piece);
        Ok(())
    })?;
    Ok((documents(&pieces), done.load(Relaxed)))
}

fn gzip(text: &str) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(text.as_bytes()).unwrap();
    out.finish().unwrap()
}

/// The same two documents in every form, with and without a byte-order mark and compression.
#[test]
fn every_form_of_a_corpus_gives_its_documents() {
    let dir = tempfile::tempdir().unwrap();
    let long = "a long story ".repeat(9_000);
    let lines = format!("{{\"text\": \"{long}\"}}\n{{\"text\": \"two\"}}\n");
    let array = format!("[{}]\n", lines.trim().replace('\n', ",\n"));
    let marked = format!("{long}<|endoftext|>\ntwo");
    for (name, text) in [("l.ndjson", &lines), ("l.data", &lines), ("a.json", &array), ("a.txt", &array)] {
        for mark in ["", "\u{feff}"] {
            let text = format!("{mark}{text}");
            for bytes in [text.clone().into_bytes(), gzip(&text)] {
                fs::write(dir.path().join(name), &bytes).unwrap();
                let (found, done) = read(&dir.path().join(name), &Format::default()).unwrap();
                assert!(found == [long.as_str(), "two"], "{name}");
                assert_eq!(done, bytes.len() as u64, "compressed bytes are counted");
            }
        }
    }
    fs::write(dir.path().join("t"), format!("\u{feff}{marked}")).unwrap();
    assert!(read(&dir.path().join("t"), &Format::default()).unwrap().0 == [long.trim_end(), "two"]);
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    let text = "some words ".repeat(100_000);
    for (len, expected) in [(300_000, "it shrank while"), (9_000_000, "it grew while")] {
        fs::write(&path, &text).unwrap();
        let source = Source { path: path.clone(), bytes: text.len() as u64, remote: None };
        let mut changed = false;
        let read = source.read(&Format::default(), &mut Notes::default(), &Arc::default(), &mut |_| {
            if !std::mem::replace(&mut changed, true) {
                let grown = text.repeat(10);
                fs::File::options().write(true).open(&path)?.write_all(grown.as_bytes())?;
                fs::File::options().write(true).open(&path)?.set_len(len)?;
            }
            Ok(())
        });
        let error = read.unwrap_err().to_string();
        assert!(
            error.contains("a.txt: ") && error.contains(expected) && error.contains("1100000"),
            "{error}"
        );
    }
}

#[test]
fn damaged_compressed_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt.gz");
    let whole = gzip(&"some words and more ".repeat(20_000));
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let error = format!("{:#}", read(&path, &Format::default()).unwrap_err());
    assert!(error.ends_with("a.txt.gz: cannot read: the gzip data are damaged or cut short"), "{error}");
}
