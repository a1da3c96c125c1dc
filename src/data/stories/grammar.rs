//! The language the stories are written in, and its parser.
//!
//! A grammar file has four kinds of block; `#` starts a comment line, an indented line continues
//! the one before.
//!
//! ```text
//! table toy: name | sex=n | color=[red|blue]      one record per line below; | between fields;
//! kite | ...                                      a field with = is the same for every record
//!
//! rule said                                       a shared phrase: {@said} or {@said friend}
//! * said {x}                                      (x is then the friend)
//!
//! always                                          bindings of every story
//! let hero = @child                               a record (never the same one twice in a story)
//!
//! plot the lost toy
//! let won = [yes|no]                              a text, chosen once
//! -- begin                                        a beat in a new paragraph: one * line is told
//! * {Hero} had a {toy.color} {toy}.               {Hero}: capitalized; {hero.his}: a pronoun
//! - and then 50%                                  in the same paragraph; omitted half of the time
//! * <won=yes, hero.trait!=shy> {He} [ran|hopped]. only if the conditions hold; [a|b|] is a choice
//! ```
//!
//! `{his}` alone is the hero's pronoun. A beat is omitted if the conditions of none of its lines
//! hold. `a` becomes `an` before a vowel sound.

use std::collections::HashMap;

pub(super) type Template = Vec<Node>;

