//! From files as people have them to a run: parquet and compressed JSON, filters, weights,
//! documents that are shuffled; and the way back to the files of others.

mod common;

use common::{Corpus, forget_after, losses, refuse, stdout, succeed, warpsmith};
use flate2::{Compression, write::GzEncoder};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Writes `web.jsonl.gz`, as datatrove does, and `code.txt`.
fn write_sources(dir: &Path) {
    let line = |i: usize| {
        let text = format!("Page {i} tells of {} rivers and a lake. ", i * i % 97).repeat(1 + i % 5);
        serde_json::json!({"text": text, "id": format!("{i}"), "metadata": {"url": "https://example.org"}})
    };
    let mut web = GzEncoder::new(fs::File::create(dir.join("web.jsonl.gz")).unwrap(), Compression::fast());
    (0..300).for_each(|i| writeln!(web, "{}", line(i)).unwrap());
    web.finish().unwrap();
    let code = |i: usize| format!("fn f{i}() {{ return {} + {i}; }}", i * 7);
    fs::write(dir.join("code.txt"), (0..200).map(code).collect::<Vec<_>>().join("<|endoftext|>")).unwrap();
}

#[test]
fn weighted_inputs_and_filters_say_what_they_did() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    write_sources(dir);
    let report = stdout(&succeed(&mut warpsmith(
        dir,
        "data web.jsonl.gz=0.8 code.txt=0.2 -o m --val-tokens 300 --dedup exact --min-chars 26",
    )));
    assert!(
        report.contains("left out 2 documents, 50 bytes: fewer than 26 characters\n  \"fn f0"),
        "{report}"
    );
    assert!(report.contains("web.jsonl.gz: ") && report.contains("bytes of text, "), "{report}");
    assert!(report.contains(": the mix ends here"), "{report}");
    assert!(report.contains("validation text: drawn from all of the input with seed 42"), "{report}");
    for (flags, expected) in [
        ("web.jsonl.gz=0.8 code.txt -o n", &["code.txt", "has no weight"][..]),
        ("web.jsonl.gz=x -o n", &["web.jsonl.gz=x", "expected a weight above 0"]),
        ("code.txt -o n --scripts klingon", &["--scripts klingon", "such as latin"]),
        ("code.txt -o n --decontaminate none.jsonl", &["--decontaminate none.jsonl"]),
        ("code.txt -o n --val code.txt --val-tokens 3", &["--val"]),
        ("code.txt -o n --dedup fuzzy", &["--dedup", "exact", "minhash"]),
        ("code.txt -o n --min-chars 9 --max-chars 8", &["--min-chars 9", "--max-chars 8"]),
        ("code.txt -o n --min-chars 9999", &["all of it was left out"]),
    ] {
        refuse(&mut warpsmith(dir, &format!("data {flags}")), expected);
        let left = fs::read_dir(dir.join("n")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{flags}");
    }
}

#[test]
fn a_run_on_mixed_sources_resumes_exactly_in_any_split() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    write_sources(dir);
    for name in ["web.jsonl.gz", "code.txt"] {
        let prefix = &name[..4];
        succeed(&mut warpsmith(dir, &format!("data {name} -o s --name {prefix} --val-tokens 100")));
    }
    let mix = "s/web._train_*.bin=0.75,s/code_train_*.bin=0.25";
    for shuffle in ["documents", "sequences"] {
        let run = |log: &str, flags: &str| {
            let mut command = corpus.train();
            command.args(["-i", mix, "-d", "64", "-n", "2", "-o", &format!("{log}-{shuffle}")]);
            command.args(flags.split(' '));
            command
        };
        succeed(run("whole", "-x 6").args(["--shuffle", shuffle]));
        succeed(run("split", "-x 6").args(["--shuffle", shuffle]));
        let [whole, split] = ["whole", "split"].map(|log| dir.join(format!("{log}-{shuffle}")));
        forget_after(&split, 2);
        // Twice the micro-batch: the same text, and losses that are equal up to rounding.
        succeed(&mut run("split", "-x 6 -y 1 -b 4"));
        let number = |text: &str| text.parse::<f64>().unwrap();
        let (whole, resumed) = (losses(&whole), losses(&split));
        assert_eq!(resumed.len(), 6);
        for (a, b) in whole.iter().zip(&resumed) {
            assert!((number(&a.1) / number(&b.1) - 1.0).abs() < 1e-5, "{shuffle}: {a:?} {b:?}");
        }
    }
    let mut other = corpus.train();
    other.args(["-i", "s/web._train_*.bin=0.5,s/code_train_*.bin=0.5", "-x", "8", "-y", "1"]);
    refuse(other.args(["-d", "64", "-o", "whole-documents"]), &["-i", "[0.75, 0.25] in the checkpoint"]);
    refuse(corpus.train().args(["-i", mix, "--shuffle", "llmc"]), &["-i", "weights are for training data"]);
}

#[test]
fn shards_go_to_other_programs_and_come_back() {
    let corpus = Corpus::new();
    let dir = corpus.dir.path();
    let shard = fs::read(dir.join("x_train_000001.bin")).unwrap();
    let report = stdout(&succeed(&mut warpsmith(dir, "convert x_train_000001.bin y.npy")));
    assert_eq!(report, "y.npy: 5000 tokens\n");
    succeed(&mut warpsmith(dir, "convert x_train_000001.bin train.bin --raw-tokens"));
    assert!(fs::read(dir.join("train.bin")).unwrap() == shard[1024..]);
    succeed(&mut warpsmith(dir, "convert y.npy back.bin"));
    assert!(fs::read(dir.join("back.bin")).unwrap() == shard);
    for (data, log) in [("y.npy", "a"), ("x_train_000001.bin", "b")] {
        succeed(corpus.train().args(["-i", data, "-x", "3", "-o", log]));
    }
    assert_eq!(losses(&dir.join("a")), losses(&dir.join("b")), "a NumPy array is read as it is");
    write_sources(dir);
    for (format, names) in
        [("npy", ["data_train_000001.npy", "data_val_000000.npy"]), ("raw", ["train.bin", "val.bin"])]
    {
        succeed(&mut warpsmith(dir, &format!("data code.txt -o {format} --format {format}")));
        let mut found: Vec<String> = fs::read_dir(dir.join(format))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, names);
    }
    refuse(&mut warpsmith(dir, "convert train.bin z.npy"), &["z.npy", "convert"]);
}
