//! A conversation that goes on, as the tokens that an example of it would have in training.

use super::template::{ASSISTANT, Pair, Template};
use crate::data::tokenizer::Tokenizer;
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::fmt::Write;

/// The role of what is said to the model.
const USER: &str = "user";
const SYSTEM: &str = "system";

/// The form of examples, which a template may have both of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Turns of one conversation.
    Messages,
    /// A prompt and its response, each pair alone.
    Pair,
}

/// A conversation: what was said, and the answers so far.
#[derive(Clone, Debug)]
pub struct Dialog {
    form: Form,
    /// The text around the parts of a turn.
    around: Pair,
    /// The words of the system, and the same with the text around them.
    system: Option<(String, String)>,
    turns: Vec<Exchange>,
    /// Turns at the start that the model no longer reads.
    left_out: usize,
}

/// Something that was said, and the answer to it.
#[derive(Clone, Debug, Default)]
struct Exchange {
    said: String,
    /// `None` while the answer is written.
    answer: Option<String>,
}

impl Dialog {
    /// Starts a conversation in a form of the template: by default in messages, if it has them.
    ///
    /// # Errors
    /// One line, if the template lacks the form, or a role that is needed.
    pub fn new(template: &Template, form: Option<Form>, system: Option<&str>) -> Result<Self> {
        let form = form.unwrap_or(if template.messages.is_some() { Form::Messages } else { Form::Pair });
        let system = system.map(|text| (text.to_owned(), text));
        let (around, system) = match (form, &template.messages, &template.pair) {
            (Form::Messages, Some(roles), _) => {
                let role = |name: &str| {
                    let turn = roles.get(name);
                    turn.with_context(|| {
                        format!("--template: field \"messages\": expected a role \"{name}\", found none")
                    })
                };
                let (user, assistant) = (role(USER)?, role(ASSISTANT)?);
                let system = system.map(|(said, text)| {
                    role(SYSTEM).map(|turn| (said, format!("{}{text}{}", turn.before, turn.after)))
                });
                let around = Pair {
                    before: user.before.clone(),
                    between: format!("{}{}", user.after, assistant.before),
                    after: assistant.after.clone(),
                };
                (around, system.transpose()?)
            }
            (Form::Pair, _, Some(_)) if system.is_some() => {
                bail!("--system: pairs of a prompt and a response have no such turn")
            }
            (Form::Pair, _, Some(pair)) => (pair.clone(), None),
            (Form::Messages, None, _) => bail!("--template: expected a field \"messages\", found none"),
            (Form::Pair, _, None) => bail!("--template: expected a field \"pair\", found none"),
        };
        Ok(Dialog { form, around, system, turns: Vec::new(), left_out: 0 })
    }

    /// Whether nothing has been said.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Forgets what was said and answered.
    pub fn reset(&mut self) {
        self.turns.clear();
        self.left_out = 0;
    }

    /// Says something, which is to be answered.
    pub fn say(&mut self, text: &str) {
        if self.form == Form::Pair {
            self.left_out = self.turns.len();
        }
        self.turns.push(Exchange { said: text.to_owned(), answer: None });
    }

    /// Keeps the answer to what was said last, which was written up to the end of the text or up to
    /// one of [`Self::marks`].
    pub fn answer(&mut self, text: &str) {
        if let Some(turn) = self.turns.last_mut() {
            turn.answer = Some(text.strip_suffix(&self.around.after).unwrap_or(text).to_owned());
        }
    }

    /// Leaves the oldest turn out of what the model reads. Returns whether there was one before
    /// what was said last.
    pub fn leave_out_one(&mut self) -> bool {
        let can = self.left_out + 1 < self.turns.len();
        self.left_out += usize::from(can);
        can
    }

    /// The texts that end an answer: what follows it in the template, and what the next turn begins
    /// with. A model that has not learned to stop would go on with these. White space alone is no
    /// mark, because answers have some.
    pub fn marks(&self) -> Vec<String> {
        let around = [&self.around.after, &self.around.before];
        around.into_iter().filter(|text| !text.trim().is_empty()).cloned().collect()
    }

