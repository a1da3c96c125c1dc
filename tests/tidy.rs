//! Holds the structure of the source to what ARCHITECTURE.md says of it.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules from the ground up, each with those that its code may `use`: rows above its own, so no circle can form.
/// ARCHITECTURE.md shows the same table. Unit tests follow the same rule, except for what comes after `#[cfg(test)]`.
#[rustfmt::skip]
const MAY_USE: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("config", &[]),
    ("rng", &[]),
    ("libraries", &[]),
    ("report", &[]),
    ("params", &["config"]),
    ("ops", &["tensor"]),
    ("device", &["libraries", "ops", "tensor"]),
    ("units", &["config", "ops", "params", "tensor"]),
    ("model", &["config", "ops", "params", "rng", "tensor", "units"]),
    ("optim", &["ops", "tensor", "units"]),
    ("data", &["rng"]),
    ("checkpoint", &["config", "params", "tensor"]),
    ("parallel", &["libraries", "ops", "tensor"]),
    ("roofline", &["config", "params", "units"]),
    ("sample", &["data", "model", "ops", "rng"]),
    ("eval", &["config", "data", "model", "ops", "tensor"]),
    ("cli", &["config", "device", "optim", "parallel", "roofline", "tensor"]),
    ("train", &["checkpoint", "cli", "config", "data", "eval", "model", "ops", "optim", "parallel", "params", "report", "rng", "sample", "tensor", "units"]),
    ("app", &["checkpoint", "cli", "config", "data", "device", "eval", "model", "ops", "parallel", "report", "roofline", "sample", "tensor", "train", "units"]),
];

/// Files in which `unsafe` may stand, as prefixes.
const MAY_BE_UNSAFE: &[&str] = &["src/app/launch.rs", "src/device/", "src/parallel/", "src/data/shard.rs"];

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

/// The part of a file before its tests.
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
            assert!(below, "{module} uses {used}, which does not stand above it in the table");
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
    for path in rust_files("src") {
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
    for path in rust_files("src") {
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
            // A declaration, of a kernel for one, has no body.
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

/// What would escape the emulated device, or hide from the compile gate.
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

#[test]
fn nothing_is_left_unfinished() {
    let marks = [
        ["to", "do!("].concat(),
        ["unimple", "mented!("].concat(),
        ["FIX", "ME"].concat(),
        ["db", "g!("].concat(),
    ];
    for path in ["src", "tests", "benches"].iter().flat_map(|dir| rust_files(dir)) {
        let text = fs::read_to_string(&path).unwrap();
        for mark in &marks {
            assert!(!text.contains(mark.as_str()), "{} contains {mark}", relative(&path));
        }
    }
}
