//! What provisioning adds to a configuration: who the device is, where it sends to and by what credentials, as one file
//! of `conf.d`. From tables to text; no file is touched here.

use std::path::Path;

use super::tree::{self, Node, Place, Table, Value};

/// The files of an endpoint that can be provisioned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The endpoint's key.
    pub key: &'static str,
    /// What the file is called on a boot partition, and the end of its name on flash.
    pub name: &'static str,
    /// Nobody else may read it.
    pub secret: bool,
    /// Keys that cannot stand beside this one.
    against: &'static [&'static str],
}

/// All of them.
pub const KINDS: [Kind; 4] = [
    Kind { key: "token_file", name: "token", secret: true, against: &["token_command", "basic_file", "basic_command"] },
    Kind { key: "ca_file", name: "ca.pem", secret: false, against: &[] },
    Kind { key: "cert_file", name: "cert.pem", secret: false, against: &[] },
    Kind { key: "key_file", name: "key.pem", secret: true, against: &[] },
];

/// What is to stand in the file.
#[derive(Debug, Default)]
pub struct Overlay<'a> {
    /// Keys as they were typed.
    pub fragment: Option<&'a Table>,
    /// `[device] id`.
    pub device: Option<&'a str>,
    /// The endpoint, in the place of all there are.
    pub url: Option<&'a str>,
    /// Which of [`KINDS`], and where each is; for every endpoint.
    pub files: Vec<(Kind, &'a Path)>,
}

impl Overlay<'_> {
    /// The file's text, over the configuration `base`. `None`: credentials without an endpoint.
    pub fn text(&self, base: &Table) -> Option<String> {
        let mut out = self.fragment.cloned().unwrap_or_default();
        if let Some(device) = self.device {
            table(&mut out, "device").insert("id".into(), text(device));
        }
        if self.url.is_some() || !self.files.is_empty() {
            let mut endpoints = self.endpoints(base, &out);
            if endpoints.is_empty() {
                return None;
            }
            for endpoint in &mut endpoints {
                for (kind, path) in &self.files {
                    endpoint.retain(|key, _| !kind.against.contains(&key.as_str()));
                    endpoint.insert(kind.key.into(), text(&path.to_string_lossy()));
                }
            }
            let list = endpoints.into_iter().map(|endpoint| node(Value::Table(endpoint))).collect();
            table(&mut out, "upstream").insert("endpoint".into(), node(Value::List(list)));
        }
        let mut written = String::new();
        write_table(&out, "", &mut written);
        Some(written)
    }

    /// Those of the fragment, or else of the base; the first alone where there is a url.
    fn endpoints(&self, base: &Table, fragment: &Table) -> Vec<Table> {
        let mut merged = base.clone();
        tree::overlay(&mut merged, fragment.clone());
        let mut endpoints = endpoints(&merged);
        if let Some(url) = self.url {
            let mut first = endpoints.into_iter().next().unwrap_or_default();
            first.insert("url".into(), text(url));
            endpoints = vec![first];
        }
        endpoints
    }
}

/// The tables of `[[upstream.endpoint]]`.
pub fn endpoints(tree: &Table) -> Vec<Table> {
    let Some(Node { value: Value::Table(upstream), .. }) = tree.get("upstream") else { return Vec::new() };
    let Some(Node { value: Value::List(list), .. }) = upstream.get("endpoint") else { return Vec::new() };
    let is_table = |node: &Node| match &node.value {
        Value::Table(table) => Some(table.clone()),
        Value::List(_) | Value::Text(_) | Value::Flag(_) | Value::Number(_) | Value::Share(_) | Value::Other(_) => None,
    };
    list.iter().filter_map(is_table).collect()
}

/// The string at this key.
pub fn string<'a>(tree: &'a Table, key: &str) -> Option<&'a str> {
    match &tree.get(key)?.value {
        Value::Text(text) => Some(text),
        Value::Table(_) | Value::List(_) | Value::Flag(_) | Value::Number(_) | Value::Share(_) | Value::Other(_) => {
            None
        }
    }
}

/// The table at this key, made where there is none.
fn table<'a>(parent: &'a mut Table, key: &str) -> &'a mut Table {
    let entry = parent.entry(key.into()).or_insert_with(|| node(Value::Table(Table::new())));
    if !matches!(entry.value, Value::Table(_)) {
        entry.value = Value::Table(Table::new());
    }
    let Value::Table(table) = &mut entry.value else { unreachable!("made one above") };
    table
}

fn node(value: Value) -> Node {
    Node { value, place: Place { file: 0, line: 1 } }
}

fn text(text: &str) -> Node {
    node(Value::Text(text.into()))
}

