//! Operations as values: a [`Call`] is a method of [`Ops`] with its arguments, so a device can
//! record, time or replay it.

use super::*;
use anyhow::Result;

/// One variant per method of [`Ops`]; fields are named as its arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    EncoderForward(EncoderForward),
    EncoderBackward(EncoderBackward),
    LayernormForward(LayernormForward),
    LayernormBackward(LayernormBackward),
    MatmulForward(MatmulForward),
    MatmulResidualLayernorm { matmul: MatmulForward, dropout: Option<Dropout>, norm: LayernormForward },
    DropoutBackward { dinp: Tensor, dout: Tensor, C: usize, dropout: Dropout },
    MatmulBackward(MatmulBackward),
    AttentionForward(AttentionForward),
    AttentionBackward(AttentionBackward),
    AttentionDecode { out: Tensor, qkv: Tensor, t: usize, dims: AttentionDims },
    GeluRecompute { out: Tensor, kept: Tensor },
    Classifier(Classifier),
    AdamW(AdamW),
    MuonMomentum(MuonMomentum),
    NewtonSchulz(NewtonSchulz),
    MuonStep(MuonStep),
    Add { dst: Tensor, src: Tensor },
    Scale { dst: Tensor, factor: f32 },
    NormSquared { out: Tensor, src: Vec<Tensor> },
    Sum { out: Tensor, src: Tensor },
    Fill { dst: Tensor, value: f32 },
}

/// The use that an operation makes of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// All of it is overwritten.
    Write,
    /// It is read and written, as with `+=`.
    Update,
}

impl Call {
    /// Runs the operation on `dev`.
    pub fn apply(&self, dev: &mut dyn Ops) -> Result<()> {
        match *self {
            Call::EncoderForward(args) => dev.encoder_forward(args),
            Call::EncoderBackward(args) => dev.encoder_backward(args),
            Call::LayernormForward(args) => dev.layernorm_forward(args),
            Call::LayernormBackward(args) => dev.layernorm_backward(args),
            Call::MatmulForward(args) => dev.matmul_forward(args),
            Call::MatmulResidualLayernorm { matmul, dropout, norm } => {
                dev.matmul_residual_layernorm(matmul, dropout, norm)
            }
            Call::DropoutBackward { dinp, dout, C, dropout } => dev.dropout_backward(dinp, dout, C, dropout),
            Call::MatmulBackward(args) => dev.matmul_backward(args),
            Call::AttentionForward(args) => dev.attention_forward(args),
            Call::AttentionBackward(args) => dev.attention_backward(args),
            Call::AttentionDecode { out, qkv, t, dims } => dev.attention_decode(out, qkv, t, dims),
            Call::GeluRecompute { out, kept } => dev.gelu_recompute(out, kept),
            Call::Classifier(args) => dev.classifier(args),
            Call::AdamW(args) => dev.adamw(args),
            Call::MuonMomentum(args) => dev.muon_momentum(args),
            Call::NewtonSchulz(args) => dev.newton_schulz(args),
            Call::MuonStep(args) => dev.muon_step(args),
            Call::Add { dst, src } => dev.add(dst, src),
            Call::Scale { dst, factor } => dev.scale(dst, factor),
            Call::NormSquared { out, ref src } => dev.norm_squared(out, src),
            Call::Sum { out, src } => dev.sum(out, src),
            Call::Fill { dst, value } => dev.fill(dst, value),
        }
    }

    /// All tensors of the call and their uses, in the order of its arguments.
    pub fn tensors(&self) -> Vec<(Tensor, Access)> {
        let mut tensors = Vec::new();
        self.clone().for_each_tensor(|tensor, access| tensors.push((*tensor, access)));
        tensors
    }

    /// Bytes of all tensors, those that are read and written counted twice.
    pub fn size_bytes(&self) -> usize {
        let times = |access| if access == Access::Update { 2 } else { 1 };
        self.tensors().iter().map(|(tensor, access)| times(*access) * tensor.size_bytes()).sum()
    }

