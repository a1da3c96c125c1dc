//! `warpsmith serve`: a model behind OpenAI's API.

use super::model::{Loaded, load};
use super::{note, print};
use crate::cli::flags::warpsmith::ServeArgs;
use crate::data::sft;
use crate::http::Server;
use crate::model::Weights;
use crate::model::decode::BatchDecoder;
use crate::params::frozen::Frozen;
use crate::serve::engine::Engine;
use crate::serve::request::Model;
use crate::serve::{Options, serve as run};
use crate::sharding::Sharding;
use anyhow::{Result, ensure};

pub fn serve(args: &ServeArgs) -> Result<()> {
    let key = args.key()?;
    let template = args.template.as_deref().map(sft::template).transpose()?;
    ensure!(
        template.as_ref().is_none_or(sft::Template::has_messages),
        "--template: expected a field \"messages\", which has the turns of a conversation, found none"
    );
    // A port in use is said at once, and not after a long read.
    let server = Server::listen(args.host, args.port)?;
    let (file, tokenizer) = load(&args.model, args.adapter.as_deref(), &args.numbers)?;
    let tokenizer = tokenizer.known()?.clone();
    let config = file.config;
    let Loaded { dev, model: decoder } = Loaded::open(&args.numbers, file, |dtype, plan| {
        let weights = Weights::plan(&config, dtype, Sharding::NONE, &Frozen::default(), plan);
        let decoder = BatchDecoder::plan(&weights, config.maxT, args.slots, plan);
        let limits = vec![decoder.limits()];
        (decoder, weights, limits)
    })?;
    let name = args.served_model_name.clone().unwrap_or_else(|| args.model.display().to_string());
    let url = server.url()?;
    let bearer = key.as_ref().map_or("", |_| " -H 'Authorization: Bearer KEY'");
    let body = serde_json::json!({ "model": name, "prompt": "Once upon a time", "max_tokens": 32 });
    print(format_args!("{url}\n"))?;
    note(format_args!(
        "try: curl {url}/v1/completions{bearer} -H 'Content-Type: application/json' -d '{body}'"
    ));
    let model = Model { name, tokenizer, context: config.maxT, V: config.V, template };
    let options = Options { server, model, queue: args.queue, key };
    run(options, Engine::new(dev, decoder))
}
