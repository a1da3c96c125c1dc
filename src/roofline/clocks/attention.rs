//! Attention on Hopper, from the table: clocks, shared memory and traffic of a call.
//!
//! A **work item** is a tile of `rows` queries (or keys) of a head, divided among warpgroups. It
//! meets tiles of `columns` keys (or queries), of which causality hides about half. The rows of
//! `kernels/clocks.tsv` hold for all warpgroups of an SM together, so
//!
//! ```text
//! clocks of an SM = items / SMs * warpgroups of an item / warpgroups of an SM
//!                   * (clocks beside the loop over tiles + clocks of the loop * iterations)
//! ```
//!
//! - The loop over tiles is the one that multiplies most. Where consumers have code of their own,
//!   each has such a loop, and the mean of them counts.
//! - What lies beside it, in the loop over items if there is one, is paid once per item.
//! - MMAs beside the loop take over iterations of it: a tile on the diagonal, the first scores and
//!   the last products.
//! - Tiles on the diagonal are computed whole.
//! - In those clocks, warps that take turns hide each other's waits as far as one scheduler's pipes
//!   and tensor cores let them. Waits for copies, and for turns of other blocks, are not in them.
//! - Few items leave SMs idle: then it is the longest item, with an SM for itself, that counts.
//!
//! Example: the forward pass that was measured has 2 blocks of 2 warpgroups per SM. At T = 1024 a
//! warpgroup meets 8.5 tiles on average, one of them beside the loop: 2,122 + 7.5 x 2,442 + 2,251 +
//! 1,653 = 24,341 clocks. 6,144 items / 132 SMs / 2 blocks = 23.27 such rounds are 566,500 clocks:
//! 286 us at 1.98 GHz.
//!
//! Tensor cores, shared memory and L2 are counted beside the clocks, as the four schedulers of an
//! SM, and all SMs, share them. Shared memory delivers 128 bytes per clock. A product of a
//! warpgroup reads its right operand, and also its left one unless that is in registers; each
//! copied tile is written once.

use super::machine::Pipe;
use super::table::Row;
use std::collections::BTreeMap;

/// Rows of a product of a warpgroup.
const WARPGROUP_ROWS: usize = 64;
const SHARED_BYTES: f64 = 128.0;

/// A kernel's division of its work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// Its name without the head size.
    pub kernel: &'static str,
    /// Rows of a work item, and of the tiles that it meets.
    pub rows: usize,
    pub columns: usize,
    pub over: Over,
    /// Products of a warpgroup per tile.
    pub products: usize,
    /// Rows of a head, of 16 bits per number, that products of a warpgroup read from shared memory
    /// per tile.
    pub operand_rows: usize,
    /// Bytes beside them that a warpgroup writes to and reads from shared memory per tile.
    pub exchanged_bytes: usize,
    /// Rows of sums in f32 that an item adds up in L2 per tile.
    pub sum_rows: usize,
    /// Tensors of B x T x C elements that must be moved once.
    pub tensors: usize,
}

/// The side that tiles come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Up to the diagonal.
    Keys,
    /// From the diagonal on.
    Queries,
}

/// The kernels of a call, one after another.
pub const FORWARD: &[Pass] = &[Pass {
    kernel: "attention_hopper_forward",
    rows: 128,
    columns: 128,
    over: Over::Keys,
    products: 2,
    operand_rows: (64 + 128) + 128,
    exchanged_bytes: 0,
    sum_rows: 0,
    tensors: 4,
}];
pub const BACKWARD: &[Pass] = &[Pass {
    kernel: "attention_hopper_backward",
    rows: 128,
    columns: 128,
    over: Over::Queries,
    products: 5,
    operand_rows: 2 * (64 + 128) + 2 * 128 + 128,
    // Slopes of 64 keys, for dQ.
    exchanged_bytes: 2 * (64 * 128 * 2),
    sum_rows: 128,
    tensors: 8,
}];

