//! The flags of `warpsmith serve`.

use super::NumberArgs;
use crate::cli::values;
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::net::IpAddr;
use std::path::PathBuf;

/// The variable of the environment that has the key, where processes of other users do not see it.
const KEY_VARIABLE: &str = "WARPSMITH_API_KEY";

#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Model: a .bin, .safetensors or .gguf file, the directory of a run, or one of the hub, such
    /// as gpt2 or OWNER/NAME
    #[arg(short = 'e', long, value_name = "PATH")]
    pub model: PathBuf,
    /// Adapters of LoRA to merge into the model that they belong to: a folder of PEFT, or the
    /// adapter_STEP of a run
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// Name of the model in requests [default: -e]
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    pub served_model_name: Option<String>,
    /// JSON file with the text around the turns of a conversation, as `warpsmith sft` takes it;
    /// without it, /v1/chat/completions is refused
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
    /// Address to listen at: localhost or an IP address; 0.0.0.0 = all of this machine
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", value_parser = values::address)]
    pub host: IpAddr,
    /// Port to listen at (0 = any free one)
    #[arg(long, value_name = "PORT", default_value = "8000")]
    pub port: u16,
    /// Key that requests must have, as OpenAI's: Authorization: Bearer KEY; needed unless --host is
    /// this machine alone [default: that of WARPSMITH_API_KEY]
    #[arg(long, value_name = "KEY", value_parser = values::name)]
    pub api_key: Option<String>,
    /// Sequences that are decoded at the same time; each has a key-value cache of its own
    #[arg(long, value_name = "N", default_value = "8", value_parser = values::slots)]
    pub slots: usize,
    /// Sequences that may wait for a slot; beyond them, requests get status 429
    #[arg(long, value_name = "N", default_value = "256", value_parser = values::queue)]
    pub queue: usize,
    #[command(flatten)]
    pub numbers: NumberArgs,
}

impl ServeArgs {
    /// The key of the flag, or of the environment.
    ///
    /// # Errors
    /// If it is missing or cannot be sent in a header.
    pub fn key(&self) -> Result<Option<String>> {
        let (key, source) = match &self.api_key {
            Some(key) => (Some(key.clone()), "--api-key"),
            None => (variable()?, KEY_VARIABLE),
        };
        if let Some(key) = &key {
            let sendable = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
            ensure!(sendable, "{source}: expected letters, digits and signs of ASCII, without spaces");
        }
        ensure!(
            key.is_some() || self.host.is_loopback(),
            "--host {}: other machines reach it, so it needs a key; give {KEY_VARIABLE} or --api-key",
            self.host
        );
        Ok(key)
    }

    pub(super) fn check(&self) -> Result<()> {
        self.numbers.check()?;
        self.key().map(drop)
    }
}

fn variable() -> Result<Option<String>> {
    let value = std::env::var_os(KEY_VARIABLE).filter(|value| !value.is_empty());
    let text = |value: std::ffi::OsString| value.into_string().ok().context("expected ASCII");
    value.map(text).transpose().context(KEY_VARIABLE)
}
