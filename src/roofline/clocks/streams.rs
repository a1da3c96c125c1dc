//! Passes over memory on Hopper, from the table: the clocks in which an SM could issue and wait for
//! them if memory were infinitely fast.
//!
//! A part of a kernel runs once per so many elements of a thread, or once per row:
//!
//! ```text
//! clocks of an SM = sum over parts of clocks of the part * (elements / SMs) / elements of an SM
//! ```
//!
//! where the warps of an SM, 4 x those of a scheduler, take `32 x elements of a thread` each. The
//! clocks are those of all warps that fit on an SM together, so they hold both the issue slots and
//! what of a load's latency those warps cannot fill.
//!
//! Example: `adamw`, as measured, takes 8 elements per thread, with 10 warps per scheduler: 10,240
//! elements of an SM in 7,121 clocks. 124,475,904 elements on 132 SMs are 92.1 such rounds, 655,800
//! clocks: 331 us at 1.98 GHz, where memory takes 1,156.

use super::table::Row;

const SCHEDULERS: usize = 4;
const LANES: usize = 32;

/// How often a part runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Per {
    /// Once per so many elements of a thread.
    Elements(f64),
    /// Once per row, in so many warps.
    Row(usize),
    /// So many times per SM, in all its warps.
    Sm(usize),
}
use Per::{Elements, Row as OfRow, Sm};

/// A part of a kernel, as in the table.
pub type Part = (&'static str, &'static str, Per);

/// The parts of the kernels that stream, for rows of so many columns. Others, and rows too wide for
/// these, have none.
pub fn parts(name: &str, columns: usize) -> Option<Vec<Part>> {
    match name {
        // Four packs of 8 per lane; rows are up to 1,024 columns wide.
        "layernorm forward" | "layernorm again" if columns <= 1024 => {
            Some(vec![("layernorm_forward", "start", Elements(32.0))])
        }
        "layernorm backward" | "layernorm backward, first" if columns <= 4096 => {
            const KERNEL: &str = "layernorm_backward";
            // Four rows at a time, a pack per thread of each.
            let warps = columns.div_ceil(32 * 8);
            Some(vec![
                (KERNEL, "start", Sm(1)),
                (KERNEL, "start in loop 1", Elements(32.0)),
                (KERNEL, "loop 1.1", Elements(32.0 / warps as f64)),
                (KERNEL, "after loop 1.1 in loop 1", Elements(32.0)),
                (KERNEL, "loop 3", Sm(16 / warps)),
                (KERNEL, "after loop 3", Sm(1)),
            ])
        }
        "classifier" | "classifier losses" => {
            const KERNEL: &str = "classifier";
            // Blocks of 16 warps; four packs at a time, and what is left one by one.
            let losses = [
                ("start", OfRow(16)),
                ("loop 1", Elements(32.0)),
                ("loop 2", OfRow(16)),
                ("after loop 2", OfRow(16)),
            ];
            let gradient = [("loop 3", Elements(32.0)), ("loop 4", OfRow(16))];
            let gradient = gradient.into_iter().filter(|_| name == "classifier");
            Some(losses.into_iter().chain(gradient).map(|(part, per)| (KERNEL, part, per)).collect())
        }
        "encoder forward" => Some(vec![("encoder_forward", "start", Elements(8.0))]),
        "encoder backward" => {
            const WTE: &str = "encoder_backward_wte";
            // 16 warps take 64 rows of 256 columns, and, an estimate, four tokens' worth each.
            Some(vec![
                (WTE, "start", Elements(32.0)),
                (WTE, "loop 1.1.1", Elements(8.0)),
                (WTE, "after loop 1.1 in loop 1", Elements(8.0)),
                ("encoder_backward_wpe", "loop 1", Elements(64.0)),
            ])
        }
        "gelu recompute" => Some(vec![("gelu_recompute", "start", Elements(8.0))]),
        "norm" => Some(vec![("norm_squared_partials", "loop 1", Elements(32.0))]),
        "adamw" => Some(vec![("adamw", "start", Elements(8.0))]),
        "add" => Some(vec![("add_x", "start", Elements(8.0))]),
        _ => None,
    }
}

/// Clocks of a call on a GPU with so many SMs. `None` if the table lacks a part.
pub fn clocks(table: &[Row], parts: &[Part], (rows, columns): (usize, usize), SMs: usize) -> Option<f64> {
    let of_part = |&(kernel, part, per): &Part| {
        let paths = table.iter().filter(|row| row.kernel == kernel && row.part == part);
        let row = paths.max_by_key(|row| row.clocks)?;
        let warps = (SCHEDULERS * row.warps * SMs) as f64;
        let times = match per {
            Elements(of_thread) => (rows * columns) as f64 / (warps * LANES as f64 * of_thread),
            OfRow(of_row) => (rows * of_row) as f64 / warps,
            Sm(times) => times as f64,
        };
        Some(times * row.clocks as f64)
    };
    parts.iter().map(of_part).sum()
}

#[cfg(test)]
mod tests {
    use super::super::table::{TEXT, parse};
    use super::*;

    #[test]
    fn every_part_is_in_the_table() {
        let table = parse(TEXT).unwrap();
        let names = [
            "layernorm forward",
            "layernorm backward",
            "classifier",
            "classifier losses",
            "encoder forward",
            "gelu recompute",
            "encoder backward",
            "norm",
            "adamw",
            "add",
        ];
        for name in names {
            let of = |rows, SMs| clocks(&table, &parts(name, 768).unwrap(), (rows, 768), SMs).unwrap();
            let [one, twice, half] = [of(100_000, 132), of(200_000, 132), of(100_000, 264)];
            assert!(one > 0.0, "{name}");
            // But for what an SM does once.
            let same = |a: f64, b: f64| a <= b * (1.0 + 1e-9) && a > 0.5 * b;
            assert!(same(twice, 2.0 * one) && same(one, 2.0 * half), "{name}: {one} {twice} {half}");
        }
        assert_eq!(parts("fill", 768), None);
        assert_eq!(parts("layernorm forward", 1600), None);
        assert_eq!(clocks(&table, &[("adamw", "loop 7", Elements(8.0))], (1, 1), 1), None);
    }
}
