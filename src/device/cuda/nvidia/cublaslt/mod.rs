//! Matrix products by cuBLASLt, where it is installed. Descriptors and algorithm of a product are made once and kept.

mod descriptors;
mod find;

use super::{message, new_timers};
use crate::device::cuda::matmul_library::{MatmulLibrary, Operands, Product};
use anyhow::{Context, Result, anyhow, bail};
use cudarc::cublaslt::{result as lt, sys};
use cudarc::driver::{CudaEvent, CudaStream, result as cu};
use descriptors::{Descriptors, Preference};
use find::Found;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

/// What NVIDIA recommends for Hopper, and plenty for others.
const WORKSPACE_BYTES: usize = 32 << 20;
/// How many algorithms to try.
const CANDIDATES: usize = 16;
const TIMED_RUNS: usize = 5;

pub struct Cublaslt {
    found: Found,
    plans: HashMap<(Product, Alignment), Plan>,
    timers: [CudaEvent; 2],
    workspace: u64,
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
}

/// A product made ready.
struct Plan {
    descriptors: Descriptors,
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// Those to go on with if that one is wrong, and their milliseconds, the fastest last.
    slower: Vec<(f32, sys::cublasLtMatmulAlgo_t)>,
}

/// Of A, B, C and D in bytes, up to 256: algorithms differ in what they need.
type Alignment = [u32; 4];

impl Cublaslt {
    /// # Errors
    /// One line, if there is no cuBLASLt or it does not start.
    pub fn open(stream: Arc<CudaStream>) -> Result<Self> {
        let found = find::load()?;
        let handle = lt::create_handle().map_err(|e| anyhow!("cuBLASLt does not start: {:?}", e.0))?;
        // SAFETY: no preconditions beyond a context; freed by `drop`.
        let workspace = unsafe { cu::malloc_sync(WORKSPACE_BYTES) };
        let opened = workspace.map_err(|e| message("memory for cuBLASLt", e)).and_then(|workspace| {
            let timers = new_timers(&stream)?;
            Ok(Cublaslt { found, plans: HashMap::new(), timers, workspace, handle, stream })
        });
        if opened.is_err() {
            // SAFETY: created above, and nobody else has it.
            let _ = unsafe { lt::destroy_handle(handle) };
        }
        opened
    }

    /// The library's best guesses for a product, best first.
    fn candidates(
        &self,
        product: &Product,
        descriptors: &Descriptors,
        alignment: Alignment,
        most: usize,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let preference = Preference::new(WORKSPACE_BYTES, alignment)?;
        let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(most);
        let mut count = 0;
        // SAFETY: all descriptors live; the library writes at most `most` results, for which there is room, and says how many.
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
            bail!("cuBLASLt has no algorithm for {product:?} ({status:?})");
        }
        Ok(found.into_iter().map(|f| f.algo).collect())
    }

    /// Makes the plan of a product, if there is none yet.
    fn prepare(&mut self, product: &Product, operands: &Operands) -> Result<(Product, Alignment)> {
        let key = (*product, alignment(operands));
        if !self.plans.contains_key(&key) {
            let descriptors = Descriptors::new(product)?;
            descriptors.set_pointers(product, operands)?;
            let algorithm = self.candidates(product, &descriptors, key.1, 1)?[0];
            self.plans.insert(key, Plan { descriptors, algorithm, slower: Vec::new() });
        }
        Ok(key)
    }

    fn run(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        product: &Product,
        on: &Operands,
    ) -> Result<()> {
        let (alpha, beta) = (1.0f32, if product.adds_c { 1.0f32 } else { 0.0 });
        let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        let address = |address: u64| address as *const c_void;
        let d = &plan.descriptors;
        d.set_pointers(product, on)?;
        // SAFETY: descriptors and workspace live until `self` is dropped; the library reads the scalars before it returns. That
        // the addresses are those of matrices of these sizes is up to the op layer. A and B change places: see `Descriptors`.
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
                address(if product.adds_c { on.c } else { on.d }),
                d.d(),
                on.d as *mut c_void,
                d.d(),
                algorithm,
                self.workspace as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        };
        queued.map_err(|e| anyhow!("cuBLASLt: {:?} for {product:?}", e.0))
    }

    /// Milliseconds of one run, the best of some.
    fn time(
        &self,
        plan: &Plan,
        algorithm: &sys::cublasLtMatmulAlgo_t,
        product: &Product,
        on: &Operands,
    ) -> Result<f32> {
        let mut best = f32::INFINITY;
        let [start, end] = &self.timers;
        self.run(plan, algorithm, product, on)?;
        for _ in 0..TIMED_RUNS {
            start.record(&self.stream).map_err(|e| message("cuEventRecord", e))?;
            self.run(plan, algorithm, product, on)?;
            let timed = end.record(&self.stream).and_then(|()| start.elapsed_ms(end));
            best = best.min(timed.map_err(|e| message(&format!("timing {product:?}"), e))?);
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

    fn matmul(&mut self, product: &Product, operands: &Operands) -> Result<()> {
        let key = self.prepare(product, operands)?;
        let plan = &self.plans[&key];
        self.run(plan, &plan.algorithm, product, operands)
    }

    fn tune(&mut self, product: &Product, operands: &Operands) -> Result<f32> {
        let key = self.prepare(product, operands)?;
        let plan = &self.plans[&key];
        let mut timed = Vec::new();
        for algorithm in self.candidates(product, &plan.descriptors, key.1, CANDIDATES)? {
            // The heuristic may offer one that then does not run.
            if let Ok(ms) = self.time(plan, &algorithm, product, operands) {
                timed.push((ms, algorithm));
            }
        }
        timed.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.plans.get_mut(&key).expect("prepared above").slower = timed;
        self.reject(product, operands)?.ok_or_else(|| anyhow!("cuBLASLt: no algorithm runs for {product:?}"))
    }

    fn reject(&mut self, product: &Product, operands: &Operands) -> Result<Option<f32>> {
        let plan =
            self.plans.get_mut(&(*product, alignment(operands))).context("no plan of cuBLASLt's yet")?;
        let next = plan.slower.pop();
        Ok(next.map(|(ms, algorithm)| {
            plan.algorithm = algorithm;
            ms
        }))
    }
}

impl Drop for Cublaslt {
    /// After `Nvidia::drop` has waited for all products.
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: both were made by `open` and are released once.
        unsafe {
            let _ = lt::destroy_handle(self.handle);
            let _ = cu::free_sync(self.workspace);
        }
    }
}
