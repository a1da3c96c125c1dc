//! The tokenizer of a run: that of its shards, which the model must have been trained with.

use super::data::explain;
use super::setup::Start;
use crate::cli::flags::trainer::TrainArgs;
use crate::config::{ModelConfig, may_be_gpt2};
use crate::data::loader::DataLoader;
use crate::data::tokenizer::{FILE_NAME, Tokenizer, TokenizerId};
use crate::files;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// The tokenizer of a run.
pub struct RunTokenizer {
    /// The tokenizer that the shards name.
    pub id: TokenizerId,
    /// The folder of the shards.
    shards: PathBuf,
    /// The tokenizer itself. Training alone does not need it.
    found: Option<Tokenizer>,
}

impl RunTokenizer {
    /// Looks at the first shard of the training data.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn of_shards(args: &TrainArgs) -> Result<Self> {
        let flag = args.train_data_flag();
        let files = &args.files;
        let pattern = if args.batch.overfit_single_batch { &files.input_val_bin } else { &files.input_bin };
        let first = DataLoader::first_shard(pattern, flag);
        let (path, id) = first.map_err(|error| explain(error, args, pattern))?;
        let shards = files::directory(&path).to_owned();
        Ok(RunTokenizer { id, shards, found: None })
    }

    /// GPT-2's, for a run whose shards do not exist yet.
    pub fn assumed() -> Self {
        RunTokenizer { id: TokenizerId::GPT2, shards: PathBuf::new(), found: Some(Tokenizer::gpt2()) }
    }

    /// Finds the tokenizer, and compares it with that of the model.
    ///
    /// # Errors
    /// One line that names both, if they are different.
    pub(super) fn find(&mut self, start: &Start, args: &TrainArgs) -> Result<()> {
        let config = start.config();
        match start.tokenizer(args)? {
            Some(model) => {
                model.ensure_is(self.id, args.train_data_flag())?;
                self.found = Some(model);
            }
            None => self.check_without_file(start, &config, args)?,
        }
        if self.id == TokenizerId::GPT2 {
            // Training alone does not need it, and its tables take memory.
            let used = args.eval.sample_every > 0 || args.asks_questions();
            self.found = used.then(Tokenizer::gpt2);
        } else if self.found.is_none()
            && let Some(tokenizer) = Tokenizer::find_in(&self.shards)?
        {
            let path = self.shards.join(FILE_NAME);
            let (found, expected) = (tokenizer.id(), self.id);
            ensure!(
                found.agrees(&expected),
                "{}: the tokenizer {found}, beside shards of {expected}; put the right one there",
                path.display()
            );
            self.found = Some(tokenizer);
        }
        Ok(())
    }

    /// Compares the shards with a model that has no tokenizer beside it. GPT-2's vocabulary stands
    /// for GPT-2's tokenizer, padded or not.
    fn check_without_file(&self, start: &Start, config: &ModelConfig, args: &TrainArgs) -> Result<()> {
        let V = config.V;
        let is_new = matches!(start, Start::Random(_));
        let is_like_gpt2 = may_be_gpt2(V);
        // Shards of others do not name their tokenizer, so that any model may go with them.
        ensure!(
            is_new || self.id == TokenizerId::GPT2 || !is_like_gpt2 && self.id.vocab_size as usize <= V,
            "{}: tokens of the tokenizer {}, and the model's is {} of {V} tokens; put the model's {FILE_NAME} beside \
             it, or prepare the text with the model's tokenizer",
            args.train_data_flag(),
            self.id,
            if is_like_gpt2 { "gpt2" } else { "unknown" }
        );
        Ok(())
    }

    /// The tokenizer, for what a flag asks.
    ///
    /// # Errors
    /// One line that names the flag, if it has not been found.
    pub fn needed_for(&self, flag: &str, instead: &str) -> Result<&Tokenizer> {
        self.found.as_ref().with_context(|| {
            format!(
                "{flag}: needs the tokenizer of the shards ({}); put its {FILE_NAME} into {}, or use {instead}",
                self.id,
                self.shards.display()
            )
        })
    }

    /// Puts the tokenizer into the directory of a run, unless it is built in or there already.
    ///
    /// # Errors
    /// If another one is there, or it cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let before = Tokenizer::find_in(dir)?;
        if let Some(before) = before {
            let path = dir.join(FILE_NAME);
            ensure!(
                before.id().agrees(&self.id),
                "-o: {} is the tokenizer {} of another run, and that of the data is {}; choose another directory",
                path.display(),
                before.id(),
                self.id
            );
            return Ok(());
        }
        match self.found.as_ref().filter(|tokenizer| !tokenizer.is_gpt2()) {
            Some(tokenizer) => tokenizer.write_json(dir).map(drop),
            None => Ok(()),
        }
    }
}
