//! The page that shows the fleet: a handful of files, served by [`Http`] from the receiver's own loop. What it shows is
//! the caller's.

use crate::shell::http::{Reply, Request};

pub use crate::shell::http::Http as Page;

const HTML: &str = include_str!("index.html");
const SCRIPT: &str = include_str!("fleet.js");
const STYLE: &str = include_str!("fleet.css");

/// The answer; `fleet` is what `/fleet.json` shows.
pub fn reply(request: Request<'_>, fleet: impl FnOnce() -> String) -> Reply {
    match request.path {
        "/" => Reply::ok("text/html", HTML),
        "/fleet.js" => Reply::ok("text/javascript", SCRIPT),
        "/fleet.css" => Reply::ok("text/css", STYLE),
        "/fleet.json" => Reply::ok("application/json", fleet()),
        _ => Reply::refusal("404 Not Found", "nothing here but / and /fleet.json\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_it_comes_from_elsewhere() {
        for file in [HTML, SCRIPT, STYLE] {
            let elsewhere = file.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("//") || !elsewhere.contains("://"), "{file}");
            assert!(!file.contains(" style=") && !file.contains("innerHTML"), "the policy forbids it");
        }
        assert!(!HTML.contains("<script>") && !HTML.contains("<style"), "the policy forbids it");
    }
}
