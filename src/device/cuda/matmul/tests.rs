//! The choice among our kernels and a vendor's library, on the emulated device with a library that only it could love, and with
//! kernels that have something wrong with them.

use super::fake::{C, Fake, Fault, N, OC, Setting};
use crate::device::compare::testing::random;
use crate::device::compare::{Tolerance, assert_close};
use crate::device::cuda::{AUTO, Cuda, CudaOptions, MatmulChoice};
use crate::ops::*;
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;

/// The outcome of a run.
struct Outcome {
    results: Vec<Vec<f32>>,
    /// Products of the library, once all plans were made.
    by_library: usize,
    lines: Vec<String>,
    warnings: Vec<String>,
}

const TENSORS: usize = 11;
/// Lengths of out, pre_gelu, inp, weight, bias, residual, dinp, dweight, dbias, dout, through_gelu.
const LENS: [usize; TENSORS] = [N * OC, N * OC, N * C, OC * C, OC, N * OC, N * C, OC * C, OC, N * OC, N * C];

/// Memory of a device, with random numbers and the first of the input as a test sets it.
fn fill(dev: &mut Cuda, setting: &Setting) -> Result<[Tensor; TENSORS]> {
    let mut plan = MemoryPlan::new();
    let tensors = LENS.map(|len| plan.add("test", "x", setting.dtype, len));
    let limits = Limits { rows: N, logits_rows: N, T: N, C: 64, NH: 1, V: 64, Vp: 64, norm_pieces: 1 };
    plan_scratch(dev, &[limits], &mut plan)?;
    dev.allocate(&plan)?;
    for (seed, tensor) in tensors.iter().enumerate() {
        upload_f32(dev, *tensor, &random(seed as u64, tensor.len))?;
    }
    upload_f32(dev, tensors[2].slice(0, 1), &[setting.first])?;
    Ok(tensors)
}

/// Forward and backward in all variants, once to make plans and once more.
fn outcome(setting: &Setting) -> Result<Outcome> {
    let Setting { dtype, matmul, gelu_fusion, deterministic, .. } = *setting;
    let (driver, products) = Fake::open(setting)?;
    let options = CudaOptions { dtype, tf32: false, gelu_fusion, deterministic, matmul };
    let mut dev = Cuda::new(Box::new(driver), options);
    let tensors = fill(&mut dev, setting)?;
    let [out, pre_gelu, inp, weight, bias, residual, dinp, dweight, dbias, dout, through_gelu] = tensors;

    testing::take_warnings();
    let mut results = Vec::new();
    let mut keep = |dev: &mut Cuda, tensor: Tensor| -> Result<()> {
        let mut values = vec![0.0f32; tensor.len];
        download_f32(dev, &mut values, tensor)?;
        results.push(values);
        Ok(())
    };
    let variants = [(true, None), (false, None), (false, Some(through_gelu))];
    for (overwrite_dweight, through_gelu) in variants.into_iter().chain(variants) {
        if overwrite_dweight {
            products.set(0);
        }
        for epilogue in [
            Epilogue::None,
            Epilogue::Bias { bias },
            Epilogue::BiasGelu { bias, pre_gelu },
            Epilogue::BiasResidual { bias, residual },
        ] {
            dev.matmul_forward(MatmulForward { out, inp, weight, epilogue, N, C, OC })?;
            keep(&mut dev, out)?;
        }
        keep(&mut dev, pre_gelu)?;
        let args = MatmulBackward {
            dinp,
            dweight,
            overwrite_dweight,
            dbias: Some(dbias),
            dout,
            inp,
            weight,
            through_gelu,
            N,
            C,
            OC,
        };
        dev.matmul_backward(args)?;
        for tensor in [dinp, dweight, dbias] {
            keep(&mut dev, tensor)?;
        }
    }
    let (lines, warnings) = (dev.take_matmul_plans(), testing::take_warnings());
    Ok(Outcome { results, by_library: products.get(), lines, warnings })
}

