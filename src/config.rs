//! The shape of a model, and the short names (`d12`, `gpt3:c1536`) that stand for well-known
//! shapes.

use anyhow::{Result, bail, ensure};
use std::fmt;

/// GPT-2's vocabulary: 50,000 byte-pair merges, 256 bytes, one `<|endoftext|>`.
pub const GPT2_VOCAB: usize = 50257;

/// Multiple to which the rows of the embedding are padded, so that matmuls over the vocabulary have
/// no ragged edge.
pub const VOCAB_PADDING: usize = 128;

/// Whether a vocabulary of `V` tokens may be GPT-2's: as it is, or with the padding counted.
pub fn may_be_gpt2(V: usize) -> bool {
    (GPT2_VOCAB..=GPT2_VOCAB.next_multiple_of(VOCAB_PADDING)).contains(&V)
}

/// Largest dimension of a model other than its layers.
const MAX_DIM: usize = 1 << 20;

/// Most layers of a model: a hundred times those of GPT-3.
const MAX_LAYERS: usize = 10_000;

/// Most parameters of a model.
const MAX_PARAMS: u128 = 1 << 40;

/// Rows of logits to compute at a time, for N rows of which `most` fit into memory. There are as
/// few chunks as that allows, all of one length except the last: a multiple of 128 rows where there
/// is room, so that their matmuls have one shape and no ragged tiles.
///
/// # Panics
/// If `most` is 0.
pub fn logits_rows(N: usize, most: usize) -> usize {
    const TILE: usize = 128;
    let pieces = N.div_ceil(most).max(1);
    N.div_ceil(pieces).next_multiple_of(TILE).min(most).min(N)
}

/// The hyperparameters that determine every tensor's shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelConfig {
    /// Length of the longest sequence that the position embedding covers.
    pub maxT: usize,
    /// Vocabulary size.
    pub V: usize,
    /// Padded vocabulary size. Ids in `V..Vp` never occur, have no probability and are never
    /// sampled.
    pub Vp: usize,
    /// Number of transformer blocks.
    pub L: usize,
    /// Attention heads per block.
    pub NH: usize,
    /// Channels: the width of the residual stream.
    pub C: usize,
    /// Whether the fused query-key-value projection has a bias. Without one, `qkvb` stays zero.
    pub qkv_bias: bool,
    /// The adapters that are trained in place of the model's own parameters, if there are any.
    pub lora: Option<Lora>,
}

/// Low-rank adapters beside matrices of the blocks (LoRA: Hu et al. 2021). With A (r, C) and B (OC,
/// r) a matrix W (OC, C) acts as W + alpha / r B A.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lora {
    /// r, at least 1.
    pub rank: usize,
    pub alpha: f32,
    /// Whether `qkvw`, `attprojw`, `fcw` and `fcprojw` have adapters, in every layer.
    pub targets: [bool; 4],
}

impl Lora {
    /// Largest rank, beyond that of any matrix that is worth an adapter.
    pub const MAX_RANK: usize = 1 << 14;

    /// alpha / r, the factor on the product of the adapters.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// The rank in memory: kernels read rows of 16 bytes, so zeros fill up to a multiple of 8.
    /// Their gradients are zero, so they stay zero.
    pub fn padded_rank(&self) -> usize {
        self.rank.next_multiple_of(8)
    }
}

/// Rates of dropout in training, each at least 0 (none) and below 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DropoutRates {
    /// The rate for the sum of the embeddings: Hugging Face's `embd_pdrop`.
    pub embd: f32,
    /// The rate for attention weights: `attn_pdrop`.
    pub attn: f32,
    /// The rate for the outputs of attention and MLP, before they are added to the residual stream:
    /// `resid_pdrop`.
    pub resid: f32,
}

impl DropoutRates {
    pub const NONE: Self = DropoutRates { embd: 0.0, attn: 0.0, resid: 0.0 };

    /// The flags that set the rates, in the order of [`DropoutRates::all`].
    pub const FLAGS: [&str; 3] = ["--embd-dropout", "--attn-dropout", "--resid-dropout"];

    pub fn all(self) -> [f32; 3] {
        [self.embd, self.attn, self.resid]
    }

    pub fn from_all([embd, attn, resid]: [f32; 3]) -> Self {
        DropoutRates { embd, attn, resid }
    }

    /// Whether anything is dropped.
    pub fn any(self) -> bool {
        self != Self::NONE
    }
}

/// `embd 0.1, attn 0.1, resid 0.1`
impl fmt::Display for DropoutRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "embd {}, attn {}, resid {}", self.embd, self.attn, self.resid)
    }
}

/// Depth, channels and heads of the GPT-2 family.
const GPT2_SHAPES: [(usize, usize, usize); 8] = [
    (6, 384, 6),
    (12, 768, 12),
    (24, 1024, 16),
    (36, 1280, 20),
    (48, 1600, 25),
    (60, 1920, 30),
    (72, 2880, 30),
    (84, 3456, 36),
];

