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
//! Example: `adamw` takes 8 elements per thread, with 10 warps per scheduler: 10,240 elements of an
//! SM in 7,121 clocks. 124,475,904 elements on 132 SMs are 92.1 such rounds, 655,800 clocks: 331 us
//! at 1.98 GHz, where memory takes 1,156.

use super::table::Row;

const SCHEDULERS: usize = 4;
const LANES: usize = 32;

/// How often a part runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Once per so many elements of a thread.
    Elements(usize),
    /// Once per row, in so many warps.
    Row(usize),
}
use Per::{Elements, Row as OfRow};

/// A part of a kernel, as in the table.
pub type Part = (&'static str, &'static str, Per);

/// The parts of the kernels that stream. Others, and rows too wide for these, have none.
pub fn parts(name: &str, columns: usize) -> Option<&'static [Part]> {
    const LAYERNORM_FORWARD: &[Part] = &[("layernorm_forward", "start", Elements(32))];
    const LAYERNORM_BACKWARD: &[Part] = &[
        ("layernorm_backward", "start in loop 1", Elements(32)),
        // Once per warp of a row: three times for 768 channels.
        ("layernorm_backward", "loop 1.1", Elements(32 / 3)),
        ("layernorm_backward", "after loop 1.1 in loop 1", Elements(32)),
    ];
    const CLASSIFIER: &[Part] = &[
        ("classifier", "start", OfRow(16)),
        ("classifier", "loop 1", Elements(32)),
        ("classifier", "after loop 2", OfRow(16)),
        ("classifier", "loop 3", Elements(32)),
    ];
    match name {
        "layernorm forward" | "layernorm again" if columns <= 1024 => Some(LAYERNORM_FORWARD),
        "layernorm backward" | "layernorm backward, first" if columns <= 4096 => Some(LAYERNORM_BACKWARD),
        "classifier" => Some(CLASSIFIER),
        // The gradient is not computed.
        "classifier losses" => Some(&CLASSIFIER[..3]),
        "encoder forward" => Some(&[("encoder_forward", "start", Elements(8))]),
        "gelu recompute" => Some(&[("gelu_recompute", "start", Elements(8))]),
        "norm" => Some(&[("norm_squared_partials", "loop 1", Elements(32))]),
        "adamw" => Some(&[("adamw", "start", Elements(8))]),
        "add" => Some(&[("add_x", "start", Elements(8))]),
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
            Elements(of_thread) => (rows * columns) as f64 / (warps * (LANES * of_thread) as f64),
            OfRow(of_row) => (rows * of_row) as f64 / warps,
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
            "norm",
            "adamw",
            "add",
        ];
        for name in names {
            let of = |rows, SMs| clocks(&table, parts(name, 768).unwrap(), (rows, 768), SMs).unwrap();
            let [one, twice, half] = [of(1000, 132), of(2000, 132), of(1000, 264)];
            assert!(one > 0.0, "{name}");
            assert!((twice / one - 2.0).abs() < 1e-9 && (one / half - 2.0).abs() < 1e-9, "{name}");
        }
        assert_eq!(parts("encoder backward", 768), None);
        assert_eq!(parts("layernorm forward", 1600), None);
        assert_eq!(clocks(&table, &[("adamw", "loop 7", Elements(8))], (1, 1), 1), None);
    }
}
