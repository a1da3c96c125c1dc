//! The best of several plans on the very device: each must compute what the plainest does ([`super::verify`]), then they are timed.

use super::library;
use super::plan::{Chooser, Plan, Scratch};
use super::product::{ALIGN, Pass, Product, X};
use super::verify::{self, Verifier};
use crate::device::cuda::driver::Driver;
use anyhow::{Context, Result, bail};
use std::fmt;

/// Timed runs of a plan of ours. One that is not timed comes before, as code and operands are not where they will be.
const ROUNDS: usize = 2;

/// A plan that was chosen, and why.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub plan: Plan,
    /// If it was measured.
    pub ms: Option<f32>,
    /// One line.
    pub why: String,
}

/// A product that takes as long and can be repeated: its outputs are those of `product` if they are assigned, and in scratch
/// memory, behind what any of the plans needs of it, if they are added to. `None` if they do not fit there.
fn rehearsal(chooser: Chooser, product: &Product, plans: &[Plan], scratch: Scratch) -> Option<Product> {
    let needs = plans.iter().map(|plan| chooser.scratch_bytes(*plan, product));
    let mut used = needs.max().unwrap_or_default().max(verify::scratch_bytes(chooser.multiprocessors));
    let pass = match product.pass {
        Pass::Wgrad(mut wgrad) => {
            let mut divert = |output: &mut X, len: usize, beside: usize| {
                let start = used.next_multiple_of(ALIGN) + beside;
                used = start + len * product.dtype.size();
                *output = X::new(scratch.address + start as u64);
            };
            if wgrad.dbias.address() != 0 {
                divert(&mut wgrad.dbias, product.OC, 0);
            }
            if wgrad.accumulate {
                // As well aligned as the matrix that it stands for.
                let beside = wgrad.dweight.address() as usize % ALIGN;
                divert(&mut wgrad.dweight, product.OC * product.C, beside);
            }
            Pass::Wgrad(wgrad)
        }
        pass => pass,
    };
    (used <= scratch.bytes).then_some(Product { pass, ..*product })
}

/// The fastest of `plans` that is right, or where nothing may be measured the first that is: `plans` come with the best by
/// estimate first. What is wrong or refused is named in a warning. `None` if the product cannot be tried: the operands are not finite, or
/// scratch memory is short.
///
/// # Errors
/// One line, if none is right, the plainest kernel fails, or the device does.
pub fn choose(
    driver: &mut dyn Driver,
    chooser: Chooser,
    product: &Product,
    plans: &[Plan],
    scratch: Scratch,
) -> Result<Option<Chosen>> {
    let Some(rehearsal) = rehearsal(chooser, product, plans, scratch) else { return Ok(None) };
    let Some(verifier) = Verifier::new(driver, chooser, &rehearsal, scratch)? else { return Ok(None) };
    let mut trial = Trial { driver, chooser, product: &rehearsal, scratch, verifier };
    let mut right: Vec<(Option<f32>, Plan)> = Vec::new();
    let mut last_fault = String::new();
    for &plan in plans {
        let key = product.key();
        let name = chooser.name(plan, product);
        match trial.run(plan).with_context(|| format!("trying {name} for {key}"))? {
            Ok(ms) => right.push((ms, plan)),
            Err(fault) => {
                // The library need not have everything.
                let expected = matches!((&fault, plan), (Fault::Refused(_), Plan::Library));
                let level = if expected { log::Level::Info } else { log::Level::Warn };
                log::log!(
                    level,
                    "{name} is left out for {key}: {fault}; the run goes on with another kernel"
                );
                last_fault = format!("{name}: {fault}");
            }
        }
        if !chooser.measures() && !right.is_empty() {
            break;
        }
    }
    // As after any kernel, whatever the wrong ones left.
    trial.driver.clear(scratch.work_counter.address(), size_of::<u32>())?;
    right.sort_by(|a, b| a.0.partial_cmp(&b.0).expect("times are numbers"));
    let Some(&(ms, plan)) = right.first() else {
        bail!("no plan computes {} as the plainest kernel does; {last_fault}", product.key())
    };
    let why = why(chooser, product, &right);
    Ok(Some(Chosen { plan, ms, why }))
}

