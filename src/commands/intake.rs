//! What the upstream may hand down: each command once however often it is sent, at most
//! [`COMMANDS_MAX`](super::COMMANDS_MAX) beyond the last one done and no more bytes than there is room for. What has
//! no room is not taken, and nothing behind it: it stays with the server, and a new session is wanted once there is
//! room again, because a server repeats only after a reconnect.

use std::collections::VecDeque;

use super::{COMMANDS_BYTES_MAX, COMMANDS_MAX};
use crate::dialect::message::CommandCursor;

/// What becomes of a command that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is new.
    Take,
    /// It is held, or done.
    Known,
    /// There is no room: it will be sent again.
    Later,
    /// The server may not have so many under way.
    TooMany,
}

/// What came in one numbering and is not done.
#[derive(Debug, Clone, Default)]
pub struct Intake {
    /// The numbering, and the last command done in it; `None`: none was ever seen.
    cursor: Option<CommandCursor>,
    /// The highest number taken.
    taken: u64,
    /// Number and bytes of each that is taken and not done, ascending.
    held: VecDeque<(u64, usize)>,
    bytes: usize,
    /// Something was left with the server in this session.
    short: bool,
}

impl Intake {
    /// What `hello` says: the last command done, in the numbering that was seen last.
    pub fn done(&self) -> Option<CommandCursor> {
        self.cursor.filter(|cursor| cursor.seq > 0)
    }

    /// The numbering of what is taken.
    pub fn stream(&self) -> u64 {
        self.cursor.map_or(0, |cursor| cursor.stream)
    }

    /// The server's numbering, as it greets: another one starts at 0.
    pub fn handle_stream(&mut self, stream: u64) {
        if self.cursor.is_none_or(|cursor| cursor.stream != stream) {
            *self = Self { cursor: Some(CommandCursor { stream, seq: 0 }), ..Self::default() };
        }
    }

    /// A command came.
    pub fn handle_command(&mut self, seq: u64, bytes: usize) -> Verdict {
        if seq <= self.taken {
            return Verdict::Known;
        }
        if self.held.len() >= COMMANDS_MAX {
            return Verdict::TooMany;
        }
        self.short |= !self.held.is_empty() && self.bytes + bytes > COMMANDS_BYTES_MAX;
        if self.short {
            return Verdict::Later;
        }
        self.taken = seq;
        self.bytes += bytes;
        self.held.push_back((seq, bytes));
        Verdict::Take
    }

    /// Everything up to there is done, durably; or was, when the agent started. How many that are.
    pub fn handle_done(&mut self, done: CommandCursor) -> u64 {
        let Some(cursor) = &mut self.cursor else {
            (self.cursor, self.taken) = (Some(done), done.seq);
            return 0;
        };
        if done.stream != cursor.stream || done.seq <= cursor.seq {
            return 0;
        }
        cursor.seq = done.seq;
        self.taken = self.taken.max(done.seq);
        let mut count = 0;
        while let Some((seq, bytes)) = self.held.front()
            && *seq <= done.seq
        {
            self.bytes -= bytes;
            count += 1;
            self.held.pop_front();
        }
        count
    }

    /// There is room for what was left with the server.
    pub fn wants_session(&self) -> bool {
        self.short && self.held.is_empty()
    }

    /// The session is over: the next one brings what was left.
    pub fn handle_end(&mut self) {
        self.short = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(stream: u64, seq: u64) -> CommandCursor {
        CommandCursor { stream, seq }
    }

    fn intake() -> Intake {
        let mut intake = Intake::default();
        intake.handle_stream(7);
        intake
    }

    #[test]
    fn each_is_taken_once_and_after_its_done_never_again() {
        let mut intake = intake();
        assert_eq!((intake.done(), intake.stream()), (None, 7));
        assert_eq!([1, 2, 2, 1, 3].map(|seq| intake.handle_command(seq, 1)), {
            use Verdict::{Known, Take};
            [Take, Take, Known, Known, Take]
        });
        assert_eq!(intake.handle_done(cursor(7, 2)), 2);
        assert_eq!(intake.handle_done(cursor(7, 1)), 0, "it never falls");
        intake.handle_end();
        intake.handle_stream(7);
        assert_eq!([1, 2, 3].map(|seq| intake.handle_command(seq, 1)), [Verdict::Known; 3], "3 is still held");
        assert_eq!(intake.handle_command(4, 1), Verdict::Take);
        assert_eq!(intake.done(), Some(cursor(7, 2)));
        assert_eq!(intake.handle_command(0, 1), Verdict::Known, "there is none of that number");
    }

    #[test]
    fn what_flash_says_is_done_is_known() {
        let mut intake = Intake::default();
        assert_eq!((intake.done(), intake.handle_done(cursor(7, 5))), (None, 0));
        assert_eq!(intake.done(), Some(cursor(7, 5)));
        intake.handle_stream(7);
        assert_eq!(intake.handle_command(5, 1), Verdict::Known);
        assert_eq!(intake.handle_command(6, 1), Verdict::Take);
    }

    #[test]
    fn another_stream_starts_at_0_and_what_was_done_of_the_old_one_is_no_news() {
        let mut intake = intake();
        intake.handle_command(1, 1);
        intake.handle_stream(8);
        assert_eq!((intake.done(), intake.stream()), (None, 8));
        assert_eq!(intake.handle_done(cursor(7, 1)), 0);
        assert_eq!(intake.handle_command(1, 1), Verdict::Take);
        assert_eq!(intake.handle_done(cursor(8, 1)), 1);
    }

    #[test]
    fn sixteen_beyond_done_and_not_one_more() {
        let mut intake = intake();
        for seq in 1..=16 {
            assert_eq!(intake.handle_command(seq, 1), Verdict::Take);
        }
        assert_eq!(intake.handle_command(17, 1), Verdict::TooMany);
        intake.handle_done(cursor(7, 1));
        assert_eq!(intake.handle_command(17, 1), Verdict::Take);
    }

    #[test]
    fn what_has_no_room_stays_with_the_server_until_a_new_session() {
        let mut intake = intake();
        let half = COMMANDS_BYTES_MAX / 2;
        assert_eq!(intake.handle_command(1, COMMANDS_BYTES_MAX * 2), Verdict::Take, "a lone one, however large");
        assert_eq!(intake.handle_command(2, half), Verdict::Later);
        assert_eq!(intake.handle_command(3, 1), Verdict::Later, "in order");
        assert!(!intake.wants_session());
        intake.handle_done(cursor(7, 1));
        assert!(intake.wants_session());
        intake.handle_end();
        assert!(!intake.wants_session());
        assert_eq!([2, 3].map(|seq| intake.handle_command(seq, half)), [Verdict::Take; 2]);
        assert_eq!(intake.handle_command(4, 1), Verdict::Later);
    }
}
