//! Epilogues of our Hopper matmuls, from the table: the clocks in which tensor cores are idle, from
//! the last MMA of a tile to the first of the next.

use super::table::Row;
use crate::roofline::kernels::Tail;

/// Rows of the tiles of a block, which have 256 columns. The consumers of a block share a tile of
/// 128 rows; they take tiles of 64 in turn. The tiles of a cluster have 256 rows together.
pub const TILE_ROWS: [usize; 2] = [128, 64];
pub const TILE_COLUMNS: usize = 256;
pub const CLUSTER_ROWS: usize = 256;

/// Clocks in which tensor cores multiply an element of K of a tile.
pub fn clocks_of_k(tile_rows: usize) -> f64 {
    tile_rows as f64 / 8.0
}

/// The kernel of a pass with this epilogue, and the mode of the row that describes it.
fn kernel(tail: Tail, pass: &str, tile_rows: usize) -> (String, &'static str) {
    let (suffix, mode) = match (tail, pass) {
        (Tail::Plain, "forward") => ("", "!bias"),
        (Tail::Plain, _) => ("", "-"),
        (Tail::Bias, _) => ("", "bias"),
        (Tail::Residual, _) => ("_residual", "bias"),
        (Tail::Gelu, _) => ("_gelu", "!keeps_gradient bias"),
        (Tail::GeluAndGradient, _) => ("_gelu", "keeps_gradient bias"),
        (Tail::GeluBackward, _) => ("_gelu", "-"),
        (Tail::Accumulate, _) => ("", "-"),
    };
    (format!("matmul_hopper_{pass}{suffix}_{tile_rows}x256"), mode)
}

/// Exposed clocks of a tile whose sums have `k` terms, from the rows of the table. `None` if the
/// table has no such epilogue.
///
/// Consumers that share a tile leave the tensor cores idle together. Of two that take turns, one
/// multiplies while the other finishes its tile and prepares the next; only what takes longer than
/// that is exposed. The change of turns is not: the next consumer starts while the last MMAs of
/// the other are in flight.
pub fn exposed_clocks(rows: &[Row], tail: Tail, pass: &str, tile_rows: usize, k: usize) -> Option<f64> {
    let (kernel, mode) = kernel(tail, pass, tile_rows);
    let parts = || rows.iter().filter(|row| row.kernel == kernel && row.part.ends_with("(consumers)"));
    // Between loops over stages, and over the sums of other runs, there is less to do.
    let stretches = parts().filter(|row| row.part.starts_with("after loop ") && row.mode == mode);
    let epilogue = stretches.max_by_key(|row| row.clocks)?;
    let enclosing_loop = epilogue.part.rsplit("in loop ").next()?;
    let prologues = parts().filter(|row| row.part == format!("start in loop {enclosing_loop}"));
    let of_mode = |row: &&Row| row.mode == "-" || mode.split(' ').any(|word| word == row.mode);
    let prologue = prologues.filter(of_mode).max_by_key(|row| row.clocks);
    if tile_rows == 128 {
        return Some((epilogue.clocks + prologue.map_or(0, |prologue| prologue.clocks)) as f64);
    }
    // One warp per scheduler, as the other consumer only issues MMAs. Two tiles share a gap.
    let apart = (epilogue.latency + prologue.map_or(0, |prologue| prologue.latency)) as f64;
    Some(((apart - k as f64 * clocks_of_k(tile_rows)) / 2.0).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::super::table::{TEXT, parse};
    use super::*;

    /// Each kind of epilogue is in the table, and more work takes longer.
    #[test]
    fn every_tail_is_found() {
        let rows = parse(TEXT).unwrap();
        let of = |tail, pass, tile_rows, k| {
            exposed_clocks(&rows, tail, pass, tile_rows, k).unwrap_or_else(|| panic!("{tail:?} {pass}"))
        };
        let forward = [Tail::Plain, Tail::Bias, Tail::Residual, Tail::Gelu, Tail::GeluAndGradient]
            .map(|tail| of(tail, "forward", 128, 768));
        assert!(forward.is_sorted() && forward[0] > 500.0, "{forward:?}");
        assert!(of(Tail::Plain, "dgrad", 128, 768) < of(Tail::GeluBackward, "dgrad", 128, 768));
        assert!(of(Tail::Accumulate, "wgrad", 128, 65_536) > 1000.0);
        assert_eq!(exposed_clocks(&rows, Tail::Gelu, "wgrad", 128, 768), None);
        // Consumers that take turns hide all of it behind a sum of 768 terms, and less behind 64.
        assert_eq!(of(Tail::GeluAndGradient, "forward", 64, 768), 0.0);
        let short = of(Tail::GeluAndGradient, "forward", 64, 64);
        assert!((1000.0..forward[4]).contains(&short), "{short}");
    }
}