/// Why a plan is out.
enum Fault {
    /// The difference of its result.
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

/// Trying out plans for one product.
struct Trial<'a> {
    driver: &'a mut dyn Driver,
    chooser: Chooser,
    product: &'a Product,
    scratch: Scratch,
    verifier: Verifier,
}

impl Trial<'_> {
    /// Milliseconds that a plan takes, if it may be measured. The inner error says what is wrong with it.
    ///
    /// # Errors
    /// If the device fails for good.
    fn run(&mut self, plan: Plan) -> Result<Result<Option<f32>, Fault>> {
        let tried = match plan {
            Plan::Library => self.library(),
            _ => self.own(plan),
        };
        match tried {
            // Was it refused, or is the device out of order? Then it stays so.
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
            true => Ok(Ok(Some(time(self.driver, self.chooser, plan, self.product, self.scratch)?))),
            false => Ok(Ok(None)),
        }
    }

    /// The fastest of the library's algorithms that is right. Adding to a gradient and assigning it are two products for it; the time is
    /// that of the one asked for, which comes last.
    fn library(&mut self) -> Result<Result<Option<f32>, Fault>> {
        let mut variants = vec![*self.product];
        if let Pass::Wgrad(wgrad) = self.product.pass {
            variants.insert(0, self.product.accumulating(!wgrad.accumulate));
        }
        let tf32 = self.chooser.options.tf32;
        let described: Vec<_> = variants.iter().map(|variant| library::describe(variant, tf32)).collect();
        let measures = self.chooser.measures();
        let mut ms = None;
        for (description, operands) in described.iter().filter(|_| measures) {
            ms = Some(self.driver.matmul_library()?.tune(description, operands)?);
        }
        while let Err(fault) = self.verifier.check(self.driver, Plan::Library)? {
            let key = self.product.key();
            log::warn!("an algorithm of cuBLASLt is left out for {key}: {fault}");
            for (description, operands) in &described {
                ms = self.driver.matmul_library()?.reject(description, operands)?;
                if ms.is_none() {
                    return Ok(Err(Fault::Wrong(fault)));
                }
            }
        }
        let rest = self.chooser.bias_gradient(self.product, self.scratch).filter(|_| measures);
        if let (Some(ms), Some((rest, plan, scratch))) = (&mut ms, rest) {
            *ms += time(self.driver, self.chooser, plan, &rest, scratch)?;
        }
        Ok(Ok(ms))
    }
}

/// Milliseconds that a product takes by one of our plans.
fn time(
    driver: &mut dyn Driver,
    chooser: Chooser,
    plan: Plan,
    product: &Product,
    scratch: Scratch,
) -> Result<f32> {
    stopwatch(driver, |driver| chooser.run(driver, plan, product, scratch))
}

/// Milliseconds that `work` takes on the device, the best of [`ROUNDS`].
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

/// The line that says what was chosen: `forward, bias 65536 x 768 x 2304 (own): matmul_hopper_forward_128x256, 0.312 ms, 742.9 TFLOP/s;
/// others: cuBLASLt 0.330 ms`.
fn why(chooser: Chooser, product: &Product, right: &[(Option<f32>, Plan)]) -> String {
    let named = |&(ms, plan): &(Option<f32>, Plan)| {
        let name = chooser.name(plan, product);
        ms.map_or(name.clone(), |ms| format!("{name} {ms:.3} ms"))
    };
    let mut line = format!("{} ({}): {}", product.key(), chooser.choice_name(), named(&right[0]));
    if let Some(ms) = right[0].0 {
        line += &format!(", {:.1} TFLOP/s", product.flops() / f64::from(ms) / 1e9);
    }
    if right.len() > 1 {
        line += &format!("; others: {}", right[1..].iter().map(named).collect::<Vec<_>>().join(", "));
    }
    line
}
