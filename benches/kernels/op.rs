//! One operation of a recorded step: its values, the numbers it starts from, and the tolerance of
//! its results.

use anyhow::Result;
use warpsmith::data::buckets::rows_by_token;
use warpsmith::device::compare::{Tolerance, adamw_step};
use warpsmith::device::cpu::Cpu;
use warpsmith::device::cuda::Cuda;
use warpsmith::ops::*;
use warpsmith::rng::Mt19937;
use warpsmith::tensor::Tensor;

/// A device that can run the two matmuls of a backward pass separately. The reference for
/// comparisons runs both.
pub trait Target: Ops + Sized {
    fn matmul_dgrad(&mut self, args: MatmulBackward) -> Result<()> {
        self.matmul_backward(args)
    }

    fn matmul_wgrad(&mut self, args: MatmulBackward) -> Result<()> {
        self.matmul_backward(args)
    }
}

impl Target for Cpu {}

impl Target for Cuda {
    fn matmul_dgrad(&mut self, args: MatmulBackward) -> Result<()> {
        Cuda::matmul_dgrad(self, args)
    }

    fn matmul_wgrad(&mut self, args: MatmulBackward) -> Result<()> {
        Cuda::matmul_wgrad(self, args)
    }
}

/// A call, or one matmul of a backward pass.
#[derive(Clone, Debug)]
pub struct Op {
    pub call: Call,
    pub part: Part,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Dgrad,
    Wgrad,
}

/// A tensor that an operation writes.
pub struct Output {
    pub name: &'static str,
    pub tensor: Tensor,
    pub tolerance: Tolerance,
}

impl Op {
    pub fn whole(call: Call) -> Op {
        Op { call, part: Part::Whole }
    }

    /// Splits a call into the operations that have kernels of their own, in the order in which the
    /// roofline lists those.
    pub fn split(call: Call) -> Vec<Op> {
        match call {
            Call::MatmulBackward(_) => {
                [Part::Dgrad, Part::Wgrad].map(|part| Op { call: call.clone(), part }).to_vec()
            }
            Call::MatmulResidualLayernorm { matmul, norm, .. } => {
                [Call::MatmulForward(matmul), Call::LayernormForward(norm)].map(Op::whole).to_vec()
            }
            call => vec![Op::whole(with_values(call))],
        }
    }

    /// The call that computes those inputs that must agree with others.
    pub fn before(&self) -> Option<Call> {
        match self.call {
            Call::AttentionBackward(a) => {
                let AttentionBackward { out, lse, qkv, positions, dropout, dims, .. } = a;
                let args = AttentionForward { out, lse, qkv, positions, dropout, dims };
                Some(Call::AttentionForward(args))
            }
            _ => None,
        }
    }

    pub fn run(&self, dev: &mut impl Target) -> Result<()> {
        match (self.part, &self.call) {
            (Part::Dgrad, Call::MatmulBackward(args)) => dev.matmul_dgrad(*args),
            (Part::Wgrad, Call::MatmulBackward(args)) => dev.matmul_wgrad(*args),
            (_, call) => call.apply(dev),
        }
    }

    /// The results: for a part of a backward pass, its own.
    pub fn outputs(&self) -> Vec<Output> {
        let mut outputs = outputs(&self.call);
        match self.part {
            Part::Whole => outputs,
            Part::Dgrad => vec![outputs.remove(0)],
            Part::Wgrad => outputs.split_off(1),
        }
    }

    /// The range of the random numbers that a tensor of the operation starts with.
    pub fn range(&self, tensor: Tensor) -> (f32, f32) {
        use Call::*;
        let size = match &self.call {
            // Sums of magnitude one, where GELU is neither 0 nor its argument.
            MatmulForward(a) if tensor == a.weight => 3.0 / (a.C as f32).sqrt(),
            // Small, so that repeated accumulation stays within f16.
            MatmulBackward(a) if tensor == a.dout => 0.1,
            LayernormBackward(a) if tensor == a.dout => 0.1,
            EncoderBackward(a) if tensor == a.dout => 0.1,
            AttentionForward(a) if tensor == a.qkv => 2.0,
            AttentionBackward(a) if tensor == a.qkv => 2.0,
            AttentionDecode { qkv, .. } if tensor == *qkv => 2.0,
            GeluRecompute { .. } => 4.0,
            Classifier(a) if tensor == a.logits => 5.0,
            LayernormBackward(a) if tensor == a.rstd => return (1.0, 3.0),
            // The weight of one row in a large batch is too small for f16.
            Classifier(a) if Some(tensor) == a.dloss => return (0.5, 1.0),
            AdamW(a) if tensor == a.v => return (0.01, 1.01),
            // Asymmetric: numbers of both signs would cancel, and rounding errors would dominate
            // the sum.
            Sum { .. } => return (-0.5, 1.5),
            _ => 1.0,
        };
        (-size, size)
    }

    /// The integers in a tensor of the operation. Tokens are below `V`.
    pub fn integers(&self, tensor: Tensor, V: usize) -> Vec<i32> {
        match &self.call {
            Call::EncoderBackward(a) if tensor == a.rows_by_token => {
                rows_by_token(&random_tokens(tensor.len, V))
            }
            _ => random_tokens(tensor.len, V),
        }
    }
}

