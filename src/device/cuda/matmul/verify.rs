//! The comparison of a plan's results with those of the plainest of our kernels on the same
//! operands. A plan that differs is never used, however fast it is.
//!
//! 64 elements of each output and its norm are compared. A kernel that leaves elements unwritten
//! shows in the norm, as all were NaN before; one that computes wrong tiles shows in elements of
//! every kind of tile, or in the norm.
//!
//! Each plan runs once for that, which also serves as its warm-up run; a gradient of a weight is
//! computed twice. Each output is also poisoned and read once, and 64 of its elements are copied.
//! For the some 300 plans of GPT-2 124M at B = 64 on an H200 all this takes 0.15 s by estimate: a
//! third are the copies, a third the plainest kernels themselves.

use super::gemm::{ALIGN, Gemm, Output, Pass};
use super::plan::{Chooser, Plan, Scratch};
use crate::device::compare::{Tolerance, close};
use crate::device::cuda::driver::Driver;
use crate::device::cuda::kernel::Ptr;
use crate::device::cuda::reduce;
use crate::tensor::Dtype;
use anyhow::{Context, Result, bail};

/// Elements compared per output.
const SAMPLES: usize = 64;
/// The most outputs that a GEMM has, and the bytes of their samples.
const MOST_OUTPUTS: usize = 2;
const SAMPLES_BYTES: usize = MOST_OUTPUTS * SAMPLES * size_of::<f32>();
/// A multiple or a divisor of the edges of all tiles.
const TILE: usize = 128;

/// Roundings to the device's type on both sides: of the sum, and of GELU or the addition after it.
const ROUNDINGS: f64 = 4.0;
/// TF32 has 13 bits less than f32, and the library may round otherwise than we do.
const TF32_ROUNDINGS: f64 = 4.0 * 8192.0;
/// Error of the hardware's tanh, on both sides.
const TANH: f64 = 1.0 / 1024.0;

/// Root mean square of the inputs of a GELU. Of larger ones fewer are near zero, where its gradient
/// changes.
const SIZE_BEFORE_GELU: f64 = 1.0;

/// Returns the scratch memory of a comparison in bytes.
pub fn scratch_bytes(sm_count: usize) -> usize {
    partials_at() + reduce::most_partials(sm_count) * size_of::<f32>()
}

fn partials_at() -> usize {
    (SAMPLES_BYTES + MOST_OUTPUTS * size_of::<f32>()).next_multiple_of(ALIGN)
}

/// Norm and samples of an output.
#[derive(Debug)]
struct Seen {
    norm_squared: f32,
    samples: Vec<f32>,
}

impl Seen {
    fn is_finite(&self) -> bool {
        self.norm_squared.is_finite() && self.samples.iter().all(|x| x.is_finite())
    }
}

/// A GEMM and its right result.
pub struct Verifier {
    chooser: Chooser,
    gemm: Gemm,
    outputs: Vec<Output>,
    scratch: Scratch,
    right: Vec<Seen>,
}

impl Verifier {
    /// Computes the GEMM by the plainest plan. `None` if its results are not finite because the
    /// operands are not, as with gradients that overflowed: then nothing can be compared. Leaves
    /// garbage in the outputs.
    ///
    /// # Errors
    /// One line that names the kernel, if it is refused or leaves part of an output unwritten, or
    /// if the device fails.
    pub fn new(
        driver: &mut dyn Driver,
        chooser: Chooser,
        gemm: &Gemm,
        scratch: Scratch,
    ) -> Result<Option<Self>> {
        let outputs = gemm.outputs();
        let mut verifier = Verifier { chooser, gemm: *gemm, outputs, scratch, right: Vec::new() };
        let plan = chooser.plainest();
        let name = chooser.name(plan, gemm);
        let what = || format!("{name} for {}, the plainest kernel for it", gemm.key());
        let right = verifier.outcome(driver, plan, 0xff).with_context(what)?;
        if right.iter().all(Seen::is_finite) {
            verifier.right = right;
            return Ok(Some(verifier));
        }
        let again = verifier.outcome(driver, plan, 0).with_context(what)?;
        match again.iter().all(Seen::is_finite) {
            true => bail!("{}: leaves part of its output unwritten", what()),
            false => Ok(None),
        }
    }

    /// Computes the GEMM by another plan. The inner error says briefly how its result differs.
    ///
    /// # Errors
    /// If the device fails or refuses a launch.
    pub fn check(&self, driver: &mut dyn Driver, plan: Plan) -> Result<Result<(), String>> {
        let seen = self.outcome(driver, plan, 0xff)?;
        Ok(self.outputs.iter().zip(&seen).zip(&self.right).try_for_each(|((output, seen), right)| {
            self.compare(output, seen, right).map_err(|fault| format!("{}: {fault}", output.name))
        }))
    }

    /// Sets all bytes of the outputs to `poison`, computes the GEMM, and looks at the outputs. A
    /// gradient of a weight is always assigned and then added to, so it comes out doubled; one of a
    /// bias is added to zero twice.
    fn outcome(&self, driver: &mut dyn Driver, plan: Plan, poison: u8) -> Result<Vec<Seen>> {
        // An earlier kernel that ended half way may have left something there.
        self.scratch.signals.clear(driver)?;
        for output in &self.outputs {
            let bytes = output.len() * self.gemm.dtype.size();
            driver.set_bytes(output.matrix.address(), if output.adds { 0 } else { poison }, bytes)?;
        }
        self.chooser.run(driver, plan, &self.gemm.accumulating(false), self.scratch)?;
        if matches!(self.gemm.pass, Pass::Wgrad(_)) {
            self.chooser.run(driver, plan, &self.gemm.accumulating(true), self.scratch)?;
        }
        // Errors surface here, before they could be blamed on the kernels that only look.
        driver.synchronize()?;
        self.look(driver)
    }

