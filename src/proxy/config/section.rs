//! Reading TOML field by field, so that all mistakes are reported at once, each with its place. A mistake shows the
//! text of the file, and never the value of a variable, which may be a secret.
//!
//! Not here: which fields there are and what they mean: `read`.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, IntoDeserializer};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Secret;
use super::variables::fill_in;
use crate::error::Escaped;

/// The longest duration of any setting. A breaker's durations have the same limit.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// The text that is read, with the mistakes and warnings found so far.
pub(super) struct Report<'a> {
    file: Option<&'a Path>,
    text: &'a str,
    mistakes: Vec<(usize, String)>,
    warnings: Vec<(usize, String)>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: Option<&'a Path>, text: &'a str) -> Self {
        Self { file, text, mistakes: Vec::new(), warnings: Vec::new() }
    }

    /// Reports a mistake at an offset of the text. The message is escaped to one line: keys may contain any character.
    pub(super) fn mistake(&mut self, at: usize, message: impl fmt::Display) {
        let line = self.line(at);
        self.mistakes.push((line, Escaped(format_args!("{}{message}", self.place(line))).to_string()));
    }

    pub(super) fn mistakes(&self) -> usize {
        self.mistakes.len()
    }

    pub(super) fn warn(&mut self, at: usize, message: impl fmt::Display) {
        let line = self.line(at);
        self.warnings.push((line, Escaped(format_args!("{}{message}", self.place(line))).to_string()));
    }

    fn line(&self, at: usize) -> usize {
        self.text[..at.min(self.text.len())].matches('\n').count() + 1
    }

    fn place(&self, line: usize) -> String {
        match self.file {
            Some(file) => format!("{}:{line}: ", file.display()),
            None => format!("line {line}: "),
        }
    }

    /// The mistakes and the warnings, both in the order of their lines.
    pub(super) fn finish(mut self) -> (Vec<String>, Vec<String>) {
        let sorted = |messages: &mut Vec<(usize, String)>| {
            messages.sort_by_key(|(line, _)| *line);
            std::mem::take(messages).into_iter().map(|(_, message)| message).collect()
        };
        (sorted(&mut self.mistakes), sorted(&mut self.warnings))
    }
}

/// A value, and the offset of its key.
struct Field<'i> {
    value: DeValue<'i>,
    at: usize,
}

/// A table whose fields are taken out one by one. The fields that are left at the end are unknown ones.
pub(super) struct Section<'r, 'i> {
    path: String,
    /// The offset of its header.
    at: usize,
    fields: BTreeMap<String, Field<'i>>,
    /// The fields that were asked for, with their offsets.
    known: Vec<(&'static str, Option<usize>)>,
    pub(super) report: &'r mut Report<'i>,
}

/// A text: as the file shows it, and with its variables replaced.
pub(super) struct Text {
    pub(super) shown: String,
    pub(super) value: String,
}

impl<'r, 'i> Section<'r, 'i> {
    /// `path` ends with a dot unless it is empty.
    pub(super) fn new(path: String, at: usize, table: DeTable<'i>, report: &'r mut Report<'i>) -> Self {
        let field = |(key, value): (Spanned<std::borrow::Cow<'i, str>>, Spanned<DeValue<'i>>)| {
            let at = key.span().start;
            (key.into_inner().into_owned(), Field { value: value.into_inner(), at })
        };
        Self { path, at, fields: table.into_iter().map(field).collect(), known: Vec::new(), report }
    }

    // ---- what was found ----

    /// The field's offset, or the section's if the field is missing.
    fn place(&self, field: &str) -> usize {
        self.known.iter().find(|(name, _)| *name == field).and_then(|(_, at)| *at).unwrap_or(self.at)
    }

    pub(super) fn mistake(&mut self, field: &str, is: &str, expected: &str) {
        let at = self.place(field.split(['[', '.']).next().unwrap_or(field));
        self.report.mistake(at, format_args!("{}{field} is {is}, expected {expected}", self.path));
    }

    pub(super) fn warn(&mut self, field: &str, message: impl fmt::Display) {
        let at = self.place(field);
        self.report.warn(at, format_args!("{}{field} {message}", self.path));
    }

    pub(super) fn finish(self) {
        let known: Vec<_> = self.known.iter().map(|(name, _)| *name).collect();
        for (name, field) in &self.fields {
            let message = format_args!("{}{name} is unknown, expected one of {}", self.path, known.join(", "));
            self.report.mistake(field.at, message);
        }
    }

    // ---- values ----