/// Depth, channels and heads of the GPT-3 family: table 2.1 of the paper, whose 13B row has a slip
/// (40 heads of 128 make 5120 channels, not 5140).
const GPT3_SHAPES: [(usize, usize, usize); 9] = [
    (6, 384, 6),
    (12, 768, 12),
    (24, 1024, 16),
    (24, 1536, 16),
    (24, 2048, 16),
    (32, 2560, 32),
    (32, 4096, 32),
    (40, 5120, 40),
    (96, 12288, 96),
];

impl fmt::Display for ModelConfig {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let ModelConfig { maxT, V, Vp, L, NH, C, qkv_bias, lora } = self;
        let bias = if *qkv_bias { "with" } else { "without" };
        write!(f, "maxT {maxT}, V {V}, Vp {Vp}, L {L}, NH {NH}, C {C}, {bias} a qkv bias")?;
        lora.map_or(Ok(()), |Lora { rank, alpha, targets }| {
            write!(f, ", adapters of rank {rank}, alpha {alpha}, beside {targets:?}")
        })
    }
}

impl ModelConfig {
    /// Returns a model over GPT-2's vocabulary.
    pub fn new(maxT: usize, L: usize, NH: usize, C: usize) -> Self {
        let Vp = GPT2_VOCAB.next_multiple_of(VOCAB_PADDING);
        ModelConfig { maxT, V: GPT2_VOCAB, Vp, L, NH, C, qkv_bias: true, lora: None }
    }

    /// Returns the model with another vocabulary.
    pub fn with_vocab(self, V: usize) -> Self {
        ModelConfig { V, Vp: V.next_multiple_of(VOCAB_PADDING), ..self }
    }

    /// Parses `d12`, `gpt2:d12` or `gpt3:c768`.
    ///
    /// # Errors
    /// If the name is not a known shape; the message lists them.
    pub fn from_descriptor(name: &str) -> Result<Self> {
        let bare = name.strip_prefix("gpt2:").unwrap_or(name);
        if let Some(depth) = bare.strip_prefix('d').and_then(|d| d.parse::<usize>().ok()) {
            if let Some(&(L, C, NH)) = GPT2_SHAPES.iter().find(|s| s.0 == depth) {
                return Ok(Self::new(1024, L, NH, C));
            }
            bail!(
                "model {name}: no GPT-2 shape has that depth; known are {}",
                list("d", GPT2_SHAPES.map(|s| s.0))
            );
        }
        if let Some(channels) = name.strip_prefix("gpt3:c").and_then(|c| c.parse::<usize>().ok()) {
            if let Some(&(L, C, NH)) = GPT3_SHAPES.iter().find(|s| s.1 == channels) {
                return Ok(Self::new(2048, L, NH, C));
            }
            bail!(
                "model {name}: no GPT-3 shape has that width; known are {}",
                list("gpt3:c", GPT3_SHAPES.map(|s| s.1))
            );
        }
        bail!("no file {name}, and no shape of that name, as d12, gpt2:d24 or gpt3:c768 are")
    }

    /// Returns the model that the adapters belong to, without them.
    pub fn without_lora(self) -> Self {
        ModelConfig { lora: None, ..self }
    }

    /// The rank in memory of the adapters of a target, by its index; 0 without any.
    pub fn lora_rank(&self, target: usize) -> usize {
        self.lora.filter(|lora| lora.targets[target]).map_or(0, |lora| lora.padded_rank())
    }

    /// Width of one attention head.
    pub fn HS(&self) -> usize {
        self.C / self.NH
    }

    /// Checks that the position embedding covers sequences of `T` tokens.
    ///
    /// # Errors
    /// One line that names the flag, `-t`.
    pub fn check_sequence_length(&self, T: usize) -> Result<()> {
        let maxT = self.maxT;
        ensure!(
            T <= maxT,
            "-t/--sequence-length: expected at most the {maxT} positions of the model, found {T}"
        );
        Ok(())
    }

    /// Checks that the activations of a batch of B sequences of T tokens can be counted in 64 bits.
    ///
    /// # Errors
    /// One line that names the flags.
    pub fn check_batch(&self, B: usize, T: usize) -> Result<()> {
        let values = [B, T, self.L, self.C].iter().map(|&factor| factor as u128).product::<u128>();
        ensure!(
            values <= MAX_PARAMS << 12,
            "-b {B} -t {T}: a batch takes more memory than any machine has; lower -b"
        );
        self.check_sequence_length(T)
    }

    /// Number of parameters, padding included. It may not fit 64 bits before [`Self::validate`].
    fn count_params(&self) -> u128 {
        let [maxT, Vp, L, C] = [self.maxT, self.Vp, self.L, self.C].map(|dim| dim as u128);
        L * (12 * C * C + 13 * C) + (Vp + maxT + 2) * C
    }

