//! Examples: the texts of one JSON object.

use super::template::{ASSISTANT, Pair, Template, Turn};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Fields that hold an answer, if no other is named.
const RESPONSES: [&str; 2] = ["response", "completion"];

/// Most names of fields in an error.
const MOST_NAMES: usize = 12;

/// Most letters of each.
const MOST_LETTERS: usize = 40;

/// The fields of a pair that the user named.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    pub prompt: Option<String>,
    pub response: Option<String>,
}

/// A part of an example: text that is given, then an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub given: String,
    pub answer: String,
}

/// The parts of the example in a JSON object: of a conversation in the field `messages`, otherwise
/// of a pair. What follows the last answer is left out.
///
/// # Errors
/// A text that names the field, what was expected and what was found.
pub(super) fn segments(
    object: &[u8],
    columns: &Columns,
    template: &Template,
) -> Result<Vec<Segment>, String> {
    let object: Map<String, Value> = serde_json::from_slice(object).map_err(|e| {
        let fault = e.to_string().replace(" at line 1 column ", " at column ");
        format!("not a JSON object: {fault}")
    })?;
    let names_columns = columns.prompt.is_some() || columns.response.is_some();
    match object.get("messages").filter(|_| !names_columns) {
        Some(messages) => {
            let no_turns = "a conversation, and --template has no field \"messages\"";
            conversation(messages, template.messages.as_ref().ok_or(no_turns)?)
        }
        None => {
            let no_pair = "a prompt and its response, and --template has no field \"pair\"";
            pair(&object, columns, template.pair.as_ref().ok_or(no_pair)?)
        }
    }
}

fn pair(object: &Map<String, Value>, columns: &Columns, template: &Pair) -> Result<Vec<Segment>, String> {
    let prompt = columns.prompt.as_deref().unwrap_or("prompt");
    let response = columns.response.as_deref().unwrap_or_else(|| {
        RESPONSES.into_iter().find(|name| object.contains_key(*name)).unwrap_or(RESPONSES[0])
    });
    let field = |name: &str, flag: &str| {
        let value = object.get(name).ok_or_else(|| {
            let names: Vec<String> = object.keys().take(MOST_NAMES).map(|name| short(name)).collect();
            format!("no field \"{name}\", only {}; name the right one with {flag}", names.join(", "))
        })?;
        text_of(value, &format!("\"{name}\""))
    };
    let Pair { before, between, after } = template;
    let given = format!("{before}{}{between}", field(prompt, "--prompt-column")?);
    Ok(vec![Segment { given, answer: format!("{}{after}", field(response, "--response-column")?) }])
}

pub(super) fn conversation(messages: &Value, turns: &BTreeMap<String, Turn>) -> Result<Vec<Segment>, String> {
    let messages = messages
        .as_array()
        .ok_or_else(|| format!("field \"messages\": expected an array, found {}", kind(messages)))?;
    let (mut segments, mut given) = (Vec::new(), String::new());
    for (index, message) in messages.iter().enumerate() {
        let at = |name: &str| format!("\"messages[{index}].{name}\"");
        let field = |name: &str| {
            let value = message.get(name).ok_or_else(|| format!("no field {}", at(name)))?;
            text_of(value, &at(name))
        };
        let (role, content) = (field("role")?, field("content")?);
        let Turn { before, after } = turns.get(role).ok_or_else(|| {
            let known: Vec<&str> = turns.keys().map(String::as_str).collect();
            format!(
                "field {}: expected {}, found {role:?}; --template can add it",
                at("role"),
                known.join(", ")
            )
        })?;
        given += before;
        if role == ASSISTANT {
            let given = std::mem::take(&mut given);
            segments.push(Segment { given, answer: format!("{content}{after}") });
        } else {
            given += content;
            given += after;
        }
    }
    match segments.is_empty() {
        true => Err(format!("field \"messages\": expected a turn of the {ASSISTANT}, found none")),
        false => Ok(segments),
    }
}

/// A name as one short line.
fn short(name: &str) -> String {
    name.chars().take(MOST_LETTERS).flat_map(char::escape_debug).collect()
}

fn text_of<'a>(value: &'a Value, field: &str) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("field {field}: expected a string, found {}", kind(value)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(object: &str, columns: &Columns) -> Result<Vec<(String, String)>, String> {
        let segments = segments(object.as_bytes(), columns, &Template::default())?;
        Ok(segments.into_iter().map(|Segment { given, answer }| (given, answer)).collect())
    }

    #[test]
    fn pairs_and_conversations_become_given_text_and_answers() {
        let of = |given: &str, answer: &str| (given.to_owned(), answer.to_owned());
        let none = Columns::default();
        for response in RESPONSES {
            let object = format!(r#"{{"id": 1, "prompt": "2 + 2?", "{response}": ""}}"#);
            assert_eq!(read(&object, &none).unwrap(), [of("2 + 2?\n", "")]);
        }
        let named = Columns { prompt: Some("q".into()), response: Some("a".into()) };
        assert_eq!(read(r#"{"q": "x", "a": "y", "messages": 1}"#, &named).unwrap(), [of("x\n", "y")]);
        let messages = r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"},
            {"role": "assistant", "content": "A"}, {"role": "user", "content": "V"},
            {"role": "assistant", "content": "B"}, {"role": "user", "content": "W"}]}"#;
        let expected = [of("S\n\nUser:\nU\nAssistant:\n", "A"), of("User:\nV\nAssistant:\n", "B")];
        assert_eq!(read(messages, &none).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let named = Columns { prompt: Some("q".into()), response: None };
        for (object, columns, expected) in [
            ("{", &Columns::default(), "not a JSON object: EOF while parsing an object at column 1"),
            ("[1]", &Columns::default(), "not a JSON object: invalid type"),
            (
                r#"{"prompt": "a"}"#,
                &Columns::default(),
                "no field \"response\", only prompt; name the right one with --response-column",
            ),
            (
                r#"{"response": "a"}"#,
                &Columns::default(),
                "no field \"prompt\", only response; name the right one with --prompt-column",
            ),
            (
                r#"{"prompt": 5, "response": "a"}"#,
                &Columns::default(),
                "field \"prompt\": expected a string, found a number",
            ),
            (
                r#"{"prompt": "", "completion": null}"#,
                &Columns::default(),
                "field \"completion\": expected a string, found null",
            ),
            (r#"{"prompt": "", "response": ""}"#, &named, "no field \"q\""),
            (
                r#"{"messages": {}}"#,
                &Columns::default(),
                "field \"messages\": expected an array, found an object",
            ),
            (r#"{"messages": []}"#, &Columns::default(), "expected a turn of the assistant, found none"),
            (
                r#"{"messages": [{"role": "user", "content": ""}]}"#,
                &Columns::default(),
                "a turn of the assistant",
            ),
            (
                r#"{"messages": [{"role": "tool", "content": ""}]}"#,
                &Columns::default(),
                "\"messages[0].role\": expected assistant, system, user, found \"tool\"",
            ),
            (r#"{"messages": [{"role": "user"}]}"#, &Columns::default(), "no field \"messages[0].content\""),
            (
                r#"{"messages": [{"role": "user", "content": []}]}"#,
                &Columns::default(),
                "\"messages[0].content\": expected a string, found an array",
            ),
            (r#"{"messages": [7]}"#, &Columns::default(), "no field \"messages[0].role\""),
        ] {
            let error = read(object, columns).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{object}: {error}");
        }
    }
}