    fn take(&mut self, field: &'static str) -> Option<DeValue<'i>> {
        let found = self.fields.remove(field);
        self.known.push((field, found.as_ref().map(|found| found.at)));
        found.map(|found| found.value)
    }

    /// Whether a field that was asked for is there.
    pub(super) fn has(&self, field: &str) -> bool {
        self.known.iter().any(|(name, at)| *name == field && at.is_some())
    }

    /// Reports a mistake if a field that was asked for is missing.
    pub(super) fn require(&mut self, field: &str, expected: &str) {
        if !self.has(field) {
            self.mistake(field, "missing", expected);
        }
    }

    fn wrong(&mut self, field: &str, value: &DeValue<'_>, expected: &str) {
        self.mistake(field, &shown(value), expected);
    }

    /// A table and its offset. A missing one is empty.
    pub(super) fn table(&mut self, field: &'static str) -> (usize, DeTable<'i>) {
        let table = match self.take(field) {
            Some(DeValue::Table(table)) => table,
            Some(other) => {
                self.wrong(field, &other, "a table");
                DeTable::new()
            }
            None => DeTable::new(),
        };
        (self.place(field), table)
    }

    /// The values of an array, each with its offset. A missing one is empty.
    pub(super) fn array(&mut self, field: &'static str, expected: &str) -> Vec<(usize, DeValue<'i>)> {
        match self.take(field) {
            Some(DeValue::Array(values)) => {
                values.into_iter().map(|value| (value.span().start, value.into_inner())).collect()
            }
            Some(other) => {
                // Not the value: it may be a secret.
                self.mistake(field, other.type_str(), expected);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// A table within this one.
    pub(super) fn inner(&mut self, path: &str, at: usize, table: DeTable<'i>) -> Section<'_, 'i> {
        Section::new(format!("{}{path}", self.path), at, table, self.report)
    }

    pub(super) fn tables(&mut self, field: &'static str) -> Vec<(usize, DeTable<'i>)> {
        let expected = format!("[[{field}]] tables");
        let values = match self.take(field) {
            Some(DeValue::Array(values)) => values,
            Some(other) => {
                self.wrong(field, &other, &expected);
                return Vec::new();
            }
            None => return Vec::new(),
        };
        let mut tables = Vec::new();
        for (index, value) in values.into_iter().enumerate() {
            let at = value.span().start;
            match value.into_inner() {
                DeValue::Table(table) => tables.push((at, table)),
                other => self.wrong(&format!("{field}[{index}]"), &other, &expected),
            }
        }
        tables
    }

    /// A text with its variables replaced. `field` may have an index.
    fn fill_in(&mut self, field: &str, value: &DeValue<'_>, expected: &str) -> Option<Text> {
        let DeValue::String(raw) = value else {
            self.wrong(field, value, expected);
            return None;
        };
        match fill_in(raw) {
            Ok(value) => Some(Text { shown: format!("{raw:?}"), value }),
            Err((is, expected)) => {
                self.mistake(field, &is, expected);
                None
            }
        }
    }

    pub(super) fn text(&mut self, field: &'static str, expected: &str) -> Option<Text> {
        let value = self.take(field)?;
        self.fill_in(field, &value, expected)
    }

    pub(super) fn texts(&mut self, field: &'static str, expected: &str) -> Vec<Text> {
        match self.take(field) {
            Some(DeValue::Array(values)) => values
                .iter()
                .enumerate()
                .filter_map(|(index, value)| self.fill_in(&format!("{field}[{index}]"), value.get_ref(), expected))
                .collect(),
            Some(other) => {
                self.wrong(field, &other, &format!("an array, each {expected}"));
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// A table of texts, such as `{ fast = "small-model" }`.
    pub(super) fn map(&mut self, field: &'static str, expected: &str) -> Vec<(String, Text)> {
        let (_, table) = self.table(field);
        let mut pairs = Vec::new();
        for (key, value) in table {
            let key = key.into_inner().into_owned();
            if let Some(text) = self.fill_in(&format!("{field}.{key}"), value.get_ref(), expected) {
                pairs.push((key, text));
            }
        }
        pairs
    }

    /// A text that `parse` understands.
    pub(super) fn parse<T>(
        &mut self,
        field: &'static str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(field, expected)?;
        let parsed = parse(&text.value);
        if parsed.is_none() {
            self.mistake(field, &text.shown, expected);
        }
        parsed
    }

    /// One of the names that serde knows for a type.
    pub(super) fn one_of<T: DeserializeOwned>(&mut self, field: &'static str, expected: &str, target: &mut T) {
        let read = |text: &str| {
            let text: StrDeserializer<'_, serde::de::value::Error> = text.into_deserializer();
            T::deserialize(text).ok()
        };
        if let Some(value) = self.parse(field, expected, read) {
            *target = value;
        }
    }

    /// A number, or a text that is a number after its variables are replaced.
    fn number<T>(&mut self, field: &'static str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let value = self.take(field)?;
        let (shown, text) = match &value {
            DeValue::Integer(number) if number.radix() == 10 => (shown(&value), number.as_str().to_owned()),
            DeValue::Float(number) => (shown(&value), number.as_str().to_owned()),
            _ => {
                let text = self.fill_in(field, &value, expected)?;
                (text.shown, text.value)
            }
        };
        let parsed = parse(&text);
        if parsed.is_none() {
            self.mistake(field, &shown, expected);
        }
        parsed
    }

    pub(super) fn count(&mut self, field: &'static str, range: RangeInclusive<u64>, target: &mut u64) {
        let expected = format!("a whole number, {} to {}", range.start(), range.end());
        let parse = |text: &str| text.parse().ok().filter(|count| range.contains(count));
        if let Some(count) = self.number(field, &expected, parse) {
            *target = count;
        }
    }

    pub(super) fn flag(&mut self, field: &'static str, target: &mut bool) {
        match self.take(field) {
            Some(DeValue::Boolean(value)) => *target = value,
            Some(other) => self.wrong(field, &other, "true or false"),
            None => {}
        }
    }

    pub(super) fn optional_flag(&mut self, field: &'static str, target: &mut Option<bool>) {
        let mut value = target.unwrap_or_default();
        self.flag(field, &mut value);
        if self.has(field) {
            *target = Some(value);
        }
    }

    /// A count whose range the caller checks.
    pub(super) fn any_count(&mut self, field: &'static str) -> Option<u32> {
        self.number(field, "a whole number", |text| text.parse().ok())
    }

    /// A number whose range the caller checks.
    pub(super) fn any_number(&mut self, field: &'static str) -> Option<f32> {
        self.number(field, "a number", |text| text.parse().ok())
    }

    pub(super) fn rate(&mut self, field: &'static str) -> Option<f64> {
        let parse = |text: &str| text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate >= 0.0);
        self.number(field, "a price, 0 or more", parse)
    }

    pub(super) fn share(&mut self, field: &'static str) -> Option<f64> {
        let parse = |text: &str| text.parse().ok().filter(|share: &f64| (0.0..=1.0).contains(share));
        self.number(field, "a share, 0 to 1", parse)
    }

    pub(super) fn pieces_per_second(&mut self, field: &'static str) -> Option<f64> {
        let parse = |text: &str| text.parse().ok().filter(|rate: &f64| (0.001..=1000.0).contains(rate));
        self.number(field, "pieces per second, 0.001 to 1000", parse)
    }

    /// A duration whose range the caller checks.
    pub(super) fn any_duration(&mut self, field: &'static str) -> Option<Duration> {
        self.parse(field, "a duration such as \"30s\" or \"500ms\"", |text| humantime::parse_duration(text).ok())
    }

    pub(super) fn duration(&mut self, field: &'static str, range: RangeInclusive<Duration>, target: &mut Duration) {
        match self.any_duration(field) {
            Some(duration) if !range.contains(&duration) => {
                let [is, shortest, longest] = [duration, *range.start(), *range.end()].map(humantime::format_duration);
                self.mistake(field, &is.to_string(), &format!("{shortest} to {longest}"));
            }
            Some(duration) => *target = duration,
            None => {}
        }
    }

    pub(super) fn optional_duration(
        &mut self,
        field: &'static str,
        range: RangeInclusive<Duration>,
        target: &mut Option<Duration>,
    ) {
        let mut value = target.unwrap_or_default();
        self.duration(field, range, &mut value);
        if self.has(field) {
            *target = Some(value);
        }
    }

    // ---- secrets ----

    pub(super) fn secret(&mut self, field: &'static str) -> Option<Secret> {
        let value = self.take(field)?;
        self.secret_in(field, &value)
    }

    pub(super) fn secrets(&mut self, field: &'static str) -> Vec<Secret> {
        match self.take(field) {
            Some(DeValue::Array(values)) => values
                .iter()
                .enumerate()
                .filter_map(|(index, value)| self.secret_in(&format!("{field}[{index}]"), value.get_ref()))
                .collect(),
            Some(other) => {
                self.mistake(field, other.type_str(), "an array of texts such as [\"${TOKEN}\"]");
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// A table of texts that may hold secrets: each name with its value, and whether a variable is in it.
    pub(super) fn secret_map(&mut self, field: &'static str) -> Vec<(String, String, bool)> {
        let (_, table) = self.table(field);
        let mut found = Vec::new();
        for (key, value) in table {
            let name = key.into_inner().into_owned();
            let place = format!("{field}.{name}");
            match value.get_ref() {
                DeValue::String(raw) => match fill_in(raw) {
                    Ok(value) => found.push((name, value, raw.contains("${"))),
                    Err((is, expected)) => self.mistake(&place, &is, expected),
                },
                other => self.mistake(&place, other.type_str(), "a text such as \"${NAME}\""),
            }
        }
        found
    }

    pub(super) fn secret_in(&mut self, field: &str, value: &DeValue<'_>) -> Option<Secret> {
        let DeValue::String(raw) = value else {
            self.mistake(field, value.type_str(), "a text such as \"${NAME}\"");
            return None;
        };
        match fill_in(raw).map(Secret::new) {
            Ok(Some(secret)) => return Some(secret),
            Ok(None) => self.mistake(field, "empty or cannot be sent in a header", "visible ASCII without spaces"),
            Err((is, expected)) => self.mistake(field, &is, expected),
        }
        None
    }
}

/// A value as a mistake shows it. Of a table or an array only the type is shown: it may contain a secret.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        _ => value.type_str().to_owned(),
    }
}
