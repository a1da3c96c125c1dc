//! The launch of each kernel (threads and shared memory), found by running every operation on a
//! device that only records launches. So it is always what the op layer does.

use super::driver::{DeviceInfo, Driver};
use super::gelu::Gelu;
use super::kernel::{Arg, KernelSpec, Launch, Launcher};
use super::tensor_map::{TensorMap, TiledMatrix};
use super::{BackwardKernels, Cuda, CudaOptions, MatmulChoice};
use crate::ops::*;
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The description and the launch of each kernel, by name.
pub type Launches = BTreeMap<&'static str, (&'static KernelSpec, Launch)>;

/// Returns the launches on a Hopper GPU for one floating-point type, and of the kernels that only
/// older GPUs use. Each kernel's launch is that of the first of these models that uses it: GPT-2
/// 124M, then models with the other head sizes, the last with wide rows.
///
/// # Errors
/// If an operation cannot be queued.
pub fn launches(dtype: Dtype) -> Result<Launches> {
    /// (C, NH)
    const MODELS: [(usize, usize); 5] = [(768, 12), (384, 12), (2560, 32), (1536, 16), (5120, 40)];
    let launches = Arc::new(Mutex::new(Launches::new()));
    let gpus = [(9, 0), (8, 0)];
    for (capability, (C, NH)) in gpus.into_iter().flat_map(|gpu| MODELS.map(|model| (gpu, model))) {
        let options = CudaOptions {
            dtype,
            tf32: false,
            gelu_fusion: 2,
            deterministic: true,
            matmul: MatmulChoice::Fastest,
            graphs: false,
        };
        let model = Model { B: 8, T: 1024, C, NH, V: 50_257, Vp: 50_304 };
        let mut cuda = Cuda::new(Box::new(Paper::new(capability, launches.clone())), options);
        cuda.choose_attention(Some(BackwardKernels::Atomic));
        let tensors = Tensors::plan(&mut cuda, &model)?;
        step(&mut cuda, &model, &tensors)?;
        // An older GPU has the same matmuls but for Hopper's.
        for choice in matmul_choices(dtype).into_iter().filter(|_| capability == (9, 0)) {
            cuda.choose_matmul(choice);
            matmuls(&mut cuda, &model, &tensors)?;
        }
    }
    let launches = launches.lock().expect("no launch panics").clone();
    Ok(launches)
}

/// Returns every tile for the type, without splits and with two.
fn matmul_choices(dtype: Dtype) -> Vec<MatmulChoice> {
    let tiles: &[(usize, usize)] = match dtype {
        Dtype::F32 => &[(64, 64), (128, 128)],
        _ => &[(64, 64), (128, 128), (128, 256)],
    };
    let own = tiles.iter().flat_map(|&(M, N)| [1, 2].map(|splits| MatmulChoice::Tile { M, N, splits }));
    let hopper = [128, 64].map(|M| MatmulChoice::Hopper { M, runs: None });
    own.chain(hopper.into_iter().filter(|_| dtype != Dtype::F32)).collect()
}

/// Returns a CUDA device that has no GPU, for plans: it launches and stores nothing.
pub fn on_paper(info: DeviceInfo, options: CudaOptions) -> Cuda {
    Cuda::new(Box::new(Paper { info, next: 1 << 32, launches: Arc::default() }), options)
}

/// A device without memory and SMs.
struct Paper {
    info: DeviceInfo,
    next: u64,
    launches: Arc<Mutex<Launches>>,
}

impl Paper {
    fn new(capability: (u32, u32), launches: Arc<Mutex<Launches>>) -> Self {
        let info = DeviceInfo {
            name: "a GPU on paper".to_owned(),
            capability,
            sm_count: 132,
            memory_bytes: 80 << 30,
            shared_bytes: 227 * 1024,
            emulated: false,
        };
        Paper { info, next: 1 << 32, launches }
    }
}