/// The demands of a call of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Demand {
    /// Clocks of the SM that is done last.
    pub clocks: f64,
    /// FLOPs of whole tiles.
    pub flops: f64,
    /// Clocks that the shared memory of an SM is busy, on average.
    pub shared_clocks: f64,
    /// Bytes from and to L2, and those from and to memory.
    pub l2_bytes: f64,
    pub memory_bytes: f64,
    /// Work items, and how often they fill the GPU.
    pub items: usize,
    pub waves: f64,
}

impl Pass {
    /// Rows and columns of a tile.
    pub fn tile(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Tiles that the warpgroup whose rows begin at `first` meets. A warpgroup beyond the last row
    /// works with its block.
    fn tiles(&self, first: usize, T: usize) -> usize {
        let first = first.min(T - 1);
        match self.over {
            Over::Keys => (first + WARPGROUP_ROWS).min(T).div_ceil(self.columns),
            Over::Queries => T.div_ceil(self.columns) - first / self.columns,
        }
    }

    /// The demands of a call on a GPU with so many SMs. `None` if the table has no such kernel.
    pub fn demand(
        &self,
        table: &[Row],
        (B, NH, T, HS): (usize, usize, usize, usize),
        SMs: usize,
    ) -> Option<Demand> {
        let item = Item::of(table, &format!("{}_hs{HS}", self.kernel))?;
        let of_item = self.rows / WARPGROUP_ROWS;
        let tiles: Vec<usize> =
            (0..T.div_ceil(self.rows) * of_item).map(|w| self.tiles(w * WARPGROUP_ROWS, T)).collect();
        let items = B * NH * tiles.len() / of_item;
        let warpgroups = (items * of_item) as f64;
        let warpgroup_tiles = (B * NH * tiles.iter().sum::<usize>()) as f64;

        let iterations = warpgroup_tiles - warpgroups * item.tiles_beside;
        let together = warpgroups * item.beside.clocks + iterations * item.iteration.clocks;
        let average = item.once.clocks + together / (SMs as f64 * item.warpgroups);
        // Alone on its SM, a warp waits for its own results.
        let alone = |part: &Part| part.latency.max(part.clocks * of_item as f64 / item.warpgroups);
        let most = *tiles.iter().max()? as f64 - item.tiles_beside;
        let longest = alone(&item.once) + alone(&item.beside) + most * alone(&item.iteration);

        let row_bytes = 2.0 * HS as f64;
        // Tiles of two tensors are copied, once for all warpgroups of an item.
        let item_tiles = warpgroup_tiles / of_item as f64;
        let copied_bytes = item_tiles * 2.0 * self.columns as f64 * row_bytes;
        let operand_bytes =
            warpgroup_tiles * (self.operand_rows as f64 * row_bytes + self.exchanged_bytes as f64);
        let sum_bytes = item_tiles * 2.0 * self.sum_rows as f64 * row_bytes;
        let tensor_bytes = (B * NH * T) as f64 * row_bytes;
        let shared_bytes = copied_bytes + operand_bytes + 2.0 * sum_bytes;
        Some(Demand {
            clocks: average.max(longest),
            flops: warpgroup_tiles * (self.products * WARPGROUP_ROWS * self.columns * HS * 2) as f64,
            shared_clocks: shared_bytes / SHARED_BYTES / SMs as f64,
            l2_bytes: copied_bytes + sum_bytes + (self.tensors - 2) as f64 * tensor_bytes,
            memory_bytes: self.tensors as f64 * tensor_bytes,
            items,
            waves: warpgroups / (SMs as f64 * item.warpgroups),
        })
    }
}

/// Clocks of all warps of an SM together, and of one warp per scheduler alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Part {
    clocks: f64,
    latency: f64,
    /// MMAs of a warp.
    tensor: f64,
}

impl Part {
    fn of(row: &Row) -> Part {
        let tensor = row.counts.pipes[Pipe::Tensor as usize] as f64;
        Part { clocks: row.clocks as f64, latency: row.latency as f64, tensor }
    }

