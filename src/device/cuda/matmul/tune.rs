//! The fastest of several plans on this device. Each must first compute the same as the plainest
//! ([`super::verify`]), then it is timed.

use super::gemm::{ALIGN, Gemm, Pass, X};
use super::library;
use super::plan::{Chooser, Plan, Scratch};
use super::verify::{self, Verifier};
use crate::device::cuda::driver::Driver;
use anyhow::{Context, Result, bail};
use std::fmt;

/// Timed runs per plan of ours. The verifying run before them brings code and operands into the
/// caches.
const ROUNDS: usize = 2;

/// The chosen plan and the reason for it.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub plan: Plan,
    /// Milliseconds, if it was timed.
    pub ms: Option<f32>,
    /// The reason in one line.
    pub why: String,
}

/// Returns the scratch memory with which every plan for a GEMM can be tried.
pub fn scratch_bytes(chooser: Chooser, gemm: &Gemm) -> usize {
    let plans = chooser.own(gemm, usize::MAX).into_iter().chain([Plan::Library]);
    let partials = plans.map(|plan| chooser.scratch_bytes(plan, gemm)).max().unwrap_or_default();
    match gemm.pass {
        _ if !chooser.verifies() => partials,
        // Room for gradients that are added to.
        Pass::Wgrad(_) => {
            let outputs = [gemm.OC, gemm.OC * gemm.C].map(|len| len * gemm.dtype.size());
            let base = partials.max(verify::scratch_bytes(chooser.sm_count));
            outputs.iter().fold(base, |used, bytes| used.next_multiple_of(ALIGN) + ALIGN + bytes)
        }
        _ => partials.max(verify::scratch_bytes(chooser.sm_count)),
    }
}

/// Returns a GEMM that takes as long as `gemm` and can be repeated. Its outputs are those of `gemm`
/// if they are assigned. If they are added to, they lie in scratch memory, after the part that the
/// plans need; `None` if they do not fit there.
fn rehearsal(chooser: Chooser, gemm: &Gemm, plans: &[Plan], scratch: Scratch) -> Option<Gemm> {
    let needs = plans.iter().map(|plan| chooser.scratch_bytes(*plan, gemm));
    let mut used = needs.max().unwrap_or_default().max(verify::scratch_bytes(chooser.sm_count));
    let pass = match gemm.pass {
        Pass::Wgrad(mut wgrad) => {
            let mut divert = |output: &mut X, len: usize, beside: usize| {
                let start = used.next_multiple_of(ALIGN) + beside;
                used = start + len * gemm.dtype.size();
                *output = X::new(scratch.address + start as u64);
            };
            if wgrad.dbias.address() != 0 {
                divert(&mut wgrad.dbias, gemm.OC, 0);
            }
            if wgrad.accumulate {
                // Aligned as the matrix that it stands for.
                let beside = wgrad.dweight.address() as usize % ALIGN;
                divert(&mut wgrad.dweight, gemm.OC * gemm.C, beside);
            }
            Pass::Wgrad(wgrad)
        }
        pass => pass,
    };
    (used <= scratch.bytes).then_some(Gemm { pass, ..*gemm })
}

/// Returns the fastest of `plans` that is right; or, if timing is not allowed, the first that is
/// right, as `plans` are sorted by estimate. Plans that are wrong or refused are named in a
/// warning. `None` if the GEMM cannot be tried because its operands are not finite or scratch
/// memory is short.
///
/// # Errors
/// One line, if none is right, the plainest kernel fails, or the device does.
pub fn choose(
    driver: &mut dyn Driver,
    chooser: Chooser,
    gemm: &Gemm,
    plans: &[Plan],
    scratch: Scratch,
) -> Result<Option<Chosen>> {
    let Some(rehearsal) = rehearsal(chooser, gemm, plans, scratch) else { return Ok(None) };
    let Some(verifier) = Verifier::new(driver, chooser, &rehearsal, scratch)? else { return Ok(None) };
    let mut trial = Trial { driver, chooser, gemm: &rehearsal, scratch, verifier };
    let mut right: Vec<(Option<f32>, Plan)> = Vec::new();
    let mut last_fault = String::new();
    for &plan in plans {
        let key = gemm.key();
        let name = chooser.name(plan, gemm);
        match trial.run(plan).with_context(|| format!("trying {name} for {key}"))? {
            Ok(ms) => right.push((ms, plan)),
            Err(fault) => {
                // A library may lack an epilogue.
                let expected = matches!((&fault, plan), (Fault::Refused(_), Plan::Library));
                let level = if expected { log::Level::Info } else { log::Level::Warn };
                log::log!(
                    level,
                    "{name} is left out for {key}: {fault}; the run continues with another kernel"
                );
                last_fault = format!("{name}: {fault}");
            }
        }
        if !chooser.measures() && !right.is_empty() {
            break;
        }
    }
    // Wrong kernels may have left anything there; right ones leave zero.
    scratch.signals.clear(trial.driver)?;
    right.sort_by(|a, b| a.0.partial_cmp(&b.0).expect("times are numbers"));
    let Some(&(ms, plan)) = right.first() else {
        bail!("no plan computes {} as the plainest kernel does; {last_fault}", gemm.key())
    };
    let why = chooser.explain(gemm, &right);
    Ok(Some(Chosen { plan, ms, why }))
}

