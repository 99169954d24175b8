//! A configuration as it was typed: tables, lists and scalars, each with the place it stands at. Parses one file and
//! lays one tree over another; knows no key.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Where something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index of the file, in the order they were read.
    pub file: usize,
    /// Its line, from 1.
    pub line: usize,
}

/// A table's entries.
pub type Table = BTreeMap<String, Node>;

/// A value and its place: of a table or a list, the place of its key.
#[derive(Debug, Clone)]
pub struct Node {
    /// What stands there.
    pub value: Value,
    /// Where.
    pub place: Place,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub enum Value {
    /// `[key]`, or `{ … }`.
    Table(Table),
    /// `[…]`, or each `[[key]]`.
    List(Vec<Node>),
    /// A string.
    Text(String),
    /// A boolean.
    Flag(bool),
    /// `None`: beyond 64 bits.
    Number(Option<i64>),
    /// With a fraction.
    Share(f64),
    /// What the configuration has no use for, by its name.
    Other(&'static str),
}

impl Value {
    /// What it is, for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Table(_) => "a table",
            Self::List(_) => "a list",
            Self::Text(_) => "a string",
            Self::Flag(_) => "a boolean",
            Self::Number(_) => "an integer",
            Self::Share(_) => "a float",
            Self::Other(name) => name,
        }
    }
}

/// Parses one file. An error has its line and what is wrong.
pub fn parse(text: &str, file: usize) -> Result<Table, (usize, String)> {
    let lines = Lines { text, file };
    match DeTable::parse(text) {
        Ok(table) => Ok(lines.table(table.into_inner())),
        Err(error) => {
            let at = error.span().map_or(0, |span| span.start);
            Err((lines.place(at).line, error.message().trim().replace('\n', "; ")))
        }
    }
}

/// Lays `top` over `base`: tables merge key by key, everything else, lists of tables too, is replaced.
pub fn overlay(base: &mut Table, top: Table) {
    for (key, node) in top {
        match base.entry(key) {
            Entry::Vacant(entry) => {
                entry.insert(node);
            }
            Entry::Occupied(mut entry) => match (&mut entry.get_mut().value, node) {
                (Value::Table(below), Node { value: Value::Table(above), .. }) => overlay(below, above),
                (_, node) => {
                    entry.insert(node);
                }
            },
        }
    }
}

/// Turns the parser's spans into places.
struct Lines<'a> {
    text: &'a str,
    file: usize,
}

impl Lines<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.as_bytes().iter().take(offset);
        Place { file: self.file, line: 1 + before.filter(|byte| **byte == b'\n').count() }
    }

    fn table(&self, table: DeTable<'_>) -> Table {
        // Collecting would bring a sort along, and its code.
        let mut entries = Table::new();
        entries.extend(table.into_iter().map(|(key, value)| self.entry(key, value)));
        entries
    }

    fn entry(&self, key: Spanned<DeString<'_>>, value: Spanned<DeValue<'_>>) -> (String, Node) {
        let key_place = self.place(key.span().start);
        let mut node = self.node(value);
        if matches!(node.value, Value::Table(_) | Value::List(_)) {
            node.place = key_place;
        }
        (key.into_inner().into_owned(), node)
    }

    fn node(&self, value: Spanned<DeValue<'_>>) -> Node {
        let place = self.place(value.span().start);
        let value = match value.into_inner() {
            DeValue::String(text) => Value::Text(text.into_owned()),
            DeValue::Integer(number) => Value::Number(i64::from_str_radix(number.as_str(), number.radix()).ok()),
            DeValue::Boolean(flag) => Value::Flag(flag),
            DeValue::Float(number) => number.as_str().parse().map_or(Value::Other("a float"), Value::Share),
            DeValue::Datetime(_) => Value::Other("a date"),
            DeValue::Array(list) => Value::List(list.into_iter().map(|value| self.node(value)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Node { value, place }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn node<'a>(table: &'a Table, path: &str) -> &'a Node {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        match (&table[first], rest) {
            (node, None) => node,
            (Node { value: Value::Table(table), .. }, Some(rest)) => node(table, rest),
            (Node { value: Value::List(list), .. }, Some(rest)) => {
                let (index, rest) = rest.split_once('.').map_or((rest, None), |(a, b)| (a, Some(b)));
                let item = &list[index.parse::<usize>().unwrap()];
                match (rest, &item.value) {
                    (Some(rest), Value::Table(table)) => node(table, rest),
                    _ => item,
                }
            }
            (other, Some(_)) => panic!("{other:?}"),
        }
    }

    #[test]
    fn knows_the_line_of_everything() {
        let text =
            "a = 1\n\n[b]\nc = [\n  'x',\n  'y',\n]\n[[l]]\nd = true\n[[l]]\n# e\nd = 3\n[b.f]\ng.h = { i = 0x10 }\n";
        let table = parse(text, 7).unwrap();
        for (path, line) in [
            ("a", 1),
            ("b", 3),
            ("b.c", 4),
            ("b.c.1", 6),
            ("l", 8),
            ("l.0", 8),
            ("l.1", 10),
            ("l.1.d", 12),
            ("b.f", 13),
            ("b.f.g.h.i", 14),
        ] {
            assert_eq!(node(&table, path).place, Place { file: 7, line }, "{path}");
        }
        assert!(matches!(node(&table, "b.f.g.h.i").value, Value::Number(Some(16))));
    }

    #[test]
    fn lays_tables_over_key_by_key_and_replaces_lists() {
        let mut base = parse("[a]\nx = 1\ny = 1\n[[l]]\nn = 1\n[[l]]\nn = 2\n", 0).unwrap();
        overlay(&mut base, parse("[a]\ny = 2\nz = 2\n[[l]]\nn = 3\n", 1).unwrap());
        for (path, file, number) in [("a.x", 0, 1), ("a.y", 1, 2), ("a.z", 1, 2), ("l.0.n", 1, 3)] {
            let Node { value: Value::Number(Some(found)), place } = node(&base, path) else { panic!("{path}") };
            assert_eq!((*found, place.file), (number, file), "{path}");
        }
        assert!(matches!(&base["l"].value, Value::List(list) if list.len() == 1));
    }

    #[test]
    fn a_syntax_error_has_its_line() {
        let (line, message) = parse("a = 1\nb = = 2\n", 0).unwrap_err();
        assert_eq!(line, 2);
        assert!(!message.is_empty() && !message.contains('\n'), "{message}");
    }
}
