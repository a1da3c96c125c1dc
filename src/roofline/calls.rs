//! The kernels of recorded calls: names, FLOPs and bytes, from the arguments of each call.

use super::kernels::{Class, Kernel, StepShape, Tail, Work};
use super::recording::Recording;
use crate::config::ModelConfig;
use crate::model::Weights;
use crate::ops::{AttentionDims, Call, Epilogue, Kept, MatmulBackward, MatmulForward, NewtonSchulz};
use crate::params::Param;
use crate::recorder::Event;
use crate::sharding::ZeroStage;
use crate::tensor::Tensor;
use crate::trace::bytes;

/// The names and classes of a matmul's three kernels, by its weight.
const MATMULS: [(Param, [&str; 3], [Class; 3]); 5] = [
    (Param::Wte, ["head forward", "head dgrad", "head wgrad"], HEAD),
    (Param::Qkvw, ["qkv forward", "qkv dgrad", "qkv wgrad"], BLOCK),
    (Param::Attprojw, ["attproj forward", "attproj dgrad", "attproj wgrad"], BLOCK),
    (Param::Fcw, ["fc forward", "fc dgrad", "fc wgrad"], BLOCK),
    (Param::Fcprojw, ["fcproj forward", "fcproj dgrad", "fcproj wgrad"], BLOCK),
];
const HEAD: [Class; 3] = [Class::HeadForward, Class::HeadDgrad, Class::HeadWgrad];
const BLOCK: [Class; 3] = [Class::BlockForward, Class::BlockDgrad, Class::BlockWgrad];

/// AdamW updates unit by unit; a step has one row for all of them.
const ADAMW: &str = "adamw";

/// Lists all kernels of a step on one GPU, in the order in which they first run. Kernels of the
/// same name and shape share a row: bytes are their mean, as the first micro-step overwrites the
/// gradients that others also read.
pub fn step(config: &ModelConfig, shape: &StepShape) -> Vec<Kernel> {
    let mut rows: Vec<Kernel> = Vec::new();
    let mut recording = Recording::new(config, shape, ZeroStage::Zero0, 1);
    let mut kernels = Kernels::new(recording.weights());
    recording.step(|event| {
        for kernel in kernels.of(&event) {
            match rows.iter_mut().find(|row| row.name == kernel.name && row.shape == kernel.shape) {
                Some(row) => {
                    row.calls += 1;
                    row.bytes += kernel.bytes;
                }
                None => rows.push(kernel),
            }
        }
    });
    rows.iter_mut().for_each(|row| row.bytes /= row.calls as f64);
    merge_updates(&mut rows);
    rows
}

fn merge_updates(rows: &mut Vec<Kernel>) {
    let updates: Vec<Kernel> = rows.extract_if(.., |row| row.name == ADAMW).collect();
    let Some(first) = updates.first() else { return };
    let len: usize =
        updates.iter().map(|row| row.calls * row.shape.parse::<usize>().expect("a length")).sum();
    let launches = updates.iter().map(|row| row.calls).sum();
    let bytes = updates.iter().map(|row| row.calls as f64 * row.bytes).sum();
    let Work::Stream { share, .. } = first.work else { unreachable!("AdamW streams") };
    let work = Work::Stream { rows: 1, columns: len, share };
    rows.push(Kernel { shape: shape(&[len]), work, calls: 1, launches, bytes, ..first.clone() });
}

/// The kernels of recorded events.
pub struct Kernels {
    weights: Weights,
    /// Whether losses have been computed since the last embedding: then a layernorm is repeated.
    backward: bool,
}

impl Kernels {
    /// `weights` are those of the recorded model: matmuls are named by them.
    pub fn new(weights: &Weights) -> Self {
        Kernels { weights: weights.clone(), backward: false }
    }

    /// Returns the kernels that an event launches, one call each.
    ///
    /// Fused operations have no kernel: bias, GELU and residual are in matmul epilogues, the
    /// gradient of GELU is in that of fcproj's input gradient, bias gradients are in the weight
    /// gradients' pass over `dout`, and the row sums of attention's backward pass are in that pass.
    pub fn of(&mut self, event: &Event) -> Vec<Kernel> {
        match event {
            Event::Call(call) => self.of_call(call),
            Event::Copy { dst, src } => {
                vec![other("copy", dst.len, (dst.size_bytes() + src.size_bytes()) as f64)]
            }
            _ => Vec::new(),
        }
    }