/// The reason to drop a plan.
enum Fault {
    /// Its result differs; the text says how.
    Wrong(String),
    Refused(anyhow::Error),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Wrong(how) => write!(f, "its result is wrong: {how}"),
            Fault::Refused(error) => write!(f, "it is refused: {error:#}"),
        }
    }
}

/// The trial of plans for one GEMM.
struct Trial<'a> {
    driver: &'a mut dyn Driver,
    chooser: Chooser,
    gemm: &'a Gemm,
    scratch: Scratch,
    verifier: Verifier,
}

impl Trial<'_> {
    /// Returns the milliseconds of a plan, if timing is allowed. The inner error is its fault.
    ///
    /// # Errors
    /// If the device fails for good.
    fn run(&mut self, plan: Plan) -> Result<Result<Option<f32>, Fault>> {
        let tried = match plan {
            Plan::Library => self.library(),
            _ => self.own(plan),
        };
        match tried {
            // If the device is broken rather than the launch refused, waiting for it fails too.
            Err(refused) => match self.driver.synchronize() {
                Ok(()) => Ok(Err(Fault::Refused(refused))),
                Err(_) => Err(refused),
            },
            tried => tried,
        }
    }

    fn own(&mut self, plan: Plan) -> Result<Result<Option<f32>, Fault>> {
        if !self.chooser.is_plainest(plan)
            && let Err(fault) = self.verifier.check(self.driver, plan)?
        {
            return Ok(Err(Fault::Wrong(fault)));
        }
        match self.chooser.measures() {
            true => Ok(Ok(Some(time(self.driver, self.chooser, plan, self.gemm, self.scratch)?))),
            false => Ok(Ok(None)),
        }
    }

    /// Tries the library's algorithms, the fastest first, until one is right. For the library,
    /// adding to a gradient and assigning it are two GEMMs; the time is that of the requested one,
    /// which comes last.
    fn library(&mut self) -> Result<Result<Option<f32>, Fault>> {
        let mut variants = vec![*self.gemm];
        if let Pass::Wgrad(wgrad) = self.gemm.pass {
            variants.insert(0, self.gemm.accumulating(!wgrad.accumulate));
        }
        let tf32 = self.chooser.options.tf32;
        let described: Vec<_> = variants.iter().map(|variant| library::describe(variant, tf32)).collect();
        let measures = self.chooser.measures();
        let mut ms = None;
        for (description, operands) in described.iter().filter(|_| measures) {
            ms = Some(self.driver.matmul_library()?.tune(description, operands)?);
        }
        while let Err(fault) = self.verifier.check(self.driver, Plan::Library)? {
            let key = self.gemm.key();
            log::warn!("an algorithm of cuBLASLt is left out for {key}: {fault}");
            for (description, operands) in &described {
                ms = self.driver.matmul_library()?.reject(description, operands)?;
                if ms.is_none() {
                    return Ok(Err(Fault::Wrong(fault)));
                }
            }
        }
        let rest = self.chooser.bias_gradient(self.gemm, self.scratch).filter(|_| measures);
        if let (Some(ms), Some((rest, plan, scratch))) = (&mut ms, rest) {
            *ms += time(self.driver, self.chooser, plan, &rest, scratch)?;
        }
        Ok(Ok(ms))
    }
}

/// Returns the milliseconds that a GEMM takes by one of our plans.
fn time(driver: &mut dyn Driver, chooser: Chooser, plan: Plan, gemm: &Gemm, scratch: Scratch) -> Result<f32> {
    stopwatch(driver, |driver| chooser.run(driver, plan, gemm, scratch))
}

/// Returns the milliseconds that `work` takes on the device, the best of [`ROUNDS`].
///
/// # Errors
/// If the work fails, or the device does.
pub fn stopwatch(
    driver: &mut dyn Driver,
    mut work: impl FnMut(&mut dyn Driver) -> Result<()>,
) -> Result<f32> {
    let mut best = f32::INFINITY;
    for _ in 0..ROUNDS {
        driver.start_timer()?;
        work(driver)?;
        best = best.min(driver.stop_timer()?.context("a device with a clock")?);
    }
    Ok(best)
}
