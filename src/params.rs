//! The sixteen parameter tensors of GPT-2, and the eight of its adapters: one table that drives
//! allocation, initialization, weight decay, checkpoints, tests and error messages.

pub mod frozen;
pub mod lora;
pub mod select;

use crate::config::ModelConfig;
use frozen::Frozen;

/// A parameter tensor, in the order of llm.c's checkpoint files; the adapters of LoRA follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    Wte,
    Wpe,
    Ln1w,
    Ln1b,
    Qkvw,
    Qkvb,
    Attprojw,
    Attprojb,
    Ln2w,
    Ln2b,
    Fcw,
    Fcb,
    Fcprojw,
    Fcprojb,
    Lnfw,
    Lnfb,
    QkvwA,
    QkvwB,
    AttprojwA,
    AttprojwB,
    FcwA,
    FcwB,
    FcprojwA,
    FcprojwB,
}

/// Initial values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// N(0, 0.02)
    Normal,
    /// N(0, 0.02 / sqrt(2 L)): the projections that add to the residual stream, 2 L of them.
    ResidualNormal,
    /// U(-1 / sqrt(in), 1 / sqrt(in)), as PEFT draws `lora_A`.
    Uniform,
    Zero,
    One,
}

/// The properties of a parameter tensor that hold for every model.
pub struct ParamSpec {
    pub param: Param,
    /// llm.c's name for it.
    pub name: &'static str,
    /// Hugging Face's name for it, with `{l}` for the layer number.
    pub hf_name: &'static str,
    /// Whether each of the L layers has one.
    pub per_layer: bool,
    /// Rows and columns (out, in) of one layer's tensor; a vector has one row.
    pub shape: fn(&ModelConfig) -> (usize, usize),
    /// Whether it is a matrix. Only matrices decay.
    pub is_matrix: bool,
    pub init: Init,
}

const fn matrix(
    param: Param,
    name: &'static str,
    hf_name: &'static str,
    per_layer: bool,
    init: Init,
    shape: fn(&ModelConfig) -> (usize, usize),
) -> ParamSpec {
    ParamSpec { param, name, hf_name, per_layer, shape, is_matrix: true, init }
}

const fn vector(
    param: Param,
    name: &'static str,
    hf_name: &'static str,
    per_layer: bool,
    init: Init,
    shape: fn(&ModelConfig) -> (usize, usize),
) -> ParamSpec {
    ParamSpec { param, name, hf_name, per_layer, shape, is_matrix: false, init }
}

/// The model's own sixteen, indexed by [`Param`].
#[rustfmt::skip]
pub const PARAMS: [ParamSpec; 16] = {
    use Init::*;
    use Param::*;
    [
        matrix(Wte,      "wte",      "wte.weight",                  false, Normal,         |c| (c.Vp, c.C)),
        matrix(Wpe,      "wpe",      "wpe.weight",                  false, Normal,         |c| (c.maxT, c.C)),
        vector(Ln1w,     "ln1w",     "h.{l}.ln_1.weight",           true,  One,            |c| (1, c.C)),
        vector(Ln1b,     "ln1b",     "h.{l}.ln_1.bias",             true,  Zero,           |c| (1, c.C)),
        matrix(Qkvw,     "qkvw",     "h.{l}.attn.c_attn.weight",    true,  Normal,         |c| (3 * c.C, c.C)),
        vector(Qkvb,     "qkvb",     "h.{l}.attn.c_attn.bias",      true,  Zero,           |c| (1, 3 * c.C)),
        matrix(Attprojw, "attprojw", "h.{l}.attn.c_proj.weight",    true,  ResidualNormal, |c| (c.C, c.C)),
        vector(Attprojb, "attprojb", "h.{l}.attn.c_proj.bias",      true,  Zero,           |c| (1, c.C)),
        vector(Ln2w,     "ln2w",     "h.{l}.ln_2.weight",           true,  One,            |c| (1, c.C)),
        vector(Ln2b,     "ln2b",     "h.{l}.ln_2.bias",             true,  Zero,           |c| (1, c.C)),
        matrix(Fcw,      "fcw",      "h.{l}.mlp.c_fc.weight",       true,  Normal,         |c| (4 * c.C, c.C)),
        vector(Fcb,      "fcb",      "h.{l}.mlp.c_fc.bias",         true,  Zero,           |c| (1, 4 * c.C)),
        matrix(Fcprojw,  "fcprojw",  "h.{l}.mlp.c_proj.weight",     true,  ResidualNormal, |c| (c.C, 4 * c.C)),
        vector(Fcprojb,  "fcprojb",  "h.{l}.mlp.c_proj.bias",       true,  Zero,           |c| (1, c.C)),
        vector(Lnfw,     "lnfw",     "ln_f.weight",                 false, One,            |c| (1, c.C)),
        vector(Lnfb,     "lnfb",     "ln_f.bias",                   false, Zero,           |c| (1, c.C)),
    ]
};

