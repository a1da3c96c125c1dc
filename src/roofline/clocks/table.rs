//! `kernels/clocks.tsv`: the clocks of every shipped kernel, so that reviews see a change that
//! makes one slower.

use super::machine::Pipe;
use super::parts::{Counts, Kernel, Part, Place, Variant};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Path relative to the repository.
pub const FILE: &str = "kernels/clocks.tsv";

/// The file's text at build time.
pub const TEXT: &str = include_str!("../../../kernels/clocks.tsv");

const HEADER: &str = "\
# Clocks of each bf16 kernel on sm_90, from the machine code that nvcc of dev/requirements-nvcc.txt
# generates. Predicted, not measured: see src/roofline/clocks. `make kernels-clocks` compares; after
# an intended change, `make kernels-clocks UPDATE=1` rewrites this file, and the difference belongs in
# the commit.
#
# part      one iteration of an innermost loop, or the code before or after a loop; stretches of fewer
#           than 32 instructions are omitted
# path      number of the path through a part whose branches depend on parameters; `mode` lists the
#           pointers and flags that are set
# warps     per scheduler; the next columns count instructions per warp, in total and per pipe; then
#           global loads and stores, MUFU.TANH, and conversions on the pipe of transcendental functions
# issue     clocks in which all its warps can issue, set by the busiest pipe; latency: clocks of one
#           warp alone; clocks: of all its warps together
# binds     the resource that sets the clocks: a pipe, issue, or waiting for results (latency)
";

const COLUMNS: [&str; 22] = [
    "file", "kernel", "part", "path", "mode", "warps", "all", "tensor", "fma", "alu", "xu", "lsu", "global",
    "uniform", "other", "loads", "stores", "tanh", "f2f", "issue", "latency", "clocks",
];

/// Stretches with fewer instructions get no row.
const SHORTEST: usize = 32;

/// A path through a part of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Path under `kernels/`.
    pub file: String,
    pub kernel: String,
    pub part: String,
    pub path: usize,
    pub mode: String,
    pub warps: usize,
    pub counts: Counts,
    pub issue: u64,
    pub latency: u64,
    pub clocks: u64,
    pub binds: String,
}

/// The rows of a kernel.
pub fn rows(file: &str, kernel: &Kernel) -> Vec<Row> {
    let long = |part: &&Part| {
        let longest = part.variants.iter().map(|v| v.counts.all).max().unwrap_or_default();
        matches!(part.place, Place::Iteration(_)) || longest >= SHORTEST
    };
    let row = |part: &Part, path: usize, v: &Variant| Row {
        file: file.to_string(),
        kernel: kernel.name.clone(),
        part: format!("{}{}", part.place, part.role),
        path: path + 1,
        mode: v.mode.clone(),
        warps: part.warps,
        counts: v.counts.clone(),
        issue: v.issue.round() as u64,
        latency: v.latency.round() as u64,
        clocks: v.clocks.round() as u64,
        binds: v.bound.name().to_string(),
    };
    let parts = kernel.parts.iter().filter(long);
    parts.flat_map(|part| part.variants.iter().enumerate().map(move |(path, v)| row(part, path, v))).collect()
}

/// Returns the file's text.
pub fn to_text(rows: &[Row]) -> String {
    let mut text = format!("{HEADER}{}\tbinds\n", COLUMNS.join("\t"));
    for row in rows {
        let _ = writeln!(text, "{}", line(row));
    }
    text
}

fn line(row: &Row) -> String {
    let Row { file, kernel, part, path, mode, warps, counts, issue, latency, clocks, binds } = row;
    let Counts { all, pipes, loads, stores, tanh, conversions } = counts;
    let pipes = pipes.map(|n| n.to_string()).join("\t");
    format!(
        "{file}\t{kernel}\t{part}\t{path}\t{mode}\t{warps}\t{all}\t{pipes}\t{loads}\t{stores}\t{tanh}\t{conversions}\t{issue}\t\
         {latency}\t{clocks}\t{binds}"
    )
}

/// Parses the file's text.
///
/// # Errors
/// At the first line that [`to_text`] would not write.
pub fn parse(text: &str) -> Result<Vec<Row>> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    let header = lines.next().map(|(_, line)| line).unwrap_or_default();
    ensure!(
        header == format!("{}\tbinds", COLUMNS.join("\t")),
        "{FILE}: expected the columns {}, binds; found {header}",
        COLUMNS.join(", ")
    );
    lines
        .map(|(i, text)| {
            let row = row(text).with_context(|| {
                format!("{FILE}:{}: not a row; `make kernels-clocks UPDATE=1` rewrites it", i + 1)
            })?;
            Ok(row)
        })
        .collect()
}