    /// Checks everything that kernels assume, and that sizes in bytes can be counted in 64 bits.
    ///
    /// # Errors
    /// One line that names the invalid dimension.
    pub fn validate(&self) -> Result<()> {
        let dims = [
            ("maxT", self.maxT, MAX_DIM),
            ("V", self.V, MAX_DIM),
            ("Vp", self.Vp, MAX_DIM),
            ("layers", self.L, MAX_LAYERS),
            ("heads", self.NH, MAX_DIM),
            ("channels", self.C, MAX_DIM),
        ];
        for (name, value, most) in dims {
            ensure!(value > 0, "model: {name} is 0; expected at least 1");
            ensure!(value <= most, "model: {name} is {value}; expected at most {most}");
        }
        let count = self.count_params();
        ensure!(count <= MAX_PARAMS, "model: {self}: has {count} parameters; expected at most {MAX_PARAMS}");
        ensure!(
            self.C.is_multiple_of(self.NH),
            "model: {} channels do not divide into {} heads; choose channels that are a multiple of heads",
            self.C,
            self.NH
        );
        ensure!(
            self.V <= self.Vp,
            "model: the vocabulary of {} is larger than its padded size {}",
            self.V,
            self.Vp
        );
        Ok(())
    }
}

fn list<const N: usize>(prefix: &str, values: [usize; N]) -> String {
    values.map(|v| format!("{prefix}{v}")).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamLayout;

    #[test]
    fn logits_come_in_equal_pieces_of_whole_tiles() {
        // GPT-2 124M at B = 64, with room for 1600 MiB.
        assert_eq!(logits_rows(65_536, 16_675), 16_384);
        for (N, most, rows) in [(5000, 2048, 1792), (4096, 16_384, 4096), (20_480, 16_384, 10_240)] {
            assert_eq!(logits_rows(N, most), rows);
        }
        // Tiles do not fit, or there are hardly any rows.
        for (N, most, rows) in [(300, 60, 60), (260, 130, 130), (1024, 1, 1), (1, 1, 1), (100, 500, 100)] {
            assert_eq!(logits_rows(N, most), rows);
        }
        for (N, most) in (1..3000).step_by(7).flat_map(|N| (1..700).step_by(13).map(move |most| (N, most))) {
            let rows = logits_rows(N, most);
            assert!(rows <= most && N.div_ceil(rows) == N.div_ceil(most), "{N} of {most}: {rows}");
            assert_eq!(logits_rows(N, rows), rows, "{N} of {most}");
        }
    }

    #[test]
    fn descriptors_give_the_published_sizes() {
        let count = |name: &str| ParamLayout::new(&ModelConfig::from_descriptor(name).unwrap()).len();
        assert_eq!(count("d12"), 124_475_904);
        assert_eq!(count("gpt2:d24"), 354_871_296);
        assert_eq!(count("d36"), 774_090_240);
        assert_eq!(count("d48"), 1_557_686_400);
        assert_eq!(ModelConfig::from_descriptor("gpt3:c768").unwrap().maxT, 2048);
    }

    #[test]
    fn absurd_shapes_are_refused_before_anything_is_planned() {
        for config in [ModelConfig::new(1024, 12, 12, 768), ModelConfig::new(7, 3, 2, 6)] {
            assert_eq!(config.count_params(), ParamLayout::new(&config).len() as u128);
        }
        let refusal = |L, C| ModelConfig::new(1024, L, 1, C).validate().unwrap_err().to_string();
        assert_eq!(refusal(1_000_000, 16), "model: layers is 1000000; expected at most 10000");
        assert!(refusal(10_000, 1 << 20).ends_with(" parameters; expected at most 1099511627776"));
        ModelConfig::new(1 << 20, MAX_LAYERS, 64, 1024).validate().unwrap();
        let deep = ModelConfig::new(1 << 20, MAX_LAYERS, 64, 1024);
        deep.check_batch(64, 1024).unwrap();
        assert!(
            deep.check_batch(1 << 20, 1 << 20)
                .unwrap_err()
                .to_string()
                .starts_with("-b 1048576 -t 1048576: ")
        );
    }

    #[test]
    fn every_known_shape_is_valid() {
        for (depth, ..) in GPT2_SHAPES {
            ModelConfig::from_descriptor(&format!("d{depth}")).unwrap().validate().unwrap();
        }
        for (_, channels, _) in GPT3_SHAPES {
            ModelConfig::from_descriptor(&format!("gpt3:c{channels}")).unwrap().validate().unwrap();
        }
    }

    #[test]
    fn unknown_shapes_are_refused_with_the_known_ones() {
        let message = ModelConfig::from_descriptor("d13").unwrap_err().to_string();
        assert!(message.contains("d13") && message.contains("d12"), "{message}");
        assert!(ModelConfig::from_descriptor("gpt3:c5140").unwrap_err().to_string().contains("c5120"));
        assert!(ModelConfig::from_descriptor("large").is_err());
        let odd = ModelConfig { NH: 5, ..ModelConfig::new(64, 2, 4, 64) };
        assert!(odd.validate().unwrap_err().to_string().contains("5 heads"));
    }
}