    /// The tokens of the conversation up to where the next answer begins: those of the example in
    /// training.
    pub fn tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let Pair { before, between, after } = &self.around;
        let mut opening = self.system.as_ref().map_or("", |(_, text)| text);
        let mut tokens = Vec::new();
        for Exchange { said, answer } in &self.turns[self.left_out..] {
            let given = format!("{}{before}{said}{between}", std::mem::take(&mut opening));
            tokens.extend(tokenizer.encode_ordinary(&given));
            if tokens.is_empty() {
                tokens.push(tokenizer.eot());
            }
            if let Some(answer) = answer {
                tokens.extend(tokenizer.encode_ordinary(&format!("{answer}{after}")));
                tokens.push(tokenizer.eot());
            }
        }
        tokens
    }

    /// The conversation as JSON lines that [`prepare`](super::prepare) reads, all turns included.
    pub fn json_lines(&self) -> String {
        let answered = self.turns.iter().filter_map(|turn| Some((&turn.said, turn.answer.as_ref()?)));
        match self.form {
            Form::Pair => answered.fold(String::new(), |mut lines, (said, answer)| {
                let _ = writeln!(lines, "{}", json!({"prompt": said, "response": answer}));
                lines
            }),
            Form::Messages => {
                let message = |role: &str, content: &str| json!({"role": role, "content": content});
                let system = self.system.iter().map(|(said, _)| message(SYSTEM, said));
                let turns =
                    answered.flat_map(|(said, answer)| [message(USER, said), message(ASSISTANT, answer)]);
                let messages: Vec<_> = system.chain(turns).collect();
                format!("{}\n", json!({"messages": messages}))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Encoded;
    use super::super::example::{Columns, segments};
    use super::*;

    const TEMPLATE: &str = r#"{"pair": "Q: {prompt}\nA: {response}\n",
        "messages": {"system": "<s>{content}</s>", "user": "<u>{content}", "assistant": "<a>{content}</a>"}}"#;

    fn dialog(template: &str, form: Option<Form>, system: Option<&str>) -> Dialog {
        Dialog::new(&Template::parse(template).unwrap(), form, system).unwrap()
    }

    /// Says and answers, and at last says something.
    fn talk(dialog: &mut Dialog, turns: &[(&str, &str)], last: &str) {
        for (said, answer) in turns {
            dialog.say(said);
            dialog.answer(answer);
        }
        dialog.say(last);
    }

    #[test]
    fn the_tokens_are_those_of_an_example() {
        let gpt2 = Tokenizer::gpt2();
        for template in [TEMPLATE, super::super::template::DEFAULT] {
            for system in [None, Some("Be brief.")] {
                let mut dialog = dialog(template, None, system);
                // The end of the template may be written or not.
                let turns = [("Hi", "Hello"), ("What?", "A cat.")];
                talk(&mut dialog, &turns, "");
                dialog.answer("X</a>");
                let saved = dialog.json_lines();
                let template = Template::parse(template).unwrap();
                let segments = segments(saved.as_bytes(), &Columns::default(), &template).unwrap();
                assert_eq!(dialog.tokens(&gpt2), Encoded::new(&segments, &gpt2).tokens, "{saved}");
            }
        }
    }

    #[test]
    fn pairs_stand_alone() {
        let gpt2 = Tokenizer::gpt2();
        let mut dialog = dialog(TEMPLATE, Some(Form::Pair), None);
        talk(&mut dialog, &[("one", "1\n")], "two");
        assert_eq!(gpt2.decode_bytes(&dialog.tokens(&gpt2)), b"Q: two\nA: ");
        dialog.answer("2");
        let expected = "{\"prompt\":\"one\",\"response\":\"1\"}\n{\"prompt\":\"two\",\"response\":\"2\"}\n";
        assert_eq!(dialog.json_lines(), expected);
        assert_eq!(dialog.marks(), ["Q: "]);
        assert!(!dialog.leave_out_one());
    }

    #[test]
    fn the_oldest_turns_are_left_out_and_the_system_stays() {
        let gpt2 = Tokenizer::gpt2();
        let mut dialog = dialog(TEMPLATE, None, Some("S"));
        talk(&mut dialog, &[("a", "b"), ("c", "d")], "e");
        let text = |dialog: &Dialog| String::from_utf8(gpt2.decode_bytes(&dialog.tokens(&gpt2))).unwrap();
        assert!(dialog.leave_out_one());
        assert_eq!(text(&dialog), "<s>S</s><u>c<a>d</a><|endoftext|><u>e<a>");
        assert!(dialog.leave_out_one() && !dialog.leave_out_one());
        assert_eq!(text(&dialog), "<s>S</s><u>e<a>");
        assert!(dialog.json_lines().contains(r#"{"content":"a","role":"user"}"#), "all is saved");
        dialog.reset();
        assert!(dialog.is_empty());
        dialog.say("f");
        assert_eq!(text(&dialog), "<s>S</s><u>f<a>");
        assert_eq!(dialog.marks(), ["</a>", "<u>"]);
    }

    #[test]
    fn what_a_template_lacks_is_named() {
        let no_user = r#"{"messages": {"assistant": "{content}"}}"#;
        let only_pair = r#"{"pair": "{prompt}{response}"}"#;
        for (template, form, system, expected) in [
            (no_user, None, None, "expected a role \"user\", found none"),
            (only_pair, Some(Form::Messages), None, "expected a field \"messages\", found none"),
            (only_pair, None, Some("x"), "--system: pairs"),
            (no_user, Some(Form::Pair), None, "expected a field \"pair\", found none"),
            (
                r#"{"messages": {"assistant": "{content}", "user": "{content}"}}"#,
                None,
                Some("x"),
                "expected a role \"system\", found none",
            ),
        ] {
            let error =
                Dialog::new(&Template::parse(template).unwrap(), form, system).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let mut empty = dialog(r#"{"pair": "{prompt}{response}"}"#, None, None);
        empty.say("");
        assert_eq!(empty.tokens(&Tokenizer::gpt2()), [50256], "as a sample without a prompt");
    }
}
