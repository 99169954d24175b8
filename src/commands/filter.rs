//! Topic filters as MQTT has them (3.1.1, § 4.7): `+` stands for one level, `#` for all that follow, the level above
//! included.

/// Longest filter, in bytes: what a program holds of the agent's memory has a bound.
pub const FILTER_BYTES_MAX: usize = 256;

/// Which topics someone asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Box<str>);

impl Filter {
    /// A checked filter; else what is wrong with it.
    pub fn try_new(filter: &str) -> Result<Self, &'static str> {
        if filter.is_empty() || filter.len() > FILTER_BYTES_MAX {
            return Err("a topic filter has 1 to 256 bytes");
        }
        if filter.contains('\0') {
            return Err("a topic filter has no NUL");
        }
        let mut levels = filter.split('/').rev();
        let last = levels.next().unwrap_or_default();
        if last != "#" && last.contains('#') || levels.any(|level| level.contains('#')) {
            return Err("# stands alone in the last level of a topic filter");
        }
        if filter.split('/').any(|level| level != "+" && level.contains('+')) {
            return Err("+ stands alone in a level of a topic filter");
        }
        Ok(Self(filter.into()))
    }

    /// True where the topic is one of those. What begins with `$` is asked for by name only (§ 4.7.2).
    pub fn matches(&self, topic: &str) -> bool {
        if topic.starts_with('$') && self.0.starts_with(['+', '#']) {
            return false;
        }
        let (mut filter, mut topic) = (self.0.split('/'), topic.split('/'));
        loop {
            match (filter.next(), topic.next()) {
                (Some("#"), _) | (None, None) => return true,
                (Some("+"), Some(_)) => {}
                (Some(wanted), Some(level)) if wanted == level => {}
                (Some(_) | None, Some(_)) | (Some(_), None) => return false,
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn matches_as_the_standard_says() {
        for (filter, topics, others) in [
            ("valve/1", &["valve/1"][..], &["valve", "valve/", "valve/1/a", "valve/2", "Valve/1", ""][..]),
            ("valve/+", &["valve/1", "valve/"], &["valve", "valve/1/a", "/valve/1"]),
            ("valve/#", &["valve", "valve/", "valve/1", "valve/1/a"], &["valves", "a/valve"]),
            ("+/b/#", &["a/b", "/b", "a/b/c/d"], &["a", "a/c/b", "$a/b"]),
            ("+", &["a", ""], &["/a", "a/b", "$a"]),
            ("#", &["a", "/a", "a/b", ""], &["$SYS", "$SYS/a"]),
            ("$SYS/#", &["$SYS", "$SYS/a"], &["a"]),
            ("a/+/c", &["a/b/c", "a//c", "a/$b/c"], &["a/c", "a/b/c/d"]),
            ("ä/+", &["ä/ö"], &["a/ö"]),
        ] {
            let known = Filter::try_new(filter).unwrap();
            for topic in topics {
                assert!(known.matches(topic), "{filter} and {topic}");
            }
            for topic in others {
                assert!(!known.matches(topic), "{filter} and {topic}");
            }
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for wrong in ["", "a/#/b", "#/a", "a#", "a/b#", "a+", "+a/b", "a/+b", "##", "++", "a\0", &"x".repeat(257)] {
            assert!(Filter::try_new(wrong).is_err(), "{wrong:?}");
        }
        assert!(Filter::try_new(&"x".repeat(256)).is_ok());
    }
}
