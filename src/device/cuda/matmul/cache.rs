//! The kernel that computes a GEMM, chosen once per kind and size: on a GPU by timing all
//! candidates on the operands themselves, each only after it has computed the same as the plainest
//! kernel ([`tune`], [`super::verify`]).
//!
//! Some choices are made by rule instead, which is a model of how blocks fill the device. If every
//! run must choose alike (`--deterministic 1`), the rule picks among the plans that compute the
//! right result. On the emulated device it picks without a comparison, because tests look for wrong
//! kernels there. A plan that tests or benchmarks ask for by its tile is not compared either, as
//! they compare it themselves.
//!
//! Each choice but those asked for is logged at level `info`, once.

use super::gemm::{Gemm, Key};
use super::library;
use super::plan::{Chooser, Plan, Scratch};
use super::tune::{self, Chosen};
use crate::device::cuda::MatmulChoice;
use crate::device::cuda::driver::Driver;
use anyhow::{Result, bail};
use std::collections::{HashMap, HashSet};

/// The plans of the GEMMs seen so far, per choice of kernels.
#[derive(Debug, Default)]
pub struct Plans {
    known: HashMap<(MatmulChoice, Key), Chosen>,
    /// Whether to fuse GELU, keyed by the choice and the GEMM that has it fused.
    fused: HashMap<(MatmulChoice, Key), bool>,
    /// Measured or verified choices since the last call of [`take_lines`](Self::take_lines), a line
    /// each.
    lines: Vec<String>,
    /// Choices by rule that have been logged.
    by_rule: HashSet<String>,
    /// The number of times that something was, or was to be, chosen: at other times a GEMM is only
    /// queued.
    pub choices: usize,
}

impl Plans {
    /// Returns the measured or verified choices since the last call, a line each.
    pub fn take_lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }

    fn tell(&mut self, line: String) {
        log::info!("{line}");
        self.lines.push(line);
    }

    /// Returns the plan for a GEMM, choosing it if there is none yet.
    ///
    /// # Errors
    /// If nothing computes the GEMM, or the device fails.
    pub fn find(
        &mut self,
        driver: &mut dyn Driver,
        chooser: Chooser,
        gemm: &Gemm,
        scratch: Scratch,
    ) -> Result<Plan> {
        let key = (chooser.options.matmul, gemm.key());
        if let Some(chosen) = self.known.get(&key) {
            return Ok(chosen.plan);
        }
        self.choices += 1;
        let plans = candidates(driver, chooser, gemm, scratch)?;
        let chosen = if chooser.verifies() {
            // Not cached: a later GEMM of this shape may be one that can be tried.
            let Some(chosen) = tune::choose(driver, chooser, gemm, &plans, scratch)? else {
                return Ok(chooser.plainest());
            };
            self.tell(chosen.why.clone());
            chosen
        } else {
            let (plan, ms) = (plans[0], None);
            let why = chooser.explain(gemm, &[(ms, plan)]);
            // Shapes that differ only in alignment share a line.
            if !chooser.is_forced() && self.by_rule.insert(why.clone()) {
                log::info!("{why}");
            }
            Chosen { plan, ms, why }
        };
        let plan = chosen.plan;
        self.known.insert(key, chosen);
        Ok(plan)
    }

    /// Whether a GEMM with GELU (`fused`) takes no longer than one without (`apart`) followed by
    /// `gelu`. Measured once per size; `None` if it could not be measured this time.
    ///
    /// # Errors
    /// As [`Plans::find`].
    pub fn fuses(
        &mut self,
        driver: &mut dyn Driver,
        chooser: Chooser,
        [fused, apart]: [&Gemm; 2],
        gelu: impl FnMut(&mut dyn Driver) -> Result<()>,
        scratch: Scratch,
    ) -> Result<Option<bool>> {
        let choice = chooser.options.matmul;
        let key = (choice, fused.key());
        if let Some(known) = self.fused.get(&key) {
            return Ok(Some(*known));
        }
        self.choices += 1;
        let mut ms = |gemm: &Gemm| -> Result<Option<f32>> {
            self.find(driver, chooser, gemm, scratch)?;
            Ok(self.known.get(&(choice, gemm.key())).and_then(|chosen| chosen.ms))
        };
        let (Some(with), Some(without)) = (ms(fused)?, ms(apart)?) else { return Ok(None) };
        let gelu = tune::stopwatch(driver, gelu)?;
        let fuse = with <= without + gelu;
        let better = if fuse { "GELU fused" } else { "GELU apart" };
        let (shape, format) = (fused.key(), chooser.options.matmul_format());
        self.tell(format!(
            "matmul {shape} {format} ({choice}): {better}; fused {with:.3} ms, apart {without:.3} ms and GELU {gelu:.3} ms"
        ));
        self.fused.insert(key, fuse);
        Ok(Some(fuse))
    }
}

/// Returns the plans for a GEMM, the best by estimate first and the library, if there is one, last.
fn candidates(driver: &mut dyn Driver, chooser: Chooser, gemm: &Gemm, scratch: Scratch) -> Result<Vec<Plan>> {
    let choice = chooser.options.matmul;
    if choice == MatmulChoice::Cublaslt {
        driver.matmul_library()?;
        return Ok(vec![Plan::Library]);
    }
    let mut plans = chooser.own_by_estimate(gemm, scratch.bytes);
    if plans.is_empty() {
        bail!("no kernel computes {} with {choice}", gemm.key());
    }
    // Not in a deterministic run: another run could measure differently and choose another order of
    // summation.
    let may = choice == MatmulChoice::Fastest && chooser.measures() && library::computes(gemm);
    if may && driver.matmul_library().is_ok() {
        plans.push(Plan::Library);
    }
    Ok(plans)
}
