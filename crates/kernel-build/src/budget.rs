//! `kernels/budget.tsv`: the resources and instructions of each kernel, so that they change only on
//! purpose.
//!
//! Registers, shared memory and instruction counts must be exactly those of the file. If only worse
//! ones were refused, the gain of one change could be lost by the next without notice, and the file
//! would be out of date. The pinned compiler always makes the same code of the same source, so
//! nothing else moves a number. Better numbers are reported as improvements.
//!
//! Spills, stack and local memory are not in the file: there is no budget for them.

use crate::nvcc::ARCHES;
use crate::ptxas::Report;
use crate::sass::{CLASSES, Code, SASS_ARCHES, describe};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Relative to the repository.
pub const FILE: &str = "kernels/budget.tsv";

const HEADER: &str = "\
# Compiler output for each kernel, from nvcc of dev/requirements-nvcc.txt. `make kernels-check`
# compares; after an intended change, `make kernels-budget` rewrites this file, and the difference
# belongs in the commit.
#
# registers  per thread: one number for all architectures, or one for each
# shared     bytes of static shared memory per block, likewise
# sm_80 ...  machine instructions: HMMA and HGMMA tensor cores, LDSM ldmatrix, STSM stmatrix, LDGSTS,
#            UTMALDG and UTMASTG asynchronous copies, LDG global loads, STG global stores, of 128
#            bits or narrow. Absent instructions are not listed. Spills, stack and local memory have
#            no column: they are not allowed.
";

pub const REGISTERS: &str = "registers";
pub const SHARED: &str = "bytes of static shared memory";

/// A kernel: its file under `kernels/`, its name, its `floatX`.
pub type Key = (String, String, String);
/// Numbers by quantity (one of `CLASSES`, registers or shared memory) and architecture ("90a").
pub type Numbers = BTreeMap<(String, String), usize>;
pub type Budget = BTreeMap<Key, Numbers>;

/// Makes a budget of what the compiler and the disassembler said.
pub fn measure(report: &Report, code: &[Code]) -> Budget {
    let mut budget = Budget::new();
    let arch = |name: &str| name.trim_start_matches("sm_").to_string();
    for u in &report.kernels {
        let numbers = budget.entry((u.file.clone(), u.kernel.clone(), u.floatx.clone())).or_default();
        numbers.insert((REGISTERS.into(), arch(&u.arch)), u.registers);
        numbers.insert((SHARED.into(), arch(&u.arch)), u.shared);
    }
    for c in code {
        let numbers = budget.entry((c.file.clone(), c.kernel.clone(), c.floatx.clone())).or_default();
        numbers.extend(c.counts.iter().map(|(class, count)| ((class.clone(), arch(&c.arch)), *count)));
    }
    budget
}

/// Returns the file's text. The budget must be of all architectures.
pub fn to_text(budget: &Budget) -> String {
    let mut text = format!("{HEADER}{}\n", columns().join("\t"));
    for ((file, kernel, floatx), numbers) in budget {
        let get = |what: &str, arch: &str| {
            numbers.get(&(what.to_string(), arch.to_string())).copied().unwrap_or_default()
        };
        let _ = write!(text, "{file}\t{kernel}\t{floatx}");
        for what in [REGISTERS, SHARED] {
            let of = ARCHES.map(|arch| get(what, arch));
            let each = ARCHES.iter().zip(of).map(|(arch, n)| format!("{arch}:{n}"));
            let same = of.iter().all(|&n| n == of[0]);
            let _ = write!(
                text,
                "\t{}",
                if same { of[0].to_string() } else { each.collect::<Vec<_>>().join(" ") }
            );
        }
        for arch in SASS_ARCHES {
            let counts = CLASSES.iter().map(|(class, _)| (class, get(class, arch))).filter(|(_, n)| *n > 0);
            let counts: Vec<String> = counts.map(|(class, n)| format!("{class}:{n}")).collect();
            let _ = write!(text, "\t{}", if counts.is_empty() { "-".to_string() } else { counts.join(" ") });
        }
        text.push('\n');
    }
    text
}

fn columns() -> Vec<String> {
    let fixed = ["file", "kernel", "floatX", "registers", "shared"].map(str::to_string);
    fixed.into_iter().chain(SASS_ARCHES.map(|arch| format!("sm_{arch}"))).collect()
}

