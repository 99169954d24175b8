//! A command on its way to a client, in pieces: a line of several megabytes takes a few kilobytes of memory.

use std::sync::Arc;

use super::request::write_integer;
use crate::commands::Command;
use crate::record::Body;

/// Of topic or body, before JSON writes a character as six; a multiple of 3, so that base64 pads at the end only.
const PIECE_BYTES: usize = 1023;

/// What is still to be written of a command's line.
#[derive(Debug)]
pub(super) struct Pieces {
    command: Arc<Command>,
    next: Piece,
}

#[derive(Debug, Clone, Copy)]
enum Piece {
    Head,
    Topic(usize),
    Body(usize),
}

impl Pieces {
    pub fn new(command: Arc<Command>) -> Self {
        Self { command, next: Piece::Head }
    }

    /// Adds the next piece; false: it was the last.
    pub fn write(&mut self, out: &mut Vec<u8>) -> bool {
        let Command { stream, seq, topic, body } = &*self.command;
        self.next = match self.next {
            Piece::Head => {
                out.extend_from_slice(b"{\"command\":{\"seq\":");
                write_integer(out, *seq);
                out.extend_from_slice(b",\"topic\":\"");
                Piece::Topic(0)
            }
            Piece::Topic(from) if from < topic.len() => Piece::Topic(write_text(out, topic, from)),
            Piece::Topic(_) => {
                out.extend_from_slice(match body {
                    Body::Text(_) => b"\",\"text\":\"",
                    Body::Bytes(_) => b"\",\"base64\":\"",
                });
                Piece::Body(0)
            }
            Piece::Body(from) if from < body.as_bytes().len() => Piece::Body(match body {
                Body::Text(text) => write_text(out, text, from),
                Body::Bytes(bytes) => {
                    let to = bytes.len().min(from + PIECE_BYTES);
                    out.extend_from_slice(data_encoding::BASE64.encode(&bytes[from..to]).as_bytes());
                    to
                }
            }),
            Piece::Body(_) => {
                out.extend_from_slice(b"\",\"stream\":");
                write_integer(out, *stream);
                out.extend_from_slice(b"}}\n");
                return false;
            }
        };
        true
    }
}

/// Adds a piece of a JSON string, without its quotes; returns where the next one begins.
fn write_text(out: &mut Vec<u8>, text: &str, from: usize) -> usize {
    let most = text.len().min(from + PIECE_BYTES);
    let to = (from..=most).rev().find(|to| text.is_char_boundary(*to)).unwrap_or(most);
    let start = out.len();
    serde_json::to_writer(&mut *out, &text[from..to]).expect("a string into a Vec cannot fail");
    out.remove(start);
    out.pop();
    to
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn line(topic: &str, body: Body) -> serde_json::Value {
        let command = Command { stream: 9, seq: 3, topic: topic.into(), body };
        let (mut pieces, mut line) = (Pieces::new(Arc::new(command)), Vec::new());
        let mut more = true;
        while more {
            let before = line.len();
            more = pieces.write(&mut line);
            assert!(line.len() - before <= 6 * PIECE_BYTES, "a piece is small");
        }
        assert_eq!(line.pop(), Some(b'\n'));
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn the_pieces_are_one_line_of_json() {
        for text in ["", "open", "\"\\\n\0", &"ä€😀\u{1}".repeat(1000), &"\u{1}".repeat(5000)] {
            let value = line(text, Body::Text(text.into()));
            assert_eq!(value["command"]["topic"], text);
            assert_eq!(value["command"]["text"], text);
            assert_eq!((&value["command"]["seq"], &value["command"]["stream"]), (&3.into(), &9.into()));
            let value = line("t", Body::Bytes(text.as_bytes().to_vec()));
            assert_eq!(value["command"]["base64"], data_encoding::BASE64.encode(text.as_bytes()));
        }
    }
}
