//! Templates: the text around prompts, answers and turns.

use crate::files;
use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The role whose turns are answers.
pub(super) const ASSISTANT: &str = "assistant";

/// The text around prompts, answers and turns, as a JSON file gives it:
///
/// ```json
/// {
///   "pair": "Question: {prompt}\nAnswer: {response}",
///   "messages": {"user": "User: {content}\n", "assistant": "Assistant: {content}\n"}
/// }
/// ```
///
/// Text after `{response}`, or after the assistant's `{content}`, is a part of the answer. One of
/// the two fields may be missing: examples of that kind are then refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pub(super) pair: Option<Pair>,
    pub(super) messages: Option<BTreeMap<String, Turn>>,
}

/// The text before the prompt, between it and the response, and after that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub before: String,
    pub between: String,
    pub after: String,
}

/// The text before and after the content of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub before: String,
    pub after: String,
}

/// A template as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    pair: Option<String>,
    messages: Option<BTreeMap<String, String>>,
}

/// The template without `--template`.
pub const DEFAULT: &str = concat!(
    r#"{"pair": "{prompt}\n{response}", "messages": {"system": "{content}\n\n", "#,
    r#""user": "User:\n{content}\n", "assistant": "Assistant:\n{content}"}}"#
);

impl Default for Template {
    fn default() -> Self {
        Template::parse(DEFAULT).expect("the default is a template")
    }
}

impl Template {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let text = files::read_text(path, files::TEXT_BYTES)?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads a template.
    ///
    /// # Errors
    /// One line that names the field.
    pub fn parse(text: &str) -> Result<Self> {
        let written: Written = serde_json::from_str(text).map_err(|e| anyhow!("not a template: {e}"))?;
        ensure!(
            written.pair.is_some() || written.messages.is_some(),
            "not a template: expected a field \"pair\" or \"messages\", found neither"
        );
        let pair = written.pair.map(|text| Pair::parse(&text)).transpose()?;
        let turns = |roles: BTreeMap<String, String>| {
            ensure!(
                roles.contains_key(ASSISTANT),
                "field \"messages\": expected a role \"{ASSISTANT}\", whose turns are the answers, found none"
            );
            roles.into_iter().map(|(role, text)| Turn::parse(&role, &text).map(|turn| (role, turn))).collect()
        };
        Ok(Template { pair, messages: written.messages.map(turns).transpose()? })
    }
}

impl Pair {
    fn parse(text: &str) -> Result<Self> {
        let (before, rest) = split(text, "{prompt}", "\"pair\"")?;
        ensure!(
            !before.contains("{response}"),
            "field \"pair\": expected {{prompt}} before {{response}}, found it after"
        );
        let (between, after) = split(rest, "{response}", "\"pair\"")?;
        let [before, between, after] = [before, between, after].map(ToOwned::to_owned);
        Ok(Pair { before, between, after })
    }
}

impl Turn {
    fn parse(role: &str, text: &str) -> Result<Self> {
        let (before, after) = split(text, "{content}", &format!("\"messages\", role \"{role}\""))?;
        Ok(Turn { before: before.to_owned(), after: after.to_owned() })
    }
}

/// Splits a field at its only `marker`.
fn split<'a>(text: &'a str, marker: &str, field: &str) -> Result<(&'a str, &'a str)> {
    let found = text.matches(marker).count();
    ensure!(found == 1, "field {field}: expected {marker} once, found it {found} times");
    Ok(text.split_once(marker).expect("it is there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_text_around_its_parts() {
        let template = Template::parse(r#"{"pair": "Q: {prompt} {x}\nA: {response}\n"}"#).unwrap();
        let [before, between, after] = ["Q: ", " {x}\nA: ", "\n"].map(str::to_owned);
        assert_eq!(template, Template { pair: Some(Pair { before, between, after }), messages: None });
        let default = Template::default();
        assert_eq!(default.pair.unwrap().between, "\n");
        assert_eq!(default.messages.unwrap()["user"].before, "User:\n");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, expected) in [
            ("", "not a template: EOF"),
            ("[]", "not a template: invalid length"),
            (r#"{"prompt": ""}"#, "not a template: unknown field `prompt`"),
            ("{}", "expected a field \"pair\" or \"messages\", found neither"),
            (r#"{"pair": 5}"#, "not a template: invalid type: integer"),
            (r#"{"pair": "{prompt}"}"#, "field \"pair\": expected {response} once, found it 0 times"),
            (r#"{"pair": "{response}"}"#, "field \"pair\": expected {prompt} once, found it 0 times"),
            (r#"{"pair": "{response}{prompt}"}"#, "expected {prompt} before {response}"),
            (r#"{"pair": "{prompt}{response}{response}"}"#, "expected {response} once, found it 2 times"),
            (r#"{"messages": {"user": "{content}"}}"#, "expected a role \"assistant\""),
            (r#"{"messages": {"assistant": "a"}}"#, "role \"assistant\": expected {content} once"),
        ] {
            let error = format!("{:#}", Template::parse(text).unwrap_err());
            assert!(error.contains(expected) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
