//! The adapters of LoRA (Hu et al. 2021): beside a frozen matrix W, the product s B A of two narrow
//! ones, s = alpha / r, is computed apart as PEFT does. The sum W + s B A would lose small updates
//! where weights have 16 bits.

use super::GPT2;
use super::activations::LoraBuffers;
use super::backward::{Linear, MicroStep};
use crate::ops::{Dropout, Epilogue, Kept, MatmulBackward, MatmulForward, Ops};
use crate::params::Param;
use crate::params::lora::adapters_of;
use crate::tensor::Tensor;
use anyhow::Result;

/// The adapter beside one matrix, and the buffers of its passes.
#[derive(Clone, Copy)]
struct Adapter {
    /// A (r, C) and B (OC, r) as parameters.
    params: [Param; 2],
    a: Tensor,
    b: Tensor,
    scale: f32,
    buffers: LoraBuffers,
    /// The rank in memory.
    r: usize,
    C: usize,
    OC: usize,
}

impl Adapter {
    /// h (N, r) = s inp Aᵀ, for N rows of C.
    fn hidden(&self, dev: &mut dyn Ops, inp: Tensor) -> Result<Tensor> {
        let &Adapter { a: weight, C, r, .. } = self;
        let N = inp.len / C;
        let out = self.buffers.h.slice(0, N * r);
        dev.matmul_forward(MatmulForward { out, inp, weight, epilogue: Epilogue::None, N, C, OC: r })?;
        dev.scale(out, self.scale)?;
        Ok(out)
    }

    /// s B A inp (N, OC).
    fn forward(&self, dev: &mut dyn Ops, inp: Tensor) -> Result<Tensor> {
        let &Adapter { b: weight, C, r, OC, .. } = self;
        let (h, N) = (self.hidden(dev, inp)?, inp.len / C);
        let out = self.buffers.wide.slice(0, N * OC);
        dev.matmul_forward(MatmulForward { out, inp: h, weight, epilogue: Epilogue::None, N, C: r, OC })?;
        Ok(out)
    }
}

impl GPT2 {
    fn adapter(&self, weight: Param, l: usize) -> Option<Adapter> {
        let w = &self.weights;
        let lora = w.config.lora?;
        let params = adapters_of(weight, &lora)?;
        let [a, b] = params.map(|param| w.get(param, l));
        let (OC, C) = (weight.spec().shape)(&w.config);
        let buffers = self.acts.lora.expect("planned where there are adapters");
        Some(Adapter { params, a, b, scale: lora.scale(), buffers, r: lora.padded_rank(), C, OC })
    }

    /// The epilogue of a projection of `inp`, which has the adapter's product as its residual.
    pub(super) fn epilogue_with_adapter(
        &self,
        dev: &mut dyn Ops,
        l: usize,
        (weight, bias): (Param, Param),
        inp: Tensor,
        without: Epilogue,
    ) -> Result<Epilogue> {
        let Some(adapter) = self.adapter(weight, l) else { return Ok(without) };
        let residual = adapter.forward(dev, inp)?;
        Ok(Epilogue::BiasResidual { bias: self.weights.get(bias, l), residual })
    }

    /// The residual stream with the adapter's product, to which a projection of `inp` then adds its
    /// own. Dropout is linear and its mask a function of the place, so both may be dropped apart.
    pub(super) fn residual_with_adapter(
        &self,
        dev: &mut dyn Ops,
        l: usize,
        weight: Param,
        [inp, residual]: [Tensor; 2],
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let Some(adapter) = self.adapter(weight, l) else { return Ok(residual) };
        let mut sum = adapter.forward(dev, inp)?;
        if let Some(dropout) = dropout {
            let kept = adapter.buffers.wide.part(1, sum.len);
            dev.dropout_backward(kept, sum, adapter.OC, dropout)?;
            sum = kept;
        }
        dev.add(sum, residual)?;
        Ok(sum)
    }

    /// The MLP's first projection and its GELU. With an adapter, whose product has to be added in
    /// between, the GELU is an operation of its own.
    pub(super) fn fc_forward(
        &self,
        dev: &mut dyn Ops,
        l: usize,
        fc: MatmulForward,
        kept: Kept,
    ) -> Result<()> {
        let bias = self.weights.get(Param::Fcb, l);
        let Some(adapter) = self.adapter(Param::Fcw, l) else {
            let epilogue = Epilogue::BiasGelu { bias, kept };
            return dev.matmul_forward(MatmulForward { epilogue, ..fc });
        };
        let product = adapter.forward(dev, fc.inp)?;
        let epilogue = Epilogue::BiasResidual { bias, residual: product };
        dev.matmul_forward(MatmulForward { out: kept.tensor(), epilogue, ..fc })?;
        match kept {
            Kept::Gradient(kept) => dev.gelu_recompute(fc.out, kept),
            Kept::Input(kept) => {
                // The product is no longer needed, and the input must stay.
                dev.copy(product, kept)?;
                dev.gelu_recompute(fc.out, product)
            }
        }
    }

    /// The gradients of the adapter beside a matrix, and its share of the input's gradient, after
    /// that of the matrix.
    pub(super) fn adapter_backward(
        &self,
        dev: &mut dyn Ops,
        l: usize,
        step: MicroStep,
        linear: &Linear,
    ) -> Result<()> {
        let Some(adapter) = self.adapter(linear.weight, l) else { return Ok(()) };
        let Adapter { params, a, b, buffers, r, C, OC, .. } = adapter;
        let (inp, dout) = (linear.inp, linear.dout);
        let (h, N) = (adapter.hidden(dev, inp)?, inp.len / C);
        let [da, db] = params.map(|param| Some(self.grad(param, l)));
        let (dh, dinp) = (buffers.dh.slice(0, N * r), buffers.wide.slice(0, N * C));
        let outer = MatmulBackward {
            dinp: dh,
            dweight: db,
            overwrite_dweight: step.fresh_grads,
            dbias: None,
            dout,
            inp: h,
            weight: b,
            gelu_gradient: None,
            N,
            C: r,
            OC,
        };
        dev.matmul_backward(outer)?;
        dev.scale(dh, adapter.scale)?;
        let gelu_gradient = linear.gelu_gradient;
        dev.matmul_backward(MatmulBackward {
            dinp,
            dweight: da,
            dout: dh,
            inp,
            weight: a,
            gelu_gradient,
            C,
            OC: r,
            ..outer
        })?;
        dev.add(linear.dinp, dinp)
    }
}
