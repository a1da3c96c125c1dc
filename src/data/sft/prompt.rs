//! Conversations that a model continues, as the tokens that it was trained on.

use super::Encoded;
use super::example::{Segment, conversation};
use super::template::{ASSISTANT, Template};
use crate::data::tokenizer::Tokenizer;
use serde_json::{Value, json};

impl Template {
    /// Whether it has turns of a conversation.
    pub fn has_messages(&self) -> bool {
        self.messages.is_some()
    }

    /// The tokens of a conversation up to the place where the assistant answers. `messages` is an
    /// array of objects with a role and content, as in the input of `warpsmith sft`.
    ///
    /// # Errors
    /// A text that names the field, what was expected and what was found.
    pub fn conversation(&self, messages: &[Value], tokenizer: &Tokenizer) -> Result<Vec<u32>, String> {
        let turns = self.messages.as_ref().ok_or("--template has no field \"messages\"")?;
        let answer = json!({ "role": ASSISTANT, "content": "" });
        let messages = messages.iter().cloned().chain([answer]).collect();
        let mut segments = conversation(&Value::Array(messages), turns)?;
        let given = segments.pop().map(|Segment { given, .. }| given).unwrap_or_default();
        let mut tokens = Encoded::new(&segments, tokenizer).tokens;
        tokens.extend(tokenizer.encode_ordinary(&given));
        if tokens.is_empty() {
            tokens.push(tokenizer.eot());
        }
        Ok(tokens)
    }

    /// The text that ends each answer of a conversation, before the end-of-text token.
    pub fn answer_end(&self) -> &str {
        self.messages.as_ref().and_then(|turns| turns.get(ASSISTANT)).map_or("", |turn| &turn.after)
    }
}
