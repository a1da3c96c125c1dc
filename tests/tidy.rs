//! Checks that the structure of the source matches ARCHITECTURE.md, and that comments are readable.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules from the bottom up, each with the modules that it may `use`: only rows above its
/// own, so that no cycle can form. ARCHITECTURE.md shows the same table. The rule also covers unit
/// tests, except those in a `mod tests` at the end of a file.
#[rustfmt::skip]
const MAY_USE: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("config", &[]),
    ("words", &[]),
    ("files", &[]),
    ("llmc", &["files"]),
    ("simd", &[]),
    ("libraries", &[]),
    ("gpus", &[]),
    ("memory", &[]),
    ("nvtx", &[]),
    ("report", &["files"]),
    ("hub", &["files", "report"]),
    ("track", &["files", "report", "words"]),
    ("http", &[]),
    ("watch", &["http", "report"]),
    ("rng", &["simd"]),
    ("params", &["config"]),
    ("ops", &["tensor"]),
    ("numerics", &["ops", "tensor"]),
    ("device", &["libraries", "ops", "simd", "tensor", "words"]),
    ("sharding", &["config", "ops", "params", "tensor"]),
    ("model", &["config", "ops", "params", "rng", "sharding", "tensor"]),
    ("optim", &["config", "ops", "params", "sharding", "tensor"]),
    ("data", &["files", "llmc", "rng", "words"]),
    ("checkpoint", &["config", "data", "files", "llmc", "memory", "params", "rng", "tensor"]),
    ("parallel", &["files", "libraries", "ops", "tensor"]),
    ("recorder", &["ops", "parallel", "tensor"]),
    ("trace", &["nvtx", "ops", "parallel", "params", "report", "sharding", "tensor"]),
    ("replica", &["config", "data", "model", "ops", "optim", "parallel", "sharding", "tensor"]),
    ("roofline", &["config", "data", "gpus", "model", "ops", "optim", "parallel", "params", "recorder", "replica", "report", "sharding", "tensor", "trace"]),
    ("sample", &["data", "model", "ops", "rng"]),
    ("serve", &["data", "http", "model", "ops", "report", "sample"]),
    ("eval", &["config", "data", "files", "llmc", "model", "ops", "tensor", "words"]),
    ("cli", &["config", "device", "eval", "hub", "model", "optim", "parallel", "params", "report", "roofline", "sharding", "tensor"]),
    ("train", &["checkpoint", "cli", "config", "data", "device", "eval", "files", "gpus", "hub", "memory", "model", "numerics", "nvtx", "ops", "optim", "parallel", "params", "replica", "report", "roofline", "sample", "sharding", "tensor", "trace", "track", "words"]),
    ("app", &["checkpoint", "cli", "config", "data", "device", "eval", "files", "gpus", "http", "hub", "memory", "model", "ops", "parallel", "params", "replica", "report", "roofline", "sample", "serve", "sharding", "tensor", "track", "train", "watch", "words"]),
];

/// Files that may contain `unsafe`, as prefixes.
const MAY_BE_UNSAFE: &[&str] =
    &["crates/emulator/", "src/app/launch.rs", "src/device/", "src/nvtx.rs", "src/parallel/", "src/simd.rs"];

/// The source of the library, and of the crates beside it.
const SOURCES: [&str; 2] = ["src", "crates"];

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;

fn rust_files(dir: &str) -> Vec<PathBuf> {
    files(dir, &["rs"])
}

fn files(dir: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => pending.push(path),
                false if path.extension().is_some_and(|e| extensions.iter().any(|&x| e == x)) => {
                    found.push(path)
                }
                false => {}
            }
        }
    }
    assert!(!found.is_empty());
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap().replace('\\', "/")
}

/// Returns the part of a file before its tests.
fn shipped(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap()
}

