//! The choice among our kernels and a vendor's library, on the emulated device with a slow library
//! and with kernels that are faulty.

use super::fake::{C, Fake, Fault, N, OC, Setting};
use crate::device::compare::testing::random;
use crate::device::compare::{Tolerance, assert_close};
use crate::device::cuda::emulated::{self, EmulatorOptions};
use crate::device::cuda::{AUTO, Cuda, CudaOptions, MatmulChoice, logged};
use crate::ops::*;
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;

/// The outcome of a run.
struct Outcome {
    results: Vec<Vec<f32>>,
    /// GEMMs that the library computed after all plans were made.
    by_library: usize,
    lines: Vec<String>,
    warnings: Vec<String>,
}

const TENSORS: usize = 11;
/// The lengths of out, kept, inp, weight, bias, residual, dinp, dweight, dbias, dout,
/// gelu_gradient.
const LENS: [usize; TENSORS] = [N * OC, N * OC, N * C, OC * C, OC, N * OC, N * C, OC * C, OC, N * OC, N * C];

/// Allocates the tensors and fills them with random numbers; the first input is as a test sets it.
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

/// Runs forward and backward in all variants, once to make plans and once more.
fn outcome(setting: &Setting) -> Result<Outcome> {
    let Setting { dtype, matmul, gelu_fusion, deterministic, .. } = *setting;
    let (driver, gemms) = Fake::open(setting)?;
    let options = CudaOptions { dtype, tf32: false, gelu_fusion, deterministic, matmul, graphs: false };
    let mut dev = Cuda::new(Box::new(driver), options);
    let tensors = fill(&mut dev, setting)?;
    let [out, kept, inp, weight, bias, residual, dinp, dweight, dbias, dout, gelu_gradient] = tensors;

    logged::take_warnings();
    let mut results = Vec::new();
    let mut keep = |dev: &mut Cuda, tensor: Tensor| -> Result<()> {
        let mut values = vec![0.0f32; tensor.len];
        download_f32(dev, &mut values, tensor)?;
        results.push(values);
        Ok(())
    };
    let variants = [(true, None), (false, None), (false, Some(gelu_gradient))];
    for (overwrite_dweight, gelu_gradient) in variants.into_iter().chain(variants) {
        if overwrite_dweight {
            gemms.set(0);
        }
        for epilogue in [
            Epilogue::None,
            Epilogue::Bias { bias },
            Epilogue::BiasResidual { bias, residual },
            Epilogue::BiasGelu { bias, kept: Kept::Input(kept) },
            Epilogue::BiasGelu { bias, kept: Kept::Gradient(kept) },
        ] {
            dev.matmul_forward(MatmulForward { out, inp, weight, epilogue, N, C, OC })?;
            keep(&mut dev, out)?;
            if matches!(epilogue, Epilogue::BiasGelu { .. }) {
                keep(&mut dev, kept)?;
            }
        }
        let args = MatmulBackward {
            dinp,
            dweight: Some(dweight),
            overwrite_dweight,
            dbias: Some(dbias),
            dout,
            inp,
            weight,
            gelu_gradient,
            N,
            C,
            OC,
        };
        dev.matmul_backward(args)?;
        for tensor in [dinp, dweight, dbias] {
            keep(&mut dev, tensor)?;
        }
    }
    let (lines, warnings) = (dev.take_matmul_plans(), logged::take_warnings());
    Ok(Outcome { results, by_library: gemms.get(), lines, warnings })
}

/// Checks that the results are those of the smallest of our tiles.
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
fn the_library_computes_all_matmuls_when_asked_to() {
    let setting = Setting { matmul: MatmulChoice::Cublaslt, library_ms: 2.0, ..Setting::default() };
    let found = outcome(&setting).unwrap();
    assert_eq!(found.by_library, 3 * (5 + 2));
    assert_right(&found.results, Dtype::F32);
}

