//! The choice of matmul kernels on the stand-in, whose f32 GEMMs compute and whose clock makes the
//! larger tile the faster one.

use super::{OF_THE_STAND_IN, run, stand_ins};
use anyhow::Result;
use warpsmith::app::logging;
use warpsmith::device::compare::{Tolerance, assert_close};
use warpsmith::device::cpu::Cpu;
use warpsmith::device::cpu::matmul::Precision;
use warpsmith::device::cuda::nvidia::Nvidia;
use warpsmith::device::cuda::{AUTO, Cuda, CudaOptions, MatmulChoice};
use warpsmith::ops::*;
use warpsmith::tensor::{Dtype, MemoryPlan, Tensor};

const N: usize = 65;
const C: usize = 40;
const OC: usize = 72;

/// Runs three forward matmuls, and a backward one that assigns and then adds.
fn matmuls(dev: &mut dyn Ops) -> Result<Vec<Vec<f32>>> {
    let mut plan = MemoryPlan::new();
    let lens = [N * OC, N * OC, N * C, OC * C, OC, N * C, OC * C, OC, N * OC, N * C];
    let tensors = lens.map(|len| plan.add("test", "x", Dtype::F32, len));
    let [out, kept, inp, weight, bias, dinp, dweight, dbias, dout, gelu_gradient] = tensors;
    let limits = Limits { rows: N, logits_rows: N, T: N, C: 64, NH: 1, V: 64, Vp: 64, norm_pieces: 1 };
    plan_scratch(dev, &[limits], &mut plan)?;
    dev.allocate(&plan)?;
    for (seed, tensor) in tensors.iter().enumerate() {
        let number = |i: usize| ((i * 2_654_435_761 + seed * 40_503) >> 7 & 1023) as f32 / 512.0 - 1.0;
        upload_f32(dev, *tensor, &(0..tensor.len).map(number).collect::<Vec<_>>())?;
    }
    let mut results = Vec::new();
    let mut keep = |dev: &mut dyn Ops, tensors: &[Tensor]| {
        tensors.iter().try_for_each(|&tensor| {
            let mut values = vec![0.0; N * OC];
            download_f32(dev, &mut values[..tensor.len], tensor).map(|()| results.push(values))
        })
    };
    for epilogue in [
        Epilogue::Bias { bias },
        Epilogue::BiasGelu { bias, kept: Kept::Input(kept) },
        Epilogue::BiasGelu { bias, kept: Kept::Gradient(kept) },
    ] {
        dev.matmul_forward(MatmulForward { out, inp, weight, epilogue, N, C, OC })?;
        keep(dev, &[out, kept])?;
    }
    for overwrite_dweight in [true, false] {
        let (dbias, gelu_gradient) = (Some(dbias), Some(gelu_gradient));
        dev.matmul_backward(MatmulBackward {
            dinp,
            dweight: Some(dweight),
            overwrite_dweight,
            dbias,
            dout,
            inp,
            weight,
            gelu_gradient,
            N,
            C,
            OC,
        })?;
        keep(dev, &[dinp, dweight, dbias.expect("above")])?;
    }
    Ok(results)
}

#[test]
#[ignore = "runs in a process of its own"]
fn case_tuning() {
    logging::start().unwrap();
    println!();
    let matmul = match std::env::var("MATMUL").as_deref() {
        Ok("fastest") => MatmulChoice::Fastest,
        _ => MatmulChoice::Own,
    };
    let (dtype, deterministic, graphs) = (Dtype::F32, false, false);
    let options = CudaOptions { dtype, tf32: false, gelu_fusion: AUTO, deterministic, matmul, graphs };
    let gpu = Nvidia::with_fatbins(&OF_THE_STAND_IN, 0, Dtype::F32).unwrap();
    let mut cuda = Cuda::new(Box::new(gpu), options);
    let got = match matmuls(&mut cuda) {
        Ok(got) => got,
        Err(why) => return println!("failed: {why:#}."),
    };
    let want = matmuls(&mut Cpu::new(Precision::F32).unwrap()).unwrap();
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_close(&format!("result {i}"), got, want, Tolerance::new(4.0, N + OC).relative(Dtype::F32));
    }
    cuda.take_matmul_plans().iter().for_each(|line| println!("plan: {line}"));
    println!("right.");
}