fn write_table(table: &Table, path: &str, out: &mut String) {
    for (key, node) in table {
        if !is_section(&node.value) {
            *out += &format!("{} = {}\n", quoted(key), inline(&node.value));
        }
    }
    for (key, node) in table {
        let path = if path.is_empty() { quoted(key) } else { format!("{path}.{}", quoted(key)) };
        match &node.value {
            Value::Table(table) => {
                *out += &format!("\n[{path}]\n");
                write_table(table, &path, out);
            }
            Value::List(list) if is_section(&node.value) => {
                for item in list {
                    *out += &format!("\n[[{path}]]\n");
                    if let Value::Table(table) = &item.value {
                        write_table(table, &path, out);
                    }
                }
            }
            Value::List(_) | Value::Text(_) | Value::Flag(_) | Value::Number(_) | Value::Share(_) | Value::Other(_) => {
            }
        }
    }
}

/// A table or a list of tables: behind the keys.
fn is_section(value: &Value) -> bool {
    match value {
        Value::Table(_) => true,
        Value::List(list) => !list.is_empty() && list.iter().all(|item| matches!(item.value, Value::Table(_))),
        Value::Text(_) | Value::Flag(_) | Value::Number(_) | Value::Share(_) | Value::Other(_) => false,
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Flag(flag) => flag.to_string(),
        Value::Number(Some(number)) => number.to_string(),
        Value::Share(share) => format!("{share:?}"),
        Value::List(list) => {
            let items: Vec<_> = list.iter().map(|item| inline(&item.value)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) => {
            let items: Vec<_> =
                table.iter().map(|(key, node)| format!("{} = {}", quoted(key), inline(&node.value))).collect();
            format!("{{ {} }}", items.join(", "))
        }
        // No key takes these: the check of the whole says so, as it would have of what was typed.
        Value::Number(None) | Value::Other(_) => "[]".into(),
    }
}

/// JSON's escapes are TOML's, but for one character that TOML wants escaped.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON").replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const BASE: &str = "[[upstream.endpoint]]\nurl = 'wss://a/v1'\nproxy = 'none'\ntoken_command = ['/bin/t']\n\
                        [[upstream.endpoint]]\nurl = 'wss://b/v1'\n";

    fn kind(name: &str) -> Kind {
        KINDS.into_iter().find(|kind| kind.name == name).unwrap()
    }

    #[test]
    fn a_token_goes_to_every_endpoint_that_there_is() {
        let base = tree::parse(BASE, 0).unwrap();
        let overlay =
            Overlay { device: Some("gw-\"7\""), files: vec![(kind("token"), Path::new("/t"))], ..Overlay::default() };
        let found = tree::parse(&overlay.text(&base).unwrap(), 0).unwrap();
        let endpoints = endpoints(&found);
        let urls: Vec<_> = endpoints.iter().map(|table| string(table, "url").unwrap()).collect();
        assert_eq!(urls, ["wss://a/v1", "wss://b/v1"]);
        assert!(endpoints.iter().all(|table| string(table, "token_file") == Some("/t")));
        assert!(!endpoints[0].contains_key("token_command"), "one of them is enough");
        assert_eq!(string(&endpoints[0], "proxy"), Some("none"));
        let Value::Table(device) = &found["device"].value else { panic!("{found:?}") };
        assert_eq!(string(device, "id"), Some("gw-\"7\""));
    }

    #[test]
    fn a_url_stands_in_for_all_endpoints_and_keeps_how_the_first_is_reached() {
        let base = tree::parse(BASE, 0).unwrap();
        let overlay = Overlay { url: Some("wss://c/v1"), ..Overlay::default() };
        let found = endpoints(&tree::parse(&overlay.text(&base).unwrap(), 0).unwrap());
        assert_eq!(found.len(), 1);
        assert_eq!((string(&found[0], "url"), string(&found[0], "proxy")), (Some("wss://c/v1"), Some("none")));
    }

    #[test]
    fn a_fragment_stays_what_it_says() {
        let text = "a = 1\n[b]\nc = [\"x\", 0.5, true]\n[b.d]\ne = \"\\u0007\\u007f\\n\"\n[[l]]\nn = 1\n[[l]]\n[l.t]\nu = -2\n";
        let fragment = tree::parse(text, 0).unwrap();
        let written = Overlay { fragment: Some(&fragment), ..Overlay::default() }.text(&Table::new()).unwrap();
        let again = tree::parse(&written, 0).unwrap_or_else(|error| panic!("{error:?}\n{written}"));
        let mut rewritten = String::new();
        write_table(&again, "", &mut rewritten);
        assert_eq!(written, rewritten);
        assert!(
            written.contains("\"e\" = \"\\u0007\\u007f\\n\"") && written.matches("[[\"l\"]]").count() == 2,
            "{written}"
        );
    }

    #[test]
    fn credentials_need_an_endpoint() {
        let overlay = Overlay { files: vec![(kind("token"), Path::new("/t"))], ..Overlay::default() };
        assert_eq!(overlay.text(&Table::new()), None);
    }
}