impl Launcher for Paper {
    fn launch(&mut self, kernel: &'static KernelSpec, launch: Launch, _args: &[Arg]) -> Result<()> {
        self.launches.lock().expect("no launch panics").entry(kernel.name).or_insert((kernel, launch));
        Ok(())
    }

    fn tensor_map(&self, matrix: &TiledMatrix) -> Result<TensorMap> {
        matrix.check().map(|()| TensorMap([0; 16]))
    }
}

impl Driver for Paper {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        let address = self.next;
        self.next += bytes.next_multiple_of(1 << 20) as u64;
        Ok(address)
    }

    fn upload(&mut self, _dst: u64, _src: &[u8]) -> Result<()> {
        Ok(())
    }

    fn download(&mut self, _dst: &mut [u8], _src: u64) -> Result<()> {
        Ok(())
    }

    fn copy(&mut self, _dst: u64, _src: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn set_bytes(&mut self, _dst: u64, _value: u8, _bytes: usize) -> Result<()> {
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn lend(&mut self, address: u64, _bytes: usize) -> (u64, Place) {
        (address, Place::Host)
    }

    fn reclaim(&mut self, _address: u64, _bytes: usize) {}

    fn start_timer(&mut self) -> Result<()> {
        Ok(())
    }

    fn stop_timer(&mut self) -> Result<Option<f32>> {
        Ok(None)
    }
}

struct Model {
    B: usize,
    T: usize,
    C: usize,
    NH: usize,
    V: usize,
    Vp: usize,
}

/// One tensor of each kind that operations take. One may stand for several of the same length.
struct Tensors {
    /// (N, C)
    narrow: [Tensor; 4],
    /// (N, 3 C)
    qkv: [Tensor; 2],
    /// (N, 4 C)
    wide: [Tensor; 3],
    /// (N, Vp)
    logits: Tensor,
    /// (4 C, C)
    matrix: [Tensor; 2],
    /// (Vp, C)
    embedding: [Tensor; 2],
    vector: [Tensor; 3],
    /// (N) in f32
    statistics: [Tensor; 2],
    /// (N, NH) in f32
    lse: Tensor,
    /// (4 C, C) in f32
    moments: [Tensor; 3],
    /// A single f32.
    one: Tensor,
    /// (N) i32
    tokens: [Tensor; 2],
    /// (4) i32, the state of dropouts.
    masks: Tensor,
}

impl Tensors {
    fn plan(cuda: &mut Cuda, model: &Model) -> Result<Self> {
        let &Model { B, T, C, NH, V, Vp } = model;
        let (N, mut plan, x) = (B * T, MemoryPlan::new(), cuda.float_dtype());
        let mut of = |dtype, len| plan.add("paper", "x", dtype, len);
        let tensors = Tensors {
            narrow: [(); 4].map(|()| of(x, N * C)),
            qkv: [(); 2].map(|()| of(x, N * 3 * C)),
            wide: [(); 3].map(|()| of(x, N * 4 * C)),
            logits: of(x, N * Vp),
            matrix: [(); 2].map(|()| of(x, 4 * C * C)),
            embedding: [(); 2].map(|()| of(x, Vp * C)),
            vector: [(); 3].map(|()| of(x, 4 * C)),
            statistics: [(); 2].map(|()| of(Dtype::F32, N)),
            lse: of(Dtype::F32, N * NH),
            moments: [(); 3].map(|()| of(Dtype::F32, 4 * C * C)),
            one: of(Dtype::F32, 1),
            tokens: [(); 2].map(|()| of(Dtype::I32, N)),
            masks: of(Dtype::I32, 4),
        };
        let limits = Limits { rows: N, logits_rows: N, T, C, NH, V, Vp, norm_pieces: 1 };
        plan_scratch(cuda, &[limits], &mut plan)?;
        // Partial sums of two splits of the widest GEMM, whatever the device would choose.
        plan.add(SCRATCH, "partials", Dtype::F32, 2 * N * 4 * C);
        cuda.allocate(&plan)?;
        Ok(tensors)
    }
}

/// Runs the encoder and the sum into the residual stream, with and without dropout.
fn droppable(cuda: &mut Cuda, model: &Model, t: &Tensors, norm: LayernormForward) -> Result<()> {
    let &Model { B, T, C, .. } = model;
    let [encoded, residual, dout, product] = t.narrow;
    let [tokens, rows_by_token] = t.tokens;
    let [wte, wpe] = [t.embedding[0], t.embedding[1].slice(0, T * C)];
    let masks = Dropout { rate: 0.1, state: t.masks, stream: 0 };
    for dropout in [None, Some(masks)] {
        let positions = None;
        cuda.encoder_forward(EncoderForward { encoded, tokens, positions, wte, wpe, dropout, B, T, C })?;
        let (dwte, dwpe, positions) = (Some(wte), Some(wpe), None);
        cuda.encoder_backward(EncoderBackward {
            dwte,
            dwpe,
            dout,
            tokens,
            rows_by_token,
            positions,
            dropout,
            B,
            T,
            C,
        })?;
        super::layernorm::residual_forward(cuda, norm, residual, product, dropout)?;
    }
    cuda.dropout_backward(product, dout, C, masks)
}

/// Runs every operation but matmuls.
fn step(cuda: &mut Cuda, model: &Model, t: &Tensors) -> Result<()> {
    let &Model { B, T, C, V, Vp, .. } = model;
    let N = B * T;
    let [out, inp, dout, product] = t.narrow;
    let [weight, bias, _] = t.vector.map(|v| v.slice(0, C));
    let [mean, rstd] = t.statistics;
    let norm = LayernormForward { out, mean, rstd, inp, weight, bias, N, C };
    droppable(cuda, model, t, norm)?;
    cuda.layernorm_forward(norm)?;
    let (dinp, dweight, dbias) = (product, weight, bias);
    let overwrite_dinp = false;
    cuda.layernorm_backward(LayernormBackward {
        dinp,
        overwrite_dinp,
        dweight,
        dbias,
        dout,
        inp,
        weight,
        mean,
        rstd,
        N,
        C,
    })?;

    attention(cuda, model, t)?;
    cuda.gelu_recompute(t.wide[0], t.wide[1])?;
    Gelu::new(cuda, t.wide[0], t.wide[1]).forward(cuda.driver.as_mut())?;
    Gelu::new(cuda, t.wide[0], t.wide[1]).backward(cuda.driver.as_mut())?;
    let (losses, logits, targets) = (mean, t.logits, t.tokens[0]);
    cuda.classifier(Classifier { losses, logits, targets, dloss: Some(t.one), N, V, Vp })?;

    updates(cuda, model, t)?;
    let ([params, grads], [_, m, v]) = (t.matrix, t.moments);
    cuda.add(params, grads)?;
    cuda.add(m, v)?;
    cuda.scale(params, 0.5)?;
    cuda.norm_squared(t.one, &[grads])?;
    cuda.sum(t.one, m)?;
    cuda.fill(params, 1.0)?;
    cuda.fill(m, 1.0)
}

/// Runs the updates, with m and v of either type.
fn updates(cuda: &mut Cuda, model: &Model, t: &Tensors) -> Result<()> {
    let ([params, grads], [master, m, v]) = (t.matrix, t.moments);
    let (lr, beta1, beta2, eps, grad_scale) = (1e-3, 0.9, 0.95, 1e-8, 1.0);
    let (weight_decay, step, seed, first) = (0.0, 1, 0, 0);
    let adamw = AdamW {
        params,
        master: Some(master),
        m,
        v,
        grads,
        weight_decay,
        lr,
        beta1,
        beta2,
        eps,
        grad_scale,
        t: step,
        seed,
        first,
    };
    let [narrow_m, narrow_v] = [m, v].map(|tensor| Tensor { dtype: Dtype::Bf16, ..tensor });
    cuda.adamw(adamw)?;
    cuda.adamw(AdamW { m: narrow_m, v: narrow_v, ..adamw })?;
    for m in [m, narrow_m] {
        cuda.muon_momentum(MuonMomentum { grads, m, momentum: 0.95, grad_scale, seed, first })?;
    }
    let (scale, direction) = (1.0, grads);
    cuda.muon_step(MuonStep {
        params,
        master: Some(master),
        direction,
        lr,
        scale,
        weight_decay,
        seed,
        first,
    })?;
    let C = model.C;
    cuda.newton_schulz(NewtonSchulz { x: params, work: t.wide[0], rows: 4 * C, columns: C })
}

/// Runs attention, with either choice of kernels backward, and with dropout.
fn attention(cuda: &mut Cuda, model: &Model, t: &Tensors) -> Result<()> {
    let &Model { B, T, C, NH, .. } = model;
    let [out, dout, ..] = t.narrow;
    let dims = AttentionDims { B, T, NH, HS: C / NH };
    let [qkv, dqkv] = t.qkv;
    let (lse, positions, dropout) = (t.lse, None, None);
    cuda.attention_forward(AttentionForward { out, lse, qkv, positions, dropout, dims })?;
    for kernels in [BackwardKernels::Atomic, BackwardKernels::Ordered] {
        cuda.choose_attention(Some(kernels));
        let args = AttentionBackward { dqkv, dout, out, lse, qkv, positions, dropout, dims };
        cuda.attention_backward(args)?;
    }
    let dropout = Some(Dropout { rate: 0.1, state: t.tokens[0].slice(0, 4), stream: 0 });
    cuda.attention_forward(AttentionForward { out, lse, qkv, positions, dropout, dims })?;
    cuda.attention_backward(AttentionBackward { dqkv, dout, out, lse, qkv, positions, dropout, dims })?;
    cuda.attention_decode(out.slice(0, B * C), qkv, T - 1, dims)
}

/// Runs the matmuls of fc and of fcproj, with every epilogue.
fn matmuls(cuda: &mut Cuda, model: &Model, t: &Tensors) -> Result<()> {
    let (N, C) = (model.B * model.T, model.C);
    let ([out, inp, ..], [wide, gelu_gradient, _], [weight, dweight]) = (t.narrow, t.wide, t.matrix);
    let bias = t.vector[0];
    let residual = t.wide[2];
    for epilogue in [
        Epilogue::BiasGelu { bias, kept: Kept::Gradient(gelu_gradient) },
        Epilogue::BiasResidual { bias, residual },
        Epilogue::Bias { bias },
    ] {
        cuda.matmul_forward(MatmulForward { out: wide, inp, weight, epilogue, N, C, OC: 4 * C })?;
    }
    for gelu_gradient in [Some(gelu_gradient), None] {
        cuda.matmul_backward(MatmulBackward {
            dinp: wide,
            dweight: Some(dweight),
            overwrite_dweight: false,
            dbias: Some(bias.slice(0, C)),
            dout: out,
            inp: t.wide[2],
            weight,
            gelu_gradient,
            N,
            C: 4 * C,
            OC: C,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cuda::kernels;

    /// The kernels without a launch are those of the other type.
    #[test]
    fn every_kernel_is_launched() {
        let of = |dtype| launches(dtype).unwrap();
        let (bf16, f32) = (of(Dtype::Bf16), of(Dtype::F32));
        let missing: Vec<_> =
            kernels().iter().map(|k| k.name).filter(|name| !bf16.contains_key(name)).collect();
        assert!(missing.iter().all(|name| name.starts_with("matmul_f32_")), "{missing:?}");
        assert!(missing.iter().all(|name| f32.contains_key(name)), "{missing:?}");
        let launch = |name| bf16[name].1;
        let hopper = launch("matmul_hopper_forward_128x256");
        assert_eq!((hopper.threads, hopper.shared_bytes), (384, 227 << 10));
        assert_eq!(launch("classifier").shared_bytes, 2 * 50_304);
        assert_eq!(launch("adamw").threads, 256);
    }
}