/// The library computes none with a GELU.
#[test]
fn the_faster_one_computes_a_matmul() {
    let fastest = Setting { matmul: MatmulChoice::Fastest, ..Setting::default() };
    let found = outcome(&Setting { library_ms: 0.5, ..fastest.clone() }).unwrap();
    assert_right(&found.results, Dtype::F32);
    let gemms_with_gelu = 3 * 2 + 1;
    // Gradients of weights take the library half a millisecond and, for the bias, a kernel of ours
    // besides: a millisecond and a half.
    assert_eq!(found.by_library, 3 * (5 + 1) - gemms_with_gelu);
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
    let line = found
        .lines
        .iter()
        .find(|line| line.starts_with("matmul forward 65 x 40 x 72 f32 (fastest)"))
        .unwrap();
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
    let asked = Setting { matmul: MatmulChoice::Cublaslt, wrong_algorithms: vec![true], ..fastest };
    let error = format!("{:#}", outcome(&asked).err().expect("nothing else may compute it"));
    let start = "no plan computes forward 65 x 40 x 72 as the plainest kernel does; cuBLASLt: its result is wrong: out: ";
    assert!(error.starts_with(start), "{error}");
}

/// The mutant is the fastest kernel by far.
fn mutants_are_cheap(name: &str) -> f32 {
    if name.ends_with("_128x128") { 0.1 } else { 1.0 }
}

/// Whether a line is about a plan of this pass.
fn is_of(line: &str, pass: &str) -> bool {
    line.starts_with(&format!("matmul {pass}"))
}

const PASSES: [&str; 3] = ["forward", "dgrad", "wgrad"];

#[test]
fn the_fastest_of_the_right_kernels_is_chosen() {
    let found = outcome(&Setting { cost: mutants_are_cheap, ..Setting::default() }).unwrap();
    assert_right(&found.results, Dtype::F32);
    assert_eq!(found.warnings, Vec::<String>::new());
    // Forward with five epilogues, the gradient of the input without and with GELU, that of the
    // weight.
    assert_eq!(found.lines.len(), 5 + 2 + 1, "{:?}", found.lines);
    let line = "matmul forward, bias, gelu 65 x 40 x 72 f32 (own): matmul_f32_forward_128x128 0.100 ms, 0.0 TFLOP/s; \
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
            let of_pass: Vec<_> = found.lines.iter().filter(|line| is_of(line, pass)).collect();
            let kernel = format!(": matmul_f32_{pass}_64x64 1.000 ms, ");
            assert!(of_pass.iter().all(|line| line.contains(&kernel)), "{fault:?}: {of_pass:?}");
            // Once for each of them, and for nothing else.
            assert_eq!(found.warnings.len(), of_pass.len(), "{fault:?}: {:?}", found.warnings);
            for warning in &found.warnings {
                assert!(warning.starts_with(&format!("{name} is left out for {pass}")), "{warning}");
                assert!(warning.contains(said), "{warning}");
                assert!(warning.ends_with("; the run continues with another kernel"), "{warning}");
            }
        }
    }
}

/// The kernel is chosen by estimate, as timing is not allowed.
#[test]
fn a_wrong_kernel_is_dropped_where_nothing_is_measured() {
    let right = Setting { deterministic: true, cost: |_| panic!("measured"), ..Setting::default() };
    let chosen = outcome(&right).unwrap();
    let of_wgrad = |found: &Outcome| found.lines.iter().find(|line| is_of(line, "wgrad")).unwrap().clone();
    let (line, name) = (of_wgrad(&chosen), "matmul_f32_wgrad_64x64");
    assert_eq!(line, format!("matmul wgrad, bias 65 x 40 x 72 f32 (own): {name}, by rule"));
    // The plainest was the first; forward on Hopper another is.
    let of_forward =
        |found: &Outcome| found.lines.iter().find(|line| is_of(line, "forward")).unwrap().clone();
    let right = Setting { dtype: Dtype::Bf16, ..right };
    let first = of_forward(&outcome(&right).unwrap());
    let name = "matmul_hopper_forward_64x256";
    assert!(first.ends_with(&format!("{name}, by rule")), "{first}");
    let mutated = Setting { mutant: Some((name, Fault::ReturnsEarly)), ..right };
    let found = outcome(&mutated).unwrap();
    assert_right(&found.results, Dtype::Bf16);
    assert!(!of_forward(&found).contains(name), "{:?}", found.lines);
    assert_eq!(found.warnings.len(), 2, "{:?}", found.warnings);
}

