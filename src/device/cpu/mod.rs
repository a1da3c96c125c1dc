//! The CPU device: f32 everywhere, with optional bf16 matmul operands. It is the trainer on
//! machines without a GPU and the reference for every kernel test, so each operation is one
//! readable function over slices; this file only turns handles into slices.
//!
//! Results do not depend on the number of threads, bit for bit: work is divided by the shape of the
//! problem alone, and partial sums are added in a fixed order.

pub mod adamw;
pub mod attention;
pub mod classifier;
pub mod dropout;
pub mod encoder;
pub mod gelu;
pub mod layernorm;
pub mod matmul;
pub mod memory;
pub mod muon;
pub mod reduce;
mod rounding;

use crate::ops::*;
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use crate::words::count;
use anyhow::Result;
use matmul::Precision;
use memory::Memory;
use std::time::Duration;

/// A CPU and its memory.
pub struct Cpu {
    memory: Memory,
    precision: Precision,
    /// Packed operands of matmuls, kept so that training allocates nothing.
    scratch: matmul::Scratch,
    stamps: HostStamps,
}

impl Cpu {
    /// Creates a device without memory.
    ///
    /// # Errors
    /// If `precision` needs instructions that this CPU lacks.
    pub fn new(precision: Precision) -> Result<Self> {
        precision.require_support()?;
        let (scratch, stamps) = (matmul::Scratch::default(), HostStamps::default());
        Ok(Cpu { memory: Memory::default(), precision, scratch, stamps })
    }
}

impl Device for Cpu {
    fn describe(&self) -> String {
        format!("CPU, {}, {}", count(rayon::current_num_threads(), "thread"), self.precision.describe())
    }

    fn float_dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn operand_dtype(&self) -> Dtype {
        match self.precision {
            Precision::F32 => Dtype::F32,
            Precision::Bf16 => Dtype::Bf16,
        }
    }

    fn host_bytes(&self, limits: &Limits, head_gradient: bool) -> usize {
        matmul::packed_bytes(self.precision, limits, head_gradient)
    }

    fn allocate(&mut self, plan: &MemoryPlan) -> Result<()> {
        self.memory = Memory::allocate(plan)?;
        Ok(())
    }

    fn upload(&mut self, dst: Tensor, src: &[u8]) -> Result<()> {
        self.memory.borrow().bytes_mut(dst).copy_from_slice(src);
        Ok(())
    }

    fn download(&mut self, dst: &mut [u8], src: Tensor) -> Result<()> {
        dst.copy_from_slice(self.memory.borrow().bytes(src));
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }

    fn copy(&mut self, dst: Tensor, src: Tensor) -> Result<()> {
        assert_eq!((dst.dtype, dst.len), (src.dtype, src.len), "a copy keeps type and length");
        let b = self.memory.borrow();
        b.bytes_mut(dst).copy_from_slice(b.bytes(src));
        Ok(())
    }

    fn lend(&mut self, tensor: Tensor) -> Buffer {
        let address = self.memory.lend(tensor);
        Buffer { address, len: tensor.len, dtype: tensor.dtype, place: Place::Host }
    }

    fn reclaim(&mut self, tensor: Tensor) {
        self.memory.reclaim(tensor);
    }

    fn stamp(&mut self) -> Result<()> {
        self.stamps.stamp();
        Ok(())
    }

    fn take_stamps(&mut self) -> Result<Vec<Duration>> {
        Ok(self.stamps.take())
    }
}

impl Ops for Cpu {
    fn encoder_forward(&mut self, a: EncoderForward) -> Result<()> {
        let b = self.memory.borrow();
        assert_eq!(a.encoded.len, a.B * a.T * a.C);
        let rows = encoder::Rows {
            tokens: b.read_i32(a.tokens),
            positions: a.positions.map(|t| b.read_i32(t)),
            mask: a.dropout.map(|d| b.mask(d)),
            T: a.T,
            C: a.C,
        };
        encoder::forward(b.write(a.encoded), b.read(a.wte), b.read(a.wpe), rows);
        Ok(())
    }

    fn encoder_backward(&mut self, a: EncoderBackward) -> Result<()> {
        let b = self.memory.borrow();
        assert_eq!(a.dout.len, a.B * a.T * a.C);
        let rows = encoder::Rows {
            tokens: b.read_i32(a.tokens),
            positions: a.positions.map(|[positions, _]| b.read_i32(positions)),
            mask: a.dropout.map(|d| b.mask(d)),
            T: a.T,
            C: a.C,
        };
        let (dwte, dwpe) = (a.dwte.map(|t| b.write(t)), a.dwpe.map(|t| b.write(t)));
        encoder::backward(dwte, dwpe, b.read(a.dout), rows);
        Ok(())
    }

