//! `docs/failures.md`, held against the code and against the rows.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use backhaul::link::{Class, Disposition, Failure};

use crate::scene::class_named;
use crate::table::{Row, Wait, rows};

/// The generated part of the page stands between these.
const BEGIN: &str = "<!-- generated: PAGE=write cargo test --features receiver --test failures page -->\n";
const END: &str = "<!-- end -->\n";

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn page() -> String {
    fs::read_to_string(root("docs/failures.md")).expect("the page is there")
}

/// Fails where one of these, `file::test` each, is no test.
fn assert_tests(cell: &str) {
    for reference in cell.split(", ") {
        let (file, test) = word(reference).split_once("::").expect("file::test");
        let source = fs::read_to_string(root(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let body = source.split_once(&format!("fn {test}()")).unwrap_or_else(|| panic!("{file} has no test {test}"));
        let attribute = body.0.rsplit("\n\n").next().unwrap_or_default();
        assert!(attribute.contains("#[test]"), "{file}: {test} is no test");
    }
}

/// The cells of the table under this heading, without its head.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).expect("the heading is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    let lines = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    lines.skip(2).map(cells).collect()
}

/// `class`, without the ticks.
fn word(cell: &str) -> &str {
    cell.trim_matches('`')
}

#[test]
fn page_says_of_every_class_what_the_code_does() {
    let written: Vec<(String, String)> =
        table(&page(), "Classes").iter().map(|row| (word(&row[0]).to_owned(), row[1].clone())).collect();
    let expected: Vec<(String, String)> = Class::ALL
        .iter()
        .map(|class| {
            let asks_for = match class.disposition() {
                Disposition::Promptly => "promptly",
                Disposition::Spread => "spread",
                Disposition::Backoff => "backoff",
                Disposition::Slow => "slow",
                Disposition::Stop => "stop",
            };
            (class.name().to_owned(), asks_for.to_owned())
        })
        .collect();
    assert_eq!(written, expected);
}

/// xmidt-org/parodus#264: documentation that is not held against the code describes another program.
#[test]
fn page_lists_the_failures_that_are_staged() {
    let page = page();
    let (before, rest) = page.split_once(BEGIN).expect("the page says where the rows begin");
    let (written, after) = rest.split_once(END).expect("and where they end");
    let generated = generated();
    if std::env::var("PAGE").is_ok_and(|what| what == "write") {
        fs::write(root("docs/failures.md"), format!("{before}{BEGIN}{generated}{END}{after}")).expect("a file");
    } else {
        assert_eq!(written, generated, "PAGE=write cargo test --features receiver --test failures page");
    }
}

/// One line for all that is treated alike in one stage.
fn generated() -> String {
    let mut lines: Vec<(String, Vec<&str>)> = Vec::new();
    for row in rows() {
        let head = format!("| `{}` | `{}` | {}", row.stage, row.class, words(row.wait));
        let seen = row.name.trim_end_matches(", up").trim_end_matches(", greeting");
        match lines.iter_mut().find(|(known, _)| *known == head) {
            Some((_, all)) => all.push(seen),
            None => lines.push((head, vec![seen])),
        }
    }
    let mut text = String::from("\n| stage | class | next attempt | seen |\n|---|---|---|---|\n");
    for (head, mut seen) in lines {
        seen.dedup();
        writeln!(text, "{head} | {} |", seen.join("; ")).expect("a String takes everything");
    }
    text + "\n"
}

fn words(wait: Wait) -> &'static str {
    match wait {
        Wait::Backoff => "backoff",
        Wait::BackoffAndSpread => "backoff, and spread each time",
        Wait::Slow => "slow",
        Wait::Refused => "slow, with a look at the credentials",
        Wait::ServersWord { .. } => "as the server says, and spread",
        Wait::Promptly => "within a second",
        Wait::Takeovers => "backoff twice, then slow",
    }
}

#[test]
fn page_names_tests_that_are_there_and_one_for_every_class() {
    let page = page();
    let mut tested: Vec<String> = rows().iter().map(|row| row.class.to_owned()).collect();
    for row in table(&page, "Staged elsewhere") {
        tested.extend(row[1].split(", ").map(|class| word(class).to_owned()));
        assert_tests(&row[2]);
    }
    for class in Class::ALL {
        assert!(tested.iter().any(|name| name == class.name()), "nothing stages {}", class.name());
    }
    for name in tested {
        class_named(&name);
    }
}

#[test]
fn page_of_the_link_names_a_test_for_each_lesson() {
    let page = fs::read_to_string(root("docs/link.md")).expect("the page is there");
    let lessons = table(&page, "Lessons");
    assert!(lessons.len() > 30, "{}", lessons.len());
    let mut issues: Vec<&str> = Vec::new();
    for row in &lessons {
        let (peer, number) = row[0].split_once('#').expect("owner/repository#number");
        assert!(peer.split('/').count() == 2 && number.parse::<u32>().is_ok(), "{}", row[0]);
        issues.push(&row[0]);
        assert_tests(&row[2]);
    }
    issues.sort_unstable();
    issues.dedup();
    assert_eq!(issues.len(), lessons.len(), "one row an issue");
}

/// What the code tells apart by a number, a row stages by that number.
#[test]
fn page_and_rows_leave_no_code_out() {
    let rows = rows();
    let of = |name: &str| -> Vec<&Row> {
        rows.iter()
            .filter(|row| row.name == name || row.name.strip_prefix(name).is_some_and(|rest| rest.starts_with(", ")))
            .collect()
    };
    for status in (100..=599).filter(|status| ![101, 407].contains(status) && !(304..=306).contains(status)) {
        let class = Failure::from_http(status, None, None).class.name();
        let staged = of(&format!("HTTP {status}"));
        assert!(staged.iter().all(|row| row.class == class), "HTTP {status} is {class}");
        let told_apart = class != "closed" && !(300..400).contains(&status);
        assert!(!told_apart || !staged.is_empty(), "HTTP {status} is {class}, and nothing stages it");
    }
    for code in 1000..=4999 {
        let class = Failure::from_close(code, "").class.name();
        let staged = of(&format!("close {code}"));
        assert!(staged.iter().all(|row| row.class == class), "close {code} is {class}");
        // 1006 and 1015 never travel (RFC 6455 § 7.4.1); 4009 has a row of its own.
        let told_apart = class != "closed" && ![1006, 1015, 4009].contains(&code);
        assert!(!told_apart || !staged.is_empty(), "close {code} is {class}, and nothing stages it");
    }
}

#[test]
fn page_has_the_class_of_every_errno_that_it_names() {
    let errnos = table(&page(), "Errors of the system");
    assert!(errnos.len() > 8, "{errnos:?}");
    for row in errnos {
        let (_, number) = row[0].trim_end_matches(')').split_once('(').expect("ENAME (number)");
        let error = io::Error::from_raw_os_error(number.parse().expect("a number"));
        assert_eq!(Failure::from_io(&error, "dialing").class.name(), word(&row[1]), "{}", row[0]);
    }
}