    /// The sum over the parts of some rows, each by its longest path.
    fn sum<'a>(rows: impl Iterator<Item = &'a Row>) -> Part {
        let mut longest = BTreeMap::<&str, &Row>::new();
        for row in rows {
            let known = longest.entry(&row.part).or_insert(row);
            *known = if row.clocks > known.clocks { row } else { *known };
        }
        longest.into_values().map(Part::of).fold(Part::default(), Part::plus)
    }

    fn plus(self, other: Part) -> Part {
        Part {
            clocks: self.clocks + other.clocks,
            latency: self.latency + other.latency,
            tensor: self.tensor + other.tensor,
        }
    }

    fn times(self, n: f64) -> Part {
        Part { clocks: self.clocks * n, latency: self.latency * n, tensor: self.tensor * n }
    }
}

/// A work item, as the table has it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Item {
    /// Warpgroups of an SM: each has one of a scheduler's warps.
    warpgroups: f64,
    iteration: Part,
    /// Once per item.
    beside: Part,
    /// Once per block that takes one item after another.
    once: Part,
    /// Iterations whose MMAs are beside the loop.
    tiles_beside: f64,
}

impl Item {
    fn of(table: &[Row], kernel: &str) -> Option<Item> {
        let rows: Vec<&Row> =
            table.iter().filter(|row| row.kernel == kernel && !row.part.ends_with("(producer)")).collect();
        let loops = || rows.iter().copied().filter(|row| row.part.starts_with("loop ") && row.path == 1);
        let most = loops().map(|row| Part::of(row).tensor).fold(0.0, f64::max);
        let mains: Vec<&Row> = loops().filter(|row| Part::of(row).tensor == most).collect();
        let share = 1.0 / mains.len() as f64;
        let mean = |of: &dyn Fn(&Row) -> Part| {
            mains.iter().map(|main| of(main).times(share)).fold(Part::default(), Part::plus)
        };
        let others = |main: &Row| {
            let own = main.part.clone();
            rows.iter().copied().filter(move |row| row.part != own)
        };
        let iteration = mean(&|main| Part::sum(rows.iter().copied().filter(|row| row.part == main.part)));
        let beside = mean(&|main| Part::sum(others(main).filter(|row| is_beside(place(row), place(main)))));
        let once = mean(&|main| Part::sum(others(main).filter(|row| is_once(place(row), place(main)))));
        let warpgroups = mains.first()?.warps as f64;
        Some(Item { warpgroups, iteration, beside, once, tiles_beside: beside.tensor / iteration.tensor })
    }
}

/// A row's part without the role of its warps.
fn place(row: &Row) -> &str {
    row.part.split(" (").next().unwrap_or_default()
}

/// The number of the loop over items around a loop over tiles: 2 of `loop 2.1`.
fn loop_over_items(main: &str) -> Option<&str> {
    Some(main.strip_prefix("loop ")?.rsplit_once('.')?.0)
}

/// Whether a part runs once per item.
fn is_beside(part: &str, main: &str) -> bool {
    loop_over_items(main).is_none_or(|items| {
        part.ends_with(&format!(" in loop {items}")) || part.starts_with(&format!("loop {items}."))
    })
}