    fn layernorm_forward(&mut self, a: LayernormForward) -> Result<()> {
        let b = self.memory.borrow();
        assert_eq!(a.out.len, a.N * a.C);
        let (out, mean, rstd) = (b.write(a.out), b.write(a.mean), b.write(a.rstd));
        layernorm::forward(out, mean, rstd, b.read(a.inp), b.read(a.weight), b.read(a.bias), a.C);
        Ok(())
    }

    fn layernorm_backward(&mut self, a: LayernormBackward) -> Result<()> {
        let b = self.memory.borrow();
        assert_eq!(a.dinp.len, a.N * a.C);
        layernorm::backward(
            layernorm::Gradients {
                dinp: b.write(a.dinp),
                overwrite_dinp: a.overwrite_dinp,
                dweight: b.write(a.dweight),
                dbias: b.write(a.dbias),
            },
            b.read(a.dout),
            b.read(a.inp),
            b.read(a.weight),
            b.read(a.mean),
            b.read(a.rstd),
            a.C,
        );
        Ok(())
    }

    fn matmul_forward(&mut self, a: MatmulForward) -> Result<()> {
        let b = self.memory.borrow();
        let epilogue = match a.epilogue {
            Epilogue::None => matmul::Epilogue::Assign,
            Epilogue::Bias { bias } => matmul::Epilogue::Bias { bias: b.read(bias) },
            Epilogue::BiasGelu { bias, kept } => {
                let kept = kept.map(|tensor| matmul::cells(b.write(tensor)));
                matmul::Epilogue::BiasGelu { bias: b.read(bias), kept }
            }
            Epilogue::BiasResidual { bias, residual } => {
                matmul::Epilogue::BiasResidual { bias: b.read(bias), residual: b.read(residual) }
            }
        };
        let shape = matmul::Shape { N: a.N, C: a.C, OC: a.OC };
        let (out, inp, weight) = (b.write(a.out), b.read(a.inp), b.read(a.weight));
        matmul::forward(self.precision, &mut self.scratch, out, inp, weight, epilogue, shape);
        Ok(())
    }

    fn matmul_residual_layernorm(
        &mut self,
        matmul: MatmulForward,
        dropout: Option<Dropout>,
        norm: LayernormForward,
    ) -> Result<()> {
        match (dropout, matmul.epilogue) {
            (Some(dropout), Epilogue::BiasResidual { bias, residual }) => {
                self.matmul_forward(MatmulForward { epilogue: Epilogue::Bias { bias }, ..matmul })?;
                let b = self.memory.borrow();
                dropout::residual(b.write(matmul.out), b.read(residual), &b.mask(dropout), norm.C);
            }
            (Some(_), epilogue) => panic!("dropout between a matmul and {epilogue:?}"),
            (None, _) => self.matmul_forward(matmul)?,
        }
        self.layernorm_forward(norm)
    }

    fn dropout_backward(&mut self, dinp: Tensor, dout: Tensor, C: usize, dropout: Dropout) -> Result<()> {
        let b = self.memory.borrow();
        dropout::backward(b.write(dinp), b.read(dout), &b.mask(dropout), C);
        Ok(())
    }

    fn matmul_backward(&mut self, a: MatmulBackward) -> Result<()> {
        let b = self.memory.borrow();
        let gradients = matmul::Gradients {
            dinp: b.write(a.dinp),
            dweight: a.dweight.map(|t| b.write(t)),
            overwrite_dweight: a.overwrite_dweight,
            dbias: a.dbias.map(|t| b.write(t)),
        };
        let gelu_gradient = a.gelu_gradient.map(|t| b.read(t));
        let shape = matmul::Shape { N: a.N, C: a.C, OC: a.OC };
        let (dout, inp, weight) = (b.read(a.dout), b.read(a.inp), b.read(a.weight));
        matmul::backward(
            self.precision,
            &mut self.scratch,
            gradients,
            dout,
            inp,
            weight,
            gelu_gradient,
            shape,
        );
        Ok(())
    }

    fn attention_forward(&mut self, a: AttentionForward) -> Result<()> {
        let b = self.memory.borrow();
        let (positions, mask) = (a.positions.map(|t| b.read_i32(t)), a.dropout.map(|d| b.mask(d)));
        let view = attention::View { dims: a.dims, positions, mask };
        attention::forward(b.write(a.out), b.write(a.lse), b.read(a.qkv), view);
        Ok(())
    }

