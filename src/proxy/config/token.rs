//! Tokens of clients and operators, each with a name that may be shown.
//!
//! Not here: where a request shows one: `request`.

use std::collections::HashSet;

use toml::de::{DeTable, DeValue};

use super::Secret;
use super::section::Section;

/// A token, and the name by which logs tell it from others.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Token {
    /// Its place in the configuration, such as `auth_tokens[0]`, if it is given no name.
    pub name: Box<str>,
    /// What is presented.
    pub token: Secret,
}

const EXPECTED: &str = "an array, each a text such as \"${TOKEN}\", or a table { name, token }";

/// Reads `["${TOKEN}", { name = "team-a", token = "${TEAM_A}" }]`.
pub(super) fn read_tokens(section: &mut Section<'_, '_>, field: &'static str) -> Vec<Token> {
    let mut names = HashSet::new();
    let mut tokens = Vec::new();
    for (index, (at, value)) in section.array(field, EXPECTED).into_iter().enumerate() {
        let place = format!("{field}[{index}]");
        let found = match value {
            DeValue::Table(table) => read_named(section, &place, at, table),
            other => section.secret_in(&place, &other).map(|token| Token { name: (*place).into(), token }),
        };
        let Some(token) = found else { continue };
        if !names.insert(token.name.clone()) {
            section.mistake(&format!("{place}.name"), &format!("{:?}", token.name), "a name that no other token has");
        }
        tokens.push(token);
    }
    tokens
}

fn read_named<'i>(outer: &mut Section<'_, 'i>, place: &str, at: usize, table: DeTable<'i>) -> Option<Token> {
    let mut section = outer.inner(&format!("{place}."), at, table);
    let expected = "visible ASCII without spaces";
    let name = section.text("name", expected);
    let token = section.secret("token");
    for field in ["name", "token"] {
        section.require(field, expected);
    }
    let name = name.filter(|name| {
        let is_usable = (1..=100).contains(&name.value.len()) && name.value.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_usable {
            section.mistake("name", &name.shown, expected);
        }
        is_usable
    });
    section.finish();
    Some(Token { name: name?.value.into(), token: token? })
}
