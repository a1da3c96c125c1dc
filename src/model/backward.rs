//! The backward pass: losses, then the layers in reverse.
//!
//! One gradient, `dresidual`, runs down the residual stream: each block adds to it where its two
//! layernorms read it. Gradients of parameters accumulate over micro-steps; those of activations
//! are overwritten.

use super::activations::Recompute;
use super::dropout::Place;
use super::hooks::{LayerHooks, Pass};
use super::{BatchShape, GPT2};
use crate::config::ModelConfig;
use crate::ops::{
    AttentionBackward, AttentionDims, EncoderBackward, GraphKey, LayernormBackward, MatmulBackward, Ops,
    Span, within,
};
use crate::params::frozen::Frozen;
use crate::params::{Param, Param::*};
use crate::sharding::ParamBuffer;
use crate::tensor::Tensor;
use anyhow::Result;

/// The place of a backward pass in its step.
#[derive(Clone, Copy, Debug)]
pub struct MicroStep {
    /// Whether losses start from zero.
    pub first: bool,
    /// Whether gradients start from zero: in the first micro-step, or in every one if each leaves
    /// its gradients reduced.
    pub fresh_grads: bool,
    /// Whether the pass drops activations, at the rates of the model.
    pub dropout: bool,
}

/// Names the operations of a forward pass and its losses, without a backward pass, in the first
/// micro-step of a step or in a later one. No [`MicroStep`] has this key.
pub fn forward_key(BatchShape { B, T, packed }: BatchShape, first: bool) -> GraphKey {
    GraphKey([B, T, usize::from(first) + 2 * usize::from(packed), 2])
}

impl MicroStep {
    /// Names the operations of a forward and a backward pass here: nothing else decides about them.
    pub fn key(self, BatchShape { B, T, packed }: BatchShape) -> GraphKey {
        let MicroStep { first, fresh_grads, dropout } = self;
        let flags = usize::from(fresh_grads) + 4 * usize::from(dropout) + 8 * usize::from(packed);
        GraphKey([B, T, usize::from(first), flags])
    }
}

/// Elements of the largest gradients that an operation computes though their parameters are frozen:
/// those of a layernorm, to which it adds, or that of a matrix whose bias is trained.
pub(super) fn unwanted_len(config: &ModelConfig, frozen: &Frozen) -> usize {
    let is_frozen =
        |param: Param| frozen.trained_layers(param.spec(), config).len() < param.spec().layers(config);
    let norms = [Ln1w, Ln1b, Ln2w, Ln2b, Lnfw, Lnfb].into_iter().any(is_frozen);
    let linears = [(Qkvw, Qkvb), (Attprojw, Attprojb), (Fcw, Fcb), (Fcprojw, Fcprojb)];
    let apart = linears.into_iter().filter(|&(weight, bias)| {
        (0..config.L).any(|l| frozen.contains(weight, l) && !frozen.contains(bias, l))
    });
    let matrices = apart.map(|(weight, _)| weight.spec().len_per_layer(config));
    let norms = if norms { 2 * config.C } else { 0 };
    matrices.chain([norms]).max().unwrap_or(0)
}

/// The tensors that backward through one linear layer reads and writes.
pub(super) struct Linear {
    pub dinp: Tensor,
    pub dout: Tensor,
    pub inp: Tensor,
    pub weight: Param,
    pub bias: Option<Param>,
    pub gelu_gradient: Option<Tensor>,
}

impl GPT2 {
    /// Computes losses and all gradients of the batch that `forward` ran on.
    ///
    /// # Panics
    /// If the model was planned for evaluation only.
    pub fn backward(
        &self,
        dev: &mut dyn Ops,
        shape: BatchShape,
        step: MicroStep,
        hooks: &mut dyn LayerHooks,
    ) -> Result<()> {
        let (a, w) = (&self.acts, &self.weights);
        let (N, C) = (shape.rows(), w.config.C);
        let shared = w.params.layout.shared_unit();
        if step.first {
            dev.fill(a.losses, 0.0)?;
        }
        self.clear_unwanted(dev, step)?;
        self.begin_unit(dev, hooks, shared, step)?;
        self.head_backward(dev, N, step)?;

        let dresidual = a.dresidual.slice(0, N * C);
        let [dweight, dbias] = self.norm_grads([Lnfw, Lnfb], 0);
        dev.layernorm_backward(LayernormBackward {
            dinp: dresidual,
            overwrite_dinp: true,
            dweight,
            dbias,
            dout: a.scratch_btc.slice(0, N * C),
            inp: a.block_input(w.config.L, shape, C),
            weight: w.get(Lnfw, 0),
            mean: a.lnf_mean.slice(0, N),
            rstd: a.lnf_rstd.slice(0, N),
            N,
            C,
        })?;
        // Below this layer nothing is trained.
        let lowest = self.grads().layout.lowest_trained();
        for l in (lowest..w.config.L).rev() {
            within(dev, Span::Layer(l), |dev| {
                self.begin_unit(dev, hooks, l, step)?;
                self.mlp_backward(dev, l, shape, step)?;
                self.attention_backward(dev, l, shape, step)
            })?;
            hooks.after(dev, Pass::Backward, l)?;
        }
        let (dwte, dwpe) = (self.grads().find(Wte, 0), self.grads().find(Wpe, 0));
        if dwte.or(dwpe).is_none() {
            return hooks.after(dev, Pass::Backward, shared);
        }
        let tokens = a.inputs.slice(0, N);
        dev.encoder_backward(EncoderBackward {
            dwte,
            dwpe,
            dout: dresidual,
            tokens,
            rows_by_token: a.rows_by_token.slice(0, N),
            positions: a.positions(shape).map(|positions| [positions, a.rows_by_position.slice(0, N)]),
            dropout: self.dropout(step.dropout, Place::Embeddings),
            B: shape.B,
            T: shape.T,
            C,
        })?;
        hooks.after(dev, Pass::Backward, shared)
    }

