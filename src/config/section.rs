//! Reads one table of the configuration, key by key: type, bounds and unknown keys. Collects what is wrong and goes
//! on with the default, so that all errors are told at once. Knows no key by itself.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::tree::{Node, Place, Table, Value};

/// What is wrong, so far.
#[derive(Default)]
pub struct Problems(RefCell<Vec<(Place, String)>>);

impl Problems {
    /// All of it, in the order of the files.
    pub fn into_sorted(self) -> Vec<(Place, String)> {
        let mut problems = self.0.into_inner();
        problems.sort_unstable();
        problems.dedup();
        problems
    }
}

/// One table, present or not.
pub struct Section<'a> {
    /// Empty for the root, else with a dot behind.
    path: String,
    table: Option<&'a Table>,
    /// Of the table; of the nearest one around it where it is not there.
    place: Place,
    asked: Vec<&'static str>,
    /// Not a table at all, which was told: nothing that follows from it is.
    quiet: bool,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    /// The whole configuration.
    pub fn root(table: &'a Table, problems: &'a Problems) -> Self {
        let place = Place { file: 0, line: 1 };
        Self { path: String::new(), table: Some(table), place, asked: Vec::new(), quiet: false, problems }
    }

    /// The table under `key`.
    pub fn section(&mut self, key: &'static str) -> Self {
        match self.ask(key) {
            None => self.inner(key, None, self.place),
            Some(Node { value: Value::Table(table), place }) => self.inner(key, Some(table), *place),
            Some(node) => {
                self.mismatch(key, node, "a table");
                Self { quiet: true, ..self.inner(key, None, node.place) }
            }
        }
    }

    /// The list of tables under `key`; `None` where it is something else, which is told.
    pub fn sections(&mut self, key: &'static str) -> Option<Vec<Self>> {
        if !self.has(key) {
            self.asked.push(key);
            return Some(Vec::new());
        }
        let nodes = self.list(key, "a list of tables")?;
        let mut sections = Vec::new();
        for node in nodes {
            match &node.value {
                Value::Table(table) => sections.push(self.inner(key, Some(table), node.place)),
                Value::List(_)
                | Value::Text(_)
                | Value::Flag(_)
                | Value::Number(_)
                | Value::Share(_)
                | Value::Other(_) => {
                    self.mismatch(key, node, "a table");
                    return None;
                }
            }
        }
        Some(sections)
    }

    /// An integer within `bounds`.
    pub fn number<T: TryFrom<i64>>(&mut self, key: &'static str, bounds: RangeInclusive<i64>, default: T) -> T {
        let Some(node) = self.ask(key) else { return default };
        let (from, to) = (*bounds.start(), *bounds.end());
        match &node.value {
            Value::Number(Some(number)) if bounds.contains(number) => T::try_from(*number).unwrap_or(default),
            Value::Number(Some(number)) => {
                self.report(node.place, key, &format!("{number} is not within {from} to {to}"));
                default
            }
            Value::Number(None) => {
                self.report(node.place, key, &format!("the number is not within {from} to {to}"));
                default
            }
            Value::Table(_) | Value::List(_) | Value::Text(_) | Value::Flag(_) | Value::Share(_) | Value::Other(_) => {
                self.mismatch(key, node, "an integer");
                default
            }
        }
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str, default: bool) -> bool {
        match self.ask(key) {
            None => default,
            Some(Node { value: Value::Flag(flag), .. }) => *flag,
            Some(node) => {
                self.mismatch(key, node, "true or false");
                default
            }
        }
    }

    /// A string, if it is there.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        match self.ask(key)? {
            Node { value: Value::Text(text), .. } => Some(text.clone()),
            node => {
                self.mismatch(key, node, "a string");
                None
            }
        }
    }

    /// An absolute path, if it is there.
    pub fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(key)?);
        if path.is_absolute() {
            return Some(path);
        }
        self.fail(key, &format!("\"{}\" is not an absolute path", path.display()));
        None
    }

    /// A list of strings, none of them empty.
    pub fn texts(&mut self, key: &'static str) -> Vec<String> {
        let nodes = self.list(key, "a list of strings").unwrap_or_default();
        let mut texts = Vec::new();
        for node in nodes {
            match &node.value {
                Value::Text(text) if !text.is_empty() => texts.push(text.clone()),
                Value::Text(_) => self.report(node.place, key, "an empty string"),
                Value::Table(_)
                | Value::List(_)
                | Value::Flag(_)
                | Value::Number(_)
                | Value::Share(_)
                | Value::Other(_) => self.mismatch(key, node, "a string"),
            }
        }
        texts
    }

    /// A program by its absolute path, and its arguments; empty where the key is not there.
    pub fn command(&mut self, key: &'static str) -> Vec<String> {
        let words = self.texts(key);
        match words.first() {
            None if self.has(key) => self.fail(key, "a program and its arguments are expected"),
            Some(program) if !program.starts_with('/') => {
                self.fail(key, &format!("\"{program}\" is not an absolute path"));
            }
            None | Some(_) => (),
        }
        words
    }

    /// A part of a whole: from 0, below 1.
    pub fn share(&mut self, key: &'static str, default: f64) -> f64 {
        let Some(node) = self.ask(key) else { return default };
        let share = match node.value {
            Value::Share(share) => share,
            Value::Number(Some(number)) => number as f64,
            Value::Table(_)
            | Value::List(_)
            | Value::Text(_)
            | Value::Flag(_)
            | Value::Number(None)
            | Value::Other(_) => {
                self.mismatch(key, node, "a number");
                return default;
            }
        };
        if (0.0..1.0).contains(&share) {
            return share;
        }
        self.report(node.place, key, &format!("{share} is not from 0 to below 1"));
        default
    }

    /// One of `words`.
    pub fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&'static str, T)], default: T) -> T {
        match self.ask(key) {
            None => default,
            Some(node) => self.word(key, node, words).unwrap_or(default),
        }
    }

    /// Some of `words`, each at most once, at least one.
    pub fn choices<T: Copy + PartialEq>(
        &mut self,
        key: &'static str,
        words: &[(&'static str, T)],
        default: Vec<T>,
    ) -> Vec<T> {
        let Some(nodes) = self.list(key, "a list of strings") else { return default };
        let mut chosen = Vec::new();
        for node in nodes {
            match self.word(key, node, words) {
                Some(choice) if chosen.contains(&choice) => self.report(node.place, key, "one value twice"),
                Some(choice) => chosen.push(choice),
                None => (),
            }
        }
        if nodes.is_empty() {
            self.fail(key, "at least one is needed");
        }
        chosen
    }

    /// True where the file says something about `key`.
    pub fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Something is wrong with `key`; told at its place, or at the table's where it is not there.
    pub fn fail(&self, key: &str, message: &str) {
        let place = self.table.and_then(|table| table.get(key)).map_or(self.place, |node| node.place);
        self.report(place, key, message);
    }

    /// Refuses the keys that nobody asked for.
    pub fn finish(self) {
        for (key, node) in self.table.into_iter().flatten() {
            if !self.asked.contains(&key.as_str()) {
                let hint = match nearest(key, &self.asked) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("known here: {}", self.asked.join(", ")),
                };
                self.report(node.place, key, &format!("unknown key; {hint}"));
            }
        }
    }

    fn ask(&mut self, key: &'static str) -> Option<&'a Node> {
        self.asked.push(key);
        self.table?.get(key)
    }

    fn list(&mut self, key: &'static str, expected: &str) -> Option<&'a [Node]> {
        match self.ask(key)? {
            Node { value: Value::List(nodes), .. } => Some(nodes),
            node => {
                self.mismatch(key, node, expected);
                None
            }
        }
    }

    fn word<T: Copy>(&self, key: &str, node: &Node, words: &[(&'static str, T)]) -> Option<T> {
        let Value::Text(text) = &node.value else {
            self.mismatch(key, node, "a string");
            return None;
        };
        let found = words.iter().find(|(word, _)| word == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let known: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.report(node.place, key, &format!("\"{text}\" is not one of {}", known.join(", ")));
        }
        found
    }

    fn inner(&self, key: &str, table: Option<&'a Table>, place: Place) -> Self {
        let path = format!("{}{key}.", self.path);
        Self { path, table, place, asked: Vec::new(), quiet: self.quiet, problems: self.problems }
    }

    fn mismatch(&self, key: &str, node: &Node, expected: &str) {
        self.report(node.place, key, &format!("{expected} is expected, not {}", node.value.kind()));
    }

    fn report(&self, place: Place, key: &str, message: &str) {
        if !self.quiet {
            self.problems.0.borrow_mut().push((place, format!("{}{key}: {message}", self.path)));
        }
    }
}

/// The known name that `typed` is most likely a slip of.
fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let slips_max = 1 + typed.chars().count() / 4;
    let with_slips = known.iter().map(|name| (slips(typed, name), *name));
    with_slips.filter(|(slips, _)| *slips <= slips_max).min().map(|(_, name)| name)
}

/// Characters to insert, delete or replace between the two (Levenshtein).
fn slips(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_name_that_was_meant() {
        let known = ["spread_ms", "slow_ms_min", "slow_ms_max", "stable_after_ms"];
        assert_eq!(nearest("spred_ms", &known), Some("spread_ms"));
        assert_eq!(nearest("stable_after", &known), Some("stable_after_ms"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(slips("kitten", "sitting"), 3);
        assert_eq!(slips("", "ab"), 2);
    }
}