pub(super) enum Node {
    Text(&'static str),
    /// `{name.field}`; `capital` when it was written with a capital letter.
    Var {
        name: String,
        field: Option<&'static str>,
        capital: bool,
    },
    /// `{@rule arg}`
    Rule {
        name: &'static str,
        arg: Option<&'static str>,
    },
    Choice(Vec<Template>),
}

/// A set of fields with records; all values are templates, chosen when a record is bound.
pub(super) struct Table {
    pub fields: Vec<&'static str>,
    pub records: Vec<Vec<Template>>,
    /// Values of the last fields, the same for every record.
    pub shared: Vec<Template>,
}

pub(super) struct Condition {
    pub name: String,
    pub field: Option<&'static str>,
    pub value: &'static str,
    pub equal: bool,
}

pub(super) struct Line {
    pub conditions: Vec<Condition>,
    pub template: Template,
}

pub(super) enum Source {
    Table(&'static str),
    Text(Template),
}

pub(super) struct Let {
    pub name: &'static str,
    pub source: Source,
}

pub(super) struct Beat {
    pub new_paragraph: bool,
    pub percent: usize,
    pub lines: Vec<Line>,
}

pub(super) struct Plot {
    pub name: &'static str,
    pub lets: Vec<Let>,
    pub beats: Vec<Beat>,
}

#[derive(Default)]
pub(super) struct Grammar {
    pub tables: HashMap<&'static str, Table>,
    pub rules: HashMap<&'static str, Vec<Line>>,
    pub always: Vec<Let>,
    pub plots: Vec<Plot>,
}

/// The block the parser is in.
enum Block {
    None,
    Table(&'static str),
    Rule(&'static str),
    Always,
    Plot,
}

impl Grammar {
    /// Parses grammar files; an error names the offending line.
    pub fn parse(files: &[&'static str]) -> Result<Self, String> {
        let mut grammar = Self::default();
        for file in files {
            let mut block = Block::None;
            for line in logical_lines(file) {
                grammar.line(&mut block, line).map_err(|e| format!("{e} in '{line}'"))?;
            }
        }
        Ok(grammar)
    }

    fn line(&mut self, block: &mut Block, line: &'static str) -> Result<(), String> {
        if let Some(head) = line.strip_prefix("table ") {
            let (name, table) = parse_table_head(head)?;
            *block = Block::Table(name);
            return no_second(self.tables.insert(name, table));
        }
        if let Some(name) = line.strip_prefix("rule ") {
            *block = Block::Rule(name);
            return no_second(self.rules.insert(name, Vec::new()));
        }
        if let Some(name) = line.strip_prefix("plot ") {
            *block = Block::Plot;
            let known = self.plots.iter().any(|plot| plot.name == name).then_some(());
            self.plots.push(Plot { name, lets: Vec::new(), beats: Vec::new() });
            return no_second(known);
        }
        if line == "always" {
            *block = Block::Always;
            return Ok(());
        }
        match block {
            Block::None => Err("text outside of a block".into()),
            Block::Table(name) => self.tables.get_mut(name).unwrap().add_record(line),
            Block::Rule(name) => {
                self.rules.get_mut(name).unwrap().push(parse_line(line)?);
                Ok(())
            }
            Block::Always => {
                self.always.push(parse_let(line)?);
                Ok(())
            }
            Block::Plot => self.plots.last_mut().unwrap().line(line),
        }
    }
}

impl Table {
    fn add_record(&mut self, line: &'static str) -> Result<(), String> {
        let values = line.split(" | ").map(parse_template).collect::<Result<Vec<_>, _>>()?;
        let expected = self.fields.len() - self.shared.len();
        if values.len() != expected {
            return Err(format!("{expected} fields expected, {} found", values.len()));
        }
        self.records.push(values);
        Ok(())
    }
}

impl Plot {
    fn line(&mut self, line: &'static str) -> Result<(), String> {
        if line.starts_with("let ") {
            self.lets.push(parse_let(line)?);
        } else if line.starts_with("* ") {
            self.beats.last_mut().ok_or("a line before the first beat")?.lines.push(parse_line(line)?);
        } else if line.starts_with('-') {
            let percent = match line.rsplit_once(' ').and_then(|(_, last)| last.strip_suffix('%')) {
                Some(number) => number.parse().map_err(|_| "a percentage expected")?,
                None => 100,
            };
            self.beats.push(Beat { new_paragraph: line.starts_with("-- "), percent, lines: Vec::new() });
        } else {
            return Err("let, -, -- or * expected".into());
        }
        Ok(())
    }
}

/// Returns lines without comments, blank lines and outer spaces, each joined with the indented
/// lines after it. Texts are borrowed forever, so a joined line is leaked: the grammar is parsed
/// once and lives as long as the program.
fn logical_lines(file: &'static str) -> Vec<&'static str> {
    let mut lines: Vec<&'static str> = Vec::new();
    for line in file.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        match lines.last_mut() {
            Some(last) if line.starts_with(' ') => {
                *last = Box::leak(format!("{last} {}", line.trim()).into_boxed_str());
            }
            _ => lines.push(line.trim()),
        }
    }
    lines
}

fn no_second<T>(previous: Option<T>) -> Result<(), String> {
    if previous.is_some() { Err("a name used twice".into()) } else { Ok(()) }
}

fn parse_table_head(head: &'static str) -> Result<(&'static str, Table), String> {
    let (name, fields) = head.split_once(": ").ok_or("a colon expected")?;
    let mut table = Table { fields: Vec::new(), records: Vec::new(), shared: Vec::new() };
    for field in fields.split(" | ") {
        match field.split_once('=') {
            Some((field, value)) => {
                table.fields.push(field);
                table.shared.push(parse_template(value)?);
            }
            None if table.shared.is_empty() => table.fields.push(field),
            None => return Err(format!("field '{field}' must come before those with a value")),
        }
    }
    Ok((name, table))
}

/// `let name = @table` or `let name = template`
fn parse_let(line: &'static str) -> Result<Let, String> {
    let rest = line.strip_prefix("let ").ok_or("let expected")?;
    let (name, source) = rest.split_once(" = ").ok_or("= expected")?;
    let source = match source.strip_prefix('@') {
        Some(table) => Source::Table(table),
        None => Source::Text(parse_template(source)?),
    };
    Ok(Let { name, source })
}

/// `* <conditions> template`
fn parse_line(line: &'static str) -> Result<Line, String> {
    let rest = line.strip_prefix("* ").ok_or("* expected")?;
    let Some(inner) = rest.strip_prefix('<') else {
        return Ok(Line { conditions: Vec::new(), template: parse_template(rest)? });
    };
    let (conditions, template) = inner.split_once("> ").ok_or("> expected")?;
    let conditions = conditions.split(", ").map(parse_condition).collect::<Result<_, _>>()?;
    Ok(Line { conditions, template: parse_template(template)? })
}

fn parse_condition(text: &'static str) -> Result<Condition, String> {
    let (path, value) = text.split_once('=').ok_or("= or != expected")?;
    let equal = !path.ends_with('!');
    let path = path.trim_end_matches('!');
    let (name, field) = split_path(path);
    Ok(Condition { name: name.to_string(), field, value, equal })
}

fn split_path(path: &'static str) -> (&'static str, Option<&'static str>) {
    match path.split_once('.') {
        Some((name, field)) => (name, Some(field)),
        None => (path, None),
    }
}

fn parse_template(text: &'static str) -> Result<Template, String> {
    let mut rest = text;
    let template = parse_sequence(&mut rest, false)?;
    if rest.is_empty() { Ok(template) } else { Err(format!("stray '{rest}'")) }
}

/// Parses until the end, or inside a choice until the next `|` or `]`, which stays in `rest`.
fn parse_sequence(rest: &mut &'static str, in_choice: bool) -> Result<Template, String> {
    let mut nodes = Vec::new();
    loop {
        let stop = rest.find(['[', ']', '{', '}', '|']).unwrap_or(rest.len());
        if stop > 0 {
            nodes.push(Node::Text(&rest[..stop]));
            *rest = &rest[stop..];
        }
        match rest.as_bytes().first() {
            None if in_choice => return Err("a ] is missing".into()),
            None => return Ok(nodes),
            Some(b'[') => nodes.push(Node::Choice(parse_choice(rest)?)),
            Some(b'{') => {
                let (inside, after) = rest[1..].split_once('}').ok_or("a } is missing")?;
                nodes.push(parse_placeholder(inside));
                *rest = after;
            }
            Some(b'|' | b']') if in_choice => return Ok(nodes),
            Some(_) => return Err(format!("stray '{}'", &rest[..1])),
        }
    }
}

fn parse_choice(rest: &mut &'static str) -> Result<Vec<Template>, String> {
    let mut options = Vec::new();
    loop {
        *rest = &rest[1..]; // [ or |
        options.push(parse_sequence(rest, true)?);
        if rest.starts_with(']') {
            *rest = &rest[1..];
            return Ok(options);
        }
    }
}

fn parse_placeholder(inside: &'static str) -> Node {
    if let Some(rule) = inside.strip_prefix('@') {
        return match rule.split_once(' ') {
            Some((name, arg)) => Node::Rule { name, arg: Some(arg) },
            None => Node::Rule { name: rule, arg: None },
        };
    }
    let (name, field) = split_path(inside);
    let capital = name.starts_with(|c: char| c.is_ascii_uppercase());
    Node::Var { name: name.to_ascii_lowercase(), field, capital }
}