    /// Visits all tensors of the call, so that they can be replaced: to run it on other memory.
    pub fn for_each_tensor(&mut self, mut visit: impl FnMut(&mut Tensor, Access)) {
        use Access::{Read, Update, Write};
        let visit = &mut visit;
        match self {
            Call::EncoderForward(a) => {
                visit(&mut a.encoded, Write);
                let inputs = [&mut a.tokens, &mut a.wte, &mut a.wpe].into_iter();
                inputs.chain(&mut a.positions).chain(state(&mut a.dropout)).for_each(|t| visit(t, Read));
            }
            Call::EncoderBackward(a) => encoder_backward(a, visit),
            Call::LayernormForward(norm) => layernorm_forward(norm, visit),
            Call::LayernormBackward(a) => {
                visit(&mut a.dinp, if a.overwrite_dinp { Write } else { Update });
                [&mut a.dweight, &mut a.dbias].into_iter().for_each(|t| visit(t, Update));
                let inputs = [&mut a.dout, &mut a.inp, &mut a.weight, &mut a.mean, &mut a.rstd];
                inputs.into_iter().for_each(|t| visit(t, Read));
            }
            Call::MatmulForward(matmul) => matmul_forward(matmul, visit),
            Call::MatmulResidualLayernorm { matmul, dropout, norm } => {
                matmul_forward(matmul, visit);
                layernorm_forward(norm, visit);
                state(dropout).for_each(|t| visit(t, Read));
            }
            Call::DropoutBackward { dinp, dout, dropout, .. } => {
                visit(dinp, Write);
                [dout, &mut dropout.state].into_iter().for_each(|t| visit(t, Read));
            }
            Call::MatmulBackward(a) => matmul_backward(a, visit),
            Call::AttentionForward(a) => attention_forward(a, visit),
            Call::AttentionBackward(a) => attention_backward(a, visit),
            Call::AttentionDecode { out, qkv: inp, .. } | Call::Sum { out, src: inp } => {
                visit(out, Write);
                visit(inp, Read);
            }
            Call::GeluRecompute { out, kept } => {
                visit(out, Write);
                visit(kept, Update);
            }
            Call::Classifier(a) => {
                visit(&mut a.losses, Update);
                visit(&mut a.logits, if a.dloss.is_some() { Update } else { Read });
                [&mut a.targets].into_iter().chain(&mut a.dloss).for_each(|t| visit(t, Read));
            }
            Call::AdamW(a) => {
                weights(&mut a.params, &mut a.master, visit);
                [&mut a.m, &mut a.v].into_iter().for_each(|t| visit(t, Update));
                visit(&mut a.grads, Read);
            }
            Call::MuonMomentum(a) => [&mut a.grads, &mut a.m].into_iter().for_each(|t| visit(t, Update)),
            Call::NewtonSchulz(a) => newton_schulz(a, visit),
            Call::MuonStep(a) => {
                weights(&mut a.params, &mut a.master, visit);
                visit(&mut a.direction, Read);
            }
            Call::Add { dst, src } => {
                visit(dst, Update);
                visit(src, Read);
            }
            Call::Scale { dst, .. } => visit(dst, Update),
            Call::NormSquared { out, src } => {
                visit(out, Write);
                src.iter_mut().for_each(|t| visit(t, Read));
            }
            Call::Fill { dst, .. } => visit(dst, Write),
        }
    }
}

/// The tensor that the masks of a dropout depend on.
fn state(dropout: &mut Option<Dropout>) -> impl Iterator<Item = &mut Tensor> {
    dropout.iter_mut().map(|dropout| &mut dropout.state)
}

fn encoder_backward(a: &mut EncoderBackward, visit: &mut impl FnMut(&mut Tensor, Access)) {
    a.dwte.iter_mut().chain(&mut a.dwpe).for_each(|t| visit(t, Access::Update));
    let inputs = [&mut a.dout, &mut a.tokens, &mut a.rows_by_token].into_iter();
    let inputs = inputs.chain(a.positions.iter_mut().flatten());
    inputs.chain(state(&mut a.dropout)).for_each(|t| visit(t, Access::Read));
}

fn attention_forward(a: &mut AttentionForward, visit: &mut impl FnMut(&mut Tensor, Access)) {
    [&mut a.out, &mut a.lse].into_iter().for_each(|t| visit(t, Access::Write));
    let inputs = [&mut a.qkv].into_iter().chain(&mut a.positions);
    inputs.chain(state(&mut a.dropout)).for_each(|t| visit(t, Access::Read));
}

fn attention_backward(a: &mut AttentionBackward, visit: &mut impl FnMut(&mut Tensor, Access)) {
    visit(&mut a.dqkv, Access::Write);
    let inputs = [&mut a.dout, &mut a.out, &mut a.lse, &mut a.qkv].into_iter().chain(&mut a.positions);
    inputs.chain(state(&mut a.dropout)).for_each(|t| visit(t, Access::Read));
}

/// Parameters become the image of master weights, or are updated themselves.
fn weights(params: &mut Tensor, master: &mut Option<Tensor>, visit: &mut impl FnMut(&mut Tensor, Access)) {
    visit(params, if master.is_some() { Access::Write } else { Access::Update });
    master.iter_mut().for_each(|t| visit(t, Access::Update));
}

fn newton_schulz(a: &mut NewtonSchulz, visit: &mut impl FnMut(&mut Tensor, Access)) {
    visit(&mut a.x, Access::Update);
    visit(&mut a.work, Access::Write);
}

fn matmul_forward(a: &mut MatmulForward, visit: &mut impl FnMut(&mut Tensor, Access)) {
    visit(&mut a.out, Access::Write);
    [&mut a.inp, &mut a.weight].into_iter().for_each(|t| visit(t, Access::Read));
    match &mut a.epilogue {
        Epilogue::None => {}
        Epilogue::Bias { bias } => visit(bias, Access::Read),
        Epilogue::BiasGelu { bias, kept: Kept::Input(kept) | Kept::Gradient(kept) } => {
            visit(bias, Access::Read);
            visit(kept, Access::Write);
        }
        Epilogue::BiasResidual { bias, residual } => {
            [bias, residual].into_iter().for_each(|t| visit(t, Access::Read));
        }
    }
}