/// A and B of each target of LoRA, which continue [`PARAMS`]: empty where there is no adapter.
#[rustfmt::skip]
pub const ADAPTERS: [ParamSpec; 8] = {
    use Init::*;
    use Param::*;
    [
        matrix(QkvwA,     "qkvw.lora_A",     "h.{l}.attn.c_attn.lora_A.weight", true, Uniform, |c| (c.lora_rank(0), c.C)),
        matrix(QkvwB,     "qkvw.lora_B",     "h.{l}.attn.c_attn.lora_B.weight", true, Zero,    |c| (3 * c.C, c.lora_rank(0))),
        matrix(AttprojwA, "attprojw.lora_A", "h.{l}.attn.c_proj.lora_A.weight", true, Uniform, |c| (c.lora_rank(1), c.C)),
        matrix(AttprojwB, "attprojw.lora_B", "h.{l}.attn.c_proj.lora_B.weight", true, Zero,    |c| (c.C, c.lora_rank(1))),
        matrix(FcwA,      "fcw.lora_A",      "h.{l}.mlp.c_fc.lora_A.weight",    true, Uniform, |c| (c.lora_rank(2), c.C)),
        matrix(FcwB,      "fcw.lora_B",      "h.{l}.mlp.c_fc.lora_B.weight",    true, Zero,    |c| (4 * c.C, c.lora_rank(2))),
        matrix(FcprojwA,  "fcprojw.lora_A",  "h.{l}.mlp.c_proj.lora_A.weight",  true, Uniform, |c| (c.lora_rank(3), 4 * c.C)),
        matrix(FcprojwB,  "fcprojw.lora_B",  "h.{l}.mlp.c_proj.lora_B.weight",  true, Zero,    |c| (c.C, c.lora_rank(3))),
    ]
};

/// The parameters that a model has, in the order of [`ParamLayout`]: its own, then its adapters.
pub fn all(config: &ModelConfig) -> impl Iterator<Item = &'static ParamSpec> + use<> {
    let config = *config;
    let own = const { &PARAMS }.iter();
    own.chain(const { &ADAPTERS }.iter().filter(move |spec| spec.len_per_layer(&config) > 0))
}

impl Param {
    pub fn spec(self) -> &'static ParamSpec {
        let at = self as usize;
        let spec = const { &PARAMS }.get(at).or_else(|| const { &ADAPTERS }.get(at - PARAMS.len()));
        spec.expect("the tables have a row for each Param")
    }
}

impl ParamSpec {
    /// Number of layers that have this tensor: L, or 1.
    pub fn layers(&self, config: &ModelConfig) -> usize {
        if self.per_layer { config.L } else { 1 }
    }

    /// Whether it is one of the model's own matrices of the transformer blocks: all but the
    /// embeddings.
    pub fn is_block_matrix(&self) -> bool {
        self.is_matrix && self.per_layer && !self.is_adapter()
    }

    /// Whether it is an A or a B of LoRA.
    pub fn is_adapter(&self) -> bool {
        self.param as usize >= PARAMS.len()
    }

    /// Elements of one layer's tensor.
    pub fn len_per_layer(&self, config: &ModelConfig) -> usize {
        let (rows, columns) = (self.shape)(config);
        rows * columns
    }

    /// The same without the padding of an adapter's rank, as users count.
    pub fn count_per_layer(&self, config: &ModelConfig) -> usize {
        let len = self.len_per_layer(config);
        let lora = config.lora.filter(|_| self.is_adapter());
        lora.map_or(len, |lora| len / lora.padded_rank() * lora.rank)
    }
}

/// The place of each parameter in a file: llm.c's order, all layers of a tensor together, then the
/// adapters, which are in files of their own. Gradients, moments and master weights have the same
/// layout. On a device they are ordered by [units](crate::sharding).
#[derive(Clone, Debug)]
pub struct ParamLayout {
    config: ModelConfig,
    offsets: [usize; PARAMS.len() + ADAPTERS.len() + 1],
}

impl ParamLayout {
    pub fn new(config: &ModelConfig) -> Self {
        let mut offsets = [0; PARAMS.len() + ADAPTERS.len() + 1];
        for (i, spec) in PARAMS.iter().chain(&ADAPTERS).enumerate() {
            offsets[i + 1] = offsets[i] + spec.layers(config) * spec.len_per_layer(config);
        }
        ParamLayout { config: *config, offsets }
    }

    /// Number of parameters, padding included.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.offsets[PARAMS.len() + ADAPTERS.len()]
    }

    /// The range of all adapters, which follow the model's own parameters.
    pub fn adapters(&self) -> std::ops::Range<usize> {
        self.offsets[PARAMS.len()]..self.len()
    }

    /// The range of `param`, all layers of it, among all elements.
    pub fn range(&self, param: Param) -> std::ops::Range<usize> {
        self.offsets[param as usize]..self.offsets[param as usize + 1]
    }

    /// Numbers of elements and tensors that decay, then of those that do not, counted as in
    /// PyTorch: one tensor per layer, the padding of the vocabulary included, that of a rank not.
    /// Frozen ones are in neither group.
    pub fn decay_groups(&self, frozen: &Frozen) -> [(usize, usize); 2] {
        let mut groups = [(0, 0); 2];
        for spec in all(&self.config) {
            if spec.param == Param::Qkvb && !self.config.qkv_bias {
                continue;
            }
            let group = &mut groups[usize::from(!spec.is_matrix)];
            let layers = frozen.trained_layers(spec, &self.config).len();
            group.0 += layers * spec.count_per_layer(&self.config);
            group.1 += layers;
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, spec) in PARAMS.iter().chain(&ADAPTERS).enumerate() {
            assert_eq!(spec.param as usize, i, "{}", spec.name);
            assert_eq!(spec.param.spec().name, spec.name);
        }
    }

    #[test]
    fn decay_groups_of_gpt2_are_the_known_ones() {
        let groups = ParamLayout::new(&ModelConfig::from_descriptor("d12").unwrap());
        let groups = groups.decay_groups(&Frozen::default());
        assert_eq!(groups, [(124_354_560, 50), (121_344, 98)]);
    }
}