/// Reads the file's text.
///
/// # Errors
/// At the first line that differs from what `to_text` writes.
pub fn parse(text: &str) -> Result<Budget, String> {
    let mut budget = Budget::new();
    let columns = columns();
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    if lines.next().map(|(_, line)| line) != Some(&columns.join("\t")) {
        return Err(format!("{FILE}: expected the columns {}", columns.join(", ")));
    }
    for (index, line) in lines {
        let wrong = |why: &str| format!("{FILE}:{}: {why}; `make kernels-budget` writes it anew", index + 1);
        let cells: Vec<&str> = line.split('\t').collect();
        let [file, kernel, floatx, registers, shared, sass @ ..] = &cells[..] else {
            return Err(wrong("too few columns"));
        };
        let mut numbers = Numbers::new();
        for (what, cell) in [(REGISTERS, registers), (SHARED, shared)] {
            for arch in ARCHES {
                let number = of_arch(cell, arch).ok_or_else(|| wrong(&format!("no {what} of sm_{arch}")))?;
                numbers.insert((what.into(), arch.into()), number);
            }
        }
        if sass.len() != SASS_ARCHES.len() {
            return Err(wrong("a column for each architecture was expected"));
        }
        for (cell, arch) in sass.iter().zip(SASS_ARCHES) {
            for count in cell.split(' ').filter(|&word| word != "-") {
                let pair = count.split_once(':').and_then(|(class, n)| Some((class, n.parse().ok()?)));
                let known = pair.filter(|(class, _)| CLASSES.iter().any(|(name, _)| name == class));
                let (class, n) = known.ok_or_else(|| wrong(&format!("{count} is not a count")))?;
                numbers.insert((class.into(), arch.into()), n);
            }
        }
        if budget.insert((file.to_string(), kernel.to_string(), floatx.to_string()), numbers).is_some() {
            return Err(wrong("a second row of this kernel"));
        }
    }
    Ok(budget)
}

/// The number for an architecture in "32" or in "80:32 90a:30".
fn of_arch(cell: &str, arch: &str) -> Option<usize> {
    let of = |pair: &str| pair.split_once(':').filter(|(a, _)| *a == arch).and_then(|(_, n)| n.parse().ok());
    cell.parse().ok().or_else(|| cell.split(' ').find_map(of))
}

/// Returns a line for each difference: of registers and shared memory on `arches`, of instructions
/// on `sass_arches`.
pub fn differences(budget: &Budget, found: &Budget, arches: &[&str], sass_arches: &[&str]) -> Vec<String> {
    let keys: BTreeSet<&Key> = budget.keys().chain(found.keys()).collect();
    let mut lines = Vec::new();
    for key in keys {
        let (file, kernel, floatx) = key;
        let name = format!("{kernel} in {file} ({floatx})");
        match (budget.get(key), found.get(key)) {
            (Some(budgeted), Some(found)) => {
                let taken =
                    [REGISTERS, SHARED].into_iter().flat_map(|what| arches.iter().map(move |a| (what, a)));
                let made_of =
                    CLASSES.iter().flat_map(|(class, _)| sass_arches.iter().map(move |a| (*class, a)));
                for (what, arch) in taken.chain(made_of) {
                    lines.extend(difference(key, budgeted, found, what, arch));
                }
            }
            (None, _) => lines.push(format!("{name} has no row in {FILE}: `make kernels-budget` adds one")),
            _ => lines.push(format!(
                "{name} is in {FILE}, but was not compiled: `make kernels-budget` takes it out"
            )),
        }
    }
    lines
}

fn difference(key: &Key, budgeted: &Numbers, found: &Numbers, what: &str, arch: &str) -> Option<String> {
    let get =
        |numbers: &Numbers| numbers.get(&(what.to_string(), arch.to_string())).copied().unwrap_or_default();
    let (budgeted, found) = (get(budgeted), get(found));
    let ((file, kernel, floatx), quantity, verdict) = (key, describe(what), verdict(what, found, budgeted));
    (found != budgeted).then(|| {
        format!(
            "{kernel} in {file} ({floatx}, sm_{arch}): {found} {quantity}, budgeted {budgeted}, {verdict}; if \
             that is intended, `make kernels-budget` writes it into {FILE}"
        )
    })
}

/// Says by how much a number changed. Fewer of some instructions may be as good, where a loop is
/// unrolled less.
fn verdict(what: &str, found: usize, budgeted: usize) -> String {
    let less_is_better = [REGISTERS, SHARED].contains(&what) || what.ends_with(".narrow");
    let by = found.abs_diff(budgeted);
    match (found > budgeted, less_is_better) {
        (true, true) => format!("{by} over"),
        (false, true) => format!("{by} fewer: an improvement"),
        (true, false) => format!("{by} more"),
        (false, false) => format!("{by} fewer"),
    }
}
