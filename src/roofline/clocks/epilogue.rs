//! Epilogues of our Hopper matmuls, from the table: the clocks in which tensor cores are idle, from
//! the last MMA of a tile to the first of the next.
//!
//! An epilogue is recognized by its instructions, not by its place: the number of loads and stores,
//! and whether it has a `tanh`.

use super::table::Row;
use crate::roofline::kernels::Tail;

/// The tile whose kernels represent all.
const TILE: &str = "128x256";

/// Exposed clocks of a 128 x 256 tile's epilogue, from the rows of the table. `None` if the table
/// has no such epilogue.
pub fn exposed_clocks(rows: &[Row], tail: Tail, pass: &str) -> Option<u64> {
    let kernel = format!("matmul_hopper_{pass}_{TILE}");
    let of_kernel = || rows.iter().filter(|row| row.kernel == kernel);
    let epilogues: Vec<&Row> = of_kernel().filter(|row| row.part.starts_with("epilogue")).collect();
    // Partial sums are 32 bits wide and so take more stores than results; GELU stores twice.
    let once = epilogues.iter().map(|row| row.counts.stores).min()?;
    let is_gelu = |row: &Row| row.counts.tanh > 0;
    let stores = |row: &Row| !is_gelu(row) && row.counts.stores == once;
    let fits = |row: &Row| match tail {
        Tail::Plain => stores(row) && row.counts.loads == 0,
        Tail::Bias | Tail::Residual | Tail::GeluBackward => stores(row) && row.counts.loads > 0,
        Tail::Gelu | Tail::GeluAndGradient => is_gelu(row) && row.counts.loads > 0,
        Tail::SplitSum => !is_gelu(row) && row.counts.stores > once,
    };
    let fitting = epilogues.into_iter().filter(|row| fits(row));
    // Residuals are loaded in addition to a bias; the other epilogues have no optional loads. The
    // gradient of GELU takes more instructions than GELU alone.
    let row = match tail {
        Tail::GeluAndGradient => fitting.max_by_key(|row| (row.counts.all, row.clocks)),
        Tail::Residual => fitting.max_by_key(|row| (row.counts.loads, row.clocks)),
        Tail::SplitSum => fitting.max_by_key(|row| (row.counts.stores, std::cmp::Reverse(row.clocks))),
        _ => fitting.min_by_key(|row| (row.counts.loads, row.clocks)),
    }?;
    // Before the first MMA of the next tile, the consumers compute its position and load the first
    // operands of its epilogue.
    let around = row.part.rsplit("in loop ").next()?;
    let starts = of_kernel().filter(|other| other.part == format!("start in loop {around}"));
    let loads = |start: &&Row| start.counts.loads;
    let start = match (tail, row.counts.loads) {
        (Tail::Residual, _) => starts.max_by_key(loads),
        (_, 0) => starts.min_by_key(loads),
        _ => starts.filter(|start| start.counts.loads > 0).min_by_key(loads),
    };
    Some(row.clocks + start.map_or(0, |start| start.clocks))
}

#[cfg(test)]
mod tests {
    use super::super::table::{TEXT, parse};
    use super::*;

    /// Each kind of epilogue is in the table, and more work takes longer.
    #[test]
    fn every_tail_is_found() {
        let rows = parse(TEXT).unwrap();
        let of = |tail, pass| exposed_clocks(&rows, tail, pass).unwrap_or_else(|| panic!("{tail:?} {pass}"));
        let [plain, bias, residual] =
            [Tail::Plain, Tail::Bias, Tail::Residual].map(|tail| of(tail, "forward"));
        assert!(plain < bias && bias < residual, "{plain} {bias} {residual}");
        let [gelu, with_gradient] = [Tail::Gelu, Tail::GeluAndGradient].map(|tail| of(tail, "forward"));
        assert!(bias < gelu && gelu < with_gradient, "{bias} {gelu} {with_gradient}");
        assert!(of(Tail::Plain, "dgrad") < of(Tail::GeluBackward, "dgrad"));
        assert!(of(Tail::SplitSum, "wgrad") > 1000);
        assert_eq!(exposed_clocks(&rows, Tail::Gelu, "wgrad"), None);
    }
}