    /// Gathers samples in scratch memory, which the plan no longer uses, and downloads them in one
    /// copy.
    fn look(&self, driver: &mut dyn Driver) -> Result<Vec<Seen>> {
        let dtype = self.gemm.dtype;
        let at = |offset: usize| self.scratch.address + offset as u64;
        let (share, norm) = (SAMPLES_BYTES / MOST_OUTPUTS, size_of::<f32>());
        for (i, output) in self.outputs.iter().enumerate() {
            let out = Ptr::new(at(SAMPLES_BYTES + i * norm));
            let src = (output.matrix, output.len());
            reduce::norm_squared_at(driver, out, Ptr::new(at(partials_at())), src, dtype)?;
            for (k, place) in places(output.rows, output.columns).into_iter().enumerate() {
                let element = output.matrix.address() + (place * dtype.size()) as u64;
                driver.copy(at(i * share + k * dtype.size()), element, dtype.size())?;
            }
        }
        let mut bytes = vec![0; SAMPLES_BYTES + MOST_OUTPUTS * norm];
        driver.download(&mut bytes, self.scratch.address)?;
        let norms: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes[SAMPLES_BYTES..]);
        let seen = (0..self.outputs.len()).map(|i| {
            let samples = floats(&bytes[i * share..][..SAMPLES * dtype.size()], dtype);
            Seen { norm_squared: norms[i], samples }
        });
        Ok(seen.collect())
    }

    fn compare(&self, output: &Output, seen: &Seen, right: &Seen) -> Result<(), String> {
        let dtype = self.gemm.dtype;
        let terms = self.gemm.extent().K;
        let operands = if self.chooser.options.tf32 && dtype == Dtype::F32 { TF32_ROUNDINGS } else { 0.0 };
        let sums = Tolerance::new(ROUNDINGS + operands, terms);
        let (element, tanh) = match output.name {
            "out" if self.gemm.has_gelu() => (sums.then_gelu(), TANH),
            "gelu_gradient" => (sums.then_gelu_gradient(SIZE_BEFORE_GELU), TANH),
            _ => (sums, 0.0),
        };
        let element = element.relative(dtype);
        close(&seen.samples, &right.samples, element).map_err(|fault| format!("sample {fault}"))?;
        // Roundings of elements go either way. Those in the sums of tensor cores, of TF32 and of
        // tanh are biased.
        let one_way = 8.0 * Tolerance::new(0.0, terms).relative(dtype)
            + Tolerance::new(operands, 1).relative(dtype)
            + tanh;
        let norm = 8.0 * element / (output.len() as f64).sqrt() + one_way;
        let (got, want) = (f64::from(seen.norm_squared), f64::from(right.norm_squared));
        match (got - want).abs() <= norm * want {
            true => Ok(()),
            false => Err(format!("its squared norm is {got:e}, want {want:e} to within {norm:e}")),
        }
    }
}

fn floats(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::Bf16 => {
            bytemuck::pod_collect_to_vec::<u8, half::bf16>(bytes).into_iter().map(f32::from).collect()
        }
        Dtype::F16 => {
            bytemuck::pod_collect_to_vec::<u8, half::f16>(bytes).into_iter().map(f32::from).collect()
        }
        _ => bytemuck::pod_collect_to_vec(bytes),
    }
}

/// Returns the indices of [`SAMPLES`] elements of a matrix: six in each of nine kinds of tiles (the
/// first, any and the last, down and across), five in the last row, five in the last column.
fn places(rows: usize, columns: usize) -> Vec<usize> {
    // The fractional parts of multiples of these fill the four-dimensional unit cube evenly.
    const STEPS: [f64; 4] = [0.856_674_88, 0.733_891_85, 0.628_706_72, 0.538_597_25];
    let mut count = 0.0;
    let mut next = || {
        count += 1.0;
        STEPS.map(|step| (count * step).fract())
    };
    let in_tile = |len: usize, kind: usize, which: f64, place: f64| {
        let tiles = len.div_ceil(TILE);
        let tile = [0, (which * tiles as f64) as usize, tiles - 1][kind];
        let start = tile * TILE;
        start + (place * TILE.min(len - start) as f64) as usize
    };
    let mut places = Vec::with_capacity(SAMPLES);
    for kinds in 0..9 {
        for _ in 0..6 {
            let [a, b, c, d] = next();
            let (row, column) = (in_tile(rows, kinds / 3, a, b), in_tile(columns, kinds % 3, c, d));
            places.push(row * columns + column);
        }
    }
    for fifth in 0..5 {
        let at = |len: usize| (len - 1) * (fifth + 1) / 5;
        places.push((rows - 1) * columns + at(columns));
        places.push(at(rows) * columns + columns - 1);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn samples_are_of_every_kind_of_tile_and_of_all_edges() {
        for (rows, columns) in [(1000, 520), (1, 768), (65, 40), (2, 8), (128, 128)] {
            let places = places(rows, columns);
            assert_eq!(places.len(), SAMPLES);
            assert!(places.iter().all(|&place| place < rows * columns), "{rows} x {columns}");
            let at: Vec<_> = places.iter().map(|place| (place / columns, place % columns)).collect();
            assert!(at.contains(&(rows - 1, columns - 1)), "{at:?}");
            let kind = |i: usize, len: usize| (i / TILE > 0, i / TILE == (len - 1) / TILE);
            let kinds: BTreeSet<_> = at.iter().map(|&(r, c)| (kind(r, rows), kind(c, columns))).collect();
            let count = |len: usize| len.div_ceil(TILE).min(3);
            assert_eq!(kinds.len(), count(rows) * count(columns), "{rows} x {columns}: {at:?}");
        }
    }
}
