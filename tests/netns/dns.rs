//! A name server of a few lines: every name has the one IPv4 address, and no IPv6 address (RFC 1035 § 4.1).

use std::net::{Ipv4Addr, UdpSocket};
use std::thread::{self, JoinHandle};

/// Answers what is asked, for as long as the test runs.
pub fn serve(socket: UdpSocket, address: &str) -> JoinHandle<()> {
    let address: Ipv4Addr = address.parse().expect("an IPv4 address");
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = answer(&buffer[..length], address) {
                let _gone = socket.send_to(&answer, from);
            }
        }
    })
}

fn answer(question: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    const A: [u8; 2] = [0, 1];
    let name = question.get(HEADER..)?.iter().position(|byte| *byte == 0)? + 1;
    let asked = question.get(HEADER..HEADER + name + 4)?;
    let is_v4 = asked[name..name + 2] == A;
    // The question's id; a response, recursion desired and available, no error; one question, one answer or none.
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_v4), 0, 0, 0, 0]);
    answer.extend(asked);
    if is_v4 {
        // The name is the one at offset 12; type A, class IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
