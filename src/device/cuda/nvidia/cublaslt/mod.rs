//! GEMMs by cuBLASLt, where it is installed. Descriptors and algorithm of a GEMM are made once and
//! kept.

mod descriptors;
mod find;

use super::new_timer;
use crate::device::cuda::matmul_library::{BlasGemm, MatmulLibrary, Operands};
use crate::libraries::cuda_error;
use anyhow::{Context, Result, anyhow, bail};
use cudarc::cublaslt::{result as lt, sys};
use cudarc::driver::{CudaEvent, CudaStream, result as cu};
use descriptors::{Descriptors, Preference};
use find::Found;
pub use find::load;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

/// NVIDIA's recommendation for Hopper, and plenty for other GPUs.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Algorithms to time.
const CANDIDATES: usize = 16;
const TIMED_RUNS: usize = 5;

pub struct Cublaslt {
    found: Found,
    plans: HashMap<(BlasGemm, Alignment), Plan>,
    timers: [CudaEvent; 2],
    workspace: u64,
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
}

/// A GEMM made ready.
struct Plan {
    descriptors: Descriptors,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// The next choices if that one is wrong, with their milliseconds, the fastest last.
    slower: Vec<(f32, sys::cublasLtMatmulAlgo_t)>,
}

/// Alignment of A, B, C and D in bytes, up to 256: algorithms differ in what they need.
type Alignment = [u32; 4];

impl Cublaslt {
    /// # Errors
    /// One line, if there is no cuBLASLt or it does not start.
    pub fn open(stream: Arc<CudaStream>) -> Result<Self> {
        let found = load()?;
        let handle = lt::create_handle().map_err(|e| anyhow!("cuBLASLt does not start: {:?}", e.0))?;
        // SAFETY: a context is current, which is all that the call requires; `drop` frees the
        // memory.
        let workspace = unsafe { cu::malloc_sync(WORKSPACE_BYTES) };
        let opened = workspace.map_err(|e| cuda_error("memory for cuBLASLt", e)).and_then(|workspace| {
            let timers = [new_timer(&stream)?, new_timer(&stream)?];
            Ok(Cublaslt { found, plans: HashMap::new(), timers, workspace, handle, stream })
        });
        if opened.is_err() {
            // SAFETY: the handle was created above and is not used after this.
            let _ = unsafe { lt::destroy_handle(handle) };
        }
        opened
    }