/// The results are those of the smallest of our tiles.
#[track_caller]
fn assert_right(results: &[Vec<f32>], dtype: Dtype) {
    let matmul = MatmulChoice::Tile { M: 64, N: 64, splits: 1 };
    let plainest = outcome(&Setting { dtype, matmul, ..Setting::default() }).unwrap();
    assert!(plainest.lines.is_empty(), "{:?}", plainest.lines);
    for (i, (got, want)) in results.iter().zip(&plainest.results).enumerate() {
        let tolerance = Tolerance::new(2.0, 6 * N).relative(dtype);
        assert_close(&format!("result {i}"), got, want, tolerance);
    }
}

#[test]
fn the_library_computes_all_products_when_asked_to() {
    let setting =
        Setting { matmul: MatmulChoice::Cublaslt, gelu_fusion: 0, library_ms: 2.0, ..Setting::default() };
    let found = outcome(&setting).unwrap();
    assert_eq!(found.by_library, 3 * (4 + 2));
    assert_right(&found.results, Dtype::F32);
}

/// Among them none that it has no algorithm for.
#[test]
fn the_faster_one_computes_a_product() {
    let fastest = Setting { matmul: MatmulChoice::Fastest, ..Setting::default() };
    let found = outcome(&Setting { library_ms: 0.5, ..fastest.clone() }).unwrap();
    assert_right(&found.results, Dtype::F32);
    let products_with_gelu = 3 + 1;
    // Of the gradients of weights, the library needs one kernel besides for the bias: a millisecond and a half.
    assert_eq!(found.by_library, 3 * (4 + 1) - products_with_gelu);
    let found = outcome(&Setting { library_ms: 2.0, ..fastest }).unwrap();
    assert_right(&found.results, Dtype::F32);
    assert_eq!((found.by_library, found.warnings), (0, Vec::new()));
}

#[test]
fn a_wrong_algorithm_of_the_library_makes_way_for_the_next_or_for_ours() {
    let fastest = Setting { matmul: MatmulChoice::Fastest, library_ms: 0.5, ..Setting::default() };
    let found = outcome(&Setting { wrong_algorithms: vec![true, false], ..fastest.clone() }).unwrap();
    assert_right(&found.results, Dtype::F32);
    assert!(found.by_library > 0);
    let line = found.lines.iter().find(|line| line.starts_with("forward 65 x 40 x 72 (fastest)")).unwrap();
    assert!(line.contains(": cuBLASLt 0.750 ms, "), "{line}");
    let named = "an algorithm of cuBLASLt is left out for forward 65 x 40 x 72: out: ";
    assert_eq!(
        found.warnings.iter().filter(|line| line.starts_with(named)).count(),
        1,
        "{:?}",
        found.warnings
    );

    let found = outcome(&Setting { wrong_algorithms: vec![true], ..fastest.clone() }).unwrap();
    assert_right(&found.results, Dtype::F32);
    assert_eq!(found.by_library, 0);
    let asked =
        Setting { matmul: MatmulChoice::Cublaslt, gelu_fusion: 0, wrong_algorithms: vec![true], ..fastest };
    let error = format!("{:#}", outcome(&asked).err().expect("nothing else may compute it"));
    let start = "no plan computes forward 65 x 40 x 72 as the plainest kernel does; cuBLASLt: its result is wrong: out: ";
    assert!(error.starts_with(start), "{error}");
}

/// The mutant is the fastest kernel by far.
fn mutants_are_cheap(name: &str) -> f32 {
    if name.ends_with("_128x128") { 0.1 } else { 1.0 }
}

const PASSES: [&str; 3] = ["forward", "dgrad", "wgrad"];

#[test]
fn the_fastest_of_the_right_kernels_is_chosen() {
    let found = outcome(&Setting { cost: mutants_are_cheap, ..Setting::default() }).unwrap();
    assert_right(&found.results, Dtype::F32);
    assert_eq!(found.warnings, Vec::<String>::new());
    // Forward with four epilogues, both gradients without and with GELU.
    assert_eq!(found.lines.len(), 4 + 2 + 1, "{:?}", found.lines);
    let line = "forward, bias, gelu 65 x 40 x 72 (own): matmul_f32_forward_128x128 0.100 ms, 0.0 TFLOP/s; \
                others: matmul_f32_forward_64x64 1.000 ms";
    assert!(found.lines.iter().any(|found| found == line), "{:?}", found.lines);
}

