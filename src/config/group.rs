//! Groups and users: their ids, by name.

use std::fs;

/// The id of this group; `None` where /etc/group does not have it.
pub fn group_id(name: &str) -> Option<u32> {
    // group(5): name:password:id:members
    let groups = fs::read_to_string("/etc/group").ok()?;
    let mut lines = groups.lines().map(|line| line.split(':'));
    let mut fields = lines.find_map(|mut fields| (fields.next()? == name).then_some(fields))?;
    fields.nth(1)?.parse().ok()
}

/// The ids of this user and its own group; `None` where /etc/passwd does not have it.
pub fn user_ids(name: &str) -> Option<(u32, u32)> {
    // passwd(5): name:password:uid:gid:…
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let mut lines = users.lines().map(|line| line.split(':'));
    let mut fields = lines.find_map(|mut fields| (fields.next()? == name).then_some(fields))?;
    Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_root_and_no_stranger() {
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no-such-group"), None);
        assert_eq!(group_id(""), None);
        assert_eq!(user_ids("root"), Some((0, 0)));
        assert_eq!(user_ids("no-such-user"), None);
    }
}