    fn of_call(&mut self, call: &Call) -> Vec<Kernel> {
        let bytes = bytes(call);
        let one = |name, dims: &[usize], class, share| vec![stream(name, dims, class, share, bytes)];
        match *call {
            Call::MatmulForward(a) => vec![self.matmul_forward(&a, bytes)],
            Call::MatmulBackward(a) => self.matmul_backward(&a),
            Call::MatmulResidualLayernorm { matmul, norm, .. } => {
                let mut kernels = self.of_call(&Call::MatmulForward(matmul));
                kernels.extend(self.of_call(&Call::LayernormForward(norm)));
                kernels
            }
            Call::AttentionForward(a) => vec![attention(a.dims, false, bytes)],
            Call::AttentionBackward(a) => vec![attention(a.dims, true, bytes)],
            Call::DropoutBackward { dinp, C, .. } => {
                one("dropout backward", &[dinp.len / C, C], Class::Other, 0.9)
            }
            Call::AttentionDecode { dims: d, .. } => {
                one("attention decode", &[d.B, d.NH, d.T, d.HS], Class::AttentionForward, 0.9)
            }
            Call::LayernormForward(a) if self.backward => {
                one("layernorm again", &[a.N, a.C], Class::Recompute, 0.93)
            }
            Call::LayernormForward(a) => one("layernorm forward", &[a.N, a.C], Class::LayernormForward, 0.93),
            // The layernorm before the head starts the gradient of the residual stream, to which
            // the others add.
            Call::LayernormBackward(a) => {
                let name = if a.overwrite_dinp { "layernorm backward, first" } else { "layernorm backward" };
                one(name, &[a.N, a.C], Class::LayernormBackward, 0.86)
            }
            Call::Classifier(a) => {
                self.backward = a.dloss.is_some();
                let name = if self.backward { "classifier" } else { "classifier losses" };
                one(name, &[a.N, a.Vp], Class::Classifier, 0.905)
            }
            // Measured on an H100: a gather of whole rows is as fast as a copy, a scatter less than
            // half as fast.
            Call::EncoderForward(a) => {
                self.backward = false;
                one("encoder forward", &[a.B * a.T, a.C], Class::Embedding, 0.93)
            }
            Call::EncoderBackward(a) => {
                let kernel = stream("encoder backward", &[a.B * a.T, a.C], Class::Embedding, 0.4, bytes);
                let launches = [a.dwte, a.dwpe].into_iter().flatten().count();
                vec![Kernel { launches, ..kernel }]
            }
            Call::GeluRecompute { out, .. } => {
                let C = 4 * self.weights.config.C;
                one("gelu recompute", &[out.len / C, C], Class::Recompute, 0.93)
            }
            Call::NormSquared { ref src, .. } => {
                let len = src.iter().map(|piece| piece.len).sum();
                let kernel = stream("norm", &[len], Class::Optimizer, 0.9, bytes);
                vec![Kernel { launches: src.len() + 1, ..kernel }]
            }
            Call::AdamW(a) => one(ADAMW, &[a.params.len], Class::Optimizer, 0.86),
            Call::MuonMomentum(a) => one("muon momentum", &[a.grads.len], Class::Optimizer, 0.9),
            Call::NewtonSchulz(a) => newton_schulz(&a),
            Call::MuonStep(a) => one("muon step", &[a.params.len], Class::Optimizer, 0.9),
            Call::Sum { src, .. } => vec![Kernel { launches: 2, ..other("sum", src.len, bytes) }],
            Call::Add { dst, .. } => vec![other("add", dst.len, bytes)],
            Call::Scale { dst, .. } => vec![other("scale", dst.len, bytes)],
            Call::Fill { dst, .. } => vec![other("fill", dst.len, bytes)],
        }
    }