fn matmul_backward(a: &mut MatmulBackward, visit: &mut impl FnMut(&mut Tensor, Access)) {
    use Access::{Read, Update, Write};
    visit(&mut a.dinp, Write);
    let access = if a.overwrite_dweight { Write } else { Update };
    a.dweight.iter_mut().for_each(|dweight| visit(dweight, access));
    a.dbias.iter_mut().for_each(|dbias| visit(dbias, Update));
    let inputs = [&mut a.dout, &mut a.inp, &mut a.weight].into_iter();
    inputs.chain(&mut a.gelu_gradient).for_each(|t| visit(t, Read));
}

fn layernorm_forward(a: &mut LayernormForward, visit: &mut impl FnMut(&mut Tensor, Access)) {
    [&mut a.out, &mut a.mean, &mut a.rstd].into_iter().for_each(|t| visit(t, Access::Write));
    [&mut a.inp, &mut a.weight, &mut a.bias].into_iter().for_each(|t| visit(t, Access::Read));
}

/// A device that takes every operation as a [`Call`]. This is all it needs to implement [`Ops`].
pub trait CallDevice: Device {
    fn call(&mut self, call: Call) -> Result<()>;

    /// See [`Ops::replay`].
    fn repeat(&mut self, key: GraphKey, work: &mut Work) -> Result<()>
    where
        Self: Sized,
    {
        let _ = key;
        work(self)
    }
}

impl<D: CallDevice> Ops for D {
    fn encoder_forward(&mut self, args: EncoderForward) -> Result<()> {
        self.call(Call::EncoderForward(args))
    }

    fn encoder_backward(&mut self, args: EncoderBackward) -> Result<()> {
        self.call(Call::EncoderBackward(args))
    }

    fn layernorm_forward(&mut self, args: LayernormForward) -> Result<()> {
        self.call(Call::LayernormForward(args))
    }

    fn layernorm_backward(&mut self, args: LayernormBackward) -> Result<()> {
        self.call(Call::LayernormBackward(args))
    }

    fn matmul_forward(&mut self, args: MatmulForward) -> Result<()> {
        self.call(Call::MatmulForward(args))
    }

    fn matmul_residual_layernorm(
        &mut self,
        matmul: MatmulForward,
        dropout: Option<Dropout>,
        norm: LayernormForward,
    ) -> Result<()> {
        self.call(Call::MatmulResidualLayernorm { matmul, dropout, norm })
    }

    fn dropout_backward(&mut self, dinp: Tensor, dout: Tensor, C: usize, dropout: Dropout) -> Result<()> {
        self.call(Call::DropoutBackward { dinp, dout, C, dropout })
    }

    fn matmul_backward(&mut self, args: MatmulBackward) -> Result<()> {
        self.call(Call::MatmulBackward(args))
    }

    fn attention_forward(&mut self, args: AttentionForward) -> Result<()> {
        self.call(Call::AttentionForward(args))
    }

    fn attention_backward(&mut self, args: AttentionBackward) -> Result<()> {
        self.call(Call::AttentionBackward(args))
    }

    fn attention_decode(&mut self, out: Tensor, qkv: Tensor, t: usize, dims: AttentionDims) -> Result<()> {
        self.call(Call::AttentionDecode { out, qkv, t, dims })
    }

    fn gelu_recompute(&mut self, out: Tensor, kept: Tensor) -> Result<()> {
        self.call(Call::GeluRecompute { out, kept })
    }

    fn classifier(&mut self, args: Classifier) -> Result<()> {
        self.call(Call::Classifier(args))
    }

    fn adamw(&mut self, args: AdamW) -> Result<()> {
        self.call(Call::AdamW(args))
    }

    fn muon_momentum(&mut self, args: MuonMomentum) -> Result<()> {
        self.call(Call::MuonMomentum(args))
    }

    fn newton_schulz(&mut self, args: NewtonSchulz) -> Result<()> {
        self.call(Call::NewtonSchulz(args))
    }

    fn muon_step(&mut self, args: MuonStep) -> Result<()> {
        self.call(Call::MuonStep(args))
    }

    fn add(&mut self, dst: Tensor, src: Tensor) -> Result<()> {
        self.call(Call::Add { dst, src })
    }

    fn scale(&mut self, dst: Tensor, factor: f32) -> Result<()> {
        self.call(Call::Scale { dst, factor })
    }

    fn norm_squared(&mut self, out: Tensor, src: &[Tensor]) -> Result<()> {
        self.call(Call::NormSquared { out, src: src.to_vec() })
    }

    fn sum(&mut self, out: Tensor, src: Tensor) -> Result<()> {
        self.call(Call::Sum { out, src })
    }

    fn fill(&mut self, dst: Tensor, value: f32) -> Result<()> {
        self.call(Call::Fill { dst, value })
    }

    fn replay(&mut self, key: GraphKey, work: &mut Work) -> Result<()> {
        self.repeat(key, work)
    }
}