#[test]
fn a_kernel_that_is_wrong_or_refused_is_dropped_and_named() {
    for pass in PASSES {
        let name = ["matmul_f32_forward_128x128", "matmul_f32_dgrad_128x128", "matmul_f32_wgrad_128x128"]
            .into_iter()
            .find(|name| name.contains(pass))
            .unwrap();
        for (fault, said) in [
            (Fault::ReturnsEarly, "its result is wrong: "),
            (Fault::WrongTile, "its result is wrong: "),
            (Fault::Refused, "it is refused: launching "),
            (Fault::Assigns, "its result is wrong: dweight: "),
        ] {
            if fault == Fault::Assigns && pass != "wgrad" {
                continue;
            }
            let setting =
                Setting { mutant: Some((name, fault)), cost: mutants_are_cheap, ..Setting::default() };
            let found = outcome(&setting).unwrap();
            assert_right(&found.results, Dtype::F32);
            let of_pass: Vec<_> = found.lines.iter().filter(|line| line.starts_with(pass)).collect();
            let kernel = format!(": matmul_f32_{pass}_64x64 1.000 ms, ");
            assert!(of_pass.iter().all(|line| line.contains(&kernel)), "{fault:?}: {of_pass:?}");
            // Once for each of them, and for nothing else.
            assert_eq!(found.warnings.len(), of_pass.len(), "{fault:?}: {:?}", found.warnings);
            for warning in &found.warnings {
                assert!(warning.starts_with(&format!("{name} is left out for {pass}")), "{warning}");
                assert!(warning.contains(said), "{warning}");
                assert!(warning.ends_with("; the run goes on with another kernel"), "{warning}");
            }
        }
    }
}

/// It is the one by estimate, which nobody may measure.
#[test]
fn a_wrong_kernel_is_dropped_where_nothing_is_measured() {
    let right = Setting { deterministic: true, cost: |_| panic!("measured"), ..Setting::default() };
    let chosen = outcome(&right).unwrap();
    let of_wgrad =
        |found: &Outcome| found.lines.iter().find(|line| line.starts_with("wgrad")).unwrap().clone();
    let (line, name) = (of_wgrad(&chosen), "matmul_f32_wgrad_64x64");
    assert_eq!(line, format!("wgrad, bias 65 x 40 x 72 (own): {name}"));
    // The plainest was the first; on one multiprocessor another is.
    let right = Setting { dtype: Dtype::Bf16, multiprocessors: 1, ..right };
    let first = of_wgrad(&outcome(&right).unwrap());
    let name = "matmul_hopper_wgrad_128x128";
    assert!(first.ends_with(name), "{first}");
    let mutated = Setting { mutant: Some((name, Fault::ReturnsEarly)), ..right };
    let found = outcome(&mutated).unwrap();
    assert_right(&found.results, Dtype::Bf16);
    assert!(!of_wgrad(&found).contains(name), "{:?}", found.lines);
    assert_eq!(found.warnings.len(), 1, "{:?}", found.warnings);
}

/// It leaves the counter of persistent kernels as no other expects it.
#[test]
fn a_kernel_that_ends_half_way_condemns_no_other() {
    let name = "matmul_hopper_wgrad_128x256";
    let cost = |name: &str| if name.contains("hopper") { 0.1 } else { 1.0 };
    let mutant = Some((name, Fault::LeavesCounter));
    let found = outcome(&Setting { dtype: Dtype::Bf16, mutant, cost, ..Setting::default() }).unwrap();
    assert_right(&found.results, Dtype::Bf16);
    let wgrad = found.lines.iter().find(|line| line.starts_with("wgrad")).unwrap();
    assert!(wgrad.contains(": matmul_hopper_wgrad_128x128 "), "{wgrad}");
    assert!(
        !found.warnings.is_empty() && found.warnings.iter().all(|line| line.starts_with(name)),
        "{:?}",
        found.warnings
    );
}