    /// Queues the sum of the losses of this step's micro-steps, and returns the tensor it goes to.
    pub fn loss_sum(&self, dev: &mut dyn Ops) -> Result<Tensor> {
        let loss = self.acts.scalars.slice(0, 1);
        dev.sum(loss, self.acts.losses)?;
        Ok(loss)
    }

    /// The gradient of layer `l` of a parameter.
    pub fn grad(&self, param: Param, l: usize) -> Tensor {
        self.grads().get(param, l)
    }

    /// # Panics
    /// If the model was planned for evaluation only.
    pub fn grads(&self) -> &ParamBuffer {
        self.grads.as_ref().expect("a model planned for training")
    }

    /// Makes a unit resident and clears those of its gradients that operations only add to; the
    /// others are overwritten.
    fn begin_unit(
        &self,
        dev: &mut dyn Ops,
        hooks: &mut dyn LayerHooks,
        unit: usize,
        step: MicroStep,
    ) -> Result<()> {
        hooks.before(dev, Pass::Backward, unit)?;
        if !step.fresh_grads {
            return Ok(());
        }
        let (grads, layout) = (self.grads().units()[unit], &self.grads().layout);
        let added = match unit == layout.shared_unit() {
            true => layout.find(Wte, 0).map_or(0, |(_, wte)| wte.end),
            false => layout.matrices(unit),
        };
        if added < grads.len { dev.fill(grads.slice(added, grads.len - added), 0.0) } else { Ok(()) }
    }

    /// Clears the gradients to which operations add though nobody wants them, lest they overflow.
    fn clear_unwanted(&self, dev: &mut dyn Ops, step: MicroStep) -> Result<()> {
        match self.unwanted.filter(|_| step.fresh_grads) {
            Some(unwanted) => dev.fill(unwanted.slice(0, 2 * self.weights.config.C), 0.0),
            None => Ok(()),
        }
    }

    /// The gradients of a layernorm's weight and bias. Its backward pass adds to both.
    fn norm_grads(&self, params: [Param; 2], l: usize) -> [Tensor; 2] {
        let C = self.weights.config.C;
        let unwanted = |i: usize| self.unwanted.expect("planned where a layernorm is frozen").slice(i * C, C);
        [0, 1].map(|i| self.grads().find(params[i], l).unwrap_or_else(|| unwanted(i)))
    }

    /// Computes, chunk by chunk, logits, losses, and the gradients of the logits, of the embedding
    /// and of the final layernorm's output.
    fn head_backward(&self, dev: &mut dyn Ops, N: usize, step: MicroStep) -> Result<()> {
        let (C, Vp) = (self.weights.config.C, self.weights.config.Vp);
        for (start, rows) in self.logits_chunks(N) {
            let logits = self.logits(dev, start, rows)?;
            dev.classifier(self.classifier_args(logits, start, rows, Some(self.dloss())))?;
            dev.matmul_backward(MatmulBackward {
                dinp: self.acts.scratch_btc.slice(start * C, rows * C),
                dweight: self.grads().find(Wte, 0),
                overwrite_dweight: step.fresh_grads && start == 0,
                dbias: None,
                dout: logits,
                inp: self.acts.lnf.slice(start * C, rows * C),
                weight: self.weights.get(Wte, 0),
                gelu_gradient: None,
                N: rows,
                C,
                OC: Vp,
            })?;
        }
        Ok(())
    }