    fn attention_backward(&mut self, a: AttentionBackward) -> Result<()> {
        let b = self.memory.borrow();
        let (positions, mask) = (a.positions.map(|t| b.read_i32(t)), a.dropout.map(|d| b.mask(d)));
        let view = attention::View { dims: a.dims, positions, mask };
        let (dout, out, lse) = (b.read(a.dout), b.read(a.out), b.read(a.lse));
        attention::backward(b.write(a.dqkv), dout, out, lse, b.read(a.qkv), view);
        Ok(())
    }

    fn attention_decode(&mut self, out: Tensor, qkv: Tensor, t: usize, dims: AttentionDims) -> Result<()> {
        let b = self.memory.borrow();
        attention::decode(b.write(out), b.read(qkv), t, dims);
        Ok(())
    }

    fn gelu_recompute(&mut self, out: Tensor, kept: Tensor) -> Result<()> {
        let b = self.memory.borrow();
        gelu::recompute(b.write(out), b.write(kept));
        Ok(())
    }

    fn classifier(&mut self, a: Classifier) -> Result<()> {
        let b = self.memory.borrow();
        assert_eq!(a.logits.len, a.N * a.Vp);
        let (losses, targets) = (b.write(a.losses), b.read_i32(a.targets));
        match a.dloss {
            Some(dloss) => {
                let dloss = b.read(dloss)[0];
                classifier::forward_backward(losses, b.write(a.logits), targets, dloss, a.V, a.Vp);
            }
            None => classifier::forward(losses, b.read(a.logits), targets, a.V, a.Vp),
        }
        Ok(())
    }

    fn adamw(&mut self, a: AdamW) -> Result<()> {
        let b = self.memory.borrow();
        let (params, grads) = (b.write(a.params), b.read(a.grads));
        let update = |weights: &mut [f32]| match a.m.dtype {
            Dtype::Bf16 => {
                adamw::update_bf16_state(weights, b.write_bf16(a.m), b.write_bf16(a.v), grads, &a);
            }
            _ => adamw::update(weights, b.write(a.m), b.write(a.v), grads, &a),
        };
        match a.master {
            // Master weights have the same type here, so the parameters become unrounded copies.
            Some(master) => {
                let master = b.write(master);
                update(master);
                params.copy_from_slice(master);
            }
            None => update(params),
        }
        Ok(())
    }

    fn muon_momentum(&mut self, a: MuonMomentum) -> Result<()> {
        let b = self.memory.borrow();
        match a.m.dtype {
            Dtype::Bf16 => muon::momentum_bf16_state(b.write(a.grads), b.write_bf16(a.m), &a),
            _ => muon::momentum(b.write(a.grads), b.write(a.m), &a),
        }
        Ok(())
    }

    fn newton_schulz(&mut self, a: NewtonSchulz) -> Result<()> {
        let b = self.memory.borrow();
        let buffers = a.buffers().map(|tensor| b.write(tensor));
        muon::newton_schulz(self.precision, &mut self.scratch, b.write(a.x), buffers, &a);
        Ok(())
    }

    fn muon_step(&mut self, a: MuonStep) -> Result<()> {
        let b = self.memory.borrow();
        let (params, direction) = (b.write(a.params), b.read(a.direction));
        match a.master {
            Some(master) => {
                let master = b.write(master);
                muon::step(master, direction, &a);
                params.copy_from_slice(master);
            }
            None => muon::step(params, direction, &a),
        }
        Ok(())
    }

    fn add(&mut self, dst: Tensor, src: Tensor) -> Result<()> {
        let b = self.memory.borrow();
        reduce::add(b.write(dst), b.read(src));
        Ok(())
    }

    fn scale(&mut self, dst: Tensor, factor: f32) -> Result<()> {
        reduce::scale(self.memory.borrow().write(dst), factor);
        Ok(())
    }

    fn norm_squared(&mut self, out: Tensor, src: &[Tensor]) -> Result<()> {
        let b = self.memory.borrow();
        b.write(out)[0] = src.iter().map(|&src| reduce::norm_squared(b.read(src))).sum::<f64>() as f32;
        Ok(())
    }

    fn sum(&mut self, out: Tensor, src: Tensor) -> Result<()> {
        let b = self.memory.borrow();
        b.write(out)[0] = reduce::sum(b.read(src)) as f32;
        Ok(())
    }

    fn fill(&mut self, dst: Tensor, value: f32) -> Result<()> {
        use rayon::prelude::*;
        let b = self.memory.borrow();
        b.write(dst).par_chunks_mut(1 << 16).for_each(|chunk| chunk.fill(value));
        Ok(())
    }

    fn replay(&mut self, _key: GraphKey, work: &mut Work) -> Result<()> {
        work(self)
    }
}