    /// The three kernels of the matmul with this weight.
    fn matmul(&self, weight: Tensor) -> [(&'static str, Class); 3] {
        let param = self.weights.params.param_at(weight);
        let found = MATMULS.into_iter().find(|(of, ..)| Some(*of) == param);
        let (_, names, classes) = found.expect("a weight of the recorded model");
        [0, 1, 2].map(|i| (names[i], classes[i]))
    }

    fn matmul_forward(&self, a: &MatmulForward, bytes: f64) -> Kernel {
        let [forward, ..] = self.matmul(a.weight);
        let tail = match a.epilogue {
            Epilogue::None => Tail::Plain,
            Epilogue::Bias { .. } => Tail::Bias,
            Epilogue::BiasGelu { kept: Kept::Input(_), .. } => Tail::Gelu,
            Epilogue::BiasGelu { kept: Kept::Gradient(_), .. } => Tail::GeluAndGradient,
            Epilogue::BiasResidual { .. } => Tail::Residual,
        };
        matmul(forward, (a.N, a.OC, a.C), tail, bytes)
    }

    /// `dgrad` and `wgrad` both read `dout`.
    fn matmul_backward(&self, a: &MatmulBackward) -> Vec<Kernel> {
        let [_, dgrad, wgrad] = self.matmul(a.weight);
        let tail = if a.gelu_gradient.is_some() { Tail::GeluBackward } else { Tail::Plain };
        let dinp_bytes = size(a.dout) + size(a.weight) + size(a.dinp) + a.gelu_gradient.map_or(0.0, size);
        let mut kernels = vec![matmul(dgrad, (a.N, a.C, a.OC), tail, dinp_bytes)];
        kernels.extend(a.dweight.map(|dweight| {
            let dweight = size(dweight) * if a.overwrite_dweight { 1.0 } else { 2.0 };
            let bytes = size(a.dout) + size(a.inp) + dweight + 2.0 * a.dbias.map_or(0.0, size);
            matmul(wgrad, (a.OC, a.C, a.N), Tail::Accumulate, bytes)
        }));
        kernels
    }
}

fn size(tensor: Tensor) -> f64 {
    tensor.size_bytes() as f64
}

/// (m, k) times (k, n).
fn matmul(
    (name, class): (&'static str, Class),
    (m, n, k): (usize, usize, usize),
    tail: Tail,
    bytes: f64,
) -> Kernel {
    let flops = 2.0 * m as f64 * n as f64 * k as f64;
    let work = Work::Matmul { m, n, k, tail };
    Kernel { name, shape: shape(&[m, n, k]), class, work, calls: 1, launches: 1, flops, bytes }
}

/// The norm, and in each iteration three products and a polynomial.
fn newton_schulz(a: &NewtonSchulz) -> Vec<Kernel> {
    let (m, n) = (a.size(), a.rows.max(a.columns));
    let [x, square] = [m * n, m * m].map(|len| (len * a.x.dtype.size()) as f64);
    let product = |name, dims, bytes| matmul((name, Class::Optimizer), dims, Tail::Plain, bytes);
    // As the device multiplies: by the passes of a matmul.
    let [gram, apply] = match a.is_tall() {
        true => ["muon gram wgrad", "muon product forward"],
        false => ["muon gram forward", "muon product dgrad"],
    };
    let pass = |name, len: usize, bytes| stream(name, &[len], Class::Optimizer, 0.9, bytes);
    let iteration = [
        product(gram, (m, m, n), x + square),
        product("muon square forward", (m, m, m), 2.0 * square),
        pass("muon polynomial", m * m, 3.0 * square),
        product(apply, (a.rows, a.columns, m), 2.0 * x + square),
    ];
    let normalize = Kernel { launches: 3, ..pass("muon normalize", m * n, 3.0 * x) };
    let iterations = std::iter::repeat_n(iteration, NewtonSchulz::STEPS).flatten();
    [normalize].into_iter().chain(iterations).collect()
}

/// Two matmuls of T x T x HS per head forward and five backward, half of each masked.
fn attention(dims: AttentionDims, backward: bool, bytes: f64) -> Kernel {
    let AttentionDims { B, T, NH, HS } = dims;
    let (name, class, launches, matmuls) = match backward {
        false => ("attention forward", Class::AttentionForward, 1, 2.0),
        true => ("attention backward", Class::AttentionBackward, 2, 5.0),
    };
    let flops = matmuls * (B * NH * T * HS) as f64 * T as f64;
    let work = Work::Attention { B, NH, T, HS, backward };
    Kernel { name, shape: shape(&[B, NH, T, HS]), class, work, calls: 1, launches, flops, bytes }
}

fn other(name: &'static str, len: usize, bytes: f64) -> Kernel {
    stream(name, &[len], Class::Other, 0.9, bytes)
}

fn stream(name: &'static str, dims: &[usize], class: Class, share: f64, bytes: f64) -> Kernel {
    let (columns, rows) = dims.split_last().expect("a length");
    let work = Work::Stream { rows: rows.iter().product(), columns: *columns, share };
    Kernel { name, shape: shape(dims), class, work, calls: 1, launches: 1, flops: 0.0, bytes }
}

fn shape(dims: &[usize]) -> String {
    dims.iter().map(|d| d.to_string()).collect::<Vec<_>>().join("x")
}