#[test]
fn modules_use_only_what_the_table_allows() {
    let mut faults = Vec::new();
    for path in rust_files("src") {
        let name = relative(&path);
        let module = name["src/".len()..].split(['/', '.']).next().unwrap().to_string();
        let only_in_tests = name.ends_with("/tests.rs") || name.ends_with("/testing.rs");
        if only_in_tests || matches!(module.as_str(), "lib" | "bin") {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(m, _)| *m == module) else {
            faults.push(format!("{name}: module {module} has no row in the table"));
            continue;
        };
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in shipped(&text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let known = MAY_USE.iter().any(|(m, _)| *m == used);
                if known && used != module && !allowed.contains(&used.as_str()) {
                    faults.push(format!("{name}:{}: {module} may not use {used}", number + 1));
                }
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_table_has_no_circle() {
    for (row, (module, allowed)) in MAY_USE.iter().enumerate() {
        for used in *allowed {
            let below = MAY_USE[..row].iter().any(|(name, _)| name == used);
            assert!(below, "{module} uses {used}, which is not above it in the table");
        }
    }
}

#[test]
fn architecture_shows_the_same_table() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    for (module, allowed) in MAY_USE {
        let allowed = match allowed {
            [] => "nothing".to_string(),
            some => some.join(", "),
        };
        let row = format!("| `{module}` | {allowed} |");
        assert!(text.contains(&row), "ARCHITECTURE.md lacks the row {row}");
    }
}

#[test]
fn unsafe_stays_where_it_belongs() {
    for path in SOURCES.iter().flat_map(|dir| rust_files(dir)) {
        let name = relative(&path);
        let text = fs::read_to_string(&path).unwrap();
        let mut code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let has_unsafe = code.any(|line| {
            line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl")
        });
        assert!(
            !has_unsafe || MAY_BE_UNSAFE.iter().any(|p| name.starts_with(p)),
            "{name} contains unsafe code"
        );
    }
}

#[test]
fn files_and_functions_stay_short() {
    let mut faults = Vec::new();
    for path in SOURCES.iter().chain(&["tests"]).flat_map(|dir| rust_files(dir)) {
        let name = relative(&path);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = shipped(&text).lines().collect();
        if lines.len() > MAX_FILE_LINES {
            faults.push(format!("{name}: {} lines", lines.len()));
        }
        // rustfmt closes a function at the indentation it opened with.
        for (start, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let is_fn = line.trim_start().split("fn ").next().is_some_and(|head| {
                line.contains("fn ")
                    && head
                        .split_whitespace()
                        .all(|w| w.starts_with("pub") || matches!(w, "const" | "unsafe" | "extern" | "\"C\""))
            });
            if !is_fn || line.trim_end().ends_with(';') {
                continue;
            }
            let (close, declared) =
                (format!("{}}}", " ".repeat(indent)), format!("{});", " ".repeat(indent)));
            // A declaration, such as that of a kernel, has no body.
            if lines[start..].iter().find(|l| **l == close || **l == declared) == Some(&declared.as_str()) {
                continue;
            }
            let length = lines[start..].iter().position(|l| *l == close).map_or(0, |n| n + 1);
            if length > MAX_FUNCTION_LINES {
                faults.push(format!("{name}:{}: a function of {length} lines", start + 1));
            }
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Rejects code that would bypass the emulated device or the compile gate.
#[test]
fn kernels_reach_the_device_through_ptx_headers_alone() {
    let is_ptx = |name: &str| name.ends_with("/ptx.cuh") || name.ends_with("/hopper.cuh");
    let forbidden = ["asm", "__shared__", "#include <", "<<<", "#include \"cuda"];
    let mut faults = Vec::new();
    for path in files("kernels", &["cu", "cuh"]) {
        let name = relative(&path);
        let text = fs::read_to_string(&path).unwrap();
        if text.lines().count() > MAX_FILE_LINES {
            faults.push(format!("{name}: {} lines", text.lines().count()));
        }
        for (number, line) in text.lines().enumerate().filter(|_| !is_ptx(&name)) {
            let code = line.split("//").next().unwrap();
            let found = forbidden.iter().find(|what| code.contains(**what));
            faults.extend(found.map(|what| format!("{name}:{}: {what}", number + 1)));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// First words that turn a comment into a fragment instead of a sentence or a noun phrase.
const FRAGMENT_STARTS: &[&str] = &["Of ", "What ", "Whose ", "Who ", "Where "];

/// Phrases and British spellings that comments avoid, in lower case.
#[rustfmt::skip]
const AVOIDED: &[&str] = &[
    "honour",
    "comes into being", "is no number", "is no error",
    "optimise", "optimisa", "optimising", "initialis", "normalise", "normalisa", "normalising", "colour", "utilisation", "behaviour",
    "recognis", "synchronis", "serialis", "vectoris", "neighbour",
];

const MAX_COMMENT_WIDTH: usize = 100;

/// The marker of a line that is a comment and nothing else, and the text after it.
fn comment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    let marker = ["//!", "///", "//"].into_iter().find(|marker| line.starts_with(marker))?;
    Some((marker, line[marker.len()..].trim()))
}

/// The text of a comment without its `code`.
fn prose(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Lists the faults of one file's comments.
fn comment_faults(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut previous = None;
    for (number, line) in text.lines().enumerate() {
        let found = comment(line);
        let trailing = line.split_once(" // ").map_or("", |(_, trailing)| trailing);
        let words = prose(found.map_or(trailing, |(_, text)| text));
        let mut fault = |what: String| faults.push(format!("{name}:{}: {what}", number + 1));
        AVOIDED.iter().filter(|avoided| words.contains(**avoided)).for_each(|a| fault(format!("\"{a}\"")));
        if let Some((marker, text)) = found {
            // Only the first line of a block: later ones start where the previous line was wrapped.
            let start = FRAGMENT_STARTS.iter().find(|start| text.starts_with(**start));
            if let Some(start) = start.filter(|_| previous != Some(marker)) {
                fault(format!("starts with \"{}\"", start.trim_end()));
            }
            let width = line.chars().count();
            if width > MAX_COMMENT_WIDTH && !text.starts_with('|') && !text.contains("://") {
                fault(format!("{width} columns"));
            }
        }
        previous = found.map(|(marker, _)| marker);
    }
    faults
}

#[test]
fn comments_are_plain_english() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dirs = ["src", "kernels", "benches", "tests", "crates"];
    let dirs = dirs.into_iter().filter(|dir| root.join(dir).is_dir());
    let mut paths: Vec<PathBuf> = dirs.flat_map(|dir| files(dir, &["rs", "cu", "cuh", "h", "c"])).collect();
    paths.push(root.join("build.rs"));
    let faults_of = |path: &PathBuf| comment_faults(&relative(path), &fs::read_to_string(path).unwrap());
    let faults: Vec<String> = paths.iter().flat_map(faults_of).collect();
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn faulty_comments_are_found() {
    let wide = format!("// {}", "w".repeat(98));
    let of = ["//", "Of a kernel."].join(" ");
    let text = format!(
        "/// {}\n{of}\n// {}\nlet x = 1; // {}\n// `{}`\n{wide}\n// https://{wide}",
        "Bytes per stage.", "Of the same block.", "Its Behaviour.", "colour"
    );
    let expected = ["f:2: starts with \"Of\"", "f:4: \"behaviour\"", "f:6: 101 columns"];
    assert_eq!(comment_faults("f", &text), expected);
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [
        ["to", "do!("].concat(),
        ["unimple", "mented!("].concat(),
        ["FIX", "ME"].concat(),
        ["db", "g!("].concat(),
    ];
    for path in ["src", "crates", "tests", "benches"].iter().flat_map(|dir| rust_files(dir)) {
        let text = fs::read_to_string(&path).unwrap();
        for mark in &marks {
            assert!(!text.contains(mark.as_str()), "{} contains {mark}", relative(&path));
        }
    }
}
