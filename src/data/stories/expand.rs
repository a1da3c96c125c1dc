//! Tells one story from the grammar: binds the characters and things, then expands the beats in
//! order.

use super::Rng;
use super::grammar::{Condition, Grammar, Let, Line, Node, Source};

/// A bound name: a record (field names and values) or a text (no field names, one value).
struct Binding {
    name: &'static str,
    fields: &'static [&'static str],
    values: Vec<String>,
}

pub(super) struct Teller {
    grammar: &'static Grammar,
    rng: Rng,
    bindings: Vec<Binding>,
    /// Records in use, so that two characters never share a name.
    taken: Vec<(&'static str, usize)>,
    /// The values of `x` in the rules being expanded.
    args: Vec<&'static str>,
    out: String,
}

impl Teller {
    pub fn new(grammar: &'static Grammar, rng: Rng) -> Self {
        Self { grammar, rng, bindings: Vec::new(), taken: Vec::new(), args: Vec::new(), out: String::new() }
    }

    /// Tells plot number `plot`.
    pub fn tell(mut self, plot: usize) -> String {
        let plot = &self.grammar.plots[plot];
        for binding in self.grammar.always.iter().chain(&plot.lets) {
            self.bind(binding);
        }
        for beat in &plot.beats {
            if self.rng.below(100) >= beat.percent {
                continue;
            }
            if let Some(line) = self.pick(&beat.lines) {
                if !self.out.is_empty() {
                    self.out.push_str(if beat.new_paragraph { "\n\n" } else { " " });
                }
                self.expand(&line.template);
            }
        }
        mend_articles(&self.out)
    }

    fn bind(&mut self, binding: &'static Let) {
        let (fields, templates): (&'static [&'static str], Vec<_>) = match &binding.source {
            Source::Text(template) => (&[], vec![template]),
            Source::Table(name) => {
                let table = &self.grammar.tables[name];
                let record = loop {
                    let record = self.rng.below(table.records.len());
                    if !self.taken.contains(&(*name, record)) {
                        break record;
                    }
                };
                self.taken.push((name, record));
                (&table.fields, table.records[record].iter().chain(&table.shared).collect())
            }
        };
        // The output buffer doubles as the scratch space in which values are expanded.
        let values = templates.into_iter().map(|template| {
            let start = self.out.len();
            self.expand(template);
            self.out.split_off(start)
        });
        let values = values.collect();
        self.bindings.push(Binding { name: binding.name, fields, values });
    }

    /// Picks one of the lines whose conditions hold, all equally likely.
    fn pick(&mut self, lines: &'static [Line]) -> Option<&'static Line> {
        let open = |line: &&Line| line.conditions.iter().all(|c| self.holds(c));
        let count = lines.iter().filter(open).count();
        if count == 0 {
            return None;
        }
        let choice = self.rng.below(count);
        let open = |line: &&Line| line.conditions.iter().all(|c| self.holds(c));
        lines.iter().filter(open).nth(choice)
    }

    fn holds(&self, c: &Condition) -> bool {
        (self.value(&c.name, c.field) == c.value) == c.equal
    }

    fn expand(&mut self, template: &'static [Node]) {
        for node in template {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Var { name, field, capital } => {
                    let start = self.out.len();
                    // `value` borrows from self, so its text is moved out of the way of the borrow.
                    let mut out = std::mem::take(&mut self.out);
                    out.push_str(self.value(name, *field));
                    self.out = out;
                    if *capital {
                        self.out[start..].get_mut(..1).unwrap().make_ascii_uppercase();
                    }
                }
                Node::Rule { name, arg } => {
                    let lines = self.grammar.rules.get(name).unwrap_or_else(|| panic!("no rule '{name}'"));
                    let line = self.pick(lines).unwrap_or_else(|| panic!("no line fits in rule '{name}'"));
                    let arg = arg.map(|a| self.resolve(a));
                    self.args.extend(arg);
                    self.expand(&line.template);
                    if arg.is_some() {
                        self.args.pop();
                    }
                }
                Node::Choice(options) => {
                    let choice = self.rng.below(options.len());
                    self.expand(&options[choice]);
                }
            }
        }
    }

    /// Resolves `x` to the name it stands for.
    fn resolve<'a>(&self, name: &'a str) -> &'a str
    where
        'static: 'a,
    {
        if name == "x" { self.args.last().expect("x outside of a rule with an argument") } else { name }
    }

    /// Expands `{name.field}`: a bound value, or a pronoun of the bound record; `{he}` alone is the
    /// hero's.
    fn value(&self, name: &str, field: Option<&str>) -> &str {
        let name = self.resolve(name);
        let Some(binding) = self.bindings.iter().find(|b| b.name == name) else {
            let hero = self.bindings.iter().find(|b| b.name == "hero");
            let word = hero.filter(|_| field.is_none()).and_then(|hero| hero.pronoun(name));
            return word.unwrap_or_else(|| panic!("nothing is called '{name}'"));
        };
        match field {
            None => &binding.values[0],
            Some(field) => {
                let word = binding.get(field).or_else(|| binding.pronoun(field));
                word.unwrap_or_else(|| panic!("'{name}' has no '{field}'"))
            }
        }
    }
}

impl Binding {
    fn get(&self, field: &str) -> Option<&str> {
        let at = self.fields.iter().position(|f| *f == field)?;
        Some(&self.values[at])
    }

    /// Returns the pronoun for which the masculine form stands; the field `sex` is m, f or n.
    fn pronoun(&self, form: &str) -> Option<&'static str> {
        let forms = match self.get("sex")? {
            "m" => ["he", "him", "his", "himself"],
            "f" => ["she", "her", "her", "herself"],
            "n" => ["it", "it", "its", "itself"],
            other => panic!("'{other}' is no sex of '{}'", self.name),
        };
        let at = ["he", "him", "his", "himself"].iter().position(|f| *f == form)?;
        Some(forms[at])
    }
}

/// Turns `a` into `an` before a vowel sound. Templates cannot know which word a choice puts after
/// the article.
fn mend_articles(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while let Some(space) = rest.find(' ') {
        let (word, after) = (&rest[..space], &rest[space + 1..]);
        out.push_str(word);
        let start = word.rfind(['\n', '"']).map_or(0, |at| at + 1);
        if matches!(&word[start..], "a" | "A") && has_vowel_sound(after) {
            out.push('n');
        }
        out.push(' ');
        rest = after;
    }
    out.push_str(rest);
    out
}

fn has_vowel_sound(text: &str) -> bool {
    let is = |prefixes: &[&str]| prefixes.iter().any(|p| text.starts_with(p));
    is(&["hour", "honest"]) || (is(&["a", "e", "i", "o", "u"]) && !is(&["one", "use", "uni"]))
}