fn row(text: &str) -> Option<Row> {
    let cells: Vec<&str> = text.split('\t').collect();
    let [file, kernel, part, path, mode, warps, numbers @ .., binds] = &cells[..] else { return None };
    let numbers: Vec<u64> = numbers.iter().map(|n| n.parse()).collect::<Result<_, _>>().ok()?;
    let [all, pipes @ .., loads, stores, tanh, conversions, issue, latency, clocks] = &numbers[..] else {
        return None;
    };
    let pipes: [u64; Pipe::ALL.len()] = pipes.try_into().ok()?;
    let size = |n: &u64| *n as usize;
    Some(Row {
        file: file.to_string(),
        kernel: kernel.to_string(),
        part: part.to_string(),
        path: path.parse().ok()?,
        mode: mode.to_string(),
        warps: warps.parse().ok()?,
        counts: Counts {
            all: size(all),
            pipes: pipes.map(|n| n as usize),
            loads: size(loads),
            stores: size(stores),
            tanh: size(tanh),
            conversions: size(conversions),
        },
        issue: *issue,
        latency: *latency,
        clocks: *clocks,
        binds: binds.to_string(),
    })
}

/// Returns a line per row that changed.
pub fn differences(old: &[Row], new: &[Row]) -> Vec<String> {
    let key = |row: &Row| (row.kernel.clone(), row.part.clone(), row.path);
    let [old, new] =
        [old, new].map(|rows| rows.iter().map(|row| (key(row), row)).collect::<BTreeMap<_, _>>());
    let mut lines = Vec::new();
    for (key, now) in &new {
        match old.get(key) {
            None => lines.push(format!("{}: has no row in {FILE}", name(now))),
            Some(before) if line(before) != line(now) => lines.push(difference(before, now)),
            Some(_) => {}
        }
    }
    let gone = old.iter().filter(|(key, _)| !new.contains_key(*key));
    lines.extend(gone.map(|(_, row)| format!("{}: is in {FILE}, but not in the kernel", name(row))));
    lines
}

fn name(row: &Row) -> String {
    let Row { file, kernel, part, path, mode, .. } = row;
    format!("{kernel} in {file} (bf16, sm_90a), {part}, path {path} ({mode})")
}

fn difference(before: &Row, now: &Row) -> String {
    let by = now.clocks.abs_diff(before.clocks);
    let verdict = match now.clocks.cmp(&before.clocks) {
        std::cmp::Ordering::Greater => format!("{by} longer"),
        std::cmp::Ordering::Less => format!("{by} shorter"),
        std::cmp::Ordering::Equal => "of other instructions".to_string(),
    };
    let numbers = |row: &Row| {
        format!(
            "{} clocks (issue {}, latency {}, {} instructions, binds {})",
            row.clocks, row.issue, row.latency, row.counts.all, row.binds
        )
    };
    format!("{}: {}, in {FILE} {}: {verdict}", name(now), numbers(now), numbers(before))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Row {
        let counts =
            Counts { all: 40, pipes: [0, 9, 8, 7, 6, 5, 4, 1], loads: 3, stores: 2, tanh: 1, conversions: 0 };
        let [file, kernel, part, mode, binds] =
            ["gelu.cu", "gelu_forward", "start", "bias !residual", "latency"].map(str::to_string);
        Row {
            file,
            kernel,
            part,
            path: 1,
            mode,
            warps: 8,
            counts,
            issue: 100,
            latency: 900,
            clocks: 1000,
            binds,
        }
    }

    #[test]
    fn the_text_is_read_back() {
        let rows = [sample(), Row { path: 2, ..sample() }];
        let text = to_text(&rows);
        assert_eq!(parse(&text).unwrap(), rows);
        let cut = format!("{:#}", parse(text.trim_end_matches("\tlatency\n")).unwrap_err());
        assert!(
            cut.starts_with("kernels/clocks.tsv:") && cut.contains("`make kernels-clocks UPDATE=1`"),
            "{cut}"
        );
        let error = parse("file\tkernel\n").unwrap_err().to_string();
        assert!(error.starts_with("kernels/clocks.tsv: expected the columns file, kernel"), "{error}");
    }

    #[test]
    fn a_longer_part_is_named() {
        let longer = Row { clocks: 1250, latency: 1150, ..sample() };
        let [line] = &differences(&[sample()], std::slice::from_ref(&longer))[..] else { panic!("one line") };
        assert!(
            line.starts_with(
                "gelu_forward in gelu.cu (bf16, sm_90a), start, path 1 (bias !residual): 1250 clocks"
            ),
            "{line}"
        );
        assert!(line.ends_with("250 longer"), "{line}");
        assert!(differences(&[longer], &[sample()])[0].ends_with("250 shorter"));
        let more = Row { counts: Counts { loads: 4, ..sample().counts }, ..sample() };
        assert!(differences(&[sample()], &[more])[0].ends_with("of other instructions"));
        assert!(differences(&[], &[sample()])[0].ends_with("has no row in kernels/clocks.tsv"));
        assert!(differences(&[sample()], &[])[0].ends_with("but not in the kernel"));
        assert_eq!(differences(&[sample()], &[sample()]), [""; 0]);
    }

    #[test]
    fn the_programs_table_is_sound() {
        assert!(!parse(TEXT).unwrap().is_empty());
    }
}