/// All results of a call.
fn outputs(call: &Call) -> Vec<Output> {
    use Call::*;
    let out =
        |name, tensor, roundings, terms| Output { name, tensor, tolerance: Tolerance::new(roundings, terms) };
    match *call {
        MatmulForward(a) => match a.epilogue {
            Epilogue::BiasGelu { kept, .. } => {
                let tolerance = Tolerance::new(3.0, a.C).then_gelu();
                let out = Output { name: "out", tensor: a.out, tolerance };
                let sum = Tolerance::new(1.0, a.C);
                // As `range` chooses weights and bias.
                let (name, tolerance) = match kept {
                    Kept::Input(_) => ("pre_gelu", sum),
                    Kept::Gradient(_) => ("gelu_gradient", sum.then_gelu_gradient(1.2)),
                };
                vec![out, Output { name, tensor: kept.tensor(), tolerance }]
            }
            _ => vec![out("out", a.out, 3.0, a.C)],
        },
        MatmulBackward(a) => {
            let mut outputs = vec![out("dinp", a.dinp, 3.0, a.OC)];
            outputs.extend(a.dweight.map(|dweight| out("dweight", dweight, 1.0, a.N)));
            outputs.extend(a.dbias.map(|dbias| out("dbias", dbias, 1.0, a.N)));
            outputs
        }
        MatmulResidualLayernorm { .. } => unreachable!("it was split"),
        // As in tests/kernels: weights and their sums are each rounded once, and dS is a difference
        // of such sums.
        AttentionForward(a) => {
            vec![out("out", a.out, 3.0, a.dims.T), out("lse", a.lse, 0.0, a.dims.HS)]
        }
        AttentionBackward(a) => vec![out("dqkv", a.dqkv, 12.0, a.dims.T + a.dims.HS)],
        DropoutBackward { dinp, .. } => vec![out("dinp", dinp, 1.0, 1)],
        AttentionDecode { out: o, dims, .. } => vec![out("out", o, 2.0, dims.T)],
        GeluRecompute { out, kept } => {
            let evenly: Vec<f32> = (-32..=32).map(|i| i as f32 / 8.0).collect();
            let tolerances = [Tolerance::of_gelu(&evenly), Tolerance::of_gelu_gradient(&evenly)];
            let outputs = [("out", out), ("kept", kept)].into_iter().zip(tolerances);
            outputs.map(|((name, tensor), tolerance)| Output { name, tensor, tolerance }).collect()
        }
        EncoderForward(a) => vec![out("encoded", a.encoded, 1.0, 1)],
        EncoderBackward(a) => {
            let N = a.B * a.T;
            let outputs = [("dwte", a.dwte), ("dwpe", a.dwpe)].into_iter();
            outputs.filter_map(|(name, tensor)| Some(out(name, tensor?, 1.0, N))).collect()
        }
        LayernormForward(a) => {
            let statistics = [out("mean", a.mean, 0.0, a.C), out("rstd", a.rstd, 0.0, a.C)];
            [out("out", a.out, 1.0, a.C)].into_iter().chain(statistics).collect()
        }
        LayernormBackward(a) => {
            let params = [out("dweight", a.dweight, 1.0, a.N), out("dbias", a.dbias, 1.0, a.N)];
            [out("dinp", a.dinp, 1.0, a.C)].into_iter().chain(params).collect()
        }
        Classifier(a) => {
            // Without gradients, the logits stay.
            let roundings = if a.dloss.is_some() { 1.0 } else { 0.0 };
            vec![out("losses", a.losses, 0.0, a.V), out("logits", a.logits, roundings, a.V)]
        }
        AdamW(a) => {
            // Stochastic rounding: up to two tolerance units.
            let mut outputs = vec![out("params", a.params, 2.0, 4)];
            outputs.extend(a.master.map(|master| out("master", master, 0.0, 4)));
            outputs.extend([out("m", a.m, 0.0, 4), out("v", a.v, 0.0, 4)]);
            outputs
        }
        MuonMomentum(a) => vec![out("grads", a.grads, 1.0, 4), out("m", a.m, 0.0, 4)],
        // Errors of an iteration are amplified by the next, 3.4445-fold at most.
        NewtonSchulz(a) => vec![out("x", a.x, 3.0 * 3.4445f64.powi(4), a.rows.max(a.columns))],
        MuonStep(a) => {
            let master = a.master.map(|master| out("master", master, 0.0, 4));
            [out("params", a.params, 2.0, 4)].into_iter().chain(master).collect()
        }
        Add { dst, .. } | Scale { dst, .. } => vec![out("dst", dst, 1.0, 1)],
        NormSquared { out: o, ref src } => vec![out("out", o, 0.0, src.iter().map(|t| t.len).sum())],
        Sum { out: o, src } => vec![out("out", o, 0.0, src.len)],
        Fill { dst, .. } => vec![out("dst", dst, 0.0, 1)],
    }
}

/// Replaces the values that a recording leaves without meaning.
fn with_values(call: Call) -> Call {
    match call {
        Call::AdamW(a) => {
            let step = adamw_step(a.params, a.m, a.v, a.grads);
            let (master, first) = (a.master, a.first);
            Call::AdamW(AdamW { master, first, weight_decay: 0.1, grad_scale: 0.5, ..step })
        }
        call => call,
    }
}

/// Returns the same random tokens every time.
fn random_tokens(len: usize, V: usize) -> Vec<i32> {
    let mut rng = Mt19937::new(7);
    (0..len).map(|_| (rng.randint32() as usize % V) as i32).collect()
}