    /// Returns the library's best guesses for a GEMM, the best first.
    fn candidates(
        &self,
        gemm: &BlasGemm,
        descriptors: &Descriptors,
        alignment: Alignment,
        most: usize,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let preference = Preference::new(WORKSPACE_BYTES, alignment)?;
        let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(most);
        let mut count = 0;
        // SAFETY: handle and descriptors live through the call. The library writes at most `most`
        // results, for which there is room, and says how many.
        let status = unsafe {
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                descriptors.operation(),
                descriptors.a(),
                descriptors.b(),
                descriptors.d(),
                descriptors.d(),
                preference.raw(),
                most as i32,
                found.as_mut_ptr(),
                &mut count,
            );
            if status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
                found.set_len(usize::min(count as usize, most));
            }
            status
        };
        found.retain(|f| {
            f.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && f.workspaceSize <= WORKSPACE_BYTES
        });
        if found.is_empty() {
            bail!("cuBLASLt has no algorithm for {gemm} ({status:?})");
        }
        Ok(found.into_iter().map(|f| f.algo).collect())
    }

    /// Makes the plan of a GEMM unless it exists, and returns its key.
    fn prepare(&mut self, gemm: &BlasGemm, operands: &Operands) -> Result<(BlasGemm, Alignment)> {
        let key = (*gemm, alignment(operands));
        if !self.plans.contains_key(&key) {
            let descriptors = Descriptors::new(gemm)?;
            descriptors.set_pointers(gemm, operands)?;
            let algorithm = self.candidates(gemm, &descriptors, key.1, 1)?[0];
            self.plans.insert(key, Plan { descriptors, algorithm, slower: Vec::new() });
        }
        Ok(key)
    }

    fn run(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        gemm: &BlasGemm,
        on: &Operands,
    ) -> Result<()> {
        let (alpha, beta) = (1.0f32, if gemm.adds_c { 1.0f32 } else { 0.0 });
        let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        let address = |address: u64| address as *const c_void;
        let d = &plan.descriptors;
        d.set_pointers(gemm, on)?;
        // SAFETY: descriptors and workspace live until `self` is dropped, and the library reads the
        // scalars before it returns. The op layer vouches that the addresses are those of matrices
        // of these sizes. A and B change places: see `descriptors`.
        let queued = unsafe {
            lt::matmul(
                self.handle,
                d.operation(),
                scalar(&alpha),
                scalar(&beta),
                address(on.b),
                d.a(),
                address(on.a),
                d.b(),
                address(if gemm.adds_c { on.c } else { on.d }),
                d.d(),
                on.d as *mut c_void,
                d.d(),
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        };
        queued.map_err(|e| anyhow!("cuBLASLt: {:?} for {gemm}", e.0))
    }

    /// Returns the milliseconds of the best of [`TIMED_RUNS`] runs, after one that is not timed.
    fn time(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        gemm: &BlasGemm,
        on: &Operands,
    ) -> Result<f32> {
        let mut best = f32::INFINITY;
        let [start, end] = &self.timers;
        self.run(plan, algorithm, gemm, on)?;
        for _ in 0..TIMED_RUNS {
            start.record(&self.stream).map_err(|e| cuda_error("cuEventRecord", e))?;
            self.run(plan, algorithm, gemm, on)?;
            let timed = end.record(&self.stream).and_then(|()| start.elapsed_ms(end));
            best = best.min(timed.map_err(|e| cuda_error(&format!("timing {gemm}"), e))?);
        }
        Ok(best)
    }
}

fn alignment(operands: &Operands) -> Alignment {
    let Operands { a, b, c, d, .. } = *operands;
    [a, b, c, d].map(|address| 1 << u32::min(address.trailing_zeros(), 8))
}

impl MatmulLibrary for Cublaslt {
    fn describe(&self) -> String {
        self.found.to_string()
    }

    fn matmul(&mut self, gemm: &BlasGemm, operands: &Operands) -> Result<()> {
        let key = self.prepare(gemm, operands)?;
        let plan = &self.plans[&key];
        self.run(plan, &plan.algorithm, gemm, operands)
    }

    fn tune(&mut self, gemm: &BlasGemm, operands: &Operands) -> Result<f32> {
        let key = self.prepare(gemm, operands)?;
        let plan = &self.plans[&key];
        let mut timed = Vec::new();
        for algorithm in self.candidates(gemm, &plan.descriptors, key.1, CANDIDATES)? {
            // The heuristic may offer one that then does not run.
            if let Ok(ms) = self.time(plan, &algorithm, gemm, operands) {
                timed.push((ms, algorithm));
            }
        }
        timed.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.plans.get_mut(&key).expect("prepared above").slower = timed;
        self.reject(gemm, operands)?.ok_or_else(|| anyhow!("cuBLASLt: no algorithm runs for {gemm}"))
    }

    fn reject(&mut self, gemm: &BlasGemm, operands: &Operands) -> Result<Option<f32>> {
        let plan = self.plans.get_mut(&(*gemm, alignment(operands))).context("cuBLASLt has no plan yet")?;
        let next = plan.slower.pop();
        Ok(next.map(|(ms, algorithm)| {
            plan.algorithm = algorithm;
            ms
        }))
    }
}

impl Drop for Cublaslt {
    /// Runs after `Nvidia::drop` has waited for all work.
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: `open` made both, no work uses them any more, and nothing uses them after this.
        unsafe {
            let _ = lt::destroy_handle(self.handle);
            let _ = cu::free_sync(self.workspace);
        }
    }
}