/// Returns the output of the tuning case and the plans in it.
fn tuned(settings: &[(&str, &str)]) -> (String, Vec<String>) {
    let said = run("tuning::case_tuning", stand_ins().path(), settings);
    let lines = said.lines().filter_map(|line| line.strip_prefix("plan: ")).map(str::to_owned).collect();
    (said, lines)
}

#[test]
fn the_faster_tile_is_chosen_and_gelu_is_fused() {
    let (said, plans) = tuned(&[("WARPSMITH_LOG", "info")]);
    assert!(said.contains("right.") && !said.contains("warning: "), "{said}");
    assert!(
        !plans.is_empty() && plans.iter().all(|plan| said.contains(&format!("\ninfo: {plan}\n"))),
        "{said}"
    );
    let line = "matmul forward, bias 65 x 40 x 72 f32 (own): matmul_f32_forward_128x128 1.000 ms, 0.0 TFLOP/s; \
                others: matmul_f32_forward_64x64 4.000 ms";
    assert!(plans.iter().any(|plan| plan == line), "{line} in\n{said}");
    let line = "matmul dgrad, gelu 65 x 40 x 72 f32 (own): GELU fused; fused 1.000 ms, apart 1.000 ms and GELU 1.000 ms";
    assert!(plans.iter().any(|plan| plan == line), "{line} in\n{said}");
}

#[test]
fn a_mutant_is_dropped_and_named_and_the_run_goes_on() {
    let name = "matmul_f32_forward_128x128";
    for (fault, why) in [
        ("early", "its result is wrong: out: sample [63] of 64 is NaN, want "),
        ("tile", "its result is wrong: out: "),
        (
            "refused",
            "it is refused: launching matmul_f32_forward_128x128 (matmul_f32.cu) <<<[1, 1, 1], 256, ",
        ),
    ] {
        let (said, plans) = tuned(&[("STUB_FAULT", &format!("{name} {fault}"))]);
        let warning = format!("warning: {name} is left out for forward, bias 65 x 40 x 72: {why}");
        assert_eq!(said.matches(&warning).count(), 1, "{warning} in\n{said}");
        assert_eq!(said.matches("warning: ").count(), 3, "with each GELU and without it:\n{said}");
        assert!(
            said.contains("; the run continues with another kernel\n") && said.contains("right."),
            "{said}"
        );
        let forward: Vec<_> = plans.iter().filter(|plan| plan.starts_with("matmul forward")).collect();
        assert!(!forward.is_empty() && !forward.iter().any(|plan| plan.contains(name)), "{forward:?}");
        assert!(plans.iter().any(|plan| plan.contains(": matmul_f32_dgrad_128x128 1.000 ms")), "{plans:?}");
    }
}

#[test]
fn a_kernel_that_traps_ends_the_run_by_its_name() {
    let (said, _) = tuned(&[("STUB_FAULT", "matmul_f32_wgrad_128x128 trap")]);
    let line = said.lines().find(|line| line.starts_with("failed: ")).unwrap_or_else(|| panic!("{said}"));
    assert!(
        line.starts_with("failed: trying matmul_f32_wgrad_128x128 for wgrad, bias 65 x 40 x 72: "),
        "{line}"
    );
    for part in [
        "CUDA_ERROR_LAUNCH_FAILED",
        "BARRIER_PATIENCE_NS",
        "the last kernel queued was matmul_f32_wgrad_128x128",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn a_wrong_algorithm_of_cublaslt_makes_way_for_the_next() {
    let (said, plans) = tuned(&[("MATMUL", "fastest")]);
    assert!(said.contains("right.") && !said.contains("warning: "), "{said}");
    assert!(
        plans
            .iter()
            .any(|plan| plan.starts_with("matmul forward, bias 65 x 40 x 72 f32 (fastest): cuBLASLt")),
        "{said}"
    );
    let (said, plans) = tuned(&[("MATMUL", "fastest"), ("STUB_CUBLASLT_WRONG", "3")]);
    let warning = "warning: an algorithm of cuBLASLt is left out for forward, bias 65 x 40 x 72: out: ";
    assert!(said.contains(warning) && said.contains("right."), "{said}");
    assert!(
        plans
            .iter()
            .any(|plan| plan.starts_with("matmul forward, bias 65 x 40 x 72 f32 (fastest): cuBLASLt")),
        "{said}"
    );
}