/// Whether a part runs once per block, before the loop over items or after it.
fn is_once(part: &str, main: &str) -> bool {
    loop_over_items(main).is_some_and(|items| {
        ["start", "epilogue"].contains(&part) || part.ends_with(&format!("after loop {items}"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::table::{TEXT, parse};
    use super::*;

    const DIMS: (usize, usize, usize, usize) = (64, 12, 1024, 64);

    fn row(part: &str, tensor: usize, clocks: u64) -> Row {
        let text = |text: &str| text.to_string();
        let mut counts = super::super::Counts::default();
        counts.pipes[Pipe::Tensor as usize] = tensor;
        let (file, kernel, mode, binds) = (text("f.cu"), text("f_hs64"), text("-"), text("latency"));
        let part = text(part);
        let (path, warps, issue, latency) = (1, 2, 0, clocks / 2);
        Row { file, kernel, part, path, mode, warps, counts, issue, latency, clocks, binds }
    }

    const PASS: Pass = Pass {
        kernel: "f",
        rows: 128,
        columns: 128,
        over: Over::Keys,
        products: 2,
        operand_rows: 320,
        exchanged_bytes: 0,
        sum_rows: 0,
        tensors: 4,
    };

    /// Two consumers with code of their own, each with the diagonal beside its loop.
    fn turns() -> Vec<Row> {
        vec![
            row("start (consumers)", 4, 100),
            row("start in loop 1 (consumers)", 4, 30),
            row("loop 1.1 (consumers)", 12, 1000),
            row("after loop 1.1 in loop 1 (consumers)", 8, 70),
            row("after loop 1 (consumers)", 8, 50),
            row("start in loop 2 (consumers)", 4, 40),
            row("loop 2.1 (consumers)", 12, 2000),
            row("after loop 2.1 in loop 2 (consumers)", 8, 60),
            row("after loop 2 (consumers)", 8, 150),
            row("loop 3.1 (producer)", 0, 9000),
        ]
    }

    #[test]
    fn consumers_that_take_turns_are_averaged() {
        let demand = PASS.demand(&turns(), (4, 33, 1024, 64), 132).unwrap();
        // An SM has a head: 8 items, of which the k-th meets k + 1 tiles, one beside the loop.
        let item = 100.0;
        assert_eq!(demand.clocks, 100.0 + 100.0 + 8.0 * item + 28.0 * 1500.0);
        assert_eq!((demand.items, demand.waves), (8 * 132, 8.0));
        assert_eq!(demand.flops, 132.0 * 36.0 * 4.0 * 128.0 * 128.0 * 64.0);
        // Keys and values of 128 rows of 128 bytes, copied for both consumers; 36 tiles of a head.
        let copied = 36.0 * 2.0 * 128.0 * 128.0;
        assert_eq!(demand.shared_clocks, (copied + 2.0 * 36.0 * 320.0 * 128.0) / 128.0);
        assert_eq!(demand.l2_bytes, 132.0 * (copied + 2.0 * 1024.0 * 128.0));
        assert_eq!(demand.memory_bytes, 132.0 * 4.0 * 1024.0 * 128.0);
    }

    /// One item per SM at most: the longest one decides, at the latency of its warps or at what
    /// both need together.
    #[test]
    fn few_items_wait_for_the_longest() {
        let demand = PASS.demand(&turns(), (1, 1, 1024, 64), 132).unwrap();
        assert_eq!(demand.clocks, 200.0 + 100.0 + 7.0 * 1500.0);
        assert!(demand.waves < 0.1);
    }

    #[test]
    fn more_work_takes_longer() {
        let table = parse(TEXT).unwrap();
        for pass in FORWARD.iter().chain(BACKWARD) {
            let of = |B, T, SMs| pass.demand(&table, (B, DIMS.1, T, DIMS.3), SMs).unwrap();
            for T in [1, 63, 64, 65, 200, 1000, 1024, 4096] {
                let [base, longer, more, fewer] =
                    [of(8, T, 132), of(8, T + 128, 132), of(16, T, 132), of(8, T, 66)];
                assert!(base.clocks > 0.0 && base.clocks < longer.clocks, "{} {T}", pass.kernel);
                assert!(base.clocks <= more.clocks && base.clocks <= fewer.clocks, "{} {T}", pass.kernel);
                assert!(base.l2_bytes >= base.memory_bytes * 0.6, "{} {T}", pass.kernel);
            }
            // Half of all pairs are masked, so twice the length is nearly four times the work.
            let ratio = of(64, 8192, 132).clocks / of(64, 4096, 132).clocks;
            assert!((3.7..4.0).contains(&ratio), "{}: {ratio}", pass.kernel);
        }
        assert_eq!(PASS.demand(&table, DIMS, 132), None);
    }
}
