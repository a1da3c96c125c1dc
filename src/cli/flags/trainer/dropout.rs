//! The flags of dropout.

use crate::cli::values;
use crate::config::DropoutRates;
use clap::Args;

/// Dropout in training. Evaluation and samples have none.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Dropout")]
pub struct DropoutFlags {
    /// Rate of all three dropouts [default: those of the checkpoint or config.json of -e, else 0]
    #[arg(id = "dropout", long = "dropout", value_name = "P", value_parser = values::decay)]
    pub dropout: Option<f32>,
    /// Rate of dropout of the embeddings, embd_pdrop in a config.json [default: --dropout]
    #[arg(id = "embd_dropout", long = "embd-dropout", value_name = "P", value_parser = values::decay)]
    pub embd_dropout: Option<f32>,
    /// Rate of dropout of attention weights, attn_pdrop [default: --dropout]
    #[arg(id = "attn_dropout", long = "attn-dropout", value_name = "P", value_parser = values::decay)]
    pub attn_dropout: Option<f32>,
    /// Rate of dropout of what attention and MLP add to the residual stream, resid_pdrop [default:
    /// --dropout]
    #[arg(id = "resid_dropout", long = "resid-dropout", value_name = "P", value_parser = values::decay)]
    pub resid_dropout: Option<f32>,
}

impl DropoutFlags {
    /// The rates of a run whose model comes with those of `model`.
    pub fn rates(&self, model: DropoutRates) -> DropoutRates {
        let own = [self.embd_dropout, self.attn_dropout, self.resid_dropout];
        let [embd, attn, resid] = own.map(|rate| rate.or(self.dropout));
        DropoutRates {
            embd: embd.unwrap_or(model.embd),
            attn: attn.unwrap_or(model.attn),
            resid: resid.unwrap_or(model.resid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_of_its_own_counts_more_than_that_of_all_and_both_more_than_the_model() {
        let model = DropoutRates { embd: 0.1, attn: 0.2, resid: 0.3 };
        let none =
            DropoutFlags { dropout: None, embd_dropout: None, attn_dropout: None, resid_dropout: None };
        assert_eq!(none.rates(model), model);
        let one = DropoutFlags { attn_dropout: Some(0.0), ..none.clone() };
        assert_eq!(one.rates(model), DropoutRates { attn: 0.0, ..model });
        let all = DropoutFlags { dropout: Some(0.5), resid_dropout: Some(0.25), ..none };
        assert_eq!(all.rates(model), DropoutRates { embd: 0.5, attn: 0.5, resid: 0.25 });
    }
}