/// It leaves the signals of persistent kernels in a state that others do not expect.
#[test]
fn a_kernel_that_ends_half_way_condemns_no_other() {
    let name = "matmul_hopper_forward_128x256";
    let cost = |name: &str| if name.contains("hopper") { 0.1 } else { 1.0 };
    let mutant = Some((name, Fault::LeavesSignals));
    let found = outcome(&Setting { dtype: Dtype::Bf16, mutant, cost, ..Setting::default() }).unwrap();
    assert_right(&found.results, Dtype::Bf16);
    let forward = found.lines.iter().find(|line| is_of(line, "forward")).unwrap();
    assert!(forward.contains(": matmul_hopper_forward_64x256 "), "{forward}");
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

/// Gradients that overflowed are an example: nothing can be compared.
#[test]
fn operands_that_are_not_finite_are_no_fault_of_a_kernel() {
    let setting = Setting { first: f32::INFINITY, cost: mutants_are_cheap, ..Setting::default() };
    let found = outcome(&setting).unwrap();
    assert_eq!(found.warnings, Vec::<String>::new());
    assert!(found.lines.iter().all(|line| is_of(line, "dgrad")), "{:?}", found.lines);
    assert!(found.results[0].iter().any(|x| !x.is_finite()));
}

/// Timing is not allowed.
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
        for start in
            ["matmul forward, bias, gelu ", "matmul forward, bias, gelu, gradient ", "matmul dgrad, gelu "]
        {
            assert_eq!(
                found.lines.iter().any(|line| line.starts_with(start)),
                fused,
                "{capability:?}: {:?}",
                found.lines
            );
        }
    }
}

/// The fused GEMM must take no longer than both kernels.
#[test]
fn gelu_is_fused_where_that_is_faster() {
    let with_gelu = |cost: fn(&str) -> f32| {
        let setting = Setting { gelu_fusion: AUTO, cost, ..Setting::default() };
        let found = outcome(&setting).unwrap();
        assert_right(&found.results, Dtype::F32);
        let lines: Vec<_> = found.lines.into_iter().filter(|line| line.contains("GELU")).collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        lines
    };
    let lines = with_gelu(|_| 1.0);
    assert_eq!(
        lines[0],
        "matmul forward, bias, gelu 65 x 40 x 72 f32 (own): GELU fused; fused 1.000 ms, apart 1.000 ms and GELU 1.000 ms"
    );
    for (line, pass) in lines[1..].iter().zip(["forward, bias, gelu, gradient", "dgrad, gelu"]) {
        assert!(line.starts_with(&format!("matmul {pass} 65 x 40 x 72 f32 (own): GELU fused")), "{line}");
    }
    let lines = with_gelu(|name| if name.starts_with("gelu") { -0.5 } else { 1.0 });
    assert!(lines.iter().all(|line| line.contains(": GELU apart; ")), "{lines:?}");
}

/// The emulated device has no clock: each shape and epilogue is one line that says so.
#[test]
fn choices_by_rule_are_logged_once_per_shape() {
    for (dtype, name, forward) in
        [(Dtype::Bf16, "bf16", "matmul_forward_64x64"), (Dtype::F32, "f32", "matmul_f32_forward_64x64")]
    {
        let setting = Setting { dtype, ..Setting::default() };
        let matmul = MatmulChoice::Fastest;
        let (gelu_fusion, deterministic, graphs) = (0, false, false);
        let options = CudaOptions { dtype, tf32: false, gelu_fusion, deterministic, matmul, graphs };
        let driver = emulated::open(dtype, EmulatorOptions::default()).unwrap();
        let mut dev = Cuda::new(driver, options);
        let [out, _, inp, weight, bias, ..] = fill(&mut dev, &setting).unwrap();
        logged::take_infos();
        let run = |dev: &mut Cuda, rows: usize, epilogue| {
            let (out, inp) = (out.slice(0, rows * OC), inp.slice(0, rows * C));
            dev.matmul_forward(MatmulForward { out, inp, weight, epilogue, N: rows, C, OC }).unwrap();
        };
        for _ in 0..2 {
            run(&mut dev, N, Epilogue::Bias { bias });
            run(&mut dev, N, Epilogue::None);
            run(&mut dev, 8, Epilogue::None);
        }
        // Plans that are asked for by their tile are not chosen.
        dev.choose_matmul(MatmulChoice::Tile { M: 128, N: 128, splits: 1 });
        run(&mut dev, N, Epilogue::None);
        let lines = [("forward, bias", N), ("forward", N), ("forward", 8)].map(|(pass, rows)| {
            format!("matmul {pass} {rows} x 40 x 72 {name} (fastest): {forward}, by rule")
        });
        assert_eq!(logged::take_infos(), lines);
        assert_eq!(dev.take_matmul_plans(), Vec::<String>::new());
    }
}