#[test]
fn what_fails_for_good_or_in_the_plainest_kernel_ends_the_run() {
    let error = |name, fault| {
        let setting = Setting { mutant: Some((name, fault)), ..Setting::default() };
        format!("{:#}", outcome(&setting).err().expect("a run that cannot go on"))
    };
    assert_eq!(
        error("forward_128x128", Fault::Breaks),
        "trying matmul_f32_forward_128x128 for forward 65 x 40 x 72: launching matmul_f32_forward_128x128: an illegal address"
    );
    let plainest = "matmul_f32_dgrad_64x64 for dgrad 65 x 40 x 72, the plainest kernel for it: ";
    assert_eq!(
        error("dgrad_64x64", Fault::ReturnsEarly),
        format!("{plainest}leaves part of its output unwritten")
    );
    let refused = error("dgrad_64x64", Fault::Refused);
    assert_eq!(refused, format!("{plainest}launching matmul_f32_dgrad_64x64: out of registers"));
}

/// As gradients that overflowed: nothing can be told from them.
#[test]
fn operands_that_are_not_finite_are_no_fault_of_a_kernel() {
    let setting = Setting { first: f32::INFINITY, cost: mutants_are_cheap, ..Setting::default() };
    let found = outcome(&setting).unwrap();
    assert_eq!(found.warnings, Vec::<String>::new());
    assert!(found.lines.iter().all(|line| line.starts_with("dgrad")), "{:?}", found.lines);
    assert!(found.results[0].iter().any(|x| !x.is_finite()));
}

/// Where nothing may be measured.
#[test]
fn gelu_is_fused_on_hopper_by_rule() {
    for (capability, fused) in [((9, 0), true), ((8, 0), false)] {
        let setting = Setting {
            gelu_fusion: AUTO,
            deterministic: true,
            capability,
            cost: |_| panic!("measured"),
            ..Setting::default()
        };
        let found = outcome(&setting).unwrap();
        assert_right(&found.results, Dtype::F32);
        for start in ["forward, bias, gelu ", "dgrad, gelu "] {
            assert_eq!(
                found.lines.iter().any(|line| line.starts_with(start)),
                fused,
                "{capability:?}: {:?}",
                found.lines
            );
        }
    }
}

/// By measurement where the product with it takes no longer than both kernels.
#[test]
fn gelu_is_fused_where_that_is_faster() {
    let with_gelu = |cost: fn(&str) -> f32| {
        let setting = Setting { gelu_fusion: AUTO, cost, ..Setting::default() };
        let found = outcome(&setting).unwrap();
        assert_right(&found.results, Dtype::F32);
        let lines: Vec<_> = found.lines.into_iter().filter(|line| line.contains("GELU")).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        lines
    };
    let lines = with_gelu(|_| 1.0);
    assert_eq!(
        lines[0],
        "forward, bias, gelu 65 x 40 x 72 (own): GELU in the product; with it 1.000 ms, without 1.000 ms and GELU 1.000 ms"
    );
    assert!(lines[1].starts_with("dgrad, gelu 65 x 40 x 72 (own): GELU in the product"), "{}", lines[1]);
    let lines = with_gelu(|name| if name.starts_with("gelu") { -0.5 } else { 1.0 });
    assert!(lines.iter().all(|line| line.contains(": GELU apart; ")), "{lines:?}");
}

/// Warnings that a thread logs.
mod testing {
    use std::cell::RefCell;
    use std::sync::Once;

    thread_local! {
        static WARNINGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    struct Keeper;

    impl log::Log for Keeper {
        fn enabled(&self, metadata: &log::Metadata) -> bool {
            metadata.level() <= log::Level::Warn
        }
        fn log(&self, record: &log::Record) {
            if self.enabled(record.metadata()) {
                WARNINGS.with_borrow_mut(|warnings| warnings.push(record.args().to_string()));
            }
        }
        fn flush(&self) {}
    }

    /// Those since the last call.
    pub fn take_warnings() -> Vec<String> {
        static SET: Once = Once::new();
        SET.call_once(|| {
            log::set_logger(&Keeper).expect("no other logger in unit tests");
            log::set_max_level(log::LevelFilter::Warn);
        });
        WARNINGS.take()
    }
}