    fn mlp_backward(&self, dev: &mut dyn Ops, l: usize, shape: BatchShape, step: MicroStep) -> Result<()> {
        let (a, w) = (&self.acts, &self.weights);
        let (N, C) = (shape.rows(), w.config.C);
        let (dresidual, dln2) = (a.dresidual.slice(0, N * C), a.scratch_btc.slice(0, N * C));
        let dfch = a.scratch_bt4c.slice(0, N * 4 * C);
        let [ln2, fch, fch_gelu] = [a.ln2, a.fch, a.fch_gelu].map(|t| t.get(l, N));

        if self.recomputes(Recompute::Gelu) {
            dev.gelu_recompute(fch_gelu, fch)?;
        }
        let dout = self.kept_gradient(dev, step, Place::Mlp(l), dln2)?;
        let fcproj = Linear {
            dinp: dfch,
            dout,
            inp: fch_gelu,
            weight: Fcprojw,
            bias: Some(Fcprojb),
            gelu_gradient: Some(fch),
        };
        self.linear_backward(dev, l, N, step, fcproj)?;
        if self.recomputes(Recompute::GeluAndLayernorm) {
            dev.layernorm_forward(self.norm_before_mlp(l, shape))?;
        }
        let fc =
            Linear { dinp: dln2, dout: dfch, inp: ln2, weight: Fcw, bias: Some(Fcb), gelu_gradient: None };
        self.linear_backward(dev, l, N, step, fc)?;
        let [dweight, dbias] = self.norm_grads([Ln2w, Ln2b], l);
        dev.layernorm_backward(LayernormBackward {
            dinp: dresidual,
            overwrite_dinp: false,
            dweight,
            dbias,
            dout: dln2,
            inp: a.residual2.get(l, N),
            weight: w.get(Ln2w, l),
            mean: a.ln2_mean.get(l, N),
            rstd: a.ln2_rstd.get(l, N),
            N,
            C,
        })
    }

    fn attention_backward(
        &self,
        dev: &mut dyn Ops,
        l: usize,
        shape: BatchShape,
        step: MicroStep,
    ) -> Result<()> {
        let (a, w) = (&self.acts, &self.weights);
        let (N, C) = (shape.rows(), w.config.C);
        let dims = AttentionDims { B: shape.B, T: shape.T, NH: w.config.NH, HS: w.config.HS() };
        let (dresidual, scratch) = (a.dresidual.slice(0, N * C), a.scratch_btc.slice(0, N * C));
        let dqkv = a.scratch_bt4c.slice(0, N * 3 * C);
        let [ln1, qkv, atty, lse] = [a.ln1, a.qkv, a.atty, a.lse].map(|t| t.get(l, N));

        let datty = scratch;
        let kept = a.scratch_bt4c.slice(0, N * C);
        let attproj = Linear {
            dinp: datty,
            dout: self.kept_gradient(dev, step, Place::Attention(l), kept)?,
            inp: atty,
            weight: Attprojw,
            bias: Some(Attprojb),
            gelu_gradient: None,
        };
        self.linear_backward(dev, l, N, step, attproj)?;
        let (out, dout) = (atty, datty);
        let (positions, dropout) = (a.positions(shape), self.dropout(step.dropout, Place::Weights(l)));
        let args = AttentionBackward { dqkv, dout, out, lse, qkv, positions, dropout, dims };
        dev.attention_backward(args)?;
        if self.recomputes(Recompute::GeluAndLayernorm) {
            dev.layernorm_forward(self.norm_before_block(l, shape))?;
        }
        let dln1 = scratch;
        let bias = w.config.qkv_bias.then_some(Qkvb);
        let qkv = Linear { dinp: dln1, dout: dqkv, inp: ln1, weight: Qkvw, bias, gelu_gradient: None };
        self.linear_backward(dev, l, N, step, qkv)?;
        let [dweight, dbias] = self.norm_grads([Ln1w, Ln1b], l);
        dev.layernorm_backward(LayernormBackward {
            dinp: dresidual,
            overwrite_dinp: false,
            dweight,
            dbias,
            dout: dln1,
            inp: a.block_input(l, shape, C),
            weight: w.get(Ln1w, l),
            mean: a.ln1_mean.get(l, N),
            rstd: a.ln1_rstd.get(l, N),
            N,
            C,
        })
    }

    /// The gradient of a block's output, before it is added to the residual stream: the gradient of
    /// the stream, or where some is dropped, `scratch` (N, C), which then holds it.
    fn kept_gradient(
        &self,
        dev: &mut dyn Ops,
        step: MicroStep,
        place: Place,
        scratch: Tensor,
    ) -> Result<Tensor> {
        let dresidual = self.acts.dresidual.slice(0, scratch.len);
        let Some(dropout) = self.dropout(step.dropout, place) else { return Ok(dresidual) };
        dev.dropout_backward(scratch, dresidual, self.weights.config.C, dropout)?;
        Ok(scratch)
    }

    fn linear_backward(
        &self,
        dev: &mut dyn Ops,
        l: usize,
        N: usize,
        step: MicroStep,
        linear: Linear,
    ) -> Result<()> {
        let (OC, C) = (linear.weight.spec().shape)(&self.weights.config);
        let dbias = linear.bias.and_then(|bias| self.grads().find(bias, l));
        let wanted = self.grads().find(linear.weight, l);
        // The gradient of a bias comes with that of its matrix.
        let beside = || dbias.and(self.unwanted).map(|unwanted| unwanted.slice(0, OC * C));
        dev.matmul_backward(MatmulBackward {
            dinp: linear.dinp,
            dweight: wanted.or_else(beside),
            overwrite_dweight: step.fresh_grads || wanted.is_none(),
            dbias,
            dout: linear.dout,
            inp: linear.inp,
            weight: self.weights.get(linear.weight, l),
            gelu_gradient: linear.gelu_gradient,
            N,
            C,
            OC,
        })?;
        self.adapter_backward(dev, l, step, &linear)
    }
}
