//! The fields of a request, each taken once and checked.

use super::error::ApiError;
use axum::http::StatusCode;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

type Result<T> = std::result::Result<T, ApiError>;

/// The fields that nobody has taken yet. A field that is null counts as missing.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// # Errors
    /// If the body is not a JSON object.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let object = serde_json::from_slice(body);
        object.map(Fields).map_err(|e| {
            ApiError::new(StatusCode::BAD_REQUEST, format!("the body: expected a JSON object: {e}"))
        })
    }

    /// Takes a field of any type.
    pub fn any(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a field by a conversion that returns `None` for what does not fit.
    fn field<T>(
        &mut self,
        name: &str,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.any(name) else { return Ok(None) };
        let wrong = || ApiError::param(name, format!("expected {expected}, found {}", shown(&value)));
        convert(&value).map(Some).ok_or_else(wrong)
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        self.field(name, "true or false", Value::as_bool)
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        self.field(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.field(name, &expected, |value| value.as_f64().filter(|number| range.contains(number)))
    }

    pub fn whole(&mut self, name: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let expected = match *range.end() {
            usize::MAX => format!("a whole number of {} or more", range.start()),
            end => format!("a whole number from {} to {end}", range.start()),
        };
        self.field(name, &expected, |value| {
            value.as_u64().and_then(|number| number.try_into().ok()).filter(|number| range.contains(number))
        })
    }

    /// A seed: any integer of 64 bits, with sign or without.
    pub fn seed(&mut self, name: &str) -> Result<Option<u64>> {
        self.field(name, "an integer", |value| {
            value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
        })
    }

    /// Takes fields that change nothing here.
    pub fn ignore(&mut self, names: &[&str]) {
        names.iter().for_each(|name| drop(self.any(name)));
    }

    /// Accepts a field at the one value that stands for its absence.
    pub fn only(&mut self, name: &str, value: &Value) -> Result<()> {
        self.field(name, &format!("{value}, as nothing else is supported"), |found| {
            (found == value).then_some(())
        })?;
        Ok(())
    }

    /// # Errors
    /// If fields are left: a request for something that would not happen.
    pub fn finish(self) -> Result<()> {
        match self.0.into_iter().find(|(_, value)| !value.is_null()) {
            Some((name, _)) => Err(ApiError::param(&name, "not supported; leave it out")),
            None => Ok(()),
        }
    }
}

/// A value for an error, cut if it is long.
pub fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}
